"""The contract of a positional encoding. Nothing below this package knows transformers."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..registry import Registry, suggestion

ENCODINGS: Registry[type[PositionalEncoding]] = Registry("encoding")
STAGES = ("embed", "rotate", "bias", "regions")


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What an encoding may know about the model it is placed in.

    Args:
        hidden_size: width M of the residual stream.
        num_heads: query heads H.
        num_kv_heads: key-value heads G; default H.
        head_dim: width D of one head; default M / H.
        rotary_dim: dimensions of a head that the native RoPE rotates; default D.
        theta: native RoPE base.
        interleaved: RoPE pairs dimensions (0, 1), (2, 3) ... instead of (0, r/2), (1, r/2 + 1) ...
        max_positions: context length the model was trained for, in tokens.
        num_layers: layers in the model.
        layer_types: per layer, "full_attention" or "sliding_attention"; default all full.
        rope_type: native scaling scheme under its transformers name; "default" when there is none.
        rope_parameters: parameters of that scheme, as (key, value) pairs.
        frequencies: native inverse frequencies in radians per token, float32 values; default theta^(-2k/r).
        attention_factor: native factor on cos and sin.
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int = 0
    head_dim: int = 0
    rotary_dim: int = 0
    theta: float = 10_000.0
    interleaved: bool = False
    max_positions: int = 2048
    num_layers: int = 1
    layer_types: tuple[str, ...] = ()
    rope_type: str = "default"
    rope_parameters: tuple[tuple[str, Any], ...] = ()
    frequencies: tuple[float, ...] | None = None
    attention_factor: float = 1.0

    def __post_init__(self):
        fill = {
            "num_kv_heads": self.num_heads,
            "head_dim": self.hidden_size // max(self.num_heads, 1),
            "layer_types": ("full_attention",) * self.num_layers,
        }
        for name, value in fill.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
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


class Region(NamedTuple):
    """A set of (query, key) pairs that share one way of rotating. Regions of one encoding are disjoint and cover every pair.

    Args:
        rotate: (q [B,H,Q,D], k [B,G,K,D], q_pos [B,Q], k_pos [B,K]) -> rotated q, k.
        rows: [B,Q] bool, the queries that have pairs here; None for all.
        contains: (q_pos, k_pos), broadcastable -> bool, the pairs of those rows that belong here; None for all.
    """

    rotate: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    rows: Tensor | None = None
    contains: Callable[[Tensor, Tensor], Tensor] | None = None


def precise(x: Tensor, like: Tensor) -> Tensor:
    """`x` in float32, or in float64 when `like` is float64: the precision of angles and biases."""
    return x.to(like.device, torch.float64 if like.dtype == torch.float64 else torch.float32)


class PositionalEncoding(nn.Module):
    """Base of all encodings: override one stage, rarely two; every other stage is the identity.

    Shapes: B batch, H query heads, G key-value heads, Q queries, K keys, D head width, M model width. Positions are
    integer tensors in tokens. Learned parameters are ordinary `nn.Parameter`s; everything else a stage needs is rebuilt
    from the geometry by `reset_buffers`, in float32 whatever the dtype of the model.
    """

    name: ClassVar[str]
    options: dict[str, Any]
    relative: ClassVar[bool] = False
    """The score depends on positions only through the distance from query to key."""
    rotary: ClassVar[bool] = False
    """Stands on the rotation geometry of the model: its theta, frequencies and rotated width."""
    caches: ClassVar[str] = "transformed"
    """What the KV cache may hold: the "transformed" key, or only the "raw" one."""
    any_length: ClassVar[bool] = True
    """Defined at every position, whatever the context length it was built for."""
    needs_training: ClassVar[str] = ""
    """What a pretrained model must be trained for after the swap; empty when it works at once."""

    def __init__(self, geometry: Geometry):
        super().__init__()
        self.geometry = geometry

    # -- stages -------------------------------------------------------------------------------------------------------

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        """Put positions `pos` [B,Q] into the token embeddings `x` [B,Q,M]."""
        return x

    def rotate(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        """Transform queries [B,H,Q,D] at `q_pos` [B,Q] and keys [B,G,K,D] at `k_pos` [B,K]."""
        return q, k

    def bias(self, h: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """Number added to the scaled score of head `h`, elementwise over broadcastable index tensors.

        It may be asked about keys after the query (k_pos > q_pos): any finite answer will do, a mask follows.
        """
        return torch.zeros((), device=q_pos.device)

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        """Split the score matrix of `q_pos` [B,Q] x `k_pos` [B,K] into parts that rotate differently."""
        return [Region(self.rotate)]

    # -- what the engine asks -----------------------------------------------------------------------------------------

    @classmethod
    def has(cls, stage: str) -> bool:
        """Whether the class overrides `stage`."""
        return getattr(cls, stage) is not getattr(PositionalEncoding, stage)

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
        """Start from the position table [L,M] that the model was trained with."""

    def check_positions(self, last: int) -> None:
        """Raise ValueError if position `last` is not defined."""

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

    def content_scores(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, scaling: float | None = None) -> Tensor:
        """Scaled products [B,H,Q,K] of rotated queries and keys, before any bias."""
        scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
        scores = None
        for region in self.regions(q_pos, k_pos):
            part = _products(*region.rotate(q, k, q_pos, k_pos)) * scaling
            here = _pairs(region, q_pos, k_pos)
            scores = part if scores is None else torch.where(here, part, scores)
        assert scores is not None
        return scores

    def bias_matrix(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """The bias stage as a tensor broadcastable to [B,H,Q,K]."""
        heads = torch.arange(self.geometry.num_heads, device=q_pos.device)[None, :, None, None]
        return self.bias(heads, q_pos[:, None, :, None], k_pos[:, None, None, :])

    def scores(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, scaling: float | None = None) -> Tensor:
        """The dense definition: what softmax sees, [B,H,Q,K], before any mask, in the precision of `q`.

        Args:
            q: queries [B,H,Q,D]. k: keys [B,G,K,D]. q_pos: [B,Q] and k_pos: [B,K], in tokens.
            scaling: factor on the products; default D ** -0.5.
        """
        scores = self.content_scores(q, k, q_pos, k_pos, scaling)
        if self.has("bias"):
            wide = torch.float64 if q.dtype == torch.float64 else q_pos.dtype
            scores = scores + self.bias_matrix(q_pos.to(wide), k_pos.to(wide)).to(scores.dtype)
        return scores

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in getattr(self, "options", {}).items())


def _products(q: Tensor, k: Tensor) -> Tensor:
    """q [B,H,Q,D] x k [B,G,K,D] -> [B,H,Q,K], each key head serving H / G query heads."""
    return q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-1, -2)


def _pairs(region: Region, q_pos: Tensor, k_pos: Tensor) -> Tensor:
    here = torch.ones((), dtype=torch.bool, device=q_pos.device)
    if region.rows is not None:
        here = here & region.rows[:, None, :, None]
    if region.contains is not None:
        here = here & region.contains(q_pos[:, None, :, None], k_pos[:, None, None, :])
    return here


def options_of(cls: type[PositionalEncoding]) -> dict[str, Any]:
    """Keyword options of an encoding with their defaults."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def create(name: str, geometry: Geometry, **options: Any) -> PositionalEncoding:
    """Build one encoding on its own, without a model.

    Raises:
        ValueError: unknown name, unknown option, or a value the encoding does not accept.
    """
    cls = ENCODINGS[name]
    known = options_of(cls)
    for option in options:
        if option not in known:
            takes = f"It takes {', '.join(known)}." if known else "It takes no options."
            raise ValueError(f"encoding {name!r} has no option {option!r}.{suggestion(option, list(known))} {takes}")
    encoding = cls(geometry, **options)
    encoding.options = dict(options)
    encoding.reset_buffers()
    return encoding


def register(name: str) -> Callable[[type[PositionalEncoding]], type[PositionalEncoding]]:
    """Class decorator that files an encoding under `name`, for `patch`, the command line and the tests.

    Raises:
        ValueError: the name is taken, or is not snake_case.
    """
    if not name.isidentifier() or name != name.lower():
        raise ValueError(f"an encoding's name is snake_case, got {name!r}")

    def decorator(cls: type[PositionalEncoding]) -> type[PositionalEncoding]:
        ENCODINGS.register(name)(cls)
        cls.name = name
        return cls

    return decorator


def positive(name: str, value: Any, at_least: float = 0.0) -> float:
    """`value` as a finite float above zero and not below `at_least`.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0 or value < at_least:
        bound = f"at least {at_least:g}" if at_least else "above 0"
        raise ValueError(f"{name} must be a finite number {bound}, got {value!r}")
    return float(value)


def count(name: str, value: Any, at_least: int = 1) -> int:
    """`value` as an integer not below `at_least`.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, got {value!r}")
    return value
