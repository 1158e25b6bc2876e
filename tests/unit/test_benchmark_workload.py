"""The benchmark's texts have the tokens that were drawn for them, and are the same each time."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from benchmarks.engines.lengths import MIXED_MOST, mixed_lengths, query_lengths, seeded
from benchmarks.engines.workload import TextMaker
from tests.numerics.models import write_tokenizer

SEED = 17


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return directory / "tokenizer.json"


def test_every_text_has_as_many_tokens_as_it_says(tokenizer_file: Path) -> None:
    maker = TextMaker(tokenizer_file, SEED)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    for texts in (
        maker.mixed_corpus(32),
        maker.short_queries(32),
        maker.of_length(2, 512),
        maker.of_characters(4, 100),
    ):
        assert [len(tokenizer.encode(text).ids) for text in texts.texts] == list(texts.lengths)


def test_the_same_seed_makes_the_same_texts(tokenizer_file: Path) -> None:
    first, second = (TextMaker(tokenizer_file, SEED).mixed_corpus(16) for _ in range(2))
    assert first == second
    assert TextMaker(tokenizer_file, SEED + 1).mixed_corpus(16) != first


def test_half_of_the_texts_are_chinese(tokenizer_file: Path) -> None:
    texts = TextMaker(tokenizer_file, SEED).of_length(8, 64).texts
    assert [text[:5].isascii() for text in texts] == [True, False] * 4


def test_texts_of_100_characters_have_100(tokenizer_file: Path) -> None:
    texts = TextMaker(tokenizer_file, SEED).of_characters(10, 100)
    assert [len(text) for text in texts.texts] == [100] * 10


@pytest.mark.parametrize("count", [64, 1000])
def test_the_mixed_corpus_has_54_tokens_a_text_whatever_its_size(count: int) -> None:
    lengths = mixed_lengths(count, seeded(SEED))
    assert 51 <= sum(lengths) / count <= 57
    assert max(lengths) <= MIXED_MOST


def test_short_queries_have_about_12_tokens() -> None:
    lengths = query_lengths(1000, seeded(SEED))
    assert 11.5 <= sum(lengths) / len(lengths) <= 12.5
