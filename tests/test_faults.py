"""Faults, tried and counted: after each there is a clear error or a right result, and nothing that was complete is lost."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import xarray as xr
from commands import SERVER

from polca.core.checkpoints import Checkpoints
from polca.runs.manifest import STAGES, read_manifest
from polca.runs.run import Run
from polca.runs.task import TextConfig, TextTask
from polca.tasks.arithmetic import addition_preset
from polca.tasks.arithmetic_run import ArithmeticTask

KILLS_PER_STAGE = 4
# every place in every file and each stage: minutes instead of one; CI takes a part of them
ALL = bool(os.environ.get("POLCA_ALL_FAULTS"))
PLACES = (0.02, 0.5, 0.99) if ALL else (0.5,)


def create(folder):
    return Run.create(folder, ArithmeticTask(addition_preset("tiny")))


def quiet(run, upto="report"):
    return run.make(upto, progress=False, say=None)


def work(folder, upto, seed, started):
    "In a process of its own: make the stages up to one, telling when each of them starts."
    torch.set_num_threads(1)
    create(folder).make(upto, progress=False, say=started.put)


def numbers(run):
    "All numbers of a run that is complete."
    with xr.open_zarr(run.folder / "projection.zarr", consolidated=False, chunks=None) as projection:
        projection = projection.load()
    return {
        "weights": run.manifest["stages"]["train"]["weights"],
        "basis": run.results.read_basis(),
        "projection": projection,
        "decomposition": run.results.read_decomposition(),
        "clusters": (run.folder / "clusters" / "tables.json").read_text(),
        "labels": {n: c.labels.values.tolist() for n, c in run.results.read_clusters().items()},
    }


def assert_same(a, b):
    "Bit by bit."
    assert a["weights"] == b["weights"]
    assert torch.equal(a["basis"].directions, b["basis"].directions) and a["basis"].table.equals(b["basis"].table)
    assert a["projection"].equals(b["projection"])
    assert all(a[n] == b[n] for n in ("decomposition", "clusters", "labels"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A complete run that nothing happened to."
    torch.set_num_threads(1)
    return quiet(create(tmp_path_factory.mktemp("runs") / "whole"))


@pytest.fixture
def copy(whole, tmp_path):
    "A function: a copy of the complete run without the stages from one on."

    def make(first_missing=None):
        shutil.copytree(whole.folder, tmp_path / "run")
        manifest = read_manifest(tmp_path / "run")
        for stage in STAGES[STAGES.index(first_missing) :] if first_missing else ():
            del manifest["stages"][stage]
        (tmp_path / "run" / "run.json").write_text(json.dumps(manifest))
        return tmp_path / "run"

    return make


LEAVES = {
    "train": "checkpoints",
    "subspace": "basis",
    "project": "projection.zarr",
    "decompose": "decomposition.json",
    "cluster": "clusters",
    "report": "report.html",
}


def remove(folder, stages):
    for stage in stages:
        path = folder / LEAVES[stage]
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


# kills


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_random_moments_a_stage_is_complete_or_absent_and_ends_in_the_same_numbers(whole, copy, stage):
    folder = copy(stage)
    chance = random.Random(stage)
    killed = 0
    remove(folder, STAGES[STAGES.index(stage) :])
    before = read_manifest(folder)["stages"]
    length = whole.manifest["stages"][stage]["seconds"]
    for _ in range(10 * KILLS_PER_STAGE):
        if killed == KILLS_PER_STAGE:
            break
        started = SERVER.Queue()
        process = SERVER.Process(target=work, args=(folder, stage, 0, started))
        process.start()
        while f"] {stage}:" not in started.get(timeout=120):
            pass
        time.sleep(chance.uniform(0, 0.9 * length))
        process.kill()
        process.join()
        killed += process.exitcode == -9
        now = read_manifest(folder)["stages"]
        assert all(now[s] == record for s, record in before.items())  # nothing that was complete is lost
        if stage in now:  # it was faster than the kill
            remove(folder, [stage])
            (folder / "run.json").write_text(json.dumps(read_manifest(folder) | {"stages": before}))
    assert killed == KILLS_PER_STAGE
    assert_same(numbers(quiet(Run.open(folder), max(stage, "cluster", key=STAGES.index))), numbers(whole))


def test_two_processes_on_one_directory(tmp_path, whole):
    started = SERVER.Queue()
    process = SERVER.Process(target=work, args=(tmp_path / "run", "cluster", 0, started))
    process.start()
    while "] project:" not in started.get(timeout=120):
        pass
    with pytest.raises(BlockingIOError, match="another process is at work"):
        quiet(Run.open(tmp_path / "run"))
    process.join()
    assert process.exitcode == 0
    assert_same(numbers(Run.open(tmp_path / "run")), numbers(whole))


# damage


def damage(file, how, place):
    data = bytearray(file.read_bytes())
    if how == "truncated":
        data = data[: int(len(data) * place)]
    else:
        data[int((len(data) - 1) * place)] ^= 0x10
    file.write_bytes(bytes(data))


FILES = {
    "checkpoints/step-00000080.safetensors": "subspace",
    "checkpoints/step-00000100.safetensors": "project",
    "basis/directions-00000080.safetensors": "project",
    "projection.zarr/gradient/3.0.0": "decompose",
    "projection.zarr/loss/3.0": "decompose",
    "projection.zarr/movement/2.0": "cluster",
    "projection.zarr/carry/0": "cluster",
    "projection.zarr/gradient/.zarray": "decompose",
    "clusters/tables.json": "report",
    "clusters/labels.zarr/paper/cluster/0.0": "report",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("how", ["truncated", "flipped"])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_of_a_complete_stage_is_named_or_made_again(whole, copy, file, how, place):
    folder = copy(FILES[file])
    remove(folder, STAGES[STAGES.index(FILES[file]) :])
    damage(folder / file, how, place)
    try:
        run = quiet(Run.open(folder), max(FILES[file], "cluster", key=STAGES.index))
    except ValueError as e:
        assert (Path(file).name in str(e) or file.split("/")[0] in str(e)) and any(
            word in str(e) for word in ("delete it", "restore it", "record it again")
        )
    else:
        assert how == "truncated"  # another size is seen at once, and what is missing is computed again
        assert_same(numbers(run), numbers(whole))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("how", ["truncated", "flipped"])
@pytest.mark.parametrize(
    "file",
    [
        "basis/directions-00000080.safetensors",
        "projection.zarr/gradient/3.0.0",
        "projection.zarr/loss/3.0",
        "projection.zarr/complete/3",
        "projection.zarr/outside/2.0.1",
        "projection.zarr/token/0",
        "projection.zarr/.zattrs",
    ],
)
def test_a_damaged_file_of_an_unfinished_stage_is_named_or_made_again(whole, copy, file, how, place):
    stage = "subspace" if file.startswith("basis") else "project"
    folder = copy(stage)
    remove(folder, STAGES[STAGES.index(stage) + 1 :])
    last = "basis/directions-00000160.safetensors" if stage == "subspace" else "projection.zarr/complete/10"
    (folder / last).unlink()
    damage(folder / file, how, place)
    try:
        run = quiet(Run.open(folder), "cluster")
    except ValueError as e:
        message = str(e)
        assert file.split("/")[0] in message and "delete it" in message
        path = folder / file if stage == "subspace" else folder / "projection.zarr"  # the remedy
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        run = quiet(Run.open(folder), "cluster")
    assert_same(numbers(run), numbers(whole))


def test_a_damaged_manifest_is_named(whole, copy):
    folder = copy()
    damage(folder / "run.json", "truncated", 0.5)
    with pytest.raises(ValueError, match="run.json is damaged"):
        Run.open(folder)
    shutil.copy(whole.folder / "run.json", folder / "run.json")
    written = (folder / "run.json").read_bytes()
    known = read_manifest(folder)
    for place in random.Random(0).sample(range(len(written)), 40):  # one flipped bit: an error, or the same content
        (folder / "run.json").write_bytes(
            written[:place] + bytes([written[place] ^ 1 << place % 7]) + written[place + 1 :]
        )
        try:
            assert read_manifest(folder) == known
        except ValueError as e:
            assert "run.json" in str(e) and "restore it" in str(e)


@pytest.mark.parametrize("step", [20, 80] if ALL else [80])
def test_a_checkpoint_that_goes_away_is_made_again(whole, copy, step):
    folder = copy("subspace")
    remove(folder, STAGES[1:])
    Checkpoints(folder / "checkpoints").file(step).unlink()
    assert_same(numbers(quiet(Run.open(folder), "cluster")), numbers(whole))


def test_weights_that_are_not_finite_at_one_step(copy):
    folder = copy("subspace")
    remove(folder, STAGES[1:])
    store = Checkpoints(folder / "checkpoints")
    params = store.load(100)
    next(iter(params.values())).view(-1)[3] = float("nan")
    from safetensors.torch import save_file

    save_file(params, store.file(100), metadata={"step": "100", "order": json.dumps(list(params))})
    with pytest.raises(ValueError, match="step-00000100.*not finite"):
        quiet(Run.open(folder))
    assert not (folder / "projection.zarr").exists()


# the file system

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
can_mount = (
    sys.platform == "linux"
    and shutil.which("unshare")
    and subprocess.run([*NAMESPACE, "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True).returncode == 0
)
needs_mount = pytest.mark.skipif(not can_mount, reason="mounting a small file system is not allowed here")


def in_namespace(script, folder):
    "Run a Python script, given as text, where it may mount what it likes on `folder`."
    return subprocess.run(
        [*NAMESPACE, sys.executable, "-c", script, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@needs_mount
@pytest.mark.parametrize("stage", ["subspace", "project", "cluster"] if ALL else ["project"])
def test_a_full_disk_stops_a_run_which_goes_on_when_there_is_space(whole, tmp_path, stage):
    script = f"""
