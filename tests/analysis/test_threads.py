"""Windows, axes that go on through them, and what is booked along a vector."""

import numpy as np
import pytest
import xarray as xr

from polca.analysis.axes import axis_ends, skill_axes
from polca.analysis.decomposition import allocate
from polca.analysis.threads import along_vector, axis_threads, axis_windows, contrast, joined_axes, knob


@pytest.mark.parametrize("n", [2, 3, 5, 12, 31, 50])
@pytest.mark.parametrize("width", [None, 2, 3, 4, 7])
def test_windows_follow_each_other_and_reach_the_end(n, width):
    steps = np.cumsum(np.arange(n)) * 10
    if width is not None and width > n:
        with pytest.raises(ValueError, match=f"use 2 to {n}"):
            axis_windows(steps, width)
        return
    windows = axis_windows(steps, width)
    places = [(list(steps).index(first), list(steps).index(last)) for first, last in windows]
    assert places[0][0] == 0 and places[-1][1] == n - 1
    assert {last - first + 1 for first, last in places} == {width or min(n, max(4, round(n / 5)))}
    assert all(0 < after[0] - before[0] <= before[1] - before[0] for before, after in zip(places, places[1:]))


def noisy(scores, size, seed):
    return scores + size * np.random.default_rng(seed).normal(size=scores.shape)


def test_axes_are_joined_whatever_their_sign_and_place_and_no_window_has_two_of_a_thread():
    base = np.random.default_rng(0).normal(size=(300, 2))
    windows = [noisy(base, 0.3, 1), noisy(-base[:, ::-1], 0.3, 2), noisy(base[:, [1, 1]], 0.3, 3)]
    found = joined_axes(windows, 0.5)
    assert all(len({window for window, _ in group}) == len(group) for group in found)
    assert [(0, 0), (1, 1)] in found
    assert sum(len(group) for group in found) == 6
    longest = max(found, key=len)
    assert longest[:2] == [(0, 1), (1, 0)] and len(longest) == 3


def test_an_axis_that_drifts_is_no_single_thread_and_a_gap_ends_one():
    one, other = np.linalg.qr(np.random.default_rng(0).normal(size=(100, 2)))[0].T
    drifting = [(np.cos(a) * one + np.sin(a) * other)[:, None] for a in np.radians(15 * np.arange(12))]
    for group in joined_axes(drifting, 0.5):
        scores = np.concatenate([drifting[window] for window, _ in group], axis=1)
        assert abs(np.corrcoef(scores.T)).mean() > 0.6
    gap = [one[:, None], np.zeros((100, 0)), one[:, None]]
    assert joined_axes(gap, 0.5) == [[(0, 0)], [(2, 0)]]
    assert joined_axes([np.zeros((100, 0))] * 3, 0.5) == []


@pytest.fixture(scope="module")
def turning():
    "An opposition that lasts, along a direction that changes its sign halfway, and the side of each token."
    rng = np.random.default_rng(0)
    steps = np.arange(0, 240, 10)
    side = np.where(rng.random(120) < 0.5, 1.0, -1.0)
    gradient = 0.5 * rng.normal(size=(24, 120, 4))
    sign = np.where(steps < 120, 1, -1)
    gradient[:, :, 1] += sign[:, None] * side
    gradient[:, :, 2] += side
    movement = -0.1 * np.stack([np.zeros(23), sign[:-1], np.ones(23), np.zeros(23)], axis=1)
    halves = (gradient[1:] + gradient[:-1]) / 2
    change = np.einsum("tnk,tk->tn", halves, movement)
    loss = 3 + np.concatenate([np.zeros((1, 120)), np.cumsum(change, axis=0)])
    dims = ("step", "token", "direction")
    arrays = {"gradient": (dims, gradient), "loss": (dims[:2], loss), "movement": (("interval", "direction"), movement)}
    coords = {"step": steps, "token": np.arange(120), "direction": np.arange(4), "interval": steps[:-1]}
    return xr.Dataset(arrays, coords | {"interval_end": ("interval", steps[1:])}), side


def test_a_thread_keeps_its_tokens_and_its_sign_through_all_windows(turning):
    projection, side = turning
    threads = axis_threads(projection)
    assert list(threads.table["thread"]) == [0]
    assert threads.table["windows"][0] == len(threads.windows)
    for row in threads.links.itertuples():
        own = row.sign * threads.windows[row.window].scores.values[:, row.axis]
        assert np.corrcoef(own, side)[0, 1] > 0.9
    assert threads.strongest(0)[2] == 1


def test_what_is_booked_along_an_orthonormal_set_of_vectors_adds_up_to_the_contrast(turning):
    projection, side = turning
    ends = axis_ends(xr.DataArray(side[:, None], dims=("token", "axis"), coords={"axis": [0]}), 0.3)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    vectors = [xr.DataArray(row, {"direction": np.arange(4)}, ("direction",)) for row in rotation]
    accounts = [contrast(projection, vector, ends, 0) for vector in vectors]
    np.testing.assert_allclose(sum(a["booked"] for a in accounts), accounts[0]["exact"], atol=1e-12)
    assert sum(a.attrs["share"] for a in accounts) == pytest.approx(1)
    own = allocate(along_vector(projection, vectors[0])).sum("interval").values[:, 0]
    expected = np.einsum(
        "tnk,tk->n",
        (projection["gradient"].values[1:] + projection["gradient"].values[:-1]) / 2 @ rotation[0][:, None],
        projection["movement"].values @ rotation[0][:, None],
    )
    np.testing.assert_allclose(own, expected, atol=1e-12)


def test_the_knob_helps_the_positive_end(turning):
    projection, side = turning
    axes = skill_axes(projection, (120, 230), n_axes=1)
    helped = np.sign(np.corrcoef(axes.scores.values[:, 0], side)[0, 1])
    vector = knob(axes, 0)
    assert np.sqrt((vector**2).sum()) == pytest.approx(1)
    slopes = along_vector(projection, vector)["gradient"].sel(step=slice(120, None)).mean("step").values[:, 0]
    assert slopes[side == helped].mean() < 0 < slopes[side == -helped].mean()
    with pytest.raises(ValueError, match="cancel"):
        canceled = axes.loadings.copy(data=axes.loadings.values - axes.loadings.values.mean(0))
        axes.loadings = canceled
        knob(axes, 0)


def test_totals_of_a_contrast_are_those_of_the_window(turning):
    projection, side = turning
    ends = axis_ends(xr.DataArray(side[:, None], dims=("token", "axis"), coords={"axis": [0]}), 0.3)
    vector = xr.DataArray([0, 0, 1.0, 0], {"direction": np.arange(4)}, ("direction",))
    parts = [contrast(projection, vector, ends, 0, window).attrs for window in ((0, 100), (100, 230), None)]
    for name in ("exact", "booked"):
        assert parts[0][name] + parts[1][name] == pytest.approx(parts[2][name])
