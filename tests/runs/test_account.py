"""How a run integrates, and which directions it takes beside its basis, so that what was learned is accounted for."""

import codecs
import contextlib
import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from polca.__main__ import main
from polca.compute.basis_files import directions_files
from polca.core.recording import Recorder
from polca.runs.inspection import format_inspection
from polca.runs.making import take_directions
from polca.runs.manifest import DISPLACEMENTS, read_manifest
from polca.runs.origins import hash_stage
from polca.runs.run import Run
from polca.runs.task import TextConfig, TextTask

with contextlib.redirect_stdout(io.StringIO()):
    import this
ZEN = codecs.decode(this.s, "rot13")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    "Of a model that learns the Zen of Python in sixty steps, a checkpoint every three."
    folder = tmp_path_factory.mktemp("zen")
    (folder / "zen.txt").write_text(ZEN)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([ZEN], vocab_size=300, show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer).save_pretrained(folder / "model")
    torch.manual_seed(0)
    size = {"vocab_size": 300, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0, resid_pdrop=0.0)).eval()
    model.config.save_pretrained(folder / "model")
    ids = torch.tensor([bpe.encode(ZEN).ids[i : i + 16] for i in range(0, 480, 16)])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    record = Recorder(folder / "checkpoints", range(0, 61, 3))
    for step in range(61):
        record(step, model)
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    places = (str(folder / "model"), str(folder / "checkpoints"), (str(folder / "zen.txt"),))
    samples = {"context": 16, "sequences": 12, "hessian_sequences": 8, "basis_steps": 2, "tagger": "none"}
    return TextConfig(*places, **samples)


def decomposed(folder, config):
    "A run up to its account, the totals of its best rule, and what it has in the manifest."
    run = Run.create(folder, TextTask(config))
    account = run.decompose(progress=False, say=None)
    rule = "path" if "path" in account else "trapezoid"
    return run, account[rule]["totals"], read_manifest(folder)["stages"]


def test_checkpoints_far_apart_are_integrated_along_the_path_and_near_ones_by_the_trapezoid(config, tmp_path):
    far, totals, stages = decomposed(tmp_path / "far", replace(config, every=10, window=20.0))
    assert stages["train"]["trapezoid_error"] > 0.05 and "path" in far.results.read_decomposition()
    assert abs(totals["error"]) < 0.05 * abs(totals["true"])
    by_trapezoid = far.results.read_decomposition()["trapezoid"]["totals"]
    assert abs(by_trapezoid["error"]) > 0.05 * abs(by_trapezoid["true"])
    near, totals, stages = decomposed(tmp_path / "near", config)
    assert stages["train"]["trapezoid_error"] <= 0.05 and "path" not in near.results.read_decomposition()
    assert abs(totals["error"]) < 0.05 * abs(totals["true"])


@pytest.mark.parametrize("every", [1, 2, 5])
def test_basis_and_displacements_together_hold_nine_tenths_of_what_was_learned(config, tmp_path, every):
    run, totals, stages = decomposed(tmp_path / "run", replace(config, every=every, window=15.0))
    held = (totals["net"] + totals["displaced"]) / totals["true"]
    assert held >= 0.9 and totals["net"] / totals["true"] < 0.5
    beside = run.results.read_displacements()
    assert 1 <= len(beside) == stages["subspace"]["displacements"] <= 20
    overlap = run.results.read_basis().directions @ beside.directions.T
    assert abs(overlap).max() < 1e-5
    page = run.report(progress=False, say=None).read_text()
    assert "principal direction" in page and "What this page says by the rule" not in page


