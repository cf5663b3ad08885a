"""Labels in, results out: numpy arrays and torch tensors are both accepted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

# What public solvers take and give back: arrays of the kind that went in.
Array = Tensor | NDArray[Any]


def as_tensor(x: Array) -> Tensor:
    """The tensor over the same memory where possible; read-only arrays are copied."""
    if isinstance(x, Tensor):
        return x
    array = np.ascontiguousarray(x)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def like(x: Tensor, model: Array) -> Any:
    """`x` as the kind of array that `model` is."""
    return x if isinstance(model, Tensor) else x.cpu().numpy()


def as_labels(labels: Array) -> Int64[Tensor, " n"]:
    """Labels as int64.

    Raises:
        ValueError: Not integers of shape (n,), or below -1.
    """
    tensor = as_tensor(labels)
    if tensor.ndim != 1 or tensor.is_floating_point() or tensor.is_complex():
        raise ValueError(
            f"labels must be integers of shape (n,), got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}; use -1 for unlabeled nodes"
        )
    tensor = tensor.to(torch.int64)
    if tensor.numel() and int(tensor.min()) < -1:
        raise ValueError(
            f"labels must be class numbers from 0, or -1 for unlabeled; got {int(tensor.min())}"
        )
    return tensor
