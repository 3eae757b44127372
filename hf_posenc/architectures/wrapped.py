"""Decoders of text that come only within a model for other media."""

from .base import Architecture, register
from .interleaved import Interleaved

register(
    *("cosmos3_edge_text", "evolla", "glm4v_moe_text"),
    *("granite_docling_text", "paddleocr_vl_text", "qwen2_5_omni_text", "qwen2_5_vl_text"),
    *("qwen2_vl_text", "qwen3_omni_moe_text", "qwen3_vl_moe_text", "qwen3_vl_text"),
)(Architecture())
register("glm4v_text", "glm_ocr_text")(Interleaved())
