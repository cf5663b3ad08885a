"""The motion that all rows have in common, and what is left of each row's motion without it.

T x = s Q x + t is fitted by orthogonal Procrustes. Distances under T are s times those before, so
neighbours do not change: only what is left, drift_i = ||y_i - T x_i||, can change them. Any T is
valid; a good one makes drifts small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

# Rows whose float64 copies are held at once.
_CHUNK = 1 << 14
Sum = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Motion:
    """x -> stretch * x @ rotation.T + shift, in float64."""

    stretch: float
    rotation: Float64[Tensor, "D D"]
    shift: Float64[Tensor, " D"]

    def apply(self, x: Tensor) -> Float64[Tensor, "n D"]:
        return self.stretch * (x.to(torch.float64) @ self.rotation.T) + self.shift

    def undo(self, y: Float64[Tensor, "n D"]) -> Float64[Tensor, "n D"]:
        return ((y - self.shift) @ self.rotation) / self.stretch


def common_motion(
    before: Float64[Tensor, "n D"],
    after: Float64[Tensor, "n D"],
    *,
    keep_scale: bool,
    all_sum: Sum = lambda x: x,
) -> Motion | None:
    """The similarity map that takes `before` to `after` with the least squared error.

    Args:
        keep_scale: True on the sphere, where stretching makes no sense.
        all_sum: Sums over shards where the rows are split.

    Returns:
        None where the rows do not define one (no rows, or all in one point).
    """
    dim = before.shape[1]
    count = float(all_sum(torch.tensor(before.shape[0], dtype=torch.float64)))
    if count < 2:
        return None
    means = all_sum(torch.stack([before.sum(0), after.sum(0)])) / count
    a, b = before - means[0], after - means[1]
    cross = all_sum(a.T @ b)
    energy = float(all_sum(a.square().sum()))
    u, values, vt = torch.linalg.svd(cross)
    stretch = 1.0 if keep_scale else float(values.sum()) / energy if energy > 0 else 0.0
    if not 0.0 < stretch < float("inf"):
        return None
    rotation = (u @ vt).T
    # Only as good as its rotation is orthogonal: this is what preserves distances.
    identity = torch.eye(dim, dtype=torch.float64, device=rotation.device)
    error = (rotation @ rotation.T - identity).abs().sum(1).max()
    if not float(error) < 1e-9:
        return None
    return Motion(stretch, rotation, means[1] - stretch * (rotation @ means[0]))


def residuals(
    motion: Motion,
    reference: Float32[Tensor, "n D"],
    rows: Float32[Tensor, "n D"],
    scale: float,
    center: Float32[Tensor, " D"],
) -> Float64[Tensor, " n"]:
    """Drift of rows (brought into the reference's frame) from where the motion takes them.

    Rounded up: where all rows have shrunk together, what the arithmetic loses may be more than the
    distances between them.
    """
    out = torch.empty(rows.shape[0], dtype=torch.float64, device=rows.device)
    shift, middle = motion.shift, center.to(torch.float64)
    constant = torch.linalg.vector_norm(shift) + torch.linalg.vector_norm(middle)
    unit = (rows.shape[1] + 8) * 2.0**-52
    for start in range(0, rows.shape[0], _CHUNK):
        part = slice(start, start + _CHUNK)
        framed = rows[part].to(torch.float64) * scale - middle
        moved = motion.apply(reference[part])
        lengths = torch.linalg.vector_norm(framed, dim=1) + torch.linalg.vector_norm(moved, dim=1)
        drift = torch.linalg.vector_norm(framed - moved, dim=1)
        out[part] = drift + unit * (lengths + 2 * constant)
    return out
