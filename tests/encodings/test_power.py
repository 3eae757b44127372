import pytest
import torch

from hf_posenc.encodings import create

AUTHORS = [1.0, 0.29580399394, 0.08660253882, 0.02500000224, 0.00707106758, 0.00193649181, 0.00050000002, 0.00011180340516]
"""For a head of 16 and p = 0.5, from abacusai/Long-Context."""


def test_numbers_of_the_authors_code(tiny):
    torch.testing.assert_close(create("power", tiny).inv_freq, torch.tensor(AUTHORS), rtol=1e-6, atol=0)


@pytest.mark.parametrize("p", [0.1, 2.0])
def test_formula(released, p):
    n = released.head_dim // 2
    expected = [released.theta ** (-k / n) * ((n - k) / n) ** p for k in range(n)]
    torch.testing.assert_close(create("power", released, p=p).inv_freq.double(), torch.tensor(expected).double(), rtol=3e-6, atol=0)
    assert create("power", released).rope_parameters() is None


@pytest.mark.parametrize("p", [0, -1, float("nan"), "half"])
def test_bad_options(geometry, p):
    with pytest.raises(ValueError, match="p must"):
        create("power", geometry, p=p)


def test_refuses_a_scaled_model(yarned):
    with pytest.raises(ValueError, match="'power' does not compose"):
        create("power", yarned)
