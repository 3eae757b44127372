"""Factors on the queries."""
