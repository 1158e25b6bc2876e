"""Tensors in system shared memory: registered by clients where the server allows it, checked before they are used."""

import os
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as pb
from trivec_server.settings import Limits, ServeSettings

from tests.rpc.inference_server import (
    InferenceServer,
    elements,
    embed,
    given,
    inference_server,
    output,
    refusal_of,
    request,
    wanted,
)
from tests.scripted_engine import expected_dense
from tests.scripted_tensors import TensorScript, identity, sum_and_difference
from tests.small_repository import ids_of, make_repository

SIZE = 4096
DISABLED = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."


class SharedObject:
    """A POSIX shared memory object, as a client makes it."""

    def __init__(self) -> None:
        self.key = f"/trivec-test-{secrets.token_hex(6)}"
        self.path = Path("/dev/shm") / self.key[1:]  # noqa: S108 - where POSIX shared memory lies on Linux
        self.path.write_bytes(bytes(SIZE))

    def write(self, data: bytes, offset: int = 0) -> None:
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def read(self, size: int, offset: int = 0) -> bytes:
        return self.path.read_bytes()[offset : offset + size]


@pytest.fixture
def shared() -> Iterator[SharedObject]:
    made = SharedObject()
    yield made
    made.path.unlink(missing_ok=True)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[InferenceServer]:
    tensors = {"floats": TensorScript(model=identity("FP32")), "texts": TensorScript(model=identity("BYTES"))}
    settings = ServeSettings(allow_client_shm=True)
    async with inference_server(make_repository(tmp_path), tensors=tensors, settings=settings) as server:
        yield server


async def register(
    server: InferenceServer, key: str, *, name: str = "region", offset: int = 0, size: int = SIZE
) -> None:
    message = pb.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=size)
    await server.call("SystemSharedMemoryRegister", message, pb.SystemSharedMemoryRegisterResponse)


async def unregister(server: InferenceServer, name: str = "") -> None:
    message = pb.SystemSharedMemoryUnregisterRequest(name=name)
    await server.call("SystemSharedMemoryUnregister", message, pb.SystemSharedMemoryUnregisterResponse)


async def status(server: InferenceServer, name: str = "") -> dict[str, tuple[str, int, int]]:
    message = pb.SystemSharedMemoryStatusRequest(name=name)
    told = await server.call("SystemSharedMemoryStatus", message, pb.SystemSharedMemoryStatusResponse)
    return {name: (region.key, region.offset, region.byte_size) for name, region in told.regions.items()}


def place(size: int, offset: int | None = None, region: str = "region") -> dict[str, Any]:
    about: dict[str, Any] = {"shared_memory_region": region, "shared_memory_byte_size": size}
    return about if offset is None else {**about, "shared_memory_offset": offset}


async def test_inputs_and_outputs_lie_in_shared_memory(server: InferenceServer, shared: SharedObject) -> None:
    numbers = np.array([1.5, 2.5], np.float32)
    shared.write(numbers.tobytes(), 100)
    await register(server, shared.key, offset=64, size=SIZE - 64)
    response = await server.infer(
        request("floats", given("x", "FP32", (1, 2), **place(8, 36)), outputs=[wanted("y", **place(16, 200))])
    )
    assert [(tensor.name, list(tensor.shape)) for tensor in response.outputs] == [("y", [1, 2])]
    assert list(response.raw_output_contents) == [b""]
    assert shared.read(8, 264) == numbers.tobytes()


async def test_texts_and_embeddings_lie_in_shared_memory(server: InferenceServer, shared: SharedObject) -> None:
    text = elements("w10 w11")
    shared.write(text)
    await register(server, shared.key)
    response = await server.infer(
        request(
            "small",
            given("text", "BYTES", (1, 1), **place(len(text))),
            outputs=[wanted("dense", **place(64, 512)), wanted("multi_vector")],
        )
    )
    expected = expected_dense(ids_of("w10 w11"))
    assert shared.read(expected.nbytes, 512) == expected.tobytes()
    assert output(response, "multi_vector").shape[0] == 3


