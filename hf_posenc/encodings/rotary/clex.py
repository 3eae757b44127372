from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Geometry, precise, register
from ..options import count, one_of, positive
from .by_length import RoPEByLength
from .rope import exponents

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "silu": F.silu}


@register("clex")
class CLEX(RoPEByLength):
    """Continuous length extrapolation (Chen et al., 2023, arXiv:2310.16450, section 3; DAMO-NLP-SG/CLEX).

    Logarithms z of the frequencies follow a learned differential equation in the scale t, from the model's own at t = 1:
    dz/dt = act((z + ln f_ntk(t)) W_up) W_down + d ln f_ntk / dt, with f_ntk(t) = (theta (2t - 1)^(r / (r - 2)))^(-2k/r).
    A query at position i sees keys turned with the frequencies of t = ceil((i + 1) / L), at most s, L the native context.

    Args:
        factor: s, the greatest scale.
        target_length: greatest context in tokens, instead of `factor`.
        width: hidden units a rotated dimension.
        activation: "tanh" or "silu".
        step: of the solver in t, Runge-Kutta of order 4.

    W_down is 0 at first: texts within L are as they were, and longer ones NTK-aware with the factor 2t - 1. Needs training on positions of
    all scales, such as randomized ones up to s L. Differs from the authors' code: t is that of each query rather than of the whole
    input, in training too, where theirs draws it at random; the NTK-aware part is not integrated but taken as it is.
    """

    data_dependent = True
    needs_training = "fine-tuning with positions up to the target length"

    def __init__(
        self,
        geometry: Geometry,
        *,
        factor: float | None = None,
        target_length: int | None = None,
        width: int = 1,
        activation: str = "tanh",
        step: float = 0.25,
    ):
        super().__init__(geometry, factor=factor, target_length=target_length)
        self.activation, self.step = (
            one_of("activation", activation, tuple(ACTIVATIONS)),
            positive("step", step, at_least=1e-3, at_most=1.0),
        )
        hidden = count("width", width, at_most=64) * self.dim
        self.up, self.down = nn.Parameter(torch.empty(self.dim // 2, hidden)), nn.Parameter(torch.zeros(hidden, self.dim // 2))
        nn.init.kaiming_uniform_(self.up, a=math.sqrt(5))
        self.kept: tuple[list, Tensor] | None = None

    def reset_buffers(self) -> None:
        super().reset_buffers()
        self.kept = None

    @property
    def scales(self) -> int:
        """How many whole values t takes."""
        return math.ceil(self.factor)

    def frequencies_for(self, pos: Tensor) -> Tensor:
        return F.embedding(self._row(pos), self.table().to(pos.device))

    def _row(self, pos: Tensor) -> Tensor:
        """t - 1 of queries at `pos`."""
        return (pos // self.geometry.max_positions).long().clamp(max=self.scales - 1)

    def told(self, begin: Tensor) -> Tensor:
        return self._row(begin)

    def rotate_region(self, told: Tensor, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        return self._rotate_by(F.embedding(told, self.table().to(q.device)), q, k, q_pos, k_pos)

    def changes(self, first: int, last: int) -> Iterable[int]:
        native = self.geometry.max_positions
        return range((first // native + 1) * native, min(last, (self.scales - 1) * native) + 1, native)

    def table(self) -> Tensor:
        """Frequencies at t = 1 .. s, [s,r/2]: without gradients, kept until the parameters change."""
        if (torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())) or self.up.is_inference():
            return self._solve()
        now = [(id(p), p._version) for p in self.parameters()]
        if self.kept is None or self.kept[0] != now:
            self.kept = now, self._solve()
        return self.kept[1]

    def _solve(self) -> Tensor:
        up, down, act = precise(self.up, self.up), precise(self.down, self.down), ACTIVATIONS[self.activation]
        native = precise(self.inv_freq, self.up).log()[None]
        fall = exponents(self.dim, native.device).to(native) * (self.dim / max(self.dim - 2, 1))  # of ln f_ntk with ln(2t - 1)

        def slope(t: float, y: Tensor) -> Tensor:
            """Of y = z - ln f_ntk + ln f."""
            return act((y + native - 2 * math.log(2 * t - 1) * fall) @ up) @ down

        steps = math.ceil(1 / self.step)
        y, h, found = native, 1 / steps, [native]
        for n in range(steps * (self.scales - 1)):
            t = 1 + n * h
            s1 = slope(t, y)
            s2 = slope(t + h / 2, y + h / 2 * s1)
            s3 = slope(t + h / 2, y + h / 2 * s2)
            y = y + h / 6 * (s1 + 2 * s2 + 2 * s3 + slope(t + h, y + h * s3))
            if (n + 1) % steps == 0:
                found.append(y - math.log(2 * (t + h) - 1) * fall)
        return torch.cat(found).exp()
