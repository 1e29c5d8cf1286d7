"""The explorer without a browser: what is clicked, moved and typed, what is not there, and what is too much."""

import json
import re
import shutil
import time
from dataclasses import replace
from html import unescape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from partial_runs import copy_without

from polca.explorer.pages import axes_piece, first_shown, listed_tokens, shown_from, tokens_piece, view_findings
from polca.explorer.views import found_in_targets, open_view, search, view_of
from polca.explorer.widgets import TABS, UPPER, Comparison, Drawer, Explorer, Pane, explore, moved_span, stale_panes
from polca.runs.manifest import write_manifest
from polca.runs.run import Run
from polca.tasks.arithmetic import addition_preset
from polca.tasks.arithmetic_run import ArithmeticTask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A run with clusters."
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    Run.create(folder, ArithmeticTask(addition_preset("tiny"))).make("cluster", progress=False, say=None)
    return folder


@pytest.fixture(scope="module")
def view(folder):
    return open_view(folder)


@pytest.fixture(scope="module")
def projection(view):
    return view.projection.load()


@pytest.fixture(scope="module")
def small(view):
    "Settings that find clusters along direction 0."
    return replace(view.settings, min_cluster_size=7, min_samples=2)


@pytest.fixture(scope="module")
def one_explorer(view, small):
    yield Explorer(view, replace(first_shown(view), direction=0, joint=None, settings=small))
    plt.close("all")


@pytest.fixture
def explorer(one_explorer, small):
    "An explorer of a direction with clusters, whatever was done with it before."
    one_explorer.tabs.selected_index = 0
    one_explorer.upper.selected_index = [*UPPER].index("Directions")
    nothing = {"hidden": (), "finding": "", "cluster": None, "span": None, "token": None, "chosen": None, "text": ""}
    one_explorer.show(direction=0, joint=None, settings=small, by="place", order="strongest", **nothing)
    return one_explorer


# what depends on what


@pytest.mark.parametrize(
    "changes, stale",
    [
        ({"sort": "net"}, ["directions"]),
        ({"token": 3}, ["tokens", "token"]),
    ],
)
def test_a_change_draws_what_depends_on_it(view, changes, stale):
    shown = first_shown(view)
    assert stale_panes(shown, replace(shown, **changes)) == stale


def test_sizes_do_not_touch_what_depends_on_the_rule_alone(view):
    shown = first_shown(view)
    larger = replace(shown.settings, min_cluster_size=9)
    other_rule = replace(shown.settings, rule="first")
    assert "trust" not in stale_panes(shown, replace(shown, settings=larger))
    assert "trust" in stale_panes(shown, replace(shown, settings=other_rule))


@pytest.mark.parametrize(
    "span, by, moved",
    [
        ((20, 60), {"move": 1}, (40, 80)),
        ((20, 60), {"grow": -1}, (20, 40)),
        ((0, 40), {"move": -1}, (0, 40)),
        (None, {}, (0, 20)),
    ],
)
def test_a_span_moves_by_checkpoints_and_stays_within_the_training(view, span, by, moved):
    assert moved_span(view, span, **by) == moved


# what a person does


def test_a_pane_tells_what_is_picked():
    pane = Pane()
    picked = []
    assert pane.on_pick(picked.append) is pane
    pane._handle_custom_msg({"pick": "direction:3"}, [])
    assert picked == ["direction:3"]


def test_picks_change_what_is_shown_and_the_controls_follow(explorer):
    for pick in ("direction:1", "span:35:125.4", "sort:net", "token:17"):
        explorer.screen.pick(pick)
    assert explorer.shown.direction == 1
    assert explorer.shown.span == (40, 120)
    assert explorer.shown.sort == "net" and explorer.shown.descending
    assert explorer.shown.token == 17
    assert explorer.controls.span.index == (2, 6)
    assert not explorer.failures


def test_moved_sliders_cluster_anew(explorer):
    explorer.controls.min_cluster_size.value = 8
    explorer.controls.min_samples.value = 3
    assert explorer.shown.settings.min_cluster_size == 8
    assert explorer.shown.settings.min_samples == 3
    assert "clustered now" in explorer.panes["clusters"].html


