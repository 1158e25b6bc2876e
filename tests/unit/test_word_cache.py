"""The word cache gives exactly the ids of the tokenizer it stands before."""

import random

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers
from trivec_server.repository.mini import build_tokenizer
from trivec_server.repository.mini_file import MiniFile, find_mini_file
from trivec_server.serving.word_cache import WordCache, unpack_ids

_ALPHABET = [
    *"abcABC019 .,-'!?<>[]|_\t\n▁éßжи人工智能の한글ﷺ½ﹰ\u3000\u200b\u0301\u0308\u00a0\u1160🙂",
    "<s>",
    "<mask>",
    " <mask> ",
    "  ",
]


def unpacked(encoded: list[bytes]) -> list[list[int]]:
    return [unpack_ids(packed) for packed in encoded]


@pytest.fixture(scope="module", params=["whitespace-split", "metaspace"])
def tokenizer(request: pytest.FixtureRequest) -> tokenizers.Tokenizer:
    """XLM-RoBERTa's vocabulary behind each of the two ways in which its tokenizer.json is made."""
    file = MiniFile(find_mini_file())
    built = build_tokenizer(file.pieces, file.scores)
    if request.param == "metaspace":
        built.normalizer = normalizers.Sequence(
            [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
        )
        built.pre_tokenizer = pre_tokenizers.Metaspace()
    return built


@given(texts=st.lists(st.lists(st.sampled_from(_ALPHABET), max_size=20).map("".join), min_size=1, max_size=20))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ids_are_the_tokenizers_own_for_any_text(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> None:
    cache = WordCache(tokenizer, 0, 2)
    expected = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    assert unpacked(cache.encode(texts)) == expected
    assert unpacked(cache.encode(texts)) == expected  # now from memory, where it may


def test_any_character_beside_known_words_gives_the_tokenizers_own_ids(tokenizer: tokenizers.Tokenizer) -> None:
    cache = WordCache(tokenizer, 0, 2)
    generator = random.Random(5)  # noqa: S311 - any sample will do
    characters = [chr(generator.randrange(0x20, 0x30000)) for _ in range(4000)]
    characters = [character for character in characters if not 0xD800 <= ord(character) < 0xE000]
    texts = [text for c in characters for text in (c, f"one {c} two", f"one {c}two", f"one{c} two")]
    expected = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    assert unpacked(cache.encode(texts)) == expected
    assert unpacked(cache.encode(texts)) == expected
    for text, ids in zip(texts, expected, strict=True):
        assert unpacked(cache.encode([text])) == [ids]


def test_more_words_than_are_remembered_still_give_the_tokenizers_own_ids(
    tokenizer: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trivec_server.serving.word_cache._GENERATION_WORDS", 10)
    cache = WordCache(tokenizer, 0, 2)
    texts = [f"word{number} of many{number % 7}" for number in range(100)] * 2
    for start in range(0, len(texts), 8):
        part = texts[start : start + 8]
        assert unpacked(cache.encode(part)) == [encoding.ids for encoding in tokenizer.encode_batch(part)]
