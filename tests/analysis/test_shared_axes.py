"""What runs have in common: against canonical correlations, mixtures of the same axes, and permuted tokens."""

import numpy as np
import pytest
import xarray as xr

from polca.analysis.shared_axes import common_scores, pair_correlations, shared_axes

N = 600


def scores(values):
    return xr.DataArray(values, dims=("token", "axis"))


@pytest.fixture(scope="module")
def parts():
    "Three runs of four axes, of which three are in all of them, one more strongly than the next."
    rng = np.random.default_rng(3)
    skills = rng.normal(size=(N, 3))
    noise = np.array([0.1, 0.3, 0.5])
    runs = [np.column_stack([skills + noise * rng.normal(size=(N, 3)), rng.normal(size=N)]) for _ in range(3)]
    return skills, runs


def test_of_two_runs_the_common_axes_are_those_of_canonical_correlations(parts):
    one, other = parts[1][:2]
    bases = [np.linalg.qr(own - own.mean(0))[0] for own in (one, other)]
    left, r, right = np.linalg.svd(bases[0].T @ bases[1])
    common = common_scores([one, other], 3)
    for k in range(3):
        middle = bases[0] @ left[:, k] + bases[1] @ right[k]
        assert abs(np.corrcoef(common[:, k], middle)[0, 1]) == pytest.approx(1, abs=1e-6)
    assert (np.diff(r) < 0).all()


def test_any_mixture_of_a_runs_axes_has_the_same_in_common(parts):
    rng = np.random.default_rng(4)
    plain = shared_axes([scores(own) for own in parts[1]], 4)
    mixed = shared_axes([scores(own @ rng.normal(size=(4, 4)) + 7) for own in parts[1]], 4)
    np.testing.assert_allclose(mixed.scores, plain.scores, atol=1e-6)
    np.testing.assert_allclose(mixed.table, plain.table, atol=1e-6)


def test_what_is_in_every_run_comes_back_and_what_is_in_one_does_not(parts):
    shared = shared_axes([scores(own) for own in parts[1]], 4)
    assert shared.back(0.7) == 3
    assert shared.table["least"][3] < 0.2 and shared.table["chance"].max() < 0.25
    for k in range(3):  # in the order of how alike they are
        r = [abs(np.corrcoef(shared.scores[:, k], skill)[0, 1]) for skill in parts[0].T]
        assert np.argmax(r) == k and max(r) > 0.9


def test_r_is_of_tokens_that_had_no_part_in_finding_the_axes():
    rng = np.random.default_rng(5)
    few = [scores(rng.normal(size=(60, 12))) for _ in range(2)]
    assert shared_axes(few, 12).table["least"].max() < 0.5
    there = common_scores([own.values for own in few], 1)[:, 0]
    fitted = [own.values @ np.linalg.lstsq(own.values, there, rcond=None)[0] for own in few]
    assert pair_correlations(np.stack(fitted)[:, :, None])[0, 0] > 0.5  # on the tokens themselves it looks alike


@pytest.mark.parametrize(
    ("message", "runs"),
    [
        ("two runs or more", [(60, 3)]),
        ("run 1 has 59 tokens, the first run 60", [(60, 3), (59, 3)]),
        ("four tokens for each", [(60, 3), (60, 16)]),
        ("0 axes", [(60, 3), (60, 0)]),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(message, runs):
    with pytest.raises(ValueError, match=message):
        shared_axes([scores(np.zeros(shape)) for shape in runs])
