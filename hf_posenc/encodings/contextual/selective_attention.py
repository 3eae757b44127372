from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..base import ENCODINGS, Block, Geometry, PositionalEncoding, create, precise, register
from ..options import count

INIT_STD = 0.02
CHUNK = 256
"""Keys whose votes are counted at once."""


@register("selective_attention")
class SelectiveAttention(PositionalEncoding):
    """Selective attention (Leviathan et al., 2024, arXiv:2410.02703, section 3).

    score(i, j) = s_ij - sum of max(0, u_t v_j / sqrt(n)) over j < t < i, with s the score under `base`: each token between key and query
    may vote that the key is needed no more, for all heads alike. u_t = U x_t and v_t = V x_t have n numbers and are of each layer, from
    what the layer's attention is given. No token votes about the token at position 0, which begins a text.

    Args:
        base: name of the encoding that turns queries and keys, "rope" and so on, or "nope".
        width: n. What is cached of a token is u and v.

    Needs training. For each block of queries, and for each token that is decoded, all u are multiplied with all v: with K tokens a step of
    decoding costs K^2 / 2 products of n numbers a layer, and what is known of a key changes with each token, so that no cache can hold it.

    Differs from the paper: there u and v are query and key of the layer's first head, and nothing is learned for them. To count the votes
    for the next token one needs the queries of all earlier ones, and a KV cache has their keys alone: so the votes have a head of their
    own, whose queries are cached too. U starts at zero, which leaves the scores to `base`. Tokens that are voted out stay in the cache.
    """

    per_layer = True
    rotary = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, base: str = "rope", width: int = 32):
        super().__init__(geometry)
        if not isinstance(base, str) or base not in ENCODINGS or not _turns(ENCODINGS[base]):
            raise ValueError(f"base of {self.name!r} is an encoding that turns queries and keys, such as 'rope', or 'nope', got {base!r}")
        self.base, self.starts_as = create(base, geometry), base
        self.u = nn.Parameter(torch.zeros(count("width", width, at_most=1 << 16), geometry.hidden_size))
        self.v = nn.Parameter(torch.randn_like(self.u) * INIT_STD)

    @property
    def context_length(self) -> int | None:
        return self.base.context_length

    def reset_buffers(self) -> None:
        self.base.reset_buffers()

    def project(self) -> None:
        self.base.project()

    def rotate(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        return self.base.rotate(q, k, q_pos, k_pos)

    def state(self, x: Tensor, pos: Tensor) -> Tensor:
        """u of each token, and v, which is zero where no token votes."""
        u, v = (F.linear(precise(x, x), precise(weight, x)) for weight in (self.u, self.v))
        return torch.cat((u, torch.where((pos == 0)[..., None], 0, v)), -1)[:, None]

    def mix(self, scores: Tensor, block: Block) -> Tensor:
        u, v = cast(Tensor, block.k_state).to(scores).chunk(2, -1)
        seen, index = cast(Tensor, block.seen), torch.arange(scores.shape[-1], device=scores.device)
        before = seen & (index < torch.where(seen, index, -1).amax(-1, keepdim=True))  # the query's own key is the last that it sees
        voters, parts = before.to(scores), []
        for start in range(0, len(index), CHUNK):
            # A text has as many votes as pairs of tokens: they are made again in the backward pass.
            part = voters[..., start:], u[:, :, start:], v[:, :, start : start + CHUNK]
            parts.append(checkpoint(_votes, *part, use_reentrant=False, preserve_rng_state=False))
        return scores - torch.cat(parts, -1)


def _turns(cls: type[PositionalEncoding]) -> bool:
    return cls.positionless or (cls.only("rotate") and cls.caches == "transformed")


def _votes(voters: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Sums [B,H or 1,Q,K] of the votes about keys with v [B,1,K,n], of the tokens with u [B,1,T,n] from the first of these keys on.

    Args:
        voters: [B or 1,H or 1,Q,T], 1 for each token that votes for a query.
    """
    votes = (u @ v.mT * u.shape[-1] ** -0.5).clamp(min=0)  # which has a gradient at 0 too, where all begin, and relu has none
    return voters @ votes.tril(-1)
