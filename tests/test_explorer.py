"""The explorer as a person uses it: in JupyterLab, Notebook and Voilà, in a real browser.

    pytest tests/test_explorer.py

needs Chromium, which is installed from Debian's packages where that is possible, and `pip install -e ".[dev]"`. One
walk through everything is made in JupyterLab, and the kernel restarted; with POLCA_NIGHTLY=1 it is seen that the
explorer comes up and answers in its dark theme, in Notebook and in Voilà, too. With POLCA_ALL_BROWSERS=1 as well the
walk is made in all of them; with POLCA_NIGHTLY=1 and POLCA_SCREENSHOTS=1 the pictures in tests/screenshots are taken
anew.
"""

import os
import re
from dataclasses import replace
from pathlib import Path

import browser as b
import pytest
from partial_runs import copy_without

expect = pytest.importorskip("playwright.sync_api", reason="no Playwright: `pip install playwright`").expect

from polca.runs.manifest import STAGES
from polca.runs.run import Run
from polca.tasks.arithmetic import addition_preset
from polca.tasks.arithmetic_run import ArithmeticTask

ALL = bool(os.environ.get("POLCA_ALL_BROWSERS"))
AGAIN = bool(os.environ.get("POLCA_SCREENSHOTS"))
PICTURES = Path(__file__).parent / "screenshots"
STEPS = "Chosen: steps"


def make(folder, until, **settings):
    config = replace(addition_preset("tiny"), min_cluster_size=8, min_samples_divisor=50, **settings)
    Run.create(folder, ArithmeticTask(config)).make(until, progress=False, say=None)


OPEN = """
from polca.explorer.widgets import explore
explorer = explore("run", direction=0, joint=None)
explorer
"""
OPEN_AS_IT_IS = """
from polca.explorer.widgets import explore
explorer = explore("run")
explorer
"""
OPEN_WHAT_CANNOT_BE = """
import ipywidgets as w
w.VBox([explore(folder) for folder in ("unfinished", "nowhere")])
"""


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    "A notebook that opens a run, and two that cannot be opened, beside a run on the same tokens."
    folder = tmp_path_factory.mktemp("notebooks")
    make(folder / "run", "cluster")
    make(folder / "other", "cluster", which="magnitude", k=2)
    copy_without(folder / "run", folder / "unfinished", STAGES[2:6])
    b.write_notebook(folder / "findings.ipynb", OPEN_AS_IT_IS)
    return b.write_notebook(folder / "explore.ipynb", OPEN, OPEN_WHAT_CANNOT_BE)


