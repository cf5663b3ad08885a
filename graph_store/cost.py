"""What a round costs, from its sizes alone: arithmetic, bytes and messages of each phase. Pure.

All numbers are of one shard, on average over the shards, as the code is now; every formula names
the function that it counts. `benchmarks/scale.py` holds them against the real routing with stubbed
kernels and against measured rounds; docs/scale.md says what follows.

Where neighbours live: node ids say nothing about features, so a row's neighbours lie on the shards
at random (`outside` = 1 - 1 / S) unless ids were ordered by cluster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from .memory import bytes_per_node, peak_bytes_per_node, solver_bytes, weights_bytes
from .partition import Partition
from .peers import BLOCK
from .sharded_lists import LARGEST_SCAN
from .slack import default_slack
from .solvers.aggregation import num_aggregates
from .store import StoreSpec
from .tracking import RANK_ROWS

# Bytes of a put's name on the wire (a uuid in hex).
_STAMP = 32
# Gathers of one number that an update of any kind makes: totals, largest entries, flags.
_SMALL_CALLS = 20
# Operations of a float64 distance per dimension: subtract, multiply, add.
_DISTANCE = 3
# A log is written anew when it has grown by twice the state that it begins with (journal.GROWTH).
_COMPACTION = 1.5


@dataclass(frozen=True)
class Cost:
    """Of one shard in one phase.

    Attributes:
        flops: Floating-point operations of products, distances and sums.
        received: Bytes from other shards or from clients.
        messages: Messages that come in, the empty ones of an exchange among them.
        written: Bytes to disk.
    """

    flops: float | int = 0.0
    received: float | int = 0.0
    messages: float | int = 0.0
    written: float | int = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.received + other.received,
            self.messages + other.messages,
            self.written + other.written,
        )

    def __mul__(self, times: float | int) -> Cost:
        return Cost(
            times * self.flops,
            times * self.received,
            times * self.messages,
            times * self.written,
        )


@dataclass(frozen=True)
class Setting:
    """A store, and what is done with it in a round.

    Attributes:
        num_shards: S; usually one for each GPU.
        chunk: Nodes that a trainer puts at once.
        outside: Share of a row's neighbours on other shards; None: 1 - 1 / S.
        mutual: Share of the edges that run both ways; a clustered graph has many.
        searched: Share of the rows that an update compares with all others; 1: a build.
        touched: Share of the rows whose lists an update ranks again.
        iterations: Of conjugate gradients.
        halo_rounds: Exchanges of one number per halo row before them: groups and components.
        reference_bytes: Of a number of the rows that are searched: 4, or 2 in float16.
    """

    spec: StoreSpec
    num_shards: int
    chunk: int = 512
    outside: float | None = None
    mutual: float = 0.0
    searched: float = 1.0
    touched: float = 1.0
    iterations: int = 30
    halo_rounds: int = 12
    reference_bytes: int = 4

    @property
    def rows(self) -> float:
        """Rows of a shard."""
        return self.spec.num_nodes / self.num_shards

    @property
    def others(self) -> int:
        return self.num_shards - 1

    @property
    def list_size(self) -> int:
        return self.spec.slack or default_slack(self.spec.k)

    @property
    def stored_bytes(self) -> int:
        return self.spec.dim * (2 if self.spec.dtype == "float16" else 4)

    def distinct_outside(self, draws: float | int) -> float:
        """Distinct rows of other shards among so many draws of neighbours, on average.

        What `plan_fetch` asks the others for: a row crosses once however often it is drawn.
        """
        share = 1 - 1 / self.num_shards if self.outside is None else self.outside
        pool = self.spec.num_nodes - self.rows
        return -pool * math.expm1(-draws * share / pool) if pool else 0.0

    @property
    def edges(self) -> float:
        """Entries of the own rows of the symmetric weights (`sharded_affinity._symmetrize`)."""
        return self.rows * self.spec.k * (2 - self.mutual)

    @property
    def halo(self) -> float:
        """Rows that a product of the weights fetches (`ShardedAffinity.extend`)."""
        return self.distinct_outside(self.edges)


def puts_per_shard(setting: Setting) -> float:
    """Requests of `RayStore._write` that reach a shard: chunks are cut without regard to shards."""
    bounds = Partition.even(setting.spec.num_nodes, setting.num_shards).bounds
    parts = (
        (stop - 1) // setting.chunk - start // setting.chunk + 1 for start, stop in pairwise(bounds)
    )
    return sum(parts) / setting.num_shards


def put(setting: Setting) -> Cost:
    """Rows of a whole round: `trainers.refresh.extract`, `RayStore._write`, `Shard.put`.

    Then the names of all puts (`complete_puts`), which every shard is told: N / chunk of them.
    """
    row = setting.stored_bytes + 4 * setting.spec.num_classes + 8
    names = -(-setting.spec.num_nodes // setting.chunk) * _STAMP
    return Cost(received=setting.rows * row + names, messages=puts_per_shard(setting) + 1)


def build(setting: Setting) -> Cost:
    """A graph from nothing: `LiveGraph._rebuild`."""
    spec, size, n = setting.spec, setting.list_size, setting.rows
    pairs = spec.num_nodes * (spec.num_nodes - 1) / 2 / setting.num_shards
    # `search_over_shards`: a shard gets all rows of one half of the others, half of the other's.
    foreign = 0.75 * n * setting.others
    row = setting.reference_bytes * spec.dim + 12 + 8 * (size + 1)
    # Four columns of every block come, and two of the lists that went out for it come back.
    blocks = math.ceil(n / BLOCK) + math.ceil(n / 2 / BLOCK)
    search = Cost(2 * spec.dim * pairs, foreign * row, (3 * blocks + _SMALL_CALLS) * setting.others)
    return search + rank(setting, n)


def rank(setting: Setting, num_rows: float | int) -> Cost:
    """Canonical distances of the lists of some own rows: `Tracked.rank`, `Peers.members`.

    Four exchanges per part: how many, which, the rows, their drifts.
    """
    dim, size = setting.spec.dim, setting.list_size
    parts = math.ceil(num_rows / RANK_ROWS)
    fetched = parts * setting.distinct_outside(num_rows / max(1, parts) * size)
    received = fetched * (8 + 4 * dim + 8) + 8 * parts * setting.others
    return Cost(_DISTANCE * dim * num_rows * size, received, 4 * parts * setting.others)


def follow(setting: Setting) -> Cost:
    """An update of the graph that searches some of the rows: `following.follow`, `Tracked.scan`.

    Three flags per node go to every shard; each searched row goes to all, and its list comes back.
    """
    spec, n, size = setting.spec, setting.rows, setting.list_size
    queries = setting.searched * n
    flags = Cost(0.0, 3 * (spec.num_nodes - n), (6 + _SMALL_CALLS) * setting.others)
    row = setting.reference_bytes * spec.dim + 8 + 8 * (size + 1)
    blocks = setting.num_shards * math.ceil(queries / LARGEST_SCAN)
    # Queries enter about as many lists as theirs have members; those rows are fetched.
    hits = setting.distinct_outside(queries * size)
    received = queries * setting.others * row + hits * (8 + 4 * spec.dim)
    # Queries are broadcast; lists, hits and what is asked of them go to and from their shard alone.
    messages = blocks * (3 + 5 * setting.others / setting.num_shards)
    products = 2 * spec.dim * setting.searched * spec.num_nodes * n
    scan = Cost(products, received, messages) if queries else Cost()
    return flags + rank(setting, setting.touched * n) + scan + rank(setting, queries)


def weights(setting: Setting) -> Cost:
    """Self-tuning weights and their halo plan: `sharded_affinity`, `ShardedAffinity`.

    Bandwidths of the neighbours are fetched; every edge to another shard goes there with two ids
    and a float64.
    """
    share = 1 - 1 / setting.num_shards if setting.outside is None else setting.outside
    drawn = setting.rows * setting.spec.k
    bandwidths = (8 + 4) * setting.distinct_outside(drawn)
    received = bandwidths + 24 * drawn * share + 8 * setting.halo + 24 * setting.others
    return Cost(2 * setting.edges, received, 8 * setting.others)


def solve(setting: Setting) -> Cost:
    """A linear solve in float64, all classes to the end: `graph_system`, `conjugate_gradient`.

    `all_sum` gathers the parts of all shards, g being the groups of the coarse level: g^2 numbers
    once, (3 + g) C per iteration.
    """
    spec, others = setting.spec, setting.others
    groups = num_aggregates(spec.num_nodes)
    classes = spec.num_classes
    before = Cost(
        10.0 * groups**3,
        8 * setting.halo * setting.halo_rounds + 8 * others * (groups**2 + groups),
        (setting.halo_rounds + 7) * others,
    )
    flops = 2 * setting.edges * classes + 12 * setting.rows * classes + 2 * groups**2 * classes
    received = 8 * classes * (setting.halo + (3 + groups) * others)
    return before + Cost(flops, received, 3 * others) * setting.iterations


def publish(setting: Setting) -> Cost:
    """Two phases: solved on all, then `RayStore._publish`. No column is copied."""
    return Cost(messages=2.0 if setting.num_shards > 1 else 1.0)


def log(setting: Setting) -> Cost:
    """Records of a round (`ShardState`): puts, the staged graph, the solved columns."""
    spec = setting.spec
    puts = setting.stored_bytes + 4 * spec.num_classes + 8 + 1
    records = puts + 16 * spec.k + 4 + 4 * spec.num_classes + 4
    return Cost(written=_COMPACTION * setting.rows * records)


def snapshot(setting: Setting) -> Cost:
    """Two rounds and the labels (`ShardState.contents`); what rounds share is written once."""
    spec = setting.spec
    each = setting.stored_bytes + 4 * spec.num_classes + 1  # features, probs, present
    each += 16 * spec.k + 4 + 4 * spec.num_classes + 4  # graph; pseudo-labels and weight
    return Cost(written=setting.rows * (2 * each + 8))


def read_step(setting: Setting, batch: int, num_trainers: int) -> Cost:
    """Neighbourhoods of one step of all trainers: `StoreBase.neighborhood`, one hop.

    One request to each shard that owns any of a batch, then to those of their neighbours.
    """
    spec, shards = setting.spec, setting.num_shards

    def asked(ids: float | int) -> float:
        return shards * -math.expm1(ids * math.log1p(-1 / shards)) if shards > 1 else 1.0

    ids = batch * spec.k
    rows = -spec.num_nodes * math.expm1(-ids / spec.num_nodes)
    each = batch * 8 * spec.k + rows * (setting.stored_bytes + 4 + 8)
    times = num_trainers / shards
    return Cost(received=each * times, messages=(asked(batch) + asked(rows)) * times)


def round_phases(setting: Setting, *, rebuild: bool = True) -> dict[str, Cost]:
    """The phases of one round, in their order."""
    return {
        "put": put(setting),
        "update": build(setting) if rebuild else follow(setting),
        "weights": weights(setting),
        "solve": solve(setting),
        "publish": publish(setting),
        "log": log(setting),
        "snapshot": snapshot(setting),
    }


def resident_bytes(setting: Setting) -> dict[str, float]:
    """Bytes of one shard: between rounds, at the peak of an update, and in a solve.

    Some of a peak goes by all N nodes: a flag for each (`Tracked.is_changed`), and the table of
    `partition.distinct_ids` where a shard asks for at least N / 16 ids at once.
    """
    spec, n = setting.spec, setting.rows
    asked = max(min(n, RANK_ROWS) * setting.list_size, setting.edges)
    table = 10 * spec.num_nodes if 16 * asked >= spec.num_nodes else 0
    system = weights_bytes(int(n), int(setting.edges))
    system += solver_bytes(int(n), int(setting.edges), spec.num_classes)
    halo = 2 * 8 * setting.halo * spec.num_classes
    return {
        "between rounds": n * bytes_per_node(spec),
        "update": n * peak_bytes_per_node(spec) + spec.num_nodes + table,
        "solve": n * bytes_per_node(spec) + system + halo + table,
    }


@dataclass(frozen=True)
class Machine:
    """What one shard has to itself. Rates are what is reached, not what is advertised.

    Attributes:
        flops: Operations per second in the search's products, its selection included.
        sparse: Operations per second in sparse products and float64 distances: memory bound.
        network: Bytes per second that a shard can receive.
        latency: Seconds that a message takes of a shard's time.
        disk: Bytes per second that a shard can write.
    """

    flops: float
    sparse: float
    network: float
    latency: float
    disk: float


def seconds(cost: Cost, machine: Machine, *, is_sparse: bool = False) -> dict[str, float]:
    """Time by what it is spent on; collectives and arithmetic take turns, so they add up."""
    return {
        "arithmetic": cost.flops / (machine.sparse if is_sparse else machine.flops),
        "network": cost.received / machine.network,
        "messages": cost.messages * machine.latency,
        "disk": cost.written / machine.disk,
    }
