import dataclasses
import math

import pytest
import torch

from hf_posenc.encodings import create


def reference(kernel, p, a, distance):
    p, a = max(p, 0.01), max(a, 0.01)
    return -p * math.log(1 + a * distance) if kernel == "log" else -p * distance ** min(a, 2.0)


@pytest.mark.parametrize("kernel", ["log", "power"])
def test_scores(geometry, random_qk, kernel):
    kerple = create("kerple", geometry, kernel=kernel)
    r1, r2 = [0.5, 1.7, -3.0, 0.9], [0.25, 5.0, 0.6, -1.0]
    kerple.r1.data, kerple.r2.data = torch.tensor(r1), torch.tensor(r2)
    q, k, pos = random_qk(geometry, 12)
    scores = kerple.scores(q, k, pos, pos)
    for h in range(4):
        for i in range(12):
            for j in range(i + 1):
                bias = reference(kernel, r1[h], r2[h], i - j)
                expected = (q[:, h, i] * k[:, h // 2, j]).sum(-1) / math.sqrt(8) + bias
                torch.testing.assert_close(scores[:, h, i, j], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", ["log", "power"])
def test_gradients_are_finite_and_reach_clamped_parameters(geometry, kernel):
    kerple = create("kerple", geometry, kernel=kernel)
    kerple.r1.data, kerple.r2.data = torch.tensor([0.5, -0.1, 1.0, 1.0]), torch.tensor([0.5, 1.0, 0.001, 3.0])
    pos = torch.arange(6)[None]
    kerple.bias_matrix(pos, pos).tril().sum().backward()
    for parameter in (kerple.r1, kerple.r2):
        assert parameter.grad.isfinite().all()
        assert (parameter.grad != 0).all()


@pytest.mark.parametrize("kernel", ["log", "power"])
def test_no_distance_no_bias(geometry, kernel):
    kerple = create("kerple", geometry, kernel=kernel)
    near = kerple.bias_matrix(torch.tensor([[5]]), torch.tensor([[5, 6, 9]]))
    assert torch.equal(near, torch.zeros(1, 4, 1, 3))


def test_starts_as_the_authors_do(geometry):
    kerple = create("kerple", dataclasses.replace(geometry, num_heads=1000, num_kv_heads=1))
    assert kerple.r1.min() >= 0 and 1.9 < kerple.r1.max() <= 2 and kerple.r1.mean().item() == pytest.approx(1, abs=0.1)
    assert kerple.r2.min() >= 0 and 0.95 < kerple.r2.max() <= 1 and kerple.r2.mean().item() == pytest.approx(0.5, abs=0.05)


def test_bad_kernel(geometry):
    with pytest.raises(ValueError, match="kernel is one of log, power, got 'cosine'"):
        create("kerple", geometry, kernel="cosine")
