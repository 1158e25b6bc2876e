"""What `backend: "auto"` stands for on different machines, and what is said of it."""

from collections.abc import Callable, Iterator

import pytest
from trivec_server.errors import LoadError
from trivec_server.repository import engines
from trivec_server.repository.engines import choose_engine, needs
from trivec_server.types import InstanceKind


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets what the machine has: GPUs, bfloat16 instructions, installed packages."""

    def describe(*, gpus: int = 0, bfloat16: bool = False, packages: tuple[str, ...] = ("onnxruntime",)) -> None:
        monkeypatch.setattr(engines, "nvidia_gpu_count", lambda: gpus)
        monkeypatch.setattr(engines, "cpu_has_bfloat16", lambda: bfloat16)
        monkeypatch.setattr(engines, "find_spec", lambda name: name if name in packages else None)
        monkeypatch.setattr(engines, "_has_distribution", lambda name: name in packages)

    yield describe


def test_a_version_exported_for_an_engine_is_run_by_that_engine(machine: Callable[..., None]) -> None:
    machine(packages=("onnxruntime", "openvino", "torch"))
    assert choose_engine(InstanceKind.AUTO, "onnxruntime", None).name == "onnxruntime"


def test_a_gpu_is_for_pytorch(machine: Callable[..., None]) -> None:
    machine(gpus=1, packages=("onnxruntime", "torch"))
    choice = choose_engine(InstanceKind.AUTO, None, None)
    assert choice.name == "pytorch"
    assert choice.notes == ("backend auto: pytorch, the fastest engine for this GPU that is installed",)


def test_without_pytorch_a_gpu_is_for_onnxruntime_if_its_gpu_package_is_there(machine: Callable[..., None]) -> None:
    machine(gpus=1, packages=("onnxruntime", "onnxruntime-gpu"))
    choice = choose_engine(InstanceKind.GPU, None, None)
    assert choice.name == "onnxruntime"
    assert choice.notes[1] == "pytorch would be faster: pip install 'trivec[torch]'"


def test_a_gpu_that_no_installed_engine_can_use_is_spoken_of(machine: Callable[..., None]) -> None:
    machine(gpus=1)
    choice = choose_engine(InstanceKind.AUTO, None, None)
    assert choice.name == "onnxruntime"
    assert choice.notes[0] == ("there is a GPU, but no engine for it is installed: pip install 'trivec[torch]'")


def test_a_gpu_asked_for_that_is_not_there_is_an_error(machine: Callable[..., None]) -> None:
    machine(packages=("torch",))
    with pytest.raises(LoadError, match="no NVIDIA GPU is visible"):
        choose_engine(InstanceKind.GPU, None, None)


def test_a_gpu_asked_for_without_an_engine_for_it_is_an_error(machine: Callable[..., None]) -> None:
    machine(gpus=1)
    with pytest.raises(LoadError, match=r"no engine for GPUs is installed: pip install 'trivec\[torch\]'"):
        choose_engine(InstanceKind.GPU, None, None)


def test_on_a_cpu_the_faster_engines_that_are_missing_are_named(machine: Callable[..., None]) -> None:
    machine(bfloat16=True)
    choice = choose_engine(InstanceKind.CPU, None, None)
    assert choice.name == "onnxruntime"
    assert "openvino would be faster: pip install 'trivec[openvino]'" in choice.notes


def test_a_gpu_is_left_alone_where_the_cpu_is_asked_for(machine: Callable[..., None]) -> None:
    machine(gpus=1, packages=("onnxruntime", "torch"))
    assert choose_engine(InstanceKind.CPU, None, "float32").name == "onnxruntime"


def test_an_engine_without_its_package_names_the_extra() -> None:
    with pytest.raises(
        LoadError, match=r"`some` needs its packages \(missing: absent\): pip install 'trivec\[extra\]'"
    ):
        with needs("some", "extra"):
            raise ModuleNotFoundError("No module named 'absent'", name="absent")
