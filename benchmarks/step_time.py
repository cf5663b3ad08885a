"""Step time of DeepSpeed under Ray Train against a plain torch loop with the same network.

    python benchmarks/step_time.py --workers 1

Both loops run inside the same Ray Train workers, block by block in turn, so that a busy machine
slows both alike. With several workers the plain loop is DistributedDataParallel. Prints the median
step of each and the median of the blocks' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--backbone", default="cnn_small")
    parser.add_argument("--side", type=int, default=28, help="image height and width")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--steps", type=int, default=8, help="steps in a block")
    parser.add_argument("--out", default="runs/benchmarks/step_time.json")
    args = parser.parse_args()
    args.out = str(Path(args.out).absolute())
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when ray is imported
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    trainer = TorchTrainer(
        measure,
        train_loop_config=vars(args),
        scaling_config=ScalingConfig(
            num_workers=args.workers,
            use_gpu=torch.cuda.is_available(),
            resources_per_worker={"CPU": 0.5},
        ),
        torch_config=TorchConfig(backend="nccl" if torch.cuda.is_available() else "gloo"),
        run_config=RunConfig(storage_path=str(Path(args.out).parent), name="step_time"),
    )
    trainer.fit()
    numbers = json.loads(Path(args.out).read_text())
    print("| loop | median step, ms |\n| --- | --- |")
    print(f"| plain torch | {1e3 * numbers['plain']:.2f} |")
    print(f"| DeepSpeed under Ray Train | {1e3 * numbers['deepspeed']:.2f} |")
    print(f"ratio (median of {args.blocks} blocks in turn): {numbers['ratio']:.3f}")
    ray.shutdown()


def measure(config: dict[str, Any]) -> None:
    import ray.train
    import ray.train.torch
    from labelmesh.trainers.config import TrainSpec
    from labelmesh.trainers.deepspeed_engine import DeepSpeedEngine
    from labelmesh.trainers.engine import make_optimizer

    workers, batch = config["workers"], config["batch_size"]
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    on_gpu = torch.cuda.is_available()
    device = ray.train.torch.get_device() if on_gpu else torch.device("cpu")
    spec = TrainSpec(
        epochs=1,
        batch_size=batch,
        labeled_per_batch=workers,
        micro_batches=workers,
        num_workers=workers,
        precision="fp32",
    )
    side = config["side"]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch // workers, 3, side, side, generator=generator).to(device)
    labels = torch.randint(10, (batch // workers,), generator=generator).to(device)

    plain = network(config["backbone"], side).to(device)
    optimizer = make_optimizer(plain, spec)
    wrapped: Any = nn.parallel.DistributedDataParallel(plain) if workers > 1 else plain
    engine = DeepSpeedEngine(network(config["backbone"], side), spec, device)

    def plain_step() -> None:
        loss = nn.functional.cross_entropy(wrapped(inputs).logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def deepspeed_step() -> None:
        loss = nn.functional.cross_entropy(engine(inputs).logits, labels)
        engine.micro_step(loss, lr=spec.lr, last=True)

    times: dict[str, list[float]] = {"plain": [], "deepspeed": []}
    for block in range(config["blocks"] + 1):
        for name, step in (("plain", plain_step), ("deepspeed", deepspeed_step)):
            seconds = timed(step, config["steps"], device)
            if block:  # the first warms up
                times[name].append(seconds)
    ratios = [d / p for d, p in zip(times["deepspeed"], times["plain"])]
    medians = {name: statistics.median(t) for name, t in times.items()}
    if ray.train.get_context().get_world_rank() == 0:
        Path(config["out"]).write_text(json.dumps({**medians, "ratio": statistics.median(ratios)}))


def network(backbone: str, side: int) -> Any:
    from labelmesh.trainers.backbones.build import build_backbone
    from labelmesh.trainers.methods.supervised import Supervised

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Supervised().build(build_backbone(backbone, (3, side, side), 128), 128, 10)


def timed(step: Callable[[], None], count: int, device: torch.device) -> float:
    """Seconds per step."""
    start = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


if __name__ == "__main__":
    main()
