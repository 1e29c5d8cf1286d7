"""Folders of transformers, adapters and suites on the hub: what is read is what was saved, or is refused by name."""

import json
import os
import re
import shutil
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything of Hugging Face is imported: nothing here may ask a network

import pytest
import torch
import transformers as tf
from safetensors.torch import save_file
from torch import nn

from polca.core.checkpoints import Checkpoints
from polca.core.disk import write_json
from polca.core.losses import TokenLosses, parameters
from polca.core.pretrained import Pretrained
from polca.core.verification import verify_checkpoints

tf.logging.set_verbosity_error()
tf.utils.logging.disable_progress_bar()


def refused(words):
    return pytest.raises(ValueError, match=re.escape(words))


def neox(seed):
    torch.manual_seed(seed)
    sizes = dict(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    return tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**sizes, max_position_embeddings=16)).eval()


CONFIG = neox(1).config.to_dict()
WEIGHTS = parameters(neox(1))


@pytest.fixture
def written(tmp_path):
    "Writes a folder with one checkpoint, of the weights given and perhaps a `config.json`."

    def write(name, weights, **config):
        place = tmp_path / "written" / "step1"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        if name.endswith(".bin"):
            torch.save(weights, place / name)
        else:
            save_file({n: p.clone() for n, p in weights.items()}, place / name, metadata={"format": "pt"})
        if config:
            write_json(place / "config.json", config)
        return place.parent

    return write


@pytest.fixture(scope="module")
def normed():
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


@pytest.fixture(scope="module")
def tied():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    return model


def same(params, others):
    return all(torch.equal(p, q) for p, q in zip(params.values(), others.values(), strict=True))


class Stranger:
    "Runs code where it is read as a program."

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (os.system, (f"touch {self.file}",))


# folders


def test_a_shard_that_was_cut_is_named(tmp_path):
    neox(1).save_pretrained(tmp_path / "step1", max_shard_size="5kB")
    shard = next((tmp_path / "step1").glob("model-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-50])
    with refused("step 1"):
        Checkpoints.open(tmp_path).load(1)


def test_weights_that_a_file_lacks_are_not_filled_in(written):
    half = {n: p for n, p in WEIGHTS.items() if "attention" not in n}
    with refused("lacks"):
        Checkpoints.open(written("model.safetensors", half, **CONFIG)).load(1)


@pytest.fixture
def bare(tmp_path):
    "A folder without a configuration, of one shard in PyTorch's format."
    place = tmp_path / "bare" / "step3"
    place.mkdir(parents=True)
    index = {"weight_map": {n: "part.bin" for n in parameters(neox(3))}}
    (place / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    torch.save(parameters(neox(3)), place / "part.bin")
    return place


def test_without_a_configuration_the_model_is_needed_and_enough(bare):
    with refused("config.json"):
        Checkpoints.open(bare.parent)
    assert same(Checkpoints.open(bare.parent, neox(0)).load(3), parameters(neox(3)))


def test_a_shard_that_would_run_code_is_not_read(bare):
    torch.save({"w": Stranger(bare / "was-run")}, bare / "part.bin")
    with refused("holds more than weights"):
        Checkpoints.open(bare.parent, neox(0)).load(3)
    assert not (bare / "was-run").exists()


def test_two_folders_of_one_step_are_refused(bare):
    shutil.copytree(bare, bare.with_name("step03"))
    with refused("both step 3"):
        Checkpoints.open(bare.parent, neox(0))


def test_weights_are_read_in_float32_whatever_the_configuration_says(tmp_path):
    neox(1).save_pretrained(tmp_path / "step1")
    file = tmp_path / "step1" / "config.json"
    file.write_text(file.read_text().replace('"float32"', '"bfloat16"'))
    assert same(Checkpoints.open(tmp_path).load(1), WEIGHTS)


def test_weights_that_the_model_lacks_are_not_dropped(tmp_path):
    neox(1).save_pretrained(tmp_path / "step1")
    file = tmp_path / "step1" / "config.json"
    write_json(file, json.loads(file.read_text()) | {"num_hidden_layers": 1})
    with refused("gpt_neox.layers.1.attention.dense.bias"):
        Checkpoints.open(tmp_path).load(1)


def test_places_that_are_no_checkpoints(tmp_path):
    (tmp_path / "cache").mkdir()
    with refused("holds no checkpoints"):
        Checkpoints.open(tmp_path / "cache")
    with refused("not a directory"):
        Checkpoints.open(tmp_path / "nowhere")
    with refused("no checkpoints to open"):
        Pretrained({})
    with refused("no folder"):
        Pretrained({1: "somebody/suite"}).load(1)


def test_they_are_read_only(tmp_path):
    with refused("read only"):
        Pretrained({1: tmp_path}).save(1, neox(1))


# other models


def test_layers_of_another_model_are_named(written, normed):
    layers = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)).state_dict()
    place = written("model.safetensors", layers)
    with refused("unknown 2.bias"):
        Checkpoints.open(place, normed).load(1)
    with refused("give the model itself"):
        Checkpoints.open(place, tf.GPTNeoXForCausalLM)


def test_a_tied_weight_may_have_its_second_name(written, tied):
    weight = torch.ones(3, 3)
    found = Checkpoints.open(written("model.safetensors", {"1.weight": weight}), tied).load(1)
    assert torch.equal(found["0.weight"], weight)


def test_tied_weights_that_differ_are_refused(written, tied):
    both = {"0.weight": torch.ones(3, 3), "1.weight": torch.zeros(3, 3)}
    with refused("two different copies"):
        Checkpoints.open(written("model.safetensors", both), tied).load(1)


@pytest.fixture(scope="module")
def tied_neox():
    return tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**CONFIG | {"tie_word_embeddings": True}))


