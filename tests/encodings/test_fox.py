import math

import pytest
import torch
from tiny import tiny_model

import hf_posenc
from hf_posenc.encodings import create


def gated(geometry, **options):
    torch.manual_seed(1)
    fox = create("fox", geometry, **options).double()
    fox.w.data.normal_()
    fox.b.data.normal_()
    return fox


def test_scores(geometry, random_qk):
    """Softmax of q k / sqrt(D) plus the logarithms of all gates after the key, one number at a time."""
    fox, (q, k, pos) = gated(geometry), random_qk(geometry, 9)
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    weights = fox.scores(q, k, pos, pos, state=fox.state(x, pos)).masked_fill(~torch.ones(9, 9).tril().bool(), -torch.inf).softmax(-1)
    for b in range(2):
        for h in range(4):
            for i in range(9):
                scores = []
                for j in range(i + 1):
                    gates = [1 / (1 + math.exp(-float(fox.w[h] @ x[b, t] + fox.b[h]))) for t in range(j + 1, i + 1)]
                    scores.append(float(q[b, h, i] @ k[b, h // 2, j]) / math.sqrt(8) + sum(math.log(f) for f in gates))
                expected = torch.tensor(scores, dtype=torch.float64).softmax(0)
                torch.testing.assert_close(weights[b, h, i, : i + 1], expected)


def test_a_closed_gate_forgets_all_before_it():
    model = tiny_model("llama", num_hidden_layers=1)
    hf_posenc.patch(model, "fox")
    encoding = model.model.positional_encoding
    direction = torch.nn.functional.normalize(model.model.layers[0].input_layernorm(model.model.embed_tokens(torch.tensor(7))), dim=0)
    encoding.w.data = -1000 * direction.detach().expand(4, -1)
    encoding.b.data.fill_(3000.0)  # open but for token 7
    ids = torch.tensor([[3, 9, 4, 11, 7, 5, 8]])
    others = torch.tensor([[6, 2, 12, 3, 7, 5, 8]])
    margin = (model.model.layers[0].input_layernorm(model.model.embed_tokens(torch.arange(13))) @ direction).tolist()
    assert margin[7] > max(margin[i] for i in (3, 9, 4, 11, 5, 8, 6, 2, 12))
    encoding.b.data.fill_(1000 * (margin[7] + max(margin[i] for i in (3, 9, 4, 11, 5, 8, 6, 2, 12))) / 2)
    torch.testing.assert_close(model(ids).logits[:, 4:], model(others).logits[:, 4:])
    assert (model(ids).logits[:, :4] - model(others).logits[:, :4]).abs().max() > 1e-3


@pytest.mark.parametrize("dtype, close", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_long_texts_in_half_precision(geometry, dtype, close):
    """At 3,000 tokens the sum of the gates is in the thousands, of which half precision holds neither the end nor the steps."""
    fox = create("fox", geometry)
    torch.manual_seed(0)
    length = 3000
    q, k = torch.randn(1, 4, 8, 8), torch.randn(1, 2, length, 8)
    pos, state = torch.arange(length)[None], -torch.rand(1, 4, length, 1) * 2
    weights = []
    for kind in (torch.float64, dtype):
        left, right = fox.meet(fox.block(q.to(kind), k.to(kind), pos[:, -8:], pos, 1.0, state))
        scores = left.double() @ right.double().repeat_interleave(2, 1).mT
        weights.append(scores.masked_fill(~torch.ones(8, length).tril(length - 8).bool(), -torch.inf).softmax(-1))
    assert (weights[0] - weights[1]).abs().max() < close
