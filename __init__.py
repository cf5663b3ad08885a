"""Labelmesh: label everything from a few labels, at cluster scale."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Affinity": "graph_store.affinity",
    "GraphLabeler": "graph_store.labeler",
    "GraphLearningLayer": "trainers.layers.graph_learning",
    "GraphStore": "graph_store.facade",
    "connect": "cluster.api",
    "knn_graph": "graph_store.knn_graph",
    "suggest": "cluster.suggest",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    # Resolved on first use: `import labelmesh` stays light and needs neither Ray nor torch.
    if name in _PUBLIC:
        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
