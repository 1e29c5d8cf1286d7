"""Faults, tried and counted: after each there is a clear error or a right result, and nothing that was complete is
lost.

With POLCA_ALL_FAULTS=1 every place in every file and each stage is tried, in minutes instead of one.
"""

import ctypes
import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import xarray as xr
from commands import SERVER, call
from partial_runs import forget, remove
from safetensors.torch import save_file

from polca.core.checkpoints import Checkpoints
from polca.runs.manifest import STAGES, read_manifest, write_manifest
from polca.runs.run import Run
from polca.runs.task import TextConfig, TextTask
from polca.tasks.arithmetic import addition_preset
from polca.tasks.arithmetic_run import ArithmeticTask

ALL = bool(os.environ.get("POLCA_ALL_FAULTS"))
KILLS_PER_STAGE = 4 if ALL else 1
PLACES = (0.02, 0.5, 0.99) if ALL else (0.5,)
# six checkpoints, and directions of two of them
CONFIG = replace(addition_preset("tiny"), steps=100, basis_steps=2)


def create(folder):
    return Run.create(folder, ArithmeticTask(CONFIG))


def quiet(run, upto="report"):
    return run.make(upto, progress=False, say=None)


def work(folder, upto, started):
    "In a process of its own: make the stages up to one, telling when each of them starts."
    torch.set_num_threads(1)
    create(folder).make(upto, progress=False, say=started.put)


def start_work(folder, upto, stage):
    "A process that makes the stages up to one, and has come to `stage`."
    started = SERVER.Queue()
    process = SERVER.Process(target=work, args=(folder, upto, started))
    process.start()
    while f"] {stage}:" not in started.get(timeout=120):
        pass
    return process


def up_to(stage):
    "The stages from the first one on."
    return STAGES[: STAGES.index(stage) + 1]


def later(stage, other):
    return max(stage, other, key=STAGES.index)


# numbers


def read_whole_projection(run):
    with xr.open_zarr(run.folder / "projection.zarr", consolidated=False, chunks=None) as projection:
        return projection.load()


def read_labels(run):
    return {name: clusters.labels.values.tolist() for name, clusters in run.results.read_clusters().items()}


