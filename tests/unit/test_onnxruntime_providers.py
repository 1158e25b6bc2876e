"""Where the onnxruntime engine runs a version: decided from the request, the graph and what the machine has."""

from dataclasses import replace
from pathlib import Path

import pytest
from trivec_server.backends.graph.spec import Arithmetic
from trivec_server.backends.interface import EngineRequest
from trivec_server.backends.onnxruntime.options import (
    BatchLimits,
    Options,
    RunShape,
    batch_limits,
    provider_options,
    tensorrt_cache_dir,
    tensorrt_options,
)
from trivec_server.backends.onnxruntime.providers import (
    CPU,
    CUDA,
    TENSORRT,
    GraphFacts,
    Machine,
    check_machine,
    check_precision,
    place,
)
from trivec_server.errors import LoadError
from trivec_server.types import InstanceKind

REQUEST = EngineRequest(version_dir=Path("models/bge/1"), kind=InstanceKind.GPU)
AUTO = replace(REQUEST, kind=InstanceKind.AUTO)
ON_CPU = replace(REQUEST, kind=InstanceKind.CPU)
WITH_TENSORRT = replace(REQUEST, accelerator="tensorrt", max_tokens=8192)

GPU_MACHINE = Machine(available=(TENSORRT, CUDA, CPU), gpus=2)
NO_GPU = replace(GPU_MACHINE, gpus=0)
CPU_PACKAGE = Machine(available=(CPU,), gpus=1)


def facts(arithmetic: Arithmetic = "float16", weight_bytes: int = 1_140_000_000) -> GraphFacts:
    """BGE-M3."""
    return GraphFacts(arithmetic=arithmetic, storage=arithmetic, weight_bytes=weight_bytes, hidden=1024)


FLOAT16 = facts()


def test_kind_gpu_takes_the_first_gpu_that_is_not_named() -> None:
    placement = place(REQUEST, FLOAT16, GPU_MACHINE)
    assert (placement.provider, placement.name, placement.notes) == (CUDA, "cuda:0", ())


def test_kind_gpu_takes_the_gpu_that_is_named() -> None:
    assert place(replace(REQUEST, device_index=1), FLOAT16, GPU_MACHINE).name == "cuda:1"


def test_kind_auto_takes_a_gpu_where_there_is_one() -> None:
    assert place(AUTO, FLOAT16, GPU_MACHINE).provider == CUDA


def test_kind_auto_takes_the_cpu_where_there_is_no_gpu() -> None:
    placement = place(AUTO, facts("float32"), NO_GPU)
    assert (placement.provider, placement.name, placement.notes) == (CPU, "cpu", ())


def test_kind_auto_says_which_package_would_let_it_use_the_gpu_that_is_there() -> None:
    (note,) = place(AUTO, facts("float32"), CPU_PACKAGE).notes
    assert note.startswith("a GPU is visible but not used: ")
    assert "pip uninstall onnxruntime, then pip install onnxruntime-gpu" in note


def test_kind_auto_runs_an_int8_version_on_the_cpu_and_says_so() -> None:
    placement = place(AUTO, facts("int8"), GPU_MACHINE)
    assert placement.device == "cpu"
    assert "int8" in placement.notes[0]


def test_a_float32_version_on_a_gpu_tells_of_the_faster_one() -> None:
    (note,) = place(REQUEST, facts("float32"), GPU_MACHINE).notes
    assert "trivec export --engine onnxruntime --precision float16" in note


