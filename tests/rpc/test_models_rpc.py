"""GetModel and ListModels: what is served, what it is limited to, and why something is not served."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trivec.v1 import embedding_pb2 as pb
from trivec_server.backends.interface import EngineOutput, TokenBatch
from trivec_server.settings import Limits

from tests.rpc.failures import failure_of
from tests.rpc.running_server import embed, running_server
from tests.scripted_engine import DIMENSION, VOCABULARY_SIZE, Script
from tests.small_repository import MAX_TOKENS, make_repository, make_version

DESCRIBED = """
max_batch_size: 8
dynamic_batching { priority_levels: 3 default_priority_level: 2 }
parameters { key: "query_prefix" value { string_value: "w20 " } }
parameters { key: "max_tokens" value { string_value: "32" } }
"""


async def test_get_model_describes_a_ready_version(tmp_path: Path) -> None:
    limits = Limits(max_texts_per_request=7, max_stream_requests=5, max_queued_tokens=1234)
    repository = make_repository(tmp_path, config=DESCRIBED)
    async with running_server(repository, Script(), limits=limits) as server:
        model = (await server.stub.GetModel(pb.GetModelRequest())).model
    assert (model.name, model.version, model.state, model.state_reason) == ("small", 1, pb.MODEL_STATE_READY, "")
    assert list(model.modes) == [pb.MODE_DENSE, pb.MODE_SPARSE, pb.MODE_MULTI_VECTOR]
    assert (model.dense_dimension, model.multi_vector_dimension) == (DIMENSION, DIMENSION)
    assert model.vocabulary_size == VOCABULARY_SIZE
    assert (model.engine, model.device, model.precision, model.pooling) == ("scripted", "cpu", "float32", "cls")
    assert len(model.content_digest) == 64
    assert not model.demonstration
    assert (model.query_prefix, model.passage_prefix) == ("w20 ", "")
    assert model.score_weights == pb.ScoreWeights(dense=1, sparse=1, multi_vector=1)
    assert model.limits == pb.ModelLimits(
        max_tokens=32,
        max_texts_per_request=7,
        max_request_bytes=limits.max_request_bytes,
        max_response_bytes=limits.max_response_bytes,
        max_chunk_bytes=limits.max_chunk_bytes,
        max_queued_tokens=1234,
        max_stream_requests=5,
        batch_token_budget=4096,
        priority_levels=3,
        max_text_bytes=limits.max_text_bytes,
    )


async def test_max_tokens_of_the_config_bounds_requests(tmp_path: Path) -> None:
    assert MAX_TOKENS > 32
    async with running_server(make_repository(tmp_path, config=DESCRIBED), Script()) as server:
        failure = await failure_of(embed(server, pb.EmbedRequest(texts=["w10 " * 31])))
    assert "33 tokens, more than the 32 allowed" in failure.message


async def test_list_models_is_ordered_by_name_and_version(tmp_path: Path) -> None:
    repository = make_repository(tmp_path, "b", "a", versions=(2, 10, 1), config="version_policy { all {} }\n")
    async with running_server(repository, Script()) as server:
        models = (await server.stub.ListModels(pb.ListModelsRequest())).models
    assert [(model.name, model.version) for model in models] == [(name, v) for name in "ab" for v in (1, 2, 10)]


async def test_equal_files_have_equal_digests(tmp_path: Path) -> None:
    async with running_server(make_repository(tmp_path, "a", "b"), Script()) as server:
        one, other = (await server.stub.ListModels(pb.ListModelsRequest())).models
    assert one.content_digest == other.content_digest


async def test_get_model_without_a_version_gives_the_newest_ready_one(tmp_path: Path) -> None:
    repository = make_repository(tmp_path, versions=(1, 2), config="version_policy { all {} }\n")
    async with running_server(repository, Script()) as server:
        assert (await server.stub.GetModel(pb.GetModelRequest())).model.version == 2
        assert (await server.stub.GetModel(pb.GetModelRequest(version=1))).model.version == 1


def spoil(output: EngineOutput, _: TokenBatch) -> EngineOutput:
    assert output.dense is not None
    return replace(output, dense=np.full_like(output.dense, np.nan))


@pytest.mark.parametrize("ready_only", [False, True])
async def test_a_version_that_failed_is_listed_with_its_reason_unless_left_out(
    tmp_path: Path, ready_only: bool
) -> None:
    repository = make_repository(tmp_path, "bad", "good")
    async with running_server(repository, {"bad": Script(alter=spoil), "good": Script()}) as server:
        models = (await server.stub.ListModels(pb.ListModelsRequest(ready_only=ready_only))).models
    states = {model.name: (model.state, model.state_reason) for model in models}
    assert states["good"] == (pb.MODEL_STATE_READY, "")
    assert ("bad" in states) is not ready_only
    if not ready_only:
        state, reason = states["bad"]
        assert state == pb.MODEL_STATE_UNAVAILABLE
        assert "self-check failed: dense has numbers that are not finite" in reason


async def test_reasons_do_not_tell_where_the_repository_lies(tmp_path: Path) -> None:
    repository = make_repository(tmp_path, "bad", "good")
    (repository / "bad" / "1" / "tokenizer.json").unlink()
    async with running_server(repository, Script()) as server:
        model = (await server.stub.GetModel(pb.GetModelRequest(model="bad"))).model
    assert "tokenizer.json" in model.state_reason
    assert str(tmp_path) not in model.state_reason


@pytest.mark.parametrize(
    ("spoil_it", "words"),
    [
        (lambda root: (root / "1" / "manifest.json").unlink(), ["manifest.json"]),
        (lambda root: (root / "1" / "tokenizer.json").write_text("{}"), ["tokenizer.json"]),
        (
            lambda root: (root / "config.pbtxt").write_text('backend: "scripted"\nmax_batch_sise: 3\n'),
            ["max_batch_sise", "2"],
        ),
        (lambda root: (root / "config.pbtxt").write_text('backend: "absent"\n'), ["absent", "scripted"]),
        (lambda root: (root / "1").rename(root / "one"), ["version"]),
    ],
    ids=["no manifest", "changed tokenizer", "typo in the config", "unknown backend", "no version"],
)
async def test_a_broken_model_is_unavailable_with_the_reason_and_others_serve(
    tmp_path: Path, spoil_it: Callable[[Path], object], words: list[str]
) -> None:
    repository = make_repository(tmp_path, "bad", "good")
    spoil_it(repository / "bad")
    async with running_server(repository, Script()) as server:
        model = (await server.stub.GetModel(pb.GetModelRequest(model="bad"))).model
        assert model.state == pb.MODEL_STATE_UNAVAILABLE
        for word in words:
            assert word in model.state_reason
        failure = await failure_of(embed(server, pb.EmbedRequest(model="bad", texts=["w10"])))
        assert failure.code.name == "UNAVAILABLE"
        assert model.state_reason in failure.message
        assert (await embed(server, pb.EmbedRequest(model="good", texts=["w10"]))).model == "good"


async def test_of_several_models_the_only_one_not_for_demonstrations_is_the_default(tmp_path: Path) -> None:
    repository = make_repository(tmp_path, "real", "toy", versions=())
    make_version(repository / "real" / "1")
    make_version(repository / "toy" / "1", demonstration=True)
    async with running_server(repository, Script()) as server:
        assert (await server.stub.Embed(pb.EmbedRequest(texts=["w10"]))).model == "real"


async def test_a_model_without_a_version_does_not_take_the_default_away(tmp_path: Path) -> None:
    repository = make_repository(tmp_path)
    (repository / "stray").mkdir()
    async with running_server(repository, Script()) as server:
        assert (await server.stub.Embed(pb.EmbedRequest(texts=["w10"]))).model == "small"


async def test_what_was_chosen_or_could_be_better_is_noted(tmp_path: Path) -> None:
    script = Script(notes=("KIND_AUTO: there is no GPU, so it runs on the CPU",))
    async with running_server(make_repository(tmp_path), script) as server:
        model = (await server.stub.GetModel(pb.GetModelRequest())).model
        assert list(model.notes) == ["KIND_AUTO: there is no GPU, so it runs on the CPU"]


async def test_the_engine_of_a_version_is_a_metric(tmp_path: Path) -> None:
    async with running_server(make_repository(tmp_path), Script()) as server:
        labels = {"model": "small", "version": "1", "engine": "scripted", "device": "cpu", "precision": "float32"}
        assert server.metric("trivec_model_info", **labels) == 1
