"""`inference.GRPCInferenceService`: KServe v2 as Triton Inference Server serves it, its messages and its words."""
