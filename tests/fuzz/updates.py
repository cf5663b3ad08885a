"""Random histories of moving rows, and what must hold of a followed graph after every update.

The tests of `incremental` draw a few histories; `make fuzz` draws them until its time is up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TypeVar
from unittest import mock

import torch
from labelmesh.graph_store import following, incremental, peers, sharded_lists, tracking
from labelmesh.graph_store.incremental import LiveGraph
from labelmesh.graph_store.kernels import knn_cpu, lists, lists_device, offers
from labelmesh.graph_store.kernels.rounding import PRECISIONS, Precision
from labelmesh.graph_store.kernels.rows import canonical_distances
from labelmesh.graph_store.partition import Partition
from labelmesh.graph_store.peers import Peers
from labelmesh.graph_store.sharded_view import ShardGroup
from labelmesh.graph_store.store import KnnReport
from torch import Tensor

T = TypeVar("T")
KINDS = ("random", "clustered", "manifold", "grid", "duplicates", "far", "line")
MOVES = (
    *("nothing", "jitter", "jitter", "jitter", "drift", "drift", "rewrite", "mixed", "mixed"),
    *("rotate", "shift", "scale", "copies", "collapse", "outliers", "zeros", "round", "swap"),
)
ETAS = (0.0, 0.0, 0.0, 0.02, 0.05, 0.2)


@dataclass(frozen=True)
class Case:
    """One graph and the sizes of blocks that it is computed with."""

    num_rows: int
    dim: int
    k: int
    slack: int | None
    kind: str
    num_steps: int
    seed: int
    keep_scale: bool = False
    unit: float = 1.0
    has_tolerance: bool = False
    small_blocks: bool = False
    small_share: float = 0.08
    precision: Precision = "float32"
    in_torch: bool = False  # with the operations of other devices than the CPU


@dataclass(frozen=True)
class Step:
    rows: Tensor
    active: Tensor
    eta: float
    move: str


@dataclass(frozen=True)
class State:
    """A copy of what one shard, or all of them together, keep after an update."""

    ids: Tensor
    distances: Tensor
    report: KnnReport
    references: Tensor
    is_active: Tensor
    list_ids: Tensor
    list_keys: Tensor
    horizon: Tensor
    drift: Tensor
    certified: Tensor
    key_errors: Tensor
    framed: Tensor
    moved_references: Tensor


def random_case(seed: int) -> Case:
    g = torch.Generator().manual_seed(seed)
    k = 1 + _draw(g, 12)
    sizes: tuple[int | None, ...] = (None, k + 1, 2 * k, 4 * k)
    return Case(
        num_rows=(3, k + 1, k + 2, 40, 150, 150, 400, 400, 900)[_draw(g, 9)],
        dim=(1, 2, 3, 5, 8, 16, 33, 64, 256)[_draw(g, 9)],
        k=k,
        slack=None if sizes[(i := _draw(g, 4))] is None else max(k + 1, sizes[i] or 0),
        kind=KINDS[_draw(g, len(KINDS))],
        num_steps=3 + _draw(g, 8),
        seed=seed,
        keep_scale=_draw(g, 3) == 0,
        unit=(1.0, 1.0, 1e-30, 1e-12, 1e12, 1e30)[_draw(g, 6)],
        has_tolerance=_draw(g, 3) == 0,
        small_blocks=_draw(g, 2) == 0,
        small_share=(0.0, 0.08, 1.0)[_draw(g, 3)],
        precision=("float32", "float32", "float32", *PRECISIONS[1:])[_draw(g, 7)],
        in_torch=_draw(g, 3) == 0,
    )


def history(case: Case) -> Iterator[Step]:
    """Rows and who takes part, update by update; all rows are finite in float32."""
    g = torch.Generator().manual_seed(case.seed + 1)
    x = start(case.kind, case.num_rows, case.dim, g)
    active = torch.rand(case.num_rows, generator=g) > (0.0, 0.0, 0.3)[_draw(g, 3)]
    for number in range(case.num_steps):
        move = "start" if number == 0 else MOVES[_draw(g, len(MOVES))]
        if number:
            x = moved(x, move, g)
            if _draw(g, 4) == 0:
                flips = torch.rand(case.num_rows, generator=g) < (0.01, 0.1, 0.5)[_draw(g, 3)]
                active = active ^ flips
        eta = ETAS[_draw(g, len(ETAS))] if case.has_tolerance else 0.0
        rows = (x * case.unit).clamp(-3e38, 3e38).to(torch.float32)
        yield Step(rows, active.clone(), eta, move)


def start(kind: str, n: int, d: int, g: torch.Generator) -> Tensor:
    """Rows of some kind, in float64."""
    x = _normal(g, n, d)
    if kind == "clustered":
        return _normal(g, 6, d)[torch.randint(6, (n,), generator=g)] * 4 + 0.3 * x
    if kind == "manifold":
        return torch.tanh(_normal(g, n, 2) @ _normal(g, 2, d)) + 0.01 * x
    if kind == "grid":
        return x.round()
    if kind == "duplicates":
        return x[torch.randint(max(1, n // 7), (n,), generator=g)]
    if kind == "far":
        return 1000.0 + x
    if kind == "line":
        return torch.arange(n, dtype=torch.float64)[:, None].expand(n, d).clone()
    return x


def moved(x: Tensor, move: str, g: torch.Generator) -> Tensor:
    """The rows after some motion."""
    n, d = x.shape
    size = 10.0 ** (-6 + 6.5 * float(torch.rand(1, generator=g)))
    spread = float((x - x.mean(0)).abs().mean()) + 1e-30
    share = (0.001, 0.01, 0.05, 0.2, 1.0)[_draw(g, 5)]
    some = torch.rand(n, generator=g) < max(share, 1.5 / n)
    noise = spread * size * _normal(g, n, d)
    if move == "jitter":
        return torch.where(some[:, None], x + noise, x)
    if move == "drift":
        return x + noise
    if move == "rewrite":
        return torch.where(some[:, None], x.mean(0) + spread * _normal(g, n, d), x)
    if move == "mixed":
        return x + torch.where(some[:, None], spread * _normal(g, n, d), 1e-3 * noise)
    if move == "rotate":
        q = torch.linalg.qr(_normal(g, d, d))[0]
        return x @ q + (1e-3 * noise if _draw(g, 2) else 0.0)
    if move == "shift":
        return x + 3 * spread * _normal(g, 1, d) + (1e-3 * noise if _draw(g, 2) else 0.0)
    if move == "scale":
        factor = 10.0 ** ((1, 3, 10, 25)[_draw(g, 4)] * float(2 * torch.rand(1, generator=g) - 1))
        return torch.nan_to_num(x * factor).clamp(-1e8, 1e8) + (0.0 if _draw(g, 2) else noise * 0)
    if move in ("copies", "swap"):
        other = x[torch.randint(n, (n,), generator=g)]
        return torch.where(some[:, None], other, x)
    if move == "collapse":
        return torch.where(some[:, None], x[:1], x)
    if move == "outliers":
        few = torch.rand(n, generator=g) < 2.0 / n
        return torch.where(few[:, None], x * 10.0 ** (1 + _draw(g, 8)), x).clamp(-1e8, 1e8)
    if move == "zeros":
        return torch.where(some[:, None], torch.zeros_like(x), x)
    if move == "round":
        return (x / spread).round() * spread
    return x


def follow(
    case: Case,
    steps: list[Step],
    group: ShardGroup | None = None,
    observe: Callable[[LiveGraph, int], None] | None = None,
) -> list[State]:
    """One shard's states after every update."""
    size, rank = (1, 0) if group is None else (group.size, group.rank)
    partition = Partition.even(case.num_rows, size)
    live = LiveGraph(
        Peers(partition, rank, group),
        case.k,
        case.slack,
        keep_scale=case.keep_scale,
        precision=case.precision,
    )
    own, states = slice(*partition.span(rank)), []
    for number, step in enumerate(steps):
        report = live.update(step.rows[own].clone(), step.active[own].clone(), eta=step.eta)
        states.append(state_of(live, step.rows[own], report))
        if observe is not None:
            observe(live, number)
    return states


