"""What several tests of the room share: a small network whose Hessian is known, and parts like fused kernels."""

import torch
from torch import nn

from polca.core.losses import TokenLosses, flatten, unflatten


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def small_losses():
    "Two batches of 7 and 12 tokens for a network of 43 weights, in float64."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()
    batches = [{"x": torch.randn(n, 4).double(), "y": torch.randint(0, 3, (n,))} for n in (7, 12)]
    return TokenLosses(net, batches, loss=cross_entropy)


def dense_hessian(losses):
    params = losses.params

    def mean_loss(vector):
        at = unflatten(vector, params)
        return torch.cat([losses.batch(i, at) for i in range(len(losses.batches))]).mean()

    return torch.func.hessian(mean_loss)(flatten(params))


class FusedSquare(torch.autograd.Function):
    "x², with a gradient that was computed in the forward pass."

    @staticmethod
    def forward(ctx, x):
        ctx.slope = 2 * x.detach()
        return x.square()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope  # the derivative of the slope is lost


class FusedSquareTwice(FusedSquare):
    "The same, whose backward cannot be differentiated even in what comes in."

    @staticmethod
    def backward(ctx, g):
        return g.detach() * ctx.slope


class Square(nn.Module):
    "x², in plain operations or by `kernel`."

    def __init__(self, kernel=None):
        super().__init__()
        self.kernel = kernel

    def forward(self, x):
        return x.square() if self.kernel is None else self.kernel.apply(x)
