"""The graph of which one shard sees its own rows, and the process group between the shards.

The group belongs to the store: it is made from torch.distributed's group objects directly and
leaves the process-wide default group alone, which trainers in the same process may use.

Rows are exchanged, never summed on the way, so they do not depend on the number of shards. Sums
are taken in shard order from gathered parts: every shard has the same bits, but the last bits of
float sums depend on how many shards there are.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from .affinity import scatter_rows
from .partition import Partition, Route, route
from .store import Metric
from .view import AffinityKind, Reduce

if TYPE_CHECKING:
    from .sharded_affinity import ShardedAffinity


# The type stubs of torch.distributed lack the group classes.
_c10d: Any = torch.distributed
_CPU = torch.device("cpu")


class PeerLostError(RuntimeError):
    """Another shard left the group during a collective; what went wrong is known there."""


class GroupChangedError(PeerLostError):
    """The shards have left the group that a collective was meant for, or formed another one."""


def open_rendezvous(host: str) -> Any:
    """A key-value store in this process where shards can meet; its `port` is free and chosen.

    It listens at `host` alone: left to itself it would listen at every address of the machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family)
    port = listener.getsockname()[1]
    return _c10d.TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def reach_rendezvous(host: str, port: int) -> Any:
    """The key-value store that another process opened.

    Raises:
        GroupChangedError: Nobody listens there: the process has died since, or has closed it.
    """
    soon = timedelta(seconds=30)
    try:
        # It was there before anyone was told of it; TCPStore would go on knocking.
        socket.create_connection((host, port), soon.total_seconds()).close()
        keys = _c10d.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=soon)
    except (OSError, RuntimeError) as error:
        raise GroupChangedError(f"the shards cannot meet at {host}:{port}: {error}") from error
    keys.set_timeout(timedelta(seconds=300))  # others may come late: they may be at work
    return keys