def test_tied_embeddings_are_there_once(tied_neox, tmp_path):
    tied_neox.save_pretrained(tmp_path / "step1")
    assert list(Checkpoints.open(tmp_path).load(1)) == list(parameters(tied_neox))


def test_tied_embeddings_may_be_saved_twice_if_they_are_equal(tied_neox, written):
    twice = {n: p.clone() for n, p in tied_neox.state_dict(keep_vars=True).items()}
    assert len(twice) == len(parameters(tied_neox)) + 1
    config = tied_neox.config.to_dict()
    Checkpoints.open(written("model.safetensors", twice, **config)).load(1)
    second = next(n for n in twice if n not in parameters(tied_neox))
    twice[second].data += 1
    with refused("two different copies"):
        Checkpoints.open(written("model.safetensors", twice, **config)).load(1)


# constants of older versions

MASK = torch.ones(1, 1, 4, 4).tril()


@pytest.mark.parametrize("config", [CONFIG, {}], ids=["described", "bare"])
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_constants_of_older_versions_are_left_out(file, config, written):
    masks = {"bias": MASK.bool(), "masked_bias": torch.tensor(-1e9), "rotary_emb.inv_freq": torch.tensor([1.0, 0.1])}
    masks = {f"gpt_neox.layers.0.attention.{n}": p for n, p in masks.items()}
    assert len(Checkpoints.open(written(file, WEIGHTS | masks, **config), neox(0)).load(1)) == len(WEIGHTS)


def test_a_weight_with_the_name_of_a_mask_is_refused(written):
    attended = {"gpt_neox.layers.0.attention.bias": torch.ones(16)}
    with refused("attention.bias"):
        Checkpoints.open(written("model.safetensors", WEIGHTS | attended), neox(0)).load(1)


def codegen():
    sizes = dict(vocab_size=20, n_embd=16, n_layer=1, n_head=4, n_positions=16, rotary_dim=4, n_ctx=16)
    return tf.CodeGenForCausalLM(tf.CodeGenConfig(**sizes, bos_token_id=0, eos_token_id=0))


