"""The results in `benchmarks/results`, and in the section of docs/benchmarks.md between its two comments."""

import json
import re
from pathlib import Path

from benchmarks.cluster.events import EVENTS
from benchmarks.cluster.figures import BOUNDS, wanted
from benchmarks.cluster.ways import WAYS
from benchmarks.engines.machine import describe_machine, file_stem

_ROOT = Path(__file__).parents[2]
_SECTION = re.compile(r"(<!-- cluster: begin -->\n).*(<!-- cluster: end -->)", re.DOTALL)


def save(figures: dict[str, float], rounds: list[dict[str, float]]) -> None:
    """Writes the results file of this machine, and the section."""
    machine = describe_machine()
    path = _ROOT / "benchmarks" / "results" / f"cluster-{file_stem(machine)}.json"
    content = {"machine": machine, "figures": figures, "rounds": rounds}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    page = _ROOT / "docs" / "benchmarks.md"
    where = f"{machine['processor']}, {machine['cores']} cores"
    lines = [
        f"{machine['date']}: {where}; {len(rounds)} rounds, all of them in `{path.relative_to(_ROOT)}`.",
        "",
        *_events_table(figures),
        "",
        *_figures_table(figures),
    ]
    text = page.read_text(encoding="utf-8")
    page.write_text(_SECTION.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[2], text), encoding="utf-8")


def _events_table(figures: dict[str, float]) -> list[str]:
    lines = [
        f"| lost of all calls; tried again after a failure; p99 over the usual | {' | '.join(WAYS)} |",
        f"|---|{'---|' * len(WAYS)}",
    ]
    for event in (*EVENTS, "partition"):
        cells = [
            f"{figures[f'lost_{way}_{event}']:.0f} of {figures[f'calls_{way}_{event}']:,.0f}; "
            f"{figures[f'retried_{way}_{event}']:.0f}"
            + (f"; {figures[ratio]:.1f}" if (ratio := f"p99_{way}_{event}") in figures else "")
            for way in WAYS
            if f"lost_{way}_{event}" in figures
        ]
        if len(cells) == len(WAYS):
            lines.append(f"| {event} | {' | '.join(cells)} |")
    return lines


def _figures_table(figures: dict[str, float]) -> list[str]:
    lines = ["| figure | seen | wanted |", "|---|---|---|"]
    for name, value in figures.items():
        if re.match(r"(lost|calls|retried|p99|wrong|forgotten|stale|fresh)_(envoy|client|nginx)", name):
            continue
        bounds = [wanted(bound) for bound in BOUNDS if bound.names.fullmatch(name)]
        lines.append(f"| `{name}` | {value:.4g} | {bounds[0] if bounds else ''} |")
    return lines
