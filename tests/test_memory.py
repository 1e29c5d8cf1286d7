"""The memory budgets of engines and Hessian products, measured on the resident memory of a process of its own."""

from pathlib import Path

import pytest
import torch
from commands import SERVER
from transformers import GPT2Config, GPT2LMHeadModel

from polca.compute.engines import Projector
from polca.compute.operators import HessianOperator
from polca.core.losses import TokenLosses, n_parameters, token_table

TARGETS = {"reverse": 8}  # for each sequence; the other engines take all positions
DIRECTIONS = {"difference": 2}  # which takes one after the other; the others take 8


def peak():
    "The largest resident memory of this process so far, MiB."
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def measure(engine, answers):
    "In a process of its own: (peak in MiB, norm of the result) within the tight budget, then within the loose one."
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=2000, n_positions=64, n_embd=64, n_layer=3, n_head=4, bos_token_id=None, eos_token_id=None
    )
    model = GPT2LMHeadModel(config).eval()
    ids = torch.randint(0, 2000, (64, 64))
    labels = ids.masked_fill(torch.arange(64) < 64 - TARGETS.get(engine, 64), -100)
    losses = TokenLosses(model, [{"input_ids": ids[:1], "labels": labels[:1]}])  # small first, for torch's own buffers
    directions = torch.randn(DIRECTIONS.get(engine, 8), n_parameters(losses.params)) / 1000

    def compute(memory):
        if engine == "hessian":
            return HessianOperator(losses, losses.params, memory) @ directions[0]
        return Projector(losses, losses.params, directions, engine, memory)(losses.params)[1]

    compute("8GiB")
    losses.batches = [{"input_ids": ids, "labels": labels}]  # a new object would evaluate the whole batch at once
    losses.tokens = token_table(losses.batches)
    losses.sizes = [len(losses.tokens)]
    before = peak()
    for memory in ("100MiB", "8GiB"):  # the tight budget first: a peak only rises
        result = compute(memory)
        answers.put((peak() - before, float(result.norm())))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to read the peak resident memory")
@pytest.mark.parametrize(
    "engine",
    [
        "forward",
        "hessian",
        pytest.param("reverse", marks=pytest.mark.nightly),
        pytest.param("difference", marks=pytest.mark.nightly),
    ],
)
def test_the_peak_stays_within_the_budget(engine):
    answers = SERVER.Queue()
    process = SERVER.Process(target=measure, args=(engine, answers))
    process.start()
    (tight, P_tight), (loose, P_loose) = answers.get(timeout=300), answers.get(timeout=300)
    process.join()
    assert tight < 100
    assert loose > 130, "the whole batch fits the tight budget: this test shows nothing"
    assert P_tight == pytest.approx(P_loose, rel=1e-3)
