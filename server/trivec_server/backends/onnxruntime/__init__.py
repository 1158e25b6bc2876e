"""The ONNX Runtime engine: the CPU, CUDA and TensorRT."""
