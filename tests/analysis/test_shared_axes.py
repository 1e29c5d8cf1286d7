"""What runs have in common: against canonical correlations, mixtures of the same axes, texts, and permuted tokens."""

import numpy as np
import pytest
import xarray as xr

from polca.analysis.axes import axis_scores, axis_values
from polca.analysis.shared_axes import carried_over, common_scores, pair_correlations, shared_axes

N = 600
STEPS = 4
DIRECTIONS = 5


def projected(own, seed, noise=0.1):
    "A run whose tokens have gradients of `own` (token, skill), each skill by a pattern over steps and directions."
    rng = np.random.default_rng(seed)
    patterns = rng.normal(size=(own.shape[1], STEPS, DIRECTIONS))
    gradient = np.einsum("tk,ksd->std", own, patterns) + noise * rng.normal(size=(STEPS, len(own), DIRECTIONS))
    token = np.arange(len(own))
    coords = {"step": range(STEPS), "token": token, "example": ("token", token // 5), "position": ("token", token % 5)}
    return xr.Dataset({"gradient": (("step", "token", "direction"), gradient)}, coords)


@pytest.fixture(scope="module")
def parts():
    "Two skills that all of three runs have, the second less clearly, and one more of each run."
    rng = np.random.default_rng(3)
    skills = rng.normal(size=(N, 2))
    alike = np.array([0.1, 0.5])
    runs = []
    for seed in range(3):
        own = np.column_stack([skills + alike * rng.normal(size=(N, 2)), rng.normal(size=N)])
        runs.append(projected(own, seed))
    return skills, runs


def test_of_two_runs_the_common_axes_are_those_of_canonical_correlations():
    rng = np.random.default_rng(3)
    skills = rng.normal(size=(N, 3))
    noise = np.array([0.1, 0.3, 0.5])
    one, other = (np.column_stack([skills + noise * rng.normal(size=(N, 3)), rng.normal(size=N)]) for _ in range(2))
    bases = [np.linalg.qr(own - own.mean(0))[0] for own in (one, other)]
    left, r, right = np.linalg.svd(bases[0].T @ bases[1])
    common = common_scores([one, other], 3)
    for k in range(3):
        middle = bases[0] @ left[:, k] + bases[1] @ right[k]
        assert abs(np.corrcoef(common[:, k], middle)[0, 1]) == pytest.approx(1, abs=1e-6)
    assert (np.diff(r) < 0).all()


def test_any_mixture_of_a_runs_axes_has_the_same_in_common():
    rng = np.random.default_rng(4)
    runs = [rng.normal(size=(N, 4)) for _ in range(3)]
    runs = [own + rng.normal(size=(N, 1)) for own in runs]
    plain = common_scores(runs, 4)
    mixed = common_scores([own @ rng.normal(size=(4, 4)) + 7 for own in runs], 4)
    np.testing.assert_allclose(abs(mixed.T @ plain), np.eye(4), atol=1e-6)


def test_what_is_in_every_run_comes_back_and_what_is_in_one_does_not(parts):
    shared = shared_axes(parts[1], n=3, n_axes=3)
    assert shared.back(0.6) == 2
    least = shared.table["least"]
    assert least[0] > 0.85 > least[1] and least[2] < 0.2 and shared.table["chance"].max() < 0.25
    assert (shared.table["lowest"] <= least).all() and (shared.table["mean"] >= least).all()
    assert (shared.table["same"][:2] > 0.9).all()
    for k in range(2):  # in the order of how alike they are
        r = [abs(np.corrcoef(shared.scores[:, k], skill)[0, 1]) for skill in parts[0].T]
        assert np.argmax(r) == k and max(r) > 0.8
    np.testing.assert_allclose(shared.scores.std("token"), 1, atol=0.02)


def test_a_half_has_its_axes_from_its_own_tokens_alone(parts):
    "Whatever the other tokens are, what is found and the weights it is carried over with stay as they are."
    found = np.arange(N) < N // 2
    values = [axis_values(own).values for own in parts[1]]
    changed = [own.copy() for own in values]
    for own in changed:
        own[:, -1] *= 100 * np.random.default_rng(0).normal(size=own[:, -1].shape)
    made = []
    for each in (values, changed):
        scores = [axis_scores(own[:, found], own, 3) for own in each]
        made.append(carried_over(scores, found, common_scores([own[found] for own in scores], 3)))
    np.testing.assert_array_equal(made[0][:, :-1], made[1][:, :-1])
    assert not np.allclose(made[0][:, -1], made[1][:, -1])


def test_r_is_of_tokens_that_had_no_part_in_finding_the_axes():
    rng = np.random.default_rng(5)
    few = [rng.normal(size=(60, 12)) for _ in range(2)]
    there = common_scores(few, 1)
    fitted = np.stack([own @ np.linalg.lstsq(own, there, rcond=None)[0] for own in few])
    assert pair_correlations(fitted)[0, 0] > 0.5  # on the tokens themselves it looks alike
    runs = [projected(rng.normal(size=(60, 12)), seed, noise=0.0) for seed in range(2)]
    assert shared_axes(runs, n=7, n_axes=7, by=None).table["least"].max() < 0.4


def test_texts_with_gradients_of_their_own_share_axes_by_token_alone():
    rng = np.random.default_rng(6)
    text = np.arange(N) // 30  # 20 texts, and 20 numbers for each token
    runs = [projected(rng.normal(size=(20, 20))[text], seed).assign_coords(example=("token", text)) for seed in (0, 1)]
    assert shared_axes(runs, 4, 19, by=None).table["least"].min() > 0.7
    assert shared_axes(runs, 4, 19).table["least"].max() < 0.5


def test_the_axes_of_a_window_are_of_its_steps_alone(parts):
    runs = [own.copy(deep=True) for own in parts[1]]
    for own in runs:
        own["gradient"][2:] = np.random.default_rng(0).normal(size=own["gradient"][2:].shape)
    whole = shared_axes(parts[1], 2, 3, window=(0, 1))
    np.testing.assert_array_equal(shared_axes(runs, 2, 3, window=(0, 1)).table, whole.table)


def runs_of(*sizes):
    return [projected(np.ones((size, 2)), 0) for size in sizes]


@pytest.mark.parametrize(
    ("message", "runs", "how"),
    [
        ("two runs or more", runs_of(60), {}),
        ("run 1 has 59 tokens, the first run 60", runs_of(60, 59), {}),
        (
            "run 1 is of other tokens than the first run, by their position",
            [runs_of(60)[0], runs_of(60)[0].assign_coords(position=("token", np.zeros(60, int)))],
            {},
        ),
        ("eight tokens for each", runs_of(60, 60), {"n_axes": 8}),
        ("21 axes of 20 numbers for each token of run 0", runs_of(300, 300), {"n_axes": 21}),
        ("n=0", runs_of(60, 60), {"n": 0}),
        ("n_axes=0", runs_of(60, 60), {"n_axes": 0}),
        ("draws=0", runs_of(60, 60), {"draws": 0}),
        ("splits=-1", runs_of(60, 60), {"splits": -1}),
        (
            "by='text': the tokens have no such column; give one of token, example, position",
            runs_of(60, 60),
            {"by": "text"},
        ),
        (
            "all tokens have the same",
            [own.assign_coords(example=("token", np.zeros(60))) for own in runs_of(60, 60)],
            {},
        ),
        ("the window from step 2 to 9", runs_of(60, 60), {"window": (2, 9)}),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(message, runs, how):
    with pytest.raises(ValueError, match=message):
        shared_axes(runs, **{"n_axes": 3} | how)


@pytest.mark.parametrize("n", [2, 3])
def test_a_skill_that_lives_in_one_unit_is_refused_with_the_remedy(n):
    own = np.zeros((N, 2))
    own[:, 0] = np.random.default_rng(5).normal(size=N)
    own[:5, 1] = 1
    runs = [projected(own, seed, noise=0) for seed in range(2)]
    with pytest.raises(ValueError, match=f"axes in all, not {n}: keep smaller units together"):
        shared_axes(runs, n=n, n_axes=3, splits=2, draws=1)
