import math

import pytest
import torch

from hf_posenc.encodings import Geometry, create

PHI3_MINI = Geometry(hidden_size=3072, num_heads=32, max_positions=2048)
LLAMA3 = Geometry(hidden_size=4096, num_heads=32, num_kv_heads=8, theta=500_000.0, max_positions=8192)


@pytest.mark.parametrize("geometry, critical", [(PHI3_MINI, 31), (LLAMA3, 35)])
def test_critical_pairs_of_the_paper(geometry, critical):
    """Section 2.1: 31 of 48 for Phi3-mini, and 35 of 64 for LLaMA3-8B."""
    factors = create("longrope2", geometry, factor=16.0).long
    assert [f == 16.0 for f in factors] == [k >= critical for k in range(geometry.head_dim // 2)]


@pytest.mark.parametrize("critical", [None, 25])
def test_ntk_below_the_critical_pair(critical):
    """Algorithm 1: a base of the exponents for which the critical pair has its own factor, in float64."""
    longrope2 = create("longrope2", PHI3_MINI, factor=64.0, critical_pair=critical)
    c, width, theta = critical or 31, 96, 10_000.0
    base = (64 * theta ** (2 * c / width)) ** (width / (2 * c))
    far = longrope2.frequencies_for(torch.tensor(2048)).tolist()
    for k, frequency in enumerate(far):
        expected = base ** (-2 * k / width) if k < c else theta ** (-2 * k / width) / 64
        assert frequency == pytest.approx(expected, rel=2e-6)
    assert torch.equal(longrope2.frequencies_for(torch.tensor(2047)), create("rope", PHI3_MINI).inv_freq)


def test_runs_as_longrope(geometry, random_qk):
    q, k, pos = random_qk(geometry, 24)
    factors = [1.0, 3.0, 4.0, 5.0]
    one, other = (create(name, geometry, factor=4.0, long_factor=factors) for name in ("longrope2", "longrope"))
    assert torch.equal(one.scores(q, k, pos, pos), other.scores(q, k, pos, pos))
    assert one.attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(16)))


@pytest.mark.parametrize(
    "options",
    [
        {"critical_pair": 0},
        {"critical_pair": 5},
        {"critical_pair": 1.5},
        {"critical_pair": 1, "long_factor": [1.0] * 4},
        {"long_factor": [1.0]},
    ],
)
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("longrope2", geometry, **{"factor": 2.0} | options)


def test_refuses_another_scaling(yarned):
    with pytest.raises(ValueError, match="'longrope2' does not compose"):
        create("longrope2", yarned, factor=2.0)
