"""The ONNX graph of an encoder with three heads, written from weights without torch."""