def test_both_can_be_told_otherwise(config, tmp_path):
    plain, totals, stages = decomposed(
        tmp_path / "plain", replace(config, every=10, window=20.0, path_nodes=0, displacements=0)
    )
    assert "path" not in plain.results.read_decomposition() and "displaced" not in totals
    assert "trapezoid_error" not in stages["train"] and stages["subspace"]["displacements"] == 0
    assert plain.results.read_displacements() is None
    assert "--path-tol" in plain.report(progress=False, say=None).read_text()
    told, totals, _ = decomposed(
        tmp_path / "told", replace(config, every=10, window=20.0, path_tol=0.05, path_nodes=31, displacements=2)
    )
    assert len(told.results.read_displacements()) == 2
    assert (told.results.read_projection()["path_error"] <= 0.05).all()
    for wrong, words in (
        ({"path_tol": 0.1, "path_nodes": 0}, "leave one out"),
        ({"path_nodes": -1}, "--path-nodes -1"),
        ({"displacements": -1}, "--displacements -1"),
        ({"shard": True, "displacements": 3}, "--shard makes no displacements"),
    ):
        with pytest.raises(ValueError, match=words):
            TextTask(replace(config, **wrong))


def test_displacements_that_are_lost_or_damaged_are_made_again_the_same(config, tmp_path):
    run, _, stages = decomposed(tmp_path / "run", replace(config, every=2))
    beside = run.folder / "basis" / DISPLACEMENTS
    file = next(beside.glob("*.safetensors"))
    for harm in (lambda: shutil.rmtree(beside), lambda: file.write_bytes(file.read_bytes()[:-9])):
        harm()
        shutil.rmtree(run.folder / "projection.zarr")
        again = Run.open(run.folder)
        assert again.todo("project") == ["subspace", "project"]
        again.project(progress=False, say=None)
        assert hash_stage("subspace", run.folder / "basis") == stages["subspace"]["output"]
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ValueError, match="damaged"):
        Run.open(run.folder).results.read_displacements()


def test_what_of_the_texts_is_analysed_is_told_and_what_is_left_out(config, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "zen.txt").write_text(ZEN)
    (tmp_path / "texts" / "notes.docx").write_text("left out")
    asked = replace(config, texts=(str(tmp_path / "texts"),), every=4)
    with pytest.warns(UserWarning, match="notes.docx: left out"):
        run = Run.create(tmp_path / "run", TextTask(asked)).make("train", progress=False, say=None)
    told = read_manifest(run.folder)["stages"]["train"]["drawn"]
    assert told.startswith("12 of ") and "of 1 text, are analysed" in told
    assert told in format_inspection(run.inspect())


def test_a_model_that_does_not_learn_has_nothing_to_account_for(config, tmp_path):
    "Noise in the place of training: the loss does not fall."
    run = Run.create(tmp_path / "run", TextTask(replace(config, every=4)))
    store = run.inputs.store
    backwards = tmp_path / "backwards"
    steps = store.steps
    for step, place in zip(steps, reversed(steps)):
        Recorder(backwards, [step])(step, loaded(run.task.model, store.load(place)))
    turned = replace(config, every=4, checkpoints=str(backwards))
    _, totals, stages = decomposed(tmp_path / "turned", turned)
    assert stages["train"]["change"] > 0 and stages["subspace"]["displacements"] == 0
    assert "displaced" not in totals and np.isfinite(totals["error"])
    assert "path" not in Run.open(tmp_path / "turned").results.read_decomposition()


def loaded(model, params):
    model.load_state_dict(params, strict=False)
    return model


def test_directions_of_another_run_are_taken_where_they_are_the_same(config, tmp_path):
    first, _, _ = decomposed(tmp_path / "first", config)
    said = []
    again = Run.create(tmp_path / "again", TextTask(replace(config, every=2, path_nodes=0))).make("train", say=None)
    steps = read_manifest(again.folder)["stages"]["train"]["source_steps"]
    take_directions(again.inputs, first.folder, said.append)
    same = steps == read_manifest(first.folder)["stages"]["train"]["source_steps"]
    assert same and said == [f"the directions are those of {first.folder}"]
    began = {file: file.stat().st_mtime_ns for file in directions_files(again.folder / "basis")}
    basis = again.subspace(progress=False, say=None)
    assert torch.equal(basis.directions, first.results.read_basis().directions)
    assert {file: file.stat().st_mtime_ns for file in directions_files(again.folder / "basis")} == began
    alone = Run.create(tmp_path / "alone", again.task).decompose(progress=False, say=None)
    assert again.decompose(progress=False, say=None) == alone  # displacements, too, are made for these tokens


