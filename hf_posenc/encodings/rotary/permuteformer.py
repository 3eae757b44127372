from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base import Geometry, PositionalEncoding, precise, register
from ..options import count

LARGEST_SEED = (1 << 64) - 1


@register("permuteformer")
class PermuteFormer(PositionalEncoding):
    """PermuteFormer (Chen, 2021, arXiv:2109.02377, section 3; cpcp1998/PermuteFormer).

    q_i, k_j -> P^i q_i, P^j k_j with a random permutation P of the dimensions for each key-value head, so that the product depends on
    P^(i - j); and weights decay by r_h^(i - j), which is ln r_h (i - j) beside the score, with r_h = sigmoid(2 + 3 h / H).

    Args:
        seed: of the permutations; default the authors'. All layers have the same.

    Needs pretraining. Differs from the paper: softmax is in the place of the positive features of a Performer, with exp(q k) for their
    product; heads that share a key share P.
    """

    relative = True
    needs_training = "pretraining"
    members: Tensor
    place: Tensor

    def __init__(self, geometry: Geometry, *, seed: int = 0xDEADBEEFDEADBEEF):
        super().__init__(geometry)
        self.seed = count("seed", seed, 0, LARGEST_SEED)

    def permutations(self) -> Tensor:
        """Of each key-value head [G,D]: dimension x of a vector becomes that of number P[x]."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        width = self.geometry.head_dim
        heads = [torch.randperm(width, generator=generator, device="cpu") for _ in range(self.geometry.num_kv_heads)]
        return torch.stack(heads).to(torch.get_default_device())

    def reset_buffers(self) -> None:
        """The dimensions of each head, cycle by cycle [G,D]; of each: its number in its cycle, where that begins, its length [3,G,D]."""
        members, place = zip(*[_cycles(p) for p in self.permutations()], strict=True)
        self.set_buffer("members", torch.stack(members))
        self.set_buffer("place", torch.stack(place, 1))

    def rotate(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        return self._permuted(q, q_pos), self._permuted(k, k_pos)

    def bias(self, h: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        rate = F.logsigmoid(2 + precise(3 * h, q_pos) / self.geometry.num_heads)
        return rate * (q_pos - k_pos).abs()

    def _permuted(self, x: Tensor, pos: Tensor) -> Tensor:
        """P^t x of x [B,H,T,D] at t = `pos` [1 or B,T]."""
        number, first, length = self.place[:, None, :, None]  # [1,G,1,D] each
        at = first + (number + pos.long()[:, None, :, None]) % length
        index = self.members[None, :, None].expand(len(at), -1, at.shape[2], -1).gather(-1, at)
        index = index.repeat_interleave(x.shape[1] // index.shape[1], 1)
        return x.gather(-1, index.expand(x.shape))


def _cycles(permutation: Tensor) -> tuple[Tensor, Tensor]:
    """The dimensions [D], cycle by cycle from the least of each; of each: its number, where its cycle begins, its length [3,D]."""
    x = torch.arange(len(permutation), device=permutation.device)
    powers = [x]
    while len(powers) <= len(x):
        powers.append(permutation[powers[-1]])
    orbits = torch.stack(powers)  # [D+1,D]: P^t x
    least = orbits.amin(0)
    number = (orbits[:, least] == x).int().argmax(0)
    length = (orbits[1:] == x).int().argmax(0) + 1
    first = (least[:, None] > least).sum(1)
    return (first + number).argsort(), torch.stack([number, first, length])
