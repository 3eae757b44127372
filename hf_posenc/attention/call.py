"""One call of an attention function, as the paths see it."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from ..encodings import Block, PositionalEncoding, Region
from ..encodings.base import has_values
from .layout import Layout
from .masks import Mask


@dataclasses.dataclass
class Call:
    """What a patched layer asks for.

    Attributes:
        query: [B,H,Q,D]. key: [B,G,K,D or more], as `cached_key` made it. value: [B,G,K,V].
        mask: in the form that the backend takes.
        kwargs: what transformers passes to a backend beside `scaling`.
        backend: the attention that the model was loaded with. regional: the encoding has regions with bounds here.
        avoided: paths that have failed on this machine.
        whole: the call as the stages see it that ask for a `Block`, with queries and keys that have not met; None where there is no such.
        met: `query` and `key` are what the stage `meet` has made of them, ready for their product.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Mask
    encoding: PositionalEncoding
    layout: Layout
    scaling: float
    kwargs: dict
    backend: str = "sdpa"
    regional: bool = False
    avoided: frozenset[str] = frozenset()
    whole: Block | None = None
    met: bool = False

    @property
    def regions(self) -> list[Region]:
        """How queries and keys are rotated."""
        return [Region(as_they_are)] if self.met else self.layout.regions(self.encoding)

    @property
    def place(self) -> str:
        """Type of the device; "meta" too where shapes alone are worked out."""
        return self.query.device.type if has_values(self.query) else "meta"

    @property
    def dtype(self) -> torch.dtype:
        return self.query.dtype

    @property
    def learning(self) -> bool:
        return torch.is_grad_enabled()

    @property
    def dropout(self) -> float:
        return self.kwargs.get("dropout", 0.0) if self.module.training else 0.0

    @property
    def fractional(self) -> bool:
        return self.layout.q_pos.is_floating_point()

    @property
    def softcap(self) -> float | None:
        return self.kwargs.get("softcap")

    @property
    def sinks(self) -> Tensor | None:
        return self.kwargs.get("s_aux")

    @property
    def has_plain_softmax(self) -> bool:
        """Nothing but a bias stands between the products and the weights."""
        return not self.dropout and self.softcap is None and self.sinks is None

    @property
    def tileable(self) -> bool:
        """Whether PyTorch's fused CPU kernel, which returns the log-sum-exp, can do this in causal segments."""
        same_width = self.query.shape[-1] == self.value.shape[-1]
        return self.query.device.type == "cpu" and self.has_plain_softmax and same_width and self.layout.segments is not None


def as_they_are(q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
    """A rotation by nothing."""
    return q, k
