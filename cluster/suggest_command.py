"""`labelmesh suggest`: which samples to label next, as a list and as a picture."""

from __future__ import annotations

import time
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import print_facts, print_json, print_table

if TYPE_CHECKING:
    import pyarrow as pa

    from .columns import Columns
    from .suggest import Suggestions
    from .suggest_run import RunNodes

_SHOWN = 10


def suggest(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FEATURES",
            help="Folder of a finished run, or .npy, .npz, .parquet, a folder of .parquet.",
        ),
    ],
    out: Annotated[str, typer.Option(help="File to write: .parquet or .csv.")],
    count: Annotated[int, typer.Option(help="How many samples.")] = 50,
    labels: Annotated[
        str | None,
        typer.Option(help="Labels: of FEATURES, or given since RUN: .npy, .npz, .parquet, .csv."),
    ] = None,
    criterion: Annotated[
        str,
        typer.Option(
            help="model_change (tells most about others, times uncertainty), sigma_opt or vopt "
            "(tells most; these three need no labels yet), local_max (least certain, not next to "
            "each other) or uncertainty"
        ),
    ] = "model_change",
    measure: Annotated[str, typer.Option(help="Of uncertainty: margin, entropy or l2.")] = "margin",
    method: Annotated[
        str | None,
        typer.Option(help="As in `label`; default: poisson for FEATURES, what RUN itself says."),
    ] = None,
    balance: Annotated[
        bool, typer.Option("--balance", help="Predicted classes take turns.")
    ] = False,
    k: Annotated[int, typer.Option(help="FEATURES: neighbours of each row.")] = 20,
    metric: Annotated[str, typer.Option(help="FEATURES: euclidean or cosine")] = "euclidean",
    seed: Annotated[int, typer.Option(help="Of the probes that follow variance.")] = 0,
    sheet: Annotated[
        str | None,
        typer.Option(help="PNG to write: the images, or a map where there are none."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = (
        False
    ),
) -> None:
    """Choose the samples whose labels would help most."""
    from ..graph_store.suggest import Wanted
    from ..trainers.run_dir import RunDir

    start = time.perf_counter()
    _check_endings(out, sheet)
    wanted = Wanted(criterion, measure, balance, seed=seed)
    if RunDir(source).exists("config.toml"):
        found, picture = _of_run(source, labels, count, method, wanted, sheet)
    else:
        options: dict[str, Any] = {"count": count, "method": method, "k": k, "metric": metric}
        options |= {"criterion": criterion, "measure": measure, "balance": balance, "seed": seed}
        found, picture = _of_features(source, labels, options, sheet)
    table = found.to_table()
    write_list(table, out)
    result: dict[str, Any] = {"suggested": len(found), "criterion": criterion}
    result |= {"seconds": time.perf_counter() - start, "out": out}
    if sheet is not None:
        _write_bytes(picture, sheet)
        result["sheet"] = sheet
    if json:
        print_json(result)
        return
    first = table.slice(0, _SHOWN)
    rows = [[row[name] for name in first.column_names] for row in first.to_pylist()]
    print_table(first.column_names, rows)
    print_facts(result)


def write_list(table: pa.Table, uri: str) -> None:
    """Write Parquet or CSV, by the ending; the folder is made where it is missing.

    Raises:
        ValueError: Another ending.
    """
    _check_endings(uri, None)
    if uri.lower().endswith(".parquet"):
        from .columns import write_table

        write_table(table, uri)
        return
    import pyarrow as pa
    import pyarrow.csv

    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table, sink)
    _write_bytes(sink.getvalue().to_pybytes(), uri)


def _check_endings(out: str, sheet: str | None) -> None:
    if not out.lower().endswith((".parquet", ".csv")):
        raise ValueError(f"{out}: cannot write this kind of file; use .parquet or .csv")
    if sheet is not None and not sheet.lower().endswith(".png"):
        raise ValueError(f"{sheet}: the sheet is a PNG; use a name that ends in .png")


def _of_run(
    uri: str, labels: str | None, count: int, method: str | None, wanted: Any, sheet: str | None
) -> tuple[Suggestions, bytes]:
    from .suggest_run import load_run, suggest_of_run
    from .suggest_sheet import MAX_IMAGES, image_sheet, map_sheet

    run = load_run(uri)
    given = None if labels is None else _labels_of_run(run, labels)
    found = suggest_of_run(run, given, count=count, method=method, wanted=wanted)
    if sheet is None:
        return found, b""
    title = f"{_name(uri)}: {len(found)} samples to label next, by {wanted.criterion}"
    images = run.images(found.node_ids[:MAX_IMAGES])
    if images:
        return found, image_sheet(found, images, title)
    return found, map_sheet(found, run.features.numpy(), run.labels.numpy(), title)


def _labels_of_run(run: RunNodes, uri: str) -> Any:
    """Labels of a file, joined by key, as class numbers of the run."""
    import numpy as np

    from .columns import Columns, join_labels, read_columns

    nothing = np.empty((len(run.keys), 0), np.float32)
    joined = join_labels(Columns(features=nothing, keys=run.keys), read_columns(uri), uri)
    if joined.classes is None:
        return joined.labels
    number = {name: index for index, name in enumerate(run.classes.tolist())}
    unknown = [name for name in joined.classes.tolist() if name not in number]
    if unknown:
        raise ValueError(
            f"{uri}: the run has no class {unknown[0]!r}; its classes are {', '.join(number)}"
        )
    numbers = np.array([number[name] for name in joined.classes.tolist()] or [-1])
    assert joined.labels is not None
    return np.where(joined.labels < 0, -1, numbers[joined.labels])


def _of_features(
    uri: str, labels: str | None, options: dict[str, Any], sheet: str | None
) -> tuple[Suggestions, bytes]:
    from dataclasses import replace

    from .suggest import suggest as suggest_rows
    from .suggest_sheet import map_sheet

    columns = _read(uri, labels)
    assert columns.features is not None
    found = suggest_rows(columns.features, columns.labels, **options)
    keys = None if columns.keys is None else columns.keys[found.node_ids]
    found = replace(found, keys=keys, classes=columns.classes)
    if sheet is None:
        return found, b""
    import numpy as np

    known = np.full(len(columns.features), -1) if columns.labels is None else columns.labels
    title = f"{_name(uri)}: {len(found)} samples to label next, by {options['criterion']}"
    return found, map_sheet(found, columns.features, known, title, seed=options["seed"])


def _read(uri: str, labels: str | None) -> Columns:
    from .columns import join_labels, read_columns

    columns = read_columns(uri)
    if columns.features is None:
        raise ValueError(f"{uri}: no features in it; name the array or column 'features'")
    return columns if labels is None else join_labels(columns, read_columns(labels), labels)


def _name(uri: str) -> str:
    return PurePosixPath(uri.rstrip("/")).name


def _write_bytes(content: bytes, uri: str) -> None:
    from ..datasets.files import locate

    filesystem, path = locate(uri)
    filesystem.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
    filesystem.pipe_file(path, content)
