"""Runs of many tokens, with a number that is many lowered to what is quick: what is drawn, and what is said of it."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from polca.analysis import many
from polca.analysis.agreement import cluster_agreements
from polca.analysis.axes import axis_reliability, skill_axes
from polca.analysis.clustering import OUTLIER, cluster_directions
from polca.analysis.end_times import set_times
from polca.analysis.findings import find_findings
from polca.analysis.joint import CoreKMeans, cluster_tokens
from polca.analysis.labels import label_tests
from polca.analysis.many import chance_words, drawn_tokens, found_words, in_blocks
from polca.show.report import html_report

KINDS = 3
STEPS = np.arange(0, 101, 5)


@pytest.fixture
def few_are_many(monkeypatch):
    "Of over 300 tokens some are drawn: 300, or for HDBSCAN 200; of a set 20 blocks."
    monkeypatch.setattr(many, "MANY", 300)
    monkeypatch.setattr("polca.analysis.clustering.CLUSTERED", 200)
    monkeypatch.setattr("polca.analysis.clustering.COMPARED", 50)
    monkeypatch.setattr(many, "_BLOCKS", 20)


def made_up(n=900, seed=0):
    "A projection of three kinds of tokens, each of which is learned at a time of its own along its own direction."
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % KINDS
    at = np.array([20, 50, 80])[kind]
    fall = 1 / (1 + np.exp(-(STEPS[:, None] - at) / 4))
    slope = -np.exp(-(((STEPS[:, None] - at) / 8) ** 2))
    own = np.arange(4) == kind[:, None]
    gradient = slope[:, :, None] * own + 0.05 * rng.normal(size=(len(STEPS), n, 4))
    loss = 4 - 2 * fall + 0.05 * rng.normal(size=(len(STEPS), n))
    movement = np.full((len(STEPS) - 1, 4), 0.5)
    coords = {
        "step": STEPS,
        "interval": STEPS[:-1],
        "interval_end": ("interval", STEPS[1:]),
        "token": range(n),
        "direction": range(4),
        "end": ["start", "end"],
        "example": ("token", np.arange(n) // 9),
        "target": ("token", np.array(list("abc"))[kind]),
        "frequency_loss": ("token", np.full(n, 3.9)),
    }
    data = {
        "loss": (("step", "token"), loss),
        "gradient": (("step", "token", "direction"), gradient),
        "movement": (("interval", "direction"), movement),
        "outside": (("interval", "token", "end"), np.zeros((len(STEPS) - 1, n, 2))),
    }
    return xr.Dataset(data, coords).assign_attrs(settings="{}")


@pytest.fixture(scope="module")
def projection():
    return made_up()


def falls(projection):
    "Curves (step, token, direction) of three shapes, the same along both directions."
    return projection["loss"].expand_dims(direction=[0, 1], axis=2)


def shares_of_kinds(labels, n_clusters):
    "Of each cluster the share of its commonest kind."
    kinds = np.arange(len(labels)) % KINDS
    return [np.bincount(kinds[labels == c]).max() / (labels == c).sum() for c in range(n_clusters)]


def test_nothing_is_drawn_of_as_many_as_can_be_had():
    assert drawn_tokens(many.MANY) == slice(None)
    assert len(drawn_tokens(many.MANY + 1)) == many.MANY


def test_clusters_of_many_tokens_are_found_on_some_and_the_others_join_them(projection, few_are_many):
    clusters = cluster_directions(falls(projection), 150, 30)
    assert clusters.found_on == 200
    assert len(clusters.table) == 2 * KINDS
    labels = clusters.labels.values[0]
    assert min(shares_of_kinds(labels, KINDS)) == 1
    assert (labels != OUTLIER).mean() > 0.9
    assert clusters.table["size"].sum() == (clusters.labels.values >= 0).sum()


def test_the_same_tokens_are_drawn_again(projection, few_are_many):
    once, again = (cluster_directions(falls(projection), 150, 30) for _ in range(2))
    assert once.labels.equals(again.labels)
    assert once.table.equals(again.table)


def test_fewer_tokens_are_clustered_whole(projection, few_are_many):
    clusters = cluster_directions(falls(projection).isel(token=slice(300)), 50, 10)
    assert clusters.found_on is None
    assert found_words(clusters.found_on, 300) == ""


def test_a_clusterer_that_is_given_sees_all_tokens(projection, few_are_many):
    clusters = cluster_directions(falls(projection), 2, 1, clusterer=CoreKMeans(KINDS))
    assert clusters.found_on is None


def test_kmeans_of_many_is_of_all_tokens(projection, few_are_many):
    curves = falls(projection).isel(direction=0).transpose("token", "step").values
    model = CoreKMeans(KINDS, core=1.0).fit(curves)
    own = [curves[model.labels_ == c].mean(0) for c in range(KINDS)]
    np.testing.assert_allclose(model.cluster_centers_, own)
    assert min(shares_of_kinds(model.labels_, KINDS)) == 1


def test_axes_are_of_all_tokens_and_chance_is_of_some(projection, monkeypatch):
    whole = skill_axes(projection, n_axes=4)
    monkeypatch.setattr(many, "MANY", 300)
    some = skill_axes(projection, n_axes=4)
    assert some.scores.equals(whole.scores)
    assert some.table["chance"][0] > whole.table["chance"][0]  # the fewer, the stricter
    assert "told from 300 of the 900 tokens" in some.notes[0]
    assert not whole.notes


def test_halves_of_some_tokens_find_again_what_is_there(projection, few_are_many):
    axes = skill_axes(projection, n_axes=4)
    assert axis_reliability(axes, projection, draws=2)["text"].min() > 0.9
    _, clusters = cluster_tokens(projection, n_clusters=[3, 4])
    again = cluster_agreements(projection, clusters)
    assert (again["again"] > again["again_chance"]).all()


def test_blocks_keep_the_mean_and_the_spread_of_random_sets(few_are_many):
    rng = np.random.default_rng(1)
    values = xr.DataArray(rng.gamma(2.0, size=(2, 4000)), dims=("step", "token"))
    blocks, size = in_blocks(values, 400)
    assert (blocks.sizes["token"], size) == (200, 20)
    np.testing.assert_allclose(blocks.mean("token"), values.mean("token"))
    sets = [blocks.values[0, rng.choice(200, size, replace=False)].mean() for _ in range(2000)]
    expected = values.values[0].std() / 400**0.5 * 0.9**0.5  # drawn without replacement, a tenth of all
    assert np.std(sets) == pytest.approx(expected, rel=0.15)


def test_blocks_keep_what_a_guess_by_frequency_costs(projection, few_are_many):
    blocks, _ = in_blocks(projection["loss"], 200)
    np.testing.assert_allclose(blocks["frequency_loss"], 3.9)
    assert "target" not in blocks.coords


def test_small_sets_are_drawn_token_by_token(projection, few_are_many):
    loss = projection["loss"]
    same, size = in_blocks(loss, 39)
    assert same is loss
    assert size == 39


def test_times_of_many_tokens_are_held_against_blocks(projection, monkeypatch):
    sets = [np.arange(kind, 900, KINDS) for kind in range(KINDS)]
    whole = set_times(projection["loss"], sets)
    monkeypatch.setattr(many, "MANY", 300)
    monkeypatch.setattr(many, "_BLOCKS", 50)
    blocks = set_times(projection["loss"], sets)
    assert blocks["beyond"].all()
    assert blocks.drop(columns=["chance", "hidden_control"]).equals(whole.drop(columns=["chance", "hidden_control"]))
    np.testing.assert_allclose(blocks["chance"], whole["chance"], rtol=0.3)


def test_labels_of_many_tokens_have_the_same_chances(projection, monkeypatch, clusters_of):
    rng = np.random.default_rng(0)
    clusters = clusters_of(np.where(rng.random(900) < 0.3, 0, -1))
    tokens = projection["loss"].token.to_dataframe().assign(hour=np.arange(900) % 7)[["hour"]]
    whole = label_tests(clusters, tokens, n_permutations=4000)
    monkeypatch.setattr(many, "MANY", 300)
    drawn = label_tests(clusters, tokens, n_permutations=4000)
    assert whole["p"][0] > 0.02  # else it says nothing: hours are dealt out at random
    assert drawn["p"][0] == pytest.approx(whole["p"][0], abs=0.05)


def test_the_report_says_what_it_tells_from_some_tokens(projection, few_are_many):
    curves = falls(projection)
    joint_curves, own = cluster_tokens(projection, n_clusters=[3, 4])
    joint = (joint_curves, replace(own, table=own.table.join(cluster_agreements(projection, own))))
    single = (curves, cluster_directions(curves, 150, 30))
    page = html_report("made up", projection, {"joint": joint, "single": single}, 80.0, 10.0)
    assert found_words(200, 900) in page
    assert find_findings(projection, None, joint[1], 80.0, 10.0)
    assert chance_words(900) in page


def test_the_report_of_fewer_tokens_says_nothing_of_the_kind(projection):
    joint = cluster_tokens(projection, n_clusters=[3, 4])
    assert "drawn at random" not in html_report("made up", projection, {"joint": joint}, 80.0, 10.0)
