"""Moved weights against losses that are computed at weights moved by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from polca.compute.basis import as_subspace
from polca.compute.interventions import intervene, knob_effects, random_vectors, weight_vector, without_movement
from polca.core.losses import TokenLosses, flatten, unflatten


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def small(request):
    "A network and the losses of 30 inputs in two batches, and three directions."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(request.param).eval()
    batches = [{"x": torch.randn(n, 4).to(request.param), "y": torch.randint(0, 3, (n,))} for n in (10, 20)]
    losses = TokenLosses(net, batches, loss=cross_entropy)
    d = len(flatten(losses.params))
    directions = torch.linalg.qr(torch.randn(d, 3).double()).Q.T.to(request.param).contiguous()
    return losses, as_subspace(directions, losses.params)


def test_losses_are_those_of_weights_moved_by_hand_and_the_model_stays(small):
    losses, basis = small
    params = losses.params
    before = flatten(params).clone()
    vector = weight_vector(basis, [3.0, 0, 4.0])
    moved = intervene(losses, params, vector, (0.5, 1.0))
    for i, size in enumerate((0.5, 1.0)):
        for name, sign in (("ahead", 1), ("behind", -1)):
            expected = losses(unflatten(before + sign * size * vector / 5, params))
            np.testing.assert_allclose(moved[name][i], expected, rtol=1e-5)
    np.testing.assert_allclose(moved["change"], (moved["ahead"] - moved["behind"]) / 2)
    assert torch.equal(flatten(params), before)


def test_random_vectors_are_unit_vectors_of_their_seed_inside_or_outside(small):
    _, basis = small
    for inside, held in ((True, 1), (False, 0)):
        drawn = random_vectors(basis, 4, inside, seed=3)
        assert all(torch.equal(*pair) for pair in zip(drawn, random_vectors(basis, 4, inside, seed=3)))
        parts = torch.stack([basis.directions @ v for v in drawn])
        np.testing.assert_allclose(parts.norm(dim=1), held, atol=1e-5)
        np.testing.assert_allclose([float(v.norm()) for v in drawn], 1, rtol=1e-5)


def test_a_knob_beside_random_vectors(small):
    losses, basis = small
    change = intervene(losses, losses.params, weight_vector(basis, [0, 1, 0]), (0.02,))["change"].values[0]
    table = knob_effects(losses, losses.params, basis, [0, 1, 0], -change, draws=5)
    assert list(table["vector"]) == ["knob"] + ["inside"] * 5 + ["outside"] * 5
    knob = table.iloc[0]
    assert knob["agreement"] == pytest.approx(1) and knob["positive"] < knob["negative"]
    assert knob["all"] == pytest.approx(change.mean())
    with pytest.raises(ValueError, match="30 tokens"):
        knob_effects(losses, losses.params, basis, [0, 1, 0], change[:7])


def test_only_the_movement_along_the_vector_is_taken_back(small):
    losses, basis = small
    movement = np.array([[0.3, 0.1, 0.0], [0.2, -0.4, 0.5]])
    taken = without_movement(losses, losses.params, basis, [0, 2.0, 0], movement)
    assert taken.attrs["moved"] == pytest.approx(-0.3)
    expected = losses(unflatten(flatten(losses.params) + 0.3 * basis.directions[1], losses.params))
    np.testing.assert_allclose(taken["without"], expected, rtol=1e-5)


def test_a_basis_that_is_shared_out_is_refused(small):
    _, basis = small
    basis.own = range(0, 1)
    with pytest.raises(ValueError, match="load the basis whole"):
        weight_vector(basis, [1, 0, 0])
