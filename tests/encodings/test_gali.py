import dataclasses
import math

import numpy as np
import pytest
import torch

from hf_posenc.encodings import create

PLAIN = 10_000.0 ** (-2 * np.arange(4) / 8)


def positions(tokens, native, window):
    """Greedily, as the authors do: crowd one whole position after the other until the text fits."""
    if tokens <= native:
        return [float(t) for t in range(tokens)]
    group = math.ceil((tokens - window) / (native - window))
    crowded, whole = [], 0
    while native - whole + len(crowded) < tokens:
        crowded += [whole + j / group for j in range(group)]
        whole += 1
    rest = [float(t) for t in range(whole, native)]
    return crowded[: tokens - len(rest)] + rest


def expected(q, k, rotary_scores, native, text, window, frequencies=PLAIN, interleaved=False):
    """Scores by loops; text(i) -> tokens of the text that query i takes its positions from."""
    p = [positions(text(i), native, window) for i in range(q.shape[2])]
    at = [[p[i][j] if j <= i else 0.0 for j in range(q.shape[2])] for i in range(q.shape[2])]
    ahead, behind = (
        rotary_scores(q, k, lambda i, j, whole=whole: (math.ceil(at[i][i]) - whole(at[i][j])) * frequencies, interleaved)
        for whole in (math.ceil, math.floor)
    )
    share = torch.tensor(at).ceil() - torch.tensor(at)
    return (ahead + (behind - ahead) * share).tril()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("window, step", [(2, 5), (0, 1), (7, 3), (4, 100)])
def test_scores(geometry, random_qk, rotary_scores, interleaved, window, step):
    geometry = dataclasses.replace(geometry, max_positions=8, interleaved=interleaved)
    q, k, pos = random_qk(geometry, 20)
    wanted = expected(q, k, rotary_scores, 8, lambda i: 8 if i < 8 else 8 + step * ((i - 8) // step + 1), window, PLAIN, interleaved)
    scores = create("gali", geometry, window=window, step=step).scores(q, k, pos, pos)
    torch.testing.assert_close(scores.tril(), wanted, rtol=0, atol=1e-5)


def test_stands_on_the_scaling_of_the_model(yarned, random_qk, rotary_scores):
    q, k, pos = random_qk(yarned, 20)
    wanted = 1.25**2 * expected(q, k, rotary_scores, 16, lambda i: 16 if i < 16 else 32, 4, np.array(yarned.frequencies))
    torch.testing.assert_close(create("gali", yarned).scores(q, k, pos, pos).tril(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("step", [None, 1, 5])
def test_as_decoded_as_evaluated(geometry, random_qk, step):
    encoding = create("gali", geometry, step=step)
    q, k, pos = random_qk(geometry, 40)
    full = encoding.scores(q, k, pos, pos)
    for n in range(1, 41):
        row = encoding.content_scores(q[:, :, n - 1 : n], k[:, :, :n], pos[:, n - 1 : n], pos[:, :n])
        torch.testing.assert_close(full[:, :, n - 1 : n, :n], row, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tokens, native, window", [(17, 16, 4), (40, 16, 4), (100, 16, 15), (5000, 64, 8), (65_536, 4096, 128)])
def test_a_text_ends_within_the_native_context(geometry, tokens, native, window):
    encoding = create("gali", dataclasses.replace(geometry, max_positions=native), window=window)
    p = encoding.place(torch.arange(tokens)[None], torch.tensor([[tokens]]))[0]
    assert p.tolist() == pytest.approx(positions(tokens, native, window), abs=1e-9)
    assert p[-1] == native - 1 and p.diff()[-window + 1 :].unique().tolist() == [1]


@pytest.mark.parametrize("native, window, step", [(1, 0, 1), (16, 4, 16), (4096, 128, 3000)])
def test_defaults(geometry, native, window, step):
    encoding = create("gali", dataclasses.replace(geometry, max_positions=native))
    assert (encoding.window, encoding.step) == (window, step)


@pytest.mark.parametrize("options", [{"window": -1}, {"window": 16}, {"step": 0}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        create("gali", geometry, **options)
