"""A run that is opened with other settings, or that an earlier version of polca has made."""

from dataclasses import replace

from polca.runs.inspection import axis_facts, axis_lines
from polca.runs.manifest import STAGES, hash_settings, write_manifest
from polca.runs.run import Run
from polca.tasks.arithmetic import addition_preset
from polca.tasks.arithmetic_run import ArithmeticTask


def test_a_late_setting_of_a_run_from_before_a_setting_existed_changes_no_hash_but_its_own(tmp_path):
    config = addition_preset("tiny")
    run = Run.create(tmp_path / "run", ArithmeticTask(config))
    earlier = {name: value for name, value in run.inputs.manifest["config"].items() if name != "data_seed"}
    stages = {"subspace": {"settings": hash_settings(earlier, "subspace")}}  # so that the run is not a bare one
    write_manifest(run.inputs.file, {**run.inputs.manifest, "config": earlier, "stages": stages})
    changed = Run.create(run.folder, ArithmeticTask(replace(config, window=30)))
    now = changed.inputs.manifest["config"]
    assert now == earlier | {"window": 30}
    stale = [stage for stage in STAGES if hash_settings(now, stage) != hash_settings(earlier, stage)]
    assert stale == ["cluster", "report"]
    assert Run.open(run.folder).task.config == replace(config, window=30)


def test_a_run_of_a_single_direction_has_no_axes_and_says_why(tmp_path):
    config = addition_preset("tiny", steps=80, basis_steps=1)
    run = Run.create(tmp_path / "run", ArithmeticTask(config)).make("report", progress=False, say=None)
    assert "none (one direction" in axis_lines(axis_facts(run.results))
    assert "one direction" in (run.folder / "report.html").read_text()
