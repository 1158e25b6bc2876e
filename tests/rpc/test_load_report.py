"""Every answer says how busy the server is, and balancers send less to whoever is busier."""

import asyncio
import base64
import json
import time
from collections.abc import Mapping
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from trivec.v1 import embedding_pb2 as pb
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub
from trivec_server.serving.spine import Load
from trivec_server.settings import Limits, ServeSettings
from trivec_server.transport.load_report import LOAD_REPORT_KEY, LoadReport, Utilization, encode

from tests.raw_http2 import EMBED, EMBED_STREAM, RawClient, framed
from tests.rpc.running_server import busy_engine, running_server
from tests.scripted_engine import Script
from tests.small_repository import make_repository

_DOUBLE, _STRING, _MESSAGE = 1, 9, 11
_INFER = "/inference.GRPCInferenceService/ModelInfer"


def report_class() -> type[Message]:
    """OrcaLoadReport as balancers know it, in a pool of its own."""
    file = descriptor_pb2.FileDescriptorProto(name="report.proto", package="xds.data.orca.v3", syntax="proto3")
    message = file.message_type.add(name="OrcaLoadReport")
    numbers = {"cpu_utilization": 1, "mem_utilization": 2, "rps_fractional": 6, "eps": 7, "application_utilization": 9}
    for name, number in numbers.items():
        message.field.add(name=name, number=number, type=_DOUBLE, label=1)
    entry = message.nested_type.add(name="NamedMetricsEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=_STRING, label=1)
    entry.field.add(name="value", number=2, type=_DOUBLE, label=1)
    of_entries = ".xds.data.orca.v3.OrcaLoadReport.NamedMetricsEntry"
    message.field.add(name="named_metrics", number=8, type=_MESSAGE, type_name=of_entries, label=3)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("xds.data.orca.v3.OrcaLoadReport"))


