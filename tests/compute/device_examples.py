"""Small models and batches for the tests on two devices, which are put where a `Place` is."""

import pandas as pd
import torch
from compute_examples import cross_entropy
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from polca.core.losses import TokenLosses, n_parameters
from polca.tasks.arithmetic import AdditionModel, addition_preset, addition_tokens, make_batch

SIZES = {"vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 12}
SIZES |= {"max_position_embeddings": 6, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit_rows(losses, K, dtype=torch.float64):
    "K orthonormal directions for the model of `losses`, on the CPU."
    return torch.linalg.qr(seeded(n_parameters(losses.params), K, seed=7)).Q.T.contiguous().to(dtype)


def gpt2():
    config = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 6}
    return GPT2LMHeadModel(GPT2Config(vocab_size=13, bos_token_id=None, eos_token_id=None, **config))


def llama():
    return LlamaForCausalLM(
        LlamaConfig(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, **SIZES)
    )


def neox():
    return GPTNeoXForCausalLM(GPTNeoXConfig(num_attention_heads=2, tie_word_embeddings=False, **SIZES))


class Places(nn.Module):
    "A token and its place say what comes next: a loss has a gradient at one position, and all sequences share these."

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(13, 6)
        self.places = nn.Embedding(6, 6)
        self.head = nn.Linear(6, 13)

    def forward(self, input_ids, attention_mask):
        places = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        return self.head(torch.tanh(self.tokens(input_ids) + self.places(places)))


def texts():
    "Two batches of sequences of 6 ids, with padding, and one sequence without a target."
    ids = torch.randint(1, 13, (5, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[4] = -100
    return [{"input_ids": ids[s], "attention_mask": mask[s], "labels": labels[s]} for s in (slice(2), slice(2, 5))]


def language(at, make, dtype=torch.float64):
    torch.manual_seed(0)
    return TokenLosses(at(make().to(dtype).eval()), at(texts()))


def addition(at):
    "The losses of three sums, of the model of the tasks."
    pairs = torch.tensor([[12, 999], [500, 7], [321, 123]])
    model = AdditionModel(addition_preset("tiny", width=8)).double().eval()
    return TokenLosses(at(model), at([make_batch(pairs)]), tokens=addition_tokens(pairs))


class Classifier(nn.Module):
    "Layers of many kinds on vectors, and a buffer."

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.LayerNorm(6), nn.Tanh(), nn.RMSNorm(6))
        self.head = nn.Linear(6, 3, bias=False)
        self.register_buffer("shift", torch.linspace(0, 0.5, 3))

    def forward(self, x):
        return self.head(self.layers(x)) + self.shift


def classes(at, dtype=torch.float64):
    "The losses of eleven examples in two batches, one token each, by a loss of its own."
    torch.manual_seed(1)
    model = Classifier().to(dtype).eval()
    x = seeded(11, 4, seed=2).to(dtype)
    batches = [{"x": x[s], "y": torch.arange(11)[s] % 3} for s in (slice(4), slice(4, 11))]
    return TokenLosses(at(model), at(batches), cross_entropy, tokens=pd.DataFrame({"example": range(11)}))
