import dataclasses
import math

import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hf_posenc.encodings import Geometry, create


@pytest.mark.parametrize(
    "options",
    [
        {"factor": 1.0},
        {"factor": 4.0},
        {"factor": 32.0, "truncate": False},
        {"factor": 8.0, "beta_fast": 20.0, "beta_slow": 2.0},
        {"factor": 16.0, "attention_factor": 1.5},
    ],
)
def test_equals_transformers(released, llama_rotary, options):
    yarn = create("yarn", released, **options)
    native = {"rope_type": "yarn", "original_max_position_embeddings": released.max_positions}
    inv_freq, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](llama_rotary(released, native | options).config, "cpu")
    assert torch.equal(yarn.inv_freq, inv_freq)
    assert yarn.attention_factor == attention_factor


def test_definition_of_the_paper(released):
    """Definitions 1 and 3, with the ramp linear in the index of the pair as in the authors' code."""
    width, theta, native, factor = released.head_dim, released.theta, released.max_positions, 4.0
    yarn = create("yarn", released, factor=factor, truncate=False)
    fast, slow = (width / 2 * math.log(native / (2 * math.pi * turns), theta) for turns in (32, 1))
    for n, frequency in enumerate(yarn.inv_freq.tolist()):
        plain = theta ** (-2 * n / width)
        keep = 1 - min(1.0, max(0.0, (n - fast) / (slow - fast)))
        assert frequency == pytest.approx((1 - keep) * plain / factor + keep * plain, rel=1e-5)
    assert yarn.attention_factor == pytest.approx(0.1 * math.log(4) + 1)


@pytest.mark.parametrize("slow", [1.0, 1e-4])
def test_the_ramp_may_end_past_the_last_pair(llama_rotary, slow):
    """Where all pairs turn more than `slow` times within the context, none is fully interpolated: its end is held below 2r/2, not r/2."""
    long = Geometry(512, 4, max_positions=131_072)
    yarn = create("yarn", long, factor=4.0, beta_slow=slow)
    native = {"rope_type": "yarn", "original_max_position_embeddings": 131_072, "factor": 4.0, "beta_slow": slow}
    assert torch.equal(yarn.inv_freq, ROPE_INIT_FUNCTIONS["yarn"](llama_rotary(long, native).config, "cpu")[0])
    low, high = (128 * math.log(131_072 / (2 * math.pi * turns)) / (2 * math.log(10_000)) for turns in (32, slow))
    keep = 1 - (63 - math.floor(low)) / (min(math.ceil(high), 127) - math.floor(low))
    assert 0 < keep < 1 and yarn.inv_freq[-1].item() == pytest.approx(10_000 ** (-126 / 128) * (keep + (1 - keep) / 4), rel=1e-5)


def test_what_does_not_turn_has_no_factor(geometry):
    """In a model that turns a part of each head, whose temperature is then another than the paper's (`yarn_scale` has that)."""
    yarn = create("yarn", dataclasses.replace(geometry, rotary_dim=4), factor=4.0)
    x, pos = torch.randn(1, 4, 5, 8), torch.arange(5)[None]
    turned = yarn.rotate_one(x, pos)
    assert torch.equal(turned[..., 4:], x[..., 4:])
    torch.testing.assert_close(turned[..., :4].norm(dim=-1), (0.1 * math.log(4) + 1) * x[..., :4].norm(dim=-1))


def test_factor_acts_on_the_scores_squared(geometry, random_qk):
    q, k, pos = random_qk(geometry, 20)
    plain = create("ntk_by_parts", geometry, factor=4.0).scores(q, k, pos, pos)
    torch.testing.assert_close(create("yarn", geometry, target_length=64).scores(q, k, pos, pos), (0.1 * math.log(4) + 1) ** 2 * plain)


@pytest.mark.parametrize(
    "options",
    [
        {"beta_fast": 0},
        {"beta_slow": -1},
        {"beta_fast": 1, "beta_slow": 2},
        {"attention_factor": 0},
        {"factor": 0.5},
        {"target_length": 64},
    ],
)
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match="|".join(options)):
        create("yarn", geometry, **{"factor": 2.0} | options)


def test_refuses_a_scaled_model(yarned):
    with pytest.raises(ValueError, match="'yarn' does not compose"):
        create("yarn", yarned, factor=2.0)
