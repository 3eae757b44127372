import math

import pytest
import torch

from hf_posenc.encodings import Geometry, create

AUTHORS = [0.00014825335529167205, 7.1290642154053785e-06, 3.085272510361392e-06, 2.0552516133420795e-08, 0.0]
"""Frequencies of pairs 43, 54, 56, 62 and 63 of a head of 128, theta = 500,000 and L = 8192, from hrlics/CoPE."""


def test_numbers_of_the_authors_code():
    llama3 = Geometry(hidden_size=4096, num_heads=32, num_kv_heads=8, theta=500_000.0, max_positions=8192)
    clipped, plain = create("clipped_rope", llama3), create("rope", llama3)
    torch.testing.assert_close(clipped.inv_freq[[43, 54, 56, 62, 63]], torch.tensor(AUTHORS), rtol=1e-5, atol=1e-12)
    assert torch.equal(clipped.inv_freq[:45], plain.inv_freq[:45])
    assert clipped.inv_freq[-1] == 0 < clipped.inv_freq[-2]


@pytest.mark.parametrize("hard", [False, True])
def test_taper(released, hard):
    plain, clipped = create("rope", released).inv_freq, create("clipped_rope", released, clipped=7, hard=hard).inv_freq
    expected = [0.0 if hard else (1 + math.cos(math.pi * i / 6)) / 2 for i in range(7)]
    torch.testing.assert_close(clipped[-7:] / plain[-7:], torch.tensor(expected), rtol=0, atol=1e-6)
    assert torch.equal(clipped[:-7], plain[:-7])


def test_stands_on_the_scaling_of_the_model(yarned):
    clipped = create("clipped_rope", yarned, clipped=3)
    torch.testing.assert_close(clipped.inv_freq, torch.tensor([1.0, 0.3, 0.01, 0.0]), rtol=1e-6, atol=1e-9)
    assert (clipped.attention_factor, clipped.rope_parameters()) == (1.25, None)


def test_of_another_base(geometry):
    assert torch.equal(create("clipped_rope", geometry, theta=500.0, clipped=1).inv_freq, create("rope", geometry, theta=500.0).inv_freq)


@pytest.mark.parametrize("options", [{"clipped": 0}, {"clipped": 5}, {"hard": 1}, {"theta": 0}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("clipped_rope", geometry, **options)
