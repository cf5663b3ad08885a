"""What a shard says of itself: to clients that look for it after a death, and to who watches it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ShardStatus:
    """One shard's process, as it is now.

    Attributes:
        rank: Number of the shard.
        pid, node_id: The process, and Ray's name of its node.
        incarnation: Changes when the process is restarted, and when its contents are replaced.
        lineage: The store that the shard belongs to.
        is_whole: Whether the shard has all that it ever acknowledged.
        recovered: Whether a log was replayed when the process started.
        problem: Why the shard is not whole; "" where it is.
        version: Records that were logged since the store was made; 0 without a log.
        num_rows: Nodes of this shard that are present.
        num_bytes: Size of the columns in memory, without what updates of the graph keep.
        num_waiting: Puts that no update has taken.
        log_bytes: Size of the log.
        rounds: Published rounds.
    """

    rank: int
    pid: int
    node_id: str
    incarnation: str
    lineage: str
    is_whole: bool
    recovered: bool
    problem: str
    version: int
    num_rows: int
    num_bytes: int
    num_waiting: int
    log_bytes: int
    rounds: tuple[int, ...]
