"""The site: every notebook as a page, a page of the API for every room, a gallery, and this project's own papers.

Hooks of MkDocs (`mkdocs.yml`). Notebooks become Markdown by nbconvert, so that links, search, contents and colours are
those of the site; HTML of their outputs comes back into the page as it is, and formulas become MathML, which needs no
script.
"""

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import nbformat
import yaml
from latex2mathml.converter import convert
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter

import polca

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ROOMS = ("core", "analysis", "compute", "show", "runs", "explorer", "tasks")
TUTORIALS = ("own_model", "explore", "commands", "in_python")
PAPERS = {"Contributing": "CONTRIBUTING.md", "Changes": "CHANGELOG.md"}
FILES_ON_GITHUB = ("CITATION.cff", "LICENSE")
OUTPUTS = {}  # HTML of the outputs, by what stands for it until the page is made


class Page(NamedTuple):
    "A notebook as Markdown, and {file name: bytes} of its pictures."

    markdown: str
    pictures: dict[str, bytes]


def notebook_names(folder):
    "Of the notebooks in a folder of `nbs`, in reading order."
    return sorted(p.stem for p in (ROOT / "nbs" / folder).glob("*.ipynb"))


def module_of(name):
    "The module that the notebook `name` is exported to, None if it is none."
    notebook = nbformat.read(ROOT / "nbs" / f"{name}.ipynb", as_version=4)
    exports = [m[1] for cell in notebook.cells if (m := re.match(r"#\| default_exp (\S+)", cell.source))]
    return f"polca.{exports[0]}".removesuffix(".__init__") if exports else None


def title_of(name):
    notebook = nbformat.read(ROOT / "nbs" / f"{name}.ipynb", as_version=4)
    return re.search(r"(?m)^# (.*)$", notebook.cells[0].source)[1]


def as_markdown(output):
    "An output whose HTML is kept aside, as Markdown that stands for it."
    data = output.get("data", {})
    if "application/vnd.jupyter.widget-view+json" in data:
        return nbformat.v4.new_output("display_data", {"text/markdown": ""})  # a figure of it stands beside it
    if "text/html" not in data or "image/png" in data:
        return output
    mark = f"output-{len(OUTPUTS)}"
    OUTPUTS[mark] = data["text/html"]
    return nbformat.v4.new_output("display_data", {"text/markdown": f'<div data-output="{mark}"></div>'})


def as_page(name):
    "The notebook `name` of `nbs`, without what is hidden."
    notebook = nbformat.read(ROOT / "nbs" / f"{name}.ipynb", as_version=4)
    notebook.metadata["language_info"] = {"name": "python"}  # for the fences around code
    notebook.cells = [c for c in notebook.cells if not re.match(r"#\| (hide|default_exp)", c.source)]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [as_markdown(output) for output in cell.outputs]
    resources = {"unique_key": Path(name).name, "output_files_dir": ""}
    body, resources = MarkdownExporter().from_notebook_node(notebook, resources)
    module = module_of(name)
    title = f'title="{module}"' if module else ""
    body = re.sub(r"```python\n#\| exporti?\n", f"```python {title}\n", body)
    body = re.sub(r"```python\n#\| (slow|gpu)\n", r'```python title="\1: not run in every test"' + "\n", body)
    body = re.sub(r"(?m)^#\| \w+\n", "", body)
    return Page(body, resources["outputs"])


def linked(markdown, folder=""):
    "Links to notebooks and papers, as links between pages; names of notebooks in a table become such links."
    up = "../" if folder else ""
    markdown = re.sub(r"(\]\([^)\s:]*)\.ipynb([#)])", r"\1.md\2", markdown)
    for page in PAPERS.values():
        markdown = markdown.replace(f"](../{up}{page}", f"]({up}{page.lower()}")
    for file in FILES_ON_GITHUB:
        markdown = re.sub(rf"\[([^\]]*)\]\(\.\./{re.escape(up)}{re.escape(file)}\)", rf"\1 (`{file}`)", markdown)

    def row(match):
        exists = (ROOT / "nbs" / f"{match[1]}.ipynb").exists()
        return f"| [`{match[1]}`]({up}{match[1]}.md) |" if exists else match[0]

    return re.sub(r"(?m)^\| `((?:\w+/)?\w+)` \|", row, markdown)


def api_page(room):
    "Every module of a room: what its notebook says that it holds, and its public names."
    parts = [f"# polca.{room}\n"]
    for stem in notebook_names(room):
        name = f"{room}/{stem}"
        module = module_of(name)
        parts.append(f"## {module}\n\nFrom the notebook [{title_of(name)}](../{name}.md).\n\n::: {module}\n")
    return "\n".join(parts)


def public_page():
    "The names of `polca` itself, each a link to where it is explained."
    rows = []
    for name in polca.__all__:
        public = getattr(polca, name)
        summary = html.escape(public.__doc__.strip().split("\n")[0])
        rows.append(f"| [`polca.{name}`][{public.__module__}.{name}] | {summary} |")
    return "# polca\n\nWhat `import polca` gives is stable.\n\n| name | |\n|---|---|\n" + "\n".join(rows)


