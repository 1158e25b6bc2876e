"""
Every engine of Trivec and every peer on this CPU: the same weights, the same texts, in turn. The last lines are
`name value`.

    python -m benchmarks.engines.cpu

Trivec is measured through gRPC, server and client on the same cores; the peers as library calls in a process of their
own (Triton through its own gRPC). `--small` tries all of it in a minute with a tiny model, whose figures say nothing.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trivec_client.vectors import WireEncoding
from trivec_server.backends.hardware import usable_physical_cores
from trivec_server.types import InstanceKind

from benchmarks.engines.contest import Contest, fastest_setting
from benchmarks.engines.environments import environment
from benchmarks.engines.figures import DIRECT_SUFFIX, cpu_figures
from benchmarks.engines.latency import measure_beside_engine, measure_latency, measure_lengths, measure_load
from benchmarks.engines.machine import describe_machine, file_stem
from benchmarks.engines.peers.catalog import CPU_PEERS, Peer, options_of
from benchmarks.engines.plots import write_plots
from benchmarks.engines.process import ROOT, SystemFailed, WorkerProcess
from benchmarks.engines.report import print_report
from benchmarks.engines.results import Results, SystemResult
from benchmarks.engines.served import ServedTrivec
from benchmarks.engines.systems import DirectSystem, Entrant, PeerSystem, Residents
from benchmarks.engines.trivec_entrants import auto_variant, direct_entrant, served_entrant, system_name
from benchmarks.engines.variants import CPU_VARIANTS
from benchmarks.engines.weights import make_model
from benchmarks.engines.workload import TextMaker

WIRE: WireEncoding = "float32"
_RESERVE_BYTES = 2 << 30
_WARM_STEP = 4
_YARDSTICKS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    texts: int
    latencies: int
    peer_latencies: int
    lengths: tuple[int, ...]
    length_tokens: int
    clients: tuple[int, ...]
    load_s: float


FULL = Sizes(64, 100, 5, (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192), 2048, (1, 2, 4, 8, 16, 32), 5.0)
SMALL = Sizes(16, 12, 2, (16, 64, 256, 1024), 1024, (1, 4), 0.5)


class CpuBenchmark:
    """One run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._sizes = SMALL if arguments.small else FULL
        self._texts = arguments.texts or self._sizes.texts
        self._model = make_model(arguments.work, small=arguments.small)
        self._logs = self._model.work / "logs"
        self._logs.mkdir(exist_ok=True)
        self._maker = TextMaker(self._model.tokenizer_file, arguments.seed)
        self._mixed = self._maker.mixed_corpus(self._texts)
        self._residents = Residents(_RESERVE_BYTES)
        self._variants = [each for each in CPU_VARIANTS if not arguments.engines or each.name in arguments.engines]
        self._chosen = auto_variant(self._variants, InstanceKind.CPU)
        self._tried: dict[str, dict[str, float]] = {}
        self._products: dict[str, list[float]] = {}
        self._results = Results(
            kind="cpu",
            machine=describe_machine(),
            workload=self._workload(),
            chosen=system_name(self._chosen),
            price_per_hour=arguments.price_per_hour,
            currency=arguments.currency,
        )

    def run(self) -> Results:
        """All measurements."""
        served = [served_entrant(self._model, variant, WIRE) for variant in self._variants]
        direct = direct_entrant(self._model, self._chosen, self._log("direct"))
        peers = [self._peer_entrant(peer) for peer in CPU_PEERS if self._is_wanted(peer)]
        yardstick = self._open_yardstick()
        chosen = next(each for each in served if each.name == system_name(self._chosen))
        others = [
            *(each for each in served if each is not chosen),
            *(each for each in peers if isinstance(each, Entrant)),
        ]
        contest = Contest(others, self._mixed, self._residents, pair=(chosen, direct))
        try:
            for _ in range(self._arguments.rounds):
                contest.round(before_pair=partial(self._measure_yardstick, yardstick))
                self._end_yardstick_round()
            self._results.systems = [*contest.results, *(each for each in peers if isinstance(each, SystemResult))]
            for result in self._results.systems:
                result.tried = self._tried.get(result.name, {})
            self._or_note("latency and lengths", lambda: self._measure_chosen(contest, served, direct))
            for peer in peers:
                if isinstance(peer, Entrant):
                    self._or_note(f"latency of {peer.name}", partial(self._measure_peer_latency, contest, peer))
        finally:
            self._residents.end_all()
            if yardstick is not None:
                yardstick.close()
        self._results.figures = cpu_figures(self._results, self._model.shape, list(self._mixed.lengths))
        return self._results

    def _is_wanted(self, peer: Peer) -> bool:
        names: list[str] | None = self._arguments.peers
        return names is None or peer.name in names

    def _workload(self) -> dict[str, Any]:
        kind = (
            "a tiny random model" if self._model.small else "random weights in BGE-M3's shapes, 568 million parameters"
        )
        return {
            "texts": len(self._mixed.texts),
            "tokens": self._mixed.tokens,
            "longest": max(self._mixed.lengths),
            "seed": self._arguments.seed,
            "rounds": self._arguments.rounds,
            "model": kind,
        }

    def _log(self, name: str) -> Path:
        return self._logs / f"{name.replace(' ', '-').replace(',', '')}.log"

    def _peer_entrant(self, peer: Peer) -> Entrant | SystemResult:
        """The peer in its fastest setting, or why there is none."""
        print(f"{peer.name}: making it ready", flush=True)
        tried = self._tried.setdefault(peer.name, {})
        may_install = not self._arguments.no_install
        try:
            python = environment(peer.environment, may_install=may_install)
            prepared = peer.prepare(self._model, may_install)
            opens = []
            for setting in peer.settings:
                options = options_of(setting, prepared, self._model, "cpu", usable_physical_cores())
                opens.append(partial(_open_peer, python, peer.module, options, self._log(peer.name)))
            best = fastest_setting(opens, self._mixed.every(2), tried)
        except SystemFailed as failure:
            print(f"{peer.name}: {failure}", flush=True)
            return SystemResult(peer.name, peer.outputs, failure=str(failure))
        return Entrant(peer.name, peer.outputs, opens[best], self._model.bytes * 2, _WARM_STEP)

    def _open_yardstick(self) -> WorkerProcess | None:
        """Plain matrix products with torch, of this environment or FlagEmbedding's."""
        try:
            python = Path(sys.executable)
            if find_spec("torch") is None:
                python = environment("flagembedding", may_install=not self._arguments.no_install)
            return WorkerProcess(python, "benchmarks.engines.matmul", {"device": "cpu"}, self._log("matmul"))
        except SystemFailed as failure:
            self._results.notes.append(f"no plain matrix product: {failure}")
            return None

    def _measure_yardstick(self, yardstick: WorkerProcess | None) -> None:
        if yardstick is None:
            return
        rates = yardstick.ask({"do": "matmul", "precisions": list(_YARDSTICKS)})["flops_per_s"]
        for precision, rate in rates.items():
            self._products.setdefault(precision, []).append(rate)

    def _end_yardstick_round(self) -> None:
        """The median of the round's products: they were between the turns of the engine that is held against them."""
        for precision, rates in self._products.items():
            self._results.matmul.setdefault(precision, []).append(statistics.median(rates))
        self._products = {}

    def _measure_chosen(self, contest: Contest, served: Sequence[Entrant], direct: Entrant) -> None:
        """Latency, lengths and load of the engine that `auto` chooses; throughput by length of the others too."""
        sizes, results = self._sizes, self._results
        working = contest.working
        name = system_name(self._chosen)
        by_name = {entrant.name: entrant for entrant in served}
        if name in working:
            server = self._residents.get(by_name[name], self._mixed)
            assert isinstance(server, ServedTrivec)
            characters = self._maker.of_characters(sizes.latencies, 100)
            results.latencies.append(measure_latency(name, server, characters))
            if name + DIRECT_SUFFIX in working:
                engine = self._residents.get(direct, self._mixed)
                assert isinstance(engine, DirectSystem)
                queries = self._maker.short_queries(sizes.latencies)
                results.latencies += measure_beside_engine(name, server, engine, queries)
            queries = self._maker.short_queries(256)
            results.load = measure_load(name, server, queries, sizes.clients, sizes.load_s)
            results.lengths = measure_lengths(name, server, self._maker, sizes.lengths, sizes.length_tokens)

    def _measure_peer_latency(self, contest: Contest, peer: Entrant) -> None:
        """A few calls, if the peer still runs."""
        if peer.name in contest.working:
            texts = self._maker.of_characters(self._sizes.peer_latencies, 100)
            system = self._residents.get(peer, self._mixed)
            self._results.latencies.append(measure_latency(peer.name, system, texts))

    def _or_note(self, what: str, measure: Callable[[], None]) -> None:
        """What fails late must not lose what was measured before."""
        try:
            measure()
        except SystemFailed as failure:
            self._results.notes.append(f"{what}: {failure}")


