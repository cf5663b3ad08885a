"""Everything that looks at a run while it goes on: progress, status, tracking, metrics.

`watched` puts them round the events of one run; none of them can break it.
"""

from __future__ import annotations

import logging
import shlex
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import tomli_w

from ..datasets.masking import masked_text, masked_uri
from ..trainers.config import RunSpec, method_name
from ..trainers.heartbeat import Heartbeat
from ..trainers.outcome import RunPaused
from ..trainers.run_dir import RunDir
from ..trainers.run_status import RunStatus
from ..trainers.tracking import Tracker

LOG = logging.getLogger("labelmesh.watch")

OnEvent = Callable[[dict[str, Any]], None]


@contextmanager
def watched(
    spec: RunSpec,
    run: RunDir,
    tracker: Tracker,
    *,
    resume: str | None,
    on_event: OnEvent | None,
) -> Iterator[OnEvent]:
    """Within it the run's status is kept up to date; yields what the run calls with its events.

    Args:
        tracker: See `tracking.open_tracker`; started here, and closed at the end.
        resume: The command that goes on with the run.
        on_event: Told first, and may raise.
    """
    method = method_name(spec.method)
    on_ray = spec.train.engine == "deepspeed"
    begun = RunStatus(
        name=spec.name,
        method=method,
        started_at=time.time(),
        num_workers=spec.train.world_sizes[0],
        num_shards=spec.graph.num_shards if on_ray and spec.method.uses_graph else None,
        resume=resume,
    )
    heartbeat = Heartbeat(run, begun)
    listeners: list[OnEvent] = [heartbeat.record, tracker.record]
    kept: AbstractContextManager[None] = nullcontext()
    if on_ray:
        from ..trainers.gauges import Gauges, node_addresses

        gauges = Gauges(spec.name, method, num_nodes=tracker.num_nodes)
        listeners = [
            lambda event: heartbeat.record(with_addresses(event, node_addresses)),
            tracker.record,
            gauges.record,
        ]
        kept = gauges.kept()

    # Events come from several threads: of the worker group, the supervisor and the shards' queues.
    one_at_a_time = threading.RLock()

    def tell(event: dict[str, Any]) -> None:
        with one_at_a_time:
            if on_event is not None:
                on_event(event)
            for listener in listeners:
                _safely(listener, event)

    heartbeat.start()
    tracker.start()
    state, reason = "stopped", None
    try:
        with kept:
            yield tell
        state = "finished"
    except RunPaused as error:
        state, reason = "paused", str(error)
        raise
    except Exception as error:
        state, reason = "failed", str(error) or type(error).__name__
        raise
    except BaseException as error:
        reason = type(error).__name__
        raise
    finally:
        tracker.close(state)
        heartbeat.close(state, reason)


def _safely(listener: OnEvent, event: dict[str, Any]) -> None:
    try:
        listener(event)
    except Exception as error:
        LOG.warning(
            "an event of kind %r is not shown: %s", event.get("kind"), masked_text(str(error))
        )


def with_addresses(
    event: dict[str, Any], addresses: Callable[[], Mapping[str, str]]
) -> dict[str, Any]:
    """An event that says where processes run, with addresses instead of Ray's names of nodes."""
    if event.get("kind") == "workers":
        known = addresses()
        return {**event, "nodes": {r: known.get(n, n) for r, n in event["nodes"].items()}}
    if event.get("kind") == "shards":
        known = addresses()
        shards = {
            r: {**s, "node": known.get(s["node"], s["node"])} for r, s in event["shards"].items()
        }
        return {**event, "shards": shards}
    return event


def resume_command(
    config: str | Path | RunSpec,
    overrides: Mapping[str, Any],
    *,
    name: str | None,
    out: str | None,
) -> str | None:
    """The command that goes on with a run, without secrets; None for a spec that a program made.

    >>> resume_command("dag-digits", {"graph.k": 32, "data.weak": "crop"}, name="a b", out=None)
    "labelmesh train dag-digits --set graph.k=32 --set data.weak=crop --name 'a b' --resume"
    """
    if isinstance(config, RunSpec):
        return None
    words = ["labelmesh", "train", str(config)]
    for key, value in overrides.items():
        words += ["--set", f"{key}={_toml(value)}"]
    words += ["--name", name] if name is not None else []
    words += ["--out", out] if out is not None else []
    return shlex.join([*(masked_uri(word) for word in words), "--resume"])


def _toml(value: Any) -> str:
    text = tomli_w.dumps({"v": value})[4:].strip()
    if not isinstance(value, str):
        return text
    try:
        tomllib.loads(f"v = {value}")
    except tomllib.TOMLDecodeError:
        return value  # what is no TOML is a string anyway
    return text
