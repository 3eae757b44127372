from .base import Architecture, register

register(
    "lfm3", "llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "smollm3", "starcoder2", "gemma2", "gemma3_text", "stablelm", "persimmon"
)(Architecture())
