"""What polca stands up to: checkpoints, models, tables and texts as people have them. A line a case.

The rule behind every line: a loss that polca reports at a step is the one that the checkpoint's own folder gives,
loaded by its own library, or the analysis is refused by name before anything long starts. `RIGHT` holds what comes out
right, `REFUSED` what is refused, and by which words.
"""

import collections
import json
import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import nn

from polca.compute.basis import as_subspace
from polca.compute.engines import project_tokens
from polca.compute.lanczos import lanczos
from polca.compute.operators import DifferenceOperator, HessianOperator, rehearse
from polca.compute.projection import project
from polca.compute.store import open_projection
from polca.compute.subspace import hessian_subspace
from polca.core.checkpoints import Checkpoints
from polca.core.losses import TokenLosses, buffers, flatten, n_parameters, parameters
from polca.core.memory import split_batches
from polca.core.recording import Recorder
from polca.core.verification import losses_at, verify_checkpoints
from polca.runs.run import Run
from polca.runs.task import TextConfig, TextTask, open_tokenizer
from polca.runs.texts import cut_windows

tf.logging.set_verbosity_error()
tf.utils.logging.disable_progress_bar()
STEPS = (100, 200, 300)
IDS = torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(0))
BATCHES = [{"input_ids": IDS[:2], "labels": IDS[:2]}, {"input_ids": IDS[2:], "labels": IDS[2:]}]
SMALL = dict(
    vocab_size=20,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=32,
    bos_token_id=0,
    eos_token_id=0,
    pad_token_id=0,
)


# models and folders


def llama(step=0, kind=(tf.LlamaConfig, tf.LlamaForCausalLM), **settings):
    "A small model with weights that are large enough for its configuration to matter, other ones at every step."
    torch.manual_seed(0)
    model = kind[1](kind[0](**{**SMALL, **settings})).eval()
    noise = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=noise)
    return model


def folders(place, make=llama, names="checkpoint-{}", change=lambda folder, step: None):
    "Checkpoints as a Trainer leaves them."
    for step in STEPS:
        make(step).save_pretrained(place / names.format(step))
        change(place / names.format(step), step)
    return place


def own_loss(folder):
    "What the folder gives by itself, loaded by its own library."
    return plain_loss(tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())


def plain_loss(model):
    with torch.no_grad():
        logits = torch.cat([model(input_ids=b["input_ids"]).logits[:, :-1] for b in BATCHES])
    return nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten(), reduction="none")


def config_of(folder, **changes):
    "Change a folder's config.json; a setting that is None is taken out."
    file = folder / "config.json"
    file.write_text(json.dumps({k: v for k, v in (json.loads(file.read_text()) | changes).items() if v is not None}))


def weights_of(folder, change):
    file = folder / "model.safetensors"
    save_file({n: p.contiguous() for n, p in change(load_file(file)).items()}, file, metadata={"format": "pt"})


def prefixed(prefix):
    return lambda folder, step: weights_of(folder, lambda w: {prefix + n: p for n, p in w.items()})


class Own(nn.Module):
    "A network of somebody's own: ids -> logits."

    def __init__(self, *more):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20)
        self.more = nn.Sequential(*more)

    def forward(self, input_ids):
        return self.head(self.more(self.embedding(input_ids)))


def own(*more, kind=Own):
    torch.manual_seed(0)
    return kind(*more).eval()


def moved(model, step):
    "The same model later in its training, in place."
    noise = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for p in [*model.parameters(), *(b for b in buffers(model).values() if b.is_floating_point())]:
            p += 0.1 * torch.randn(p.shape, generator=noise)
    return model


# what comes out right: each makes (store, model, {step: losses that the checkpoint itself gives})


def analysed(place, model=None, opened=None, series=None):
    "Folders of transformers, by the model of the first of them."
    store = opened or Checkpoints.open(place, series=series)
    return store, model or store.open_model(STEPS[0]), {s: own_loss(store.places[s]) for s in store.steps}


def old_rope(tmp):
    "Folders written by transformers 4, which has rope_theta at the top level."

    def change(folder, step):
        config_of(folder, rope_parameters=None, rope_theta=100.0, transformers_version="4.40.0")

    return analysed(folders(tmp, lambda step: llama(step, rope_theta=100.0), change=change))


def mixtral(step, **settings):
    return llama(
        step, (tf.MixtralConfig, tf.MixtralForCausalLM), num_local_experts=3, num_experts_per_tok=2, **settings
    )


def harmless_settings(tmp):
    "Settings that compute no loss of a token differ between the model and its checkpoints, and between these."

    def change(folder, step):
        config_of(
            folder,
            router_aux_loss_coef=step / 1e4,
            output_router_logits=True,
            initializer_range=0.5,
            id2label={"0": "a"},
            problem_type="regression",
            use_cache=False,
        )

    return analysed(folders(tmp, mixtral, change=change), mixtral(0))


def deepseek(step):
    model = llama(
        step,
        (tf.DeepseekV3Config, tf.DeepseekV3ForCausalLM),
        moe_intermediate_size=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
        first_k_dense_replace=0,
        n_shared_experts=1,
    )
    for name, b in model.named_buffers():
        if "correction_bias" in name:
            b.copy_(torch.randn(b.shape, generator=torch.Generator().manual_seed(step)))
    return model


def moving_router(tmp):
    "A router's correction bias is a buffer that changes in training."
    return analysed(folders(tmp, deepseek))


def recorded_buffers(tmp):
    "Batch norms, recorded by polca: the statistics of every step count."

    class Channels(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x.mT).mT

    model = own(Channels(8))
    expected = {}
    record = Recorder(tmp, STEPS)
    for step in STEPS:
        record(step, moved(model, step))
        expected[step] = plain_loss_of(model)
    return record.store, own(Channels(8)), expected


