"""A server that follows its repository by polling. Its clock is the test's, and each look is asked for."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from trivec.v1 import embedding_pb2 as pb
from trivec_server.backends.interface import EngineLost, EngineOutput, TokenBatch

from tests.rpc.failures import failure_of
from tests.rpc.live_repository import (
    POLL,
    Clock,
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
from tests.rpc.running_server import RunningServer, embed, running_server, until
from tests.scripted_engine import Script
from tests.small_repository import make_repository, make_version

PERIOD_S = POLL.repository_poll_s
STABILITY_S = POLL.repository_stability_s


@dataclass
class Polled:
    server: RunningServer
    repository: Path
    script: Script
    clock: Clock

    async def look(self, after_s: float = PERIOD_S) -> float:
        """One look, so much later; the seconds until the next one."""
        self.clock.advance(after_s)
        return await self.server.control.look_again()

    async def settle(self) -> None:
        """A look that finds what has changed, one that takes it up, and the end of what it replaces."""
        await self.look()
        await self.look(STABILITY_S)
        await released(self.server)


@asynccontextmanager
async def polled(repository: Path, script: Script | None = None, **settings: object) -> AsyncIterator[Polled]:
    script, clock = script or Script(), Clock()
    chosen = replace(POLL, **settings)  # type: ignore[arg-type]
    async with running_server(repository, script, settings=chosen, clock=clock) as server:
        yield Polled(server, repository, script, clock)


def spoil(output: EngineOutput, _: TokenBatch) -> EngineOutput:
    assert output.dense is not None
    return replace(output, dense=np.full_like(output.dense, np.nan))


async def test_a_new_model_is_loaded_once_it_has_looked_the_same_for_a_while(tmp_path: Path) -> None:
    async with polled(make_repository(tmp_path, "a")) as polling:
        make_repository(tmp_path, "b")
        assert await polling.look() == STABILITY_S
        assert await index(polling.server) == [
            ("a", "1", "READY", ""),
            ("b", "", "UNAVAILABLE", "being written: it has changed a moment ago"),
        ]
        assert await polling.look(STABILITY_S - 0.5) == 0.5
        assert polling.script.built == 1
        assert await polling.look(0.5) == PERIOD_S
        assert await serves(polling.server, "b") == 1
        assert await index(polling.server) == [("a", "1", "READY", ""), ("b", "1", "READY", "")]


async def test_what_goes_on_changing_is_not_loaded(tmp_path: Path) -> None:
    async with polled(make_repository(tmp_path)) as polling:
        for number in range(5):
            set_prefix(tmp_path, f"w{number + 10} ")
            await polling.look(STABILITY_S)
        assert await prefix(polling.server) == ""
        await polling.look(STABILITY_S)
        assert await prefix(polling.server) == "w14 "


async def test_a_repository_may_be_empty_at_first(tmp_path: Path) -> None:
    async with polled(tmp_path) as polling:
        assert polling.server.control.server_ready
        make_repository(tmp_path, "a")
        await polling.settle()
        assert await serves(polling.server, "") == 1


async def test_a_model_asked_for_may_come_later(tmp_path: Path) -> None:
    async with polled(make_repository(tmp_path, "a", "b"), load_models=("b", "c")) as polling:
        assert await index(polling.server) == [
            ("a", "", "", ""),
            ("b", "1", "READY", ""),
            ("c", "", "UNAVAILABLE", "not in the repository yet"),
        ]
        assert not polling.server.control.server_ready
        make_repository(tmp_path, "c", "d")
        await polling.settle()
        assert {name for name, _, state, _ in await index(polling.server) if state == "READY"} == {"b", "c"}
        assert polling.server.control.server_ready


async def test_a_version_without_its_manifest_is_being_written(tmp_path: Path) -> None:
    async with polled(make_repository(tmp_path)) as polling:
        make_version(tmp_path / "small" / "2")
        manifest = tmp_path / "small" / "2" / "manifest.json"
        manifest.rename(tmp_path / ".manifest")
        for _ in range(3):
            await polling.settle()
        assert await reason(polling.server, version=2) == "being written: small/2/manifest.json: not found"
        assert await serves(polling.server) == 1
        assert polling.server.metric("trivec_version_unfinished", model="small", version="2") == 1
        (tmp_path / ".manifest").rename(manifest)
        await polling.settle()
        assert await serves(polling.server) == 2
        # The one that was unloaded is not waited for.
        for version in ("1", "2"):
            assert polling.server.metric("trivec_version_unfinished", model="small", version=version) == 0
        assert await index(polling.server) == [("small", "1", "UNAVAILABLE", "unloaded"), ("small", "2", "READY", "")]


async def test_a_version_with_a_file_that_is_not_there_to_its_end_is_being_written(tmp_path: Path) -> None:
    async with polled(make_repository(tmp_path)) as polling:
        make_version(tmp_path / "small" / "2")
        tokenizer = tmp_path / "small" / "2" / "tokenizer.json"
        content = tokenizer.read_bytes()
        tokenizer.write_bytes(content[:100])
        await polling.settle()
        expected = f"being written: small/2/tokenizer.json: 100 of {len(content)} bytes"
        assert await reason(polling.server, version=2) == expected
        tokenizer.unlink()
        await polling.settle()
        assert await reason(polling.server, version=2) == "being written: small/2/tokenizer.json: missing"
        assert await serves(polling.server) == 1
        assert polling.server.control.server_ready


async def test_at_the_start_a_version_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    repository = make_repository(tmp_path, versions=(1, 2))
    (repository / "small" / "2" / "tokenizer.json").unlink()
    async with polled(repository) as polling:
        assert await serves(polling.server) == 1
        assert await reason(polling.server, version=2) == "being written: small/2/tokenizer.json: missing"
        shutil.rmtree(repository / "small" / "2")
        make_version(repository / "small" / "2")
        await polling.settle()
        assert await serves(polling.server) == 2


async def test_a_version_that_is_written_anew_in_its_place_serves_until_that_is_done(tmp_path: Path) -> None:
    async with polled(make_repository(tmp_path)) as polling:
        version = tmp_path / "small" / "1"
        shutil.rmtree(version)
        version.mkdir()
        for _ in range(3):
            await polling.settle()
        assert await serves(polling.server) == 1
        assert await reason(polling.server) == "being written: small/1/manifest.json: not found"
        version.rmdir()
        make_version(version, demonstration=True)
        await polling.settle()
        assert await is_demonstration(polling.server)
        assert await reason(polling.server) == ""


async def test_new_times_alone_load_nothing(tmp_path: Path) -> None:
    async with polled(make_repository(tmp_path)) as polling:
        touch(tmp_path / "small" / "1", 5_000_000_000)
        await polling.settle()
        touch(tmp_path / "small" / "1", 1)
        await polling.settle()
        assert polling.script.built == 1


async def test_content_put_back_with_older_times_is_loaded(tmp_path: Path) -> None:
    async with polled(make_repository(tmp_path)) as polling:
        replace_version(tmp_path / "small" / "1")
        touch(tmp_path / "small" / "1", 1_000_000)
        await polling.settle()
        assert await is_demonstration(polling.server)


async def test_a_model_whose_directory_is_gone_is_unloaded(tmp_path: Path) -> None:
    async with polled(make_repository(tmp_path, "a", "b")) as polling:
        shutil.rmtree(tmp_path / "b")
        assert await polling.look() == STABILITY_S
        assert await serves(polling.server, "b") == 1
        await polling.look(STABILITY_S)
        await released(polling.server)
        assert await index(polling.server) == [
            ("a", "1", "READY", ""),
            ("b", "1", "UNAVAILABLE", "unloaded: its directory is gone"),
        ]
        assert polling.server.control.server_ready
        assert polling.script.closed == 1


async def test_a_model_that_is_gone_for_long_is_forgotten(tmp_path: Path) -> None:
    async with polled(make_repository(tmp_path, "a", "b")) as polling:
        shutil.rmtree(tmp_path / "b")
        await polling.settle()
        await polling.look(4000)
        assert await index(polling.server) == [("a", "1", "READY", "")]
        labels = {"model": "b", "version": "1"}
        assert polling.server.metrics.registry.get_sample_value("trivec_model_ready", labels) is None
        make_repository(tmp_path, "b")
        await polling.settle()
        assert await serves(polling.server, "b") == 1


async def test_what_is_away_for_a_moment_only_is_not_unloaded(tmp_path: Path) -> None:
    async with polled(make_repository(tmp_path)) as polling:
        for place in (tmp_path / "small" / "1", tmp_path / "small"):
            place.rename(tmp_path / ".away")
            await polling.look()
            (tmp_path / ".away").rename(place)
            await polling.settle()
        assert (polling.script.built, polling.script.closed) == (1, 0)


async def test_without_its_newest_version_a_model_serves_the_one_before(tmp_path: Path) -> None:
    async with polled(make_repository(tmp_path, versions=(1, 2))) as polling:
        assert await serves(polling.server) == 2
        shutil.rmtree(tmp_path / "small" / "2")
        await polling.settle()
        assert await serves(polling.server) == 1
        assert await reason(polling.server, version=2) == "unloaded: its directory is gone"


async def test_without_its_only_version_a_model_serves_no_more(tmp_path: Path) -> None:
    async with polled(make_repository(tmp_path)) as polling:
        shutil.rmtree(tmp_path / "small" / "1")
        await polling.settle()
        assert await index(polling.server) == [("small", "1", "UNAVAILABLE", "unloaded: its directory is gone")]
        assert polling.server.control.server_ready


async def test_a_wrong_configuration_that_appears_is_named_and_disturbs_nobody(tmp_path: Path) -> None:
    async with polled(make_repository(tmp_path, "good")) as polling:
        make_repository(tmp_path, "bad", "worse")
        (tmp_path / "bad" / "config.pbtxt").write_text('backend: "scripted"\nmax_bath_size: 3\n')
        (tmp_path / "worse" / "config.pbtxt").write_text('backend: "absent"\nmax_batch_size: 16\n')
        await polling.settle()
        entries = {name: (state, why) for name, _, state, why in await index(polling.server)}
        assert entries["bad"][0] == "UNAVAILABLE"
        assert entries["bad"][1].startswith("bad/config.pbtxt:2:1: unknown field `max_bath_size`")
        assert entries["worse"] == ("UNAVAILABLE", "backend `absent` is not known; use one of: auto, scripted")
        assert entries["good"] == ("READY", "")
        assert polling.server.control.server_ready
        assert await serves(polling.server, "") == 1


async def test_a_configuration_that_turns_wrong_leaves_what_serves_and_is_named(tmp_path: Path) -> None:
    async with polled(make_repository(tmp_path)) as polling:
        config = tmp_path / "small" / "config.pbtxt"
        text = config.read_text()
        config.write_text(text + "nonsense: 1\n")
        await polling.settle()
        await polling.settle()
        failures = polling.server.metric("trivec_model_reloads_total", model="small", result="failure")
        assert failures == 1, "counted once, however often it is looked at"
        assert "reload failed: small/config.pbtxt:4:1: unknown field" in await reason(polling.server)
        assert await serves(polling.server) == 1
        assert polling.server.control.server_ready
        config.write_text(text)
        await polling.settle()
        assert await reason(polling.server) == ""
        assert polling.script.built == 1


async def test_what_is_said_of_a_model_while_it_is_written_goes_with_its_first_version(tmp_path: Path) -> None:
    async with polled(make_repository(tmp_path, "good")) as polling:
        polling.script.alter = spoil
        make_repository(tmp_path, "bad")
        await polling.settle()
        assert [version for name, version, _, _ in await index(polling.server) if name == "bad"] == ["1"]


async def test_after_a_failure_the_next_attempts_come_later_and_later(tmp_path: Path) -> None:
    async with polled(make_repository(tmp_path)) as polling:
        set_prefix(tmp_path, "w20 ")
        polling.script.alter = spoil
        await polling.settle()
        attempts = [polling.clock.now]
        before = polling.script.built
        while len(attempts) < 9:
            await polling.look(1.0)
            if polling.script.built > before:
                attempts.append(polling.clock.now)
                before = polling.script.built
        pauses = np.diff(attempts).tolist()
        assert pauses == [15, 30, 60, 120, 240, 480, 600, 600]
        assert (await reason(polling.server)).startswith("reload failed: self-check failed")
        assert polling.server.control.server_ready
        assert polling.script.built - polling.script.closed == 1


async def test_another_content_is_tried_at_once_after_failures(tmp_path: Path) -> None:
    async with polled(make_repository(tmp_path)) as polling:
        set_prefix(tmp_path, "w20 ")
        polling.script.alter = spoil
        await polling.settle()
        await polling.look(15)
        polling.script.alter = lambda output, _: output
        set_prefix(tmp_path, "w21 ")
        await polling.look(1)
        await polling.look(STABILITY_S)
        assert await prefix(polling.server) == "w21 "
        assert await reason(polling.server) == ""


async def test_a_first_load_that_failed_is_tried_again(tmp_path: Path) -> None:
    script = Script(alter=spoil)
    async with polled(make_repository(tmp_path), script) as polling:
        assert not polling.server.control.server_ready
        script.alter = lambda output, _: output
        await polling.settle()
        assert await serves(polling.server) == 1
        assert polling.server.control.server_ready


async def test_a_repository_that_cannot_be_read_leaves_all_as_it_is(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository")
    async with polled(repository) as polling:
        repository.rename(tmp_path / "elsewhere")
        for _ in range(3):
            assert await polling.look() == PERIOD_S
        assert await serves(polling.server) == 1
        assert polling.server.metrics.registry.get_sample_value("trivec_repository_poll_failures_total") == 3
        (tmp_path / "elsewhere").rename(repository)
        await polling.settle()
        assert (polling.script.built, polling.script.closed) == (1, 0)


async def test_a_second_directory_of_a_name_stops_no_one_and_is_named(tmp_path: Path) -> None:
    roots = (make_repository(tmp_path / "one", "a"), make_repository(tmp_path / "two", "b"))
    async with polled(tmp_path, model_repositories=roots) as polling:
        make_repository(tmp_path / "two", "a")
        await polling.settle()
        twice = "reload failed: model appears in two or more repositories"
        assert await index(polling.server) == [("a", "1", "READY", twice), ("b", "1", "READY", "")]
        assert await serves(polling.server, "a") == 1
        shutil.rmtree(tmp_path / "two" / "a")
        await polling.settle()
        assert await index(polling.server) == [("a", "1", "READY", ""), ("b", "1", "READY", "")]


async def test_hidden_directories_and_files_are_no_models(tmp_path: Path) -> None:
    async with polled(make_repository(tmp_path)) as polling:
        make_repository(tmp_path, ".hidden")
        (tmp_path / "README.md").touch()
        await polling.settle()
        assert await index(polling.server) == [("small", "1", "READY", "")]


async def test_a_version_whose_engine_has_failed_is_loaded_again(tmp_path: Path) -> None:
    def die(batch: TokenBatch) -> None:
        if 999 in batch.token_ids:
            raise EngineLost("killed by signal 9")

    async with polled(make_repository(tmp_path), Script(before_run=die)) as polling:
        polling.script.build_failures = 10
        await failure_of(embed(polling.server, pb.EmbedRequest(texts=["w999"])))
        await until(lambda: not polling.server.registry.any_ready)
        assert (await reason(polling.server)).endswith("it will be loaded again")
        polling.script.build_failures = 0
        await polling.look()
        assert await serves(polling.server) == 1
        assert await reason(polling.server) == ""


async def test_a_directory_that_cannot_be_read_for_a_moment_stops_no_one(tmp_path: Path) -> None:
    async with polled(make_repository(tmp_path, "a", "small")) as polling:
        for place in (tmp_path / "small" / "1", tmp_path / "small"):
            place.rename(tmp_path / ".away")
            place.symlink_to(place)
            for _ in range(3):
                await polling.settle()
            assert "cannot be read" in await reason(polling.server)
            assert await serves(polling.server, "small") == 1
            assert polling.server.control.server_ready
            place.unlink()
            (tmp_path / ".away").rename(place)
            await polling.settle()
            assert await reason(polling.server) == ""
        assert (polling.script.built, polling.script.closed) == (2, 0)


async def test_a_repository_that_is_empty_all_at_once_leaves_what_it_held_and_others_are_followed(
    tmp_path: Path,
) -> None:
    roots = (make_repository(tmp_path / "one", "small"), make_repository(tmp_path / "two", "b", "c"))
    async with polled(tmp_path, model_repositories=roots) as polling:
        (tmp_path / "one").rename(tmp_path / "away")
        (tmp_path / "one").mkdir()
        shutil.rmtree(tmp_path / "two" / "c")
        await polling.settle()
        assert await index(polling.server) == [
            ("b", "1", "READY", ""),
            ("c", "1", "UNAVAILABLE", "unloaded: its directory is gone"),
            ("small", "1", "READY", "its repository is empty; served from memory"),
        ]
        assert await serves(polling.server, "small") == 1
        assert polling.server.metrics.registry.get_sample_value("trivec_repository_poll_failures_total") == 2
        (tmp_path / "one").rmdir()
        (tmp_path / "away").rename(tmp_path / "one")
        await polling.settle()
        assert await reason(polling.server) == ""


async def test_a_model_that_is_long_in_loading_does_not_keep_others_from_it(tmp_path: Path) -> None:
    scripts = {"a": Script(), "b": Script()}
    settings = replace(POLL, repository_stability_s=0.0)
    async with running_server(make_repository(tmp_path, "a", "b"), scripts, settings=settings) as server:
        for name in scripts:
            set_prefix(tmp_path, "w20 ", name)
        await server.control.look_again()
        scripts["a"].building.clear()
        look = asyncio.ensure_future(server.control.look_again())
        await until(lambda: scripts["b"].closed == 1)
        assert (await prefix(server, "a"), await prefix(server, "b")) == ("", "w20 ")
        assert server.control.is_loading
        scripts["a"].building.set()
        await look
        assert await prefix(server, "a") == "w20 "
