"""Texts that cannot be read, tokenizers of many kinds, and windows that do not fit a model."""

import codecs
import json
from pathlib import Path

import pytest
from transformers import ByT5Tokenizer, CTRLTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from polca.runs import texts
from polca.runs.texts import (
    cut_windows,
    draw_windows,
    read_texts,
    skipped_files,
    text_losses,
    window_batch,
    window_tokens,
)
from polca.tasks.packing import train_tokenizer

TEXTS = {
    "a.txt": "The cat sat on the mat. " * 30,
    "b.md": "Ein Hut, ein Stock, ein Regenschirm; vorwärts, rückwärts, seitwärts, ran. " * 20 + "Ω≈ç√∫" * 9,
}


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="d.txt does not exist"):
        read_texts(tmp_path / "d.txt")


def test_blank_files_are_no_text(tmp_path):
    (tmp_path / "c.txt").write_text(" \n")
    with pytest.raises(ValueError, match="no text in"):
        read_texts(tmp_path / "c.txt")


def test_a_folder_without_text_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no text files"):
        read_texts(tmp_path)


@pytest.fixture
def mixed(tmp_path):
    "A folder with hidden files and capital suffixes."
    (tmp_path / ".hidden").mkdir()
    for name in ("a.md", ".b.txt", ".hidden/c.txt", "D.TXT"):
        (tmp_path / name).write_text("some text")
    return tmp_path


def test_files_in_a_folder_are_read_once_and_hidden_ones_not(mixed):
    again = [mixed, mixed / "a.md", mixed / ".hidden" / ".." / "D.TXT"]
    assert [Path(name).name for name in read_texts(again)] == ["D.TXT", "a.md"]


def test_a_hidden_file_that_is_asked_for_is_read(mixed):
    assert list(read_texts(mixed / ".hidden" / "c.txt").values()) == ["some text"]


def test_a_mark_of_utf8_is_not_of_the_text(tmp_path):
    (tmp_path / "e.txt").write_bytes(codecs.BOM_UTF8 + b"text")
    assert list(read_texts(tmp_path / "e.txt").values()) == ["text"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (codecs.BOM_UTF8 + "née".encode("latin1"), "at byte 4"),
        ("text".encode("utf-16"), "iconv -f utf-16"),
        ("text".encode("utf-16-le"), "zero at byte 1"),
    ],
)
def test_what_is_not_utf8_is_refused_with_the_place(tmp_path, data, message):
    (tmp_path / "e.txt").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_texts(tmp_path / "e.txt")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS.values(), 300)


@pytest.fixture(scope="module")
def windows(tokenizer):
    return cut_windows(TEXTS, tokenizer, 16)


def test_a_text_of_one_token_has_nothing_to_predict(tokenizer):
    with pytest.raises(ValueError, match="one.txt: no text of two tokens or more"):
        cut_windows({"one.txt": "a"}, tokenizer, 16)


def test_windows_of_one_token_are_refused(tokenizer):
    with pytest.raises(ValueError, match="--context 1: .* give 2 or more"):
        cut_windows(TEXTS, tokenizer, 1)


def test_a_short_text_is_one_window_that_is_padded(tokenizer):
    one = cut_windows({"x": "The cat"}, tokenizer, 16)
    assert len(one) == 1
    assert (window_batch(one, 16)["labels"][0] == -100).sum() == 16 - len(one[0]["ids"])


@pytest.mark.parametrize("function", [window_batch, window_tokens])
def test_no_windows_are_refused(function):
    with pytest.raises(ValueError, match="no windows"):
        function([], 16)


def test_windows_longer_than_the_context_are_refused(windows):
    with pytest.raises(ValueError, match="does not fit context=8"):
        window_batch(windows, 8)


# tokenizers without offsets


def slow_pieces(tokenizer, text):
    "The pieces of a tokenizer without offsets; together they must be the decoded text."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = [piece for window in cut_windows({"x": text}, tokenizer, len(ids)) for piece in window["text"]]
    assert not tokenizer.is_fast and "".join(pieces) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return pieces


def test_of_a_letter_of_several_bytes_the_last_token_has_it():
    assert slow_pieces(ByT5Tokenizer(), "née 🙂") == ["n", "", "é", "e", " ", "", "", "", "🙂"]


def test_a_long_text_of_many_bytes_comes_back_whole():
    text = "Ω≈ç√∫ née 🙂🙂 the cat.  And\n so " * 40
    assert "".join(slow_pieces(ByT5Tokenizer(), text)) == text


@pytest.fixture
def ctrl(tmp_path):
    vocabulary = {"the": 0, "cat": 1, "<unk>": 2, "th@@": 3, "i@@": 4, "s": 5, "c@@": 6, "a@@": 7}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version\nt h\nth e</w>\nc a\nca t</w>\n")
    return CTRLTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))


def test_spaces_are_with_the_token_after_them(ctrl):
    assert slow_pieces(ctrl, "this the cat") == ["th", "i", "s", " the", " cat"]


def test_a_long_text_of_words_comes_back_whole(ctrl):
    text = "this the cat " * 50
    assert "".join(slow_pieces(ctrl, text)) == text.strip()


# samples and models


def test_a_negative_sample_is_refused(windows):
    with pytest.raises(ValueError, match="0 windows or more"):
        draw_windows(windows, {"analysed": -2, "Hessian": 5})


def neox(entries):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = GPTNeoXConfig(vocab_size=entries, max_position_embeddings=32, **sizes)
    return GPTNeoXForCausalLM(config).eval()


def test_tokens_that_the_model_does_not_know_are_refused(windows):
    with pytest.raises(ValueError, match="the model knows 100"):
        text_losses(neox(100), windows, 16)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_without_windows_is_refused(windows, size):
    with pytest.raises(ValueError, match="at least one window"):
        text_losses(neox(300), windows, 16, size)


def test_losses_of_no_windows_and_of_a_context_too_short_are_refused(windows):
    with pytest.raises(ValueError, match="no windows"):
        text_losses(neox(300), [], 16)
    with pytest.raises(ValueError, match="does not fit"):
        text_losses(neox(300), windows, 8)


def test_batches_are_on_the_device_of_the_model(windows, monkeypatch):
    monkeypatch.setattr(texts, "TokenLosses", lambda model, batches, tokens: batches)
    batches = text_losses(neox(300).to("meta"), windows[:6], 16)
    assert {values.device.type for batch in batches for values in batch.values()} == {"meta"}


def test_files_that_are_not_read_are_known_and_hidden_ones_do_not_count(tmp_path):
    for name in ("a.txt", "b.MD", "c.docx", "below/d.pdf", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("some text")
    assert [file.name for file in skipped_files([tmp_path])] == ["d.pdf", "c.docx"]
    assert sorted(Path(name).name for name in read_texts(tmp_path)) == ["a.txt", "b.MD"]
    assert skipped_files([tmp_path / "c.docx"]) == []  # which was named, and is read
