"""What `backend: "auto"` stands for on different machines, and what is said of it."""

import pytest
from trivec_server.errors import LoadError
from trivec_server.repository.engines import Machine, choose_engine, needs
from trivec_server.types import InstanceKind


def machine(
    *,
    gpus: int = 0,
    bfloat16: bool = False,
    engines: tuple[str, ...] = ("onnxruntime",),
    for_gpus: tuple[str, ...] = (),
) -> Machine:
    return Machine(gpus=gpus, cpu_has_bfloat16=bfloat16, engines=frozenset(engines), gpu_engines=frozenset(for_gpus))


def test_a_version_exported_for_an_engine_is_run_by_that_engine() -> None:
    here = machine(engines=("onnxruntime", "openvino", "pytorch"))
    assert choose_engine(here, InstanceKind.AUTO, "onnxruntime", None).name == "onnxruntime"


def test_a_gpu_is_for_pytorch() -> None:
    here = machine(gpus=1, engines=("onnxruntime", "pytorch"), for_gpus=("pytorch",))
    choice = choose_engine(here, InstanceKind.AUTO, None, None)
    assert choice.name == "pytorch"
    assert choice.notes == ("backend auto: pytorch, the fastest engine for this GPU that is installed",)


def test_without_pytorch_a_gpu_is_for_onnxruntime_if_its_gpu_package_is_there() -> None:
    here = machine(gpus=1, for_gpus=("onnxruntime",))
    choice = choose_engine(here, InstanceKind.GPU, None, None)
    assert choice.name == "onnxruntime"
    assert choice.notes[1] == "pytorch would be faster: pip install 'trivec[torch]'"


def test_a_gpu_that_no_installed_engine_can_use_is_spoken_of() -> None:
    here = machine(gpus=1)
    choice = choose_engine(here, InstanceKind.AUTO, None, None)
    assert choice.name == "onnxruntime"
    assert choice.notes[0] == ("there is a GPU, but no engine for it is installed: pip install 'trivec[torch]'")


def test_a_gpu_asked_for_that_is_not_there_is_an_error() -> None:
    here = machine(engines=("pytorch",))
    with pytest.raises(LoadError, match="no NVIDIA GPU is visible"):
        choose_engine(here, InstanceKind.GPU, None, None)


def test_a_gpu_asked_for_without_an_engine_for_it_is_an_error() -> None:
    here = machine(gpus=1)
    with pytest.raises(LoadError, match=r"no engine for GPUs is installed: pip install 'trivec\[torch\]'"):
        choose_engine(here, InstanceKind.GPU, None, None)


def test_on_a_cpu_the_faster_engines_that_are_missing_are_named() -> None:
    here = machine(bfloat16=True)
    choice = choose_engine(here, InstanceKind.CPU, None, None)
    assert choice.name == "onnxruntime"
    assert "openvino would be faster: pip install 'trivec[openvino]'" in choice.notes


def test_a_gpu_is_left_alone_where_the_cpu_is_asked_for() -> None:
    here = machine(gpus=1, engines=("onnxruntime", "pytorch"), for_gpus=("pytorch",))
    assert choose_engine(here, InstanceKind.CPU, None, "float32").name == "onnxruntime"


def test_an_engine_without_its_package_names_the_extra() -> None:
    said = r"`some` needs its packages \(missing: absent\): pip install 'trivec\[extra\]'"
    with pytest.raises(LoadError, match=said), needs("some", "extra"):
        raise ModuleNotFoundError("No module named 'absent'", name="absent")