def gallery_page(pages):
    "The pictures of `gallery.yml`, each a link to its notebook."
    parts = [
        "---\nhide: [navigation, toc]\n---\n# Gallery\n\nEvery picture leads to the notebook that makes it.\n",
        '<div class="gallery" markdown>\n',
    ]
    for picture in yaml.safe_load((HERE / "gallery.yml").read_text(encoding="utf-8")):
        name = picture["notebook"]
        files = sorted(pages[name].pictures, key=lambda file: [int(n) for n in re.findall(r"\d+", file)])
        file = picture.get("file") or f"{Path(name).parent}/{files[picture['number']]}"
        parts.append(f"<div markdown>\n[![{picture['title']}]({file})\n**{picture['title']}**]({name}.md)\n")
        parts.append(f"{picture['text']}\n</div>\n")
    return "\n".join([*parts, "</div>"])


def on_config(config):
    "The contents of the site."
    rooms = [{f"polca.{room}": [f"{room}/{stem}.md" for stem in notebook_names(room)]} for room in ROOMS]
    top = [f"{stem}.md" for stem in notebook_names(".") if stem != "index"]
    config.nav = [
        {"polca": "index.md"},
        {"Gallery": "gallery.md"},
        {"Tutorials": [f"tutorials/{stem}.md" for stem in TUTORIALS]},
        {"Experiments": [f"experiments/{stem}.md" for stem in notebook_names("experiments")]},
        {"Benchmarks": [f"benchmarks/{stem}.md" for stem in notebook_names("benchmarks")]},
        {"API": ["api/polca.md", *(f"api/{room}.md" for room in ROOMS)]},
        {"Notebooks": [*rooms, {"polca": top}]},
        {"Project": [{title: page.lower()} for title, page in PAPERS.items()]},
    ]
    return config


def on_files(files, config):
    "Pages in the place of notebooks, and those that are made."
    names = [
        name for name in (file.src_uri.removesuffix(".ipynb") for file in files) if f"{name}.ipynb" in files.src_uris
    ]
    for file in list(files):
        if file.src_dir == config.docs_dir and not file.src_uri.startswith("images/"):
            files.remove(file)
    pages = {name: as_page(name) for name in names}
    made = {f"{name}.md": linked(page.markdown, name.rpartition("/")[0]) for name, page in pages.items()}
    made |= {f"api/{room}.md": api_page(room) for room in ROOMS}
    made |= {"api/polca.md": public_page(), "gallery.md": gallery_page(pages)}
    for page in PAPERS.values():
        text = (ROOT / page).read_text(encoding="utf-8")
        made[page.lower()] = linked(re.sub(r"\]\((?!https?:|#)", "](../", text))  # as seen from `nbs`
    for name, page in pages.items():
        folder = name.rpartition("/")[0]
        made |= {f"{folder}/{file}" if folder else file: content for file, content in page.pictures.items()}
    made["site.css"] = (HERE / "site.css").read_text(encoding="utf-8")
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    return files


def with_formula(match):
    "The formula of a span of arithmatex as MathML."
    source = html.unescape(match[3])
    tex = source.strip().removeprefix(r"\(").removesuffix(r"\)").removeprefix(r"\[").removesuffix(r"\]")
    return convert(tex, display="block" if match[1] == "div" else "inline")


def on_page_content(content, **_):
    "The outputs and the formulas come into the page."
    content = re.sub(r'<(span|div) class="arithmatex"( markdown="\d")?>(.*?)</\1>', with_formula, content, flags=re.S)
    return re.sub(
        r'<div data-output="([\w-]+)"></div>', lambda m: f'<div class="output">{OUTPUTS[m[1]]}</div>', content
    )


class Addresses(HTMLParser):
    "What a page fetches, and where its links lead."

    def __init__(self):
        super().__init__()
        self.fetched = []
        self.linked = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "link" and given.get("rel") in ("canonical", "next", "prev"):
            return
        if given.get("src") or tag == "link":
            self.fetched.append(given.get("src") or given.get("href"))
        elif tag == "a" and given.get("href"):
            self.linked.append(given["href"])


def wrong_addresses(page):
    "What `page` fetches from elsewhere, and what of this site it asks for that is not there."
    addresses = Addresses()
    addresses.feed(page.read_text(encoding="utf-8"))
    elsewhere = [a for a in addresses.fetched if urlsplit(a).scheme in ("http", "https") or a.startswith("//")]
    paths = [unquote(urlsplit(a).path) for a in (*addresses.fetched, *addresses.linked) if not urlsplit(a).scheme]
    missing = [p for p in paths if p and not p.startswith("/") and not (page.parent / p).exists()]
    return elsewhere + missing


def on_post_build(config):
    "The site fetches nothing from elsewhere, and no link in it leads nowhere."
    site = Path(config.site_dir)
    wrong = {str(page.relative_to(site)): wrong_addresses(page) for page in site.rglob("*.html")}
    wrong = {page: addresses for page, addresses in wrong.items() if addresses and page != "404.html"}
    if wrong:
        raise SystemExit(f"links that lead nowhere, or things fetched from elsewhere: {wrong}")
