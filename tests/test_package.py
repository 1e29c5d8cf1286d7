"""The package as pip sees it: what importing needs, what is declared, what is documented."""
import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(p.stem for p in (ROOT / "polca").glob("*.py") if not p.stem.startswith("_"))

BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"nbdev", "fastcore", "execnb", "ipywidgets", "anywidget", "traitlets", "jupyterlab", "IPython", "ipykernel"}:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def settings():
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini")
    return parser["DEFAULT"]


def name_of(requirement):
    return re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower()


def test_the_package_has_its_modules():
    assert {"losses", "checkpoints", "curvature", "subspace", "projection", "decomposition", "clustering", "breakthroughs",
            "plots", "arithmetic", "runs", "report", "processes", "views", "pages", "explorer"} <= set(MODULES)


def test_importing_needs_no_notebook_packages():
    code = f"{BLOCKED}\nimport importlib\nfor m in {['polca', *(f'polca.{m}' for m in MODULES if m != 'explorer')]}: importlib.import_module(m)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_explorer_alone_needs_widgets_and_says_so():
    done = subprocess.run([sys.executable, "-c", f"{BLOCKED}\nimport polca.explorer"], capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'polca[notebook]'" in done.stderr and "polca report RUN" in done.stderr


def test_importing_the_command_line_loads_no_transformers_and_draws_nothing():
    code = "import sys, polca.runs, polca.__main__; print([m for m in ('transformers', 'matplotlib.pyplot', 'IPython') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_constraints_name_every_requirement_once_and_exactly():
    lines = [l for l in (ROOT / "constraints.txt").read_text().splitlines() if l and not l.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", l) for l in lines)
    names = [name_of(l) for l in lines]
    declared = {name_of(r) for key in ("requirements", "notebook_requirements", "dev_requirements") for r in settings()[key].split()}
    assert len(names) == len(set(names)) and declared <= set(names)


def test_the_packages_that_the_code_imports_are_declared():
    declared = {name_of(r).replace("-", "_") for key in ("requirements", "spacy_requirements", "peft_requirements", "wikipedia_requirements", "notebook_requirements") for r in settings()[key].split()} | {"sklearn", "IPython", "traitlets"}  # the last two come with ipywidgets
    for module in MODULES:
        for node in ast.walk(ast.parse((ROOT / "polca" / f"{module}.py").read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
                [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for name in names:
                top = name.split(".")[0]
                assert top in declared | {"polca"} | sys.stdlib_module_names, f"{module} imports {name}"


def test_a_module_imports_only_lower_numbers():
    numbers = {p.stem.split("_", 1)[1]: p.stem.split("_")[0] for p in (ROOT / "nbs").glob("[0-9][0-9]*_*.ipynb")}
    for module in MODULES:
        for node in ast.walk(ast.parse((ROOT / "polca" / f"{module}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module: assert numbers[node.module] < numbers[module], (module, node.module)


@pytest.mark.parametrize("module", MODULES)
def test_public_names_have_docstrings(module):
    tree = ast.parse((ROOT / "polca" / f"{module}.py").read_text())
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and node.name != "decode":
            assert ast.get_docstring(node), f"polca.{module}.{node.name}"


def test_readme_has_the_two_lines():
    lines = [l for l in (ROOT / "README.md").read_text().splitlines() if l.startswith("python3 -m venv")]
    assert len(lines) == 2
    assert lines[0].endswith("&& polca run arithmetic") and lines[1].endswith("&& nbdev_test && pytest -n 2 --dist loadfile")
    assert all("-c constraints.txt" in l for l in lines)
