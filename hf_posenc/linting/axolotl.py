"""Training files of Axolotl, as 0.18 reads them: what stands in `overrides_of_model_config` is set on the configuration of the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .case import WRITTEN, said_in, scaling
from .finding import ERROR, WARNING, Finding
from .written import ASSUMED, LENGTH, NATIVE, PLAIN_THETA, THETA, kind_of

OVERRIDES = ("overrides_of_model_config", "model_config")
"""Its name, and the one that it had."""


def trained(said: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """The configuration that a model is trained with, and what is wrong in the file."""
    found = []
    name = next((each for each in OVERRIDES if said.get(each)), OVERRIDES[0])
    overrides = dict(said.get(name) or {})
    if said.get(WRITTEN[0]):
        what = "Axolotl stops at it: it is no longer supported at the top level"
        found.append(Finding("axolotl-place", ERROR, WRITTEN[0], what, f"move it into {name}, with its {THETA}"))
        overrides.setdefault(WRITTEN[0], said[WRITTEN[0]])
    entries = {**base, **{key: value for key, value in overrides.items() if key not in WRITTEN}}
    if given := said_in(overrides):
        (where, parameters), *_ = given.items()
        before = scaling(base)
        theta = before[THETA] or PLAIN_THETA
        if kind_of(before) != "default":
            what = f"it takes the place of the {kind_of(before)!r} that the base was trained with"
            found.append(
                Finding("scaled-twice", WARNING, f"{name}.{where}", what, "start from the native context of the base, or leave it")
            )
        if parameters.get(THETA) is None:
            what = f"the parameters of the base are replaced, not completed: transformers 5 is left without {THETA}, and builds no model"
            found.append(Finding("theta-lost", ERROR, f"{name}.{where}", what, f"write {THETA}: {theta} beside the rope_type"))
            parameters = {**parameters, THETA: theta}
        if kind_of(parameters) in ASSUMED:
            parameters = {NATIVE: entries.get(LENGTH), **parameters}  # by transformers, before Axolotl raises the length
        for each in WRITTEN:
            entries.pop(each, None)
        entries[WRITTEN[1]] = dict(parameters)
    return entries, found + list(lengthened(said, entries))


def lengthened(said: Mapping[str, Any], entries: dict[str, Any]) -> list[Finding]:
    """A context that Axolotl raises to `sequence_len`, in `entries` too."""
    wanted, length = said.get("sequence_len"), entries.get(LENGTH)
    if not isinstance(wanted, int) or not isinstance(length, int) or wanted <= length:
        return []
    entries[LENGTH] = wanted
    if kind_of(scaling(entries)) != "default":
        return []
    what = f"it is above the {length} of the model: Axolotl raises {LENGTH} to {wanted} without a scaling, and engines will serve that"
    advice = f"say a scaling in {OVERRIDES[0]}, or train so long that none is needed"
    return [Finding("unscaled", WARNING, "sequence_len", what, advice)]
