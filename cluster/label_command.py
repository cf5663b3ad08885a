"""`labelmesh label`: embeddings and a few labels in, labels with confidence out."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import print_facts, print_json, print_table
from .stages import Stages

if TYPE_CHECKING:
    from .column_files import OpenColumns
    from .compare import Comparison
    from .label import Solved
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
    shards: Annotated[
        int | None,
        typer.Option(help="Use a store of so many shards on Ray; else only if memory is short."),
    ] = None,
    search: Annotated[
        str, typer.Option(help="exact, approximate, or auto: exact up to 300,000 rows.")
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
    from .columns import write_table
    from .compare import make_folds
    from .label import check_options, encode, make_labeling, to_table

    start = time.perf_counter()
    how = check_options(method, metric, sigma)
    columns = _read(features, labels)
    assert columns.features is not None
    assert columns.labels is not None
    classes, encoded = encode(columns.labels)
    plan = _plan(columns, len(classes), k, metric, shards, search)
    folds = make_folds(encoded, seed) if compare else "not asked for"
    with Stages(is_long=columns.features.shape[0] >= _MANY_ROWS) as stages:
        stages.begin(f"{columns.features.shape[0]:,} rows on {plan.where}")
        options: dict[str, Any] = {"k": k, "metric": metric, "on_stage": stages.begin}
        options["folds"] = None if isinstance(folds, str) else folds
        solved = _solve(plan, columns, features, encoded, len(classes), how, options)
        scores = None
        if not isinstance(folds, str):
            stages.begin("comparing with a linear probe and plain kNN")
            scores = _compare(columns, encoded, solved, folds, metric)
        found = make_labeling(solved, columns.labels, classes)
        stages.begin(f"writing {out}")
        write_table(to_table(found, columns.keys, columns.classes), out)
    result: dict[str, Any] = {
        "rows": len(found.labels),
        "given": int(found.given.sum()),
        "classes": len(classes),
        "coverage": found.coverage,
        "mean_confidence": float(found.confidence.mean()),
        "where": plan.where,
        "search": plan.why_search,
    }
    if solved.recall is not None:
        result["recall"] = solved.recall.value
        result["recall_low"] = solved.recall.low
    result |= {"seconds": time.perf_counter() - start, "out": out}
    why_not = folds if isinstance(folds, str) else None
    if json:
        shown = None if scores is None else {"method": method, **asdict(scores)}
        print_json({**result, "comparison": shown, "no_comparison": why_not})
        return
    print_facts(result)
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


def _plan(
    columns: OpenColumns, num_classes: int, k: int, metric: str, shards: int | None, search: str
) -> Plan:
    from typing import cast

    from ..graph_store.checks import check_spec
    from ..graph_store.store import Metric, StoreSpec
    from .label_plan import available_bytes, has_faiss, make_plan

    assert columns.features is not None
    num_rows, dim = columns.features.shape
    spec = StoreSpec(num_rows, dim, num_classes, k, cast(Metric, metric))
    check_spec(spec)
    return make_plan(
        spec, shards=shards, search=search, available=available_bytes(), has_faiss=has_faiss()
    )


def _solve(
    plan: Plan,
    columns: OpenColumns,
    uri: str,
    labels: Any,
    num_classes: int,
    how: Any,
    options: dict[str, Any],
) -> Solved:
    from .feature_rows import as_array
    from .label import solve_array

    assert columns.features is not None
    if plan.num_shards:
        from .label_store import solve_on_shards

        options |= {"num_shards": plan.num_shards, "approximate": plan.search != "exact"}
        return solve_on_shards(columns.features, uri, labels, num_classes, how, **options)
    backend = "ivf" if plan.search == "ivf" else "auto"
    rows = as_array(columns.features, uri)
    return solve_array(rows, labels, num_classes, how, backend=backend, **options)


def _compare(
    columns: OpenColumns, labels: Any, solved: Solved, folds: Any, metric: str
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
