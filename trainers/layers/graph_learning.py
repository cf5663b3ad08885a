"""A classifier without weights: labels spread over the kNN graph of a batch, differentiably."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class GraphLearningLayer(nn.Module):
    """Class probabilities of the rows without a label, from the features of a batch."""

    def __init__(
        self,
        k: int = 24,
        tau: float | Tensor = 0.0,
        bandwidth: Literal["self_tuning"] | float = "self_tuning",
        p: float = 2.0,
        on_unreached: Literal["raise", "uniform"] = "raise",
        tol: float | None = None,
    ) -> None:
        super().__init__()
        self.k, self.tau, self.bandwidth, self.p = k, tau, bandwidth, p
        self.on_unreached, self.tol = on_unreached, tol

    def forward(
        self,
        features: Float[Tensor, "n d"],
        labels: Int64[Tensor, " n"],
        num_classes: int | None = None,
        base_probs: Float[Tensor, "b C"] | None = None,
    ) -> Float[Tensor, "u C"]:
        dtype = features.dtype if features.dtype == torch.float64 else torch.float32
        x = features.to(torch.float64)
        base = labels >= 0
        if not bool(base.any()):
            raise ValueError(
                "the batch has no base row (all labels are -1); give the layer at least one "
                "row with a label"
            )
        if base_probs is None:
            classes = num_classes or int(labels.max()) + 1
            y = nn.functional.one_hot(labels[base], classes).to(torch.float64)
        else:
            y = base_probs.to(torch.float64)
        first, second, kth = _edges(x.detach(), self.k)
        squared = (x[first] - x[second]).square().sum(1)
        if self.bandwidth == "self_tuning":
            eps = squared[kth].clamp(min=1e-20).sqrt()
            weights = torch.exp(-4 * squared / (eps[first] * eps[second]))
        else:
            weights = torch.exp(-4 * squared / float(self.bandwidth) ** 2)
        tau = torch.as_tensor(self.tau, dtype=torch.float64, device=x.device)
        u: Tensor = _Solve.apply(weights, y, tau, first, second, base, self.on_unreached)
        return u.to(dtype)


def _edges(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    n = x.shape[0]
    ids = []
    for start in range(0, n, 512):
        d = torch.cdist(x[start : start + 512], x, compute_mode="donot_use_mm_for_euclid_dist")
        own = torch.arange(d.shape[0], device=x.device)
        d[own, own + start] = torch.inf
        ids.append(d.sort(dim=1, stable=True).indices[:, :k])
    near = torch.cat(ids)
    rows = torch.arange(n, device=x.device)[:, None].expand_as(near)
    keys = torch.minimum(rows, near) * n + torch.maximum(rows, near)
    edges, slot = torch.unique(keys, return_inverse=True)
    return edges // n, edges % n, slot[:, -1]


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weights: Tensor,
        y: Tensor,
        tau: Tensor,
        first: Tensor,
        second: Tensor,
        base: Tensor,
        on_unreached: str,
    ) -> Tensor:
        n = base.shape[0]
        degrees = torch.zeros(n, dtype=weights.dtype, device=weights.device)
        degrees.index_add_(0, first, weights).index_add_(0, second, weights)
        full = y.new_zeros(n, y.shape[1])
        full[base] = y

        def multiply(f: Tensor) -> Tensor:
            out = torch.zeros_like(f)
            out.index_add_(0, first, weights[:, None] * f[second])
            return out.index_add_(0, second, weights[:, None] * f[first])

        reached = base.to(weights.dtype)[:, None]
        while True:
            grown = ((multiply(reached) > 0) | (reached > 0)).to(weights.dtype)
            if torch.equal(grown, reached):
                break
            reached = grown
        lost = reached[:, 0] == 0
        if bool(lost.any()) and float(tau) == 0 and on_unreached == "raise":
            raise ValueError(
                f"rows {lost.nonzero()[:10, 0].tolist()} are connected to no base row; add base "
                'rows, raise k, use tau > 0, or pass on_unreached="uniform"'
            )
        free = (~base & ~lost)[:, None]
        diagonal = (degrees + tau)[:, None].clamp(min=1e-300)

        def solve(rhs: Tensor) -> Tensor:
            x, r = torch.zeros_like(rhs), torch.where(free, rhs, 0.0)
            z = r / diagonal
            p, rz = z, (r * z).sum(0)
            start = rz.clone()
            for _ in range(10 * n):
                if bool((rz <= 1e-26 * start).all()):
                    break
                ap = torch.where(free, diagonal * p - multiply(p), 0.0)
                alpha = rz / (p * ap).sum(0).clamp(min=1e-300)
                x, r = x + alpha * p, r - alpha * ap
                z = r / diagonal
                after = (r * z).sum(0)
                p, rz = z + after / rz.clamp(min=1e-300) * p, after
            return x

        u = full + solve(multiply(full))
        if float(tau) == 0:
            u = torch.where(lost[:, None], 1 / y.shape[1], u)
        ctx.parts = (u, first, second, base, solve, multiply)
        return u[~base]

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        u, first, second, base, solve, multiply = ctx.parts
        full = torch.zeros_like(u)
        full[~base] = g
        adjoint = solve(full)
        dw = -((adjoint[first] - adjoint[second]) * (u[first] - u[second])).sum(1)
        return dw, multiply(adjoint)[base], -(adjoint * u)[~base].sum(), None, None, None, None
