import math

import pytest
import torch

from hf_posenc.encodings import create

AUTHOR = [0.5931029915, 0.1313565671, 0.0303982384, 0.0072163068, 0.001743471, 0.000426833197, 0.000105599421, 2.63523179e-05]
"""For a head of 16 and s = 12, from bojone/rerope."""


def test_numbers_of_the_authors_code(tiny):
    torch.testing.assert_close(create("ntk_mixed", tiny, factor=12.0).inv_freq, torch.tensor(AUTHOR), rtol=1e-6, atol=0)


@pytest.mark.parametrize("exponent", [0.625, 1.0])
def test_the_lowest_frequency_is_divided_by_the_factor(released, exponent):
    mixed = create("ntk_mixed", released, factor=6.0, exponent=exponent)
    n = released.head_dim // 2
    for k, frequency in enumerate(mixed.inv_freq.tolist()):
        expected = released.theta ** (-k / n) / 6.0 ** (((k + 1) / n) ** exponent)
        assert math.isclose(frequency, expected, rel_tol=2e-6)
    assert mixed.inv_freq[-1].item() == pytest.approx(create("rope", released).inv_freq[-1].item() / 6, rel=1e-6)


def test_is_no_stock_scheme(geometry):
    assert create("ntk_mixed", geometry, factor=2.0).rope_parameters() is None


@pytest.mark.parametrize("options", [{"exponent": 0}, {"exponent": "high"}, {"factor": 0.5}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("ntk_mixed", geometry, **{"factor": 2.0} | options)


def test_refuses_a_scaled_model(yarned):
    with pytest.raises(ValueError, match="'ntk_mixed' does not compose"):
        create("ntk_mixed", yarned, factor=2.0)
