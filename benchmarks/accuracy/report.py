"""The report's files: JSON under benchmarks/results/, and a section of docs/benchmarks.md made from it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy.measuring import Absence, ModelAccuracy, Row
from tests.numerics.agreement import SCORES, Closeness, RankAgreement

RESULTS = Path(__file__).parents[1] / "results"
DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"
_RANKS_TEXT = (
    "Ranks on the retrieval set, against the reference's order: top-1 / top-10 / Kendall's tau, over 40 queries: "
    "one query is 0.025. This model's sparse weights are a fixed table of ids: its sparse figures say nothing of an "
    "engine."
)
_FAR = 3e-4
"""A least cosine that lies so far below the mean is told with its text."""
_BEGIN, _END = "<!-- {name}: begin, written by `make {name}` -->", "<!-- {name}: end -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyReport:
    """All models on one kind of device, `cpu` or `gpu`."""

    device: str
    machine: Mapping[str, str]
    models: Sequence[ModelAccuracy]


def results_path(device: str) -> Path:
    """Where the figures of a kind of device are kept."""
    return RESULTS / f"accuracy-{device}.json"


def write_report(report: AccuracyReport, path: Path) -> None:
    """Writes the figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(report), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_report(path: Path) -> AccuracyReport:
    """What `write_report` wrote."""
    document = json.loads(path.read_text(encoding="utf-8"))
    models = [_read_model(model) for model in document["models"]]
    return AccuracyReport(device=document["device"], machine=document["machine"], models=models)


def render_section(reports: Sequence[AccuracyReport]) -> str:
    """The section in Markdown, without its heading."""
    return "\n\n".join(part for report in reports for part in _render(report))


def replace_section(document: str, name: str, text: str) -> str:
    """The document with what stands between the two comments of a section replaced; added at its end if not there."""
    begin, end = _BEGIN.format(name=name), _END.format(name=name)
    before, found, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    if found and not closed:
        raise ValueError(f"the document has {begin} without {end}")
    if not found:
        before, after = document.rstrip("\n") + "\n\n", "\n"
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def _render(report: AccuracyReport) -> list[str]:
    lines = [f"On the {report.device.upper()}: {'; '.join(report.machine.values())}."]
    for model in report.models:
        texts = model.rows[0].closeness if model.rows else None
        count = f"{texts.texts} texts, {texts.tokens:,} tokens, " if texts else ""
        lines.append(f"### {model.model}, on the {report.device.upper()}")
        lines.append(f"{count}compared with {model.reference} on the CPU.")
        lines.append(_closeness_table(model.rows))
        outliers = [
            row for row in model.rows if row.closeness.dense_cosine_mean - row.closeness.dense_cosine_min > _FAR
        ]
        if outliers:
            worst = (f"{row.worst_text[:40]!r} ({row.engine} {row.precision})" for row in outliers)
            lines.append(
                f"The text with the least dense cosine, where that is well below the mean: {', '.join(worst)}."
            )
        if any(row.ranks for row in model.rows):
            lines.append(_RANKS_TEXT)
            lines.append(_rank_table(model.rows))
        if model.missing:
            lines.append(
                "\n".join(f"- {each.engine} {each.precision}: not run: {each.reason}" for each in model.missing)
            )
    return lines


def _closeness_table(rows: Sequence[Row]) -> str:
    titles = ["engine", "precision", "dense cosine, least / mean", "multi-vector, least / mean"]
    titles += ["same sparse ids, 10 / 50 / all", "largest weight error", "largest difference"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        each = row.closeness
        lines.append(
            f"| {row.engine} | {row.precision} | {each.dense_cosine_min:.6f} / {each.dense_cosine_mean:.6f} "
            f"| {each.multi_vector_cosine_min:.6f} / {each.multi_vector_cosine_mean:.6f} "
            f"| {each.overlap_10:.4f} / {each.overlap_50:.4f} / {each.overlap_all:.4f} "
            f"| {each.weight_error:.1e} | {each.difference:.1e} |"
        )
    return "\n".join(lines)


def _rank_table(rows: Sequence[Row]) -> str:
    titles = [score.replace("_", "-") for score in SCORES]
    lines = [f"| engine | precision | {' | '.join(titles)} |", "|---" * (2 + len(titles)) + "|"]
    for row in rows:
        cells = [
            f"{each.top_1:.3f} / {each.top_10:.3f} / {each.kendall:.4f}" for each in map(row.ranks.get, SCORES) if each
        ]
        lines.append(f"| {row.engine} | {row.precision} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _read_model(document: Mapping[str, Any]) -> ModelAccuracy:
    return ModelAccuracy(
        model=document["model"],
        reference=document["reference"],
        rows=[_read_row(row) for row in document["rows"]],
        missing=[Absence(**each) for each in document["missing"]],
    )


def _read_row(document: Mapping[str, Any]) -> Row:
    ranks = {score: RankAgreement(**figures) for score, figures in document["ranks"].items()}
    return Row(**{**document, "closeness": Closeness(**document["closeness"]), "ranks": ranks})
