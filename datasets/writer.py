"""Writing a data set: samples in, shards as they fill, manifest and dataset.json at the end.

Before dataset.json is there, nobody takes what is written for a data set, so an import that was
cut off leaves none.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from .files import join, write_atomic, write_table
from .names import check_key
from .schema import MANIFEST_SCHEMA, SPLIT_NAMES, UNLABELED, DatasetInfo, Kind, SplitName
from .shards import Place, ShardWriter

_ROWS_PER_GROUP = 1024
_BYTES_PER_FILE = 64 << 20


class DatasetWriter:
    """Collects the samples of one data set.

    Args:
        max_broken_share: Largest share of the source's samples that may be skipped.
    """

    def __init__(
        self,
        dest: str,
        *,
        name: str,
        kind: Kind,
        max_broken_share: float = 0.01,
        shard_samples: int = 10_000,
    ) -> None:
        self._dest, self._name, self._kind = str(dest), name, kind
        self._max_broken_share, self._shard_samples = max_broken_share, shard_samples
        self._shape: tuple[int, ...] | None = None
        self._shards: dict[SplitName, ShardWriter | _FeatureWriter] = {}
        self._rows: list[tuple[SplitName, int, str, int | None, Place]] = []
        self._skipped: dict[str, str] = {}

    def add(
        self,
        split: SplitName,
        key: str,
        sample: np.ndarray,
        *,
        truth: int | None,
        order: int | None = None,
    ) -> None:
        """Append a sample.

        Args:
            sample: uint8 image `c h w` with 1 or 3 channels, or float32 embedding `D`.
            truth: Its class; None = unknown. Also its label, unless the split is "test".
            order: Place within the split; in the order of the calls unless told.

        Raises:
            ValueError: Another shape or type than the samples before it.
        """
        self._shape = self._shape or sample.shape
        expected = np.uint8 if self._kind == "image" else np.float32
        if sample.shape != self._shape or sample.dtype != expected:
            raise ValueError(
                f"sample {key!r} has shape {sample.shape} and type {sample.dtype}, expected "
                f"{self._shape} and {np.dtype(expected)}; all samples must be alike"
            )
        place = self._place(split, key, sample)
        self._rows.append((split, len(self._rows) if order is None else order, key, truth, place))

    def skip(self, name: str, reason: str) -> None:
        """Note a sample of the source that cannot be read."""
        self._skipped[name] = reason

    def finish(self, classes: Sequence[str]) -> DatasetInfo:
        """Write what is left, then the manifest, then dataset.json.

        Raises:
            ValueError: No samples, too many broken ones, two of one key, or a class that is not in
                `classes`.
        """
        self._check(len(classes))
        for shard in self._shards.values():
            shard.close()
        assert self._shape is not None
        splits = [row[0] for row in self._rows]
        info = DatasetInfo(
            name=self._name,
            classes=tuple(classes),
            kind=self._kind,
            shape=self._shape,
            counts={name: splits.count(name) for name in SPLIT_NAMES},
            skipped=self._skipped,
        )
        write_table(join(self._dest, "manifest.parquet"), self._manifest())
        write_atomic(join(self._dest, "dataset.json"), info.to_json().encode())
        return info

    def _place(self, split: SplitName, key: str, sample: np.ndarray) -> Place:
        if split not in self._shards:
            self._shards[split] = (
                ShardWriter(self._dest, split, max_samples=self._shard_samples)
                if self._kind == "image"
                else _FeatureWriter(self._dest, split)
            )
        shard = self._shards[split]
        if isinstance(shard, ShardWriter):
            return shard.add(key, encode_png(sample), "png")
        check_key(key, self._dest)
        return shard.add(key, sample)

    def _check(self, num_classes: int) -> None:
        if not self._rows:
            broken = "; ".join(f"{n}: {r}" for n, r in list(self._skipped.items())[:3])
            raise ValueError(f"the source has no readable sample ({broken or 'it is empty'})")
        total = len(self._rows) + len(self._skipped)
        if len(self._skipped) > self._max_broken_share * total:
            named = "; ".join(f"{n}: {r}" for n, r in list(self._skipped.items())[:3])
            raise ValueError(
                f"{len(self._skipped)} of {total} samples cannot be read, more than "
                f"max_broken_share = {self._max_broken_share}: {named}"
            )
        seen: set[str] = set()
        for _, _, key, truth, _ in self._rows:
            if key in seen:
                raise ValueError(f"two samples have the key {key!r}; rename one of them")
            seen.add(key)
            if truth is not None and not 0 <= truth < num_classes:
                raise ValueError(
                    f"sample {key!r} has class {truth}, but there are {num_classes} classes"
                )

    def _manifest(self) -> pa.Table:
        rows = sorted(self._rows, key=lambda row: (SPLIT_NAMES.index(row[0]), row[1]))
        splits, _, keys, truth, places = zip(*rows)
        labels = [UNLABELED if s == "test" or t is None else t for s, t in zip(splits, truth)]
        columns = {
            "node_id": range(len(rows)),
            "key": keys,
            "shard": [place.shard for place in places],
            "split": splits,
            "label": labels,
            "truth": truth,
            "sha256": [place.sha256 for place in places],
            "offset": [place.offset for place in places],
            "size": [place.size for place in places],
        }
        return pa.table(columns, schema=MANIFEST_SCHEMA)


def encode_png(image: np.ndarray) -> bytes:
    """A lossless PNG of a uint8 image `c h w`, grey or RGB.

    Raises:
        ValueError: Neither 1 nor 3 channels.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"image of shape {image.shape}: expected 1 or 3 channels, then h and w")
    pixels = image[0] if image.shape[0] == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class _FeatureWriter:
    """Writes `features/<split>-000000.parquet`, ...: columns key and features."""

    def __init__(self, dest: str, split: str) -> None:
        self._dest, self._split = dest, split
        self._num_files = 0
        self._keys: list[str] = []
        self._values: list[np.ndarray] = []

    def add(self, key: str, sample: np.ndarray) -> Place:
        if (len(self._keys) + 1) * sample.nbytes > _BYTES_PER_FILE:
            self.close()
        self._keys.append(key)
        self._values.append(sample)
        content = sample.astype("<f4").tobytes()
        digest = hashlib.sha256(content).hexdigest()
        return Place(self._name, len(self._keys) - 1, len(content), digest)

    def close(self) -> None:
        if self._keys:
            values = np.stack(self._values)
            features = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
            sink = pa.BufferOutputStream()
            # Features hardly compress, and random access decodes whole row groups.
            pq.write_table(
                pa.table({"key": self._keys, "features": features}),
                sink,
                row_group_size=_ROWS_PER_GROUP,
                compression="none",
                use_dictionary=["key"],
            )
            write_atomic(join(self._dest, self._name), sink.getvalue().to_pybytes())
            self._num_files += 1
            self._keys, self._values = [], []

    @property
    def _name(self) -> str:
        return f"features/{self._split}-{self._num_files:06d}.parquet"
