"""`config.pbtxt` -> ModelSettings: which kind of model it is of, and what it says."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from inference import model_config_pb2 as pb

from trivec_server.repository.config_json import read_json
from trivec_server.repository.config_reader import PLATFORM_BACKENDS
from trivec_server.repository.embedding_config import INPUT_NAME, OUTPUT_NAMES, read_embedding_config
from trivec_server.repository.manifest import MANIFEST_NAME
from trivec_server.repository.parameters import EMBEDDING_PARAMETERS
from trivec_server.repository.pbtxt import Places, read_pbtxt
from trivec_server.repository.tensor_config import TENSOR_BACKEND, read_tensor_config
from trivec_server.types import ModelSettings, TensorSettings


def read_model_config(path: Path, directory_name: str) -> ModelSettings:
    """
    Reads and checks a `config.pbtxt`. `directory_name`: the model's directory, the model's name. The version
    directories beside the file are looked at where it does not say which kind of model it is.

    Raises:
        ConfigError: the file cannot be read, is not text format of a ModelConfig, or asks for what cannot be served.
            One line with the file, the line and column where known, the field, and what is allowed.
    """
    config = pb.ModelConfig()
    places = read_pbtxt(path, config)
    return _settings(config, places, directory_name, path.parent)


def read_model_config_json(text: str, directory_name: str, *, model_dir: Path) -> ModelSettings:
    """
    Reads and checks a config that is given as JSON instead of a file. `model_dir` holds the version directories.

    Raises:
        ConfigError: it is not JSON of a ModelConfig, or asks for what cannot be served. One line with the field, and
            what is allowed.
    """
    config = pb.ModelConfig()
    places = read_json(text, config)
    return _settings(config, places, directory_name, model_dir)


def _settings(config: pb.ModelConfig, places: Places, directory_name: str, model_dir: Path) -> ModelSettings:
    read = read_tensor_config if _takes_tensors(config, model_dir) else read_embedding_config
    return read(config, places, directory_name)


def _takes_tensors(config: pb.ModelConfig, model_dir: Path) -> bool:
    """
    Whether the config is of a model that takes tensors, not of an embedding model.

    A version with a manifest is an embedding model's; so is a config with settings that only those have, or one that
    declares no more than `text` and its embeddings: its manifest may be on its way. Other inputs and outputs are of a
    model that takes tensors. Where nothing is declared, there must be a model's file.
    """
    backend = PLATFORM_BACKENDS.get(config.platform, config.platform) or config.backend
    if backend not in ("", TENSOR_BACKEND) or EMBEDDING_PARAMETERS & config.parameters.keys():
        return False
    versions = _look_into(model_dir, config.default_model_filename or TensorSettings().model_filename)
    if versions.any_manifest or (not backend and not versions.any_model):
        return False
    if not config.input and not config.output:
        return versions.any_model
    inputs, outputs = ({tensor.name for tensor in tensors} for tensors in (config.input, config.output))
    return not (inputs <= {INPUT_NAME} and outputs <= OUTPUT_NAMES)


@dataclass(frozen=True, slots=True)
class _Contents:
    any_manifest: bool
    any_model: bool


def _look_into(model_dir: Path, model_filename: str) -> _Contents:
    """Which files the version directories hold."""
    try:
        versions = [path for path in model_dir.iterdir() if re.fullmatch("[0-9]+", path.name)]
    except OSError:
        versions = []

    def holds(filename: str) -> bool:
        return any(os.path.exists(version / filename) for version in versions)  # noqa: PTH110 - whatever its name holds

    return _Contents(any_manifest=holds(MANIFEST_NAME), any_model=holds(model_filename))
