"""Tensors as numpy arrays, which Ray does not pickle; nested in tuples and dicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_arrays(value: Any) -> Any:
    """Replace the tensors in tuples and dicts by numpy arrays of the same memory."""
    if isinstance(value, Tensor):
        return value.numpy()
    if isinstance(value, dict):
        return {key: to_arrays(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(to_arrays(item) for item in value)
    return value


def to_tensors(value: Any) -> Any:
    """Replace the arrays in tuples and dicts by tensors; copies, for Ray's arrays are read-only."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {key: to_tensors(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(to_tensors(item) for item in value)
    return value
