"""The OpenVINO engine: the CPU, without padding."""
