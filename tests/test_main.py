"""The parser of the command line: what it says, what it makes of options, and what it does not import."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
import zarr
from partial_runs import made_up

from polca.__main__ import _CHOICES, STAGE_WORDS, _out_of_memory, command_parser, main
from polca.compute.engines import ENGINES
from polca.compute.operators import MATRICES
from polca.runs.manifest import LEAVES, STAGES
from polca.runs.text_config import TextConfig
from polca.tasks.experiment_configs import ArithmeticConfig, LanguageConfig

ANALYZE = "analyze --model m --checkpoints c --texts a b"


def test_there_is_a_command_for_every_stage():
    assert tuple(STAGE_WORDS) == STAGES


def test_the_choices_are_those_of_the_rooms():
    "They are written down twice, as the command line is to start without torch."
    assert _CHOICES["engine"] == ("auto", *ENGINES)
    assert _CHOICES["matrix"] == tuple(MATRICES)


def test_what_is_wrong_with_the_options_is_a_document_too(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["status", "--json"])
    assert "RUN" in json.loads(capsys.readouterr().out)["error"]


def test_alone_it_prints_help_and_a_misspelt_command_is_guessed(capsys):
    assert main([]) == 0 and "analyze" in capsys.readouterr().out
    for args, words in ((["anlyze"], "did you mean analyze?"), (["xyzzy"], "use one of analyze, run, train")):
        with pytest.raises(SystemExit) as e:
            main(args)
        assert e.value.code == 2 and words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--json", "anlyze"])
    assert "did you mean analyze?" in json.loads(capsys.readouterr().out)["error"]


def test_options_stand_after_the_command_and_json_needs_one(capsys):
    for args, words in ((["--out", "x", "analyze"], "stands before the command"), (["--json"], "give a command")):
        with pytest.raises(SystemExit):
            main(args)
        assert words in capsys.readouterr().err


def test_json_is_asked_for_before_the_command_and_after_it(tmp_path, capsys):
    for args in (["--json", "status", str(tmp_path)], ["status", str(tmp_path), "--json"]):
        assert main(args) == 2
        assert "no run of polca" in json.loads(capsys.readouterr().out)["error"]


def test_a_misspelt_option_is_guessed_below_the_usage_of_its_command(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*ANALYZE.split(), "--contxt", "64"])
    errors = capsys.readouterr().err
    assert "did you mean --context?" in errors
    assert "usage: polca analyze" in errors


@pytest.mark.parametrize(
    "args, words",
    [
        (["status", "x", "y"], "y is one argument too many"),
        (["--verbose"], "there is no option --verbose"),
        (["status", "x", "--jsn"], "there is no option --jsn: did you mean --json?"),
        (["help"], "polca --help"),
    ],
)
def test_what_is_too_much_is_called_what_it_is(capsys, args, words):
    with pytest.raises(SystemExit, match="2"):
        main(args)
    assert words in capsys.readouterr().err


def test_what_is_no_run_directory_is_not_called_one(tmp_path, capsys):
    (tmp_path / "file").touch()
    for place, options in ((tmp_path / "file", ["--seed", "3"]), (tmp_path, ["--preset", "tiny"])):
        assert main(["run", str(place), *options]) == 2
        said = capsys.readouterr().err
        assert f"{place} is no run of polca" in said and "has its settings" not in said
    assert main(["run", "arithmatic"]) == 2 and "did you mean arithmetic?" in capsys.readouterr().err


def test_want_of_memory_is_mended_with_what_the_command_has():
    said = _out_of_memory(MemoryError("no room"), "analyze")
    assert "smaller --memory goes on from here" in said and "another --out" in said
    assert "--preset" in _out_of_memory(MemoryError("no room"), "project")


@pytest.mark.parametrize(
    "words", ["--model", "--checkpoints", "--texts", "--path-tol", "--out", "--until", "(default: 40)"]
)
def test_the_help_of_analyze_has_every_option_and_its_default(capsys, words):
    with pytest.raises(SystemExit, match="0"):
        main(["analyze", "--help"])
    assert words in capsys.readouterr().out


def test_options_have_the_types_of_their_fields():
    options = command_parser().parse_args([*ANALYZE.split(), "--tol", "0.1", "--k", "2"])
    assert options.tol == 0.1
    assert options.k == 2
    assert options.texts == ["a", "b"]
    assert options.context is None  # the defaults stand in one place, and not here


def test_the_parser_imports_nothing_that_takes_time():
    code = (
        "import sys; from polca.__main__ import command_parser; command_parser().format_help(); "
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


SLOW = ("torch", "numpy", "pandas", "sklearn", "scipy", "zarr", "xarray", "matplotlib", "transformers")
STATUS = f"""
import sys
from polca.__main__ import main

