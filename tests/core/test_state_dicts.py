"""State dicts, held against the model that they are of."""

import re

import pytest
import torch
from torch import nn

from polca.core.losses import parameters
from polca.core.state_dicts import StateDicts, is_legacy_constant

WEIGHT = torch.ones(3, 3)


def refused(words):
    return pytest.raises(ValueError, match=re.escape(words))


@pytest.fixture(scope="module")
def normed():
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


@pytest.fixture(scope="module")
def tied():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    return model


def test_a_missing_weight_is_named():
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    with refused("missing 0.bias"):
        StateDicts([{"0.weight": torch.ones(2)}], net).load(0)


def test_they_are_read_only(normed):
    with refused("read only"):
        StateDicts([normed.state_dict()], normed).save(1, normed)


def test_the_model_tells_weights_from_buffers(normed):
    found = StateDicts([normed.state_dict()], normed).read(0)
    assert list(found.params) == list(parameters(normed))
    assert list(found.buffers) == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]


@pytest.mark.parametrize(
    "more, words",
    [
        ({"2.weight": torch.ones(2)}, "unknown 2.weight"),
        ({"0.bias": torch.ones(1)}, "0.bias is (1,), not (2,)"),
        ({"0.bias": torch.ones(2).int()}, "floating point"),
    ],
)
def test_entries_that_do_not_fit_the_model_are_refused(more, words, normed):
    with refused(words):
        StateDicts([normed.state_dict() | more], normed).load(0)


def test_parameters_alone_do_not_tell_what_a_buffer_is(normed):
    with refused("the model itself"):
        StateDicts([normed.state_dict()], parameters(normed)).load(0)


def test_what_is_no_tensor_is_refused():
    with refused("no tensors"):
        StateDicts([{"w": None}]).load(0)


def test_a_step_that_is_no_number_is_refused():
    with refused("whole number"):
        StateDicts({"500": {}})


def test_a_tied_weight_may_have_its_second_name(tied):
    assert torch.equal(StateDicts([{"1.weight": WEIGHT}], tied).load(0)["0.weight"], WEIGHT)


def test_tied_weights_that_differ_are_refused(tied):
    with refused("two different copies"):
        StateDicts([{"0.weight": WEIGHT, "1.weight": 2 * WEIGHT}], tied).load(0)


@pytest.mark.parametrize("names", [["0.weight"], ["0.weight", "1.weight"]])
def test_tied_weights_that_are_not_finite_are_said_to_be_so(tied, names):
    with refused("not finite, in 0.weight"):
        StateDicts([{name: torch.nan * WEIGHT for name in names}], tied).load(0)


def test_what_is_handed_out_is_a_copy():
    StateDicts([{"w": WEIGHT}]).load(0)["w"].zero_()
    assert WEIGHT.all()


MASK = torch.ones(1, 1, 4, 4).tril()


@pytest.mark.parametrize(
    "name, constant",
    [
        ("transformer.h.0.attn.bias", MASK.bool()),
        ("transformer.h.0.attn.attention.bias", MASK - MASK.tril(-2)),
        ("gpt_neox.layers.0.attention.masked_bias", torch.tensor(-1e9)),
        ("gpt_neox.layers.0.attention.rotary_emb.inv_freq", torch.tensor([1.0, 0.1])),
        ("bert.embeddings.position_ids", torch.arange(4)[None]),
        ("transformer.h.0.attn.causal_mask", MASK.to(torch.uint8)),
        ("transformer.h.0.attn.causal_mask", MASK.to("meta")),
        ("model.decoder.version", torch.tensor([3.0])),
        ("decoder.version", torch.tensor(1)),
    ],
)
def test_constants_of_old_versions_are_known_by_their_form(name, constant, normed):
    assert is_legacy_constant(name, constant)
    assert list(StateDicts([normed.state_dict() | {name: constant}], normed).load(0)) == list(parameters(normed))


@pytest.mark.parametrize(
    "name, weight",
    [
        ("attn.bias", torch.ones(4)),
        ("attn.bias", torch.ones(1, 1, 4, 4)),
        ("attn.causal_mask", torch.ones(4, 4).tril()),
        ("attn.causal_mask", MASK.transpose(2, 3)),
        ("my_attn.causal_mask", MASK),
        ("decoder.version", torch.ones(2)),
        ("decoder.version.weight", torch.ones(1)),
        ("subdecoder.version", torch.ones(1)),
        ("rotary_emb.inv_freq", torch.tensor([1.0, -0.1])),
        ("position_ids", torch.ones(1, 4)),
    ],
)
def test_weights_with_the_names_of_constants_are_weights(name, weight, normed):
    assert not is_legacy_constant(name, weight)
    with refused(f"unknown {name}"):
        StateDicts([normed.state_dict() | {name: weight}], normed).load(0)