def plain_loss_of(model):
    with torch.no_grad():
        return nn.functional.cross_entropy(
            torch.cat([first(model(b["input_ids"]))[:, :-1] for b in BATCHES]).flatten(0, 1),
            IDS[:, 1:].flatten(),
            reduction="none",
        )


def first(out):
    if hasattr(out, "logits"):
        return out.logits
    return out[0] if isinstance(out, (tuple, list)) else out["logits"] if isinstance(out, dict) else out


def recorded(tmp, model, wrap=lambda m: m, also=None):
    "Recorded in one form, analysed in another."
    expected = {}
    store = Checkpoints(tmp)
    for step in STEPS:
        store.save(step, wrap(moved(model, step)))
        expected[step] = plain_loss_of(model)
    return store, wrap(model) if also is None else also(model), expected


class TiedByData(Own):
    "The head's matrix has the memory of the embedding's."

    def __init__(self, *more):
        super().__init__(*more)
        self.head.weight.data = self.embedding.weight.data


class TiedByList(Own):
    def __init__(self, *more):
        super().__init__(*more)
        self.shared = [self.embedding.weight]

    def forward(self, input_ids):
        return self.embedding(input_ids) @ self.shared[0].T + self.head(self.embedding(input_ids))


class Derived(Own):
    "A matrix is derived from a weight in eval mode, and kept, as some merge their adapters."

    def train(self, mode=True):
        if hasattr(self, "head"):
            self.__dict__["merged"] = None if mode else 2 * self.head.weight.detach()
        return super().train(mode)

    def forward(self, input_ids):
        return self.embedding(input_ids) @ self.merged.T


class Lazy(Own):
    "A matrix is derived from a weight when it is first needed, and kept."

    merged = None

    def forward(self, input_ids):
        if self.merged is None:
            self.merged = 2 * self.head.weight.detach()
        return self.embedding(input_ids) @ self.merged.T


class KeptInADict(Own):
    def __init__(self, *more):
        super().__init__(*more)
        self.cache = {}

    def forward(self, input_ids):
        if "merged" not in self.cache:
            self.cache["merged"] = 2 * self.head.weight.detach()
        return self.embedding(input_ids) @ self.cache["merged"].T


class KeptInABuffer(Own):
    def __init__(self, *more):
        super().__init__(*more)
        self.register_buffer("merged", None, persistent=False)

    def forward(self, input_ids):
        if self.merged is None:
            self.merged = 2 * self.head.weight.detach()
        return self.embedding(input_ids) @ self.merged.T


class TwoNames(Own):
    "A module that has two names, and is used twice."

    def __init__(self, *more):
        super().__init__(*more)
        self.middle = nn.Linear(8, 8)
        self.same = self.middle
        self.again = nn.ModuleList([self.embedding])

    def forward(self, input_ids):
        return self.head(self.same(self.middle(self.again[0](input_ids)).tanh()))


class SharedBuffers(Own):
    "Two layers save one mask."

    def __init__(self, *more):
        super().__init__(*more)
        mask = torch.linspace(0.5, 1.5, 8)
        for layer in (self.embedding, self.head):
            layer.register_buffer("mask", mask)

    def forward(self, input_ids):
        return self.head(self.embedding(input_ids) * self.embedding.mask * self.head.mask)


Named = collections.namedtuple("Named", "hidden logits")


class NamedTuple(Own):
    def forward(self, input_ids):
        return Named(self.embedding(input_ids), super().forward(input_ids))


class Tuple(Own):
    def forward(self, input_ids):
        return super().forward(input_ids), None


class List(Own):
    def forward(self, input_ids):
        return [super().forward(input_ids)]


class Dict(Own):
    def forward(self, input_ids):
        return {"loss": None, "logits": super().forward(input_ids)}


class Scaled(Own):
    "A parameter without dimensions."

    def __init__(self, *more):
        super().__init__(*more)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, input_ids):
        return self.scale * super().forward(input_ids)


def old_masks(tmp):
    "The causal masks that transformers 4 saved in GPT-2."

    def gpt2(step):
        return llama(
            step,
            (
                lambda **s: tf.GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=32),
                tf.GPT2LMHeadModel,
            ),
        )

    def change(folder, step):
        weights_of(
            folder,
            lambda w: (
                w
                | {
                    f"transformer.h.{i}.attn.{n}": p
                    for i in range(2)
                    for n, p in (
                        ("bias", torch.ones(1, 1, 32, 32, dtype=torch.bool).tril()),
                        ("masked_bias", torch.tensor(-1e4)),
                    )
                }
            ),
        )

    return analysed(folders(tmp, gpt2, change=change))


def banded_masks(tmp):
    "The masks of GPT-Neo, whose attention is global and local in turn."

    def neo(step):
        return llama(
            step,
            (
                lambda **s: tf.GPTNeoConfig(
                    vocab_size=20,
                    hidden_size=16,
                    num_layers=2,
                    attention_types=[[["global", "local"], 1]],
                    num_heads=2,
                    window_size=4,
                    max_position_embeddings=32,
                ),
                tf.GPTNeoForCausalLM,
            ),
        )

    whole = torch.ones(1, 1, 32, 32, dtype=torch.bool).tril()

    def change(folder, step):
        weights_of(
            folder,
            lambda w: (
                w
                | {
                    f"transformer.h.{i}.attn.attention.bias": mask
                    for i, mask in enumerate((whole, whole ^ whole.tril(-4)))
                }
            ),
        )

    return analysed(folders(tmp, neo, change=change))


def fewer_layers(tmp):
    "A model of transformers that is no longer what its configuration says."
    model = llama(1)
    model.model.layers = model.model.layers[:1]
    return recorded(tmp, model.eval())