import shutil, subprocess, sys
from pathlib import Path
from polca.tasks.arithmetic import addition_preset
from polca.tasks.arithmetic_run import ArithmeticTask
from polca.runs.run import Run
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", sys.argv[1]], check=True)
folder, filler = Path(sys.argv[1]) / "run", Path(sys.argv[1]) / "filler"
run = Run.create(folder, ArithmeticTask(preset("tiny")))
def fill(message):
    if "] {stage}:" in message:
        with open(filler, "wb") as f: f.write(bytes(max(0, shutil.disk_usage(folder).free - 24_000)))
try: run.make("cluster", progress=False, say=fill)
except OSError as e: print("stopped:", e)
print("complete:", *run.manifest["stages"])
filler.unlink()
run.make("cluster", progress=False, say=None)
shutil.copytree(folder, {str(tmp_path / "copy")!r})
"""
    (tmp_path / "disk").mkdir()
    # the copy has to outlive the mount: it is outside of it
    done = in_namespace(script, tmp_path / "disk")
    assert done.returncode == 0, done.stderr
    stopped, complete = done.stdout.strip().splitlines()
    assert "No space left" in stopped and "free some space" in stopped
    assert complete.split()[1:] == list(STAGES[: STAGES.index(stage)])
    assert_same(numbers(Run.open(tmp_path / "copy")), numbers(whole))


@needs_mount
def test_a_directory_that_cannot_be_written_to_can_be_read(whole, tmp_path):
    script = f"""
