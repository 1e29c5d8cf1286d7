"""Checkpoints that are refused, or warned of, before anything long starts."""

import re
import warnings

import pytest
import torch
from torch import nn

from polca.core.checkpoints import Checkpoints
from polca.core.losses import TokenLosses
from polca.core.state_dicts import StateDicts
from polca.core.verification import verify_checkpoints


def refused(words):
    return pytest.raises(ValueError, match=re.escape(words))


@pytest.fixture
def store(tmp_path):
    "Steps 0, 10, 20 and 30, of other weights each."
    torch.manual_seed(0)
    found = Checkpoints(tmp_path / "checkpoints")
    for step in (0, 10, 20, 30):
        found.save(step, nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)))
    return found


def test_another_model_is_refused(store):
    store.save(40, nn.Linear(2, 2))
    with refused("another model"):
        verify_checkpoints(store)


def test_an_empty_file_is_refused(store):
    store.file(40).write_bytes(b"")
    with refused("damaged"):
        verify_checkpoints(store)


@pytest.mark.parametrize("steps, words", [([20, 10], "do not increase"), ([], "at least one"), ([25], "nearest are")])
def test_steps_that_are_refused(steps, words, store):
    with refused(words):
        verify_checkpoints(store, steps)


def test_a_folder_that_is_not_there_holds_no_checkpoints(tmp_path):
    with refused("holds no checkpoints"):
        verify_checkpoints(Checkpoints(tmp_path / "nowhere"))


def test_the_hash_tells_steps_apart(store):
    moved = Checkpoints(store.path.parent / "moved")
    for step in store.steps:
        moved.save(step + 1, store.load(step))
    assert verify_checkpoints(moved) != verify_checkpoints(store)


def test_a_loss_that_is_not_finite_is_named_by_its_step(store):
    at_20 = store.load(20)["0.weight"][0, 0]
    losses = TokenLosses(
        nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).eval(),
        [{"x": torch.ones(4, 3)}],
        loss=lambda m, b: m(b["x"]).sum(1) / (m[0].weight[0, 0] - at_20),
    )
    with refused("step 20"):
        verify_checkpoints(store, losses=losses)


def warned(sizes):
    "What is warned of along weights of these sizes."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        verify_checkpoints(StateDicts([{"w": torch.full((4,), size)} for size in sizes]))
    return caught


def test_a_smooth_training_is_not_warned_of():
    assert not warned([1 + 0.01 * i for i in range(6)])


def test_a_jump_of_the_norm_is_warned_of_at_the_call():
    caught = warned([(1 + 0.01 * i) * (3 if i > 3 else 1) for i in range(6)])
    assert len(caught) == 1 and "jumps" in str(caught[0].message) and "step 3" in str(caught[0].message)
    assert caught[0].filename == __file__
