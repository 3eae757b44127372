import dataclasses
import math

import pytest
import torch

from hf_posenc.encodings import create

AUTHORS = [  # ParallelKerplePower of chijames/KERPLE with "kerple_power_ap_ap" and the numbers below: query 5, all products 2
    [0.4027330, 0.5827818, 0.7864418, 1.0218893, 1.3096749, 2.0],
    [-0.4723967, -0.2088134, 0.0749310, 0.3941298, 0.7931706, 2.0],
    [-0.1106972, -0.0635405, 0.0824495, 0.5741041, 1.4716364, 2.0],
    [-20.6333218, -12.5276918, -6.2207724, -1.7116332, 1.0024590, 2.0],
]
BIAS = ([0.5, 0.2, 0.001, 0.9], [0.3, 1.0, 1.5, 3.0])
WEIGHT = ([0.1, 0.7, 0.3, 0.05], [1.0, 0.4, 2.5, 0.2])


def given(geometry, **options):
    kerple = create("kerple_weighted", geometry, **options)
    for kernel, (r1, r2) in ((kerple.added, BIAS), (kerple.weight, WEIGHT)):
        if kernel is not None:
            kernel.r1.data, kernel.r2.data = torch.tensor(r1), torch.tensor(r2)
    return kerple


def test_equals_the_authors_code(geometry):
    kerple = given(dataclasses.replace(geometry, num_kv_heads=4))
    q = k = torch.full((1, 4, 6, 8), (2 / 8**0.5) ** 0.5)
    pos = torch.arange(6)[None]
    torch.testing.assert_close(kerple.scores(q, k, pos, pos)[0, :, 5], torch.tensor(AUTHORS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_scores(geometry, random_qk, bias):
    kerple, (q, k, pos) = given(geometry, bias=bias), random_qk(geometry, 9)
    scores, none = (encoding.scores(q, k, pos, pos) for encoding in (kerple, create("nope", geometry)))
    for h in range(4):
        (r1, r2), (r3, r4) = ((max(a[h], 0.01), min(p[h], 2.0)) for a, p in (BIAS, WEIGHT))
        for i in range(9):
            for j in range(i + 1):
                expected = none[:, h, i, j] * math.exp(-r3 * (i - j) ** r4) - bias * r1 * (i - j) ** r2
                torch.testing.assert_close(scores[:, h, i, j], expected, rtol=1e-5, atol=1e-5)


def test_both_kernels_stay_within_their_bounds(geometry):
    kerple = given(geometry)
    kerple.project()
    assert kerple.added.r1.min().item() == pytest.approx(0.01) and kerple.added.r2.max() == kerple.weight.r2.max() == 2


def test_every_parameter_learns_at_distance_zero_too(geometry, random_qk):
    kerple, (q, k, pos) = create("kerple_weighted", geometry), random_qk(geometry, 6)
    kerple.scores(q, k, pos, pos).tril().square().sum().backward()
    assert all(p.grad.isfinite().all() and (p.grad != 0).all() for p in kerple.parameters())


def test_bad_options(geometry):
    with pytest.raises(ValueError, match="bias is True or False"):
        create("kerple_weighted", geometry, bias=1)
