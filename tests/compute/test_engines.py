"""The engines against autograd, one token at a time: shapes, kinds of models and losses, and what they refuse."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from polca.compute.engines import ENGINES, Projector, choose_engine, project_tokens
from polca.core.losses import TokenLosses, flatten, n_parameters

EXACT = ("forward", "reverse")
NO_TOKENS = {"bos_token_id": None, "eos_token_id": None}
SHARED = {
    "vocab_size": 13,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 9,
    "pad_token_id": 0,
    **NO_TOKENS,
}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


IDS = torch.randint(1, 13, (5, 9), generator=seeded(0))
SQUARE = torch.randint(0, 13, (9, 9), generator=seeded(2))  # as many sequences as positions
SQUARE[:, 0] = 0


def padded_batches():
    "Documents of different lengths, some padded, some positions without a target."
    mask = torch.ones_like(IDS)
    mask[1, 6:] = 0
    labels = IDS.masked_fill((mask == 0) | (torch.rand(5, 9, generator=seeded(1)) < 0.3), -100)
    return [{"input_ids": IDS[s], "attention_mask": mask[s], "labels": labels[s]} for s in (slice(0, 2), slice(2, 5))]


def one_at_a_time(losses, directions):
    "The reference: each token's gradient by itself, times all directions."
    leaves = {n: p.clone().requires_grad_() for n, p in losses.params.items()}
    rows = []
    for token in (t for i in range(len(losses.batches)) for t in losses.batch(i, leaves)):
        grads = torch.autograd.grad(token, tuple(leaves.values()), retain_graph=True, materialize_grads=True)
        rows.append(directions @ flatten(dict(zip(leaves, grads))).to(directions))
    return torch.stack(rows)


def unit_directions(losses, K=6, dtype=torch.float64):
    B = torch.randn(n_parameters(losses.params), K, dtype=torch.float64, generator=seeded(7))
    return torch.linalg.qr(B).Q.T.contiguous().to(dtype)


def gpt2(**sizes):
    config = {"vocab_size": 13, "n_positions": 9, "n_embd": 8, "n_layer": 1, "n_head": 2, **NO_TOKENS, **sizes}
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**config)).double().eval()


def neox():
    torch.manual_seed(0)
    config = GPTNeoXConfig(num_attention_heads=2, tie_word_embeddings=False, **SHARED)
    return GPTNeoXForCausalLM(config).double().eval()


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, **SHARED)
    return LlamaForCausalLM(config).eval()


def llama_with_plain_norms():
    "Its own RMSNorm computes in float32 whatever the dtype of the model; torch's does not."
    model = llama()
    for module in [m for m in model.modules() if hasattr(m, "post_attention_layernorm")]:
        module.input_layernorm = nn.RMSNorm(8, 1e-6)
        module.post_attention_layernorm = nn.RMSNorm(8, 1e-6)
    model.model.norm = nn.RMSNorm(8, 1e-6)
    return model.double().eval()


class Odd(nn.Module):
    "What trips hooks: positions without a batch dimension, writing in place into a layer's output."

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(13, 6)
        self.place = nn.Embedding(9, 6)
        self.inner = nn.Linear(6, 6)
        self.head = nn.Linear(6, 13)

    def forward(self, input_ids):
        h = self.embed(input_ids)
        h += self.place(torch.arange(input_ids.shape[1]))
        logits = self.head(nn.functional.relu(self.inner(h), inplace=True))
        logits[..., 12:] -= 1.0
        return logits


@pytest.mark.parametrize("make", [lambda: gpt2(n_layer=2), neox, llama_with_plain_norms])
def test_zero_directions_and_blocks_that_are_written_into_between_calls(make):
    losses = TokenLosses(make(), padded_batches())
    d = n_parameters(losses.params)
    written = torch.zeros(2, d, dtype=torch.float64)  # the first time from zero
    axes = torch.eye(d, dtype=torch.float64)[[3, d // 2, d - 1]]  # zero in most parameters
    projector = Projector(losses, losses.params, [axes, written], "reverse")
    assert (projector(losses.params)[1][:, 3:] == 0).all()
    for seed in range(2):
        written.copy_(unit_directions(losses, 2) * (1 + seed))
        expected = one_at_a_time(losses, torch.cat([axes, written]))
        torch.testing.assert_close(projector(losses.params)[1], expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("engine", EXACT)
def test_llama_with_its_norm_in_float32(engine):
    losses = TokenLosses(llama(), padded_batches())
    B = unit_directions(losses, dtype=torch.float32)
    P = project_tokens(losses, losses.params, B, engine)
    torch.testing.assert_close(P, one_at_a_time(losses, B), rtol=1e-4, atol=1e-5)


def batches_without_tokens():
    first, second = padded_batches()
    return [first, {**second, "labels": torch.full_like(second["labels"], -100)}]


@pytest.mark.parametrize("K", [1, 40])  # either order of contraction
@pytest.mark.parametrize(
    "batches",
    [padded_batches, batches_without_tokens, lambda: [{"input_ids": IDS, "labels": IDS}]],
    ids=["padded", "a batch without tokens", "all targets"],
)
def test_either_order_of_contraction_with_a_large_vocabulary(batches, K):
    losses = TokenLosses(gpt2(vocab_size=90), batches())
    B = unit_directions(losses, K)
    expected = one_at_a_time(losses, B)
    for engine in EXACT:
        P = project_tokens(losses, losses.params, B, engine)
        torch.testing.assert_close(P, expected, rtol=1e-10, atol=1e-12)


def entropies(model, batch):
    "Of all sequences in one, so that they are not told apart."
    logits = model(batch["input_ids"]).logits.flatten(0, 1)
    return F.cross_entropy(logits, batch["input_ids"].flatten(), reduction="none")


def penalised(model, batch):
    "Uses a weight beside the logits."
    return entropies(model, batch) + model.lm_head.weight.square().sum()


def twice(model, batch):
    "A row of the logits serves two tokens."
    each = entropies(model, batch)
    return torch.cat([each, each.square()])


@pytest.mark.parametrize("loss", [penalised, twice])
def test_losses_that_are_not_of_one_row_of_the_logits_alone(loss):
    losses = TokenLosses(gpt2(vocab_size=90), [{"input_ids": IDS}], loss=loss)
    B = unit_directions(losses, 5)
    P = project_tokens(losses, losses.params, B)
    torch.testing.assert_close(P, one_at_a_time(losses, B), rtol=1e-10, atol=1e-12)


@pytest.fixture(scope="module")
def odd():
    torch.manual_seed(0)
    return TokenLosses(Odd().double().eval(), [{"input_ids": SQUARE, "labels": SQUARE}])


@pytest.fixture
def unfelt(odd):
    "A direction that softmax does not feel: the same for every logit."
    direction = torch.zeros(1, n_parameters(odd.params)).double()
    direction[0, -13:] = 13**-0.5
    return direction


@pytest.mark.parametrize("engine", EXACT)
def test_a_direction_that_the_loss_does_not_feel_alone(odd, unfelt, engine):
    assert project_tokens(odd, odd.params, unfelt, engine).abs().max() < 1e-12


def test_an_example_column_that_does_not_number_the_sequences_is_for_forward(odd, unfelt):
    late = TokenLosses(odd.model, odd.batches, tokens=odd.tokens.assign(example=odd.tokens["example"] + 1))
    with pytest.raises(ValueError, match="from 0 on"):
        project_tokens(late, late.params, unfelt, "reverse")
    assert choose_engine(late, 50) == "forward"


@pytest.mark.parametrize("engine", EXACT)
def test_pruned_layers(engine):
    torch.manual_seed(0)
    pruned = Odd().double().eval()
    torch.nn.utils.prune.l1_unstructured(pruned.inner, "weight", 0.3)
    torch.nn.utils.prune.l1_unstructured(pruned.head, "weight", 0.3)
    losses = TokenLosses(pruned, [{"input_ids": SQUARE, "labels": SQUARE}])
    B = unit_directions(losses, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers that go the forward way
        P = project_tokens(losses, losses.params, B, engine)
    torch.testing.assert_close(P, one_at_a_time(losses, B))


def test_an_unknown_engine_is_refused(odd, unfelt):
    with pytest.raises(ValueError, match="use 'auto'"):
        project_tokens(odd, odd.params, unfelt, "fast")


def squared(model, batch):
    return (model(batch["x"]) - batch["y"]).pow(2).sum(1)


def test_without_a_token_table_that_tells_sequences_apart_the_choice_is_forward_and_reverse_is_refused():
    points = {"x": torch.randn(30, 4), "y": torch.randn(30, 3)}
    losses = TokenLosses(nn.Linear(4, 3).eval(), [points], loss=squared)
    assert choose_engine(losses, 6) == "forward"
    with pytest.raises(ValueError, match="column `example`"):
        project_tokens(losses, losses.params, unit_directions(losses, dtype=torch.float32), "reverse")


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_directions_of_another_model_or_not_finite_are_refused(odd, engine):
    B = unit_directions(odd)
    hole = B.clone()
    hole[2, 5] = float("nan")
    with pytest.raises(ValueError, match="direction 2 has entries"):
        project_tokens(odd, odd.params, hole, engine)
    with pytest.raises(ValueError, match="they must be"):
        project_tokens(odd, odd.params, B[:, 1:], engine)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 3)
        self.extra = nn.Linear(2, 2)

    def forward(self, x):
        return self.out(x)


def test_parameters_that_the_loss_does_not_reach_must_be_frozen():
    points = {"x": torch.randn(30, 4), "y": torch.randn(30, 3)}
    losses = TokenLosses(Unused().eval(), [points], loss=squared)
    B = unit_directions(losses, dtype=torch.float32)
    with pytest.raises(ValueError, match="extra.weight, extra.bias"):
        project_tokens(losses, losses.params, B)
    losses.model.extra.requires_grad_(False)
    assert project_tokens(losses, losses.params, B).shape == (30, 6)


class Batchwise(nn.Module):
    "Each sequence's loss depends on the number of sequences beside it."

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(13, 40)
        self.out = nn.Linear(40, 13)

    def forward(self, input_ids):
        return self.out(self.embed(input_ids)) * len(input_ids)


def test_a_batch_that_cannot_be_cut_is_refused():
    big = torch.randint(0, 13, (600, 9), generator=seeded(3))
    losses = TokenLosses(Batchwise().eval(), [{"input_ids": big, "labels": big}])
    B = unit_directions(losses, dtype=torch.float32)
    with pytest.raises(ValueError, match="depends on the other sequences"):
        project_tokens(losses, losses.params, B, "forward", "256KiB")


class Behind(nn.Module):
    "Uses its weights without calling its layers as they are."

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(500, 64)
        self.out = nn.Linear(64, 13, bias=False)

    def forward(self, input_ids):
        direct = F.embedding(input_ids, self.embed.weight)[..., :13]
        return F.linear(self.embed(input_ids), self.out.weight * 2) + direct


def test_in_half_precision_a_weight_behind_the_engines_back_is_noticed_along_random_directions():
    torch.manual_seed(0)
    batch = {"input_ids": torch.randint(0, 13, (6, 9)), "labels": torch.randint(0, 13, (6, 9))}
    losses = TokenLosses(Behind().to(torch.bfloat16).eval(), [batch])
    B = unit_directions(losses, dtype=torch.float32)
    with pytest.raises(ValueError, match="does not see all"):
        project_tokens(losses, losses.params, B, "reverse")


def test_one_label_for_each_sequence():
    def entropy(model, batch):
        return F.cross_entropy(model(batch["input"]), batch["labels"], reduction="none")

    batch = {"input": torch.randn(6, 4), "labels": torch.randint(0, 3, (6,))}
    losses = TokenLosses(nn.Sequential(nn.Linear(4, 3)).eval(), [batch], entropy, pd.DataFrame({"example": range(6)}))
    assert Projector(losses, losses.params, unit_directions(losses, dtype=torch.float32)).engine in ENGINES


def squared_by_position(model, batch):
    return (model(batch["x"]) - batch["y"]).pow(2).sum(-1).flatten()


class Once(torch.autograd.Function):
    "A fused operation: it can be differentiated once."

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class Fused(nn.Module):
    def __init__(self, behind=0.0):
        super().__init__()
        self.inner = nn.Linear(4, 6)
        self.out = nn.Linear(6, 3)
        self.behind = behind

    def forward(self, x):
        h = Once.apply(self.inner(x))
        return self.out(h) + self.behind * F.linear(h, self.out.weight)


@pytest.mark.parametrize(("behind", "other"), [(0.0, "reverse"), (1.0, None)])
def test_where_forward_does_not_see_all_auto_takes_reverse_and_says_where_neither_does(behind, other):
    torch.manual_seed(0)
    points = {"x": torch.randn(3, 5, 4).double(), "y": torch.randn(3, 5, 3).double()}
    tokens = pd.DataFrame({"example": np.arange(3).repeat(5)})
    losses = TokenLosses(Fused(behind).double().eval(), [points], squared_by_position, tokens)
    B = unit_directions(losses, 1)
    assert choose_engine(losses, 1) == "forward"
    projector = Projector(losses, losses.params, B)
    with pytest.warns(UserWarning, match="engine='auto' takes reverse from here on"):
        if other is None:
            with pytest.raises(ValueError, match="neither of the exact engines"):
                projector(losses.params)
        else:
            P = projector(losses.params)[1]
            torch.testing.assert_close(P, one_at_a_time(losses, B))
            assert projector.engine == projector.report["engine"] == other
