"""Checks of what is written: names, places, lengths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from transformers.modeling_rope_utils import RopeParameters

from ..exporting.engines.mlx import LLAMA3_LENGTH, YARN_LENGTH
from ..exporting.engines.vllm import RENAMED
from .case import WRITTEN, Case, kind_of, parts, said_in
from .finding import ERROR, REMOVED, WARNING, Finding, Place

NATIVE = "original_max_position_embeddings"
LENGTH = "max_position_embeddings"
THETA = "rope_theta"
PLAIN_THETA = 10_000.0
"""What is taken where none is written."""
AT_TOP = (THETA, "partial_rotary_factor", NATIVE)
"""Parameters that transformers reads beside the others too."""
FIELDS = {*RopeParameters.__annotations__, "truncate", "mscale", "mscale_all_dim"} - set(AT_TOP)
"""What is looked for in the parameters of a rotation, and nowhere else."""
ASSUMED = {"yarn": YARN_LENGTH, "llama3": LLAMA3_LENGTH}
"""What MLX takes for the native length where it is not said."""


def both_names(case: Case) -> Iterator[Finding]:
    """Two sets of parameters, of which transformers takes one."""
    said = said_in(case.entries)
    if len(said) < 2:
        return
    one, other = (plain(parameters) for parameters in said.values())
    if differing := sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key)):
        former, current = WRITTEN
        yield Finding(
            "both-names",
            ERROR,
            f"{former}, {current}",
            f"they differ in {', '.join(differing)}: transformers takes {former} and drops {current}, MLX reads {former} alone",
            "leave the one that the weights were trained with, or write the same into both",
        )


def plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as they may stand under both names: theta may be beside them."""
    return {key: value for key, value in parameters.items() if key not in ("type", THETA)} | {"rope_type": kind_of(parameters)}


def theta(case: Case) -> Iterator[Finding]:
    """A base that is written where transformers, or MLX, does not take it."""
    if case.nested:
        return
    places = [(THETA,), *((name, THETA) for name in said_in(case.entries))]
    said = {place: value for place in places if number(value := look_up(case.entries, place)) is not None}
    values = set(said.values())
    taken = {geometry.theta for geometry in case.geometries.values()} if case.built else set()
    where = ", ".join(map(dotted, said))
    nulls = [place for place in places[1:] if holds_null(case.entries, place)]
    if len(values) > 1:
        which = f"transformers takes {numbers(taken)}, " if taken else ""
        what = f"they are {numbers(said.values())}: {which}MLX what stands at the top level"
        yield Finding("theta-twice", ERROR, where, what, "write the one that the weights were trained with into all of them")
    elif nulls:
        advice = "write the number that the weights were trained with" if not values else "write that number into both"
        what = "it is null there, which transformers takes for a number and fails"
        yield Finding("theta-lost", ERROR, ", ".join(map(dotted, nulls)), what, advice, dict.fromkeys(nulls, *values) if values else {})
    elif values and taken and not values <= taken:
        (value,) = values
        what = f"it is {value:g} there, and transformers takes {numbers(taken)}"
        mend = dict.fromkeys([(THETA,), *((name, THETA) for name in said_in(case.entries))], value)
        yield Finding("theta-lost", ERROR, where, what, f"write {THETA} at the top level too", mend)


def stray(case: Case) -> Iterator[Finding]:
    """Parameters at the top level, where nothing reads them."""
    found = {key: value for key, value in case.entries.items() if key in FIELDS and value is not None and not case.declares(key)}
    if not found:
        return
    said = said_in(case.entries)
    mend: dict[Place, Any] = {(key,): REMOVED for key in found}
    if not said and "rope_type" in found:
        mend[WRITTEN[0],] = found
    elif (
        said
        and not case.nested
        and all(parameters.get(key, value) == value for parameters in said.values() for key, value in found.items())
    ):
        mend |= {(name, key): value for name in said for key, value in found.items()}
    else:
        mend = {}  # what is meant is not certain
    yield Finding(
        "stray",
        ERROR,
        ", ".join(found),
        "at the top level they are read by nothing: the rotation is computed without them",
        f"move them into {next(iter(said), WRITTEN[0])}" + ("" if mend else ", if they are meant, and take out what they replace"),
        mend,
    )


def two_types(case: Case) -> Iterator[Finding]:
    """`type` and `rope_type` that do not agree."""
    for place, parameters in parts(case.entries):
        former, kind = parameters.get("type"), parameters.get("rope_type")
        if former and kind and former != kind and (former, kind) not in RENAMED:
            what = f"`type` is {former!r} and `rope_type` is {kind!r}: transformers takes the latter, MLX the former, vLLM refuses both"
            yield Finding("two-types", ERROR, dotted(place), what, "leave the one that the weights were trained with, as rope_type")


