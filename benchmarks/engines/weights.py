"""
The model that all systems run: random weights in BGE-M3's shapes, made on the spot, and `trivec pull` of them. What is
in the work directory already is used again.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engines.flops import EncoderShape

MODEL = "bge-m3"
MAX_TOKENS = 8192
_READY = "checkpoint.ready"


@dataclass(frozen=True, slots=True)
class BenchmarkModel:
    """
    One model in the forms that the systems take: `checkpoint` in the hub's layout, `version` as Trivec pulled it.
    `bytes` of its weights in float32.
    """

    work: Path
    checkpoint: Path
    version: Path
    shape: EncoderShape
    bytes: int
    small: bool

    @property
    def tokenizer_file(self) -> Path:
        return self.checkpoint / "tokenizer.json"


def make_model(work: Path, *, small: bool) -> BenchmarkModel:
    """The full-size model (2.3 GB, twice), or a small one."""
    work = (work / ("small" if small else "full")).resolve()
    checkpoint, repository = work / "checkpoint", work / "models"
    if not (work / _READY).exists():
        checkpoint.mkdir(parents=True, exist_ok=True)
        print(f"writing random weights to {checkpoint}", flush=True)
        _write_checkpoint(checkpoint, small=small)
        (work / _READY).touch()
    _write_sentence_transformers_files(checkpoint)
    version = repository / MODEL / "1"
    if not (version / "manifest.json").exists():
        command = [sys.executable, "-m", "trivec_server", "pull", str(checkpoint), "--name", MODEL]
        subprocess.run([*command, "--model-repository", str(repository)], check=True)
    weights = (checkpoint / "model.safetensors").stat().st_size
    return BenchmarkModel(work, checkpoint, version, _shape(checkpoint), weights, small)


def _write_checkpoint(directory: Path, *, small: bool) -> None:
    if small:
        from tests.numerics.models import SHAPES, write_model  # noqa: PLC0415 - needs packages that not all have

        write_model(SHAPES[0], directory)
        return
    from benchmarks.full_size_model import write_full_size_model  # noqa: PLC0415 - as above

    write_full_size_model(directory)


def _write_sentence_transformers_files(checkpoint: Path) -> None:
    """What BAAI/bge-m3 has for sentence-transformers: the first token's vector, of unit length."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    pooling = {
        "word_embedding_dimension": _config(checkpoint)["hidden_size"],
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    (checkpoint / "1_Pooling").mkdir(exist_ok=True)
    (checkpoint / "2_Normalize").mkdir(exist_ok=True)
    (checkpoint / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (checkpoint / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    settings = {"max_seq_length": MAX_TOKENS, "do_lower_case": False}
    (checkpoint / "sentence_bert_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _config(checkpoint: Path) -> dict[str, int]:
    config: dict[str, int] = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return config


def _shape(checkpoint: Path) -> EncoderShape:
    config = _config(checkpoint)
    return EncoderShape(config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"])
