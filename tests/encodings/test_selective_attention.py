import math

import pytest
import torch
from tiny import started

from hf_posenc.encodings import create
from hf_posenc.encodings.contextual import selective_attention


def lively(geometry, **options):
    torch.manual_seed(0)
    encoding = create("selective_attention", geometry, width=5, **options).double()
    encoding.u.data.normal_(), encoding.v.data.normal_()
    return encoding


def two_documents_and_padding():
    """Positions [2,9] and which pairs meet [2,1,9,9]: row 0 is a text, row 1 two, with padding in the second."""
    pos = torch.stack((torch.arange(9), torch.tensor([0, 1, 2, 0, 1, 1, 2, 3, 4])))
    document, real = torch.tensor([[0] * 9, [0] * 3 + [1] * 6]), torch.arange(9) != torch.tensor([[9], [5]])
    seen = (document[:, :, None] == document[:, None]) & real[:, None] & torch.ones(9, 9).tril().bool()
    return pos, seen[:, None]


@pytest.mark.parametrize("chunk", [1, 4, 256])
@pytest.mark.parametrize("base", ["rope", "nope"])
@torch.no_grad()
def test_scores(base, chunk, geometry, random_qk, monkeypatch):
    """One vote after another."""
    monkeypatch.setattr(selective_attention, "CHUNK", chunk)
    encoding, (q, k, _), (pos, seen) = lively(geometry, base=base), random_qk(geometry, 9), two_documents_and_padding()
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    scores = encoding.scores(q, k, pos, pos, state=encoding.state(x, pos), seen=seen)
    plain = create(base, geometry).scores(q, k, pos, pos)
    for b, _, i, j in seen.nonzero().tolist():
        votes = 0.0
        for t in range(j + 1, i):
            if seen[b, 0, i, t] and pos[b, j] > 0:
                votes += max(0.0, float((encoding.u @ x[b, t]) @ (encoding.v @ x[b, j])) / math.sqrt(5))
        for h in range(4):
            assert math.isclose(scores[b, h, i, j].item(), plain[b, h, i, j].item() - votes, abs_tol=1e-6)


@torch.no_grad()
def test_equals_the_paper_where_its_scores_vote(geometry, random_qk):
    """Its listing: the rectified scores of one head, but for the first key and each query's own, summed over the queries before."""
    encoding, (q, k, pos), x = lively(geometry, base="nope"), random_qk(geometry, 9), torch.randn(2, 9, 32, dtype=torch.float64)
    visible = torch.ones(9, 9).tril().bool()
    logits = create("nope", geometry).scores(q, k, pos, pos).masked_fill(~visible, -torch.inf)
    votes = torch.einsum("btn,bjn->btj", x @ encoding.u.T, x @ encoding.v.T) / math.sqrt(5)
    votes = votes.masked_fill(~visible, -torch.inf).relu()
    votes[..., 0] = 0
    votes = (votes * (1 - torch.eye(9))).roll(1, -2)
    votes[:, 0] = 0
    expected = logits - votes.cumsum(-2)[:, None]
    scores = encoding.scores(q, k, pos, pos, state=encoding.state(x, pos))
    torch.testing.assert_close(scores[..., visible], expected[..., visible])


@torch.no_grad()
def test_a_block_needs_the_keys_that_it_sees_alone(geometry, random_qk):
    """A window, and queries that are not the last."""
    encoding, (q, k, pos) = lively(geometry), random_qk(geometry, 11)
    state = encoding.state(torch.randn(2, 11, 32, dtype=torch.float64), pos)
    seen = (torch.ones(11, 11).tril() * torch.ones(11, 11).triu(-3)).bool()[None, None]
    whole = encoding.block(q, k, pos, pos, state=state, seen=seen)
    added, keys = encoding.mix(torch.zeros(2, 4, 11, 11).double(), whole), slice(3, 9)
    part = encoding.mix(torch.zeros(2, 4, 2, 6).double(), whole.part(slice(None), slice(6, 8), keys, seen[:, :, 6:8, keys]))
    visible = seen[:, :, 6:8, keys].expand_as(part)
    torch.testing.assert_close(part[visible], added[:, :, 6:8, keys][visible])


def test_it_learns_from_the_start(geometry, random_qk):
    """There no vote is above zero, and rectified ones would have no gradient."""
    encoding, (q, k, pos) = create("selective_attention", geometry), random_qk(geometry, 9)
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    encoding.scores(q, k, pos, pos, state=encoding.state(x, pos)).softmax(-1)[..., 0].sum().backward()
    assert encoding.u.grad.abs().max() > 1e-4 and not encoding.u.any()


def test_no_votes_are_kept_for_the_backward_pass(geometry, random_qk, monkeypatch):
    monkeypatch.setattr(selective_attention, "CHUNK", 8)
    encoding, (q, k, pos), kept = lively(geometry), random_qk(geometry, 128), {}
    block = encoding.block(q, k, pos, pos, state=encoding.state(torch.randn(2, 128, 32, dtype=torch.float64), pos))
    part = block.part(slice(None), slice(124, 128), slice(0, 128), block.seen[:, :, 124:])

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        encoding.mix(torch.zeros(2, 4, 4, 128).double(), part)
    assert kept and sum(x.untyped_storage().nbytes() for x in kept.values()) < 8 * 128 * 128 / 2


@pytest.mark.parametrize("base", ["rope", "nope", "p_rope"])
def test_starts_as_its_base(base):
    encoding, logits = started("selective_attention", base=base)
    assert encoding.starts_as == base
    torch.testing.assert_close(logits, started(base)[1])


@pytest.mark.parametrize("options", [{"width": 0}, {"base": "alibi"}, {"base": "log_n"}, {"base": 3}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("selective_attention", geometry, **options)
