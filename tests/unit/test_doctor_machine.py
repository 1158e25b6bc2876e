"""What the doctor says of machines that are not at hand."""

import pytest
from trivec_server.doctor.finding import Status
from trivec_server.doctor.machine import describe_cpu, judge_memory, limit_cpu

XEON = """\
processor\t: 0
model name\t: A Xeon
flags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16 amx_int8

processor\t: 1
"""
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd asimddp bf16\n"


def test_the_features_of_an_x86_cpu_are_named() -> None:
    finding = describe_cpu(XEON, 4, "x86_64")
    assert finding.status is Status.OK
    assert finding.fact == "A Xeon, 4 usable cores, AVX2, AVX-512, AVX-512 BF16, AMX; no AVX-512 VNNI"


def test_the_features_of_an_arm_cpu_are_named() -> None:
    assert describe_cpu(GRAVITON, 1, "aarch64").fact == "aarch64, 1 usable core, NEON, DOTPROD, BF16; no SVE, I8MM"


def test_an_x86_cpu_without_avx2_is_a_warning() -> None:
    assert describe_cpu("model name : Old\nflags : fpu sse2\n", 2, "x86_64").status is Status.WARN


def test_a_cpu_of_which_nothing_is_known_is_no_fault() -> None:
    assert describe_cpu("", 2, "x86_64").status is Status.OK


@pytest.mark.parametrize("cpu_max", [None, "max 100000\n", "200000 100000\n"])
def test_a_container_with_all_cores_needs_no_word(cpu_max: str | None) -> None:
    assert limit_cpu(cpu_max, cores=2) == []


def test_a_container_with_less_than_its_cores_gets_the_setting_that_suits() -> None:
    (finding,) = limit_cpu("250000 100000\n", cores=8)
    assert finding.status is Status.WARN
    assert finding.fact.startswith("the container may use 2.5 of 8 cores")
    assert finding.mend is not None
    assert 'string_value: "2"' in finding.mend


@pytest.mark.parametrize(
    ("available", "model_bytes", "status"),
    [(8e9, 2e9, Status.OK), (1e9, 2e9, Status.WARN), (8e9, 20e9, Status.FAIL)],
)
def test_memory_is_judged_by_what_is_there_and_what_is_free(
    available: float, model_bytes: float, status: Status
) -> None:
    assert judge_memory(int(16e9), int(available), int(model_bytes)).status is status
