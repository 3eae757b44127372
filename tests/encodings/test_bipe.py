import math

import pytest
import torch
from texts import pieces, text_of
from tiny import tiny_model

import hf_posenc
from hf_posenc.encodings import create

IDS = torch.tensor([[9, 5, 1, 2, 3, 7, 7, 8, 9], [5, 4, 4, 4, 7, 1, 1, 5, 2]])
INDICES = [[0, 1, 0, 1, 2, 3, 0, 0, 1], [0, 0, 1, 2, 3, 0, 1, 2, 0]]
SEGMENTS = [[0, 0, 1, 1, 1, 1, 2, 3, 3], [0, 1, 1, 1, 1, 2, 2, 2, 3]]
"""What the authors' code makes of them, with the separators 5 and 7."""


@pytest.fixture
def bipe(geometry):
    return create("bipe", geometry, separators=[5, 7], rows=3)


@pytest.mark.parametrize("steps", [[9], [1] * 9, [2, 3, 1, 3]])
def test_counts_within_segments_and_segments(bipe, steps):
    assert pieces(bipe, IDS, steps, lambda text: bipe.places(text)[0]).tolist() == INDICES
    assert pieces(bipe, IDS, steps, lambda text: bipe.places(text)[1]).tolist() == SEGMENTS


def test_a_text_begins_anew(bipe):
    first = torch.zeros(2, 9, dtype=torch.bool)
    first[:, [0, 3]] = True
    index, segment = bipe.places(text_of(bipe, IDS, first=first))
    assert index.tolist() == [[0, 1, 0, 0, 1, 2, 0, 0, 1], [0, 0, 1, 0, 1, 0, 1, 2, 0]]
    assert segment.tolist() == [[0, 0, 1, 0, 0, 0, 1, 2, 2], [0, 1, 1, 0, 0, 1, 1, 1, 2]]


def test_the_index_is_added_and_the_last_row_shared(bipe):
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    added = bipe.embed_text(x, text_of(bipe, IDS)) - x
    torch.testing.assert_close(added, bipe.table[torch.tensor(INDICES).clamp(max=2)].double())


def test_rope_between_segments(geometry, random_qk, rotary_scores):
    q, k, _ = random_qk(geometry, 9)
    pos, segment = torch.arange(9).expand(2, -1), torch.tensor(SEGMENTS)
    scores = create("bipe", geometry, separators=[5]).scores(q, k, torch.stack((pos, segment)), torch.stack((pos, segment)))
    for row in range(2):
        angle = lambda i, j, of=SEGMENTS[row]: [(of[i] - of[j]) * 10_000 ** (-2 * n / 8) for n in range(4)]  # noqa: E731
        torch.testing.assert_close(scores[row : row + 1], rotary_scores(q[row : row + 1], k[row : row + 1], angle), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.bfloat16, 0.1)])
def test_alibi_between_segments(geometry, random_qk, dtype, tolerance):
    """The number of a segment is exact in half precision too."""
    q, k, _ = random_qk(geometry, 9)
    pos, segment = torch.arange(9).expand(2, -1), torch.tensor(SEGMENTS) + 3001
    both = torch.stack((pos, segment))
    scores = create("bipe", geometry, separators=[5], between="alibi").scores(q.to(dtype), k.to(dtype), both, both).double()
    for h in range(4):
        products = q[:, h] @ k[:, h // 2].transpose(1, 2) / math.sqrt(8)
        expected = products - 2.0 ** (-2 * (h + 1)) * (segment[:, :, None] - segment[:, None])
        torch.testing.assert_close(scores[:, h], expected, rtol=0, atol=tolerance)


def test_without_separators():
    with pytest.raises(ValueError, match=r"bipe has to know what ends a segment: .*separators="):
        hf_posenc.patch(tiny_model("llama"), "bipe")


@pytest.mark.parametrize("options", [{"separators": "."}, {"separators": [True]}, {"between": "t5"}, {"rows": 0}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("bipe", geometry, **options)
