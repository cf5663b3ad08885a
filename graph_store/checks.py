"""What a store refuses, before anything is written. Every error names the rows or the values."""

from __future__ import annotations

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from .store import StoreSpec

_SHOWN = 5


def check_spec(spec: StoreSpec) -> None:
    """Raises ValueError where no store can have this shape."""
    for name in ("num_nodes", "dim", "num_classes", "k"):
        if getattr(spec, name) < 1:
            raise ValueError(f"{name} = {getattr(spec, name)} must be at least 1")
    if spec.k >= spec.num_nodes:
        raise ValueError(
            f"k = {spec.k} must be less than num_nodes = {spec.num_nodes}: a node has at most "
            f"{spec.num_nodes - 1} neighbours"
        )
    for name, known in (
        ("metric", ("cosine", "euclidean")),
        ("dtype", ("float32", "float16")),
        ("backend", ("auto", "torch", "faiss", "ivf")),
        ("update", ("exact", "refine")),
    ):
        if getattr(spec, name) not in known:
            raise ValueError(f"{name} = {getattr(spec, name)!r}: use one of {', '.join(known)}")
    if not 0 <= spec.tolerance < float("inf"):
        raise ValueError(f"tolerance = {spec.tolerance} must be 0 (exact) or more")
    if spec.slack is not None and spec.slack <= spec.k:
        raise ValueError(f"slack = {spec.slack} must be more than k = {spec.k}, or None")
    if not 0 < spec.recall_target < 1:
        raise ValueError(f"recall_target = {spec.recall_target} must lie between 0 and 1")


def check_ids(spec: StoreSpec, node_ids: Tensor, *, distinct: bool = False) -> None:
    """Ids must be int64, one-dimensional and in 0..N-1; where they are written, distinct."""
    if node_ids.dtype != torch.int64 or node_ids.ndim != 1:
        raise ValueError(
            f"node_ids must be int64 of shape (m,), got {node_ids.dtype} of shape "
            f"{tuple(node_ids.shape)}"
        )
    unknown = node_ids[(node_ids < 0) | (node_ids >= spec.num_nodes)]
    if len(unknown):
        raise ValueError(
            f"node_ids {_some(unknown)} are not in 0..{spec.num_nodes - 1} (num_nodes = "
            f"{spec.num_nodes})"
        )
    if distinct:
        found, counts = torch.unique(node_ids, return_counts=True)
        if len(found) < len(node_ids):
            raise ValueError(
                f"node_ids {_some(found[counts > 1])} come more than once; write each node once "
                f"per call"
            )


def check_rows(
    spec: StoreSpec, node_ids: Int64[Tensor, " m"], features: Tensor, probs: Tensor | None
) -> None:
    """What `put` may write: one finite row of the right width for each of the distinct ids."""
    check_ids(spec, node_ids, distinct=True)
    check_columns("features", features, len(node_ids), spec.dim)
    _check_finite("features", features, node_ids)
    stored = torch.float16 if spec.dtype == "float16" else torch.float32
    _check_fits("features", features, node_ids, stored)
    if probs is not None:
        check_columns("probs", probs, len(node_ids), spec.num_classes)
        _check_finite("probs", probs, node_ids)
        _check_fits("probs", probs, node_ids, torch.float32)


def check_labels(spec: StoreSpec, node_ids: Int64[Tensor, " m"], labels: Tensor) -> None:
    """Labels must be int64 in -1..C-1, one for each of the distinct ids."""
    check_ids(spec, node_ids, distinct=True)
    if labels.dtype != torch.int64 or labels.shape != node_ids.shape:
        raise ValueError(
            f"labels must be int64 of shape ({len(node_ids)},), got {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
    is_wrong = (labels < -1) | (labels >= spec.num_classes)
    if is_wrong.any():
        raise ValueError(
            f"labels {_some(labels[is_wrong])} of node_ids {_some(node_ids[is_wrong])} are not in "
            f"-1..{spec.num_classes - 1} (-1 = unlabeled)"
        )


def check_query(spec: StoreSpec, features: Tensor, k: int) -> None:
    """Any finite features of the right width may be looked up, with k in 1..N."""
    check_columns("features", features, len(features) if features.ndim else 0, spec.dim)
    is_wrong = ~torch.isfinite(features.float()).all(dim=1)
    if is_wrong.any():
        raise ValueError(
            f"features has NaN or (in float32) infinite values in rows "
            f"{_some(is_wrong.nonzero().squeeze(1))}"
        )
    if not 1 <= k <= spec.num_nodes:
        raise ValueError(f"k = {k} must lie in 1..num_nodes = {spec.num_nodes}")


def check_columns(name: str, values: Tensor, num_rows: int, width: int) -> None:
    """Raises ValueError unless `values` is a floating tensor of `num_rows` rows of `width`."""
    if values.shape != (num_rows, width) or not values.is_floating_point():
        raise ValueError(
            f"{name} must be floating point of shape ({num_rows}, {width}), got {values.dtype} of "
            f"shape {tuple(values.shape)}"
        )


def _check_finite(name: str, values: Shaped[Tensor, "m w"], node_ids: Tensor) -> None:
    is_wrong = ~torch.isfinite(values).all(dim=1)
    if is_wrong.any():
        raise ValueError(
            f"{name} has NaN or infinite values in the rows of node_ids {_some(node_ids[is_wrong])}"
        )


def _check_fits(
    name: str, values: Shaped[Tensor, "m w"], node_ids: Tensor, dtype: torch.dtype
) -> None:
    is_wrong = ~torch.isfinite(values.to(dtype)).all(dim=1)
    if is_wrong.any():
        kind = str(dtype).removeprefix("torch.")
        wider = '; create the store with dtype="float32"' if dtype == torch.float16 else ""
        raise ValueError(
            f"{name} of node_ids {_some(node_ids[is_wrong])} exceed {torch.finfo(dtype).max:g}, "
            f"the largest {kind}{wider}"
        )


def _some(values: Tensor) -> str:
    shown = ", ".join(str(v) for v in values[:_SHOWN].tolist())
    more = f", ... ({len(values)} in all)" if len(values) > _SHOWN else ""
    return f"[{shown}{more}]"
