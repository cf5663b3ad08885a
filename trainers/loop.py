"""Training: rounds, phases, steps, evaluation, checkpoints. Knows neither Ray nor DeepSpeed.

One epoch: a refresh round where one is due, then the method's phases, then a look at the
validation split and a checkpoint. The averaged (EMA) network after the last epoch is the headline
model; the test split is read by `finish.py` alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from ..datasets.base_set import BaseSet
from ..datasets.sampler import Plan, make_plan
from ..datasets.sharding import micro_batches_of
from ..graph_store.view import Neighborhood
from . import checkpoint
from .base import read_base
from .batches import BatchSource
from .config import RunSpec
from .ema import Ema
from .engine import Engine, uses_bf16, widened
from .evaluate import Evaluator
from .meter import Meter
from .method import BASE_SCORE, Method, ModelOutput, Network, Phase
from .outcome import Paused
from .refresh import run_round
from .rounds import RoundSchedule
from .run_dir import RunDir
from .running import RunningStatistics
from .schedule import learning_rate
from .statistics import StepStatistics, average_over_ranks

Emit = Callable[[dict[str, Any]], None]
LOG_EVERY_STEPS = 20
# Steps between two looks at whether the run should pause; the ranks agree on it.
PAUSE_EVERY_STEPS = 10


def _never() -> bool:
    return False


@dataclass
class Training:
    """Everything one rank trains with.

    `epoch` and `step` count what is done, `phase` and `phase_step` what is done of the epoch that
    is going on, `seconds_train` the time in phases since the last round; `file_prefix` keeps the
    baseline's records apart. `should_pause` is asked on rank 0.
    """

    spec: RunSpec
    method: Method
    labels: Int64[Tensor, " N"]
    groups: Int64[Tensor, " N"] | None
    engine: Engine
    ema: Ema[Network]
    statistics: RunningStatistics
    source: BatchSource
    evaluator: Evaluator
    run: RunDir
    emit: Emit
    epoch: int = 0
    step: int = 0
    phase: int = 0
    phase_step: int = 0
    seconds_train: float = 0.0
    file_prefix: str = ""
    should_pause: Callable[[], bool] = _never

    @property
    def rounds(self) -> RoundSchedule:
        return RoundSchedule(self.spec.refresh.every_epochs, self.spec.train.epochs)

    @property
    def is_first(self) -> bool:
        return self.engine.comm.rank == 0

    @property
    def micro_batches_here(self) -> range:
        """Indices of this rank's micro-batches within every step."""
        comm = self.engine.comm
        return micro_batches_of(self.spec.train.micro_batches, comm.rank, comm.world_size)

    @property
    def position(self) -> checkpoint.Position:
        return checkpoint.Position(
            self.epoch, self.step, self.engine.comm.world_size, self.phase, self.phase_step
        )

    @torch.no_grad()
    def teacher(self, inputs: Tensor, neighborhood: Neighborhood | None = None) -> ModelOutput:
        """What the averaged network says, in the precision of training; see `Batch.teacher`."""
        device = self.engine.device
        bf16 = uses_bf16(self.spec.train, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            out: ModelOutput = self.ema.network(inputs, neighborhood)
        return widened(out.features, out.outputs, num_classes=out.logits.shape[1])

    def log(self, file: str, record: dict[str, Any]) -> None:
        """Write a line of the run's records and show it; rank 0 only."""
        if self.is_first:
            self.run.append(self.file_prefix + file, record)
            self.emit(record)

    def tell(self, record: dict[str, Any]) -> None:
        """Show what the run does at present, which no file keeps; rank 0 only."""
        if self.is_first:
            self.emit(record)


def train(training: Training, *, resume_from: str | None = None) -> None:
    """Train from the start, or from a committed checkpoint, to the last epoch."""
    spec = training.spec
    if resume_from is not None:
        position = checkpoint.load(
            training.run,
            resume_from,
            engine=training.engine,
            averaged=training.ema.network,
            statistics=training.statistics,
        )
        training.epoch, training.step = position.epoch, position.step
        training.phase, training.phase_step = position.phase, position.phase_step
        training.ema.num_updates = position.step
    elif spec.train.warmup_steps:
        warm_up(training)
    while training.epoch < spec.train.epochs:
        train_epoch(training)


def warm_up(training: Training) -> None:
    """Steps on the labeled nodes alone, before there are features worth a graph."""
    phase = training.method.warm_up
    plan = plan_phase(training, phase, num_steps=training.spec.train.warmup_steps)
    run_phase(training, phase, plan, round=None, epochs_span=(0.0, 0.0))


def train_epoch(training: Training) -> None:
    """One epoch of all phases, with the round before it and the checkpoint after it.

    A run that goes on within an epoch goes on with the phase and the step that are next.

    Raises:
        Paused: Somebody asked for a pause; the checkpoint is there.
    """
    spec, epoch = training.spec, training.epoch
    uses_graph = training.method.uses_graph
    due = training.rounds.due(epoch) if uses_graph else None
    if due is not None and not training.position.within_epoch:
        refresh(training, due)
    readable = training.rounds.readable(epoch) if uses_graph else None
    phases = training.method.phases_at(epoch)
    for i in range(training.phase, len(phases)):
        plan = plan_phase(training, phases[i], num_steps=spec.train.steps_per_epoch)
        run_phase(
            training,
            phases[i],
            plan,
            round=readable,
            epochs_span=(epoch + i / len(phases), epoch + (i + 1) / len(phases)),
            start_step=training.phase_step,
            after_step=lambda step: checkpoint_within(training, step),
        )
        training.phase, training.phase_step = i + 1, 0
    training.epoch, training.phase = epoch + 1, 0
    last = training.epoch == spec.train.epochs
    if training.epoch % spec.train.eval_every_epochs == 0 or last:
        evaluate_validation(training)
    pausing = not last and (training.epoch == spec.train.pause_after or pause_is_asked(training))
    if training.epoch % spec.train.checkpoint_every_epochs == 0 or last or pausing:
        save_checkpoint(training)
    if pausing:
        raise Paused(training.position.name)


def checkpoint_within(training: Training, step: int) -> None:
    """A checkpoint after step `step` of the phase that is going on, where one is due.

    Raises:
        Paused: Somebody asked for a pause; the checkpoint is there.
    """
    every = training.spec.train.checkpoint_every_steps
    is_due = every is not None and training.step % every == 0
    may_pause = (step + 1) % PAUSE_EVERY_STEPS == 0
    if not (is_due or may_pause):
        return
    # Where a pause is possible the averages are taken whether or not there is one: a run that
    # pauses goes on with the bits of one that does not.
    average_statistics(training)
    pausing = may_pause and pause_is_asked(training)
    if is_due or pausing:
        training.phase_step = step + 1
        save_checkpoint(training)
    if pausing:
        raise Paused(training.position.name)


def pause_is_asked(training: Training) -> bool:
    """Whether rank 0 was asked for a pause, the same on every rank; collective."""
    asked = training.is_first and training.should_pause()
    return bool(training.engine.comm.all_sum(torch.tensor(int(asked))))


def plan_phase(training: Training, phase: Phase, *, num_steps: int | None) -> Plan:
    """Which nodes each step of the present epoch visits."""
    return plan_of(
        training.spec,
        phase,
        training.labels,
        epoch=training.epoch,
        num_steps=num_steps,
        groups=training.groups,
    )


def plan_of(
    spec: RunSpec,
    phase: Phase,
    labels: Int64[Tensor, " N"],
    *,
    epoch: int,
    num_steps: int | None,
    groups: Int64[Tensor, " N"] | None,
) -> Plan:
    """Which nodes each step visits: a function of seed, epoch and phase alone."""
    return make_plan(
        phase.nodes,
        labels,
        batch_size=spec.train.batch_size,
        labeled_per_batch=spec.train.labeled_per_batch,
        micro_batches=spec.train.micro_batches,
        seed=spec.seed,
        epoch=epoch,
        num_steps=num_steps,
        groups=groups,
    )


def run_phase(
    training: Training,
    phase: Phase,
    plan: Plan,
    *,
    round: int | None,
    epochs_span: tuple[float, float],
    start_step: int = 0,
    after_step: Callable[[int], None] | None = None,
) -> None:
    """The steps of a phase from `start_step` on.

    Args:
        epochs_span: Where the phase begins and ends on the learning-rate schedule, in epochs.
        after_step: Called with the number of each finished step.
    """
    spec, engine, ema = training.spec, training.engine, training.ema
    mine = training.micro_batches_here
    statistics = StepStatistics(engine.network, len(mine))
    meter = Meter(len(mine))
    begin, end = epochs_span

    def at(step: int) -> float:
        return begin + (end - begin) * step / plan.num_steps

    batches = training.source.micro_batches(
        plan,
        phase,
        epoch=training.epoch,
        round=round,
        mine=mine,
        base=base_set(training, phase, round=round),
        start_step=start_step,
    )
    start = time.perf_counter()
    engine.network.train()
    for step, index, batch in batches:
        position = index - mine.start
        if position == 0:
            statistics.before_step()
        batch = replace(
            batch,
            epoch=at(step),
            teacher=training.teacher,
            statistics=training.statistics.values,
        )
        loss = training.method.loss(engine, batch)
        training.statistics.add(loss.statistics)
        last = position + 1 == len(mine)
        rate = learning_rate(spec.train, epoch=at(step), step=training.step)
        engine.micro_step(loss.total, lr=rate, last=last)
        statistics.after_micro_batch(position)
        meter.add(loss.total, loss.parts)
        if not last:
            continue
        with engine.gathered():
            ema.update(engine.network)
        training.statistics.step(engine.comm)
        training.step += 1
        if step % LOG_EVERY_STEPS == LOG_EVERY_STEPS - 1 or step + 1 == plan.num_steps:
            record = meter.take(engine.comm, batch_size=spec.train.batch_size)
            training.log(
                "metrics.jsonl",
                {
                    "kind": "train",
                    "phase": phase.name,
                    "epoch": training.epoch,
                    "step": training.step,
                    "phase_step": step + 1,
                    "phase_steps": plan.num_steps,
                    "lr": rate,
                    **record,
                },
            )
        if after_step is not None:
            after_step(step)
    average_statistics(training)
    training.seconds_train += time.perf_counter() - start


def average_statistics(training: Training) -> None:
    """Batch norm's running averages become their means over the ranks; collective."""
    average_over_ranks(training.engine.network, training.engine.comm)
    average_over_ranks(training.ema.network, training.engine.comm)


def base_set(training: Training, phase: Phase, *, round: int | None) -> BaseSet | None:
    """The labeled nodes beside the micro-batches of the present epoch; None without any."""
    if phase.base is None:
        return None
    score, store = None, training.source.store
    if phase.base.by_score and store is not None and round is not None:
        labeled = torch.nonzero(training.labels >= 0).flatten()
        score = torch.zeros(len(training.labels))
        score[labeled] = store.read(BASE_SCORE, labeled, round=round).float()
    return BaseSet(
        training.labels,
        phase.base.per_class,
        seed=training.spec.seed,
        epoch=training.epoch,
        every=phase.base.every,
        score=score,
    )


def predictor(training: Training, *, of_nodes: bool = False) -> Network:
    """The averaged network as it predicts at present: with base rows where the method wants some.

    They are read and passed through the network here; the result serves until the next step.

    Args:
        of_nodes: For predictions of the run's own nodes, base rows have given labels alone: a
            node that is its own base row would agree with its pseudo-label whatever its features.
    """
    method, network = training.method, training.ema.network
    per_class = method.predict_base(training.epoch)
    if not per_class:
        return network
    base = read_base(
        network,
        training.source,
        training.labels,
        per_class,
        num_classes=training.evaluator.num_classes,
        chunk=training.spec.train.extract_batch_size,
        use_pseudo=method.predict_from_pseudo and not of_nodes,
    )
    return method.predictor(network, base)


def refresh(training: Training, round: int) -> None:
    """Compute round `round` with the averaged network."""
    record = run_round(
        round,
        method=training.method,
        network=predictor(training, of_nodes=True),
        source=training.source,
        num_nodes=len(training.labels),
        chunk=training.spec.train.extract_batch_size,
        comm=training.engine.comm,
        on_stage=lambda stage: training.tell({"kind": "stage", "round": round, "stage": stage}),
    )
    if training.is_first:
        store = training.source.store
        assert store is not None
        score = training.evaluator.pseudo_labels(store, round)
        quality = None if score.num_judged == 0 else score.accuracy
        training.log(
            "rounds.jsonl",
            {
                "kind": "round",
                "epoch": training.epoch,
                **record,
                "seconds_train": training.seconds_train,
                "pseudo_accuracy": quality,
            },
        )
    training.seconds_train = 0.0


def evaluate_validation(training: Training) -> None:
    """Accuracy of the averaged network on the validation split, where there is one."""
    if not training.evaluator.has("val"):
        return
    store = training.source.store
    usable = store is not None and len(store.published()) > 0
    score = training.evaluator.network(
        predictor(training),
        "val",
        store=store if usable else None,
        hops=training.method.predict_hops if usable else 0,
        k=training.spec.graph.k,
    )
    training.log(
        "metrics.jsonl",
        {
            "kind": "eval",
            "epoch": training.epoch,
            "split": "val",
            "network": "ema",
            "accuracy": score.accuracy,
        },
    )


def save_checkpoint(training: Training) -> None:
    start = time.perf_counter()
    name = checkpoint.save(
        training.run,
        training.position,
        engine=training.engine,
        averaged=training.ema.network,
        statistics=training.statistics,
        store=training.source.store,
        keep=training.spec.train.keep_checkpoints,
    )
    seconds = time.perf_counter() - start
    training.tell({"kind": "checkpoint", "name": name, "seconds": seconds})


def train_baseline(training: Training, num_steps: int) -> None:
    """The supervised method on the same data, engine and schedule, for `num_steps` steps."""
    phase = replace(training.method.phases[0], name="baseline")
    plan = plan_phase(training, phase, num_steps=num_steps)
    run_phase(
        training, phase, plan, round=None, epochs_span=(0.0, float(training.spec.train.epochs))
    )


def num_training_steps(training: Training) -> int:
    """Optimiser steps of the whole run, the warm-up among them."""
    train_spec, method = training.spec.train, training.spec.method
    steps = {
        phase: plan_phase(training, phase, num_steps=train_spec.steps_per_epoch).num_steps
        for phase in method.phases
    }
    visited = (phase for epoch in range(train_spec.epochs) for phase in method.phases_at(epoch))
    return train_spec.warmup_steps + sum(steps[phase] for phase in visited)