def assert_same(run, whole, upto="cluster"):
    "What the stages up to one have left is the same, bit by bit."
    stages = up_to(upto)
    weights = [each.inputs.manifest["stages"]["train"]["weights"] for each in (run, whole)]
    assert weights[0] == weights[1]
    if "subspace" in stages:
        found, expected = (each.results.read_basis() for each in (run, whole))
        assert torch.equal(found.directions, expected.directions)
        assert found.table.equals(expected.table)
    if "project" in stages:
        assert read_whole_projection(run).equals(read_whole_projection(whole))
    if "decompose" in stages:
        assert run.results.read_decomposition() == whole.results.read_decomposition()
    if "axes" in stages:
        hashes = [each.inputs.manifest["stages"]["axes"]["output"] for each in (run, whole)]
        assert hashes[0] == hashes[1]
    if "cluster" in stages:
        tables = [(each.folder / "clusters" / "tables.json").read_text() for each in (run, whole)]
        assert tables[0] == tables[1]
        assert read_labels(run) == read_labels(whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A complete run that nothing happened to."
    torch.set_num_threads(1)
    return quiet(create(tmp_path_factory.mktemp("runs") / "whole"))


@pytest.fixture
def copy(whole, tmp_path):
    "A function: a copy of the complete run, which does not know that the stages from one on are complete."

    def make(first_missing=None):
        shutil.copytree(whole.folder, tmp_path / "run")
        if first_missing:
            forget(tmp_path / "run", STAGES[STAGES.index(first_missing) :])
        return tmp_path / "run"

    return make


# kills


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_random_moments_a_stage_is_complete_or_absent_and_ends_in_the_same_numbers(whole, copy, stage):
    folder = copy(stage)
    remove(folder, STAGES[STAGES.index(stage) :])
    before = read_manifest(folder)["stages"]
    chance = random.Random(stage)
    length = whole.inputs.manifest["stages"][stage]["seconds"]
    killed = 0
    for _ in range(10 * KILLS_PER_STAGE):
        if killed == KILLS_PER_STAGE:
            break
        process = start_work(folder, stage, stage)
        time.sleep(chance.uniform(0, 0.9 * length))
        process.kill()
        process.join()
        killed += process.exitcode == -9
        now = read_manifest(folder)["stages"]
        assert all(now[s] == record for s, record in before.items())  # nothing that was complete is lost
        if stage in now:  # it was faster than the kill
            remove(folder, [stage])
            write_manifest(folder / "run.json", read_manifest(folder) | {"stages": before})
    assert killed == KILLS_PER_STAGE
    upto = later(stage, "cluster") if ALL else stage
    assert_same(quiet(Run.open(folder), upto), whole, upto)


def test_two_processes_on_one_directory(tmp_path, whole):
    process = start_work(tmp_path / "run", "cluster", "project")
    with pytest.raises(BlockingIOError, match="another process is at work"):
        quiet(Run.open(tmp_path / "run"))
    process.join()
    assert process.exitcode == 0
    assert_same(Run.open(tmp_path / "run"), whole)


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
    "projection.zarr/loss/2.0": "axes",
    "projection.zarr/movement/2.0": "cluster",
    "projection.zarr/carry/0": "cluster",
    "projection.zarr/gradient/.zarray": "decompose",
    "axes/axes.safetensors": "report",
    "axes/tables.json": "report",
    "clusters/tables.json": "report",
    "clusters/labels.zarr/paper/cluster/0.0": "report",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("file", FILES)
def test_a_truncated_file_of_a_complete_stage_is_named_or_made_again(whole, copy, file, place):
    stage = FILES[file]
    folder = copy(stage)
    remove(folder, STAGES[STAGES.index(stage) :])
    damage(folder / file, "truncated", place)
    try:
        run = quiet(Run.open(folder), later(stage, "cluster") if ALL else "cluster")
    except ValueError as e:
        assert_named(file, str(e))
    else:  # another size is seen at once, and what is missing is computed again
        assert_same(run, whole)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_in_a_file_of_a_complete_stage_is_named(copy, file, place):
    stage = FILES[file]
    folder = copy(stage)
    remove(folder, STAGES[STAGES.index(stage) :])
    damage(folder / file, "flipped", place)
    with pytest.raises(ValueError) as e:
        quiet(Run.open(folder), later(stage, "cluster"))
    assert_named(file, str(e.value))


def assert_named(file, message):
    "The message names a file or its folder, and says what to do."
    assert Path(file).name in message or file.split("/")[0] in message
    assert any(words in message for words in ("delete it", "restore it", "record it again"))


UNFINISHED = (
    "basis/directions-00000080.safetensors",
    "projection.zarr/gradient/3.0.0",
    "projection.zarr/loss/3.0",
    "projection.zarr/complete/3",
    "projection.zarr/outside/2.0.1",
    "projection.zarr/token/0",
    "projection.zarr/.zattrs",
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("how", ["truncated", "flipped"] if ALL else ["flipped"])
@pytest.mark.parametrize("file", UNFINISHED)
def test_a_damaged_file_of_an_unfinished_stage_is_named_or_made_again(whole, copy, file, how, place):
    stage = "subspace" if file.startswith("basis") else "project"
    folder = copy(stage)
    remove(folder, STAGES[STAGES.index(stage) + 1 :])
    missing = "basis/directions-00000040.safetensors" if stage == "subspace" else "projection.zarr/complete/5"
    (folder / missing).unlink()
    damage(folder / file, how, place)
    try:
        run = quiet(Run.open(folder), "cluster" if ALL else "project")
    except ValueError as e:
        message = str(e)
        assert file.split("/")[0] in message and "delete it" in message
        path = folder / file if stage == "subspace" else folder / "projection.zarr"  # the remedy
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        run = quiet(Run.open(folder), "cluster" if ALL else "project")
    assert_same(run, whole, "cluster" if ALL else "project")


def test_a_damaged_manifest_is_named(whole, copy):
    folder = copy()
    file = folder / "run.json"
    damage(file, "truncated", 0.5)
    with pytest.raises(ValueError, match="run.json is damaged"):
        Run.open(folder)
    shutil.copy(whole.folder / "run.json", file)
    written = file.read_bytes()
    known = read_manifest(folder)
    name = written.index(b"check_sum")  # without it nothing could be told
    places = [*range(name, name + 9), *random.Random(0).sample(range(len(written)), 40)]
    for place in places:  # one flipped bit: an error, or the same content
        flipped = bytes([written[place] ^ 1 << place % 7])
        file.write_bytes(written[:place] + flipped + written[place + 1 :])
        try:
            assert read_manifest(folder) == known
        except ValueError as e:
            assert "run.json" in str(e) and "restore it" in str(e)


@pytest.mark.parametrize("step", [20, 80] if ALL else [80])
def test_a_checkpoint_that_goes_away_is_made_again(whole, copy, step):
    folder = copy("subspace")
    remove(folder, STAGES[1:])
    Checkpoints(folder / "checkpoints").file(step).unlink()
    assert_same(quiet(Run.open(folder), "cluster"), whole)


def test_weights_that_are_not_finite_at_one_step(copy):
    folder = copy("subspace")
    remove(folder, STAGES[1:])
    store = Checkpoints(folder / "checkpoints")
    params = store.load(100)
    next(iter(params.values())).view(-1)[3] = float("nan")
    save_file(params, store.file(100), metadata={"step": "100", "order": json.dumps(list(params))})
    with pytest.raises(ValueError, match="step-00000100.*not finite"):
        quiet(Run.open(folder))
    assert not (folder / "projection.zarr").exists()


# the file system: in processes that may mount what they like, which nothing outside of them sees

NEW_USER = 0x10000000
NEW_MOUNTS = 0x00020000


def enter_namespace():
    "Give this process, which has one thread, users and mounts of its own; raises OSError where that is not allowed."
    user = os.getuid()
    group = os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_USER | NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def mount(*args):
    subprocess.run(["mount", *map(str, args)], check=True)


def can_mount():
    "Whether a small file system can be mounted here."
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", "mount -t tmpfs none /mnt"]
    if sys.platform != "linux" or not shutil.which("unshare"):
        return False
    return subprocess.run(command, capture_output=True).returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="mounting a small file system is not allowed here")


def run_on_a_full_disk(disk, stage, copy):
    "In a process of its own: a run on a small disk, which is full when a stage begins, and later has space again."
    enter_namespace()
    mount("-t", "tmpfs", "-o", "size=4m", "none", disk)
    folder = disk / "run"
    filler = disk / "filler"

    def fill(message):
        if f"] {stage}:" in message:
            filler.write_bytes(bytes(max(0, shutil.disk_usage(folder).free - 24_000)))

    run = create(folder)
    try:
        run.make("cluster", progress=False, say=fill)
    except OSError as e:
        print("stopped:", e)
    print("complete:", *run.inputs.manifest["stages"])
    filler.unlink()
    quiet(run, "cluster")
    shutil.copytree(folder, copy)  # it outlives the disk


@needs_mount
@pytest.mark.parametrize("stage", ["subspace", "project", "cluster"] if ALL else ["project"])
def test_a_full_disk_stops_a_run_which_goes_on_when_there_is_space(whole, tmp_path, stage):
    (tmp_path / "disk").mkdir()
    done = call(run_on_a_full_disk, tmp_path / "disk", stage, tmp_path / "copy")
    assert done.returncode == 0, done.stderr
    stopped, complete = done.stdout.strip().splitlines()
    assert "No space left" in stopped and "free some space" in stopped
    assert complete.split()[1:] == list(STAGES[: STAGES.index(stage)])
    assert_same(Run.open(tmp_path / "copy"), whole)


def read_where_nothing_can_be_written(folder, place):
    "In a process of its own: look at a run that is mounted read-only, and try to make it."
    enter_namespace()
    mount("--bind", folder, place)
    mount("-o", "remount,bind,ro", place)
    run = Run.open(place)
    assert run.status()["complete"].all()
    assert run.inspect()["tokens"] == 200
    try:
        run.make(say=None)
    except OSError as e:
        print(e)


@needs_mount
def test_a_directory_that_cannot_be_written_to_can_be_read(whole, tmp_path):
    (tmp_path / "readonly").mkdir()
    done = call(read_where_nothing_can_be_written, whole.folder, tmp_path / "readonly")
    assert done.returncode == 0, done.stderr
    assert "cannot be written to" in done.stdout and "make it writable" in done.stdout


# texts, tokens, models


def train_tokenizer(text, vocab_size, folder):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([text], vocab_size=vocab_size, show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer).save_pretrained(folder)


def tiny_neox(vocab_size, hidden_size):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    return GPTNeoXForCausalLM(config)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A folder with a tiny language model: model/, checkpoints/, text.txt."
    folder = tmp_path_factory.mktemp("model")
    text = " ".join(f"{i} and {i * i}." for i in range(300))
    train_tokenizer(text, 280, folder / "model")
    (folder / "text.txt").write_text(text)
    model = tiny_neox(280, 8)
    model.config.save_pretrained(folder / "model")
    store = Checkpoints(folder / "checkpoints")
    for step in range(4):
        store.save(step, model)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.02 * torch.randn_like(p))
    return folder


