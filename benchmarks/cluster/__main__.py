"""
Three nodes behind Envoy, behind nginx and by client-side balancing, under load, while they fail, stop and change.

    python -m benchmarks.cluster --part faults --way envoy --event hang
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.cluster.events import EVENTS
from benchmarks.cluster.figures import judge, print_figures
from benchmarks.cluster.parts import PARTS, Plan, run_part
from benchmarks.cluster.ways import WAYS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n\n")[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="only this; may be repeated")
    parser.add_argument("--way", action="append", choices=WAYS, help="only this way; may be repeated")
    parser.add_argument("--event", action="append", choices=[*EVENTS, "partition"], help="only this; may be repeated")
    arguments = parser.parse_args()
    plan = Plan(
        ways=tuple(arguments.way or WAYS),
        events=tuple(arguments.event or (*EVENTS, "partition")),
    )
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="trivec-cluster-") as folder:
        for part in arguments.part or PARTS:
            figures |= run_part(part, plan, Path(folder))
    missed = judge(figures)
    for line in missed:
        print(f"MISSED: {line}")
    print_figures(figures)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