class ShardGroup:
    """Collectives among the shards, over gloo (through the CPU) or NCCL (one GPU per shard).

    NCCL must be asked for: it needs a GPU for every shard, and its waits do not end on the host,
    so a lost shard is noticed late.

    Args:
        rendezvous: A key-value store that all shards reach.
        name: Distinct for every group that is made over the same `rendezvous`.
        host: Address of this machine that the other shards reach; gloo listens there.

    Raises:
        GroupChangedError: Not all came.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        rendezvous: Any,
        *,
        name: str = "shards",
        host: str = "127.0.0.1",
        backend: str = "gloo",
        timeout_s: float = 1800.0,
    ) -> None:
        self.rank = rank
        self.size = size
        keys = _c10d.PrefixStore(name, rendezvous)
        limit = timedelta(seconds=timeout_s)
        is_nccl = backend == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if is_nccl else _CPU
        try:
            self._group: Any = (_nccl if is_nccl else _gloo)(keys, rank, size, limit, host)
        except RuntimeError as error:
            raise GroupChangedError(f"shard {rank} of {size} met no group: {error}") from error

    def all_gather(self, x: Tensor) -> list[Tensor]:
        """`x` of every shard, in shard order; all must have the same shape and dtype."""
        own = self._out(x)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        self._wait(lambda group: group.allgather([parts], [own]))
        return [part.to(x.device) for part in parts]

    def broadcast(self, x: Tensor, root: int) -> Tensor:
        """`x` of shard `root`; elsewhere `x` gives shape and dtype."""
        sent = self._out(x) if self.rank == root else torch.empty_like(x, device=self._device)
        options = _c10d.BroadcastOptions()
        options.rootRank = root
        self._wait(lambda group: group.broadcast([sent], options))
        return sent.to(x.device)

    def exchange_counts(self, counts: Sequence[int]) -> list[int]:
        """How many rows each shard sends here, from how many are sent to each."""
        sent = torch.tensor(counts, dtype=torch.int64, device=self._device)
        received = torch.empty_like(sent)
        self._all_to_all(received, sent, [1] * self.size, [1] * self.size)
        return [int(count) for count in received]

    def exchange(
        self,
        rows: Shaped[Tensor, "m ..."],
        send: Sequence[int],
        receive: Sequence[int],
        *,
        few: bool = False,
    ) -> Tensor:
        """Send the first `send[0]` rows to shard 0, and so on; rows received, in shard order.

        Args:
            few: Most parts are empty: only the others travel then. Of many parts that are not, it
                is the slower way. The same on every shard, and not a group's first call.
        """
        sent = self._out(rows)
        out = sent.new_empty((sum(receive), *rows.shape[1:]))
        if few:
            self._send_parts(torch.split(sent, list(send)), torch.split(out, list(receive)))
        else:
            self._all_to_all(out, sent, list(receive), list(send))
        return out.to(rows.device)

    def abort(self) -> None:
        """Leave for good; shards that wait for this one get an error instead of waiting on.

        Another thread that is in a collective gets one from its next, or when the others leave.
        """
        group, self._group = self._group, None  # gloo closes its sockets when the object goes
        if group is not None:
            group.abort()

    def _all_to_all(self, out: Tensor, sent: Tensor, receive: list[int], send: list[int]) -> None:
        options = _c10d.AllToAllOptions()
        self._wait(lambda group: group.alltoall_base(out, sent, receive, send, options))

    def _send_parts(self, sent: Sequence[Tensor], out: Sequence[Tensor]) -> None:
        """One part to and from each shard; both ends know which are empty."""
        out[self.rank].copy_(sent[self.rank])
        others = [r for r in range(self.size) if r != self.rank]

        def start(group: Any) -> _Several:
            # NCCL would wait for each message by itself, gloo knows no other way.
            at_once = self._device.type == "cuda"
            if at_once:
                group._start_coalescing()
            works = [group.recv([out[r]], r, 0) for r in others if out[r].numel()]
            works += [group.send([sent[r]], r, 0) for r in others if sent[r].numel()]
            return _Several([group._end_coalescing()] if at_once else works)

        self._wait(start)

    def _wait(self, start: Callable[[Any], Any]) -> None:
        group = self._group
        if group is None:
            raise PeerLostError(f"shard {self.rank} of {self.size} has left the group")
        try:
            start(group).wait()
        except RuntimeError as error:
            raise PeerLostError(f"shard {self.rank} of {self.size}: {error}") from error

    def _out(self, x: Tensor) -> Tensor:
        return x.detach().to(self._device).contiguous()


def _nccl(keys: Any, rank: int, size: int, limit: timedelta, host: str) -> Any:
    options = _c10d.ProcessGroupNCCL.Options()
    options._timeout = limit
    return _c10d.ProcessGroupNCCL(keys, rank, size, options)


def _gloo(keys: Any, rank: int, size: int, limit: timedelta, host: str) -> Any:
    options = _c10d.ProcessGroupGloo._Options()
    options._devices = [_c10d.ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = limit
    return _c10d.ProcessGroupGloo(keys, rank, size, options)


@dataclass(frozen=True)
class _Several:
    """Messages on their way."""

    works: Sequence[Any]

    def wait(self) -> None:
        for work in self.works:
            if work is not None:
                work.wait()


class ShardedGraphView:
    """`GraphView` of one shard; see the protocol for the meaning of the columns."""

    def __init__(
        self,
        group: ShardGroup,
        partition: Partition,
        neighbor_ids: Int64[Tensor, "n k"],
        similarity: Float[Tensor, "n k"],
        distances: Float[Tensor, "n k"],
        metric: Metric = "cosine",
    ) -> None:
        self.metric = metric
        self.group = group
        self.partition = partition
        self.num_nodes = partition.num_nodes
        self.start, stop = partition.span(group.rank)
        self.node_ids = torch.arange(self.start, stop, device=neighbor_ids.device)
        self.neighbor_ids = neighbor_ids
        self.similarity = similarity
        self.distances = distances

    def affinity(self, kind: AffinityKind, *, gamma: float = 1.0) -> ShardedAffinity:
        """See `GraphView.affinity`; every edge is sent once to the owner of its other end."""
        from .sharded_affinity import sharded_affinity  # it builds on this module

        return sharded_affinity(self, kind, gamma=gamma)

    def gather(self, x: Shaped[Tensor, "n ..."], ids: Int64[Tensor, " m"]) -> Tensor:
        """See `GraphView.gather`. Three exchanges; a row crosses once however often it is asked."""
        plan = plan_fetch(self.group, self.partition, ids)
        return plan.route.restore(plan.fetch(x))

    def scatter(
        self, x: Shaped[Tensor, "m ..."], ids: Int64[Tensor, " m"], out: Tensor, reduce: Reduce
    ) -> Tensor:
        """See `GraphView.scatter`. Three exchanges.

        Owners reduce in the order of (shard, position in `x`): where `x` goes by own rows, that is
        the order of one process, and sums have its bits.
        """
        order = self.partition.owner(ids).argsort(stable=True)
        send = self.partition.owner(ids).bincount(minlength=self.group.size).tolist()
        receive = self.group.exchange_counts(send)
        rows = self.group.exchange(ids[order], send, receive) - self.start
        values = self.group.exchange(x[order], send, receive)
        return scatter_rows(values, rows, out, reduce)

    def all_sum(self, x: Tensor) -> Tensor:
        """See `GraphView.all_sum`."""
        return sum_over_shards(self.group, x)

    def all_max(self, x: Tensor) -> Tensor:
        """See `GraphView.all_max`."""
        return torch.stack(self.group.all_gather(x)).amax(0)


def sum_over_shards(group: ShardGroup, x: Tensor) -> Tensor:
    """Sum in shard order, in float64 for floats, so that every shard has the same bits."""
    parts = torch.stack(group.all_gather(x))
    if not x.is_floating_point():
        return parts.sum(0, dtype=None if x.dtype == torch.bool else x.dtype)
    total = torch.zeros_like(x, dtype=torch.float64)
    for part in parts:
        total = total + part
    return total.to(x.dtype)


@dataclass(frozen=True)
class FetchPlan:
    """Which rows to send where and to expect from whom; good for any column, any number of times.

    Attributes:
        route: The ids that are wanted here.
        wanted: Own rows that the other shards want, grouped by shard.
        send: How many of them each shard wants.
        few: Most shards want nothing of most others.
    """

    group: ShardGroup
    route: Route
    wanted: Int64[Tensor, " s"]
    send: list[int]
    few: bool = False

    def fetch(self, x: Shaped[Tensor, "n ..."]) -> Tensor:
        """Rows `route.node_ids` of the column whose own rows are `x`. One exchange."""
        return self.group.exchange(x[self.wanted], self.send, self.route.counts, few=self.few)


def plan_fetch(
    group: ShardGroup, partition: Partition, ids: Int64[Tensor, " m"], owner: int | None = None
) -> FetchPlan:
    """Tell the owners which rows are wanted here. Two exchanges.

    Args:
        owner: The shard that owns all that any shard wants now: nobody else is spoken to then.
    """
    asked = route(partition, ids)
    few = owner is not None
    if owner is None:
        send = group.exchange_counts(asked.counts)
    else:
        one = [int(r == owner) for r in range(group.size)]
        all_of_them = [int(group.rank == owner)] * group.size
        count = torch.tensor([asked.counts[owner]])
        told = group.exchange(count, one, all_of_them, few=True).tolist()
        send = told or [0] * group.size
    wanted = group.exchange(asked.node_ids, asked.counts, send, few=few)
    return FetchPlan(group, asked, wanted - partition.bounds[group.rank], send, few)
