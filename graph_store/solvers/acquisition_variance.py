"""Where a label would tell most: variance of a Gaussian field on the graph, at any number of nodes.

The field has the precision L + tau I and is known at labeled nodes; C is its covariance at the
others. V-optimality (Ji and Han, "A variance minimization criterion to active learning on graphs",
AISTATS 2012) chooses the node q whose label takes most of the trace of C, sum_v C_vq^2 / C_qq;
Sigma-optimality (Ma, Garnett and Schneider, "Sigma-optimality for active learning on Gaussian
random fields", NIPS 2013) most of the variance of the sum, (sum_v C_vq)^2 / C_qq.

Departure: they hold C, n x n. Here C is F F^T with n x r numbers F, r = 50, of the field's largest
directions: the Nystroem approximation of C from r products with it, each the solution of a linear
system (Halko, Martinsson and Tropp, SIAM Review 2011, section 5.5). With r = n it is C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ..view import Affinity, GraphView
from .acquisition import neighbors_of
from .acquisition_batch import check_count
from .graph_system import graph_system

VarianceKind = Literal["vopt", "sigma_opt"]
_NOTHING = torch.iinfo(torch.int64).min
_EIGENVALUE_FLOOR = 1e-12


@dataclass(frozen=True)
class Covariance:
    """C = F F^T, own rows, and what it may have lost.

    Attributes:
        factor: F; rows of nodes that are known are zero.
        conditional: Variance of each own node when all others are known, 1 / (d + tau): C_qq is
            never less, however coarse F is.
    """

    factor: Float64[Tensor, "n r"]
    conditional: Float64[Tensor, " n"]


def covariance(
    w: Affinity,
    node_ids: Int64[Tensor, " n"],
    unknown: Bool[Tensor, " n"],
    *,
    rank: int = 50,
    tau: float = 1e-3,
    seed: int = 0,
    tol: float = 1e-3,
    max_iter: int = 10_000,
) -> Covariance:
    """Factor the covariance of the unknown nodes, given all others.

    Args:
        node_ids: Of the own rows: what is random depends on them and on `seed`, not on shards.
        unknown: Nodes that are not labeled. Absent nodes, which nobody wants to know, are not.
        rank: r, at most the number of unknown nodes.
        tau: Precision of a node apart from its edges, as a share of the mean degree.

    Raises:
        ValueError: No unknown node, rank < 1, tau <= 0, or no convergence.

    Cost:
        One system with r right-hand sides: seven n x r buffers of float64 while it is solved, one
        afterwards. float32 would halve the time, but its rounding decides between nodes that are
        the same but for their ids, and depends on the shards.
    """
    num_unknown = int(w.all_sum(unknown.sum()))
    if num_unknown == 0:
        raise ValueError("every node is labeled; there is nothing left to ask for")
    if rank < 1 or not tau > 0:
        raise ValueError(f"rank must be at least 1 and tau > 0, got {rank} and {tau}")
    degrees = w.degrees.to(torch.float64)
    mean = w.all_sum(torch.where(unknown, degrees, 0.0).sum()) / num_unknown
    diagonal = degrees + tau * torch.where(mean > 0, mean, 1.0)
    is_unknown = unknown.to(torch.float64)
    # The first column is 1: sums over all nodes, which Sigma-optimality asks for, become exact.
    probes = is_unknown[:, None] * random_numbers(node_ids, min(rank, num_unknown), seed)
    precision = graph_system(w, diagonal=diagonal, scale=is_unknown)
    images = precision.solve(probes, tol=tol, max_iter=max_iter).require_converged()
    return Covariance(_nystroem(probes, images.solution, w), is_unknown / diagonal)


def random_numbers(node_ids: Int64[Tensor, " n"], count: int, seed: int) -> Float64[Tensor, "n r"]:
    """Even in [-1, 1) by (node, column, seed), by splitmix64's mixing; the first column is 1."""
    columns = torch.arange(count, device=node_ids.device)
    x = node_ids[:, None] * 0x632BE59BD9B4E019 + (columns + 1) * -0x61C8864680B583EB + seed
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ _shifted(x, shift)) * factor
    out = ((x ^ _shifted(x, 31)) >> 11).to(torch.float64) * 2.0**-52
    out[:, :1] = 1
    return out


