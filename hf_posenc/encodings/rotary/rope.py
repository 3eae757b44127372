from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..base import Geometry, PositionalEncoding, at_hand, precise, register, widest
from ..options import LARGEST_BASE, positive

Place = Callable[[Tensor], Tensor]
"""Positions of tokens, in float64 and of any shape -> the positions, whole or not, that they are turned to; one for each pair of
dimensions along a last axis, which may be added."""
KEPT_TOKENS = 2048
BY_LENGTH = ("dynamic", "longrope")
"""Native schemes whose frequencies change with the length of the text."""


def is_fixed(parameters: Mapping[str, Any]) -> bool:
    """Whether the frequencies that native parameters tell are those of any length."""
    short, long = (torch.tensor(parameters.get(name) or ()) for name in ("short_factor", "long_factor"))
    kind = parameters.get("rope_type", "default")
    return kind not in BY_LENGTH or (kind == "longrope" and torch.equal(short, long))


def power_frequencies(theta: float, dim: int) -> Tensor:
    """theta^(-2k/dim) for k = 0 .. dim/2 - 1, in radians per token, float32."""
    return 1.0 / (theta ** exponents(dim))


def exponents(dim: int, device: torch.device | None = None) -> Tensor:
    """2k/dim for k = 0 .. dim/2 - 1, float32."""
    return torch.arange(0, dim, 2, dtype=torch.int64, device=device).float() / dim


def once(pos: Tensor, key: tuple, make: Callable[[], Any]) -> Any:
    """What `make` computes from a tensor of positions: kept with the tensor, if short, for other layers that ask with the same key."""
    learned = any(isinstance(x, Tensor) and x.requires_grad for x in key)
    if torch.compiler.is_compiling() or pos.is_inference() or learned or pos.numel() > KEPT_TOKENS:
        return make()
    kept = vars(pos).setdefault("posenc_kept", {})
    if key not in kept or kept[key][0] != pos._version:
        kept[key] = pos._version, make()
    return kept[key][1]