def test_a_cluster_shows_its_tokens_and_a_second_click_all_of_them(explorer):
    explorer.screen.pick("cluster:0")
    assert explorer.shown.cluster == 0
    assert "of cluster 0" in explorer.panes["tokens"].html
    explorer.screen.pick("cluster:0")
    assert explorer.shown.cluster is None


def test_a_tab_is_drawn_when_it_is_looked_at(explorer):
    explorer.show(token=29)
    assert "Token 29" not in explorer.panes["token"].html
    for number in range(len(TABS)):
        explorer.tabs.selected_index = number
    assert "Token 29" in explorer.panes["token"].html
    assert "Where the loss change went" in explorer.panes["trust"].html
    assert "adjusted Rand" in explorer.panes["compare"].html
    assert "Axes of the whole run" in explorer.panes["axes"].html


def test_a_token_that_is_clicked_opens_its_curves(explorer):
    explorer.screen.pick("token:23")
    assert explorer.tabs.get_title(explorer.tabs.selected_index) == "One token"
    assert "Token 23" in explorer.panes["token"].html


def test_a_run_opens_with_its_findings_and_the_rest_is_drawn_when_it_is_looked_at(folder):
    opened = explore(folder)
    assert opened.upper.get_title(opened.upper.selected_index) == "Findings"
    assert "finding" in opened.panes["findings"].html and not opened.panes["figure"].html
    opened.upper.selected_index = [*UPPER].index("Directions")
    assert "<img" in opened.panes["figure"].html
    told = explore(folder, direction=1)
    assert told.upper.get_title(told.upper.selected_index) == "Directions"


def test_tokens_are_chosen_listed_and_given_back(explorer):
    explorer.screen.pick("chosen:3,5,31")
    assert "3 chosen tokens" in explorer.panes["tokens"].html
    assert [*explorer.selection.index.sort_values()] == [3, 5, 31]
    assert {"loss_first", "loss_last", "target"} <= set(explorer.selection)
    explorer.controls.every.click()
    assert explorer.shown.chosen is None and len(explorer.selection) == len(explorer.view.tokens)
    explorer.screen.pick("chosen:3,5,31")
    explorer.screen.pick("cluster:0")
    assert explorer.shown.chosen is None and "of cluster 0" in explorer.panes["tokens"].html


def test_a_side_of_a_finding_lists_its_tokens(folder):
    opened = explore(folder)
    picked = re.search(r'data-pick="(chosen:[\d,]+)"', opened.panes["findings"].html)[1]
    side = view_findings(opened.view)[0].sides[0]
    assert picked == "chosen:" + ",".join(map(str, sorted(side.tokens)))
    opened.screen.pick(picked)
    assert set(opened.selection.index) == set(side.tokens)


def test_a_finding_has_a_page_of_its_own_which_the_state_opens_again(folder, tmp_path):
    opened = explore(folder)
    found = view_findings(opened.view)
    which = found[-1].id
    assert f'data-pick="finding:{which}"' in opened.panes["findings"].html
    opened.screen.pick(f"finding:{which}")
    page = opened.panes["findings"].html
    assert f"<h3>{which}:" in page and not any(f"<h3>{one.id}:" in page for one in found[:-1])
    assert page.count("<img") + page.count("<svg") == 1 and 'data-pick="finding:"' in page
    again = explore(folder, state=opened.state)
    assert again.panes["findings"].html == page
    saved = opened.to_html(tmp_path / "one.html").read_text(encoding="utf-8")
    assert f"<h3>{which}:" in saved and "<script" not in saved
    opened.screen.pick("finding:")
    assert f"<h3>{found[0].id}:" in opened.panes["findings"].html
    with pytest.raises(ValueError, match="there is no finding 'axis-99': use one of"):
        opened.show(finding="axis-99")


def test_what_is_compared_has_no_page_of_a_finding_and_no_hidden_curves(folder):
    opened = explore(folder, finding=view_findings(open_view(folder))[0].id)
    assert opened.shown.finding
    opened.show(hidden=(0,))
    html = Comparison(opened.view).html(opened.shown, direction="1")
    assert "there is no finding" not in html and "direction 1" in html


