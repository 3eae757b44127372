"""What is wrong with a configuration or a model, and what to do about it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import getmodule, unwrap
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..architectures.base import forward_is_foreign
from ..architectures.slots import rotary_state
from ..encodings.rotary.rope import BY_LENGTH
from ..inspection import inspect
from ..patching import Patch
from ..registry import suggestion

UNSCALED = "default"
"""The rope type of a plain RoPE; transformers has no function for it."""
SHARED = ("apply_rotary_pos_emb", "eager_attention_forward")
"""Functions of a modeling file that all models of the family call."""
HOME = ("transformers", "torch", "hf_posenc", "transformers_modules", "accelerate")
"""Packages whose modules, functions and hooks are at home in a model; `transformers_modules` is the code of a checkpoint."""
ADAPTERS = ("peft", "bitsandbytes")
"""Packages that put modules of their own around the weights, and leave positions alone."""


@dataclass(frozen=True)
class Fault:
    """Something that is wrong.

    Args:
        where: "configuration", "model", or the path of a module.
        what: it is, in a sentence.
        advice: what to do.
        grave: positions are not what they seem, or nothing can be patched; otherwise it is worth knowing.
    """

    where: str
    what: str
    advice: str
    grave: bool = True


# -- configurations ---------------------------------------------------------------------------------------------------


def of_scaling(config: PretrainedConfig) -> Iterator[Fault]:
    """What is wrong with the rotary parameters of a configuration."""
    for name, parameters in nested(config).items():
        found = [*_of_parameters(name, parameters, config)]
        yield from found
        if not found:
            yield from _said_by_transformers(config, name)


def nested(config: PretrainedConfig) -> dict[str, Mapping[str, Any]]:
    """The rotary parameters of a configuration, by where they stand in it."""
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, Mapping) or not parameters:
        return {}
    parts = {key: value for key, value in parameters.items() if isinstance(value, Mapping)}
    return {f"rope_parameters.{key}": value for key, value in parts.items()} or {"rope_parameters": parameters}


def _of_parameters(name: str, parameters: Mapping[str, Any], config: PretrainedConfig) -> Iterator[Fault]:
    kind, factor = parameters.get("rope_type", parameters.get("type", UNSCALED)), parameters.get("factor")
    known = [UNSCALED, *ROPE_INIT_FUNCTIONS]
    if kind not in known:
        advice = f"write one of {', '.join(known)}.{suggestion(str(kind), known)} One of another package has to be imported first"
        yield Fault("configuration", f"{name} has the rope_type {kind!r}, which this transformers does not know", advice)
        return
    if kind == UNSCALED and factor is not None:
        advice = f"add the rope_type that the factor is for ({', '.join(ROPE_INIT_FUNCTIONS)}), or take the factor out"
        yield Fault("configuration", f"{name} has a factor of {factor}, but no rope_type: nothing is scaled", advice)
    if kind in ("linear", "dynamic", "yarn", "llama3") and factor is None:
        advice = "add factor: the context to be reached, divided by the one that the model was trained for"
        yield Fault("configuration", f"{name} has the rope_type {kind!r} and no factor", advice)
    elif factor is not None and (isinstance(factor, bool) or not isinstance(factor, int | float) or not factor >= 1):
        yield Fault("configuration", f"{name} has the factor {factor!r}, which is no number of 1 or more", "write a number of 1 or more")
    elif kind in ("yarn", "longrope") and factor is not None:
        yield from _of_lengths(name, kind, float(factor), parameters, config)


def _of_lengths(name: str, kind: str, factor: float, parameters: Mapping[str, Any], config: PretrainedConfig) -> Iterator[Fault]:
    """A factor is how many times as long the context is as it was."""
    now, before = getattr(config, "max_position_embeddings", None), parameters.get("original_max_position_embeddings")
    if not now or not before or now == before or abs(now / before - factor) < 0.01 * factor:
        return
    yield Fault(
        "configuration",
        f"{name} has the factor {factor:g} for {kind!r}, but the lengths say {now / before:g}: max_position_embeddings {now:,}, "
        f"original_max_position_embeddings {before:,}",
        f"transformers goes by the factor: write max_position_embeddings {round(before * factor):,}, or the factor {now / before:g}, "
        "whichever the weights were trained with",
    )


def _said_by_transformers(config: PretrainedConfig, name: str) -> Iterator[Fault]:
    """What transformers' own check has to say, where ours found nothing."""
    with logged("transformers.modeling_rope_utils") as said:
        try:
            getattr(config, "validate_rope", lambda: None)()
        except Exception as error:  # keys that are missing, of the wrong type ...
            yield Fault("configuration", f"{name}: {one_line(error)}", "mend it in config.json")
    for message in dict.fromkeys(said):
        yield Fault("configuration", f"{name}: transformers says: {message}", "mend it in config.json, or leave it if you know why", False)


