"""The covering design covers, by counting; it is stable, and it grows with the sum of encodings and families, not with their product."""

import pytest
from design import FAMILIES, encoding_kind, everything, family_kind, kinds, once, one_of_each, share

import hf_posenc

NAMES = hf_posenc.list_encodings()


def test_every_encoding_meets_every_kind_of_family_and_the_other_way_round():
    pairs = set(kinds(NAMES, FAMILIES, encoding_kind, family_kind))
    for name in NAMES:
        assert {family_kind(arch) for arch, other in pairs if other == name} == {family_kind(arch) for arch in FAMILIES}
    for arch in FAMILIES:
        assert {encoding_kind(name) for other, name in pairs if other == arch} == {encoding_kind(name) for name in NAMES}
    assert pairs < set(everything())


def test_kinds_tell_apart_what_differs():
    """The structures that have a file or a test of their own are kinds of their own."""
    assert len({family_kind(arch) for arch in ("llama", "cohere", "gpt2", "opt", "gpt_neox", "gemma3_text", "smollm3", "gpt_oss")}) == 8
    assert family_kind("llama") == family_kind("mistral") == family_kind("qwen3")
    assert len({encoding_kind(name) for name in ("nope", "alibi", "shaw", "rerope", "rope", "learned", "dynamic_ntk")}) == 7
    assert encoding_kind("rope") == encoding_kind("yarn")


@pytest.mark.parametrize("salt", ["a", "b"])
def test_once_is_at_least_once(salt):
    pairs = once(NAMES, FAMILIES, salt)
    assert {name for _, name in pairs} == set(NAMES) and {arch for arch, _ in pairs} == set(FAMILIES)
    assert len(pairs) <= len(NAMES) + len(FAMILIES)
    assert pairs != once(NAMES, FAMILIES, salt + "c")


def test_those_who_share_have_all_together_and_nothing_twice():
    pairs = kinds(NAMES, FAMILIES, encoding_kind, family_kind)
    parts = [share(pairs, part, of=3) for part in range(3)]
    assert sorted(pair for part in parts for pair in part) == pairs
    assert min(map(len, parts)) > len(pairs) / 4


def test_one_of_each_kind():
    chosen = one_of_each(NAMES, encoding_kind)
    assert len(chosen) == len({encoding_kind(name) for name in chosen}) == len({encoding_kind(name) for name in NAMES})


def synthetic(encodings, families):
    names, archs = ([f"{word}{i}" for i in range(n)] for word, n in (("encoding", encodings), ("family", families)))
    return names, archs, lambda name: int(name[8:]) % 10, lambda arch: int(arch[6:]) % 12


def test_it_grows_with_the_sum():
    """Three times as many encodings and ten times as many families."""
    names, archs, name_kind, arch_kind = synthetic(78, 160)
    pairs = kinds(names, archs, name_kind, arch_kind)
    assert len(pairs) <= 78 * 12 + 160 * 10 < 78 * 160 / 4
    assert len(once(names, archs, "")) <= 78 + 160


def test_one_more_changes_little():
    names, archs, name_kind, arch_kind = synthetic(30, 40)
    before = set(kinds(names, archs, name_kind, arch_kind))
    assert len(before - set(kinds([*names, "encoding30"], archs, name_kind, arch_kind))) <= 40 / 2
    assert len(before - set(kinds(names, [*archs, "family40"], name_kind, arch_kind))) <= 30 / 2
