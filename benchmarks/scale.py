"""The cost model (`graph_store/cost.py`) against counted rounds and a simulation of large ones.

    python benchmarks/scale.py counted --nodes 10000 100000    # real shards, collectives counted
    python benchmarks/scale.py solved --nodes 1000000           # the same from drawn neighbours on
    python benchmarks/scale.py simulated --nodes 1000000 100000000 --shards 64 1024
    python benchmarks/scale.py planned --nodes 1000000 1000000000 --shards 8 1024

"counted" runs whole rounds on real shards (threads and gloo on this machine). "simulated" runs the
real partition, routing, halo plans, rounds of the search, merges and completion of puts for one
shard, with no features: kernels are stubbed, neighbour ids drawn. The other shards are not there;
it is taken that they ask this one for as much as it asks them, which is so for drawn ids on
average. Where the rounds of a search are many, some of them are run and the rest is extrapolated.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed
from labelmesh.graph_store import cost, sharded_lists
from labelmesh.graph_store.cost import Cost, Machine, Setting
from labelmesh.graph_store.inbox import Inbox, complete_puts
from labelmesh.graph_store.journal import Journal
from labelmesh.graph_store.kernels.knn import merge_topk
from labelmesh.graph_store.kernels.lists import Framed, Partial
from labelmesh.graph_store.partition import Partition
from labelmesh.graph_store.peers import Peers
from labelmesh.graph_store.ray_store import RayStore
from labelmesh.graph_store.recovery import recover
from labelmesh.graph_store.shard import Shard
from labelmesh.graph_store.sharded_view import (
    ShardedGraphView,
    ShardGroup,
    plan_fetch,
    sum_over_shards,
)
from labelmesh.graph_store.snapshot import new_version, write_part
from labelmesh.graph_store.solvers import local_global
from labelmesh.graph_store.solvers.aggregation import num_aggregates
from labelmesh.graph_store.store import StoreSpec
from labelmesh.graph_store.traffic import CountingGroup, Traffic
from labelmesh.graph_store.view import GraphView, NodeState, PseudoLabels
from torch import Tensor

# Assumed, not measured: one H100 with NCCL at half of 400 Gb/s and a tenth of its 989 TFLOP/s in
# float16, and the same over gloo, through the host's sockets.
H100 = Machine(flops=1e14, sparse=5e11, network=25e9, latency=20e-6, disk=1e9)
GLOO = replace(H100, network=2e9, latency=50e-6)
# Ids that a simulated shard may hold at once.
MOST_IDS = 60_000_000
SOME_ROUNDS = 8
BATCH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["counted", "solved", "simulated", "planned"])
    parser.add_argument("--nodes", type=int, nargs="+", default=[10_000])
    parser.add_argument("--shards", type=int, nargs="+", default=[4])
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--k", type=int, default=15)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--phases", action="store_true", help="planned: every phase in a table")
    parser.add_argument("--kinds", nargs="+", default=["uniform", "clustered"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    for num_nodes in args.nodes:
        for num_shards in args.shards:
            spec = StoreSpec(
                num_nodes, args.dim, args.classes, args.k, metric="euclidean", slack=32
            )
            setting = Setting(spec, num_shards)
            if args.part == "counted":
                counted(setting)
            elif args.part == "planned":
                (planned if args.phases else overview)(setting)
            elif args.part == "solved":
                solved(setting)
            else:
                for kind in args.kinds:
                    simulated(setting, kind)
    if args.part != "planned":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"peak memory {peak:.2f} GiB")


def row(name: str, model: float, found: float) -> None:
    print(
        f"| {name} | {model:.4g} | {found:.4g} | {found / model if model else 1:.3f} |", flush=True
    )


def header(title: str, found: str) -> None:
    print(f"\n{title}\n| of one shard | model | {found} | ratio |\n| --- | --- | --- | --- |")


# Counted


class Taken:
    """What the rounds of all shards have said: traffic by phase, and sizes."""

    def __init__(self, num_shards: int) -> None:
        self.traffic: dict[str, list[Traffic]] = {}
        self.seconds: dict[str, float] = {}
        self.reports: list[Any] = [None] * num_shards
        self.notes: list[dict[str, float]] = [{} for _ in range(num_shards)]

    def mean(self, phase: str, name: str) -> float:
        parts = self.traffic[phase]
        return sum(getattr(part, name) for part in parts) / len(parts)

    def note(self, name: str) -> float:
        return sum(note[name] for note in self.notes) / len(self.notes)


def counted(setting: Setting) -> None:
    """Two rounds: a build, then an update after 2 % of the rows have moved."""
    with tempfile.TemporaryDirectory() as folder:
        taken = play(setting, folder)
    spec = setting.spec
    # What the data decide is told to the model: edges that run both ways, iterations.
    known = replace(
        setting,
        mutual=2 - taken.note("entries") / (setting.rows * spec.k),
        iterations=int(taken.note("iterations")),
    )
    header(
        f"N = {spec.num_nodes:,}, D = {spec.dim}, k = {spec.k}, {setting.num_shards} shards; "
        f"mutual edges {known.mutual:.2f}, {known.iterations} iterations",
        "counted",
    )
    built, moved = taken.reports[0]
    share = moved.searched / spec.num_nodes
    update = replace(known, searched=share, touched=taken.note("touched"))
    phases = {
        "build": cost.build(known),
        "update": cost.follow(update),
        "weights": cost.weights(known),
        "solve": cost.solve(known),
    }
    for name, expected in phases.items():
        row(f"{name}: bytes received", expected.received, taken.mean(name, "received"))
        row(f"{name}: messages", expected.messages, taken.mean(name, "messages"))
    pairs = spec.num_nodes * (spec.num_nodes - 1) / 2 + spec.num_nodes * setting.list_size
    row("build: pairs of all shards", pairs, built.distances)
    row("weights: halo rows", known.halo, taken.note("halo"))
    row("log: bytes", cost.log(known).written / cost._COMPACTION, taken.note("log"))
    row("snapshot: bytes", cost.snapshot(known).written, taken.note("snapshot"))
    times = ", ".join(f"{name} {value:.2f}" for name, value in taken.seconds.items())
    print(f"seconds, all shards on this machine: {times}; 2nd update searched {share:.1%}")


def play(setting: Setting, folder: str) -> Taken:
    """The rounds on real shards that count what they send."""
    spec, count = setting.spec, setting.num_shards
    partition = Partition.even(spec.num_nodes, count)
    rendezvous = torch.distributed.HashStore()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(spec.num_nodes, spec.dim, generator=generator)
    moved = torch.randperm(spec.num_nodes, generator=generator)[: spec.num_nodes // 50]
    after = x.clone()
    after[moved] += 0.5 * torch.randn(len(moved), spec.dim, generator=generator)
    labels = torch.full((spec.num_nodes,), -1)
    labels[:: spec.num_nodes // 100] = torch.arange(len(labels[:: spec.num_nodes // 100])) % 10
    taken = Taken(count)
    groups: list[CountingGroup] = []

    def meet(rank: int) -> tuple[Shard, CountingGroup]:
        group = CountingGroup(rank, count, rendezvous)
        shard = Shard(spec, partition, rank)
        journal = Journal(f"{folder}/log-{rank}", "scale")
        recover(shard, journal)
        shard.join(group)
        return shard, group

    with ThreadPoolExecutor(count) as pool:
        members = list(pool.map(meet, range(count)))
        groups = [group for _, group in members]

        def phase(name: str, run: Callable[[int], object]) -> list[Any]:
            for group in groups:
                group.traffic = Traffic()
            began = time.perf_counter()
            found = list(pool.map(run, range(count)))
            taken.seconds[name] = time.perf_counter() - began
            taken.traffic[name] = [group.traffic for group in groups]
            return found

        def put(rank: int, rows: Tensor, at: Tensor | None = None) -> None:
            low, high = partition.span(rank)
            own = torch.arange(low, high) if at is None else at[(at >= low) & (at < high)]
            probs = torch.full((len(own), spec.num_classes), 0.1)
            members[rank][0].put(own, rows[own], probs)

        phase("put", lambda rank: put(rank, x))
        phase("labels", lambda r: members[r][0].put_labels(*_labels(partition, r, labels)))
        built = phase("build", lambda r: members[r][0].update_knn())
        phase("refresh", lambda r: members[r][0].solve(_method(taken, r, members), 0))
        for name in ("weights", "solve"):
            taken.traffic[name] = [note.pop(name) for note in taken.notes]  # type: ignore[misc]
        phase("publish", lambda r: members[r][0].publish(0))
        for rank, (shard, _) in enumerate(members):
            journal = shard._journal
            assert journal is not None
            taken.notes[rank]["log"] = journal.num_bytes - 16 * len(shard.node_ids)  # less labels
        phase("put", lambda r: put(r, after, moved))
        ids = [shard._state.staged["neighbor_ids"] for shard, _ in members]  # type: ignore[index]
        updated = phase("update", lambda r: members[r][0].update_knn())
        phase(
            "second refresh", lambda r: members[r][0].solve(lambda _, state: _labels_of(state), 1)
        )
        phase("publish", lambda r: members[r][0].publish(1))
        is_moved = torch.zeros(spec.num_nodes, dtype=torch.bool)
        is_moved[moved] = True
        for rank, (shard, _) in enumerate(members):
            own = is_moved[shard.node_ids] | is_moved[_list_ids(shard, ids[rank])].any(1)
            taken.notes[rank]["touched"] = float(own.float().mean())
            uri = f"{folder}/snapshot-{rank}"
            part = write_part(uri, new_version(uri), rank, shard.contents())
            taken.notes[rank]["snapshot"] = part.size_bytes
    taken.reports = list(zip(built, updated))
    return taken


def _labels(partition: Partition, rank: int, labels: Tensor) -> tuple[Tensor, Tensor]:
    own = torch.arange(*partition.span(rank))
    return own, labels[own]


def _labels_of(state: NodeState) -> PseudoLabels:
    return PseudoLabels(torch.full_like(state.probs, 0.1), torch.ones(len(state.probs)))


def _list_ids(shard: Shard, fallback: Tensor) -> Tensor:
    live = shard._graph._live
    if live is None or live._reference is None:
        return fallback
    return live._reference.lists.ids.to(torch.int64).clamp(min=0)


def _method(taken: Taken, rank: int, members: Sequence[tuple[Shard, CountingGroup]]) -> Any:
    """Local and global consistency; what its weights and its solve send is told apart."""

    def method(graph: GraphView, state: NodeState) -> PseudoLabels:
        group, notes = members[rank][1], taken.notes[rank]
        before = group.traffic
        group.traffic = Traffic()
        w: Any = graph.affinity("self_tuning")
        notes["weights"] = group.traffic  # type: ignore[assignment]
        notes["entries"], notes["halo"] = len(w.csr.cols), w.csr.num_cols - w.csr.num_rows
        group.traffic = Traffic()
        classes = state.probs.shape[1]
        local_global(
            w,
            state.labels,
            num_classes=classes,
            tol=1e-6,
            on_solve=lambda result: notes.update(iterations=float(result.iterations)),
        )
        notes["solve"], group.traffic = group.traffic, before  # type: ignore[assignment]
        return _labels_of(state)

    return method


def solved(setting: Setting) -> None:
    """Weights and a solve on real shards; neighbours are drawn, for a search would take hours."""
    spec, count = setting.spec, setting.num_shards
    partition = Partition.even(spec.num_nodes, count)
    rendezvous = torch.distributed.HashStore()
    taken = Taken(count)

    def run(rank: int) -> None:
        group = CountingGroup(rank, count, rendezvous)
        low, high = partition.span(rank)
        generator = torch.Generator().manual_seed(rank)
        ids = torch.randint(spec.num_nodes, (high - low, spec.k), generator=generator)
        far = torch.rand(high - low, spec.k, generator=generator).sort(1).values + 0.5
        view = ShardedGraphView(group, partition, ids, 1 - far, far, "euclidean")
        labels = torch.full((high - low,), -1)
        labels[:100] = torch.arange(100) % spec.num_classes
        zeros, ones = torch.zeros(high - low, 1), torch.ones(high - low)
        probs = torch.zeros(high - low, spec.num_classes)
        state = NodeState(zeros, probs, labels, ones, ones.bool())
        _method(taken, rank, [(None, group)] * count)(view, state)  # type: ignore[list-item]

    began = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(run, range(count)))
    for name in ("weights", "solve"):
        taken.traffic[name] = [note.pop(name) for note in taken.notes]  # type: ignore[misc]
    known = replace(
        setting,
        mutual=2 - taken.note("entries") / (setting.rows * spec.k),
        iterations=int(taken.note("iterations")),
    )
    header(
        f"N = {spec.num_nodes:,}, k = {spec.k}, {count} shards, drawn neighbours; "
        f"{known.iterations} iterations",
        "counted",
    )
    row("weights: halo rows", known.halo, taken.note("halo"))
    for name, expected in (("weights", cost.weights(known)), ("solve", cost.solve(known))):
        row(f"{name}: bytes received", expected.received, taken.mean(name, "received"))
        row(f"{name}: messages", expected.messages, taken.mean(name, "messages"))
    print(f"{time.perf_counter() - began:.0f} s, all shards on this machine")


# Simulated


class LoneGroup(ShardGroup):
    """One shard of many; the others say nothing, and ask for as much as they are asked for."""

    def __init__(self, rank: int, size: int) -> None:  # no connection is made
        self.rank, self.size = rank, size
        self.traffic = Traffic()

    def all_gather(self, x: Tensor) -> list[Tensor]:
        self.traffic.add(self.size - 1, (self.size - 1) * x.nbytes)
        return [x] * self.size

    def exchange_counts(self, counts: Sequence[int]) -> list[int]:
        self.traffic.add(self.size - 1, 8 * (self.size - 1))
        return list(counts)

    def exchange(
        self, rows: Tensor, send: Sequence[int], receive: Sequence[int], *, few: bool = False
    ) -> Tensor:
        self.traffic.row(rows, receive, self.rank, few)
        if sum(receive) == rows.shape[0] and sum(send) == sum(receive):
            return rows
        # Lists without members, as nearly all are when most shards have been asked; ids and rows
        # are not looked at.
        nobody: float = 0
        if rows.ndim == 2:
            nobody = torch.inf if rows.is_floating_point() else -1
        return rows.new_full((sum(receive), *rows.shape[1:]), nobody)


class LoneLink:
    """What `RayStore` asks of its shards, counted; they answer with zeros."""

    def __init__(self, spec: StoreSpec) -> None:
        self.spec = spec
        self.requests = 0
        self.sent = 0
        self.replied = 0

    def patiently(self, run: Callable[[], Any]) -> Any:
        return run()

    def get(self, refs: Sequence[Any]) -> list[Any]:
        return list(refs)

    def request(self, shard: int, lane: str, method: str, *args: Any) -> Any:
        self.requests += 1
        self.sent += sum(arg.nbytes for arg in args if isinstance(arg, Tensor))
        if method != "rows":
            return None
        ids, names = args[0], args[1]
        widths = {"neighbor_ids": self.spec.k, "features": self.spec.dim}
        reply = {}
        for name in names:
            shape = (len(ids), widths[name]) if name in widths else (len(ids),)
            kind = torch.int64 if name == "neighbor_ids" else torch.float32
            reply[name] = torch.zeros(shape, dtype=kind)
            if name == "neighbor_ids":
                reply[name].random_(self.spec.num_nodes)
        self.replied += sum(column.nbytes for column in reply.values())
        return reply


def simulated(setting: Setting, kind: str) -> None:
    """One shard's part in a round, against the model."""
    spec = setting.spec
    if kind == "clustered":  # nine of ten neighbours live on the own shard
        setting = replace(setting, outside=0.1)
    header(f"N = {spec.num_nodes:,}, {setting.num_shards} shards, {kind}", "simulated")
    partition = Partition.even(spec.num_nodes, setting.num_shards)
    if kind == "uniform":
        simulate_clients(setting, partition)
        simulate_completion(setting)
        simulate_search(setting, partition)
    simulate_halo(setting, partition)


