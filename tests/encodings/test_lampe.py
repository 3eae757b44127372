import dataclasses
import math

import numpy as np
import pytest
import torch

from hf_posenc.encodings import create

PLAIN = 10_000.0 ** (-2 * np.arange(4) / 8)


def distance(i, j, length, mapped, window, tail):
    """By the list of mapped positions and where the authors' code looks into it."""
    ids = [mapped * t // (length - 1) for t in range(length)]
    while tail + 1 < length and ids[tail] == ids[tail + 1]:
        tail += 1
    bias_1 = window - (ids[window] + 1)
    bias_2 = (length - 1 - tail) - ids[length - 1 - tail] - bias_1
    if i - j < window:
        return i - j
    return ids[i] + bias_1 - ids[j] if i - j < length - tail else i - bias_2 - j


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("length, mapped, window, tail", [(28, 9, 4, 2), (24, 5, 3, 3), (30, 16, 5, 1), (24, 7, 1, 0)])
def test_scores(geometry, random_qk, rotary_scores, interleaved, length, mapped, window, tail):
    geometry = dataclasses.replace(geometry, interleaved=interleaved)
    q, k, pos = random_qk(geometry, 24)
    expected = rotary_scores(q, k, lambda i, j: distance(i, j, length, mapped, window, tail) * PLAIN, interleaved)
    scores = create("lampe", geometry, target_length=length, mapped=mapped, window=window, tail=tail).scores(q, k, pos, pos)
    torch.testing.assert_close(scores.tril(), expected.tril(), rtol=0, atol=1e-5)


def test_the_positions_of_the_authors(geometry):
    """re_size_2, bias_1 and bias_2 that their code finds for 30 tokens, head = 3, tail = 3 and use_length = 5."""
    encoding = create("lampe", geometry, target_length=30, mapped=5, window=3, tail=3)
    assert encoding.early == 5
    assert [distance(i, j, 30, 5, 3, 3) for i, j in ((3, 0), (24, 0), (25, 0), (29, 0), (29, 4))] == [2, 6, 7, 11, 7]


@pytest.mark.parametrize("factor", [0.1 * math.log(2) + 1, 2.0])
def test_stands_on_the_scaling_of_the_model(yarned, random_qk, rotary_scores, factor):
    q, k, pos = random_qk(yarned, 20)
    expected = rotary_scores(q, k, lambda i, j: distance(i, j, 20, 6, 4, 2) * np.array(yarned.frequencies))
    scores = create("lampe", yarned, target_length=20, mapped=6, attention_factor=factor).scores(q, k, pos, pos)
    torch.testing.assert_close(scores.tril(), (1.25 * factor) ** 2 * expected.tril(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tokens, authors", [(8192, 1036), (16_384, 1993), (32_768, 4501), (65_536, 6129)])
def test_the_curve_is_that_of_the_authors_for_llama_3(geometry, tokens, authors):
    """`remap_uselen(tokens, "llama3")`, but that they have a constant below 8192 tokens."""
    encoding = create("lampe", dataclasses.replace(geometry, max_positions=8192), target_length=tokens)
    assert encoding.mapped == pytest.approx(authors, abs=1)
    assert (encoding.window, encoding.context_length) == (512, tokens)


def test_distances_stay_within_the_native_context(geometry):
    for native, factor in ((2048, 2.0), (4096, 4.0), (8192, 32.0)):
        e = create("lampe", dataclasses.replace(geometry, max_positions=native), factor=factor)
        assert max(distance(e.length - 1, j, e.length, e.mapped, e.window, min(200, native // 8)) for j in (0, e.early)) < native


def test_positions_past_the_target(geometry):
    encoding = create("lampe", geometry)
    encoding.check_positions(63)
    with pytest.raises(ValueError, match=r"position 64 lies past the 64 tokens.*Use target_length = 65, or"):
        encoding.check_positions(64)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mapped": 17}, "mapped must be an integer of at most 16"),
        ({"mapped": 0}, "mapped must be"),
        ({"window": 0}, "window must be"),
        ({"tail": -1}, "tail must be"),
        ({"attention_factor": 0.0}, "attention_factor must be"),
        ({"target_length": 20, "mapped": 2, "window": 12}, "leave nothing between them in 20 tokens. Use a shorter window"),
    ],
)
def test_bad_options(geometry, options, message):
    with pytest.raises(ValueError, match=message):
        create("lampe", geometry, **options)
