"""Loading one version: files verified, engine built, warmed up, checked. What comes out is fit to serve."""

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from trivec_server.backends.interface import Engine, EngineFactory, EngineInfo, EngineRequest, TokenBatch
from trivec_server.backends.worker.engine import start_worker
from trivec_server.errors import LoadError
from trivec_server.logs import get_logger
from trivec_server.repository.engines import AUTO, choose_engine, this_machine
from trivec_server.repository.instances import places_of
from trivec_server.repository.manifest import Manifest, read_manifest, verify_files
from trivec_server.repository.selfcheck import check_version
from trivec_server.serving.device import Device
from trivec_server.serving.embed_run import EmbedDevice, run_alone
from trivec_server.serving.tokenizer import Tokenizer
from trivec_server.types import (
    CLS_TOKEN_ID,
    EOS_TOKEN_ID,
    UNK_TOKEN_ID,
    InstanceKind,
    Mode,
    ModelSettings,
    ModelVersion,
    Warmup,
)

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedVersion:
    """A version that passed its self-check. Its devices have not begun to serve."""

    key: ModelVersion
    settings: ModelSettings
    manifest: Manifest
    info: EngineInfo
    tokenizer: Tokenizer
    devices: tuple[EmbedDevice, ...]
    max_tokens: int


def load_version(
    key: ModelVersion, version_dir: Path, settings: ModelSettings, engines: Mapping[str, EngineFactory]
) -> LoadedVersion:
    """
    Loads and checks a version. Blocks; nothing stays open if it fails.

    Raises:
        LoadError: the reason, for the user.
    """
    manifest = read_manifest(version_dir)
    chosen = _choose(settings, manifest, engines)
    max_tokens = _agreed_max_tokens(settings, manifest)
    tokenizer = _verified_tokenizer(version_dir, manifest, settings)
    devices: list[EmbedDevice] = []
    try:
        requests = _engine_requests(version_dir, settings, max_tokens)
        infos = [_start(device, devices) for device in _devices(key, settings, requests, chosen)]
        info = _common_info(infos, chosen.notes)
        _check_agreement(settings, manifest, info)
        for device in devices:
            _warm_up(device, settings.warmups, max_tokens)
            check_version(device, info, tokenizer, max_tokens)
    except BaseException:
        with contextlib.ExitStack() as closing:
            for device in devices:
                closing.callback(device.close)
        raise
    return LoadedVersion(
        key=key,
        settings=settings,
        manifest=manifest,
        info=info,
        tokenizer=tokenizer,
        devices=tuple(devices),
        max_tokens=max_tokens,
    )


