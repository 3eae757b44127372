import dataclasses
import math

import numpy as np
import pytest
import torch

from hf_posenc.encodings import create

PLAIN = 10_000.0 ** (-2 * np.arange(4) / 8)


def grouped(length, capacity, rate):
    """The group of each of `length` tokens, one group written down after the other; token 0 is in the first as well."""
    groups, x = [0], 0
    while len(groups) < length:
        groups += [x] * math.floor(capacity / (1 + (capacity - 1) * math.exp(-rate * x)))
        x += 1
    return groups[:length]


def distance(i, j, groups, window):
    return i - j if i - j < window else window + groups[i - window] - groups[j]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("capacity, rate, window", [(5, 0.4, 3), (2, 1.0, 8), (9, 0.2, 1), (4, 3.0, 7)])
def test_scores(geometry, random_qk, rotary_scores, interleaved, capacity, rate, window):
    geometry = dataclasses.replace(geometry, interleaved=interleaved)
    encoding = create("self", geometry, capacity=capacity, rate=rate, window=window)
    length = min(26, encoding.context_length)
    groups = grouped(length, capacity, rate)
    q, k, pos = random_qk(geometry, length)
    expected = rotary_scores(q, k, lambda i, j: distance(i, j, groups, window) * PLAIN, interleaved)
    torch.testing.assert_close(encoding.scores(q, k, pos, pos).tril(), expected.tril(), rtol=0, atol=1e-5)


def test_the_groups_of_the_authors(geometry):
    """What their kernel writes for the keys of 38 tokens, with a window of 5, a capacity of 5 and a rate of 0.3."""
    theirs = [0, 0, 1, 2, 3, 4, 4, 5, 5, *[6] * 3, *[7] * 3, *[8] * 3, *[9] * 3, *[10] * 4, *[11] * 4, *[12] * 4, *[13] * 4, 14]
    encoding = create("self", dataclasses.replace(geometry, max_positions=30), window=5, capacity=5, rate=0.3)
    assert encoding.stored(torch.arange(38).double()).tolist() == theirs


def test_stands_on_the_scaling_of_the_model(yarned, random_qk, rotary_scores):
    q, k, pos = random_qk(yarned, 20)
    groups = grouped(20, 4, 0.5)
    expected = 1.25**2 * rotary_scores(q, k, lambda i, j: distance(i, j, groups, 4) * np.array(yarned.frequencies))
    scores = create("self", yarned, capacity=4, rate=0.5).scores(q, k, pos, pos)
    torch.testing.assert_close(scores.tril(), expected.tril(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("capacity, rate, window", [(5, 0.4, 3), (2, 1.0, 8), (9, 0.2, 1), (4, 3.0, 7)])
def test_context_length_is_the_last_with_trained_distances(geometry, capacity, rate, window):
    encoding = create("self", geometry, capacity=capacity, rate=rate, window=window)
    end = encoding.context_length
    groups = grouped(end + 1, capacity, rate)
    assert distance(end - 1, 0, groups, window) <= 15 < distance(end, 0, groups, window)
    encoding.check_positions(end - 1)
    with pytest.raises(ValueError, match=f"position {end} lies past the {end} tokens.*Use target_length = {end + 1}, or"):
        encoding.check_positions(end)
    create("self", geometry, rate=rate, window=window, target_length=end + 1).check_positions(end)


@pytest.mark.parametrize("native", [16, 2048, 8192])
@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0, 16.0])
def test_the_capacity_is_the_smallest_that_reaches_the_target(geometry, native, factor):
    geometry = dataclasses.replace(geometry, max_positions=native)
    encoding = create("self", geometry, factor=factor)
    assert encoding.context_length >= factor * native
    if encoding.capacity > 2:
        assert create("self", geometry, capacity=encoding.capacity - 1).context_length < factor * native
    assert create("self", geometry, target_length=round(factor * native)).capacity == encoding.capacity


def test_defaults(geometry):
    encoding = create("self", dataclasses.replace(geometry, max_positions=4096))
    assert (encoding.window, encoding.rate) == (1024, 0.02)
    assert encoding.capacity == create("self", dataclasses.replace(geometry, max_positions=4096), factor=4.0).capacity


@pytest.mark.parametrize(
    "options, message",
    [
        ({"capacity": 1}, "capacity must be an integer of at least 2"),
        ({"rate": 0.0}, "rate must be"),
        ({"window": 16}, "window must be less than the native context of 16 tokens"),
        ({"capacity": 4, "factor": 2.0}, "either capacity="),
        ({"rate": 1e-4}, "never reach 64 tokens. Use a greater rate or a shorter window"),
    ],
)
def test_bad_options(geometry, options, message):
    with pytest.raises(ValueError, match=message):
        create("self", geometry, **options)
