"""Which part of the work a rank does. Pure.

Contiguous parts: neighbouring nodes lie in the same shard, so a rank opens few of them.
"""

from __future__ import annotations


def share_of(num_items: int, rank: int, num_ranks: int) -> range:
    """The items of one rank: contiguous, disjoint over ranks, sizes differ by at most one.

    Raises:
        ValueError: rank is not in 0..num_ranks-1.

    Example:
        >>> [list(share_of(5, rank, 2)) for rank in range(2)]
        [[0, 1], [2, 3, 4]]
    """
    if not 0 <= rank < num_ranks:
        raise ValueError(f"rank = {rank}: must be in 0..{num_ranks - 1}")
    return range(rank * num_items // num_ranks, (rank + 1) * num_items // num_ranks)


def micro_batches_of(micro_batches: int, rank: int, num_ranks: int) -> range:
    """The micro-batches of every step that one rank computes.

    Raises:
        ValueError: num_ranks does not divide micro_batches, so ranks would do unequal work.
    """
    if micro_batches % num_ranks:
        raise ValueError(
            f"num_ranks = {num_ranks} does not divide micro_batches = {micro_batches}; "
            "set train.micro_batches to a multiple of train.num_workers"
        )
    return share_of(micro_batches, rank, num_ranks)
