"""Strategies for texts of configurations: soup of the tokens of a language, good texts damaged, and plain noise."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from google.protobuf.descriptor import Descriptor
from hypothesis import strategies as st
from inference import model_config_pb2

from tests.fuzz.wire_messages import damaged

_ROOT = Path(__file__).parents[2]
_NUMBERS = ("0", "1", "-1", "2", "64", "007", "0x1F", "1.5", "1e400", "nan", "-inf", "9" * 30, "9" * 5000, "2147483648")
_STRINGS = (
    '""',
    '"a"',
    '"small"',
    '"text"',
    "'b'",
    '"\\n"',
    '"\\x"',
    '"\\777"',
    '"é"',
    '"\\ud800"',
    '"' + "y" * 300 + '"',
)
_WORDS = (
    "auto",
    "scripted",
    "onnxruntime",
    "TYPE_STRING",
    "TYPE_FP32",
    "KIND_GPU",
    "KIND_CPU",
    "true",
    "false",
    "REJECT",
)


def _names(message: Descriptor, seen: set[str]) -> Iterator[str]:
    """The names of all fields and values that a message can have in it."""
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    for field in message.fields:
        yield field.name
        if field.enum_type is not None:
            yield from (value.name for value in field.enum_type.values)
        if field.message_type is not None:
            yield from _names(field.message_type, seen)


CONFIG_NAMES = tuple(dict.fromkeys(_names(model_config_pb2.ModelConfig.DESCRIPTOR, set())))
PBTXT_SAMPLES = tuple(
    path.read_bytes()
    for pattern in ("model_repository/*/config.pbtxt", "deploy/kubernetes/kustomize/overlays/*/*.pbtxt")
    for path in sorted(_ROOT.glob(pattern))
)
"""Configurations as they are shipped, and those of the documentation."""
DOCUMENTED = tuple(
    block.partition("```")[0].encode()
    for block in (_ROOT / "docs/model-repository.md").read_text(encoding="utf-8").split("```protobuf\n")[1:]
)


def _joined(tokens: Sequence[str], most: int) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(tokens), max_size=most).map(
        lambda some: " ".join(some).encode("utf-8", "surrogatepass")
    )


def _nested(opening: str, closing: str) -> st.SearchStrategy[bytes]:
    """Something in something, up to a depth that no reader's stack has room for."""
    depths = st.sampled_from([3, 50, 900, 3000])
    return st.tuples(depths, depths).map(lambda given: (opening * given[0] + closing * given[1]).encode())


def pbtxt() -> st.SearchStrategy[bytes]:
    """Nearly config.pbtxt."""
    good = st.sampled_from(PBTXT_SAMPLES + DOCUMENTED)
    marks = ("{", "}", "[", "]", ":", ",", ";", "<", ">", "#x\n", "\n", "{", "}", ":")
    soup = _joined((*CONFIG_NAMES, *marks * 8, *_NUMBERS, *_STRINGS, *_WORDS), 30)
    line = st.tuples(st.sampled_from(CONFIG_NAMES), st.sampled_from((*_NUMBERS, *_STRINGS, *_WORDS)))
    one = line.map(lambda given: f"\n{given[0]}: {given[1]}\n".encode())
    block = st.tuples(st.sampled_from(CONFIG_NAMES), soup).map(
        lambda given: given[0].encode() + b" {" + given[1] + b"}"
    )
    added = st.tuples(good, st.one_of(one, block, soup)).map(b"".join)
    short = st.lists(st.one_of(one, one, block), max_size=6).map(b"".join)
    nested = _nested("optimization { ", "} ")
    return st.one_of(
        added,
        short,
        soup,
        damaged(good),
        damaged(good),
        st.binary(max_size=40),
        st.text(max_size=40).map(str.encode),
        nested,
    )


_json_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 64, 2**31, 2**63, 2**64, 1e308, 0.5, "", "a", "1", "9" * 400]),
    st.sampled_from(_WORDS),
)


def json_text(names: Sequence[str], samples: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Nearly JSON with these names in it."""
    keys = st.one_of(st.sampled_from(names), st.sampled_from(names), st.text(max_size=4))
    values = st.recursive(
        _json_scalars,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=4)),
        max_leaves=8,
    )
    objects = st.dictionaries(keys, values, max_size=5)
    good = st.sampled_from(samples)
    changed = st.tuples(good.map(json.loads), objects).map(lambda given: given[0] | given[1])
    whole = st.one_of(objects, changed, changed, values).map(lambda value: json.dumps(value).encode())
    marks = ("{", "}", "[", "]", ":", ",", *(f'"{name}"' for name in names))
    soup = _joined((*marks * 2, *_NUMBERS, *_STRINGS, "null", "true", "NaN", "Infinity"), 20)
    return st.one_of(whole, whole, damaged(good), soup, st.binary(max_size=30), _nested('{"a":[', "]}"))


def toml(samples: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Nearly the access file."""
    keys = (
        "name",
        "token_sha256",
        "certificate",
        "scopes",
        "requests_per_s",
        "burst",
        "max_concurrent",
        "identity",
        "x",
    )
    values = (
        *_NUMBERS, *_STRINGS, '["infer"]', '["infer", "admin"]', "[]", "[1]", "{}", '[{a = 1}]', "true", "1979-05-27",
        "1979-99-99", "inf", "+nan", '"' + "0" * 64 + '"', '"' + "g" * 64 + '"', '"""a', "[[",
    )  # fmt: skip
    line = st.tuples(st.sampled_from(keys), st.sampled_from(values)).map(lambda given: f"{given[0]} = {given[1]}\n")
    heads = st.sampled_from(["[[identity]]\n", "[[identity]]\n", "[identity]\n", "[x]\n", "", "# a\n"])
    entry = st.tuples(heads, st.lists(line, max_size=6).map("".join)).map("".join)
    entries = st.lists(entry, max_size=3).map(lambda each: "".join(each).encode("utf-8", "surrogatepass"))
    good = st.sampled_from(samples)
    added = st.tuples(good, line.map(str.encode)).map(b"".join)
    return st.one_of(entries, entries, added, damaged(good), st.binary(max_size=30), _nested("a = [", "]"))
