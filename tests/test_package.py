"""The package as pip sees it: what importing needs, what is declared, what is documented, which room imports which."""

import ast
import configparser
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import polca

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    ".".join(p.relative_to(ROOT / "polca").with_suffix("").parts): p
    for p in sorted((ROOT / "polca").rglob("*.py"))
    if not p.stem.startswith("_")
}
FLOORS = {  # what the modules of a room may import, besides each other
    "core": set(),
    "analysis": set(),
    "compute": {"core"},
    "show": {"analysis"},
    "runs": {"core", "analysis", "compute", "show"},
    "explorer": {"core", "analysis", "compute", "show", "runs"},
    "tasks": {"core", "analysis", "compute", "show", "runs"},
}
WIDGETS = ("explorer.map", "explorer.widgets")  # the modules that need the notebook's packages

NOTEBOOK_PACKAGES = "nbdev fastcore execnb ipywidgets anywidget traitlets jupyterlab IPython ipykernel".split()
BLOCKED = f"""
import sys
BLOCKED = {NOTEBOOK_PACKAGES}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError("blocked: " + name, name=name)
sys.meta_path.insert(0, Blocker())
"""


def settings():
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini")
    return parser["DEFAULT"]


def name_of(requirement):
    return re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower()


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def polca_imports(module):
    "The modules of polca that a module imports, wherever in it the import stands."
    package = ["polca", *module.split(".")[:-1]]
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and [a.name for a in node.names] == ["__version__"]:
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) + 1 - node.level]
            yield ".".join([*above, *(node.module or "").split(".")][1:])
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("polca."):
            yield node.module.removeprefix("polca.")


def test_every_room_is_there_and_its_notebooks_are_numbered():
    assert {module.split(".")[0] for module in FILES} == set(FLOORS)
    for module in FILES:
        room, name = module.split(".")
        assert len(list((ROOT / "nbs" / room).glob(f"[0-9][0-9]_{name}.ipynb"))) == 1, module


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_only_from_the_floors_below(module):
    room = module.split(".")[0]
    for other in polca_imports(module):
        assert other.split(".")[0] in FLOORS[room] | {room}, f"{module} imports {other}"


def test_within_a_room_a_module_imports_only_lower_numbers():
    number = {
        module: int(next((ROOT / "nbs" / module.split(".")[0]).glob(f"??_{module.split('.')[1]}.ipynb")).name[:2])
        for module in FILES
    }
    upward = [
        (module, other)
        for module in FILES
        for other in polca_imports(module)
        if other in number and other.split(".")[0] == module.split(".")[0] and number[other] >= number[module]
    ]
    # `Checkpoints.open` is a door to what is made of Checkpoints, and imports it when it is called
    assert set(upward) <= {("core.checkpoints", "core.pretrained")}, upward


def test_importing_polca_loads_no_library():
    libraries = {"torch", "numpy", "transformers"}
    done = python(f"import polca, sys; print(sorted({libraries} & set(sys.modules)))")
    assert done.stdout.strip() == "[]", done.stderr


def test_the_public_names_are_there_and_no_room_hides_one():
    assert 20 <= len(polca.__all__) <= 35 and set(polca.__all__) < set(dir(polca))
    for room in FLOORS:
        importlib.import_module(f"polca.{room}")
    for name in polca.__all__:
        assert callable(getattr(polca, name)), name


def test_no_public_name_is_there_twice():
    seen = {}
    for module, file in FILES.items():
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert node.name not in seen, f"{node.name} in {seen[node.name]} and in {module}"
                seen[node.name] = module