def peft_adapters(tmp):
    "Adapters alone, made by PEFT, with their base model in a folder."
    peft = pytest.importorskip("peft")
    llama(7).save_pretrained(tmp / "base")
    expected = {}
    for step in STEPS:
        adapted = peft.get_peft_model(
            tf.AutoModelForCausalLM.from_pretrained(tmp / "base"),
            peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_dropout=0.1),
        ).eval()
        noise = torch.Generator().manual_seed(step)
        with torch.no_grad():
            [p.copy_(0.3 * torch.randn(p.shape, generator=noise)) for n, p in adapted.named_parameters() if "lora" in n]
        adapted.save_pretrained(tmp / "adapters" / f"checkpoint-{step}")
        expected[step] = plain_loss(adapted)
    return Checkpoints.open(tmp / "adapters"), tf.AutoModelForCausalLM.from_pretrained(tmp / "base").eval(), expected


def lightning_files(tmp):
    "Checkpoints that a Trainer of Lightning wrote."
    lightning = pytest.importorskip("lightning")
    expected = {}

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters({"lr": 0.1})
            self.net = own(nn.BatchNorm1d(12))
            self.weights = nn.Parameter(torch.ones(2))

        def training_step(self, batch, i):
            return self.net(batch).square().mean() + self.weights.square().sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def on_save_checkpoint(self, checkpoint):
            self.net.eval()
            expected[self.global_step] = plain_loss_of(self.net)
            self.net.train()

    trainer = lightning.Trainer(
        max_steps=6,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp,
        callbacks=[lightning.pytorch.callbacks.ModelCheckpoint(tmp / "lit", every_n_train_steps=2, save_top_k=-1)],
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(IDS, batch_size=3))
    model = own(nn.BatchNorm1d(12))
    return Checkpoints.open(tmp / "lit", model), model, expected


def fsdp_shards(tmp):
    "Shards of torch.distributed, merged by the command that polca names."
    from accelerate.utils import merge_fsdp_weights
    from torch.distributed.checkpoint import FileSystemWriter, save

    for step in STEPS:
        folder = tmp / "run" / f"checkpoint-{step}"
        model = llama(step)
        model.config.save_pretrained(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save(
                {"model": model.state_dict()},
                storage_writer=FileSystemWriter(folder / "pytorch_model_fsdp_0"),
                no_dist=True,
            )
    with pytest.raises(ValueError, match="accelerate merge-weights") as refused:
        Checkpoints.open(tmp / "run")
    command = str(refused.value).partition("with accelerate ")[2].split()
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.accelerate_cli", *command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for step in STEPS[1:]:
        merge_fsdp_weights(*(word.replace("checkpoint-100", f"checkpoint-{step}") for word in command[1:]))
    return analysed(tmp / "run")


def architecture(name, **settings):
    def right(tmp):
        kind = (getattr(tf, f"{name}Config"), getattr(tf, f"{name}ForCausalLM"))
        return analysed(folders(tmp, lambda step: llama(step, kind, **settings)))

    return right


RIGHT = {
    # what a checkpoint is a function of
    "rope_theta as transformers 4 writes it": old_rope,
    "settings that compute no token's loss": harmless_settings,
    "a router's bias that moves in training": moving_router,
    "batch norms, recorded": recorded_buffers,
    "causal masks of older versions": old_masks,
    "masks of GPT-Neo, in turn": banded_masks,
    "fewer layers than its configuration says": fewer_layers,
    "layers that share a buffer": lambda tmp: recorded(tmp, own(kind=SharedBuffers)),
    # names and ties
    "a module with two names": lambda tmp: recorded(tmp, own(kind=TwoNames)),
    "tied embeddings with a padding row": lambda tmp: analysed(
        folders(tmp, lambda step: llama(step, tie_word_embeddings=True))
    ),
    "a tie through .data": lambda tmp: recorded(tmp, own(kind=TiedByData)),
    "names behind _orig_mod.": lambda tmp: recorded_names(tmp, "_orig_mod."),
    "names behind module.": lambda tmp: recorded_names(tmp, "module."),
    "recorded compiled, analysed plain": lambda tmp: recorded(tmp, own(nn.Linear(8, 8)), torch.compile, lambda m: m),
    "recorded plain, analysed compiled": lambda tmp: recorded(tmp, own(nn.Linear(8, 8)), also=torch.compile),
    "compiled in part": lambda tmp: recorded(
        tmp, own(nn.Linear(8, 8)), also=lambda m: own(torch.compile(nn.Linear(8, 8)))
    ),
    "compiled in place": lambda tmp: recorded(tmp, own(nn.Linear(8, 8)), also=lambda m: m.compile() or m),
    "data parallel": lambda tmp: recorded(tmp, own(nn.Linear(8, 8)), nn.DataParallel),
    # folders
    "steps with tokens": lambda tmp: analysed(folders(tmp, names="step{}-tokens4B")),
    "one series of several": lambda tmp: analysed(
        folders(folders(tmp, names="step{}-seed1"), lambda s: llama(s + 1), "step{}-seed2"), series="seed2"
    ),
    "a model beside its checkpoints": lambda tmp: analysed(
        folders(tmp, change=lambda folder, step: llama(step).save_pretrained(tmp))
    ),
    "adapters of PEFT": peft_adapters,
    "checkpoints of Lightning": lightning_files,
    "shards of FSDP, merged": fsdp_shards,
    # shapes and outputs
    "a parameter without dimensions": lambda tmp: recorded(tmp, own(kind=Scaled)),
    "a model that returns a tuple": lambda tmp: recorded(tmp, own(kind=Tuple)),
    "a model that returns a named tuple": lambda tmp: recorded(tmp, own(kind=NamedTuple)),
    "a model that returns a list": lambda tmp: recorded(tmp, own(kind=List)),
    "a model that returns a dictionary": lambda tmp: recorded(tmp, own(kind=Dict)),
    "kinks": lambda tmp: recorded(tmp, own(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))),
    # kinds of models
    **{
        name: architecture(name, **settings)
        for name, settings in {
            "Mistral": {"sliding_window": 4},
            "Qwen2": {},
            "Qwen3": {"head_dim": 8},
            "Gemma": {"head_dim": 8},
            "Gemma2": {"head_dim": 8, "sliding_window": 4},
            "Phi": {},
            "Phi3": {},
            "StableLm": {},
            "Olmo": {},
            "Olmo2": {},
            "GPTNeoX": {},
            "OPT": {"ffn_dim": 24, "word_embed_proj_dim": 16},
            "Bloom": {"n_head": 2, "n_layer": 2},
            "Falcon": {},
            "GPTJ": {"n_embd": 16, "n_head": 2, "n_layer": 2, "rotary_dim": 4, "n_positions": 32},
            "Granite": {},
            "Cohere": {},
            "Mamba": {"state_size": 4},
        }.items()
    },
}