def cos_sin(pos: Tensor, inv_freq: Tensor, factor: float | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine [B,1,T,n] of the angles pos [B,T] or [B,T,n] * inv_freq [n], times `factor`, in the precision that suits `like`.

    A `factor` for each token is [B,1,T,1]. `inv_freq` is [G,n] where each key-value head has its own, and so are then the cosines:
    [B,G,T,n]; it is [B,1,1,n] where each row of the batch has its own. `pos` is [B,T,n] where each pair has its own.
    """
    wide = precise(like[..., :0], like).dtype
    factor = precise(factor, like) if isinstance(factor, Tensor) else factor
    where = _exact(pos)[:, None] if pos.ndim == 3 else _exact(pos)[:, None, :, None]
    angle = where * precise(inv_freq[:, None] if inv_freq.ndim == 2 else inv_freq, like)
    return angle.cos().to(wide) * factor, angle.sin().to(wide) * factor


def turn_pairs(x: Tensor, cos: Tensor, sin: Tensor, geometry: Geometry) -> Tensor:
    """Turn 2n dimensions of x [B,H,T,D], those that the model rotates itself, by the angles of `cos_sin`.

    Where these are [B,G,T,n], each serves H / G heads that follow each other.
    """
    n = 2 * cos.shape[-1]
    if 1 < cos.shape[1] < x.shape[1]:
        cos, sin = (angle.repeat_interleave(x.shape[1] // cos.shape[1], 1) for angle in (cos, sin))
    sin = -sin if geometry.backwards else sin
    if geometry.rotates_last and n < x.shape[-1]:
        return torch.cat((x[..., :-n], _turned(x[..., -n:], cos, sin, geometry.interleaved)), -1)
    turned = _turned(x[..., :n], cos, sin, geometry.interleaved)
    return turned if n == x.shape[-1] else torch.cat((turned, x[..., n:]), -1)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    wide, half = precise(x, x), cos.shape[-1]
    a, b = (wide[..., ::2], wide[..., 1::2]) if interleaved else (wide[..., :half], wide[..., half:])
    pairs = a * cos - b * sin, b * cos + a * sin
    turned = torch.stack(pairs, -1).flatten(-2) if interleaved else torch.cat(pairs, -1)
    return turned.to(x.dtype)


def _exact(pos: Tensor) -> Tensor:
    """Positions as wide as can be where float32 might round them; elsewhere as they are, for the angles of transformers to the bit."""
    small = at_hand(pos) and not pos.is_floating_point() and (not pos.numel() or int(pos.max()) < 1 << 24)
    return pos if small or pos.is_floating_point() else pos.to(widest(pos.device))


@register("rope")
class RoPE(PositionalEncoding):
    """Rotary position embedding (Su et al., 2021, arXiv:2104.09864, eq. 34).

    q_i, k_j -> R(i) q_i, R(j) k_j with R(t) turning pair k by t * theta^(-2k/r).

    Without options the model's own frequencies are kept, its own scaling included, so the model computes what it did.

    Args:
        theta: base of the frequencies; default the model's own, or 10000 where it has none.
        partial: fraction of the head that is rotated, the exponent's denominator shrinking with it (GPT-NeoX
            `rotary_pct`); default the model's own, or the whole head.

    Needs training where the model was trained with other positions.
    """

    inv_freq: Tensor
    relative = True
    rotary = True
    needs_training = "fine-tuning, where the model was trained with other positions or another theta"

    def __init__(self, geometry: Geometry, *, theta: float | None = None, partial: float | None = None):
        super().__init__(geometry)
        self.theta = geometry.theta if theta is None else positive("theta", theta, at_most=LARGEST_BASE)
        self.dim = geometry.rotary_dim if partial is None else _partial_dim(geometry.head_dim, partial)
        self.attention_factor = 1.0
        if self.dim % 2:
            raise ValueError(f"{self.name} turns pairs of dimensions, but the rotated width is odd: {self.dim}. Use an even head_dim.")
        if theta is None and partial is None:
            self.attention_factor = geometry.attention_factor
        elif geometry.rope_type != "default":
            raise ValueError(scaled_already(self.name, geometry))

    def inverse_frequencies(self) -> Tensor:
        """Radians per token of each pair, [r/2] float32. Variants override this and nothing else.

        An encoding that is `per_layer` may have other ones for each key-value head, [G,r/2]: the queries of its group are turned alike.
        """
        if self.theta == self.geometry.theta and self.dim == self.geometry.rotary_dim:
            return native_frequencies(self.geometry)
        return power_frequencies(self.theta, self.dim)

    def reset_buffers(self) -> None:
        self.set_buffer("inv_freq", self.inverse_frequencies())

    def rotate(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        return self.rotate_one(q, q_pos), self.rotate_one(k, k_pos)

    def angles(self, pos: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """What `cos_sin` gives for tokens at `pos` [1 or B,T], in the precision that suits `like`: [B,1 or G,T,r/2]."""
        return cos_sin(pos, self.inv_freq, self.attention_factor, like)

    def rotate_one(self, x: Tensor, pos: Tensor, place: Place | None = None) -> Tensor:
        """x [B,H,T,D] at `pos` [1 or B,T], or at `place` of it."""
        if not x.shape[2]:
            return x

        def turns() -> tuple[Tensor, Tensor]:
            return self.angles(pos if place is None else place(pos.to(widest(pos.device))), x)

        alone = self.per_layer or next(self.parameters(), None) is not None  # no other layer will ask, or they may have changed
        cos, sin = turns() if alone else once(pos, (self, self.inv_freq, place, x.dtype), turns)
        return turn_pairs(x, cos, sin, self.geometry)

    def frequencies(self) -> tuple[Tensor, float] | None:
        return (self.inv_freq, self.attention_factor) if self.inv_freq.ndim == 1 else None

    def rope_parameters(self):
        if self.geometry.rope_type != "default":
            return dict(self.geometry.rope_parameters)
        partial = {} if self.dim == self.geometry.rotary_dim else {"partial_rotary_factor": self.dim / self.geometry.head_dim}
        return {"rope_type": "default", "rope_theta": self.theta} | partial


def native_frequencies(geometry: Geometry) -> Tensor:
    """The frequencies the model was built with, [r/2] float32."""
    if geometry.rope_type in BY_LENGTH:
        raise ValueError(
            f"the RoPE of this model depends on the length of the text ({geometry.rope_type!r}), so that no other rotation "
            f"can stand on it. Load the model with {_unscaled(geometry)} first."
        )
    if geometry.frequencies is not None:
        return torch.tensor(geometry.frequencies, dtype=torch.float32)
    return power_frequencies(geometry.theta, geometry.rotary_dim)


def scaled_already(name: str, geometry: Geometry) -> str:
    """Why a second scaling is refused."""
    remedy = "Load" if geometry.rope_type in BY_LENGTH else "Use 'linear' or a remap such as 'rerope', which do, or load"
    return (
        f"this model already scales its RoPE ({geometry.rope_type!r}), and {name!r} does not compose with that. "
        f"{remedy} the model with {_unscaled(geometry)} first."
    )


def _unscaled(geometry: Geometry) -> str:
    return f"config.rope_parameters = {{'rope_type': 'default', 'rope_theta': {geometry.theta:g}}}"


def _partial_dim(head_dim: int, partial: float) -> int:
    if positive("partial", partial) > 1:
        raise ValueError(f"partial is a fraction of the head, at most 1, got {partial!r}")
    dim = int(head_dim * partial)
    if not dim or dim % 2:
        raise ValueError(f"partial = {partial!r} of {head_dim} dimensions rotates {dim} of them; it must be an even number of at least 2")
    return dim
