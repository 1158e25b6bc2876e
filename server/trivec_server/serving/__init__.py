"""From an admitted request to its result: tokenizer, batcher, encoding, scores."""
