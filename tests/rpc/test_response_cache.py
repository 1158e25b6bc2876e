"""`response_cache` of a served model: every method asks the same cache, and the answers are the same."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeVar

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from inference import grpc_service_pb2 as kserve
from trivec.v1 import embedding_pb2 as pb
from trivec_server.settings import ControlMode, ServeSettings

from tests.rpc.running_server import RunningServer, embed, running_server
from tests.rpc.scripted_answers import check_embedding
from tests.scripted_engine import DIMENSION, Script, expected_dense
from tests.small_repository import ids_of, make_repository, make_version
from tests.vector_decoding import ENCODINGS

CACHED = "response_cache { enable: true }\n"
HYBRID = [pb.MODE_HYBRID]
AnswerT = TypeVar("AnswerT", bound=Message)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def server(tmp_path: Path, script: Script) -> AsyncIterator[RunningServer]:
    async with running_server(make_repository(tmp_path, config=CACHED), script) as server:
        yield server


async def triton(server: RunningServer, method: str, request: Message, answer: type[AnswerT]) -> AnswerT:
    """A call of Triton's service."""
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = server.channel.unary_unary(
        f"/inference.GRPCInferenceService/{method}"
    )
    return answer.FromString(await call(request.SerializeToString()))


async def stream(server: RunningServer, *texts: str) -> list[pb.Embedding]:
    """The embeddings of one message, hybrid."""
    request = pb.EmbedRequest(texts=texts, modes=HYBRID, encoding=pb.VECTOR_ENCODING_FLOAT32)
    answers = server.stub.EmbedStream(iter([pb.EmbedStreamRequest(id="m", request=request)]))
    return [embedding async for answer in answers for embedding in answer.response.embeddings]


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_what_is_known_has_the_bytes_of_what_was_computed(
    server: RunningServer, script: Script, encoding: pb.VectorEncoding.ValueType
) -> None:
    request = pb.EmbedRequest(texts=["w20 w21", "", "w22 w20 w22"], modes=HYBRID, encoding=encoding)
    computed, known = await embed(server, request), await embed(server, request)
    assert list(known.embeddings) == list(computed.embeddings)
    assert known.usage == computed.usage
    assert len(script.batches) == 1


async def test_what_is_known_took_no_time_to_compute(server: RunningServer) -> None:
    request = pb.EmbedRequest(texts=["w20"])
    await embed(server, request)
    assert (await embed(server, request)).timings.compute_us == 0


async def test_a_stream_finds_what_embed_has_computed(server: RunningServer, script: Script) -> None:
    await embed(server, pb.EmbedRequest(texts=["w20", "w21"], modes=HYBRID))
    for embedding, text in zip(await stream(server, "w21", "w20"), ("w21", "w20"), strict=True):
        check_embedding(embedding, ids_of(text))
    assert len(script.batches) == 1


async def test_triton_s_clients_find_what_embed_has_computed(server: RunningServer, script: Script) -> None:
    await embed(server, pb.EmbedRequest(texts=["w20", "w21"], modes=HYBRID))
    question = kserve.ModelInferRequest(model_name="small", raw_input_contents=[b"\3\0\0\0w21\3\0\0\0w20"])
    question.inputs.add(name="text", datatype="BYTES", shape=[2, 1])
    for output in ("dense", "sparse_indptr", "sparse_indices", "sparse_values", "multi_vector_offsets", "multi_vector"):
        question.outputs.add(name=output)
    response = await triton(server, "ModelInfer", question, kserve.ModelInferResponse)
    dense = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(2, DIMENSION)
    assert response.outputs[0].name == "dense"
    np.testing.assert_array_equal(dense, [expected_dense(ids_of("w21")), expected_dense(ids_of("w20"))])
    assert len(script.batches) == 1


async def test_scores_of_known_texts_are_the_same(server: RunningServer, script: Script) -> None:
    request = pb.ScoreRequest(query="w20 w21", passages=["w21 w22", "w20 w21", "w21 w22"])
    computed = await server.stub.Score(request)
    batches = len(script.batches)
    known = await server.stub.Score(request)
    assert list(known.scores) == list(computed.scores)
    assert len(script.batches) == batches


async def test_a_model_without_it_computes_every_text(tmp_path: Path) -> None:
    script = Script()
    async with running_server(make_repository(tmp_path), script) as server:
        for _ in range(2):
            await embed(server, pb.EmbedRequest(texts=["w20"]))
        assert len(script.batches) == 2
        assert not server.metrics.registry.get_sample_value("trivec_cache_misses_total")


async def test_models_of_the_same_content_share_entries(tmp_path: Path) -> None:
    script = Script()
    async with running_server(make_repository(tmp_path, "one", "other", config=CACHED), script) as server:
        for model in ("one", "other"):
            response = await embed(server, pb.EmbedRequest(model=model, texts=["w20"], modes=HYBRID))
            check_embedding(response.embeddings[0], ids_of("w20"))
        assert len(script.batches) == 1


async def test_a_version_loaded_again_finds_its_entries_and_another_one_does_not(tmp_path: Path) -> None:
    script = Script()
    settings = ServeSettings(model_control_mode=ControlMode.EXPLICIT, load_models=("small",))
    repository = make_repository(tmp_path, config=CACHED)
    request = pb.EmbedRequest(model="small", texts=["w20"])
    async with running_server(repository, script, settings=settings) as server:
        await embed(server, request)
        await server.control.unload_model("small")
        await server.control.load_model("small")
        script.forget()
        await embed(server, request)
        assert not script.batches

        shutil.rmtree(repository / "small" / "1")
        # Its manifest says something else.
        make_version(repository / "small" / "1", demonstration=True)
        await server.control.load_model("small")
        script.forget()
        await embed(server, request)
        assert len(script.batches) == 1


async def test_triton_s_statistics_count_hits_and_misses(server: RunningServer) -> None:
    for _ in range(3):
        await embed(server, pb.EmbedRequest(texts=["w20", "w21"]))
    question = kserve.ModelStatisticsRequest(name="small")
    (model,) = (await triton(server, "ModelStatistics", question, kserve.ModelStatisticsResponse)).model_stats
    counts = model.inference_stats
    assert (counts.cache_hit.count, counts.cache_miss.count) == (4, 2)
    assert (model.inference_count, model.execution_count) == (2, 1)
    assert (counts.success.count, counts.compute_infer.count) == (3, 1)


async def test_the_cache_as_a_whole_is_in_the_metrics(server: RunningServer) -> None:
    for _ in range(3):
        await embed(server, pb.EmbedRequest(texts=["w20", "w21"]))
    values = {
        name: server.metrics.registry.get_sample_value(f"trivec_cache_{name}")
        for name in ("entries", "hits_total", "misses_total", "failures_total")
    }
    assert values == {"entries": 2, "hits_total": 4, "misses_total": 2, "failures_total": 0}
