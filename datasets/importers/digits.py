"""scikit-learn's handwritten digits: 1,797 grey images of 8x8, nothing to download."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from ..schema import DatasetInfo, SplitName
from ..stratify import draw_share
from ..writer import DatasetWriter


def import_samples(
    source: str | None, dest: str, *, test_share: float = 0.2, seed: int = 0
) -> DatasetInfo:
    """Write the digits, a stratified `test_share` of them as test samples.

    Pixels are 0..16 in the source; here round(255 v / 16).

    Args:
        source: Not used.
    """
    digits = load_digits()
    pixels = np.round(digits.images * 255 / 16).astype(np.uint8)
    is_test = draw_share(torch.from_numpy(digits.target).long(), test_share, seed).tolist()
    writer = DatasetWriter(dest, name="digits", kind="image")
    for i, (image, target, test) in enumerate(zip(pixels, digits.target, is_test)):
        split: SplitName = "test" if test else "train"
        writer.add(split, f"digit-{i:04d}", image[None], truth=int(target))
    return writer.finish([str(name) for name in digits.target_names])