@pytest.mark.parametrize(
    "change, why", [({"k": 2}, "--k 1, here --k 2"), ({"hessian_sequences": 7}, "Hessian of other tokens")]
)
def test_other_directions_are_not_taken(config, tmp_path, change, why):
    first = Run.create(tmp_path / "first", TextTask(config))
    first.subspace(progress=False, say=None)
    said = []
    other = Run.create(tmp_path / "other", TextTask(replace(config, **change))).make("train", say=None)
    take_directions(other.inputs, first.folder, said.append)
    assert len(said) == 1 and why in said[0] and not (other.folder / "basis").exists()


def test_directions_that_are_not_there_are_not_taken(config, tmp_path):
    first = Run.create(tmp_path / "first", TextTask(config)).make("train", say=None)
    with pytest.raises(ValueError, match="has no directions, or damaged ones: make them with polca subspace"):
        take_directions(first.inputs, first.folder, print)


@pytest.mark.parametrize("harm", ["gone", "one missing", "damaged"])
def test_directions_that_are_not_whole_are_not_taken(config, tmp_path, harm):
    first = Run.create(tmp_path / "first", TextTask(config))
    first.subspace(progress=False, say=None)
    files = directions_files(first.folder / "basis")
    if harm == "damaged":
        files[0].write_bytes(files[0].read_bytes()[:-8] + b"12345678")
    for file in files if harm == "gone" else files[:1] if harm == "one missing" else []:
        file.unlink()
    other = Run.create(tmp_path / "other", TextTask(replace(config, path_nodes=0))).make("train", say=None)
    with pytest.raises(ValueError, match="no directions, or damaged ones"):
        take_directions(other.inputs, first.folder, print)
    assert not (other.folder / "basis").exists()


def test_a_run_keeps_the_number_of_windows_that_it_was_begun_with(config, tmp_path):
    Run.create(tmp_path / "run", TextTask(config)).make("train", say=None)
    again = Run.create(tmp_path / "run", TextTask(replace(config, hessian_sequences=None)))
    assert again.task.config.hessian_sequences == config.hessian_sequences and again.is_complete("train")


def test_directions_of_few_tokens_are_told_with_the_number_that_mends_it_and_nothing_is_relied_on(config, tmp_path):
    run = Run.create(tmp_path / "run", TextTask(replace(config, window=15.0)))
    run.make("cluster", progress=False, say=None)
    doubt = read_manifest(run.folder)["stages"]["train"]["doubt"]
    assert "of 120 tokens" in doubt and "give more --texts" in doubt  # the Zen has 34 windows
    found = run.findings()
    assert found and all("directions of few tokens" in finding.doubts for finding in found)


def test_sizes_of_clusters_that_the_tokens_cannot_have_are_refused_before_anything_is_made(config, tmp_path, capsys):
    run = Run.create(tmp_path / "run", TextTask(config)).make("train", say=None)
    before = run.inputs.file.read_bytes()
    assert main(["cluster", str(run.folder), "--min-cluster-size", "9999"]) == 2
    assert "--min-cluster-size 9999 is more than the" in capsys.readouterr().err
    assert run.inputs.file.read_bytes() == before and not (run.folder / "basis").exists()


def test_texts_that_are_too_short_are_told_with_numbers_that_do(config, tmp_path):
    for asked, words in (
        ({"sequences": 40, "hessian_sequences": None}, "--sequences 40 and at least 1 for the directions need 41"),
        ({"sequences": 40}, "or --sequences 17 --hessian-sequences 17"),
    ):
        with pytest.raises(ValueError, match=f"the texts make 34 sequences; .*{words}"):
            TextTask(replace(config, **asked)).samples(None)
