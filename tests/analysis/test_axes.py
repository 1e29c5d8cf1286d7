"""Axes against principal components of rows made one by one, their control, and tokens that were not analysed."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import ortho_group
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from polca.analysis import axes as axes_module
from polca.analysis.axes import (
    NEGATIVE,
    POSITIVE,
    axis_ends,
    axis_reliability,
    axis_values,
    score_tokens,
    skill_axes,
)
from polca.analysis.decomposition import allocate

STEPS = np.array([0, 1, 2, 4, 8, 16, 32, 64])


def dataset(gradient, loss=None, steps=STEPS):
    n_steps, n, k = gradient.shape
    loss = np.zeros((n_steps, n)) if loss is None else loss
    movement = np.random.default_rng(9).normal(size=(n_steps - 1, k))
    return xr.Dataset(
        {
            "gradient": (("step", "token", "direction"), gradient),
            "loss": (("step", "token"), loss),
            "movement": (("interval", "direction"), movement),
        },
        {
            "step": steps,
            "token": np.arange(n),
            "direction": np.arange(k),
            "interval": steps[:-1],
            "interval_end": ("interval", steps[1:]),
        },
    )


def noise(n=150, k=5, seed=0):
    return np.random.default_rng(seed).normal(size=(len(STEPS), n, k)) / (1 + STEPS[:, None, None])


@pytest.fixture(scope="module")
def opposed():
    "One opposition at the steps 2 to 16 along direction 3, and which tokens are at its positive end."
    needs = np.arange(150) % 3 == 0
    gradient = noise()
    gradient[2:6, :, 3] += np.where(needs, 2.0, -1.0) / (1 + STEPS[2:6, None])
    return dataset(gradient, -np.outer(STEPS, needs)), needs


@pytest.mark.parametrize("kind", ["gradient", "trapezoid"])
def test_axes_are_principal_components_of_rows_made_one_by_one(opposed, kind):
    projection, _ = opposed
    array = projection["gradient"] if kind == "gradient" else allocate(projection, kind)
    rows = []
    for token in range(150):
        row = [own[token] / np.sqrt((own**2).mean()) for own in array.values]
        rows.append(np.concatenate(row) / np.linalg.norm(np.concatenate(row)))
    reference = PCA(5).fit(np.array(rows))
    axes = skill_axes(projection, kind=kind, n_axes=5, draws=2)
    np.testing.assert_allclose(axes.table["share"], reference.explained_variance_ratio_, rtol=1e-8)
    for own, expected in zip(axes.scores.values.T, reference.transform(np.array(rows)).T):
        np.testing.assert_allclose(own * np.sign(own @ expected), expected, atol=1e-10)


def test_iteration_finds_what_inner_products_find(opposed, monkeypatch):
    projection, _ = opposed
    whole = skill_axes(projection, n_axes=3)
    wide = skill_axes(projection.isel(token=slice(30)), n_axes=3)
    monkeypatch.setattr(axes_module, "_SMALL", 0)
    np.testing.assert_allclose(skill_axes(projection, n_axes=3).scores, whole.scores, atol=1e-8)
    np.testing.assert_allclose(skill_axes(projection.isel(token=slice(30)), n_axes=3).scores, wide.scores, atol=1e-8)


def test_the_positive_end_is_the_one_that_gained_and_turned_directions_change_no_score(opposed):
    projection, needs = opposed
    axes = skill_axes(projection, n_axes=2)
    assert axes.n_beyond >= 1 and roc_auc_score(needs, axes.scores[:, 0]) > 0.9
    turned = projection.copy()
    rotation = ortho_group.rvs(5, random_state=0)
    turned["gradient"] = (("step", "token", "direction"), projection["gradient"].values @ rotation)
    np.testing.assert_allclose(skill_axes(turned, n_axes=2).scores, axes.scores, atol=1e-8)
    lost = projection.assign(loss=-projection["loss"])
    np.testing.assert_allclose(skill_axes(lost, n_axes=2).scores[:, 0], -axes.scores[:, 0])


def test_of_tokens_without_anything_in_common_hardly_one_in_twenty_has_an_axis():
    found = [skill_axes(dataset(noise(seed=seed)), n_axes=3, random_state=seed).n_beyond for seed in range(40)]
    assert np.count_nonzero(found) <= 6


def test_an_axis_is_found_again_in_halves_and_chance_is_not(opposed):
    projection, _ = opposed
    axes = skill_axes(projection, (2, 16), n_axes=2)
    axes.table["beyond"] = True  # to ask for the second, which is chance, too
    table = axis_reliability(axes, projection)
    assert table["token"][0] > 0.9 and table["step"][0] > 0.5
    assert table["token"][1] < 0.7
    assert (table[[f"{by}_chance" for by in ("direction", "step")]] < 0.35).all(axis=None)


def test_reliability_is_not_told_where_there_is_nothing_to_halve(opposed):
    projection, _ = opposed
    axes = skill_axes(projection, (2, 8), n_axes=2)
    assert axis_reliability(axes, projection, draws=1)[["step", "step_chance"]].isna().all(axis=None)


@pytest.mark.parametrize("kind", ["gradient", "first"])
def test_tokens_get_the_place_that_they_have(opposed, kind):
    projection, _ = opposed
    axes = skill_axes(projection, (2, 16), kind, n_axes=3)
    assert list(axes.sizes["step"]) == ([2, 4, 8, 16] if kind == "gradient" else [4, 8, 16])
    np.testing.assert_allclose(score_tokens(axes, projection), axes.scores, atol=1e-12)
    some = projection.isel(token=[3, 77, 12])
    np.testing.assert_allclose(score_tokens(axes, some), axes.scores[[3, 77, 12]], atol=1e-12)
    with pytest.raises(ValueError, match="lacks the steps"):
        score_tokens(axes, projection.isel(step=slice(4), interval=slice(3)))
    with pytest.raises(ValueError, match="other directions"):
        score_tokens(axes, projection.isel(direction=slice(3)))


def test_ends_are_clusters_of_the_outermost_tokens(opposed):
    axes = skill_axes(opposed[0], n_axes=2)
    ends = axis_ends(axes.scores, 0.2)
    for axis in (0, 1):
        own = axes.scores.values[:, axis]
        high, low = (ends.members(axis, end) for end in (POSITIVE, NEGATIVE))
        assert high.sum() == low.sum() == 30
        assert own[high].min() >= own[~high].max() and own[low].max() <= own[~low].min()
    assert list(ends.table["medoid"][:2]) == [axes.scores.values[:, 0].argmax(), axes.scores.values[:, 0].argmin()]
    for share in (0, 0.6):
        with pytest.raises(ValueError, match="at most 0.5"):
            axis_ends(axes.scores, share)


def test_numbers_that_are_not_finite_are_refused(opposed):
    broken = opposed[0].copy(deep=True)
    broken["gradient"][1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        axis_values(broken)


def test_where_no_axis_is_beyond_chance_nothing_is_halved():
    rng = np.random.default_rng(0)
    dims = ("step", "token", "direction")
    coords = {"step": np.arange(4), "token": np.arange(60), "direction": np.arange(3), "interval": np.arange(3)}
    loss = (dims[:2], rng.random((4, 60)))
    data = xr.Dataset({"gradient": (dims, rng.normal(size=(4, 60, 3))), "loss": loss}, coords)
    axes = skill_axes(data)
    assert axes.n_beyond == 0
    table = axis_reliability(axes, data)
    assert table.empty and {"direction", "direction_chance"} <= set(table)


def test_halves_of_fewer_dimensions_than_axes_are_compared_as_far_as_they_go():
    rng = np.random.default_rng(0)
    opposed = np.repeat([-1.0, 1.0], 30)
    gradient = 0.3 * rng.normal(size=(5, 60, 2)) + opposed[:, None] * rng.normal(size=(5, 1, 2))
    projection = xr.Dataset({"gradient": (("step", "token", "direction"), gradient)}, {"step": np.arange(5)})
    axes = skill_axes(projection.assign(loss=(("step", "token"), rng.normal(size=(5, 60)))), n_axes=8)
    table = axis_reliability(axes, projection)  # half of the steps and both directions are four columns
    assert table["step"].iloc[0] > 0.5
    assert axes_module.principal_components(gradient[0] - gradient[0].mean(0), 8)[0].shape == (2, 2)
