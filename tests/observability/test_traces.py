"""A real server sends its spans to a real OTLP receiver; and is not disturbed where there is none."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inference import grpc_service_pb2 as kserve_pb
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from trivec.v1 import embedding_pb2 as pb
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub
from trivec_server.metrics import Metrics
from trivec_server.settings import TracingSettings
from trivec_server.transport.tracing import Tracing, open_tracing

from tests.command_line import trivec
from tests.observability.otlp_receiver import OtlpReceiver, ReceivedSpan, receiving
from tests.observability.scrape import scrape, scrape_until
from tests.scraped import Scraped
from tests.serving_process import ServingProcess, serve

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLER_SPAN_ID = "b7ad6b7169203331"
TRACE_PARENT = f"00-{TRACE_ID}-{CALLER_SPAN_ID}-01"
SECRET = "Xyzzyplugh"  # noqa: S105 - a word to look for
STAGES = ["tokenize", "queue", "compute"]


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def server(
    mini_repository: Path, receiver: OtlpReceiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServingProcess]:
    log_path = tmp_path_factory.mktemp("traces") / "server.log"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        environment.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=tests")
        flags = ("--otlp-endpoint", receiver.endpoint, "--log-format", "json")
        with serve(mini_repository, *flags, log_path=log_path) as server:
            yield server


@pytest.fixture(scope="module")
def channel(server: ServingProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.target) as channel:
        yield channel


@pytest.fixture(scope="module")
def tracing() -> Iterator[Tracing]:
    """That of a server, in this process."""
    with receiving() as receiver:
        tracing = open_tracing(TracingSettings(endpoint=receiver.endpoint, sample_ratio=1.0), Metrics())
        assert tracing is not None
        yield tracing
        tracing.close()


def embed(channel: grpc.Channel, request_id: str, *texts: str, **metadata: str) -> None:
    request = pb.EmbedRequest(texts=texts, request_id=request_id)
    EmbeddingServiceStub(channel).Embed(request, metadata=tuple(metadata.items()), timeout=60)


def children(spans: list[ReceivedSpan], parent: ReceivedSpan) -> list[ReceivedSpan]:
    return [each for each in spans if each.span.parent_span_id == parent.span.span_id]


def test_a_call_is_one_server_span_with_its_stages(channel: grpc.Channel, receiver: OtlpReceiver) -> None:
    embed(channel, "one-call", "a text", "another text")
    call, *stages = receiver.of_request("one-call")
    assert call.name == "trivec.v1.EmbeddingService/Embed"
    assert call.span.kind == Span.SPAN_KIND_SERVER
    assert call.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "trivec.v1.EmbeddingService/Embed",
        "rpc.response.status_code": "OK",
        "trivec.model": "m3-mini",
        "trivec.request_id": "one-call",
    }
    assert [stage.name for stage in stages] == STAGES
    assert children([call, *stages], call) == stages


def test_stages_follow_each_other_within_the_call(channel: grpc.Channel, receiver: OtlpReceiver) -> None:
    embed(channel, "in-order", "a text")
    call, *stages = receiver.of_request("in-order")
    instants = [
        instant for each in stages for instant in (each.span.start_time_unix_nano, each.span.end_time_unix_nano)
    ]
    assert instants == sorted(instants)
    # An instant of the engine's thread is a float of seconds: good to a microsecond.
    assert call.span.start_time_unix_nano <= instants[0] + 1000
    assert instants[-1] <= call.span.end_time_unix_nano + 1000


def test_compute_tells_its_batch(channel: grpc.Channel, receiver: OtlpReceiver) -> None:
    embed(channel, "batch-sizes", *(f"text {number}" for number in range(5)))
    compute = receiver.of_request("batch-sizes")[-1]
    assert compute.attributes["trivec.batch.rows"] == 5
    assert int(compute.attributes["trivec.batch.tokens"]) >= 15


def test_the_callers_trace_goes_on(channel: grpc.Channel, receiver: OtlpReceiver) -> None:
    embed(channel, "within", "a text", traceparent=TRACE_PARENT)
    call = receiver.wait_for(lambda each: each.attributes.get("trivec.request_id") == "within")
    assert call.span.trace_id.hex() == TRACE_ID
    assert call.span.parent_span_id.hex() == CALLER_SPAN_ID


def test_a_caller_that_does_not_sample_is_not_traced(channel: grpc.Channel, receiver: OtlpReceiver) -> None:
    embed(channel, "unsampled", "a text", traceparent=TRACE_PARENT.removesuffix("01") + "00")
    embed(channel, "sampled", "a text")
    receiver.of_request("sampled")
    assert not [each for each in receiver.spans if each.attributes.get("trivec.request_id") == "unsampled"]


def test_a_traceparent_that_is_none_begins_a_trace(channel: grpc.Channel, receiver: OtlpReceiver) -> None:
    embed(channel, "nonsense", "a text", traceparent="00-nonsense")
    assert not receiver.of_request("nonsense")[0].span.parent_span_id


def test_no_text_is_in_any_span(channel: grpc.Channel, receiver: OtlpReceiver) -> None:
    embed(channel, "secret", SECRET, f"{SECRET} again")
    spans = receiver.of_request("secret")
    assert not [each.name for each in spans if SECRET.encode() in each.raw]


def test_a_request_at_fault_is_no_error_of_the_server(channel: grpc.Channel, receiver: OtlpReceiver) -> None:
    with pytest.raises(grpc.RpcError):
        embed(channel, "no-texts")
    (call,) = receiver.of_request("no-texts")
    assert call.attributes["error.type"] == call.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert call.span.status.code == Status.STATUS_CODE_UNSET
    assert [event.name for event in call.span.events] == ["refused"]


def test_the_log_of_a_failed_call_has_its_trace(
    channel: grpc.Channel, server: ServingProcess, receiver: OtlpReceiver
) -> None:
    with pytest.raises(grpc.RpcError):
        embed(channel, "to-log")
    (call,) = receiver.of_request("to-log")
    (line,) = [line for line in map(json.loads, server.log.splitlines()) if line.get("request_id") == "to-log"]
    assert line["trace_id"] == call.span.trace_id.hex()


def test_a_stream_has_a_span_for_each_message(channel: grpc.Channel, receiver: OtlpReceiver) -> None:
    requests = [
        pb.EmbedStreamRequest(id=name, request=pb.EmbedRequest(texts=[name], request_id=f"message-{name}"))
        for name in ("a", "b")
    ]
    list(EmbeddingServiceStub(channel).EmbedStream(iter(requests), timeout=60))
    spans = receiver.of_request("message-a")
    stream = receiver.wait_for(
        lambda each: each.name.endswith("/EmbedStream") and each.span.trace_id == spans[0].span.trace_id
    )
    messages = children(receiver.spans, stream)
    assert [each.name for each in messages] == ["EmbedStream.message"] * 2
    for message in messages:
        assert [each.name for each in children(receiver.spans, message)] == STAGES


def test_kserve_calls_have_spans(channel: grpc.Channel, receiver: OtlpReceiver) -> None:
    infer: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer"
    )
    request = kserve_pb.ModelInferRequest(model_name="m3-mini", id="kserve-call")
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=[1, 1])
    tensor.contents.bytes_contents.append(b"a text")
    infer(request.SerializeToString(), metadata=(("x-request-id", "kserve-call"),), timeout=60)
    call, *stages = receiver.of_request("kserve-call")
    assert call.name == "inference.GRPCInferenceService/ModelInfer"
    assert [each.name for each in stages] == STAGES


def test_what_sends_the_spans_is_named(channel: grpc.Channel, receiver: OtlpReceiver) -> None:
    embed(channel, "resource", "a text")
    resource = receiver.of_request("resource")[0].resource
    assert resource["service.name"] == "trivec"
    assert resource["host.name"] == socket.gethostname()
    assert resource["deployment.environment.name"] == "tests"


def test_spans_sent_are_counted(channel: grpc.Channel, server: ServingProcess, receiver: OtlpReceiver) -> None:
    embed(channel, "counted", "a text")
    receiver.of_request("counted")
    assert scrape(server.metrics_port)("trivec_trace_spans_total", result="exported") > 0


def has_lost(spans: int, scraped: Scraped) -> bool:
    return scraped("trivec_trace_spans_total", result="failed") == spans


def test_an_unreachable_receiver_disturbs_nothing(
    mini_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls are answered, the loss is counted and logged once, and the server stops as ever."""
    with socket.socket() as taken:
        # Bound, and nobody listens.
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with (
            serve(mini_repository, "--otlp-endpoint", endpoint, log_path=tmp_path / "log") as server,
            grpc.insecure_channel(server.target) as channel,
        ):
            for spans in (4, 8):
                embed(channel, f"call-{spans}", "a text")
                scrape_until(server.metrics_port, partial(has_lost, spans))
            assert server.stop() == 0
    assert len(re.findall("traces are lost.*UNAVAILABLE", server.log)) == 1
    assert "opentelemetry" not in server.log.lower()


