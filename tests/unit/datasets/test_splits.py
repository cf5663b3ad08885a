from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.datasets.manifest import check, load_labels, splits_of
from labelmesh.datasets.splits import (
    Split,
    class_balanced,
    make_split,
    published_split,
    write_split,
)
from labelmesh.datasets.stratify import rank_in_class, stratified_order
from labelmesh.datasets.truth import load_truth

MakeImages = Callable[..., np.ndarray]

LABELS = torch.arange(130) % 5  # rows 0..99 train, 100..129 test
NONE = torch.arange(0)


def split_of(labels: torch.Tensor = LABELS, **changes: object) -> Split:
    options: dict[str, object] = {
        "labels_per_class": 2,
        "split_seed": 0,
        "val_share": 0.0,
        "num_nodes": None,
        "num_classes": 5,
    }
    train, test = torch.arange(100), torch.arange(100, 130)
    val = changes.pop("val_rows", NONE)
    return make_split(labels, train, test, val, **(options | changes))  # type: ignore[arg-type]


def test_class_balanced_draws_each_class_and_never_an_unknown_one() -> None:
    labels = torch.tensor([0, 1, 2, -1] * 25)
    drawn = class_balanced(labels, 3, seed=7)
    assert labels[drawn].bincount().tolist() == [3, 3, 3]
    assert torch.equal(drawn, drawn.sort().values)
    assert torch.equal(drawn, class_balanced(labels, 3, seed=7))
    assert not torch.equal(drawn, class_balanced(labels, 3, seed=8))


def test_class_balanced_is_uniform_within_a_class() -> None:
    """400 draws of 2 of 8: each is drawn 100 times on average, sd 8.7; five sd either way."""
    labels = torch.zeros(8).long()
    counts = torch.zeros(8)
    for seed in range(400):
        counts[class_balanced(labels, 2, seed)] += 1
    assert 56 < counts.min() <= counts.max() < 144


def test_class_without_enough_labels_is_named() -> None:
    with pytest.raises(ValueError, match="class 1 has only 2 samples"):
        class_balanced(torch.tensor([0, 0, 0, 1, 1]), 3, seed=0)
    with pytest.raises(ValueError, match="class 2 has only 0 samples"):
        class_balanced(torch.tensor([0, 1]), 1, seed=0, num_classes=3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-1, 4), min_size=1, max_size=80), st.integers(0, 5))
def test_every_prefix_of_a_stratified_order_keeps_the_proportions(
    classes: list[int], seed: int
) -> None:
    labels = torch.tensor(classes)
    order = stratified_order(labels, seed, "test")
    assert torch.equal(order.sort().values, torch.arange(len(classes)))
    for c in labels.unique():
        got = (labels[order] == c).cumsum(0)
        share = (labels == c).double().mean()
        due = torch.arange(1, len(classes) + 1) * share
        assert (got - due).abs().max() <= 1 + len(labels.unique()) * share + 1e-9


def test_rank_in_class_counts_those_before() -> None:
    assert rank_in_class(np.array([3, 1, 3, 3, 1])).tolist() == [0, 0, 1, 2, 1]
    assert rank_in_class(np.array([], np.int64)).tolist() == []


def test_split_masks_all_but_the_drawn_labels() -> None:
    split = split_of()
    given = split.labels >= 0
    assert split.labels[given].bincount().tolist() == [2] * 5
    assert torch.equal(split.labels[given], LABELS[split.rows[given]])
    assert torch.equal(split.rows, torch.arange(100))
    assert torch.equal(split.test_rows, torch.arange(100, 130))


def test_same_seed_gives_the_same_labeled_nodes_for_every_size() -> None:
    def labeled(split: Split) -> torch.Tensor:
        return split.rows[split.labels >= 0]

    whole = split_of(val_share=0.1)
    previous = whole.rows
    for num_nodes in (80, 40, 10):
        split = split_of(val_share=0.1, num_nodes=num_nodes)
        assert len(split.rows) == num_nodes
        assert torch.equal(labeled(split), labeled(whole))
        assert torch.isin(split.rows, previous).all()
        previous = split.rows


def test_subset_and_val_are_spread_over_the_classes() -> None:
    split = split_of(val_share=0.2, num_nodes=40)
    assert LABELS[split.val_rows].bincount().tolist() == [4] * 5
    counts = LABELS[split.rows].bincount()
    assert counts.sum() == 40
    assert (counts - 8).abs().max() <= 1
    assert not torch.isin(split.val_rows, split.rows).any()