@pytest.mark.parametrize(
    ("request_", "graph", "machine", "reason"),
    [
        (REQUEST, FLOAT16, NO_GPU, "KIND_GPU, but no NVIDIA GPU is visible"),
        (REQUEST, FLOAT16, CPU_PACKAGE, "no CUDA provider: pip uninstall onnxruntime, then pip install"),
        (
            replace(REQUEST, device_index=2),
            FLOAT16,
            GPU_MACHINE,
            "GPU 2 is not there: this process sees 2.*; correct `gpus`",
        ),
        (REQUEST, facts("int8"), GPU_MACHINE, "int8 version of the engine onnxruntime runs on the CPU only"),
        (ON_CPU, FLOAT16, GPU_MACHINE, "computes in float16, which ONNX Runtime does on GPUs only"),
        (AUTO, FLOAT16, CPU_PACKAGE, r"does on GPUs only \(the package onnxruntime .* no CUDA provider"),
        (AUTO, FLOAT16, NO_GPU, "computes in float16, which ONNX Runtime does on GPUs only"),
        (replace(ON_CPU, accelerator="tensorrt"), FLOAT16, GPU_MACHINE, "accelerator `tensorrt` needs a GPU"),
        (replace(AUTO, accelerator="tensorrt"), FLOAT16, NO_GPU, r"needs a GPU \(no NVIDIA GPU is visible"),
        (replace(REQUEST, accelerator="openvino"), FLOAT16, GPU_MACHINE, "no execution accelerator `openvino`"),
        (replace(ON_CPU, device_index=0), facts("int8"), GPU_MACHINE, "names `gpus`, but would run on the CPU"),
        (WITH_TENSORRT, FLOAT16, replace(GPU_MACHINE, available=(CUDA, CPU)), "has no TensorRT provider"),
        (WITH_TENSORRT, facts("float32"), GPU_MACHINE, "needs a float16 version, this one computes in float32"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_reason(
    request_: EngineRequest, graph: GraphFacts, machine: Machine, reason: str
) -> None:
    with pytest.raises(LoadError, match=reason):
        place(request_, graph, machine)


@pytest.mark.parametrize(
    ("request_", "machine", "reason"),
    [
        (REQUEST, NO_GPU, "KIND_GPU, but no NVIDIA GPU is visible"),
        (replace(AUTO, device_index=1), NO_GPU, r"names `gpus`, but would run on the CPU \(no NVIDIA GPU"),
        (replace(ON_CPU, accelerator="tensorrt"), GPU_MACHINE, "accelerator `tensorrt` needs a GPU"),
    ],
)
def test_what_the_machine_does_not_have_is_refused_before_the_graph_is_read(
    request_: EngineRequest, machine: Machine, reason: str
) -> None:
    with pytest.raises(LoadError, match=reason):
        check_machine(request_, machine)


@pytest.mark.parametrize("request_", [REQUEST, AUTO, ON_CPU, WITH_TENSORRT])
def test_what_the_machine_has_is_not_refused(request_: EngineRequest) -> None:
    check_machine(request_, GPU_MACHINE)


def test_no_precision_asked_for_is_what_the_graph_computes_in() -> None:
    check_precision(None, facts("int8"))
    check_precision("int8", facts("int8"))


def test_another_precision_is_refused_with_both_names_and_the_command() -> None:
    with pytest.raises(LoadError, match=r"asks for precision int8, .* computes in float32; .*trivec export .* int8`"):
        check_precision("int8", facts("float32"))


def test_weights_stored_as_float16_are_not_taken_for_float16_arithmetic() -> None:
    stored = replace(facts("float32"), storage="float16")
    with pytest.raises(LoadError, match=r"computes in float32 \(its weights are stored as float16\)"):
        check_precision("float16", stored)


def limits(request: EngineRequest, graph: GraphFacts = FLOAT16, machine: Machine = GPU_MACHINE) -> BatchLimits:
    return batch_limits(request, graph, place(request, graph, machine))


def test_a_configured_token_budget_is_kept() -> None:
    assert limits(replace(REQUEST, token_budget=700)).token_budget == 700
    assert limits(replace(ON_CPU, token_budget=700), facts("int8")).token_budget == 700


def test_less_device_memory_makes_smaller_batches() -> None:
    budgets = [limits(replace(REQUEST, device_memory_mb=memory)).token_budget for memory in (2500, 4000, 80_000)]
    assert budgets == sorted(set(budgets))
    assert budgets[-1] == limits(REQUEST).token_budget


def test_device_memory_below_the_weights_is_refused_with_the_least_that_is_needed() -> None:
    with pytest.raises(LoadError, match="device_memory_mb is 1000, but this version needs 2175 at least"):
        limits(replace(REQUEST, device_memory_mb=1000))
    limits(replace(REQUEST, device_memory_mb=2175))


def options(request: EngineRequest, graph: GraphFacts = FLOAT16) -> dict[str, Options]:
    chosen = provider_options(request, graph, place(request, graph, GPU_MACHINE))
    assert chosen[0][0] == place(request, graph, GPU_MACHINE).provider
    return dict(chosen)


def test_cuda_gets_the_gpu_and_its_memory_limit_in_bytes() -> None:
    cuda = options(replace(REQUEST, device_index=1, device_memory_mb=16_000))[CUDA]
    assert (cuda["device_id"], cuda["gpu_mem_limit"]) == ("1", "16000000000")
    assert cuda["arena_extend_strategy"] == "kSameAsRequested"


def test_cuda_has_no_memory_limit_that_was_not_set() -> None:
    assert "gpu_mem_limit" not in options(REQUEST)[CUDA]


def test_float32_on_cuda_is_not_rounded_to_tf32() -> None:
    assert options(REQUEST, facts("float32"))[CUDA]["use_tf32"] == "0"
    assert options(REQUEST)[CUDA]["use_tf32"] == "1"


def test_the_cpu_gets_no_options() -> None:
    assert options(ON_CPU, facts("int8")) == {CPU: {}}


def tensorrt(request: EngineRequest) -> list[Options]:
    """TensorRT's options, for each session."""
    shapes, placement = limits(request).shapes, place(request, FLOAT16, GPU_MACHINE)
    return [tensorrt_options(request, FLOAT16, placement, each, len(shapes), Path("/cache")) for each in shapes]


def test_tensorrt_comes_before_cuda_and_the_cpu() -> None:
    given: Options = {"trt_fp16_enable": "1"}
    chosen = dict(provider_options(WITH_TENSORRT, FLOAT16, place(WITH_TENSORRT, FLOAT16, GPU_MACHINE), given))
    assert list(chosen) == [TENSORRT, CUDA, CPU]
    assert chosen[TENSORRT] is given


def test_tensorrt_is_built_for_batches_of_short_texts_and_for_single_long_ones() -> None:
    both = tensorrt(replace(WITH_TENSORRT, token_budget=4096))
    assert [each["trt_profile_min_shapes"] for each in both] == ["input_ids:1x2,attention_mask:1x2"] * 2
    largest = ["input_ids:8x512,attention_mask:8x512", "input_ids:1x8192,attention_mask:1x8192"]
    assert [each["trt_profile_opt_shapes"] for each in both] == largest
    assert [each["trt_profile_max_shapes"] for each in both] == largest
    assert (both[0]["trt_fp16_enable"], both[0]["trt_engine_cache_enable"]) == ("1", "1")
    assert both[0]["trt_engine_cache_path"] == "/cache"


def test_tensorrt_is_built_once_where_all_texts_are_short() -> None:
    (only,) = tensorrt(replace(WITH_TENSORRT, token_budget=4096, max_tokens=256))
    assert only["trt_profile_max_shapes"] == "input_ids:16x256,attention_mask:16x256"


@pytest.mark.parametrize("max_tokens", [16, 512, 513, 8192])
@pytest.mark.parametrize("token_budget", [None, 100, 4096, 8192])
def test_every_batch_of_tensorrt_has_a_run_that_it_fits_and_no_run_is_larger_than_the_budget_or_a_text(
    max_tokens: int, token_budget: int | None
) -> None:
    found = limits(replace(WITH_TENSORRT, max_tokens=max_tokens, token_budget=token_budget))
    assert found.shapes[-1].tokens == max_tokens
    for shape in found.shapes:
        assert shape.rows * shape.tokens <= max(found.token_budget, shape.tokens)
        assert found.rows(shape.tokens) == shape.rows


def test_a_run_of_tensorrt_has_as_many_texts_as_it_was_built_for() -> None:
    both = limits(replace(WITH_TENSORRT, token_budget=4096))
    assert [both.rows(longest) for longest in (2, 512, 513, 8192)] == [8, 8, 1, 1]
    assert limits(REQUEST).rows(8192) is None


def test_tensorrts_sessions_share_the_memory_that_the_weights_leave() -> None:
    short, long = tensorrt(replace(WITH_TENSORRT, device_memory_mb=10_000))
    assert short["trt_max_workspace_size"] == long["trt_max_workspace_size"]
    assert 0 < 4 * int(short["trt_max_workspace_size"]) < 10_000_000_000 - 2 * FLOAT16.weight_bytes
    assert "trt_max_workspace_size" not in tensorrt(WITH_TENSORRT)[0]


def test_device_memory_must_hold_the_weights_of_both_of_tensorrts_sessions() -> None:
    with pytest.raises(LoadError, match="device_memory_mb is 2500, but this version needs 3315 at least"):
        limits(replace(WITH_TENSORRT, device_memory_mb=2500, token_budget=4096))
    limits(replace(WITH_TENSORRT, device_memory_mb=2500, token_budget=4096, max_tokens=512))


def test_all_that_tensorrt_builds_from_decides_on_its_cache(tmp_path: Path) -> None:
    weights = tmp_path / "model.onnx.data"
    weights.write_bytes(b"one")
    shape = RunShape(8, 512)

    def path(request: EngineRequest = WITH_TENSORRT, shape: RunShape = shape, version: str = "1.31.1") -> Path:
        return tensorrt_cache_dir(tmp_path, weights, request, shape, version)

    first = path()
    assert first == path()
    assert first.parent == tmp_path / "trivec" / "tensorrt"
    others = [
        path(shape=RunShape(4, 512)),
        path(shape=RunShape(8, 256)),
        path(replace(WITH_TENSORRT, max_tokens=4096)),
        path(replace(WITH_TENSORRT, device_memory_mb=9000)),
        path(version="1.32.0"),
    ]
    weights.write_bytes(b"another")
    assert len({first, *others, path()}) == 7
