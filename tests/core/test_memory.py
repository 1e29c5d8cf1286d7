"""Sequences of a batch, whether it may be cut, and the parts that several processes get."""

import re
import warnings
import weakref

import pandas as pd
import pytest
import torch
from torch import nn

from polca.core.losses import TokenLosses
from polca.core.memory import (
    MemoryBudgetError,
    PeakMemory,
    SavedMemory,
    batch_of_part,
    cut_large,
    fixed_and_each,
    memory_bytes,
    n_positions,
    one_sequence,
    part_of,
    sequence_peak,
    split_batches,
)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(13, 4), nn.Linear(4, 13)).eval()


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(1)
    ids = torch.randint(0, 13, (10, 5))
    return {"input": ids, "labels": ids}


@pytest.fixture(scope="module")
def ten(small, batch):
    "Ten sequences of five tokens."
    return TokenLosses(small, [batch])


@pytest.fixture(scope="module")
def mixed(small, batch):
    "The loss of the first token of each sequence, times the number of sequences: it depends on the others."

    def batchwise(model, batch):
        logits = model(batch["input"])[:, 0]
        return nn.functional.cross_entropy(logits, batch["labels"][:, 0], reduction="none") * len(batch["labels"])

    return TokenLosses(small, [batch], batchwise, pd.DataFrame({"example": range(10)}))


@pytest.fixture(scope="module")
def turned(batch):
    "All losses of the first position, then all of the second; and at the model's own weights all are alike."

    def by_position(model, batch):
        return nn.functional.cross_entropy(model(batch["input"]).mT, batch["labels"], reduction="none").T.flatten()

    model = nn.Sequential(nn.Embedding(13, 4), nn.Linear(4, 13)).eval()
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    return TokenLosses(model, [batch], by_position, pd.DataFrame(index=range(50)))


def backward(losses, params):
    leaves = {n: p.detach().requires_grad_() for n, p in params.items()}
    torch.autograd.grad(losses.batch(0, leaves).sum(), tuple(leaves.values()))


@pytest.fixture(scope="module")
def needs(ten):
    "The bytes for any number of sequences, and for each."
    return fixed_and_each(*(sequence_peak(ten, 0, ten.params, backward, copies) for copies in (1, 2)))


def test_a_counted_graph_goes_with_its_result():
    with SavedMemory(2**20):
        result = torch.ones(10, requires_grad=True).clone().exp()
    kept = weakref.ref(result)
    del result
    assert kept() is None


def test_the_sequence_with_most_targets_stands_for_its_batch(small):
    ids = torch.randint(0, 13, (3, 9))
    labels = ids.masked_fill(torch.arange(9) >= torch.tensor([[3], [9], [5]]), -100)
    ragged = TokenLosses(small, [{"input": ids, "labels": labels}])
    assert len(one_sequence(ragged, 0)) == 8
    assert list(one_sequence(ragged, 0, 2).tokens.example) == [0] * 8 + [1] * 8
    assert n_positions(ragged.batches[0]) == 9


def test_a_batch_without_sequences_has_one_position():
    assert n_positions({"x": torch.randn(4, 7), "y": torch.arange(4)}) == 1


@pytest.mark.parametrize("fit", [1.1, 2.5, 5, 9.9, 10, 50])
def test_a_part_is_found_in_the_batch_that_it_is_from(small, ten, needs, fit):
    fixed, each = needs
    parts, _ = split_batches(ten, ten.params, backward, int(fixed + each * fit))
    twice = TokenLosses(small, [*ten.batches, *ten.batches])
    parts_of_twice = TokenLosses(small, [*parts.batches, *parts.batches])
    assert batch_of_part(twice, parts_of_twice, len(parts.batches)) == 1


@pytest.mark.parametrize(
    "which, words", [("mixed", "depends on the other sequences"), ("turned", "sequence by sequence")]
)
def test_a_batch_that_must_be_cut_and_cannot_be_is_refused(request, needs, which, words):
    losses = request.getfixturevalue(which)
    fixed, each = needs
    with pytest.raises(ValueError, match=words):
        split_batches(losses, losses.params, backward, fixed + 3 * each)


@pytest.mark.parametrize("aside, shares", [(0, 1), (3 * 2**20 - 100, 2)])
def test_the_memory_that_a_refusal_names_is_enough_and_the_next_smaller_one_is_not(small, ten, aside, shares):
    longer = torch.randint(0, 13, (2, 9))
    losses = TokenLosses(small, [*ten.batches, {"input": longer, "labels": longer}])

    def split(memory):
        return split_batches(losses, losses.params, backward, memory, aside, shares)

    with pytest.raises(ValueError, match="'1KiB' is too small: a sequence of 9 tokens of batch 1 takes") as refused:
        split("1KiB")
    named = int(re.search(r"Give (\d+)MiB or more", str(refused.value))[1])
    assert len(split(f"{named}MiB")[0]) == len(losses)
    with pytest.raises(ValueError, match="too small"):
        split((named - 1) * 2**20)


