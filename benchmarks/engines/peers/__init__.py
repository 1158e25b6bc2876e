"""
The systems that Trivec is measured against. Each module runs in a process and an environment of its own: it imports
its library, and of this repository only `benchmarks.engines.worker`.
"""
