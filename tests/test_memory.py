"The memory budgets of the engines and of Hessian-vector products, measured on the resident memory of a process of its own."
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from polca.curvature import HessianOperator
from polca.engines import Projector
from polca.losses import TokenLosses, n_parameters, token_table

def peak(): return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024

engine = sys.argv[1]
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=2000, n_positions=64, n_embd=64, n_layer=3, n_head=4, bos_token_id=None, eos_token_id=None)).eval()
ids = torch.randint(0, 2000, (64, 64))
labels = ids.masked_fill(torch.arange(64) < (56 if engine == "reverse" else 0), -100)
losses = TokenLosses(model, [{"input_ids": ids[:1], "labels": labels[:1]}])  # a small one first, for torch's own buffers
directions = torch.randn(2 if engine == "difference" else 8, n_parameters(losses.params)) / 1000  # differences take one after the other
def compute(memory):
    if engine == "hessian": return HessianOperator(losses, losses.params, memory) @ directions[0]
    return Projector(losses, losses.params, directions, engine, memory)(losses.params)[1]
compute("8GiB")
losses.batches = [{"input_ids": ids, "labels": labels}]  # not a new object, which would evaluate the whole batch at once
losses.tokens = token_table(losses.batches)
losses.sizes = [len(losses.tokens)]
before = peak()
for memory in ("100MiB", "8GiB"):  # the tight budget first: a peak only rises
    result = compute(memory)
    print(peak() - before, float(result.norm()))
"""


def measured(engine):
    "(peak in MiB, norm of the result) within the tight budget, and within the loose one."
    if not Path("/proc/self/status").exists(): pytest.skip("needs /proc to read the peak resident memory")
    out = subprocess.run([sys.executable, "-c", SCRIPT, engine], check=True, capture_output=True, text=True).stdout
    return [[float(x) for x in line.split()] for line in out.splitlines()]


@pytest.mark.parametrize("engine", ["forward", "reverse", "difference", "hessian"])
def test_the_peak_stays_within_the_budget(engine):
    (tight, P_tight), (loose, P_loose) = measured(engine)
    assert tight < 100
    assert loose > 130, "the whole batch fits the tight budget: this test shows nothing"
    assert P_tight == pytest.approx(P_loose, rel=1e-3)
