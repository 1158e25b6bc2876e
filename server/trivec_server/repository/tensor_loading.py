"""Loading one version of a model that takes tensors. What comes out is fit to serve."""

from dataclasses import dataclass

from trivec_server.backends.tensor_interface import TensorEngineInfo
from trivec_server.types import ModelSettings, ModelVersion, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTensors:
    """
    A version that passed its self-check. Its devices have not begun to serve. `inputs` and `outputs` are what requests
    give and get, without the batch dimension: of config.pbtxt, or of the model's file. `content_digest` is SHA-256 in
    hexadecimal digits over its file.
    """

    key: ModelVersion
    settings: ModelSettings
    info: TensorEngineInfo
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    content_digest: str
