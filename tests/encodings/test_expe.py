import pytest
import torch

from hf_posenc.encodings import create


def test_the_first_dimensions_are_the_position(geometry):
    x, pos = torch.randn(2, 3, 32, dtype=torch.float64), torch.tensor([[0, 1, 2], [7, 300, 70_000]])
    out = create("expe", geometry, start=-1.5, step=0.25, dims=3).embed(x, pos)
    for b in range(2):
        for t in range(3):
            assert out[b, t].tolist() == [-1.5 + 0.25 * pos[b, t].item()] * 3 + x[b, t, 3:].tolist()
    assert create("expe", geometry).embed(x.bfloat16(), pos).dtype == torch.bfloat16


@pytest.mark.parametrize("options", [{"start": float("inf")}, {"step": 0}, {"dims": 0}, {"dims": 32}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("expe", geometry, **options)
