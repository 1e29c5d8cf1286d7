"""Labels: against brute force, against random sets, and what is refused."""

import time
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.stats import hypergeom

from polca.analysis.clustering import DROPPED, OUTLIER, Clusters
from polca.analysis.labels import (
    hypergeometric_tails,
    label_clusters,
    label_kinds,
    label_tests,
    label_words,
    most_exceeding,
    nearest_contexts,
    projection_tokens,
    random_control,
    simple_sets,
    tag_codes,
    tag_label,
)
from polca.analysis.tags import TAGS, UNIVERSAL, token_tags

TEN = pd.DataFrame(
    {
        "tag_3": [""] * 6 + ["ADJ"] * 4,
        "tag_2": ["ADP", "NOUN", "VERB", "X", "ADJ", "ADV", "NUM", "DET", "PRON", "AUX"],
        "tag_1": ["DET"] * 4 + ["ADJ"] * 3 + ["VERB"] * 3,
        "tag": ["NOUN"] * 7 + ["PROPN"] * 3,
    }
)


def smallest_cover(tags, coverage):
    "The size of the smallest set of tags that covers the share, by trying all sets."
    values = sorted(set(tags))
    for n in range(1, len(values) + 1):
        if any(np.isin(tags, chosen).mean() >= coverage - 1e-9 for chosen in combinations(values, n)):
            return n


@pytest.fixture(scope="module")
def random_tags():
    rng = np.random.default_rng(0)
    return [
        pd.DataFrame({t: rng.choice(UNIVERSAL[:6], 20, p=rng.dirichlet(np.ones(6))) for t in TAGS}) for _ in range(50)
    ]


def test_tag_label_is_the_smallest_cover(random_tags):
    for tags in random_tags:
        sizes = [len(shares) for shares in tag_label(tags).sets.values()]
        assert sizes == [smallest_cover(tags[position].values, 0.7) for position in TAGS]


def test_tag_label_does_not_depend_on_the_order_of_the_tokens(random_tags):
    for tags in random_tags:
        assert tag_label(tags) == tag_label(tags.sample(frac=1, random_state=0))


def test_no_tokens_have_no_label():
    label = tag_label(TEN.iloc[:0])
    assert not label.simple
    assert str(label) == "· · · ·"


def test_padding_alone_has_no_label():
    assert tag_label(TEN.assign(**dict.fromkeys(TAGS, ""))).sets == {}


def test_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="coverage=0: give the share of a cluster to cover, above 0 and at most 1"):
        tag_label(TEN, 0)


@pytest.fixture(scope="module")
def tagged(clusters_of):
    "Clusters of one tag each along a direction, and of nothing in particular along another."
    rng = np.random.default_rng(0)
    often = np.r_[0.3, 0.2, np.full(15, 0.5 / 15)]
    tokens = pd.DataFrame({t: rng.choice(UNIVERSAL, 3000, p=often) for t in TAGS})
    pure = np.full(3000, OUTLIER)
    for cluster, tag in enumerate(("ADJ", "ADP", "NOUN")):
        pure[np.flatnonzero(tokens.tag == tag)[:60]] = cluster
    vague = rng.permutation(pure)
    vague[:500] = DROPPED
    return SimpleNamespace(tokens=tokens, clusters=clusters_of(pure, vague), rng=rng)


def test_control_tells_pure_clusters_from_random_ones(tagged):
    control = random_control(tagged.clusters, tagged.tokens)
    assert control.simple.tolist() == [3, 1]
    assert control.of.tolist() == [6, 2]
    assert (control["mean"] < 1).all()
    assert control.p["clusters"] < 0.05


@pytest.mark.parametrize("padded", [False, True])
def test_many_sets_are_simple_where_each_is_by_itself(tagged, padded):
    tokens = tagged.tokens
    if padded:
        tokens = tokens.assign(tag_3="", tag_2=np.where(np.arange(3000) % 3, "", "DET"))
    codes = tag_codes(tokens)
    for share in (0.004, 0.01, 0.03, 0.1):
        chosen = np.flatnonzero(tagged.rng.random(3000) < share)
        assert simple_sets(codes[:, chosen][:, None], 0.7, 0.5).item() == tag_label(tokens.iloc[chosen]).simple


