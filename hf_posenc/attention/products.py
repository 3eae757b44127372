"""Attention that a family writes down itself, off the interface: the product of queries and keys is taken out of its hands, and no more.

While the forward of such an attention module runs, the first product of two batches of matrices in it, which are its queries and its
keys, gives the scores of the encoding instead; and a call of PyTorch's fused attention goes through the attention function of this
package. Mask, softmax, dropout and cache stay those of the family. torch.compile breaks its graph around each of them;
torch.export cannot follow, and says so.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from ..encodings import PositionalEncoding
from . import probe
from .cached import ENCODED, by_name
from .choice import Asked, Choice, choose
from .entry import posenc_attention, posenc_scores
from .masks import Mask
from .probe import Handed
from .seam import Interface

PRODUCTS = {torch.matmul, Tensor.matmul, torch.bmm, Tensor.bmm, torch.baddbmm, Tensor.baddbmm}
FUSED = "sdpa"
BEYOND = ("state", "normalise", "attended", "value", "embed_text", "locate")
"""Stages that act on more than the products."""


class Products(Interface):
    """The product of queries and keys in the forward of an attention module, or its call of PyTorch's fused attention."""

    def __str__(self) -> str:
        return "a product of queries and keys"

    scores = ("eager", FUSED)
    flash = ()

    def scale(self, attention: Any, width: int) -> float:
        """What the family multiplies the products of heads of this width with, after it has made them."""
        return 1.0

    def mask(self, arguments: Mapping[str, Any]) -> Mask:
        """What an attention module is told about visible keys, as [B,1,Q,K] bool or numbers to add."""
        return arguments.get("attention_mask")

    def implementation(self, backend: str) -> str:
        return backend

    def tried_with(self, backend: str) -> str:
        return backend

    def hook(self, attention: nn.Module) -> list[Any]:
        enter = attention.register_forward_pre_hook(Enter(self), with_kwargs=True)
        return [enter, attention.register_forward_hook(Leave(), always_call=True, prepend=True)]

    def around(self, hook: Any) -> Any:
        return Uncompiled(hook)

    def check(self, encoding: PositionalEncoding) -> None:
        if found := [stage for stage in BEYOND if encoding.has(stage)]:
            raise ValueError(
                f"{encoding.name!r} needs the stage {found[0]!r}, which this family has no place for: it writes its attention "
                "down, and only the products of queries and keys can be changed there"
            )
        width, pos = encoding.geometry.head_dim, torch.zeros(1, 1, dtype=torch.long)
        with torch.device("cpu"):
            key = torch.zeros(1, encoding.geometry.num_kv_heads, 1, width)
        if encoding.cached_key(key.to(_device(encoding)), pos.to(_device(encoding))).shape[-1] != width:
            raise ValueError(f"{encoding.name!r} keeps a state beside each key, and this family takes keys of its own width alone")

    def choose(self, encoding: PositionalEncoding, asked: Asked) -> Choice:
        if asked.backend == FUSED:
            return choose(encoding, asked)
        return Choice("scores", "all scores are written down, as this family does: those of the encoding in place of its own products")

    @contextmanager
    def looking(self, config: Any, attentions: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Handed]]:
        with ExitStack() as handles, probe.looking() as seen:
            for attention in attentions:
                for handle in [] if "posenc_site" in vars(attention) else self.hook(attention):
                    handles.callback(handle.remove)
            yield seen


class Divided(Products):
    """Products that the family divides by the root of the width of a head."""

    def scale(self, attention: Any, width: int) -> float:
        return width**-0.5


def _device(encoding: PositionalEncoding) -> torch.device:
    return next((x.device for x in (*encoding.parameters(), *encoding.buffers())), torch.device("cpu"))


# -- the forward of one attention module --------------------------------------------------------------------------------


class _Entered(threading.local):
    """The attention modules whose forward a thread is in, the innermost last."""

    def __init__(self) -> None:
        self.stack: list[tuple[nn.Module, Forward]] = []


_entered = _Entered()


def _leave_interrupted() -> None:
    """Take out what an interrupt (Ctrl-C) has left in this thread: PyTorch calls no hook after it."""
    while _entered.stack and not _entered.stack[-1][1].is_running():
        _, mode = _entered.stack.pop()
        if _get_current_function_mode() is mode:  # else it stays below the mode of somebody else, and does nothing
            mode.__exit__(None, None, None)


