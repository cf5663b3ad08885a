"""Neighbour lists with a horizon: what a graph keeps so that it can follow moving rows.

Every row i has a reference position r_i, up to K nodes with the keys (half squared distances) of
their references, and a horizon h_i. Invariant H: no reference outside the list is nearer to r_i
than the horizon, key >= h_i. References stay where they are while rows drift away from them, and
are moved, by a scan of all rows, only where a row has gone too far (`incremental`).

Keys come from float32 sums of products, and horizons are lowered by how far they can be off.
References may be any points, so also rows of a lower precision (`rounding`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float32, Float64, Int32, Int64, Shaped
from torch import Tensor

from .rounding import Precision, Rounded, product_errors


@dataclass
class Lists:
    """Lists of n rows, packed and ascending by key; written in place.

    Attributes:
        ids: Node ids, -1 where the list has room.
        keys: inf where the list has room.
        horizon: inf where every node is in the list.
        errors: By how much keys up to the horizon can be off; inf where nothing bounds them but
            the longest reference of all.
    """

    ids: Int32[Tensor, "n K"]
    keys: Float32[Tensor, "n K"]
    horizon: Float32[Tensor, " n"]
    errors: Float32[Tensor, " n"]

    @property
    def size(self) -> int:
        return self.ids.shape[1]


@dataclass(frozen=True)
class Framed:
    """Reference rows of some nodes; `rows` times `unit` are the points.

    Attributes:
        rows: May lie in the host's memory while the other two are on the device.
        half: |point|^2/2, inf for rows that take no part.
    """

    rows: Shaped[Tensor, "n D"]
    half: Float32[Tensor, " n"]
    ids: Int32[Tensor, " n"]
    unit: float = 1.0
    precision: Precision = "float32"

    def take(self, at: Int64[Tensor, " m"]) -> Framed:
        rows = self.rows[at.to(self.rows.device)]
        return replace(self, rows=rows, half=self.half[at], ids=self.ids[at])

    def part(self, rows: slice) -> Framed:
        """A view of a range of rows."""
        return replace(self, rows=self.rows[rows], half=self.half[rows], ids=self.ids[rows])

    def widen(self) -> Framed:
        """The same points in float32."""
        points = Rounded(self.rows, self.unit, self.precision).widen()
        return Framed(points, self.half, self.ids)


@dataclass(frozen=True)
class Partial:
    """Lists while they are searched: one place more than is kept, for the horizon."""

    keys: Float32[Tensor, "m L"]
    nodes: Int32[Tensor, "m L"]


@dataclass(frozen=True)
class Hits:
    """Rows that have got a query within their horizon."""

    rows: Int32[Tensor, " h"]
    nodes: Int32[Tensor, " h"]
    keys: Float32[Tensor, " h"]


@dataclass(frozen=True)
class Ranking:
    """What `rank_lists` needs to know of the members of some rows' lists.

    Attributes:
        bank, drift: Rows and drifts of the members now.
        positions: Where each member lies in these.
        largest_drift: No drift is more than this.
        stretch, unit: See `lists_compiled.rank_members`.
        errors: By how much the keys of the rows' lists can be off.
        is_changed: Nodes that have moved, come or gone.
        is_kept: Rows that have not moved, and whose old neighbours were right.
    """

    bank: Float32[Tensor, "b D"]
    drift: Float64[Tensor, " b"]
    positions: Int32[Tensor, "m K"]
    largest_drift: float
    stretch: float
    errors: Float32[Tensor, " m"]
    unit: float
    is_changed: Bool[Tensor, " N"]
    is_kept: Bool[Tensor, " m"]


def empty_lists(num_rows: int, size: int, device: torch.device) -> Lists:
    """Lists without members, of rows that take no part."""
    return Lists(
        torch.full((num_rows, size), -1, dtype=torch.int32, device=device),
        torch.full((num_rows, size), torch.inf, device=device),
        torch.full((num_rows,), -torch.inf, device=device),
        torch.full((num_rows,), torch.inf, device=device),
    )


def empty_partial(num_rows: int, size: int, device: torch.device) -> Partial:
    """Lists to be searched, of `size` + 1 places."""
    return Partial(
        torch.full((num_rows, size + 1), torch.inf, device=device),
        torch.full((num_rows, size + 1), -1, dtype=torch.int32, device=device),
    )


def finish(found: Partial, half: Float32[Tensor, " m"], dim: int, precision: Precision) -> Lists:
    """Turn searched lists of references of such half squares into kept ones.

    The last place becomes the horizon; where it is empty, nothing was left out.
    """
    last = found.keys[:, -1]
    errors = product_errors(half, last, dim, precision)
    horizon = torch.where(torch.isinf(last), torch.inf, last - errors)
    return Lists(found.nodes[:, :-1].contiguous(), found.keys[:, :-1].contiguous(), horizon, errors)
