import dataclasses
import math

import numpy as np
import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hf_posenc.encodings import create

SHORT, LONG = [1.0, 1.1, 1.2, 1.5], [1.0, 2.0, 3.0, 7.0]


@pytest.fixture
def phi3(geometry):
    """A model that ships with LongRoPE: trained for 16 tokens, stretched to 64."""
    native = {"rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": SHORT, "long_factor": LONG}
    parameters = tuple((native | {"original_max_position_embeddings": 16}).items())
    return dataclasses.replace(geometry, max_positions=64, rope_type="longrope", rope_parameters=parameters, attention_factor=1.22)


@pytest.mark.parametrize("attention_factor", [None, 1.3])
def test_equals_transformers(released, llama_rotary, attention_factor):
    n, native = released.head_dim // 2, released.max_positions
    short, long = [1 + i / n for i in range(n)], [1 + i / 2 for i in range(n)]
    options = {"factor": 8.0, "short_factor": short, "long_factor": long, "attention_factor": attention_factor}
    longrope = create("longrope", released, **options)
    config = llama_rotary(released, {"rope_type": "longrope", "original_max_position_embeddings": native} | options).config
    for length in (1, native, native + 1, 8 * native):
        inv_freq, factor = ROPE_INIT_FUNCTIONS["longrope"](config, "cpu", seq_len=length)
        assert torch.equal(longrope.frequencies_for(torch.tensor(length - 1)), inv_freq)
        assert longrope.attention_factor == factor


def test_each_row_has_the_factors_of_its_length(geometry, random_qk, rotary_scores):
    q, k, pos = random_qk(geometry, 24)
    longrope = create("longrope", geometry, target_length=64, short_factor=SHORT, long_factor=LONG)
    plain = 10_000.0 ** (-2 * np.arange(4) / 8)
    expected = rotary_scores(q, k, lambda i, j: (i - j) * plain / (SHORT if i < 16 else LONG))
    expected *= 1 + math.log(4) / math.log(16)
    torch.testing.assert_close(longrope.scores(q, k, pos, pos), expected, rtol=0, atol=1e-5)


def test_as_decoded_as_evaluated(geometry, random_qk):
    longrope = create("longrope", geometry, factor=4.0)
    q, k, pos = random_qk(geometry, 24)
    full = longrope.scores(q, k, pos, pos)
    for n in range(1, 25):
        part = longrope.scores(q[:, :, :n], k[:, :, :n], pos[:, :n], pos[:, :n])
        torch.testing.assert_close(full[:, :, n - 1, :n], part[:, :, -1], rtol=0, atol=1e-12)


def test_starts_from_ntk(released):
    longrope = create("longrope", released, factor=4.0)
    assert torch.equal(longrope.frequencies_for(torch.tensor(0)), create("rope", released).inv_freq)
    torch.testing.assert_close(
        longrope.frequencies_for(torch.tensor(10**6)), create("ntk", released, factor=4.0).inv_freq, rtol=1e-5, atol=0
    )


def test_keeps_the_factors_of_the_model(phi3):
    longrope = create("longrope", phi3)
    assert (longrope.short, longrope.long, longrope.length, longrope.context_length) == (SHORT, LONG, 16, 64)
    assert longrope.attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(16)))
    with pytest.raises(ValueError, match="its own LongRoPE long_factor"):
        create("longrope", phi3, long_factor=SHORT)


def test_target_length_is_counted_from_the_original_length(geometry, phi3):
    longrope = create("longrope", geometry, target_length=64, original_length=8)
    assert (longrope.factor, longrope.context_length) == (8.0, 64)
    longer = create("longrope", phi3, target_length=128)
    assert (longer.factor, longer.context_length) == (8.0, 128)


def test_is_no_stock_scheme(geometry):
    assert create("longrope", geometry, factor=2.0).rope_parameters() is None


@pytest.mark.parametrize(
    "options",
    [
        {"short_factor": [1.0] * 3},
        {"short_factor": []},
        {"short_factor": 2.0},
        {"long_factor": [1.0] * 5},
        {"long_factor": [1.0, 1.0, 1.0, 0.0]},
        {"attention_factor": 0},
        {"original_length": 0},
        {"original_length": 1},
        {"factor": 0.5},
        {"target_length": 64},
    ],
)
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match="|".join(options)):
        create("longrope", geometry, **{"factor": 2.0} | options)


def test_refuses_another_scaling(yarned):
    with pytest.raises(ValueError, match="'longrope' does not compose"):
        create("longrope", yarned, factor=2.0)
