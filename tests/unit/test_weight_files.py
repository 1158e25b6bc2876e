"""Weights out of safetensors and torch files: exact, mapped, and never by running a pickle."""

import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from trivec_server.backends.weights.weight_files import (
    WeightFiles,
    open_safetensors,
    open_sharded_safetensors,
    open_torch,
)
from trivec_server.errors import LoadError

NUMBERS = np.arange(12, dtype=np.float32).reshape(3, 4) - 5.5
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"
Opener = Callable[[Path], WeightFiles]


def text(value: str) -> bytes:
    encoded = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def integer(value: int) -> bytes:
    return b"I%d\n" % value


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def storage(kind: str, key: str, numbers: int) -> bytes:
    return (
        tuple_of(text("storage"), b"ctorch\n" + kind.encode() + b"\n", text(key), text("cpu"), integer(numbers)) + b"Q"
    )


def tensor(stored: bytes, shape: Sequence[int], strides: Sequence[int], offset: int = 0) -> bytes:
    """The pickle instructions that torch.save writes for a tensor: a call of _rebuild_tensor_v2."""
    arguments = (stored, integer(offset), tuple_of(*map(integer, shape)), tuple_of(*map(integer, strides)))
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + tuple_of(*arguments, b"\x89", ORDERED_DICT) + b"R"


def state_dict(**tensors: bytes) -> bytes:
    """A whole pickle of an OrderedDict, with the `_metadata` attribute that a module's state dictionary has."""
    items = b"".join(text(name) + value for name, value in tensors.items())
    metadata = b"}" + text("_metadata") + ORDERED_DICT + b"sb"
    return b"\x80\x02" + ORDERED_DICT + b"(" + items + b"u" + metadata + b"."


def write_archive(path: Path, pickled: bytes, *storages: bytes, byteorder: bytes = b"little") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", byteorder)
        for key, content in enumerate(storages):
            archive.writestr(f"archive/data/{key}", content)
    return path


def whole_archive(path: Path) -> Path:
    pickled = state_dict(w=tensor(storage("FloatStorage", "0", 12), (3, 4), (4, 1)))
    return write_archive(path, pickled, NUMBERS.tobytes())


def bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def write_safetensors(path: Path, **tensors: tuple[str, tuple[int, ...], bytes]) -> Path:
    header: dict[str, object] = {}
    content = b""
    for name, (dtype, shape, numbers) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(content), len(content) + len(numbers)]}
        content += numbers
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content)
    return path


def test_safetensors_give_each_number_exactly(tmp_path: Path) -> None:
    path = write_safetensors(
        tmp_path / "model.safetensors",
        single=("F32", (3, 4), NUMBERS.tobytes()),
        half=("F16", (3, 4), NUMBERS.astype(np.float16).tobytes()),
        brain=("BF16", (3, 4), bfloat16(NUMBERS).tobytes()),
    )
    weights = open_safetensors(path)
    assert sorted(weights.names()) == ["brain", "half", "single"]
    for name in weights.names():
        np.testing.assert_array_equal(weights.get(name), NUMBERS)
        assert weights.shape(name) == (3, 4)


def test_torch_archives_give_each_number_exactly(tmp_path: Path) -> None:
    pickled = state_dict(
        single=tensor(storage("FloatStorage", "0", 12), (3, 4), (4, 1)),
        half=tensor(storage("HalfStorage", "1", 12), (3, 4), (4, 1)),
        brain=tensor(storage("BFloat16Storage", "2", 12), (3, 4), (4, 1)),
        parameter=b"ctorch._utils\n_rebuild_parameter\n"
        + tuple_of(tensor(storage("FloatStorage", "0", 12), (3, 4), (4, 1)), b"\x88", ORDERED_DICT)
        + b"R",
    )
    stored = NUMBERS.tobytes(), NUMBERS.astype(np.float16).tobytes(), bfloat16(NUMBERS).tobytes()
    weights = open_torch(write_archive(tmp_path / "pytorch_model.bin", pickled, *stored))
    assert sorted(weights.names()) == ["brain", "half", "parameter", "single"]
    for name in weights.names():
        np.testing.assert_array_equal(weights.get(name), NUMBERS)


