"""A gRPC server for BGE-M3: dense, sparse and multi-vector embeddings from one forward pass."""
