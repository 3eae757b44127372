import dataclasses

import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hf_posenc.encodings import create


@pytest.mark.parametrize("p", [0.25, 0.6, 0.75, 1.0])
def test_equals_transformers(released, llama_rotary, p):
    p_rope = create("p_rope", released, p=p)
    config = llama_rotary(released, {"rope_type": "proportional", "partial_rotary_factor": p}).config
    assert torch.equal(p_rope.inv_freq, ROPE_INIT_FUNCTIONS["proportional"](config, "cpu")[0])


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_slow_pairs_do_not_turn(geometry, random_qk, rotary_scores, interleaved):
    geometry = dataclasses.replace(geometry, interleaved=interleaved)
    q, k, pos = random_qk(geometry, 12)
    expected = rotary_scores(q, k, lambda i, j: [i - j, (i - j) / 10, 0, 0], interleaved)
    torch.testing.assert_close(create("p_rope", geometry, p=0.5).scores(q, k, pos, pos), expected, rtol=0, atol=1e-6)


def test_partial_models_have_no_stock_scheme(geometry):
    """transformers' `proportional` counts its pairs and its exponents from the whole head."""
    assert create("p_rope", geometry, p=0.5).rope_parameters()["rope_type"] == "proportional"
    partial = create("p_rope", dataclasses.replace(geometry, rotary_dim=4), p=0.5)
    assert torch.equal(partial.inv_freq, torch.tensor([1.0, 0.0]))
    assert partial.rope_parameters() is None


@pytest.mark.parametrize("p", [0, -0.5, 1.5, float("nan"), 0.1])
def test_bad_options(geometry, p):
    with pytest.raises(ValueError, match="p "):
        create("p_rope", geometry, p=p)


def test_refuses_a_scaled_model(yarned):
    with pytest.raises(ValueError, match="'p_rope' does not compose"):
        create("p_rope", yarned)
