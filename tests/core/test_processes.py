"""Processes that torchrun started: alone, joined several times, and beside the group of a training."""

import pytest
import torch

from polca.core.processes import from_first, gathered, joined, on_first, same_everywhere, sum_over, torchrun

SCRIPT = """
import warnings
import torch.distributed as distributed
from polca.core.processes import *

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert n_processes() == 1
assert "2 processes" in str(caught[0].message)
print("told", flush=True)

for _ in range(9):
    with joined(timeout=60):
        with joined():
            assert n_processes() == 2
        assert n_processes() == 2 == len(set(gathered(process_number())))
print("nine blocks", flush=True)

distributed.init_process_group("gloo")
with joined(timeout=60):
    assert len(gathered(0)) == 2 and n_processes() == 2
assert distributed.is_initialized()
distributed.destroy_process_group()
print("the group stays", flush=True)
"""


@pytest.fixture(scope="module")
def two():
    "What two processes with the script print, a line each for every part of it that holds, and what they complain of."
    return torchrun(2, SCRIPT)


def test_processes_that_are_not_joined_are_told(two):
    assert two.stdout.count("told") == 2, two.stderr


def test_blocks_may_follow_and_hold_each_other(two):
    assert two.stdout.count("nine blocks") == 2, two.stderr


def test_the_group_of_a_training_stays_as_it_was(two):
    assert two.stdout.count("the group stays") == 2 and two.returncode == 0, two.stderr


def test_without_torchrun_one_process_gets_what_it_gives():
    with joined():
        assert float(sum_over(torch.ones(1))) == 1
        assert from_first("x") == "x" and gathered(2) == [2] and on_first(max, 1, 2) == 2
        same_everywhere({"seed": 0})