def recorded_names(tmp, prefix):
    store, model, expected = analysed(folders(tmp))
    for step in STEPS:
        prefixed(prefix)(store.places[step], step)
    return Checkpoints.open(tmp), model, expected


# one of each kind for every change; all of them at night
NIGHTLY = {
    "shards of FSDP, merged",
    "Qwen2",
    "Qwen3",
    "Gemma",
    "Phi",
    "Phi3",
    "StableLm",
    "Olmo",
    "Olmo2",
    "Bloom",
    "GPTJ",
    "Granite",
    "Cohere",
}


assert NIGHTLY <= set(RIGHT)


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.nightly) if c in NIGHTLY else c for c in RIGHT])
def test_right(case, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store, model, expected = RIGHT[case](tmp_path)
        losses = TokenLosses(model, BATCHES)
        verify_checkpoints(store, losses=losses)
        assert sorted(expected) == store.steps
        for step in store.steps:
            at, params = losses_at(losses, store.read(step))
            torch.testing.assert_close(at(params), expected[step], rtol=1e-4, atol=1e-4)
        values = torch.stack([expected[s].double() for s in store.steps])
        assert (values.diff(dim=0).abs().amax(1) > 1e-3).all()  # every step has losses of its own
        some = torch.linalg.qr(torch.randn(n_parameters(losses.params), 2, generator=torch.Generator().manual_seed(0)))[
            0
        ].T.contiguous()
        projection = project(store, as_subspace(some, losses.params), losses, progress=False)
    np.testing.assert_allclose(projection["loss"], values, rtol=1e-4, atol=1e-4)
    step = store.steps[-1]
    at, params = losses_at(losses, store.read(step))
    with torch.enable_grad():
        leaves = {n: p.requires_grad_() for n, p in params.items()}
        grads = [
            torch.autograd.grad(loss, tuple(leaves.values()), retain_graph=True, materialize_grads=True)
            for loss in torch.cat([at.batch(i, leaves) for i in range(2)])[:5]
        ]
    brute = torch.stack([flatten(dict(zip(leaves, g))) for g in grads]) @ some.T
    np.testing.assert_allclose(projection["gradient"].sel(step=step)[:5], brute, rtol=2e-3, atol=2e-4)


# what is refused: each makes a call that raises ValueError, whose message has the words


def verified(store, model):
    return lambda: verify_checkpoints(store, losses=TokenLosses(model, BATCHES))


def opened(place, model=None, **how):
    return lambda: verify_checkpoints(
        Checkpoints.open(place, model, **how), losses=model and TokenLosses(model, BATCHES)
    )


def another_rope(style, step):
    "One of the folders, in the style of one version of transformers, has another base of its rotations than the model."

    def refused(tmp):
        def change(folder, at):
            if at == step and style == 4:
                config_of(folder, rope_parameters=None, rope_theta=100.0)
            if at == step and style == 5:
                config_of(folder, rope_parameters={"rope_theta": 100.0, "rope_type": "default"})

        return verified(Checkpoints.open(folders(tmp, change=change)), llama())

    return refused


def broken(change, make=llama):
    "Folders of which the second is changed, opened by themselves."
    return lambda tmp: opened(
        folders(tmp, make, change=lambda folder, step: change(folder) if step == STEPS[1] else None)
    )


def eager_falcon(tmp):
    "transformers adds Falcon's ALiBi twice in its plain attention, and once in the one that it uses."

    def falcon(step):
        return llama(step, (tf.FalconConfig, tf.FalconForCausalLM), alibi=True, new_decoder_architecture=False)

    store = Checkpoints.open(folders(tmp, falcon))
    return verified(store, store.open_model(100, attention="eager"))


def two_networks(tmp):
    "A network and its moving average, in Lightning's layout."
    for step in STEPS:
        both = {
            f"{part}.{n}": p
            for part, seed in (("ema_model", step + 1), ("model", step))
            for n, p in moved(own(), seed).state_dict().items()
        }
        torch.save({"state_dict": both, "global_step": step}, tmp / f"step={step}.ckpt")
    return opened(tmp, own())


def adapter_cut(tmp):
    peft = pytest.importorskip("peft")
    llama(7).save_pretrained(tmp / "base")
    for step in STEPS:
        peft.get_peft_model(
            tf.AutoModelForCausalLM.from_pretrained(tmp / "base"), peft.LoraConfig(r=2, target_modules=["q_proj"])
        ).save_pretrained(tmp / "a" / f"step{step}")
        file = tmp / "a" / f"step{step}" / "adapter_model.safetensors"
        save_file(dict(list(load_file(file).items())[1:]), file)
    return opened(tmp / "a")


def no_weights(*files, weights=False):
    "Folders with other files instead of weights."

    def refused(tmp):
        for step in STEPS:
            for file in files:
                (tmp / f"checkpoint-{step}" / file).parent.mkdir(parents=True, exist_ok=True)
                (tmp / f"checkpoint-{step}" / file).touch()
        return opened(tmp)

    return refused


def real_bias(tmp):
    "A weight has the name of GPT-2's old causal mask."

    class Attention(nn.Module):
        def __init__(self, bias):
            super().__init__()
            self.attn = nn.Linear(8, 8, bias=bias)

        def forward(self, x):
            return self.attn(x)

    for step in STEPS:
        (
            (tmp / f"step{step}").mkdir(),
            save_file(moved(own(Attention(True)), step).state_dict(), tmp / f"step{step}" / "model.safetensors"),
        )
    return opened(tmp, own(Attention(False)))


def buffers_left_out(tmp):
    "One checkpoint of three was saved without the buffers that move."
    model = own(nn.BatchNorm1d(12))
    store = Checkpoints(tmp)
    for step in STEPS:
        store.save(step, parameters(moved(model, step)) if step == 200 else moved(model, step))
    return verified(store, model)


class FusedSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.slope = 2 * x.detach()
        return x.square()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope


class DetachedSquare(FusedSquare):
    @staticmethod
    def backward(ctx, g):
        return g.detach() * ctx.slope  # nor in what comes in


class FusedScale(torch.autograd.Function):
    "x w, of a weight that no layer known to polca owns."

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[1], (g * ctx.saved_tensors[0]).sum((0, 1))


class Square(nn.Module):
    def __init__(self, function=None):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x) if self.function else x.square()


