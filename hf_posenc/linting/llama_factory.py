"""Training files of LLaMA-Factory, as 0.9.6 reads them: `rope_scaling` is a name, and the factor follows from `cutoff_len`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .case import WRITTEN, scaling
from .finding import ERROR, WARNING, Finding
from .written import LENGTH, NATIVE, PLAIN_THETA, THETA, kind_of, number

NAMES = ("linear", "dynamic", "yarn", "llama3")
CUTOFF = 2048
"""Its default of `cutoff_len`."""
IN_INFERENCE = 2.0
"""The factor of a file that trains nothing."""


def trained(said: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """The configuration that a model is trained with, and what is wrong in the file."""
    name, where = said.get("rope_scaling"), "rope_scaling"
    if not name:
        return dict(base), []
    if name not in NAMES:
        return dict(base), [Finding("factory-name", ERROR, where, f"{name!r} is refused", f"write one of {', '.join(NAMES)}")]
    before, cutoff, training = scaling(base), number(said.get("cutoff_len")) or CUTOFF, bool(said.get("do_train") or said.get("stage"))
    native = before.get(NATIVE) or base.get(LENGTH)
    if not isinstance(native, int):
        return dict(base), [
            Finding("factory-name", ERROR, where, f"the base says no {LENGTH}: nothing is scaled", f"write {LENGTH} into it")
        ]
    if training and cutoff <= native:
        what = f"nothing is scaled, with a line in the log: cutoff_len ({cutoff:.0f}) is not above the context of the base ({native})"
        return dict(base), [
            Finding("factory-unscaled", ERROR, where, what, "raise cutoff_len to the context to be reached, or leave rope_scaling out")
        ]
    theta = before[THETA] or PLAIN_THETA
    factor = float(math.ceil(cutoff / native)) if training else IN_INFERENCE
    found = []
    if kind_of(before) != "default":
        what = f"it takes the place of the {kind_of(before)!r} that the base was trained with"
        what += "" if before.get(NATIVE) else f", whose stretched context ({native}) it takes for the native one: scaled twice"
        severity = WARNING if before.get(NATIVE) else ERROR
        found.append(
            Finding("scaled-twice", severity, where, what, "start from the base as it was before that scaling, or leave rope_scaling out")
        )
    if training and cutoff / native != factor:
        what = f"the factor is rounded up to {factor:g}, for {round(native * factor)} tokens, where cutoff_len is {cutoff:.0f}"
        found.append(Finding("factory-factor", WARNING, "cutoff_len", what, f"write a multiple of {native}"))
    if not training:
        what = f"without training the factor is {IN_INFERENCE:g}, whatever the weights were trained with"
        found.append(Finding("factory-factor", WARNING, where, what, "leave it out, and say the scaling in config.json"))
    if name == "linear":
        what = f"the checkpoint will say {LENGTH} {round(native * factor)}, which vLLM and SGLang multiply by {factor:g} again"
        advice = f"tell them the native one when serving: {LENGTH} {native}, --max-model-len {round(native * factor)}"
        found.append(Finding("double-scaling", ERROR, where, what, advice))
    what = f"it is set without {THETA}, and the length as a float: transformers 5 is left with no {THETA}, and may refuse the float"
    advice = f"train with transformers 4, or write rope_parameters with {THETA} {theta} into the config.json of the base instead"
    found.append(Finding("theta-lost", WARNING, where, what, advice))
    parameters: dict[str, Any] = {"rope_type": name, "factor": factor}
    if name != "linear":
        parameters[NATIVE] = native
    if name == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    plain = {key: value for key, value in base.items() if key not in WRITTEN}
    return plain | {LENGTH: round(native * factor), THETA: theta, WRITTEN[0]: parameters}, found
