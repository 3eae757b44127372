import math

import pytest
import torch
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.roformer.modeling_roformer import RoFormerSinusoidalPositionalEmbedding
from transformers.models.xglm.modeling_xglm import XGLMSinusoidalPositionalEmbedding

from hf_posenc.encodings import Geometry, create
from hf_posenc.encodings.input.sinusoidal import LAYOUTS


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


@pytest.mark.parametrize("options", [{"layout": "half"}, {"unit": "token"}, {"theta": -1}, {"scale": 0}, {"scale": float("inf")}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("sinusoidal", geometry, **options)


def test_odd_width():
    with pytest.raises(ValueError, match="hidden_size is odd: 15"):
        create("sinusoidal", Geometry(hidden_size=15, num_heads=1))


def test_tensor2tensor_equals_transformers(geometry):
    """XGLM, which counts positions from 2."""
    table = XGLMSinusoidalPositionalEmbedding.get_embedding(202, 32)
    wave = create("sinusoidal", geometry, layout="tensor2tensor").embed(torch.zeros(1, 200, 32), torch.arange(2, 202)[None])
    torch.testing.assert_close(wave[0], table[2:], rtol=0, atol=5e-5)


def test_tensor2tensor_of_one_pair():
    narrow = create("sinusoidal", Geometry(hidden_size=2, num_heads=1), layout="tensor2tensor")
    assert narrow.embed(torch.zeros(1, 1, 2), torch.tensor([[3]]))[0, 0].tolist() == pytest.approx([math.sin(3), math.cos(3)])


def test_the_three_layouts_are_not_one():
    """The second frequency of 16 dimensions is 0.316 in the paper and 0.268 in its code."""
    seen = {}
    for layout in LAYOUTS:
        sinusoidal = create("sinusoidal", Geometry(hidden_size=16, num_heads=1), layout=layout)
        seen[layout] = sinusoidal.embed(torch.zeros(1, 1, 16), torch.tensor([[1]]))[0, 0]
    assert seen["interleaved"][2].asin().item() == pytest.approx(0.316, abs=5e-4)
    assert seen["concatenated"][1].asin().item() == pytest.approx(0.316, abs=5e-4)
    assert seen["tensor2tensor"][1].asin().item() == pytest.approx(0.268, abs=5e-4)


@pytest.mark.parametrize("std", [0.02, 50.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaled_by_the_embedding(geometry, std, dtype):
    """c is the length of what is added by that of the embedding; the direction is that of the absolute one."""
    torch.manual_seed(0)
    x, pos = (torch.randn(2, 9, 32) * std).to(dtype), torch.arange(9).expand(2, -1)
    added = create("sinusoidal", geometry, scale=0.5, unit="embedding").embed(x, pos).double() - x.double()
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(added.norm(dim=-1) / x.double().norm(dim=-1), torch.full((2, 9), 0.5).double(), rtol=0, atol=tolerance)
    absolute = create("sinusoidal", geometry).embed(torch.zeros(2, 9, 32), pos).double()
    assert torch.cosine_similarity(added, absolute, dim=-1).min() > 1 - tolerance


def test_an_embedding_of_zeros_has_a_gradient(geometry):
    """That of padding."""
    x = torch.zeros(1, 2, 32, requires_grad=True)
    create("sinusoidal", geometry, unit="embedding").embed(x, torch.arange(2)[None]).sum().backward()
    assert torch.equal(x.grad, torch.ones(1, 2, 32))