class Scale(nn.Module):
    def __init__(self, scalar=False):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(1, 2, 8))
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return FusedScale.apply(x, self.weight) * self.scale


class FusedWithin(Own):
    def forward(self, input_ids):
        return self.head(FusedSquare.apply(2 * self.embedding(input_ids).relu() + 0.1))


def fused(function=FusedSquare):
    return own(nn.Linear(8, 8), Square(function), nn.Linear(8, 8))


def on(model, call):
    def refused(tmp):
        store, _, _ = recorded(tmp, model)
        return lambda: call(store, TokenLosses(model, BATCHES))

    return refused


def some_direction(losses):
    v = torch.ones(1, n_parameters(losses.params))
    return v / v.norm()


def losses_of(model=None, **batch):
    return lambda tmp: lambda: TokenLosses(model or own(), [{"input_ids": IDS, "labels": IDS} | batch])


def with_parameter(p, name="odd"):
    model = own()
    model.register_parameter(name, p)
    return model


def table(**columns):
    "A projection of tokens with these columns."
    return tabled(
        lambda n: pd.DataFrame(
            {name: (value * n)[:n] if isinstance(value, list) else value(n) for name, value in columns.items()}
        )
    )


def tabled(make, on_disk=False):
    def refused(tmp):
        store, model, _ = recorded(tmp, own())
        losses = TokenLosses(model, BATCHES)
        losses.tokens = make(len(losses))

        def nothing(*args):
            raise AssertionError("a checkpoint was read")

        store.read = nothing
        return lambda: project(store, as_subspace(some_direction(losses), losses.params), losses, progress=False)

    return refused


def tokenizer(place, **how):
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["to be or not to be, that is the question"], vocab_size=270, show_progress=False)
    tf.PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **how).save_pretrained(place)
    return place


def config_alone(kind):
    def refused(tmp):
        file = tokenizer(tmp / "all") / "tokenizer_config.json"
        (tmp / "alone").mkdir()
        (tmp / "alone" / file.name).write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": kind}))
        return lambda: open_tokenizer(str(tmp / "alone"))

    return refused


def dropping(tmp):
    from tokenizers import Tokenizer, models

    half = tf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE({c: i for i, c in enumerate("abcdefghijklm ")}, []))
    )
    return lambda: cut_windows({"text": "the quick brown fox jumps over the lazy dog " * 5}, half, 16)


def path(**places):
    "A run on paths that are not there."

    def refused(tmp):
        (tmp / "text.txt").write_text("words " * 500)
        config = {
            "model": str(tokenizer(tmp / "model")),
            "checkpoints": str(folders(tmp / "trainer", lambda step: llama(step, vocab_size=270))),
            "texts": (str(tmp / "text.txt"),),
        }
        llama(vocab_size=270).save_pretrained(tmp / "model")
        config |= {name: value.format(tmp=tmp) for name, value in places.items()}
        return lambda: Run.create(tmp / "out", TextTask(TextConfig(**config))).make(progress=False, say=None)

    return refused


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
BOM = b"\xef\xbb\xbf"


def config_bytes(make):
    return broken(lambda folder: (folder / "config.json").write_bytes(make((folder / "config.json").read_bytes())))


