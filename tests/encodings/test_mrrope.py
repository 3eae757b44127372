import math

import pytest
import torch

from hf_posenc.encodings import create

AUTHORS = {  # for a head of 16, L = 64 and s = 4, from mattian7/mrRoPE
    "pro": [1.0, 0.25099015236, 0.05000000075, 0.0079056946561, 0.0024999999441, 0.00079056946561, 0.00025000001187, 7.9056946561e-05],
    "uni": [1.0, 0.1992110163, 0.0396850258112, 0.0079056946561, 0.0024999999441, 0.00079056946561, 0.00025000001187, 7.9056946561e-05],
}


@pytest.mark.parametrize("strategy", AUTHORS)
def test_numbers_of_the_authors_code(tiny, strategy):
    mrrope = create("mrrope", tiny, factor=4.0, strategy=strategy)
    torch.testing.assert_close(mrrope.inv_freq, torch.tensor(AUTHORS[strategy]), rtol=1e-6, atol=0)
    assert mrrope.attention_factor == pytest.approx(1.138629436)


@pytest.mark.parametrize("strategy", ["pro", "uni"])
def test_radices_of_the_paper(released, strategy):
    """Equations 10 and 16, radix by radix."""
    width, theta, native, s = released.head_dim, released.theta, released.max_positions, 8.0
    low, high = (width / 2 * math.log(native / (2 * math.pi * turns), theta) for turns in (32, 1))
    low, high, scale = math.floor(low), math.ceil(high), 1.0
    for k, frequency in enumerate(create("mrrope", released, factor=s, strategy=strategy).inv_freq.tolist()):
        assert frequency == pytest.approx(theta ** (-2 * k / width) / scale, rel=2e-6)
        if low <= k < high:
            scale *= s ** (1 / (high - low) if strategy == "uni" else 2 * (1 + k - low) / ((1 + high - low) * (high - low)))
    assert scale == pytest.approx(s)


def test_is_no_stock_scheme(geometry):
    assert create("mrrope", geometry, factor=2.0).rope_parameters() is None


@pytest.mark.parametrize("options", [{"strategy": "both"}, {"beta_fast": 0.5}, {"attention_factor": 0}, {"factor": 0.5}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("mrrope", geometry, **{"factor": 2.0} | options)


def test_refuses_a_scaled_model(yarned):
    with pytest.raises(ValueError, match="'mrrope' does not compose"):
        create("mrrope", yarned, factor=2.0)
