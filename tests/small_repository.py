"""A model repository for the scripted engine: a real config, manifest and tokenizer, and no weights."""

from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers, processors
from trivec_server.repository.manifest import ModelFacts, Source, write_manifest
from trivec_server.types import Mode

from tests.scripted_engine import DIMENSION, VOCABULARY_SIZE

WORDS = [f"w{number}" for number in range(10, VOCABULARY_SIZE)]
"""Word `wN` has the token id N; any other word is <unk>, but for one in each text of the self-check."""

_SELF_CHECK_WORDS = ["sunlight,", "人工智能是研究、开发用于模拟人类智能的理论与技术的科学。", "Lisboa"]

MAX_TOKENS = 64


def ids_of(text: str) -> list[int]:
    """The token ids of a text of WORDS."""
    return [0, *(int(word[1:]) for word in text.split()), 2]


def make_repository(root: Path, *names: str, versions: tuple[int, ...] = (1,), config: str = "") -> Path:
    """Writes models that the engine `scripted` serves; `config` is added to each config.pbtxt."""
    for name in names or ("small",):
        model = root / name
        model.mkdir(parents=True)
        (model / "config.pbtxt").write_text(
            f'name: "{name}"\nbackend: "scripted"\n'
            + ("" if "max_batch_size" in config else "max_batch_size: 16\n")
            + config
        )
        for version in versions:
            make_version(model / str(version))
    return root


def make_version(directory: Path, *, demonstration: bool = False) -> None:
    directory.mkdir()
    write_tokenizer(directory / "tokenizer.json")
    facts = ModelFacts(
        architecture="xlm-roberta",
        pooling="cls",
        precision="float32",
        modes=Mode.HYBRID,
        dense_dimension=DIMENSION,
        multi_vector_dimension=DIMENSION,
        vocabulary_size=VOCABULARY_SIZE,
        max_tokens=MAX_TOKENS,
        demonstration=demonstration,
    )
    write_manifest(directory, facts, Source(kind="directory", name="tests"), ["tokenizer.json"])


def write_tokenizer(path: Path) -> None:
    """A tokenizer that splits at whitespace into WORDS."""
    words = dict(enumerate(["<s>", "<pad>", "</s>", "<unk>", *_SELF_CHECK_WORDS]))
    vocabulary = {word: number for number, word in words.items()} | {word: int(word[1:]) for word in WORDS}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106 - not a password
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(path))
