"""A graph sweep: points of a space, scored by cross-validation on the labels of one snapshot.

Nothing is trained. Neighbours are searched once, at the largest k; all points share that memory.
The truth of unlabeled nodes is never read.

    <out>/points.jsonl      first what was swept, then the points, chain by chain

A sweep that was cut off goes on where it was: what is asked for is a function of the scores, and
chains that are complete are not solved again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..trainers.run_dir import RunDir
from .graph_folds import deal_folds
from .graph_params import Params
from .graph_points import Problem, Snapshot, chains
from .graph_search import Searcher, Tpe, grid, key_of, random
from .graph_spec import GraphSweep
from .graph_workers import on_threads
from .points import Point, SweepResult, from_json, to_json

POINTS_FILE = "points.jsonl"
Chain = tuple[Params, ...]
Runner = Callable[[Problem, Sequence[Chain]], Iterator[tuple[int, list[Point]]]]
OnPoints = Callable[[Sequence[Point]], None]


@dataclass
class _Book:
    """Points that are scored, in memory and, where there is a folder, in its file."""

    out: RunDir | None = None
    points: dict[str, Point] = field(default_factory=dict)

    def knows(self, chain: Chain) -> bool:
        return all(key_of(params) in self.points for params in chain)

    def enter(self, points: Iterable[Point]) -> None:
        for point in points:
            self.points[key_of(point.params)] = point
            if self.out is not None:
                self.out.append(POINTS_FILE, to_json(point))


def run_graph_sweep(
    sweep: GraphSweep,
    snapshot: Snapshot,
    *,
    out: str | None = None,
    resume: bool = False,
    runner: Runner = on_threads,
    on_points: OnPoints = lambda points: None,
) -> SweepResult:
    """Score the points of a sweep.

    Args:
        out: Folder for `points.jsonl`, at any fsspec URI.
        resume: Go on with the points that are there.
        runner: Solves chains; the scores do not depend on it.
        on_points: Told of points as they are scored.

    Raises:
        ValueError: Labels that cannot be hidden, a grid over a continuum, or a folder that holds
            points already (of another sweep, if these are to be resumed).
    """
    splits = deal_folds(
        snapshot.labels,
        snapshot.num_classes,
        num_folds=sweep.folds.count,
        repeats=sweep.folds.repeats,
        max_judged=sweep.folds.max_judged,
        seed=sweep.folds.seed,
    )
    problem = Problem(snapshot, splits, sweep.metric, sweep.unreached, sweep.tol)
    book = _open_book(sweep, snapshot, out, resume=resume)
    searcher, found = _searcher(sweep), list[Point]()
    while batch := searcher.ask():
        cut = [tuple(batch[number] for number in chain) for chain in chains(batch)]
        missing = [chain for chain in cut if not book.knows(chain)]
        for _, points in runner(problem, missing):
            book.enter(points)
            on_points(points)
        scored = [book.points[key_of(params)] for params in batch]
        searcher.tell(scored)
        found += scored
    return SweepResult(
        name=sweep.name,
        metric=sweep.metric,
        mode="max",
        keys=sweep.space.keys,
        points=tuple(found),
        log_keys=sweep.space.log_keys,
    )


def _searcher(sweep: GraphSweep) -> Searcher:
    how = sweep.search
    if how.searcher == "grid":
        return grid(sweep.space, sweep.fixed)
    if how.searcher == "random":
        return random(sweep.space, sweep.fixed, how.num_samples, how.seed)
    return Tpe(sweep.space, sweep.fixed, how.num_samples, seed=how.seed, batch=how.batch)


def _open_book(sweep: GraphSweep, snapshot: Snapshot, out: str | None, *, resume: bool) -> _Book:
    if out is None:
        return _Book()
    folder, swept = RunDir(out), {"sweep": sweep.name, "of": fingerprint(sweep, snapshot)}
    if not folder.exists(POINTS_FILE):
        folder.append(POINTS_FILE, swept)
        return _Book(folder)
    if not resume:
        raise ValueError(
            f"{out} holds the points of a sweep; go on with --resume, or give another --out"
        )
    first, *rest = _whole_lines(folder)
    if first != swept:
        raise ValueError(
            f"{out} holds points of another sweep, or of other features or labels, so it cannot "
            "be resumed; give another --out"
        )
    folder.write_text(POINTS_FILE, "".join(json.dumps(line) + "\n" for line in [first, *rest]))
    return _Book(folder, {key_of(p.params): p for p in map(from_json, rest)})


def _whole_lines(folder: RunDir) -> list[dict[str, Any]]:
    """Lines of the points' file; one that a kill cut off is not one."""
    lines = folder.read_text(POINTS_FILE).split("\n")
    return [json.loads(line) for line in lines[:-1]] or [{}]


def fingerprint(sweep: GraphSweep, snapshot: Snapshot) -> str:
    """What the score of a point depends on, besides the point.

    The space and the number of samples are not in it, so that a sweep can be resumed with more of
    them; chains are solved again where they have changed.
    """
    digest = hashlib.sha256()
    about = {
        "metric": sweep.metric,
        "unreached": sweep.unreached,
        "tol": sweep.tol,
        "folds": sweep.folds.model_dump(),
        "classes": snapshot.num_classes,
        "graph": snapshot.metric,
    }
    digest.update(json.dumps(about, sort_keys=True).encode())
    for column in (snapshot.labels, snapshot.neighbor_ids[:, :1], snapshot.distances[:, :1]):
        digest.update(column.to(torch.float64).contiguous().numpy().tobytes())
    return digest.hexdigest()
