"""Follow random histories of moving rows until the time is up, and check every state of them.

    make fuzz                                  ten minutes from seed 0
    make fuzz SEED=5000 SECONDS=3600           an hour of other histories
    python tests/fuzz --seed 1234 --count 1    repeat a failure: its message names the seed

Histories are those of `updates.random_case`: all kinds of data and motion, ties, insertion and
removal, tolerances, 1, 2, 3 or 8 shards, and small blocks. Prints the dearest updates at the end:
their pairs over those of a build. The exit status is the number of failures, at most 20.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback

import torch
from labelmesh.tests.fuzz.updates import Case, check_case, cost, history, random_case

NUM_SHARDS = (1, 1, 1, 2, 3, 8)
MOST_FAILURES = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the first history")
    parser.add_argument("--seconds", type=float, default=600.0, help="no history starts later")
    parser.add_argument("--count", type=int, default=sys.maxsize, help="histories at most")
    options = parser.parse_args()
    torch.set_num_threads(1)
    end, failures = time.monotonic() + options.seconds, 0
    costs: list[tuple[float, str]] = []
    seed = options.seed
    while seed < options.seed + options.count and time.monotonic() < end:
        case = random_case(seed)
        shards = min(NUM_SHARDS[seed % len(NUM_SHARDS)], case.num_rows)
        try:
            costs += dear_updates(case, shards)
        except Exception:
            failures += 1
            print(f"seed {seed} failed:\n{traceback.format_exc()}", flush=True)
        seed += 1
        if failures >= MOST_FAILURES:
            break
    print(f"histories {options.seed} to {seed - 1}: {failures} failures")
    for factor, what in sorted(costs, reverse=True)[:10]:
        print(f"{factor:6.2f} builds: {what}")
    return failures


def dear_updates(case: Case, num_shards: int) -> list[tuple[float, str]]:
    """Updates of one history that evaluated more pairs than a build; small graphs do not count."""
    found = []
    for number, (step, state) in enumerate(zip(history(case), check_case(case, num_shards))):
        factor = cost(state, step.active)
        if factor > 1 and case.num_rows >= 150:
            uncertified = int(step.active.sum()) - state.report.certified
            what = f"{step.move} of {case.kind}, {uncertified} rows that no list certifies"
            found.append((factor, f"{what} (seed {case.seed}, update {number})"))
    return found


if __name__ == "__main__":
    sys.exit(main())
