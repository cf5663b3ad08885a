"""The approximate kNN graph that follows moving features: refined from the old lists, and measured.

Refinement is not exact and does not know how far off it is; `refine_to_target` measures it on
a sample. Rows are those that `kernels.rows.prepare_rows` makes, on the CPU; distances are
canonical.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from .exchange import Exchange, OneProcess
from .kernels.knn import Metric
from .recall import Recall, choose_sample, highest_low, recall_of_sample, true_distances
from .refine_rounds import Lists, empty_lists, join_round, offer_candidates, values_at
from .refine_starts import cell_mates, nearest_pivots

# Pivots that are offered to a node that has moved, and cells that one is in at the start.
_NUM_PIVOTS, _NUM_CELLS = 4, 3
# More reverse neighbours than this cost long lists more time than they find neighbours.
_NUM_REVERSE = 16
# Added to the seed of a sample that measures: it must not consist of pivots, which do better.
_SAMPLE_SEED = 1_000_003


@dataclass(frozen=True)
class Refined:
    """A refined graph.

    Attributes:
        neighbor_ids: Nearest first, ties by id, -1 where no neighbour was found.
        distances: Canonical; inf where there is none.
        num_rounds: Local joins that were made.
        num_candidates: Pairs that were looked at, over all shards.
        recall: As measured; None where it was not.
        needs_rebuild: The recall target was not reached, and further rounds would change little.
    """

    neighbor_ids: Int64[Tensor, "n k"]
    distances: Float64[Tensor, "n k"]
    num_rounds: int
    num_candidates: int
    recall: Recall | None = None
    needs_rebuild: bool = False


@dataclass(frozen=True)
class Rule:
    """How a graph is refined.

    Attributes:
        max_rounds: Most local joins.
        min_changed: Stop when a join changed no more than this share of the lists.
        num_reverse: Reverse neighbours that take part in a join, per node; None: k, at most 16.
        seed: Of the pivots and of the choice among reverse neighbours.
        metric: Of the rows.

    Raises:
        ValueError: A number out of range.
    """

    max_rounds: int = 10
    min_changed: float = 0.01
    num_reverse: int | None = None
    seed: int = 0
    metric: Metric = "euclidean"

    def __post_init__(self) -> None:
        if self.max_rounds < 0:
            raise ValueError(f"max_rounds must be at least 0, got {self.max_rounds}")
        if not 0 <= self.min_changed < 1:
            raise ValueError(f"min_changed is a share in [0, 1), got {self.min_changed}")
        if self.num_reverse is not None and self.num_reverse < 1:
            raise ValueError(f"num_reverse must be at least 1, got {self.num_reverse}")

    @property
    def is_product(self) -> bool:
        return self.metric == "inner_product"


@dataclass(frozen=True)
class Start:
    """What refinement starts from; columns of the own rows.

    Attributes:
        rows: Prepared, as they are now.
        neighbor_ids: Old lists in any order, -1 = none; K need not be k. All -1: from nothing.
        moved: Rows that differ from those of the old lists; None = all.
        present: Nodes that exist; the others get no neighbours and are nobody's. None = all.
    """

    rows: Float32[Tensor, "n D"]
    neighbor_ids: Int64[Tensor, "n K"]
    moved: Bool[Tensor, " n"] | None = None
    present: Bool[Tensor, " n"] | None = None

    @property
    def moved_nodes(self) -> Bool[Tensor, " n"]:
        return self._everything if self.moved is None else self.moved

    @property
    def present_nodes(self) -> Bool[Tensor, " n"]:
        return self._everything if self.present is None else self.present

    @property
    def _everything(self) -> Bool[Tensor, " n"]:
        return torch.ones(self.rows.shape[0], dtype=torch.bool)


def refine_graph(
    rows: Float32[Tensor, "n D"],
    neighbor_ids: Int64[Tensor, "n K"],
    k: int,
    *,
    moved: Bool[Tensor, " n"] | None = None,
    present: Bool[Tensor, " n"] | None = None,
    rule: Rule | None = None,
) -> Refined:
    """Refine old lists to those of the rows as they are now, in one process; approximate.

    The old neighbours are ranked by their distances now, and rounds of local joins follow until few
    lists change. See `Start` and `Rule` for the arguments.

    Raises:
        ValueError: Neighbours that do not exist, or k < 1.

    Cost:
        n (k + R)^2 distances at most in the first round where everything moved, about half of them
        distinct; in proportion to the moved edges otherwise. Memory O(n (k + R)).

    Example:
        >>> rows = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
        >>> refine_graph(rows, torch.tensor([[1], [2], [3], [0]]), 2).neighbor_ids.tolist()
        [[1, 2], [0, 2], [1, 0], [2, 1]]
    """
    start = Start(rows, neighbor_ids, moved, present)
    return refine(OneProcess(rows.shape[0]), start, k, rule or Rule())


def build_approximate(
    rows: Float32[Tensor, "n D"],
    k: int,
    *,
    present: Bool[Tensor, " n"] | None = None,
    rule: Rule | None = None,
) -> Refined:
    """An approximate kNN graph from nothing: `refine_graph` without old lists."""
    none = torch.full((rows.shape[0], 1), -1)
    return refine_graph(rows, none, k, present=present, rule=rule)


def refine_to_target(
    rows: Float32[Tensor, "n D"],
    neighbor_ids: Int64[Tensor, "n K"],
    k: int,
    *,
    recall_target: float,
    sample_size: int = 1000,
    moved: Bool[Tensor, " n"] | None = None,
    present: Bool[Tensor, " n"] | None = None,
    rule: Rule | None = None,
) -> Refined:
    """`refine_graph` with as many rounds as the lower end of the measured recall needs.

    `needs_rebuild` of the result says that this was not enough; the best lists are returned.
    Recall is measured on one sample after every round, and its interval is that of a single look.

    Raises:
        ValueError: As `refine_graph`; or a target that the sample is too small to show.
    """
    start = Start(rows, neighbor_ids, moved, present)
    exchange = OneProcess(rows.shape[0])
    return refine_until(exchange, start, k, rule or Rule(), recall_target, sample_size)


def refine(exchange: Exchange, start: Start, k: int, rule: Rule) -> Refined:
    """`refine_graph` of the own rows. Collective."""
    for state in _rounds(exchange, start, k, rule):
        refined = state.refined()
    return refined


def refine_until(
    exchange: Exchange, start: Start, k: int, rule: Rule, recall_target: float, sample_size: int
) -> Refined:
    """`refine_to_target` of the own rows. Collective."""
    _check_target(recall_target, sample_size, exchange.num_nodes)
    sample = choose_sample(exchange.num_nodes, sample_size, rule.seed + _SAMPLE_SEED)
    truth = true_distances(exchange, start.rows, start.present_nodes, sample, k, rule.metric)
    for state in _rounds(exchange, start, k, rule):
        recall = recall_of_sample(exchange, state.lists.ids, state.lists.distances, sample, truth)
        if recall.low >= recall_target:
            break
    return replace(state.refined(), recall=recall, needs_rebuild=recall.low < recall_target)


@dataclass(frozen=True)
class _State:
    lists: Lists
    num_rounds: int
    num_candidates: int

    def refined(self) -> Refined:
        lists = self.lists
        return Refined(lists.ids, lists.distances, self.num_rounds, self.num_candidates)


def _rounds(exchange: Exchange, start: Start, k: int, rule: Rule) -> Iterator[_State]:
    """The lists before the first join and after each, until a join changes few."""
    _check(exchange, start, k)
    lists, loosened, num_candidates = _begin(exchange, start, k, rule)
    yield _State(lists, 0, num_candidates)
    for number in range(rule.max_rounds):
        work = join_round(
            exchange,
            start.rows,
            lists,
            loosened,
            num_reverse=rule.num_reverse or min(k, _NUM_REVERSE),
            seed=rule.seed + number,
            is_product=rule.is_product,
        )
        loosened = torch.zeros_like(loosened)
        num_candidates += work.num_candidates
        yield _State(lists, number + 1, num_candidates)
        if work.num_changed <= rule.min_changed * exchange.num_nodes:
            return


def _begin(
    exchange: Exchange, start: Start, k: int, rule: Rule
) -> tuple[Lists, Bool[Tensor, " n"], int]:
    """The lists to begin with, nodes that lists may have lost neighbours of, and candidates."""
    present, moved = start.present_nodes, start.moved_nodes
    exists = values_at(exchange, present, start.neighbor_ids, missing=False) & present[:, None]
    old = torch.where(exists, start.neighbor_ids, -1)
    lists = empty_lists(start.rows.shape[0], k)
    work = [offer_candidates(exchange, start.rows, lists, old, is_product=rule.is_product)]
    far_end_moved = values_at(exchange, moved, lists.ids, missing=False)
    lists.is_new.copy_((far_end_moved | moved[:, None]) & (lists.ids >= 0))
    loosened = lists.is_new.any(1) | (lists.ids[:, -1] < 0)
    for candidates in _starts(exchange, start, present, moved, lists, rule):
        work.append(
            offer_candidates(exchange, start.rows, lists, candidates, is_product=rule.is_product)
        )
    return lists, loosened, sum(done.num_candidates for done in work)


def _starts(
    exchange: Exchange,
    start: Start,
    present: Bool[Tensor, " n"],
    moved: Bool[Tensor, " n"],
    lists: Lists,
    rule: Rule,
) -> list[Int64[Tensor, "n _"]]:
    """Candidates for nodes that have moved or whose lists are not full."""
    place = (exchange, start.rows, present)
    if exchange.total(int((lists.ids >= 0).sum())) == 0:
        width = 2 * lists.ids.shape[1]
        seeds = range(rule.seed, rule.seed + _NUM_CELLS)
        return [cell_mates(*place, width, s, rule.metric) for s in seeds]
    wanted = (moved | (lists.ids[:, -1] < 0)) & present
    if exchange.total(int(wanted.sum())) == 0:
        return []
    options = (_NUM_PIVOTS, rule.seed, rule.metric)
    return [nearest_pivots(*place, wanted, *options)]


def _check(exchange: Exchange, start: Start, k: int) -> None:
    ids = start.neighbor_ids
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if ids.shape[1] < 1:
        raise ValueError("neighbor_ids needs at least one column; -1 says that there is none")
    if ids.numel() and not -1 <= int(ids.min()) <= int(ids.max()) < exchange.num_nodes:
        raise ValueError(
            f"neighbor_ids must lie in -1..{exchange.num_nodes - 1}, got "
            f"{int(ids.min())}..{int(ids.max())}"
        )


def _check_target(recall_target: float, sample_size: int, num_nodes: int) -> None:
    if not 0 < recall_target <= 1:
        raise ValueError(f"recall_target must lie in (0, 1], got {recall_target}")
    size = min(sample_size, num_nodes)
    if 1 <= size < num_nodes and highest_low(size) < recall_target:
        raise ValueError(
            f"{size} sampled nodes can show a recall of at most {highest_low(size):.4f}, "
            f"recall_target is {recall_target}; take a larger sample_size or update exactly"
        )