def test_control_has_as_many_simple_clusters_as_random_sets(tagged):
    rng = tagged.rng
    nearly_simple = np.r_[0.4, 0.27, np.full(15, 0.33 / 15)]
    likely = pd.DataFrame({t: rng.choice(UNIVERSAL, 3000, p=nearly_simple) for t in TAGS})
    sixty = [tag_label(likely.iloc[rng.choice(3000, 60, replace=False)]).simple for _ in range(300)]
    assert 0.1 < np.mean(sixty) < 0.9
    assert abs(random_control(tagged.clusters, likely)["mean"]["clusters"] / 6 - np.mean(sixty)) < 0.1


def test_control_without_clusters_counts_none(tagged):
    none = Clusters(tagged.clusters.labels * 0 - 1, tagged.clusters.table[:0], {})
    assert random_control(none, tagged.tokens).of.tolist() == [0, 0]


def test_control_needs_tags(tagged):
    with pytest.raises(ValueError, match="the tokens have no tag_3, tag_2, tag_1: add the columns of token_tags"):
        random_control(tagged.clusters, tagged.tokens[["tag"]])


def test_control_needs_the_tokens_that_were_clustered(tagged):
    with pytest.raises(ValueError, match="a table of 9 tokens, clusters of 3000"):
        random_control(tagged.clusters, tagged.tokens[:9])


def test_kinds_of_texts(small_texts, cut, pattern):
    windows, tokens = cut(small_texts, 12)
    columns = token_tags(windows, tokens, small_texts, pattern)
    kinds = label_kinds(tokens.assign(**columns, place=np.arange(len(tokens))))
    expected = ["position", "target", "document", "place", "continuation", "previous", *reversed(TAGS)]
    assert list(kinds) == expected  # here all tokens repeat
    assert list(dict.fromkeys(kinds["place"])) == ["0", "1", "2–3", "4–7", "8–15", "16–31"][: len(set(kinds["place"]))]


def draw_tokens(n, seed=0):
    targets = np.array([",", " the", " of", *(f" w{i}" for i in range(400))], object)
    weights = 1 / np.arange(2, 405)
    rng = np.random.default_rng(seed)
    columns = {
        "target": rng.choice(targets, n, p=weights / weights.sum()),
        "previous": rng.choice(targets, n, p=weights / weights.sum()),
        "place": rng.integers(0, 900, n),
        "repeated": rng.integers(0, 2, n),
        "tag": rng.choice(UNIVERSAL[:8], n),
    }
    return pd.DataFrame(columns | {"target_id": 0})


@pytest.fixture(scope="module")
def planted(clusters_of):
    """Three in four tokens of cluster 0 have the target ",", all of cluster 1 follow " of"; cluster 2 is random, as is
    everything along direction 1.
    """
    rng = np.random.default_rng(0)
    tokens = draw_tokens(4000, 2)
    chosen = rng.permutation(4000)
    tokens.loc[chosen[:60], "target"] = ","
    tokens.loc[chosen[100:140], "previous"] = " of"
    labels = np.full(4000, OUTLIER)
    labels[chosen[:80]] = 0
    labels[chosen[100:140]] = 1
    labels[chosen[200:300]] = 2
    labels[chosen[3000:]] = DROPPED
    clusters = clusters_of(labels, rng.permutation(labels))
    return SimpleNamespace(tokens=tokens, labels=labels, clusters=clusters, tests=label_tests(clusters, tokens))


def test_planted_labels_are_all_that_is_found(planted):
    hits = planted.tests[planted.tests.q <= 0.05]
    found = list(zip(hits.direction, hits.cluster, hits.kind, hits.value))
    assert found == [(0, 0, "target", ","), (0, 1, "previous", " of")]
    assert (hits.p < 1e-6).all()


