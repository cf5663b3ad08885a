"""`labelmesh tune-graph`: the graph alone, searched on a run's snapshot or on features."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .graph_best import Best
    from .graph_points import Snapshot
    from .graph_spec import GraphSweep
    from .graph_sweep import Runner
    from .points import Point, SweepResult

_SHOWN = 10


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("tune-graph", epilog=_shipped_help())(tune_graph)


def tune_graph(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FEATURES",
            help="A run's folder, or .npy, .npz, .parquet or a folder of .parquet",
        ),
    ],
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="A shipped name or a path.")],
    labels: Annotated[
        str | None,
        typer.Option(help="The given labels, if FEATURES has none: .npy, .npz, .parquet or .csv."),
    ] = None,
    metric: Annotated[str, typer.Option(help="FEATURES: euclidean or cosine")] = "euclidean",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a key of the sweep (search.num_samples=50, set.method=laplace); may be "
            "repeated.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep's folder.")] = None,
    out: Annotated[str, typer.Option(help="Where sweeps are written: a folder or URI.")] = "sweeps",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the points that are not done.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads; default: one per core.")
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Solve on the Ray cluster in RAY_ADDRESS, not on threads.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = (
        False
    ),
) -> None:
    """Search k, weights and solver of a graph by hiding given labels; nothing is trained."""
    from ..cluster.stages import Stages
    from ..trainers.config import parse_overrides
    from .graph_spec import load_graph_sweep
    from .report import write_sweep_report

    start = time.perf_counter()
    spec = load_graph_sweep(sweep, parse_overrides(set_ or []))
    uri = f"{out.rstrip('/')}/{name or spec.name}"
    with Stages() as stages:
        stages.begin(f"finding {spec.max_k} neighbours in {source}")
        spec, snapshot, use = _prepare(spec, source, labels, metric)
        watch = _Watch(stages.begin, spec.metric)
        result = _run(spec, snapshot, uri, resume, workers, ray, watch.tell)
        # Raised before anything is written if no point was finished.
        best = use(result)
        stages.begin("writing the report")
        report = write_sweep_report(
            result, uri, best.config_toml, command=best.command, notes=best.notes
        )
    facts = _facts(result, best, uri, report, time.perf_counter() - start)
    _print(result, facts, best, json=json)


def _prepare(
    spec: GraphSweep, source: str, labels: str | None, metric: str
) -> tuple[GraphSweep, Snapshot, Callable[[SweepResult], Best]]:
    """The sweep as it goes with the source, its snapshot, and what makes use of the result."""
    from . import graph_best
    from .graph_source import is_run, snapshot_of_features, snapshot_of_run

    if not is_run(source):
        found = snapshot_of_features(source, labels, k=spec.max_k, metric=metric)
        use = partial(graph_best.of_features, features=source, labels=labels, metric=metric)
        return spec, found, use
    if labels is not None:
        raise ValueError("--labels goes with FEATURES; a run has the labels that it was given")
    from ..trainers.prepare import load_config_text
    from ..trainers.run_dir import RunDir

    run = load_config_text(RunDir(source).read_text("config.toml"))
    spec = spec.with_defaults(graph_best.run_params(run))
    return spec, snapshot_of_run(source, k=spec.max_k), partial(graph_best.of_run, spec=run)


def _run(
    spec: GraphSweep,
    snapshot: Snapshot,
    uri: str,
    resume: bool,
    workers: int | None,
    ray: bool,
    on_points: Callable[[Sequence[Point]], None],
) -> SweepResult:
    from .graph_sweep import run_graph_sweep
    from .graph_workers import on_ray, on_threads

    def go(runner: Runner) -> SweepResult:
        return run_graph_sweep(
            spec, snapshot, out=uri, resume=resume, runner=runner, on_points=on_points
        )

    if not ray:
        return go(partial(on_threads, num_workers=workers))
    from ..cluster.api import connect

    with connect() as cluster:
        cluster.start()
        return go(on_ray)


class _Watch:
    """Says how far the sweep is and what was best."""

    def __init__(self, say: Callable[[str], None], metric: str) -> None:
        self._say, self._metric = say, metric
        self._done, self._failed, self._best = 0, 0, float("-inf")

    def tell(self, points: Sequence[Point]) -> None:
        self._done += len(points)
        self._failed += sum(point.state == "failed" for point in points)
        self._best = max(
            [self._best, *(point.mean for point in points if point.state == "finished")]
        )
        failed = f", {self._failed} failed" if self._failed else ""
        self._say(f"{self._done} points, best {self._metric} {self._best:.4f}{failed}")


def _facts(
    result: SweepResult, best: Best, uri: str, report: str, seconds: float
) -> dict[str, Any]:
    point = result.best
    facts: dict[str, Any] = {
        "sweep": uri,
        "metric": result.metric,
        "best": dict(point.params),
        "mean": point.mean,
        "sd": point.sd,
        "num": point.num,
        "points": len(result.points),
        "failed": sum(p.state == "failed" for p in result.points),
        "seconds": seconds,
        "report": report,
    }
    if best.config_toml is not None:
        facts["best_config"] = f"{uri}/best.toml"
    if best.command is not None:
        facts["command"] = best.command
    return facts


def _print(result: SweepResult, facts: dict[str, Any], best: Best, *, json: bool) -> None:
    from ..cluster.output import print_facts, print_json, print_table

    if json:
        print_json({**facts, "notes": list(best.notes), "table": result.table().to_pylist()})
        return
    header, rows = result.leaders(_SHOWN)
    print_table(header, rows, title=f"{result.name}: {result.metric}")
    print_facts(facts)
    for note in best.notes:
        typer.echo(note, err=True)


def _shipped_help() -> str:
    """Reads the folder instead of asking `graph_spec`, which imports torch: help must be fast."""
    lines = []
    for path in sorted((Path(__file__).resolve().parent / "sweeps").glob("graph-*.toml")):
        first = path.read_text().splitlines()[0]
        lines.append(f"{path.stem}: {first.lstrip('# ')}")
    return "Shipped sweeps:\n\n" + "\n\n".join(lines)
