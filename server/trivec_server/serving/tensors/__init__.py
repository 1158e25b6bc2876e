"""Models that take and give tensors, beside the embedding models."""
