"""Bring the table of notebooks in nbs/index.ipynb up to date, and write README.md from it.

With --check, only say whether both are.
"""

import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parent.parent
index = root / "nbs" / "index.ipynb"


def holds(name: str) -> str:
    "What the notebook `name` says that it holds, below its title."
    first = nbformat.read(root / "nbs" / f"{name}.ipynb", as_version=4).cells[0].source
    return re.search(r"(?m)^> (.*?)\.?$", first)[1]


def with_rooms(table: str) -> str:
    "The table of notebooks, with one row for each notebook of a room, in reading order."
    rows = []
    for row in table.splitlines():
        if re.match(r"\| `\w+/\w+` \| `polca", row):
            continue
        rows.append(row)
        if room := re.match(r"\| \*\*`(\w+)`\*\*", row):
            for path in sorted((root / "nbs" / room[1]).glob("*.ipynb")):
                name = f"{room[1]}/{path.stem}"
                module = f"polca.{room[1]}.{path.stem.partition('_')[2]}"
                rows.append(f"| `{name}` | `{module}` | {holds(name)} |")
    return "\n".join(rows) + "\n"


def refresh_table(check: bool) -> None:
    "Write the table into the index; with `check`, exit if it is another."
    notebook = nbformat.read(index, as_version=4)
    cell = next(c for c in notebook.cells if c.source.startswith("## The notebooks"))
    source = re.sub(r"(?m)^\| notebook.*\n(?:\|.*\n)+", lambda table: with_rooms(table[0]), cell.source)
    if source != cell.source and check:
        sys.exit("the table of notebooks in nbs/index.ipynb is not up to date: run python .ci/readme.py")
    if source != cell.source:
        cell.source = source
        nbformat.write(notebook, index)


refresh_table("--check" in sys.argv)
notebook = nbformat.read(index, as_version=4)
notebook.metadata["language_info"] = {"name": "python"}  # for the fences around code
notebook.cells = [c for c in notebook.cells if not c.source.startswith("#| hide")]
for cell in notebook.cells:
    for output in cell.get("outputs", []):
        # GitHub shows no HTML tables with styles; the plain text of an output says the same
        if "data" in output:
            output["data"] = {k: v for k, v in output["data"].items() if k == "text/plain"}
body, _ = MarkdownExporter().from_notebook_node(notebook)
# paths are relative to nbs/ there, to the root here
body = re.sub(r"\]\((?!https?:|#|\.\./)", "](nbs/", body).replace("](../", "](")
body = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+$", "", body, flags=re.M)).strip() + "\n"
readme = root / "README.md"
if "--check" in sys.argv:
    if readme.read_text(encoding="utf-8") != body:
        sys.exit("README.md is not what nbs/index.ipynb gives: run python .ci/readme.py")
else:
    readme.write_text(body, encoding="utf-8")
