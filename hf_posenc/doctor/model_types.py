"""Model types of transformers: the configuration that each has by default, and one that is cut to a few layers.

`DEFAULTS` holds what the configuration class of a type lacks by default.
"""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers", "encoder_layers", "depth")
"""What families call their number of layers."""
SHALLOW = 4
"""A model with so few layers is left as it is."""
DENSE = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
"""What families call the number of layers before the first with experts."""

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
BOTH = ["sliding_attention", "full_attention"]
DEFAULTS: dict[str, dict[str, Any]] = {
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 4, "first_k_dense_replace": 1},
    "deepseek_v2": {"topk_method": "greedy", "num_experts_per_tok": 4},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "ministral": {"head_dim": 128},
    "nemotron": {"head_dim": 128, "num_key_value_heads": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 2048, "moe_num_experts": 4},
    },
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(BOTH, ROPE)},
    "bamba": {"attn_layer_indices": [1], "num_hidden_layers": 2},
    "gemma3n_text": {"num_hidden_layers": 4, "layer_types": BOTH * 2, "num_kv_shared_layers": 2, "intermediate_size": [96] * 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "num_hidden_layers": 2},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "dory": {"num_hidden_layers": 4, "n_input_layers": 1, "n_output_layers": 1, "layer_types": BOTH * 2},
    "hrm_text": {"num_hidden_layers": 1, "H_cycles": 1, "L_cycles": 2, "L_bp_cycles": [2]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2, "position_embedding_type": "rope"},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2, "hybrid_layer_ids": [1, 3]},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 256,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "reformer": {"axial_pos_embds": False, "is_decoder": True},
    "xmod": {"default_language": "en_XX"},
}


def causal_types() -> list[str]:
    """Types that have a class for causal language modelling, sorted."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def is_model_type(name: str) -> bool:
    return name in CONFIG_MAPPING


def default_config(model_type: str) -> PretrainedConfig:
    """The default configuration of a type, as that of a decoder where the type can be one."""
    config = AutoConfig.for_model(model_type, **DEFAULTS.get(model_type, {}))
    text = config.get_text_config(decoder=True)
    if hasattr(text, "is_decoder"):
        text.is_decoder, text.is_encoder_decoder = True, False
    return config


def cut(config: PretrainedConfig) -> PretrainedConfig:
    """`config`, and those in it, with the first layer of each kind, in place."""
    entries = vars(config)
    for value in entries.values():
        if isinstance(value, PretrainedConfig):
            cut(value)
    counts = [name for name in LAYERS if isinstance(entries.get(name), int)]
    if not counts or (count := entries[counts[0]]) <= SHALLOW:
        return config
    own = config.to_dict()["per_layer_config"] if getattr(config, "is_heterogeneous", False) else {}
    own = {int(i): values for i, values in own.items()}
    lists = {name: value for name, value in entries.items() if isinstance(value, list | tuple) and len(value) == count}
    lists = {name: value for name, value in lists.items() if list(value) != list(range(count))}  # numbers of layers, not kinds
    kinds = [repr([own.get(i), *(value[i] for value in lists.values())]) for i in range(count)]
    kept = [i for i, kind in enumerate(kinds) if kind not in kinds[:i]]
    kept = sorted((kept + [i for i in range(count) if i not in kept])[: max(2, len(kept))])
    if own:
        config.per_layer_config = None
    entries.update({name: type(value)(value[i] for i in kept) for name, value in lists.items()})
    entries.update({name: min(entries[name], len(kept)) for name in counts})
    entries.update({name: min(entries[name], 1) for name in DENSE if isinstance(entries.get(name), int)})
    if own:
        config.per_layer_config = {at: own[i] for at, i in enumerate(kept) if i in own}
    return config
