"""The language experiment as a user meets it, and Wikipedia as `datasets` reads it from a folder laid out as on the
hub.
"""

import json
import os
import shutil
from pydoc_data.topics import topics

import pytest
from commands import polca

from polca.tasks.english import wikipedia_texts
from polca.tasks.language import language_preset

NIGHTLY = bool(os.environ.get("POLCA_NIGHTLY"))


def read_manifest(folder):
    return json.loads((folder / "run.json").read_text())


def outputs(manifest):
    "What the stages but for the report have left, by their hashes."
    return {stage: record["output"] for stage, record in manifest["stages"].items() if stage != "report"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A complete tiny run, and what it printed."
    out = tmp_path_factory.mktemp("runs") / "tiny"
    done = polca("run", "language", "--preset", "tiny", "--out", out, "--until", "report")
    assert done.returncode == 0, done.stderr
    return out, done


def test_a_run_on_a_text_of_ones_own(tmp_path):
    text = tmp_path / "topics.txt"
    text.write_text("\n\n".join(topics.values())[:400_000], encoding="utf-8")
    out = tmp_path / "run"
    done = polca("run", "language", "--preset", "tiny", "--texts", text, "--out", out, "--until", "subspace")
    assert done.returncode == 0, done.stderr
    assert "topics.txt" in done.stdout and "neither --texts" not in done.stdout
    assert "[2/7]" in done.stdout and "[3/7]" not in done.stdout
    assert read_manifest(out)["config"]["texts"] == [str(text)]
    found = json.loads(polca("inspect", out, "--json").stdout)
    assert found["complete"] == ["train", "subspace"]
    assert len(found["basis"]) == language_preset("tiny").k * language_preset("tiny").basis_steps


@pytest.mark.nightly  # nbs/tasks/60_language_run has it without the command line
def test_a_run_on_the_text_that_is_everywhere(finished):
    out, done = finished
    assert "documentation that comes with Python" in done.stdout
    assert "neither --texts nor --wikipedia" in done.stdout
    assert all(f"[{i}/7]" in done.stdout for i in range(1, 8))
    assert "Findings: " in done.stdout
    assert "English text, preset tiny" in (out / "report.html").read_text()
    found = json.loads(polca("inspect", out, "--json").stdout)
    assert found["tokens"] == language_preset("tiny").analysed_tokens
    assert found["mean_loss"][-1] < found["mean_loss"][0] - 1


@pytest.mark.nightly  # test_faults.py has it for the arithmetic task
def test_stages_that_were_lost_are_made_again_to_the_same_numbers_from_the_directory_alone(finished, tmp_path):
    out = tmp_path / "tiny"
    shutil.copytree(finished[0], out)
    shutil.rmtree(out / "figures")
    assert polca("run", out).returncode == 0
    assert list((out / "figures").glob("*.png"))
    manifest = read_manifest(out)
    shutil.rmtree(out / "basis")
    shutil.rmtree(out / "projection.zarr")
    assert polca("run", out, "--until", "cluster").returncode == 0
    assert outputs(read_manifest(out)) == outputs(manifest)


def test_text_that_is_too_short_or_cannot_be_read_is_refused_before_anything_long(tmp_path):
    (tmp_path / "short.txt").write_text("A short text. " * 50)
    (tmp_path / "latin.txt").write_bytes("née".encode("latin1"))
    for name, message in {
        "short.txt": "give more text",
        "latin.txt": "not UTF-8 at byte 1",
        "gone.txt": "does not exist",
    }.items():
        done = polca("run", "language", "--preset", "tiny", "--texts", tmp_path / name, "--out", tmp_path / "run")
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
        assert not (tmp_path / "run").exists()  # a refused start leaves nothing behind


# Wikipedia: the package datasets on a local folder


@pytest.fixture
def dump(tmp_path):
    "Python's help topics as a dataset laid out as wikimedia/wikipedia is."
    import pandas as pd

    rows = [
        {"id": str(i), "url": f"https://example.org/{i}", "title": name, "text": text}
        for i, (name, text) in enumerate(topics.items())
    ]
    folder = tmp_path / "wikipedia" / "20231101.en"
    folder.mkdir(parents=True)
    for part in (0, 1):
        pd.DataFrame(rows[part::2]).to_parquet(folder / f"train-0000{part}-of-00002.parquet")
    (folder.parent / "README.md").write_text(
        "---\nconfigs:\n- config_name: 20231101.en\n  data_files:\n  - split: train\n    path: "
        "20231101.en/train-*\n---\n"
    )
    return str(folder.parent), {f"{row['title']} ({row['id']})": row["text"] for row in rows}


def test_wikipedia_is_read_as_far_as_asked_for_in_an_order_of_the_seed(dump, tmp_path, monkeypatch):
    # HF_HOME is read when datasets is imported, which is too late: an earlier folder of this name may be in the cache
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # 5 s each time that reading is cut short
    folder, whole = dump
    for streaming in (True, False) if NIGHTLY else (True,):
        first = wikipedia_texts(200_000, dataset=folder, streaming=streaming, buffer=50)
        letters = [len(t) for t in first.values()]
        assert first.items() <= whole.items() and sum(letters) >= 200_000 > sum(letters[:-1])
        assert list(first) == list(wikipedia_texts(200_000, dataset=folder, streaming=streaming, buffer=50))
        assert list(first) != list(wikipedia_texts(200_000, dataset=folder, streaming=streaming, buffer=50, seed=1))
    assert wikipedia_texts(sum(map(len, whole.values())), dataset=folder) == whole
    with pytest.raises(ValueError, match="letters, not 1,000,000,000: ask for fewer"):
        wikipedia_texts(10**9, dataset=folder)


def test_a_hub_that_cannot_be_reached_and_a_dump_that_is_not_there(dump):
    with pytest.raises(ValueError, match="cannot be read.*--texts FILES"):
        wikipedia_texts(100)  # tests run offline
    with pytest.raises(ValueError, match="20220301.en, cannot be read.*--texts FILES"):
        wikipedia_texts(100, "20220301", dataset=dump[0])
