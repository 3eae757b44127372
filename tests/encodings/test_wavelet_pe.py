import math

import pytest
import torch

from hf_posenc.encodings import create


@pytest.mark.parametrize("scales, shifts", [(8, 1), (4, 2), (3, 3), (1, 8)])
def test_scores(geometry, random_qk, scales, shifts):
    """Each of 8 dimensions has a wavelet of its own."""
    q, k, pos = random_qk(geometry, 12)
    scores = create("wavelet_pe", geometry, scales=scales).scores(q, k, pos, pos)
    pairs = [(2.0**s, b) for s in range(scales) for b in range(shifts)][:8]
    for i in range(12):
        for j in range(i + 1):
            t = [(i - j - b) / a for a, b in pairs]
            p = torch.tensor([(1 - x * x) * math.exp(-x * x / 2) / math.sqrt(a) for x, (a, _) in zip(t, pairs, strict=True)]).double()
            for h in range(4):
                expected = (q[:, h, i] * (k[:, h // 2, j] + p)).sum(-1) / math.sqrt(8)
                torch.testing.assert_close(scores[:, h, i, j], expected, rtol=0, atol=1e-6)


def test_nothing_is_left_far_away(geometry):
    """The table ends where no wavelet is above rounding; beyond, the score is that of content alone."""
    table = create("wavelet_pe", geometry).table
    assert table[-1].abs().max() == 0 and table[-2].abs().max() < 1e-8 < table[400].abs().max()
    q, k = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 1, 8)
    far = create("wavelet_pe", geometry).scores(q, k, torch.tensor([[100_000]]), torch.tensor([[0]]))
    torch.testing.assert_close(far, create("nope", geometry).scores(q, k, torch.tensor([[100_000]]), torch.tensor([[0]])))


@pytest.mark.parametrize("scales", [0, 9, 2.0])
def test_bad_scales(geometry, scales):
    with pytest.raises(ValueError, match="scales"):
        create("wavelet_pe", geometry, scales=scales)
