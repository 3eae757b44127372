import dataclasses

import numpy as np
import pytest
import torch

from hf_posenc.encodings import Geometry, create

PLAIN = 10_000.0 ** (-2 * np.arange(4) / 8)


def distances(i, j, scales, window):
    """How far key j looks to each pair."""
    s = np.array(scales)
    return np.full(len(s), i - j) if i - j < window else i // s - j // s + window - window / s


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    "scales, of_pairs", [([2, 5], [2, 2, 5, 5]), ([3], [3] * 4), ([4, 1, 2], [4, 4, 1, 2]), ([7, 9, 1, 9, 2, 9, 3, 9], [7, 1, 2, 3])]
)
@pytest.mark.parametrize("window", [1, 5])
def test_scores(geometry, random_qk, rotary_scores, interleaved, scales, of_pairs, window):
    geometry = dataclasses.replace(geometry, interleaved=interleaved)
    q, k, pos = random_qk(geometry, 24)
    expected = rotary_scores(q, k, lambda i, j: distances(i, j, of_pairs, window) * PLAIN, interleaved)
    scores = create("dpe", geometry, scales=scales, window=window).scores(q, k, pos, pos)
    torch.testing.assert_close(scores.tril(), expected.tril(), rtol=0, atol=1e-5)


def test_stands_on_the_scaling_of_the_model(yarned, random_qk, rotary_scores):
    q, k, pos = random_qk(yarned, 20)
    expected = 1.25**2 * rotary_scores(q, k, lambda i, j: distances(i, j, [2, 2, 3, 3], 4) * np.array(yarned.frequencies))
    scores = create("dpe", yarned, scales=[2, 3]).scores(q, k, pos, pos)
    torch.testing.assert_close(scores.tril(), expected.tril(), rtol=0, atol=1e-5)


def test_one_group_is_self_extend_with_its_fraction(geometry, random_qk):
    q, k, pos = random_qk(geometry, 24)
    grouped = create("self_extend", geometry, group=3, window=5, authors_code=True)
    torch.testing.assert_close(create("dpe", geometry, scales=[3], window=5).scores(q, k, pos, pos), grouped.scores(q, k, pos, pos))


def test_groups_of_the_authors():
    """Their dimension_groups_range of [0, 8, 16 ... 64]."""
    encoding = create("dpe", Geometry(hidden_size=512, num_heads=4, head_dim=128, max_positions=8192))
    assert encoding.of_pairs.view(8, 8).unique(dim=1).flatten().tolist() == [2, 8, 2, 8, 32, 32, 32, 4]
    assert encoding.window == 1024


@pytest.mark.parametrize("native, window", [(1, 1), (16, 4), (4096, 1024), (131_072, 1024)])
def test_default_window(geometry, native, window):
    assert create("dpe", dataclasses.replace(geometry, max_positions=native)).window == window


@pytest.mark.parametrize(
    "options, message",
    [
        ({"scales": 4}, "scales is a list of whole numbers"),
        ({"scales": []}, "scales is a list of whole numbers"),
        ({"scales": [2, 0]}, "each of scales must be an integer of at least 1"),
        ({"scales": [2, 1.5]}, "each of scales must be an integer"),
        ({"window": 0}, "window must be an integer"),
    ],
)
def test_bad_options(geometry, options, message):
    with pytest.raises(ValueError, match=message):
        create("dpe", geometry, **options)
