"""What passes between files and training: batches of nodes, and the marker of "no label".

A dataset on disk is a Parquet manifest plus WebDataset shards (`shards.py`). A run looks at it
through a `Split`: `rows[i]` is the manifest row of the run's node `i`, so that node ids inside a
run are always 0..N-1 whatever was held out for validation.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int64, Shaped
from torch import Tensor

UNLABELED = -1
"""The label of a node whose class is not given (scikit-learn's convention)."""


@dataclass(frozen=True)
class NodeBatch:
    """Some nodes of a run, as they lie on disk (decoded, not augmented).

    Attributes:
        node_ids: The run's node ids. Samples that could not be read are absent.
        inputs: uint8 images `b c h w`, or float32 embeddings `b D`.
        labels: Given labels, UNLABELED where the class is hidden or unknown.
    """

    node_ids: Int64[Tensor, " b"]
    inputs: Shaped[Tensor, "b *input"]
    labels: Int64[Tensor, " b"]
