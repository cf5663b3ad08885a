"""What a driver checks and writes before anything is started."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..datasets import splits
from ..datasets.importing import import_dataset
from ..datasets.manifest import check as check_dataset
from ..datasets.manifest import load_info, load_labels, splits_of
from ..datasets.schema import DatasetInfo
from ..datasets.splits import Split
from . import checkpoint
from .checkpoint import Skipped
from .config import ConfigError, RunSpec, parse_spec
from .frozen import cache_folder
from .loop import plan_of
from .networks import build_parts, make_views
from .run_dir import RunDir


@dataclass(frozen=True)
class Prepared:
    """What a run starts from: its split, and the checkpoint to go on from (None: the start).

    Attributes:
        skipped: Newer checkpoints, which are damaged.
    """

    split: Split
    checkpoint: str | None
    skipped: tuple[Skipped, ...] = ()


def prepare(spec: RunSpec, run: RunDir, *, resume: bool) -> Prepared:
    """Check everything that can be checked before anything is started or written.

    Raises:
        ConfigError, ValueError, FileNotFoundError: One sentence for the user.
    """
    if run.exists("config.toml"):
        if not resume:
            raise ConfigError(
                f"{run.uri} already holds a run; add --resume to go on, or choose another --name"
            )
        _check_same_config(spec, run)
    elif run.names("") and not resume:
        raise ConfigError(f"{run.uri} exists and is not empty; choose another --name or --out")
    import_builtin(spec)
    check_dataset(spec.data.uri, deep=False)
    info = load_info(spec.data.uri)
    split = make_run_split(spec)
    num_nodes = len(split.rows)
    _try_parts(spec, info, split)
    if spec.model.caches:
        cache_folder(spec.model.cache_dir, run)
    if spec.method.uses_graph and spec.graph.k >= num_nodes:
        raise ConfigError(
            f"graph.k = {spec.graph.k} is not below the number of nodes, {num_nodes}; lower graph.k"
        )
    missing = sorted(set(range(len(info.classes))) - set(split.labels[split.labels >= 0].tolist()))
    if missing:
        names = ", ".join(repr(info.classes[c]) for c in missing[:5])
        raise ConfigError(
            f"no labeled sample of class {names} in {spec.data.uri}; every class needs at least one"
        )
    return Prepared(split, *_newest_checkpoint(run))


def _newest_checkpoint(run: RunDir) -> tuple[str | None, tuple[Skipped, ...]]:
    """To go on from, and those that were passed over."""
    if run.exists("result.json"):
        return None, ()  # finished: none is needed
    name, skipped = checkpoint.newest_intact(run)
    if name is None and skipped:
        raise ConfigError(
            f"{run.uri} has no checkpoint to go on from: {skipped[0].reason}; to start the run "
            f"over, remove {run.child('checkpoints')}"
        )
    return name, tuple(skipped)


def _try_parts(spec: RunSpec, info: DatasetInfo, split: Split) -> None:
    """Make what workers will make, so that what cannot be made is said before they start."""
    parts = build_parts(spec, spec.method, info.shape, info.num_classes)
    make_views(spec.data, parts.shape)
    if spec.graph.device != "auto":
        try:
            torch.device(spec.graph.device)
        except RuntimeError:
            raise ConfigError(
                f"graph.device = {spec.graph.device!r} is no device; use 'auto', 'cpu' or 'cuda'"
            ) from None
    warm_up = (spec.method.warm_up,) if spec.train.warmup_steps else ()
    for phase in (*spec.method.phases, *warm_up):
        plan_of(spec, phase, split.labels, epoch=0, num_steps=None, groups=None)


def import_builtin(spec: RunSpec) -> None:
    """Import the data set that ships with a dependency, where the configuration names one."""
    if spec.data.builtin and not RunDir(spec.data.uri).exists("dataset.json"):
        import_dataset(spec.data.builtin, None, spec.data.uri)


def make_run_split(spec: RunSpec) -> Split:
    """The run's nodes and which of them keep their label."""
    data = spec.data
    info = load_info(data.uri)
    published = None
    if data.split_file is not None:
        assert data.split_dataset is not None
        assert data.split_num_labels is not None
        published = splits.published_split(
            data.split_file, data.split_dataset, data.split_num_labels, data.split_number
        )
    parts = splits_of(data.uri)
    split = splits.make_split(
        load_labels(data.uri),
        parts["train"],
        parts["test"],
        parts["val"],
        labels_per_class=data.labels_per_class,
        split_seed=data.split_seed,
        val_share=data.val_share,
        num_nodes=data.num_nodes,
        num_classes=len(info.classes),
        published=published,
    )
    # What a run does not know of cannot be read by any part of it.
    return split if spec.train.score_test else replace(split, test_rows=split.test_rows[:0])


# What may differ when a run is resumed: nothing of this changes its result.
_FREE: dict[str, Any] = {
    "output": True,
    "resources": True,
    "tracking": True,
    "graph": {"num_shards", "log_uri"},
    "train": {"num_workers", "max_failures", "wait_for_room_s", "keep_checkpoints", "pause_after"},
}


def _check_same_config(spec: RunSpec, run: RunDir) -> None:
    """A resumed run must be the run that was started; where and on how much it runs may differ."""
    with_name = load_config_text(run.read_text("config.toml"))
    old = with_name.model_dump(exclude=_FREE)
    new = spec.model_dump(exclude=_FREE)
    different = sorted(_different_keys(old, new))
    if different:
        raise ConfigError(
            f"{run.uri} was started with another configuration (different: "
            f"{', '.join(different)}); resume with the same one, or choose another --name"
        )


def load_config_text(text: str) -> RunSpec:
    """A spec from the text of a resolved `config.toml`."""
    return parse_spec(tomllib.loads(text), source="config.toml")


def _different_keys(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    out: list[str] = []
    for key in old.keys() | new.keys():
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            out += _different_keys(a, b, f"{prefix}{key}.")
        elif a != b:
            out.append(prefix + key)
    return out


def forget_after(run: RunDir, checkpoint_name: str | None) -> None:
    """Drop records that an interrupted run wrote after the checkpoint that it goes on from."""
    at = checkpoint.Position(0, 0, 1)
    if checkpoint_name is not None:
        at = checkpoint.read_position(run, checkpoint_name)
    if not run.exists("baseline.json"):
        run.remove("baseline_metrics.jsonl")

    def kept(record: dict[str, Any]) -> bool:
        if record["epoch"] != at.epoch:
            return bool(record["epoch"] < at.epoch)
        if record["kind"] == "eval":
            return record["split"] == "val" and at.epoch > 0
        return at.within_epoch and record.get("step", 0) <= at.step

    run.keep_lines("rounds.jsonl", kept)
    run.keep_lines("metrics.jsonl", kept)
