"""Requests that a server refuses, and the words it does that with."""

from collections import Counter
from concurrent.futures import Future
from typing import Any

from tritonclient.grpc import service_pb2 as pb  # type: ignore[import-not-found, unused-ignore]

from tests.triton.recording import Calls, Session, outcome, response
from tests.triton.requests import (
    element,
    float_message,
    floats,
    message,
    raw_input,
    raw_output,
    steps,
    text_message,
    texts,
)

calls = Calls()
fatal = Calls()
"""What a Triton of this version ends at: called last."""

_ROW = bytes(64)
_PAIR = (raw_input("INT32", [1, 16], "INPUT0"), raw_input("INT32", [1, 16], "INPUT1"))


def _send(name: str, request: Any) -> None:
    calls.add(f"refused: {name}", lambda session: response(session.stub.ModelInfer(request)))


_send("unknown model", message("none_such", raw_input("FP32", [1, 1]), raw=[bytes(4)]))
_send("no model", message("", raw_input("FP32", [1, 1]), raw=[bytes(4)]))
_send("unknown version", float_message(model_version="9"))
_send("version that is no number", float_message(model_version="one"))
_send("version with more behind its number", float_message(model_version="1.5"))
_send("negative version", float_message(model_version="-2"))
_send("version of -1", float_message(model_version="-1"))
_send("version of zero", float_message(model_version="0"))
_send("version beyond 64 bits", float_message(model_version="99999999999999999999"))