@pytest.mark.parametrize("memory", ["1.2.3", ".", "2 apples", "-1", "1e9"])
def test_a_memory_that_is_no_size_is_refused(memory):
    with pytest.raises(ValueError, match=r"\(--memory\): give a number of bytes, or a size"):
        memory_bytes(memory)


def test_a_process_may_get_no_token_and_part_0_says_so(mixed):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first, second = (part_of(mixed, mixed.params, part, 2)[0] for part in range(2))
    assert first is None and second is not None and len(second) == 10
    assert len(caught) == 1 and "without work" in str(caught[0].message)
    assert caught[0].filename == __file__


def test_more_processes_than_sequences_leave_some_without_tokens(ten):
    parts = [part_of(ten, ten.params, part, 25)[0] for part in range(25)]
    with_tokens = [part for part in parts if part is not None]
    assert len(with_tokens) == 10
    assert torch.equal(torch.cat([part(ten.params) for part in with_tokens]), ten(ten.params))


def test_counting_stops_where_there_is_no_memory_left():
    with pytest.raises(MemoryBudgetError, match="more than 9999 bytes"), PeakMemory(most=9999) as peak:
        [torch.ones(1000) for _ in range(10)]
    assert peak.bytes == 12_000
    with PeakMemory(most=9999):
        for _ in range(10):
            torch.ones(1000)  # gone when the next is made


class Apart(nn.Module):
    "Token by token."

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(13, 4)
        self.out = nn.Linear(4, 13)

    def forward(self, input_ids, **others):
        return self.out(self.embed(input_ids))


def apart_losses(**others):
    "Ten texts of five positions."
    torch.manual_seed(0)
    ids = torch.randint(0, 13, (10, 5))
    return TokenLosses(Apart().eval(), [{"input_ids": ids, "labels": ids, **others}])


def sizes_of_pieces(losses, positions=20):
    pieces = cut_large(losses, positions)
    torch.testing.assert_close(pieces.losses(losses.params), losses(losses.params))
    assert [piece for has in pieces.has for piece in has] == list(range(len(pieces.losses.batches)))
    return [[len(pieces.losses.batches[piece]["labels"]) for piece in has] for has in pieces.has]


@pytest.mark.parametrize(
    "positions, expected",
    [(50, [10]), (49, [5, 5]), (20, [4, 4, 2]), (5, [1] * 10), (1, [1] * 10), (None, [10])],
)
def test_large_batches_are_cut_into_pieces_of_about_the_same_size(positions, expected):
    assert sizes_of_pieces(apart_losses(), positions) == [expected]


def test_batches_have_pieces_of_their_own():
    large = apart_losses()
    few = {name: value[:3] for name, value in large.batches[0].items()}
    assert sizes_of_pieces(TokenLosses(large.model, [few, *large.batches, few])) == [[3], [4, 4, 2], [3]]
    assert cut_large(large.part([]), 20).has == []


@pytest.mark.parametrize("others", [{"places": torch.arange(5)}, {"mask": torch.ones(10, 1, 5)}])
def test_large_batches_with_tensors_of_other_shapes_stay_whole(others):
    assert sizes_of_pieces(apart_losses(**others)) == [[10]]


def test_large_batches_of_as_many_texts_as_positions_stay_whole():
    losses = apart_losses()
    square = {name: value[:5] for name, value in losses.batches[0].items()}
    assert sizes_of_pieces(TokenLosses(losses.model, [square]), 10) == [[5]]


def test_large_batches_of_a_loss_of_ones_own_stay_whole(mixed):
    assert len(cut_large(mixed, 20).losses.batches) == 1


def test_a_part_of_cut_targets_is_found_in_the_batch_that_it_is_from():
    batches = [batch for losses in (apart_losses(), apart_losses()) for batch in losses.batches]
    two = TokenLosses(Apart().eval(), batches)
    pieces = [{name: value[row : row + 1] for name, value in batch.items()} for batch in batches for row in range(10)]
    halves = [{**piece, "labels": piece["labels"].masked_fill(first, -100)} for piece in pieces for first in HALVES]
    parts = two.part(halves)
    assert [batch_of_part(two, parts, i) for i in range(len(halves))] == [0] * 20 + [1] * 20


HALVES = (torch.arange(5) < 3, torch.arange(5) >= 3)
