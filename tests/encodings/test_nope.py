import torch

from hf_posenc.encodings import create


def test_positions_have_no_effect(geometry, random_qk):
    q, k, pos = random_qk(geometry, 10)
    nope = create("nope", geometry)
    expected = torch.einsum("bgnqd,bgkd->bgnqk", q.unflatten(1, (2, 2)), k).flatten(1, 2) / 8**0.5
    torch.testing.assert_close(nope.scores(q, k, pos, pos), expected)
    torch.testing.assert_close(nope.scores(q, k, 7 * pos + 3, pos, scaling=1.0), expected * 8**0.5)


def test_embeddings_are_untouched(geometry):
    x = torch.randn(2, 5, 32)
    assert torch.equal(create("nope", geometry).embed(x, torch.arange(5).expand(2, -1)), x)
