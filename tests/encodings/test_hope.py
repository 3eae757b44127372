import math

import pytest
import torch

from hf_posenc.encodings import create


@pytest.mark.parametrize("turns", [0.5, 1.0, 8.0])
def test_what_does_not_come_round_stands_still(released, turns):
    hope = create("hope", released, turns=turns)
    for k, frequency in enumerate(hope.inv_freq.tolist()):
        wavelength = 2 * math.pi * released.theta ** (2 * k / released.head_dim)
        expected = 0.0 if wavelength > released.max_positions / turns else 2 * math.pi / wavelength
        assert frequency == pytest.approx(expected, rel=1e-6)
    assert hope.rope_parameters() is None
    assert 0 < hope.inv_freq.count_nonzero() < released.head_dim // 2


def test_scores(geometry, random_qk, rotary_scores):
    q, k, pos = random_qk(geometry, 12)
    expected = rotary_scores(q, k, lambda i, j: [i - j, (i - j) / 10, 0, 0])
    torch.testing.assert_close(create("hope", geometry, turns=0.2).scores(q, k, pos, pos), expected, rtol=0, atol=1e-6)


def test_the_fastest_pair_turns_in_any_case(geometry):
    assert create("hope", geometry, turns=3.0).inv_freq.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("turns", [0, -1, float("inf"), "one"])
def test_bad_options(geometry, turns):
    with pytest.raises(ValueError, match="turns"):
        create("hope", geometry, turns=turns)


def test_refuses_a_scaled_model(yarned):
    with pytest.raises(ValueError, match="'hope' does not compose"):
        create("hope", yarned)
