"""Models that compute with something besides their weights are told apart from those that do not."""

import re
from functools import cached_property

import pytest
import torch
from torch import nn

from polca.core.losses import TokenLosses, buffers, parameters
from polca.core.reference import check_reference, loaded_copy

IDS = torch.randint(6, (3, 5), generator=torch.Generator().manual_seed(0))
BATCHES = [{"input_ids": IDS, "labels": IDS}]


def refused(words):
    return pytest.raises(ValueError, match=re.escape(words))


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(6, 4)


class Cached(Embedded):
    @cached_property
    def square(self):
        return (self.embedding.weight @ self.embedding.weight.T).detach()

    def forward(self, input_ids):
        return self.square[input_ids]


class Merged(Embedded):
    "Derives in eval mode, and drops it in training mode, as adapters do."

    def train(self, mode=True):
        self.shared = {} if mode else {"merged": self.embedding.weight.detach() * 2}
        return super().train(mode)

    def forward(self, input_ids):
        return self.embedding(input_ids) @ self.shared["merged"].T


class InDict(Embedded):
    def __init__(self):
        super().__init__()
        self.cache = {}

    def forward(self, input_ids):
        if "square" not in self.cache:
            self.cache["square"] = (self.embedding.weight @ self.embedding.weight.T).detach()
        return self.cache["square"][input_ids]


class InBuffer(Embedded):
    def __init__(self):
        super().__init__()
        self.register_buffer("square", None, persistent=False)

    def forward(self, input_ids):
        if self.square is None:
            self.square = (self.embedding.weight @ self.embedding.weight.T).detach()
        return self.square[input_ids]


@pytest.mark.parametrize("kind", [Cached, Merged, InDict, InBuffer])
def test_what_is_derived_and_kept_is_refused(kind):
    losses = TokenLosses(kind().eval(), BATCHES)
    noise = torch.Generator().manual_seed(1)
    later = {n: p + 0.3 * torch.randn(p.shape, generator=noise) for n, p in losses.params.items()}
    with refused("neither weights nor buffers"):
        check_reference(losses, later, loaded_copy(losses, later), "the checkpoint of step 10")


class Graph(Embedded):
    "Keeps a tensor with a graph, which cannot be copied."

    def forward(self, input_ids):
        self.kept = self.embedding.weight * 2
        return self.embedding(input_ids) @ self.embedding.weight.T


def test_a_model_that_cannot_be_copied_is_named_with_what_it_keeps():
    model = Graph().eval()
    losses = TokenLosses(model, BATCHES)
    model(IDS)
    with refused("cannot be copied") as caught:
        loaded_copy(losses, losses.params)
    assert "(kept)" in str(caught.value)


@pytest.fixture(scope="module")
def normed():
    "Losses of a model with buffers, and other buffers."
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 4), nn.BatchNorm1d(5), nn.Linear(4, 6)).eval()
    batches = [{"x": IDS, "y": torch.zeros(3, 5, 6)}]
    losses = TokenLosses(model, batches, loss=lambda m, b: (m(b["x"]) - b["y"]).square().mean((1, 2)))
    return losses, {n: b + 1 for n, b in buffers(model).items()}


def test_losses_at_the_buffers_of_the_checkpoint_agree(normed):
    losses, later = normed
    check_reference(losses.at_buffers(later), losses.params, loaded_copy(losses, losses.params, later), "it")


def test_losses_at_other_buffers_are_refused(normed):
    losses, later = normed
    with refused("something besides its weights"):
        check_reference(losses, losses.params, loaded_copy(losses, losses.params, later), "it")


def test_a_copy_has_weights_of_its_own(normed):
    losses, _ = normed
    assert parameters(loaded_copy(losses, losses.params))["0.weight"] is not losses.params["0.weight"]
