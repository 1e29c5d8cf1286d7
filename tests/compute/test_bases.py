"""The other bases: what they refuse."""

import numpy as np
import pytest
from torch import nn
from trained import Trained

from polca.compute.bases import (
    gradient_subspace,
    held_movement,
    jacobian_subspace,
    overlap,
    random_subspace,
    rotate,
    trajectory_subspace,
)
from polca.compute.basis import Subspace
from polca.core.losses import parameters


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return Trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def four(trained):
    return random_subspace(trained.losses.params, 4)


@pytest.mark.parametrize("K", [0, 44])
def test_there_are_as_many_random_directions_as_weights_at_most(trained, K):
    with pytest.raises(ValueError, match="ask for 1 to 43"):
        random_subspace(trained.losses.params, K)


@pytest.mark.parametrize(
    "message, arguments, how",
    [
        ("use 'displacements'", (2, "positions"), {}),
        ("7 vectors", (2,), {"memory": "512B"}),
        ("a movement takes two", (2,), {"steps": [0]}),
        ("ask for 1 to 10", (11,), {}),
        ("no checkpoint of step 5", (1,), {"steps": [0, 5]}),
    ],
)
def test_a_trajectory_basis_that_cannot_be_is_refused(trained, message, arguments, how):
    with pytest.raises(ValueError, match=message):
        trajectory_subspace(trained.store, *arguments, **how)


def test_gradients_are_of_one_step_at_least(trained):
    with pytest.raises(ValueError, match="there are no steps"):
        gradient_subspace(trained.store, trained.losses, [])
    with pytest.raises(ValueError, match="there are no steps"):
        jacobian_subspace(trained.store, trained.losses, [], 2)


def test_singular_vectors_are_one_at_least(trained):
    with pytest.raises(ValueError, match="ask for 1 to 43"):
        jacobian_subspace(trained.store, trained.losses, [0], 0)


@pytest.mark.parametrize(
    "message, columns, criterion",
    [("3 columns for 4", 3, "varimax"), ("use one of", 4, "promax"), ("not all finite", 4, "varimax")],
)
def test_a_rotation_that_cannot_be_is_refused(four, message, columns, criterion):
    P = np.ones((5, 10, columns)) * (np.nan if "finite" in message else 1)
    with pytest.raises(ValueError, match=message):
        rotate(four, P, criterion)


def test_a_movement_takes_two_steps(trained, four):
    with pytest.raises(ValueError, match="a movement takes two"):
        held_movement(four, trained.store, [0])


def test_bases_of_another_model_are_refused(trained, four):
    other = Subspace(four.directions, four.table, {"weight": (43,)})
    with pytest.raises(ValueError, match="another model"):
        held_movement(other, trained.store)
    with pytest.raises(ValueError, match="different models"):
        overlap(four, random_subspace(parameters(nn.Linear(3, 3)), 2))