REFUSED = {
    # what a checkpoint is a function of
    "another rope_theta, transformers 4, first": (another_rope(4, 100), "rope_theta=100.0, not 10000.0"),
    "another rope_theta, transformers 4, second": (another_rope(4, 200), "step 200", "rope_theta=100.0, not 10000.0"),
    "another rope_theta, transformers 5, last": (another_rope(5, 300), "step 300", "rope_theta=100.0, not 10000.0"),
    "another rope_theta than recorded": (
        lambda tmp: verified(*recorded(tmp, llama(1, rope_theta=100.0), also=lambda m: llama(1))[:2]),
        "rope_theta=100.0, not 10000.0",
    ),
    "another activation": (
        lambda tmp: verified(Checkpoints.open(folders(tmp)), llama(hidden_act="gelu")),
        "hidden_act='silu', not 'gelu'",
    ),
    "other experts chosen": (
        lambda tmp: verified(
            Checkpoints.open(folders(tmp, mixtral)),
            llama(0, (tf.MixtralConfig, tf.MixtralForCausalLM), num_local_experts=3, num_experts_per_tok=1),
        ),
        "num_experts_per_tok=2, not 1",
    ),
    "a head tied by a list": (
        lambda tmp: verified(*recorded(tmp, own(kind=TiedByList))[:2]),
        "neither weights nor buffers (shared)",
    ),
    "a matrix derived in eval mode": (
        lambda tmp: verified(*recorded(tmp, own(kind=Derived), also=lambda m: own(kind=Derived))[:2]),
        "neither weights nor buffers (merged)",
    ),
    "a matrix derived when needed": (
        lambda tmp: verified(*recorded(tmp, own(kind=Lazy))[:2]),
        "neither weights nor buffers (merged)",
    ),
    "a matrix kept in a dictionary": (
        lambda tmp: verified(*recorded(tmp, own(kind=KeptInADict))[:2]),
        "neither weights nor buffers (cache)",
    ),
    "a matrix kept in a buffer that is not saved": (
        lambda tmp: verified(*recorded(tmp, own(kind=KeptInABuffer))[:2]),
        "neither weights nor buffers (merged)",
    ),
    "attention that plain operations compute otherwise": (lambda tmp: eager_falcon(tmp), "its plain attention"),
    "two networks in one checkpoint": (two_networks, "several networks like the model", "StateDicts"),
    "a weight called attn.bias": (real_bias, "more.0.attn.bias"),
    "buffers that move, left out once": (buffers_left_out, "does not keep those of step 200", "store.save"),
    # derivatives
    "a fused square, Hessian": (
        on(fused(), lambda store, losses: hessian_subspace(store, losses, [300], progress=False)),
        "more.1 (Square)",
        "--matrix difference",
    ),
    "a fused scale, Hessian": (
        on(own(Scale()), lambda store, losses: hessian_subspace(store, losses, [300], progress=False)),
        "more.0 (Scale)",
        "--matrix difference",
    ),
    "a detached square, Gauss-Newton": (
        on(
            fused(DetachedSquare),
            lambda store, losses: hessian_subspace(store, losses, [300], matrix="gauss-newton", progress=False),
        ),
        "more.1 (Square)",
    ),
    "a detached square, forward": (
        on(
            fused(DetachedSquare),
            lambda store, losses: project_tokens(losses, losses.params, some_direction(losses), "forward"),
        ),
        "engine='reverse', which needs none",
    ),
    "a fused scale, reverse": (
        on(
            own(Scale()), lambda store, losses: project_tokens(losses, losses.params, some_direction(losses), "reverse")
        ),
        "engine='difference'",
    ),
    "a fused scale, auto": (
        on(own(Scale()), lambda store, losses: project_tokens(losses, losses.params, some_direction(losses))),
        "--engine difference",
    ),
    "a fused square in the whole, beside a kink": (
        on(own(kind=FusedWithin), lambda store, losses: hessian_subspace(store, losses, [300], progress=False)),
        "some operation of this model",
    ),
    # tables
    "a text that is missing": (table(tag=["NOUN", None, "NEGATION"]), "column 'tag'", "fillna"),
    "a column of lists": (table(parts=[[1], [2]]), "column 'parts'", "list"),
    "a column of dates": (table(when=lambda n: pd.to_datetime(["2026-01-01"] * n)), "column 'when'", "astype(str)"),
    "a name twice": (tabled(lambda n: pd.DataFrame(np.zeros((n, 2)), columns=["a", "a"])), "there twice"),
    "a name that is a number": (tabled(lambda n: pd.DataFrame({0: range(n)})), "called by a int"),
    "an empty name": (table(**{"": [1]}), "column ''"),
    **{
        f"a column called {name}": (table(**{name: [1.0]}), f"column {name!r}", "rename it")
        for name in (
            "step",
            "loss",
            "gradient",
            "interval",
            "complete",
            "direction",
            "end",
            "token",
            "movement",
            "source_step",
            "0",
            "a/b",
            "a\\b",
            "x" * 300,
        )
    },
    # folders
    "ZeRO shards": (
        no_weights("global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_to_fp32.py", "config.json"),
        "DeepSpeed ZeRO",
        "zero_to_fp32.py",
    ),
    "FSDP shards": (
        no_weights("pytorch_model_fsdp_0/__0_0.distcp", "config.json"),
        "torch.distributed",
        "accelerate merge-weights",
    ),
    "GGUF": (no_weights("model.Q4_0.gguf"), "GGUF"),
    "optimiser alone": (no_weights("optimizer.pt", "trainer_state.json"), "optimiser"),
    "nothing": (lambda tmp: opened(tmp), "holds no checkpoints", "it is empty"),
    "weights of size 0": (
        broken(lambda f: weights_of(f, lambda w: w | {"model.norm.weight": torch.zeros(0)})),
        "model.norm.weight of shape (0,)",
        "ZeRO-3",
    ),
    "resized embeddings": (
        broken(lambda f: config_of(f, vocab_size=19)),
        "of shape (20, 16)",
        "(19, 16)",
        '"vocab_size": 20',
    ),
    "a single checkpoint": (
        lambda tmp: opened(folders(tmp) / "checkpoint-100"),
        "is a single checkpoint",
        "give the folder",
    ),
    "config.json cut": (config_bytes(lambda b: b[:50]), "config.json is damaged", "copy it again"),
    "config.json empty": (config_bytes(lambda b: b""), "config.json is damaged", "empty"),
    "config.json a list": (config_bytes(lambda b: b"[]"), "config.json is damaged", "list"),
    "config.json with a byte order mark": (config_bytes(lambda b: BOM + b), "byte order mark", "sed -i"),
    "config.json a pointer": (config_bytes(lambda b: POINTER), "git -C", "lfs pull"),
    "weights a pointer": (broken(lambda f: (f / "model.safetensors").write_bytes(POINTER)), "git -C", "lfs pull"),
    "code of its own": (
        broken(lambda f: config_of(f, auto_map={"AutoModelForCausalLM": "modeling.Mine"}, model_type="mine")),
        "auto_map",
        "TokenLosses",
    ),
    "quantised weights": (
        broken(lambda f: config_of(f, quantization_config={"quant_method": "gptq", "bits": 4})),
        "quantised (gptq)",
        "dequantize",
    ),
    "integer weights": (
        broken(lambda f: weights_of(f, lambda w: w | {"model.norm.weight": torch.ones(16, dtype=torch.int8)})),
        "floating point",
    ),
    "an adapter without its base": (
        lambda tmp: opened(adapter_alone(tmp)),
        "base_model_name_or_path",
        "check the path",
    ),
    "an adapter that lacks a weight": (adapter_cut, "lacks base_model"),
    "several series": (
        lambda tmp: opened(folders(folders(tmp, names="step{}-seed1"), names="step{}-seed2")),
        "--series seed1",
    ),
    "a tokenizer without its vocabulary (GPT-2)": (config_alone("GPT2Tokenizer"), "no vocabulary (vocab.json"),
    "a tokenizer without its vocabulary (T5)": (config_alone("T5Tokenizer"), "no vocabulary (spiece.model"),
    "a tokenizer without its vocabulary (BERT)": (config_alone("BertTokenizer"), "no vocabulary (vocab.txt"),
    "a tokenizer without its vocabulary (fast)": (
        config_alone("PreTrainedTokenizerFast"),
        "no tokenizer that can be opened",
    ),
    "a tokenizer that drops letters": (dropping, "of the letters of these texts are in no token", "--tokenizer"),
    # shapes, dtypes
    "parameters of two dtypes": (
        losses_of(with_parameter(nn.Parameter(torch.ones(2, dtype=torch.float64)))),
        "odd in torch.float64",
        "model.float()",
    ),
    "a complex parameter": (
        losses_of(with_parameter(nn.Parameter(torch.ones(2, dtype=torch.complex64)))),
        "odd is a parameter in torch.complex64",
        "two real",
    ),
    "an integer parameter": (
        losses_of(with_parameter(nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False))),
        "odd is a parameter in torch.int64",
        "register_buffer",
    ),
    "weights that share a part": (
        lambda tmp: lambda: TokenLosses(overlapping(), BATCHES),
        "share a part of their memory",
    ),
    "a model that returns a string": (
        losses_of(type("Words", (Own,), {"forward": lambda self, input_ids: "words"})().eval()),
        "returns str",
        "loss",
    ),
    "text in a batch": (losses_of(text=["a", "b", "c"]), "`text`, which is a list", "leave the column out"),
    "an empty batch": (
        lambda tmp: lambda: TokenLosses(own(), [*BATCHES, {"input_ids": IDS[:0], "labels": IDS[:0]}]),
        "batch 2 is empty",
    ),
    "labels that are floats": (losses_of(labels=IDS.float()), "labels of batch 0", "integers"),
    "labels of -1": (losses_of(labels=IDS - IDS.max()), "labels of batch 0 have -", "mark with -100"),
    "labels outside of the vocabulary": (losses_of(labels=IDS + 10), "not in the model's vocabulary"),
    "ids outside of the vocabulary": (losses_of(input_ids=IDS + 10), "not in the model's vocabulary"),
    "a model without values": (losses_of(own().to("meta")), "device meta", "from_pretrained"),
    "a model without parameters": (losses_of(nn.Identity().eval()), "no parameters"),
    # places
    "a mistyped model": (path(model="{tmp}/modle"), "no folder", "modle for the model", "check the path"),
    "a mistyped relative path": (path(model="./modle"), "./modle for the model", "check the path"),
    "mistyped checkpoints": (path(checkpoints="{tmp}/chekpoints"), "for the checkpoints", "check the path"),
    "a mistyped tokenizer": (path(tokenizer="{tmp}/tokeniser"), "for the tokenizer", "check the path"),
    "a name that may be on the hub": (
        path(model="somebody/modle"),
        "no folder somebody/modle here for the model",
        "the hub cannot be asked",
    ),
}


