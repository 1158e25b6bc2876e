"""
The PyTorch engine: CUDA GPUs, and the CPU.

Here only so that the allocator is configured before torch is imported, which is when torch reads it.
"""

import os

# Segments that grow in place: batches of ever new sizes would otherwise leave holes that no later batch fits into.
# torch reads PYTORCH_CUDA_ALLOC_CONF first, so what a user set under either name stays as it is.
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

from trivec_server.backends.pytorch_build import build_pytorch

__all__ = ["build_pytorch"]
