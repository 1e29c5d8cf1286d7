"""What the page `experiments/02_language` says of its stored runs."""

from pathlib import Path

import pandas as pd
import pytest

from polca.tasks.language import language_preset
from polca.tasks.results import read_results

RESULTS = Path(__file__).resolve().parents[2] / "nbs" / "experiments" / "results"


def stored_run(name, seed=0, which=""):
    file = RESULTS / f"language-{name}-seed{seed}{which}.json"
    texts = ("wikitext-2", "books") if name == "small" else ()
    config = language_preset(name, seed=seed, texts=texts)
    return read_results(file, "polca run language", "…", config, ["kinds", "figures", "opposing"])


@pytest.fixture(scope="module")
def results():
    return stored_run("small")


@pytest.fixture(scope="module")
def kinds(results):
    return results["kinds"]


@pytest.fixture(scope="module")
def small(kinds):
    return pd.DataFrame(kinds["projected_small"]["clusters"])


def test_the_papers_run_is_not_there():
    with pytest.raises(ValueError, match="is missing"):
        stored_run("paper")


def test_the_sizes_of_clusters_add_up(kinds):
    for name, kind in kinds.items():
        total = sum(c["size"] for c in kind["clusters"])
        assert name == "recommended" or total >= kind["clustered"] * len(kind["directions"]) * 0.999


def test_every_label_is_tested(kinds):
    for kind in kinds.values():
        assert all(c["q"] is None or c["q"] <= 0.05 for c in kind["clusters"])


def test_by_the_papers_sizes_there_are_no_clusters(kinds):
    assert not kinds["projected"]["clusters"] and not kinds["loss"]["clusters"]


def test_three_directions_have_a_crowd_and_a_single_token_each(small):
    single = small[small["share"] == 1]
    assert len(small) == 6 and small["direction"].nunique() == 3
    assert sorted(single["value"]) == [" the", ",", "."] and single["size"].sum() == 236
    assert small[small["share"] < 1]["size"].min() > 1000


def test_a_single_token_breaks_at_one_step(small):
    single = small[small["share"] == 1]
    assert (single["spread"] == 0).all()
    assert single["spread_control"].round().tolist() == [178, 202, 363]
    assert single["at_first"].tolist() == [0, 0, 1]


def test_no_cluster_has_a_hidden_breakthrough(kinds, small):
    assert not small["hidden"].any() and kinds["recommended"]["hidden"] == 0
    second = stored_run("small", 1)["kinds"]
    assert not any(c["hidden"] for name in ("projected_small", "recommended") for c in second[name]["clusters"])


def test_without_filters_one_cluster_in_19_counts_as_hidden(kinds):
    unfiltered = kinds["unfiltered"]["clusters"]
    assert sum(c["hidden"] for c in unfiltered) == 1 and len(unfiltered) == 19


def test_the_directions_hold_a_hundredth_of_what_is_learned(results):
    trapezoid = results["explained"]["trapezoid"]
    assert round(trapezoid["net"], 2) == -0.04 and round(trapezoid["true"], 2) == -3.98
    assert results["explained"]["first"]["error"] > 3.98


def test_one_pair_moves_against_each_other_by_less_than_random_ones(results):
    control = results["opposing"]["control"]
    assert len(results["opposing"]["pairs"]) == 1 and control["moved"] < control["moved_high"]


def test_an_earlier_run_had_a_pair_that_moved_five_times_as_far_and_no_hidden_breakthrough_of_its_own(results):
    before = stored_run("small", 0, "-earlier")
    assert before["opposing"]["control"]["moved"] > 5 * results["opposing"]["control"]["moved"]
    clusters = before["kinds"]["projected_small"]["clusters"]
    assert all(c["control"] == 1 for c in clusters if c["hidden"])