def test_shares_are_of_the_cluster_of_what_was_clustered_and_of_all(planted):
    row = planted.tests[planted.tests.q <= 0.05].iloc[0]
    commas = planted.tokens.target == ","
    assert row["size"] == 80
    assert row["share"] == commas[planted.labels == 0].mean()
    assert row["base"] == commas[planted.labels >= OUTLIER].mean()
    assert row["base_all"] == commas.mean()


def test_every_cluster_is_tested_for_every_kind(planted):
    assert planted.tests.groupby(["direction", "cluster"]).kind.nunique().eq(5).all()


def test_other_clusters_do_not_change_a_test(planted):
    alone = label_tests(Clusters(planted.clusters.labels, planted.clusters.table[:1], {}), planted.tokens)
    columns = ["value", "excess", "p"]
    first = planted.tests[(planted.tests.direction == 0) & (planted.tests.cluster == 0)]
    assert alone[columns].equals(first[columns].reset_index(drop=True))


def test_without_clusters_there_are_no_tests(planted, without_clusters):
    tests = label_tests(without_clusters(planted.clusters), planted.tokens)
    assert tests.empty and "q" in tests


def test_nothing_is_over_represented_in_all_tokens(planted, clusters_of):
    assert label_tests(clusters_of(np.zeros(4000, int)), planted.tokens).empty


def best_of_shuffled(values, size, least, n, seed):
    """The best excess of `n` random sets, by shuffling; means and spreads from all sets of a value are the
    hypergeometric's, here by hand.
    """
    rng = np.random.default_rng(seed)
    total = len(values)
    names, counts = np.unique(values, return_counts=True)
    found = []
    for _ in range(n):
        drawn = rng.permutation(values)[:size]
        best = 0.0
        for name, marked in zip(names, counts):
            number = sum(value == name for value in drawn)
            mean = size * marked / total
            variance = size * marked / total * (1 - marked / total) * (total - size) / (total - 1)
            if number >= least * size and number >= 1:
                best = max(best, (number - mean) / variance**0.5)
        found.append(best)
    return np.array(found)


@pytest.fixture(scope="module")
def shuffled():
    values = np.repeat(list("abcdefgh"), [30, 20, 10, 5, 5, 3, 2, 1])
    return SimpleNamespace(values=values, best=best_of_shuffled(values, 12, 0.2, 4000, 1))


def exceeding(own, pool, n, seed, least=0.2):
    return most_exceeding(own, pool, np.ones(len(pool), bool), least, n, np.random.default_rng(seed))


@pytest.mark.parametrize("quantile", [0.3, 0.6, 0.9, 0.98])
def test_p_is_the_share_of_shuffled_sets_that_exceed_as_much(shuffled, quantile):
    codes, _ = pd.factorize(shuffled.values)
    pool = np.bincount(codes)
    wanted = np.quantile(shuffled.best, quantile)
    for seed in range(2000):
        own = np.bincount(np.random.default_rng(seed).choice(codes, 12, replace=False), minlength=8)
        if abs(exceeding(own, pool, 1, 0)[1] - wanted) < 0.05:
            break
    _, excess, p = exceeding(own, pool, 4000, 2)
    assert abs(excess - wanted) < 0.05
    assert abs(p - (shuffled.best >= excess - 1e-9).mean()) < 0.03


@pytest.mark.parametrize("own", [[4, 1, 0], [0, 5, 0], [0, 0, 5]])
def test_bound_stands_where_no_draw_exceeds_as_much(own):
    "Against the exact probability, from all sets that there are; of a single draw the bound stands."
    values = np.repeat([0, 1, 2], [4, 5, 6])
    pool = np.bincount(values)
    sets = np.array([np.bincount(values[list(c)], minlength=3) for c in combinations(range(15), 5)])
    mean = 5 * pool / 15
    spread = np.sqrt(mean * (1 - pool / 15) * 10 / 14)
    best = np.where(sets >= 1, (sets - mean) / spread, 0).max(1)
    _, excess, p = exceeding(np.array(own), pool, 1, 0, least=0.05)
    exact = (best >= excess - 1e-9).mean()
    assert exact * (1 - 1e-9) <= p < 1.5 * exact


