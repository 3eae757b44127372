import dataclasses

import numpy as np
import pytest
import torch

from hf_posenc.encodings import create

PLAIN = 10_000.0 ** (-2 * np.arange(4) / 8)


def distances(length, chunk, window):
    """The paper's matrix M, written out chunk by chunk from its lists of positions."""
    c = chunk + window
    keys = list(range(chunk)) * (length // chunk + 1)
    successive = ([*range(chunk, c), *[c - 1] * chunk])[:chunk]
    matrix = np.zeros((length, length))
    for i in range(length):
        for j in range(i + 1):
            apart = i // chunk - j // chunk
            query = keys[i] if apart == 0 else successive[i % chunk] if apart == 1 else c - 1
            matrix[i, j] = query - keys[j]
    return matrix


def test_the_example_of_the_paper():
    """Figure 2: s = 6, w = 4, c = 10, 12 tokens."""
    assert distances(12, 6, 4)[6:].tolist() == [
        [6, 5, 4, 3, 2, 1, 0, 0, 0, 0, 0, 0],
        [7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0, 0],
        [8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0],
        [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0],
        [9, 8, 7, 6, 5, 4, 4, 3, 2, 1, 0, 0],
        [9, 8, 7, 6, 5, 4, 5, 4, 3, 2, 1, 0],
    ]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("chunk, window", [(6, 4), (1, 1), (5, 11), (3, 1)])
def test_scores(geometry, random_qk, rotary_scores, interleaved, chunk, window):
    geometry = dataclasses.replace(geometry, interleaved=interleaved)
    q, k, pos = random_qk(geometry, 24)
    distance = distances(24, chunk, window)
    expected = rotary_scores(q, k, lambda i, j: distance[i, j] * PLAIN, interleaved)
    scores = create("dual_chunk", geometry, chunk=chunk, window=window).scores(q, k, pos, pos)
    torch.testing.assert_close(scores.tril(), expected.tril(), rtol=0, atol=1e-5)


def chunkllama(i, j, s, w):
    """Distance and factor on the scores, played as ChunkLlama does: tables of positions for queries, and where it looks into them."""
    q_t, qc_t, k_t = np.arange(s), (np.arange(s) + s).clip(max=s + w), np.arange(100) % s
    at = (q_t[i % s], qc_t[i % s], qc_t[s - 1])[max(0, min(i // s - j // s, 2))]
    return at - k_t[j], (0.05 * np.log(max((i + 1) / 16, 1)) + 1) ** 2


@pytest.mark.parametrize("options, chunk, window", [({}, 10, 2), ({"window": 4}, 8, 4), ({"window": 7}, 5, 7), ({"chunk": 6}, 6, 2)])
def test_the_numbers_of_the_authors(geometry, random_qk, rotary_scores, options, chunk, window):
    """Their code, run on texts of 1 to 30 tokens, agreed to 1e-7."""
    q, k, pos = random_qk(geometry, 30)
    expected = rotary_scores(q, k, lambda i, j: chunkllama(i, j, chunk, window)[0] * PLAIN)
    expected *= torch.tensor([chunkllama(i, i, chunk, window)[1] for i in range(30)])[:, None]
    scores = create("dual_chunk", geometry, authors_code=True, **options).scores(q, k, pos, pos)
    torch.testing.assert_close(scores.tril(), expected.tril(), rtol=0, atol=1e-5)


def test_stands_on_the_scaling_of_the_model(yarned, random_qk, rotary_scores):
    q, k, pos = random_qk(yarned, 30)
    distance = distances(30, 12, 4)
    expected = 1.25**2 * rotary_scores(q, k, lambda i, j: distance[i, j] * np.array(yarned.frequencies))
    scores = create("dual_chunk", yarned).scores(q, k, pos, pos)
    torch.testing.assert_close(scores.tril(), expected.tril(), rtol=0, atol=1e-5)


def test_no_key_is_turned_again(geometry):
    dual, q, k, pos = create("dual_chunk", geometry), torch.randn(1, 4, 9, 8), torch.randn(1, 2, 50, 8), torch.arange(50)[None]
    assert all(region.rotate(q, k, pos[:, 41:], pos)[1] is k for region in dual.regions(pos[:, 41:], pos))


@pytest.mark.parametrize("native, chunk, window", [(1, 1, 1), (2, 1, 1), (3, 2, 1), (16, 12, 4), (4096, 3072, 1024)])
def test_defaults(geometry, native, chunk, window):
    dual = create("dual_chunk", dataclasses.replace(geometry, max_positions=native))
    assert (dual.chunk, dual.window) == (chunk, window)


@pytest.mark.parametrize("given, both", [({"chunk": 10}, (10, 6)), ({"window": 2}, (12, 2)), ({"window": 7}, (9, 7))])
def test_one_option_gives_the_other(geometry, given, both):
    dual = create("dual_chunk", geometry, **given)
    assert (dual.chunk, dual.window) == both


@pytest.mark.parametrize("options", [{"chunk": 16}, {"window": 16}, {"chunk": 10, "window": 7}])
def test_more_than_the_native_context(geometry, options):
    with pytest.raises(ValueError, match="must stay within the native context of 16 tokens"):
        create("dual_chunk", geometry, **options)


@pytest.mark.parametrize("options", [{"chunk": 0}, {"chunk": 8.0}, {"window": 0}, {"window": True}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be an integer"):
        create("dual_chunk", geometry, **options)


@pytest.mark.parametrize("native, chunk, window", [(1, 1, 1), (2, 1, 1), (16, 10, 2), (4096, 2560, 512)])
def test_defaults_of_the_authors(geometry, native, chunk, window):
    dual = create("dual_chunk", dataclasses.replace(geometry, max_positions=native), authors_code=True)
    assert (dual.chunk, dual.window) == (chunk, window)
