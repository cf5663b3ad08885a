"""`labelmesh submit`, `jobs`, `logs`, `stop`: work with jobs on a cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import RUN_FAILED, print_facts, print_json, print_table, printable

if TYPE_CHECKING:
    from .jobs import Job

Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The cluster's dashboard; else RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or "
        "http://127.0.0.1:8265.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="As `submit` and `jobs` print it.")]


def submit(
    command: Annotated[
        list[str],
        typer.Argument(metavar="-- COMMAND ...", help="As after `labelmesh`: train CONFIG ..."),
    ],
    address: Address = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show its output, and exit with its code.")
    ] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY[=VALUE]",
            help="A variable for the job; without a value, this environment's. May be repeated.",
        ),
    ] = None,
    job_id: Annotated[str | None, typer.Option("--job-id", help="A name of your own.")] = None,
    cpus: Annotated[float, typer.Option(help="CPUs that the driver itself reserves.")] = 0.0,
    gpus: Annotated[float, typer.Option(help="GPUs that the driver itself reserves.")] = 0.0,
    memory_gib: Annotated[float, typer.Option(help="Memory that the driver reserves.")] = 0.0,
    json: Json = False,
) -> None:
    """Run a command on a Ray cluster, with this version of Labelmesh."""
    from . import jobs

    job = jobs.submit(
        command,
        address=address,
        env=variables(env or []),
        job_id=job_id,
        cpus=cpus,
        gpus=gpus,
        memory=int(memory_gib * 2**30),
    )
    if not follow:
        result = {"job": job.id, "status": job.status()}
        print_json(result) if json else print_facts(result)
        return
    typer.echo(f"job {job.id}", err=True)
    _follow(job, to_stderr=json)
    status, code = job.wait(), job.exit_code
    if json:
        print_json({"job": job.id, "status": status, "exit_code": code})
    else:
        typer.echo(f"job {job.id}: {status}", err=True)
    if code:
        raise typer.Exit(code if code in (1, 2) else RUN_FAILED)


def logs(
    job: JobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", help="Until the job has ended.")] = False,
) -> None:
    """Print what a job has printed."""
    from .jobs import find_job

    found = find_job(job, address)
    if follow:
        _follow(found)
    else:
        typer.echo(printable(str(found.logs())), nl=False)


def stop(
    job: JobId,
    address: Address = None,
    wait: Annotated[bool, typer.Option(help="Until it has written its checkpoint.")] = True,
    json: Json = False,
) -> None:
    """Stop a job; a run writes a checkpoint first, from which --resume goes on."""
    from .jobs import find_job

    result = {"job": job, "status": find_job(job, address).stop(wait=wait)}
    print_json(result) if json else print_facts(result)


def jobs(address: Address = None, json: Json = False) -> None:
    """List the jobs of a cluster, the latest first."""
    from .jobs import list_jobs

    found = list_jobs(address)
    if json:
        print_json({"jobs": found})
        return
    if not found:
        typer.echo("no jobs")
        return
    rows: list[list[Any]] = [[j["id"], j["status"], j["seconds"], j["command"]] for j in found]
    print_table(["job", "status", "seconds", "command"], rows)


def variables(given: Sequence[str]) -> dict[str, str]:
    """`["A=1", "B"]` -> `{"A": "1", "B": <this environment's>}`.

    Raises:
        ValueError: A variable that is not set here, or an empty name. Values are never told.
    """
    out = {}
    for item in given:
        name, sign, value = item.partition("=")
        if not name:
            raise ValueError("--env wants KEY=VALUE or KEY, and got no key")
        if not sign and name not in os.environ:
            raise ValueError(f"--env {name}: not set in this environment; give {name}=VALUE")
        out[name] = value if sign else os.environ[name]
    return out


def _follow(job: Job, *, to_stderr: bool = False) -> None:
    try:
        for piece in job.logs(follow=True):
            typer.echo(printable(piece), nl=False, err=to_stderr)
    except KeyboardInterrupt:
        typer.echo(
            f"\njob {job.id} goes on: labelmesh logs {job.id} --follow, labelmesh stop {job.id}",
            err=True,
        )
        raise typer.Exit(RUN_FAILED) from None