def opt():
    sizes = dict(vocab_size=20, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2)
    special = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    return tf.OPTForCausalLM(tf.OPTConfig(**sizes, **special, max_position_embeddings=16, word_embed_proj_dim=16))


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize(
    "make, name, constant, weight",
    [
        (codegen, "transformer.h.0.attn.causal_mask", MASK.bool(), torch.ones(4)),
        (opt, "model.decoder.version", torch.tensor([3.0]), torch.ones(2)),
    ],
)
def test_constants_of_codegen_and_opt(make, name, constant, weight, file, written):
    torch.manual_seed(0)
    model = make()
    weights = parameters(model)
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    assert same(Checkpoints.open(written(file, weights | {name: constant}, **config)).load(1), weights)
    with refused(name):
        Checkpoints.open(written(file, weights | {name: weight}, **config)).load(1)


# damage


@pytest.mark.parametrize(
    "damage",
    [
        {"hidden_size": "abc"},
        {"num_attention_heads": 0},
        {"hidden_act": "zzz"},
        {"quantization_config": 3},
        {"rope_parameters": 3, "rope_scaling": 3},
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_step(damage, written):
    with refused("step 1"):
        Checkpoints.open(written("model.safetensors", WEIGHTS, **CONFIG | damage)).load(1)


def test_a_configuration_that_is_damaged_is_refused_by_step(written):
    broken = written("model.safetensors", WEIGHTS, **CONFIG)
    for text in ("null", "", "[]", "{"):
        (broken / "step1" / "config.json").write_text(text)
        with refused("step 1"):
            Checkpoints.open(broken).load(1)


@pytest.mark.parametrize("config", [CONFIG, {}], ids=["described", "bare"])
def test_a_file_of_something_else_is_refused_by_step(config, written):
    for stored in (
        [torch.ones(2)],
        torch.ones(2),
        None,
        {n: 3 for n in WEIGHTS},
        {"model": WEIGHTS},
        {n: p.int() for n, p in WEIGHTS.items()},
    ):
        with refused("step 1"):
            Checkpoints.open(written("pytorch_model.bin", stored, **config), neox(0)).load(1)


@pytest.fixture(params=[CONFIG, {}], ids=["described", "bare"])
def sharded(request, written):
    "A folder whose weights lie outside, and whose index is to be written."
    place = written("model.safetensors", WEIGHTS, **request.param)
    (place / "step1" / "model.safetensors").rename(place / "whole.safetensors")
    return place


INDEX = "model.safetensors.index.json"


def test_an_index_that_is_damaged_is_refused(sharded):
    for index in (
        "",
        "[]",
        "3",
        "{",
        '{"weight_map": null}',
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 5}}',
        '{"weight_map": {"a": [5]}}',
    ):
        (sharded / "step1" / INDEX).write_text(index)
        with refused("is damaged"):
            Checkpoints.open(sharded, neox(0)).load(1)


@pytest.mark.parametrize(
    "shard, words",
    [
        ("gone.safetensors", "is not there"),
        ("../whole.safetensors", "outside"),
        ("{folder}/whole.safetensors", "outside"),
    ],
)
def test_an_index_that_names_other_files_is_refused(shard, words, sharded):
    weight_map = {n: shard.format(folder=sharded) for n in WEIGHTS}
    write_json(sharded / "step1" / INDEX, {"metadata": {}, "weight_map": weight_map})
    with refused(words):
        Checkpoints.open(sharded, neox(0)).load(1)


def test_files_that_are_empty_are_refused_by_step(sharded):
    for name in ("pytorch_model.bin", "model.safetensors"):
        (sharded / "step1" / name).write_bytes(b"")
        with refused("step 1"):
            Checkpoints.open(sharded, neox(0)).load(1)


