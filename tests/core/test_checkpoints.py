"""Checkpoints in a directory: what is recorded, what is in a file, and what is refused."""

import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from polca.core.checkpoints import Checkpoints, check_step, recorded
from polca.core.losses import parameters

WEIGHTS = {"0.weight": torch.arange(6.0).reshape(2, 3), "0.bias": torch.ones(2)}
NET = nn.Sequential(nn.Linear(2, 2), nn.Tanh())


def refused(words):
    return pytest.raises(ValueError, match=re.escape(words))


@pytest.mark.parametrize(
    "wrap",
    {
        "a compiled part": lambda: nn.Sequential(torch.compile(NET[0]), NET[1]),
        "compiled": lambda: torch.compile(nn.Sequential(torch.compile(NET[0]), NET[1])),
        "a state dict": lambda: nn.Sequential(torch.compile(NET[0]), NET[1]).state_dict(),
        "the state dict of a compiled one": lambda: torch.compile(NET).state_dict(),
        "data parallel": lambda: nn.DataParallel(nn.Sequential(torch.compile(NET[0]), NET[1])),
    }.items(),
    ids=lambda case: case[0],
)
def test_what_is_recorded_has_plain_names_in_any_wrapper(wrap):
    assert list(recorded(wrap[1](), "a").params) == ["0.weight", "0.bias"]


@pytest.mark.parametrize("step", [-1, "3", 2.5])
def test_a_step_is_a_whole_number_from_0_on(step, tmp_path):
    with refused(repr(step)):
        check_step(step)
    with refused("whole number"):
        Checkpoints(tmp_path).save(step, WEIGHTS)


def test_a_step_may_be_a_number_of_any_library():
    assert check_step(torch.tensor(3)) == 3


def test_a_list_is_no_model():
    with refused("is a list"):
        recorded([1], "a")


def test_entries_that_are_no_tensors_are_named():
    with refused("no tensors, 'x'"):
        recorded({"x": 3}, "a")


@pytest.fixture
def store(tmp_path):
    return Checkpoints(tmp_path)


def headed(store, **header):
    "A file of step 10 with some header."
    save_file({"w": torch.ones(2), "v": torch.ones(1)}, store.file(10), metadata=header)
    return store


@pytest.mark.parametrize("order", ['["w"]', '["w", "gone"]', "nonsense", '{"w": 1, "v": 2}', "3", '[["w"], "v"]'])
def test_a_header_that_lists_other_weights_is_refused(order, store):
    with refused("does not list"):
        headed(store, order=order).load(10)


def test_files_without_a_hash_or_a_header_are_read(store):
    assert list(headed(store, order='["w", "v"]').load(10)) == ["w", "v"]
    assert len(headed(store).load(10)) == 2


def test_another_hash_is_refused(store):
    with refused("not those that were saved"):
        headed(store, hash="0" * 16).load(10)


def test_a_file_without_weights_is_refused(store):
    save_file({}, store.file(10))
    with refused("does not list"):
        store.load(10)


def test_a_folder_in_place_of_a_file_is_refused(store):
    store.file(7).mkdir()
    with refused("damaged"):
        store.load(7)


def test_an_empty_file_is_refused(store):
    store.file(40).write_bytes(b"")
    with refused("damaged"):
        store.load(40)


def test_what_is_damaged_names_the_remedy_of_a_run_and_of_the_checkpoints_of_others(store):
    store.file(40).write_bytes(b"no weights")
    with pytest.raises(ValueError, match="delete it: the same command makes it again.*run's own.*--skip-steps"):
        store.load(40)


def test_weights_that_are_not_finite_are_refused(store):
    save_file({n: torch.full_like(p, float("nan")) for n, p in WEIGHTS.items()}, store.file(40))
    with refused("not finite"):
        store.load(40)


def test_a_folder_that_is_not_there_holds_no_checkpoints(tmp_path):
    with refused("holds no checkpoints"):
        Checkpoints(tmp_path / "nowhere").load(0)


def test_two_names_of_one_tensor_are_refused(store):
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    with refused("two names for one tensor"):
        store.save(1, tied.state_dict())


def test_steps_of_nine_digits_and_files_of_other_names(store):
    store.save(10**9, WEIGHTS)
    store.save(99_999_999, WEIGHTS)
    (store.path / "step-000000011.safetensors").write_bytes(b"")
    store.file(7).mkdir()
    assert store.steps == [7, 99_999_999, 10**9]
    assert list(store.load(10**9)) == list(WEIGHTS)


def test_a_module_is_saved_in_the_order_of_its_parameters(store):
    store.save(0, NET)
    assert list(store.load(0)) == list(parameters(NET))
