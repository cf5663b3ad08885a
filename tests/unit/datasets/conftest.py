"""Small data sets to read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from labelmesh.datasets.writer import DatasetWriter

MakeImages = Callable[..., np.ndarray]


@pytest.fixture
def make_images() -> MakeImages:
    """`make_images(uri, n)` writes n train and n // 2 test images; returns the train pixels."""

    def make(
        uri: str, n: int, *, shape: tuple[int, ...] = (1, 5, 4), shard_samples: int = 7
    ) -> np.ndarray:
        draw = np.random.default_rng(0)
        train = draw.integers(0, 256, (n, *shape), dtype=np.uint8)
        test = draw.integers(0, 256, (n // 2, *shape), dtype=np.uint8)
        writer = DatasetWriter(uri, name="tiny", kind="image", shard_samples=shard_samples)
        for i, image in enumerate(train):
            writer.add("train", f"train-{i:03d}", image, truth=i % 3)
        for i, image in enumerate(test):
            writer.add("test", f"test-{i:03d}", image, truth=i % 3)
        writer.finish(["a", "b", "c"])
        return train

    return make
