"""KServe v2 beside a real Triton and MLServer, with Triton's own clients: `python -m benchmarks.triton`."""
