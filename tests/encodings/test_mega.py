import pytest
import torch

from hf_posenc.encodings import create
from hf_posenc.encodings.bias import mega as mega_module

AUTHORS = [2.081442118, 1.430627584, 0.637786150, 0.353964418, 0.748499155, 1.354026318]
"""RotaryRelativePositionalBias(8, 16) of facebookresearch/mega: query 5, keys 0 .. 5, alpha and beta as below."""


@pytest.mark.parametrize("most", [0, mega_module.AT_ONCE])  # a frequency after the other, or all at once
def test_equals_the_authors_code(geometry, most, monkeypatch):
    monkeypatch.setattr(mega_module, "AT_ONCE", most)
    mega, row = create("mega", geometry, dim=8), torch.arange(1.0, 9.0)
    mega.a.data, mega.b.data = (row / 4).repeat(4, 1), row.cos().repeat(4, 1)
    mega.a.data[1] = 0
    bias = mega.bias_matrix(torch.tensor([[5]]), torch.arange(6)[None])
    torch.testing.assert_close(bias[0, 3, 0], torch.tensor(AUTHORS))
    assert not bias[0, 1].any()


@pytest.mark.parametrize("most", [0, mega_module.AT_ONCE])
def test_is_the_product_of_two_vectors_that_rope_has_turned(geometry, rotary_scores, most, monkeypatch):
    monkeypatch.setattr(mega_module, "AT_ONCE", most)
    mega, pos = create("mega", geometry, dim=6).double(), torch.tensor([[0, 1, 5, 700]])
    a, b = (x.data[None, :, None].expand(-1, -1, 701, -1) for x in (mega.a, mega.b))
    frequencies = [10_000 ** (-k / 3) for k in range(3)]
    turned = rotary_scores(a[:, :, pos[0]], b[:, :, pos[0]], lambda i, j: [int(pos[0, i] - pos[0, j]) * f for f in frequencies])
    torch.testing.assert_close(mega.bias_matrix(pos.double(), pos.double()), turned * 6**0.5, rtol=1e-3, atol=1e-6)


def test_every_parameter_learns(geometry):
    mega, pos = create("mega", geometry, dim=8), torch.arange(6)[None]
    mega.bias_matrix(pos, pos).tril().square().sum().backward()
    assert mega.per_layer and all((p.grad != 0).all() for p in mega.parameters())


@pytest.mark.parametrize("dim", [0, 5, 8.0])
def test_bad_options(geometry, dim):
    with pytest.raises(ValueError, match="dim"):
        create("mega", geometry, dim=dim)
