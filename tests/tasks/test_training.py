"""A training that is interrupted, damaged or mistaken for another, and the model as the losses meet it."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from polca.core.checkpoints import Checkpoints, equal_params
from polca.core.losses import TokenLosses
from polca.tasks.experiment_configs import TrainingConfig
from polca.tasks.training import Transformer, estimate_training, train

CONFIG = TrainingConfig(steps=60, lr=1e-2, warmup=10)


def repeat_loss(model, i):
    "The loss of step i: sequences of five tokens, a, b, a, b, …, drawn by the number of the step."
    first = torch.randint(5, (32, 2), generator=torch.Generator().manual_seed(i))
    ids = first.repeat(1, 4)
    return F.cross_entropy(model(ids)[:, 1:-1].flatten(0, 1), ids[:, 2:].flatten())


def start(store, task="repeat"):
    model = Transformer(5, 8, 5, 16, 1, 2)
    wanted = range(0, 61, 10)
    return train(model, repeat_loss, store, CONFIG, wanted, {"task": task}, progress=False, save_state_every=0)


class Interrupt(Checkpoints):
    "A store that is interrupted when it is to save step 40 for the first time."

    def save(self, step, model):
        if step == 40 and not self.file(step).exists():
            raise KeyboardInterrupt
        return super().save(step, model)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A training that was not interrupted: its store and its model."
    store = Checkpoints(tmp_path_factory.mktemp("whole"))
    return store, start(store)


@pytest.fixture
def interrupted(tmp_path):
    "The store of a training that stopped at step 40, and the file of its state."
    with pytest.raises(KeyboardInterrupt):
        start(Interrupt(tmp_path))
    return Checkpoints(tmp_path), tmp_path / "training-state.pt"


def test_a_complete_training_is_loaded_and_not_trained_again(whole):
    store, model = whole
    assert all(torch.equal(p, q) for p, q in zip(start(store).parameters(), model.parameters()))


def test_an_interrupted_training_goes_on_to_the_same_weights(whole, interrupted):
    store, state = interrupted
    assert store.steps == [0, 10, 20, 30] and state.exists()
    start(store)
    assert store.steps == whole[0].steps and not state.exists()
    assert equal_params(store.load(60), whole[0].load(60))


def test_a_state_that_is_cut_is_refused(interrupted):
    store, state = interrupted
    state.write_bytes(b"cut")
    with pytest.raises(ValueError, match="damaged"):
        start(store)


def test_a_damaged_state_is_refused_even_where_all_checkpoints_are_there(whole, tmp_path):
    store, _ = whole
    copy = Checkpoints(tmp_path / "copy")
    shutil.copytree(store.path, copy.path, dirs_exist_ok=True)
    (copy.path / "training-state.pt").write_bytes(b"cut")
    with pytest.raises(ValueError, match="damaged"):
        start(copy)


def test_a_bit_of_the_state_that_is_flipped_anywhere_is_noticed(whole, interrupted):
    store, state = interrupted
    good = state.read_bytes()
    for place in np.random.default_rng(0).integers(len(good), size=20):
        state.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            start(store)
    state.write_bytes(good)
    start(store)
    assert equal_params(store.load(60), whole[0].load(60))


def test_a_checkpoint_before_the_state_that_is_gone_starts_training_over(whole, interrupted):
    store, _ = interrupted
    store.file(20).unlink()
    start(store)
    assert store.steps == whole[0].steps and equal_params(store.load(20), whole[0].load(20))


def test_a_damaged_checkpoint_that_is_deleted_is_trained_again(whole, tmp_path):
    store = Checkpoints(tmp_path)
    start(store)
    store.file(20).write_bytes(b"no weights")
    with pytest.raises(ValueError, match="delete it: the same command makes it again"):
        store.load(20)
    store.file(20).unlink()
    start(store)
    assert equal_params(store.load(20), whole[0].load(20))


@pytest.mark.parametrize("contents", ["", "[1]", "{"])
def test_a_damaged_record_of_the_training_is_named(tmp_path, contents):
    (tmp_path / "training.json").write_text(contents)
    with pytest.raises(ValueError, match="training.json is damaged .*: restore it, or start over"):
        start(Checkpoints(tmp_path))


def test_a_checkpoint_that_training_again_does_not_give_is_refused(tmp_path):
    store = Checkpoints(tmp_path)
    start(store)
    store.save(30, {name: p + 1 for name, p in store.load(30).items()})
    store.file(20).unlink()
    with pytest.raises(ValueError, match="other weights at step 30"):
        start(store)


def test_checkpoints_without_a_record_of_their_training_are_of_something_else(whole, tmp_path):
    store = Checkpoints(tmp_path)
    store.save(0, whole[1])
    with pytest.raises(ValueError, match="of something else"):
        start(store)


def test_the_model_is_one_with_a_configuration_to_the_token_losses(whole):
    _, model = whole
    ids = torch.tensor([[1, 2, 1, 2]])
    losses = TokenLosses(model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}])
    by_hand = F.cross_entropy(model(ids)[0, :-1], ids[0, 1:], reduction="none").detach()
    torch.testing.assert_close(losses(losses.params), by_hand)
    assert model.get_input_embeddings().num_embeddings == 5 and model.config.max_position_embeddings == 8


def test_a_training_shorter_than_the_trial_of_its_speed_is_estimated():
    estimate = estimate_training(Transformer(5, 8, 5, 16, 1, 2), repeat_loss, replace(CONFIG, steps=3), 2)
    assert estimate.seconds > 0 and "3 steps tried" in estimate.how
