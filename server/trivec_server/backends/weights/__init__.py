"""The weights of models and model versions, read from files and mapped into memory."""