_send("input twice", message("identity_fp32", raw_input("FP32", [1, 1]), raw_input("FP32", [1, 1]), raw=[bytes(4)] * 2))
_send("output twice", float_message(outputs=[raw_output(), raw_output()]))
_send(
    "contents beside raw contents",
    message("identity_fp32", raw_input("FP32", [1, 1], fp32_contents=[1]), raw=[bytes(4)]),
)
_send(
    "contents of one input, raw contents of the other",
    message("simple", raw_input("INT32", [1, 16], int_contents=[1] * 16), _PAIR[1], raw=[_ROW]),
)
_send("too few raw buffers", message("simple", *_PAIR, raw=[_ROW]))
_send("no contents", message("identity_fp32", raw_input("FP32", [1, 1])))
_send("no contents of bytes", message("identity_bytes", raw_input("BYTES", [1, 1])))
_send("contents of another type", message("identity_fp32", raw_input("FP32", [1, 2], int_contents=[1, 2])))
_send("contents of another width", message("identity_fp32", raw_input("FP32", [1, 2], fp64_contents=[1, 2])))
_send("bytes given as numbers", message("identity_bytes", raw_input("BYTES", [1, 1], int_contents=[1])))
_send("too few typed values", message("identity_fp32", raw_input("FP32", [1, 3], fp32_contents=[1, 2])))
_send("too many typed values", message("identity_fp32", raw_input("FP32", [1, 1], fp32_contents=[1, 2])))
_send("too few typed elements", message("identity_bytes", raw_input("BYTES", [1, 2], bytes_contents=[b"a"])))
_send("too many typed elements", message("identity_bytes", raw_input("BYTES", [1, 1], bytes_contents=[b"a", b"b"])))
_send(
    "two kinds of contents",
    message("identity_fp32", raw_input("FP32", [1, 1], fp32_contents=[1], int_contents=[1])),
)
_send("unknown output", float_message(outputs=[raw_output("OUTPUT7")]))
_send("unknown input", message("identity_fp32", raw_input("FP32", [1, 1], "INPUT7"), raw=[bytes(4)]))
_send(
    "an input too many",
    message("identity_fp32", raw_input("FP32", [1, 1]), raw_input("FP32", [1, 1], "INPUT7"), raw=[bytes(4)] * 2),
)
_send("no input", message("identity_fp32"))
_send("one input of two", message("simple", _PAIR[0], raw=[_ROW]))
_send("no input of two", message("simple"))
_send("too many rows", float_message([9, 1], bytes(36)))
_send("rows that differ", message("simple", _PAIR[0], raw_input("INT32", [2, 16], "INPUT1"), raw=[_ROW, _ROW * 2]))
_send("no dimension", float_message([], bytes(4)))
_send(
    "no dimension of the second input", message("simple", _PAIR[0], raw_input("INT32", [], "INPUT1"), raw=[_ROW, _ROW])
)
_send("no rows", float_message([0, 2], b""))
_send("another type", message("identity_fp32", raw_input("FP64", [1, 1]), raw=[bytes(8)]))
_send("numbers for bytes", message("identity_bytes", raw_input("FP32", [1, 1]), raw=[bytes(4)]))
_send("unknown type", message("identity_fp32", raw_input("FP33", [1, 1]), raw=[bytes(4)]))
_send("no type", message("identity_fp32", raw_input("", [1, 1]), raw=[bytes(4)]))
_send("a type in lower case", message("identity_fp32", raw_input("fp32", [1, 1]), raw=[bytes(4)]))
_send("another shape", message("simple", raw_input("INT32", [1, 8]), _PAIR[1], raw=[_ROW[:32], _ROW]))
_send("a dimension too many", float_message([1, 2, 1], bytes(8)))
_send("a dimension too few", float_message([2], bytes(8)))
_send("another shape without a batch dimension", message("nobatch", raw_input("FP32", [2, 3]), raw=[bytes(24)]))
_send("a negative dimension", float_message([1, -2], bytes(8)))
_send("a dimension of -1", float_message([1, -1], bytes(8)))
_send("a negative number of rows", float_message([-1, 2], bytes(8)))
_send("all dimensions negative", float_message([-1, -2], bytes(8)))
_send("negative typed", message("identity_fp32", raw_input("FP32", [1, -2], fp32_contents=[1, 2])))
_send("negative bytes", text_message([1, -1], element(b"a")))
_send("too few bytes", float_message([1, 2], bytes(7)))
_send("too many bytes", float_message([1, 2], bytes(9)))
_send("no bytes", float_message([1, 2], b""))
_send("bytes of a shape without values", float_message([1, 0], bytes(4)))
_send("2 GB of numbers in 4 bytes", float_message([1, 536_870_912], bytes(4)))
_send("numbers beyond 64 bits", float_message([1, 2**62], bytes(4)))
_send("a product beyond 64 bits", message("nobatch", raw_input("FP32", [2**63 - 1, 2]), raw=[bytes(4)]))
_send("2 GB of text in 4 bytes", text_message([1, 2_147_483_648], bytes(4)))
_send("a length beyond its buffer", text_message([1, 1], b"\xff\xff\xff\x7fabc"))
_send("a length cut short", text_message([1, 1], b"\x01\x00"))
_send("a text cut short", text_message([1, 1], element(b"hello")[:-2]))
_send("elements too few", text_message([1, 2], element(b"a")))
_send("elements too many", text_message([1, 1], element(b"a") * 2))
_send("no elements", text_message([1, 1], b""))
_send("a length cut short behind an element", text_message([1, 1], element(b"a") + b"\x00"))

