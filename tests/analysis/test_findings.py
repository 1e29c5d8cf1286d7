"""Findings: their numbers against the arrays that they are of, and what they leave out."""

import json
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from polca.analysis.agreement import cluster_agreements
from polca.analysis.axes import axis_ends
from polca.analysis.breakthroughs import breakthroughs
from polca.analysis.end_times import skill_curves
from polca.analysis.findings import (
    Finding,
    Side,
    axis_findings,
    cluster_findings,
    find_findings,
    findings_lines,
    findings_table,
    findings_values,
    frequency_words,
    in_order,
    side_words,
    steps_words,
    trust_words,
)
from polca.analysis.joint import cluster_tokens
from polca.analysis.labels import projection_tokens
from polca.analysis.named_axes import named_axes
from polca.runs.axis_files import load_axes, save_axes

STEPS = np.arange(0, 410, 20)
N = 300
PLATEAU, WINDOW = 250.0, 40.0


def projection(seed=0, unlearned=False):
    "Three kinds of tokens: learned at once, at step 120, at step 300 (or, `unlearned`, ever worse from there on)."
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, N, p=[0.6, 0.25, 0.15])
    at = np.array([30, 120, 300])[kind] + rng.normal(0, 4, N)
    falls = 2 / (1 + np.exp((STEPS[:, None] - at) / 8))
    loss = 0.5 + np.where((kind == 2) & unlearned, 2 - falls, falls)
    pull = np.gradient(loss, axis=0)[:, :, None] * rng.normal(size=(3, 6))[kind]
    pull = pull + 0.01 * rng.normal(size=(len(STEPS), N, 6))
    dims = ("step", "token", "direction")
    target = ("token", np.array(["the", "of", "sky"])[kind])
    coords = {"step": STEPS, "interval": STEPS[:-1], "token": np.arange(N), "direction": np.arange(6)}
    return xr.Dataset({"gradient": (dims, pull), "loss": (dims[:2], loss)}, coords | {"target": target})


def clustered(data, **how):
    "The joint clusters of a run: with how far they are found again."
    clusters = cluster_tokens(data, **how)[1]
    return replace(clusters, table=clusters.table.join(cluster_agreements(data, clusters)))


@pytest.fixture(scope="module")
def made():
    data = projection()
    return data, named_axes(data), clustered(data)


def test_the_numbers_of_a_side_are_those_of_its_tokens(made):
    data, axes, _ = made
    loss = data["loss"].values
    found = axis_findings(data["loss"], axes, projection_tokens(data), PLATEAU, WINDOW)
    ends = axis_ends(axes.axes.scores.isel(axis=slice(axes.axes.n_beyond)))
    breaks = breakthroughs(data["loss"], ends, WINDOW, PLATEAU).set_index(["axis", "cluster"])
    assert len(found) == axes.axes.n_beyond >= 2
    for i, finding in enumerate(found):
        assert finding.id == f"axis-{i}" and finding.name == axes.names[i]
        scores = axes.axes.scores.sel(axis=i).values
        for end, side in enumerate(finding.sides):
            assert np.array_equal(side.tokens, np.flatnonzero(ends.members(i, end)))
            assert side.loss_first == pytest.approx(loss[0, side.tokens].mean())
            assert side.loss_last == pytest.approx(loss[-1, side.tokens].mean())
            outward = side.tokens[np.argsort(-scores[side.tokens] if end == 0 else scores[side.tokens])]
            labelled = [t for t in outward if f'"{data["target"].values[t]}"' == side.label]
            assert side.examples[0] == (labelled or [*outward])[0]
            assert side.spread == pytest.approx(breaks.loc[(i, end), "spread"])
            first, last = np.searchsorted(STEPS, [side.begin, side.end])
            (own,), mean = skill_curves(data["loss"], [side.tokens])
            whole, whole_mean = own[0] - own[-1], mean[0] - mean[-1]
            scaled = whole / whole_mean * mean
            assert side.excess == pytest.approx((own - scaled)[first] - (own - scaled)[last])
            assert side.part == pytest.approx((own[first] - own[last]) / whole)
            assert side.part_of_all == pytest.approx((mean[first] - mean[last]) / whole_mean)
            assert side.begin <= side.break_step < side.end


