"""Clusters along directions: what is dropped, what is refused, and which clusters mirror each other."""

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from sklearn.cluster import AgglomerativeClustering

from polca.analysis.clustering import (
    DROPPED,
    Clusters,
    cluster_directions,
    describe_clusters,
    filter_tokens,
    opposing_clusters,
    opposing_control,
)

STEPS = np.arange(0, 101, 5)


@pytest.fixture(scope="module")
def falling(curves_of):
    "Two groups of 40 and 50 tokens that drop at different steps, and 6 that wander; along direction 1 all rise."
    rng = np.random.default_rng(0)

    def drop(n, at):
        return -1 / (1 + np.exp(-(STEPS[:, None] - at) / 4)) + 0.02 * rng.normal(size=(len(STEPS), n))

    wander = rng.normal(size=(len(STEPS), 6)).cumsum(0)
    one = np.concatenate([drop(40, 30), drop(50, 70), wander], axis=1)
    return curves_of(np.stack([one, np.abs(one)], axis=2), STEPS)


@pytest.fixture(scope="module")
def filtered(falling):
    return cluster_directions(falling, min_cluster_size=20, min_samples=5, keep_tokens=filter_tokens(falling))


def one_direction_of(keep):
    return xr.DataArray(keep, dims="direction")


def test_direction_without_tokens_has_no_clusters_and_a_note(filtered):
    assert (filtered.labels.sel(direction=1) < 0).all()
    assert "fewer than" in filtered.notes[1]


def test_direction_that_is_not_kept_is_dropped_without_a_note(falling):
    only = cluster_directions(falling, 20, 5, keep_directions=one_direction_of([False, True]))
    assert (only.labels.sel(direction=0) == DROPPED).all()
    assert only.notes == {}


def test_everything_is_clustered_without_masks(falling):
    assert cluster_directions(falling, 20, 5).labels.shape == (2, 96)


def test_other_clusterers_can_be_given(falling):
    two = cluster_directions(falling[:, :90], 20, clusterer=AgglomerativeClustering(2))
    assert sorted(two.table[two.table.direction == 0]["size"]) == [40, 50]


@pytest.mark.parametrize("min_cluster_size", [97, 1])
def test_size_that_no_cluster_can_have_is_refused(falling, min_cluster_size):
    with pytest.raises(ValueError, match="give 2 to 96"):
        cluster_directions(falling, min_cluster_size)


def test_curves_that_are_not_finite_are_refused(falling):
    with pytest.raises(ValueError, match="not finite"):
        cluster_directions(falling.where(falling.step > 0), 10)


def test_without_any_direction_all_counts_as_dropped(falling):
    nothing = cluster_directions(falling, 20, 5, keep_directions=one_direction_of([False, False]))
    assert len(nothing.table) == 0
    assert nothing.counts()["dropped"] == 96


def test_description_has_a_part_for_each_cluster_and_the_outliers(falling, filtered):
    kinds = {"parity": np.arange(96) % 2, "late": ((np.arange(96) >= 40) & (np.arange(96) < 90)).astype(int)}
    description = describe_clusters(falling, filtered, 0, falling.sel(direction=0), kinds)
    outliers = 6 - description["dropped"]
    sizes = [*filtered.table["size"], *([outliers] if outliers else [])]
    assert [cluster["size"] for cluster in description["clusters"]] == sizes
    first = description["clusters"][0]
    assert first["kinds"][0][:2] == [0, 0]
    assert sum(share for *_, share in first["kinds"]) == 1


@pytest.fixture(scope="module")
def mirrors(curves_of, clusters_of):
    """Along direction 0 a cluster falls as another rises, a third rises a tenth as much, and a fourth rises at another
    time; along direction 1 all fall.
    """
    rng = np.random.default_rng(0)
    kind = np.repeat(range(4), 50)
    fall = 1 / (1 + np.exp(-(STEPS - 30) / 4))
    shapes = np.stack([-fall, 0.8 * fall, 0.1 * fall, 1 / (1 + np.exp(-(STEPS - 90) / 4))])
    noise = 0.3 * rng.normal(size=(len(STEPS), 200, 2))
    curves = curves_of(np.stack([shapes[kind].T + 5, -abs(shapes[kind].T)], axis=2) + noise, STEPS)
    return SimpleNamespace(curves=curves, clusters=clusters_of(kind, kind), kind=kind, rng=rng)


@pytest.mark.parametrize("limits, pairs", [({}, 1), ({"ratio": 0.05}, 2), ({"correlation": 0, "ratio": 0.05}, 3)])
def test_wider_limits_find_more_pairs(mirrors, limits, pairs):
    assert len(opposing_clusters(mirrors.curves, mirrors.clusters, **limits)) == pairs


def test_without_clusters_there_are_no_pairs(mirrors, without_clusters):
    none = without_clusters(mirrors.clusters)
    assert opposing_clusters(mirrors.curves, none).empty
    assert opposing_control(mirrors.curves, none, 5)["pairs"] == 0


def pairs_by_hand(curves, kind, seed):
    "The number of pairs with a correlation of at most −0.3 and a ratio of at least 0.3, of random clusters."
    labels = np.random.default_rng(seed).permutation(kind)
    means = []
    for cluster in range(4):
        mean = curves[:, labels == cluster, 0].mean(1)
        means.append(mean - curves[0, labels == cluster, 0].mean())
    pairs = 0
    for i in range(4):
        for j in range(i):
            a = means[i]
            b = means[j]
            small, large = sorted((abs(a[-1]), abs(b[-1])))
            mirrored = a @ b <= -0.3 * np.sqrt((a @ a) * (b @ b))
            pairs += mirrored and a[-1] * b[-1] < 0 and small >= 0.3 * large
    return pairs


def test_control_counts_as_many_pairs_as_random_clusters_have(mirrors, curves_of):
    rng = mirrors.rng
    walks = curves_of(rng.normal(size=(21, 200, 1)).cumsum(0))
    labels = mirrors.clusters.labels[:1].copy(data=[rng.permutation(mirrors.kind)])
    by_chance = Clusters(labels, mirrors.clusters.table[:4], {})
    control = opposing_control(walks, by_chance, 300, correlation=-0.3, ratio=0.3)
    counts = [pairs_by_hand(walks.values, mirrors.kind, seed) for seed in range(300)]
    assert np.mean(counts) > 0.3
    assert abs(control["mean"] - np.mean(counts)) < 0.25
    assert control["high"] >= 2
