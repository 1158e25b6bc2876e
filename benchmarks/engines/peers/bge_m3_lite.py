"""
bge-m3-lite: all three outputs, float32 on ONNX Runtime with its own fused graph.

It downloads BAAI/bge-m3 and refuses other files by their SHA-256. Here it is given the benchmark's weights: the graph
by its documented `model_path`, the heads and the vocabulary by entries without a digest in its list of files.
"""

import json
import struct
from collections.abc import Sequence
from pathlib import Path

from bge_m3_lite import BGEM3Embedder, hub  # type: ignore[import-not-found, unused-ignore]

from benchmarks.engines.worker import Message, Started, run_worker, started

_TOKENIZER = "sentencepiece.bpe.model"
_HEADS = ("colbert_linear.pt", "sparse_linear.pt")
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3


class BgeM3Lite:
    def __init__(self, options: Message) -> None:
        checkpoint, directory = Path(options["model"]), Path(options["directory"])
        write_sentencepiece(checkpoint / "tokenizer.json", directory / _TOKENIZER)
        for name in _HEADS:
            (directory / name).unlink(missing_ok=True)
            (directory / name).symlink_to(checkpoint / name)
        hub.TOKENIZER_FILES = (_known(directory / _TOKENIZER),)
        hub.HEAD_FILES = tuple(_known(directory / name) for name in _HEADS)
        self._embedder = BGEM3Embedder(
            directory, model_path=directory / options["graph"], max_length=options["max_tokens"], spin=options["spin"]
        )
        self._batch_size: int = options["batch_size"]

    def embed(self, texts: list[str]) -> object:
        return self._encode(texts, all_outputs=True)

    def dense(self, texts: list[str]) -> Sequence[Sequence[float]]:
        vectors: Sequence[Sequence[float]] = self._encode(texts, all_outputs=False)["dense_vecs"].tolist()
        return vectors

    def _encode(self, texts: list[str], *, all_outputs: bool) -> Message:
        output: Message = self._embedder.encode(
            texts, batch_size=self._batch_size, return_sparse=all_outputs, return_colbert_vecs=all_outputs
        )
        return output


def write_sentencepiece(tokenizer_file: Path, path: Path) -> None:
    """The vocabulary of a `tokenizer.json` as SentencePiece's ModelProto, without a map for unusual characters."""
    vocabulary = json.loads(tokenizer_file.read_text(encoding="utf-8"))["model"]["vocab"]
    # The ids of `tokenizer.json` are those of SentencePiece plus one: <s> <pad> </s> <unk> come first, <mask> last.
    pieces = [("<unk>", 0.0, _UNKNOWN), ("<s>", 0.0, _CONTROL), ("</s>", 0.0, _CONTROL)]
    pieces += [(piece, score, _NORMAL) for piece, score in vocabulary[4:-1]]
    data = b"".join(_field(1, _piece(*piece)) for piece in pieces)
    path.write_bytes(data + _field(2, b"\x18\x01"))  # trainer_spec { model_type: UNIGRAM }


def _piece(text: str, score: float, kind: int) -> bytes:
    return _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([0x18, kind])


def _field(number: int, data: bytes) -> bytes:
    length, rest = bytearray(), len(data)
    while rest > 0x7F:
        length.append(rest & 0x7F | 0x80)
        rest >>= 7
    length.append(rest)
    return bytes([number << 3 | 2]) + bytes(length) + data


def _known(path: Path) -> object:
    """An entry of bge-m3-lite's list of files that any content satisfies."""
    return hub.RemoteFile(path.name, path.name, path.stat().st_size, None)


def start(options: Message) -> Started:
    settings = f"float32, fused graph, batch {options['batch_size']}{', spinning threads' if options['spin'] else ''}"
    return started(BgeM3Lite(options), settings, ["bge-m3-lite", "onnxruntime"])


if __name__ == "__main__":
    run_worker(start)
