"""What goes to a cluster with a job: this package, the files that its command names. No Ray.

A job runs on the cluster's head, in a folder of its own that is deleted after it. So a relative
path means nothing there: small files of this machine (configuration, split list, weights) are sent
along; data sets and runs must lie where all nodes see them. What cannot work is refused here, in
a second, instead of there, after a start.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..datasets.masking import refuse_secrets
from ..trainers.config import ConfigError, RunSpec, load_config, parse_overrides, shipped_configs

PACKAGE = Path(__file__).resolve().parent.parent
_PARTS = ("cluster", "datasets", "graph_store", "trainers", "tune")
_NOT_JOBS = frozenset({"submit", "logs", "stop", "jobs", "status", "doctor"})
_LARGEST_FILE = 100 << 20


@dataclass(frozen=True)
class Shipment:
    """A command as the cluster will run it, and the files that it finds beside itself.

    Attributes:
        files: Where the files lie here, by their name there.
    """

    args: tuple[str, ...]
    files: Mapping[str, Path] = field(default_factory=dict)


def ship_package(folder: Path) -> Path:
    """Copy this package's source to `folder/labelmesh`: what a wheel holds, as it runs here.

    It is sent as a folder instead of a wheel: Ray would install a wheel by pip on every node, with
    all its dependencies beside those that are there.
    """
    dest = folder / "labelmesh"
    dest.mkdir(parents=True)
    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    for part in _PARTS:
        if (PACKAGE / part).is_dir():
            shutil.copytree(PACKAGE / part, dest / part, ignore=skip)
    for name in ("__init__.py", "__main__.py"):
        shutil.copy(PACKAGE / name, dest / name)
    return dest


def ship_files(files: Mapping[str, Path], folder: Path) -> Path:
    """Copy the files of a shipment into `folder/files`, the job's working directory."""
    dest = folder / "files"
    dest.mkdir(parents=True)
    for name, path in files.items():
        shutil.copy(path, dest / name)
    return dest


def plan_shipment(args: Sequence[str], *, is_here: bool) -> Shipment:
    """Check a command before it is sent, and say what must go with it.

    Args:
        args: Without the program's name: `["train", "mine.toml", "--set", "graph.k=9"]`.
        is_here: Whether all of the cluster's nodes are this machine, so that they see its files.

    Raises:
        ConfigError: Not a command, a configuration that is wrong, or paths that the cluster's
            nodes do not see.
    """
    params = _parse(args)
    # Ray shows the command to everybody who may look at the cluster.
    refuse_secrets(list(args), "the job's command")
    if args[0] == "train":
        return _ship_train(list(args), params, is_here)
    named = {a: Path(a).absolute() for a in args[1:] if Path(a).is_file()}
    if is_here:
        return Shipment(tuple(str(named.get(a, a)) for a in args))
    files: dict[str, Path] = {}
    for path in named.values():
        if files.setdefault(path.name, path) != path:
            raise ConfigError(
                f"{files[path.name]} and {path} have the same name, under which they would be sent "
                "with the job; rename one"
            )
    return Shipment(tuple(named[a].name if a in named else a for a in args), files)


def _parse(args: Sequence[str]) -> Mapping[str, object]:
    """The values of the command's own options, as the command line reads them."""
    import typer.main

    from .cli import build_app

    group = typer.main.get_command(build_app())
    known: Mapping[str, object] = group.commands  # type: ignore[attr-defined]
    jobs = sorted(known.keys() - _NOT_JOBS)
    if not args or args[0] not in jobs:
        got = repr(args[0]) if args else "nothing"
        raise ConfigError(f"a job is one of {', '.join(jobs)}, with its arguments; got {got}")
    command = known[args[0]]
    params: Mapping[str, object] = command.make_context(  # type: ignore[attr-defined]
        args[0], list(args[1:])
    ).params
    return params


def _ship_train(args: list[str], params: Mapping[str, object], is_here: bool) -> Shipment:
    config, set_, out = str(params["config"]), params["set_"], params["out"]
    assert set_ is None or isinstance(set_, list | tuple)
    spec = load_config(config, parse_overrides(list(set_ or [])))
    files: dict[str, Path] = {}
    if config not in shipped_configs():
        args[_position(args, config)] = Path(config).name
        files[Path(config).name] = Path(config).absolute()
    changes = _small_files(spec, files, is_here) | _places(spec, is_here, has_out=out is not None)
    for key, value in changes.items():
        args += ["--set", f"{key}={json.dumps(value)}"]
    if out is not None and (there := _seen_by_all(str(out), "--out", is_here)) != out:
        args += ["--out", there]
    return Shipment(tuple(args), files)


def _position(args: Sequence[str], config: str) -> int:
    """Where the configuration stands; an option's value may be the same word."""
    return next(
        i
        for i, word in enumerate(args)
        if i and word == config and args[i - 1] not in ("--set", "--name", "--out")
    )


def _small_files(spec: RunSpec, files: dict[str, Path], is_here: bool) -> dict[str, str]:
    """Overrides for files of this machine that a run reads once; they are added to `files`."""
    changes = {}
    named = {"data.split_file": spec.data.split_file, "model.weights": spec.model.weights}
    for key, value in named.items():
        if value is None or "://" in value:
            continue
        path = Path(value).expanduser().absolute()
        if is_here:
            changes[key] = str(path)
        elif not path.is_file():
            changes[key] = _seen_by_all(value, key, is_here)
        elif path.stat().st_size > _LARGEST_FILE:
            raise ConfigError(
                f"{key} = {value!r} has {path.stat().st_size >> 20} MiB, too much to be sent with "
                f"a job (at most {_LARGEST_FILE >> 20}); put it at a URI that all nodes see"
            )
        else:
            name = f"{key.partition('.')[2]}-{path.name}"
            files[name] = path
            changes[key] = name
    return changes


def _places(spec: RunSpec, is_here: bool, *, has_out: bool) -> dict[str, str]:
    """Overrides for folders of data and results."""
    named = {"data.uri": spec.data.uri, "model.cache_dir": spec.model.cache_dir}
    if not has_out:
        named["output.uri"] = spec.output.uri
    seen = {k: (v, _seen_by_all(v, k, is_here)) for k, v in named.items() if v is not None}
    return {key: there for key, (here, there) in seen.items() if there != here}


def _seen_by_all(path: str, key: str, is_here: bool) -> str:
    """The path as all nodes see it: an absolute one is taken to lie on a shared file system."""
    whole = Path(path).expanduser()
    if "://" in path or whole.is_absolute():
        return path if "://" in path else str(whole)
    if is_here:
        return str(whole.absolute())
    raise ConfigError(
        f"{key} = {path!r} is a path on this machine, which the cluster's nodes do not see; give a "
        "URI (s3://bucket/folder), or an absolute path on a file system that all nodes share"
    )
