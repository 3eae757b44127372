import math

import pytest
import torch
from tiny import started
from torch import nn
from torch.nn import functional as F

from hf_posenc.encodings import create


def drawn(name, geometry, **options):
    """With weights in both layers."""
    torch.manual_seed(0)
    dape = create(name, geometry, **options).double()
    for weight in dape.parameters():
        weight.data.normal_()
    return dape


def products(q, k, geometry):
    """A and ALiBi's B of four heads, [B,H,T,T]."""
    slopes = torch.tensor([2.0 ** (-2 * (h + 1)) for h in range(4)], dtype=torch.float64)
    distance = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
    return q @ k.repeat_interleave(2, 1).mT / math.sqrt(8), (-slopes[:, None, None] * distance.abs()).expand(2, -1, -1, -1)


def test_scores(geometry, random_qk):
    """A + B + MLP(A, B), pair by pair."""
    dape, (q, k, pos) = drawn("dape", geometry, width=5), random_qk(geometry, 7)
    a, b = products(q, k, geometry)
    scores = dape.scores(q, k, pos, pos).detach()
    for i in range(7):
        for j in range(i + 1):
            x = torch.cat((a[:, :, i, j], b[:, :, i, j]), -1)
            hidden = F.leaky_relu(x @ dape.w1.detach().T + dape.b1.detach())
            expected = a[:, :, i, j] + b[:, :, i, j] + hidden @ dape.w2.detach().T + dape.b2.detach()
            torch.testing.assert_close(scores[:, :, i, j], expected)


def test_scores_of_v2(geometry, random_qk):
    """Row by row, of the keys that a query sees: two convolutions with zeros at both ends."""
    dape, (q, k, pos) = drawn("dape_v2", geometry, width=5), random_qk(geometry, 7)
    a, b = products(q, k, geometry)
    first, second = nn.Conv1d(8, 5, 3, padding=1).double(), nn.Conv1d(5, 4, 3, padding=1).double()
    first.weight.data, first.bias.data = dape.w1.data[:, :, 0], dape.b1.data
    second.weight.data, second.bias.data = dape.w2.data[:, :, 0], dape.b2.data
    scores = dape.scores(q, k, pos, pos)
    for i in range(7):
        row = slice(0, i + 1)
        x = torch.cat((a[:, :, i, row], b[:, :, i, row]), 1)
        torch.testing.assert_close(scores[:, :, i, row], a[:, :, i, row] + b[:, :, i, row] + second(F.leaky_relu(first(x))))


def test_v2_reaches_past_what_is_hidden(geometry, random_qk):
    """As in decoding after a prompt that is padded on the right."""
    dape, (q, k, pos) = drawn("dape_v2", geometry), random_qk(geometry, 9)
    seen, kept = torch.ones(9, 9).tril().bool()[None, None], [0, 1, 5, 6, 7, 8]
    seen[..., 2:5] = False
    some = dape.scores(q, k, pos, pos, seen=seen)[:, :, kept][..., kept]
    alone = dape.scores(q[:, :, kept], k[:, :, kept], pos[:, kept], pos[:, kept])
    told = seen[:, :, kept][..., kept].expand_as(some)
    torch.testing.assert_close(some[told], alone[told])


def test_v2_of_one_row_alone(geometry, random_qk):
    """As in decoding, where the square that is cut to a triangle would be a row that is cut to its first key."""
    dape, (q, k, pos) = drawn("dape_v2", geometry), random_qk(geometry, 7)
    torch.testing.assert_close(dape.scores(q[:, :, -1:], k, pos[:, -1:], pos), dape.scores(q, k, pos, pos)[:, :, -1:])


@pytest.mark.parametrize("name", ["dape", "dape_v2"])
@pytest.mark.parametrize("base", ["alibi", "sandwich"])
def test_starts_as_its_base(name, base):
    encoding, logits = started(name, base=base)
    assert encoding.starts_as == base
    torch.testing.assert_close(logits, started(base)[1])


@pytest.mark.parametrize("base", ["rope", "dape", "nonsense", 3])
def test_its_base_is_a_bias(geometry, base):
    with pytest.raises(ValueError, match="base of 'dape' is an encoding that is a bias"):
        create("dape", geometry, base=base)
    with pytest.raises(ValueError, match="options of every encoding are for 'dape' as a whole"):
        create("dape", geometry, options={"temperature": "log_n"})
    assert create("dape", geometry, options={"learned": True}).starts_as == ""
    with pytest.raises(ValueError, match="kernel must be odd"):
        create("dape_v2", geometry, kernel=4)
