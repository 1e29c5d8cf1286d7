"""Names and ties of weights, losses as a function of them, and what is refused."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from polca.core.losses import TokenLosses, buffers, n_parameters, parameters, plain_names, unflatten

IDS = torch.tensor([[1, 2, 3, 0], [3, 1, 2, 2]])
LABELS = IDS.masked_fill(torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]]).bool(), -100)
BATCH = {"input_ids": IDS, "labels": LABELS}


class Tied(nn.Module):
    "Three layers, one matrix: the second is the same parameter, the third shares the first one's memory."

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(3, 3, bias=False) for _ in range(3))
        self.b.weight = self.a.weight
        self.c.weight.data = self.a.weight.data

    def forward(self, x):
        return self.c(self.b(self.a(x)))


class Bigram(nn.Module):
    "The logits of the next token: the row of `table` that is the token's."

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 4)

    def forward(self, input_ids):
        return self.table(input_ids)


class Normed(Bigram):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, input_ids):
        return self.norm(self.table(input_ids).mT).mT


class AlwaysDropout(Bigram):
    def forward(self, input_ids):
        return nn.functional.dropout(super().forward(input_ids), 0.5, training=True)


@pytest.fixture(scope="module")
def bigram():
    return Bigram().eval()


def test_a_name_is_without_what_wrappers_put_into_it():
    model = nn.DataParallel(nn.Sequential(nn.Linear(2, 2), torch.compile(nn.Linear(2, 1))))
    assert list(parameters(model)) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_module_is_a_wrapper_only_where_every_name_begins_with_it():
    assert plain_names(["module.a", "b"]) == {"module.a": "module.a", "b": "b"}


def test_no_names_have_no_plain_ones():
    assert plain_names([]) == {}


def test_buffers_have_plain_names_too():
    norm = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert list(buffers(nn.DataParallel(norm))) == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]


def test_a_tied_weight_is_there_once():
    params = parameters(Tied())
    assert list(params) == ["a.weight"] and n_parameters(params) == 9


def test_a_tied_weight_is_set_in_all_its_places():
    losses = TokenLosses(Tied().eval(), [{"x": torch.eye(3)}], loss=lambda model, batch: model(batch["x"]).sum(1))
    matrix = torch.randn(3, 3)
    cube = torch.linalg.matrix_power(matrix.T, 3)
    torch.testing.assert_close(losses({"a.weight": matrix}), cube.sum(1))


def test_weights_that_share_a_part_of_their_memory_are_refused():
    model = Tied()
    model.c.weight.data = model.a.weight.data.view(-1)[:6].view(2, 3)
    with pytest.raises(ValueError, match="share a part of their memory"):
        parameters(model)


def test_weights_side_by_side_in_one_block_of_memory_are_two():
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 3, bias=False))
    for p, part in zip(model.parameters(), torch.zeros(12).split(6)):
        p.data = part.view(p.shape)
    assert len(parameters(model)) == 2


def test_a_vector_of_another_length_fits_no_model():
    with pytest.raises(ValueError, match="another model"):
        unflatten(torch.zeros(3), parameters(nn.Linear(3, 2)))


def test_other_parameters_give_other_losses_and_the_model_keeps_its_own(bigram):
    before = bigram.table.weight.clone()
    uniform = TokenLosses(bigram, [BATCH])({"table.weight": torch.zeros(4, 4)})
    torch.testing.assert_close(uniform, torch.full((5,), float(np.log(4))))
    assert torch.equal(before, bigram.table.weight)


def test_weights_that_the_model_does_not_have_are_refused(bigram):
    with pytest.raises(ValueError, match="no weight of this model"):
        TokenLosses(bigram, [BATCH])({"tabel.weight": torch.zeros(4, 4)})


@pytest.mark.parametrize(
    "name, size, words",
    [("norm.running_men", 4, "no buffer of this model"), ("norm.running_mean", 5, "another model")],
)
def test_buffers_of_another_model_are_refused(name, size, words):
    with pytest.raises(ValueError, match=words):
        TokenLosses(Normed().eval(), [BATCH]).at_buffers({name: torch.zeros(size)})


@pytest.mark.parametrize(
    "batches, words",
    [
        (BATCH, "in a list"),
        ([], "no target token"),
        ([{"input_ids": IDS, "labels": torch.full_like(IDS, -100)}], "no target token"),
        ([{"input_ids": IDS}], "has no `labels`"),
    ],
)
def test_batches_that_are_refused(bigram, batches, words):
    with pytest.raises(ValueError, match=words):
        TokenLosses(bigram, batches)


@pytest.mark.parametrize(
    "model, words", [(Bigram().train(), "training mode"), (AlwaysDropout().eval(), "something in it is random")]
)
def test_models_whose_losses_are_random_are_refused(model, words):
    with pytest.raises(ValueError, match=words):
        TokenLosses(model, [BATCH])


def test_a_token_table_of_another_length_is_refused(bigram):
    with pytest.raises(ValueError, match="must agree"):
        TokenLosses(bigram, [BATCH], tokens=pd.DataFrame({"a": [1]}))