def adapter_alone(tmp):
    for step in STEPS:
        (tmp / f"checkpoint-{step}").mkdir()
        (tmp / f"checkpoint-{step}" / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(tmp / "base")})
        )
    return tmp


def overlapping():
    model = own()
    model.head.weight.data = model.embedding.weight.data.view(-1)[:160].view(20, 8)[:10]
    return model


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no network in tests")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", offline)
    make, *words = REFUSED[case]
    call = make(tmp_path)
    with pytest.raises(ValueError) as refused, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call()
    message = str(refused.value)
    assert all(word in message for word in words), message
    assert not (tmp_path / "out").exists()  # nothing is left of a refused start


# what works instead of a fused kernel


def test_differences_in_place_of_a_kernel_that_cannot_be_differentiated_twice(tmp_path):
    store, model, _ = recorded(tmp_path, fused())
    plain = fused(None)
    losses = TokenLosses(model, BATCHES)
    exact = TokenLosses(plain, BATCHES)
    params = store.load(300)
    found = hessian_subspace(store, losses, [300], k=2, tol=1e-2, matrix="difference", progress=False)
    right = lanczos(HessianOperator(exact, params).__matmul__, n_parameters(params), 2, tol=1e-4)
    np.testing.assert_allclose(found.table["eigenvalue"], right.values, rtol=1e-2)
    assert ((found.directions @ right.vectors.T).abs().diag() > 0.99).all()
    projection = project(store, found, losses, engine="difference", progress=False)
    expected = project_tokens(exact, params, found.directions, "forward")
    assert (torch.as_tensor(projection["gradient"].sel(step=300).values) - expected).norm() < 0.01 * expected.norm()
    reverse = project_tokens(losses, params, found.directions, "reverse")  # needs first derivatives alone
    torch.testing.assert_close(reverse, expected, rtol=1e-3, atol=1e-4)


