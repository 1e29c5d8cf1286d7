"""A run that is looked at without its task says what it says with it: which stages are complete, or what is wrong."""

import json
import math
import warnings
from dataclasses import asdict, replace

import pandas as pd
import pytest
from partial_runs import made_up

from polca.__main__ import stage_rows
from polca.runs.manifest import STAGES, read_manifest, write_manifest
from polca.runs.run import Run
from polca.runs.status import RunRecord, format_status, stage_status
from polca.runs.text_config import TextConfig
from polca.tasks.arithmetic import addition_preset
from polca.tasks.language import language_preset

CONFIG = TextConfig("somebody/model", "somebody/suite", ("zen.txt",))


def touch(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def own(folder):
    touch(*(folder / f"step-{step:08d}.safetensors" for step in (0, 100)))
    return replace(CONFIG, checkpoints=str(folder))


def trainer(folder):
    for step in (0, 100):
        touch(folder / f"checkpoint-{step}" / "config.json", folder / f"checkpoint-{step}" / "model.safetensors")
    return replace(CONFIG, checkpoints=str(folder))


def with_an_empty_one(folder):
    (folder / "checkpoint-200").mkdir(parents=True)
    return trainer(folder)


def with_others(folder):
    touch(folder / "final-200" / "config.json", folder / "final-200" / "model.safetensors")
    return trainer(folder)


def of_two_series(folder):
    for name in ("step0-seed1", "step100-seed1", "step0-seed2"):
        touch(folder / name / "config.json", folder / name / "model.safetensors")
    return replace(CONFIG, checkpoints=str(folder), series="seed1")


def of_none_of_them(folder):
    return replace(of_two_series(folder), series=None)


def one_gone(folder):
    config = own(folder)
    (folder / "step-00000000.safetensors").unlink()
    return config


def all_gone(folder):
    return replace(CONFIG, checkpoints=str(folder))


def revisions(folder):
    return replace(CONFIG, revisions=("step0", "step100", "step200"))


def no_revisions(folder):
    return CONFIG


def without_configuration(folder):
    touch(*(folder / f"checkpoint-{step}" / "model.safetensors" for step in (0, 100)))
    settings = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 10, "n_positions": 8}
    touch(folder.parent / "model" / "config.json")
    (folder.parent / "model" / "config.json").write_text(json.dumps(settings))
    return replace(CONFIG, model=str(folder.parent / "model"), checkpoints=str(folder))


def without_model(folder):
    touch(*(folder / f"epoch=0-step={step}.ckpt" for step in (0, 100)))
    return replace(CONFIG, model=str(folder.parent / "gone"), checkpoints=str(folder))


THERE = (own, trainer, with_an_empty_one, with_others, of_two_series, revisions, without_configuration)
GONE = (of_none_of_them, one_gone, all_gone, no_revisions, without_model)


def said(call):
    "What a call returns, and the warnings that come with it."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        value = call()
    return value, [str(w.message) for w in caught]


@pytest.mark.parametrize("make", THERE + GONE)
def test_the_checkpoints_of_an_analysis_are_found_as_its_task_finds_them(tmp_path, make):
    folder = made_up(tmp_path / "run", "texts", asdict(make(tmp_path / "checkpoints")), STAGES)
    rows, warned = said(lambda: stage_status(RunRecord(folder)))
    opened, also_warned = said(lambda: stage_status(Run.open(folder).inputs))
    assert stage_rows(folder, rows) == stage_rows(folder, opened)
    assert warned == also_warned
    assert rows[0]["complete"] == (make in THERE) and all(row["complete"] for row in rows[1:])


@pytest.mark.parametrize("task, preset", [("arithmetic", addition_preset), ("language", language_preset)])
def test_so_are_those_of_an_experiment(tmp_path, task, preset):
    folder = made_up(tmp_path / "run", task, asdict(preset("tiny")))
    for complete in (False, True):
        for run in (RunRecord(folder), Run.open(folder).inputs):
            assert [row["complete"] for row in stage_status(run)] == [complete, *[False] * 6]
        own(folder / "checkpoints")


def refused(call):
    with pytest.raises(ValueError) as e:
        call()
    return str(e.value)


def changed(folder, **values):
    write_manifest(folder / "run.json", read_manifest(folder) | values)


def test_what_the_task_of_a_run_refuses_to_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = asdict(CONFIG)
    wrong = {
        "no run of polca": None,
        "does not know: open it": {"task": "weather"},
        "another version": {"config": config | {"mood": 1}},
        "missing 1 required": {"config": {name: value for name, value in config.items() if name != "model"}},
        "go on from another": {"config": config | {"model": "here"}},
    }
    (tmp_path / "here").mkdir()
    for i, (words, values) in enumerate(wrong.items()):
        folder = tmp_path / str(i)
        if values is not None:
            changed(made_up(folder, "texts", config), **values)
        assert words in refused(lambda: RunRecord(folder))
        assert refused(lambda: RunRecord(folder)) == refused(lambda: Run.open(folder))


def as_pandas_prints(rows):
    "The table that `format_status` writes, by pandas."
    lines = format_status(rows).splitlines()
    heads = ["state", "finished", "time (estimate)", "peak memory", "disk"]
    ends = [lines[0].index(head) + len(head) for head in heads]
    starts = [len("decompose"), *ends]
    cells = [[line[a:b].strip() for a, b in zip(starts, ends)] for line in lines[2:]]
    return pd.DataFrame(cells, pd.Index([row["stage"] for row in rows], name="stage"), heads).to_string()


@pytest.mark.parametrize("seconds", [0.5, 75.0, 100.0, 10_000.0])
def test_the_table_is_as_pandas_prints_it_and_json_has_the_numbers_of_its_columns(tmp_path, seconds):
    folder = made_up(tmp_path / "run", "texts", asdict(own(tmp_path / "checkpoints")), STAGES[:4])
    manifest = read_manifest(folder)
    for stage in STAGES[:4]:
        manifest["stages"][stage] |= {"seconds": seconds, "finished": "2026-01-01 12:00:00 +0000"}
    guess = {"seconds": seconds, "memory": 3 * 2**29, "disk": 2**40 - 1}
    for estimates in ({}, {"train": guess}, dict.fromkeys(STAGES, guess)):
        changed(folder, stages=manifest["stages"], estimates=estimates)
        rows = stage_status(RunRecord(folder))
        assert format_status(rows) == as_pandas_prints(rows)
        table = Run.open(folder).status().reset_index()
        assert list(table.columns) == list(rows[0])
        plain = table.astype(object).where(table.notna(), None).to_dict("records")
        assert json.dumps(stage_rows(folder, rows)["stages"]) == json.dumps(plain)
    assert math.isnan(rows[-1]["disk"]) and not stage_rows(folder, rows)["complete"]
