"""Looking at what an importer wrote."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from labelmesh.datasets.manifest import check, splits_of
from labelmesh.datasets.reader import Reader
from labelmesh.datasets.truth import load_truth

Load = Callable[[str, str], tuple[np.ndarray, np.ndarray]]


@pytest.fixture
def load() -> Load:
    """`load(uri, split)`: inputs and true classes of a split, after checking the data set."""

    def read(uri: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        check(uri)
        rows = splits_of(uri)[split]
        reader = Reader(uri, rows, torch.full((len(rows),), -1))
        return reader.read(torch.arange(len(rows))).inputs.numpy(), load_truth(uri, rows).numpy()

    return read
