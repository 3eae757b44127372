"""The covering design covers, by counting; it is stable, and it grows with the sum of encodings and families, not with their product."""

import pytest
from design import FAMILIES, cases, cover, encoding_kind, encoding_stages, family_kind, family_slot, one_of_each

import hf_posenc

NAMES = hf_posenc.list_encodings()
PAIRS = {"arch": FAMILIES, "name": NAMES}


def test_every_group_has_a_case():
    found = cover(PAIRS, ("name family_slot", "encoding_kind family_kind", "arch"))
    assert {(name, family_slot(arch)) for arch, name in found} == {(name, slot) for name in NAMES for slot in ("table", "rotation")}
    kinds, structures = set(map(encoding_kind, NAMES)), set(map(family_kind, FAMILIES))
    assert {(encoding_kind(name), family_kind(arch)) for arch, name in found} == {(a, b) for a in kinds for b in structures}
    assert {arch for arch, _ in found} == set(FAMILIES)
    assert len(found) < len(cases(PAIRS)) and sorted(set(found)) == found


def test_kinds_tell_apart_what_differs():
    """The structures that have a file or a test of their own are kinds of their own."""
    assert len({family_kind(arch) for arch in ("llama", "cohere", "gpt2", "opt", "gpt_neox", "gemma3_text", "smollm3", "gpt_oss")}) == 8
    assert family_kind("llama") == family_kind("mistral") == family_kind("qwen3")
    assert len({encoding_kind(name) for name in ("nope", "alibi", "shaw", "rerope", "rope", "learned", "dynamic_ntk")}) == 7
    assert encoding_kind("rope") == encoding_kind("yarn")
    assert len({encoding_stages(name) for name in NAMES}) < len({encoding_kind(name) for name in NAMES})


@pytest.mark.parametrize("salt", ["a", "b"])
def test_no_group_has_more_than_one_case_of_its_own(salt):
    found = cover(PAIRS, ("name", "arch"), salt)
    assert {name for _, name in found} == set(NAMES) and {arch for arch, _ in found} == set(FAMILIES)
    assert len(found) <= len(NAMES) + len(FAMILIES)
    assert found != cover(PAIRS, ("name", "arch"), salt + "c")


def test_one_of_each_kind():
    found = one_of_each()
    assert len(found) == len({encoding_kind(name) for name in found}) == len({encoding_kind(name) for name in NAMES})


def test_other_parameters():
    found = cover({"name": NAMES, "layout": ["plain", "padded"]}, ("name", "encoding_kind layout"))
    kinds = {(encoding_kind(name), layout) for name, layout in found}
    assert {name for name, _ in found} == set(NAMES) and kinds == {(encoding_kind(n), x) for n in NAMES for x in ("plain", "padded")}
    mine = cover({"name": ["a class of the test", "alibi", "t5"], "layout": ["plain", "padded"]}, ("encoding_kind layout",))
    assert {("a class of the test", layout) for layout in ("plain", "padded")} < set(mine) and len(mine) == 4


def test_other_tests_take_others():
    """What one leaves out another has."""
    some = [set(cover({"name": NAMES}, ("encoding_kind",), salt=f"test_{i}")) for i in range(300)]
    assert len({len(each) for each in some}) == 1 and set.union(*some) == {(name,) for name in NAMES}


def synthetic(encodings, families):
    """Encodings of ten kinds, in families of twelve."""
    names, archs = ([f"{word}{i}" for i in range(n)] for word, n in (("encoding", encodings), ("family", families)))
    traits = {"encoding_kind": ("name", lambda name: int(name[8:]) % 10), "family_kind": ("arch", lambda arch: int(arch[6:]) % 12)}
    return {"arch": archs, "name": names}, ("name", "encoding_kind family_kind", "arch"), "", traits


def test_it_grows_with_the_sum():
    for encodings, families in ((78, 16), (78, 160), (156, 16)):
        assert len(cover(*synthetic(encodings, families))) <= encodings + families + 120


def test_a_new_encoding_or_family_leaves_the_others_as_they_are():
    (before, *rest), (after, *_) = synthetic(26, 16), synthetic(27, 17)
    kept = set(cover(before, *rest)) & set(cover(after, *rest))
    assert len(kept) > 0.9 * len(cover(before, *rest))
