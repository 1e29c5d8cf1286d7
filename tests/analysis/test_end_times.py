"""When the ends of an axis fall: against the truth, tokens by tokens, and random sets."""

import numpy as np
import pytest
import xarray as xr
from sklearn.isotonic import IsotonicRegression

from polca.analysis.axes import axis_ends
from polca.analysis.end_times import end_times, largest_falls, set_times, skill_curves

STEPS = np.arange(0, 310, 10)
N = 400


def losses(at, noise=0.05, seed=0):
    "Tokens that fall by two nats, each at its step of `at`."
    rng = np.random.default_rng(seed)
    values = 0.5 + 2 / (1 + np.exp((STEPS[:, None] - at) / 5)) + noise * rng.normal(size=(len(STEPS), len(at)))
    return xr.DataArray(values, {"step": STEPS, "token": np.arange(len(at))}, ("step", "token"))


def scores_of(*axes):
    own = np.stack(axes, axis=1).astype(float)
    return xr.DataArray(own, {"token": np.arange(len(own)), "axis": np.arange(own.shape[1])}, ("token", "axis"))


def test_the_largest_fall_is_that_of_every_pair_of_checkpoints():
    curves = np.random.default_rng(1).normal(size=(5, 12))
    for width in (1, 3, 11):
        falls, begins = largest_falls(curves, width)
        for own, fall, begin in zip(curves, falls, begins):
            brute = [own[i] - own[i + width] for i in range(12 - width)]
            assert fall == pytest.approx(max(brute)) and begin == np.argmax(brute)


def test_each_end_has_the_time_of_its_tokens_and_only_a_late_one_is_hidden():
    late = np.arange(N) < 40
    middle = (np.arange(N) >= 40) & (np.arange(N) < 80)
    loss = losses(np.where(late, 250, np.where(middle, 100, 30)))
    times = end_times(loss, axis_ends(scores_of(1.0 * late - middle)), plateau=150)
    assert times["end"].tolist() == ["positive", "negative"]
    assert (times["first"] <= [250, 100]).all() and (times["last"] >= [250, 100]).all()
    assert times["beyond"].all() and times["hidden"].tolist() == [True, False]
    for row in times.itertuples():
        tokens = late if row.end == "positive" else middle
        own = loss.values[:, tokens].mean(1)
        first, last = (int(np.flatnonzero(STEPS == step)[0]) for step in (row.first, row.last))
        assert last - first == 3  # a tenth of thirty intervals
        assert row.fall == pytest.approx(own[first] - own[last], abs=0.02)  # but for the noise
        assert row.fall_of_all == pytest.approx(float(loss[first].mean() - loss[last].mean()), abs=0.02)


def test_ends_that_fall_with_all_tokens_are_not_beyond_chance():
    rng = np.random.default_rng(2)
    loss = losses(np.full(N, 100), noise=0.3)
    found = [end_times(loss, axis_ends(scores_of(rng.normal(size=N))), random_state=seed) for seed in range(40)]
    assert np.mean([times["beyond"].any() for times in found]) <= 0.15


def test_chance_counts_all_ends():
    rng = np.random.default_rng(3)
    loss = losses(np.full(N, 100), noise=0.3)
    one, many = (end_times(loss, axis_ends(scores_of(*rng.normal(size=(n, N))))) for n in (1, 8))
    assert len(many) == 16 and many["chance"][0] > one["chance"][0]


def test_the_plateau_is_that_of_the_mean_loss_unless_it_is_given():
    late = np.arange(N) < 8  # too few for the mean loss
    loss = losses(np.where(late, 250, 30), noise=0.01)
    ends = axis_ends(scores_of(1.0 * late), 0.02)
    assert end_times(loss, ends)["hidden"].tolist() == [True, False]
    assert end_times(loss, ends, plateau=300)["hidden"].tolist() == [False, False]


