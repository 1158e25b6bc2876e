"""Every engine and every peer over the same texts: `python -m benchmarks.engines.cpu` and `.gpu`."""