def test_importing_needs_no_notebook_packages_and_the_command_line_alone_draws_nothing():
    unwanted = ("transformers", "matplotlib.pyplot", *NOTEBOOK_PACKAGES)
    modules = [f"polca.{module}" for module in FILES if module not in WIDGETS]
    code = f"""
import importlib, sys
import polca.runs.run, polca.__main__
print([name for name in {unwanted} if name in sys.modules])
{BLOCKED}
for module in {modules}:
    importlib.import_module(module)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_explorer_alone_needs_widgets_and_says_so():
    done = python(f"{BLOCKED}\nimport polca.explorer.widgets")
    assert done.returncode == 1 and "pip install 'polca-lm[notebook]'" in done.stderr
    assert "polca report RUN" in done.stderr


def test_constraints_name_every_requirement_once_and_exactly():
    text = (ROOT / "constraints.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    names = [name_of(line) for line in lines]
    keys = ("requirements", "notebook_requirements", "dev_requirements")
    declared = {name_of(r) for key in keys for r in settings()[key].split()}
    assert len(names) == len(set(names)) and declared <= set(names)


def test_the_packages_that_the_code_imports_are_declared():
    keys = ["requirements", *(f"{extra}_requirements" for extra in ("spacy", "peft", "wikipedia", "notebook"))]
    declared = {name_of(r).replace("-", "_") for key in keys for r in settings()[key].split()}
    declared |= {"sklearn", "IPython", "traitlets", "jscatter"}  # the second and third come with ipywidgets
    for module, file in FILES.items():
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                known = declared | {"polca"} | sys.stdlib_module_names
                assert name.split(".")[0] in known, f"{module} imports {name}"


@pytest.mark.parametrize("module", FILES)
def test_public_names_have_docstrings(module):
    for node in ast.parse(FILES[module].read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"polca.{module}.{node.name}"


def is_code(source):
    "Whether a cell is more than imports, or one constant such as a style sheet."
    body = ast.parse(source).body
    return any(not isinstance(node, (ast.Import, ast.ImportFrom, ast.Assign)) for node in body)


def test_export_cells_are_short():
    long = []
    for file in (ROOT / "nbs").rglob("*.ipynb"):
        for cell in json.loads(file.read_text())["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] != "code" or not source.startswith("#| export") or not is_code(source):
                continue
            if source.count("\n") >= 40:
                long.append(f"{file.stem}: {source.count(chr(10)) + 1} lines, {source.splitlines()[1]}")
    assert not long, "\n".join(long)


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short_before_its_table():
    assert len(README[: README.index("| notebook |")].encode()) <= 8_000


def test_the_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    missing = [link for link in links if not (ROOT / link).exists()]
    assert len(links) > 10 and not missing, missing


def test_whatever_says_what_to_install_says_polca_lm():
    """`polca` on the package index is another project's."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert settings()["lib_name"] == "polca-lm" and "README.md" in tracked
    wrong = {}
    for name in tracked:
        if name.endswith((".ipynb", ".py", ".md", ".yml", ".yaml", ".cff", ".ini", ".toml")):
            text = (ROOT / name).read_text(encoding="utf-8")
            found = re.findall(r"polca\[\w|pip install ['\"]?polca\b(?!-lm)", text)
            wrong |= {name: found} if found else {}
    assert not wrong, wrong


def test_another_distribution_by_the_name_of_polca_is_not_taken_for_this_one(tmp_path):
    """Its wheel holds `pypolca`, and may stand in the same environment."""
    other = tmp_path / "polca-0.4.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: polca\nVersion: 0.4.0\n")
    code = f"""
import sys, importlib.metadata
sys.path.insert(0, {str(tmp_path)!r})
assert importlib.metadata.version("polca") == "0.4.0"
from polca.runs.origins import environment
print(environment()["polca"])
"""
    done = python(code)
    assert done.stdout.strip() == polca.__version__ == settings()["version"], done.stderr


def test_every_paper_names_the_version():
    version = settings()["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version} (" in (ROOT / "CHANGELOG.md").read_text()


def test_the_types_are_for_others_too():
    assert (ROOT / "polca" / "py.typed").exists() and "py.typed" in (ROOT / "setup.py").read_text()


def test_readme_has_the_two_lines():
    text = README
    lines = [line for line in text.splitlines() if line.startswith("python3 -m venv")]
    assert len(lines) == 2 and all("-c constraints.txt" in line for line in lines)
    assert lines[0].endswith("&& polca run arithmetic")
    assert lines[1].endswith("&& nbdev_test && pytest -n 2 --dist loadfile")
