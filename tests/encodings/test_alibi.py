import dataclasses
import math

import pytest
import torch
from transformers.models.bloom.modeling_bloom import _get_alibi_slopes
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from hf_posenc.encodings import create


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


def test_takes_no_options(geometry):
    with pytest.raises(ValueError, match=r"'alibi' has no option 'slopes'. It takes no options"):
        create("alibi", geometry, slopes=[1.0])