async def test_one_input_in_shared_memory_and_one_raw(server: InferenceServer, shared: SharedObject) -> None:
    shared.write(elements("a"))
    await register(server, shared.key)
    inputs = given("x", "BYTES", (1, 1), **place(5))
    response = await server.infer(request("texts", inputs, raw=[b"not used"]))
    assert list(response.raw_output_contents) == [elements("a")]


async def test_regions_are_told_registered_once_and_forgotten(server: InferenceServer, shared: SharedObject) -> None:
    await register(server, shared.key)
    await register(server, shared.key, name="part", offset=8, size=16)
    assert await status(server) == {"region": (shared.key, 0, SIZE), "part": (shared.key, 8, 16)}
    assert await status(server, "part") == {"part": (shared.key, 8, 16)}
    refusal = await refusal_of(register(server, shared.key))
    assert (refusal.code, refusal.message) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "shared memory region 'region' already in manager",
    )
    await unregister(server, "part")
    await unregister(server, "part")
    refusal = await refusal_of(status(server, "part"))
    assert (refusal.code, refusal.message) == (
        grpc.StatusCode.NOT_FOUND,
        "Unable to find system shared memory region: 'part'",
    )
    await unregister(server)
    assert await status(server) == {}
    assert shared.path not in open_files()


async def test_only_so_many_regions_are_registered(server: InferenceServer, shared: SharedObject) -> None:
    for number in range(1024):
        await register(server, shared.key, name=str(number), offset=number, size=1)
    refusal = await refusal_of(register(server, shared.key))
    assert refusal.code is grpc.StatusCode.INTERNAL
    assert "1024 shared memory regions are registered, and no more may be" in refusal.message
    await unregister(server)
    assert shared.path not in open_files()


def open_files() -> list[Path]:
    """What this process, the server's too, has open."""
    links = [Path(entry) for entry in Path("/proc/self/fd").iterdir()]
    return [link.readlink() for link in links if link.is_symlink()]


@pytest.mark.parametrize(
    ("offset", "size"), [(0, SIZE + 1), (SIZE, 1), (0, 0), (2**63, 2**63), (8, 2**64 - 8), (2**40, 8)]
)
async def test_a_region_beyond_its_object_is_refused(
    server: InferenceServer, shared: SharedObject, offset: int, size: int
) -> None:
    refusal = await refusal_of(register(server, shared.key, offset=offset, size=size))
    assert (refusal.code, refusal.message) == (
        grpc.StatusCode.INTERNAL,
        f"Invalid shared memory region: '{shared.key}'",
    )
    assert await status(server) == {}


async def test_a_region_needs_a_name(server: InferenceServer, shared: SharedObject) -> None:
    refusal = await refusal_of(register(server, shared.key, name=""))
    assert refusal.message == f"Invalid shared memory region: '{shared.key}'"


@pytest.mark.parametrize(
    "key", ["/absent-object", "", "/", "/..", "/.", "/../etc/passwd", "/dir/object", "a\0b", "/" + "x" * 300]
)
async def test_a_key_that_is_no_object_is_refused(server: InferenceServer, key: str) -> None:
    refusal = await refusal_of(register(server, key))
    assert refusal.code is grpc.StatusCode.INTERNAL
    # A message is one line, whatever the key holds.
    shown = key.replace("\0", "\\x00")
    assert refusal.message == f"Unable to open shared memory region: '{shown}'"


async def test_a_semaphore_is_no_region(server: InferenceServer, shared: SharedObject) -> None:
    semaphore = shared.path.with_name(f"sem.{shared.path.name}")
    shared.path.rename(semaphore)
    shared.path = semaphore
    refusal = await refusal_of(register(server, f"/{semaphore.name}"))
    assert refusal.message == f"Unable to open shared memory region: '/{semaphore.name}'"


async def test_a_link_out_of_shared_memory_is_refused(
    server: InferenceServer, shared: SharedObject, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(SIZE))
    shared.path.unlink()
    shared.path.symlink_to(secret)
    refusal = await refusal_of(register(server, shared.key))
    assert refusal.message == f"Unable to open shared memory region: '{shared.key}'"


