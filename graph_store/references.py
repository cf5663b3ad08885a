"""Where the lists of a followed graph were made: reference rows, lists, drifts, certificates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, Float64, Int64, Shaped
from torch import Tensor

from .kernels.list_types import Lists, Partial, finish
from .kernels.rounding import Precision, Rounded, product_error
from .kernels.scaling import Frame
from .motion import Motion

# Horizons round down by more than float64 arithmetic is off.
DOWN = 1.0 - 1e-7


@dataclass
class References:
    """See `incremental`. Arrays go by own row, and are written in place.

    Attributes:
        frame: Brings rows to where references are compared with them.
        unit, precision, rows: The points are `unit` times the rows.
        half: |point|^2/2, inf for rows that take no part.
        longest: No point of any shard is longer.
        drift: Of each row from its reference, in the frame's units.
        certified: Rows whose list proves their neighbours.
        is_tied: Rows that a fresh list could not certify.
        motion: What all rows have in common; None: they rest.
        pairs: Pairs of rows that building it has looked at.
        scanned: Rows that were scanned since, as everything drifted.
    """

    frame: Frame
    unit: float
    precision: Precision
    rows: Shaped[Tensor, "n D"]
    half: Float32[Tensor, " n"]
    longest: float
    lists: Lists
    drift: Float64[Tensor, " n"]
    certified: Bool[Tensor, " n"]
    is_tied: Bool[Tensor, " n"]
    motion: Motion | None = None
    pairs: int = 0
    scanned: int = 0

    @property
    def stretch(self) -> float:
        """What distances between references are multiplied with by the common motion."""
        return 1.0 if self.motion is None else self.motion.stretch

    @property
    def center(self) -> Float32[Tensor, " D"]:
        """Of the frame."""
        assert self.frame.center is not None
        return self.frame.center

    @property
    def errors(self) -> Float32[Tensor, " n"]:
        """By how much the keys of each row's list, and of what may come into it, can be off."""
        most = product_error(self.rows.shape[1], self.longest, self.precision)
        return self.lists.errors.clamp(max=most)

    def points(self, at: Int64[Tensor, " m"]) -> Float32[Tensor, "m D"]:
        """The references of some rows in float32."""
        return Rounded(self.rows[at], self.unit, self.precision).widen()

    def put(self, at: Int64[Tensor, " m"], found: Partial) -> None:
        """Keep the lists that were searched for some rows."""
        own = finish(found, self.half[at], self.rows.shape[1], self.precision)
        lists = self.lists
        lists.ids[at], lists.keys[at] = own.ids, own.keys
        lists.horizon[at], lists.errors[at] = own.horizon, own.errors

    def reach(self) -> Float64[Tensor, " n"]:
        """s h_i as a distance, rounded down."""
        h = self.lists.horizon.to(torch.float64).clamp(min=0)
        return (self.stretch * (2 * h).sqrt()) * DOWN

    def grow(self, added: int) -> None:
        """Room for further rows, which take no part yet."""
        self.rows, self.half = pad(self.rows, added, 0.0), pad(self.half, added, torch.inf)
        self.drift, self.certified = pad(self.drift, added, 0.0), pad(self.certified, added, False)
        self.is_tied = pad(self.is_tied, added, False)
        lists = self.lists
        self.lists = Lists(
            pad(lists.ids, added, -1),
            pad(lists.keys, added, torch.inf),
            pad(lists.horizon, added, -torch.inf),
            pad(lists.errors, added, torch.inf),
        )

    def remove(self, is_gone: Bool[Tensor, " n"]) -> None:
        """Rows that take no part any more; they are still in the lists of others."""
        self.half[is_gone] = torch.inf
        self.drift[is_gone] = 0.0
        self.certified[is_gone] = self.is_tied[is_gone] = False
        self.lists.ids[is_gone], self.lists.keys[is_gone] = -1, torch.inf
        self.lists.horizon[is_gone] = -torch.inf


def pad(x: Tensor, added: int, value: int | float) -> Tensor:
    """Further rows of one value."""
    return torch.cat([x, x.new_full((added, *x.shape[1:]), value)])
