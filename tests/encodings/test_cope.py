import math

import pytest
import torch
from tiny import started, tiny_model

import hf_posenc
from hf_posenc.encodings import create


def by_hand(q, k, table, i, j, divided):
    """One score, by the paper."""
    p = min(sum(1 / (1 + math.exp(-(q[i] @ k[t]).item() / math.sqrt(8))) for t in range(j, i + 1)), len(table) - 1)
    low, high = math.floor(p), math.ceil(p)
    vector = (1 - (p - low)) * table[low] + (p - low) * table[high]
    return ((q[i] @ k[j]) / math.sqrt(8) + q[i] @ vector / (math.sqrt(8) if divided else 1)).item()


@pytest.mark.parametrize("divided", [False, True])
def test_scores(geometry, random_qk, divided):
    cope, (q, k, pos) = create("cope", geometry, positions=4, divided=divided).double(), random_qk(geometry, 9)
    torch.manual_seed(0)
    cope.table.data.normal_()
    scores = cope.scores(q, k, pos, pos).detach()
    for h in range(4):
        for i in range(9):
            for j in range(i + 1):
                expected = by_hand(q[1, h], k[1, h // 2], cope.table.detach(), i, j, divided)
                assert math.isclose(scores[1, h, i, j].item(), expected, abs_tol=1e-9)


def test_what_is_hidden_has_no_gate(geometry, random_qk):
    """Keys of the future, or of another text behind in the row, move no position."""
    cope, (q, k, pos) = create("cope", geometry, positions=4).double(), random_qk(geometry, 9)
    cope.table.data.normal_()
    other = k.clone()
    other[:, :, 5:] += 3
    seen = (torch.ones(9, 9).tril() * (torch.arange(9) < 5)).bool()[None, None]
    torch.testing.assert_close(cope.scores(q, k, pos, pos, seen=seen)[..., :5], cope.scores(q, other, pos, pos, seen=seen)[..., :5])


def test_starts_without_positions():
    encoding, logits = started("cope")
    assert encoding.starts_as == "nope"
    torch.testing.assert_close(logits, started("nope")[1])


def test_decoding_in_a_packed_row_counts_what_is_seen():

    model = hf_posenc.patch(tiny_model("llama"), "cope")
    for name, parameter in model.named_parameters():
        if "positional_encoding" in name:
            parameter.data.normal_()
    first, second = torch.tensor([[5, 9, 11, 7]]), torch.tensor([[8, 3, 12, 6, 4]])
    packed = model(torch.cat((first, second), 1), position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])).logits
    torch.testing.assert_close(packed[:, :4], model(first).logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(packed[:, 4:], model(second).logits, atol=1e-5, rtol=1e-4)
