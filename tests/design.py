"""Which encodings meet which families in the conformance suite: a covering design, computed from what both declare.

`kinds` gives every encoding one family of each structural kind, and every family one encoding of each kind of stage and cache, to one
test alone or to several that `share` them; `once` gives each encoding one family and each family one encoding, others in each test;
`one_of_each`, for what takes seconds, gives an encoding of each kind. Which of several is chosen depends on names alone (the highest hash
wins), so that a new encoding or a new family leaves the other pairs as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable
from functools import cache

from tiny import tiny_model

from hf_posenc.architectures import ARCHITECTURES
from hf_posenc.architectures.tables import TableArchitecture
from hf_posenc.encodings import ENCODINGS
from hf_posenc.encodings.base import STAGES
from hf_posenc.patching import patch_of

FAMILIES = ("cohere", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "gpt_oss", "llama", "mistral", "olmo2", "opt", "phi3", "qwen2", "qwen3")
FAMILIES += ("smollm3", "stablelm", "starcoder2")
"""Families that stand for all the others here; `test_families` is about each."""
Pair = tuple[str, str]
Kind = Callable[[str], Hashable]


def encoding_kind(name: str) -> Hashable:
    """Where an encoding acts, and what it leaves in the KV cache."""
    cls = ENCODINGS[name]
    stages = tuple(stage for stage in (*STAGES, "cached_key") if cls.has(stage))
    return stages, cls.caches if {"rotate", "regions"} & set(stages) else "", cls.relative, cls.data_dependent, bool(cls.any_length)


@cache
def family_kind(arch: str) -> Hashable:
    """How a family holds its positions, and what its attention does beside the products."""
    record, architecture = patch_of(tiny_model(arch)), ARCHITECTURES[arch]
    config, layers = record.backbone.config, range(len(record.attentions))
    table = isinstance(architecture, TableArchitecture)
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


def kinds(names: Iterable[str], families: Iterable[str], name_kind: Kind, arch_kind: Kind) -> list[Pair]:
    """Pairs (family, encoding): every encoding on a family of each kind, every family with an encoding of each kind."""
    names, families = list(names), list(families)
    pairs = {(_chosen(group, name), name) for group in _groups(families, arch_kind) for name in names}
    pairs |= {(arch, _chosen(group, arch)) for group in _groups(names, name_kind) for arch in families}
    return sorted(pairs)


def once(names: Iterable[str], families: Iterable[str], salt: str) -> list[Pair]:
    """Pairs (family, encoding): every encoding and every family at least once, which with which depending on `salt`."""
    names, families = list(names), list(families)
    pairs = {(_chosen(families, salt + name), name) for name in names} | {(arch, _chosen(names, salt + arch)) for arch in families}
    return sorted(pairs)


def share(pairs: Iterable[Pair], part: int, of: int) -> list[Pair]:
    """The pairs of one of `of` tests that share them; all of them together have all."""
    return [pair for pair in pairs if int(hashlib.sha256("-".join(pair).encode()).hexdigest(), 16) % of == part]


def one_of_each(names: Iterable[str], name_kind: Kind) -> list[str]:
    """An encoding of each kind."""
    return sorted(_chosen(group, "") for group in _groups(list(names), name_kind))


def everything() -> list[Pair]:
    return [(arch, name) for arch in FAMILIES for name in ENCODINGS]


def _groups(members: list[str], kind: Kind) -> list[list[str]]:
    found: dict[Hashable, list[str]] = {}
    for member in members:
        found.setdefault(kind(member), []).append(member)
    return list(found.values())


def _chosen(candidates: list[str], partner: str) -> str:
    return max(candidates, key=lambda candidate: hashlib.sha256(f"{candidate} {partner}".encode()).digest())
