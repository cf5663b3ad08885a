"""Where the density paths of labeled nodes meet: which of their labels arrive at which of them.

Which labels arrive is one of (see `solvers.density_paths` and the method `dag`):

- "l": of labeled nodes whose path leads through the node (LP-L), the densest;
- "lu": else of labeled nodes on the node's own path (LP-LU), the densest;
- "join": else, further up the node's path, where the first labeled node's path joins it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from .local_view import LocalGraphView
from .solvers.density_paths import density_order, density_paths

Reach = Literal["l", "lu", "join"]
_NEVER = torch.iinfo(torch.int64).max
_NOTHING = torch.iinfo(torch.int64).min


@dataclass(frozen=True)
class PathMeetings:
    """Attributes:
    steps: Steps up the path of node i to where node j's path joins it; very many if it never does.
    order: Denser nodes have more.
    reach: Which labels arrive.
    """

    steps: Int64[Tensor, "m m"]
    order: Int64[Tensor, " m"]
    reach: Reach

    @classmethod
    def of(
        cls, view: LocalGraphView, node_ids: Int64[Tensor, " m"], sigma: float, reach: Reach
    ) -> PathMeetings:
        """Find the meetings of the paths from `node_ids`.

        Raises:
            ValueError: sigma is negative or NaN.

        Cost:
            m^2 numbers per step of the longest path.
        """
        if reach not in ("l", "lu", "join"):
            raise ValueError(f'paths must be "l", "lu" or "join", got {reach!r}')
        paths = density_paths(view, torch.full((view.num_nodes,), -1), sigma=sigma)
        a, b = node_ids[:, None], node_ids[None, :]
        a, b = (x.expand(len(node_ids), len(node_ids)).clone() for x in (a, b))
        meets = paths.root[a] == paths.root[b]
        while True:
            apart = meets & (a != b)
            if not bool(apart.any()):
                break
            # The one that is farther from the root goes up; both where they are level.
            gap = paths.path_length[a] - paths.path_length[b]
            a, b = (
                torch.where(apart & (gap >= 0), paths.parent[a], a),
                torch.where(apart & (gap <= 0), paths.parent[b], b),
            )
        steps = paths.path_length[node_ids][:, None] - paths.path_length[a]
        order = density_order(paths.density, view.node_ids)[node_ids]
        return cls(torch.where(meets, steps, _NEVER), order, reach)

    def origins(self, hidden: Bool[Tensor, " m"]) -> Int64[Tensor, " m"]:
        """Place of the labeled node whose label arrives at each; -1 where none does."""
        is_open = ~hidden
        below = (self.steps == 0) & is_open
        found = self._densest(below)
        if self.reach == "l":
            return found
        # Node j lies on the path of i where i's path leads through j.
        above = (self.steps.T == 0) & is_open
        found = torch.where(found >= 0, found, self._densest(above))
        if self.reach == "lu":
            return found
        steps = torch.where(is_open, self.steps, _NEVER)
        first = steps.amin(1, keepdim=True)
        joins = (steps == first) & (first < _NEVER)
        return torch.where(found >= 0, found, self._densest(joins))

    def _densest(self, candidates: Bool[Tensor, "m m"]) -> Int64[Tensor, " m"]:
        order, at = torch.where(candidates, self.order, _NOTHING).max(1)
        return torch.where(order > _NOTHING, at, -1)
