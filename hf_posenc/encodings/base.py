"""The contract of a positional encoding. Nothing below this package knows transformers."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ..registry import Registry, current_options, suggestion
from .naming import OVERRIDABLE, check_class
from .naming import STAGES as STAGES
from .pairs import Block as Block
from .pairs import Region as Region
from .pairs import Text as Text

ENCODINGS: Registry[type[PositionalEncoding]] = Registry("encoding")


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What an encoding may know about the model it is placed in.

    Args:
        hidden_size: width M of the residual stream.
        num_heads: query heads H.
        num_kv_heads: key-value heads G; default H.
        head_dim: width D of one head; default M / H.
        value_dim: width V of the values of one head; default D.
        rotary_dim: dimensions of a head that the native RoPE rotates; default D.
        theta: native RoPE base.
        interleaved: RoPE pairs dimensions (0, 1), (2, 3) ... instead of (0, r/2), (1, r/2 + 1) ...
        rotates_last: RoPE turns the last dimensions of a head instead of the first.
        backwards: RoPE turns pairs the other way round, by -t * theta^(-2k/r) at position t.
        max_positions: context length the model was trained for, in tokens.
        num_layers: layers in the model.
        layer_types: per layer, "full_attention" or "sliding_attention"; default all full.
        layer: index of the layer that the encoding is for, the first where it is for several: only what is `per_layer` may ask. Geometries
            that differ in nothing else are equal.
        rope_type: native scaling scheme under its transformers name; "default" when there is none.
        rope_parameters: parameters of that scheme, as (key, value) pairs.
        frequencies: native inverse frequencies in radians per token, float32 values; default theta^(-2k/r).
        attention_factor: native factor on cos and sin.
        slopes: native ALiBi slopes, one a query head; default those of the paper.
        vocab_size: tokens that the model knows; 0 where that is not said.
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int = 0
    head_dim: int = 0
    value_dim: int = 0
    rotary_dim: int = 0
    theta: float = 10_000.0
    interleaved: bool = False
    rotates_last: bool = False
    backwards: bool = False
    max_positions: int = 2048
    num_layers: int = 1
    layer_types: tuple[str, ...] = ()
    layer: int = dataclasses.field(default=0, compare=False, repr=False)
    rope_type: str = "default"
    rope_parameters: tuple[tuple[str, Any], ...] = ()
    frequencies: tuple[float, ...] | None = None
    attention_factor: float = 1.0
    slopes: tuple[float, ...] | None = None
    vocab_size: int = 0

    def __post_init__(self):
        fill = {
            "num_kv_heads": self.num_heads,
            "head_dim": self.hidden_size // max(self.num_heads, 1),
            "layer_types": ("full_attention",) * self.num_layers,
        }
        for name, value in fill.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        if not self.value_dim:
            object.__setattr__(self, "value_dim", self.head_dim)
        if not self.rotary_dim:
            object.__setattr__(self, "rotary_dim", self.head_dim)
        for name in ("hidden_size", "num_heads", "num_kv_heads", "head_dim", "max_positions", "num_layers"):
            value = getattr(self, name)
            if not isinstance(value, int) or value <= 0:
                raise ValueError(f"Geometry.{name} must be a positive integer, got {value!r}")
        if not isinstance(self.rotary_dim, int) or not 0 < self.rotary_dim <= self.head_dim:
            raise ValueError(f"Geometry.rotary_dim must be an integer from 1 to head_dim ({self.head_dim}), got {self.rotary_dim!r}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_heads} query heads cannot share {self.num_kv_heads} key-value heads evenly")


def precise(x: Tensor, like: Tensor) -> Tensor:
    """`x` in float32, or in float64 when `like` is float64: the precision of angles and biases."""
    return x.to(like.device, torch.float64 if like.dtype == torch.float64 else torch.float32)


def widest(device: torch.device) -> torch.dtype:
    """The most precise real numbers of a device: float64, but float32 on Apple's, exact for whole numbers up to 2**24."""
    return torch.float32 if device.type == "mps" else torch.float64


