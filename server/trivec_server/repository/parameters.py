"""Trivec's own settings in a `config.pbtxt`: the keys of `parameters`."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trivec_server.errors import ConfigError
from trivec_server.repository.config_fields import NO_EFFECT
from trivec_server.repository.pbtxt import Places, shown, suggestion
from trivec_server.types import ModelSettings, ScoreWeights

POOLINGS = ("cls", "mean")
PRECISIONS = ("float32", "float16", "bfloat16", "float8", "int8")
SWITCH = ("true", "false")

PARAMETERS: Mapping[str, str] = {
    "max_tokens": "a whole number from 2 to 1048576",
    "token_budget": "a whole number from 2 to 2147483647",
    "pooling": " or ".join(f"`{pooling}`" for pooling in POOLINGS),
    "query_prefix": "any text",
    "passage_prefix": "any text",
    "precision": ", ".join(f"`{precision}`" for precision in PRECISIONS),
    "score_weights": "three numbers `dense,sparse,multi_vector`, none negative, one at least above zero",
    "intra_op_threads": "a whole number from 1 to 1024",
    "device_memory_mb": "a whole number from 256 to 1048576",
    "worker_process": " or ".join(f"`{value}`" for value in SWITCH),
}
"""Every key with what its value may be, as errors and docs/model-repository.md say it."""

EMBEDDING_PARAMETERS = frozenset(PARAMETERS) - {"intra_op_threads"}
"""The keys that only embedding models have."""

TENSOR_PARAMETERS: Mapping[str, str] = {
    "intra_op_threads": PARAMETERS["intra_op_threads"],
    "intra_op_thread_count": "a whole number from 0 to 1024",
}
"""The keys of models that take tensors that are acted on, as `PARAMETERS`. The second is Triton's name of the first."""

_LARGEST_FLOAT32 = 3.4028234e38


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """The values of the keys, read. None: the key was not given."""

    max_tokens: int | None
    token_budget: int | None
    pooling: str | None
    query_prefix: str
    passage_prefix: str
    precision: str | None
    score_weights: ScoreWeights
    intra_op_threads: int | None
    device_memory_mb: int | None
    worker_process: bool | None


def parse_parameters(values: Mapping[str, str], places: Places) -> Parameters:
    """
    Reads the keys of `parameters`, each a text.

    Raises:
        ConfigError: a key is unknown, or a value is not one that its key allows; names key, value and what is allowed.
    """
    for key in values:
        if key not in PARAMETERS:
            near = suggestion(key, PARAMETERS) or f"; known are {', '.join(PARAMETERS)}"
            raise places.error(f'parameters["{key}"]', f"unknown key{near}")
    source = _Source(values, places, PARAMETERS)
    return Parameters(
        max_tokens=source.whole_number("max_tokens", 2, 1_048_576),
        token_budget=source.whole_number("token_budget", 2, 2_147_483_647),
        pooling=source.choice("pooling", POOLINGS),
        query_prefix=values.get("query_prefix", ""),
        passage_prefix=values.get("passage_prefix", ""),
        precision=source.choice("precision", PRECISIONS),
        score_weights=source.score_weights("score_weights"),
        intra_op_threads=source.whole_number("intra_op_threads", 1, 1024),
        device_memory_mb=source.whole_number("device_memory_mb", 256, 1_048_576),
        worker_process=source.switch("worker_process"),
    )


def parse_tensor_parameters(values: Mapping[str, str], places: Places, warn: Callable[[str, str], None]) -> int | None:
    """
    The threads of one engine instance of a model that takes tensors; None: as many as fit the machine. Other keys are
    the user's own: they are kept, and `warn` is called with each, by field and problem.

    Raises:
        ConfigError: a value is not one that its key allows.
    """
    for key in values.keys() - TENSOR_PARAMETERS.keys():
        warn(f'parameters["{key}"]', f"{NO_EFFECT}{suggestion(key, TENSOR_PARAMETERS)}")
    if values.keys() >= TENSOR_PARAMETERS.keys():
        raise places.error('parameters["intra_op_thread_count"]', "the same as `intra_op_threads`; remove one of them")
    source = _Source(values, places, TENSOR_PARAMETERS)
    counted = source.whole_number("intra_op_thread_count", 0, 1024)
    return source.whole_number("intra_op_threads", 1, 1024) or counted or None


def render_parameters(settings: ModelSettings) -> dict[str, str]:
    """The keys of `parameters` that give these settings; those at their default are left out."""
    if settings.tensors is not None:
        return dict(settings.tensors.parameters)
    weights = settings.score_weights
    written = {
        "max_tokens": settings.max_tokens,
        "token_budget": settings.batching.token_budget,
        "pooling": settings.pooling,
        "query_prefix": settings.query_prefix or None,
        "passage_prefix": settings.passage_prefix or None,
        "precision": settings.precision,
        "score_weights": None
        if weights == ScoreWeights()
        else f"{weights.dense!r},{weights.sparse!r},{weights.multi_vector!r}",
        "intra_op_threads": settings.intra_op_threads,
        "device_memory_mb": settings.device_memory_mb,
        "worker_process": None if settings.worker_process is None else SWITCH[not settings.worker_process],
    }
    return {key: str(value) for key, value in written.items() if value is not None}


@dataclass(frozen=True, slots=True)
class _Source:
    values: Mapping[str, str]
    places: Places
    allowed: Mapping[str, str]

    def whole_number(self, key: str, least: int, most: int) -> int | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not re.fullmatch(r"[0-9]{1,10}", value) or not least <= int(value) <= most:
            raise self._wrong(key, value)
        return int(value)

    def choice(self, key: str, allowed: tuple[str, ...]) -> str | None:
        value = self.values.get(key)
        if value is not None and value not in allowed:
            raise self._wrong(key, value, suggestion(value, allowed))
        return value

    def switch(self, key: str) -> bool | None:
        value = self.choice(key, SWITCH)
        return None if value is None else value == "true"

    def score_weights(self, key: str) -> ScoreWeights:
        value = self.values.get(key)
        if value is None:
            return ScoreWeights()
        try:
            numbers = [float(part) for part in value.split(",")]
        except ValueError:
            raise self._wrong(key, value) from None
        sound = all(math.isfinite(number) and 0 <= number <= _LARGEST_FLOAT32 for number in numbers)
        if len(numbers) != 3 or not sound or not any(numbers):
            raise self._wrong(key, value)
        return ScoreWeights(*numbers)

    def _wrong(self, key: str, value: str, near: str = "") -> ConfigError:
        return self.places.error(f'parameters["{key}"]', f"{shown(value)} is not {self.allowed[key]}{near}")