def _calling() -> FrameType | None:
    """The frame of the attention module's call, which its hooks are called from."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (frame.f_code.co_filename == __file__ or "_dynamo" in frame.f_code.co_filename):
        frame = frame.f_back
    return frame


class Enter:
    """Before the forward of an attention module."""

    def __init__(self, seam: Products):
        self.seam = seam

    @torch.compiler.disable
    def __call__(self, attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_exporting():
            raise RuntimeError(
                f"{type(attention).__name__} writes its attention down, which hf_posenc changes while it runs: a patched model of this "
                "family cannot be exported"
            )
        tokens = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        _leave_interrupted()
        mode = Forward(self.seam, attention, len(tokens), by_name(attention, args, kwargs))
        mode.__enter__()
        _entered.stack.append((attention, mode))


class Uncompiled:
    """A hook that is left out of graphs."""

    def __init__(self, hook: Any):
        self.hook = hook

    @torch.compiler.disable
    def __call__(self, *args: Any) -> Any:
        return self.hook(*args)


class Leave:
    """After it, or after an error in it."""

    @torch.compiler.disable
    def __call__(self, attention: nn.Module, args: tuple, output: Any) -> None:
        if not _entered.stack or _entered.stack[-1][0] is not attention:
            return  # an error before it was entered
        _, mode = _entered.stack.pop()
        mode.__exit__(None, None, None)
        if output is not None and not mode.done:
            raise RuntimeError(
                f"{type(attention).__name__} has not multiplied queries and keys where its positional encoding waited for it: this "
                "version of transformers computes its attention in another way, in which hf_posenc cannot change it"
            )


class Forward(TorchFunctionMode):
    """What PyTorch is asked for within the forward of `attention`; all but the scores is done as asked.

    Args:
        batch: number of rows of tokens. arguments: of the module.
    """

    def __init__(self, seam: Products, attention: nn.Module, batch: int, arguments: Mapping[str, Any]):
        super().__init__()
        self.seam, self.attention, self.batch, self.arguments = seam, attention, batch, arguments
        self.done = False
        self.looks = probe.is_looking()
        self.weighed = False
        self.frame = _calling()

    def is_running(self) -> bool:
        """Whether the call of the attention module is still on the stack of this thread."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        return frame is not None

    @torch.compiler.disable
    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        fused = func is F.scaled_dot_product_attention and not self.done
        factors = _factors(args, kwargs) if func in PRODUCTS and not (self.done and self.weighed) else None
        if not (fused or factors) or not self.is_running():
            return func(*args, **kwargs)
        if fused or factors is None:
            self.done = True
            return self._fused(*args, **kwargs)
        if not self.done:
            self.done, self.weighed = True, not self.looks
            return self._product(func, factors, args, kwargs)
        self.weighed = True  # the weights and the values
        return self._nothing(*factors)

    def _fused(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Output [B,H,Q,V] of the fused attention."""
        self.weighed = True
        if self.looks:
            probe.see(self.attention, Handed(query, key, value))
            return torch.zeros_like(query)
        more: dict[str, Any] = {ENCODED: True} if ENCODED in self.arguments else {}
        more |= {"scaling": kwargs.get("scale"), "dropout": kwargs.get("dropout_p", 0.0)}
        return posenc_attention(FUSED, self.attention, query, key, value, attn_mask, **more)[0].transpose(1, 2).contiguous()

    def _product(self, func: Callable, factors: tuple[Tensor, Tensor], args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """What the family takes for the products, of the shape and the dtype that it asked for."""
        query, key = self._heads(factors[0]), self._heads(factors[1]).transpose(-1, -2)
        alpha = kwargs.get("alpha", 1.0)
        after = self.seam.scale(self.attention, query.shape[-1])
        if self.looks:
            self.handed = Handed(query, key, scaling=alpha * after)
            return func(*args, **kwargs)
        encoded = ENCODED in self.arguments
        scores = posenc_scores(self.attention, query, key, self.seam.mask(self.arguments), alpha * after, encoded) / after
        scores = scores.clamp(min=torch.finfo(query.dtype).min / 2)  # families add to hidden scores, or multiply them with zeros
        scores = scores.to(query.dtype).view(*factors[0].shape[:-1], key.shape[2])
        added = _added(func, args, kwargs)
        return scores if added is None else scores + added

    def _nothing(self, weights: Tensor, value: Tensor) -> Tensor:
        """Zeros in place of the weighted values, once the weights have been looked at."""
        probe.see(self.attention, self.handed._replace(value=self._heads(value), weights=self._heads(weights)))
        return weights.new_zeros(*weights.shape[:-1], value.shape[-1], dtype=value.dtype)

    def _heads(self, x: Tensor) -> Tensor:
        """[B,H,...]"""
        return x.unflatten(0, (self.batch, -1)) if x.ndim == 3 else x


def _factors(args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """The two batches of matrices that a product is made of; None where one of them is a single matrix: a projection."""
    left, right = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)][-2:]
    return (left, right) if left.ndim > 2 and right.ndim > 2 else None


def _added(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """What `baddbmm` adds to the product."""
    if func is not torch.baddbmm and func is not Tensor.baddbmm:
        return None
    added, beta = kwargs.get("input", args[0] if args else None), kwargs.get("beta", 1)
    return None if added is None else added if beta == 1 else beta * added