def test_a_click_on_a_colour_takes_a_curve_away_and_back(explorer):
    before = explorer.panes["figure"].html

    def names(html):
        data = json.loads(unescape(re.search(r'data-plot="([^"]*)"', html)[1]))
        return [one["name"] for one in data["series"]]

    assert 'data-pick="hide:0"' in explorer.panes["clusters"].html
    explorer.screen.pick("hide:0")
    assert explorer.shown.hidden == (0,)
    assert len(names(explorer.panes["figure"].html)) == len(names(before)) - 1
    assert "background:none" in explorer.panes["clusters"].html
    explorer.screen.pick("hide:0")
    assert explorer.shown.hidden == () and explorer.panes["figure"].html == before
    explorer.screen.pick("hide:0")
    explorer.show(direction=1)  # of other clusters nothing is hidden
    assert explorer.shown.hidden == ()


def test_the_map_is_made_when_it_is_looked_at_and_its_lasso_lists_tokens(folder):
    opened = explore(folder)
    assert not opened.screen.map.box.children
    opened.upper.selected_index = [*UPPER].index("Map of tokens")
    opened.screen.map.scatter.selection([4, 2, 9])
    assert opened.shown.chosen == (4, 2, 9) and "3 chosen tokens" in opened.panes["tokens"].html
    opened.screen.map.scatter.selection([])
    assert opened.shown.chosen is None
    assert not opened.failures


def test_back_shows_what_was_shown_before(explorer):
    first = explorer.shown
    explorer.show(direction=1)
    explorer.screen.pick("direction:2")
    explorer.back()
    assert explorer.shown.direction == 1
    explorer.controls.back.click()
    assert explorer.shown == first
    assert explorer.panes["figure"].html and "Direction 0" in explorer.panes["clusters"].html
    explorer.screen.past.clear()
    assert explorer.back().shown == first  # where there is nothing before it


def test_a_state_is_taken_up_again_and_one_that_is_none_is_refused(explorer, folder):
    explorer.show(direction=2, span=(40, 80), text="7", chosen=(3, 7))
    again = explore(folder, state=explorer.state)
    assert again.shown == explorer.shown and again.state == explorer.state
    other = json.loads(explorer.state)
    for wrong in (
        "",
        "{}",
        "[]",
        "nothing",
        json.dumps(other | {"direction": 99}),
        json.dumps(other | {"chosen": [-1]}),
    ):
        with pytest.raises(ValueError):
            shown_from(explorer.view, wrong)
    assert "this is no state" in explore(folder, state="nothing").html


def test_what_the_browser_kept_comes_back_unless_something_was_asked_for(explorer, folder):
    explorer.show(direction=1, cluster=None)
    plain = explore(folder)
    assert plain.screen.memory.listens and not explore(folder, direction=0).screen.memory.listens
    plain.screen.come_back("of another version")
    assert plain.shown == first_shown(plain.view)
    plain.screen.come_back(explorer.state)
    assert plain.shown == explorer.shown and not plain.failures


def test_numbers_of_numpy_are_numbers(explorer, folder):
    explorer.show(token=explorer.selection.index[5], direction=explorer.view.directions[1])
    explorer.show(chosen=np.array([3, 5]), span=np.array([40, 80]))
    assert explorer.shown.chosen == (3, 5) and explorer.shown.span == (40.0, 80.0)
    assert explore(folder, token=np.int64(3)).shown.token == 3
    before = explorer.shown
    for wrong in ({"token": 1.5}, {"cluster": "x"}, {"span": (1, 2, 3)}, {"text": 5}, {"chosen": ["a"]}):
        with pytest.raises((ValueError, TypeError)):
            explorer.show(**wrong)
    assert explorer.shown == before and json.loads(explorer.state)["token"] is not None


def test_a_state_is_what_the_controls_begin_with(explorer, folder):
    explorer.show(span=(40, 80), text="7")
    again = explore(folder, state=explorer.state)
    assert again.controls.text.value == "7" and again.controls.span.index == explorer.controls.span.index
    again.controls.outliers.value = not again.controls.outliers.value
    assert again.shown.span == (40.0, 80.0) and again.shown.text == "7"


def test_another_cluster_takes_the_place_of_chosen_tokens_and_a_blank_finds_nothing(explorer):
    explorer.show(chosen=(3, 5))
    explorer.show(cluster=0)
    assert explorer.shown.chosen is None
    explorer.show(cluster=None, text="  ")
    assert "with “" not in explorer.panes["tokens"].html


