"""The contract of an architecture: where one model family keeps its positions."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ..attention.hooks import LayerRotation
from ..attention.seam import Interface
from ..attention.settled import Settled
from ..encodings import Geometry, PositionalEncoding, create
from ..encodings.rotary.rope import power_frequencies
from ..registry import Registry
from .slots import Group, NoEncoding, RotarySlot, rotary_state

ARCHITECTURES: Registry[Architecture] = Registry("architecture")
register = ARCHITECTURES.register

OTHERWISE = ("linear_attention", "conv", "moe", "mlp")
"""Layer types without softmax attention."""


class Architecture:
    """One family of decoders with a rotary module on the backbone. The defaults describe Llama; a family equal to it is one string."""

    layers: ClassVar[str] = "layers"
    """Where the backbone keeps its layers; this and the next two may be paths with dots."""
    attention: ClassVar[str] = "self_attn"
    """Where a layer keeps its attention; a layer without one (state space, convolution) has no positions."""
    indexer: ClassVar[str] = "indexer"
    """Where an attention keeps what chooses the keys that a query may see, if it has such: this is turned as the model was trained to."""
    slot: ClassVar[str] = "rotary_emb"
    """Where the backbone keeps its native encoding; empty where its attention has no positions at all."""
    length: ClassVar[str] = "max_position_embeddings"
    """What the configuration calls the number of positions."""
    hands_positions: ClassVar[bool] = True
    """What the backbone hands down to its layers as position ids, if it does, are positions, and no rows of a table."""
    seam: ClassVar[Interface] = Interface()
    """How the attention of the family is reached."""
    rotates: ClassVar[bool] = True
    """The native encoding acts in the attention, and is `native_name`; otherwise it is added to the embeddings."""
    native_name: ClassVar[str] = "rope"
    is_learned: ClassVar[bool] = False
    """The native encoding has weights, which only a checkpoint holds; otherwise transformers computes it from the configuration."""
    packs: ClassVar[bool] = True
    """transformers keeps documents apart that lie in one row, told by their position ids."""
    interleaved: ClassVar[bool] = False
    """Pairs of rotated dimensions are (0, 1), (2, 3) ... instead of (0, r/2), (1, r/2 + 1) ..."""
    rotates_last: ClassVar[bool] = False
    """The last dimensions of a head are rotated instead of the first."""
    caches_keys: ClassVar[bool] = True
    """The KV cache holds keys as the attention function gets them, rather than what they are made of."""
    backwards: ClassVar[bool] = False
    """Pairs are turned the other way round: by -t * theta^(-2k/r) at position t."""

    # -- finding things -----------------------------------------------------------------------------------------------

    def variant(self, config: PretrainedConfig) -> Architecture:
        """The architecture of a model with this configuration, where the family has several."""
        return self

    def backbone(self, model: PreTrainedModel) -> PreTrainedModel:
        """The module that holds the layers and the native encoding."""
        return decoder_of(model)

    def stack(self, backbone: PreTrainedModel) -> Sequence[nn.Module]:
        """The layers, in the order of their indices."""
        return attrgetter(self.layers)(backbone)

    def attentions(self, backbone: PreTrainedModel) -> dict[int, nn.Module]:
        """The attention modules by layer, without the layers that have none, or something else in the same place."""
        types = dict(enumerate(self.layer_types(backbone.config)))
        found = {i: _inside(layer, self.attention) for i, layer in enumerate(self.stack(backbone)) if types.get(i) not in OTHERWISE}
        return {i: attention for i, attention in found.items() if attention is not None}

    def reads_mask(self, attention: nn.Module) -> bool:
        """Whether `attention` looks into its mask, or hides further keys, before it asks its attention function."""
        return _inside(attention, self.indexer) is not None

    def indexer_of(self, attention: nn.Module) -> nn.Module | None:
        """What chooses the keys of `attention`, where the native rotation reaches it."""
        found = _inside(attention, self.indexer)
        takes = found is not None and "position_embeddings" in inspect.signature(type(found).forward).parameters
        return found if takes and self.uses_slot(attention) else None

    def has_slot(self, config: PretrainedConfig) -> bool:
        """Whether a model with this configuration has a native encoding."""
        return bool(self.slot)

    def native(self, backbone: PreTrainedModel) -> nn.Module:
        """What is in the native slot now."""
        if not self.has_slot(backbone.config):
            return NoEncoding()
        try:
            return backbone.get_submodule(self.slot)
        except AttributeError as error:
            raise ValueError(f"{type(backbone).__name__} has no {self.slot!r} that an encoding could take the place of") from error

    def put(self, backbone: PreTrainedModel, module: nn.Module) -> None:
        """Put `module` into the native slot."""
        if not isinstance(module, NoEncoding):
            owner, _, name = self.slot.rpartition(".")
            setattr(backbone.get_submodule(owner), name, module)

    def beside(self, backbone: PreTrainedModel) -> dict[str, Any]:
        """What a forward pass of the backbone needs beside tokens."""
        return {}

    def layer_types(self, config: PretrainedConfig) -> tuple[str, ...]:
        """Per layer, "full_attention" or "sliding_attention"."""
        types = getattr(config, "layer_types", None)
        if types is None:
            sliding = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
            types = ["sliding_attention" if sliding else "full_attention"] * config.num_hidden_layers
        return tuple(types)

    def uses_slot(self, attention: nn.Module) -> bool:
        """Whether this layer looks at the native encoding; some families have layers without by design."""
        return bool(self.slot) and bool(getattr(attention, "use_rope", True))

    def query_scale(self, config: PretrainedConfig, layer: int, pos: Tensor) -> Tensor | None:
        """What the family multiplies the queries of a layer at `pos` [1,Q] by, beside its encoding: [1,Q], or None for nothing.

        This temperature belongs to the trained model rather than to its encoding: it stays, whatever the encoding.
        """
        return None

    def elsewhere(self, config: PretrainedConfig, pos: Tensor) -> Tensor:
        """Other positions for tokens at `pos` [1,Q], that differ for nothing but the attention."""
        return pos + 5

    def turned(self, attention: nn.Module, encoding: PositionalEncoding, query: Tensor, key: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        """What reaches the attention function with the rotation `encoding` in the slot, from what reached it without."""
        return encoding.rotate(query, key, pos, pos)

    def group(self, config: PretrainedConfig, layer: int) -> Group:
        """The native frequencies that `layer` uses."""
        kind = self.layer_types(config)[layer]
        return kind if self.has_slot(config) and kind in (config.rope_parameters or ()) else None

    def kind(self, config: PretrainedConfig, layer: int, rotary: bool) -> tuple:
        """Layers of one kind can share an encoding; a `rotary` one does not ask for the number of heads."""
        sizes = self._sizes(self.config_of(config, layer))
        return (self.group(config, layer) if rotary else (sizes["num_heads"], sizes["num_kv_heads"])), sizes["head_dim"]

    def config_of(self, config: PretrainedConfig, layer: int) -> PretrainedConfig:
        """`config` as it would be if all layers had the sizes of `layer`."""
        return cast(Any, config).per_layer_config[layer] if getattr(config, "is_heterogeneous", False) else config

    def hand_down(self, backbone: Any, arguments: dict[str, Any], pos: Tensor, names: Sequence[str]) -> dict[str, Any]:
        """What the backbone is called with, once the positions `pos` [1 or B,Q] of its tokens are settled.

        Args:
            arguments: what the caller gave. names: of the arguments of the backbone's `forward`.
        """
        return arguments | {"position_ids": pos} if "position_ids" in names else arguments

    def ids_per_token(self, config: PretrainedConfig) -> int:
        """Rows of `input_ids` that make one row of tokens."""
        return 1

    def check(self, backbone: PreTrainedModel) -> None:
        """Raise ValueError if this model of the family cannot be patched."""

    def check_encoding(self, backbone: PreTrainedModel, encoding: PositionalEncoding) -> None:
        """Raise ValueError if this model cannot have `encoding` outside the native slot."""

    # -- the native encoding ------------------------------------------------------------------------------------------

    def fresh(self, native: nn.Module, config: PretrainedConfig) -> nn.Module:
        """The module that transformers would build for the slot from `config`, on the CPU."""
        with torch.device("cpu"):
            return type(native)(config)

    def parameters(self, config: PretrainedConfig, group: Group) -> dict[str, Any]:
        """The native rotary parameters of `group`; empty where it has no rotation."""
        if not self.has_slot(config):
            return {}
        return (config.rope_parameters[group] if group else config.rope_parameters) or {}

    def rotary(self, native: nn.Module, group: Group) -> tuple[nn.Module, Group]:
        """The module within `native` that holds the frequencies of `group`, and what the group is called there."""
        return native, group

    def geometry(self, config: PretrainedConfig, native: nn.Module, group: Group) -> Geometry:
        """What an encoding may know about layers of `group`, in a model with this configuration and this module in the slot.

        A layer without native rotation has the theta 10000, and what turns there turns the whole head.
        """
        parameters = self.parameters(config, group)
        if not parameters:
            return Geometry(**self._sizes(config))
        frequencies, factor = rotary_state(*self.rotary(native, group))
        plain = power_frequencies(parameters["rope_theta"], 2 * len(frequencies))
        return Geometry(
            **self._sizes(config),
            rotary_dim=2 * len(frequencies),
            theta=float(parameters["rope_theta"]),
            interleaved=self.interleaved,
            rotates_last=self.rotates_last,
            backwards=self.backwards,
            rope_type=parameters.get("rope_type", "default"),
            rope_parameters=tuple(parameters.items()),
            frequencies=None if torch.equal(frequencies, plain) else tuple(frequencies.tolist()),
            attention_factor=float(factor),
        )

    def _sizes(self, config: PretrainedConfig) -> dict[str, Any]:
        heads = config.num_attention_heads
        return {
            "hidden_size": config.hidden_size,
            "num_heads": heads,
            "num_kv_heads": getattr(config, "num_key_value_heads", None) or heads,
            "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
            "max_positions": self.max_positions(config),
            "vocab_size": getattr(config, "vocab_size", 0),
            "num_layers": len(self.layer_types(config)),
            "layer_types": self.layer_types(config),
        }

    def max_positions(self, config: PretrainedConfig) -> int:
        """Context length in tokens."""
        return getattr(config, self.length)

    def said_length(self, config: PretrainedConfig, tokens: int) -> dict[str, int]:
        """What a configuration says of a context of so many `tokens`, if it says anything."""
        return {self.length: tokens} if hasattr(config, self.length) else {}

    def native_encoding(self, backbone: Any, native: nn.Module, layer: int) -> PositionalEncoding | None:
        """What `layer` has with `native` in the slot, as an encoding that acts in its attention; None where it has nothing there."""
        if not self.uses_slot(self.attentions(backbone)[layer]):
            return None
        config = backbone.config
        geometry = self.geometry(self.config_of(config, layer), native, self.group(config, layer))
        as_it_is = dataclasses.replace(geometry, rope_type="default", rope_parameters=())  # whatever scheme its frequencies came from
        return create(self.native_name, as_it_is)

    def native_table(self, native: nn.Module) -> Tensor | None:
        """The learned table of the family, where it has one: [L,M] by position, or [N,H] by bucket of distances."""
        return None

    def can_hold(self, encoding: PositionalEncoding) -> bool:
        """Whether the native slot can hold the encoding, so that stock attention does the rest."""
        frequencies = encoding.frequencies()
        return frequencies is not None and encoding.only("rotate") and len(frequencies[0]) * 2 == encoding.geometry.rotary_dim

    def holding(self, native: nn.Module, contents: dict[Group, PositionalEncoding | None]) -> nn.Module:
        """A module for the slot: for each group its encoding, or None for no rotation; other groups stay native."""
        return RotarySlot(native, contents)

    def holding_alone(self, native: nn.Module, group: Group, encoding: PositionalEncoding) -> nn.Module:
        """A module with `encoding`, for one layer whose neighbours keep others."""
        rotary, name = self.rotary(native, group)
        return RotarySlot(rotary, {name: encoding})

    def layer_hook(self, group: Group, settled: Settled) -> Any:
        """The hook before the attention of a layer that is served alone: what it holds itself instead of what is in the slot."""
        return LayerRotation(group, settled)

    def slot_contents(
        self, backbone: PreTrainedModel, wants: dict[int, PositionalEncoding | None]
    ) -> tuple[dict[Group, PositionalEncoding | None], list[int]]:
        """Sort what layers want from the slot (an encoding, or None for nothing) by group.

        Returns:
            the groups whose layers all want the same, with it; and the layers that must be served one by one.
        """
        users: dict[Group, list[int]] = {}
        for layer, attention in self.attentions(backbone).items():
            if self.uses_slot(attention):
                users.setdefault(self.group(backbone.config, layer), []).append(layer)
        contents, alone = {}, []
        for group, layers in users.items():
            first = wants.get(layers[0])
            if all(layer in wants and wants[layer] is first for layer in layers):
                contents[group] = first
            else:
                alone += [layer for layer in layers if layer in wants]
        return contents, alone

    def stock_config(
        self, native: nn.Module, config: PretrainedConfig, contents: dict[Group, PositionalEncoding | None]
    ) -> PretrainedConfig | None:
        """`config` with these contents merged in, if transformers builds exactly their frequencies from it; else None."""
        for group, encoding in contents.items():
            entries = encoding.rope_parameters() if encoding is not None else None
            if entries is None:
                return None
            self.merge(config, group, entries)
        try:  # as it will be read back: some families (Phi-3) refuse schemes that their modules could compute
            config = type(config).from_dict(config.to_dict())
            built = self.fresh(native, config)
        except Exception:  # whatever a family raises there, a checkpoint that it cannot read is none of its own
            return None
        return config if all(self._says(built, group, encoding) for group, encoding in contents.items()) else None

    def merge(self, config: PretrainedConfig, group: Group, entries: dict[str, Any]) -> None:
        """Write the rotary parameters of `group` into `config`; what the family keeps beside the scheme (a partial factor) survives."""
        if group:
            config.rope_parameters = {**config.rope_parameters, group: config.rope_parameters[group] | entries}
        else:
            config.rope_parameters = config.rope_parameters | entries

    def _says(self, built: nn.Module, group: Group, encoding: PositionalEncoding | None) -> bool:
        """Whether the module that transformers has built holds the encoding."""
        held = encoding.frequencies() if encoding is not None else None
        frequencies, factor = rotary_state(*self.rotary(built, group))
        return held is not None and torch.equal(frequencies, held[0].cpu()) and factor == held[1]


def _inside(module: nn.Module, path: str) -> nn.Module | None:
    """The module at `path` within `module`, if there is one."""
    for name in path.split("."):
        module = getattr(module, name, None)  # type: ignore[assignment]
    return module


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The innermost decoder of text: that of a model around image or audio encoders, and that beside the encoder of text."""
    inner = cast(Any, model.base_model).get_decoder()
    return inner if inner is model or not isinstance(inner, PreTrainedModel) else decoder_of(inner)


def forward_is_foreign(attention: nn.Module) -> bool:
    """Whether some other tool has put its own `forward` on an attention module, or on its class."""
    if "forward" in attention.__dict__ and not hasattr(attention, "_hf_hook"):
        return True
    home = inspect.unwrap(type(attention).forward).__module__
    return home not in {cls.__module__ for cls in type(attention).__mro__}