BAD_PLACES: list[tuple[dict[str, Any], grpc.StatusCode, str]] = [
    (place(8, region="none"), grpc.StatusCode.NOT_FOUND, "Unable to find shared memory region: 'none'"),
    (place(8, SIZE), grpc.StatusCode.INVALID_ARGUMENT, "Invalid offset for shared memory region: 'region'"),
    (place(8, -8), grpc.StatusCode.INVALID_ARGUMENT, "Invalid offset for shared memory region: 'region'"),
    (
        place(8, SIZE - 4),
        grpc.StatusCode.INVALID_ARGUMENT,
        "Invalid offset + byte size for shared memory region: 'region'",
    ),
    (place(-4), grpc.StatusCode.INVALID_ARGUMENT, "Invalid offset + byte size for shared memory region: 'region'"),
    (
        {"shared_memory_region": "region"},
        grpc.StatusCode.INVALID_ARGUMENT,
        "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor 'x'",
    ),
    (
        {"shared_memory_byte_size": 8},
        grpc.StatusCode.INVALID_ARGUMENT,
        "'shared_memory_byte_size' can not be specified without 'shared_memory_region' parameter for tensor 'x'",
    ),
    (
        {"shared_memory_offset": 8},
        grpc.StatusCode.INVALID_ARGUMENT,
        "'shared_memory_offset' can not be specified without 'shared_memory_region' parameter for tensor 'x'",
    ),
    (
        {**place(8), "shared_memory_region": 5},
        grpc.StatusCode.INVALID_ARGUMENT,
        "invalid value type for 'shared_memory_region' parameter for tensor 'x', expected string_param.",
    ),
    (
        {**place(8), "shared_memory_byte_size": "8"},
        grpc.StatusCode.INVALID_ARGUMENT,
        "invalid value type for 'shared_memory_byte_size' parameter for tensor 'x', expected int64_param.",
    ),
    (
        {**place(8), "shared_memory_offset": "0"},
        grpc.StatusCode.INVALID_ARGUMENT,
        "invalid value type for 'shared_memory_offset' parameter for tensor 'x', expected int64_param.",
    ),
]


@pytest.mark.parametrize(("about", "code", "message"), BAD_PLACES, ids=[str(about) for about, _, _ in BAD_PLACES])
async def test_a_place_outside_its_region_is_refused(
    server: InferenceServer, shared: SharedObject, about: dict[str, Any], code: grpc.StatusCode, message: str
) -> None:
    await register(server, shared.key)
    refusal = await refusal_of(server.infer(request("floats", given("x", "FP32", (1, 2), **about))))
    assert (refusal.code, refusal.message) == (code, message)
    asked = request("floats", given("x", "FP32", (1, 2)), raw=[bytes(8)], outputs=[wanted("x", **about)])
    assert (await refusal_of(server.infer(asked))).code is code


@pytest.mark.parametrize(("datatype", "model"), [("FP32", "floats"), ("BYTES", "texts"), ("BYTES", "small")])
async def test_shared_memory_counts_as_a_part_of_its_request(
    server: InferenceServer, shared: SharedObject, datatype: str, model: str
) -> None:
    os.truncate(shared.path, 2**39)
    await register(server, shared.key, size=2**39)
    name = "text" if model == "small" else "x"
    refusal = await refusal_of(server.infer(request(model, given(name, datatype, (1, 1), **place(2**39)))))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"{2**39} of them in shared memory; the limit is {16 * 1024 * 1024}" in refusal.message
    assert "--max-request-bytes" in refusal.message


async def test_the_inputs_of_one_request_share_its_limit(tmp_path: Path, shared: SharedObject) -> None:
    pair = [given(f"INPUT{number}", "INT32", (1, 16), **place(64, 64 * number)) for number in range(2)]
    whole = request("simple", *pair)
    half = request("simple", pair[0], given("INPUT1", "INT32", (1, 16)), raw=[bytes(64)])
    tensors = {"simple": TensorScript(model=sum_and_difference())}
    settings = ServeSettings(allow_client_shm=True)
    limits = Limits(max_request_bytes=len(whole.SerializeToString()) + 127)
    async with inference_server(make_repository(tmp_path), tensors=tensors, limits=limits, settings=settings) as server:
        await register(server, shared.key)
        assert (await server.infer(half)).model_name == "simple"
        assert "128 of them in shared memory" in (await refusal_of(server.infer(whole))).message


