"""What is looked at: an encoding on its own, or the one that is live in a model, with its learned numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..encodings import Geometry, PositionalEncoding, create
from ..encodings.naming import BEFOREHAND, BY_BLOCK, STAGES
from ..evaluation.models import encoded
from ..patching import Patch, Placement, patch_of
from ..variants import STOCK, name_of

GEOMETRY = Geometry(hidden_size=512, num_heads=8)
"""Of the model that is taken for granted where none is given."""
TOKENS = 8
STD = 0.02
"""Of embeddings where there is no model, as most families start with."""
PAST = 2
"""How far past the trained length is looked, as a multiple of it."""


@dataclass(frozen=True)
class Subject:
    """One encoding and what it is placed in.

    Attributes:
        label: as it was asked for. encoding: in float64 on the CPU.
        place: the model and its layer, in words.
        ids: [N], a few tokens. embedded: ids of any shape -> their embeddings [...,M].
    """

    label: str
    encoding: PositionalEncoding
    place: str
    ids: Tensor
    embedded: Callable[[Tensor], Tensor]

    @classmethod
    def alone(cls, label: str, options: Mapping[str, Any], geometry: Geometry) -> Subject:
        """The encoding in a model that there is not; numbers to be learned as they start, from a fixed seed.

        Raises:
            ValueError: "stock", layers, or what the encoding does not take.
        """
        if name_of(label) == STOCK:
            raise ValueError(f"{STOCK!r} is the encoding of a model as it was loaded: give a model, or name one of `hf-posenc list`")
        if "layers" in options:
            raise ValueError(f"{label}: layers= is about the layers of a model, and none is given")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoding = create(name_of(label), geometry, **options)
        place = f"no model: {geometry.num_heads} heads of width {geometry.head_dim}, trained for {geometry.max_positions:,} tokens"
        return cls(label, looked_at(encoding), place, *drawn_tokens(geometry.hidden_size))

    @classmethod
    def within(cls, label: str, options: Mapping[str, Any], model: Any, layer: int | None = None) -> Subject:
        """What is live in `layer` of `model` where it is the one asked for, or else would be after a patch; the model stays as it is.

        Raises:
            ValueError: a model or layer that cannot have it, or a native encoding that the catalogue does not have.
        """
        asked = {name: value for name, value in options.items() if name != "layers"}
        there = {p.request.name: p.request.options for p in patch_of(model).placements}
        is_live = name_of(label) in there and (not options or asked == there[name_of(label)])
        with torch.random.fork_rng(devices=[]), encoded(model, STOCK if is_live else label, options):
            torch.manual_seed(0)
            record = patch_of(model)
            placements = [p for p in record.placements if not is_live or p.request.name == name_of(label)]
            at = chosen_layer(record, placements, layer)
            encoding = live(record, placements, at)
            place = f"{record.model.config.model_type}, layer {at} of {record.num_layers}"
            return cls(label, looked_at(encoding), place, *tokens_of(record, encoding.geometry.hidden_size))

    @property
    def trained(self) -> int:
        """Tokens that the model was trained for."""
        return self.encoding.geometry.max_positions

    @property
    def promised(self) -> int | None:
        """Tokens that the encoding was asked to reach."""
        return self.encoding.context_length

    @property
    def reach(self) -> int:
        """Tokens that are looked at: past the trained length, where the encoding is defined there."""
        promised = self.promised or 0
        return max(PAST * self.trained, promised) if self.encoding.any_length else promised or self.trained

    @property
    def embeds(self) -> bool:
        """It changes the embeddings of tokens, or what queries and keys are projected from: this is shown as if it were the embeddings."""
        return self.encoding.has(*BEFOREHAND)

    @property
    def attends(self) -> bool:
        """It acts in the attention, or nowhere."""
        return not self.embeds or self.encoding.has(*(stage for stage in STAGES if stage not in BEFOREHAND))

    @property
    def reads_contents(self) -> bool:
        """What it does to a score depends on queries and keys, not on their product alone."""
        return self.encoding.has(*BY_BLOCK)

    @property
    def reads_text(self) -> bool:
        """What it does to a score depends on all tokens up to the query."""
        return self.reads_contents or self.encoding.has("state")


def looked_at(encoding: PositionalEncoding) -> PositionalEncoding:
    """A copy to compute with."""
    return copy.deepcopy(encoding).cpu().double().eval().requires_grad_(False)


def drawn_tokens(width: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Ids and embeddings of a model that has not been trained, and has no other tokens."""
    table = STD * torch.randn(TOKENS, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.arange(TOKENS), lambda ids: table[ids % TOKENS]


def tokens_of(record: Patch, width: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Ids spread over the vocabulary of the model, and its embeddings; not those that it projects to another width."""
    table, module = record.embedding, record.backbone.get_input_embeddings()
    if table.shape[-1] != width:
        return drawn_tokens(width)
    ids = torch.linspace(0, len(table) - 1, TOKENS).long()
    return ids, torch.no_grad()(lambda ids: module(ids.to(table.device)).detach().cpu().double())


def chosen_layer(record: Patch, placements: list[Placement], layer: int | None) -> int:
    """The layer that was asked for, or the first one that has the encoding."""
    if layer is not None:
        if layer not in record.attentions:
            raise ValueError(f"layer {layer} has no attention; those with are {', '.join(map(str, record.attentions))}")
        return layer
    patched = sorted(i for p in placements for i in p.layers)
    native = [i for i, attention in record.attentions.items() if record.architecture.uses_slot(attention)]
    return next(iter(patched or native or record.attentions))


def live(record: Patch, placements: list[Placement], layer: int) -> PositionalEncoding:
    """The encoding that reaches `layer`: that of a placement, or the native one."""
    placed = next((p for p in placements if layer in p.layers), None)
    if placed is not None:
        held: Any = getattr(record.backbone, placed.attribute, None)
        trained = getattr(held, "modules_to_save", None)  # PEFT keeps the one it trains beside the one it found
        return in_table(record, placed) if held is None else held if trained is None else trained[held.active_adapters[0]]
    own = record.architecture.native_encoding(record.backbone, record.native, layer)
    table = record.architecture.native_table(record.native)
    if own is None and table is not None:
        own = create("learned", record.geometry(layer), max_positions=len(table))
        own.adopt(table)
    if own is None:
        kind = type(record.native).__name__
        raise ValueError(f"layer {layer} has no encoding of the catalogue (the model has {kind}): name one, to see it in this model")
    return own


def in_table(record: Patch, placed: Placement) -> PositionalEncoding:
    """The encoding of a placement whose numbers the model's own table holds."""
    encoding = create(placed.request.name, placed.encoding.geometry, **placed.request.options)
    table = record.architecture.native_table(record.slot)
    assert table is not None
    encoding.adopt(table)
    return encoding
