"""Trivec's engines as systems of the contest: served, and called directly."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from trivec_client.vectors import WireEncoding
from trivec_server.repository.engines import choose_engine, this_machine
from trivec_server.types import InstanceKind

from benchmarks.engines.engine_process import open_engine
from benchmarks.engines.figures import DIRECT_SUFFIX
from benchmarks.engines.peers.catalog import ALL_THREE
from benchmarks.engines.served import ServedTrivec
from benchmarks.engines.systems import DirectSystem, Entrant
from benchmarks.engines.variants import Variant, make_repository, served_version
from benchmarks.engines.weights import BenchmarkModel


def auto_variant(variants: Sequence[Variant], kind: InstanceKind) -> Variant:
    """The variant of the engine that `backend: "auto"` chooses on this machine; its own precision comes first."""
    engine = choose_engine(this_machine(), kind, None, None).name
    return next((variant for variant in variants if variant.engine == engine), variants[0])


def system_name(variant: Variant) -> str:
    """As tables call it."""
    return f"trivec {variant.name}"


def open_served(model: BenchmarkModel, variant: Variant, kind: str, wire: WireEncoding) -> ServedTrivec:
    """`trivec serve` with one variant."""
    log = model.work / "logs" / f"served-{variant.name}.log"
    return ServedTrivec(make_repository(model, variant, kind=kind), wire, log)


def served_entrant(model: BenchmarkModel, variant: Variant, wire: WireEncoding) -> Entrant:
    """On the CPU."""
    return Entrant(
        system_name(variant), ALL_THREE, partial(open_served, model, variant, "KIND_CPU", wire), model.bytes * 3 // 2
    )


def direct_entrant(model: BenchmarkModel, variant: Variant, log: Path) -> Entrant:
    """On the CPU."""
    return Entrant(
        system_name(variant) + DIRECT_SUFFIX,
        ALL_THREE,
        partial(_open_direct, model, variant, log),
        model.bytes * 3 // 2,
    )


def _open_direct(model: BenchmarkModel, variant: Variant, log: Path) -> DirectSystem:
    repository = make_repository(model, variant, kind="KIND_CPU")
    return open_engine(served_version(repository, variant), variant, "CPU", log)