@pytest.fixture(scope="module")
def browser():
    with b.open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def lab(notebook, tmp_path_factory):
    with b.jupyter_lab(notebook.parent, tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture
def page(browser):
    with b.open_page(browser) as opened:
        yield opened


def pane(page, label):
    return b.output(page).locator(f"[aria-label='{label}']")


def told(direction):
    "What stands above the clusters of a direction, whether it has any or not."
    return re.compile(rf"Direction {direction}(,| has no)")


def choose_and_brush(page):
    "Directions, clusters and steps: each choice drives what is below it."
    out = b.output(page)
    table = pane(page, "directions")
    expect(table.locator("tbody tr")).to_have_count(4)
    expect(table.locator("tr.on")).to_contain_text("0")
    b.part(page, pick="sort:gross").click()
    expect(table.locator("th[aria-sort]")).to_contain_text("gross (nats) ▾")
    b.part(page, pick="direction:2").click()
    expect(out).to_contain_text(told(2))
    rows = table.locator("tbody tr")
    rows.nth(1).click()
    rows.nth(1).press("ArrowDown")
    expect(rows.nth(2)).to_have_class("on")
    expect(out).to_contain_text(told(rows.nth(2).get_attribute("data-pick").removeprefix("direction:")))
    b.part(page, pick="direction:0").click()
    expect(out).to_contain_text(told(0))
    plot = out.locator(".plot.live")
    b.drag(plot, 0.12, 0.25)
    expect(out).to_contain_text(STEPS)
    before = out.get_by_text(STEPS).inner_text()
    plot.press("ArrowRight")
    expect(out.get_by_text(STEPS)).not_to_have_text(before)
    plot.press("ArrowLeft")
    expect(out.get_by_text(STEPS)).to_have_text(before)
    plot.hover(position={"x": 150, "y": 100})
    expect(out.locator(".tip").first).to_contain_text("step ")


def cluster_again(page, keys=True):
    "Sliders and switches cluster anew; a cluster shows its tokens."
    out = b.output(page)
    if keys:
        b.slide(page, "min cluster size", -2)
        expect(out).to_contain_text("clustered now: HDBSCAN, min_cluster_size 6")
        b.slide(page, "min cluster size", 2)
        expect(out).to_contain_text("as the run has them")
    b.choose(page, "rule", "first")
    expect(out).to_contain_text("rule first")
    b.choose(page, "rule", "trapezoid")
    b.choose(page, "split by", "carry")
    expect(pane(page, "clusters").locator("th").last).to_have_text("by carry")
    b.part(pane(page, "clusters"), pick="cluster:0").click()
    expect(out).to_contain_text("of cluster 0: those that change most first")


def look_at_tokens(page):
    "Orders, search, a token by itself, trust, another run."
    out = b.output(page)
    out.locator(".widget-toggle-button", has_text="nearest to medoid").click()
    expect(out).to_contain_text("those nearest to the medoid first")
    b.press(page, "draw others")
    expect(out).to_contain_text("a random draw")
    b.write(page, "find", '"7"')
    b.settle(page)
    assert set(out.locator(".k.target").all_inner_texts()) <= {"7"}
    b.write(page, "find", "never there")
    expect(out).to_contain_text("search for something else")
    b.write(page, "find", "")
    first = out.locator(".k.target").first
    number = first.get_attribute("data-pick").removeprefix("token:")
    first.click()
    b.open_tab(page, "One token")
    expect(out).to_contain_text(f"Token {number}:")
    b.open_tab(page, "Trust")
    expect(out).to_contain_text("Where the loss change went")
    b.press(page, "How stable are these clusters?")
    b.settle(page)
    assert 0 <= float(pane(page, "clusters").locator("tbody tr").first.locator("td").nth(6).inner_text()) <= 1
    b.open_tab(page, "Compare")
    expect(out).to_contain_text("adjusted Rand index")
    b.write(page, "other run", "other")
    expect(out).to_contain_text("other, direction")
    b.write(page, "other run", "nowhere")
    expect(out).to_contain_text("is no run of polca")
    b.open_tab(page, "Findings")
    expect(out).to_contain_text(re.compile("findings?, of which|There is no axis beyond chance|does not fall"))
    b.open_tab(page, "Skill axes")
    expect(out).to_contain_text("Axes of the whole run")
    page.get_by_text(re.compile("^Axis 0: ")).click()
    expect(out).to_contain_text("positive end")
    outermost = page.locator("details[open] .k.target").last
    number = outermost.get_attribute("data-pick").removeprefix("token:")
    outermost.click()
    b.open_tab(page, "One token")
    expect(out).to_contain_text(f"Token {number}:")
    b.open_tab(page, "Tokens")


def look_at_findings(page):
    "The first page, the tokens of a finding, and back."
    out = b.output(page)
    expect(out).to_contain_text(re.compile("findings?, of which|There is no axis beyond chance|does not fall"))
    link = out.locator("[data-pick^='chosen:']").first
    number = re.search(r"list all (\d+) tokens", link.inner_text())[1]
    link.click()
    expect(out).to_contain_text(f"{number} chosen tokens")
    b.press(page, "Back")
    expect(out).not_to_contain_text("chosen tokens")
    out.locator("[data-pick^='finding:axis-']").first.click()
    expect(out.get_by_text("How much is learned").or_(out.locator("img[alt^='The losses of axis-']"))).to_be_visible()
    out.get_by_text("all findings").click()
    expect(out).to_contain_text(re.compile("findings?, of which"))


def lasso(page):
    "Tokens in a lasso on the map are listed."
    out = b.output(page)
    b.open_tab(page, "Map of tokens")
    canvas = out.locator("canvas").first
    expect(canvas).to_be_visible()
    b.settle(page)
    out.get_by_title(re.compile("lasso", re.I)).first.click()
    b.drag_around(canvas)
    expect(out).to_contain_text("chosen tokens")


def take_pictures(page, folder, theme):
    for width in (1280, 900):
        file = (PICTURES if AGAIN else folder) / f"explorer-{theme}-{width}.png"
        b.screenshot(page, file, width)
        assert file.stat().st_size <= 150_000


def answer_a_click(page):
    "The explorer has come up, and a click drives what is below it."
    expect(pane(page, "directions").locator("tr.on")).to_contain_text("0")
    b.part(page, pick="direction:2").click()
    expect(b.output(page)).to_contain_text(told(2))


def walk(page, keys=True):
    "All that drives something: in every host where it is asked for."
    choose_and_brush(page)
    cluster_again(page, keys)


def test_the_whole_walk_in_jupyterlab(page, lab, notebook, tmp_path):
    b.open_lab(page, lab, "explore.ipynb")
    assert b.theme(page) == "light"
    walk(page)
    if ALL or AGAIN:
        take_pictures(page, tmp_path, "light")
    look_at_tokens(page)
    b.write(page, "save as", "saved.html")
    b.press(page, "Save")
    expect(b.output(page)).to_contain_text("saved as saved.html")
    saved = (notebook.parent / "saved.html").read_text()
    assert "<script" not in saved
    assert STEPS in saved and "of cluster 0" in saved
    b.assert_clean(page)


@pytest.mark.nightly
def test_in_the_dark(page, lab, tmp_path):
    b.open_lab(page, lab, "explore.ipynb", "dark", new_kernel=False)
    assert b.theme(page) == "dark"
    if ALL or AGAIN:
        walk(page)
        take_pictures(page, tmp_path, "dark")
    else:
        answer_a_click(page)
    b.assert_clean(page)


def test_findings_come_first_and_a_lasso_lists_tokens(page, lab):
    b.open_lab(page, lab, "findings.ipynb")
    look_at_findings(page)
    lasso(page)
    b.assert_clean(page)


def test_a_view_comes_back_after_a_restart_and_ctrl_s_saves_the_notebook(page, lab, notebook):
    b.open_lab(page, lab, "findings.ipynb", new_kernel=False)
    b.open_tab(page, "Directions")
    b.part(page, pick="direction:2").click()
    expect(b.output(page)).to_contain_text(told(2))
    file = notebook.with_name("findings.ipynb")
    before = file.stat().st_mtime_ns
    b.part(page, pick="direction:2").press("Control+s")
    b.until(lambda: file.stat().st_mtime_ns > before)
    b.restart(page)
    b.run_all(page)
    b.open_tab(page, "Directions")
    expect(pane(page, "directions").locator("tr.on")).to_contain_text("2")
    b.assert_clean(page)


def test_what_cannot_be_opened_is_told_in_place(page, lab):
    b.open_lab(page, lab, "explore.ipynb", new_kernel=False)
    out = b.output(page, 1)
    expect(out).to_contain_text("polca project unfinished")
    expect(out).to_contain_text("eigenvalue")  # what there is of it
    expect(out).to_contain_text("nowhere is no run of polca")
    b.assert_clean(page)


def test_a_restarted_kernel_is_told_and_the_cell_runs_again(page, lab):
    b.open_lab(page, lab, "explore.ipynb", new_kernel=False)
    b.restart(page)
    expect(b.output(page).get_by_text("The kernel was restarted: run this cell again.").first).to_be_visible()
    b.part(page, pick="direction:1").click()
    b.run_all(page)
    b.part(page, pick="direction:1").click()
    expect(b.output(page)).to_contain_text(told(1))
    b.assert_clean(page)


@pytest.mark.nightly
def test_in_notebook(page, notebook, tmp_path):
    with b.jupyter_notebook(notebook.parent, tmp_path) as server:
        b.open_notebook(page, server, "explore.ipynb")
        if ALL:
            walk(page, keys=False)
        else:
            answer_a_click(page)
        b.assert_clean(page)


@pytest.mark.nightly
def test_in_voila(page, notebook, tmp_path):
    with b.voila(notebook, tmp_path) as server:
        b.open_voila(page, server)
        if ALL:
            walk(page)
        else:
            answer_a_click(page)
        b.assert_clean(page)
        server.kill_kernels()
        expect(b.output(page).get_by_text("The kernel is gone: reload this page.").first).to_be_visible()
