import dataclasses

import pytest
import torch

from hf_posenc.encodings import create

AUTHORS = {  # get_nape_slopes of deep-spin/asentmax (sparse_gemma.py): "linear" with 8 heads, 4 with ALiBi; "exp" with 9 and 4
    ("harmonic", 8): [1.0, 0.5, 0.333333, 0.25, 0.0, 0.0, 0.0, 0.0],
    ("exponential", 9): [1.0, 0.5, 0.25, 0.125, 0.0, 0.0, 0.0, 0.0, 0.0],
}


@pytest.mark.parametrize("kind, heads", AUTHORS)
def test_slopes_of_the_authors(geometry, kind, heads):
    nape = create("nape", dataclasses.replace(geometry, num_heads=heads, num_kv_heads=1), slopes=kind)
    torch.testing.assert_close(nape.slopes, torch.tensor(AUTHORS[kind, heads]), rtol=0, atol=1e-6)


def test_scores(geometry, random_qk):
    q, k, pos = random_qk(geometry, 12)
    scores, none = (create(name, geometry).scores(q, k, pos, pos) for name in ("nape", "nope"))
    for i in range(12):
        for j in range(i + 1):
            added = torch.tensor([j - i, (j - i) / 2, 0.0, 0.0]).double()
            torch.testing.assert_close(scores[:, :, i, j], none[:, :, i, j] + added)


@pytest.mark.parametrize("heads, first", [(1, 1), (2, 1), (3, 1), (9, 4)])
def test_half_of_the_heads_but_one_at_least(geometry, heads, first):
    nape = create("nape", dataclasses.replace(geometry, num_heads=heads, num_kv_heads=1))
    assert (nape.slopes > 0).tolist() == [h < first for h in range(heads)]
    assert (create("nape", nape.geometry, alibi_heads=heads).slopes > 0).all()


def test_columns_are_the_bias(geometry):
    nape, pos = create("nape", geometry), torch.tensor([[0, 3, 7]])
    slopes, numbers = nape.columns(pos)
    products = slopes[:, None] * (numbers - 7)
    assert torch.equal(products[None, :, None], nape.bias_matrix(torch.tensor([[7]]), pos))


@pytest.mark.parametrize("options", [{"alibi_heads": 0}, {"alibi_heads": 5}, {"alibi_heads": 2.0}, {"slopes": "linear"}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("nape", geometry, **options)