def test_a_late_skill_is_hidden_and_has_its_time(made):
    data, axes, clusters = made
    found = find_findings(data, axes, clusters, PLATEAU, WINDOW)
    late = [s for f in found for s in f.sides if s.label == '"sky"' and s.beyond]
    assert late and all(side.hidden and side.begin <= 300 <= side.end for side in late)
    early = [s for f in found for s in f.sides if s.label == '"of"' and s.beyond]
    assert early and not any(side.hidden for side in early)


def test_a_label_of_most_tokens_names_no_cluster(made):
    data, _, clusters = made
    found = cluster_findings(data, clusters, projection_tokens(data), PLATEAU, WINDOW)
    most = np.flatnonzero(data["target"].values == "the")
    assert len(most) > N / 2
    of_most = [f for f in found if np.isin(f.sides[0].tokens, most).mean() > 0.9]
    assert of_most and all(f.name == "no name" and not f.trusted for f in of_most)
    assert any(f.name == '"sky"' for f in found)


def test_what_gets_worse_is_called_unlearned():
    data = projection(unlearned=True)
    found = find_findings(data, named_axes(data), clustered(data), PLATEAU, WINDOW)
    worse = [f for f in found if any(side.unlearned for side in f.sides)]
    assert worse and all("un-learned" in f.heading for f in worse)
    assert "un-learned" in findings_lines(found, projection_tokens(data), data["loss"], most=len(found))
    table = findings_table(found)
    assert set(table.loc[table["unlearned"], "label"]) == {'"sky"'}


def test_where_nothing_is_learned_nothing_is_found(made):
    data, axes, clusters = made
    risen = data.assign(loss=(data["loss"].dims, data["loss"].values[::-1]))
    assert find_findings(risen, axes, clusters, PLATEAU, WINDOW) == []
    assert find_findings(data.isel(step=[0]), None, None, PLATEAU, WINDOW) == []
    assert "does not fall" in findings_lines([], projection_tokens(data), risen["loss"])


def test_along_one_direction_no_axis_was_looked_for(made):
    data, _, _ = made
    words = findings_lines([], projection_tokens(data), data["loss"], directions=1)
    assert "cannot be looked for along one direction" in words and "beyond chance" not in words
    assert "no axis beyond chance" in findings_lines([], projection_tokens(data), data["loss"], directions=6)


def test_what_is_not_found_again_is_not_said_to_be(made):
    data, axes, _ = made
    first = axis_findings(data["loss"], axes, projection_tokens(data), PLATEAU, WINDOW)[0]
    again = {"text": (0.9, 0.1), "sample": (0.3, 0.05), "step": (0.5, 0.1)}
    assert trust_words(replace(first, reliability=again)).startswith("found again, |r| (least asked): ")
    for by, short in {"text": "0.690 (0.700, too little)", "sample": "0.090 (0.100, too little)"}.items():
        weak = replace(first, reliability=again | {by: (float(short[:5]), 0.01)})
        assert "not found again" in weak.doubts
        assert trust_words(weak).startswith("looked for again, ") and short in trust_words(weak)
        assert trust_words(weak).count("too little") == 1


def test_random_gradients_give_no_finding_to_be_trusted():
    data = projection(seed=3)
    rng = np.random.default_rng(4)
    data = data.assign(gradient=(data["gradient"].dims, rng.normal(size=data["gradient"].shape)))
    assert not any(f.trusted for f in find_findings(data, named_axes(data), clustered(data), PLATEAU, WINDOW))


def test_values_are_json_and_the_table_has_a_row_for_each_side(made):
    data, axes, clusters = made
    found = find_findings(data, axes, clusters, PLATEAU, window=10_000)  # which fits nowhere: spreads are not known
    values = json.loads(json.dumps(findings_values(found), allow_nan=False))
    assert [v["id"] for v in values] == [f.id for f in found]
    assert all(side["spread"] is None for v in values for side in v["sides"])
    assert len(findings_table(found)) == sum(len(f.sides) for f in found)


def side(tokens, beyond=True, label="x"):
    times = {"begin": 0, "break_step": 0, "end": 1, "start_unseen": False, "chance": 0.1, "beyond": beyond}
    times |= {"part": 0.5, "part_of_all": 0.1, "excess": 1.0}
    losses = {"loss_first": 1.0, "loss_last": 0.5, "hidden": False, "hidden_control": 0.0}
    return Side(
        label=label, share=1, other=0, of_all=0.1, tokens=np.array(tokens), examples=(tokens[0],), **times, **losses
    )