@contextmanager
def logged(name: str) -> Iterator[list[str]]:
    """The warnings of a logger within the block, which go nowhere else."""
    said: list[str] = []
    handler, logger = logging.Handler(), logging.getLogger(name)
    handler.emit = lambda record: said.append(" ".join(record.getMessage().split()))  # type: ignore[method-assign]
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates


def one_line(error: BaseException) -> str:
    """The reason of an error in a line: that of the mistake it came from, where that is ours too."""
    while isinstance(error.__cause__, ValueError):
        error = error.__cause__
    said = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(said.split()) or type(error).__name__


# -- models -----------------------------------------------------------------------------------------------------------


def of_model(record: Patch) -> Iterator[Fault]:
    """What other tools have done to the decoder of a live model."""
    stock = _as_built(record)
    yield from _of_modules(record, stock)
    yield from _of_hooks(record)
    yield from _of_shared(record)
    yield from _of_frequencies(record)


def _as_built(record: Patch) -> PreTrainedModel | None:
    """The decoder as its class builds it, without numbers; None where it cannot be built alone."""
    config = record.native_config()
    try:
        with torch.device("meta"):
            return type(record.backbone)(config)
    except Exception:  # whatever a class of somebody else's raises
        return None


def positional(record: Patch) -> dict[str, nn.Module]:
    """The modules that positions go through, by their path: what has to be the family's own."""
    architecture, backbone = record.architecture, record.backbone
    paths = {id(module): path for path, module in backbone.named_modules()}
    modules = [backbone, *architecture.stack(backbone), *architecture.attentions(backbone).values(), record.native]
    return {paths[id(module)]: module for module in modules if id(module) in paths}


def _of_modules(record: Patch, stock: PreTrainedModel | None) -> Iterator[Fault]:
    """Modules of other classes than the family's, forwards that are not those of their class."""
    places, built = positional(record), dict(stock.named_modules()) if stock is not None else {}
    slot = record.architecture.slot
    replaced: dict[str, list[str]] = {}
    for path, module in record.backbone.named_modules():
        like = built.get(path)
        if forward_is_foreign(module):
            if path in places or path == slot:
                yield _foreign_forward(record, path, module)
            else:
                replaced.setdefault(f"the forward of {type(module).__name__} is that of {_home_of_forward(module)}", []).append(path)
        elif like is not None and type(module) is not type(like) and not _is_ours(module):
            if path == slot or path in places:
                yield _foreign_module(path, module, like)
            else:
                replaced.setdefault(f"{type(module).__qualname__} of {_home(module)} is in the place of {type(like).__name__}", []).append(
                    path
                )
        elif like is None and built and hasattr(module, "inv_freq") and path != slot and not _is_ours(module) and not _within(path, slot):
            advice = f"take it out: the layers get their rotation from {slot or 'elsewhere'}, and what is set here has no effect"
            yield Fault(path, f"a {type(module).__name__} is here, where the family has no rotary module", advice)
    for what, paths in replaced.items():
        more = f" and {len(paths) - 1} more" * (len(paths) > 1)
        yield Fault(paths[0] + more, what, "positions do not go through it: nothing, if that is meant", False)


def _foreign_forward(record: Patch, path: str, module: nn.Module) -> Fault:
    what = f"another tool ({_home_of_forward(module)}) has replaced the forward of this {type(module).__name__}"
    advice = "undo that, or patch the model before that tool gets it; otherwise the two may cancel each other"
    return Fault(path or "the decoder", what, advice)


