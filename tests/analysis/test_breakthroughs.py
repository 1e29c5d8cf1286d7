"""Breaks that are at the edges, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest

from polca.analysis.breakthroughs import break_range, break_steps, breakthroughs

STEPS = np.arange(0, 1001, 20)
RAMP = np.interp(STEPS, [0, 400, 600, 1000], [1, 1, 0, 0])[None]


@pytest.fixture(scope="module")
def made(curves_of, clusters_of):
    "Thirty tokens that drop together late, thirty that drop together early, thirty that wander."
    rng = np.random.default_rng(0)

    def drop(at):
        fall = np.interp(STEPS, [0, at - 60, at, 1000], [1, 1, 0, 0])
        return fall[:, None] + 0.01 * rng.normal(size=(len(STEPS), 30))

    late = drop(800)
    early = drop(200)
    wander = 0.1 * rng.normal(size=(len(STEPS), 30)).cumsum(0)
    curves = curves_of(np.concatenate([late, early, wander], axis=1)[:, :, None], STEPS)
    return SimpleNamespace(curves=curves, clusters=clusters_of(np.repeat([0, 1, 2], 30)), rng=rng)


def test_downward_bend_is_the_start_of_the_drop(made):
    start = breakthroughs(made.curves, made.clusters, window=100, plateau=600, bend="down")
    assert 700 <= start.break_step[0] <= 740


def test_few_tokens_break_at_the_first_step_where_they_need_not(made):
    assert breakthroughs(made.curves, made.clusters, window=100, plateau=600).at_first.max() < 0.5


def test_too_early_breaks_are_booked_on_the_first_step_that_can_be_one(made):
    sudden = np.interp(STEPS, [0, 40, 1000], [1, 0, 0])[:, None, None]
    noisy = sudden + 0.01 * made.rng.normal(size=(len(STEPS), 90, 1))
    too_early = breakthroughs(made.curves.copy(data=noisy), made.clusters, window=100, plateau=600)
    assert (too_early.at_first > 0.9).all()
    assert (too_early["median"] == 100).all()
    assert (too_early.at_last == 0).all()


def test_without_clusters_there_is_no_row(made, without_clusters):
    assert len(breakthroughs(made.curves, without_clusters(made.clusters), 100, 600)) == 0


@pytest.mark.parametrize("window", [600, 0])
def test_window_that_does_not_fit_twice_is_refused(window):
    with pytest.raises(ValueError, match="does not fit twice"):
        break_steps(RAMP, STEPS, window)


def test_window_that_fits_around_no_checkpoint_is_refused():
    with pytest.raises(ValueError, match="before and after any checkpoint"):
        break_range([0, 10, 100], 30)


def test_unknown_bend_is_refused():
    with pytest.raises(ValueError, match="use 'up'"):
        break_steps(RAMP, STEPS, 100, bend="left")
