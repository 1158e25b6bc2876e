"""`make fuzz`: all kinds of cases, tens of thousands of them. Prints how many of each, `fuzz_cases N` last."""

import argparse
import sys
import time
from collections.abc import Callable

from tests.fuzz.calls import fuzz_calls, fuzz_loads
from tests.fuzz.files import fuzz_access_file, fuzz_config_json, fuzz_manifest, fuzz_pbtxt

CASES: dict[str, tuple[Callable[[int], int], int]] = {
    "calls": (lambda cases: fuzz_calls(cases).cases, 32_000),
    "loads": (lambda cases: fuzz_loads(cases).cases, 3_000),
    "config_pbtxt": (lambda cases: fuzz_pbtxt(cases).cases, 12_000),
    "config_json": (lambda cases: fuzz_config_json(cases).cases, 4_000),
    "manifest": (lambda cases: fuzz_manifest(cases).cases, 3_000),
    "access_file": (lambda cases: fuzz_access_file(cases).cases, 3_000),
}
LEAST = 50_000
"""Cases that a whole run must have had."""


def main() -> int:
    """Runs all; a fault ends it, with the case that shows it made as small as can be."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--times", type=float, default=1.0, help="so many times the usual cases")
    times: float = parser.parse_args().times
    total = 0
    for name, (run, cases) in CASES.items():
        started_at = time.monotonic()
        done = run(round(cases * times))
        total += done
        sys.stdout.write(f"fuzz_{name} {done}\nfuzz_{name}_seconds {time.monotonic() - started_at:.0f}\n")
        sys.stdout.flush()
    sys.stdout.write(f"fuzz_cases {total}\n")
    return 0 if total >= LEAST * min(1.0, times) else 1


sys.exit(main())
