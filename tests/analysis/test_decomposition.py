"""What decompositions refuse, and what they do where denominators vanish."""

import numpy as np
import pytest
import torch
from torch import nn

from polca.analysis.decomposition import allocate, check_paper_curvature, explained, trajectories
from polca.compute.basis import as_subspace
from polca.compute.projection import project
from polca.core.checkpoints import Checkpoints
from polca.core.losses import TokenLosses


class Quadratic(nn.Module):
    "The loss ½ c θ² of one weight."

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))

    def forward(self, c):
        return 0.5 * c * self.theta**2


def project_weight(folder, slopes, thetas):
    data = {"c": torch.tensor(slopes, dtype=torch.float64)}
    losses = TokenLosses(Quadratic().eval(), [data], loss=lambda m, b: m(b["c"]))
    store = Checkpoints(folder)
    for step, theta in enumerate(thetas):
        store.save(step, {"theta": torch.tensor([theta], dtype=torch.float64)})
    axis = as_subspace(torch.ones(1, 1).double(), losses.params)
    return project(store, axis, losses, curvature=losses, progress=False)


@pytest.fixture(scope="module")
def projection(tmp_path_factory):
    return project_weight(tmp_path_factory.mktemp("weight"), [0.5, 1.0, 4.0], (2.0, 1.5, 1.6, 1.2))


def test_unknown_rule_is_refused(projection):
    with pytest.raises(ValueError, match="use one of"):
        allocate(projection, "second")


@pytest.mark.parametrize(
    "rule, variable, how",
    [
        ("paper", "curvature", "curvature=losses"),
        ("curvature", "token_curvature", "curvature='token'"),
        ("path", "path_gradient", "tol=1e-3 or nodes=7"),
    ],
)
def test_rule_says_what_the_projection_lacks(projection, rule, variable, how):
    without = projection.drop_vars("curvature")
    with pytest.raises(ValueError) as refused:
        allocate(without, rule)
    assert str(refused.value) == (
        f"rule={rule!r} needs `{variable}`, which this projection lacks: project again with project(..., {how}), "
        "or use rule='trapezoid', which needs nothing more"
    )


@pytest.mark.parametrize("dim", ["direction", "token", "interval"])
def test_account_of_a_part_is_refused(projection, dim):
    part = allocate(projection, "first").isel({dim: slice(1, None)})
    with pytest.raises(ValueError, match=f"differ in their {dim}s: give allocate"):
        explained(projection, part)


def test_unknown_trajectory_is_refused(projection):
    with pytest.raises(ValueError, match="use one of"):
        trajectories(projection, "lda")


def test_loss_change_allocation_needs_axes_of_weights(projection):
    with pytest.raises(ValueError, match="weight_axes"):
        trajectories(projection, "lca")


def test_estimate_is_checked_against_exact_curvature_only(projection):
    with pytest.raises(ValueError, match="curvature='token'"):
        check_paper_curvature(projection)


def test_no_denominator_vanishes_where_the_mean_gradient_changes(projection):
    assert allocate(projection, "paper").attrs["vanished"] == 0


def test_vanished_denominators_are_counted_and_harmless(tmp_path):
    "The mean gradient does not change while the tokens' gradients do."
    opposed = project_weight(tmp_path, [1.0, -1.0], (2.0, 1.5, 1.6, 1.2))
    allocation = allocate(opposed, "paper")
    assert allocation.attrs["vanished"] == 3
    assert np.isfinite(allocation).all()
