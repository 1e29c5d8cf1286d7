"""Scores where they are not defined."""

import numpy as np
import pytest

from polca.analysis.scores import agreement, linear_probe


def test_agreement_of_clusters_without_curves_has_no_silhouette(clusters_of):
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, -1])
    assert np.isnan(agreement(clusters_of(labels), labels).silhouette.item())


def test_agreement_without_clusters_is_not_a_number(clusters_of, without_clusters):
    none = agreement(without_clusters(clusters_of(np.full(10, -1))), np.arange(10) % 2)
    assert none.rand_clustered.isna().all() and none.silhouette.isna().all()
    assert none.outliers.item() == 1


def test_probe_needs_tokens_of_both_kinds(curves_of):
    with pytest.raises(ValueError, match="at least 10 tokens"):
        linear_probe(curves_of(np.zeros((11, 200, 3))), np.arange(200) < 3)