def test_without_axes_there_are_no_rows():
    loss = losses(np.full(N, 100))
    assert end_times(loss, axis_ends(scores_of(np.arange(N)).isel(axis=slice(0)))).empty


@pytest.mark.parametrize("width", [0, -1, 31])
def test_a_width_that_is_not_there_is_refused(width):
    with pytest.raises(ValueError, match="give 1 to 30"):
        end_times(losses(np.full(N, 100)), axis_ends(scores_of(np.arange(N))), width=width)


def test_one_checkpoint_is_refused():
    with pytest.raises(ValueError, match="one checkpoint"):
        end_times(losses(np.full(N, 100)).isel(step=[0]), axis_ends(scores_of(np.arange(N))))


def test_sets_of_any_sizes_have_the_controls_of_their_size_and_break_where_they_fall_fastest():
    at = np.where(np.arange(N) < 40, 245, np.where(np.arange(N) < 140, 95, 30))
    loss = losses(at, noise=0.01)
    sets = [np.flatnonzero(at == 245), np.flatnonzero(at == 95)]
    both = set_times(loss, sets, plateau=150)
    assert (both["break"] >= both["first"]).all() and (both["break"] < both["last"]).all()
    assert both["break"].tolist() == [240, 90]  # the intervals in which their steps are
    assert both["chance"][0] > both["chance"][1]  # small sets come farther by chance
    alone = set_times(loss, sets[:1], plateau=150, draws=400)  # as many draws of its size
    assert alone["chance"][0] == pytest.approx(both["chance"][0], rel=0.2)
    ends = end_times(loss, axis_ends(scores_of(1.0 * (at == 245) - (at == 30)), 40 / N), plateau=150)
    assert ends.iloc[0]["first"] == both.iloc[0]["first"]
    assert set_times(loss, []).empty


def falling(depth, at, noise=0.02, seed=5):
    "Losses that fall by `depth` nats (token,) around the steps `at`."
    rng = np.random.default_rng(seed)
    values = 0.2 + depth / (1 + np.exp((STEPS[:, None] - at) / 20)) + noise * rng.normal(size=(len(STEPS), len(depth)))
    return xr.DataArray(values, {"step": STEPS, "token": np.arange(len(depth))}, ("step", "token"))


def test_tokens_that_fall_farther_but_with_the_others_have_no_time_of_their_own():
    depth = np.random.default_rng(6).uniform(0.5, 4, N)
    deep = np.flatnonzero(depth > 3)
    loss = falling(depth, np.full(N, 100))
    row = set_times(loss, [deep], plateau=250).iloc[0]
    gain, _ = largest_falls((loss.values[:, deep].mean(1) - loss.values.mean(1))[None], 3)
    assert gain[0] > 10 * row["chance"]  # it gains on the mean, and by much
    assert not row["beyond"] and row["excess"] < row["chance"]
    late = np.full(N, 100)
    late[deep] = 200
    row = set_times(falling(depth, late), [deep], plateau=250).iloc[0]
    assert row["beyond"] and row["first"] <= 200 <= row["last"]


def test_the_excess_is_what_the_formula_says():
    depth = np.random.default_rng(7).uniform(0.5, 4, N)
    loss = falling(depth, np.linspace(50, 250, N))
    tokens = np.arange(0, N, 3)
    row = set_times(loss, [tokens], plateau=250).iloc[0]
    own, mean = (
        IsotonicRegression(increasing=False).fit_transform(STEPS, curve)
        for curve in (loss.values[:, tokens].mean(1), loss.values.mean(1))
    )
    scaled = (own[0] - own[-1]) / (mean[0] - mean[-1]) * mean
    brute = max(own[a] - own[a + 3] - (scaled[a] - scaled[a + 3]) for a in range(len(STEPS) - 3))
    assert row["excess"] == pytest.approx(brute)


