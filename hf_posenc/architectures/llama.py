from .base import Architecture, register

register(
    *("apertus", "apertus1p5_text", "arcee", "aria_text", "bitnet", "cohere_compass_text", "cwm", "diffllama", "dots1", "exaone"),
    *("flex_olmo", "gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "gemma4_unified_text", "glm4_moe"),
    *("granite", "granitemoe", "granitemoeshared", "hy_v3", "hyperclovax", "internlm3", "iquestcoder", "jais2", "lfm2"),
    *("llama", "mellum", "minimax_m2", "minimax_m3_vl_text", "ministral", "mistral", "mixtral", "nemotron"),
    *("olmo", "olmo2", "olmo3", "olmoe", "persimmon", "phi", "phi3", "phi4_multimodal", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
    *("sarvam_moe", "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2", "vaultgemma"),
)(Architecture())
