"""Checks of what comes of a configuration: engines beside transformers, and what 16 bits leave of a phase."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..exporting import ENGINES, Reading
from .case import TRANSFORMERS, WRITTEN, Case, Served, said_in, scaling
from .finding import ERROR, NOTE, WARNING, Finding, Place
from .mending import mended
from .written import PLAIN_THETA, THETA, kind_of

MLX = "mlx"
ROUNDED = (torch.bfloat16, torch.float16)
POSITIONS = 4096
"""Of the last positions of the context, where phases are compared."""
EXPORT = "`hf-posenc export M --to {} ...` writes what it needs, or says why there is no way"


def one_name(case: Case) -> Iterator[Finding]:
    """What MLX does not find: theta, and the scheme, under the names of transformers 5."""
    said = said_in(case.entries)
    if case.nested or WRITTEN[0] in said or not case.built or len(case.geometries) != 1:
        return
    (geometry,) = case.geometries.values()
    mend: dict[Place, object] = {}
    if case.entries.get(THETA) is None and geometry.theta != PLAIN_THETA:
        mend[THETA,] = scaling(case.entries)[THETA] or geometry.theta
    if kind_of(scaling(case.entries)) != "default":
        mend[WRITTEN[0],] = dict(said[WRITTEN[1]])
    if mend:
        lost = " and ".join(dict.fromkeys((f"a theta of {geometry.theta:g}" if place == (THETA,) else "the scaling") for place in mend))
        what = f"MLX reads {THETA} and {WRITTEN[0]}, the names of transformers 4, alone; lost there, without a word: {lost}"
        yield Finding("one-name", ERROR, f"{WRITTEN[1]}, {MLX}", what, "write both names: transformers reads the same from them", mend)


def agreement(case: Case, served: Sequence[Served], found: Sequence[Finding]) -> Iterator[Finding]:
    """Engines that compute something else than transformers, beside what is mended with certainty."""
    if any(finding.mend for finding in found):
        case = Case.of(mended(case.entries, found))
        served = [*case.serve(list(dict.fromkeys(each.engine for each in served)))]
    reference = {each.layers: each.reading for each in served if each.engine == TRANSFORMERS}
    for each in served:
        here, where = reference.get(each.layers), f"{each.engine}, {each.layers}" if each.layers else each.engine
        if each.engine == TRANSFORMERS:
            continue
        if not case.built and each.reading is not None:
            what = "transformers makes nothing of the scaling, and here it is left out without a word: the frequencies are those without it"
            yield Finding("other-engine", ERROR, where, what, "mend the scaling")
        if here is None:
            continue
        if each.reading is None:
            if not each.unread:
                yield Finding("other-engine", ERROR, where, each.refusal, EXPORT.format(each.engine))
        elif fault := dataclasses.replace(each.reading, context_length=here.context_length).differs(here):
            yield Finding("other-engine", ERROR, where, f"not what transformers computes: {fault}", EXPORT.format(each.engine))
        elif fault := each.reading.differs(here):
            advice = "tell it the length (--max-model-len, --context-length, -c), or write the native one if this is the stretched"
            yield Finding("other-context", WARNING, where, fault, advice)


def no_rotation(case: Case) -> Iterator[Finding]:
    """A model whose positions are something else."""
    if case.built and not case.geometries and not case.faults:
        yield Finding("no-rotation", NOTE, "configuration", "nothing turns in this model", "there is nothing to look at here")


def by_length(case: Case) -> Iterator[Finding]:
    """Frequencies that follow the length of the text: no two engines agree on when."""
    for group, geometry in case.geometries.items():
        kind = dict(geometry.rope_parameters).get("rope_type")
        if case.built and kind in ("dynamic", "longrope"):
            what = f"{kind!r}: transformers chooses frequencies by the length of the whole input and leaves cached keys as they were, "
            what += "others have one table for all lengths" + ", and llama.cpp drops the scaling" * (kind == "dynamic")
            advice = "`hf-posenc export M --to ENGINE --freeze_at LENGTH` writes those of one length, which all read alike"
            yield Finding("by-length", WARNING, f"rope_type, {group}" if group else "rope_type", what, advice)


def phases(case: Case, served: Sequence[Served]) -> Iterator[Finding]:
    """What is lost in 16 bits at the last positions of the context, by engines that round to the dtype of the model."""
    dtype = getattr(torch, str(case.entries.get("dtype") or case.entries.get("torch_dtype") or "bfloat16").removeprefix("torch."), None)
    if dtype not in ROUNDED:
        return
    name, lost = str(dtype).removeprefix("torch."), dict[str, list[str]]()
    for each in served:
        if each.reading is not None and ENGINES[each.engine].rounds_tables:
            off, turned = position_error(each.reading, dtype)
            what = f"cos and sin are rounded to {name}: off by up to {table_error(each.reading, dtype):.2g} rad at the end of a context of "
            what += f"{each.reading.context_length}; positions in {name} would be by {off} tokens, {turned:.2g} rad of the fastest pair"
            lost.setdefault(what, []).append(f"{each.engine} ({each.layers})" if each.layers else each.engine)
    for what, names in lost.items():
        advice = f"the first is the price of {name}; cast neither positions nor inv_freq to it, as .to({name}) of a whole module does"
        yield Finding("phase", NOTE, ", ".join(names), what, advice)


def last(length: int) -> Tensor:
    """The last positions of a context."""
    return torch.arange(max(0, length - POSITIONS), length)


def table_error(reading: Reading, dtype: torch.dtype) -> float:
    """How far phases are from float64, in radians, where angles are float32 and cos and sin are rounded."""
    positions = last(reading.context_length)[:, None]
    angles = positions.float() * reading.frequencies
    turned = torch.atan2(angles.sin().to(dtype).double(), angles.cos().to(dtype).double())
    exact = positions.double() * reading.frequencies.double()
    return float(torch.remainder(turned - exact + math.pi, 2 * math.pi).sub(math.pi).abs().max())


def position_error(reading: Reading, dtype: torch.dtype) -> tuple[int, float]:
    """How far a rounded position is off, in tokens, and in radians of the fastest pair, of which no more than half a turn counts."""
    positions = last(reading.context_length)
    off = (positions.to(dtype).double() - positions).abs()
    phase = torch.remainder(off * float(reading.frequencies.max()) + math.pi, 2 * math.pi).sub(math.pi).abs()
    return int(off.max()), float(phase.max())
