import dataclasses

import numpy as np
import pytest
import torch

from hf_posenc.encodings import create

PLAIN = 10_000.0 ** (-2 * np.arange(4) / 8)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("shift, window", [(6, 2), (1, 1), (9, 4)])
def test_scores(geometry, random_qk, rotary_scores, interleaved, shift, window):
    geometry = dataclasses.replace(geometry, interleaved=interleaved)
    q, k, pos = random_qk(geometry, 24)
    expected = rotary_scores(q, k, lambda i, j: (i - j if i - j < shift else i - j - shift + window) * PLAIN, interleaved)
    scores = create("string_shift", geometry, shift=shift, window=window).scores(q, k, pos, pos)
    torch.testing.assert_close(scores.tril(), expected.tril(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options, factor", [({"authors_code": True}, 0.1 * np.log(2) + 1), ({"attention_factor": 2.0}, 2.0)])
def test_the_factor_of_the_authors(geometry, random_qk, rotary_scores, options, factor):
    q, k, pos = random_qk(geometry, 24)
    expected = factor**2 * rotary_scores(q, k, lambda i, j: (i - j if i - j < 6 else i - j - 4) * PLAIN)
    scores = create("string_shift", geometry, shift=6, window=2, **options).scores(q, k, pos, pos)
    torch.testing.assert_close(scores.tril(), expected.tril(), rtol=0, atol=1e-5)


def test_stands_on_the_scaling_of_the_model(yarned, random_qk, rotary_scores):
    q, k, pos = random_qk(yarned, 12)
    expected = 1.25**2 * rotary_scores(q, k, lambda i, j: (i - j if i - j < 5 else i - j - 3) * np.array(yarned.frequencies))
    scores = create("string_shift", yarned).scores(q, k, pos, pos)
    torch.testing.assert_close(scores.tril(), expected.tril(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("native, shift, window", [(1, 1, 1), (2, 1, 1), (16, 5, 2), (384, 128, 64), (8192, 2730, 128)])
def test_defaults(geometry, native, shift, window):
    string = create("string_shift", dataclasses.replace(geometry, max_positions=native))
    assert (string.shift, string.window) == (shift, window)


def test_defaults_of_the_authors(geometry):
    """For Llama 3.1, as their README says."""
    string = create("string_shift", dataclasses.replace(geometry, max_positions=131_072), authors_code=True)
    assert (string.shift, string.window) == (43_253, 128)


@pytest.mark.parametrize(
    "options", [{"shift": 0}, {"window": 0}, {"window": 2.0}, {"window": 7, "shift": 6}, {"window": 6}, {"attention_factor": 0.0}]
)
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        create("string_shift", geometry, **options)
