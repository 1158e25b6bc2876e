"""Models that are loaded, reloaded and unloaded by calls, while requests are served."""

import asyncio
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trivec.v1 import embedding_pb2 as pb
from trivec_server.backends.interface import EngineOutput, TokenBatch
from trivec_server.errors import ControlDisabled, LoadFailed, ModelNotInRepository
from trivec_server.settings import ControlMode, ServeSettings
from trivec_server.types import ModelVersion

from tests.rpc.failures import failure_of
from tests.rpc.live_repository import (
    EXPLICIT,
    HELD,
    POLL,
    HeldText,
    explicit,
    index,
    is_demonstration,
    prefix,
    reason,
    released,
    replace_version,
    serves,
    set_prefix,
    touch,
)
from tests.rpc.running_server import embed, running_server, until
from tests.scripted_engine import Script
from tests.small_repository import make_repository, make_version


def spoil(output: EngineOutput, _: TokenBatch) -> EngineOutput:
    """What the self-check refuses."""
    return replace(output, dense=np.full_like(output.dense, np.nan))


async def test_nothing_is_loaded_at_the_start_and_what_is_asked_for_then_serves(tmp_path: Path) -> None:
    async with running_server(make_repository(tmp_path, "a", "b"), Script(), settings=EXPLICIT) as server:
        assert await index(server) == [("a", "", "", ""), ("b", "", "", "")]
        assert server.control.server_ready
        await server.control.load_model("a")
        assert await serves(server, "a") == 1
        assert await index(server) == [("a", "1", "READY", ""), ("b", "", "", "")]


@pytest.mark.parametrize("mode", [ControlMode.NONE, ControlMode.POLL])
async def test_in_other_modes_calls_load_and_unload_nothing(tmp_path: Path, mode: ControlMode) -> None:
    settings = ServeSettings(model_control_mode=mode)
    async with running_server(make_repository(tmp_path), Script(), settings=settings) as server:
        for call in (server.control.load_model("small"), server.control.unload_model("small")):
            with pytest.raises(
                ControlDisabled, match=r"^explicit model load / unload is not allowed if polling is enabled$"
            ):
                await call
        assert await serves(server) == 1


@pytest.mark.parametrize("name", ["absent", "", ".", "..", "../repository/small", "small/1", "/etc", "a\0b", "x" * 300])
async def test_a_name_that_no_repository_holds_is_refused(tmp_path: Path, name: str) -> None:
    async with explicit(make_repository(tmp_path / "repository"), Script()) as server:
        before = await index(server)
        with pytest.raises(ModelNotInRepository, match=r"^failed to load '.*', failed to poll from model repository$"):
            await server.control.load_model(name)
        assert await index(server) == before


async def test_an_unloaded_model_serves_no_more_and_can_be_loaded_again(tmp_path: Path) -> None:
    script = Script()
    async with explicit(make_repository(tmp_path), script) as server:
        await server.control.unload_model("small")
        await released(server)
        assert await index(server) == [("small", "1", "UNAVAILABLE", "unloaded")]
        failure = await failure_of(embed(server, pb.EmbedRequest(model="small", texts=["w10"])))
        assert failure.code.name == "UNAVAILABLE"
        assert "unloaded" in failure.message
        assert script.closed == 1
        assert server.metric("trivec_model_ready") == 0
        await server.control.load_model("small")
        assert await serves(server) == 1
        assert server.metric("trivec_model_ready") == 1


@pytest.mark.parametrize("name", ["absent", "../small", ""])
async def test_unloading_what_is_not_known_is_no_error(tmp_path: Path, name: str) -> None:
    async with explicit(make_repository(tmp_path), Script()) as server:
        await server.control.unload_model(name)
        assert await serves(server) == 1


async def test_requests_under_way_finish_on_the_version_they_began_on(tmp_path: Path, held: HeldText) -> None:
    script = Script(before_run=held)
    repository = make_repository(tmp_path)
    async with explicit(repository, script) as server:
        before = asyncio.ensure_future(embed(server, pb.EmbedRequest(texts=[HELD])))
        await asyncio.to_thread(held.entered.acquire)
        set_prefix(repository, "w20 ")
        await server.control.load_model("small")
        assert (script.built, script.closed) == (2, 0)
        assert await prefix(server) == "w20 "
        assert await serves(server) == 1
        assert not before.done()
        held.go_on.set()
        assert (await before).embeddings
        await until(lambda: script.closed == 1)


async def test_an_unload_waits_for_requests_under_way(tmp_path: Path, held: HeldText) -> None:
    script = Script(before_run=held)
    async with explicit(make_repository(tmp_path), script) as server:
        before = asyncio.ensure_future(embed(server, pb.EmbedRequest(texts=[HELD])))
        await asyncio.to_thread(held.entered.acquire)
        await server.control.unload_model("small")
        assert await index(server) == [("small", "1", "UNLOADING", "unloaded")]
        failure = await failure_of(embed(server, pb.EmbedRequest(model="small", texts=["w10"])))
        assert failure.code.name == "UNAVAILABLE"
        held.go_on.set()
        assert (await before).embeddings
        await released(server)
        assert script.closed == 1


