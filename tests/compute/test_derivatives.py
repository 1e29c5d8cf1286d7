"""Models that cannot be differentiated twice are refused, by the name of the part at fault."""

from functools import partial

import pytest
import torch
from compute_examples import FusedSquare, Square
from torch import nn

from polca.compute.derivatives import central_difference, check_products, culprit, gradient_at, has_kinks
from polca.core.losses import TokenLosses, flatten, unflatten


class FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets):
        ctx.slope = logits.softmax(-1) - nn.functional.one_hot(targets, logits.shape[-1])
        return nn.functional.cross_entropy(logits, targets, reduction="none")

    @staticmethod
    def backward(ctx, g):
        return g[:, None] * ctx.slope, None


class FusedScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[1], (g * ctx.saved_tensors[0]).sum((0, 1))


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(1, 2, 8))

    def forward(self, x):
        return FusedScale.apply(x, self.weight)


class Net(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.embedding = nn.Embedding(6, 8)
        self.up = nn.Linear(8, 8)
        self.activation = activation
        self.head = nn.Linear(8, 6)

    def forward(self, input_ids):
        return self.head(self.activation(self.up(self.embedding(input_ids))))


class Within(Net):
    "The fused square in the forward of the whole, which gets ids, beside a kink."

    def forward(self, input_ids):
        return self.head(FusedSquare.apply(self.up(self.embedding(input_ids).relu())))


def fused_loss(model, batch):
    return FusedLoss.apply(model(batch["input_ids"])[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def net_losses(activation, loss=None, kind=Net):
    torch.manual_seed(0)
    ids = torch.randint(6, (2, 8), generator=torch.Generator().manual_seed(0))
    return TokenLosses(kind(activation).eval(), [{"input_ids": ids, "labels": ids}], loss)


def products(losses, params):
    "Products with the Hessian by torch, and by differences."
    leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
    slopes = torch.autograd.grad(losses.batch(0, leaves).mean(), tuple(leaves.values()), create_graph=True)
    slopes = [s if s.requires_grad else s + 0 * p for s, p in zip(slopes, leaves.values())]

    def matvec(v):
        tangents = tuple(unflatten(v, params).values())
        out = torch.autograd.grad(slopes, tuple(leaves.values()), tangents, retain_graph=True, materialize_grads=True)
        return flatten(dict(zip(leaves, out)))

    def difference(v, scale=None):
        return central_difference(partial(gradient_at, losses, params), flatten(params), v, scale)

    return matvec, difference


def check(losses):
    params = losses.params
    wide = {n: p.double() for n, p in params.items()}
    check_products(*products(losses, params), losses, params, "Hessian", partial(products, losses, wide))


@pytest.mark.parametrize("activation", [nn.GELU(), Square(), nn.ReLU(), nn.Tanh()], ids=repr)
def test_plain_operations_pass(activation):
    check(net_losses(activation))


REFUSED = {
    "activation (Square)": (Square(FusedSquare),),
    "the loss": (nn.GELU(), fused_loss),
    "activation (Scale)": (Scale(),),
    "some operation of this model": (nn.ReLU(), None, Within),
    "activation.1 (Square)": (nn.Sequential(nn.ReLU(), Square(FusedSquare)),),
}


@pytest.mark.parametrize("at_fault", REFUSED)
def test_what_loses_its_second_derivative_is_named(at_fault):
    with pytest.raises(ValueError) as error:
        check(net_losses(*REFUSED[at_fault]))
    assert at_fault in str(error.value)


def test_kinks_are_seen():
    relu = net_losses(nn.ReLU())
    gelu = net_losses(nn.GELU())
    assert has_kinks(relu, relu.params) and not has_kinks(gelu, gelu.params)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU()], ids=repr)
def test_nothing_is_at_fault_where_nothing_is_wrong(activation):
    losses = net_losses(activation)
    assert culprit(losses, losses.params) is None


def test_a_function_that_bends_within_the_longer_steps_is_differentiated_by_the_shorter_ones():
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    found, error = central_difference(lambda y: torch.sin(3000 * y), x, torch.tensor([1.0, 0.0]).double(), scale=1.0)
    assert (found - torch.stack([3000 * torch.cos(3000 * x[0]), torch.zeros(()).double()])).norm() < 5 * error
    assert error < 0.01 * found.norm()
