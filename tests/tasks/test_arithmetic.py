"""The sums, their carries and samples, and the configurations of the arithmetic experiment that are refused."""

import pytest
import torch
import torch.nn.functional as F

from polca.core.losses import parameters
from polca.tasks.arithmetic import (
    ADDITION_PRESETS,
    PLACES,
    AdditionModel,
    addition_losses,
    addition_preset,
    addition_tokens,
    draw_pairs,
    encode_sums,
)

TINY = ADDITION_PRESETS["tiny"]
WHOLE = ADDITION_PRESETS["paper"]
PART = ADDITION_PRESETS["paper-part"]


def test_the_loss_of_training_is_the_loss_that_is_analysed():
    model = AdditionModel(TINY).eval()
    batch = draw_pairs(TINY)["train"][:8]
    ids = encode_sums(batch)
    by_hand = F.cross_entropy(model(ids)[:, 7:11].flatten(0, 1), ids[:, 8:].flatten(), reduction="none")
    torch.testing.assert_close(addition_losses(model, batch)(parameters(model)), by_hand.detach())


def test_a_carry_is_what_column_addition_gives_digit_by_digit():
    for row in addition_tokens(draw_pairs(TINY)["train"][:500]).itertuples():
        carry = 0
        for i in range(PLACES[::-1].index(row.place)):
            carry = (row.a // 10**i % 10 + row.b // 10**i % 10 + carry) // 10
        assert carry == row.carry


def test_runs_of_one_data_seed_share_their_sums_and_read_them_in_other_orders():
    own = draw_pairs(TINY)
    same = draw_pairs(addition_preset("tiny", data_seed=TINY.seed))
    assert all(torch.equal(own[name], same[name]) for name in own)
    other = draw_pairs(addition_preset("tiny", seed=1, data_seed=TINY.seed))
    assert all(torch.equal(own[name], other[name]) for name in ("hessian", "validation"))
    assert not torch.equal(own["train"], other["train"])
    assert sorted(own["train"].tolist()) == sorted(other["train"].tolist())
    assert not torch.equal(own["validation"], draw_pairs(addition_preset("tiny", seed=1))["validation"])


def test_paper_part_is_a_part_of_the_papers_checkpoints_and_tokens():
    assert set(PART.recorded_steps) < set(WHOLE.recorded_steps)
    assert PART.recorded_steps[-32:-29] == [3980, 4000, 4200]
    assert PART.n_tokens == 500


@pytest.mark.parametrize("sample", ["train", "hessian", "validation"])
def test_the_samples_of_paper_part_are_the_first_of_the_papers(sample):
    pairs = draw_pairs(PART)[sample]
    assert torch.equal(pairs, draw_pairs(WHOLE)[sample][: len(pairs)])


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("there are 1,000,000", {"steps": 20_000}),
        ("multiple of 30", {"interval": 30}),
        ("multiple of 7", {"late": (4000, 7)}),
        ("init_std=0", {"init_std": 0}),
        ("which='top'", {"which": "top"}),
        ("analysed_sums=0", {"analysed_sums": 0}),
        ("basis_sums=2000", {"basis_sums": 2000}),
        ("multiple of heads", {"heads": 3}),
        ("the basis asks for", {"basis_steps": 60}),
        ("is a part of", {"curvature_sums": 2000}),
        ("fit twice", {"window": 6000}),
        ("validation_sums=0", {"validation_sums": 0}),
        ("at least 2", {"min_cluster_size": 1}),
        ("interval=1", {"interval": 1}),
        ("k=0", {"k": 0}),
        ("seed=-1", {"seed": -1}),
        ("lr=nan", {"lr": float("nan")}),
    ],
)
def test_a_configuration_that_cannot_be_run_is_refused(message, changes):
    with pytest.raises(ValueError, match=message):
        addition_preset("paper", **changes)
