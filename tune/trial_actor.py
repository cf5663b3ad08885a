"""The process of one trial, as Ray Tune starts and stops it.

A run on Ray holds placement groups and processes beside its own. When it is given up, `cleanup`
returns only after it has ended them: were the process killed, as Tune does with functions, Ray
would keep the groups until the whole sweep ends.
"""

from __future__ import annotations

import json
from typing import Any

import ray
from ray import tune

from ..trainers.config import RunSpec
from .paced_run import PacedRun
from .sweep_spec import SweepSpec
from .trial import Task, forget_if_stopped, point_uri, run_point


class TrialActor(tune.Trainable):  # type: ignore[misc]
    """Trains one point, and the next one afterwards if Tune wants to use the process again."""

    def setup(
        self, config: dict[str, Any], spec: SweepSpec, base: RunSpec, uri: str, until: int | None
    ) -> None:
        self._sweep = (spec, base, uri, until)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        spec, base, uri, until = self._sweep
        params = json.loads(new_config["params"])
        self._task = Task(spec, base, point_uri(uri, new_config["index"]), params, until)
        task = self._task
        self._paced = PacedRun(lambda report: run_point(task, report))
        return True

    def step(self) -> dict[str, Any]:
        seen = self._paced.next()
        return {"done": True} if seen is None else {"round": seen[0], "score": seen[1]}

    def cleanup(self) -> None:
        self._paced.give_up()
        forget_if_stopped(self._task)

    def answer(self) -> None:
        """Calls are answered one after the other: who gets this one knows what came before it."""


class Stopping:
    """Trials that were told to stop, and still give back what they hold."""

    def __init__(self) -> None:
        self._told: list[Any] = []
        self._asked: dict[Any, Any] = {}

    def add(self, actor: Any) -> None:
        """A trial's process that is about to be told."""
        self._told.append(actor)

    def all_ended(self) -> bool:
        """Whether all are done; call it again until they are."""
        for actor in self._told:
            self._asked[actor.answer.remote()] = actor
        self._told = []
        if self._asked:
            asked = list(self._asked)
            for ref in ray.wait(asked, num_returns=len(asked), timeout=0)[0]:
                del self._asked[ref]  # and the handle, which keeps the process alive
        return not self._asked
