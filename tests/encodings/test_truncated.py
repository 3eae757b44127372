import math

import pytest
import torch

from hf_posenc.encodings import create

AUTHORS = [1.0, 0.3162277638912, 0.10000000149, 0.00613592332229, 0.0, 0.0, 0.0, 0.0]
"""For a head of 16 and n = 64, from abacusai/Long-Context."""


def test_numbers_of_the_authors_code(tiny):
    torch.testing.assert_close(create("truncated", tiny).inv_freq, torch.tensor(AUTHORS), rtol=1e-6, atol=0)


def test_each_pair_comes_round_or_hardly_turns(released):
    n = 1000
    for k, frequency in enumerate(create("truncated", released, tokens=n).inv_freq.tolist()):
        plain = released.theta ** (-2 * k / released.head_dim)
        turns = plain * n / (2 * math.pi)
        expected = plain if turns >= 1 else 0.0 if turns < 1 / 8 else 2 * math.pi / (16 * n)
        assert frequency == pytest.approx(expected, rel=1e-6)
    assert create("truncated", released).rope_parameters() is None


@pytest.mark.parametrize("tokens", [0, 2.5, -3])
def test_bad_options(geometry, tokens):
    with pytest.raises(ValueError, match="tokens must"):
        create("truncated", geometry, tokens=tokens)


def test_refuses_a_scaled_model(yarned):
    with pytest.raises(ValueError, match="'truncated' does not compose"):
        create("truncated", yarned)
