"""The `labelmesh` command.

Everything heavy is imported inside the command that needs it: `--help` answers at once. Results go
to stdout (`--json`: one object), progress and errors to stderr. Exit codes: 0; 1 = the run failed;
2 = bad input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from . import job_commands
from .evaluate import evaluate
from .label_command import label
from .output import RUN_FAILED, explain, print_facts, print_json, print_table
from .status_command import status
from .suggest_command import suggest

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated."),
]
Run = Annotated[str, typer.Argument(metavar="RUN", help="Folder or URI of a run.")]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code. `argv` is `sys.argv[1:]` if None."""
    try:
        build_app()(args=None if argv is None else list(argv), prog_name="labelmesh")
    except Exception as error:  # every failure of every command becomes a sentence and a code
        sys.exit(explain(error))


def build_app() -> typer.Typer:
    """The commands; a function, because listing the shipped configurations reads their folder."""
    from .data_commands import build_data_app

    app = typer.Typer(
        help="Label everything from a few labels, at cluster scale.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    app.callback()(_options)
    app.command(epilog=_shipped_help())(train)
    # Sweeps stand above the cluster in the order of imports; the command line, which shows all
    # there is, asks for their commands by name.
    import_module("..tune.tune_command", __package__).add_to(app)
    import_module("..tune.graph_command", __package__).add_to(app)
    app.command()(label)
    app.command()(suggest)
    app.command()(predict)
    app.command()(evaluate)
    app.command()(report)
    app.command()(status)
    app.command()(runs)
    app.command()(doctor)
    for command in (job_commands.submit, job_commands.jobs, job_commands.logs, job_commands.stop):
        app.command()(command)
    app.add_typer(build_data_app(), name="data")
    return app


def shipped_configurations() -> dict[str, str]:
    """Names of the shipped configurations and the first comment line of each.

    Reads the folder instead of asking `trainers.config`, which imports torch: help must be fast.
    """
    folder = Path(__file__).resolve().parent.parent / "trainers" / "configs"
    out = {}
    for path in sorted(folder.glob("*.toml")):
        first = path.read_text().splitlines()[:1]
        out[path.stem] = first[0].lstrip("# ") if first and first[0].startswith("#") else ""
    return out


def _shipped_help() -> str:
    shipped = shipped_configurations()
    if not shipped:
        return "No configurations are shipped."
    lines = [f"{name}: {about}" if about else name for name, about in shipped.items()]
    return "Shipped configurations:\n\n" + "\n\n".join(lines)


def _print_version(asked: bool) -> bool:
    if asked:
        from .. import __version__

        typer.echo(__version__)
        raise typer.Exit
    return asked


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A shipped name or a path.")],
    set_: Set = None,
    name: Annotated[str | None, typer.Option(help="Name of the run's folder.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = (
        False
    ),
    out: Annotated[str | None, typer.Option(help="Where runs are written: a folder or URI.")] = (
        None
    ),
    json: Json = False,
) -> None:
    """Train a network from few labels, and label everything else."""
    from ..trainers.config import load_config, parse_overrides

    overrides = parse_overrides(set_ or [])
    # Checked before a cluster is asked for: a slip in a key must not cost a minute.
    spec = load_config(config, overrides)

    from .api import connect
    from .progress import Progress

    with connect() as cluster, Progress(name or spec.name) as progress:
        run = cluster.train(
            config, set=overrides, name=name, resume=resume, out=out, on_event=progress.update
        )
    metrics = dict(run.metrics)
    if json:
        print_json({"run": run.uri, "metrics": metrics})
    else:
        print_facts({**metrics, "run": run.uri}, title=name or spec.name)


def predict(
    run: Run,
    input: Annotated[
        str, typer.Argument(metavar="INPUT", help="Images: a folder, a file, .npy or .npz.")
    ],
    out: Annotated[str, typer.Option(help="Parquet file to write.")],
    json: Json = False,
) -> None:
    """Predict the classes of new inputs with a finished run."""
    from .columns import write_table
    from .inputs import read_inputs
    from .predictions import predict_table

    keys, inputs = read_inputs(input)
    table = predict_table(run, keys, inputs)
    write_table(table, out)
    result = {"rows": table.num_rows, "out": out}
    print_json(result) if json else print_facts(result)


def report(
    run: Run,
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    json: Json = False,
) -> None:
    """Write the report of a run again, from the run's files."""
    from ..trainers.report import publish_report
    from ..trainers.run_dir import RunDir

    path = publish_report(RunDir(run))
    print_json({"report": path}) if json else typer.echo(path)
    if open_:
        typer.launch(path)


def runs(
    folder: Annotated[str, typer.Argument(help="Folder or URI that holds runs.")] = "runs",
    json: Json = False,
) -> None:
    """List the runs in a folder."""
    from .runs import list_runs

    found = list_runs(folder)
    if json:
        print_json({"runs": found})
        return
    if not found:
        typer.echo(f"no runs in {folder}")
        return
    header = ["name", "method", "state", "epochs", "test accuracy", "baseline"]
    keys = ["name", "method", "state", "epochs", "test_accuracy", "baseline_test_accuracy"]
    print_table(header, [[entry[key] for key in keys] for entry in found])


def doctor(json: Json = False) -> None:
    """Check what this machine offers and what is missing; exit code 1 if a run cannot start."""
    from .doctor import as_json, examine

    checks = examine()
    result: dict[str, Any] = as_json(checks)
    if json:
        print_json(result)
    else:
        rows = [[c.status, c.name, c.found, c.advice] for c in checks]
        print_table(["", "check", "found", "what to do"], rows)
    if not result["ok"]:
        raise typer.Exit(RUN_FAILED)