def test_tails_are_those_of_scipy():
    marked = np.array([3, 40, 400, 900])
    least = np.array([2.0, 30, 150, 60])
    tails = hypergeometric_tails(least, 1000, marked, 300)
    np.testing.assert_allclose(tails, hypergeom.sf(least - 1, 1000, marked, 300), rtol=1e-8)


def test_sixty_clusters_of_a_large_table_take_seconds(clusters_of):
    rng = np.random.default_rng(0)
    n = 12_600
    large = draw_tokens(n, 5).assign(
        **{t: rng.choice(UNIVERSAL, n) for t in TAGS[:3]},
        continuation=rng.integers(0, 2, n),
        position=rng.integers(1, 128, n),
        document=rng.choice(list("abcde"), n),
    )
    labels = np.r_[np.repeat(range(4), 400), np.full(11_000, OUTLIER)]
    sixty = clusters_of(*(rng.permutation(labels) for _ in range(15)))
    start = time.process_time()
    assert len(label_tests(sixty, large)) == 60 * 11
    assert time.process_time() - start < 60


def test_clusters_without_tags_have_no_tag_label(planted):
    labelled = label_clusters(planted.clusters, planted.tokens, planted.tests)
    assert labelled.simple.isna().all()
    assert (labelled.tag_label == "").all()


def test_clusters_of_one_tag_are_named_by_it(tagged):
    labelled = label_clusters(tagged.clusters, tagged.tokens)
    assert labelled.simple.tolist()[:3] == [True] * 3
    assert labelled.tag_label[0].endswith(" ADJ")
    assert labelled.name[0].startswith("ADJ (100%, ×")
    assert labelled.name.tolist()[3:] == ["–"] * 3


def test_without_clusters_there_are_no_labels(planted, without_clusters):
    assert label_clusters(without_clusters(planted.clusters), planted.tokens).empty


@pytest.mark.parametrize(
    "kind, value, words",
    [
        ("tag_1", "DET", "DET one before"),
        ("tag", "ADP", "ADP"),
        ("carry", 1, "carry 1"),
        ("repeated", 1, "repeated"),
        ("continuation", 0, "not inside a word"),
        ("place", "8–15", "place 8–15"),
        ("document", "a/b.txt", "document b.txt"),
        ("previous", "\n", 'after "⏎"'),
        ("target", "", '""'),
    ],
)
def test_labels_in_words(kind, value, words):
    assert label_words(kind, value) == words


@pytest.fixture(scope="module")
def rising(curves_of):
    heights = np.array([0, 3, 1, 0.5, 2, 9])
    curves = curves_of(np.linspace(0, 1, 6)[:, None, None] * heights[:, None]).assign_coords(direction=[4])
    coords = {"token": range(6), "direction": [4]}
    table = pd.DataFrame({"direction": [4], "cluster": [0], "size": [5], "medoid": [2]})
    clusters = Clusters(xr.DataArray([[0, 0, 0, 0, 0, -1]], coords, ("direction", "token")), table, {})
    return SimpleNamespace(curves=curves, clusters=clusters, tokens=pd.DataFrame({"target": list("abcdef")}))


def test_cluster_that_is_not_there_is_refused(rising):
    with pytest.raises(ValueError, match="there is no cluster 1 along direction 4: take one of the table"):
        nearest_contexts(rising.curves, rising.clusters, rising.tokens, 4, 1)


def test_contexts_need_the_tokens_that_were_clustered(rising):
    with pytest.raises(ValueError, match="a table of 5 tokens"):
        nearest_contexts(rising.curves, rising.clusters, rising.tokens[:5], 4, 0)


def test_contexts_of_what_is_no_text_are_all_columns(rising, clusters_of):
    columns = {"example": ("token", [0, 0]), "place": ("token", [1, 2]), "target": ("token", ["a", "b"])}
    table = projection_tokens(xr.Dataset(coords={"token": range(2), "step": [0]} | columns))
    curves = rising.curves[:, :2].assign_coords(direction=[0])
    assert list(nearest_contexts(curves, clusters_of(np.zeros(2, int)), table, 0, 0)) == ["distance", *table]
