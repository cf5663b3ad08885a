"""A soak: one long run, and dozens of deaths by SIGKILL at named and at random moments.

    python benchmarks/chaos.py --kills 32 --seed 0 --out /tmp/chaos

Starts a Ray cluster of three nodes on this machine (a head without work, two with shards and
trainers), trains the digits once undisturbed and once under fire, always with the same command
(`labelmesh train ... --resume`), and compares weights, labels and graph bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import faults  # noqa: E402

# (moment, who dies). "random" deaths fall at any time.
PLAN = [
    ("put", "shard"),
    ("update_knn", "shard"),
    ("refresh", "shard"),
    ("publish", "shard"),
    ("snapshot", "shard"),
    ("step", "trainer"),
    ("checkpoint", "trainer"),
    ("commit", "trainer"),
    ("put", "node"),
    ("update_knn", "node"),
    ("refresh", "node"),
    ("publish", "node"),
    ("commit", "node"),
    ("put", "driver"),
    ("update_knn", "driver"),
    ("refresh", "driver"),
    ("publish", "driver"),
    ("commit", "driver"),
    ("random", "shard"),
    ("random", "trainer"),
    ("random", "node"),
    ("random", "driver"),
]
CONFIG = {
    "train.engine": "deepspeed",
    "train.threads_per_worker": 1,
    "train.num_workers": 2,
    "train.warmup_steps": 6,
    "train.steps_per_epoch": 6,
    "train.baseline_steps": 0,
    "train.batch_size": 32,
    "train.labeled_per_batch": 8,
    "train.max_failures": 10,
    "graph.num_shards": 2,
    "graph.k": 8,
    "model.feature_dim": 32,
    "data.num_nodes": 800,
}


@dataclass
class Death:
    """One kill and what it cost."""

    moment: str
    victim: str
    seconds: float = 0.0
    attempts: int = 0


class Nodes:
    """A cluster of raylets on this machine; lost nodes are replaced."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "temp_dir": str(folder),
                "object_store_memory": 128 * 2**20,
            },
        )
        self._workers: list[Any] = []
        self.refill()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def refill(self) -> None:
        """Two living worker nodes, whatever has happened."""
        for node in list(self._workers):
            raylet = node.all_processes["raylet"][0].process
            if raylet.poll() is not None:
                self._workers.remove(node)
                self.cluster.remove_node(node, allow_graceful=False)
        while len(self._workers) < 2:
            self._workers.append(self.cluster.add_node(num_cpus=2, object_store_memory=128 * 2**20))

    def worker_pids(self, title: str) -> list[int]:
        """Processes on the worker nodes whose title begins with `title`."""
        import psutil

        found = []
        for node in self._workers:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            for child in raylet.children():
                line = child.cmdline()
                if line and line[0].startswith(title):
                    found.append(child.pid)
        return sorted(found)

    def kill_node(self, draw: random.Random) -> None:
        import psutil

        node = draw.choice(self._workers)
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        processes = [raylet, *raylet.children(recursive=True)]
        for process in processes:
            process.kill()

    def close(self) -> None:
        self.cluster.shutdown()


class Driver:
    """`labelmesh train ... --resume`, started again each time that it is gone."""

    def __init__(self, name: str, args: argparse.Namespace, address: str) -> None:
        values = {**CONFIG, "train.epochs": args.epochs, "data.uri": str(args.out / "digits")}
        sets = [part for k, v in values.items() for part in ("--set", f"{k}={json.dumps(v)}")]
        self._command = [
            *(sys.executable, "-m", "labelmesh", "train", "dag-digits", "--resume", "--json"),
            *("--name", name, "--out", str(args.out / "runs"), *sets),
        ]
        self._env = {**os.environ, "RAY_ADDRESS": address}
        self._log = open(args.out / f"{name}.log", "ab")  # noqa: SIM115
        self.starts = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.starts += 1
        self.process = subprocess.Popen(
            self._command, env=self._env, stdout=self._log, stderr=self._log
        )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def keep_alive(self) -> bool:
        """Start the command again if a kill has ended it; False once it has succeeded.

        Raises:
            RuntimeError: It failed by itself.
        """
        assert self.process is not None
        code = self.process.poll()
        if code == 0:
            return False
        if code is not None and code != -signal.SIGKILL:
            raise RuntimeError(f"the command failed with {code}; see {self._log.name}")
        if code is not None:
            self.start()
        return True


def lines(run: Path, name: str) -> list[dict[str, Any]]:
    path = run / name
    if not path.exists():
        return []
    out = []
    for line in path.read_text().splitlines():
        try:
            out.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return out


def checkpoints(run: Path) -> set[str]:
    return {path.parent.name for path in run.glob("checkpoints/*/COMMIT.json")}


