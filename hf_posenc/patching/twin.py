"""A small copy of a model: its own classes and its own configuration, at sizes that run in milliseconds."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from transformers import PretrainedConfig

from .installing import uninstall
from .record import RECORD, Patch

HIDDEN, WIDEST, STATE_HEADS = 64, 256, 4


def twin_of(record: Patch) -> Patch:
    """An unpatched model as that of `record` was before any patch: float32 on the CPU, as many layers, narrow, with random weights.

    Raises:
        ValueError: the family cannot be built at this size.
    """
    config = small(record.native_config())
    config._attn_implementation = record.architecture.seam.tried_with(record.live_backend)
    model_class = type(record.backbone)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(0)
            backbone: Any = model_class(config)
            if itself := backbone.__dict__.get(RECORD):  # a class that patches itself when it is built
                uninstall(itself)
            sharpen(backbone)
    except Exception as error:
        raise ValueError(f"a small {model_class.__name__} to try the patch on cannot be built: {error}") from error
    return Patch(backbone.float().eval(), record.architecture, backbone)


@dataclasses.dataclass(frozen=True)
class Size:
    """What the entries of one configuration become: those that go by its heads or by the width of its residual stream, in proportion.

    Attributes:
        hidden, heads: width of the stream and number of heads, as they were. narrow, few: as they become.
        expanded: width of what a layer that keeps a state makes of the narrow stream.
    """

    hidden: int
    heads: int
    narrow: int
    few: int
    expanded: int

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> Size:
        hidden = entries["hidden_size"]
        heads = entries.get("num_attention_heads") or max(hidden // 64, 1)
        width = hidden // heads
        is_free = hidden != heads * (entries.get("head_dim") or width)  # the width of a head is an entry that stands for itself
        shares = (entries.get("num_key_value_heads") or heads) < heads
        few = min(heads, 2 if is_free or shares or 2 * width <= WIDEST else 1)
        narrow = min(hidden, HIDDEN) if is_free else few * width
        return cls(hidden, heads, narrow, few, narrow * (entries.get("mamba_expand") or entries.get("expand") or 2))

    def width(self, old: int) -> int:
        return max(old * self.narrow // self.hidden, 1)

    def query_heads(self, old: int) -> int:
        return -(-old * self.few // self.heads)

    def key_heads(self, old: int) -> int:
        return self.query_heads(old) if old >= self.heads else 1

    def state_width(self, old: int) -> int:
        return self.expanded // STATE_HEADS

    def state_total(self, old: int) -> int:
        return self.expanded


Rule = int | Callable[[Size, int], int]
RULES: dict[str, Rule] = {
    r"(\w+_)?vocab(_size)?(_base|_per_layer_input)?|n_vocab": 128,
    # Widths of the residual stream and of what goes by it. Those of softmax heads, and what is rotated in them, stay.
    r"(\w+_)?(hidden_size|embed_dim|emb_dim|embedding_dim|embedding_size)|d_model|n_embd|dim|word_embed_proj_dim|lru_width": Size.width,
    r"(\w+_)?(intermediate|ffn|ffn_hidden|feed_forward|inner|mlp)_(size|dim)(_mlp)?|n_inner|d_ff|d_inner|dff|dim_ff": 16,
    r"(\w+_)?(rank|lowrank)|hidden_size_per_layer_input": 16,
    r"expansion_ratio": 1,
    # Heads of softmax attention.
    r"(\w+_)?attention_heads(_per_layer)?|n_heads?|num_heads": Size.query_heads,
    r"(\w+_)?(key_value|kv)_heads|kv_n_heads|num_query_groups": Size.key_heads,
    r"indexe?r?_n_heads": 2,
    # Layers that keep a state.
    r"n_mamba_heads|mamba_(n|num)_heads": STATE_HEADS,
    r"mamba_(d_head|headdim|head_dim)": Size.state_width,
    r"mamba_d_ssm": Size.state_total,
    r"linear_num_(\w+_)?heads": 2,
    r"linear_(\w+_)?head_dim|mamba_d_state|ssm_state_size|state_size|(mamba_)?chunk_size": 16,
    # Experts: every token goes to all of them, so that no route turns on rounding.
    r"(\w+_)?experts|zero_expert_num|num_experts_per_tok(en)?|moe_(top_?k|k)": 4,
    r"(\w+_)?shared_experts|(mamba_)?n_?groups|n_group|topk_group|num_expert_group": 1,
}
_RULES = [(re.compile(pattern), rule) for pattern, rule in reversed(RULES.items())]


def small(config: PretrainedConfig) -> PretrainedConfig:
    """A copy of `config` with few and narrow parts; what positions depend on stays: layers, width of a head, rotary parameters, windows."""
    config = copy.deepcopy(config)
    _shrink_config(config, None)
    config._attn_implementation = "eager"
    return config


def _shrink_config(config: PretrainedConfig, outer: Size | None) -> None:
    """Apply the rules to a configuration and those in it, in place.

    Args:
        outer: the size of the configuration around this one, for one that has no width of its own.
    """
    by_layer = config.to_dict()["per_layer_config"] if getattr(config, "is_heterogeneous", False) else {}
    entries = vars(config)
    general = entries | {name: entries.get(alias) for name, alias in config.attribute_map.items()}
    size = Size.of(general) if general.get("hidden_size") and (outer is None or general.get("num_attention_heads")) else outer
    _shrink(entries, size)
    for own in by_layer.values():
        _shrink(own, size)
    if by_layer:
        cast(Any, config).per_layer_config = by_layer


def _shrink(entries: dict, size: Size | None) -> None:
    for name, value in entries.items():
        entries[name] = _shrunk(str(name), value, size)


def _shrunk(name: str, value: Any, size: Size | None) -> Any:
    if isinstance(value, PretrainedConfig):
        _shrink_config(value, size)
    elif isinstance(value, dict) and "rope" not in name:
        _shrink(value, size)
    elif isinstance(value, list | tuple):
        return type(value)(_shrunk(name, each, size) for each in value)
    elif isinstance(value, int) and not isinstance(value, bool) and value > 0:
        if name.endswith(("_token_id", "_token_index")):
            return value if value < 128 else 0
        rule = next((rule for pattern, rule in _RULES if pattern.fullmatch(name)), value)
        if isinstance(rule, int):
            return min(rule, value)
        return value if size is None else rule(size, value)
    return value


@torch.no_grad()
def sharpen(model: torch.nn.Module) -> None:
    """Weights under which the queries and keys of all layers tell tokens, positions and dimensions apart, as trained ones do."""
    for parameter in model.parameters():
        if not parameter.requires_grad:  # sinusoids that are kept as a weight
            continue
        if parameter.ndim > 1:
            parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
        else:  # a norm that weighs all dimensions alike would hide whether it comes before or after a rotation
            parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3))