def test_views_of_a_torch_storage_keep_offset_and_strides(tmp_path: Path) -> None:
    shared = storage("FloatStorage", "0", 12)
    pickled = state_dict(
        transposed=tensor(shared, (4, 3), (1, 4)),
        column=tensor(shared, (3,), (4,), offset=2),
        scalar=tensor(shared, (), (), offset=11),
        nothing=tensor(shared, (0, 4), (4, 1)),
        repeated=tensor(shared, (2, 2), (0, 1)),
    )
    weights = open_torch(write_archive(tmp_path / "x.pt", pickled, NUMBERS.tobytes()))
    np.testing.assert_array_equal(weights.get("transposed"), NUMBERS.T)
    np.testing.assert_array_equal(weights.get("column"), NUMBERS[:, 2])
    np.testing.assert_array_equal(weights.get("scalar"), NUMBERS[2, 3])
    np.testing.assert_array_equal(weights.get("nothing"), np.zeros((0, 4)))
    np.testing.assert_array_equal(weights.get("repeated"), [[-5.5, -4.5], [-5.5, -4.5]])


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_float32_and_float16_are_mapped_from_the_file_not_copied(tmp_path: Path, suffix: str) -> None:
    if suffix == "bin":
        array = open_torch(whole_archive(tmp_path / "x.bin")).get("w")
    else:
        save_file({"w": NUMBERS.astype(np.float16)}, tmp_path / "x.safetensors")
        array = open_safetensors(tmp_path / "x.safetensors").get("w")
    assert not array.flags.writeable
    while not isinstance(array, np.memmap):
        assert isinstance(array.base, np.ndarray)
        array = array.base


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    save_file({"a": NUMBERS}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": NUMBERS + 1}, tmp_path / "model-00002-of-00002.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    places = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    weights = open_sharded_safetensors(index)
    np.testing.assert_array_equal(weights.get("a"), NUMBERS)
    np.testing.assert_array_equal(weights.get("b"), NUMBERS + 1)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(LoadError, match=r"model-00002-of-00002\.safetensors: cannot be read"):
        open_sharded_safetensors(index)


def test_a_shard_that_lacks_its_tensor_is_named(tmp_path: Path) -> None:
    save_file({"a": NUMBERS}, tmp_path / "one.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}))
    with pytest.raises(LoadError, match=r"one\.safetensors: no tensor 'b'"):
        open_sharded_safetensors(index)


def test_an_index_that_points_outside_its_directory_is_refused(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(LoadError, match="must be a plain file name"):
        open_sharded_safetensors(index)


def test_a_prefix_of_the_checkpoint_is_taken_off(tmp_path: Path) -> None:
    save_file({"roberta.embeddings.w": NUMBERS, "lm_head.bias": NUMBERS}, tmp_path / "x.safetensors")
    weights = open_safetensors(tmp_path / "x.safetensors", ("bert.", "roberta."))
    np.testing.assert_array_equal(weights.get("embeddings.w"), NUMBERS)


def test_a_tensor_that_is_not_there_is_named_with_its_file(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"x\.pt: no tensor 'bias'"):
        open_torch(whole_archive(tmp_path / "x.pt")).get("bias")


def test_whole_numbers_are_not_weights(tmp_path: Path) -> None:
    save_file({"position_ids": np.arange(4)}, tmp_path / "x.safetensors")
    with pytest.raises(LoadError, match="'position_ids' is I64"):
        open_safetensors(tmp_path / "x.safetensors").get("position_ids")
    pickled = state_dict(position_ids=tensor(storage("LongStorage", "0", 4), (4,), (1,)))
    archive = write_archive(tmp_path / "x.pt", pickled, np.arange(4).tobytes())
    with pytest.raises(LoadError, match="'position_ids' is int64"):
        open_torch(archive).get("position_ids")


class Marker:
    """Pickles as a call of `os.system` that would make a file: what a hostile checkpoint looks like."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os  # noqa: PLC0415

        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_hostile_pickle_is_refused_by_name_and_runs_nothing(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "mark"
    pickled = pickle.dumps({"w": Marker(mark)}, protocol)
    pickle.loads(pickled)  # noqa: S301 - shows that the pickle would do it
    assert mark.exists()
    mark.unlink()
    with pytest.raises(LoadError, match=r"x\.pt: refused: its pickle names posix\.system"):
        open_torch(write_archive(tmp_path / "x.pt", pickled))
    assert not mark.exists()


@pytest.mark.parametrize(
    "named",
    [
        "builtins eval",
        "builtins getattr",
        "torch load",
        "torch._utils _rebuild_tensor",
        "torch.storage _load_from_bytes",
        "collections defaultdict",
        "collections OrderedDict.fromkeys",
        "trivec_server.backends.weights.weight_files open_torch",
    ],
)
def test_only_the_names_that_tensors_need_are_known(tmp_path: Path, named: str) -> None:
    module, name = named.split()
    pickled = b"\x80\x04" + text(module) + text(name) + b"\x93."
    with pytest.raises(LoadError, match=f"names {module}.{name}, which tensors do not need"):
        open_torch(write_archive(tmp_path / "x.pt", pickled))


def test_what_a_pickle_sets_on_its_stand_ins_does_not_reach_the_next_file(tmp_path: Path) -> None:
    # BUILD with a pair (None, {name: value}) sets attributes of whatever lies below it.
    setting = b"ctorch._utils\n_rebuild_tensor_v2\nN}" + text("__kwdefaults__") + b"Ns\x86b0"
    hostile = b"\x80\x02" + setting + state_dict()[2:]
    open_torch(write_archive(tmp_path / "hostile.pt", hostile))
    np.testing.assert_array_equal(open_torch(whole_archive(tmp_path / "x.pt")).get("w"), NUMBERS)


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02X",
        b"\x80\x02}(K\x01K\x02u",
        b"\x80\x02K\x05.",
        b"\x80\x02" + ORDERED_DICT + b"h\x07.",
        state_dict(w=tensor(storage("FloatStorage", "0", 12), (3, 4), (4,))),
        state_dict(w=tensor(storage("FloatStorage", "0", 12), (3, -4), (4, 1))),
        state_dict(w=tensor(integer(3), (3, 4), (4, 1))),
        state_dict(w=tuple_of(text("storage"), text("float32"), text("0")) + b"Q"),
        state_dict(w=tuple_of(text("storage"), text("S1"), text("0"), text("cpu"), integer(1)) + b"Q"),
        state_dict(w=b"ctorch\nFloatStorage\n)R"),
    ],
)
def test_a_damaged_pickle_is_one_error_that_names_the_file(tmp_path: Path, pickled: bytes) -> None:
    with pytest.raises(LoadError, match=r"x\.pt: "):
        open_torch(write_archive(tmp_path / "x.pt", pickled, NUMBERS.tobytes()))


@pytest.mark.parametrize(
    ("stored", "shape", "strides", "fault"),
    [
        (storage("FloatStorage", "0", 12), (3, 5), (5, 1), "'w' reaches to number 14 of a storage of 12"),
        (storage("FloatStorage", "0", 12), (2, 1), (1 << 40, 1), "'w' reaches to number 1099511627776"),
        (storage("FloatStorage", "0", 13), (3, 4), (4, 1), "data/0 is truncated or damaged: 48 bytes, not 52"),
        (storage("FloatStorage", "7", 12), (3, 4), (4, 1), "data/7 are missing"),
        (storage("FloatStorage", "../data.pkl", 12), (3, 4), (4, 1), r"data/\.\./data\.pkl are missing"),
    ],
)
def test_a_tensor_outside_its_file_is_refused(
    tmp_path: Path, stored: bytes, shape: tuple[int, ...], strides: tuple[int, ...], fault: str
) -> None:
    path = write_archive(tmp_path / "x.pt", state_dict(w=tensor(stored, shape, strides)), NUMBERS.tobytes())
    with pytest.raises(LoadError, match=rf"x\.pt: .*{fault}"):
        open_torch(path).get("w")


def test_a_changed_number_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = whole_archive(tmp_path / "x.bin")
    path.write_bytes(path.read_bytes().replace(NUMBERS[1].tobytes(), NUMBERS[2].tobytes()))
    with pytest.raises(LoadError, match=r"x\.bin: data/0 is damaged: its CRC-32"):
        open_torch(path).get("w")


def test_big_endian_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="big-endian"):
        open_torch(write_archive(tmp_path / "x.pt", state_dict(), byteorder=b"big"))


def test_a_compressed_storage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", state_dict(w=tensor(storage("FloatStorage", "0", 12), (3, 4), (4, 1))))
        archive.writestr("a/data/0", NUMBERS.tobytes())
    with pytest.raises(LoadError, match="data/0 is compressed"):
        open_torch(path).get("w")


def test_the_format_of_torch_before_1_6_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2))
    with pytest.raises(LoadError, match=r"x\.bin: not a whole file.*torch before 1\.6"):
        open_torch(path)


def test_a_zip_file_of_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", b"")
    with pytest.raises(LoadError, match=r"not torch\.save's"):
        open_torch(path)


@pytest.mark.parametrize("kept", [0, 5, 100, -1, -30])
@pytest.mark.parametrize("opener", [open_torch, open_safetensors])
def test_a_truncated_file_is_named(tmp_path: Path, opener: Opener, kept: int) -> None:
    path = tmp_path / "weights"
    if opener is open_torch:
        whole_archive(path)
    else:
        save_file({"w": NUMBERS}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(LoadError, match=r"weights: .*truncated"):
        opener(path)


@pytest.mark.parametrize("opener", [open_torch, open_safetensors])
def test_a_missing_file_is_named(tmp_path: Path, opener: Opener) -> None:
    with pytest.raises(LoadError, match="weights: cannot be read"):
        opener(tmp_path / "weights")
