import dataclasses
import math

import pytest
import torch
from tiny import tiny_model

import hf_posenc
from hf_posenc.encodings import create
from hf_posenc.patching import patch_of

AUTHORS = {  # for a head of 16 and L = 64, from sheryc/resonance_rope
    "yarn": [1.04719758, 0.24166098237, 0.0498665534, 0.00790337753, 0.00250027282, 0.000790536636, 0.000249997451, 7.9056648246e-05],
    "rope": [1.04719758, 0.31415927410, 0.0997331068, 0.03157379478, 0.01000507269, 0.003162146546, 0.0010000295, 0.00031623058],
}


@pytest.mark.parametrize("base", AUTHORS)
def test_numbers_of_the_authors_code(tiny, base):
    resonance = create("resonance", tiny, base=base, factor=4.0 if base == "yarn" else None)
    torch.testing.assert_close(resonance.inv_freq, torch.tensor(AUTHORS[base]), rtol=1e-6, atol=0)
    assert resonance.attention_factor == pytest.approx(1.138629436 if base == "yarn" else 1)


@pytest.mark.parametrize(
    "base, options", [("rope", {"theta": 500.0}), ("yarn", {"beta_fast": 16.0}), ("ntk", {}), ("llama3", {}), ("p_rope", {"p": 0.5})]
)
def test_wavelengths_are_whole_numbers(released, base, options):
    stretched = {"factor": 3.0} if base in ("yarn", "ntk", "llama3") else {}
    plain = create(base, released, **stretched, **options)
    resonance = create("resonance", released, base=base, options=options, **stretched)
    for one, other in zip(resonance.inv_freq.double(), plain.inv_freq.double(), strict=True):
        expected = 2 * math.pi / round(2 * math.pi / other.item()) if other else 0.0
        assert one.item() == pytest.approx(expected, rel=4e-6)  # float32 rounds a wavelength of 10^5 tokens now and then
    assert (resonance.attention_factor, resonance.context_length) == (plain.attention_factor, plain.context_length)
    assert resonance.rope_parameters() is None


def test_a_pair_is_back_after_its_wavelength(geometry, random_qk):
    """Both dimensions of each pair are turned, and after a common multiple of the wavelengths nothing has changed."""
    resonance = create("resonance", geometry, base="truncated", options={"tokens": 63})
    assert [round(2 * math.pi / f) if f else None for f in resonance.inv_freq.tolist()] == [6, 63, None, None]
    q, k, pos = random_qk(geometry, 12)
    near, far = (resonance.scores(q, k, pos + moved, pos) for moved in (0, 126 * 10**7))
    assert torch.equal(near, far)


def test_scores(geometry, random_qk, rotary_scores):
    q, k, pos = random_qk(geometry, 12)
    expected = rotary_scores(q, k, lambda i, j: [(i - j) * 2 * math.pi / length for length in (6, 63, 628, 6283)])
    torch.testing.assert_close(create("resonance", geometry, base="rope").scores(q, k, pos, pos), expected, rtol=0, atol=1e-6)


def test_each_layer_has_its_own_where_that_of_the_base_has():
    model = hf_posenc.patch(tiny_model("llama"), "resonance", base="lpes", options={"factors": [1.0, 2.0]})
    first, second = (p.encoding.inv_freq for p in patch_of(model).placements)
    assert [round(2 * math.pi / f.item()) for f in (first[0], second[0])] == [6, 13]


@pytest.mark.parametrize("base", ["alibi", "dynamic_ntk", "longrope", "resonance", 3])
def test_stands_on_fixed_frequencies_alone(geometry, base):
    with pytest.raises(ValueError, match="base of 'resonance' is an encoding with fixed frequencies"):
        create("resonance", geometry, base=base, factor=None if base in ("alibi", "resonance", 3) else 2.0)


@pytest.mark.parametrize(
    "options, word",
    [
        ({"base": "yran"}, "yran"),
        ({"factor": 0.5}, "factor"),
        ({"factor": 2.0, "options": {"colour": "red"}}, "colour"),
        ({"options": ["theta"]}, "by name"),
        ({"base": "rope", "factor": 2.0}, "no option 'factor'"),
        ({}, "either factor= or target_length="),
    ],
)
def test_bad_options(geometry, options, word):
    with pytest.raises(ValueError, match=word):
        create("resonance", geometry, **options)


def test_of_a_scaled_model(yarned):
    assert create("resonance", yarned, base="rope").inv_freq[1].item() == pytest.approx(2 * math.pi / 21)
    with pytest.raises(ValueError, match="'yarn' does not compose"):
        create("resonance", yarned, factor=2.0)
    assert create("resonance", dataclasses.replace(yarned, rope_type="default"), base="rope").attention_factor == 1.25
