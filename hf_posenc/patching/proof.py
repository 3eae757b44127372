"""Showing that a patch works on this very family and configuration, before it is made.

Five things are shown on a handful of tokens: the attention of every layer reaches the attention interface, with the heads that encodings
are told of, or multiplies queries and keys where that is waited for, with the factor that its family is said to have; each layer turns
its queries and keys by what is in the native slot, and by nothing once that is neutral; the native encoding gives the numbers of the
stock model when it acts in the attention function instead; a rotation there means the same to cached keys; and the encodings asked for
arrive in the layers that were named.

The family is tried on a small twin, made from the classes and the configuration of the model; a model that is small and whole is tried
itself too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures.tables import BiasArchitecture
from ..attention.cached import arguments_of, by_name
from ..attention.probe import Handed
from ..encodings import ENCODINGS, PositionalEncoding, create
from ..encodings.base import products
from ..encodings.composing.by_head import ByHead
from ..encodings.naming import EMBEDDING
from ..encodings.rotary.rope import BY_LENGTH
from .configuration import configs_in, own_config, written
from .installing import uninstall
from .placing import apply
from .record import Patch, Placement, Request, attribute_name
from .running import TOKENS, called, decode, having, is_trying, look, nowhere, positions, run, trying
from .twin import twin_of

LARGE = 1 << 28
"""Parameters from which a model is not run for a proof."""
ROUNDING = 1e-3
"""Difference, relative to the largest number or to what positions change, that float32 leaves between two ways to the same result."""

_proven: set[tuple] = set()


def prove(record: Patch, requests: Sequence[Request]) -> None:
    """Show that the model of `record` with `requests` would do what they say; once for each class, configuration and set of requests.

    Raises:
        ValueError: it would not, or it cannot be tried. The model is as it was.
    """
    backend = record.architecture.seam.tried_with(record.live_backend)
    family = (type(record.backbone), id(record.architecture), backend, written(record.native_config()))
    wanted = (*family, *(_key(request) for request in requests))
    if wanted in _proven or is_trying():
        return
    try:
        with trying():
            _try(record, requests, family not in _proven)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"{type(record.backbone).__name__} cannot be patched: a trial with {TOKENS} tokens ended in {type(error).__name__}: {error}. "
            "Nothing was changed; verify=False patches without a trial"
        ) from error
    _proven.update((family, wanted))


def prove_structure(record: Patch) -> None:
    """Show on a twin that a model of the class and configuration of `record` has the architecture of `record`.

    Raises:
        ValueError: it has not, or it cannot be tried.
    """
    with trying():
        _prove_family(twin_of(record))


def _try(record: Patch, requests: Sequence[Request], family: bool) -> None:
    """Show what `requests` ask for, on the model where it is handy; on its twin where it is not, or where the `family` is new."""
    handy = _is_handy(record)
    if family or not handy:
        twin = twin_of(record)
        _prove_family(twin)
        _prove_requests(twin, [_of_all_heads(request) for request in requests])
    if handy:
        with _untouched(record) as model:
            if family:
                _prove_family(model)
            _prove_requests(model, requests)


def _of_all_heads(request: Request) -> Request:
    """`request`, as it can be made of a twin, which has fewer heads: what goes by head reaches the attention as what all heads have."""
    by_head = issubclass(ENCODINGS[request.name], ByHead) or "heads" in request.options
    return Request("alibi", {}, request.layers) if by_head else request


def _key(request: Request) -> tuple:
    return request.name, ENCODINGS[request.name], repr(sorted(request.options.items())), request.layers


# -- what is tried ----------------------------------------------------------------------------------------------------


@contextmanager
def _untouched(record: Patch) -> Iterator[Patch]:
    """The model as a subject; afterwards it is as it was."""
    backbone = record.backbone
    configs = configs_in(backbone)
    training = [m for m in backbone.modules() if m.training]
    subject = Patch(backbone, record.architecture, backbone)
    own_config(subject)
    backbone.eval()
    try:
        yield subject
    finally:
        for module in training:
            module.training = True
        for module, config in configs.items():
            module.config = config


def _is_handy(record: Patch) -> bool:
    """Whether the model is stock, small, in full precision, in one piece, and watched by nobody."""
    parameters = list(record.backbone.parameters())
    devices = {p.device for p in parameters}
    plain = all(type(p) is nn.Parameter and p.dtype in (torch.float32, torch.float64) and p.numel() for p in parameters)  # ZeRO-3: none
    if record.placements or not plain or len(devices) != 1 or "meta" in {d.type for d in devices}:
        return False
    if sum(p.numel() for p in parameters) > LARGE or not all(bool(p.isfinite().all()) for p in parameters):
        return False
    types = [getattr(module, "rope_type", "default") for module in record.native.modules()]
    by_length = any(each in BY_LENGTH for each in types if isinstance(each, str))  # such a module remembers the texts it has seen
    return not by_length and not any(_is_watched(module) for module in record.backbone.modules())


def _is_watched(module: nn.Module) -> bool:
    hooks = module._forward_hooks, module._forward_pre_hooks
    return any(hooks) or hasattr(module, "_hf_hook") or module._compiled_call_impl is not None


# -- what is shown ----------------------------------------------------------------------------------------------------


def _prove_family(subject: Patch) -> None:
    """What holds for every patch of this family and configuration."""
    seen, stock = look(subject), run(subject)
    for i, handed in seen.items():
        _check_sizes(subject, i, handed)
    architecture, config, pos = subject.architecture, subject.backbone.config, positions(subject)
    elsewhere = architecture.elsewhere(config, pos)
    with having(subject, [nowhere(subject)]):
        free, moved, without = look(subject), look(subject, pos=elsewhere), run(subject)
    for i in seen:
        here, there = (_unscaled(subject, i, *at) for at in ((free[i], pos), (moved[i], elsewhere)))
        _check(subject, i, here, there, "still depends on positions when the native encoding is switched off")
        _check_scale(subject, i, free[i])
    native = {i: subject.architecture.native_encoding(subject.backbone, subject.native, i) for i in seen}
    if subject.architecture.rotates:
        _prove_rotation(subject, native, seen, free, stock, without)
    elif isinstance(architecture, BiasArchitecture):
        _prove_bias(subject, native, stock, without)
    else:
        _prove_table(subject, seen, free, stock, without)


def _prove_rotation(
    subject: Patch, native: dict[int, Any], seen: dict[int, Handed], free: dict[int, Handed], stock: Tensor, without: Tensor
) -> None:
    for i, rotation in native.items():
        if rotation is None:
            _check(subject, i, free[i], seen[i], "is said to have no rotation, but turns its queries and keys")
        else:
            _check(
                subject,
                i,
                _turned(subject, i, rotation, free[i]),
                seen[i],
                "does not turn its queries and keys by what is in the native slot",
            )
    movable = {i: rotation for i, rotation in native.items() if rotation is not None and _may_turn(subject, rotation)}
    if len(movable) < len(seen):  # a bias can act in the other layers
        _compare(subject, _still(subject), without, stock - without, "a bias of zero")
    rotary = ENCODINGS[subject.architecture.native_name].rotary
    _compare(subject, movable, stock, stock - without, f"the native {'rotation' if rotary else 'bias'}")
    if rotary:
        _prove_cache(subject, stock)
        remapped = {i: create("rerope", rotation.geometry, window=2 * TOKENS) for i, rotation in movable.items()}
        _compare(subject, remapped, stock, stock - without, "ReRoPE with a window beyond the text")


def _prove_cache(subject: Patch, stock: Tensor) -> None:
    """That a rotation in the attention function means the same to cached keys; where the stock model has a KV cache, and it works."""
    decoded, rotations = decode(subject), {i: subject.rotation(i) for i in subject.attentions}
    if decoded is None or not all(_may_turn(subject, each) for each in rotations.values()):
        return
    leeway = max(ROUNDING, 50 * _away(decoded, stock))  # some recurrent layers are less exact one token at a time
    with having(subject, _placements(subject, rotations)):
        whole, decoded = run(subject), decode(subject)
    if decoded is None or not _away(decoded, whole) <= leeway:
        raise ValueError(f"{called(subject)} cannot be patched: its KV cache does not hold the keys that its attention gets")


def _away(decoded: Tensor, whole: Tensor) -> float:
    """How far a last hidden state [1 or B,1,M] is from that of a run over all tokens, relative to the largest number there."""
    return float((decoded - whole[:, -1:]).abs().max() / whole.abs().max())


def _prove_table(subject: Patch, seen: dict[int, Handed], free: dict[int, Handed], stock: Tensor, without: Tensor) -> None:
    for i, handed in seen.items():
        if torch.equal(handed.query, free[i].query):
            raise ValueError(f"{called(subject)} cannot be patched: layer {i} does not react to the position table")
    _compare(subject, _still(subject), without, stock - without, "a bias of zero")


def _still(subject: Patch) -> dict[int, PositionalEncoding]:
    """A bias of zero in every layer."""
    return {i: NoBias(subject.geometry(i)) for i in subject.attentions}


def _prove_bias(subject: Patch, native: dict[int, Any], stock: Tensor, without: Tensor) -> None:
    if torch.equal(stock, without):
        raise ValueError(f"{called(subject)} cannot be patched: it does not react to the bias of its positions")
    if all(native.values()):
        _compare(subject, native, stock, stock - without, "the native bias")
    _compare(subject, _still(subject), without, stock - without, "a bias of zero")


class NoBias(PositionalEncoding):
    """A bias of zero: it needs the positions and must change nothing."""

    name, relative = "no_bias", True

    def bias(self, h: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return (h + q_pos - k_pos) * 0.0


def _prove_requests(subject: Patch, requests: Sequence[Request]) -> None:
    """That the encodings of `requests` arrive in their layers, and that the model runs with them."""
    native = {i: subject.architecture.native_encoding(subject.backbone, subject.native, i) for i in subject.attentions}
    try:
        apply(subject, *requests)
        placements = list(subject.placements)
        seen = look(subject)
        finite = bool(run(subject).isfinite().all())
    finally:
        uninstall(subject)
    names = ", ".join(repr(request.name) for request in requests)
    if not finite:
        raise ValueError(f"with {names} {called(subject)} gives numbers that are not finite")
    if any(p.in_table for p in placements):
        return  # the table in the slot of a table is the family's own way
    if any(p.encoding.has(*EMBEDDING) for p in placements):
        _prove_embedding(subject, names)
    wanted = look(subject) if all(p.beside for p in placements) else _wanted(subject, placements, native)
    for i, handed in seen.items():
        _check(subject, i, wanted[i], handed, f"does not get {names} as asked")


def _wanted(subject: Patch, placements: Sequence[Placement], native: dict[int, Any]) -> dict[int, Handed]:
    """What each layer is to hand to its attention with `placements`, of which some take the native encoding out."""
    embedded = [p.encoding for p in placements if p.encoding.has(*EMBEDDING)]
    with having(subject, [nowhere(subject)]), ExitStack() as hooks:
        free = look(subject, embedded=embedded)
        for i, encoding in ((i, p.encoding) for p in placements for i in p.projections):
            hook = partial(_infused, encoding, positions(subject))
            hooks.callback(subject.attentions[i].register_forward_pre_hook(hook, with_kwargs=True).remove)
        free = {i: handed._replace(value=free[i].value) for i, handed in look(subject, embedded=embedded).items()}
    turning = native | {i: p.encoding if p.native else None for p in placements if not p.beside for i in p.layers}
    return {i: free[i] if turning[i] is None else _turned(subject, i, turning[i], free[i]) for i in free}


def _infused(encoding: PositionalEncoding, pos: Tensor, attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
    """Before an attention: all that it makes is made of what its queries and keys are to be made of."""
    call = by_name(attention, args, kwargs)
    given = call[arguments_of(attention)[0]]
    x = encoding.infuse(given, pos)
    return (), {name: x if value is given else value for name, value in call.items()}


def _prove_embedding(subject: Patch, names: str) -> None:
    """That what is added to the embeddings arrives where the family adds its table, if it has one by position."""
    own: Any = create("learned", subject.geometry(min(subject.attentions)))
    table = subject.architecture.native_table(subject.native)
    if table is None or table.shape[1] != own.table.shape[1]:
        return
    own.adopt(table)
    stock, layers = run(subject), tuple(subject.attentions)
    with having(subject, [Placement(Request(own.name, {}, layers), layers, own.to(subject.device), attribute_name(0), False)]):
        added = run(subject)
    if not _close(added, stock, stock):
        raise ValueError(
            f"{names} is added to the embeddings, but this {called(subject)} does something else to them before it adds its own positions; "
            "use an encoding that acts in the attention"
        )


def _compare(subject: Patch, encodings: dict[int, PositionalEncoding], wanted: Tensor, effect: Tensor, what: str) -> None:
    """Raise unless `encodings` in the attention function give the output `wanted`, up to rounding beside the `effect` of positions."""
    with having(subject, _placements(subject, encodings)):
        error = (run(subject) - wanted).abs().max()
    if not error <= max(20 * ROUNDING * float(effect.abs().max()), ROUNDING * 0.01 * float(wanted.abs().max())):
        raise ValueError(
            f"{called(subject)} cannot be patched: {what} in the attention function gives other numbers than the stock model "
            f"(off by {error:.1e}, where positions change {effect.abs().max():.1e})"
        )


def _placements(subject: Patch, encodings: dict[int, PositionalEncoding]) -> list[Placement]:
    """Encodings by layer, in the attention function."""
    return [
        Placement(Request(encoding.name, {}, (i,)), (i,), encoding.to(subject.device), attribute_name(n), False)
        for n, (i, encoding) in enumerate(encodings.items())
    ]


def _close(one: Tensor, other: Tensor, among: Tensor) -> bool:
    return bool((one - other).abs().max() <= ROUNDING * among.abs().max())


def _check_sizes(subject: Patch, layer: int, handed: Handed) -> None:
    """That a layer has the heads that encodings are told of."""
    geometry, query, key = subject.geometry(layer), handed.query, handed.key
    told, found = (geometry.num_heads, geometry.num_kv_heads, geometry.head_dim), (query.shape[1], key.shape[1], query.shape[-1])
    if told != found:
        raise ValueError(
            f"{called(subject)} cannot be patched: layer {layer} is said to have {told[0]} query and {told[1]} key-value heads of width "
            f"{told[2]}, but has {found[0]} and {found[1]} of width {found[2]}"
        )


def _check(subject: Patch, layer: int, wanted: Handed, handed: Handed, fault: str) -> None:
    for want, have in ((wanted.query, handed.query), (wanted.key, handed.key), (wanted.value, handed.value)):
        if want is None or have is None:
            continue
        if want.shape != have.shape or not (want - have).abs().max() <= ROUNDING * want.abs().max():
            raise ValueError(f"{called(subject)} cannot be patched: layer {layer} {fault}")


def _check_scale(subject: Patch, layer: int, handed: Handed) -> None:
    """That weights which a family makes itself are those of its products times the factor that it is said to have on them."""
    if handed.weights is not None:
        scores = products(handed.query, handed.key) * handed.scaling
        wanted = scores.masked_fill(handed.weights == 0, -torch.inf).softmax(-1)
        if not (wanted - handed.weights).abs().max() <= ROUNDING:
            fault = f"does not put the factor {handed.scaling:g} on its products of queries and keys"
            raise ValueError(f"{called(subject)} cannot be patched: layer {layer} {fault}")


def _turned(subject: Patch, layer: int, encoding: Any, handed: Handed) -> Handed:
    attention, pos = subject.attentions[layer], positions(subject)
    with torch.no_grad():
        return Handed(*subject.architecture.turned(attention, encoding.to(pos.device), handed.query, handed.key, pos))


def _may_turn(subject: Patch, rotation: PositionalEncoding) -> bool:
    """Whether the family lets this rotation act in the attention function."""
    try:
        subject.architecture.check_encoding(subject.backbone, rotation)
    except ValueError:
        return False
    return True


def _unscaled(subject: Patch, layer: int, handed: Handed, pos: Tensor) -> Handed:
    """What a layer hands over at `pos`, without the temperature of the family."""
    scale = subject.architecture.query_scale(subject.backbone.config, layer, pos)
    return handed if scale is None else handed._replace(query=handed.query / scale[:, None, :, None])
