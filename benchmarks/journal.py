"""What the log of a shard costs: put + update + refresh with it, as a ratio to the time without.

    python benchmarks/journal.py --nodes 20000 --dim 64 --rounds 7

One shard in this process, so that nothing but the log differs; rounds alternate between the two.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import torch
from labelmesh.graph_store.journal import Journal
from labelmesh.graph_store.partition import Partition
from labelmesh.graph_store.recovery import recover
from labelmesh.graph_store.shard import Shard
from labelmesh.graph_store.store import StoreSpec
from labelmesh.graph_store.view import GraphView, NodeState, PseudoLabels


def method(graph: GraphView, state: NodeState) -> PseudoLabels:
    """As cheap as a method can be, so the log weighs as much as it can."""
    weight = graph.similarity.mean(1).clamp(0, 1)
    return PseudoLabels(torch.full_like(state.probs, 1 / state.probs.shape[1]), weight)


def play(shard: Shard, x: torch.Tensor, round: int, batch: int) -> dict[str, float]:
    """Seconds of the parts of a round."""
    seconds = {}
    began = time.perf_counter()
    for number, ids in enumerate(torch.arange(len(x)).split(batch)):
        shard.put(ids, x[ids], None, (f"{round}-{number}", 1))
    names = [name for name, _ in shard.seal()]
    seconds["put"] = time.perf_counter() - began
    shard.update_knn(names)
    seconds["update"] = time.perf_counter() - began - seconds["put"]
    shard.solve(method, round, str(round))
    shard.publish(round, str(round))
    seconds["total"] = time.perf_counter() - began
    seconds["refresh"] = seconds["total"] - seconds["put"] - seconds["update"]
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--drift", type=float, default=0.01)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    spec = StoreSpec(num_nodes=args.nodes, dim=args.dim, num_classes=10, k=15)
    partition = Partition.even(args.nodes, 1)
    plain, logged = Shard(spec, partition), Shard(spec, partition)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(folder, "benchmark")
        recover(logged, journal)
        x = torch.randn(args.nodes, args.dim, generator=generator)
        ratios: dict[str, list[float]] = {}
        for round in range(args.rounds):
            x = x + args.drift * torch.randn(x.shape, generator=generator)
            without, with_log = (play(each, x, round, args.batch) for each in (plain, logged))
            for part in without if round else ():  # the first one builds the graph
                ratios.setdefault(part, []).append(with_log[part] / without[part])
        for part, values in ratios.items():
            print(f"{part}: {statistics.median(values):.2f} times as long with a log")
        print(f"log: {journal.num_bytes / 2**20:.1f} MiB")
        began = time.perf_counter()
        recover(Shard(spec, partition), Journal(folder, "benchmark"))
        print(f"replay: {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
