"""
KServe v2 of Trivec beside a real Triton and MLServer: texts of m3-mini with Triton's own clients, ready arrays from
all, and ModelInfer beside Trivec's own Embed; about 20 minutes. Servers on all cores but the last, clients on the last;
the servers are measured in turn, in several rounds of one run. The last lines are `name value`.

    python -m benchmarks.triton
"""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from inference import grpc_service_pb2 as kserve
from trivec.v1 import embedding_pb2 as pb

from benchmarks.engines.machine import describe_machine
from benchmarks.engines.process import ROOT, WorkerProcess
from benchmarks.engines.workload import TextMaker
from benchmarks.triton import servers
from benchmarks.triton.analyzer import analyze, write_texts
from benchmarks.triton.results import Loads, as_json, figures, table

RESULTS = ROOT / "benchmarks" / "results" / "bench-triton.json"
CLIENT = ROOT / ".venv-tritonclient" / "bin" / "python"
CLIENTS = ("sync", "aio", "stream", "perf_analyzer")
CONCURRENCIES = (1, 8, 32)
IN_FLIGHT = 32
ROWS = {"1 text": 1, "32 texts": 32}
_INFER = "/inference.GRPCInferenceService/ModelInfer"
_EMBED = "/trivec.v1.EmbeddingService/Embed"
_TEXTS = 512
_PARTS = 8
_SEED = 11
_LEAST_COSINE = 0.9999


@dataclass(frozen=True)
class Plan:
    """How long to measure, and where."""

    rounds: int
    seconds: float
    outputs: tuple[str, ...]
    server_cores: tuple[int, ...]
    client_core: int
    folder: Path

    def data(self, name: str) -> Path:
        return self.folder / f"{name}.json"


class Measurer:
    """Measures servers with all clients."""

    def __init__(self, plan: Plan, loads: Loads) -> None:
        self._plan = plan
        self._loads = loads
        options = {"cores": [plan.client_core], "items": str(plan.folder)}
        self._client = WorkerProcess(CLIENT, "benchmarks.triton.client_process", options, plan.folder / "client.log")

    def close(self) -> None:
        self._client.close()

    def texts(self, targets: Mapping[str, str], work: str, client: str, concurrency: int) -> None:
        """Requests of one text to the servers with m3-mini."""
        message = {"client": client, "items": work, "model": servers.MODEL, "outputs": self._plan.outputs}
        for server, target in targets.items():
            if client == "perf_analyzer":
                self._analyze(target, servers.MODEL, work, (work, client, concurrency, server))
            else:
                self._ask({**message, "target": target}, (work, client, concurrency, server))

    def compare_vectors(self, targets: Mapping[str, str], texts: Sequence[str]) -> None:
        """
        That the servers compute the same.

        Raises:
            SystemExit: they do not.
        """
        for text in texts:
            asked = [{"do": "dense", "model": servers.MODEL, "text": text, "target": each} for each in targets.values()]
            vectors = [np.array(self._client.ask(message)["dense"]) for message in asked]
            cosine = vectors[0] @ vectors[1] / np.prod([np.linalg.norm(vector) for vector in vectors])
            if cosine < _LEAST_COSINE:
                raise SystemExit(f"{' and '.join(targets)} do not compute the same: cosine {cosine:.6f} for {text!r}")

    def ready(self, targets: Mapping[str, str], name: str, *, client: str) -> None:
        """Requests to the servers with ready arrays."""
        for server, target in targets.items():
            key = (f"ready, {name}", client, IN_FLIGHT, server)
            if client == "perf_analyzer":
                self._analyze(target, servers.READY, "short", key)
            else:
                message = {"client": client, "items": f"ready, {name}", "method": _INFER, "target": target}
                self._ask(message, key, ROWS[name])

    def calls(self, target: str, name: str) -> None:
        """ModelInfer and Embed of one server, the same texts and an equally light client."""
        for call, method in (("ModelInfer", _INFER), ("Embed", _EMBED)):
            message = {"client": "bytes", "items": f"{call}, {name}", "method": method, "target": target}
            self._ask(message, (f"calls, {name}", "bytes", IN_FLIGHT, call), ROWS[name])

    def _ask(self, message: Mapping[str, object], key: tuple[str, str, int, str], rows: int = 1) -> None:
        asked = {"do": "measure", "concurrency": key[2], "seconds": self._plan.seconds, **message}
        answer = self._client.ask(asked)
        self._loads.of(*key).add(answer["rate"] * rows, answer["latencies_s"])

    def _analyze(self, target: str, model: str, data: str, key: tuple[str, str, int, str]) -> None:
        analyzed = analyze(target, model, self._plan.data(data), concurrency=key[2], cores=[self._plan.client_core])
        self._loads.of(*key).add(analyzed.rate, [], analyzed.p99_s)


