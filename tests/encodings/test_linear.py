import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hf_posenc.encodings import create


@pytest.mark.parametrize("factor", [1.0, 2.5, 8.0])
def test_equals_transformers(released, llama_rotary, factor):
    linear = create("linear", released, factor=factor)
    config = llama_rotary(released, {"rope_type": "linear", "factor": factor}).config
    assert torch.equal(linear.inv_freq, ROPE_INIT_FUNCTIONS["linear"](config, "cpu")[0])
    assert linear.rope_parameters() == {"rope_type": "linear", "rope_theta": released.theta, "factor": factor}


def test_positions_are_divided(geometry, random_qk):
    q, k, pos = random_qk(geometry, 8)
    far = create("linear", geometry, target_length=64)
    torch.testing.assert_close(far.scores(q, k, 4 * pos, 4 * pos), create("rope", geometry).scores(q, k, pos, pos))
    assert far.context_length == 64


def test_composes_with_a_scaling_of_the_model(yarned):
    linear = create("linear", yarned, factor=2.0)
    torch.testing.assert_close(linear.inv_freq, torch.tensor([0.5, 0.15, 0.01, 0.0005]))
    assert linear.attention_factor == 1.25
    assert linear.rope_parameters() is None


@pytest.mark.parametrize("options", [{"factor": bad} for bad in (0, -1, 0.5, float("nan"), float("inf"), "4", True)])
def test_bad_factor(geometry, options):
    with pytest.raises(ValueError, match="factor must be a finite number"):
        create("linear", geometry, **options)


@pytest.mark.parametrize("length", [15, 0, -64, 64.5, float("nan")])
def test_bad_target_length(geometry, length):
    with pytest.raises(ValueError, match=r"target_length must be .* at least 16"):
        create("linear", geometry, target_length=length)


@pytest.mark.parametrize("options", [{}, {"factor": 4.0, "target_length": 64}])
def test_takes_one_of_factor_and_target_length(geometry, options):
    with pytest.raises(ValueError, match=r"'linear' takes either factor= or target_length= .*16 tokens"):
        create("linear", geometry, **options)
