import math

import pytest
import torch
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.roformer.modeling_roformer import RoFormerSinusoidalPositionalEmbedding

from hf_posenc.encodings import Geometry, create


@pytest.mark.parametrize("stock", [MarianSinusoidalPositionalEmbedding, RoFormerSinusoidalPositionalEmbedding])
def test_concatenated_equals_transformers(geometry, stock):
    table = stock(200, 32).create_weight()
    wave = create("sinusoidal", geometry, layout="concatenated").embed(torch.zeros(1, 200, 32), torch.arange(200)[None])
    torch.testing.assert_close(wave[0], table, rtol=0, atol=5e-5)


@pytest.mark.parametrize("theta", [10_000.0, 50.0])
def test_interleaved_is_the_paper(geometry, theta):
    sinusoidal = create("sinusoidal", geometry, theta=theta, scale=0.5)
    x = torch.randn(2, 3, 32, dtype=torch.float64)
    pos = torch.tensor([[0, 1, 2], [7, 300, 4000]])
    added = sinusoidal.embed(x, pos) - x
    for b in range(2):
        for t in range(3):
            for n in range(16):
                angle = pos[b, t].item() / theta ** (2 * n / 32)
                assert added[b, t, 2 * n].item() == pytest.approx(0.5 * math.sin(angle), abs=2e-4)
                assert added[b, t, 2 * n + 1].item() == pytest.approx(0.5 * math.cos(angle), abs=2e-4)


def test_angles_stay_precise_in_half_precision(geometry):
    sinusoidal = create("sinusoidal", geometry).to(torch.bfloat16)
    pos = torch.tensor([[4095]])
    wave = sinusoidal.embed(torch.zeros(1, 1, 32, dtype=torch.bfloat16), pos)
    torch.testing.assert_close(wave, sinusoidal.embed(torch.zeros(1, 1, 32), pos).bfloat16())


@pytest.mark.parametrize("options", [{"layout": "half"}, {"theta": -1}, {"scale": 0}, {"scale": float("inf")}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("sinusoidal", geometry, **options)


def test_odd_width():
    with pytest.raises(ValueError, match="hidden_size is odd: 15"):
        create("sinusoidal", Geometry(hidden_size=15, num_heads=1))
