import dataclasses

import numpy as np
import pytest
import torch

from hf_posenc.encodings import create

PLAIN = 10_000.0 ** (-2 * np.arange(4) / 8)


def merged(i, j, group, window, authors_code=False):
    kept = window / group if authors_code else window // group
    return i - j if i - j < window else i // group - j // group + window - kept


@pytest.mark.parametrize("authors_code", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("group, window", [(3, 5), (1, 4), (4, 1), (2, 15), (7, 6)])
def test_scores(geometry, random_qk, rotary_scores, interleaved, group, window, authors_code):
    geometry = dataclasses.replace(geometry, interleaved=interleaved)
    q, k, pos = random_qk(geometry, 24)
    expected = rotary_scores(q, k, lambda i, j: merged(i, j, group, window, authors_code) * PLAIN, interleaved)
    scores = create("self_extend", geometry, group=group, window=window, authors_code=authors_code).scores(q, k, pos, pos)
    torch.testing.assert_close(scores.tril(), expected.tril(), rtol=0, atol=1e-5)


def test_stands_on_the_scaling_of_the_model(yarned, random_qk, rotary_scores):
    q, k, pos = random_qk(yarned, 12)
    expected = 1.25**2 * rotary_scores(q, k, lambda i, j: merged(i, j, 3, 4) * np.array(yarned.frequencies))
    scores = create("self_extend", yarned, group=3).scores(q, k, pos, pos)
    torch.testing.assert_close(scores.tril(), expected.tril(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("authors_code", [False, True])
@pytest.mark.parametrize("group, window", [(1, 3), (3, 5), (4, 8), (8, 4), (20, 15)])
def test_context_length_is_the_last_with_trained_distances(geometry, group, window, authors_code):
    extended = create("self_extend", geometry, group=group, window=window, authors_code=authors_code)
    farthest = [max(merged(i, j, group, window, authors_code) for j in range(i + 1)) for i in range(extended.context_length + 1)]
    assert max(farthest[:-1]) <= 15 < farthest[-1]
    assert extended.context_length == (16 - window) * group + window or window % group


@pytest.mark.parametrize("group, window", [(3, 5), (8, 4), (2, 15)])
def test_positions_past_the_context(geometry, group, window):
    extended = create("self_extend", geometry, group=group, window=window)
    end = extended.context_length
    extended.check_positions(end - 1)
    with pytest.raises(ValueError, match=f"position {end} lies past the {end} tokens.*Use group = ") as error:
        extended.check_positions(end)
    remedies = dict(word.split(" = ") for word in str(error.value).split("Use ")[1].split(",")[0].split(" or "))
    for option, value in remedies.items():
        create("self_extend", geometry, **{"group": group, "window": window, option: int(value)}).check_positions(end)
    with pytest.raises(ValueError, match=r"Use group = \d+, or shorten"):
        extended.check_positions(16 * group)


@pytest.mark.parametrize("native", [3, 12, 2048, 4096])
@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0, 16.0])
def test_the_group_follows_the_rule_of_thumb(geometry, native, factor):
    geometry = dataclasses.replace(geometry, max_positions=native)
    extended = create("self_extend", geometry, factor=factor)
    group, window, target = extended.group, extended.window, factor * native
    fits = [3 * (window * g + target - window) <= 2 * native * g for g in range(1, group + 1)]
    assert fits == [False] * (group - 1) + [True]
    assert extended.context_length >= target
    assert create("self_extend", geometry, target_length=round(target)).group == group


def test_defaults(geometry):
    extended = create("self_extend", dataclasses.replace(geometry, max_positions=4096))
    assert (extended.window, extended.group) == (1024, 9)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"group": 0}, "group must be"),
        ({"group": 2.0}, "group must be"),
        ({"authors_code": 1}, "authors_code is True or False"),
        ({"window": 0}, "window must be"),
        ({"window": 16, "group": 2}, "window must be less than the native context of 16 tokens"),
        ({"window": 11}, "at most 10, or give group="),
        ({"group": 2, "factor": 4.0}, "either group="),
        ({"factor": 0.5}, "factor"),
        ({"factor": 2.0, "target_length": 64}, "either factor= or target_length="),
    ],
)
def test_bad_options(geometry, options, message):
    with pytest.raises(ValueError, match=message):
        create("self_extend", geometry, **options)
