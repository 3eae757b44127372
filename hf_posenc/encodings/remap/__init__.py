"""Encodings whose positions are remapped at inference."""
