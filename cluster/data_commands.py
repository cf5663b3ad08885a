"""`labelmesh data ...`: bring data into the on-disk format, hide labels, look at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any

import typer

from .output import print_facts, print_json

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Dest = Annotated[str, typer.Argument(metavar="DEST", help="Folder or URI of the data set.")]


def build_data_app() -> typer.Typer:
    """The `data` group."""
    app = typer.Typer(help="Import, split and inspect data sets.", no_args_is_help=True)
    app.command("import")(import_)
    app.command()(split)
    app.command()(info)
    return app


def import_(
    format: Annotated[
        str,
        typer.Argument(metavar="FORMAT", help="digits, idx, sheets, cifar, folder, embeddings ..."),
    ],
    paths: Annotated[
        list[str],
        typer.Argument(metavar="[SOURCE] DEST", help="Where from (digits: nothing), where to."),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Option of the importer; may be repeated."),
    ] = None,
    json: Json = False,
) -> None:
    """Read one of the known formats and write a data set."""
    from ..datasets.importing import import_dataset
    from ..trainers.config import parse_overrides

    if len(paths) > 2:
        raise ValueError(f"data import takes SOURCE and DEST, but {len(paths)} were given: {paths}")
    source = paths[0] if len(paths) == 2 else None
    _print(import_dataset(format, source, paths[-1], **parse_overrides(set_ or [])), json)


def split(
    dest: Dest,
    labels_per_class: Annotated[int, typer.Option(help="Labels that stay, of each class.")],
    seed: Annotated[int, typer.Option(help="Which ones: the same seed, the same nodes.")] = 0,
    json: Json = False,
) -> None:
    """Keep a few labels per class and hide the others; the truth stays for evaluation."""
    from ..datasets.splits import write_split

    _print(write_split(dest, labels_per_class=labels_per_class, seed=seed), json)


def info(dest: Dest, json: Json = False) -> None:
    """Show what a data set holds."""
    from ..datasets.manifest import statistics

    _print(statistics(dest), json)


def _print(result: Any, json: bool) -> None:
    facts: Mapping[str, Any] = (
        asdict(result) if is_dataclass(result) and not isinstance(result, type) else dict(result)
    )
    print_json(facts) if json else print_facts(facts)
