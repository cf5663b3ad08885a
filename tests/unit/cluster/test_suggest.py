"""`labelmesh.suggest` of arrays and of a run, and what comes back."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
from labelmesh.cluster import suggest as suggesting
from labelmesh.cluster.suggest import Suggestions, suggest
from labelmesh.cluster.suggest_run import load_run
from labelmesh.datasets.reader import Reader
from labelmesh.graph_store.suggest import CRITERIA
from labelmesh.tests.unit.cluster.conftest import NOT_READ, NUM_NODES
from labelmesh.trainers.config import load_config
from numpy.typing import NDArray

Arrays = tuple[NDArray[np.float64], NDArray[np.int64]]


@pytest.fixture
def clusters() -> Arrays:
    """Three clusters far apart; the first two have a label each."""
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], 30)
    labels = np.full(90, -1)
    labels[[4, 35]] = [0, 1]
    return rng.normal(size=(90, 3)) + 30.0 * truth[:, None], labels


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_cluster_without_a_label_is_asked_about(clusters: Arrays, criterion: str) -> None:
    x, labels = clusters
    found = suggest(x, labels, count=3, criterion=criterion, k=6)
    assert 60 <= found.node_ids[0] < 90
    assert found.labels[0] == -1
    assert found.confidence[0] == 0
    assert len(set(found.node_ids.tolist())) == 3
    assert bool((labels[found.node_ids] == -1).all())


def test_same_arguments_same_suggestions_of_tensors_too(clusters: Arrays) -> None:
    x, labels = clusters
    a = suggest(x, labels, count=9, k=6, seed=1)
    b = suggest(torch.from_numpy(x), torch.from_numpy(labels), count=9, k=6, seed=1)
    np.testing.assert_array_equal(a.node_ids, b.node_ids)
    np.testing.assert_array_equal(a.scores, b.scores)


def test_class_numbers_may_be_any(clusters: Arrays) -> None:
    x, labels = clusters
    renamed = np.where(labels == 0, 10**9, np.where(labels == 1, 7, -1))
    for criterion in ("uncertainty", "model_change"):
        a = suggest(x, labels, count=70, criterion=criterion, k=6, method="laplace")
        b = suggest(x, renamed, count=70, criterion=criterion, k=6, method="laplace")
        np.testing.assert_array_equal(a.node_ids, b.node_ids)
        expected = np.select([a.labels == 0, a.labels == 1], [10**9, 7], -1)
        np.testing.assert_array_equal(b.labels, expected)


@pytest.mark.parametrize("criterion", ["model_change", "sigma_opt", "vopt"])
def test_where_to_begin_without_any_label(clusters: Arrays, criterion: str) -> None:
    x, _ = clusters
    found = suggest(x, count=3, criterion=criterion, k=6)
    assert sorted(found.node_ids // 30) == [0, 1, 2]
    assert found.labels.tolist() == [-1, -1, -1]


def test_bad_input(clusters: Arrays) -> None:
    x, labels = clusters
    with pytest.raises(ValueError, match="count = 89, but only 88 nodes are unlabeled"):
        suggest(x, labels, count=89)
    with pytest.raises(ValueError, match='"local_max" needs labels to be uncertain about'):
        suggest(x, count=3, criterion="local_max")
    with pytest.raises(ValueError, match="90 rows of features but 4 labels"):
        suggest(x, labels[:4])
    with pytest.raises(ValueError, match="criterion = 'luck'"):
        suggest(x, labels, criterion="luck")
    with pytest.raises(ValueError, match="method = 'luck'"):
        suggest(x, labels, count=3, method="luck")


def test_the_example_is_right() -> None:
    failed, tried = doctest.testmod(suggesting)
    assert (failed, tried) == (0, 3)


def test_table() -> None:
    ids, scores = np.array([5, 2]), np.array([0.7, 0.1])
    found = Suggestions(ids, scores, np.array([1, -1]), np.array([0.6, 0.0]))
    assert found.to_table().to_pydict() == {
        "rank": [1, 2], "row": [5, 2], "score": [0.7, 0.1], "label": [1, -1],
        "confidence": [0.6, 0.0],
    }  # fmt: skip
    named = Suggestions(
        ids, scores, np.array([1, -1]), np.array([0.6, 0.0]), np.array(["a", "b"]),
        np.array(["cat", "dog"]),
    )  # fmt: skip
    table = named.to_table()
    assert table.column_names == ["rank", "key", "score", "label", "class", "confidence"]
    assert table["key"].to_pylist() == ["a", "b"]
    assert table["class"].to_pylist() == ["dog", ""]


def test_run_says_what_its_network_and_its_graph_say(run: str) -> None:
    nodes = load_run(run)
    probs = nodes.probs
    labeled = nodes.labels >= 0
    assert int(labeled.sum()) == 20
    of_both = ~labeled & (torch.arange(NUM_NODES) >= 100) & (torch.arange(NUM_NODES) < 150)
    torch.testing.assert_close(probs[of_both][:, [3, 7]], torch.tensor([[0.32, 0.52]]).expand(
        int(of_both.sum()), 2
    ))  # fmt: skip
    assert float(probs[20:100][~labeled[20:100]][:, 3].min()) == pytest.approx(0.64)
    assert not bool(nodes.present[NOT_READ])


def test_run_asks_where_network_and_graph_disagree(run: str) -> None:
    found = suggest(run, count=12, criterion="uncertainty")
    assert bool(((found.node_ids >= 100) & (found.node_ids < 150)).all())
    assert found.label_names() == ["digit 7"] * 12
    np.testing.assert_allclose(found.confidence, 0.52, rtol=1e-6)
    assert found.keys is not None
    assert all(str(key).startswith("digit-") for key in found.keys)


@pytest.mark.parametrize("method", [None, "poisson"])
def test_run_never_suggests_what_is_labeled_or_was_not_read(run: str, method: str | None) -> None:
    nodes = load_run(run)
    available = int(((nodes.labels < 0) & nodes.present).sum())
    found = suggest(Path(run), count=available, method=method)
    assert NOT_READ not in found.node_ids
    assert bool((nodes.labels[torch.from_numpy(found.node_ids)] < 0).all())
    with pytest.raises(ValueError, match=f"count = {available + 1}"):
        suggest(run, count=available + 1)


def test_labels_that_were_given_since_count(run: str) -> None:
    first = suggest(run, count=5)
    labels = np.full(NUM_NODES, -1)
    labels[first.node_ids] = 3
    after = suggest(run, labels, count=5)
    assert not set(first.node_ids.tolist()) & set(after.node_ids.tolist())
    with pytest.raises(ValueError, match=r"one per node of the run \(200\)"):
        suggest(run, labels[:7])
    with pytest.raises(ValueError, match=r"classes 0\.\.9 or -1; got 200, up to 10"):
        suggest(run, np.where(labels >= 0, 10, -1))


def test_images_of_a_run(run: str, digits: str) -> None:
    nodes = load_run(run)
    images = nodes.images(np.array([7, 3]))
    assert list(images) == [7, 3]
    assert images[3].shape == (1, 8, 8)
    assert images[3].dtype == np.uint8
    expected = Reader(digits, nodes.rows, nodes.labels).read(torch.tensor([3])).inputs[0]
    np.testing.assert_array_equal(images[3], expected.numpy())


def test_folders_that_hold_no_finished_run_with_a_graph(run: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished run"):
        suggest(str(tmp_path))
    spec = load_config("fixmatch-digits")
    (tmp_path / "config.toml").write_text(spec.to_toml())
    for name in ("model.json", "labels.parquet"):
        (tmp_path / name).write_bytes((Path(run) / name).read_bytes())
    with pytest.raises(ValueError, match="has no graph: its method 'fixmatch' uses none"):
        suggest(tmp_path)