def write_items(plan: Plan) -> None:
    """The texts, and the messages that the light client sends."""
    maker = TextMaker(servers.tokenizer_file(), _SEED)
    short = maker.short_queries(_TEXTS)
    # In parts that all have the same lengths: however far a server gets, its texts are as long as another's.
    mixed = [text for _ in range(_PARTS) for text in maker.mixed_corpus(_TEXTS // _PARTS).texts]
    for name, texts in (("mixed", mixed), ("short", short.texts)):
        (plan.folder / name).write_text("\n".join(texts), encoding="utf-8")
        write_texts(plan.data(name), texts)
    for count, rows in ROWS.items():
        parts = [[short.texts[(start + row) % _TEXTS] for row in range(rows)] for start in range(0, _TEXTS, rows)]
        messages = {
            "ready": [infer_request(part, "vector") for part in parts],
            "ModelInfer": [infer_request(part, "dense") for part in parts],
            "Embed": [embed_request(part) for part in parts],
        }
        for call, made in messages.items():
            (plan.folder / f"{call}, {count}").write_text("\n".join(message.hex() for message in made))


def infer_request(texts: Sequence[str], output: str) -> bytes:
    """Some texts to the model `ready`."""
    encoded = [text.encode() for text in texts]
    request = kserve.ModelInferRequest(
        model_name=servers.READY,
        inputs=[kserve.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[len(texts), 1])],
        outputs=[kserve.ModelInferRequest.InferRequestedOutputTensor(name=output)],
        raw_input_contents=[b"".join(len(text).to_bytes(4, "little") + text for text in encoded)],
    )
    return request.SerializeToString()


def embed_request(texts: Sequence[str]) -> bytes:
    """The same of Trivec's own call."""
    return pb.EmbedRequest(texts=texts, encoding=pb.VECTOR_ENCODING_FLOAT32).SerializeToString()


def measure_texts(plan: Plan, loads: Loads) -> None:
    """m3-mini in Trivec and in Triton."""
    with ExitStack() as stack:
        measurer = Measurer(plan, loads)
        stack.callback(measurer.close)
        targets = {
            "triton": stack.enter_context(servers.triton(plan.folder, plan.outputs, plan.server_cores)),
            "trivec": stack.enter_context(servers.trivec(plan.folder, plan.outputs, plan.server_cores)),
        }
        measurer.compare_vectors(targets, (plan.folder / "mixed").read_text(encoding="utf-8").splitlines()[:8])
        for number in range(plan.rounds):
            for work in ("mixed", "short"):
                for client in CLIENTS:
                    # One at a time is for the table alone: once is enough.
                    for concurrency in CONCURRENCIES if number == 0 else CONCURRENCIES[1:]:
                        measurer.texts(in_turn(targets, number), work, client, concurrency)
            print(f"texts: round {number + 1} of {plan.rounds}", flush=True)


def measure_ready(plan: Plan, loads: Loads) -> None:
    """Ready arrays, the servers on one core."""
    core = plan.server_cores[0]
    with ExitStack() as stack:
        measurer = Measurer(plan, loads)
        stack.callback(measurer.close)
        targets = {
            "triton": stack.enter_context(servers.triton_ready(plan.folder, core)),
            "trivec": stack.enter_context(servers.trivec_ready(plan.folder, core)),
            "mlserver": stack.enter_context(servers.mlserver_ready(plan.folder, core)),
        }
        own = stack.enter_context(servers.trivec_embedding_ready(plan.folder, core))
        # MLServer has no ModelConfig, which perf_analyzer wants.
        analyzed = {name: target for name, target in targets.items() if name != "mlserver"}
        for number in range(plan.rounds):
            # perf_analyzer would hold gigabytes of answers of 32 texts.
            measurer.ready(in_turn(analyzed, number), "1 text", client="perf_analyzer")
            for name in ROWS:
                measurer.ready(in_turn(targets, number), name, client="bytes")
                measurer.calls(own, name)
            print(f"ready arrays: round {number + 1} of {plan.rounds}", flush=True)


def in_turn(targets: Mapping[str, str], number: int) -> dict[str, str]:
    """Each round another server is the first."""
    names = list(targets)
    first = number % len(names)
    return {name: targets[name] for name in names[first:] + names[:first]}


def write_results(plan: Plan, loads: Loads, path: Path = RESULTS) -> None:
    """What was measured, where and with what."""
    settings = {
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "outputs": plan.outputs,
        "server_cores": len(plan.server_cores),
        "triton_max_batch_size": servers.TRITON_BATCH_SIZE,
        "trivec_max_batch_size": servers.MAX_BATCH_SIZE,
    }
    machine = describe_machine()
    machine["versions"] |= servers.peer_versions()
    written = {"machine": machine, "settings": settings, "figures": figures(loads), "loads": as_json(loads)}
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5, help="per measurement")
    parser.add_argument("--outputs", default="dense", help="what requests to m3-mini ask for, with commas between")
    parser.add_argument("--small", action="store_true", help="one short round, whose figures say nothing")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("needs two cores: one for the servers, one for the clients")
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(
            rounds=1 if arguments.small else arguments.rounds,
            seconds=0.3 if arguments.small else arguments.seconds,
            outputs=tuple(arguments.outputs.split(",")),
            server_cores=tuple(cores[:-1]),
            client_core=cores[-1],
            folder=Path(folder),
        )
        write_items(plan)
        loads = Loads()
        measure_texts(plan, loads)
        measure_ready(plan, loads)
    results = figures(loads)
    if not arguments.small:
        write_results(plan, loads)
    print("\n".join(table(loads)))
    for name, value in results.items():
        print(f"{name} {value:.3f}")


if __name__ == "__main__":
    main()
