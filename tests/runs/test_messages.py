"What runs say of what is wrong: it is so, and what they tell to do mends it."

from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from partial_runs import made_up

from polca.__main__ import main
from polca.runs.making import EARLIER, earlier_settings
from polca.runs.manifest import LEAVES, STAGES
from polca.runs.run import Run
from polca.runs.stages import StageFiles
from polca.runs.status import RunRecord, format_status, missing_stages, stage_status
from polca.runs.task import TextTask, choose_text_steps, open_text_checkpoints
from polca.runs.text_config import TextConfig
from polca.tasks.arithmetic import addition_preset
from polca.tasks.arithmetic_run import ArithmeticTask

CONFIG = TextConfig("somebody/model", "somebody/suite", ("zen.txt",), revisions=("step0", "step100"))


def refused(call, *args, **how):
    "What a call that is refused says."
    with pytest.raises(ValueError) as e:
        call(*args, **how)
    return str(e.value)


def test_a_run_of_another_task_is_told_by_its_task_and_not_by_settings_that_it_never_had(tmp_path):
    sums = made_up(tmp_path / "sums", "arithmetic", asdict(addition_preset("small")))
    said = refused(Run.create, sums, TextTask(CONFIG))
    assert said == f"{sums} holds a run of arithmetic, not of texts: give another directory with --out"
    texts = made_up(tmp_path / "texts", "texts", asdict(CONFIG))
    said = refused(Run.create, texts, ArithmeticTask(addition_preset("tiny")))
    assert "a run of texts, not of arithmetic" in said and "preset" not in said


def test_a_run_with_other_settings_is_told_by_the_options_that_differ(tmp_path):
    texts = made_up(tmp_path / "texts", "texts", asdict(CONFIG))
    change = {"k": 2, "context": 64, "tokenizer": "other", "hessian_sequences": 9}
    said = refused(Run.create, texts, TextTask(replace(CONFIG, **change)))
    assert "no --tokenizer, now --tokenizer other" in said and "no --context, now --context 64" in said
    assert "; and 1 more)" in said and "_" not in said.removeprefix(str(texts)).replace(str(tmp_path), "")
    sums = made_up(tmp_path / "sums", "arithmetic", asdict(addition_preset("small")))
    said = refused(Run.create, sums, ArithmeticTask(addition_preset("tiny", seed=3)))
    assert "(--preset small, now --preset tiny; --seed 0, now --seed 3)" in said  # the preset chooses all else


def test_directions_are_offered_where_only_what_comes_after_them_differs(tmp_path):
    texts = made_up(tmp_path / "texts", "texts", asdict(CONFIG))
    assert f"--reuse {texts}" in refused(Run.create, texts, TextTask(replace(CONFIG, path_nodes=3)))
    assert "--reuse" not in refused(Run.create, texts, TextTask(replace(CONFIG, path_nodes=3, k=2)))


def test_where_too_many_checkpoints_are_left_out_the_folder_is_said_to_hold_all_of_them():
    store = SimpleNamespace(steps=[0, 20, 40, 60, 80, 100, 120], path="mine")
    said = refused(choose_text_steps, replace(CONFIG, skip_steps=(0, 20, 40, 60, 80)), store)
    assert "mine has 7 and --skip-steps leaves 2: leave fewer out" in said
    assert "mine has 2: give the folder" in refused(
        choose_text_steps, CONFIG, SimpleNamespace(steps=[0, 20], path="mine")
    )
    assert "give 5 or less" in refused(choose_text_steps, replace(CONFIG, every=6), store)
    assert choose_text_steps(replace(CONFIG, every=3), store)[1] == [0, 60, 120]


def test_checkpoints_without_a_configuration_are_named(tmp_path, monkeypatch):
    for step in (0, 60, 120):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in ("model.safetensors", "config.json")[: 1 if step == 60 else 2]:
            (tmp_path / f"checkpoint-{step}" / name).touch()
    monkeypatch.setattr("polca.runs.task.Checkpoints.open", _open_with_a_model)
    with pytest.warns(UserWarning, match=f"^checkpoint-60 of {tmp_path} has no config.json: that of --model is taken"):
        open_text_checkpoints(replace(CONFIG, checkpoints=str(tmp_path), revisions=()), lambda: "a model")


