"""Connected components of a weighted graph, in one process or over shards."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from .view import Affinity, GraphView


def components(view: GraphView, w: Affinity) -> Int64[Tensor, " n"]:
    """The largest node id of each own node's component. Collective.

    Every node points to a node of its component, first to itself. In a round it and the node that
    it points to turn to the largest grandparent among its neighbours (Zhang, Azad and Hu,
    "FastSV", SIAM PP 2020, with the largest id for their smallest), until nothing changes.

    Cost:
        Per round one `extend`, one `gather` and one `scatter` of n integers; a few rounds more
        than log2 of the longest shortest path.

    Example:
        >>> from labelmesh import knn_graph
        >>> graph = knn_graph(torch.tensor([[0.0], [1.0], [9.0], [10.0]]), k=1)
        >>> components(graph.as_view(), graph.affinity("self_tuning")).tolist()
        [1, 1, 3, 3]
    """
    # Weights that were rounded to zero carry nothing.
    exists = w.csr.vals > 0
    rows, cols = w.csr.rows[exists], w.csr.cols[exists]
    parent = view.node_ids.clone()
    while True:
        grand = view.gather(parent, parent)
        best = grand.scatter_reduce(0, rows, w.extend(grand)[cols], "amax", include_self=True)
        turned = torch.maximum(view.scatter(best, parent, parent, "amax"), best)
        if not int(view.all_sum((turned != parent).sum())):
            return parent
        parent = turned
