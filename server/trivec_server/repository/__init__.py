"""The model repository: reading it, filling it, and the registry of what is loaded."""