def test_the_order_is_trust_then_kind_then_share_and_repetitions_are_named():
    again = {"text": (0.8, 0.1), "sample": (0.5, 0.1), "step": (0.6, 0.1)}
    findings = [
        Finding(
            "cluster-0",
            "cluster",
            (side([1, 2, 3]),),
            0.9,
            {"numbers of clusters": (0.9, np.nan), "sample": (0.5, 0.1)},
        ),
        Finding("axis-0", "axis", (side([1, 2, 3]), side([7, 8, 9])), 0.2, {"sample": (0.1, 0.1)}),
        Finding("axis-1", "axis", (side([2, 3, 4]), side([10, 11])), 0.1, again),
        Finding("axis-2", "axis", (side([20]), side([21])), 0.3, again),
    ]
    ordered = in_order(findings)
    assert [f.id for f in ordered] == ["axis-2", "axis-1", "cluster-0", "axis-0"]
    assert [f.like for f in ordered] == ["", "", "axis-1", ""]  # an axis repeats another where both its sides do
    assert [f.trusted for f in ordered] == [True, True, True, False]


@pytest.mark.parametrize("steps, directions", [(3, 6), (21, 3), (3, 3)])
def test_what_cannot_be_halved_is_not_found_again_from_disk_either(tmp_path, steps, directions):
    data = projection().isel(step=slice(steps), interval=slice(steps - 1), direction=slice(directions))
    save_axes(tmp_path / "axes", named_axes(data))
    found = find_findings(data, load_axes(tmp_path / "axes"), None, PLATEAU, WINDOW)
    assert found
    for finding in found:
        known = [value for value, _ in finding.reliability.values() if np.isfinite(value)]
        assert len(known) == 1 + (steps > 3) + (directions > 3)  # texts, steps, and texts with directions
        few = "too few sequences or directions to look for it again"
        assert (few in finding.doubts) == (directions < 4)


def test_an_end_without_a_label_is_the_same_from_disk(made, tmp_path):
    data, axes, _ = made
    unnamed = replace(axes, labels=axes.labels.assign(label="–", kind=None, value=None, share=np.nan, other=np.nan))
    save_axes(tmp_path / "axes", unnamed)
    found = find_findings(data, load_axes(tmp_path / "axes"), None, PLATEAU, WINDOW)
    assert found and all(f.name == "no name" and "no label" in f.doubts[0] for f in found)
    assert [f.heading for f in found] == [f.heading for f in find_findings(data, unnamed, None, PLATEAU, WINDOW)]
    json.dumps(findings_values(found), allow_nan=False)


def test_examples_are_of_their_side_though_tokens_are_equal():
    data = projection()
    twice = data.isel(token=np.repeat(np.arange(60), 2)).assign_coords(token=np.arange(120))
    found = axis_findings(twice["loss"], named_axes(twice), projection_tokens(twice), PLATEAU, WINDOW)
    few = data.isel(token=slice(20))
    found += axis_findings(few["loss"], named_axes(few), projection_tokens(few), PLATEAU, WINDOW)
    assert all(set(side.examples) <= set(side.tokens.tolist()) for f in found for side in f.sides)


def test_clusters_of_one_number_have_no_stability_and_a_little_noise_is_no_unlearning(made):
    data, _, _ = made
    one = clustered(data, n_clusters=6)
    found = cluster_findings(data, one, projection_tokens(data), PLATEAU, WINDOW)
    assert found and all(np.isnan(f.reliability["numbers of clusters"][0]) for f in found)
    unasked = cluster_findings(data, cluster_tokens(data)[1], projection_tokens(data), PLATEAU, WINDOW)
    assert unasked and not any(f.trusted for f in unasked)  # stable, but not looked for in another sample
    json.dumps(findings_values(found), allow_nan=False)
    known = np.isin(data["target"].values, ["sky"])
    rng = np.random.default_rng(1)
    calm = data["loss"].values * ~known + 0.5 * known + rng.normal(0, 0.02, data["loss"].shape)
    still = data.assign(loss=(data["loss"].dims, calm))
    assert not any(
        s.unlearned
        for f in axis_findings(still["loss"], named_axes(still), projection_tokens(still), PLATEAU, WINDOW)
        for s in f.sides
    )


def test_an_empty_table_has_its_columns():
    assert {"id", "label", "loss_last", "unlearned"} <= set(findings_table([]))