def has_values(x: Tensor) -> bool:
    """Whether there are numbers in `x` to look at: there are none on the meta device, or while shapes alone are worked out."""
    return not x.is_meta and not isinstance(x, FakeTensor)


def at_hand(x: Tensor) -> bool:
    """Whether the host can look at the numbers in `x` at once, without waiting for a device or breaking a graph."""
    return x.device.type == "cpu" and has_values(x) and not torch.compiler.is_compiling()


class PositionalEncoding(nn.Module):
    """Base of all encodings: override one stage, rarely two; every other stage is the identity.

    Shapes: B batch, H query heads, G key-value heads, Q queries, K keys, D head width, M model width. Positions are in
    tokens: integers, or real numbers where a caller places tokens between them. Learned parameters are ordinary
    `nn.Parameter`s; everything else a stage needs is rebuilt from the geometry by `reset_buffers`, in float32 whatever the
    dtype of the model.
    """

    name: ClassVar[str]
    options: dict[str, Any]
    relative: bool = False
    """The score depends on positions only through the distance from query to key."""
    rotary: ClassVar[bool] = False
    """Stands on the rotation geometry of the model: its theta, frequencies and rotated width."""
    caches: ClassVar[str] = "transformed"
    """What the KV cache holds, as `cached_key` makes it: the "transformed" key, or the "raw" one."""
    any_length: ClassVar[bool] = True
    """Defined at every position, whatever the context length it was built for."""
    needs_training: ClassVar[str] = ""
    """What a pretrained model must be trained for after the swap; empty when it works at once."""
    positionless: ClassVar[bool] = False
    """Overrides no stage, by intent; each class says so for itself."""
    data_dependent: ClassVar[bool] = False
    """What it does to a block of queries is chosen by the numbers in the position tensors: torch.compile breaks the graph there."""
    renamed_options: ClassVar[Mapping[str, str]] = {}
    """What options were called, by name: what they are called now."""
    takes_reach: ClassVar[bool] = False
    """`context_bias` takes `reach`, so as not to look for the largest distance in the position tensors."""
    axes: int = 1
    """Axes of the positions that `cached_key` is given, and `Block.axes` has: [n,B,Q] where there are more than one."""
    caches_state: ClassVar[bool] = True
    """The state of a token lies beside its key in the KV cache; otherwise queries alone have one, and it is forgotten."""
    lookback: int = 0
    """Tokens before each whose states its `state` has too, made by `trailing`: those that lie in the KV cache are filled in.

    Padding is none of them.
    """
    sums_before: ClassVar[bool] = False
    """What `increments` says of a token itself is in the sums of those after it alone."""
    noted: int = 0
    """Numbers that `notes` says of each token."""
    adds_columns: ClassVar[bool] = False
    """By what `meet` makes queries wider, something is added to the products: no temperature multiplies that."""
    mixes_products: ClassVar[bool] = False
    """What `mix` adds to the scores are products of the queries of its block too, which a temperature multiplies."""
    per_layer: bool = False
    """Each layer has parameters of its own; otherwise all layers share one encoding."""
    starts_as: str = ""
    """Name of the encoding that gives the same logits right after the patch; empty where none does. Options may change it."""

    def __init__(self, geometry: Geometry):
        super().__init__()
        self.geometry = geometry

    # -- stages -------------------------------------------------------------------------------------------------------

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        """Put positions `pos` [B,Q] into the token embeddings `x` [B,Q,M]."""
        return x

    def embed_text(self, x: Tensor, text: Text) -> Tensor:
        """Put positions into the token embeddings `x` [B,Q,M] of `text`, by what the tokens are."""
        return x

    def infuse(self, x: Tensor, pos: Tensor) -> Tensor:
        """What queries and keys are projected from, [B,Q,M], of the input `x` [B,Q,M] of the attention at `pos` [1 or B,Q].

        Values, and whatever else a layer makes of its input, are projected from `x`. The KV cache holds keys that were made so.
        """
        return x

    def notes(self, text: Text) -> Tensor:
        """Whole numbers of each token of `text` that the token after it needs, [B,Q,noted], none greater than 2^24.

        They lie beside its key in the KV cache of the first layer, and are cropped, reordered and moved with it: `Text.before` has them.
        """
        raise NotImplementedError

    def locate(self, text: Text) -> Tensor:
        """Positions [n,B,Q] on the `axes` of the encoding of the tokens of `text`, by what the tokens are."""
        return text.pos[None]

    def state(self, x: Tensor, pos: Tensor) -> Tensor:
        """Numbers of each token at `pos` [B,Q], from the input `x` [B,Q,M] of the attention: [B,A,Q,n] float32, with A one of 1, G and H.

        They lie beside the key of the token in the KV cache, and are cropped, reordered and moved with it. `Block` has them; those of
        padding are zero.
        """
        raise NotImplementedError

    def increments(self, state: Tensor) -> Tensor:
        """Of states [B,A,K,n], what is summed [B,A,K,m]: a `Block` has the sums over all tokens up to each, or before it (`sums_before`).

        The sums may begin anywhere: only their differences mean something.
        """
        raise NotImplementedError

    def meet(self, block: Block) -> tuple[Tensor, Tensor]:
        """Queries [B,H,Q,E] and keys [B,G,K,E], of any width E, whose products are the scores. Asked once for all of a call.

        In place of `rotate`, for what depends on states, on several axes, or needs other widths; `block.k` is as `cached_key` made it.
        """
        raise NotImplementedError

    def rotate(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        """Transform queries [B,H,Q,D] at `q_pos` [B,Q] and keys [B,G,K,D] at `k_pos` [B,K]."""
        return q, k

    def bias(self, h: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """Number added to the scaled score of head `h`, elementwise over broadcastable index tensors.

        It may be asked about keys after the query (k_pos > q_pos): any finite answer will do, a mask follows. In a float64 model the
        positions come in float64, for the bias to be as precise: take `(q_pos - k_pos).long()` to look into a table.
        """
        return torch.zeros((), device=q_pos.device)

    def context_bias(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, scaling: float) -> Tensor:
        """Number added to each scaled score, from the content too: [B,H,Q,K] for a block of queries and all keys.

        It is asked block by block, and again in the backward pass, so it may build what it needs for [B,H,Q,K].

        Args:
            q: [B,H,Q,D] and k: [B,G,K,D], neither rotated. q_pos: [B,Q]. k_pos: [B,K].
            scaling: the factor on the products.

        Returns:
            a tensor made for this call: the engine may write into it.

        A class with `takes_reach` has a further argument, `reach: int | None = None`: a number above all distances
        `q_pos - k_pos`, where the host knows one.
        """
        return torch.zeros((), device=q.device)

    def mix(self, scores: Tensor, block: Block) -> Tensor:
        """What softmax is to see, [B,H,Q,K], from the `scores` [B,H,Q,K] in float32 at least, biases included: they may mix heads and keys.

        Scores of pairs that are not `block.seen` are any numbers, and come to nothing afterwards. Asked block by block, again in the
        backward pass; all keys that a query sees are in its block.
        """
        raise NotImplementedError

    def normalise(self, scores: Tensor, block: Block) -> Tensor:
        """The weights [B,H,Q,K] of the values, in the place of a softmax of `scores` and its attention sinks; of pairs that are not
        `block.seen` any numbers, which come to nothing afterwards."""
        raise NotImplementedError

    def value(self, v: Tensor, pos: Tensor) -> Tensor:
        """Transform values [B,G,K,V] of tokens at `pos` [B,K]; the KV cache holds them as they were."""
        return v

    def attended(self, weights: Tensor, block: Block) -> Tensor:
        """What is added to the attended values, [B,H,Q,V], of the `weights` [B,H,Q,K] of a block."""
        raise NotImplementedError

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        """Split the score matrix of `q_pos` [B,Q] x `k_pos` [B,K] into parts that rotate differently."""
        return [Region(self._rotate_query if self.caches == "transformed" else self.rotate)]

    def cached_key(self, k: Tensor, pos: Tensor) -> Tensor:
        """What the KV cache holds of keys [B,G,K,D] at `pos` [1 or B,K]; further columns [B,G,K,D+n] are a state of each token.

        By default the rotated key, or the raw one where `caches` says so. It depends on the token and its position alone:
        cropping, reordering and moving the cache is then always right. An encoding of several `axes` is given `pos` [n,1 or B,K].
        """
        if self.caches == "raw" or not self.has("rotate"):
            return k
        return self.rotate(k[:, :, :0], k, pos[:, :0], pos)[1]

    def _rotate_query(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        return self.rotate(q, k[:, :, :0, : q.shape[-1]], q_pos, k_pos[:, :0])[0], k[..., : q.shape[-1]]

    # -- what the engine asks -----------------------------------------------------------------------------------------

    @classmethod
    def has(cls, *stages: str) -> bool:
        """Whether the class overrides one of `stages`."""
        return any(getattr(cls, stage) is not getattr(PositionalEncoding, stage) for stage in stages)

    @classmethod
    def only(cls, stage: str) -> bool:
        """Whether the class acts in `stage` and nowhere else."""
        return [s for s in OVERRIDABLE if cls.has(s)] == [stage]

    @property
    def context_length(self) -> int | None:
        """Context length in tokens that the encoding was asked to reach; None when it leaves the model's own."""
        return None

    def rope_parameters(self) -> dict[str, Any] | None:
        """The same scheme as entries of transformers' `config.rope_parameters`; None where transformers has no such scheme."""
        return None

    def frequencies(self) -> tuple[Tensor, float] | None:
        """Inverse frequencies [r/2] and the factor on cos and sin, where the encoding is a rotation by position * frequency alone."""
        return None

    def table_rows(self) -> Tensor | None:
        """The table [L,M], where the encoding adds row `pos` of one to the embeddings and does nothing else."""
        return None

    def adopt(self, table: Tensor) -> None:
        """Start from the table that the model was trained with, [L,M] by position or [N,H] by bucket, if it is one of this kind."""

    def check_positions(self, last: int) -> None:
        """Raise ValueError if position `last` is not defined."""

    def columns(self, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        """Where the bias is a product, but for what is the same for all keys of a query: the numbers of the heads [H] and keys [B,K].

        Kernels that add nothing to the scores can then have it as further columns (`attention.columns`).
        """
        raise NotImplementedError(f"the bias of {self.name} is no product of a number of the head and one of the key")

    def project(self) -> None:
        """Bring learned parameters back within their bounds: asked before every forward pass with gradients."""

    def reset_buffers(self) -> None:
        """Rebuild every non-persistent buffer from the geometry and the options."""

    def set_buffer(self, name: str, value: Tensor) -> None:
        """Hold `value` as a non-persistent buffer, on the device where an earlier one of that name lives."""
        old = self._buffers.get(name)
        device = value.device if old is None or old.is_meta else old.device
        self.register_buffer(name, value.to(device), persistent=False)

    def _apply(self, fn, recurse: bool = True):
        # `.half()` or `.to(bfloat16)` on the model must not round angles and slopes.
        super()._apply(fn, recurse)
        self.reset_buffers()
        return self

    # -- the dense definition -----------------------------------------------------------------------------------------

    def content_scores(
        self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, scaling: float | None = None, regions: list[Region] | None = None
    ) -> Tensor:
        """Scaled products [B,H,Q,K] of rotated queries and rotated keys, before any bias. The keys come as `cached_key` made them.

        Args:
            regions: those that hold these queries, where they are known; otherwise the encoding is asked.
        """
        scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
        regions = self.regions(q_pos, k_pos) if regions is None else regions
        scores = None
        for region in regions:
            part = products(*region.rotate(q, k, q_pos, k_pos)) * scaling
            if len(regions) > 1 or region.keys is not None:
                part = torch.where(region.pairs(q_pos, k_pos), part, -torch.inf if scores is None else scores)
            scores = part
        assert scores is not None
        return scores

    def bias_matrix(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """The bias stage as a tensor broadcastable to [B,H,Q,K], made for this call: the engine may write into it."""
        heads = torch.arange(self.geometry.num_heads, device=q_pos.device)[None, :, None, None]
        return self.bias(heads, q_pos[:, None, :, None], k_pos[:, None, None, :])

    def scores(
        self,
        q: Tensor,
        k: Tensor,
        q_pos: Tensor,
        k_pos: Tensor,
        scaling: float | None = None,
        state: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """The dense definition: what softmax sees, [B,H,Q,K], before any mask, in the precision of `q`.

        Args:
            q: queries [B,H,Q,D]. k: keys [B,G,K,D]. q_pos: [B,Q] and k_pos: [B,K], in tokens; [n,B,Q] and [n,B,K] on several axes.
            scaling: factor on the products; default D ** -0.5.
            state: of the keys, [B,A,K,n], for an encoding that has such; the queries are then those of the last keys.
            seen: which pairs meet, [B or 1,H or 1,Q,K] bool, for an encoding with `mix`; by default the queries are those of the last keys.
        """
        block = self.block(q, k, q_pos, k_pos, scaling, state, seen)
        q_pos, k_pos, stored, scaling = block.q_pos, block.k_pos, block.k, block.scaling
        met = self.has("meet")
        scores = products(*self.meet(block)) * scaling if met else self.content_scores(q, stored, q_pos, k_pos, scaling)
        if self.has("context_bias"):
            scores = scores + self.context_bias(q, stored, q_pos, k_pos, scaling).to(scores.dtype)
        if self.has("bias"):
            wide = torch.float64 if q.dtype == torch.float64 else q_pos.dtype
            scores = scores + self.bias_matrix(q_pos.to(wide), k_pos.to(wide)).to(scores.dtype)
        return self.mix(precise(scores, q), block).to(q.dtype) if self.has("mix") else scores

    def block(
        self,
        q: Tensor,
        k: Tensor,
        q_pos: Tensor,
        k_pos: Tensor,
        scaling: float | None = None,
        state: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> Block:
        """What the stages are asked about that see a `Block`, of all queries and keys; the arguments are those of `scores`."""
        scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
        stored, queries, keys = self.cached_key(k, k_pos), q.shape[2], k.shape[2]
        q_pos, k_pos, axes = (q_pos, k_pos, None) if self.axes == 1 else (q_pos[0], k_pos[0], q_pos)
        q_state, k_state = (None, None) if state is None else self.states(state, queries)
        seen = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries) if seen is None else seen
        return Block(q, stored, q_pos, k_pos, scaling, seen, q_state, k_state, axes)

    def states(self, state: Tensor, queries: int | Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What a `Block` has of the states [B,A,K,n] of all keys: those of the queries and those of the keys, or their sums.

        Args:
            queries: how many of the last keys are those of the queries, or the index [1 or B,Q] of each query's own key.
            real: [1 or B,K] bool: the keys that count.
        """
        if not self.caches_state:
            return (state[:, :, state.shape[2] - queries :] if isinstance(queries, int) else state), None
        if self.has("increments"):
            steps = self.increments(state)
            steps = steps if real is None else torch.where(real[:, None, :, None], steps, 0)
            state = steps.cumsum(2, dtype=widest(state.device))
            state = state - steps if self.sums_before else state
        if isinstance(queries, int):
            return state[:, :, state.shape[2] - queries :], state
        own = queries[:, None, :, None].expand(len(state), state.shape[1], -1, state.shape[3])
        return state.gather(2, own), state

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in getattr(self, "options", {}).items())


def trailing(own: Tensor, pos: Tensor, lookback: int, earlier: Tensor | None = None) -> Tensor:
    """States [B,A,Q,n] of tokens at `pos` [B,Q] beside those of the tokens before each, the nearest first: [B,A,Q,(1+lookback)*n].

    Args:
        earlier: those of the tokens before the first, [B,A,lookback,n]; by default there are none. Where there is none it is zero.
    """
    if earlier is None:
        earlier = own.new_zeros(*own.shape[:2], lookback, own.shape[3])
    every, parts = torch.cat((earlier, own), 2), [own]
    for back in range(1, lookback + 1):
        parts.append(torch.where((pos >= back)[:, None, :, None], every[:, :, lookback - back : every.shape[2] - back], 0))
    return torch.cat(parts, -1)


def products(q: Tensor, k: Tensor) -> Tensor:
    """q [B,H,Q,D] x k [B,G,K,D] -> [B,H,Q,K], each key head serving H / G query heads, without a copy of it for each."""
    return by_group(q, k.transpose(-1, -2))


def by_group(x: Tensor, shared: Tensor) -> Tensor:
    """x [B,H,Q,M] @ shared [B,G,M,N] -> [B,H,Q,N], each of the G serving H / G heads."""
    batch, heads, rows, width = x.shape
    return (x.reshape(batch, shared.shape[1], -1, width) @ shared).reshape(batch, heads, rows, shared.shape[-1])


def options_of(cls: Any) -> dict[str, Any]:
    """Keyword options of an encoding, or a mix of several, with their defaults."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


Composition = Callable[[Any, str, Geometry, dict[str, Any]], PositionalEncoding]
COMPOSITIONS: dict[str, Composition] = {}
"""Options of every encoding, the outermost first: each makes of its value, a name, a geometry and the other options an encoding
(`composing`)."""


def current(name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """An encoding and its options under the names that they have now; a warning says each that has changed."""
    name = ENCODINGS.current(name)
    return name, current_options(ENCODINGS[name], options)


def create(name: str, geometry: Geometry, **options: Any) -> PositionalEncoding:
    """Build one encoding on its own, without a model.

    Args:
        options: those of the encoding (`options_of`), and those of every encoding (`COMPOSITIONS`).

    Raises:
        ValueError: unknown name, unknown option, or a value the encoding does not accept.
    """
    name, options = current(name, options)
    cls = ENCODINGS[name]
    known = options_of(cls)
    for option in options:
        if option not in known and option not in COMPOSITIONS:
            takes = f"It takes {', '.join(known)}." if known else "It takes no options."
            hint = suggestion(option, [*known, *COMPOSITIONS])
            raise ValueError(f"encoding {name!r} has no option {option!r}.{hint} {takes} Every encoding takes {', '.join(COMPOSITIONS)}.")
    own = {option: value for option, value in options.items() if option in known}
    composed = {option: options[option] for option in COMPOSITIONS if options.get(option) is not None}
    if composed:
        outermost = next(iter(composed))
        encoding = COMPOSITIONS[outermost](composed.pop(outermost), name, geometry, own | composed)
    else:
        encoding = cls(geometry, **own)
    encoding.options = dict(options)
    encoding.reset_buffers()
    return encoding


def register(name: str, *, formerly: Iterable[str] = ()) -> Callable[[type[PositionalEncoding]], type[PositionalEncoding]]:
    """Class decorator that files an encoding under `name`, for `patch`, the command line and the tests.

    A class of the same name from the same place replaces the one before: a cell of a notebook is run twice.

    Args:
        formerly: names that it had, which go on working.

    Raises:
        ValueError: the name is taken, or is not snake_case; a class without a stage, or with a method that misspells one.
    """
    if not name.isidentifier() or name != name.lower():
        raise ValueError(f"an encoding's name is snake_case, got {name!r}")

    def decorator(cls: type[PositionalEncoding]) -> type[PositionalEncoding]:
        check_class(cls, PositionalEncoding)
        ENCODINGS.register(name, formerly=formerly)(cls)
        cls.name = name
        return cls

    return decorator
