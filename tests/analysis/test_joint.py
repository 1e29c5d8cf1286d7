"""Curves on one scale, numbers of clusters, and the two recipes."""

import numpy as np
import pytest
import xarray as xr
from sklearn.metrics import adjusted_rand_score

from polca.analysis.decomposition import trajectories
from polca.analysis.joint import CoreKMeans, cluster_tokens, distinct_clusters, scale_curves

KIND = np.arange(60) % 2


@pytest.fixture(scope="module")
def sized(curves_of):
    "Two kinds of tokens that fall along different directions, in sizes that vary a hundredfold."
    height = 10 ** np.random.default_rng(0).uniform(-1, 1, 60)
    fall = -np.linspace(0, 1, 11)[:, None, None] * height[:, None] * np.stack([KIND, 1 - KIND], axis=1)
    return curves_of(fall)


@pytest.fixture(scope="module")
def gradient(sized):
    return xr.Dataset(
        {"gradient": sized, "movement": (("interval", "direction"), np.ones((10, 2)))},
        {"interval": np.arange(10), "interval_end": ("interval", np.arange(1, 11))},
    )


def test_unit_curves_have_length_one_where_they_move(sized):
    length = np.linalg.norm(scale_curves(sized, "unit").values, axis=0)
    np.testing.assert_allclose(length[np.arange(60), 1 - KIND], 1)


def test_token_that_does_not_move_stays_at_zero(sized):
    assert (scale_curves(sized, "unit").values[:, KIND == 1, 1] == 0).all()


def test_joint_curves_hold_all_directions_step_by_step(sized):
    joint = scale_curves(sized, "raw", joint=True)
    np.testing.assert_array_equal(joint[:, 5, 0].values.reshape(11, 2), sized[:, 5].values)


def test_steps_on_one_scale_have_length_one_where_they_move(sized):
    scaled = scale_curves(sized, "step").isel(step=slice(1, None), direction=0)
    np.testing.assert_allclose((scaled**2).sum("step"), KIND)


def test_ranks_are_shares_of_the_tokens(sized):
    ranks = scale_curves(sized[1:, :, 0:1] + np.arange(60)[:, None] * 1e-9, "rank")
    assert ranks.max() == 1
    assert ranks.min() == 1 / 60


def test_logarithms_of_curves_that_are_zero_are_finite(sized):
    assert np.isfinite(scale_curves(sized * 0, "log")).all()


def test_unknown_scale_is_refused(sized):
    with pytest.raises(ValueError, match="scale='size'"):
        scale_curves(sized, "size")


def test_core_of_nothing_is_refused():
    with pytest.raises(ValueError, match="core=0"):
        CoreKMeans(2, core=0).fit(np.eye(4))


def test_recommended_recipe_finds_the_kinds(gradient):
    scaled, joint = cluster_tokens(gradient, n_clusters=(2,), core=1.0)
    assert scaled.dims == ("step", "token", "direction")
    assert adjusted_rand_score(KIND, joint.labels.values[0]) == 1


def test_changes_of_booked_losses_are_scaled(gradient):
    scaled, _ = cluster_tokens(gradient, kind="trapezoid", n_clusters=(2,))
    assert scaled.sizes["step"] == 20


def test_recommended_recipe_along_single_directions(gradient):
    _, single = cluster_tokens(gradient, n_clusters=2, joint=False)
    assert single.labels.direction.values.tolist() == [0, 1]


def test_paper_recipe_clusters_raw_curves(gradient):
    curves, apart = cluster_tokens(gradient, "paper", kind="first", min_cluster_size=20, min_samples=5)
    assert curves.equals(trajectories(gradient, "first").astype(float))
    assert apart.labels.shape == (2, 60)


@pytest.mark.parametrize(
    "request_, message",
    [
        ({"n_clusters": (2, 3), "joint": False}, "one number, as each direction is clustered by itself, of at least 2"),
        ({"n_clusters": (2, 300)}, "300 clusters of 60 tokens: analyse more tokens, or look for fewer clusters"),
        ({"preset": "best"}, "preset='best'"),
    ],
)
def test_what_does_not_fit_is_refused(gradient, request_, message):
    with pytest.raises(ValueError, match=message):
        cluster_tokens(gradient, **request_)


def test_clusters_of_single_directions_have_no_stability(gradient):
    _, single = cluster_tokens(gradient, n_clusters=2, joint=False)
    with pytest.raises(ValueError, match="have no stability"):
        distinct_clusters(single)
