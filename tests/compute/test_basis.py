"""Orthonormal directions: what `as_subspace` and `check_basis` refuse."""

import pandas as pd
import pytest
import torch
from torch import nn

from polca.compute.basis import as_subspace, check_basis
from polca.core.losses import parameters

PARAMS = parameters(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
Q = torch.linalg.qr(torch.randn(43, 6, generator=torch.Generator().manual_seed(0))).Q.T.contiguous()


@pytest.mark.parametrize(
    "directions, message",
    [
        (Q * 1.1, "not orthonormal"),
        (Q[:, 1:], "one direction of 43"),
        (Q.numpy(), "floating-point torch tensor"),
        (Q * float("nan"), "not finite"),
    ],
)
def test_directions_that_are_no_basis_are_refused(directions, message):
    with pytest.raises(ValueError, match=message):
        as_subspace(directions, PARAMS)


def test_a_basis_has_a_direction_at_least():
    with pytest.raises(ValueError, match="give 1 to 43"):
        check_basis(Q[:0], 43)


def test_the_table_has_a_row_per_direction():
    with pytest.raises(ValueError, match="3 rows for 6"):
        as_subspace(Q, PARAMS, pd.DataFrame({"source_step": [1, 2, 3]}))
