import dataclasses

import numpy as np
import pytest
import torch

from hf_posenc.encodings import create


@pytest.mark.parametrize("factor", [1.0, 2.0, 8.0])
def test_last_frequency_is_divided_by_the_factor(released, factor):
    ntk = create("ntk", released, factor=factor).inv_freq.double()
    rope = create("rope", released).inv_freq.double()
    width = released.head_dim
    expected = rope * torch.tensor([factor ** (-2 * n / (width - 2)) for n in range(width // 2)])
    torch.testing.assert_close(ntk, expected, rtol=1e-6, atol=0)
    assert ntk[0] == 1
    assert ntk[-1].item() == pytest.approx(rope[-1].item() / factor, rel=1e-6)


def test_scores(geometry, random_qk, rotary_scores):
    q, k, pos = random_qk(geometry, 10)
    frequencies = (10_000.0 * 4.0 ** (8 / 6)) ** (-2 * np.arange(4) / 8)
    expected = rotary_scores(q, k, lambda i, j: (i - j) * frequencies)
    torch.testing.assert_close(create("ntk", geometry, target_length=64).scores(q, k, pos, pos), expected, rtol=0, atol=1e-6)


def test_uses_the_rotated_width(geometry):
    ntk = create("ntk", dataclasses.replace(geometry, rotary_dim=4), factor=4.0)
    torch.testing.assert_close(ntk.inv_freq, torch.tensor([1.0, 0.01 / 4]))


@pytest.mark.parametrize("options", [{}, {"factor": 0.9}, {"factor": 2, "target_length": 32}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match="factor"):
        create("ntk", geometry, **options)


def test_refuses_a_scaled_model(yarned):
    with pytest.raises(ValueError, match=r"'yarn'.* 'ntk' does not compose"):
        create("ntk", yarned, factor=2.0)