def test_val_rows_of_the_manifest_are_kept() -> None:
    split = split_of(val_rows=torch.arange(100, 110), val_share=0.5)
    assert torch.equal(split.val_rows, torch.arange(100, 110))
    assert len(split.rows) == 100


def test_without_a_draw_the_manifests_labels_are_given() -> None:
    labels = LABELS.clone()
    labels[10:] = -1
    split = split_of(labels, labels_per_class=None, num_nodes=30)
    assert torch.equal(split.rows[split.labels >= 0], torch.arange(10))
    assert len(split.rows) == 30
    full = split_of(LABELS, labels_per_class=None, num_nodes=30)
    assert full.labels.bincount().tolist() == [6] * 5


def test_published_labels_are_those_of_the_list() -> None:
    index = torch.tensor([7, 3, 50])
    split = split_of(published=(index, LABELS[index]), num_nodes=20, val_share=0.3)
    assert split.rows[split.labels >= 0].tolist() == [3, 7, 50]
    assert split.labels[split.labels >= 0].tolist() == [3, 2, 0]
    assert not torch.isin(index, split.val_rows).any()


def test_published_list_gives_labels_that_the_manifest_hides() -> None:
    split = split_of(torch.full((130,), -1), published=(torch.tensor([4]), torch.tensor([2])))
    assert split.labels[4] == 2


def test_contradictions_are_named() -> None:
    with pytest.raises(ValueError, match="sample 7 has class 4 there and 2 in the manifest"):
        split_of(published=(torch.tensor([7]), torch.tensor([4])))
    with pytest.raises(ValueError, match="position 100, but the data set has 100"):
        split_of(published=(torch.tensor([100]), torch.tensor([0])))
    with pytest.raises(ValueError, match="class 5, but the data set has 5"):
        split_of(published=(torch.tensor([1]), torch.tensor([5])))
    with pytest.raises(ValueError, match="num_nodes = 101: only 100"):
        split_of(num_nodes=101)
    with pytest.raises(ValueError, match="fewer than the 10 labeled nodes"):
        split_of(num_nodes=9)


@pytest.mark.parametrize("where", ["{tmp}/split.parquet", "memory://splits/split.parquet"])
def test_saved_split_comes_back(where: str, tmp_path: object) -> None:
    uri = where.format(tmp=tmp_path)
    split = split_of(val_share=0.1, num_nodes=50)
    split.save(uri)
    loaded = Split.load(uri)
    for name in ("rows", "labels", "val_rows", "test_rows"):
        assert torch.equal(getattr(loaded, name), getattr(split, name))


def test_published_split_is_found_by_name_size_and_number(tmp_path: object) -> None:
    uri = f"{tmp_path}/lists.parquet"
    table = {
        "dataset": ["d", "d", "e"],
        "n_labels": [2, 2, 2],
        "split": pa.array([0, 1, 0], pa.uint8()),
        "index": pa.array([[5, 1], [7, 8], [0, 1]], pa.list_(pa.int32())),
        "label": pa.array([[1, 0], [0, 1], [0, 0]], pa.list_(pa.uint8())),
    }
    pq.write_table(pa.table(table), uri)
    index, label = published_split(uri, "d", 2, 1)
    assert (index.tolist(), label.tolist()) == ([7, 8], [0, 1])
    with pytest.raises(ValueError, match=r"no split number 2 .* data sets are \['d', 'e'\]"):
        published_split(uri, "d", 2, 2)
    with pytest.raises(ValueError, match="no such file"):
        published_split(f"{tmp_path}/none.parquet", "d", 2, 2)


def test_write_split_hides_labels_and_keeps_the_truth(
    tmp_path: object, make_images: MakeImages
) -> None:
    uri = str(tmp_path)
    make_images(uri, 30)
    truth = load_truth(uri, torch.arange(45))
    assert write_split(uri, labels_per_class=2, seed=1) == {"labeled": 6, "unlabeled": 24}
    labels = load_labels(uri)
    assert labels[labels >= 0].bincount().tolist() == [2, 2, 2]
    assert torch.equal(labels[labels >= 0], truth[labels >= 0])
    assert torch.equal(load_truth(uri, torch.arange(45)), truth)
    check(uri)
    # Another draw, with more labels than the first one left; then all of them again.
    assert write_split(uri, labels_per_class=5, seed=2)["labeled"] == 15
    write_split(uri, labels_per_class=None)
    train = splits_of(uri)["train"]
    assert torch.equal(load_labels(uri)[train], truth[train])
