"""
Three nodes behind Envoy, by client-side balancing and behind nginx, under load, while they fail, stop and change. The
last lines are `name value`; the exit code is 1 if one is out of its bounds.

    python -m benchmarks.cluster --rounds 3 --save
    python -m benchmarks.cluster --part envoy --event hang
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.cluster.events import EVENTS
from benchmarks.cluster.figures import combine, judge, print_figures
from benchmarks.cluster.parts import PARTS, USUAL_PARTS, Parts, Plan
from benchmarks.cluster.results import save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n\n")[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="only this; may be repeated")
    parser.add_argument("--event", action="append", choices=[*EVENTS, "partition"], help="only this; may be repeated")
    parser.add_argument("--rounds", type=int, default=1, help="of all but the soak, which is one")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results and docs/benchmarks.md")
    arguments = parser.parse_args()
    plan = Plan(events=tuple(arguments.event or Plan().events))
    rounds: list[dict[str, float]] = []
    for number in range(arguments.rounds):
        figures: dict[str, float] = {}
        with tempfile.TemporaryDirectory(prefix="trivec-cluster-") as folder, Parts(plan, Path(folder)) as parts:
            for part in arguments.part or USUAL_PARTS:
                if part != "soak" or number == 0:
                    figures |= parts.measure(part)
        rounds.append(figures)
    figures = combine(rounds)
    missed = judge(figures)
    if arguments.save:
        save(figures, rounds)
    for line in missed.values():
        print(f"MISSED: {line}")
    print_figures(figures)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