async def test_shared_memory_of_a_wrong_size_is_not_read(server: InferenceServer, shared: SharedObject) -> None:
    await register(server, shared.key)
    os.truncate(shared.path, 4)
    refusal = await refusal_of(server.infer(request("floats", given("x", "FP32", (1, 1), **place(1000)))))
    assert refusal.message.endswith("input byte size mismatch for input 'x' for model 'floats'. Expected 4, got 1000")


async def test_contents_beside_shared_memory_are_refused(server: InferenceServer, shared: SharedObject) -> None:
    await register(server, shared.key)
    contents = pb.InferTensorContents(fp32_contents=[1, 2])
    refusal = await refusal_of(server.infer(request("floats", given("x", "FP32", (1, 2), contents, **place(8)))))
    assert refusal.message == (
        "unexpected 'content' provided when using shared memory for input tensor 'x' for model 'floats'"
    )


async def test_an_output_larger_than_its_place_is_refused(server: InferenceServer, shared: SharedObject) -> None:
    await register(server, shared.key)
    asked = request("floats", given("x", "FP32", (1, 2)), raw=[bytes(8)], outputs=[wanted("y", **place(4))])
    refusal = await refusal_of(server.infer(asked))
    assert (refusal.code, refusal.message) == (
        grpc.StatusCode.INTERNAL,
        (
            "shared memory size specified with the request for output 'y' (4 bytes) should be at least 8 bytes to hold "
            "the results"
        ),
    )


async def test_an_object_that_was_shortened_ends_no_server(server: InferenceServer, shared: SharedObject) -> None:
    await register(server, shared.key)
    os.truncate(shared.path, 4)
    refusal = await refusal_of(server.infer(request("floats", given("x", "FP32", (1, 2), **place(8)))))
    assert (refusal.code, refusal.message) == (
        grpc.StatusCode.INTERNAL,
        f"Invalid shared memory region: '{shared.key}'",
    )
    asked = request("floats", given("x", "FP32", (1, 2)), raw=[bytes(8)], outputs=[wanted("y", **place(8))])
    assert (await refusal_of(server.infer(asked))).code is grpc.StatusCode.INTERNAL
    assert shared.path.stat().st_size == 4
    assert output(await server.infer(embed("w10")), "dense").shape[0] == 1


@pytest.mark.parametrize("method", ["System", "Cuda"])
@pytest.mark.parametrize("action", ["Register", "Unregister"])
async def test_without_the_option_nothing_is_registered(tmp_path: Path, method: str, action: str) -> None:
    async with inference_server(make_repository(tmp_path)) as server:
        refusal = await refusal_of(server.send(f"{method}SharedMemory{action}", b""))
        assert (refusal.code, refusal.message) == (grpc.StatusCode.UNIMPLEMENTED, DISABLED)
        assert await server.send(f"{method}SharedMemoryStatus", b"") == b""
        metadata = await server.call("ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse)
        assert "system_shared_memory" not in metadata.extensions


async def test_with_it_cuda_memory_is_still_not_supported(server: InferenceServer) -> None:
    refusal = await refusal_of(server.send("CudaSharedMemoryRegister", b""))
    assert refusal.code is grpc.StatusCode.UNIMPLEMENTED
    assert "CUDA shared memory is not supported" in refusal.message
    named = pb.CudaSharedMemoryStatusRequest(name="x").SerializeToString()
    refusal = await refusal_of(server.send("CudaSharedMemoryStatus", named))
    assert (refusal.code, refusal.message) == (
        grpc.StatusCode.NOT_FOUND,
        "Unable to find cuda shared memory region: 'x'",
    )
    metadata = await server.call("ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse)
    assert "system_shared_memory" in metadata.extensions
