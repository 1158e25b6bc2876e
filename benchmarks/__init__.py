"""Benchmarks: each runs with one command and prints ratios measured in one run."""
