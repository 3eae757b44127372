"""Which cases of a test are run: a covering design, computed from what encodings and families declare.

A case is a choice of the parameters of a test: an encoding (`name`), a family (`arch`), and whatever else it has. A test that is marked
`cover` names groups of cases, by parameters or by what is known of them (`TRAITS`), and of each group one case is run. With
`cover("name", "encoding_kind layout")` that is every encoding in one layout, and each layout with one encoding of each kind. Which of a
group it is depends on the case and the test alone (the highest hash wins): a new encoding leaves the other cases as they are, a case that
wins in several groups is run once, and what one test leaves out another has. So the suite grows with the sum of encodings and families, not
with their product.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import cache
from itertools import product

from tiny import can_be_built, tiny_model

from hf_posenc.architectures import ARCHITECTURES
from hf_posenc.architectures.tables import TableArchitecture
from hf_posenc.encodings import ENCODINGS
from hf_posenc.encodings.naming import OVERRIDABLE
from hf_posenc.patching import patch_of

CHOSEN = ("cohere", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "gpt_oss", "llama", "mistral", "olmo2", "opt", "phi3", "qwen2", "qwen3")
CHOSEN += ("smollm3", "stablelm", "starcoder2")
"""Families that stand for all the others here; `test_families` is about each."""
FAMILIES = tuple(family for family in CHOSEN if can_be_built(family))
"""Those of them that this transformers has."""
Case = tuple[Hashable, ...]


@cache
def encoding_kind(name: str) -> Hashable:
    """Where an encoding acts, and what it leaves in the KV cache. One that is not registered is of its own kind."""
    if name not in ENCODINGS:
        return name
    cls = ENCODINGS[name]
    return encoding_stages(name), cls.relative, cls.data_dependent, bool(cls.any_length), cls.axes


@cache
def encoding_stages(name: str) -> Hashable:
    """A coarser kind: what the class overrides, and what it caches."""
    if name not in ENCODINGS:
        return name
    cls = ENCODINGS[name]
    return tuple(stage for stage in OVERRIDABLE if cls.has(stage)), cls.caches if cls.has("rotate", "regions") else ""


@cache
def family_kind(arch: str) -> Hashable:
    """How a family holds its positions, and what its attention does beside the products."""
    record, architecture = patch_of(tiny_model(arch)), ARCHITECTURES[arch]
    config, layers = record.backbone.config, range(len(record.attentions))
    table = family_slot(arch) == "table"
    return (
        table,
        architecture.packs,
        architecture.interleaved,
        not table and record.geometry(0).rotary_dim < record.geometry(0).head_dim,
        len({record.group(i) for i in layers}) > 1,
        len(set(architecture.layer_types(config))) > 1,
        any(not architecture.uses_slot(attention) for attention in record.attentions.values()),
        getattr(config, "attn_logit_softcapping", None) is not None,
        hasattr(record.attentions[0], "sinks"),
    )


def family_slot(arch: str) -> str:
    """Where a family has its own encoding: a table beside the embeddings, or a rotation in each layer."""
    return "table" if isinstance(ARCHITECTURES[arch], TableArchitecture) else "rotation"


Trait = tuple[str, Callable[[str], Hashable]]
TRAITS: dict[str, Trait] = {
    "encoding_kind": ("name", encoding_kind),
    "encoding_stages": ("name", encoding_stages),
    "family_kind": ("arch", family_kind),
    "family_slot": ("arch", family_slot),
}
"""What is known of a parameter: which one, and how."""


def cases(values: Mapping[str, Iterable[Hashable]]) -> list[Case]:
    """All choices of parameters, in the order of `values`."""
    return list(product(*values.values()))


def cover(
    values: Mapping[str, Iterable[Hashable]],
    groups: Iterable[str],
    salt: str = "",
    traits: Mapping[str, Trait] = TRAITS,
) -> list[Case]:
    """One case of each group.

    Args:
        values: the values of each parameter.
        groups: each names parameters and traits: cases that agree in all of them are of one group.
        salt: with another, others are chosen.
    """
    names, chosen = list(values), set()
    ranked = sorted(cases(values), key=lambda case: hashlib.sha256(f"{salt} {case}".encode()).digest())
    for group in groups:
        looks = [(names.index(name), trait) for name, trait in (traits.get(word, (word, None)) for word in group.split())]
        winners = {tuple(trait(case[at]) if trait else case[at] for at, trait in looks): case for case in ranked}
        chosen |= set(winners.values())
    return [case for case in cases(values) if case in chosen]


def one_of_each(trait: str = "encoding_kind") -> list[str]:
    """An encoding of each kind."""
    return [name for (name,) in cover({"name": list(ENCODINGS)}, [trait])]