def layer_types(case: Case) -> Iterator[Finding]:
    """Parameters for kinds of layers that transformers does not look at."""
    for name, parameters in said_in(case.entries).items():
        kinds = [key for key, value in parameters.items() if isinstance(value, Mapping)]
        for key in kinds:
            if not case.built and case.geometries:
                what = "transformers builds no model of it: in this family all layers turn alike, and have one set of parameters"
                yield Finding("layer-types", ERROR, dotted((name, key)), what, f"write the parameters into {name} itself")
            elif key in case.ignored:
                advice = f"write the parameters into {name} itself, or name the layers in layer_types"
                what = f"the model has no layers of the kind {key!r}: what is said for them is ignored, without a word"
                yield Finding("layer-types", ERROR, dotted((name, key)), what, advice)
        for key in parameters if kinds else ():
            if key in FIELDS and key not in kinds:
                what = f"it stands beside the kinds of layers ({', '.join(kinds)}), where nothing reads it"
                yield Finding("layer-types", ERROR, dotted((name, key)), what, "write it into those that it is for")


def truncate(case: Case) -> Iterator[Finding]:
    """Rounding of the ramp of YaRN that is switched off for one kind of layers: transformers looks for it elsewhere."""
    for place, parameters in parts(case.entries):
        if len(place) > 1 and kind_of(parameters) == "yarn" and parameters.get("truncate") is False:
            what = "transformers looks for it in rope_parameters itself, and rounds the ends of the ramp; vLLM and SGLang do not"
            advice = "take it out if the weights were trained in transformers; with others there is no name for that here"
            yield Finding("truncate", ERROR, dotted((*place, "truncate")), what, advice)


def native_length(case: Case) -> Iterator[Finding]:
    """Schemes that go by the native length, without it, or with one that is no other than the stretched."""
    length, top = case.entries.get(LENGTH), case.entries.get(NATIVE)
    for place, parameters in parts(case.entries):
        kind, factor, native = kind_of(parameters), number(parameters.get("factor")) or 1.0, parameters.get(NATIVE) or top
        if kind in ASSUMED and native is None:
            what = f"{kind!r} without it: transformers, vLLM and SGLang take {LENGTH} ({length}), which may be the stretched length, "
            what += f"and MLX {ASSUMED[kind]}"
            yield Finding("native-length", WARNING, dotted((*place, NATIVE)), what, "write the context that the model was trained for")
        if not isinstance(length, int) or not isinstance(native, int) or factor <= 1:
            continue
        if kind in ("yarn", "longrope") and native == length:
            what = f"it is the native length, {length}: the scaling is for {round(native * factor)}, and engines serve {length} unless told"
            advice = f"write {round(native * factor)}, or tell the engine (--max-model-len, --context-length, -c)"
            yield Finding("context", WARNING, LENGTH, what, advice)
        if kind == "linear" and length >= native * factor:
            what = f"it is the stretched length ({native} x {factor:g}), and vLLM and SGLang multiply it again: {round(length * factor)}"
            advice = f"tell them the native one: `hf-posenc export M --to vllm` writes {LENGTH} {native} and --max-model-len {length}"
            yield Finding("double-scaling", ERROR, LENGTH, what, advice)


def native_place(case: Case) -> Iterator[Finding]:
    """The native length in one place of two: MLX looks for it beside the factor, the converter of llama.cpp at the top level for llama3."""
    top = case.entries.get(NATIVE)
    for place, parameters in parts(case.entries):
        kind, native = kind_of(parameters), parameters.get(NATIVE)
        if len(place) > 1 or kind not in ASSUMED or case.declares(NATIVE):
            continue
        if native is None and top not in (None, ASSUMED[kind]):
            what = f"at the top level alone, {top}, MLX does not find it: it takes {ASSUMED[kind]}"
            yield Finding("native-place", ERROR, NATIVE, what, f"write it into {dotted(place)} too", {(*place, NATIVE): top})
        elif kind == "llama3" and top is None and native not in (None, LLAMA3_LENGTH):
            what = f"in {dotted(place)} alone, {native}, the converter of llama.cpp does not find it: it takes {LLAMA3_LENGTH}"
            yield Finding("native-place", ERROR, NATIVE, what, "write it at the top level too", {(NATIVE,): native})


def numbers(values: Iterable[float]) -> str:
    """Numbers as words of a sentence."""
    return ", ".join(f"{value:g}" for value in values)


def number(value: Any) -> float | None:
    """A value that is a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def look_up(entries: Mapping[str, Any], place: Place) -> Any:
    """The entry at a place; None where there is none."""
    for key in place:
        entries = entries.get(key) if isinstance(entries, Mapping) else None  # type: ignore[assignment]
    return entries


def holds_null(entries: Mapping[str, Any], place: Place) -> bool:
    """Whether null is written at a place."""
    above = look_up(entries, place[:-1])
    return isinstance(above, Mapping) and place[-1] in above and above[place[-1]] is None


def dotted(place: Place) -> str:
    return ".".join(place)


RULES = (both_names, theta, stray, two_types, layer_types, truncate, native_length, native_place)
