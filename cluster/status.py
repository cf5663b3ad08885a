"""What runs are doing, from the files that their drivers keep up to date; no cluster is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..trainers.heartbeat import FILE, read_status
from ..trainers.run_dir import RunDir
from ..trainers.run_status import RunStatus
from .output import duration


def find_runs(place: str) -> list[RunDir]:
    """The run at `place`, or the runs in that folder (a path or URI), by name."""
    here = RunDir(place)
    if _is_run(here):
        return [here]
    found = [RunDir(here.child(name)) for name in here.names("")]
    return [run for run in found if _is_run(run)]


def _is_run(run: RunDir) -> bool:
    return run.exists("config.toml") or run.exists(FILE)


def examine(run: RunDir, now: float) -> dict[str, Any]:
    """One run as a JSON object.

    `state` is that of the run's driver (see `trainers.run_status`), "gone" where it should be at
    work and has not been heard of, and for runs that keep no status "finished" or "unfinished".
    """
    status = read_status(run)
    name = run.uri.rsplit("/", 1)[-1]
    is_finished = run.exists("result.json")
    if status is None:
        state = "finished" if is_finished else "unfinished"
        return {"name": name, "run": run.uri, "state": state, "doing": state}
    silent_s = None if is_finished else status.silent_s(now)
    state = "finished" if is_finished else "gone" if silent_s is not None else status.state
    since = status.checkpoint_at
    return {
        **status.as_json(),
        "name": name,
        "run": run.uri,
        "state": state,
        "last_state": status.state,
        "doing": doing(status) if state == status.state else state,
        "silent_s": silent_s,
        "progress": 1.0 if is_finished else status.progress,
        "seconds_left": None if is_finished or silent_s else status.seconds_left(now),
        "checkpoint_age_s": None if since is None else max(0.0, now - since),
        "advice": advice(status, silent_s),
    }


def doing(status: RunStatus) -> str:
    """Where the run is, in a few words: `epoch 4/40, mixed, step 260/3,200`."""
    if status.state == "round":
        return f"round {status.round}, {status.stage}"
    if status.state not in {"training", "warm-up"} or status.step is None:
        return status.state
    last = f"/{status.num_steps:,}" if status.num_steps else ""
    step = f"step {status.step:,}{last}"
    if status.state == "warm-up":
        return f"warm-up, {step}"
    of = f"/{status.epochs}" if status.epochs else ""
    return f"epoch {(status.epoch or 0) + 1}{of}, {status.phase}, {step}"


def advice(status: RunStatus, silent_s: float | None) -> str | None:
    """What the user may want to do; None where there is nothing."""
    command = status.resume or "cluster.train(..., resume=True)"
    if silent_s is not None:
        return (
            f"no sign of life for {duration(silent_s)}: has the driver (process {status.pid} on "
            f"{status.host}) gone? Go on with: {command}"
        )
    if status.state == "failed":
        return f"once its cause is gone, go on with: {command}"
    if status.state in {"paused", "stopped"}:
        return f"go on with: {command}"
    return None


def facts(entry: Mapping[str, Any]) -> dict[str, str]:
    """A run for people: name and text of what is known of it."""
    shown = {
        "state": _state(entry),
        "progress": _joined(_percent(entry, "progress"), _after(entry, "seconds_left", "left")),
        "restarts": _restarts(entry),
        "loss": _number(entry, "loss", ".4f"),
        "speed": _number(entry, "samples_per_s", ",.0f", " samples/s"),
        "graph": _joined(
            _percent(entry, "searched_share", "searched"),
            _percent(entry, "recall", "recall"),
            _percent(entry, "coverage", "coverage"),
        ),
        "pseudo-labels right": _percent(entry, "pseudo_accuracy"),
        "validation": _percent(entry, "val_accuracy"),
        "test": _percent(entry, "test_accuracy"),
        "workers": _places(entry, "num_workers", "trainers"),
        "shards": _places(entry, "num_shards", "shards"),
        "waiting writes": _listed(entry.get("waiting_puts")),
        "checkpoint": _joined(entry.get("checkpoint"), _after(entry, "checkpoint_age_s", "ago")),
        "": entry.get("advice"),
        "run": entry["run"],
    }
    return {name: text for name, text in shown.items() if text}


def _state(entry: Mapping[str, Any]) -> str:
    reason = entry.get("reason")
    return f"{entry['doing']}: {reason}" if reason else str(entry["doing"])


def _restarts(entry: Mapping[str, Any]) -> str | None:
    if not entry.get("restarts"):
        return None
    lost = f" ({entry['losses']} after losses)" if entry.get("losses") else ""
    return f"{entry['restarts']}{lost}"


def _percent(entry: Mapping[str, Any], key: str, what: str = "") -> str | None:
    value = entry.get(key)
    return None if value is None else f"{100 * value:.1f} % {what}".strip()


def _number(entry: Mapping[str, Any], key: str, form: str, unit: str = "") -> str | None:
    value = entry.get(key)
    return None if value is None else f"{value:{form}}{unit}"


def _after(entry: Mapping[str, Any], key: str, what: str) -> str | None:
    value = entry.get(key)
    return None if value is None else f"{duration(value)} {what}"


def _places(entry: Mapping[str, Any], count: str, places: str) -> str | None:
    number = entry.get(count)
    if number is None:
        return None
    where = sorted(set((entry.get(places) or {}).values()))
    return f"{number} on {', '.join(where)}" if where else str(number)


def _listed(values: Mapping[str, int] | None) -> str | None:
    return ", ".join(f"shard {key}: {count}" for key, count in (values or {}).items()) or None


def _joined(*parts: str | None) -> str | None:
    return ", ".join(part for part in parts if part) or None
