"""Columns of a user's table: which come along as they are, and which are refused by name."""

import numpy as np
import pandas as pd
import pytest

from polca.core.tables import checked_columns, column_values


@pytest.mark.parametrize(
    "table, words",
    [
        (pd.DataFrame({0: [1]}), "called by a int"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "there twice"),
        (pd.DataFrame({"a/b": [1]}), "slashes"),
        (pd.DataFrame({"0": [1]}), "letters"),
        (pd.DataFrame({"a": [1j]}), "neither"),
        (pd.DataFrame({"a": ["x", 3]}, dtype=object), "neither"),
        ([1], "DataFrame"),
        (pd.DataFrame({"a": ["x\0", "y"]}), "zero character"),
        (pd.DataFrame({"a": [b"x"]}), "neither"),
        (pd.DataFrame({"a": pd.Categorical(["x", None])}), "no value"),
    ],
    ids=[
        "a number as a name",
        "a name twice",
        "a slash",
        "a number in letters",
        "complex numbers",
        "texts and numbers",
        "no table",
        "a zero character",
        "bytes",
        "a category that is missing",
    ],
)
def test_a_table_that_cannot_come_along_is_refused(table, words):
    with pytest.raises(ValueError, match=words):
        checked_columns(table, "the token table", [])


@pytest.mark.parametrize("texts", [["", ""], ["a\nb", "é😀", " x "]], ids=["empty", "of any characters"])
def test_texts_stay_as_they_are(texts):
    assert column_values(pd.Series(texts), "it").tolist() == texts


def test_numbers_keep_their_dtype():
    assert column_values(pd.Series([1, 2], dtype="uint8"), "it").dtype == np.uint8
