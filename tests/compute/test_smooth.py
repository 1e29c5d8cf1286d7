"""Activations and LayerNorms with their derivatives written out, and their tangents, against torch's own."""

import pytest
import torch
from torch import nn

from polca.compute.smooth import Tangent, TwiceDifferentiable


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 5)
        self.act = nn.GELU("tanh")
        self.norm = nn.LayerNorm(5)
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.norm(self.act(self.norm(self.inner(x)))))  # the same norm twice


@pytest.fixture
def normed():
    torch.manual_seed(0)
    model = Normed().double()
    nn.init.normal_(model.norm.weight)
    nn.init.normal_(model.norm.bias)
    return model


@pytest.fixture
def x():
    return torch.randn(7, 6, 4, generator=torch.Generator().manual_seed(1)).double()


def derivatives(normed, x, block):
    "The value, the gradient and a product with the Hessian, of a graph that is built in `block`."
    leaves = tuple(normed.parameters())
    with block:
        value = normed(x).sin().sum()
    grads = torch.autograd.grad(value, leaves, create_graph=True)
    return value, grads, torch.autograd.grad(grads, leaves, [g.detach().sin() for g in grads])


def assert_same_derivatives(normed, x):
    value, grads, products = derivatives(normed, x, TwiceDifferentiable(normed))
    value_0, grads_0, products_0 = derivatives(normed, x, TwiceDifferentiable(nn.Identity()))
    torch.testing.assert_close(value, value_0, rtol=1e-12, atol=0)
    for ours, torchs in zip((*grads, *products), (*grads_0, *products_0)):
        torch.testing.assert_close(ours, torchs, rtol=1e-9, atol=1e-12)


def test_values_gradients_and_hessian_products_are_those_of_torch(normed, x):
    assert_same_derivatives(normed, x)


@pytest.mark.parametrize("changed", ["act", "norm"])
def test_what_the_user_has_changed_is_left_alone(normed, x, changed):
    getattr(normed, changed).register_forward_hook(lambda module, args, out: out * 2)
    assert_same_derivatives(normed, x)


def test_the_model_is_itself_again_after_the_block(normed):
    with TwiceDifferentiable(normed), Tangent(normed):
        assert normed.act._forward_hooks and normed.norm._forward_hooks
    assert not any(module._forward_hooks for module in normed.modules())


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_tangent_of_a_layer_norm_has_its_output_and_gradient(dtype, affine):
    torch.manual_seed(0)
    norm = nn.LayerNorm((3, 4), elementwise_affine=affine).to(dtype)
    x = torch.randn(5, 3, 4).to(dtype).requires_grad_()
    leaves = (x, *norm.parameters())
    expected = norm(x)
    slopes = torch.autograd.grad(expected.sin().sum(), leaves)
    with Tangent(norm):
        out = norm(x)
    close = {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(out, expected, **close)
    for ours, torchs in zip(torch.autograd.grad(out.sin().sum(), leaves), slopes):
        torch.testing.assert_close(ours, torchs, **close)