def state_of(live: LiveGraph, rows: Tensor, report: KnnReport) -> State:
    ref = live._reference
    assert ref is not None
    assert ref.frame.center is not None
    points = ref.points(torch.arange(len(ref.rows)))
    moved_to = points.double() if ref.motion is None else ref.motion.apply(points)
    return State(
        live.neighbor_ids.clone(),
        live.distances.clone(),
        report,
        points,
        torch.isfinite(ref.half),
        ref.lists.ids.clone(),
        ref.lists.keys.clone(),
        ref.lists.horizon.clone(),
        ref.drift.clone(),
        ref.certified.clone(),
        ref.errors.double()[:, None],
        rows.double() * ref.frame.scale - ref.frame.center.double(),
        moved_to,
    )


def join(parts: list[State]) -> State:
    """The state of all rows from those of the shards."""
    whole = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name, value in vars(parts[0]).items()
        if isinstance(value, Tensor)
    }
    return replace(parts[0], **whole)


def brute_force(rows: Tensor, active: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Neighbours by (canonical distance, id), by sorting all of them; -1/inf where there are none.

    Inactive rows have none and are nobody's.
    """
    n = rows.shape[0]
    distances = torch.full((n, n), torch.inf, dtype=torch.float64)
    step = max(1, (1 << 23) // max(1, n * rows.shape[1]))
    for first in range(0, n, step):
        part = slice(first, first + step)
        own = rows[part, None].expand(-1, n, -1)
        distances[part] = canonical_distances(own, rows[None].expand(len(own), -1, -1))
    distances.fill_diagonal_(torch.inf)
    distances[~active], distances[:, ~active] = torch.inf, torch.inf
    width = min(k, n)
    ordered, ids = distances.sort(dim=1, stable=True)
    out_ids = torch.full((n, k), -1)
    out = torch.full((n, k), torch.inf, dtype=torch.float64)
    out[:, :width] = ordered[:, :width]
    out_ids[:, :width] = torch.where(torch.isinf(ordered), -1, ids)[:, :width]
    return out_ids, out


def check(case: Case, step: Step, state: State) -> None:
    """Assert what must hold after an update."""
    ids, distances = brute_force(step.rows, step.active, case.k)
    report, active = state.report, step.active
    certified = state.certified
    assert torch.equal(state.ids[certified], ids[certified]), "certified rows have other neighbours"
    assert not certified[~active].any()
    if step.eta == 0 or report.exact:
        assert report.exact
        assert torch.equal(state.ids, ids), "ids"
        assert torch.equal(state.distances, distances), "distances"
        assert report.recall == 1.0
    check_tolerance(step, state, ids, distances)
    assert 0 <= report.changed <= len(active)
    assert report.certified == int(certified.sum())
    assert 0 <= report.searched <= int(active.sum())
    check_lists(state, active)


def check_tolerance(step: Step, state: State, ids: Tensor, distances: Tensor) -> None:
    report = state.report
    assert 1.0 <= report.bound <= 1.0 + step.eta + 1e-12
    limit = torch.where(torch.isinf(distances), torch.inf, distances * report.bound * (1 + 1e-12))
    assert bool((state.distances <= limit).all()), "a neighbour is beyond the bound"
    is_true = (state.ids[:, :, None] == ids[:, None, :]) & (ids >= 0)[:, None, :]
    wanted = int((ids >= 0).sum())
    recall = int(is_true.any(1).sum()) / wanted if wanted else 1.0
    assert report.recall <= recall + 1e-12, "recall is overstated"


def check_lists(state: State, active: Tensor) -> None:
    """Invariant H, in float64, and that keys and drifts are what they say."""
    n = len(active)
    assert torch.equal(state.is_active, active)
    r = state.references.double()
    keys = torch.stack([(r - row).square().sum(1) / 2 for row in r]) if n else r.new_empty(0, 0)
    present = state.list_ids >= 0
    listed = torch.zeros(n, n + 1, dtype=torch.bool)
    listed.scatter_(1, torch.where(present, state.list_ids, n).long(), True)
    listed = listed[:, :n]
    assert int(listed.sum()) == int(present.sum()), "a node is twice in a list"
    assert not listed.diagonal().any()
    assert not listed[:, ~active].any(), "a list has a node that is gone"
    assert not present[~active].any()
    in_list = torch.where(present, keys.gather(1, state.list_ids.clamp(min=0).long()), torch.inf)
    is_off = (in_list - state.list_keys.double()).abs() > state.key_errors
    assert not bool((is_off & present).any()), "a key is off by more than the error allowed"
    order = state.list_keys.diff(dim=1)
    assert not bool((order < 0).any()), "a list is not ascending"
    outside = active[:, None] & active[None] & ~listed
    outside.fill_diagonal_(False)
    allowed = state.horizon.double()[:, None] * torch.ones(1, n, dtype=torch.float64)
    assert bool((keys >= allowed)[outside].all()), "invariant H does not hold"
    drift = torch.linalg.vector_norm(state.framed - state.moved_references, dim=1)[active]
    # Both are rounded; horizons are lowered by 1e-7 of themselves to cover that.
    tolerance = 1e-12 * (state.framed.abs().amax() + 1 if n else 1)
    assert bool((state.drift[active] >= drift * (1 - 1e-9) - tolerance).all()), "drift"


def small_blocks(case: Case) -> ExitStack:
    """Sizes of blocks so small that little data takes every path."""
    stack = ExitStack()
    stack.enter_context(mock.patch.object(sharded_lists, "SMALL_SHARE", case.small_share))
    if case.in_torch:
        stack.enter_context(mock.patch.object(lists, "is_compiled", return_value=False))
    if not case.small_blocks:
        return stack
    few = {"BLOCK": 23, "LEAST_HITS": 50, "HITS_PER_ROW": 1, "MERGED_ROWS": 9}
    for name, size in few.items():
        stack.enter_context(mock.patch.object(offers, name, size))
    stack.enter_context(mock.patch.object(lists_device, "PAIR_NUMBERS", 300))
    stack.enter_context(mock.patch.object(lists_device, "ROWS", 31))
    for module in (knn_cpu, lists):
        stack.enter_context(mock.patch.object(module, "QUERY_BLOCK", 16))
        stack.enter_context(mock.patch.object(module, "BANK_BLOCK", 24))
    stack.enter_context(mock.patch.object(tracking, "RANK_ROWS", 37))
    stack.enter_context(mock.patch.object(sharded_lists, "MOST_HITS", 0))
    for name, size in {"MOTION_SAMPLE": 64, "THRESHOLD_SAMPLE": 50, "PROBE_ROWS": 64}.items():
        stack.enter_context(mock.patch.object(following, name, size))
    # Defaults of arguments are taken when a function is made.
    whole = sharded_lists.search_over_shards

    def search(group: Peers, own: lists.Framed, size: int) -> lists.Partial:
        return whole(group, own, size, block=23)

    stack.enter_context(mock.patch.object(incremental, "search_over_shards", search))
    blocks = peers.Peers.blocks

    def by_few(
        self: Peers, *columns: Tensor, **_: int
    ) -> Iterator[tuple[int, slice, tuple[Tensor, ...]]]:
        return blocks(self, *columns, block=29, first=3)

    stack.enter_context(mock.patch.object(peers.Peers, "blocks", by_few))
    return stack


def run_on_shards(size: int, function: Callable[[ShardGroup], T]) -> list[T]:
    """Run a function on every shard; shards are threads that talk over gloo."""
    rendezvous = torch.distributed.HashStore()

    def run(rank: int) -> T:
        group = ShardGroup(rank, size, rendezvous)
        try:
            return function(group)
        except BaseException:
            group.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        parts = [pool.submit(run, rank) for rank in range(size)]
        wait(parts)
    return [part.result() for part in parts]


def follow_on_shards(case: Case, steps: list[Step], size: int) -> list[State]:
    """The states of all rows after every update, computed on some number of shards."""
    parts = run_on_shards(size, lambda group: follow(case, steps, group))
    return [join([part[number] for part in parts]) for number in range(len(steps))]


def check_case(case: Case, num_shards: int = 1) -> list[State]:
    """Follow a random history and check every state of it."""
    steps = list(history(case))
    with small_blocks(case):
        if num_shards == 1:
            states = follow(case, steps)
        else:
            states = follow_on_shards(case, steps, num_shards)
    for number, (step, state) in enumerate(zip(steps, states)):
        try:
            check(case, step, state)
        except AssertionError as error:
            raise AssertionError(
                f"{error} after update {number} ({step.move}, eta {step.eta}) of {case} on "
                f"{num_shards} shards; repeat with --seed {case.seed}"
            ) from error
    return states


def cost(state: State, active: Tensor) -> float:
    """Pairs that an update evaluated, as a multiple of those of a build."""
    n = int(active.sum())
    return state.report.distances / (n * (n - 1) / 2) if n > 1 else math.nan


def _draw(g: torch.Generator, below: int) -> int:
    return int(torch.randint(below, (1,), generator=g))


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)
