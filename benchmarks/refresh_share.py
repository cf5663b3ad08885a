"""Share of an epoch that the refresh round takes, from the records of a finished run.

    python benchmarks/refresh_share.py runs/dag-fashion-mnist

Prints seconds per part (extract, search, solve, publish), summed over the rounds before an epoch,
and their share of rounds and training together. The round after the last epoch is left out.
"""

from __future__ import annotations

import argparse

from labelmesh.trainers.run_dir import RunDir

PARTS = ("extract", "search", "solve", "publish")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    run = RunDir(parser.parse_args().run)
    rounds = run.read_lines("rounds.jsonl")
    # A round records the training before it: round 0 stands after the warm-up.
    train = sum(r["seconds_train"] for r in rounds[1:])
    total = train + sum(r["seconds"] for r in rounds[:-1])
    print("| part | seconds | share |\n| --- | --- | --- |")
    for part in PARTS:
        seconds = sum(r[f"seconds_{part}"] for r in rounds[:-1])
        print(f"| {part} | {seconds:.1f} | {seconds / total:.1%} |")
    print(f"| whole round | {total - train:.1f} | {1 - train / total:.1%} |")
    print(f"| training | {train:.1f} | {train / total:.1%} |")


if __name__ == "__main__":
    main()
