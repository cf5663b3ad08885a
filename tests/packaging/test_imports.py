"""Who may import whom: read from the source with ast, and tried in a process of its own."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("cluster", "datasets", "graph_store", "trainers", "tune")

# Top folders from high to low: a folder may import those below it. The two lowest do not know
# each other.
BELOW = {
    "tune": {"cluster", "trainers", "graph_store", "datasets"},
    "cluster": {"trainers", "graph_store", "datasets"},
    "trainers": {"graph_store", "datasets"},
    "graph_store": set(),
    "datasets": set(),
}

# Modules that may import a heavy dependency; a folder's name stands for all in it.
HEAVY = {
    "ray": {
        "cluster.api",
        "cluster.jobs",
        "cluster.nodes",
        "cluster.room",
        "graph_store.actors",
        "graph_store.facade",
        "graph_store.ray_store",
        "graph_store.shard_link",
        "graph_store.shard_options",
        "trainers.board",
        "trainers.gauges",
        "trainers.ray_session",
        "trainers.reservation",
        "tune.graph_workers",
        "tune.ray_tune",
        "tune.trial_actor",
    },
    "deepspeed": {"trainers.deepspeed_engine", "trainers.deepspeed_state"},
    "faiss": {"graph_store.faiss_index"},
    "mlflow": {"trainers.mlflow_sink"},
    "tensorboardX": {"trainers.tensorboard_sink"},
    "torch.distributed": {
        "graph_store.actors",
        "graph_store.sharded_view",
        "trainers.deepspeed_engine",
        "trainers.metrics",
    },
}
# (who, what it must not import), below the level of the five folders.
FORBIDDEN = [
    *[
        ("graph_store.solvers", f"graph_store.{name}")
        for name in ("shard", "local_store", "ray_store", "sharded_view", "store", "actors")
    ],
    ("trainers.methods", "trainers.loop"),
    ("trainers.methods", "trainers.engine"),
    ("trainers.methods", "trainers.config"),
    ("trainers.losses", "trainers.methods"),
    ("trainers.layers", "trainers.methods"),
    ("trainers.backbones", "trainers.methods"),
    ("trainers.loop", "trainers.methods"),
    ("trainers.loop", "trainers.worker"),
    ("trainers.worker", "trainers.launch"),
]
TRUTH_READERS = {"trainers.evaluate", "cluster"}


def modules() -> dict[str, Path]:
    """Source files by dotted name below `labelmesh`."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for part in PARTS
        for path in sorted((ROOT / part).rglob("*.py"))
    }


def is_in(module: str, place: str) -> bool:
    return module == place or module.startswith(place + ".")


def statements(path: Path) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node


def outer_imports(path: Path) -> set[str]:
    """Dotted names of what is imported from other packages."""
    found = set()
    for node in statements(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif node.level == 0 and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def uses_attribute(path: Path, dotted: str) -> bool:
    """Whether `torch.distributed` and the like are reached through an attribute."""
    return any(
        isinstance(node, ast.Attribute) and ast.unparse(node) == dotted
        for node in ast.walk(ast.parse(path.read_text()))
    )


def inner_imports(module: str, path: Path) -> set[str]:
    """Dotted names, below `labelmesh`, of what is imported relatively: `from .a import b` gives
    both `here.a` and `here.a.b`, since `b` may be a module."""
    parts = module.split(".")
    package = parts if path.stem == "__init__" else parts[:-1]
    found = set()
    for node in statements(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            base += node.module.split(".") if node.module else []
            found |= {".".join(base), *(".".join([*base, alias.name]) for alias in node.names)}
    return found - {""}


ALL = modules()


@pytest.mark.parametrize("heavy", HEAVY)
def test_heavy_dependencies_enter_through_the_files_named_for_them(heavy: str) -> None:
    users = {
        module
        for module, path in ALL.items()
        if any(is_in(name, heavy) for name in outer_imports(path))
        or ("." in heavy and uses_attribute(path, heavy))
    }
    strangers = {m for m in users if not any(is_in(m, place) for place in HEAVY[heavy])}
    assert not strangers, f"{heavy} is imported by {sorted(strangers)}"


def test_imports_between_the_folders_go_one_way() -> None:
    wrong = {
        (module, name)
        for module, path in ALL.items()
        for name in inner_imports(module, path)
        if (top := name.split(".")[0]) in PARTS
        and top != module.split(".")[0]
        and top not in BELOW[module.split(".")[0]]
    }
    assert not wrong


def test_kernels_import_nothing_of_the_store_but_kernels() -> None:
    wrong = {
        (module, name)
        for module, path in ALL.items()
        if is_in(module, "graph_store.kernels")
        for name in inner_imports(module, path)
        if not is_in(name, "graph_store.kernels")
    }
    assert not wrong


@pytest.mark.parametrize(("who", "what"), FORBIDDEN)
def test_imports_inside_the_folders_go_one_way(who: str, what: str) -> None:
    wrong = {
        (module, name)
        for module, path in ALL.items()
        if is_in(module, who)
        for name in inner_imports(module, path)
        if is_in(name, what)
    }
    assert not wrong


def test_hidden_labels_are_read_by_evaluation_alone() -> None:
    readers = {
        module
        for module, path in ALL.items()
        if any(is_in(name, "datasets.truth") for name in inner_imports(module, path))
    }
    assert "trainers.evaluate" in readers
    strangers = {m for m in readers if not any(is_in(m, place) for place in TRUTH_READERS)}
    assert not strangers, f"datasets.truth is imported by {sorted(strangers)}"


def test_the_source_imports_itself_relatively() -> None:
    wrong = {
        (module, name)
        for module, path in ALL.items()
        for name in outer_imports(path)
        if name.split(".")[0] in {"labelmesh", *PARTS}
    }
    assert not wrong


BLOCKED = """
import importlib, json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"ray", "deepspeed", "faiss", "mlflow", "tensorboardX"}:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocker())
failed = {}
for name in json.load(sys.stdin):
    try:
        importlib.import_module("labelmesh." + name)
    except ImportError as error:
        failed[name] = str(error)
print(json.dumps(failed))
"""


def test_everything_else_imports_without_ray_deepspeed_and_faiss() -> None:
    blocked = set().union(*(HEAVY[name] for name in HEAVY if name != "torch.distributed"))
    light = [m for m in ALL if not any(is_in(m, place) for place in blocked)]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED],
        input=json.dumps(light),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT.parent,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == {}


def test_import_of_the_package_is_light() -> None:
    code = (
        "import sys, labelmesh; print(sorted({'ray', 'torch', 'numpy'} & set(sys.modules)));"
        # A run's board has a process of its own.
        "import labelmesh.trainers.board; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "False"]
