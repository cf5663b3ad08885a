"""`labelmesh tune`: a sweep of training runs, its table, and the configuration of the best."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .sweep import Sweep

_SHOWN = 10


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog=_shipped_help())(tune)


def tune(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="A shipped name or a path.")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a key of the runs (graph.k=9) or of the sweep (search.num_seeds=3, "
            "scheduler.kind=asha); may be repeated.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep's folder.")] = None,
    out: Annotated[
        str | None, typer.Option(help="Where sweeps are written: a folder or URI.")
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option(help="How many points; short for --set search.num_samples=N.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the points that are not done.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = (
        False
    ),
) -> None:
    """Search hyperparameters by training runs, judged on validation samples."""
    from ..trainers.config import parse_overrides
    from .sweep_spec import base_run, load_sweep

    overrides: dict[str, Any] = parse_overrides(set_ or [])
    if num_samples is not None:
        overrides["search.num_samples"] = num_samples
    # Checked before a cluster is asked for, as `train` does.
    spec = load_sweep(sweep, overrides)
    base_run(spec)

    from ..cluster.api import connect
    from .sweep_progress import SweepProgress

    title = name or spec.name
    with connect() as cluster, SweepProgress(title, spec.metric, spec.mode) as progress:
        found = cluster.tune(
            sweep, set=overrides, name=name, out=out, resume=resume, on_event=progress.update
        )
    _print_result(found, title, json=json)


def _print_result(found: Sweep, title: str, *, json: bool) -> None:
    from ..cluster.output import print_facts, print_json, print_table

    best = found.best
    facts = {
        "sweep": found.uri,
        "metric": found.result.metric,
        "best": dict(best.params),
        "mean": best.mean,
        "sd": best.sd,
        "num": best.num,
        "points": len(found.result.points),
        "best_config": f"{found.uri}/best.toml",
        "report": f"{found.uri}/report.html",
    }
    if json:
        print_json({**facts, "table": found.table().to_pylist()})
        return
    header, rows = found.result.leaders(_SHOWN)
    print_table(header, rows, title=f"{title}: {found.result.metric}")
    print_facts(facts)


def _shipped_help() -> str:
    """Reads the folder instead of asking `sweep_spec`, which imports torch: help must be fast."""
    lines = []
    for path in sorted((Path(__file__).resolve().parent / "sweeps").glob("*.toml")):
        first = path.read_text().splitlines()[0]
        if not path.stem.startswith("graph-"):
            lines.append(f"{path.stem}: {first.lstrip('# ')}")
    return "Shipped sweeps:\n\n" + "\n\n".join(lines)
