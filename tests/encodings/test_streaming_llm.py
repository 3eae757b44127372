import dataclasses

import numpy as np
import pytest
import torch

from hf_posenc.encodings import create

PLAIN = 10_000.0 ** (-2 * np.arange(4) / 8)


def rolling(length, sinks, window):
    """distance[i][j] by playing the cache: append, evict the oldest token that is no sink, number what is left from 0."""
    rows, cache = [], []
    for i in range(length):
        cache.append(i)
        if len(cache) > sinks + window:
            del cache[sinks]
        rows.append({j: cache.index(i) - cache.index(j) for j in cache})
    return rows


def evaluated(length, sinks, window):
    """distance[i][j] as the authors measure perplexity: a token attends to the whole cache and itself, and then the oldest goes."""
    rows, cache = [], []
    for i in range(length):
        cache.append(i)
        rows.append({j: cache.index(i) - cache.index(j) for j in cache})
        cache = cache if len(cache) <= sinks + window else cache[:sinks] + cache[-window:]
    return rows


@pytest.mark.parametrize("sinks, window", [(4, 5), (1, 1), (0, 6), (3, 30)])
def test_the_authors_evaluation_has_one_key_more(geometry, random_qk, rotary_scores, sinks, window):
    q, k, pos = random_qk(geometry, 24)
    distance = evaluated(24, sinks, window)
    seen = torch.tensor([[j in distance[i] for j in range(24)] for i in range(24)])
    expected = rotary_scores(q, k, lambda i, j: distance[i].get(j, 0) * PLAIN).masked_fill(~seen, -torch.inf)
    scores = create("streaming_llm", geometry, sinks=sinks, window=window + 1).scores(q, k, pos, pos)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("sinks, window", [(4, 5), (1, 1), (0, 6), (3, 30), (8, 2)])
def test_scores(geometry, random_qk, rotary_scores, interleaved, sinks, window):
    geometry = dataclasses.replace(geometry, interleaved=interleaved)
    q, k, pos = random_qk(geometry, 24)
    distance = rolling(24, sinks, window)
    expected = rotary_scores(q, k, lambda i, j: distance[i].get(j, 0) * PLAIN, interleaved)
    seen = torch.tensor([[j in distance[i] for j in range(24)] for i in range(24)])
    scores = create("streaming_llm", geometry, sinks=sinks, window=window).scores(q, k, pos, pos)
    torch.testing.assert_close(scores, expected.masked_fill(~seen, -torch.inf), rtol=0, atol=1e-5)


def test_stands_on_the_scaling_of_the_model(yarned, random_qk, rotary_scores):
    q, k, pos = random_qk(yarned, 24)
    distance = rolling(24, 4, 12)
    expected = 1.25**2 * rotary_scores(q, k, lambda i, j: distance[i].get(j, 0) * np.array(yarned.frequencies))
    scores = create("streaming_llm", yarned).scores(q, k, pos, pos)
    seen = scores > -torch.inf
    assert seen[0, 0].sum(-1).tolist() == [min(i + 1, 16) for i in range(24)]
    torch.testing.assert_close(scores[seen], expected[seen], rtol=0, atol=1e-5)


def test_a_text_that_fits_is_read_as_before(geometry, random_qk):
    q, k, pos = random_qk(geometry, 16)
    scores = create("streaming_llm", geometry).scores(q, k, pos, pos)
    torch.testing.assert_close(scores.tril(), create("rope", geometry).scores(q, k, pos, pos).tril(), rtol=0, atol=0)


@pytest.mark.parametrize("native, window", [(1, 1), (4, 1), (5, 1), (16, 12), (2048, 2044)])
def test_default_window(geometry, native, window):
    assert create("streaming_llm", dataclasses.replace(geometry, max_positions=native)).window == window


@pytest.mark.parametrize("options", [{"sinks": -1}, {"sinks": 2.0}, {"window": 0}, {"window": True}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be an integer"):
        create("streaming_llm", geometry, **options)
