"""Every path against the definition in float64 on the CPU: forward, backward, and one token after a cache."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attention.entry import posenc_attention
from ..encodings import PositionalEncoding
from ..encodings.definition import attention
from .rows import Rows, is_flash, layouts
from .subject import PASSES, Subject

TOLERANCE = {
    torch.float64: {"atol": 1e-9, "rtol": 1e-9},
    torch.float32: {"atol": 2e-5, "rtol": 2e-4},
    torch.bfloat16: {"atol": 4e-2, "rtol": 4e-2},
    torch.float16: {"atol": 6e-3, "rtol": 6e-3},
}
"""What outputs may be off by."""
SLACK = 4.0
"""Gradients are divided by the greatest of them, where that is above 1, and may be off by so many times as much."""


@dataclass(frozen=True)
class Check:
    """One pass through a path.

    Args:
        backend: of the attention. encoding, path, why: what is computed, how, and why so. rows: how tokens lie. what: kind of pass.
        error: the greatest difference, of the tolerance; None where there is none, or it is no number.
        failure: what is wrong, in a line; empty if nothing is.
    """

    backend: str
    encoding: str
    path: str
    why: str
    rows: str
    what: str
    error: float | None = None
    failure: str = ""


@dataclass(frozen=True)
class Sample:
    """Numbers that go in: queries [B,H,L,D], keys, values [B,G,L,D], sinks [H] where there are any; the weights [B,L,H,D] of a loss."""

    inputs: list[Tensor]
    weight: Tensor

    @classmethod
    def of(cls, subject: Subject, rows: Rows) -> Sample:
        states, heads = subject.states(*rows.start.shape), subject.geometry.num_heads
        sinks = [torch.linspace(-1, 1, heads).to(subject.dtype)] if subject.sinks else []
        weight = torch.randn(states[0].transpose(1, 2).shape, generator=torch.Generator().manual_seed(2))
        return cls(states + sinks, weight * rows.real[..., None, None])

    def gradients(self, output: Tensor, inputs: Sequence[Tensor], encoding: PositionalEncoding) -> list[Tensor]:
        """Of a loss, by the inputs and by every learned parameter."""
        learned = [p for p in encoding.parameters() if p.requires_grad]
        loss = (output * self.weight.to(output)).sum()
        return list(torch.autograd.grad(loss, [*inputs, *learned], allow_unused=True, materialize_grads=True))


def examine(subject: Subject, label: str, encoding: PositionalEncoding) -> Iterator[Check]:
    """Every pass with every layout of an encoding."""
    for rows in layouts(subject.window, not is_flash(subject.config)):
        sample = Sample.of(subject, rows)
        wanted, gradients = by_definition(subject, encoding, rows, sample)
        for what in PASSES:
            if what == "decoding" and rows.packed:
                continue  # documents are packed where there is no cache
            choice = subject.choice(encoding, rows.start.shape[1], what)
            about = (subject.backend, label, *choice, rows.name, what)
            try:
                error = difference(subject, encoding, rows, sample, what, wanted, gradients)
            except torch.OutOfMemoryError as lacking:
                raise ValueError(f"{subject.device} has too little free memory to examine anything ({first_line(lacking)})") from None
            except Exception as raised:  # whatever a compiler or a driver has to say
                yield Check(*about, failure=first_line(raised))
                if not answers(subject.device):
                    return
                continue
            if error <= 1:
                yield Check(*about, error=error)
            elif error < float("inf"):
                yield Check(*about, error=error, failure=f"off by {error:.3g} times the tolerance")
            else:
                yield Check(*about, failure="the result has numbers that are not finite")


def first_line(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def by_definition(subject: Subject, encoding: PositionalEncoding, rows: Rows, sample: Sample) -> tuple[Tensor, list[Tensor]]:
    """Output [B,L,H,D] and gradients."""
    twin = copy.deepcopy(encoding).to("cpu", torch.float64)
    inputs = [x.double().requires_grad_() for x in sample.inputs]
    q, k, v, *sinks = inputs
    more: dict[str, Any] = {"state": subject.state(twin, k), "softcap": subject.softcap, "sinks": sinks[0] if sinks else None}
    with torch.enable_grad():
        output = attention(twin, q, k, v, rows.pos, rows.pos, rows.seen, **more)
        return output.detach(), sample.gradients(output, inputs, twin)


def difference(
    subject: Subject, encoding: PositionalEncoding, rows: Rows, sample: Sample, what: str, wanted: Tensor, gradients: list[Tensor]
) -> float:
    """How far a pass is from what is wanted, of the tolerance."""
    learning, tolerance, real = what == "backward", TOLERANCE[subject.dtype], rows.real
    inputs = [x.to(subject.device).requires_grad_(learning) for x in sample.inputs]
    q, k, v, *sinks = inputs
    pos = rows.pos
    if what == "decoding":
        q, pos, wanted, real = q[:, :, -1:], pos[:, -1:], wanted[:, -1:], real[:, -1:]
    more: dict[str, Any] = {"softcap": subject.softcap, "s_aux": sinks[0] if sinks else None, "sliding_window": rows.window}
    mask, site = rows.mask(subject.config, q.detach(), k.detach()), subject.site(encoding)
    k, handed = subject.handed(encoding, q, k, rows.pos.to(subject.device), cached=what == "decoding")
    more |= handed
    with torch.set_grad_enabled(learning):
        output = posenc_attention(subject.backend, site, q, k, v, mask, position_ids=pos.to(subject.device), **more)[0]
        found = sample.gradients(output.double(), inputs, encoding) if learning else []
    errors = [of_tolerance(output.detach().cpu()[real], wanted[real], tolerance)]
    for one, other in zip(found, gradients if learning else [], strict=True):
        scale = max(1.0, float(other.abs().max())) * SLACK
        errors.append(of_tolerance(one.detach().cpu() / scale, other / scale, tolerance))
    return float(torch.stack(errors).max())


def of_tolerance(found: Tensor, wanted: Tensor, tolerance: dict[str, float]) -> Tensor:
    """The greatest difference, of what it may be there."""
    return ((found.double() - wanted).abs() / (tolerance["atol"] + tolerance["rtol"] * wanted.abs())).max()


def answers(device: torch.device) -> bool:
    """Whether a device still computes: after some errors it does not, until the process is started anew."""
    try:
        return torch.zeros(1, device=device).tolist() == [0.0]
    except RuntimeError:
        return False
