"""Runs the candidates on a model, one after the other, and compares what they give with the reference."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from trivec_server.backends.interface import EngineLost
from trivec_server.errors import LoadError

from benchmarks.accuracy.candidates import REFERENCES, Candidate, ModelVersions, build
from benchmarks.accuracy.corpus import PASSAGE_ROWS, QUERY_ROWS, Sample, tokenize
from tests.numerics.agreement import (
    SCORES,
    Closeness,
    RankAgreement,
    closeness,
    embed_sequences,
    rank_agreement,
    score_passages,
)
from tests.numerics.embeddings import TextEmbedding


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """
    One candidate beside the reference; `worst_text` has the least dense cosine; `ranks` by score, empty where ranks say
    nothing.
    """

    engine: str
    precision: str
    device: str
    closeness: Closeness
    worst_text: str
    ranks: dict[str, RankAgreement]


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """A candidate that cannot run this model on this machine, and why."""

    engine: str
    precision: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAccuracy:
    """All candidates on one model. `reference` names what they are compared with."""

    model: str
    reference: str
    rows: list[Row]
    missing: list[Absence]


def measure_model(
    name: str,
    versions: ModelVersions,
    texts: Sequence[Sample],
    candidates: Sequence[Candidate],
    *,
    rank: bool,
) -> ModelAccuracy:
    """
    Every candidate on every text. Prints a line for each.

    Args:
        name: The model, for people.
        versions: Its versions.
        texts: What `corpus.samples` gives, in that order.
        candidates: What to run.
        rank: Whether the model's weights are real, so that the order of passages means something.

    Raises:
        LoadError: no reference can run the model.
    """
    sequences = tokenize(texts, versions.pulled, versions.settings)
    reference, expected = _reference(versions, sequences)
    print(f"{name}: {len(sequences)} texts, {sum(map(len, sequences))} tokens, compared with {reference}", flush=True)
    rows, missing = list[Row](), list[Absence]()
    for candidate in candidates:
        if candidate == reference:
            continue
        started = time.monotonic()
        try:
            device, actual = _run(candidate, versions, sequences)
        except (LoadError, MemoryError, EngineLost) as error:
            missing.append(_absence(candidate, str(error)))
            continue
        figures = closeness(actual, expected)
        if not math.isfinite(figures.difference):
            missing.append(_absence(candidate, "gave numbers that are not finite"))
            continue
        row = Row(
            engine=candidate.engine,
            precision=candidate.precision,
            device=device,
            closeness=figures,
            worst_text=texts[figures.worst_text].text,
            ranks=compare_ranks(actual, expected) if rank else {},
        )
        rows.append(row)
        passed_s = time.monotonic() - started
        print(f"  {candidate}: dense cosine at least {figures.dense_cosine_min:.6f} ({passed_s:.0f} s)", flush=True)
    return ModelAccuracy(model=name, reference=str(reference), rows=rows, missing=missing)


def _absence(candidate: Candidate, reason: str) -> Absence:
    print(f"  {candidate}: {reason}", flush=True)
    return Absence(engine=candidate.engine, precision=candidate.precision, reason=reason)


def compare_ranks(actual: Sequence[TextEmbedding], expected: Sequence[TextEmbedding]) -> dict[str, RankAgreement]:
    """The agreement of each score's ranks on the retrieval set, which lies first in both."""
    ours, theirs = (score_passages(each[QUERY_ROWS], each[PASSAGE_ROWS]) for each in (actual, expected))
    return {score: rank_agreement(ours[score], theirs[score]) for score in SCORES}


def _reference(
    versions: ModelVersions, sequences: Sequence[Sequence[int]]
) -> tuple[Candidate, Sequence[TextEmbedding]]:
    reasons = []
    for candidate in REFERENCES:
        try:
            return candidate, _run(candidate, versions, sequences)[1]
        except LoadError as error:
            reasons.append(f"{candidate}: {error}")
            print(f"not the reference: {reasons[-1]}", flush=True)
    raise LoadError("no reference can run here: " + "; ".join(reasons))


def _run(
    candidate: Candidate, versions: ModelVersions, sequences: Sequence[Sequence[int]]
) -> tuple[str, list[TextEmbedding]]:
    """The device and the embeddings. The engine is closed before the next is built."""
    engine = build(candidate, versions)
    try:
        return engine.info.device, embed_sequences(engine, sequences)
    finally:
        engine.close()