def test_the_hessian_within_little_memory():
    """Graphs that do not fit are made again for each product; differences, which keep none, come to the same, padding
    row and all.
    """
    ids = IDS.repeat(4, 1)
    losses = TokenLosses(llama(1, tie_word_embeddings=True), [{"input_ids": ids, "labels": ids}])
    assert (IDS == losses.model.config.pad_token_id).any()
    v = torch.randn(n_parameters(losses.params), generator=torch.Generator().manual_seed(0))
    whole = HessianOperator(losses, losses.params)
    needs = split_batches(losses, losses.params, partial(rehearse, whole), 2**30)[1]
    tight = HessianOperator(losses, losses.params, memory=int(0.3 * sum(needs)))
    assert not all(tight.batches.keep) and len(tight.batches.losses.batches) > 1
    torch.testing.assert_close(tight @ v, whole @ v, rtol=1e-4, atol=1e-5)
    assert (DifferenceOperator(losses, losses.params) @ v - whole @ v).norm() < 0.01 * (whole @ v).norm()


def test_models_with_kinks_are_differentiated(tmp_path):
    for model in (
        llama(1, (tf.OPTConfig, tf.OPTForCausalLM), ffn_dim=24, word_embed_proj_dim=16),
        mixtral(1),
        own(nn.Linear(8, 8), nn.ReLU()),
        llama(1, tie_word_embeddings=True),
    ):
        losses = TokenLosses(model, BATCHES)
        HessianOperator(losses, losses.params)


# tables come through as they are

COLUMNS = {
    "text": ["a", "", "é😀", " b "],
    "category": pd.Categorical(["x", "y", "x", "y"]),
    "whole": np.array([1, -2, 3, 2**40]),
    "small": np.array([1, 2, 3, 255], dtype=np.uint8),
    "float": [0.1, np.nan, np.inf, -1.0],
    "single": np.array([0.1, 1, 2, 3], dtype=np.float32),
    "true": [True, False, True, True],
    "nullable": pd.array([1, 2, 3, 4], dtype="Int64"),
    "a name, with (signs)": [1, 2, 3, 4],
    "STEP": [1, 2, 3, 4],
    "engines": ["a", "b", "c", "d"],
}


@pytest.mark.parametrize("on_disk", [False, True])
def test_columns_come_through(on_disk, tmp_path):
    store, model, _ = recorded(tmp_path / "checkpoints", own())
    ids = IDS[:1, :5]
    losses = TokenLosses(model, [{"input_ids": ids, "labels": ids}])
    losses.tokens = pd.DataFrame(COLUMNS, index=[7, 7, 3, 1])
    found = project(
        store,
        as_subspace(some_direction(losses), losses.params),
        losses,
        progress=False,
        path=tmp_path / "p.zarr" if on_disk else None,
    )
    if on_disk:
        found = open_projection(tmp_path / "p.zarr", verify=True)
    for name, values in COLUMNS.items():
        column = found[name].values
        assert (
            found[name].dims == ("token",) and column.tolist() == pytest.approx(list(values), nan_ok=True)
            if column.dtype.kind == "f"
            else column.tolist() == list(values)
        ), name
    assert found["small"].dtype == np.uint8 and found["single"].dtype == np.float32 and found["true"].dtype == bool


def test_labels_of_32_bits():
    losses, wide = (
        TokenLosses(own(), [{"input_ids": IDS.to(kind), "labels": IDS.to(kind)}]) for kind in (torch.int32, torch.int64)
    )
    torch.testing.assert_close(losses(losses.params), wide(wide.params))


# a run, from the command line's side


def test_a_run_on_folders_of_another_version(tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question, and " * 60)
    make = lambda step: llama(step, rope_theta=100.0, vocab_size=270)
    folders(
        tmp_path / "trainer",
        make,
        change=lambda folder, step: config_of(folder, rope_parameters=None, rope_theta=100.0),
    )
    make(0).save_pretrained(tmp_path / "model")
    tokenizer(tmp_path / "model")
    config = dict(
        model=str(tmp_path / "model"),
        checkpoints=str(tmp_path / "trainer"),
        texts=(str(tmp_path / "text.txt"),),
        context=16,
        sequences=4,
        hessian_sequences=2,
        tagger="none",
        window=50.0,
    )
    run = Run.create(tmp_path / "run", TextTask(TextConfig(**config)))
    projection = run.project(progress=False, say=None)
    batches = run.inputs.samples.analysed.batches
    for step in STEPS:
        model = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "trainer" / f"checkpoint-{step}").eval()
        torch.testing.assert_close(
            torch.as_tensor(projection["loss"].sel(step=step).values),
            TokenLosses(model, batches)(parameters(model)),
            rtol=1e-4,
            atol=1e-4,
        )
    llama(0, vocab_size=270).save_pretrained(tmp_path / "model")  # with the usual rope_theta
    with pytest.raises(ValueError, match="rope_theta=100.0, not 10000.0"):
        Run.create(tmp_path / "other", TextTask(TextConfig(**config))).make(progress=False, say=None)
    assert not (tmp_path / "other").exists()
