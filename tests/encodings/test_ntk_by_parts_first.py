import math

import pytest
import torch

from hf_posenc.encodings import create

AUTHOR = [1.0, 0.275592029095, 0.0338522382081, 0.003952847328, 0.001249999972, 0.00039528473280, 0.00012500000594, 3.952847328e-05]
"""For a head of 16, L = 64 and s = 8, from jquesnelle/yarn."""


def test_numbers_of_the_authors_code(tiny):
    torch.testing.assert_close(create("ntk_by_parts_first", tiny, factor=8.0).inv_freq, torch.tensor(AUTHOR), rtol=1e-6, atol=0)


def test_two_ramps(released):
    """The mixture of three frequencies, each pair by itself in float64."""
    width, theta, native, s = released.head_dim, released.theta, released.max_positions, 4.0

    def above(k, fast, slow):
        low, high = (width / 2 * math.log(native / (2 * math.pi * turns), theta) for turns in (fast, slow))
        low, high = max(math.floor(low), 0), min(math.ceil(high), width - 1)
        return 1 - min(1.0, max(0.0, (k - low) / (high - low)))

    first = create("ntk_by_parts_first", released, factor=s)
    for k, frequency in enumerate(first.inv_freq.tolist()):
        plain = theta ** (-2 * k / width)
        ntk = (theta * s ** (width / (width - 2))) ** (-2 * k / width)
        beta, gamma = above(k, 1.25, 0.75), above(k, 16, 2)
        expected = (1 - gamma) * ((1 - beta) * plain / s + beta * ntk) + gamma * plain
        assert frequency == pytest.approx(expected, rel=1e-5)


def test_is_another_formula_than_that_of_the_paper(released):
    first, paper = (create(name, released, factor=4.0).inv_freq for name in ("ntk_by_parts_first", "ntk_by_parts"))
    assert not torch.allclose(first, paper, rtol=1e-2)


def test_is_no_stock_scheme(geometry):
    assert create("ntk_by_parts_first", geometry, factor=2.0).rope_parameters() is None


@pytest.mark.parametrize("options", [{"beta_fast": 0.5}, {"gamma_slow": 16}, {"gamma_fast": 0}, {"beta_slow": -1}, {"factor": 0.5}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options)).split("_")[0]):
        create("ntk_by_parts_first", geometry, **{"factor": 2.0} | options)


def test_refuses_a_scaled_model(yarned):
    with pytest.raises(ValueError, match="'ntk_by_parts_first' does not compose"):
        create("ntk_by_parts_first", yarned, factor=2.0)
