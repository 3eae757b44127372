"""Encodings on a tiny twin of a model: what a patch promises, tried on its own classes on the device that is asked for."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..attention.cached import arguments_of, cache_in
from ..compat import CACHES
from ..evaluation.report import own_bar_only
from ..patching import Patch, patch, patch_of, unpatch
from ..patching.running import forward, tokens
from ..variants import STOCK, name_of
from .faults import one_line
from .reading import AUTO, takes

ROUNDING = 1e-3
"""Difference, relative to the largest number, that float32 leaves between two ways to the same result."""
PASSED, FAILED, REFUSED, LEFT_OUT = "passed", "FAILED", "refused", "-"
SHORT = {"window": 3, "floor_scale": 4}
"""Options with which encodings do something to the few tokens of a trial."""


@dataclass(frozen=True)
class Trial:
    """One check of one encoding.

    Args:
        outcome: one of the four above. why: it failed, was refused before anything changed, or does not apply.
    """

    encoding: str
    check: str
    outcome: str
    why: str = ""


def wrong(trials: Sequence[Trial]) -> list[Trial]:
    """Those that failed; and those that were refused, where every encoding was."""
    patches = {trial.outcome for trial in trials if trial.check == "patch"}
    return [trial for trial in trials if trial.outcome == FAILED or patches == {REFUSED}]


class Wrong(Exception):
    """A check has failed."""


class NotHere(Exception):
    """A check means nothing for this family."""


@torch.no_grad()
def states(record: Patch, ids: Tensor, **inputs: Any) -> Tensor:
    """Last hidden states [1,Q,M] of the decoder of `record`."""
    return forward(record, {"input_ids": ids, **inputs}).last_hidden_state


class Twin:
    """A tiny model, and what its decoder computes unpatched.

    Args:
        model: stock.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.record = patch_of(model)
        self.ids = tokens(self.record)
        self.keys = list(model.state_dict())
        self.auto = next((auto for auto in AUTO if takes(auto, model.config)), None)
        self.stock = self.run()
        self.outcomes: dict[str, Trial] = {}

    def run(self, ids: Tensor | None = None, **inputs: Any) -> Tensor:
        return states(self.record, self.ids if ids is None else ids, **inputs)

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        return arguments_of(self.record.backbone)

    def examine(self, label: str, options: Mapping[str, Any]) -> Iterator[Trial]:
        """Every check of an encoding; the model is stock again afterwards."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of the verdict, which is to be renewed
                patch(self.model, name_of(label), **options)
            self.whole = self.run()
            if not self.whole.isfinite().all():
                raise Wrong("the patched model gives numbers that are not finite")
        except Exception as error:  # what is refused, or whatever a family or a driver raises
            yield Trial(label, "patch", REFUSED if isinstance(error, ValueError) else FAILED, one_line(error))
            unpatch(self.model)
            return
        yield Trial(label, "patch", PASSED)
        for check in CHECKS:
            trial = self.tried(label, check)
            if trial.outcome == FAILED and check != "unpatch" and self.of_stock(check).outcome == FAILED:
                trial = Trial(label, check, LEFT_OUT, f"nor does the stock model: {trial.why}")
            yield trial

    def tried(self, label: str, check: str) -> Trial:
        try:
            CHECKS[check](self)
        except NotHere as reason:
            return Trial(label, check, LEFT_OUT, str(reason))
        except Exception as error:  # a check has failed, or whatever a family or a driver raises
            kind = "" if isinstance(error, Wrong) else f"{type(error).__name__}: "
            return Trial(label, check, FAILED, kind + one_line(error))
        return Trial(label, check, PASSED)

    def of_stock(self, check: str) -> Trial:
        """The same check of the stock model, once."""
        if check not in self.outcomes:
            other = Twin(unpatch(copy.deepcopy(self.model)))
            other.whole = other.stock
            self.outcomes[check] = other.tried(STOCK, check)
        return self.outcomes[check]


# -- the checks -------------------------------------------------------------------------------------------------------


def decoding(twin: Twin) -> None:
    """Token by token through the KV cache, as in one pass."""
    name = next((name for name in CACHES if name in twin.arguments), None)
    if name is None:
        raise NotHere("the family takes no KV cache")
    parts, cache, seen = [], None, 0
    with torch.no_grad():
        for count in (3, *(1,) * (twin.ids.shape[1] - 3)):
            out = forward(twin.record, {"input_ids": twin.ids[:, seen : seen + count], name: cache}, use_cache=True)
            cache, seen = cache_in(out), seen + count
            if cache is None:
                raise NotHere("the family keeps no KV cache")
            parts.append(out.last_hidden_state)
    expect(torch.cat(parts, 1), twin.whole, "decoding through the KV cache")


def padding(twin: Twin) -> None:
    """Padding on the left changes nothing."""
    if "attention_mask" not in twin.arguments:
        raise NotHere("the family takes no mask")
    padded, mask = (torch.cat((x[:, :3], x), 1) for x in (twin.ids, torch.ones_like(twin.ids[:1])))
    mask[:, :3] = 0
    expect(twin.run(padded, attention_mask=mask)[:, 3:], twin.whole, "a row with padding on the left")


def packing(twin: Twin) -> None:
    """Two texts in a row, told by their position ids, do not see each other."""
    if "position_ids" not in twin.arguments or not twin.record.architecture.packs:
        raise NotHere("transformers does not keep packed texts of this family apart")
    pos = torch.cat((torch.arange(3), torch.arange(twin.ids.shape[1] - 3)))[None].to(twin.ids.device)
    apart = torch.cat([twin.run(twin.ids[:, part]) for part in (slice(3), slice(3, None))], 1)
    expect(twin.run(position_ids=pos), apart, "two packed texts")


def training(twin: Twin) -> None:
    """Every parameter of the encoding gets a gradient that is a number."""
    with torch.enable_grad():
        forward(twin.record, {"input_ids": twin.ids}).last_hidden_state.square().mean().backward()
    found = {name: p.grad for name, p in twin.model.named_parameters()}
    twin.model.zero_grad(set_to_none=True)
    if bad := [name for name, grad in found.items() if grad is not None and not grad.isfinite().all()]:
        raise Wrong(f"the gradient of {bad[0]} is no number")
    if silent := [name for name, grad in found.items() if grad is None and "positional_encoding" in name]:
        raise Wrong(f"{silent[0]} gets no gradient")


def saving(twin: Twin) -> None:
    """A checkpoint that loads into the same model."""
    if twin.auto is None:
        raise NotHere("no Auto class loads such a model")
    with tempfile.TemporaryDirectory(prefix="doctor_") as folder, own_bar_only():
        twin.model.save_pretrained(folder)
        own_code = type(twin.model).__module__.startswith("transformers_modules.")
        again = twin.auto.from_pretrained(folder, trust_remote_code=own_code).eval().to(twin.ids.device)
    if type(again) is not type(twin.model):
        raise NotHere(f"the Auto class loads a {type(again).__name__}")
    expect(states(patch_of(again), twin.ids), twin.whole, "the checkpoint, loaded again,")


def device(twin: Twin) -> None:
    """The same numbers as on the CPU."""
    if twin.ids.device.type == "cpu":
        raise NotHere("this is the CPU")
    record = patch_of(copy.deepcopy(twin.model).cpu())
    expect(twin.whole.cpu(), states(record, twin.ids.cpu()), "this device")


def unpatched(twin: Twin) -> None:
    """The stock model again, bit for bit."""
    unpatch(twin.model)
    if list(twin.model.state_dict()) != twin.keys or not torch.equal(twin.run(), twin.stock):
        raise Wrong("unpatch does not give the stock model back bit for bit")


CHECKS: dict[str, Callable[[Twin], None]] = {
    "decoding": decoding,
    "padding": padding,
    "packing": packing,
    "training": training,
    "saving": saving,
    "device": device,
    "unpatch": unpatched,
}
"""In this order: the last leaves the model stock."""
CHECKED = ("patch", *CHECKS)
"""All checks: before the others, `patch` has shown what it shows of every model."""


def expect(found: Tensor, wanted: Tensor, what: str) -> None:
    """Raise where numbers are not those that they should be, but for rounding."""
    error = float((found - wanted).abs().max() / wanted.abs().max())
    if not error <= ROUNDING:
        raise Wrong(f"{what} gives other numbers (off by {error:.1e} of the largest)")