def test_an_old_torch_reads_safetensors_alone(written, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    for config in ({}, CONFIG):
        with refused("CVE-2025-32434"):
            Checkpoints.open(written("pytorch_model.bin", WEIGHTS, **config), neox(0) if not config else None).load(1)
    Checkpoints.open(written("model.safetensors", WEIGHTS, **CONFIG)).load(1)


# several series


def test_the_usual_series_is_taken_and_the_others_are_told(tmp_path):
    for name in ("best-model-2", "last-1"):
        neox(0).save_pretrained(tmp_path / name)
    with refused("several series"):
        Checkpoints.open(tmp_path)
    neox(1).save_pretrained(tmp_path / "checkpoint-7")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert Checkpoints.open(tmp_path).steps == [7]
    assert "best-model-2, last-1" in str(caught[0].message)


def test_folders_without_weights_are_told(written):
    place = written("model.safetensors", WEIGHTS, **CONFIG)
    (place / "checkpoint-500").mkdir()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert Checkpoints.open(place).steps == [1]
    assert "checkpoint-500" in str(caught[0].message) and "no weights" in str(caught[0].message)


# the hub


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    "A cache as the hub's library keeps it, with one revision."
    cache = tmp_path_factory.mktemp("hub")
    suite = cache / "models--somebody--suite"
    neox(1000).save_pretrained(suite / "snapshots" / f"{1:040x}")
    (suite / "refs").mkdir()
    (suite / "refs" / "step1000").write_text(f"{1:040x}")
    return cache


class Opener:
    "Notes whether the network may be asked."

    asked = []

    @classmethod
    def from_pretrained(cls, *args, local_files_only, **kwargs):
        cls.asked.append("cache" if local_files_only else "network")
        return tf.GPTNeoXForCausalLM.from_pretrained(*args, local_files_only=local_files_only, **kwargs)


def test_what_is_in_the_cache_is_not_asked_for_and_what_is_not_there_only_once(hub):
    Opener.asked.clear()
    found = Checkpoints.from_hub("somebody/suite", ["step1000"], Opener, cache_dir=hub).load(1000)
    assert Opener.asked == ["cache"] and same(found, parameters(neox(1000)))
    with refused("the hub cannot be asked"):
        Checkpoints.from_hub("somebody/suite", ["step7"], Opener, cache_dir=hub).load(7)
    assert Opener.asked == ["cache"]  # the hub did not answer one quick question


@pytest.mark.parametrize(
    "revisions, model, words",
    [
        (["main"], None, "tells no step"),
        ("step3", None, "give a list"),
        (["step500"], neox(0), "give the class"),
    ],
    ids=["no step", "no list", "a model"],
)
def test_suites_that_are_refused(revisions, model, words):
    with refused(words):
        Checkpoints.from_hub("somebody/suite", revisions, model)


def test_a_folder_has_no_revisions(tmp_path):
    with refused("no revisions"):
        Checkpoints.from_hub(str(tmp_path), ["step1"]).load(1)


# adapters


@pytest.fixture(scope="module")
def own_heads(tmp_path_factory):
    "Adapters that train a head of their own, of a base model whose head is tied: the store, and the base."
    peft = pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapters")
    base = folder / "base"
    torch.manual_seed(0)
    sizes = dict(vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    special = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0, max_position_embeddings=32)
    tf.LlamaForCausalLM(tf.LlamaConfig(**sizes, **special, tie_word_embeddings=True)).save_pretrained(base)
    how = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that such an adapter unties
        for step in (1, 2):
            adapted = peft.get_peft_model(tf.AutoModelForCausalLM.from_pretrained(base), how)
            with torch.no_grad():
                for p in adapted.parameters():
                    p += 0.1 * torch.randn_like(p) * p.requires_grad
            adapted.save_pretrained(folder / "steps" / f"step{step}")
    return Checkpoints.open(folder / "steps"), tf.AutoModelForCausalLM.from_pretrained(base).eval()


IDS = torch.arange(16).reshape(2, 8)
BATCHES = [{"input_ids": IDS, "labels": IDS}]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_with_a_head_of_its_own_is_refused_with_the_way_out(own_heads):
    store, base = own_heads
    with refused("store.open_model(step)") as caught:
        verify_checkpoints(store, losses=TokenLosses(base, BATCHES))
    assert "belongs to another model: unknown lm_head.weight" in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_and_the_way_out_works(own_heads):
    store, _ = own_heads
    verify_checkpoints(store, losses=TokenLosses(store.open_model(1), BATCHES))
