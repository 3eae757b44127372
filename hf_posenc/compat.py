"""Where versions of transformers differ, told by what they have and not by their numbers."""

from __future__ import annotations

import dataclasses

from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE = next(f.name for f in dataclasses.fields(CausalLMOutputWithPast) if f.name in ("cache", "past_key_values"))
"""What the KV cache is called among the arguments and outputs of a model: `past_key_values` up to 5.23, `cache` from 5.24 on."""