def test_a_time_that_begins_at_a_first_checkpoint_after_step_0_may_have_begun_before(made):
    data, axes, clusters = made
    later = data.isel(step=slice(1, None), interval=slice(1, None))
    assert not any(s.start_unseen for f in find_findings(data, axes, clusters, PLATEAU, WINDOW) for s in f.sides)
    found = find_findings(later, named_axes(later), clusters, PLATEAU, WINDOW)
    early = [s for f in found for s in f.sides if s.begin == 20]
    assert early and all(side.start_unseen for side in early)
    assert steps_words(early[0]).startswith(f"by step {early[0].end:g}, begun at the first checkpoint or before")
    assert side_words(replace(early[0], beyond=True), "+").count("by step") == 1


def test_a_label_of_few_is_no_reason_to_rely_on_a_finding():
    again = {"text": (0.8, 0.1), "sample": (0.5, 0.1), "step": (0.6, 0.1)}
    few = replace(side([1, 2, 3]), share=0.4)
    assert Finding("axis-0", "axis", (few, few), 0.3, again).doubts == ["no label that half of a side has"]
    assert Finding("axis-0", "axis", (few, side([4, 5])), 0.3, again).trusted


@pytest.mark.parametrize("by, pair", [("text", (0.69, 0.1)), ("sample", (0.15, 0.1)), ("step", (0.1, 0))])
def test_an_axis_that_is_not_found_again_in_halves_is_not_to_be_relied_on(by, pair):
    strong = {"text": (0.8, 0.1), "sample": (0.2, 0.05), "step": (0.9, 0.05)}
    sides = (side([1, 2, 3]), side([4, 5]))
    assert Finding("axis-0", "axis", sides, 0.3, strong).trusted
    assert Finding("axis-0", "axis", sides, 0.3, strong | {by: pair}).doubts == ["not found again"]


def test_a_cluster_has_to_be_stable_and_to_be_found_again():
    one = (side([1, 2, 3]),)
    good = {"numbers of clusters": (0.6, np.nan), "sample": (0.2, 0.05)}
    assert Finding("cluster-0", "cluster", one, 0.6, good).trusted
    for weak in ({"numbers of clusters": (0.4, np.nan)}, {"sample": (0.2, 0.11)}, {"sample": (0.05, 0.01)}):
        assert Finding("cluster-0", "cluster", one, 0.6, good | weak).doubts == ["not found again"]


def test_an_example_falls_with_its_side_where_one_of_its_label_does(made):
    data, axes, _ = made
    loss = data["loss"].copy()
    tokens = projection_tokens(data)
    one = axis_findings(loss, axes, tokens, PLATEAU, WINDOW, n_examples=3)[0].sides[0]
    loss[:, list(one.examples)] = loss.isel(step=0, token=list(one.examples))  # these learn nothing any more
    again = axis_findings(loss, axes, tokens, PLATEAU, WINDOW, n_examples=3)[0].sides[0]
    assert set(again.tokens) == set(one.tokens) and not set(again.examples) & set(one.examples)


def test_the_time_has_to_be_that_of_the_side_with_the_label():
    again = {"text": (0.8, 0.1), "sample": (0.5, 0.1), "step": (0.6, 0.1)}
    labelled, other = side([1, 2], beyond=False), replace(side([3, 4]), share=0.3)
    assert Finding("axis-0", "axis", (labelled, other), 0.3, again).doubts == ["no time of its own"]
    assert Finding("axis-0", "axis", (replace(labelled, beyond=True), other), 0.3, again).trusted


def test_findings_of_one_name_say_so():
    again = {"text": (0.8, 0.1), "sample": (0.5, 0.1), "step": (0.6, 0.1)}
    found = [Finding(f"axis-{i}", "axis", (side([i]), side([i + 5])), 0.3 - i / 10, again) for i in range(2)]
    assert [f.namesake for f in in_order(found)] == ["", "axis-0"]


@pytest.mark.parametrize("guess, worse", [(0.1, True), (9.0, False), (np.nan, False)])
def test_a_model_that_is_no_better_than_frequency_is_told(guess, worse):
    loss = projection()["loss"].assign_coords(frequency_loss=("token", np.full(N, guess)))
    words = frequency_words(loss)
    assert bool(words) == worse
    if worse:
        last = float(loss[-1].mean())
        assert f"the loss is {last:.2f} nats" in words and "has 0.10" in words
