"""Limits and failures that protect the server itself: huge texts, results held in memory, an engine's own end."""

import asyncio
from pathlib import Path

import grpc
import pytest
from trivec.v1 import embedding_pb2 as pb
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub
from trivec_server.backends.interface import TokenBatch
from trivec_server.errors import LoadError
from trivec_server.repository.engines import onnxruntime_engine
from trivec_server.repository.registry import State
from trivec_server.settings import Limits

from tests.rpc.running_server import running_server
from tests.scripted_engine import Script
from tests.small_repository import make_repository


@pytest.mark.parametrize("truncation", [pb.TRUNCATION_ERROR, pb.TRUNCATION_RIGHT])
async def test_a_text_over_the_limit_is_refused_by_index_before_it_is_tokenized(
    tmp_path: Path, truncation: "pb.Truncation.ValueType"
) -> None:
    script = Script()
    async with running_server(make_repository(tmp_path), script, limits=Limits(max_text_bytes=100)) as server:
        stub = EmbeddingServiceStub(server.channel)
        checked = len(script.batches)
        for call in (
            stub.Embed(pb.EmbedRequest(texts=["w10", "é" * 51], truncation=truncation)),
            stub.Tokenize(pb.TokenizeRequest(texts=["w10", "é" * 51], truncation=truncation)),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "texts[1]: has 102 bytes; at most 100 are allowed" in str(caught.value.details())
        assert (await stub.Embed(pb.EmbedRequest(texts=["é" * 50]))).usage.total_tokens
        assert len(script.batches) == checked + 1


async def test_results_held_in_memory_count_as_float32_whatever_their_encoding(tmp_path: Path) -> None:
    script = Script()
    limits = Limits(max_held_bytes=500)
    async with running_server(make_repository(tmp_path), script, limits=limits) as server:
        stub = EmbeddingServiceStub(server.channel)
        script.gate.clear()
        request = pb.EmbedRequest(texts=["w10"], modes=[pb.MODE_MULTI_VECTOR], encoding=pb.VECTOR_ENCODING_BINARY)
        first = stub.Embed(request)
        await asyncio.to_thread(_entered_after_checks, script)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Embed(request)
        script.gate.set()
        await first
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "the limit is 500" in str(caught.value.details())


def _entered_after_checks(script: Script) -> None:
    """Waits for a batch beyond those of the self-check."""
    checks = len(script.batches)
    while len(script.batches) == checks and not script.entered.acquire(timeout=60):
        raise AssertionError("no batch came")


async def test_an_engine_thread_that_ends_makes_its_model_unavailable_and_fails_its_requests(tmp_path: Path) -> None:
    def end_thread(_: TokenBatch) -> None:
        raise SystemExit

    script = Script()
    async with running_server(make_repository(tmp_path), script) as server:
        stub = EmbeddingServiceStub(server.channel)
        script.before_run = end_thread
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Embed(pb.EmbedRequest(texts=["w10"]))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "the engine of this model has failed" in str(caught.value.details())
        (record,) = server.registry.records()
        assert record.state is State.UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Embed(pb.EmbedRequest(texts=["w10"]))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_gpus_for_an_engine_on_the_cpu_are_refused(tmp_path: Path) -> None:
    from trivec_server.backends.interface import EngineRequest  # noqa: PLC0415 - used here alone
    from trivec_server.types import InstanceKind  # noqa: PLC0415 - used here alone

    request = EngineRequest(
        version_dir=tmp_path, kind=InstanceKind.AUTO, device_index=1, precision=None, intra_op_threads=None
    )
    with pytest.raises(LoadError, match="names `gpus`"):
        onnxruntime_engine(request)
