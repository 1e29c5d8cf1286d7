"""Clusters and curves made by hand, for the tests of all that is asked of clusters."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from polca.analysis.clustering import Clusters
from polca.analysis.tags import open_tagger
from polca.runs.texts import cut_windows, window_tokens


@pytest.fixture(scope="session")
def curves_of():
    "Curves (step, token, direction) with coordinates that count from 0, from an array of that shape."

    def make(values, steps=None):
        values = np.asarray(values)
        coords = {name: range(n) for name, n in zip(("step", "token", "direction"), values.shape)}
        if steps is not None:
            coords["step"] = steps
        return xr.DataArray(values, coords, ("step", "token", "direction"))

    return make


@pytest.fixture(scope="session")
def clusters_of():
    "Clusters from arrays of labels, one for each direction from 0; the medoid of a cluster is its first token."

    def make(*labels):
        coords = {"direction": range(len(labels)), "token": range(len(labels[0]))}
        rows = [
            {"direction": d, "cluster": c, "size": int((own == c).sum()), "medoid": int(np.argmax(own == c))}
            for d, own in enumerate(map(np.asarray, labels))
            for c in range(own.max() + 1)
        ]
        table = pd.DataFrame(rows, columns=["direction", "cluster", "size", "medoid"])
        return Clusters(xr.DataArray(np.array(labels), coords, ("direction", "token")), table, {})

    return make


@pytest.fixture(scope="session")
def without_clusters():
    "The same labelling with an empty table."
    return lambda clusters: Clusters(clusters.labels, clusters.table[:0], {})


@pytest.fixture(scope="session")
def pattern():
    "The tagger that needs no download."
    return open_tagger("pattern")


@pytest.fixture(scope="session")
def tokenizer():
    "Cuts words, with the space before them, into pieces of at most three letters; all have one id."
    cutter = Tokenizer(models.WordLevel({"x": 0}, unk_token="x"))
    cutter.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n| ?[^\s]{1,3}|\s"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=cutter)


@pytest.fixture(scope="session")
def cut(tokenizer):
    "The windows of some texts, and the table of their tokens."

    def cut_texts(texts, length):
        windows = cut_windows(texts, tokenizer, length)
        return windows, window_tokens(windows, length)

    return cut_texts


@pytest.fixture(scope="session")
def small_texts():
    return {
        "one": "The hungry cats can't find <unk> mice.\n\nIt was the end of the day.",
        "two": "She said that it was late.",
    }