import shutil, subprocess, sys
from polca.runs.run import Run
subprocess.run(["mount", "--bind", {str(whole.folder)!r}, sys.argv[1]], check=True)
subprocess.run(["mount", "-o", "remount,bind,ro", sys.argv[1]], check=True)
run = Run.open(sys.argv[1])
assert run.status()["complete"].all() and run.inspect()["tokens"] == 200
try: run.make(say=None)
except OSError as e: print(e)
"""
    (tmp_path / "readonly").mkdir()
    done = in_namespace(script, tmp_path / "readonly")
    assert done.returncode == 0, done.stderr
    assert "cannot be written to" in done.stdout and "make it writable" in done.stdout


# texts, tokens, models


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A folder with a tiny language model: model/, checkpoints/, text.txt."
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    text = " ".join(f"{i} and {i * i}." for i in range(300))
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([text], vocab_size=280, show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer).save_pretrained(folder / "model")
    (folder / "text.txt").write_text(text)
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=280,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
        )
    )
    store = Checkpoints(folder / "checkpoints")
    model.config.save_pretrained(folder / "model")
    for step in range(4):
        store.save(step, model)
        with torch.no_grad():
            [p.add_(0.02 * torch.randn_like(p)) for p in model.parameters()]
    return folder


def analyse(model, out, /, **changes):
    config = {
        "model": str(model / "model"),
        "checkpoints": str(model / "checkpoints"),
        "texts": (str(model / "text.txt"),),
        "context": 16,
        "sequences": 6,
        "hessian_sequences": 4,
        "window": 1.0,
    }
    return quiet(Run.create(out, TextTask(TextConfig(**{**config, **changes}))))


def test_a_small_text_is_analysed(model, tmp_path):
    assert analyse(model, tmp_path / "run").todo() == []


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "no text"),
        (b" \n", "no text"),
        (b"1", "two tokens"),
        (b"caf\xe9 and more", "not UTF-8 at byte 3"),
        (b"1 and 1.", "smaller samples"),
    ],
)
def test_texts_that_cannot_be_analysed(model, tmp_path, content, words):
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        analyse(model, tmp_path / "run", texts=(str(tmp_path / "text.txt"),))
    assert not (tmp_path / "run").exists()  # a refused start leaves nothing


def test_few_tokens_are_refused_before_anything_long(model, tmp_path):
    with pytest.raises(ValueError, match="too few to look for clusters"):
        analyse(model, tmp_path / "run", sequences=1)


def test_a_vocabulary_of_another_model(model, tmp_path):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        ["0 and 0. 1 and 1. " * 50 + " ".join(map(str, range(999)))], vocab_size=600, show_progress=False
    )
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer).save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="use the tokenizer that the model was trained with"):
        analyse(model, tmp_path / "run", tokenizer=str(tmp_path / "tokenizer"))


@pytest.mark.parametrize("other", ["wider", "of another kind"])
def test_a_model_that_these_are_no_checkpoints_of(model, tmp_path, other):
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

    from polca.runs.task import open_tokenizer

    size = len(open_tokenizer(str(model / "model")))
    if other == "wider":
        another = GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=size,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
                max_position_embeddings=16,
            )
        )
    else:
        another = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_positions=16, n_embd=8, n_layer=1, n_head=2))
    another.save_pretrained(tmp_path / "other")
    open_tokenizer(str(model / "model")).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="belongs to another model"):
        analyse(model, tmp_path / "run", model=str(tmp_path / "other"))
    assert not (tmp_path / "run").exists()


def test_tokens_without_loss(model):
    from polca.core.losses import TokenLosses

    task = TextTask(
        TextConfig(str(model / "model"), str(model / "checkpoints"), (str(model / "text.txt"),), context=16)
    )
    ids = torch.ones(2, 16, dtype=torch.long)
    with pytest.raises(ValueError, match="no target token"):
        TokenLosses(task.model, [{"input_ids": ids, "labels": torch.full_like(ids, -100)}])


def test_a_checkpoint_of_another_model_that_goes_away_is_named(model, tmp_path):
    shutil.copytree(model / "checkpoints", tmp_path / "checkpoints")
    run = Run.create(
        tmp_path / "run",
        TextTask(
            TextConfig(
                str(model / "model"),
                str(tmp_path / "checkpoints"),
                (str(model / "text.txt"),),
                context=16,
                sequences=6,
                hessian_sequences=4,
                window=1.0,
            )
        ),
    )
    quiet(run, "train")
    Checkpoints(tmp_path / "checkpoints").file(2).unlink()
    with pytest.raises(ValueError, match="no checkpoint of step 2"):
        quiet(Run.open(tmp_path / "run"))


def test_opening_a_strangers_checkpoint_runs_no_code(model, tmp_path):
    shutil.copytree(model / "model", tmp_path / "step1")

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"weight": Evil()}, tmp_path / "step1" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="step1"):
        Checkpoints.open(tmp_path).load(1)
    assert not (tmp_path / "ran").exists()