def _open_with_a_model(place, model=None, series=None):
    from polca.core.pretrained import NoModelGiven

    if model is None:
        raise NoModelGiven(place)
    return place


def whole(tmp_path, checkpoints, steps=(0, 100)):
    "A run whose stages are all said to be complete, of checkpoints of a folder, of which there are the names."
    for step in (0, 100):
        checkpoints.mkdir(exist_ok=True)
        (checkpoints / f"step-{step:08d}.safetensors").touch()
    config = replace(CONFIG, checkpoints=str(checkpoints), revisions=())
    return made_up(tmp_path / "run", "texts", asdict(config), STAGES, steps)


def test_what_has_changed_or_gone_since_a_stage_was_complete_is_told(tmp_path):
    folder = whole(tmp_path, tmp_path / "ck")
    assert all(row["complete"] and not row["why"] for row in stage_status(RunRecord(folder)))
    (folder / LEAVES["report"]).write_text("changed by somebody")
    (folder / LEAVES["axes"]).unlink()
    (tmp_path / "ck" / "step-00000100.safetensors").unlink()
    rows = stage_status(RunRecord(folder))
    assert [row["stage"] for row in rows if not row["complete"]] == ["train", "axes", "report"]
    table, said = format_status(rows).split("\ntrain: ")
    assert table.count("changed since") == 3 and "absent" not in table
    assert said.splitlines() == [
        f"step 100 is gone from {tmp_path / 'ck'}: restore it",
        f"axes: {folder / 'axes'} is gone: polca axes {folder} makes it again",
        f"report: {folder / 'report.html'} has changed: polca report {folder} makes it again, or says what is wrong",
    ]


def test_what_is_half_made_again_is_unfinished_and_nobody_is_told_to_delete_it(tmp_path):
    folder = whole(tmp_path, tmp_path / "ck")
    basis = folder / LEAVES["subspace"]
    basis.unlink(missing_ok=True)
    basis.mkdir()
    (basis / "directions-00000100.safetensors").write_text("the first of two")
    said = format_status(stage_status(RunRecord(folder)))
    assert "unfinished: 1 source steps" in said and "subspace: " not in said and "delete" not in said


def test_the_status_of_an_unfinished_run_names_the_next_command(tmp_path, capsys):
    folder = whole(tmp_path, tmp_path / "ck")
    assert main(["status", str(folder)]) == 0 and "to go on" not in capsys.readouterr().out
    (folder / LEAVES["report"]).unlink()
    assert missing_stages(RunRecord(folder), "report") == ["report"]
    assert main(["status", str(folder)]) == 0
    assert f"to go on: polca run {folder}" in capsys.readouterr().out


def test_what_was_made_and_is_gone_is_told_from_what_was_not_made(tmp_path):
    folder = whole(tmp_path, tmp_path / "ck")
    (folder / LEAVES["project"]).unlink()
    assert "is gone: polca project" in refused(StageFiles(folder).verified, "project")
    bare = made_up(tmp_path / "bare", "texts", asdict(CONFIG))
    assert f"polca report {bare} makes all" in refused(StageFiles(bare).verified, "project")


def test_a_damaged_folder_of_earlier_clusters_is_named(tmp_path):
    kept = tmp_path / EARLIER / "0a1b2c3d"
    kept.mkdir(parents=True)
    (kept / "kept.json").write_text("{} and more")
    said = refused(earlier_settings, tmp_path)
    assert said.startswith(f"{kept} is damaged (") and said.endswith("): delete it")


def test_settings_are_refused_by_the_options_that_give_them():
    for wrong, words in (
        ({"k": 0}, "--k 0: give 1 or more"),
        ({"min_samples": 0}, "--min-samples 0: give 1 or more"),
        ({"window": -5.0}, "--window -5: give a number of steps above 0"),
        ({"path_tol": 0.1, "path_nodes": 0}, "--path-tol 0.1 asks for points along the path, --path-nodes 0 for none"),
        ({"shard": True, "displacements": 2}, "--shard makes no displacements: leave --displacements out"),
        ({"curvature_sequences": 50}, "--curvature-sequences 50 is more than the 40 --sequences"),
        ({"which": "smallest"}, "--which smallest: give largest or magnitude"),
    ):
        assert words in refused(TextTask, replace(CONFIG, **wrong))
