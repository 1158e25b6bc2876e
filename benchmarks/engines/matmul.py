"""
The rate of a plain large matrix product on this machine, with PyTorch: the yardstick for an engine's arithmetic.
Runs as a worker, in whichever environment has torch.
"""

from collections.abc import Callable

import torch

from benchmarks.engines.worker import Message, Started, run_worker, timed

_REPEATS = 7
CPU_SHAPE = (4096, 1024, 4096)
GPU_SHAPE = (8192, 8192, 8192)


def rate(device: str, precision: str) -> float:
    """
    FLOP per second of [M, K] x [K, N]: the best of several products, as nothing makes one too fast.

    Args:
        device: `cpu` or a CUDA device.
        precision: `float32`, `bfloat16`, `float16` or, on GPUs, `float8`.
    """
    rows, inner, columns = CPU_SHAPE if device == "cpu" else GPU_SHAPE
    product = _product(device, precision, rows, inner, columns)
    product()
    product()
    best = min(timed(product) for _ in range(_REPEATS))
    return 2.0 * rows * inner * columns / best


def _product(device: str, precision: str, rows: int, inner: int, columns: int) -> Callable[[], None]:
    if precision == "float8":
        return _float8_product(device, rows, inner, columns)
    dtype: torch.dtype = getattr(torch, precision)
    inputs = torch.randn(rows, inner, device=device).to(dtype)
    weights = torch.randn(columns, inner, device=device).to(dtype)

    def product() -> None:
        with torch.inference_mode():
            torch.nn.functional.linear(inputs, weights)
        _wait(device)

    return product


def _float8_product(device: str, rows: int, inner: int, columns: int) -> Callable[[], None]:
    inputs = torch.randn(rows, inner, device=device).to(torch.float8_e4m3fn)
    weights = torch.randn(columns, inner, device=device).to(torch.float8_e4m3fn)
    one = torch.ones((), device=device)

    def product() -> None:
        # The second operand must be column-major.
        torch._scaled_mm(  # noqa: SLF001 - the name PyTorch gives it
            inputs, weights.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        _wait(device)

    return product


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def start(options: Message) -> Started:
    device: str = options["device"]

    def rates(message: Message) -> Message:
        return {"flops_per_s": {precision: rate(device, precision) for precision in message["precisions"]}}

    return Started(f"{device}, {torch.get_num_threads()} threads", {"torch": torch.__version__}, {"matmul": rates})


if __name__ == "__main__":
    run_worker(start)
