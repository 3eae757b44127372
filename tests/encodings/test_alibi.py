import dataclasses
import math

import pytest
import torch
from tiny import started
from transformers.models.bloom.modeling_bloom import _get_alibi_slopes
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from hf_posenc.encodings import create
from hf_posenc.encodings.bias.alibi import SMALLEST_SLOPE, alibi_slopes


def authors_slopes(n):
    """get_slopes of ofirpress/attention_with_linear_biases."""
    if math.log2(n).is_integer():
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]
    power = 2 ** math.floor(math.log2(n))
    return authors_slopes(power) + authors_slopes(2 * power)[0::2][: n - power]


@pytest.mark.parametrize("heads", [*range(1, 33), 40, 64, 71, 112])
def test_slopes(geometry, heads):
    alibi = create("alibi", dataclasses.replace(geometry, num_heads=heads, num_kv_heads=1))
    torch.testing.assert_close(alibi.slopes, torch.tensor(authors_slopes(heads)), rtol=1e-6, atol=0)
    torch.testing.assert_close(alibi.slopes, _get_alibi_slopes(heads, "cpu"), rtol=1e-5, atol=0)
    bias = alibi.bias_matrix(torch.tensor([[9]]), torch.arange(10)[None])
    torch.testing.assert_close(bias[0, :, 0], build_mpt_alibi_tensor(heads, 10)[:, 0])


def test_scores(geometry, random_qk):
    q, k, pos = random_qk(geometry, 20)
    pos = pos + torch.tensor([[0], [50_000]])
    scores = create("alibi", geometry).scores(q, k, pos, pos)
    for h, slope in enumerate((1 / 4, 1 / 16, 1 / 64, 1 / 256)):
        for i in range(20):
            for j in range(i + 1):
                expected = (q[:, h, i] * k[:, h // 2, j]).sum(-1) / math.sqrt(8) - slope * (i - j)
                torch.testing.assert_close(scores[:, h, i, j], expected)


@pytest.mark.parametrize("heads", [2, 3, 4, 6, 12])
def test_slopes_of_a_number_of_heads_that_is_no_power_of_two_are_not_the_plain_formula(heads):
    plain = [2 ** (-8 * (h + 1) / heads) for h in range(heads)]
    assert (alibi_slopes(heads).tolist() == pytest.approx(plain)) == math.log2(heads).is_integer()
    assert alibi_slopes(heads).min() == SMALLEST_SLOPE


def test_slopes_are_those_of_query_heads_not_of_the_heads_that_share_their_keys(geometry):
    one, shared = (create("alibi", dataclasses.replace(geometry, num_kv_heads=n)) for n in (4, 1))
    pos = torch.arange(5)[None]
    assert torch.equal(one.bias_matrix(pos, pos), shared.bias_matrix(pos, pos))
    assert len(set(shared.bias_matrix(pos, pos)[0, :, 4, 0].tolist())) == 4


def test_learned_slopes_start_from_those_of_the_model(geometry):
    own = dataclasses.replace(geometry, slopes=(0.5, 0.3, 0.2, 0.1))
    learned, pos = create("alibi", own, learned=True), torch.arange(9)[None]
    assert learned.starts_as == "alibi"
    assert torch.equal(learned.bias_matrix(pos, pos), create("alibi", own).bias_matrix(pos, pos))
    learned.bias_matrix(pos, pos).tril().sum().backward()
    assert learned.slopes.grad.tolist() == [-120.0] * 4  # the distances of all pairs of nine


def test_a_model_with_learned_slopes_starts_as_alibi():
    assert torch.equal(started("alibi", learned=True)[1], started("alibi")[1])


def test_learned_slopes_are_never_left_to_a_kernel_that_gives_them_no_gradient(geometry):
    pos = torch.arange(9)[None]
    slopes, numbers = create("alibi", geometry, learned=True).columns(pos)
    assert slopes.requires_grad and numbers is not pos and torch.equal(numbers, pos.double())
    assert create("alibi", geometry).columns(pos)[1] is pos


def test_bad_options(geometry):
    with pytest.raises(ValueError, match="learned is True or False, got 1"):
        create("alibi", geometry, learned=1)