async def test_what_has_not_changed_is_not_loaded_again(tmp_path: Path) -> None:
    script = Script()
    repository = make_repository(tmp_path)
    async with explicit(repository, script) as server:
        await server.control.load_model("small")
        touch(repository / "small" / "1", 5_000_000_000)
        os.utime(repository / "small" / "config.pbtxt", (1, 1))
        await server.control.load_model("small")
        with (repository / "small" / "config.pbtxt").open("a") as config:
            config.write("# a comment\n")
        await server.control.load_model("small")
        assert script.built == 1
        assert await index(server) == [("small", "1", "READY", "")]


async def test_content_put_back_with_older_times_is_seen(tmp_path: Path) -> None:
    script = Script()
    repository = make_repository(tmp_path)
    async with explicit(repository, script) as server:
        replace_version(repository / "small" / "1")
        touch(repository / "small" / "1", 1_000_000)
        await server.control.load_model("small")
        assert await is_demonstration(server)
        assert script.built == 2


async def test_a_version_that_is_a_link_to_another_directory_now_is_seen(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository", versions=())
    for name in ("old", "new"):
        make_version(tmp_path / name, demonstration=name == "new")
        touch(tmp_path / name, 2_000_000 if name == "old" else 1_000_000)
    link = repository / "small" / "1"
    link.symlink_to(tmp_path / "old")
    async with explicit(repository, Script()) as server:
        assert not await is_demonstration(server)
        link.unlink()
        link.symlink_to(tmp_path / "new")
        await server.control.load_model("small")
        assert await is_demonstration(server)


async def test_a_file_that_no_longer_fits_its_manifest_fails_the_reload_by_name(tmp_path: Path) -> None:
    repository = make_repository(tmp_path)
    async with explicit(repository, Script()) as server:
        tokenizer = repository / "small" / "1" / "tokenizer.json"
        content = tokenizer.read_bytes()
        tokenizer.write_bytes(content[:-1] + b"x")
        with pytest.raises(LoadFailed, match=r"version 1 is at UNAVAILABLE state: small/1/tokenizer\.json: damaged"):
            await server.control.load_model("small")
        assert (await reason(server)).startswith("reload failed: small/1/tokenizer.json: damaged")
        assert await serves(server) == 1
        tokenizer.write_bytes(content)
        await server.control.load_model("small")
        assert await reason(server) == ""


async def test_a_reload_that_fails_leaves_what_serves_and_says_why(tmp_path: Path) -> None:
    script = Script()
    repository = make_repository(tmp_path)
    async with explicit(repository, script) as server:
        set_prefix(repository, "w20 ")
        script.alter = spoil
        with pytest.raises(
            LoadFailed, match=r"^load failed for model 'small': version 1 is at UNAVAILABLE state: .+;$"
        ):
            await server.control.load_model("small")
        script.alter = lambda output, _: output
        assert await serves(server) == 1
        assert await prefix(server) == ""
        assert (await reason(server)).startswith("reload failed: self-check failed")
        assert server.control.server_ready
        assert script.built - script.closed == 1
        assert server.metric("trivec_model_reloads_total", model="small", result="failure") == 1
        await server.control.load_model("small")
        assert await prefix(server) == "w20 "
        assert await reason(server) == ""
        assert server.metric("trivec_model_reloads_total", model="small", result="success") == 1


async def test_versions_of_one_load_serve_together_or_not_at_all(tmp_path: Path) -> None:
    repository = make_repository(tmp_path, versions=(1, 2), config="version_policy { all {} }\n")
    script = Script()
    async with explicit(repository, script) as server:
        set_prefix(repository, "w20 ")
        make_version(repository / "small" / "3")
        (repository / "small" / "3" / "tokenizer.json").unlink()
        with pytest.raises(LoadFailed, match="version 3 is at UNAVAILABLE state"):
            await server.control.load_model("small")
        assert await prefix(server) == ""
        states = {version: (state, why) for _, version, state, why in await index(server)}
        assert [states[number][0] for number in "123"] == ["READY", "READY", "UNAVAILABLE"]
        assert states["1"][1].startswith("reload failed: version 3: small/3/tokenizer.json: missing")
        assert server.control.server_ready
        assert script.built - script.closed == 2


async def test_a_first_load_of_which_one_version_fails_serves_none(tmp_path: Path) -> None:
    repository = make_repository(tmp_path, versions=(1, 2), config="version_policy { all {} }\n")
    (repository / "small" / "2" / "tokenizer.json").unlink()
    script = Script()
    async with running_server(repository, script, settings=EXPLICIT) as server:
        with pytest.raises(LoadFailed, match="version 2"):
            await server.control.load_model("small")
        assert [(version, state) for _, version, state, _ in await index(server)] == [
            ("1", "UNAVAILABLE"),
            ("2", "UNAVAILABLE"),
        ]
        assert script.built == script.closed
        assert server.control.server_ready


async def test_a_new_version_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    repository = make_repository(tmp_path)
    async with explicit(repository, Script()) as server:
        make_version(repository / "small" / "2")
        await server.control.load_model("small")
        assert await serves(server) == 2
        await released(server)
        assert await index(server) == [("small", "1", "UNAVAILABLE", "unloaded"), ("small", "2", "READY", "")]
        shutil.rmtree(repository / "small" / "1")
        make_version(repository / "small" / "3")
        await server.control.load_model("small")
        await released(server)
        assert [version for _, version, _, _ in await index(server)] == ["2", "3"]


async def test_a_version_that_goes_on_shows_the_new_policy(tmp_path: Path) -> None:
    repository = make_repository(tmp_path, versions=(1, 2))
    script = Script()
    async with explicit(repository, script) as server:
        with (repository / "small" / "config.pbtxt").open("a") as config:
            config.write("version_policy { all {} }\n")
        await server.control.load_model("small")
        assert script.built == 2
        assert [state for _, _, state, _ in await index(server)] == ["READY", "READY"]
        settings = [server.registry.resolve("small", version).loaded.settings for version in (1, 2)]
        assert [each.version_policy.latest for each in settings] == [None, None]


@pytest.mark.parametrize("mode", [ControlMode.NONE, ControlMode.EXPLICIT])
async def test_a_version_whose_directory_is_gone_is_served_from_memory(tmp_path: Path, mode: ControlMode) -> None:
    repository = make_repository(tmp_path)
    settings = ServeSettings(model_control_mode=mode, load_models=("small",))
    async with running_server(repository, Script(), settings=settings) as server:
        (repository / "small" / "1").rename(tmp_path / ".moved")
        assert await index(server) == [("small", "1", "READY", "its directory is gone; served from memory")]
        assert await serves(server) == 1
        (tmp_path / ".moved").rename(repository / "small" / "1")
        await server.control.look_again()
        assert await reason(server) == ""


async def test_a_caller_that_leaves_does_not_stop_a_load(tmp_path: Path) -> None:
    script = Script()
    async with running_server(make_repository(tmp_path), script, settings=EXPLICIT) as server:
        script.building.clear()
        load = asyncio.ensure_future(server.control.load_model("small"))
        await until(lambda: server.control.is_loading)
        assert await index(server) == [("small", "1", "LOADING", "")]
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
        script.building.set()
        await until(lambda: server.registry.any_ready)
        assert await serves(server) == 1


async def test_orders_for_one_model_are_carried_out_in_turn(tmp_path: Path) -> None:
    repository = make_repository(tmp_path)
    async with explicit(repository, Script()) as server:
        set_prefix(repository, "w20 ")
        control = server.control
        await asyncio.gather(*(control.load_model("small"), control.unload_model("small"), control.load_model("small")))
        assert await serves(server) == 1
        await released(server)
        assert await index(server) == [("small", "1", "READY", "")]


async def test_a_repository_that_is_not_there_for_a_while_disturbs_nobody(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository")
    async with explicit(repository, Script()) as server:
        repository.rename(tmp_path / "elsewhere")
        assert await index(server) == [("small", "1", "READY", "its directory is gone; served from memory")]
        assert await serves(server) == 1
        with pytest.raises(ModelNotInRepository, match="does not exist"):
            await server.control.load_model("small")


async def test_if_one_of_several_versions_cannot_be_started_none_is_and_all_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = make_repository(tmp_path, versions=(1, 2, 3), config="version_policy { all {} }\n")
    script = Script()
    async with running_server(repository, script, settings=EXPLICIT) as server:

        def fail_at_2(key: ModelVersion, *_: str) -> None:
            if key.version == 2:
                raise RuntimeError("no room for another series")

        with monkeypatch.context() as patch:
            patch.setattr(server.metrics, "model_loaded", fail_at_2)
            with pytest.raises(RuntimeError, match="no room"):
                await server.control.load_model("small")
        await until(lambda: script.closed == 3)
        assert not server.registry.any_ready
        await server.control.load_model("small")
        assert await serves(server) == 3


async def test_what_was_loaded_when_a_poll_is_broken_off_is_closed(tmp_path: Path) -> None:
    repository = make_repository(tmp_path, versions=(1, 2), config="version_policy { all {} }\n")
    go_on = threading.Event()
    script = Script()
    poll = replace(POLL, repository_stability_s=0.0)
    async with running_server(repository, script, settings=poll) as server:

        def hold_the_last(_: TokenBatch) -> None:
            if script.built == 4:
                assert go_on.wait(60)

        script.before_run = hold_the_last
        set_prefix(repository, "w20 ")
        await server.control.look_again()
        look = asyncio.ensure_future(server.control.look_again())
        await until(lambda: script.built == 4)
        look.cancel()
        await asyncio.gather(look, return_exceptions=True)
        go_on.set()
        await until(lambda: script.closed == 2)
        assert await prefix(server) == ""
