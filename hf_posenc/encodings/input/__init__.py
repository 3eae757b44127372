"""Encodings added to the embeddings."""
