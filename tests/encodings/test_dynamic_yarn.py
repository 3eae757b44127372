import math

import numpy as np
import pytest
import torch

from hf_posenc.encodings import Geometry, create

LLAMA = Geometry(hidden_size=256, num_heads=4, head_dim=64, max_positions=2048)
AUTHORS = {  # (scale that the model was tuned for, tokens): frequencies of pairs 0, 10, 15, 20 and 31, and the factor on cos and sin
    (1, 5000): ([1.0, 0.05112633854150772, 0.009095847606658936, 0.0014388851122930646, 5.4621043091174215e-05], 1.089257420525684),
    (1, 9001): ([1.0, 0.04955117776989937, 0.007788495626300573, 0.0009074188419617712, 3.0341650926857255e-05], 1.1480471975097686),
    (4, 5000): ([1.0, 0.049745574593544006, 0.00794983934611082, 0.0009730085730552673, 3.333803761051968e-05], 1.138629436111989),
    (4, 9001): ([1.0, 0.04955117776989937, 0.007788495626300573, 0.0009074188419617712, 3.0341650926857255e-05], 1.1480471975097686),
}


@pytest.mark.parametrize("tuned, tokens", AUTHORS)
def test_numbers_of_the_authors_code(tuned, tokens):
    dynamic = create("dynamic_yarn", LLAMA, tuned=float(tuned), step=1)
    frequencies, factor = AUTHORS[tuned, tokens]
    pos = torch.tensor([[tokens - 1]])
    torch.testing.assert_close(dynamic.frequencies_for(pos)[0, 0, [0, 10, 15, 20, 31]], torch.tensor(frequencies), rtol=3e-7, atol=0)
    assert dynamic.query_factor(pos).item() == pytest.approx(factor**2, rel=1e-9)


def by_parts(s, native=16, width=8):
    """YaRN's definition 1, with the ramp linear in the index of the pair and its ends rounded outwards."""
    ends = [width / 2 * math.log(native / (2 * math.pi * turns), 10_000.0) for turns in (32, 1)]
    low, high = max(math.floor(ends[0]), 0), min(math.ceil(ends[1]), width - 1)
    plain, k = 10_000.0 ** (-2 * np.arange(width // 2) / width), np.arange(width // 2)
    keep = 1 - np.clip((k - low) / (high - low), 0, 1)
    return plain * (keep + (1 - keep) / s)


def test_each_row_has_the_scale_and_the_temperature_of_its_length(geometry, random_qk, rotary_scores):
    q, k, pos = random_qk(geometry, 40)
    expected = rotary_scores(q, k, lambda i, j: (i - j) * by_parts(max(1, (i + 1) / 16)))
    temperature = torch.tensor([0.1 * math.log(max(1, n / 16)) + 1 for n in range(1, 41)])[:, None] ** 2
    scores = create("dynamic_yarn", geometry, step=1).scores(q, k, pos, pos)
    torch.testing.assert_close(scores, expected * temperature, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"step": 5}, {"tuned": 1.7, "step": 4}])
def test_as_decoded_as_evaluated(geometry, random_qk, options):
    dynamic = create("dynamic_yarn", geometry, **options)
    q, k, pos = random_qk(geometry, 40)
    full = dynamic.scores(q, k, pos, pos)
    for n in range(1, 41):
        part = dynamic.scores(q[:, :, :n], k[:, :, :n], pos[:, :n], pos[:, :n])
        torch.testing.assert_close(full[:, :, n - 1, :n], part[:, :, -1], rtol=0, atol=1e-12)


def test_a_short_text_is_left_alone(geometry, random_qk):
    q, k, pos = random_qk(geometry, 16)
    assert torch.equal(create("dynamic_yarn", geometry).scores(q, k, pos, pos), create("rope", geometry).scores(q, k, pos, pos))


@pytest.mark.parametrize("options", [{"tuned": 0.5}, {"step": 0}, {"beta_fast": 1.0, "beta_slow": 2.0}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=list(options)[-1]):
        create("dynamic_yarn", geometry, **options)


def test_refuses_a_scaled_model(yarned):
    with pytest.raises(ValueError, match="'dynamic_yarn' does not compose"):
        create("dynamic_yarn", yarned)
