from typing import Any

from transformers import PretrainedConfig

from .base import Architecture, register


class MLA(Architecture):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): a head is a part without positions, then a rotated one."""

    rotates_last = True
    caches_keys = False

    def _sizes(self, config: PretrainedConfig) -> dict[str, Any]:
        heads, width = config.num_attention_heads, config.qk_nope_head_dim + config.qk_rope_head_dim
        return super()._sizes(config) | {"num_kv_heads": heads, "head_dim": width, "value_dim": config.v_head_dim}


class InterleavedMLA(MLA):
    interleaved = True


register(
    *("axk1", "axk2", "deepseek_v3", "deepseek_v32", "dots3_note_text", "glm4_moe_lite"),
    *("glm_moe_dsa", "hy_v4", "minicpm3", "sarvam_mla", "youtu"),
)(MLA())
register("deepseek_v2")(InterleavedMLA())
