"""Trying the stages of an encoding once, on a handful of tokens, before a model is touched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from .base import PositionalEncoding, create
from .composing.made import Composed
from .pairs import Block, Region, Text

BATCH, QUERIES, KEYS = 2, 3, 7
FAR = 1009
"""Tokens by which all positions are moved to see whether only the distance counts; a prime, so that no period hides it."""

BEFORE = ("embed", "notes", "embed_text", "locate", "infuse", "rotate", "cached_key", "state", "regions", "meet", "value")
TRIED = (*BEFORE, "context_bias", "bias", "mix", "normalise", "attended")
"""Stages, in the order of a forward pass."""

_tried: set[tuple] = set()


def check_stages(encoding: PositionalEncoding, dtype: torch.dtype = torch.float32) -> None:
    """Call every stage of a created encoding, as attention would; once for each class, geometry, set of options and `dtype`.

    Args:
        dtype: of the model that the encoding has been moved to.

    Raises:
        ValueError: a stage fails, or returns a wrong shape or dtype, None, NaN or +inf; a bias that softmax ignores, since it is
            the same for all keys of a query; scores that depend on more than the distance, though `relative` says not.
    """
    key = type(encoding), repr(encoding.geometry), repr(sorted(encoding.options.items())), dtype
    if key in _tried:
        return
    encoding = _with_values(encoding)
    device = next((x.device for x in (*encoding.parameters(), *encoding.buffers())), torch.device("cpu"))
    # Within `torch.device("meta")`, what a stage makes without naming a device would have no values.
    outer = torch.device(device) if device.type == "cpu" else nullcontext()
    with torch.no_grad(), torch.random.fork_rng(devices=[]), outer:
        trial = _Trial(encoding, dtype, device)
        for stage in TRIED:
            if encoding.has(stage) or stage == "cached_key":
                getattr(trial, stage)()
        if encoding.relative and not isinstance(encoding, Composed):  # of which the bias alone is that of the distance
            trial.distance_alone()
    _tried.add(key)


def _with_values(encoding: PositionalEncoding) -> PositionalEncoding:
    """`encoding`, or one like it on the CPU if it is on the meta device."""
    if not any(x.is_meta for x in (*encoding.parameters(), *encoding.buffers())):
        return encoding
    with torch.device("cpu"):
        return create(encoding.name, encoding.geometry, **encoding.options)


class _Trial:
    """Made-up queries, keys and embeddings at the first few positions; a method for each stage."""

    def __init__(self, encoding: PositionalEncoding, dtype: torch.dtype, device: torch.device):
        self.encoding, self.device, g = encoding, device, encoding.geometry
        self.wide = torch.float64 if dtype == torch.float64 else torch.int64
        keys = min(KEYS, self.length)
        self.k_pos = torch.arange(keys, device=self.device).expand(BATCH, -1)
        self.q_pos = self.k_pos[:, -QUERIES:]
        self.q = self.wave(dtype, BATCH, g.num_heads, self.q_pos.shape[1], g.head_dim)
        self.k = self.wave(dtype, BATCH, g.num_kv_heads, keys, g.head_dim)
        self.x = self.wave(dtype, BATCH, keys, g.hidden_size)
        self.stored, self.made_state = self.k, cast(Tensor | None, None)
        self.states = cast(tuple[Tensor | None, Tensor | None], (None, None))

    @property
    def text(self) -> Text:
        ids = torch.arange(self.k_pos.numel(), device=self.device).view_as(self.k_pos)
        before = torch.zeros(len(ids), self.encoding.noted, dtype=torch.long, device=self.device)
        return Text(ids, self.k_pos, self.k_pos == 0, before, lambda ids: self.wave(self.x.dtype, *ids.shape, self.x.shape[2]))

    @property
    def block(self) -> Block:
        queries, keys = self.q.shape[2], self.k.shape[2]
        seen = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=self.device).tril(keys - queries)
        axes = self.q_pos.expand(self.encoding.axes, -1, -1) if self.encoding.axes > 1 else None
        return Block(self.q, self.stored, self.q_pos, self.k_pos, self.q.shape[-1] ** -0.5, seen, *self.states, axes)

    @property
    def length(self) -> int:
        """Tokens of the longest text that the encoding is asked about."""
        native = self.encoding.geometry.max_positions
        return max(64, 4 * native) if self.encoding.any_length else self.encoding.context_length or native

    def wave(self, dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.arange(torch.Size(shape).numel(), device=self.device).sin().view(shape).to(dtype)

    # -- stages -------------------------------------------------------------------------------------------------------

    def embed(self) -> None:
        x = self.call("embed", self.x, self.k_pos)
        self.expect("embed", x, self.x, "[B,Q,M]")
        self.expect_effect("embed", torch.equal(x, self.x))

    def infuse(self) -> None:
        for pos in (self.k_pos, self.k_pos[:1]):
            x = self.call("infuse", self.x, pos)
            self.expect("infuse", x, self.x, "[B,Q,M]")
        self.expect_effect("infuse", torch.equal(x, self.x))

    def notes(self) -> None:
        notes, shape = self.call("notes", self.text), (*self.k_pos.shape, self.encoding.noted)
        if not isinstance(notes, Tensor) or notes.shape != shape or notes.is_floating_point():
            self.refuse("notes", f"must return whole numbers of shape [B,Q,noted] = {list(shape)}", notes)

    def embed_text(self) -> None:
        x = self.call("embed_text", self.x, self.text)
        self.expect("embed_text", x, self.x, "[B,Q,M]")
        self.expect_effect("embed_text", torch.equal(x, self.x))

    def locate(self) -> None:
        axes, shape = self.call("locate", self.text), (self.encoding.axes, *self.k_pos.shape)
        if not isinstance(axes, Tensor) or axes.shape != shape:
            self.refuse("locate", f"must return positions of shape [n,B,Q] = {list(shape)}", axes)

    def state(self) -> None:
        state, g = self.call("state", self.x, self.k_pos), self.encoding.geometry
        fits = isinstance(state, Tensor) and state.ndim == 4 and state.shape[::2] == self.k_pos.shape
        if not fits or state.shape[1] not in (1, g.num_heads, g.num_kv_heads) or not state.is_floating_point():
            shape = f"[B,A,Q,n] = [{BATCH}, A, {self.k_pos.shape[1]}, n], with A one of 1, {g.num_kv_heads} and {g.num_heads}"
            self.refuse("state", f"must return real numbers of shape {shape}", state)
        self.expect_numbers("state", state)
        self.made_state = state
        self.states = self.attempt("increments", self.encoding.states, state, self.q.shape[2])

    def meet(self) -> None:
        met = self.call("meet", self.block)
        if not isinstance(met, tuple | list) or len(met) != 2 or not all(isinstance(x, Tensor) and x.ndim == 4 for x in met):
            self.refuse("meet", "must return a pair of tensors [B,H,Q,E] and [B,G,K,E]", met)
        for part, like in zip(met, (self.q, self.k), strict=True):
            width = met[0].shape[-1]
            if part.shape != (*like.shape[:3], width) or part.dtype != like.dtype:
                self.refuse("meet", f"must return {_type(like.dtype)} of shape {[*like.shape[:3], width]} for such an input", part)
            self.expect_numbers("meet", part)

    def value(self) -> None:
        v = self.wave(self.k.dtype, *self.k.shape[:3], self.encoding.geometry.value_dim)
        self.expect("value", self.call("value", v, self.k_pos), v, "[B,G,K,V]")

    def mix(self) -> None:
        self.expect_scores("mix", self.call("mix", self.made_up_scores, self.block))

    def normalise(self) -> None:
        weights = self.call("normalise", self.made_up_scores, self.block)
        self.expect_scores("normalise", weights)
        if (weights < 0).any():
            self.refuse("normalise", "must return weights of 0 or more; negative ones are among them", weights)

    def attended(self) -> None:
        weights = self.made_up_scores.softmax(-1).to(self.q.dtype)
        like = self.wave(self.q.dtype, *self.q.shape[:3], self.encoding.geometry.value_dim)
        self.expect("attended", self.call("attended", weights, self.block), like, "[B,H,Q,V]")

    @property
    def made_up_scores(self) -> Tensor:
        wide = torch.promote_types(self.q.dtype, torch.float32)
        return self.wave(wide, *self.q.shape[:3], self.k.shape[2])

    def expect_scores(self, stage: str, got: Any) -> None:
        shape = (*self.q.shape[:3], self.k.shape[2])
        if not isinstance(got, Tensor) or not got.is_floating_point() or got.shape != shape:
            self.refuse(stage, f"must return real numbers of shape [B,H,Q,K] = {list(shape)}", got)
        self.expect_numbers(stage, got)

    def rotate(self) -> None:
        """Both sides at once; where the key goes into a cache, each side alone."""
        alone = not self.encoding.has("regions", "meet") or (not self.encoding.has("cached_key") and self.encoding.caches == "transformed")
        if not alone:
            return  # nothing calls it
        for rows, columns in ((slice(None), slice(0)), (slice(0), slice(None)), (slice(None), slice(None))):
            q, k = self.q[:, :, rows], self.k[:, :, columns]
            turned = self.call("rotate", q, k, self.q_pos[:, rows], self.k_pos[:, columns])
            self.expect_pair("rotate", turned, q, k)
        far = FAR**2 if self.encoding.any_length else self.length - self.k_pos.shape[1]
        moved = self.call("rotate", self.q, self.k, self.q_pos + far, self.k_pos + far)
        self.expect_effect("rotate", all(torch.equal(x, given) for pair in (turned, moved) for x, given in zip(pair, (q, k), strict=True)))

    def cached_key(self) -> None:
        for pos in (self.k_pos, self.k_pos[:1]):
            key = self.call("cached_key", self.k, pos if self.encoding.axes == 1 else pos.expand(self.encoding.axes, -1, -1))
            self.expect("cached_key", key[..., : self.k.shape[-1]] if isinstance(key, Tensor) else key, self.k, "[B,G,K,D] or wider")
        self.stored = key

    def regions(self) -> None:
        regions = self.call("regions", self.q_pos, self.k_pos)
        if not isinstance(regions, Sequence) or not regions or not all(isinstance(region, Region) for region in regions):
            self.refuse("regions", "must return a list of Region, one or more", regions)
        for region in regions:
            if region.keys is not None:
                ends = self.attempt("keys of regions", region.keys, self.q_pos)
                self.expect_pair("keys of regions", ends, self.q_pos, self.q_pos, "[B,Q]", "[B,Q]")
            rotated = self.attempt("rotate of regions", region.rotate, self.q, self.stored, self.q_pos, self.k_pos)
            self.expect_pair("rotate of regions", rotated, self.q, self.k)

    def context_bias(self) -> None:
        stage, shape = "context_bias", (*self.q.shape[:3], self.k.shape[2])
        reach: dict[str, Any] = {"reach": self.k_pos.shape[1]} if self.encoding.takes_reach else {}
        function = partial(self.encoding.context_bias, **reach)
        bias = self.attempt(stage, function, self.q, self.stored, self.q_pos, self.k_pos, self.q.shape[-1] ** -0.5)
        if not isinstance(bias, Tensor) or not bias.is_floating_point() or bias.shape != shape:
            self.refuse(stage, f"must return real numbers of shape [B,H,Q,K] = {list(shape)}", bias)
        self.expect_numbers(stage, bias)

    def bias(self) -> None:
        """The bias at the first positions and at ever greater ones."""
        near = self.bias_at(self.q_pos, self.k_pos)
        pos = torch.tensor(sorted({0, self.length - 1, *(2**i for i in range(self.length.bit_length() - 1))}), device=self.device)
        bias = near if len(pos) < 2 else self.bias_at(pos[None], pos[None])
        row = bias[..., -1, :].float().clamp(min=torch.finfo(torch.float32).min)  # the last query sees all keys, -inf hides some
        ignored = (row.amax(-1) - row.amin(-1)).max() <= 1e-6 * (1 + row.abs().max())
        self.expect_effect("bias", bool(ignored), "is the same for all keys of a query, which softmax ignores: it must depend on k_pos")
        if self.encoding.relative:
            self.expect_same("bias", bias, self.bias_at(pos[None] + FAR, pos[None] + FAR))

    def bias_at(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        shape = len(q_pos), self.encoding.geometry.num_heads, q_pos.shape[1], k_pos.shape[1]
        heads = torch.arange(shape[1], device=self.device)[None, :, None, None]
        bias = self.call("bias", heads, q_pos.to(self.wide)[:, None, :, None], k_pos.to(self.wide)[:, None, None, :])
        if not isinstance(bias, Tensor) or not bias.is_floating_point() or not _broadcasts(bias.shape, shape):
            self.refuse("bias", f"must return real numbers of a shape that broadcasts to [B,H,Q,K] = {list(shape)}", bias)
        self.expect_numbers("bias", bias)
        return bias.expand(shape)

    def distance_alone(self) -> None:
        """That the scores of the keys that a query sees stay when all positions are moved."""
        axes, state = self.encoding.axes, self.made_state
        both = ([pos + d if axes == 1 else (pos + d).expand(axes, -1, -1) for pos in (self.q_pos, self.k_pos)] for d in (0, FAR))
        here, there = (self.attempt("scores", partial(self.encoding.scores, state=state), self.q, self.k, *pos) for pos in both)
        seen = self.k_pos[:, None, None, :] <= self.q_pos[:, None, :, None]
        self.expect_same("scores", here.masked_fill(~seen, 0), there.masked_fill(~seen, 0))

    # -- what is expected ---------------------------------------------------------------------------------------------

    def call(self, stage: str, *given: Any) -> Any:
        return self.attempt(stage, getattr(self.encoding, stage), *given)

    def attempt(self, stage: str, what: Callable, *given: Any) -> Any:
        try:
            return what(*given)
        except Exception as error:
            shapes = ", ".join(str(list(x.shape)) if isinstance(x, Tensor) else repr(x) for x in given)
            raise ValueError(f"{self.called(stage)} failed on inputs of shape {shapes} with {type(error).__name__}: {error}") from error

    def expect_pair(self, stage: str, got: Any, one: Tensor, other: Tensor, *axes: str) -> None:
        if not isinstance(got, tuple | list) or len(got) != 2:
            self.refuse(stage, "must return a pair of tensors", got)
        for part, like, names in zip(got, (one, other), axes or ("[B,H,Q,D]", "[B,G,K,D]"), strict=True):
            self.expect(stage, part, like, names)

    def expect(self, stage: str, got: Any, like: Tensor, axes: str) -> None:
        """`got` has the shape and dtype of `like`."""
        if not isinstance(got, Tensor) or got.shape != like.shape or got.dtype != like.dtype:
            self.refuse(stage, f"must return {_type(like.dtype)} of shape {axes} = {list(like.shape)} for such an input", got)
        self.expect_numbers(stage, got)

    def expect_numbers(self, stage: str, got: Tensor) -> None:
        if got.isnan().any() or got.isposinf().any():
            what = "NaN" if got.isnan().any() else "+inf"
            self.refuse(stage, f"must return finite numbers, for keys after the query (k_pos > q_pos) too; {what} is among them", got)

    def expect_effect(self, stage: str, none: bool, otherwise: str = "returns what it was given, at every position") -> None:
        """Something that training could give an effect, and what half precision may have rounded away, is let pass."""
        learns = next(self.encoding.parameters(), None) is not None
        if none and not learns and self.k_pos.shape[1] > 1 and self.q.dtype in (torch.float32, torch.float64):
            raise ValueError(f"{self.called(stage)} {otherwise}")

    def expect_same(self, stage: str, here: Tensor, there: Tensor) -> None:
        """Equal but for rounding, where the key is not after the query."""
        here, there = (x.float().tril(x.shape[-1] - x.shape[-2]) for x in (here, there))
        eps = max(torch.finfo(self.q.dtype).eps, torch.finfo(torch.float32).eps)
        scale = 1 + here[here.isfinite()].abs().max()
        if not torch.allclose(here, there, rtol=0, atol=float(eps**0.5 * scale)):
            raise ValueError(
                f"{self.called(stage)} depend{'s' * (stage != 'scores')} on more than the distance q_pos - k_pos: moving all positions by "
                f"{FAR} changes it by up to {(here - there).abs().nan_to_num(0).max():.3g}. Declare relative = False, or mend it"
            )

    def refuse(self, stage: str, expected: str, got: Any) -> None:
        shown = (
            f"{_type(got.dtype)} of shape {list(got.shape)}" if isinstance(got, Tensor) else "None" if got is None else type(got).__name__
        )
        raise ValueError(f"{self.called(stage)} {expected}; got {shown}")

    def called(self, stage: str) -> str:
        return f"encoding {getattr(self.encoding, 'name', type(self.encoding).__name__)!r}: {stage}"


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _broadcasts(shape: torch.Size, to: tuple[int, ...]) -> bool:
    try:
        return torch.broadcast_shapes(shape, to) == to
    except RuntimeError:
        return False