def read(headers: Mapping[str, bytes]) -> dict[str, object]:
    """The report in an answer's headers."""
    packed = headers[LOAD_REPORT_KEY]
    report = report_class()()
    report.ParseFromString(base64.b64decode(packed + b"=" * (-len(packed) % 4)))
    return {field.name: value for field, value in report.ListFields()}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Node:
    """A report over one version with two engines, by a clock of its own."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.idle_s = 0.0
        self.queue_s = 0.0
        self.report = LoadReport(lambda: {"version": Load(2, self.idle_s, 10, self.queue_s)}, self.clock)
        self.report.measure()

    def pass_time(self, seconds: float, *, idle: float) -> None:
        """Time in which the engines waited for work for a share of it."""
        self.clock.now += seconds
        self.idle_s += 2 * seconds * idle


def test_the_report_is_what_balancers_read() -> None:
    report = report_class()()
    report.ParseFromString(
        encode(
            Utilization(application=1.5, cpu=0.5, memory=0.25, served=100.0, failed=2.0, queued_tokens=12, queue_s=0.75)
        )
    )
    fields = {field.name: value for field, value in report.ListFields()}
    assert dict(fields.pop("named_metrics")) == {"queued_tokens": 12.0, "queue_s": 0.75}
    assert fields == {
        "cpu_utilization": 0.5,
        "mem_utilization": 0.25,
        "rps_fractional": 100.0,
        "eps": 2.0,
        "application_utilization": 1.5,
    }


def test_utilization_is_the_share_of_time_in_which_engines_did_not_wait() -> None:
    node = Node()
    node.pass_time(2.0, idle=0.25)
    assert node.report.measure().application == pytest.approx(0.75)


def test_work_that_waits_takes_utilization_above_one() -> None:
    node = Node()
    node.pass_time(1.0, idle=0.0)
    node.queue_s = 2.0
    assert node.report.measure().application == pytest.approx(3.0)


def test_an_idle_server_reports_more_than_zero_which_would_mean_unknown() -> None:
    node = Node()
    node.pass_time(10.0, idle=1.0)
    assert 0 < node.report.measure().application < 0.01


def test_what_is_reported_is_of_the_last_second() -> None:
    node = Node()
    for idle in (0.0, 0.0, 1.0, 1.0):
        node.pass_time(0.5, idle=idle)
        used = node.report.measure().application
    assert used < 0.01


def test_a_burst_after_a_pause_is_not_averaged_over_the_pause() -> None:
    node = Node()
    node.pass_time(3600.0, idle=1.0)
    node.report.measure()
    used = []
    for _ in range(4):
        node.pass_time(0.1, idle=0.0)
        used.append(node.report.measure().application)
    assert used[2] > 0.9
    assert used[3] > 0.9


def test_calls_served_and_failed_are_counted_apart_and_those_for_no_model_are_no_load() -> None:
    node = Node()
    for model, code in (("m", "OK"), ("m", "INVALID_ARGUMENT"), ("m", "CANCELLED"), ("", "OK"), ("", "UNAVAILABLE")):
        node.report.count(model, code)
    node.report.count("m", "RESOURCE_EXHAUSTED")
    node.pass_time(2.0, idle=0.0)
    measured = node.report.measure()
    assert (measured.served, measured.failed) == (1.0, 1.0)


def test_a_report_serves_for_all_answers_of_a_tenth_of_a_second() -> None:
    node = Node()
    first = node.report.trailing()
    node.pass_time(0.05, idle=0.5)
    assert node.report.trailing() is first
    node.pass_time(0.06, idle=0.5)
    assert node.report.trailing() is not first


async def test_answers_and_refusals_of_every_kind_carry_a_report(tmp_path: Path) -> None:
    script = Script()
    message = pb.EmbedRequest(texts=["w10"])
    streamed = framed(pb.EmbedStreamRequest(id="a", request=message).SerializeToString())

    def ask(target: str) -> list[Mapping[str, bytes]]:
        with RawClient(target) as client:
            answers = [client.call(EMBED, message.SerializeToString()), client.call(EMBED, b"")]
            stream = client.begin(EMBED_STREAM)
            client.send(stream, streamed, ends=True)
            answers += [client.wait(stream), client.call(_INFER, b"")]
        return [answer.headers for answer in answers]

    async with running_server(make_repository(tmp_path), script) as server:
        answers = await asyncio.to_thread(ask, server.target)
    assert [int(headers["grpc-status"]) for headers in answers] == [0, 3, 0, 5]
    for headers in answers:
        report = read(headers)
        assert report["application_utilization"] > 0  # type: ignore[operator]
        assert report["rps_fractional"] > 0  # type: ignore[operator]


async def test_a_refusal_under_load_says_how_busy_the_server_is(tmp_path: Path) -> None:
    script = Script()

    def ask(target: str) -> Mapping[str, bytes]:
        with RawClient(target) as client:
            return client.call(EMBED, pb.EmbedRequest(texts=["w10"]).SerializeToString()).headers

    limits = Limits(max_queued_texts=1)
    async with running_server(make_repository(tmp_path), script, limits=limits) as server, busy_engine(server, script):
        headers = await asyncio.to_thread(ask, server.target)
    assert int(headers["grpc-status"]) == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert read(headers)["eps"] > 0  # type: ignore[operator]


async def test_no_report_where_it_is_switched_off(tmp_path: Path) -> None:
    settings = ServeSettings(load_report=False)

    def ask(target: str) -> Mapping[str, bytes]:
        with RawClient(target) as client:
            return client.call(EMBED, pb.EmbedRequest(texts=["w10"]).SerializeToString()).headers

    async with running_server(make_repository(tmp_path), Script(), settings=settings) as server:
        assert LOAD_REPORT_KEY not in await asyncio.to_thread(ask, server.target)


async def test_a_client_that_weighs_by_reports_sends_less_to_a_slower_server(tmp_path: Path) -> None:
    """gRPC's own policy, with two servers of which one takes four times as long."""
    config = {"loadBalancingConfig": [{"weighted_round_robin": {"blackoutPeriod": "0s", "weightUpdatePeriod": "0.1s"}}]}
    options = [("grpc.service_config", json.dumps(config))]
    fast = Script(before_run=lambda _: time.sleep(0.005))
    slow = Script(before_run=lambda _: time.sleep(0.02))
    one_by_one = "max_batch_size: 1\n"
    repositories = [make_repository(tmp_path / name, config=one_by_one) for name in ("fast", "slow")]
    beside = running_server(repositories[1], slow, alone=False)
    async with running_server(repositories[0], fast) as first, beside as second:
        addresses = ",".join(server.target for server in (first, second))
        async with grpc.aio.insecure_channel(f"ipv4:{addresses}", options=options) as channel:
            stub = EmbeddingServiceStub(channel)

            async def ask(count: int) -> None:
                for _ in range(count):
                    await stub.Embed(pb.EmbedRequest(texts=["w10"]))

            # Weights are known once both have answered for a while.
            await asyncio.gather(*(ask(30) for _ in range(4)))
            before = len(fast.batches), len(slow.batches)
            await asyncio.gather(*(ask(60) for _ in range(4)))
        by_fast, by_slow = len(fast.batches) - before[0], len(slow.batches) - before[1]
    assert by_fast + by_slow == 240
    assert by_fast > 2 * by_slow
