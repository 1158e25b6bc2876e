"""The response cache: embeddings of texts that come again."""
