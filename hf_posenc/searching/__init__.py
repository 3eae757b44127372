"""Rotary factors for a length, one a pair, by the evolutionary searches of LongRoPE and LongRoPE2."""

from .found import Found as Found
from .verb import search as search