def text_task(model, /, **changes):
    "The analysis of the tiny language model."
    config = {
        "model": str(model / "model"),
        "checkpoints": str(model / "checkpoints"),
        "texts": (str(model / "text.txt"),),
        "context": 16,
        "sequences": 6,
        "hessian_sequences": 4,
        "window": 1.0,
    }
    return TextTask(TextConfig(**config | changes))


def analyse(model, out, /, **changes):
    return quiet(Run.create(out, text_task(model, **changes)))


def test_a_small_text_is_analysed(model, tmp_path):
    assert analyse(model, tmp_path / "run").todo() == []


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "no text"),
        (b" \n", "no text"),
        (b"1", "two tokens"),
        (b"caf\xe9 and more", "not UTF-8 at byte 3"),
        (b"1 and 1.", "give more --texts"),
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
    train_tokenizer("0 and 0. 1 and 1. " * 50 + " ".join(map(str, range(999))), 600, tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="the one that the model was trained with, with --tokenizer"):
        analyse(model, tmp_path / "run", tokenizer=str(tmp_path / "tokenizer"))


@pytest.mark.parametrize("other", ["wider", "of another kind"])
def test_a_model_that_these_are_no_checkpoints_of(model, tmp_path, other):
    from transformers import GPT2Config, GPT2LMHeadModel

    from polca.runs.task import open_tokenizer

    tokenizer = open_tokenizer(str(model / "model"))
    size = len(tokenizer)
    if other == "wider":
        another = tiny_neox(size, 16)
    else:
        another = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_positions=16, n_embd=8, n_layer=1, n_head=2))
    another.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="belongs to another model"):
        analyse(model, tmp_path / "run", model=str(tmp_path / "other"))
    assert not (tmp_path / "run").exists()


def test_tokens_without_loss(model):
    from polca.core.losses import TokenLosses

    ids = torch.ones(2, 16, dtype=torch.long)
    with pytest.raises(ValueError, match="no target token"):
        TokenLosses(text_task(model).model, [{"input_ids": ids, "labels": torch.full_like(ids, -100)}])


def test_a_checkpoint_of_another_model_that_goes_away_is_named(model, tmp_path):
    shutil.copytree(model / "checkpoints", tmp_path / "checkpoints")
    run = Run.create(tmp_path / "run", text_task(model, checkpoints=str(tmp_path / "checkpoints")))
    quiet(run, "train")
    Checkpoints(tmp_path / "checkpoints").file(2).unlink()
    with pytest.raises(ValueError, match="no checkpoint of step 2"):
        quiet(Run.open(tmp_path / "run"))


class Evil:
    "Runs a command where it is unpickled."

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_opening_a_strangers_checkpoint_runs_no_code(model, tmp_path):
    shutil.copytree(model / "model", tmp_path / "step1")
    torch.save({"weight": Evil(f"touch {tmp_path / 'ran'}")}, tmp_path / "step1" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="step1"):
        Checkpoints.open(tmp_path).load(1)
    assert not (tmp_path / "ran").exists()
