"""Encodings added to the scores."""
