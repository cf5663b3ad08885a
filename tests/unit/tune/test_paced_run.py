"""A run that goes on only as far as somebody asks for its rounds."""

from __future__ import annotations

import pytest
from labelmesh.tune.paced_run import GivenUp, PacedRun
from labelmesh.tune.trial import Report


class Rounds:
    """Reports rounds 1 to 3, and notes how far it came and how it ended."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.end = ""

    def __call__(self, report: Report) -> None:
        try:
            for round in (1, 2, 3):
                self.begun.append(round)
                report(round, round / 10)
            self.end = "finished"
        except GivenUp as error:
            self.end = str(error)
            raise


def test_rounds_come_one_by_one_and_none_is_begun_before_it_is_asked_for() -> None:
    run = Rounds()
    paced = PacedRun(run)
    assert run.begun == []
    for round in (1, 2, 3):
        assert paced.next() == (round, round / 10)
        assert run.begun == list(range(1, round + 1))
    assert paced.next() is None
    assert run.end == "finished"
    paced.give_up()


def test_who_gives_a_run_up_waits_until_it_has_ended() -> None:
    run = Rounds()
    paced = PacedRun(run)
    paced.next()
    paced.next()
    paced.give_up()
    assert run.begun == [1, 2]
    assert run.end == "the sweep gave the point up after round 2"


def test_a_run_that_was_never_begun_may_be_given_up() -> None:
    run = Rounds()
    PacedRun(run).give_up()
    assert run.begun == []


def test_what_breaks_a_run_reaches_who_asks_for_its_rounds() -> None:
    def broken(report: Report) -> None:
        report(1, 0.5)
        raise MemoryError("no room for the batch")

    paced = PacedRun(broken)
    assert paced.next() == (1, 0.5)
    with pytest.raises(MemoryError, match="no room for the batch"):
        paced.next()
