"""Settings of the last stages that change and come back, and a run that is killed meanwhile."""

import itertools
import shutil
from dataclasses import replace

import pytest

from polca.core.disk import hash_path
from polca.runs import making
from polca.runs.making import EARLIER, earlier_settings
from polca.runs.manifest import LEAVES
from polca.runs.run import Run
from polca.tasks.arithmetic import addition_preset
from polca.tasks.arithmetic_run import ArithmeticTask

CONFIG = addition_preset("tiny", steps=80, validation_sums=20, basis_steps=2)
OTHER = replace(CONFIG, window=30)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    Run.create(folder, ArithmeticTask(CONFIG)).make(progress=False, say=None)
    return folder


def ask(folder, config, upto="cluster"):
    return Run.create(folder, ArithmeticTask(config)).make(upto, progress=False, say=None)


def marks(folder):
    leaves = {stage: folder / LEAVES[stage] for stage in ("cluster", "report")}
    return {stage: hash_path(path) for stage, path in leaves.items() if path.exists()}


def killed_at(monkeypatch, step):
    "Lets the run be killed before the `step`-th thing that changes a file."
    count = itertools.count()

    def counted(call):
        def wrapped(*args, **kwargs):
            if next(count) == step:
                raise KeyboardInterrupt
            return call(*args, **kwargs)

        return wrapped

    for name in ("_copy", "write_json", "write_manifest"):
        monkeypatch.setattr(making, name, counted(getattr(making, name)))
    monkeypatch.setattr(making.shutil, "rmtree", counted(shutil.rmtree))
    return count


@pytest.mark.parametrize("step", range(10))  # as many as there are, or it is not killed
def test_killed_while_settings_change_or_come_back_nothing_is_lost(whole, tmp_path, monkeypatch, step):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    first = marks(folder)
    for config in (OTHER, CONFIG):
        with monkeypatch.context() as patched:
            killed_at(patched, step)
            try:
                Run.create(folder, ArithmeticTask(config))
            except KeyboardInterrupt:
                pass
        run = ask(folder, config)
        assert run.results.read_clusters() and run.inspect()["config"]["window"] == config.window
        if config is CONFIG:
            assert marks(folder)["cluster"] == first["cluster"]
    again = ask(folder, OTHER)
    assert again.todo("cluster") == [] and again.inspect()["config"]["window"] == 30
    assert any(settings["window"] == CONFIG.window for settings in earlier_settings(folder).values())


def test_what_a_killed_stage_left_over_does_not_stand_in_the_way(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    first = marks(folder)
    Run.create(folder, ArithmeticTask(OTHER))
    (folder / "clusters").mkdir()
    (folder / "clusters" / "tables.json").write_text("half of it")
    assert ask(folder, CONFIG).todo() == [] and marks(folder) == first  # the report, too
    assert not list((folder / EARLIER).iterdir())


def test_sizes_that_the_tokens_cannot_have_change_nothing(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    before = (folder / "run.json").read_bytes()
    with pytest.raises(ValueError, match="is more than the 80 tokens"):
        Run.create(folder, ArithmeticTask(replace(CONFIG, min_cluster_size=81)))
    assert (folder / "run.json").read_bytes() == before and not (folder / EARLIER).exists()
