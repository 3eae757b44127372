import math

import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hf_posenc.encodings import create


@pytest.mark.parametrize("factor, low, high", [(8.0, 1.0, 4.0), (32.0, 1.0, 4.0), (2.0, 0.5, 10.0)])
def test_equals_transformers(released, llama_rotary, factor, low, high):
    llama3 = create("llama3", released, factor=factor, low_freq_factor=low, high_freq_factor=high)
    parameters = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    parameters |= {"rope_type": "llama3", "original_max_position_embeddings": released.max_positions}
    assert torch.equal(llama3.inv_freq, ROPE_INIT_FUNCTIONS["llama3"](llama_rotary(released, parameters).config, "cpu")[0])
    assert llama3.rope_parameters() == parameters | {"rope_theta": released.theta}


def test_equals_the_loop_of_meta(released):
    """models/llama3/model.py of meta-llama/llama-models, pair by pair."""
    llama3 = create("llama3", released, factor=8.0)
    native = released.max_positions
    for n, frequency in enumerate(llama3.inv_freq.tolist()):
        plain = released.theta ** (-2 * n / released.head_dim)
        wavelength = 2 * math.pi / plain
        if wavelength < native / 4:
            expected = plain
        elif wavelength > native / 1:
            expected = plain / 8
        else:
            smooth = (native / wavelength - 1) / (4 - 1)
            expected = (1 - smooth) * plain / 8 + smooth * plain
        assert frequency == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "options", [{"low_freq_factor": 4.0}, {"low_freq_factor": 0}, {"high_freq_factor": -1}, {"factor": 0}, {"target_length": 64}]
)
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match="|".join(options)):
        create("llama3", geometry, **{"factor": 2.0} | options)


def test_refuses_a_scaled_model(yarned):
    with pytest.raises(ValueError, match="'llama3' does not compose"):
        create("llama3", yarned, factor=2.0)