def until(done: Callable[[], bool], driver: Driver, nodes: Nodes, limit_s: float) -> bool:
    """Wait, replacing what died; False where the run is finished."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if not driver.keep_alive():
            return False
        nodes.refill()
        if done():
            return True
        time.sleep(0.2)
    raise TimeoutError(f"nothing happened for {limit_s:.0f} s; see the logs")


def train(name: str, args: argparse.Namespace, nodes: Nodes, kills: int) -> list[Death]:
    """One run to its end, with so many deaths on the way."""
    draw = random.Random(args.seed)
    orders, run = args.out / "orders", args.out / "runs" / name
    driver = Driver(name, args, nodes.address)
    driver.start()
    deaths: list[Death] = []
    plan = [PLAN[i % len(PLAN)] for i in range(kills)]
    draw.shuffle(plan)
    for number, (moment, victim) in enumerate(plan, 1):
        death = Death(moment, victim)
        if not _strike(death, driver, nodes, orders, draw, args.limit_s):
            print(f"the run was over before death {number}", flush=True)
            break
        began, starts = time.monotonic(), driver.starts
        deaths.append(death)
        if not _wait_for_progress(run, driver, nodes, args.limit_s):
            break
        death.seconds = time.monotonic() - began
        death.attempts = driver.starts - starts
        print(f"{number:3d} {victim:8s} {moment:12s} {death.seconds:6.1f} s", flush=True)
    while driver.keep_alive():
        nodes.refill()
        time.sleep(0.2)
    print(f"{name}: the command was started {driver.starts} times", flush=True)
    return deaths


def _wait_for_progress(run: Path, driver: Driver, nodes: Nodes, limit_s: float) -> bool:
    """Until there is a checkpoint that was not there; False where the run is finished."""
    before = checkpoints(run)
    return until(lambda: bool(checkpoints(run) - before), driver, nodes, limit_s)


def _strike(
    death: Death,
    driver: Driver,
    nodes: Nodes,
    orders: Path,
    draw: random.Random,
    limit_s: float,
) -> bool:
    """Let one death happen; False where the run ended before."""
    if death.moment != "random":
        victim = "process" if death.victim in ("shard", "trainer") else death.victim
        count = faults.taken(orders) + 1
        faults.order(orders, death.moment, victim, call=draw.randint(1, 3), driver=driver.pid)
        return until(lambda: faults.taken(orders) >= count, driver, nodes, limit_s)
    time.sleep(draw.uniform(0.0, 3.0))
    if death.victim == "driver":
        os.kill(driver.pid, signal.SIGKILL)
        return True
    if death.victim == "node":
        nodes.kill_node(draw)
        return True
    title = "ray::ShardActor" if death.victim == "shard" else "ray::RayTrainWorker"
    if not until(lambda: bool(nodes.worker_pids(title)), driver, nodes, limit_s):
        return False
    os.kill(draw.choice(nodes.worker_pids(title)), signal.SIGKILL)
    return True


def differences(whole: Path, hurt: Path) -> list[str]:
    """What of two runs is not the same, bit for bit."""
    import pyarrow.parquet as pq
    import torch
    from labelmesh.graph_store.snapshot import read_manifest, read_rows
    from safetensors.torch import load_file

    out = []
    a, b = (load_file(run / "model.safetensors") for run in (whole, hurt))
    out += [f"weight {name}" for name in a if not torch.equal(a[name], b[name])]
    if not pq.read_table(whole / "labels.parquet").equals(pq.read_table(hurt / "labels.parquet")):
        out.append("labels")
    stores = []
    for run in (whole, hurt):
        uri = str(run / "store")
        manifest = read_manifest(uri)
        stores.append(read_rows(uri, manifest, 0, manifest.spec.num_nodes))
    for part, columns in stores[0].items():
        for column, values in columns.items():
            if not torch.equal(values, stores[1][part][column]):
                out.append(f"store {part}/{column}")
    return out


def table(deaths: list[Death]) -> str:
    """Deaths by who and when, with medians of the time."""
    groups: dict[tuple[str, str], list[Death]] = defaultdict(list)
    for death in deaths:
        groups[death.victim, death.moment].append(death)
    rows = [
        "| who | when | deaths | seconds to the next checkpoint (median) | command started again |"
    ]
    rows += ["|---|---|---|---|---|"]
    for (victim, moment), found in sorted(groups.items()):
        seconds = statistics.median(d.seconds for d in found)
        again = sum(d.attempts for d in found)
        rows.append(f"| {victim} | {moment} | {len(found)} | {seconds:.1f} | {again} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=0, help="0: two per kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-s", type=float, default=600.0, help="longest wait for progress")
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    args = parser.parse_args()
    args.epochs = args.epochs or 2 * args.kills + 4
    args.out = args.out.absolute()
    args.out.mkdir(parents=True)
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", "0123456789abcdef" * 2)
    faults.prepare(args.out / "orders")
    from labelmesh.datasets.importing import import_dataset

    import_dataset("digits", None, str(args.out / "digits"))
    ray_folder = Path("/tmp", f"lmc{os.getpid()}")  # sockets need a short path
    nodes = Nodes(ray_folder)
    try:
        began = time.monotonic()
        train("whole", args, nodes, kills=0)
        quiet = time.monotonic() - began
        began = time.monotonic()
        deaths = train("hurt", args, nodes, kills=args.kills)
        loud = time.monotonic() - began
        print(table(deaths))
        found = differences(args.out / "runs/whole", args.out / "runs/hurt")
        print(f"{len(deaths)} deaths; undisturbed {quiet:.0f} s, under fire {loud:.0f} s")
        print(f"different from the undisturbed run: {', '.join(found) or 'nothing'}")
    finally:
        nodes.close()
        shutil.rmtree(ray_folder, ignore_errors=True)
    sys.exit(bool(found) or len(deaths) < args.kills)


if __name__ == "__main__":
    main()