def test_a_log_line_names_the_callers_trace_where_none_is_sent(mini_repository: Path, tmp_path: Path) -> None:
    with (
        serve(mini_repository, "--log-format", "json", log_path=tmp_path / "log") as server,
        grpc.insecure_channel(server.target) as channel,
        pytest.raises(grpc.RpcError),
    ):
        embed(channel, "untraced", traceparent=TRACE_PARENT)
    (line,) = [line for line in map(json.loads, server.log.splitlines()) if line.get("request_id") == "untraced"]
    assert line["trace_id"] == TRACE_ID


def test_opentelemetry_is_not_imported_unless_asked_for() -> None:
    look = "import sys, trivec_server.lifecycle; print(*[name for name in sys.modules if 'opentelemetry' in name])"
    assert not subprocess.run([sys.executable, "-c", look], check=True, capture_output=True).stdout.strip()


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4317", "http://127.0.0.1", "ftp://a:1", "http://a:b", "http://a:1/v1"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    done = trivec("serve", "--otlp-endpoint", endpoint)
    assert done.code == 2
    assert f"{endpoint}: " in done.err
    assert "expected http://host:port" in done.err


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"),
        ("OTEL_PROPAGATORS", "nonsense"),
    ],
)
def test_a_variable_of_opentelemetry_that_is_wrong_is_one_line(
    mini_repository: Path, variable: str, value: str
) -> None:
    done = trivec(
        *("serve", "--model-repository", mini_repository, "--otlp-endpoint", "http://127.0.0.1:4317"),
        environment={variable: value},
    )
    assert done.code == 1
    assert re.fullmatch(rf"error: cannot trace to .* OTEL_\*: .*{value}.*\n", done.err)


@given(
    st.dictionaries(
        st.sampled_from(["traceparent", "tracestate", "baggage"]), st.text(st.characters(max_codepoint=126))
    )
)
def test_whatever_a_caller_sends_as_its_trace_a_call_has_a_span(tracing: Tracing, metadata: dict[str, str]) -> None:
    call = tracing.begin("Embed", metadata.items())
    assert re.fullmatch("[0-9a-f]{32}", call.trace_id)
    call.finish("OK", "m3-mini", "a-request")


def test_a_missing_extra_is_named(mini_repository: Path, tmp_path: Path) -> None:
    """A module in its place that is as missing as a package that is not installed."""
    missing = tmp_path / "opentelemetry" / "__init__.py"
    missing.parent.mkdir()
    missing.write_text("raise ModuleNotFoundError('no', name='opentelemetry')\n", encoding="utf-8")
    done = trivec(
        *("serve", "--model-repository", mini_repository, "--otlp-endpoint", "http://127.0.0.1:4317"),
        environment={"PYTHONPATH": str(tmp_path)},
    )
    assert done.code == 1
    assert done.err.strip() == "error: --otlp-endpoint needs the package opentelemetry: pip install 'trivec[otel]'"
