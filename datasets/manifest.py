"""The manifest of a data set: reading its parts, checking it, statistics.

Readers of inputs take `load_index`, which touches neither labels nor truth; the driver takes
`load_labels` to draw a split. The truth is read by `truth.py` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Int64
from torch import Tensor

from .files import file_sizes, join, read_columns, read_json_bytes
from .names import check_path
from .schema import SPLIT_NAMES, UNLABELED, DatasetInfo
from .shards import shard_contents
from .trust import check_columns, check_places


@dataclass(frozen=True)
class SampleIndex:
    """Where the inputs of a data set lie, by manifest row.

    Attributes:
        uri: The data set's.
        keys, sha256: Arrow string arrays.
        shards: Paths relative to `uri`.
        shard_ids: Index into `shards`.
        offsets, sizes: See `schema.MANIFEST_SCHEMA`.
    """

    uri: str
    info: DatasetInfo
    keys: pa.Array
    shards: tuple[str, ...]
    shard_ids: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    sha256: pa.Array

    def __len__(self) -> int:
        return len(self.offsets)


def load_info(uri: str) -> DatasetInfo:
    """The description of a data set.

    Raises:
        ValueError: There is no (finished) data set at `uri`.
    """
    source = join(uri, "dataset.json")
    try:
        content = read_json_bytes(source)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{uri}: there is no data set (dataset.json is missing); make one with "
            "`labelmesh data import`"
        ) from None
    return DatasetInfo.from_json(content, source=source)


def load_index(uri: str) -> SampleIndex:
    """Places of all samples, without any label.

    Raises:
        ValueError: There is no data set at `uri`, or its manifest names places outside of it.
    """
    info = load_info(uri)
    table = _columns(uri, ["key", "shard", "sha256"], optional=["offset", "size"])
    shard = table["shard"].combine_chunks().dictionary_encode()
    shards = tuple(shard.dictionary.to_pylist())
    for path in shards:
        check_path(path, f"{uri}: manifest.parquet")
    if "offset" in table.column_names and "size" in table.column_names:
        offsets, sizes = table["offset"].to_numpy(), table["size"].to_numpy()
    else:
        offsets, sizes = _scan(uri, info, table, shards)
    keys, shard_ids = table["key"].combine_chunks(), shard.indices.to_numpy().astype(np.int64)
    check_places(uri, info.kind, keys, shards, shard_ids, offsets, sizes)
    return SampleIndex(
        uri=str(uri),
        info=info,
        keys=keys,
        shards=shards,
        shard_ids=shard_ids,
        offsets=offsets,
        sizes=sizes,
        sha256=table["sha256"].combine_chunks(),
    )


def load_labels(uri: str) -> Int64[Tensor, " N"]:
    """The label column, all rows; -1 = unlabeled. For the driver, which draws the split.

    Raises:
        ValueError: There is no data set at `uri`.
    """
    return torch.from_numpy(_columns(uri, ["label"])["label"].to_numpy().copy())


def splits_of(uri: str) -> dict[str, Int64[Tensor, " n"]]:
    """Manifest rows of "train", "val" and "test", ascending.

    Raises:
        ValueError: There is no data set at `uri`.
    """
    column = _columns(uri, ["split"])["split"]
    return {
        name: torch.from_numpy(
            np.flatnonzero(pc.equal(column, name).to_numpy(zero_copy_only=False))
        )
        for name in SPLIT_NAMES
    }


def statistics(uri: str) -> dict[str, object]:
    """What `labelmesh data info` shows: plain values, ready for JSON.

    Raises:
        ValueError: There is no data set at `uri`.
    """
    info, labels, rows = load_info(uri), load_labels(uri).numpy(), splits_of(uri)
    table = _columns(uri, ["shard", "size"])
    train = labels[rows["train"].numpy()]
    counts = np.bincount(train[train >= 0], minlength=info.num_classes)
    return {
        "uri": str(uri),
        "name": info.name,
        "kind": info.kind,
        "shape": list(info.shape),
        "num_classes": info.num_classes,
        "classes": list(info.classes),
        "samples": {name: len(rows[name]) for name in SPLIT_NAMES if len(rows[name])},
        "train_labels_per_class": dict(zip(info.classes, counts.tolist())),
        "train_labeled": int((train >= 0).sum()),
        "train_unlabeled": int((train == UNLABELED).sum()),
        "num_shards": pc.count_distinct(table["shard"]).as_py(),
        "size_bytes": pc.sum(table["size"]).as_py() or 0,
        "num_skipped": len(info.skipped),
    }


def check(uri: str, *, deep: bool = True) -> None:
    """Compare the manifest with itself, with dataset.json and with the shards.

    Args:
        deep: Read the shards' headers and compare every sample's name, place and size; otherwise
            only see that no shard is missing, cut off or not listed (one listing, nothing is read).

    Raises:
        ValueError: No data set, two samples of one key, a label that is no class, rows out of
            order, or a shard whose samples differ from those listed; the first one is named.
    """
    info, index, labels = load_info(uri), load_index(uri), load_labels(uri).numpy()
    _check_rows(uri, info, len(index))
    counts = index.keys.value_counts()
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        raise ValueError(f"{uri}: two samples have the key {repeated[0].as_py()!r}")
    wrong = np.flatnonzero((labels < UNLABELED) | (labels >= info.num_classes))
    if len(wrong):
        raise ValueError(
            f"{uri}: sample {index.keys[wrong[0]].as_py()!r} has label {labels[wrong[0]]}; allowed "
            f"are 0..{info.num_classes - 1} and {UNLABELED} (unlabeled)"
        )
    folder = "shards" if info.kind == "image" else "features"
    _check_files(uri, index, folder)
    if not deep:
        return
    for shard_id, shard in enumerate(index.shards):
        rows = np.flatnonzero(index.shard_ids == shard_id)
        found = shard_contents(info.kind, join(uri, shard))
        _check_shard(join(uri, shard), index, rows, found)


def _check_rows(uri: str, info: DatasetInfo, num_rows: int) -> None:
    rows = splits_of(uri)
    listed = np.concatenate([rows[name].numpy() for name in SPLIT_NAMES])
    ids = _columns(uri, ["node_id"])["node_id"].to_numpy()
    if not (np.array_equal(listed, np.arange(num_rows)) and np.array_equal(ids, listed)):
        raise ValueError(
            f"{uri}: manifest rows must be numbered 0..{num_rows - 1}, train first, then val, then "
            "test"
        )
    counts = {name: len(rows[name]) for name in SPLIT_NAMES}
    if counts != {name: info.counts.get(name, 0) for name in SPLIT_NAMES}:
        raise ValueError(f"{uri}: the manifest has {counts} samples, dataset.json {info.counts}")


def _check_files(uri: str, index: SampleIndex, folder: str) -> None:
    present = {f"{folder}/{name}": size for name, size in file_sizes(join(uri, folder)).items()}
    stray = set(present) - set(index.shards)
    if stray:
        raise ValueError(f"{uri}: {min(stray)} is not in the manifest; import the data set again")
    ends = np.zeros(len(index.shards), np.int64)
    np.maximum.at(ends, index.shard_ids, index.offsets + index.sizes)
    for shard, end in zip(index.shards, ends.tolist()):
        if shard not in present:
            raise ValueError(f"{uri}: the manifest lists {shard}, but it is missing")
        if index.info.kind == "image" and present[shard] < end:
            raise ValueError(
                f"{uri}: {shard} is cut off: {present[shard]} bytes, the manifest needs {end}"
            )


def _check_shard(
    uri: str, index: SampleIndex, rows: np.ndarray, found: dict[str, set[tuple[int, int]]]
) -> None:
    keys = index.keys.take(pa.array(rows)).to_pylist()
    for key, *numbers in zip(keys, index.offsets[rows].tolist(), index.sizes[rows].tolist()):
        place = (numbers[0], numbers[1])
        if place not in found.get(key, set()):
            raise ValueError(
                f"{uri}: sample {key!r} should have {place[1]} bytes at {place[0]}, but the shard "
                f"has (offset, bytes) {sorted(found.get(key, set())) or 'no such sample'}"
            )
    if len(found) != len(rows):
        extra = sorted(set(found) - set(keys))
        raise ValueError(
            f"{uri}: holds {len(found)} samples, the manifest lists {len(rows)}; {extra[0]!r} is "
            "not listed"
        )


def _scan(
    uri: str, info: DatasetInfo, table: pa.Table, shards: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and sizes from the shards' headers, for a manifest that somebody else wrote."""
    contents = {shard: shard_contents(info.kind, join(uri, shard)) for shard in shards}
    places = []
    for key, shard in zip(table["key"].to_pylist(), table["shard"].to_pylist()):
        found = contents[shard].get(key)
        if not found:
            raise ValueError(f"{uri}: sample {key!r} is not in {shard}, where the manifest has it")
        # Of an image and its mask the image comes first.
        places.append(min(found))
    offsets, sizes = np.array(places, np.int64).reshape(-1, 2).T
    return offsets, sizes


def _columns(uri: str, names: list[str], optional: Sequence[str] = ()) -> pa.Table:
    try:
        table = read_columns(join(uri, "manifest.parquet"), [*names, *optional])
        missing = set(names) - set(table.column_names)
        if missing:
            raise ValueError(f"{uri}: manifest.parquet has no column {min(missing)!r}")
        check_columns(uri, table)
        return table
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{uri}: there is no data set (manifest.parquet is missing); make one with "
            "`labelmesh data import`"
        ) from None