def _foreign_module(path: str, module: nn.Module, like: nn.Module) -> Fault:
    inside = next((name for name, each in module.named_modules() if type(each) is type(like)), None)
    where = f"{'around' if inside else 'in the place of'} the {type(like).__name__} of the family"
    back = f"put back what is within it (.{inside})" if inside else "load the model anew"
    advice = f"{back} before patching: what stands there would act beside an encoding, or undo it"
    return Fault(path, f"{where} is a {type(module).__name__} ({_home(module)})", advice)


def _of_hooks(record: Patch) -> Iterator[Fault]:
    ours = {getattr(handle, "id", None) for handle in record.handles}
    for path, module in positional(record).items():
        hooks = {**module._forward_pre_hooks, **module._forward_hooks}
        foreign = {_home(hook) for key, hook in hooks.items() if key not in ours and _root(hook) not in HOME}
        for home in sorted(foreign):
            advice = "see that it does not change hidden states or positions; a patch leaves it in place"
            yield Fault(path or "the decoder", f"a forward hook of {home} is on this {type(module).__name__}", advice, False)


def _of_shared(record: Patch) -> Iterator[Fault]:
    """Functions that another tool has replaced for all models of the process."""
    modeling = getmodule(type(record.backbone))
    for name in SHARED:
        function = getattr(modeling, name, None)
        if function is not None and _root(unwrap(function)) not in HOME:
            advice = "what it computes is what the checks on the twin have seen; if one of them fails, do without that tool"
            yield Fault(f"{modeling.__name__}.{name}", f"replaced by {_home(function)}, for every model of the family", advice, False)  # type: ignore[union-attr]
    function = ALL_ATTENTION_FUNCTIONS.get(record.live_backend)
    if function is not None and _root(unwrap(function)) not in HOME:
        advice = "patched layers call it too; if a check on the twin fails, load the model with another attn_implementation"
        yield Fault("attention", f"{record.live_backend!r} is a function of {_home(function)}", advice, False)


def _of_frequencies(record: Patch) -> Iterator[Fault]:
    """Live frequencies that are not those of the configuration, or no numbers."""
    architecture, config, native = record.architecture, record.native_config(), record.native
    if record.placements and not inspect(record.model).whole:
        advice = "patch again to put them back, and keep other tools from writing there"
        yield Fault(architecture.slot, "the native slot holds other frequencies than the patch of hf_posenc has put there", advice)
    if not architecture.rotates or not architecture.has_slot(config) or any(buffer.is_meta for buffer in native.buffers()):
        return
    groups = {record.group(i) for i, attention in record.attentions.items() if architecture.uses_slot(attention)}
    if any(architecture.parameters(config, group).get("rope_type") in BY_LENGTH for group in groups):
        return  # such a module writes to itself
    for group in groups:
        try:
            fresh = architecture.fresh(native, config)
            (live, factor), (said, wanted) = (rotary_state(*architecture.rotary(each, group)) for each in (native, fresh))
        except Exception:  # a module of another class, which is said already
            continue
        where = architecture.slot + f" ({group})" * bool(group)
        if not live.isfinite().all():
            advice = "load the model anew: from_pretrained may have left a buffer without numbers"
            yield Fault(where, "the frequencies are no finite numbers", advice)
        elif live.shape != said.shape or not torch.allclose(live, said, rtol=1e-5) or abs(factor - wanted) > 1e-5:
            what = "the frequencies in the model are not those that its configuration says"
            advice = (
                "somebody has written into the module, or into the configuration after the model was built: change neither, load the "
                "model anew and call hf_posenc.patch; save_pretrained would save another model than the one you see"
            )
            yield Fault(where, what, advice)


def _is_ours(module: nn.Module) -> bool:
    return _root(type(module)) == "hf_posenc"


def _within(path: str, slot: str) -> bool:
    return bool(slot) and path.startswith(f"{slot}.")


def _home_of_forward(module: nn.Module) -> str:
    return _home(unwrap(module.forward))


def _home(thing: Any) -> str:
    """Where something is defined, in words."""
    thing = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{thing.__module__}.{thing.__qualname__}"


def _root(thing: Any) -> str:
    thing = thing if hasattr(thing, "__module__") and thing.__module__ else type(thing)
    return str(thing.__module__).partition(".")[0]
