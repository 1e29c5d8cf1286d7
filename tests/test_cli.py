"""The command line as a user meets it: a run, its directory, interruptions, bad input.

With POLCA_ALL_FAULTS=1 it is killed and interrupted at more moments, beside load, too.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import polca, start_polca

from polca.__main__ import main
from polca.runs.manifest import STAGES
from polca.runs.run import Run

ALL = bool(os.environ.get("POLCA_ALL_FAULTS"))
POLCA = Path(sys.executable).with_name("polca")
VARIES = ("seconds", "peak_memory_gib", "resumed", "check_sum")


def program(*args, **kwargs):
    "The command as a user starts it, with all imports."
    return subprocess.run([POLCA, *map(str, args)], capture_output=True, text=True, timeout=300, **kwargs)


def start_program(*args):
    "The same, to be interrupted."
    return subprocess.Popen(
        [POLCA, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # one that was itself started in the background passes on an ignored Ctrl-C: here it must count
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def polca_here(*args):
    """The same in this process, which need not import torch again; an exception that the command does not answer ends
    the test.
    """
    out = io.StringIO()
    err = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*map(str, args)])
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


def read(file):
    return json.loads(file.read_text())


def numbers(out):
    return {name: value for name, value in read(out / "results.json").items() if name not in VARIES}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A complete tiny run, and what it printed."
    out = tmp_path_factory.mktemp("runs") / "tiny"
    done = polca("run", "arithmetic", "--preset", "tiny", "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done


def test_a_run_prints_its_table_and_where_to_look(finished):
    out, done = finished
    assert all(f"[{i}/7]" in done.stdout for i in range(1, 8))
    for words in ("estimates:", "Fisher", "0.973 / 0.736 / 0.838", "Findings: "):
        assert words in done.stdout
    for bar in ("training", "projection"):
        assert bar in done.stderr
    assert (out / "report.html").read_text().lower().startswith("<!doctype html")
    last = done.stdout.split("Every number: ")[1].split()
    assert last[0] == f"{out / 'results.json'};"
    figures = last[last.index("Figures:") + 1 :]
    assert len(figures) == 10 and figures[0].endswith("axes_timeline.png")
    assert all(Path(figure).read_bytes().startswith(b"\x89PNG") for figure in figures)


def test_results_hold_what_was_asked_for(finished):
    results = numbers(finished[0])
    assert results["config"]["preset"] == "tiny" and results["config"]["seed"] == 0
    assert set(results["kinds"]) == {"loss", "change", "fisher", "lca", "first", "paper", "trapezoid", "recommended"}
    assert results["environment"]["torch"] and results["orthonormality_error"] <= 1e-6


def test_another_seed_is_another_run(finished, tmp_path):
    seeds = ("--seed", "1", "--data-seed", "0")
    done = polca("run", "arithmetic", "--preset", "tiny", *seeds, "--until", "train", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    other = tmp_path / "runs" / "arithmetic-tiny-seed1-data0"
    assert read(other / "run.json")["config"]["seed"] == 1
    own, of_other = (read(folder / "run.json")["stages"]["train"] for folder in (finished[0], other))
    assert own["data"] == of_other["data"]
    assert own["weights"].keys() == of_other["weights"].keys() and own["weights"] != of_other["weights"]


TABLES = ("projection_lca.zarr", "kinds.zarr", "results.json", "figures")  # what follows the stages of a run
MARKS = ("projection_lca.zarr/outside/3.0.0", "kinds.zarr")


def kill_at(mark, out):
    "Start a run in `out`, and kill it as soon as there is the file `mark`."
    process = start_polca("run", "arithmetic", "--preset", "tiny", "--out", out).process
    until = time.monotonic() + 120
    while not (out / mark).exists() and process.is_alive() and time.monotonic() < until:
        time.sleep(0.002)
    assert process.is_alive(), f"the run ended before {mark} appeared"
    process.kill()
    process.join()


@pytest.mark.nightly  # test_faults.py has it for the stages, which are all but these tables
def test_killed_at_any_stage_it_goes_on_to_the_same_numbers(finished, tmp_path):
    # the stages of a run itself are in test_faults.py
    out = tmp_path / "killed"
    if ALL:
        kill_at("checkpoints/step-00000100.safetensors", out)
    else:
        shutil.copytree(finished[0], out, ignore=shutil.ignore_patterns(*TABLES))
    for mark in MARKS:
        kill_at(mark, out)
    assert not (out / "results.json").exists()
    assert polca("run", "arithmetic", "--preset", "tiny", "--out", out).returncode == 0
    assert numbers(out) == numbers(finished[0])


def test_ctrl_c_says_how_to_go_on(tmp_path):
    process = start_program("run", "arithmetic", "--preset", "tiny", "--out", tmp_path / "run")
    until = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in errors and "Traceback" not in errors


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    done = polca("run", "arithmetic", "--preset", "tiny", "--out", tmp_path)
    assert done.returncode == 2 and "--out" in done.stderr and "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_of_another_configuration_is_left_alone(finished):
    out, _ = finished
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    for changed in (("--preset", "tiny", "--seed", "7"), ("--preset", "small")):
        done = polca_here("run", "arithmetic", "--out", out, *changed)
        assert done.returncode == 2 and "begun with other settings (--" in done.stderr
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*")}


def test_a_damaged_file_is_named_and_nothing_is_lost(finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    for file in ("basis/directions-00000080.safetensors", "checkpoints/step-00000020.safetensors"):
        (out / file).write_bytes((out / file).read_bytes()[:-100])
        done = polca_here("run", "arithmetic", "--preset", "tiny", "--out", out)
        assert done.returncode == 2
        for words in (Path(file).name, "damaged or cut short", "delete it"):
            assert words in done.stderr
        (out / file).unlink()  # the remedy that the message names
        (out / "results.json").unlink(missing_ok=True)  # else nothing would read the checkpoints
    assert polca_here("run", out, "--until", "cluster").returncode == 0
    for record in ("checkpoints", "basis", "projection.zarr", "clusters"):
        assert (out / record).exists()
    one, two = (read(run / "run.json")["stages"] for run in (finished[0], out))
    for stage in STAGES[:-1]:
        assert two[stage]["output"] == one[stage]["output"], stage


def test_wrong_words_show_the_usage():
    done = program("run", "arithmetic", "--preset", "huge")
    assert done.returncode == 2 and "invalid choice" in done.stderr
    assert program("--version").stdout.startswith("polca ")
    assert "--preset" in program("run", "--help").stdout and "torch" not in program("--help").stdout


def test_an_option_is_not_taken_for_a_longer_one():
    done = program("run", "arithmetic", "--pre", "tiny")
    assert done.returncode == 2 and "there is no option --pre" in done.stderr and "--preset" in done.stderr


def test_status_and_inspect_answer_machines_and_people(finished, tmp_path):
    out, _ = finished
    status = json.loads(program("status", out, "--json").stdout)
    assert status["complete"]
    assert [row["stage"] for row in status["stages"]] == list(STAGES)
    found = json.loads(polca_here("inspect", out, "--json").stdout)
    assert found["tokens"] == 200
    assert found["decomposition"]["trapezoid"]["net"] == numbers(out)["explained"]["trapezoid"]["net"]
    shown = polca_here("inspect", out).stdout
    assert "mean loss" in shown and "of random sets of tokens would" in shown
    missing = polca_here("status", tmp_path, "--json")
    assert missing.returncode == 2
    assert "no run of polca" in json.loads(missing.stdout)["error"]
    assert "no run of polca" in missing.stderr


def test_findings_are_the_same_in_every_view(finished, tmp_path):
    out, done = finished
    answer = json.loads(polca_here("--json", "findings", out).stdout)
    found = answer["findings"]
    assert found and all(finding["heading"] in done.stdout for finding in found[:8])
    more = f"(8 of {len(found)} are shown here, all by: polca findings {out})"
    assert (more in done.stdout) == (len(found) > 8)
    assert "are shown here" not in polca_here("findings", out).stdout
    rows = pd.read_csv(io.StringIO(polca_here("findings", out, "--csv").stdout))
    assert rows["id"].drop_duplicates().tolist() == [finding["id"] for finding in found]
    page = (out / "report.html").read_text()
    loss = Run.open(out).project(progress=False, say=None)["loss"].values
    of_sides = rows.to_dict("records")
    for finding in found:
        assert f"<h3>{finding['id']}: " in page or f"<summary>{finding['id']}: " in page
        for side in finding["sides"]:
            row = of_sides.pop(0)
            assert row["tokens"] == len(side["tokens"]) and row["begin"] == side["begin"]
            assert side["loss_last"] == pytest.approx(loss[-1, side["tokens"]].mean())
            assert f"{side['loss_first']:.2f} → {side['loss_last']:.2f}" in page
    tokens = Run.open(out).tokens()
    first = found[0]["sides"][0]["tokens"]
    sign = "+" if found[0]["kind"] == "axis" else ""
    belongs = [found[0]["id"] + sign in ids.split() for ids in tokens["findings"]]
    assert np.flatnonzero(belongs).tolist() == first
    shutil.copytree(out, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "clusters")
    missing = polca_here("findings", tmp_path / "copy")
    assert missing.returncode == 2 and f"polca cluster {tmp_path / 'copy'}" in missing.stderr


def test_inspect_reads_the_checkpoints_too(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "step-00000100.safetensors"
    data = bytearray(file.read_bytes())
    data[-10] ^= 1
    file.write_bytes(data)
    done = polca_here("inspect", tmp_path / "run")
    assert done.returncode == 2 and file.name in done.stderr


SWEEP = [0.1 * i for i in range(1, 41)] if ALL else [0.15, 0.6, 1.2, 2.5]
LOADS = {"idle": 0, "beside load": 3} if ALL else {"idle": 0}


def interrupted(delay, *args):
    """What a command comes to that is interrupted `delay` seconds after its start; None where Python itself had not
    come to polca's first line.
    """
    process = start_program(*args)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=120)
    if "Traceback" in errors and "polca/__main__.py" not in errors and delay < 0.5:
        return None
    return process.returncode, out, errors


@contextlib.contextmanager
def busy_processes(number):
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_ctrl_c_at_any_moment_of_the_start(finished, load):
    out = finished[0]
    commands = (("analyze", "--help"), ("status", out), ("run", out, "--until", "project"), ("inspect", out))
    with busy_processes(load):
        for i, delay in enumerate(SWEEP):
            command = commands[i % 4]
            found = interrupted(delay, *command)
            if found is None:
                continue
            code, _, errors = found
            assert code in (0, 130, -signal.SIGINT), (command, delay, found)
            assert "Traceback" not in errors, (command, delay, found)
            assert len(errors.strip().splitlines()) <= 1, (command, delay, found)


@pytest.mark.parametrize(
    "encoding, command",
    [
        ("ascii", ("analyze", "--help")),
        pytest.param("cp1252", ("run", "RUN"), marks=pytest.mark.nightly),
    ],
)
def test_no_output_fails_on_an_encoding(finished, encoding, command):
    env = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = program(*(finished[0] if word == "RUN" else word for word in command), env=env, errors="replace")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def test_no_letters_of_wikipedia():
    done = polca_here("run", "language", "--preset", "tiny", "--wikipedia", "0")
    assert done.returncode == 2 and "above 0" in done.stderr


def test_a_stage_at_a_time(finished, tmp_path):
    out = tmp_path / "run"
    assert polca_here("run", "arithmetic", "--preset", "tiny", "--out", out, "--until", "train").returncode == 0
    done = polca_here("decompose", out, "--json")
    assert done.returncode == 0
    assert [row["complete"] for row in json.loads(done.stdout)["stages"]] == [True] * 4 + [False] * 3
    assert polca_here("run", out, "--until", "cluster").returncode == 0
    assert read(out / "clusters" / "tables.json") == read(finished[0] / "clusters" / "tables.json")


@pytest.mark.nightly  # test_processes.py has it without the command line
def test_two_processes_come_to_the_same_numbers(finished, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--preset", "tiny", "--out", str(tmp_path / "run"), "--until", "decompose"]
    command = [*torchrun, "-m", "polca", "run", "arithmetic", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[2/7] subspace") == 1  # the first one speaks
    one, two = (read(out / "decomposition.json") for out in (finished[0], tmp_path / "run"))
    for rule in one:
        assert two[rule]["totals"] == pytest.approx(one[rule]["totals"], abs=2e-3)
        assert two[rule]["gross"] == pytest.approx(one[rule]["gross"], rel=0.01, abs=1e-4)


def test_late_settings_are_given_to_their_own_command_and_what_was_made_before_is_kept_beside(finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    before = (out / "report.html").read_bytes()
    clusters = read(out / "clusters" / "tables.json")
    done = polca_here("cluster", out, "--window", 25, "--min-cluster-size", 9)
    assert done.returncode == 0 and "kept beside: " in done.stdout and "--window 40" in done.stdout, done.stderr
    assert read(out / "clusters" / "tables.json")["window"] == 25 and not (out / "report.html").exists()
    (beside,) = (out / "earlier").iterdir()
    assert (beside / "report.html").read_bytes() == before and read(beside / "clusters" / "tables.json") == clusters
    assert polca_here("report", out).returncode == 0
    back = polca_here("report", out, "--window", 40, "--min-cluster-size", clusters_of(finished[0]))
    assert back.returncode == 0 and "[6/7]" not in back.stdout and "[7/7]" not in back.stdout, back.stdout
    assert (out / "report.html").read_bytes() == before
    (beside,) = (out / "earlier").iterdir()
    assert read(beside / "clusters" / "tables.json")["window"] == 25 and (beside / "report.html").exists()
    assert polca_here("inspect", out).returncode == 0


def clusters_of(out):
    "The smallest cluster that a run asks for."
    return read(out / "run.json")["config"]["min_cluster_size"]


def test_a_late_setting_that_a_run_cannot_have_changes_nothing(finished):
    out, _ = finished
    before = (out / "run.json").read_bytes()
    for words, message in (
        (("cluster", out, "--min-samples", 5), "has no such setting"),
        (("cluster", out, "--window", 1e6), "does not fit twice"),
        (("report", out, "--window", "-3"), "window=-3"),
        (("cluster", out, "--min-cluster-size", "many"), "invalid int value"),
        (("axes", out, "--window", 30), "no option --window"),
    ):
        done = polca(*words)
        assert done.returncode == 2 and message in done.stderr, (words, done.stderr)
    assert (out / "run.json").read_bytes() == before and not (out / "earlier").exists()