def test_what_was_asked_for_meanwhile_is_not_undone_by_what_the_browser_kept(explorer, folder):
    explorer.show(direction=1)
    plain = explore(folder)
    plain.show(direction=2)
    plain.screen.come_back(explorer.state)
    assert plain.shown.direction == 2


def test_a_view_is_saved_as_what_the_name_ends_in(explorer, tmp_path):
    explorer.screen.pick("chosen:3,5")
    table = pd.read_csv(explorer.to_html(tmp_path / "tokens.csv"))
    assert sorted(table["token"]) == [3, 5] and "loss_last" in table
    before = plt.get_fignums()
    assert explorer.to_html(tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert plt.get_fignums() == before
    page = explorer.to_html(tmp_path / "view.html").read_text()
    assert ".ask{display:none}" in page
    explorer.controls.path.value = str(tmp_path / "view.docx")
    explorer.controls.save.click()
    assert "use .html, .htm, .csv, .png" in explorer.panes["said"].html


def test_a_search_lists_hits_on_the_token_itself_first_and_blanks_do_not_count():
    words = np.array([" the", "the", " then", "cat", " sat"])
    before = np.array(["", "on ", "", " the", "the cat"])
    loss = np.linspace(3, 1, 4)[:, None] * np.array([1.0, 1.0, 1.0, 9.0, 9.0])
    coords = {"step": np.arange(4), "token": np.arange(5), "direction": [0], "interval": np.arange(3)}
    coords |= {"target": ("token", words), "before": ("token", before), "after": ("token", np.full(5, ""))}
    coords |= {"interval_end": ("interval", np.arange(1, 4)), "end": ["start", "end"]}
    made_up = xr.Dataset(
        {
            "loss": (("step", "token"), loss),
            "gradient": (("step", "token", "direction"), loss[..., None]),
            "movement": (("interval", "direction"), -np.ones((3, 1))),
            "outside": (("interval", "token", "end"), np.zeros((3, 5, 2))),
        },
        coords,
    )
    view = view_of(made_up)
    assert found_in_targets(view, "the").tolist() == [True, True, True, False, False]
    assert found_in_targets(view, '"the"').tolist() == [True, True, False, False, False]
    assert search(view, "the").all() and not search(view, "The").any()
    listed, of = listed_tokens(view, replace(first_shown(view), text="the", cluster=None), 4)
    assert of == 5 and set(listed[:3]) == {0, 1, 2}  # though the others change most
    page = tokens_piece(view, replace(first_shown(view), text="the", cluster=None))
    assert page.count(" hit") >= 3


def test_without_axes_their_tab_says_why(view, folder, tmp_path):
    other = copy_without(folder, tmp_path / "other", ["axes"])
    gone = open_view(other)
    assert gone.axes is None and [gap.command for gap in gone.missing if gap.stage == "axes"] == [f"polca axes {other}"]
    assert "they are made by polca axes" in axes_piece(gone)
    damaged = copy_without(folder, tmp_path / "damaged", [])
    (damaged / "axes" / "tables.json").write_text("{}")
    assert "damaged" in axes_piece(open_view(damaged))


def test_stability_is_measured_and_forgotten_with_its_clusters(explorer):
    explorer.controls.stability.click()
    assert re.search(r"<td>0\.\d\d</td>", explorer.panes["clusters"].html)
    assert not explorer.failures
    explorer.controls.min_samples.value = 3
    assert explorer.screen.measurer.stability is None


def test_a_view_is_saved_and_says_where(explorer, tmp_path):
    explorer.screen.pick("token:17")
    explorer.controls.path.value = str(tmp_path / "view.html")
    explorer.controls.save.click()
    assert "saved as" in explorer.panes["said"].html
    assert "Token 17" in (tmp_path / "view.html").read_text()


def test_show_snaps_a_span_to_checkpoints(explorer):
    assert explorer.show(span=(33, 66)).shown.span == (40, 60)


def test_what_is_searched_for_and_not_there_is_said(explorer):
    explorer.controls.text.value = "never there"
    assert "search for something else" in explorer.panes["tokens"].html


# errors


def test_a_wrong_wish_is_refused_and_the_controls_still_work(explorer):
    with pytest.raises(ValueError, match="there is no direction 77"):
        explorer.show(direction=77)
    with pytest.raises(ValueError, match="there is no by 'x'"):
        explorer.show(by="x")
    explorer.controls.by.value = "carry"
    assert explorer.shown.by == "carry"


def test_a_snapshot_of_a_pane_that_there_is_not(explorer):
    with pytest.raises(ValueError, match="no pane 'all': use directions, figure, clusters, tokens, token, trust"):
        explorer.snapshot("all")


def test_what_cannot_be_compared_is_said_in_its_pane(explorer, folder):
    explorer.controls.other.value = str(folder.parent / "nothing")
    explorer.tabs.selected_index = [*TABS].index("compare")
    assert "is no run of polca" in explorer.panes["compare"].html
    explorer.controls.other.value = ""
    explorer.controls.other_direction.value = "x"
    assert "is no number" in explorer.panes["compare"].html
    assert not explorer.failures


def test_an_error_that_nobody_expects_becomes_a_message_and_is_kept():
    drawer = Drawer({"figure": Pane()})
    drawer.draw(["figure"], ["figure"], {"figure": [{}.popitem]})
    assert "This could not be shown (KeyError" in drawer.panes["figure"].html
    assert isinstance(drawer.failures[0], KeyError)
    assert not drawer.panes["figure"].busy


def test_files_that_go_away_while_a_run_is_looked_at(folder, tmp_path):
    gone = tmp_path / "gone"
    shutil.copytree(folder, gone)
    losing = explore(gone)
    shutil.rmtree(gone)
    losing.tabs.selected_index = 1
    losing.show(token=3)
    assert "have gone" in losing.panes["token"].html
    assert not losing.failures


# what is not there


@pytest.mark.parametrize("missing", ["nothing", "format"])
def test_what_is_no_run_is_said_in_its_place(tmp_path, missing):
    place = tmp_path / missing
    words = "is no run of polca"
    if missing == "format":
        words = "use the version that made it"
        place.mkdir()
        newer = {"format": 99, "task": "texts", "config": {}, "stages": {}, "polca": "9.9"}
        write_manifest(place / "run.json", newer)
    message = explore(place)
    assert words in message.html
    with pytest.raises(ValueError, match=words):
        message.to_html("x.html")


def test_of_an_unfinished_run_there_is_what_it_has(folder, tmp_path):
    message = explore(copy_without(folder, tmp_path / "unfinished", ["project", "decompose", "cluster"])).html
    assert "polca project" in message and "eigenvalue" in message and "complete" in message


def test_without_clusters_the_head_says_what_makes_them(folder, tmp_path):
    without = explore(copy_without(folder, tmp_path / "half", ["decompose", "cluster"]))
    assert "polca cluster" in without.panes["head"].html
    assert "polca decompose" in without.panes["head"].html
    assert not without.failures


def test_a_single_token(projection):
    one = explore(projection.isel(token=[5]).assign_coords(token=[0]))
    for number in range(len(TABS)):
        one.tabs.selected_index = number
    assert "<img" in one.panes["figure"].html
    assert not one.failures


def test_tokens_without_labels(projection):
    of_tokens = [name for name, values in projection.coords.items() if values.dims == ("token",)]
    bare = explore(projection.drop_vars(set(of_tokens) - {"token", "target_id"}))
    assert not bare.failures


def test_directions_of_no_step(projection):
    nowhere = view_of(projection.assign_coords(source_step=("direction", [np.nan] * 4)))
    assert "<img" in explore(nowhere).panes["figure"].html


def test_many_tokens_are_shown_and_not_clustered_while_one_waits():
    n = 100_000
    values = np.random.default_rng(0).normal(size=(8, n, 2)).astype(np.float32)
    large = xr.Dataset(
        {
            "loss": (("step", "token"), values[:, :, 0].cumsum(0)),
            "gradient": (("step", "token", "direction"), values),
            "movement": (("interval", "direction"), np.ones((7, 2), "f4")),
            "outside": (("interval", "token", "end"), np.zeros((7, n, 2), "f4")),
        },
        {
            "step": range(8),
            "interval": range(7),
            "interval_end": ("interval", range(1, 8)),
            "token": range(n),
            "direction": range(2),
            "end": ["start", "end"],
        },
    )
    began = time.process_time()
    crowd = explore(large)
    crowd.screen.pick("direction:1")
    assert "too many to cluster anew" in crowd.panes["clusters"].html
    assert "<img" in crowd.panes["figure"].html
    assert not crowd.failures
    assert time.process_time() - began < 10
