"""Names of steps and series, paths and hub names, and folders that cannot be opened."""

import re
import warnings

import pytest

from polca.core.folders import check_place, choose_steps, has_weights, is_adapter, read_config, series_of, step_of


def refused(words):
    return pytest.raises(ValueError, match=re.escape(words))


@pytest.mark.parametrize(
    "name, step",
    {
        "iter_0001000": 1000,
        "seed3": 3,
        "step5x": None,
        "checkpoint-10-of-20": 10,
        "step_1_000": 1000,
        "step-1,000": 1000,
        "step0.5k": 500,
        "checkpoint-0.5": None,
        "step1e3": 1000,
        "ep0-ba1000-rank0": 1000,
        "epoch_0.5": None,
        "epoch_3": 3,
    }.items(),
)
def test_the_step_of_a_name(name, step):
    assert step_of(name) == step


@pytest.mark.parametrize(
    "name, series",
    {
        "a-step1-val_loss=1.25": "a-step#-val_loss=#",
        "step10-val_acc=0.31-lr0.001": "step#-val_acc=#-lr#",
    }.items(),
)
def test_numbers_that_go_with_the_step_are_no_part_of_the_series(name, series):
    assert series_of(name) == series


def test_of_several_series_the_usual_one_is_taken_and_the_others_are_told():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert choose_steps(["checkpoint-7", "best-model-2", "last-1"], "here") == {7: "checkpoint-7"}
    assert "best-model-2, last-1" in str(caught[0].message)


@pytest.mark.parametrize(
    "names, series, words",
    [
        (["step3", "step03"], None, "both step 3"),
        (["main"], None, "tells no step"),
        (["best-model-2", "last-1"], None, "several series"),
        (["a-step1-x", "b-step1-x"], "x", "fits 2"),
    ],
)
def test_names_that_are_refused(names, series, words):
    with refused(words):
        choose_steps(names, "here", series=series)


def test_of_no_names_there_are_no_steps():
    assert choose_steps([], "here") == {}


@pytest.fixture
def with_config(tmp_path):
    "Writes a config.json into a folder, and returns the folder."

    def write(text):
        (tmp_path / "config.json").write_bytes(text)
        return tmp_path

    return write


def test_a_config_that_is_not_there_is_refused(tmp_path):
    with refused("has no config.json"):
        read_config(tmp_path)


def test_a_pointer_in_place_of_a_config_is_refused(with_config):
    with refused("config.json is a pointer of Git LFS"):
        read_config(with_config(b"version https://git-lfs.github.com/spec/v1"))


def test_a_config_is_read(with_config):
    assert read_config(with_config(b'{"a": 1}')) == {"a": 1}


def test_code_of_its_own_is_not_needed_where_transformers_has_the_model(with_config):
    folder = with_config(b'{"auto_map": {"AutoModel": "x.Y"}, "model_type": "gpt2"}')
    assert read_config(folder)["model_type"] == "gpt2"


def test_a_file_is_no_place_of_a_model(with_config):
    with refused("is a file"):
        check_place(str(with_config(b"{}") / "config.json"), "the model")


def test_a_name_on_the_hub_passes():
    check_place("EleutherAI/pythia-70m", "the model")


@pytest.mark.parametrize("typo", ["./nowhere", "/nowhere/at/all", "a/b/c", "nowhere/", "text.txt", "{folder}/x"])
def test_a_mistyped_path_is_not_taken_for_a_name_on_the_hub(typo, tmp_path):
    with refused("check the path"):
        check_place(typo.format(folder=tmp_path), "the model")


def test_a_folder_with_a_config_alone_is_no_adapter_and_has_no_weights(with_config):
    folder = with_config(b"{}")
    assert not is_adapter(folder) and not has_weights(folder)
