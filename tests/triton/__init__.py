"""A real Triton server and its clients beside this server: the same models, the same calls, the same answers."""
