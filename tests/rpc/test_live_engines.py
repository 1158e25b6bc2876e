"""The engines and counts of versions that are replaced."""

import asyncio
import gc
from pathlib import Path

from trivec.v1 import embedding_pb2 as pb
from trivec_server.backends.interface import EngineLost, TokenBatch
from trivec_server.types import ModelVersion

from tests.rpc.failures import failure_of
from tests.rpc.live_repository import (
    HELD,
    HeldText,
    explicit,
    index,
    prefix,
    reason,
    released,
    serves,
    set_prefix,
)
from tests.rpc.running_server import embed, until
from tests.scripted_engine import Script, ScriptedEngine
from tests.small_repository import make_repository


async def test_counts_survive_a_reload(tmp_path: Path) -> None:
    repository = make_repository(tmp_path)
    async with explicit(repository, Script()) as server:
        await serves(server)
        set_prefix(repository, "w20 ")
        await server.control.load_model("small")
        await serves(server)
        assert server.registry.statistics(ModelVersion("small", 1)).snapshot().success.count == 2
        assert server.metric("trivec_texts_total") == 2


async def test_the_engine_of_what_serves_now_is_the_only_one_told(tmp_path: Path) -> None:
    script = Script()
    repository = make_repository(tmp_path)
    labels = {"model": "small", "version": "1", "engine": "scripted", "precision": "float32"}
    async with explicit(repository, script) as server:
        script.device = "another"
        set_prefix(repository, "w20 ")
        await server.control.load_model("small")
        assert server.metric("trivec_model_info", **labels, device="another") == 1
        assert server.metrics.registry.get_sample_value("trivec_model_info", {**labels, "device": "cpu"}) is None
        await server.control.unload_model("small")
        await released(server)
        assert server.metrics.registry.get_sample_value("trivec_model_info", {**labels, "device": "another"}) is None


async def test_the_end_of_an_old_engine_does_not_concern_what_serves_now(tmp_path: Path, held: HeldText) -> None:
    def die(batch: TokenBatch) -> None:
        held(batch)
        if 999 in batch.token_ids:
            raise EngineLost("killed by signal 9")

    script = Script(before_run=die)
    repository = make_repository(tmp_path)
    async with explicit(repository, script) as server:
        before = asyncio.ensure_future(embed(server, pb.EmbedRequest(texts=[HELD])))
        await asyncio.to_thread(held.entered.acquire)
        set_prefix(repository, "w20 ")
        await server.control.load_model("small")
        script.build_failures = 10
        held.go_on.set()
        assert (await failure_of(before)).code.name in {"UNAVAILABLE", "INTERNAL"}
        assert await index(server) == [("small", "1", "READY", "")]
        assert await serves(server) == 1


async def test_a_model_whose_engine_has_failed_can_be_loaded_again_unchanged(tmp_path: Path) -> None:
    def die(batch: TokenBatch) -> None:
        if 999 in batch.token_ids:
            raise EngineLost("killed by signal 9")

    script = Script(before_run=die)
    async with explicit(make_repository(tmp_path), script) as server:
        script.build_failures = 10
        await failure_of(embed(server, pb.EmbedRequest(texts=[HELD])))
        await until(lambda: not server.registry.any_ready)
        assert (await reason(server)).endswith("load the model again")
        script.build_failures = 0
        await server.control.load_model("small")
        assert await serves(server) == 1
        assert await reason(server) == ""


async def test_many_reloads_leave_one_engine_and_one_pipeline(tmp_path: Path) -> None:
    script = Script()
    repository = make_repository(tmp_path)
    async with explicit(repository, script) as server:
        for number in range(20):
            set_prefix(repository, f"w{number + 10} ")
            await server.control.load_model("small")
            assert await serves(server) == 1
        await until(lambda: script.built - script.closed == 1)
        pipeline = type(server.pipeline())
        await until(lambda: _count(ScriptedEngine) == 1 and _count(pipeline) == 1, "old ones are held")


def _count(kind: type) -> int:
    gc.collect()
    return sum(type(each) is kind for each in gc.get_objects())


async def test_a_third_copy_of_a_model_waits_until_the_first_is_released(tmp_path: Path, held: HeldText) -> None:
    script = Script(before_run=held)
    repository = make_repository(tmp_path)
    async with explicit(repository, script) as server:
        before = asyncio.ensure_future(embed(server, pb.EmbedRequest(texts=[HELD])))
        await asyncio.to_thread(held.entered.acquire)
        set_prefix(repository, "w20 ")
        await server.control.load_model("small")
        set_prefix(repository, "w21 ")
        further = asyncio.ensure_future(server.control.load_model("small"))
        await serves(server)
        assert script.built == 2
        held.go_on.set()
        await before
        await further
        assert await prefix(server) == "w21 "
