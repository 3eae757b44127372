import pytest
import torch

from hf_posenc.encodings import create


def test_multiplies_by_one_and_the_row_of_the_position(geometry):
    multiplicative = create("multiplicative", geometry, max_positions=301)
    torch.nn.init.normal_(multiplicative.table)
    x, pos = torch.randn(2, 3, 32, dtype=torch.float64), torch.tensor([[0, 1, 15], [4, 300, 2]])
    out = multiplicative.embed(x, pos)
    for b in range(2):
        for t in range(3):
            row = multiplicative.table[pos[b, t]].tolist()
            assert out[b, t].tolist() == pytest.approx([a * (1 + p) for a, p in zip(x[b, t].tolist(), row, strict=True)])
    assert multiplicative.embed(x.bfloat16(), pos).dtype == torch.bfloat16


def test_past_the_table(geometry):
    with pytest.raises(ValueError, match=r'position 16 lies past the learned table of 16 positions. .*"multiplicative", max_positions=17'):
        create("multiplicative", geometry).check_positions(16)
