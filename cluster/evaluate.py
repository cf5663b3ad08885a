"""How well finished runs do on held-out samples, clean and under attack.

Everything heavy is imported inside the functions: the command line asks this module for its help.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from .output import print_json, print_table

_SPLITS = ("test", "val")


def evaluate(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Folders or URIs of finished runs.")
    ],
    split: Annotated[str, typer.Option(help="test or val")] = "test",
    attack: Annotated[
        list[str] | None, typer.Option(help="fgsm, ifgsm or cw; may be repeated.")
    ] = None,
    eps: Annotated[
        list[float] | None,
        typer.Option(
            help="Largest change of a value for fgsm and ifgsm, in units in which images lie in "
            "-1..1 (default 0.1); may be repeated."
        ),
    ] = None,
    count: Annotated[int | None, typer.Option(help="Samples to take; all unless given.")] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """Measure accuracy on held-out samples, clean and under adversarial attack."""
    if eps and not attack:
        raise ValueError("--eps is the size of an attack; choose one with --attack")
    names: list[str | None] = [*attack] if attack else [None]
    found = [
        evaluate_run(run, split=split, attack=name, eps=value, count=count)
        for run in runs
        for name in names
        for value in ((eps or [0.1]) if name in ("fgsm", "ifgsm") else [0.1])
    ]
    if json:
        print_json({"results": found})
        return
    keys = ["run", "method", "split", "count", "accuracy"]
    if attack:
        keys += ["attack", "eps", "accuracy_under_attack", "zero_gradient_share"]
        keys += ["mean_l2", "mean_linf"]
    keys.append("seconds")
    print_table(
        [key.replace("_", " ") for key in keys], [[row[key] for key in keys] for row in found]
    )


def evaluate_run(
    run: str,
    *,
    split: str = "test",
    attack: str | None = None,
    eps: float = 0.1,
    count: int | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Accuracy of a finished run's network on a held-out split; keys as in the command's table.

    Args:
        attack: "fgsm", "ifgsm" or "cw"; None = clean accuracy alone.
        eps: Largest change of a value for "fgsm" and "ifgsm", in normalised units (images lie in
            -1..1).
        count: Samples to take, the same ones for every run and attack; None = all.
        batch_size: Samples that are predicted and attacked together, `train.extract_batch_size`
            unless told.
        options: Further options of `trainers.robustness.AttackSpec`.

    Raises:
        ValueError: No finished run, no such split or attack, or options out of range.
    """
    from ..trainers.config import method_name
    from ..trainers.predict import Predictor
    from ..trainers.robustness import AttackSpec, measure
    from ..trainers.run_dir import RunDir

    folder = RunDir(run)
    predictor = Predictor(folder)
    spec = None
    if attack is not None:
        spec = AttackSpec(attack, eps=eps, **options)
    start = time.perf_counter()
    size = batch_size or predictor.spec.train.extract_batch_size
    batches = _labeled_batches(
        folder.child("split.parquet"), predictor.spec.data.uri, split, count, size
    )
    found = measure(predictor, batches, spec)
    return {
        "run": run,
        "method": method_name(predictor.spec.method),
        "split": split,
        "count": found.count,
        "accuracy": found.accuracy,
        "attack": attack,
        "eps": eps if attack in ("fgsm", "ifgsm") else None,
        "accuracy_under_attack": found.accuracy_under_attack,
        "zero_gradient_share": found.zero_gradient_share,
        "mean_l2": found.mean_l2,
        "mean_linf": found.mean_linf,
        "seconds": time.perf_counter() - start,
    }


def _labeled_batches(
    split_uri: str, data_uri: str, split: str, count: int | None, size: int
) -> Iterator[tuple[Any, Any]]:
    """Inputs and true classes of the split's samples, in order; those of unknown class left out."""
    import torch

    from ..datasets.reader import Reader
    from ..datasets.schema import UNLABELED
    from ..datasets.splits import Split
    from ..datasets.truth import load_truth

    if split not in _SPLITS:
        raise ValueError(f"split = {split!r}: choose from {', '.join(_SPLITS)}")
    if count is not None and count < 1:
        raise ValueError(f"count = {count}: must be 1 or more")
    saved = Split.load(split_uri)
    rows = saved.test_rows if split == "test" else saved.val_rows
    if not len(rows):
        raise ValueError(f"the run has no {split!r} samples; choose another split")
    if count is not None:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        rows = rows[order[:count].sort().values]
    truth = load_truth(data_uri, rows)
    rows, truth = rows[truth >= 0], truth[truth >= 0]
    reader = Reader(data_uri, rows, torch.full((len(rows),), UNLABELED))
    for ids in torch.split(torch.arange(len(rows)), size):
        batch = reader.read(ids)
        yield batch.inputs, truth[batch.node_ids]
