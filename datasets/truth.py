"""The true classes, for evaluation and reports: the only reader of the manifest's truth column.

Only `trainers/evaluate.py` and `cluster/` may import this module (a test reads the imports), so
that a hidden label cannot reach training by mistake. `load_index` and `load_labels` leave the
column's bytes alone.
"""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from .files import join, read_columns
from .manifest import load_info
from .schema import UNLABELED


def load_truth(uri: str, rows: Int64[Tensor, " m"]) -> Int64[Tensor, " m"]:
    """True classes of some manifest rows; -1 where nobody knows.

    Raises:
        ValueError: There is no data set at `uri`, or it has no such row.
    """
    load_info(uri)
    column = read_columns(join(uri, "manifest.parquet"), ["truth"])["truth"]
    truth = torch.from_numpy(column.fill_null(UNLABELED).to_numpy().copy())
    wrong = (rows < 0) | (rows >= len(truth))
    if wrong.any():
        raise ValueError(f"{uri}: row {int(rows[wrong][0])}, but there are {len(truth)} samples")
    return truth[rows]
