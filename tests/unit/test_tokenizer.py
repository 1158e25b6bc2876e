"""Texts to token ids: specials, prefixes, truncation, offsets, and files that are not such a tokenizer."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers
from trivec_server.errors import LoadError
from trivec_server.serving.tokenizer import Tokenizer, truncate
from trivec_server.serving.word_cache import pack_ids, unpack_ids
from trivec_server.types import InputType, Truncation

from tests.small_repository import WORDS, ids_of, write_tokenizer
from tests.tiny_model import write_tiny_tokenizer

LIMIT = 64


def unpacked(encoded: list[bytes]) -> list[list[int]]:
    return [unpack_ids(packed) for packed in encoded]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> Tokenizer:
    return Tokenizer(path, query_prefix="w20 w21 ", passage_prefix="w30 ")


@given(st.integers(0, 40), st.integers(2, 45))
def test_right_truncation_is_hugging_faces(path: Path, words: int, limit: int) -> None:
    text = " ".join(WORDS[:words])
    reference = tokenizers.Tokenizer.from_file(str(path))
    whole = reference.encode(text).ids
    reference.enable_truncation(limit)
    assert unpack_ids(truncate(pack_ids(whole), limit, Truncation.RIGHT)) == reference.encode(text).ids


@given(st.integers(0, 40), st.integers(2, 45), st.sampled_from([Truncation.LEFT, Truncation.RIGHT]))
def test_truncation_keeps_both_specials_and_one_end_of_the_text(words: int, limit: int, truncation: Truncation) -> None:
    inner = list(range(10, 10 + words))
    shortened = unpack_ids(truncate(pack_ids([0, *inner, 2]), limit, truncation))
    kept = min(words, limit - 2)
    assert len(shortened) == kept + 2
    assert (shortened[0], shortened[-1]) == (0, 2)
    assert shortened[1:-1] == (inner[:kept] if truncation is Truncation.RIGHT else inner[words - kept :])


def test_an_empty_text_is_the_two_specials(tokenizer: Tokenizer) -> None:
    assert unpacked(tokenizer.encode([""], InputType.NONE)) == [[0, 2]]


def test_special_tokens_written_out_in_a_text_become_those_tokens(tokenizer: Tokenizer) -> None:
    assert unpacked(tokenizer.encode(["w10 <s> w11 </s> <unk>"], InputType.NONE)) == [[0, 10, 0, 11, 2, 3, 2]]


@pytest.mark.parametrize(
    ("kind", "prefix"), [(InputType.NONE, []), (InputType.QUERY, [20, 21]), (InputType.PASSAGE, [30])]
)
def test_the_prefix_of_the_input_type_comes_before_the_text(
    tokenizer: Tokenizer, kind: InputType, prefix: list[int]
) -> None:
    assert unpacked(tokenizer.encode(["w10", ""], kind)) == [[0, *prefix, 10, 2], [0, *prefix, 2]]


def test_every_text_may_have_its_own_input_type(tokenizer: Tokenizer) -> None:
    kinds = [InputType.QUERY, InputType.PASSAGE, InputType.NONE]
    assert unpacked(tokenizer.encode(["w10", "w11", "w12"], kinds)) == [[0, 20, 21, 10, 2], [0, 30, 11, 2], [0, 12, 2]]


def test_encoding_neither_truncates_nor_pads_whatever_the_file_says(path: Path, tmp_path: Path) -> None:
    saved = tokenizers.Tokenizer.from_file(str(path))
    saved.enable_truncation(4)
    saved.enable_padding(length=8)
    trained = tmp_path / "tokenizer.json"
    saved.save(str(trained))
    assert unpacked(Tokenizer(trained).encode(["w10 w11 w12 w13", "w10"], InputType.NONE)) == [
        ids_of("w10 w11 w12 w13"),
        ids_of("w10"),
    ]


texts = st.lists(st.sampled_from(["w10", "w11", "  ", "人", "<s>", "🙂", "\n"]), max_size=8).map(" ".join)


@given(texts, st.sampled_from(InputType))
def test_tokenize_gives_the_ids_that_encode_gives(tokenizer: Tokenizer, text: str, kind: InputType) -> None:
    assert tokenizer.tokenize(text, kind, 1000, Truncation.ERROR).ids == unpack_ids(tokenizer.encode([text], kind)[0])


@given(texts, st.sampled_from([InputType.NONE, InputType.PASSAGE]))
def test_offsets_are_the_code_points_of_each_word_in_the_text_without_its_prefix(
    tokenizer: Tokenizer, text: str, kind: InputType
) -> None:
    tokenized = tokenizer.tokenize(text, kind, 1000, Truncation.ERROR)
    skipped = 2 if kind is InputType.PASSAGE else 1
    assert all(offset == (0, 0) for offset in [*tokenized.offsets[:skipped], tokenized.offsets[-1]])
    spans = [text[start:end] for start, end in tokenized.offsets[skipped:-1]]
    assert [span.strip() for span in spans] == text.split()


def test_offsets_of_a_metaspace_tokenizer_lie_in_the_text(tmp_path: Path) -> None:
    write_tiny_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", query_prefix="the ")
    text = "hello 人工"
    tokenized = tokenizer.tokenize(text, InputType.QUERY, 64, Truncation.ERROR)
    assert all(0 <= start <= end <= len(text) for start, end in tokenized.offsets)
    assert [text[start:end].strip() for start, end in tokenized.offsets if end > start] == ["hello", "", "人", "工"]


@pytest.mark.parametrize(
    ("truncation", "words"), [(Truncation.RIGHT, ["w10", "w11"]), (Truncation.LEFT, ["w13", "w14"])]
)
def test_tokenize_truncates_strings_and_offsets_with_the_ids(
    tokenizer: Tokenizer, truncation: Truncation, words: list[str]
) -> None:
    text = "w10 w11 w12 w13 w14"
    tokenized = tokenizer.tokenize(text, InputType.NONE, 4, truncation)
    assert tokenized.truncated
    assert tokenized.tokens == ["<s>", *words, "</s>"]
    assert [text[start:end] for start, end in tokenized.offsets] == ["", *words, ""]


def test_a_text_of_exactly_the_limit_is_not_truncated(tokenizer: Tokenizer) -> None:
    assert not tokenizer.tokenize("w10 w11", InputType.NONE, 4, Truncation.RIGHT).truncated


def test_with_error_an_overlong_text_is_returned_whole_and_marked(tokenizer: Tokenizer) -> None:
    tokenized = tokenizer.tokenize("w10 w11 w12", InputType.NONE, 4, Truncation.ERROR)
    assert (tokenized.ids, tokenized.truncated) == (ids_of("w10 w11 w12"), True)


def test_token_strings_are_the_vocabularys_and_empty_for_an_id_without_one(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_strings([10, 0, 999_999]) == ["w10", "<s>", ""]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"tokenizer\.json is missing"):
        Tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("content", ["", "{", "{}", "[1]", '{"model": 3}'])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(LoadError, match=r"tokenizer\.json is not a readable tokenizer"):
        Tokenizer(tmp_path / "tokenizer.json")


def test_special_tokens_with_other_ids_are_refused(path: Path, tmp_path: Path) -> None:
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["<s>"], vocabulary["</s>"] = 2, 0
    content["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(LoadError, match="special token <s> has id 2, must be 0"):
        Tokenizer(tmp_path / "tokenizer.json")


PIECES = [
    "hello",
    "world",
    "the",
    "a",
    "b",
    "人",
    "工智",
    "é",
    "e\u0301",
    "ﬁ",
    "Ａ",
    "\ufffd",
    "~",
    "🙂",
    "🏻",
    "¨",
    "▁",
]
PIECES += ["<s>", "<", "s>", "\u3000", "\u200d", "\u0301", "1", ",", "a" * 40]
words = st.lists(st.sampled_from(PIECES), max_size=3).map("".join)
sentences = st.lists(words, max_size=6).map(" ".join)


@pytest.fixture(scope="module", params=["always", "first", "split"])
def metaspace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """As BGE-M3's: a normalizer that makes spaces of some characters and nothing of others, words split at spaces."""
    path = tmp_path_factory.mktemp("metaspace") / "tokenizer.json"
    write_tiny_tokenizer(path)
    built = tokenizers.Tokenizer.from_file(str(path))
    built.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace("\ufffd", " "), normalizers.Replace("~", "")]
    )
    if request.param == "split":
        built.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    else:
        built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=request.param)
    built.save(str(path))
    return Tokenizer(path)


@given(st.lists(sentences, min_size=1, max_size=4))
def test_what_is_remembered_of_earlier_texts_changes_no_ids(metaspace: Tokenizer, batch: list[str]) -> None:
    """Encode remembers words over all examples; `tokenize` asks the library's tokenizer anew each time."""
    expected = [metaspace.tokenize(text, InputType.NONE, 10_000, Truncation.ERROR).ids for text in batch]
    assert unpacked(metaspace.encode(batch, InputType.NONE)) == expected


def test_a_character_that_becomes_a_space_does_not_spoil_the_words_learnt_beside_it(metaspace: Tokenizer) -> None:
    expected = [metaspace.tokenize(text, InputType.NONE, 99, Truncation.ERROR).ids for text in ("w\ufffdr", "lord")]
    metaspace.encode(["w\ufffdr lord a\ufffdb dole\ufffd"], InputType.NONE)
    assert unpacked(metaspace.encode(["w\ufffdr", "lord"], InputType.NONE)) == expected