def simulate_clients(setting: Setting, partition: Partition) -> None:
    """Puts of some chunks and the reads of a batch, through `RayStore` itself."""
    spec, some = setting.spec, 64
    link = LoneLink(spec)
    store = RayStore(spec, partition, link)  # type: ignore[arg-type]
    stride = -(-spec.num_nodes // setting.chunk) // some * setting.chunk
    starts = range(0, some * stride, stride)
    features = torch.zeros(setting.chunk, spec.dim)
    probs = torch.full((setting.chunk, spec.num_classes), 1 / spec.num_classes)
    began = time.perf_counter()
    for start in starts:
        store.put(torch.arange(start, start + setting.chunk), features, probs)
    seconds = (time.perf_counter() - began) / some
    chunks = spec.num_nodes / setting.chunk
    row(
        "put: requests",
        cost.puts_per_shard(setting),
        link.requests * chunks / some / setting.num_shards,
    )
    names = -(-spec.num_nodes // setting.chunk) * 32
    row(
        "put: bytes of rows",
        cost.put(setting).received - names,
        link.sent / some * chunks / setting.num_shards,
    )
    link.requests = link.sent = link.replied = 0
    steps = 8
    began = time.perf_counter()
    for _ in range(steps):
        store.neighborhood(torch.randint(spec.num_nodes, (BATCH,)), hops=1, round=0)
    read = (time.perf_counter() - began) / steps
    expected = cost.read_step(setting, BATCH, setting.num_shards)
    row("step: requests, a trainer per shard", expected.messages, link.requests / steps)
    row("step: bytes", expected.received, (link.replied + link.sent) / steps)
    print(
        f"host: put of {setting.chunk} rows {1e3 * seconds:.2f} ms, "
        f"reads of a step {1e3 * read:.1f} ms"
    )


def simulate_completion(setting: Setting) -> None:
    """The driver's bookkeeping of puts: which have arrived everywhere, and who is told."""
    total = -(-setting.spec.num_nodes // setting.chunk)
    total = min(total, 2_000_000)
    shards = setting.num_shards
    each = -(-total // shards)
    stamps = [(f"{number:032x}", 1) for number in range(each * shards)]
    sealed = [stamps[shard * each : (shard + 1) * each] for shard in range(shards)]
    began = time.perf_counter()
    complete = complete_puts(sealed)
    completing = time.perf_counter() - began
    inbox = Inbox()
    nothing = torch.zeros(0, dtype=torch.int64)
    for stamp in sealed[0]:
        inbox.write(nothing, {}, stamp)
    inbox.seal()
    began = time.perf_counter()
    assert len(inbox.choose(complete)) == each
    choosing = time.perf_counter() - began
    row("completion: names that a shard is told, bytes", total * 32, sum(map(len, complete)))
    print(
        f"host: {len(complete):,} puts completed in {completing:.2f} s on the driver, chosen in "
        f"{choosing:.2f} s per shard; the driver sends {shards * len(complete) * 32 / 1e9:.2f} GB"
    )


def simulate_search(setting: Setting, partition: Partition) -> None:
    """The rounds of a build: trades, exchanges and merges; products and lists are stubbed."""
    spec, size = setting.spec, setting.list_size
    rank = partition.num_shards // 2
    start, stop = partition.span(rank)
    rows = stop - start
    if rows * (size + 1) > MOST_IDS:
        print("search: a shard is too large for this machine")
        return
    group = LoneGroup(rank, partition.num_shards)
    own = Framed(
        torch.zeros(rows, spec.dim),
        torch.zeros(rows),
        torch.arange(start, stop, dtype=torch.int32),
        1.0,
        "float32",
    )
    everything = sharded_lists._rounds
    num_rounds = partition.num_shards - 1 + partition.num_shards % 2
    run = len(range(0, num_rounds, max(1, num_rounds // SOME_ROUNDS)))

    def nearest(own: Framed, size: int) -> Partial:
        keys = torch.rand(len(own.ids), size + 1).cumsum(1)
        return Partial(keys, torch.randint(spec.num_nodes, keys.shape, dtype=torch.int32))

    def some(num_shards: int) -> Iterator[list[int]]:
        return islice(everything(num_shards), 0, None, max(1, num_rounds // SOME_ROUNDS))

    def nothing(*_: object) -> None: ...

    with (
        patch.object(sharded_lists, "search_self", nearest),
        patch.object(sharded_lists, "scan_both", nothing),
        patch.object(sharded_lists, "_rounds", some),
    ):
        began = time.perf_counter()
        sharded_lists.search_over_shards(Peers(partition, rank, group), own, size)
        seconds = time.perf_counter() - began
    ranked = cost.rank(setting, setting.rows)
    expected = cost.build(setting)
    times = num_rounds / run
    note = "" if run == num_rounds else f" ({run} of {num_rounds} rounds run)"
    row(f"search: bytes{note}", expected.received - ranked.received, times * group.traffic.received)
    calls = cost._SMALL_CALLS * setting.others  # of the update around the search
    row(
        "search: messages",
        expected.messages - ranked.messages - calls,
        times * (group.traffic.messages - setting.others),
    )
    print(f"host: buffers and merges of the search, no hits, {times * seconds:.1f} s per shard")


def simulate_halo(setting: Setting, partition: Partition) -> None:
    """The plan of a halo and an iteration's exchange and sums."""
    spec, shards = setting.spec, setting.num_shards
    rank = shards // 2
    start, stop = partition.span(rank)
    draws = int(setting.edges)
    if draws > MOST_IDS:
        print("halo: a shard has too many edges for this machine")
        return
    ids = torch.randint(spec.num_nodes, (draws,), generator=torch.Generator().manual_seed(0))
    if setting.outside is not None:
        inside = torch.rand(draws, generator=torch.Generator().manual_seed(1)) >= setting.outside
        ids = torch.where(inside, start + ids % (stop - start), ids)
    outside = ids[(ids < start) | (ids >= stop)]
    group = LoneGroup(rank, shards)
    began = time.perf_counter()
    plan = plan_fetch(group, partition, outside)
    planning = time.perf_counter() - began
    halo = len(plan.route.node_ids)
    row("halo: rows", setting.halo, halo)
    crossing = 8 * setting.halo + 8 * setting.others
    row("halo: bytes of the plan", crossing, group.traffic.received)
    group.traffic = Traffic()
    classes, groups = spec.num_classes, num_aggregates(spec.num_nodes)
    column = torch.zeros(stop - start, classes, dtype=torch.float64)
    plan = replace(plan, wanted=torch.randint(stop - start, (halo,)))
    began = time.perf_counter()
    plan.fetch(column)
    fetching = time.perf_counter() - began
    began = time.perf_counter()
    sum_over_shards(group, torch.zeros(classes, dtype=torch.float64))
    sum_over_shards(group, torch.zeros(2 + groups, classes, dtype=torch.float64))
    summing = time.perf_counter() - began
    one = replace(setting, iterations=1), replace(setting, iterations=0)
    expected = cost.solve(one[0]).received - cost.solve(one[1]).received
    row("iteration: bytes", expected, group.traffic.received)
    row("iteration: messages", 3 * setting.others, group.traffic.messages)
    lists = [torch.randint(spec.num_nodes, (BATCH, spec.k)) for _ in range(shards)]
    keys = [torch.rand(BATCH, spec.k, dtype=torch.float64) for _ in range(shards)]
    began = time.perf_counter()
    merge_topk(lists, keys, spec.k)
    merging = time.perf_counter() - began
    print(
        f"host: plan {planning:.2f} s, copy of a halo {fetching:.3f} s, sums {summing:.4f} s, "
        f"merge of a query's {shards} answers {1e3 * merging:.1f} ms"
    )


# Planned


def planned(setting: Setting) -> None:
    """The model's own answer, for an assumed machine."""
    spec, share = setting.spec, replace(setting, searched=0.05, touched=0.5, reference_bytes=2)
    setting = replace(setting, reference_bytes=2)
    phases = {
        "build": cost.build(setting),
        "update, 5 % searched": cost.follow(share),
        **{n: c for n, c in cost.round_phases(setting).items() if n != "update"},
        "step": cost.read_step(setting, BATCH, setting.num_shards),
    }
    print(f"\nN = {spec.num_nodes:,}, D = {spec.dim}, k = {spec.k}, {setting.num_shards} shards")
    print("| phase | FLOP | received | messages | written | s, NCCL | s, gloo | most |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, each in phases.items():
        print(_line(name, each))
    sizes = cost.resident_bytes(setting)
    print("; ".join(f"{name} {size / 2**30:.3g} GiB" for name, size in sizes.items()))


def overview(setting: Setting) -> None:
    """One line: seconds (NCCL; gloo in brackets) of the phases, and the largest memory."""
    setting = replace(setting, reference_bytes=2)
    moved = replace(setting, searched=0.05, touched=0.5)
    solving = cost.weights(setting) + cost.solve(setting)
    cells = []
    for each, is_sparse in (
        (cost.build(setting), False),
        (cost.follow(moved), False),
        (solving, True),
    ):
        times = [cost.seconds(each, machine, is_sparse=is_sparse) for machine in (H100, GLOO)]
        most = max(times[0], key=lambda part: times[0][part])
        cells.append(f"{sum(times[0].values()):.2g} ({sum(times[1].values()):.2g}), {most}")
    cells.append(f"{max(cost.resident_bytes(setting).values()) / 2**30:.2g}")
    cells.append(f"{cost.log(setting).written / 1e9:.2g}")
    cells.append(f"{cost.read_step(setting, BATCH, setting.num_shards).messages:.0f}")
    print(f"| {setting.spec.num_nodes:.0e} | {setting.num_shards} | {' | '.join(cells)} |")


def _line(name: str, each: Cost) -> str:
    is_sparse = name in ("weights", "solve")
    times = [cost.seconds(each, machine, is_sparse=is_sparse) for machine in (H100, GLOO)]
    most = max(times[0], key=lambda part: times[0][part])
    numbers = (
        each.flops,
        each.received,
        each.messages,
        each.written,
        *(sum(t.values()) for t in times),
    )
    cells = " | ".join(f"{number:.2g}" for number in numbers)
    return f"| {name} | {cells} | {most} |"


if __name__ == "__main__":
    main()
