"""The text of a language run: what is refused, what is kept, damaged and changed, and how it is read."""

import shutil
from pydoc_data.topics import topics

import pytest
import torch

from polca.core.losses import next_token_loss
from polca.runs.texts import text_losses
from polca.tasks.language import (
    LanguageModel,
    language_loss,
    language_preset,
    make_text,
    open_text,
    step_rows,
)
from polca.tasks.language_run import CLUSTER_KINDS, format_language, run_language
from polca.tasks.packing import row_batch


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("two sources", {"texts": ("a",), "wikipedia": 5}),
        ("the basis asks for step 22500", {"basis_every": 750}),
        ("more than the 12600", {"min_cluster_size": 20_000}),
        ("wikipedia=-1", {"wikipedia": -1}),
        ("context=1", {"context": 1}),
        ("held_out=1.5", {"held_out": 1.5}),
        ("part_letters=0", {"part_letters": 0}),
        ("vocabulary=0", {"vocabulary": 0}),
        ("curvature_sequences=-1", {"curvature_sequences": -1}),
        ("k=0", {"k": 0}),
    ],
)
def test_a_configuration_that_cannot_be_run_is_refused(message, changes):
    with pytest.raises(ValueError, match=message):
        language_preset("paper", **changes)


@pytest.mark.parametrize("plateau, words", [(50, "flat from step 50"), (100, "not flat before the last step")])
def test_a_loss_that_falls_to_the_last_step_is_not_said_to_be_flat(plateau, words):
    kind = {"clusters": [], "outliers": 0, "clustered": 0, "simple": None, "hidden": None}
    results = {
        "config": {"min_cluster_size": 15, "min_samples_divisor": 100},
        "filters": {"kept": 1, "directions": 2, "removed": 0},
        "loss": {"step": [0, 50, 100], "mean": [6.0, 5.0, 4.0]},
        "kinds": dict.fromkeys(CLUSTER_KINDS, kind),
        "opposing": {"pairs": [], "control": None},
        "text": {"unigram_loss": 5.2},
    }
    results |= {"tokens": 60, "tagger": "none", "window": 20, "plateau": plateau}
    assert f"mean loss 6.00 to 4.00 nats, {words}; by frequency alone 5.20" in format_language(results)


def test_a_tagger_that_is_not_there_leaves_no_run_behind(tmp_path):
    with pytest.raises(ValueError, match="xx_gone"):
        run_language(language_preset("tiny", tagger="spacy:xx_gone"), tmp_path / "run", say=None)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A folder with a file of text, and the configuration and text of a run on it."
    folder = tmp_path_factory.mktemp("run")
    source = folder / "own.txt"
    source.write_text("\n\n".join(topics.values())[:100_000])
    config = language_preset("tiny", texts=(str(source),))
    return folder, config, open_text(config, folder / "run" / "text")


def test_runs_of_one_data_seed_are_asked_about_the_same_tokens_and_read_in_other_orders(run):
    _, config, text = run
    other = language_preset("tiny", texts=config.texts, seed=1, data_seed=config.seed)
    same = make_text(other)
    assert same.fingerprint == text.fingerprint
    model = LanguageModel(config)
    assert language_loss(config, text)(model, 3) != language_loss(other, same)(model, 3)
    assert make_text(language_preset("tiny", texts=config.texts, seed=1)).fingerprint != text.fingerprint


@pytest.fixture
def copy(run, tmp_path):
    "A copy of the text of the run, that a test may hurt."
    shutil.copytree(run[0] / "run", tmp_path / "run")
    return tmp_path / "run" / "text"


def test_the_samples_are_those_of_the_text_made_anew(run):
    _, config, text = run
    made = make_text(config)
    assert made.samples == text.samples and made.fingerprint == text.fingerprint


def test_a_source_that_has_changed_is_noticed_and_one_that_is_gone_is_not_needed(run):
    folder, config, text = run
    source = folder / "own.txt"
    own = source.read_text()
    source.write_text(own.replace("the", "teh", 1))
    with pytest.raises(ValueError, match=r"the texts \(own.txt\) have changed"):
        open_text(config, folder / "run" / "text")
    source.unlink()
    assert open_text(config, folder / "run" / "text").about == text.about
    source.write_text(own)


@pytest.mark.parametrize("name", ["samples.json", "rows.npz", "about.json", "tokenizer/tokenizer.json"])
def test_a_file_that_is_cut_is_damaged(run, copy, name):
    file = copy / name
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ValueError, match="damaged"):
        open_text(run[1], copy)


def test_samples_with_another_text_are_noticed(run, copy):
    file = copy / "samples.json"
    file.write_text(file.read_text().replace("the", "teh", 1))
    with pytest.raises(ValueError, match="has changed since"):
        open_text(run[1], copy)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("the text is one document", {"part_letters": None}),
        ("supports a vocabulary of", {"vocabulary": 20_000}),
        ("the documents held out have", {"analysed_tokens": 10**5}),
        ("hessian_sequences=5000", {"hessian_sequences": 5000}),
        ("a batch has 5000", {"batch_size": 5000}),
    ],
)
def test_a_text_that_is_too_short_leaves_nothing_behind(tmp_path, message, changes):
    short = tmp_path / "short.txt"
    short.write_text("\n\n".join(topics.values())[:40_000])
    given = {"texts": (str(short),), "part_letters": 2000, "min_cluster_size": 2, "analysed_tokens": 50}
    with pytest.raises(ValueError, match=message):
        open_text(language_preset("tiny", **given | changes), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_loss_of_a_step_is_the_mean_over_its_rows(run):
    _, config, text = run
    model = LanguageModel(config).eval()
    rows = step_rows(len(text.ids), 3, config.batch_size)
    batch = row_batch(text.ids[rows], text.number[rows])
    torch.testing.assert_close(next_token_loss(model, batch).mean(), language_loss(config, text)(model, 3))


def test_the_tokens_analysed_are_of_the_documents_kept(run):
    _, config, text = run
    losses = text_losses(LanguageModel(config).eval(), text.samples["analysed"], config.context)
    assert losses.tokens.document.isin(text.documents).all()
