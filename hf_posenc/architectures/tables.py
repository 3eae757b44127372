"""Families that add their native encoding: a table to the embeddings, or a bias to the scores."""

from __future__ import annotations

import copy
import inspect
from typing import Any, ClassVar

import torch
from accelerate.hooks import remove_hook_from_module
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ..encodings import Geometry, PositionalEncoding
from ..encodings.naming import EMBEDDING
from ..encodings.temperature.base import Temperature
from .base import Architecture
from .slots import Group, ZeroTable


class AddedArchitecture(Architecture):
    """A family that adds its native encoding, to the embeddings or to the scores; to the embeddings, a table that transformers computes."""

    rotates = False
    counts_padding: ClassVar[bool] = False
    """Without position ids, the stock model gives rows of the table to padding on the left too; a patched one never does."""

    def scale(self, backbone: Any) -> float:
        """Factor on the embeddings, between `get_input_embeddings` and where positions are added."""
        return getattr(backbone, "embed_scale", 1.0)

    def check_encoding(self, backbone: PreTrainedModel, encoding: PositionalEncoding) -> None:
        if encoding.has(*EMBEDDING) and (scale := self.scale(backbone)) != 1.0:
            raise ValueError(
                f"{encoding.name!r} is added to the embeddings, but this model multiplies them by {scale:g} afterwards; "
                "use an encoding that acts in the attention"
            )

    def group(self, config: PretrainedConfig, layer: int) -> Group:
        return None

    def geometry(self, config: PretrainedConfig, native: nn.Module, group: Group) -> Geometry:
        return Geometry(**self._sizes(config))

    def _sizes(self, config: PretrainedConfig) -> dict[str, Any]:
        sizes = super()._sizes(config)
        if hasattr(type(config), "num_key_value_heads"):
            return sizes
        return sizes | {"num_kv_heads": sizes["num_heads"]}  # whatever an instance was given that its class does not know

    def fresh(self, native: nn.Module, config: PretrainedConfig) -> nn.Module:
        if self.is_learned:
            raise ValueError(
                "this checkpoint was saved without the model's own position table, so there is nothing to go back to; "
                "load the original checkpoint instead"
            )
        names = list(inspect.signature(type(native)).parameters)
        with torch.device("cpu"):
            return type(native)(**{name: getattr(native, name) for name in names})

    def native_encoding(self, backbone: Any, native: nn.Module, layer: int) -> PositionalEncoding | None:
        return None

    def can_hold(self, encoding: PositionalEncoding) -> bool:
        return False

    def holding(self, native: nn.Module, contents: dict[Group, PositionalEncoding | None]) -> nn.Module:
        tensors = (*native.parameters(), *native.buffers())
        return ZeroTable(self.width(native), next((x.dtype for x in tensors), torch.get_default_dtype()))

    def width(self, native: Any) -> int:
        """Numbers that the native encoding adds for a position."""
        return native.embedding_dim

    def slot_contents(
        self, backbone: PreTrainedModel, wants: dict[int, PositionalEncoding | None]
    ) -> tuple[dict[Group, PositionalEncoding | None], list[int]]:
        # The table feeds the residual stream of all layers, so it goes as soon as one layer has another encoding.
        encodings = set(wants.values())
        return {None: encodings.pop() if len(encodings) == 1 else None}, []

    def stock_config(
        self, native: nn.Module, config: PretrainedConfig, contents: dict[Group, PositionalEncoding | None]
    ) -> PretrainedConfig | None:
        return None


class BiasArchitecture(AddedArchitecture):
    """A family that adds its native encoding to the scores: layers hand it to their attention function as `position_bias`."""

    def check_encoding(self, backbone: PreTrainedModel, encoding: PositionalEncoding) -> None:
        super().check_encoding(backbone, encoding)
        if isinstance(encoding, Temperature):
            raise ValueError(
                f"{encoding.name!r} cannot stand beside the bias of {backbone.config.model_type}, which a patched layer leaves out; give "
                f"it to an encoding that takes its place, by temperature={encoding.name!r}"
            )

    def slot_contents(
        self, backbone: PreTrainedModel, wants: dict[int, PositionalEncoding | None]
    ) -> tuple[dict[Group, PositionalEncoding | None], list[int]]:
        # The attention function of a patched layer leaves the native bias out, so that layers beside it may keep theirs.
        return ({None: None} if set(wants) == set(self.attentions(backbone)) else {}), []


class OwnBias(BiasArchitecture):
    """Each attention has a module of its own that computes its bias; the slot holds them all."""

    def native(self, backbone: PreTrainedModel) -> nn.Module:
        return nn.ModuleList(getattr(attention, str(self.slot)) for attention in self.attentions(backbone).values())

    def put(self, backbone: PreTrainedModel, module: nn.Module) -> None:
        attentions = self.attentions(backbone).values()
        parts = module if isinstance(module, nn.ModuleList) else [module] * len(attentions)
        for attention, part in zip(attentions, parts, strict=True):
            setattr(attention, str(self.slot), part)


class TableArchitecture(AddedArchitecture):
    """A family that adds a learned position table to its embeddings."""

    is_learned = True
    offset: ClassVar[int] = 0
    """Rows of the table before position 0."""

    def before(self, native: Any) -> int:
        """`offset` of this table."""
        return self.offset

    def native_table(self, native: nn.Module) -> Tensor | None:
        weight = _loaded(native)
        return None if weight.is_meta else weight[self.before(native) :]

    def can_hold(self, encoding: PositionalEncoding) -> bool:
        return encoding.table_rows() is not None and encoding.only("embed")

    def holding(self, native: nn.Module, contents: dict[Group, PositionalEncoding | None]) -> nn.Module:
        encoding = contents[None]
        table = encoding.table_rows() if encoding is not None else None
        if table is None:
            return super().holding(native, contents)
        module = remove_hook_from_module(copy.deepcopy(native))
        weight = _loaded(native)[: self.before(native)]
        before = torch.zeros_like(weight, device=table.device) if weight.is_meta else weight.to(table)
        module.weight = nn.Parameter(torch.cat((before, table.detach())))
        module.num_embeddings = len(module.weight)
        return module

    def stock_config(
        self, native: nn.Module, config: PretrainedConfig, contents: dict[Group, PositionalEncoding | None]
    ) -> PretrainedConfig | None:
        encoding = contents[None]
        says_the_same = encoding is not None and encoding.table_rows() is not None and not self.counts_padding
        return config if says_the_same else None


def _loaded(native: Any) -> Tensor:
    """The weight of a position table, fetched if accelerate has offloaded it; on the meta device if there is none."""
    with align_module_device(native):
        return native.weight.detach()


def check_sees_back(backbone: Any) -> None:
    """Raise ValueError for a model that sees both ways."""
    if not backbone.config.is_decoder:
        raise ValueError(
            f"this {type(backbone).__name__} sees both ways, and encodings are defined for tokens that see those before them; "
            "load it as a decoder, with is_decoder=True"
        )
