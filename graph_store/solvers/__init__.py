"""Solvers on a weighted graph: whole columns of labels in, whole columns of scores out."""

from .density_paths import DensityPaths, density_paths
from .laplace import laplace
from .local_global import SpreadLabels, local_global, pseudo_labels
from .poisson import poisson

__all__ = [
    "DensityPaths",
    "SpreadLabels",
    "density_paths",
    "laplace",
    "local_global",
    "poisson",
    "pseudo_labels",
]
