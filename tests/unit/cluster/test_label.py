"""`label`: features in, labels out, against answers that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from labelmesh.cluster.columns import write_table
from labelmesh.cluster.label import label_features, to_table

METHODS = ("poisson", "laplace", "local_global", "density_paths")


def blobs(num_per_class: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, given labels (two per class) and truth of three clusters far apart."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(3), num_per_class)
    centers = np.array([[0.0, 9.0, 0.0], [9.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    features = centers[truth] + rng.normal(size=(len(truth), 3))
    labels = np.full(len(truth), -1)
    given = np.concatenate([rng.choice(np.flatnonzero(truth == c), 2, False) for c in range(3)])
    labels[given] = truth[given]
    return features.astype(np.float32), labels, truth


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("method", METHODS)
def test_clusters_get_their_label(method: str, metric: str) -> None:
    features, labels, truth = blobs()
    found = label_features(features, labels, method=method, metric=metric, k=12)
    reached = found.labels >= 0
    np.testing.assert_array_equal(found.labels[reached], truth[reached])
    # Density paths label only what lies on a path with a labeled node.
    assert found.coverage == 1.0 or (method == "density_paths" and found.coverage > 0.05)
    assert np.all((found.confidence >= 0) & (found.confidence <= 1))
    np.testing.assert_array_equal(found.confidence[found.given], 1.0)


@pytest.mark.parametrize("method", METHODS)
def test_class_numbers_may_be_any(method: str) -> None:
    features, labels, _ = blobs()
    names = np.array([40, 7, 1000])
    plain = label_features(features, labels, method=method, k=10)
    renamed = label_features(features, np.where(labels < 0, -1, names[labels]), method=method, k=10)
    # Ties between classes may fall otherwise when the order of the classes changes; here is none.
    np.testing.assert_array_equal(
        renamed.labels, np.where(plain.labels < 0, -1, names[plain.labels])
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_component_without_a_label_gets_none(method: str) -> None:
    features, labels, truth = blobs()
    features[truth == 2] += 1000.0
    labels[truth == 2] = -1
    found = label_features(features, labels, method=method, k=5)
    assert np.all(found.labels[truth == 2] == -1)
    assert np.all(found.confidence[truth == 2] == 0)
    if method != "density_paths":
        assert np.all(found.labels[truth == 0] == 0)
        assert found.coverage == pytest.approx(116 / 176)
    assert set(to_table(found, None)["source"].to_pylist()) == {"given", "graph", "none"}


@pytest.mark.parametrize("method", METHODS)
def test_one_class_alone_labels_what_it_reaches(method: str) -> None:
    features, labels, truth = blobs()
    found = label_features(features, np.where(labels == 1, 1, -1), method=method, k=5)
    assert set(found.labels[truth == 1]) <= ({1, -1} if method == "density_paths" else {1})
    assert set(found.labels[truth != 1]) == {-1}


def test_poisson_joins_two_classes_in_one_component_by_distance() -> None:
    """One cluster, a label at each end; another cluster with a label of one class only."""
    line = np.linspace(0.0, 9.0, 40)[:, None]
    features = np.concatenate([line, line + 100.0]).astype(np.float32)
    labels = np.full(80, -1)
    labels[[0, 39, 45]] = [0, 1, 1]
    found = label_features(features, labels, method="poisson", k=4)
    np.testing.assert_array_equal(found.labels, [0] * 20 + [1] * 20 + [1] * 40)
    np.testing.assert_array_equal(found.confidence[40:], 1.0)
    # The further from the middle, the surer.
    assert np.all(np.diff(found.confidence[1:20]) <= 0)


def test_laplace_confidence_is_the_share_of_the_winner() -> None:
    """On a path of four nodes with equal weights potentials fall linearly between the ends."""
    features = np.array([[0.0], [1.0], [2.0], [3.0]], np.float32)
    found = label_features(features, np.array([0, -1, -1, 1]), method="laplace", k=1)
    # k = 1 joins 0-1, 1-0 (tie to the lower id), 2-1, 3-2: a path whose weights are all exp(-4).
    np.testing.assert_array_equal(found.labels, [0, 0, 1, 1])
    np.testing.assert_allclose(found.confidence, [1, 2 / 3, 2 / 3, 1], rtol=1e-6)


def test_nothing_to_start_from() -> None:
    features, labels, _ = blobs()
    with pytest.raises(ValueError, match="none of the 180 rows has a label"):
        label_features(features, np.full_like(labels, -1))
    with pytest.raises(ValueError, match=r"180 rows of features but labels of shape \(3,\)"):
        label_features(features, labels[:3])
    with pytest.raises(ValueError, match="method = 'voting': known are poisson"):
        label_features(features, labels, method="voting")
    with pytest.raises(ValueError, match="k"):
        label_features(features, labels, k=180)


def test_table_round_trip(tmp_path: Path) -> None:
    features, labels, _ = blobs(10)
    found = label_features(features, labels, k=5)
    path = tmp_path / "new" / "labels.parquet"
    write_table(to_table(found, np.array([f"k{i}" for i in range(30)])), str(path))
    table = pq.read_table(path)
    assert table.column_names == ["key", "label", "confidence", "source"]
    assert table["label"].to_pylist() == found.labels.tolist()
    assert to_table(found, None).column_names[0] == "row"
