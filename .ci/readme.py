"""Write README.md from nbs/index.ipynb; with --check, only say whether it is up to date."""

import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parent.parent
notebook = nbformat.read(root / "nbs" / "index.ipynb", as_version=4)
notebook.metadata["language_info"] = {"name": "python"}  # for the fences around code
notebook.cells = [c for c in notebook.cells if not c.source.startswith("#| hide")]
for cell in notebook.cells:
    for output in cell.get("outputs", []):
        # GitHub shows no HTML tables with styles; the plain text of an output says the same
        if "data" in output:
            output["data"] = {k: v for k, v in output["data"].items() if k == "text/plain"}
body, _ = MarkdownExporter().from_notebook_node(notebook)
body = re.sub(r"\]\((images|results)/", r"](nbs/\1/", body)  # paths are relative to nbs/ there, to the root here
body = body.replace('Path("experiments/', 'Path("nbs/experiments/')
body = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+$", "", body, flags=re.M)).strip() + "\n"
readme = root / "README.md"
if "--check" in sys.argv:
    if readme.read_text(encoding="utf-8") != body:
        sys.exit("README.md is not what nbs/index.ipynb gives: run python .ci/readme.py")
else:
    readme.write_text(body, encoding="utf-8")
