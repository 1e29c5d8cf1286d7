"""Curvature of tokens along directions."""

import pytest
import torch
from compute_examples import small_losses
from torch import nn

from polca.compute.along import token_curvature
from polca.core.losses import TokenLosses, n_parameters


class Fooled(torch.autograd.Function):
    "A function whose forward derivative forgets that it depends on the input."

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx, dx):
        return dx * ctx.saved_tensors[0].cos().detach()


class Wrong(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        return self.out(Fooled.apply(self.inner(x)))


def test_a_wrong_second_forward_derivative_is_noticed():
    small = small_losses()
    wrong = TokenLosses(Wrong().double().eval(), small.batches, loss=small.loss)
    direction = nn.functional.normalize(torch.randn(1, n_parameters(wrong.params)).double())
    with pytest.raises(ValueError, match="wrong second forward derivative"):
        token_curvature(wrong, wrong.params, direction)