status = main(["status", sys.argv[1], *sys.argv[2:]])
print("imported:", [name for name in {SLOW} if name in sys.modules], file=sys.stderr)
sys.exit(status)
"""


def trainer_folder(folder):
    "Checkpoints as a Trainer leaves them, of which there are only the names."
    for step in (0, 100):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (folder / f"checkpoint-{step}" / name).touch()
    return folder


def status_of(folder, *options):
    "What `polca status` prints in a process of its own, and what it has imported."
    done = subprocess.run([sys.executable, "-c", STATUS, str(folder), *options], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_the_status_of_a_run_imports_nothing_that_takes_time(tmp_path):
    config = TextConfig("somebody/model", str(trainer_folder(tmp_path / "trainer")), ("zen.txt",))
    runs = [
        made_up(tmp_path / "texts", "texts", asdict(config), STAGES),
        made_up(tmp_path / "arithmetic", "arithmetic", asdict(ArithmeticConfig()), STAGES),
        made_up(tmp_path / "language", "language", asdict(LanguageConfig(device="cuda:99")), STAGES[:2]),
    ]
    for run in runs[1:]:
        (run / "checkpoints").mkdir()
        for step in (0, 100):
            (run / "checkpoints" / f"step-{step:08d}.safetensors").touch()
    for run, complete in zip(runs, (STAGES, STAGES, STAGES[:2])):
        code, out, errors = status_of(run, "--json")
        assert (code, errors.splitlines()[-1]) == (0, "imported: []")
        assert [row["stage"] for row in json.loads(out)["stages"] if row["complete"]] == [*complete]
        code, out, errors = status_of(run)
        assert (code, errors) == (0, "imported: []\n") and out.count(" complete ") == len(complete)


def test_the_marks_of_an_unfinished_projection_take_no_more_than_zarr(tmp_path):
    config = TextConfig("somebody/model", str(trainer_folder(tmp_path / "trainer")), ("zen.txt",))
    run = made_up(tmp_path / "run", "texts", asdict(config))
    marks = zarr.open_group(run / LEAVES["project"], mode="w").create_array("complete", shape=(3,), dtype=bool)
    marks[:] = [True, True, False]
    code, out, errors = status_of(run)
    assert (code, errors) == (0, "imported: ['numpy', 'zarr']\n") and "unfinished: 2 of 3 checkpoints" in out


def test_that_there_is_no_run_is_said_as_soon(tmp_path):
    code, out, errors = status_of(tmp_path)
    assert (code, out) == (2, "") and "no run of polca" in errors and errors.endswith("imported: []\n")


HALF_MADE = """
import sys
import polca.__main__ as command

command._starting = False


class Bar:
    def __init__(self):
        command._interrupted(2, sys._getframe())
        self.bar = []

    def __del__(self):
        self.bar.clear()


try:
    Bar()
except KeyboardInterrupt:
    print("interrupted")
"""


def test_what_is_half_made_when_ctrl_c_comes_says_nothing():
    done = subprocess.run([sys.executable, "-c", HALF_MADE], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


SWALLOWED = """
import sys
import polca.__main__ as command

command._starting = False
again = []
command._interrupt_later = lambda: again.append("again")


def work():
    try:
        yield
    finally:
        command._interrupted(2, sys._getframe())


begun = work()
next(begun)
del begun  # Python closes it, and swallows what is raised there
print(again)
"""


def test_ctrl_c_where_python_swallows_it_comes_again():
    done = subprocess.run([sys.executable, "-c", SWALLOWED], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("['again']\n", "")
