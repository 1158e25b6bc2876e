"""
The PyTorch engine: CUDA GPUs, and the CPU.

Here only so that the environment is set before torch is imported, which is when its allocator and its threads read it.
What a user has set stays as it is.
"""

import os

# Segments that grow in place: batches of ever new sizes would otherwise leave holes that no later batch fits into.
# Either name may be the user's. torch 2.13 takes the older one if both are set, so both are never set here.
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

# Idle threads must leave their cores to the tokenizer and the event loop: where these or others need a core too,
# threads that wait for each other by spinning make a batch take several times as long.
if "GOMP_SPINCOUNT" not in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# torch.compile would start a process for each core, which stay; here it has one or two small functions to compile.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

from trivec_server.backends.pytorch.build import build_pytorch

__all__ = ["build_pytorch"]
