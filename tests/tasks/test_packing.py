"""Tokenizers, samples and packed rows in the cases that a notebook does not show."""

import subprocess
import sys
from pydoc_data.topics import topics

import numpy as np
import pytest

from polca.tasks.packing import (
    PADDING,
    draw_tokens,
    encode_texts,
    pack,
    packed_rows,
    row_batch,
    split_documents,
    train_tokenizer,
)


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(ValueError, match="256 bytes"):
        train_tokenizer(["a"], 256)


TRAINED = """
from pydoc_data.topics import topics
from polca.tasks.packing import train_tokenizer
print(train_tokenizer(topics.values(), 1000).backend_tokenizer.to_str())
"""


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(topics.values(), 1000)


def test_another_process_trains_the_same_tokenizer(tokenizer):
    other = subprocess.run([sys.executable, "-c", TRAINED], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == tokenizer.backend_tokenizer.to_str()


def test_a_text_with_the_name_of_the_padding_in_it_has_no_padding(tokenizer):
    text = f"a {PADDING} b"
    assert encode_texts([text], tokenizer)[0].max() < 1000
    assert max(tokenizer(text, add_special_tokens=False)["input_ids"]) < 1000


def test_one_document_cannot_be_split():
    with pytest.raises(ValueError, match="one document"):
        split_documents({"a": "b"}, 0.1)


def test_at_least_one_document_is_held_out_and_one_left():
    two = {"a": "b", "c": "d"}
    assert len(split_documents(two, 0.1)[1]) == 1
    with pytest.raises(ValueError, match="leaves none for training"):
        split_documents(two, 0.9)


@pytest.mark.parametrize(("n_tokens", "n_windows"), [(3, 2), (1, 1)])
def test_as_many_tokens_are_drawn_as_asked_for(n_tokens, n_windows):
    windows = [{"ids": [1, 2, 3], "text": ["a", "b", "c"]}, {"ids": [1, 2], "text": ["a", "b"]}]
    drawn = draw_tokens(windows, n_tokens)
    assert len(drawn) == n_windows and sum(len(window["ids"]) - 1 for window in drawn) == n_tokens


def test_every_window_is_in_one_row_that_holds_it_and_few_rows_are_needed():
    rng = np.random.default_rng(0)
    context = 16
    for _ in range(50):
        lengths = rng.integers(1, context + 1, rng.integers(1, 60))
        rows = pack(lengths, context)
        assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
        assert all(sum(lengths[row]) <= context for row in rows)
        assert len(rows) <= 1.5 * -(-lengths.sum() // context) + 1


def test_no_windows_need_no_rows():
    assert pack([], 8) == []


def test_documents_without_two_tokens_are_refused():
    with pytest.raises(ValueError, match="nothing to learn"):
        packed_rows([np.array([1])], 8)


def test_a_token_sees_those_before_it_in_its_window_alone():
    batch = row_batch(*packed_rows([np.arange(1, 4), np.arange(5, 7)], 6))
    sees = batch["attention_mask"][0, 0].int().tolist()
    assert ["".join(map(str, row)) for row in sees] == ["100000", "110000", "111000", "000100", "000110", "000001"]