def select_by_variance(
    graph: GraphView,
    field: Covariance,
    count: int,
    *,
    kind: VarianceKind,
    among: Bool[Tensor, " n"],
    apart: bool = True,
    weight: Float[Tensor, " n"] | None = None,
    classes: Int64[Tensor, " n"] | None = None,
    num_classes: int = 1,
) -> tuple[Int64[Tensor, " n"], Float64[Tensor, " n"]]:
    """Choose nodes one after the other, each as if the labels of those before were known.

    After q is chosen, C becomes C - C_q C_q^T / C_qq. Of equal scores the lower id goes first.

    Args:
        among: Nodes that may be chosen.
        apart: Not next to each other on the graph, as long as others tell anything: a coarse F does
            not tell neighbours apart, and leaves variance where a label has removed it.
        weight: What the scores are multiplied by, for example uncertainty.
        classes: With it, no class gives a second node before each has given one, and so on.
            Predicted class of each own row, 0..num_classes-1.

    Returns:
        The place of each own row in the choice (-1: not chosen), and its score when it was chosen
        (0: not chosen): the share that its label takes of the trace of C, or of the variance of
        the sum, as they are at the start.

    Raises:
        ValueError: No such kind, or more nodes are asked for than there are.

    Cost:
        For each, three passes over n x r numbers, two reductions of r and a few of one number;
        with `apart` a `gather` and a `scatter` over the edges.
    """
    if kind not in get_args(VarianceKind):
        raise ValueError(f"kind = {kind!r}: known are {', '.join(get_args(VarianceKind))}")
    check_count(graph, count, among)
    state = _Field(graph, field, kind)
    place, scores = torch.full_like(graph.node_ids, -1), torch.zeros_like(field.conditional)
    served = torch.zeros(num_classes, dtype=torch.bool, device=place.device)
    near = torch.zeros_like(among)
    group = torch.zeros_like(place) if classes is None else classes
    for taken in range(count):
        value = state.value() if weight is None else state.value() * weight
        far, waiting = ~near & (value > 0), ~served[group]
        chosen, rules = -1, (far & waiting, waiting, far, torch.ones_like(near))
        for rule in rules:
            if chosen < 0:
                chosen = _argmax(graph, value, among & (place < 0) & rule)
        own = graph.node_ids == chosen
        place[own], scores[own] = taken, value[own].double() / state.total
        if apart:
            near |= neighbors_of(graph, own)
        if classes is not None:
            served = _serve(graph, served, group[own])
        state.observe(chosen)
    return place, scores


def _serve(
    graph: GraphView, served: Bool[Tensor, " g"], group: Int64[Tensor, " m"]
) -> Bool[Tensor, " g"]:
    """Classes that have had their turn; a class that has another begins a new turn."""
    here = torch.zeros_like(served).index_fill(0, group, True)
    chosen = graph.all_max(here.to(torch.int64)) == 1
    return chosen if bool((served & chosen).any()) else served | chosen


class _Field:
    """C after some nodes have become known: F A F^T, its diagonal, and what the scores need."""

    def __init__(self, graph: GraphView, field: Covariance, kind: VarianceKind) -> None:
        self._graph, self._f, self._kind = graph, field.factor, kind
        self._a = torch.eye(self._f.shape[1], dtype=torch.float64, device=self._f.device)
        self._conditional = field.conditional
        self._variance = self._f.square().sum(1)
        if kind == "vopt":
            gram = graph.all_sum(self._f.T @ self._f)
            # Squared norms of the columns of C.
            self._gain = ((self._f @ gram) * self._f).sum(1)
            of_all = self._variance
        else:
            # Sums of the columns of C.
            self._gain = of_all = self._f @ graph.all_sum(self._f.sum(0))
        self.total = graph.all_sum(of_all.sum()).clamp(min=1e-300)

    def value(self) -> Float64[Tensor, " n"]:
        gain = self._gain.clamp(min=0) if self._kind == "vopt" else self._gain.square()
        return gain / torch.maximum(self._variance, self._conditional).clamp(min=1e-300)

    def observe(self, node: int) -> None:
        """Take C_q C_q^T / C_qq off C."""
        graph, ids = self._graph, self._graph.node_ids.new_tensor([node])
        row = graph.gather(self._f, ids)[0]
        total = graph.gather(torch.maximum(self._variance, self._conditional), ids)[0]
        direction = self._a @ row
        column = self._f @ direction
        along = graph.all_sum(torch.cat([self._f.T @ column, column.sum().reshape(1)]))
        if self._kind == "vopt":
            squared = direction @ along[:-1]
            twice = 2 * column * (self._f @ (self._a @ along[:-1]))
            self._gain = self._gain - twice / total + column.square() * squared / total.square()
        else:
            self._gain = self._gain - column * along[-1] / total
        self._variance = (self._variance - column.square() / total).clamp(min=0)
        self._a = self._a - torch.outer(direction, direction) / total


def _argmax(graph: GraphView, value: Float[Tensor, " n"], among: Bool[Tensor, " n"]) -> int:
    """Id of the node with the largest value on any shard, the lowest of several; -1: there is none.

    Values are compared as float32: those that are equal but for rounding, which depends on how
    many shards add up a sum, are equal.
    """
    masked = torch.where(among, value.to(torch.float32), -torch.inf)
    own = masked.max() if len(masked) else masked.new_tensor(-torch.inf)
    best = graph.all_max(own.reshape(1))[0]
    ids = torch.where(among & (masked == best), -graph.node_ids, _NOTHING)
    lowest = ids.max() if len(ids) else graph.node_ids.new_tensor(_NOTHING)
    found = int(graph.all_max(lowest.reshape(1))[0])
    return -1 if found == _NOTHING else -found


def _nystroem(
    probes: Float64[Tensor, "n r"], images: Float64[Tensor, "n r"], w: Affinity
) -> Float64[Tensor, "n r"]:
    """F with F F^T = Y (Omega^T Y)^+ Y^T, Y = C Omega."""
    middle = w.all_sum(probes.T @ images)
    values, vectors = torch.linalg.eigh((middle + middle.T) / 2)
    kept = values > _EIGENVALUE_FLOOR * values.max()
    factor: Tensor = images @ (vectors[:, kept] / values[kept].sqrt())
    return factor


def _shifted(x: Int64[Tensor, "n r"], bits: int) -> Int64[Tensor, "n r"]:
    """Right shift that fills with zeros."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
