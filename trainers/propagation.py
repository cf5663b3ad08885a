"""What one round of label propagation makes of the graph; LPDSSL and CycleCluster share it."""

from __future__ import annotations

from typing import Literal

import torch

from ..graph_store.solvers import local_global, pseudo_labels
from ..graph_store.solvers.conjugate_gradient import CgResult
from ..graph_store.view import GraphView, NodeState, PseudoLabels


def propagated_labels(
    graph: GraphView,
    state: NodeState,
    *,
    alpha: float,
    gamma: float,
    tol: float,
    max_iter: int,
    balance_classes: bool,
    class_weight: Literal["max", "mean"] = "max",
) -> PseudoLabels:
    """Soft labels, certainties and class weights, the solve started at the last round's scores.

    (I - alpha S) F = Y on the weights max(0, s)^gamma; omega_i = 1 - H(F_i) / log C over its
    maximum; zeta_j = 1 / |{i : y^_i = j}| over its maximum (Iscen et al., CVPR 2019). Collective.

    Args:
        class_weight: "mean": zeta over its mean, over the classes that have nodes.

    Returns:
        `extra["class_weight"]` is zeta of each node's (pseudo-)label, `extra["score"]` the sum of
        its scores: with the probabilities it gives back the scores, where the next solve starts.
    """
    affinity = graph.affinity("power", gamma=gamma)
    solves: list[CgResult] = []
    last = state.last
    scores = local_global(
        affinity,
        state.labels,
        num_classes=state.probs.shape[1],
        alpha=alpha,
        balance_classes=balance_classes,
        tol=tol,
        max_iter=max_iter,
        x0=None if last is None else last.probs * last.extra["score"][:, None],
        on_solve=solves.append,
    )
    found = pseudo_labels(scores, state.labels, all_sum=graph.all_sum, all_max=graph.all_max)
    zeta = found.class_weight
    if class_weight == "mean":
        zeta = zeta / zeta[zeta > 0].mean()
    return PseudoLabels(
        found.probs.to(torch.float32),
        torch.where(state.present, found.weight, 0.0).to(torch.float32),
        {
            "class_weight": zeta[found.labels].to(torch.float32),
            "score": scores.clamp(min=0).sum(1).to(torch.float32),
        },
        {
            "solve_iterations": float(solves[0].iterations),
            "solve_residual": float(solves[0].residuals.max()),
        },
    )
