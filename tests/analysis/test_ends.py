"""Labels of the ends of axes: those that are there, none where ends are random, and the outermost tokens."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from polca.analysis.axes import axis_ends
from polca.analysis.ends import axis_names, end_labels, end_tokens


def scores_of(*axes):
    values = np.stack(axes, axis=1)
    coords = {"token": np.arange(len(values)), "axis": np.arange(len(axes))}
    return xr.DataArray(values, coords, ("token", "axis"))


def test_a_label_that_both_ends_share_against_all_between_tells_nothing_apart():
    rng = np.random.default_rng(0)
    outer = np.arange(500) < 100
    score = np.where(outer, 3.0, 0.5) * np.where(np.arange(500) % 2, 1, -1) + 0.1 * rng.normal(size=500)
    tokens = pd.DataFrame({"target": np.where(outer, ".", "word"), "side": np.where(score > 0, "left", "right")})
    labels = end_labels(axis_ends(scores_of(score)), tokens)
    assert list(labels["label"]) == ["side left", "side right"] and list(labels["labels"]) == [1, 1]
    assert list(labels["share"]) == [1, 1] and list(labels["other"]) == [0, 0]


def test_random_ends_have_no_names_but_for_one_in_twenty():
    rng = np.random.default_rng(1)
    tokens = pd.DataFrame({"target": rng.choice(list("abcd"), 300), "place": rng.integers(0, 5, 300)})
    labels = end_labels(axis_ends(scores_of(*rng.normal(size=(40, 300)))), tokens)
    assert len(labels) == 80 and (labels["label"] != "–").sum() <= 4
    assert "axis 3, no name" in axis_names(labels) or labels["label"][6:8].ne("–").any()


def test_an_end_without_a_label_is_the_others():
    labels = pd.DataFrame({"axis": [4, 4], "end": ["positive", "negative"], "label": ["carry 1", "–"]})
    assert axis_names(labels) == ["carry 1 ↔ others"]


def test_outermost_tokens_of_few_are_at_one_end_each():
    tokens = pd.DataFrame({"target": list("abcde")})
    table = end_tokens(scores_of(np.array([0.5, -2, 3, 0, 1])), tokens, 0, n=6)
    assert list(table["target"]) == ["c", "e", "d", "b"] and list(table["end"]) == ["positive"] * 2 + ["negative"] * 2


def test_what_has_no_outermost_tokens_is_refused():
    scores = scores_of(np.arange(5.0))
    tokens = pd.DataFrame({"target": list("abcde")})
    with pytest.raises(ValueError, match="a Dataset: give those of axes"):
        end_tokens(xr.Dataset({"score": scores}), tokens, 0)
    with pytest.raises(ValueError, match="token, thread.*rename"):
        end_tokens(scores.rename(axis="thread"), tokens, 0)
    with pytest.raises(ValueError, match="a Dataset: make a table"):
        end_tokens(scores, xr.Dataset({"target": ("token", list("abcde"))}), 0)
    with pytest.raises(ValueError, match="4 tokens, and scores of 5"):
        end_tokens(scores, tokens[:4], 0)
    with pytest.raises(ValueError, match="no axis 1: use one of 0"):
        end_tokens(scores, tokens, 1)
