"""Solvers on a weighted graph: whole columns of labels in, whole columns of scores out."""

from .density_paths import DensityPaths, density_paths
from .kmeans import KMeans, kmeans, match_clusters
from .laplace import laplace
from .local_global import SpreadLabels, local_global, pseudo_labels
from .nearest_labeled import nearest_labeled
from .p_laplace import p_laplace
from .poisson import poisson
from .poisson_mbo import poisson_mbo
from .priors import ProjectedLabels, class_prior_projection
from .random_walk import random_walk
from .reweighted import reweighted_laplace

__all__ = [
    "DensityPaths",
    "KMeans",
    "ProjectedLabels",
    "SpreadLabels",
    "class_prior_projection",
    "density_paths",
    "kmeans",
    "laplace",
    "local_global",
    "match_clusters",
    "nearest_labeled",
    "p_laplace",
    "poisson",
    "poisson_mbo",
    "pseudo_labels",
    "random_walk",
    "reweighted_laplace",
]
