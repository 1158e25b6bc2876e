"""Where the engine instances of a version are to run."""

from collections.abc import Iterable

from trivec_server.backends.hardware import nvidia_gpu_count
from trivec_server.types import InstanceGroup, InstanceKind


def places_of(groups: Iterable[InstanceGroup]) -> list[tuple[InstanceKind, int | None]]:
    """
    The kind of device and the GPU, if one is named, of each engine instance that the groups ask for. By Triton's rule a
    group of KIND_GPU that names no GPU runs on all of them; with KIND_AUTO it is the first, or the CPU.
    """
    return [(group.kind, gpu) for group in groups for gpu in _gpus(group) for _ in range(group.count)]


def _gpus(group: InstanceGroup) -> tuple[int | None, ...]:
    if group.kind is InstanceKind.GPU and not group.gpus and nvidia_gpu_count():
        return tuple(range(nvidia_gpu_count()))
    return group.gpus or (None,)