_send("timeout as text", float_message(given={"timeout": "soon"}))
_send("timeout as a fraction", float_message(given={"timeout": 0.5}))
_send("negative timeout", float_message(given={"timeout": -5}))
_send("priority as text", float_message(given={"priority": "high"}))
_send("negative priority", float_message(given={"priority": -1}))
_send("priority without levels", float_message(given={"priority": 7}))
_send("sequence_start as a number", float_message(given={"sequence_start": 1}))
_send("sequence_end as text", float_message(given={"sequence_end": "yes"}))
_send("sequence_id as a flag", float_message(given={"sequence_id": True}))
_send("sequence_id", float_message(given={"sequence_id": 5, "sequence_start": True, "sequence_end": True}))
_send("sequence_id as text", float_message(given={"sequence_id": "five", "sequence_start": True}))
_send("a parameter of Triton's own", float_message(given={"triton_mine": 1}))
_send("triton_enable_empty_final_response", float_message(given={"triton_enable_empty_final_response": True}))
_send("triton_enable_empty_final_response as text", float_message(given={"triton_enable_empty_final_response": "yes"}))
_send("headers", float_message(given={"headers": "x"}))
_send("binary_data_output", float_message(given={"binary_data_output": True}))
_send("classification as text", float_message(outputs=[raw_output(classification="many")]))
_send("negative classification", float_message(outputs=[raw_output(classification=-1)]))
_send(
    "input in unknown shared memory",
    message(
        "identity_fp32",
        raw_input("FP32", [1, 1], given={"shared_memory_region": "none_such", "shared_memory_byte_size": 4}),
    ),
)
_send(
    "output in unknown shared memory",
    float_message(outputs=[raw_output(shared_memory_region="none_such", shared_memory_byte_size=4)]),
)
_send(
    "shared memory without a size",
    message("identity_fp32", raw_input("FP32", [1, 1], given={"shared_memory_region": "none_such"})),
)
_send("FP16 as typed contents of another type", message("identity_fp32", raw_input("FP16", [1, 1], fp32_contents=[1])))
_send("a model that fails", message("pick", raw_input("INT64", [1, 1]), raw=[(99).to_bytes(8, "little")]))
_send(
    "order: input twice and unknown output",
    message(
        "identity_fp32",
        raw_input("FP32", [1, 1]),
        raw_input("FP32", [1, 1]),
        raw=[bytes(4)] * 2,
        outputs=[raw_output("OUTPUT7")],
    ),
)
_send("order: unknown output and no input", message("identity_fp32", outputs=[raw_output("OUTPUT7")]))
_send("order: another type and too many rows", message("identity_fp32", raw_input("FP64", [9, 1]), raw=[bytes(4)]))
_send("order: another type and shape", message("simple", raw_input("FP32", [1, 8]), _PAIR[1], raw=[_ROW, _ROW]))
_send(
    "order: another shape and too few bytes",
    message("simple", raw_input("INT32", [1, 8]), _PAIR[1], raw=[bytes(3), _ROW]),
)
_send("order: bad parameter and unknown model", message("none_such", given={"triton_mine": 1}))
_send("order: bad parameter and bad input", message("identity_fp32", given={"timeout": "soon"}))
_send(
    "order: contents twice and unknown output",
    message(
        "identity_fp32", raw_input("FP32", [1, 1], fp32_contents=[1]), raw=[bytes(4)], outputs=[raw_output("OUTPUT7")]
    ),
)
_send("with a request id", float_message(id="mine", outputs=[raw_output("OUTPUT7")]))
_send("a shape, with a request id", float_message([1, 2, 1], id="mine"))

_BYTES_CLASSIFIED = message(
    "identity_bytes", raw_input("BYTES", [1, 1]), raw=[element(b"a")], outputs=[raw_output(classification=1)]
)
fatal.add("fatal: classification of bytes", lambda session: response(session.stub.ModelInfer(_BYTES_CLASSIFIED)))

calls.add("refused: client's unknown model", lambda session: session.client.infer("none_such", floats(1)))
calls.add(
    "refused: client's reserved parameter",
    lambda session: session.client.infer("simple", [], parameters={"priority": 1}),
)
calls.add("refused: client's number as version", lambda session: session.client.infer("simple", [], model_version=1))
calls.add("refused: client's bytes for numbers", lambda session: session.client.infer("identity_fp32", texts(["a"])))


@calls("refused: a full queue")
def _full(session: Session) -> Any:
    """Eight requests at once for one instance and a queue of two: what they came to, without how often."""
    return _outcomes(session, "slow", 8, steps_each=300_000, given={})


@calls("refused: too long in the queue")
def _late(session: Session) -> Any:
    """Four requests at once; those that wait pass the time that the model allows."""
    return _outcomes(session, "slow_refusing", 4, steps_each=300_000, given={})


@calls("refused: too long in the queue, by its own timeout")
def _impatient(session: Session) -> Any:
    return _outcomes(session, "slow_refusing", 4, steps_each=300_000, given={"timeout": 20_000})


def _outcomes(session: Session, model: str, count: int, steps_each: int, given: dict[str, Any]) -> Any:
    raw = steps(steps_each)[0]._get_content()
    futures: list[Future[pb.ModelInferResponse]] = [
        session.stub.ModelInfer.future(message(model, raw_input("INT64", [1, 1]), raw=[raw], given=given, id="mine"))
        for _ in range(count)
    ]
    told = [outcome(lambda future=future: response(future.result())["outputs"]) for future in futures]  # type: ignore[misc]
    return sorted(Counter(f"{one['code']}: {one.get('message', 'done')}" for one in told))
