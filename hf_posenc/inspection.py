"""Saying what positional encoding is live in a model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from itertools import groupby
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import nn

from .architectures.slots import RotarySlot, ZeroTable
from .attention.choice import Choice, Prospect
from .attention.hooks import ROTARY
from .encodings.composing.tempered import tells_positions
from .encodings.naming import EMBEDDING
from .patching import Patch, Placement, patch_of


@dataclasses.dataclass(frozen=True)
class LiveEncoding:
    """One encoding found in a model; where each layer has its own, all of them, with their `parameters` added up.

    Attributes:
        path: how a forward pass on the device of the model computes it, and why so; in_training: the same where gradients are recorded.
    """

    name: str
    options: dict[str, Any]
    layers: tuple[int, ...]
    place: str
    parameters: int
    path: Choice
    in_training: Choice


@dataclasses.dataclass(frozen=True)
class Report:
    """What positional encoding a model really has.

    Attributes:
        encodings: the patches, empty for a stock model.
        native: the encoding the model came with.
        without: layers that see no positional encoding, neither a patched nor the native one.
        context_length: tokens that the encodings promise, or else the configuration.
        stock_checkpoint: what `save_pretrained` writes loads without hf_posenc.
        whole: the native slot holds what the patch put there; False where something else has written to it since.
        fingerprint: hash of the live frequencies, slopes and tables, not of any configuration.
    """

    model_type: str
    native: str
    encodings: tuple[LiveEncoding, ...]
    without: tuple[int, ...]
    num_layers: int
    attention: str
    context_length: int
    stock_checkpoint: bool
    whole: bool
    fingerprint: str

    def __str__(self) -> str:
        lines = [f"{self.model_type}, {self.num_layers} layers, attention {self.attention}, context {self.context_length} tokens"]
        lines.append(f"native encoding: {self.native}")
        for e in self.encodings:
            options = "".join(f", {k}={v!r}" for k, v in e.options.items())
            lines.append(f"patched: {e.name}{options} on {_layers(e.layers, self.num_layers)}, {e.place}, {e.parameters:,} parameters")
            lines.append(f"  path: {e.path.path} ({e.path.why})")
            if e.in_training.path != e.path.path:
                lines.append(f"  in training: {e.in_training.path} ({e.in_training.why})")
        if not self.encodings:
            lines.append("patched: no")
        if self.without:
            lines.append(f"no positional encoding in {_layers(self.without, self.num_layers)}")
        lines.append(f"a saved checkpoint {'is a stock one' if self.stock_checkpoint else 'loads after `import hf_posenc`'}")
        if not self.whole:
            lines.append("CHANGED since it was patched: the native slot holds other frequencies; patch again to put them back")
        lines.append(f"fingerprint: {self.fingerprint}")
        return "\n".join(lines)


def inspect(model: nn.Module) -> Report:
    """What positional encoding is live in `model`, read from its modules.

    Raises:
        ValueError: the model is not supported, or FSDP2 has cut the encoding up.
    """
    record = patch_of(model)
    native = type(record.native).__name__
    config = record.native_config()
    parameters = getattr(config, "rope_parameters", None) if record.architecture.has_slot(config) else None
    return Report(
        model_type=record.model.config.model_type,
        native=f"{native} {parameters}" if parameters else native,
        encodings=_live(record),
        without=_without(record),
        num_layers=record.num_layers,
        attention=record.live_backend,
        context_length=record.context_length or record.max_positions,
        stock_checkpoint=record.stock or not record.placements,
        whole=all(slot.is_whole() for slot in _slots(record)),
        fingerprint=_fingerprint(record),
    )


def _live(record: Patch) -> tuple[LiveEncoding, ...]:
    """What is placed; encodings that one request gave to each layer count as one."""

    def together(p: Placement) -> Any:
        return (id(p.request), place_of(record, p)) if p.encoding.per_layer else p.attribute

    live = []
    for _, same in groupby(record.placements, together):
        placements = list(same)
        first, layers = placements[0], tuple(i for p in placements for i in p.layers)
        parameters = sum(x.numel() for p in placements for x in record.holder(p)[1].parameters())
        paths = (_path(record, first, learning) for learning in (False, True))
        live.append(LiveEncoding(first.request.name, first.request.options, layers, place_of(record, first), parameters, *paths))
    return tuple(live)


def _path(record: Patch, p: Placement, learning: bool) -> Choice:
    """What the attention of the first layer of a placement will do in a pass over many tokens."""
    attention = record.attentions[p.layers[0]]
    avoided = attention.posenc_site.avoided if p.in_attention else frozenset()
    return path_of(record, p, learning, next(attention.parameters()).device.type, record.embedding.dtype, avoided)


def path_of(record: Patch, p: Placement, learning: bool, place: str, dtype: torch.dtype, avoided: frozenset[str] = frozenset()) -> Choice:
    """What the attention of the first layer of a placement, which need not be in the model, does in a pass over many tokens.

    Args:
        learning: gradients are recorded. place: type of the device. dtype: of the weights. avoided: paths that have failed there.
    """
    if not p.in_attention:
        return Choice("stock", "the attention of the model does not know of it")
    config, attention = record.backbone.config, record.attentions[p.layers[0]]
    capped = getattr(config, "attn_logit_softcapping", None) is not None or hasattr(attention, "sinks")
    dropout = (getattr(config, "attention_dropout", 0.0) or getattr(config, "attn_pdrop", 0.0)) if learning else 0.0
    prospect = Prospect(
        backend=record.live_backend,
        place=place,
        dtype=dtype,
        regional=p.encoding.has("regions"),
        learning=learning,
        dropout=dropout,
        tileable=place == "cpu" and not capped and not dropout,
        avoided=avoided,
    )
    return record.architecture.seam.choose(p.encoding, prospect)


def place_of(record: Patch, p: Placement) -> str:
    """Where a placement, which need not be in the model, acts."""
    if p.native:
        return "in the native slot"
    if p.in_attention:
        on_axes = hasattr(record.native, "mrope_section") and p.encoding.axes == 1  # positions of images
        beside = ", beside the native encoding" if p.beside else ""
        return "in the attention function" + beside + (", by the count of tokens" if on_axes else "")
    if p.encoding.has(*EMBEDDING):
        return "in the embeddings"
    return "in what queries and keys are projected from" if p.encoding.has("infuse") else "with the native encoding switched off"


def _layers(layers: tuple[int, ...], num_layers: int) -> str:
    return "all layers" if len(layers) == num_layers else f"layers {', '.join(map(str, layers))}"


def _without(record: Patch) -> tuple[int, ...]:
    """Layers that no encoding reaches: a patched one at work there, or a native one that is still on."""
    working = [p for p in record.placements if tells_positions(p.encoding)]
    everywhere = any(p.encoding.has(*EMBEDDING) for p in working)
    patched = {i for p in record.placements if not p.beside for i in p.layers}
    reached = {i for p in working for i in p.layers}
    table_off = isinstance(record.slot, ZeroTable)
    return tuple(
        i
        for i, attention in record.attentions.items()
        if not everywhere and i not in reached and (i in patched or table_off or not record.architecture.uses_slot(attention))
    )


def _slots(record: Patch) -> list[RotarySlot]:
    """What the patch has put into the rotary slots: that of the backbone, and those of layers with one of their own."""
    return [module for owner in (record.slot, *record.attentions.values()) for module in owner.modules() if isinstance(module, RotarySlot)]


def _fingerprint(record: Patch) -> str:
    """Hash of every live number: what the native slot and the layers with a slot of their own hold, and the encodings beside them."""
    digest = hashlib.sha256()
    for module in record.slot.modules():
        _digest(digest, module)
    for layer, attention in record.attentions.items():
        for own in (module._modules[ROTARY] for module in attention.modules() if ROTARY in module._modules):
            digest.update(f"layer {layer}".encode())
            for module in own.modules() if own is not None else ():
                _digest(digest, module)
    for p in record.placements:
        if not p.native:
            options = json.dumps(p.request.options, sort_keys=True, default=repr)  # a checkpoint has them in that order
            digest.update(f"{p.request.name} {p.layers} {options}".encode())
            for module in record.holder(p)[1].modules():
                _digest(digest, module)
    return digest.hexdigest()[:16]


def _digest(digest: Any, module: nn.Module) -> None:
    with align_module_device(module):  # fetches what accelerate has offloaded
        for name, tensor in (*module.named_buffers(recurse=False), *module.named_parameters(recurse=False)):
            if hasattr(tensor, "full_tensor"):
                raise ValueError("each process has a share of the encoding: model.unshard() on all of them, then inspect")
            digest.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    for name, value in sorted(vars(module).items()):
        if name.endswith("attention_scaling"):
            digest.update(f"{name}={value!r}".encode())
