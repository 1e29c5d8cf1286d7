"""The forward engine where what was found at one checkpoint does not hold at the next, or after a plan is made."""

import pytest
import torch
from torch import nn
from torch.func import jacrev

from polca.compute.engines import Projector
from polca.core.losses import TokenLosses, flatten, n_parameters, next_token_loss, unflatten


class Small(nn.Module):
    "Token by token, with a buffer that its output is multiplied by."

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7)
        self.register_buffer("scale", torch.tensor(1.0))

    def forward(self, input_ids):
        return self.head(self.embed(input_ids).tanh()) * self.scale


def in_order(model, batch):
    return next_token_loss(model, batch).sort().values


def hinged(model, batch):
    losses = next_token_loss(model, batch)
    return losses + 0.5 * torch.relu(losses.roll(1) - 4)


def small_losses(loss=None, texts=3):
    torch.manual_seed(0)
    ids = torch.randint(0, 7, (texts, 6))
    return TokenLosses(Small().eval(), [{"input_ids": ids, "labels": ids}], loss)


def directions(losses):
    rows = torch.randn(3, n_parameters(losses.params), generator=torch.Generator().manual_seed(1))
    return rows / rows.norm(dim=1, keepdim=True)


def by_jacobian(losses, params, rows):
    return jacrev(lambda theta: losses.batch(0, unflatten(theta, params)))(flatten(params)) @ rows.T


@pytest.mark.parametrize("loss", [in_order, hinged], ids=lambda loss: loss.__name__)
def test_tokens_that_change_their_rows_between_checkpoints(loss):
    losses = small_losses(loss)
    rows = directions(losses)
    projector = Projector(losses, losses.params, rows, "forward")
    for factor in (1, 1, 9):  # the third call is not held against the check sum
        params = {name: factor * p for name, p in losses.params.items()}
        torch.testing.assert_close(projector(params)[1], by_jacobian(losses, params, rows), rtol=1e-4, atol=1e-6)


def replaced_buffer(model):
    model.scale = torch.tensor(2.0)


def written_buffer(model):
    model.scale.fill_(2.0)


def written_data(model):
    for p in model.parameters():
        p.data.mul_(1.5)


@pytest.mark.parametrize("change", [replaced_buffer, written_buffer, written_data], ids=lambda change: change.__name__)
def test_a_graph_that_was_held_is_not_taken_after_a_change(change):
    losses = small_losses(texts=1)
    params = losses.params
    rows = directions(losses)
    projector = Projector(losses, params, rows, "forward")
    change(losses.model)
    loss, P = projector(params)
    torch.testing.assert_close(loss, losses(params))
    torch.testing.assert_close(P, by_jacobian(losses, params, rows), rtol=1e-4, atol=1e-6)
