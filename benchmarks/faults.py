"""Processes that end themselves at named moments, for `chaos.py`.

`install` runs at the start of every Python process that finds the `sitecustomize.py` which
`prepare` writes. It patches nothing until a module of the table is imported, and what it patches
looks for an order in the folder LABELMESH_FAULTS: a file `<moment>.json`. Whoever renames the file
has taken the order, so each is carried out once; the process then ends itself, its whole node, or
the driver, by SIGKILL.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = "LABELMESH_FAULTS"

# Moment -> module, attribute, and an argument that must end with some text.
MOMENTS: dict[str, tuple[str, str, str]] = {
    "put": ("labelmesh.graph_store.shard", "Shard.put", ""),
    "update_knn": ("labelmesh.graph_store.shard", "Shard.update_knn", ""),
    "refresh": ("labelmesh.graph_store.shard", "Shard.solve", ""),
    "publish": ("labelmesh.graph_store.shard", "Shard.publish", ""),
    "snapshot": ("labelmesh.graph_store.snapshot", "write_part", ""),
    "step": ("labelmesh.trainers.deepspeed_engine", "DeepSpeedEngine.micro_step", ""),
    "checkpoint": ("labelmesh.trainers.deepspeed_engine", "DeepSpeedEngine.save", ""),
    "commit": ("labelmesh.trainers.run_dir", "RunDir.write_json", "COMMIT.json"),
}


def prepare(folder: Path) -> None:
    """Make processes that are started from now on watch for orders in a folder."""
    folder.mkdir(parents=True)
    here = str(Path(__file__).resolve().parent)
    (folder / "sitecustomize.py").write_text("import faults\n\nfaults.install()\n")
    os.environ[FOLDER] = str(folder)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), here, before]))


def install() -> None:
    """Watch the imports of this process."""
    if os.environ.get(FOLDER):
        sys.meta_path.insert(0, _Patcher())


class _Patcher(importlib.abc.MetaPathFinder):
    """Finds what the others find, and patches the table's modules once they are loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        wanted = {m: place for m, place in MOMENTS.items() if place[0] == name}
        if not wanted:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                load = spec.loader.exec_module
                spec.loader.exec_module = functools.partial(  # type: ignore[method-assign]
                    _load_and_patch, load, wanted
                )
                return spec
        return None


def _load_and_patch(
    load: Callable[[ModuleType], None], wanted: dict[str, tuple[str, str, str]], module: ModuleType
) -> None:
    load(module)
    for moment, (_, dotted, ending) in wanted.items():
        holder: Any = module
        *parents, leaf = dotted.split(".")
        for parent in parents:
            holder = getattr(holder, parent)
        setattr(holder, leaf, _watched(getattr(holder, leaf), moment, ending))


def _watched(function: Callable[..., Any], moment: str, ending: str) -> Callable[..., Any]:
    calls = 0

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        nonlocal calls
        if not ending or any(isinstance(a, str) and a.endswith(ending) for a in args):
            calls += 1
            _obey(moment, calls)
        return function(*args, **options)

    return call


def _obey(moment: str, calls: int) -> None:
    """Carry out the order for this moment, if there is one and enough calls have gone by."""
    order = Path(os.environ[FOLDER], f"{moment}.json")
    try:
        wish = json.loads(order.read_text())
        if calls < wish["call"]:
            return
        order.rename(order.with_suffix(f".{os.getpid()}.done"))
    except (FileNotFoundError, json.JSONDecodeError):
        return  # none, or another process was faster
    if wish["victim"] == "driver":
        os.kill(wish["driver"], signal.SIGKILL)
        return
    if wish["victim"] == "node":
        _end_node()
    os.kill(os.getpid(), signal.SIGKILL)


def _end_node() -> None:
    """End the raylet that started this process, and all processes that it has started."""
    import psutil

    raylet = psutil.Process(os.getppid())
    children = raylet.children(recursive=True)
    raylet.kill()
    for child in children:
        if child.pid != os.getpid():
            child.kill()


def order(folder: Path, moment: str, victim: str, *, call: int, driver: int) -> None:
    """Ask for a death: at the `call`-th call of `moment` in a process, at the earliest."""
    wish = {"victim": victim, "call": call, "driver": driver}
    draft = folder / f"{moment}.draft"
    draft.write_text(json.dumps(wish))
    draft.rename(folder / f"{moment}.json")


def taken(folder: Path) -> int:
    """How many orders were carried out."""
    return len(list(folder.glob("*.done")))


def wait_until_taken(folder: Path, count: int, alive: Callable[[], bool], limit_s: float) -> bool:
    """Whether `count` orders were carried out before the limit, while `alive` holds."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if taken(folder) >= count:
            return True
        if not alive():
            return False
        time.sleep(0.1)
    return False
