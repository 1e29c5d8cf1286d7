"""Halves that share nothing, and clusters that are found in both or not."""

import numpy as np
import pytest
import xarray as xr

from polca.analysis.agreement import cluster_agreements, sample_halves, texts_of
from polca.analysis.joint import cluster_tokens


def made(noise, n_texts=30, directions=6, seed=0):
    "Two kinds of tokens with patterns of their own, in noise; eight tokens a text."
    rng = np.random.default_rng(seed)
    n = 8 * n_texts
    kind = np.arange(n) % 2
    pull = rng.normal(size=(8, 2, directions))[:, kind] + noise * rng.normal(size=(8, n, directions))
    coords = {"step": np.arange(8), "token": np.arange(n), "example": ("token", np.arange(n) // 8)}
    return xr.Dataset({"gradient": (("step", "token", "direction"), pull)}, coords), kind


def test_halves_share_neither_texts_nor_directions_and_leave_none_out():
    texts = np.repeat(np.arange(9), 3)
    (found, along), (others, rest) = sample_halves(texts, 7, np.random.default_rng(0))
    assert (found ^ others).all() and not set(texts[found]) & set(texts[others])
    assert sorted([*along, *rest]) == list(range(7))


def test_clusters_of_a_kind_are_found_again_and_those_of_noise_are_not():
    data, kind = made(noise=0.5)
    _, clusters = cluster_tokens(data, n_clusters=(2,), core=0.7)
    again = cluster_agreements(data, clusters)
    # the cores are 70% of a kind in either half, chosen by other noise
    assert (again["again"] > 0.45).all() and (again["again_chance"] < 0.25).all()
    noise, _ = made(noise=100.0)
    _, clusters = cluster_tokens(noise, n_clusters=(2, 5))
    of_noise = cluster_agreements(noise, clusters)
    assert (of_noise["again"] < 2 * of_noise["again_chance"]).all()


@pytest.mark.parametrize("few", [{"n_texts": 3}, {"directions": 3}])
def test_where_there_is_too_little_to_halve_nothing_is_said(few):
    data, _ = made(noise=0.5, **few)
    _, clusters = cluster_tokens(data, n_clusters=(2, 3))
    assert cluster_agreements(data, clusters).isna().all(axis=None)


def test_numbers_above_the_tokens_of_a_half_are_not_asked():
    data, _ = made(noise=0.5, n_texts=4)
    _, clusters = cluster_tokens(data, n_clusters=(2, 20))
    again = cluster_agreements(data, clusters)
    asked = clusters.table["n_clusters"] == 2
    assert again[asked].notna().all(axis=None) and again[~asked].isna().all(axis=None)


def test_without_texts_tokens_stand_for_themselves():
    data, _ = made(noise=0.5)
    assert list(texts_of(data)[:9]) == [0] * 8 + [1]
    assert list(texts_of(data.drop_vars("example"))) == list(range(240))
