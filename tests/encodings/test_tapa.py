import math

import pytest

from hf_posenc.encodings import create


@pytest.mark.parametrize("share, width", [(0.5, 4), (0.25, 2)])
def test_scores(geometry, random_qk, share, width):
    tapa, (q, k, pos) = create("tapa", geometry, share=share, alpha=0.3), random_qk(geometry, 9)
    scores = tapa.scores(q, k, pos, pos)
    for i, j in ((8, 0), (5, 4), (3, 3)):
        one, other = q[1, 2, i].tolist(), k[1, 1, j].tolist()
        size = sum(a * b for a, b in zip(one[:width], other[:width], strict=True)) / math.sqrt(width)
        phase = sum(a * b for a, b in zip(one[width:], other[width:], strict=True)) / math.sqrt(8 - width)
        expected = size * math.cos(2 * math.pi * (i - j) ** 0.3 * phase)
        assert math.isclose(scores[1, 2, i, j].item(), expected, abs_tol=1e-9)


@pytest.mark.parametrize("options", [{"share": 0.0}, {"share": 1.0}, {"alpha": 0.0}, {"alpha": -1}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("tapa", geometry, **options)
