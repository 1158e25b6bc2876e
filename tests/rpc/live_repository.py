"""What the tests of a live repository share: settings, changes to a model on disk, what the index says."""

import json
import os
import re
import shutil
import threading
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from trivec.v1 import embedding_pb2 as pb
from trivec_server.backends.interface import TokenBatch
from trivec_server.settings import ControlMode, ServeSettings

from tests.rpc.running_server import RunningServer, embed, running_server, until
from tests.scripted_engine import Script
from tests.small_repository import make_version

EXPLICIT = ServeSettings(model_control_mode=ControlMode.EXPLICIT)
EVERYTHING = ServeSettings(model_control_mode=ControlMode.EXPLICIT, load_models=("*",))
POLL = ServeSettings(model_control_mode=ControlMode.POLL, repository_poll_s=15.0, repository_stability_s=2.0)


HELD = "w999"
"""The text that `HeldText` holds."""


class HeldText:
    """Holds each batch with the text HELD until it is told, and lets all others pass: those of self-checks, too."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.go_on = threading.Event()

    def __call__(self, batch: TokenBatch) -> None:
        if 999 in batch.token_ids:
            self.entered.release()
            assert self.go_on.wait(60)


@dataclass
class Clock:
    """The time that polling goes by."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def explicit(repository: Path, script: Script) -> AbstractAsyncContextManager[RunningServer]:
    """A server that has loaded all models and loads others when asked."""
    return running_server(repository, script, settings=EVERYTHING)


async def index(server: RunningServer) -> list[tuple[str, str, str, str]]:
    return [(each.name, each.version, each.state, each.reason) for each in await server.control.index()]


async def reason(server: RunningServer, model: str = "small", version: int = 1) -> str:
    """What GetModel says, which must be what the index says."""
    described = (await server.stub.GetModel(pb.GetModelRequest(model=model, version=version))).model
    (found,) = [
        each.reason for each in await server.control.index() if (each.name, each.version) == (model, f"{version}")
    ]
    assert described.state_reason == found
    return found


async def prefix(server: RunningServer, model: str = "small") -> str:
    """The query prefix in effect, by which tests tell configurations apart."""
    return (await server.stub.GetModel(pb.GetModelRequest(model=model))).model.query_prefix


async def is_demonstration(server: RunningServer, version: int = 0) -> bool:
    """By which tests tell the contents of versions apart."""
    return (await server.stub.GetModel(pb.GetModelRequest(model="small", version=version))).model.demonstration


async def serves(server: RunningServer, model: str = "small", version: int = 0) -> int:
    """The version that answers."""
    return (await embed(server, pb.EmbedRequest(model=model, version=version, texts=["w10"]))).version


async def released(server: RunningServer) -> None:
    """Waits until nothing is being released any more."""
    await until(lambda: all(record.state.name != "UNLOADING" for record in server.registry.records()))


def set_prefix(repository: Path, text: str, model: str = "small") -> None:
    """Another configuration."""
    config = repository / model / "config.pbtxt"
    line = f'parameters {{ key: "query_prefix" value {{ string_value: "{text}" }} }}\n'
    kept = re.sub(r"^parameters .*query_prefix.*\n", "", config.read_text(), flags=re.MULTILINE)
    config.write_text(kept + line)


def replace_version(directory: Path, *, demonstration: bool = True) -> None:
    """Another content, put into place at once as `trivec pull` does."""
    draft = directory.parent / f".{directory.name}"
    make_version(draft, demonstration=demonstration)
    shutil.rmtree(directory)
    draft.rename(directory)


def touch(directory: Path, mtime_s: float) -> None:
    """Gives all files of a directory this time."""
    for path in directory.iterdir():
        os.utime(path, (mtime_s, mtime_s))


def config_json(**fields: object) -> str:
    return json.dumps({"backend": "scripted", "max_batch_size": 16, **fields})