def _open_peer(python: Path, module: str, options: dict[str, Any], log: Path) -> PeerSystem:
    return PeerSystem(WorkerProcess(python, module, options, log))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    variants, peers = [variant.name for variant in CPU_VARIANTS], [peer.name for peer in CPU_PEERS]
    parser.add_argument("--small", action="store_true", help="a tiny model and few texts: to try the benchmark itself")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, help="of the mixed corpus; default 64")
    parser.add_argument("--seed", type=int, default=17, help="of the texts")
    parser.add_argument("--engines", nargs="+", metavar="ENGINE", choices=variants, help="of: " + ", ".join(variants))
    parser.add_argument("--peers", nargs="*", metavar="PEER", choices=peers, help="of: " + "; ".join(peers))
    parser.add_argument("--no-install", action="store_true", help="only peers whose environments are there")
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks" / "out" / "engines", help="for the models")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="for JSON and plots")
    parser.add_argument("--price-per-hour", type=float, default=0.1, help="of this machine, for the cost of tokens")
    parser.add_argument("--currency", default="USD")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    results = CpuBenchmark(arguments).run()
    stem = f"cpu-{file_stem(results.machine)}{'-small' if arguments.small else ''}"
    results.write(arguments.results / f"{stem}.json")
    write_plots(results, arguments.results, stem)
    print_report(results)


if __name__ == "__main__":
    main()
