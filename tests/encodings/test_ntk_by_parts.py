import math

import pytest
import torch

from hf_posenc.encodings import create


def test_fast_pairs_stay_and_slow_pairs_are_interpolated(released):
    rope = create("rope", released).inv_freq
    parts = create("ntk_by_parts", released, factor=8.0, beta_fast=16.0, beta_slow=2.0).inv_freq
    turns = released.max_positions * rope / (2 * math.pi)
    # The ends of the ramp are rounded outwards: the pairs next to them belong to it.
    fast, slow = (turns > 16).nonzero()[-1], (turns < 2).nonzero()[0]
    assert torch.equal(parts[:fast], rope[:fast])
    torch.testing.assert_close(parts[slow + 1 :], rope[slow + 1 :] / 8, rtol=1e-6, atol=0)
    ratio = parts[fast : slow + 1] / rope[fast : slow + 1]
    steps = ratio.diff()[1:-1]
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-3, atol=1e-5)
    assert (steps < 0).all()


def test_is_yarn_without_temperature(released, llama_rotary):
    parts = create("ntk_by_parts", released, factor=8.0)
    stock = llama_rotary(released, parts.rope_parameters())
    assert torch.equal(stock.inv_freq, parts.inv_freq)
    assert stock.attention_scaling == parts.attention_factor == 1.0


@pytest.mark.parametrize("options", [{"beta_fast": 1.0}, {"beta_slow": 0}, {"factor": float("nan")}, {"target_length": 64}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match="|".join(options)):
        create("ntk_by_parts", geometry, **{"factor": 2.0} | options)


def test_refuses_a_scaled_model(yarned):
    with pytest.raises(ValueError, match="'ntk_by_parts' does not compose"):
        create("ntk_by_parts", yarned, factor=2.0)
