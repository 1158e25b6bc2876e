"""Loading one version of a model that takes tensors. What comes out is fit to serve."""

import contextlib
import hashlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from trivec_server.backends.tensor_interface import TensorEngineFactory, TensorEngineInfo, TensorEngineRequest
from trivec_server.errors import ComputeError, InvalidTensor, LoadError, TrivecError
from trivec_server.logs import get_logger
from trivec_server.repository.engines import TENSOR_ENGINES
from trivec_server.repository.instances import places_of
from trivec_server.repository.manifest import measure_file
from trivec_server.repository.tensor_agreement import Agreement, agree
from trivec_server.repository.tensor_warmup import warmup_arrays, zero_arrays
from trivec_server.serving.device import Device
from trivec_server.serving.tensors.batch_run import TensorDevice
from trivec_server.serving.tensors.layout import BatchLayout
from trivec_server.types import ModelSettings, ModelVersion, TensorSettings, TensorSpec

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTensors:
    """
    A version that is fit to serve. Its devices have not begun to. `inputs` and `outputs` are what requests give and
    get, without the batch dimension: of config.pbtxt, or of the model's file. `settings` are completed likewise.
    `content_digest` is SHA-256 in hexadecimal digits over the files of the version.
    """

    key: ModelVersion
    settings: ModelSettings
    info: TensorEngineInfo
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    devices: tuple[TensorDevice, ...]
    content_digest: str


def load_tensors(
    key: ModelVersion,
    version_dir: Path,
    settings: ModelSettings,
    engines: Mapping[str, TensorEngineFactory] = TENSOR_ENGINES,
) -> LoadedTensors:
    """
    Loads a version, agrees its config with its file, and warms it up. Blocks; nothing stays open if it fails.

    Args:
        key: What it is.
        version_dir: Where its files are.
        settings: Of a model that takes tensors.
        engines: By the names that `backend` gives them.

    Raises:
        LoadError: the reason, for the user.
    """
    tensors = settings.tensors or TensorSettings()
    factory = engines.get(settings.backend)
    if factory is None:
        raise LoadError(f"backend `{settings.backend}` takes no tensors; use one of: {', '.join(sorted(engines))}")
    model_file = find_model_file(version_dir, tensors)
    devices: list[TensorDevice] = []
    with ThreadPoolExecutor(1) as threads:
        digest = threads.submit(_digest, version_dir)
        try:
            for number, request in enumerate(_engine_requests(model_file, settings)):
                device: TensorDevice = Device(f"engine {key} {number}", partial(factory, request))
                device.start()
                devices.append(device)
            info = _common_info(devices)
            agreement = agree(settings, tensors, info)
            notes = _warm_up(devices, agreement, tensors, info, version_dir.parent)
            content_digest = digest.result()
        except BaseException:
            with contextlib.ExitStack() as closing:
                for device in devices:
                    closing.callback(device.close)
            raise
    return LoadedTensors(
        key=key,
        settings=replace(
            settings,
            batching=agreement.batching,
            tensors=replace(tensors, inputs=agreement.inputs, outputs=agreement.outputs),
        ),
        info=replace(info, notes=(*info.notes, *agreement.notes, *notes)),
        inputs=agreement.inputs,
        outputs=agreement.outputs,
        devices=tuple(devices),
        content_digest=content_digest,
    )


def find_model_file(version_dir: Path, tensors: TensorSettings) -> Path:
    """
    The file that the settings name, or `model.onnx` in the directory that they name: a large model with its weights.

    Raises:
        LoadError: there is none.
    """
    path = version_dir / tensors.model_filename
    path = path / TensorSettings().model_filename if path.is_dir() else path
    if not path.is_file():
        raise LoadError(f"{path}: not found; put the model there, or name its file in default_model_filename")
    return path


def _engine_requests(model_file: Path, settings: ModelSettings) -> list[TensorEngineRequest]:
    places = places_of(settings.instance_groups)
    return [
        TensorEngineRequest(
            model_file=model_file,
            kind=kind,
            device_index=gpu,
            intra_op_threads=settings.intra_op_threads,
            instances=places.count((kind, gpu)),
        )
        for kind, gpu in places
    ]


def _common_info(devices: Sequence[TensorDevice]) -> TensorEngineInfo:
    """What all instances are together: the first, with every device and note."""
    infos = [device.run_once(lambda engine: engine.info) for device in devices]
    return replace(
        infos[0],
        device=", ".join(dict.fromkeys(info.device for info in infos)),
        notes=tuple(dict.fromkeys(note for info in infos for note in info.notes)),
    )


def _warm_up(
    devices: Sequence[TensorDevice],
    agreement: Agreement,
    tensors: TensorSettings,
    info: TensorEngineInfo,
    model_dir: Path,
) -> tuple[str, ...]:
    """
    Runs the warm-ups on every device, or zeros where there are none: those need not make sense to the model, so that
    their failure is only a note.

    Raises:
        LoadError: a warm-up does not fit the model, or the model fails on it.
    """
    max_batch_size = agreement.batching.max_batch_size
    layout = BatchLayout(agreement.inputs, agreement.outputs, info, has_batch_dimension=max_batch_size > 0)
    if not tensors.warmups:
        zeros = layout.join([zero_arrays(agreement.inputs, max_batch_size)])
        try:
            for device in devices:
                _run(device, zeros, agreement)
        except (MemoryError, ComputeError, InvalidTensor) as error:
            return (f"the model fails on zeros, which may be no fault of it: {error}",)
        return ()
    for warmup in tensors.warmups:
        inputs = layout.join([warmup_arrays(warmup, agreement.inputs, max_batch_size, model_dir)])
        started_at = time.monotonic()
        try:
            for device in devices:
                for _ in range(warmup.count):
                    _run(device, inputs, agreement)
        except (MemoryError, TrivecError) as error:
            raise LoadError(f"model_warmup `{warmup.name}` failed: {error}") from error
        duration_s = round(time.monotonic() - started_at, 3)
        _log.info("warm-up", name=warmup.name, rows=warmup.batch_size, batches=warmup.count, duration_s=duration_s)
    return ()


def _run(device: TensorDevice, inputs: Mapping[str, NDArray[Any]], agreement: Agreement) -> None:
    names = [spec.name for spec in agreement.outputs]
    device.run_once(lambda engine: engine.run(inputs, names))


def _digest(version_dir: Path) -> str:
    """Over the names, sizes and contents of a version's files, those in directories of it too, but no hidden ones."""
    digest = hashlib.sha256()
    try:
        for path in sorted(path for path in version_dir.rglob("[!.]*") if path.is_file()):
            facts = measure_file(path)
            digest.update(f"{path.relative_to(version_dir)}\0{facts.bytes}\0{facts.sha256}\n".encode())
    except OSError as error:
        raise LoadError(f"{error.filename or version_dir}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()
