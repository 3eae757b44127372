from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..base import Block, Geometry, PositionalEncoding, create, has_values, precise, register
from ..naming import OVERRIDABLE
from ..options import indices
from ..temperature.base import Temperature
from .made import ByParts, made
from .tempered import turns

BY_HEAD = ("rotate", "bias", "context_bias", "mix", "attended", "cached_key")
"""Stages in which heads can differ: `_each_STAGE` of `ByHead` does them."""
HALF = ({"name": "alibi", "heads": "::2"}, {"name": "nope"})
Index = slice | list[int]


class Place(NamedTuple):
    """Where one part acts.

    Args:
        heads: its query heads. keys: the key-value heads that it sees, each for as many of its heads.
        rows, columns: the same, to index tensors by.
        turns: it turns keys.
    """

    heads: tuple[int, ...]
    keys: tuple[int, ...]
    rows: Index
    columns: Index
    turns: bool


@register("by_head")
class ByHead(ByParts):
    """Several encodings side by side, each on heads of its own.

    Args:
        parts: a list of {"name": ..., "heads": ...} with the options of each. Heads are an index, a list of them, or a slice such as "::2";
            one part may leave them out, and has the rest. Default: `alibi` on every other head, and nothing on the others.

    Each part is built as for a model that has its heads alone: ALiBi on 4 of 8 heads has the slopes for 4. Query heads that share a
    key-value head must turn it alike. Encodings of the embeddings, and those with regions, treat all heads alike and cannot be parts.

    Needs training as its parts do.
    """

    relative = True
    rotary = True
    needs_training = "as its parts do"
    places: tuple[Place, ...]

    def __init__(self, geometry: Geometry, *, parts: Sequence[Mapping[str, Any]] | None = None):
        super().__init__(geometry)
        asked = [dict(part) for part in _checked(HALF if parts is None else parts)]
        heads = _shared_out(asked, geometry.num_heads)
        self.parts = nn.ModuleList(_part(each, own, geometry) for each, own in zip(asked, heads, strict=True))
        self.places = tuple(_place(part, own, geometry) for part, own in zip(self.encodings(), heads, strict=True))
        self.per_layer = any(part.per_layer for part in self.encodings())
        self._check_keys()
        self.__class__ = made((type(self),), tuple(self._members()))

    def _each(self) -> Iterator[tuple[Any, Place]]:
        return zip(self.encodings(), self.places, strict=True)

    def _members(self) -> Iterator[tuple[str, Any]]:
        """What the class of this instance has that others have not: the stages that some part has, and no other."""
        parts = self.encodings()
        biased = [part for part in parts if part.has("bias")]
        turning = any(place.turns for place in self.places)
        stages = {stage for part in parts for stage in OVERRIDABLE if part.has(stage)} - {"cached_key"}
        stages |= {"cached_key", "_rotate_query"} if turning else set()
        stages |= {"columns"} if len(biased) == 1 and biased[0].has("columns") else set()
        for stage in sorted(stages - {"bias"}):
            yield stage, getattr(ByHead, f"_each_{stage.removeprefix('_')}")
        if not biased:
            yield "bias", PositionalEncoding.bias
        yield "caches", "transformed" if turning else "raw"
        for name, whether in (("relative", all), ("any_length", all), ("takes_reach", any), ("data_dependent", any)):
            yield name, whether(getattr(part, name) for part in parts)

    def _check_keys(self) -> None:
        """Raise ValueError if query heads of different parts would turn the same key-value head differently."""
        for g in range(self.geometry.num_kv_heads):
            sharing = [(part, place) for part, place in self._each() if g in place.keys]
            if len(sharing) == 1 or not any(place.turns for _, place in sharing):
                continue
            learned = any(place.turns and next(part.parameters(), None) is not None for part, place in sharing)
            turned = [_turned_key(part, place.keys.index(g), part.geometry) for part, place in sharing]
            if learned or any(x is not None and y is not None and not torch.allclose(x, y) for x, y in pairwise(turned)):
                size = self.geometry.num_heads // self.geometry.num_kv_heads
                names = " and ".join(repr(part.name) for part, _ in sharing)
                raise ValueError(
                    f"query heads {g * size} to {(g + 1) * size - 1} share one key, which {names} would turn differently: give rotations "
                    f"whole groups of {size} heads"
                )

    # -- stages -------------------------------------------------------------------------------------------------------

    def _each_rotate(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        queries, key = [], k
        for part, place in self._each():
            own, turned = part.rotate(q[:, place.rows], k[:, place.columns], q_pos, k_pos)
            queries.append(own)
            key = _put(key, k, turned, place) if place.turns else key
        return self._joined(queries), key

    def _each_rotate_query(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        queries, key = [], k
        for part, place in self._each():
            (region,) = part.regions(q_pos, k_pos)
            own, turned = region.rotate(q[:, place.rows], k[:, place.columns], q_pos, k_pos)
            queries.append(own)
            key = _put(key, k, turned, place) if place.turns and part.caches == "raw" else key
        return self._joined(queries), key

    def _each_cached_key(self, k: Tensor, pos: Tensor) -> Tensor:
        key = k
        for part, place in self._each():
            key = _put(key, k, part.cached_key(k[:, place.columns], pos), place) if place.turns else key
        return key

    def bias(self, h: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        total: Any = 0.0
        for i, part in enumerate(self.encodings()):
            if part.has("bias"):
                mine = self.owner[h] == i
                total = torch.where(mine, part.bias((self.within[h] * mine).long(), q_pos, k_pos), total)
        return total

    def _each_context_bias(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, scaling: float, reach: int | None = None) -> Tensor:
        total = precise(q[..., :1], q).new_zeros(*q.shape[:3], k.shape[2])
        for part, place in self._each():
            if part.has("context_bias"):
                more: dict[str, Any] = {"reach": reach} if part.takes_reach else {}
                total[:, place.rows] = part.context_bias(q[:, place.rows], k[:, place.columns], q_pos, k_pos, scaling, **more).to(total)
        return total

    def _each_mix(self, scores: Tensor, block: Block) -> Tensor:
        mixed = scores.clone()
        for part, place in self._each():
            if part.has("mix"):
                mixed[:, place.rows] = part.mix(scores[:, place.rows], _of(block, place))
        return mixed

    def _each_attended(self, weights: Tensor, block: Block) -> Tensor:
        total = weights.new_zeros(*weights.shape[:3], self.geometry.value_dim)
        for part, place in self._each():
            if part.has("attended"):
                total[:, place.rows] = part.attended(weights[:, place.rows], _of(block, place)).to(total)
        return total

    def _each_columns(self, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        ((part, place),) = [(part, place) for part, place in self._each() if part.has("bias")]
        own, numbers = part.columns(k_pos)
        heads = own.new_zeros(self.geometry.num_heads)
        heads[place.rows] = own
        return heads, numbers

    def _joined(self, queries: Sequence[Tensor]) -> Tensor:
        """Queries [B,.,Q,D] of all parts, in the order of the heads."""
        order = [head for place in self.places for head in place.heads]
        joined = torch.cat(list(queries), 1)
        return joined if order == sorted(order) else joined[:, sorted(range(len(order)), key=order.__getitem__)]

    # -- the rest -----------------------------------------------------------------------------------------------------

    owner: Tensor
    within: Tensor

    @property
    def context_length(self) -> int | None:
        return min((length for part in self.encodings() if (length := part.context_length)), default=None)

    def adopt(self, table: Tensor) -> None:
        for part, place in self._each():
            part.adopt(table[:, place.rows] if table.shape[-1] == self.geometry.num_heads else table)

    def check_positions(self, last: int) -> None:
        for part in self.encodings():
            part.check_positions(last)

    def project(self) -> None:
        for part in self.encodings():
            part.project()

    def reset_buffers(self) -> None:
        for part in self.encodings():
            part.reset_buffers()
        by_head = {head: (i, at) for i, place in enumerate(self.places) for at, head in enumerate(place.heads)}
        owner, within = zip(*(by_head[head] for head in sorted(by_head)), strict=True)
        self.set_buffer("owner", torch.tensor(owner, dtype=torch.float32))
        self.set_buffer("within", torch.tensor(within, dtype=torch.float32))


def on_heads(value: Any, name: str, geometry: Geometry, options: dict[str, Any]) -> PositionalEncoding:
    """The encoding `name` on some heads, and nothing on the others."""
    encoding = ByHead(geometry, parts=[{"name": name, "heads": value, **options}, {"name": "nope"}])
    encoding.__class__ = made(encoding.made_of, (*encoding.made_with, ("name", name)))
    return encoding


def _checked(parts: Any) -> Sequence[Mapping[str, Any]]:
    sequence = isinstance(parts, Sequence) and not isinstance(parts, str)
    if not sequence or not parts or not all(isinstance(part, Mapping) and isinstance(part.get("name"), str) for part in parts):
        raise ValueError(f'parts= is a list of {{"name": ..., "heads": ...}} with the options of each, got {parts!r}')
    return parts


def _shared_out(parts: Sequence[dict[str, Any]], num_heads: int) -> list[tuple[int, ...]]:
    """The heads of each part, which say no more what they are."""
    found = [None if (heads := part.pop("heads", None)) is None else indices("heads", heads, num_heads) for part in parts]
    taken = [head for heads in found if heads is not None for head in heads]
    if twice := sorted({head for head in taken if taken.count(head) > 1}):
        raise ValueError(f"heads {', '.join(map(str, twice))} are in several parts")
    rest = tuple(head for head in range(num_heads) if head not in taken)
    open_ended = found.count(None)
    if open_ended > 1 or bool(rest) != bool(open_ended):
        left = f"{', '.join(map(str, rest)) or 'none'} of {num_heads} are left"
        raise ValueError(f"one part without heads= has the rest of them: there are {open_ended} such parts, and heads {left}")
    return [rest if heads is None else heads for heads in found]


def _part(part: dict[str, Any], heads: tuple[int, ...], geometry: Geometry) -> PositionalEncoding:
    """One part, built for its heads alone."""
    slopes = None if geometry.slopes is None else tuple(geometry.slopes[head] for head in heads)
    keys = len(_keys(heads, geometry))
    name = part.pop("name")
    encoding = create(name, dataclasses.replace(geometry, num_heads=len(heads), num_kv_heads=keys, slopes=slopes), **part)
    if isinstance(encoding, Temperature):
        raise ValueError(f"{name!r} is a temperature: give it to one of the parts, as temperature={name!r}")
    if alike := [stage for stage in OVERRIDABLE if encoding.has(stage) and stage not in BY_HEAD]:
        raise ValueError(f"{name!r} treats all heads alike in its stage {alike[0]!r}, and cannot be had by head")
    return encoding


def _keys(heads: tuple[int, ...], geometry: Geometry) -> tuple[int, ...]:
    """The key-value heads of these query heads, each for as many of them: if need be, one for each."""
    each = tuple(head // (geometry.num_heads // geometry.num_kv_heads) for head in heads)
    distinct = tuple(sorted(set(each)))
    return distinct if len({each.count(g) for g in distinct}) == 1 else each


def _place(part: PositionalEncoding, heads: tuple[int, ...], geometry: Geometry) -> Place:
    keys = _keys(heads, geometry)
    return Place(heads, keys, _index(heads), _index(keys), turns(part))


def _index(numbers: tuple[int, ...]) -> Index:
    """A slice, which copies nothing, where they are equally far apart."""
    steps = {b - a for a, b in pairwise(numbers)}
    if len(steps) > 1 or steps == {0}:
        return list(numbers)
    return slice(numbers[0], numbers[-1] + 1, *steps)


def _of(block: Block, place: Place) -> Block:
    """What of `block` is that of the heads of `place`."""
    seen = block.seen if block.seen is None or block.seen.shape[1] == 1 else block.seen[:, place.rows]
    return dataclasses.replace(block, q=block.q[:, place.rows], k=block.k[:, place.columns], seen=seen)


def _put(key: Tensor, given: Tensor, turned: Tensor, place: Place) -> Tensor:
    """`key` [B,G,K,D], once `given`, with the heads of `place` being `turned`."""
    if not given.shape[2]:
        return key
    if turned.shape[-1] != given.shape[-1]:
        raise ValueError("an encoding that keeps a state beside each key cannot be had by head")
    key = key.clone() if key is given else key
    key[:, place.columns] = turned
    return key


def _turned_key(part: PositionalEncoding, at: int, geometry: Geometry) -> Tensor | None:
    """What a part makes of a key at some positions; None where there are no numbers to look at."""
    pos = torch.tensor([[0, 1, 5, 60]], device="cpu")
    if not all(has_values(x) for x in (*part.parameters(), *part.buffers())):
        return None
    with torch.device("cpu"), torch.no_grad():
        k = torch.arange(4 * geometry.head_dim).sin().view(1, 1, 4, -1).expand(1, geometry.num_kv_heads, -1, -1)
        q = torch.zeros(1, geometry.num_heads, 4, geometry.head_dim)
        key = part.regions(pos, pos)[0].rotate(q, part.cached_key(k, pos), pos, pos)[1]
    return key[:, at]
