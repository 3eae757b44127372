import copy

import numpy as np
import pytest
import torch

from hf_posenc.encodings import create


def added(floater, length, dtype=torch.float64):
    """What is added to queries, keys and values of `length` tokens: [T,H,D], and two of [T,G,D]."""
    g, pos = floater.geometry, torch.arange(length)[None]
    q, k, v = (torch.zeros(1, heads, length, g.head_dim, dtype=dtype) for heads in (g.num_heads, g.num_kv_heads, g.num_kv_heads))
    return [x[0].transpose(0, 1) for x in (*floater.rotate(q, k, pos, pos), floater.value(v, pos))]


@pytest.fixture
def floater(geometry):
    """With made-up numbers in every parameter."""
    torch.manual_seed(0)
    made = create("floater", geometry, max_positions=200, stride=1)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return made.requires_grad_(False)


@pytest.mark.parametrize("stride, tolerance", [(1, 1e-9), (16, 1e-4)])
def test_linear_dynamics_are_a_matrix_exponential(floater, stride, tolerance):
    """Where no unit is cut off by its ReLU: p(t) = exp(A t) p(0)."""
    torch.manual_seed(0)
    floater.stride = stride
    a = torch.rand(8, 8, dtype=torch.float64) / 4  # what is above 0 stays there
    starts = floater.start_q, floater.start_k, floater.start_v
    for start in starts:
        start.uniform_(0.5, 1)
    floater.double()
    floater.w1.copy_(torch.eye(8, 9)), floater.w2.copy_(torch.nn.functional.pad(a, (0, 1)))
    floater.b1.zero_(), floater.b2.zero_()
    for found, start in zip(added(floater, 150), starts, strict=True):
        expected = torch.stack([start @ torch.linalg.matrix_exp(a * (0.01 * t)).T for t in range(150)])
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)


def test_time_is_seen_by_both_layers(floater):
    """With p cut off from h: p(t) = p(0) + the integral of w2 [relu(w s + b1) | s] + b2, a sum over fine steps."""
    floater.w1[:, :-1] = 0
    w1, b1, w2, b2 = (p.double().numpy() for p in (floater.w1, floater.b1, floater.w2, floater.b2))
    s = (np.arange(99 * 100) + 0.5) * 1e-4  # midpoints
    rate = np.maximum(s[:, None] * w1[:, -1] + b1, 0) @ w2[:, :-1].T + s[:, None] * w2[:, -1] + b2
    moved = np.concatenate((np.zeros((1, 8)), np.cumsum(rate, 0)[99::100] * 1e-4))
    found = added(floater, 100)[1].numpy() - floater.start_k.double().numpy()
    assert np.abs(found - moved[:, None]).max() < 1e-6


def test_every_step_of_a_stride_is_between_its_ends(floater):
    """A coarse solution follows a fine one: no token is taken for its neighbour."""
    fine, coarse = added(floater, 200)[0], None
    floater.stride = 8
    floater.kept.clear()
    coarse = added(floater, 200)[0]
    assert (fine - coarse).abs().max() < 2e-3 < (fine[1:] - fine[:-1]).abs().max()


def test_the_solution_is_kept_until_a_parameter_changes(floater):
    before = added(floater, 50)[0]
    solution = floater.kept["start_q"][-1]
    assert torch.equal(added(floater, 20)[0], before[:20]) and floater.kept["start_q"][-1] is solution
    assert torch.equal(added(floater, 90)[0][:50], before)  # a longer one goes on from it
    floater.w2.add_(1)
    assert not torch.allclose(added(floater, 50)[0], before)
    floater.w2 = torch.nn.Parameter(floater.w2 - 1, requires_grad=False)
    torch.testing.assert_close(added(floater, 50)[0], before)
    assert added(floater, 50, torch.float32)[0].dtype == torch.float32
    assert torch.equal(added(copy.deepcopy(floater), 50)[0], added(floater, 50)[0])


@pytest.mark.parametrize("options", [{"step": 0}, {"stride": 0}, {"max_positions": 0}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("floater", geometry, **options)
