"""Encodings that are rotations of queries and keys."""
