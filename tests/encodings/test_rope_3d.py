import pytest
import torch
from tiny import tiny_model

import hf_posenc
from hf_posenc.encodings import create


def test_scores(geometry, random_qk, rotary_scores):
    """Chunks of 4 tokens: places in them, and phases 1, 1/100, 1/10000 ..."""
    encoding, (q, k, pos) = create("rope_3d", geometry, chunk=4, base=100.0), random_qk(geometry, 11)
    turn = lambda t: [(t % 4) * 10_000 ** (-n / 4) + 100.0 ** -(t // 4) for n in range(4)]  # noqa: E731
    expected = rotary_scores(q, k, lambda i, j: [a - b for a, b in zip(turn(i), turn(j), strict=True)])
    torch.testing.assert_close(encoding.scores(q, k, pos, pos), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_within_the_first_chunk_it_is_rope():
    """And no further: the default is three quarters of the native 12 tokens."""
    model, stock, ids = hf_posenc.patch(tiny_model("llama"), "rope_3d"), tiny_model("llama"), torch.arange(3, 20)[None]
    near, far = (model(ids).logits - stock(ids).logits).abs().amax((0, 2)).split((9, 8))
    assert near.max() < 1e-5 and far.min() > 1e-4


@pytest.mark.parametrize("options", [{"chunk": 0}, {"chunk": 2.0}, {"base": 0.5}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("rope_3d", geometry, **options)