def _verified_tokenizer(version_dir: Path, manifest: Manifest, settings: ModelSettings) -> Tokenizer:
    """
    The tokenizer, read while the files are compared with the manifest: each takes most of a second. What the manifest
    says is wrong counts first.
    """
    with ThreadPoolExecutor(1) as threads:
        verified = threads.submit(verify_files, version_dir, manifest)
        try:
            tokenizer = Tokenizer(
                version_dir / "tokenizer.json",
                query_prefix=settings.query_prefix,
                passage_prefix=settings.passage_prefix,
            )
        finally:
            verified.result()
    return tokenizer


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The engine that `backend` names, or that is best here, and why; `on_gpus`: it would run on GPUs, if it may."""

    factory: EngineFactory
    on_gpus: bool
    notes: tuple[str, ...] = ()


def _choose(settings: ModelSettings, manifest: Manifest, engines: Mapping[str, EngineFactory]) -> _Chosen:
    exported_for = None if manifest.export is None else manifest.export.engine
    name = settings.backend
    notes: tuple[str, ...] = ()
    machine = this_machine()
    if name == AUTO:
        choice = choose_engine(machine, _kind(settings), exported_for, settings.precision)
        name, notes = choice.name, choice.notes
    factory = engines.get(name)
    if factory is None:
        raise LoadError(f"backend `{name}` is not known; use one of: {', '.join(sorted((AUTO, *engines)))}")
    if exported_for not in (None, name):
        raise LoadError(
            f"this version was exported for the engine `{exported_for}`, but config.pbtxt says backend `{name}`: set "
            f'backend to "auto" or "{exported_for}", or choose another version with version_policy'
        )
    return _Chosen(factory, machine.gpus > 0 and name in machine.gpu_engines, notes)


def _kind(settings: ModelSettings) -> InstanceKind:
    """The kind that all instance groups have; AUTO if they differ."""
    kinds = {group.kind for group in settings.instance_groups}
    return kinds.pop() if len(kinds) == 1 else InstanceKind.AUTO


def _engine_requests(version_dir: Path, settings: ModelSettings, max_tokens: int) -> list[EngineRequest]:
    """One for each engine instance that the instance groups ask for."""
    places = places_of(settings.instance_groups)
    return [
        EngineRequest(
            version_dir=version_dir,
            kind=kind,
            device_index=gpu,
            precision=settings.precision,
            intra_op_threads=settings.intra_op_threads,
            instances=places.count((kind, gpu)),
            max_tokens=max_tokens,
            accelerator=settings.accelerator,
            device_memory_mb=settings.device_memory_mb,
            token_budget=settings.batching.token_budget,
        )
        for kind, gpu in places
    ]


def _devices(
    key: ModelVersion, settings: ModelSettings, requests: list[EngineRequest], chosen: _Chosen
) -> list[EmbedDevice]:
    devices: list[EmbedDevice] = []
    for number, request in enumerate(requests):
        build: Callable[[], Engine] = partial(chosen.factory, request)
        apart = settings.worker_process
        if apart is None:
            # One interpreter cannot feed several GPUs, and an error on a GPU leaves no process fit to go on with.
            apart = chosen.on_gpus and request.kind is not InstanceKind.CPU
        if apart:
            build = partial(start_worker, chosen.factory, request)
        devices.append(Device(f"engine {key} {number}", build))
    return devices


def _common_info(infos: list[EngineInfo], notes: tuple[str, ...]) -> EngineInfo:
    """
    What all instances of a version are together: the first, with every device, note and the least budget.

    Raises:
        LoadError: they would give different numbers, or need different batches.
    """
    first = infos[0]
    for info in infos[1:]:
        if (info.engine, info.precision, info.pads) != (first.engine, first.precision, first.pads):
            raise LoadError(
                f"instance_group: one instance is {first.engine} on {first.device} in {first.precision}, another "
                f"{info.engine} on {info.device} in {info.precision}; a model's instances must give the same numbers: "
                "set `precision`, or let all groups be of one kind"
            )
    said = dict.fromkeys([*notes, *(note for info in infos for note in info.notes)])
    return replace(
        infos[0],
        device=", ".join(dict.fromkeys(info.device for info in infos)),
        token_budget=min(info.token_budget for info in infos),
        notes=tuple(said),
    )


def _start(device: EmbedDevice, started: list[EmbedDevice]) -> EngineInfo:
    device.start()
    started.append(device)
    return device.run_once(lambda engine: engine.info)


def _agreed_max_tokens(settings: ModelSettings, manifest: Manifest) -> int:
    most = manifest.model.max_tokens
    if settings.max_tokens is not None and settings.max_tokens > most:
        raise LoadError(f"config.pbtxt: max_tokens is {settings.max_tokens}, but the model takes at most {most}")
    return settings.max_tokens or most


def _check_agreement(settings: ModelSettings, manifest: Manifest, info: EngineInfo) -> None:
    """What `config.pbtxt`, the manifest and the graph each say of the model must be the same."""
    model = manifest.model
    said = (
        ("pooling", settings.pooling, model.pooling, info.pooling),
        ("precision", settings.precision, info.precision, info.precision),
        ("dense dimension", settings.dense_dimension, model.dense_dimension, info.dense_dimension),
        (
            "multi_vector dimension",
            settings.multi_vector_dimension,
            model.multi_vector_dimension,
            info.multi_vector_dimension,
        ),
        ("vocabulary size", None, model.vocabulary_size, info.vocabulary_size),
    )
    for what, in_config, in_manifest, in_engine in said:
        if in_manifest != in_engine:
            raise LoadError(f"manifest.json says {what} {in_manifest}, the graph {in_engine}; pull the model again")
        if in_config is not None and in_config != in_engine:
            raise LoadError(f"config.pbtxt says {what} {in_config}, the model has {in_engine}; correct config.pbtxt")
    if settings.declared_modes is not None and settings.declared_modes & ~info.modes:
        raise LoadError("config.pbtxt declares an output that the model does not have; correct config.pbtxt")


def _warm_up(device: EmbedDevice, warmups: tuple[Warmup, ...], max_tokens: int) -> None:
    for warmup in warmups:
        tokens = min(max(2, warmup.tokens), max_tokens)
        sequence = [CLS_TOKEN_ID, *[UNK_TOKEN_ID] * (tokens - 2), EOS_TOKEN_ID]
        batch = TokenBatch(
            np.array(sequence * warmup.batch_size, np.int64), np.full(warmup.batch_size, tokens, np.int64)
        )
        _log.info("warm-up", name=warmup.name, texts=warmup.batch_size, tokens=tokens, batches=warmup.count)
        for _ in range(warmup.count):
            run_alone(device, batch, Mode.HYBRID)
