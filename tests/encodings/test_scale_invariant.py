import math

import pytest
import torch

import hf_posenc
from hf_posenc.encodings import create


def test_scores(geometry, random_qk):
    invariant, (q, k, _) = create("scale_invariant", geometry, tau=5.0, p=0.5), random_qk(geometry, 7)
    pos = torch.tensor([[0, 1, 2, 4, 9, 10, 5000]]).expand(2, -1)
    scores, rotated = (encoding.scores(q, k, pos, pos) for encoding in (invariant, create("p_rope", geometry, p=0.5)))
    for i in range(7):
        for j in range(i + 1):
            far = math.log(int(pos[0, i] - pos[0, j]) / 5 + 1)
            torch.testing.assert_close(scores[:, :, i, j], math.sqrt(2 * far + 1) * rotated[:, :, i, j] - 2 * far)


def test_ranges_of_distances_have_the_same_weight(geometry, random_qk):
    """What it was made for: of scores that are N(0, 1), those of distances t .. 2 t sum to e^1/2 tau log 2 wherever t is far from tau."""
    invariant, (q, k, _) = create("scale_invariant", geometry), random_qk(geometry, 1)
    torch.manual_seed(0)
    pos = torch.arange(8192)[None]
    block = invariant.block(q[:1], k[:1].expand(-1, -1, 8192, -1), pos[:, -1:], pos)
    weights = invariant.mix(torch.randn(400, 1, 1, 8192), block).exp().mean((0, 1, 2)).flip(0)
    for t in (256, 1024, 4096):
        assert weights[t : 2 * t].sum().item() == pytest.approx(math.exp(0.5) * 10 * math.log(2), rel=0.15)


def test_is_no_scheme_that_stock_transformers_knows(geometry):
    invariant = create("scale_invariant", geometry)
    assert invariant.rope_parameters() is None and invariant.frequencies() is None
    assert set(hf_posenc.describe("scale_invariant").stages) == {"rotate", "mix"}


@pytest.mark.parametrize("options", [{"tau": 0}, {"p": 1.5}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("scale_invariant", geometry, **options)