@pytest.mark.parametrize("forgotten", [0.5, 1.2, 2.0, 3.0])
def test_what_is_forgotten_later_is_no_time_of_its_own_before(forgotten):
    rng = np.random.default_rng(9)
    loss = falling(np.full(N, 2.0), np.full(N, 60), noise=0.05)
    some = rng.permutation(N)[:40]
    worse = loss.values.copy()
    worse[:, some] += forgotten / (1 + np.exp((250 - STEPS[:, None]) / 5))
    row = set_times(loss.copy(data=worse), [some], plateau=250).iloc[0]
    assert not row["beyond"]


@pytest.mark.parametrize("again", [0.0, 1.0, 2.5, 2.9, 3.1, 3.5])
def test_a_late_skill_is_seen_however_far_the_mean_loss_rises_again(again):
    at = np.full(N, 60)
    at[:40] = 200
    loss = falling(np.full(N, 3.0), at)
    risen = loss.values.copy()
    risen[:, 40:] += again / (1 + np.exp((260 - STEPS[:, None]) / 10))
    row = set_times(loss.copy(data=risen), [np.arange(40)], plateau=250).iloc[0]
    assert row["beyond"] and row["first"] <= 200 <= row["last"] and row["excess"] < 4


def test_where_the_mean_loss_never_falls_a_set_is_held_against_the_mean_itself():
    rising = falling(np.full(N, -1.0), np.full(N, 100), noise=0.0)
    worse = set_times(rising, [np.arange(40)], plateau=250).iloc[0]
    assert worse["excess"] <= 0 and not worse["beyond"]
    values = rising.values.copy()
    values[:, :40] = 2 - np.linspace(0, 0.2, len(STEPS))[:, None]
    better = set_times(rising.copy(data=values), [np.arange(40)], plateau=250).iloc[0]
    assert better["excess"] == pytest.approx(better["fall"])  # as do the random sets that hold some of it


@pytest.mark.parametrize("seed", range(20))
def test_two_checkpoints_tell_no_time(seed):
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.5, 4, N)
    loss = falling(depth, np.full(N, 100)).isel(step=[0, -1])
    sets = [rng.permutation(N)[: rng.integers(5, 100)] for _ in range(20)] + [np.flatnonzero(depth > 3)]
    assert not set_times(loss, sets, plateau=150, draws=20)["beyond"].any()


def test_what_frequencies_give_is_no_time_of_its_own():
    depth = np.full(N, 2.0)
    at = np.full(N, 100)
    at[:40] = 30
    loss = falling(depth, at)
    tokens = np.arange(40)
    assert set_times(loss, [tokens], plateau=250).iloc[0]["beyond"]
    guess = np.full(N, 9.0)
    guess[:40] = 0.1  # all that these learn is below no guess
    assert not set_times(loss.assign_coords(frequency_loss=("token", guess)), [tokens], plateau=250).iloc[0]["beyond"]
    early = loss.values.copy()
    early[:, :40] = 1.2 + 2 / (1 + np.exp((STEPS[:, None] - 30) / 5)) - 1 / (1 + np.exp((220 - STEPS[:, None]) / 5))
    guess[:40] = 1.3
    both = loss.copy(data=early)
    assert set_times(both, [tokens], plateau=250).iloc[0]["first"] <= 30
    row = set_times(both.assign_coords(frequency_loss=("token", guess)), [tokens], plateau=250).iloc[0]
    assert row["beyond"] and row["first"] <= 220 <= row["last"]


def test_jumps_that_do_not_stay_are_no_time():
    rng = np.random.default_rng(11)
    loss = falling(np.full(N, 2.0), np.full(N, 60), noise=0.05)
    some = rng.permutation(N)[:40]
    jumping = loss.values.copy()
    jumping[20, some] += 0.4  # of like tokens together, at one checkpoint
    jumping[25, some] -= 0.4
    assert not set_times(loss.copy(data=jumping), [some], plateau=250).iloc[0]["beyond"]
    curves, _ = skill_curves(loss.copy(data=jumping), [some])
    assert (np.diff(curves[0]) <= 0).all()
