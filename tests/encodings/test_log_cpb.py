import math

import pytest
import torch
from tiny import started
from transformers import Swinv2Config
from transformers.models.swinv2.modeling_swinv2 import Swinv2SelfAttention

from hf_posenc.encodings import create


def test_is_the_bias_of_swin_v2_along_one_axis(geometry):
    """With queries and keys at zero, its attention is the softmax of its bias."""
    torch.manual_seed(0)
    width = 9
    attention = Swinv2SelfAttention(Swinv2Config(), 32, 4, (width, 1), pretrained_window_size=[width, 2]).eval()
    attention.query.weight.data.zero_(), attention.query.bias.data.zero_(), attention.key.weight.data.zero_()
    encoding, (first, _, second) = create("log_cpb", geometry, span=width), attention.continuous_position_bias_mlp
    encoding.w1.data, encoding.b1.data, encoding.w2.data = first.weight.data[:, 0], first.bias.data, second.weight.data
    future = torch.full((width, width), -torch.inf).triu(1)
    weights = attention(torch.randn(1, width, 32), future[None], output_attentions=True)[1][0]
    pos = torch.arange(width)[None]
    torch.testing.assert_close((encoding.bias_matrix(pos, pos)[0] + future).softmax(-1), weights)
    assert weights[:, -1].std() > 1e-3


def perceptron(encoding, z):
    """f a unit at a time."""
    out = [0.0] * len(encoding.w2)
    for unit, (w, b) in enumerate(zip(encoding.w1.tolist(), encoding.b1.tolist(), strict=True)):
        out = [x + max(0.0, w * z + b) * y for x, y in zip(out, encoding.w2[:, unit].tolist(), strict=True)]
    return out


@pytest.mark.parametrize("span, bound", [(None, None), (None, 2.0), (5, 16.0)])
def test_scores(geometry, random_qk, span, bound):
    encoding = create("log_cpb", geometry, width=20, span=span, bound=bound)
    with torch.no_grad():
        encoding.w1[3], encoding.w1[4] = 0.0, -0.0  # units that never bend
        encoding.b1[3], encoding.b1[4] = 0.7, -0.7
    q, k, _ = random_qk(geometry, 6)
    pos = torch.tensor([[0, 1, 2, 30, 900, 10**6]])
    scores, none = (e.scores(q, k, pos, pos) for e in (encoding, create("nope", geometry)))
    for i in range(6):
        for j in range(i + 1):
            distance = int(pos[0, i] - pos[0, j])
            z = math.log(1 + distance) if span is None else math.log2(1 + 8 * distance / (span - 1)) / math.log2(8)
            added = [x if bound is None else bound / (1 + math.exp(-x)) for x in perceptron(encoding, z)]
            torch.testing.assert_close((scores - none)[:, :, i, j], torch.tensor([added] * 2).double(), rtol=0, atol=1e-6)


def test_gradients_are_those_of_the_plain_perceptron(geometry):
    encoding, pos = create("log_cpb", geometry, width=30, bound=None), torch.arange(12)[None]
    weight = torch.randn(4, 12, 12).tril()
    (encoding.bias_matrix(pos, pos) * weight).sum().backward()
    ours = [p.grad for p in encoding.parameters()]
    z = torch.log1p((pos.T - pos).clamp(min=0).float())
    hidden = (z[..., None] * encoding.w1 + encoding.b1).relu()
    plain = torch.autograd.grad(((hidden @ encoding.w2.T).permute(2, 0, 1) * weight).sum(), list(encoding.parameters()))
    torch.testing.assert_close(ours, list(plain), rtol=1e-4, atol=1e-5)


def test_no_pair_of_tokens_has_hidden_units_of_its_own(geometry):
    """512 units for each pair of 256 tokens would be 134 MB."""
    encoding = create("log_cpb", geometry)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile, torch.no_grad():
        encoding.bias(torch.tensor(0), torch.arange(256)[:, None], torch.arange(256))
    assert max(event.cpu_memory_usage for event in profile.events()) <= 256 * 256 * 8


def test_zero_starts_as_none():
    encoding, logits = started("log_cpb", init="zero")
    assert encoding.starts_as == "nope"
    torch.testing.assert_close(logits, started("nope")[1])


@pytest.mark.parametrize("options", [{"width": 0}, {"span": 1}, {"bound": 0.0}, {"bound": float("nan")}, {"init": "normal"}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("log_cpb", geometry, **options)
