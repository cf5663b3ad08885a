"""`labelmesh status`: what runs are doing, once or as it goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .job_commands import Address
from .output import duration, print_json, print_table, printable, wide_console

if TYPE_CHECKING:
    from rich.console import RenderableType

_LOOK_EVERY_S = 2.0


def status(
    place: Annotated[
        str, typer.Argument(metavar="[RUN|FOLDER]", help="A run, or a folder of runs; or a URI.")
    ] = "runs",
    watch: Annotated[bool, typer.Option("--watch", help="Go on until all runs have ended.")] = (
        False
    ),
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Also the Ray cluster's nodes and jobs.")
    ] = False,
    address: Address = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = (
        False
    ),
) -> None:
    """Show what runs are doing: rounds, steps, time left, restarts, and what to do if one died."""
    if watch and (json or cluster or address):
        raise ValueError(
            "--watch shows runs alone, for people; leave out --json, --cluster and --address"
        )
    ray = _ask_cluster(address) if cluster or address else None
    entries = _examine(place, may_be_none=ray is not None)
    if watch:
        _watch(place)
    elif json:
        print_json({"runs": entries} if ray is None else {"runs": entries, "cluster": ray})
    else:
        if entries:
            wide_console().print(_shown(entries))
        if ray is not None:
            _print_cluster(ray)


def _ask_cluster(address: str | None) -> dict[str, Any]:
    from .jobs import cluster_status

    return cluster_status(address)


def _print_cluster(ray: Mapping[str, Any]) -> None:
    def used(node: Mapping[str, Any], kind: str) -> str:
        return f"{node[f'{kind}_used']:g} of {node[kind]:g}"

    nodes = [
        [node["host"], node["ip"], used(node, "cpus"), used(node, "gpus"), node["memory_gib"]]
        for node in ray["nodes"]
    ]
    header = ["node", "address", "CPUs in use", "GPUs in use", "memory, GiB"]
    print_table(header, nodes, title=f"Ray {ray['ray']} at {ray['address']}")
    if ray["jobs"]:
        jobs = [[job["id"], job["status"], job["seconds"], job["command"]] for job in ray["jobs"]]
        print_table(["job", "status", "seconds", "command"], jobs)


def _examine(place: str, *, may_be_none: bool = False) -> list[dict[str, Any]]:
    """All runs there.

    Raises:
        ValueError: There is none, though there should be.
    """
    from .status import examine, find_runs

    runs = find_runs(place)
    if not runs and not may_be_none:
        raise ValueError(f"no runs in {place!r}; give the folder of a run, or one that holds runs")
    return [examine(run, time.time()) for run in runs]


def _watch(place: str) -> None:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), auto_refresh=False) as live:
        while True:
            entries = _examine(place)
            live.update(_shown(entries), refresh=True)
            if not any(is_going_on(entry) for entry in entries):
                return
            time.sleep(_LOOK_EVERY_S)


def is_going_on(entry: Mapping[str, Any]) -> bool:
    """Whether a driver is at work."""
    return entry["state"] not in {"finished", "failed", "paused", "stopped", "gone", "unfinished"}


def _shown(entries: Sequence[Mapping[str, Any]]) -> RenderableType:
    """One run with all that is known, several as a table."""
    from rich.table import Table
    from rich.text import Text

    from .status import facts

    table = Table(box=None, pad_edge=False, show_header=len(entries) > 1, header_style="bold")
    if len(entries) == 1:
        table.title, table.title_justify = Text(printable(entries[0]["name"]), style="bold"), "left"
        for name, text in facts(entries[0]).items():
            table.add_row(Text(name), Text(printable(text), overflow="fold"))
        return table
    for name in ("name", "state", "progress", "left", "loss", "coverage", "restarts"):
        table.add_column(name)
    for entry in entries:
        table.add_row(*(Text(printable(text)) for text in _row(entry)))
    return table


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    def share(key: str) -> str:
        return "-" if entry.get(key) is None else f"{100 * entry[key]:.1f} %"

    left, loss = entry.get("seconds_left"), entry.get("loss")
    return (
        str(entry["name"]),
        str(entry["doing"]),
        share("progress"),
        "-" if left is None else duration(left),
        "-" if loss is None else f"{loss:.4f}",
        share("coverage"),
        str(entry.get("restarts", "-")),
    )
