"""`labelmesh label`: embeddings and a few labels in, labels with confidence out."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .output import print_facts, print_json, print_table
from .stages import Stages

if TYPE_CHECKING:
    from ..graph_store.labeling import Propagation
    from ..graph_store.labeling_round import Folds
    from ..graph_store.store import StoreSpec
    from .column_files import OpenColumns
    from .compare import Comparison
    from .label import Labeling, OnStage, Solved
    from .label_plan import Plan


def label(
    features: Annotated[
        str,
        typer.Argument(metavar="FEATURES", help=".npy, .npz, .parquet or a folder of .parquet"),
    ],
    out: Annotated[str, typer.Option(help="Parquet file to write.")],
    labels: Annotated[
        str | None,
        typer.Option(help="The given labels, if FEATURES has none: .npy, .npz, .parquet or .csv."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="poisson (few labels), laplace (many), local_global, poisson_mbo, p_laplace, "
            "wnll, poisson_reweighted, properly_weighted, random_walk, nearest_labeled or "
            "density_paths"
        ),
    ] = "poisson",
    k: Annotated[int, typer.Option(help="Neighbours of each node, without itself.")] = 20,
    metric: Annotated[str, typer.Option(help="euclidean or cosine")] = "euclidean",
    sigma: Annotated[
        float, typer.Option(help="density_paths: longest step, as a distance.")
    ] = float("inf"),
    alpha: Annotated[
        float | None,
        typer.Option(help="local_global, random_walk: share of the neighbours (0.99, 0.95)."),
    ] = None,
    tau: Annotated[
        float, typer.Option(help="laplace and its kin: how fast labels fade with the way.")
    ] = 0.0,
    p: Annotated[float, typer.Option(help="p_laplace: at least 2.")] = 3.0,
    affinity: Annotated[
        str, typer.Option(help="self_tuning, or power of the similarity (metric cosine).")
    ] = "self_tuning",
    gamma: Annotated[float, typer.Option(help="affinity power: exponent.")] = 3.0,
    balance_classes: Annotated[
        bool, typer.Option(help="local_global: divide each class's labels by their number.")
    ] = True,
    shards: Annotated[
        int | None,
        typer.Option(help="Use a store of so many shards on Ray; else only if memory is short."),
    ] = None,
    search: Annotated[
        str,
        typer.Option(help="exact, approximate, or auto: exact where that takes minutes."),
    ] = "auto",
    compare: Annotated[
        bool,
        typer.Option(help="Cross-validate the method, a linear probe and plain kNN on the labels."),
    ] = True,
    seed: Annotated[int, typer.Option(help="Of the folds of the comparison.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = (
        False
    ),
) -> None:
    """Label embeddings along their nearest-neighbour graph; nothing is trained."""
    from .columns import num_repeated, write_table
    from .compare import make_folds
    from .label import check_options, encode, make_labeling, to_table
    from .label_plan import available_bytes, make_plan

    start = time.perf_counter()
    options: dict[str, Any] = {"alpha": alpha, "tau": tau, "p": p, "affinity": affinity}
    options |= {"gamma": gamma, "balance_classes": balance_classes}
    how = check_options(method, metric, sigma, **options)
    columns = _read(features, labels)
    assert columns.features is not None
    assert columns.labels is not None
    classes, encoded = encode(columns.labels)
    spec = _spec(columns, len(classes), k, metric)
    plan = make_plan(spec, shards=shards, search=search, available=available_bytes())
    folds = make_folds(encoded, seed) if compare else "not asked for"
    with Stages(is_long=columns.features.shape[0] >= _MANY_ROWS) as stages:
        stages.begin(f"{columns.features.shape[0]:,} rows on {plan.where}")
        held_out = None if isinstance(folds, str) else folds
        solved = _solve(plan, spec, columns, features, encoded, how, held_out, stages.begin)
        scores = None
        if held_out is not None:
            stages.begin("comparing with a linear probe and plain kNN")
            scores = _compare(columns, encoded, solved, held_out, metric)
        found = make_labeling(solved, columns.labels, classes)
        stages.begin(f"writing {out}")
        write_table(to_table(found, columns.keys, columns.classes), out)
    facts = _facts(spec, plan, solved, found)
    if repeated := num_repeated(columns.keys):
        facts["keys that come more than once"] = repeated
    facts |= {"seconds": time.perf_counter() - start, "out": out}
    why_not = folds if isinstance(folds, str) else None
    if json:
        shown = None if scores is None else {"method": method, **asdict(scores)}
        print_json({**facts, "comparison": shown, "no_comparison": why_not})
        return
    print_facts(facts)
    if scores is not None:
        _print_comparison(method, scores)
    elif compare:
        typer.echo(f"no comparison: {why_not}")


# Shorter jobs end before anybody reads what they are doing.
_MANY_ROWS = 20_000


def _read(features: str, labels: str | None) -> OpenColumns:
    from .column_files import open_columns
    from .columns import join_labels

    columns = open_columns(features)
    if columns.features is None:
        raise ValueError(f"{features}: no features in it; name the array or column 'features'")
    if labels is not None:
        columns = join_labels(columns, open_columns(labels), labels)
    if columns.labels is None:
        raise ValueError(f"{features}: no labels in it; give them with --labels FILE")
    return columns


def _spec(columns: OpenColumns, num_classes: int, k: int, metric: str) -> StoreSpec:
    from typing import cast

    from ..graph_store.checks import check_spec
    from ..graph_store.store import Metric, StoreSpec

    assert columns.features is not None
    num_rows, dim = columns.features.shape
    # Nothing is lost: float32 holds all of float16.
    is_half = columns.features.dtype == "float16"
    dtype: Literal["float16", "float32"] = "float16" if is_half else "float32"
    spec = StoreSpec(num_rows, dim, num_classes, k, cast(Metric, metric), dtype)
    check_spec(spec)
    return spec


def _solve(
    plan: Plan,
    spec: StoreSpec,
    columns: OpenColumns,
    uri: str,
    labels: Any,
    how: Propagation,
    folds: Folds | None,
    on_stage: OnStage,
) -> Solved:
    from dataclasses import replace

    from .feature_rows import as_array
    from .label import solve_array

    assert columns.features is not None
    if plan.is_exact and not plan.num_shards:
        return solve_array(
            as_array(columns.features, uri),
            labels,
            spec.num_classes,
            how,
            k=spec.k,
            metric=spec.metric,
            folds=folds,
            on_stage=on_stage,
        )
    from .label_store import StoreTask, solve_on_local_store, solve_on_shards

    spec = replace(spec, update="exact" if plan.is_exact else "refine")
    task = StoreTask(columns.features, uri, labels, spec, how, folds, on_stage)
    return solve_on_shards(task, plan.num_shards) if plan.num_shards else solve_on_local_store(task)


def _facts(spec: StoreSpec, plan: Plan, solved: Solved, found: Labeling) -> dict[str, Any]:
    search = plan.search
    if not plan.is_exact and solved.recall is None:
        search = "exact, as approximate search found too little"
    facts: dict[str, Any] = {
        "rows": spec.num_nodes,
        "width": spec.dim,
        "given": int(found.given.sum()),
        "classes": spec.num_classes,
        "coverage": found.coverage,
        "mean_confidence": float(found.confidence.mean()),
        "where": plan.where,
        "search": search,
    }
    if spec.dtype == "float16":
        facts["precision"] = "float16 rows, computed in float32"
    if solved.recall is not None:
        facts |= {"recall": solved.recall.value, "recall_low": solved.recall.low}
    return facts


def _compare(
    columns: OpenColumns, labels: Any, solved: Solved, folds: Folds, metric: str
) -> Comparison:
    from .compare import compare
    from .feature_rows import take_rows

    assert columns.features is not None
    rows = folds.node_ids.numpy()
    x = take_rows(columns.features, rows)
    return compare(x, labels[rows], solved.held_out[rows], folds, metric=metric)


def _print_comparison(method: str, scores: Comparison) -> None:
    knn = f"kNN ({scores.knn_neighbors} nearest labeled rows)"
    rows = [
        [f"this graph, {method}", f"{scores.graph:.1%}"],
        ["linear probe", f"{scores.linear_probe:.1%}"],
        [knn, f"{scores.knn:.1%}"],
    ]
    title = f"right on {scores.num_held_out} held-out labels ({scores.num_folds} folds)"
    print_table(["", ""], rows, title=title)
