"""What passes between files and training: batches of nodes, and the marker of "no label".

A dataset on disk is a Parquet manifest plus WebDataset shards (`shards.py`). A run looks at it
through a `Split`: `rows[i]` is the manifest row of the run's node `i`, so that node ids inside a
run are always 0..N-1 whatever was held out for validation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pyarrow as pa
from jaxtyping import Int64, Shaped
from torch import Tensor

from .limits import check_limit

UNLABELED = -1
"""The label of a node whose class is not given (scikit-learn's convention)."""

FORMAT_VERSION = 1

Kind = Literal["image", "embedding"]
SplitName = Literal["train", "val", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "val", "test")

MANIFEST_SCHEMA = pa.schema(
    [
        ("node_id", pa.int64()),
        ("key", pa.string()),
        ("shard", pa.string()),
        ("split", pa.string()),
        ("label", pa.int64()),
        ("truth", pa.int64()),
        ("sha256", pa.string()),
        # Where the sample's input lies: byte range of the tar member, so that any subset can be
        # fetched by ranged reads; embeddings: row within the Parquet file, and bytes of the row.
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)


@dataclass(frozen=True)
class DatasetInfo:
    """What `dataset.json` says about a data set.

    Attributes:
        shape: (c, h, w) of every image, or (D,) of every embedding.
        counts: Samples per split.
        skipped: Samples of the source that could not be read when it was imported, with the reason.
    """

    name: str
    classes: tuple[str, ...]
    kind: Kind
    shape: tuple[int, ...]
    counts: Mapping[str, int]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def num_samples(self) -> int:
        return sum(self.counts.values())

    def check(self, source: str) -> None:
        """Check numbers by which memory is taken.

        Raises:
            ValueError: A shape that is none of the kind's or of a giant, or odd counts.
        """
        num_dims = 3 if self.kind == "image" else 1
        if len(self.shape) != num_dims or not all(_is_count(size, 1) for size in self.shape):
            raise ValueError(
                f"{source}: shape = {self.shape}: samples of kind {self.kind!r} have {num_dims} "
                "positive whole numbers"
            )
        if self.kind == "embedding":
            check_limit("SAMPLE_BYTES", 4 * self.shape[0], f"{source}: a sample")
        elif self.shape[0] in (1, 3):
            check_limit("IMAGE_PIXELS", self.shape[1] * self.shape[2], f"{source}: a sample")
        else:
            raise ValueError(f"{source}: shape = {self.shape}: images have 1 or 3 channels")
        if not all(_is_count(count, 0) for count in self.counts.values()):
            raise ValueError(f"{source}: counts = {self.counts}: must be whole numbers from 0")

    def to_json(self) -> str:
        """The text of `dataset.json`."""
        body = {
            "format_version": FORMAT_VERSION,
            **asdict(self),
            "num_classes": self.num_classes,
        }
        return json.dumps(body, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str) -> DatasetInfo:
        """Read `to_json`'s text.

        Raises:
            ValueError: Not JSON, another format version, a missing or an odd field.
        """
        try:
            body: dict[str, Any] = json.loads(text)
            version, kind = body["format_version"], body["kind"]
        # Python's JSON raises plain ValueErrors at numbers of thousands of digits.
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(_no_description(source, error)) from None
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{source}: format_version = {version!r}, this version of Labelmesh reads "
                f"{FORMAT_VERSION}; import the data set again"
            )
        if kind not in ("image", "embedding"):
            raise ValueError(f"{source}: kind = {kind!r}: must be 'image' or 'embedding'")
        try:
            info = cls(
                name=str(body["name"]),
                classes=tuple(map(str, body["classes"])),
                kind=kind,
                shape=tuple(body["shape"]),
                counts=dict(body["counts"]),
                skipped=dict(body.get("skipped", {})),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(_no_description(source, error)) from None
        info.check(source)
        return info


def _no_description(source: str, error: Exception) -> str:
    return f"{source}: not the description of a data set ({error!r}); import it again"


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and value >= least


@dataclass(frozen=True)
class NodeBatch:
    """Some nodes of a run, as they lie on disk (decoded, not augmented).

    Attributes:
        node_ids: The run's node ids. Samples that could not be read are absent.
        inputs: uint8 images `b c h w`, or float32 embeddings `b D`.
        labels: Given labels, UNLABELED where the class is hidden or unknown.
    """

    node_ids: Int64[Tensor, " b"]
    inputs: Shaped[Tensor, "b ..."]
    labels: Int64[Tensor, " b"]
