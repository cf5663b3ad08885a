"""Which samples of a data set are a run's nodes, and which of these are labeled.

A split is drawn once, by the driver, from the manifest's labels; workers load the saved split,
which holds masked labels only. `class_balanced` and `make_split` are pure; the others read and
write files. Rows are manifest rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Int64
from torch import Tensor

from .files import join, read_columns, write_table
from .manifest import load_info, splits_of
from .schema import UNLABELED
from .seeds import generator
from .stratify import rank_in_class, stratified_order


@dataclass(frozen=True)
class Split:
    """What a run sees of a data set.

    Attributes:
        rows: Manifest rows of the run's nodes 0..n-1, ascending.
        labels: Given labels of the nodes, -1 = unlabeled: the only labels that training sees.
        val_rows, test_rows: For evaluation, which reads the truth by itself.
    """

    rows: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    val_rows: Int64[Tensor, " v"]
    test_rows: Int64[Tensor, " t"]

    def save(self, uri: str) -> None:
        """Write the split as one Parquet file, atomically."""
        parts = {"node": self.rows, "val": self.val_rows, "test": self.test_rows}
        labels = [self.labels.numpy()]
        labels += [np.full(len(rows), UNLABELED) for rows in (self.val_rows, self.test_rows)]
        table = {
            "part": np.repeat(list(parts), [len(rows) for rows in parts.values()]),
            "row": np.concatenate([rows.numpy() for rows in parts.values()]),
            "label": np.concatenate(labels),
        }
        write_table(uri, pa.table(table))

    @classmethod
    def load(cls, uri: str) -> Split:
        """Read what `save` wrote."""
        table = read_columns(uri, ["part", "row", "label"])

        def column(name: str, part: str) -> Tensor:
            values = table[name].filter(pc.equal(table["part"], part))
            return torch.from_numpy(values.to_numpy().astype(np.int64))

        return cls(
            rows=column("row", "node"),
            labels=column("label", "node"),
            val_rows=column("row", "val"),
            test_rows=column("row", "test"),
        )


def class_balanced(
    labels: Int64[Tensor, " n"], per_class: int, seed: int, num_classes: int | None = None
) -> Int64[Tensor, " m"]:
    """Draw `per_class` samples of every class.

    Args:
        labels: Class of each sample; -1 = not known, never drawn.
        num_classes: Highest label + 1 unless told.

    Returns:
        Positions in `labels`, ascending.

    Raises:
        ValueError: A class has fewer samples than that.
    """
    known = labels.numpy()
    num_classes = int(known.max(initial=-1)) + 1 if num_classes is None else num_classes
    if per_class < 1 or not num_classes:
        raise ValueError(
            f"labels_per_class = {per_class} of {num_classes} classes: both must be 1 or more"
        )
    counts = np.bincount(known[known >= 0], minlength=num_classes)
    if (counts < per_class).any():
        short = int(np.argmax(counts < per_class))
        raise ValueError(
            f"labels_per_class = {per_class}: class {short} has only {counts[short]} samples "
            "with a known label; lower it or import more labels"
        )
    order = generator(seed, "labeled").permutation(len(known))
    drawn = order[(rank_in_class(known[order]) < per_class) & (known[order] >= 0)]
    return torch.from_numpy(np.sort(drawn))


def make_split(
    labels: Int64[Tensor, " N"],
    train_rows: Int64[Tensor, " n"],
    test_rows: Int64[Tensor, " t"],
    val_rows: Int64[Tensor, " v"],
    *,
    labels_per_class: int | None,
    split_seed: int,
    val_share: float,
    num_nodes: int | None,
    num_classes: int,
    published: tuple[Tensor, Tensor] | None = None,
) -> Split:
    """Draw a run's split: validation rows, then the labeled nodes, then the other nodes.

    In this order the same `split_seed` gives the same labeled nodes for every `num_nodes`. All
    draws are spread evenly over the classes that the manifest knows.

    Args:
        labels: The manifest's label column, all rows.
        val_rows: The manifest's own; if there are any, `val_share` is not used.
        labels_per_class: None: the manifest's labels are the given labels.
        val_share: Share of the training rows that is held out for validation.
        num_nodes: Size of the run; None: all training rows that are left. Labeled nodes always
            belong to it, unless the manifest's own labels are more than that.
        published: Positions among the training rows, and their classes: the labeled nodes.

    Raises:
        ValueError: Too few samples (of a class), or a published list that contradicts the manifest.
    """
    if published is not None:
        fixed = _published_rows(labels, train_rows, *published, num_classes)
        labels = labels.clone()
        labels[fixed] = published[1]
    else:
        fixed = train_rows[:0]
    if not len(val_rows) and val_share > 0:
        free = _without(train_rows, fixed)
        count = min(round(val_share * len(train_rows)), len(free))
        val_rows = free[stratified_order(labels[free], split_seed, "val")[:count]].sort().values
        train_rows = _without(train_rows, val_rows)
    if published is not None:
        given = fixed
    elif labels_per_class is not None:
        given = train_rows[
            class_balanced(labels[train_rows], labels_per_class, split_seed, num_classes)
        ]
    else:
        given = train_rows[labels[train_rows] >= 0]
    is_drawn = published is not None or labels_per_class is not None
    rows = _subset(labels, train_rows, given, num_nodes, split_seed, is_drawn)
    masked = torch.where(torch.isin(rows, given), labels[rows], UNLABELED)
    return Split(rows=rows, labels=masked, val_rows=val_rows, test_rows=test_rows)


def write_split(
    uri: str,
    *,
    labels_per_class: int | None,
    seed: int = 0,
    published: tuple[Tensor, Tensor] | None = None,
) -> dict[str, int]:
    """Hide the labels of all training samples but a class-balanced draw, in the manifest itself.

    The labels that were imported are kept in a column of their own, `imported_label`, so that
    another split can be drawn later; nothing else reads it. `truth` and val rows stay.

    Args:
        labels_per_class: None, without `published`: give all imported labels back.
        published: Positions among the training rows, and their classes; see `published_split`.

    Returns:
        Number of labeled and of unlabeled training samples.

    Raises:
        ValueError: Too few samples of a class, or a list that contradicts the manifest.
    """
    info = load_info(uri)
    rows = splits_of(uri)
    manifest = join(uri, "manifest.parquet")
    table = read_columns(manifest, None)
    kept = "imported_label" if "imported_label" in table.column_names else "label"
    labels = torch.from_numpy(table[kept].to_numpy().copy())
    split = make_split(
        labels,
        rows["train"],
        rows["test"],
        rows["val"],
        labels_per_class=labels_per_class,
        split_seed=seed,
        val_share=0.0,
        num_nodes=None,
        num_classes=info.num_classes,
        published=published,
    )
    if kept == "label":
        table = table.append_column("imported_label", table["label"])
    labels[split.rows] = split.labels
    place = table.column_names.index("label")
    table = table.set_column(place, "label", pa.array(labels.numpy()))
    write_table(manifest, table)
    num_labeled = int((split.labels >= 0).sum())
    return {"labeled": num_labeled, "unlabeled": len(split.labels) - num_labeled}


def published_split(
    uri: str, dataset: str, num_labels: int, number: int
) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"]]:
    """One published list of labeled samples.

    The Parquet file has a row per split: `dataset`, `n_labels`, `split` (its number), `index`
    (positions in the original training set) and `label`.

    Returns:
        Positions and classes, as published.

    Raises:
        ValueError: No such file, or no such split in it; the message lists those there are.
    """
    try:
        found = read_columns(uri, ["dataset", "n_labels", "split", "index", "label"])
    except FileNotFoundError:
        raise ValueError(f"{uri}: there is no such file of published splits") from None
    of_dataset = found.filter(pc.equal(found["dataset"], dataset))
    rows = of_dataset.filter(
        pc.and_(pc.equal(of_dataset["n_labels"], num_labels), pc.equal(of_dataset["split"], number))
    )
    if len(rows) != 1:
        raise ValueError(
            f"{uri}: no split number {number} of {dataset!r} with {num_labels} labels; data sets "
            f"are {sorted(set(found['dataset'].to_pylist()))}, label counts of this one "
            f"{sorted(set(of_dataset['n_labels'].to_pylist()))}"
        )
    row = rows.to_pylist()[0]
    return torch.tensor(row["index"]).long(), torch.tensor(row["label"]).long()


def _without(rows: Tensor, taken: Tensor) -> Tensor:
    return rows[~torch.isin(rows, taken)]


def _subset(
    labels: Tensor,
    train_rows: Tensor,
    given: Tensor,
    num_nodes: int | None,
    seed: int,
    is_drawn: bool,
) -> Tensor:
    if num_nodes is None:
        return train_rows
    if num_nodes > len(train_rows):
        raise ValueError(
            f"num_nodes = {num_nodes}: only {len(train_rows)} training samples are left"
        )
    if len(given) > num_nodes:
        if is_drawn:
            raise ValueError(
                f"num_nodes = {num_nodes}: fewer than the {len(given)} labeled nodes; raise it"
            )
        given = given[:0]
    free = _without(train_rows, given)
    order = stratified_order(labels[free], seed, "nodes")
    return torch.cat([given, free[order[: num_nodes - len(given)]]]).sort().values


def _published_rows(
    labels: Tensor, train_rows: Tensor, index: Tensor, label: Tensor, num_classes: int
) -> Tensor:
    unknown = (label < 0) | (label >= num_classes)
    if unknown.any():
        raise ValueError(
            f"published split: class {int(label[unknown][0])}, but the data set has "
            f"{num_classes} classes"
        )
    wrong = (index < 0) | (index >= len(train_rows))
    if wrong.any():
        raise ValueError(
            f"published split: position {int(index[wrong][0])}, but the data set has "
            f"{len(train_rows)} training samples"
        )
    rows = train_rows[index]
    differs = (labels[rows] >= 0) & (labels[rows] != label)
    if differs.any():
        row = rows[differs][0]
        raise ValueError(
            f"published split: sample {int(index[differs][0])} has class "
            f"{int(label[differs][0])} there and {int(labels[row])} in the manifest; import the "
            "training samples in their original order, without a val split"
        )
    return rows
