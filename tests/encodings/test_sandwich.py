import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_posenc.encodings import create
from hf_posenc.encodings.bias import sandwich as sandwich_module


def sinusoid(position, dim, first):
    angles = [position * 10_000.0 ** (-2 * k / dim) for k in range(first, dim // 2 + first)]
    return torch.tensor([f(a) for a in angles for f in (math.sin, math.cos)], dtype=torch.float64)


@pytest.mark.parametrize("options, dim, first", [({}, 128, 1), ({"dim": 6}, 6, 1), ({"dim": 6, "first": 0}, 6, 0)])
def test_scores(geometry, random_qk, options, dim, first):
    sandwich = create("sandwich", geometry, **options)
    q, k, pos = random_qk(geometry, 12)
    scores = sandwich.scores(q, k, pos, pos)
    for h in range(4):
        for i in range(12):
            for j in range(12):
                inner = sinusoid(i, dim, first) @ sinusoid(j, dim, first) - dim / 2
                expected = (q[:, h, i] * k[:, h // 2, j]).sum(-1) / math.sqrt(8) + inner * 4 / (8 * (h + 1))
                torch.testing.assert_close(scores[:, h, i, j], expected, rtol=0, atol=1e-5)


def test_precision_far_away(geometry):
    sandwich = create("sandwich", geometry)
    distance, head = torch.arange(0, 100_000, 97), torch.arange(4)[:, None]
    single = sandwich.bias(head, distance, torch.zeros_like(distance))
    double = sandwich.bias(head, distance.double(), torch.zeros_like(distance))
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=0, atol=0.01)  # of up to 40


def test_no_distance_no_bias_and_never_above(geometry):
    table = create("sandwich", geometry).bias(torch.arange(4)[:, None], torch.arange(5000), torch.zeros(5000))
    assert torch.equal(table[:, 0], torch.zeros(4))
    assert (table[:, 1:] < 0).all()


def test_first_zero_is_a_product_of_sinusoidal_encodings(geometry):
    vectors = create("sinusoidal", geometry).embed(torch.zeros(1, 40, 32, dtype=torch.float64), torch.arange(40)[None])[0]
    pos = torch.arange(40)
    bias = create("sandwich", geometry, dim=32, first=0).bias(torch.tensor(3), pos[:, None].double(), pos.double())
    torch.testing.assert_close(bias, (vectors @ vectors.T - 16) * 4 / 8 / 4, rtol=0, atol=1e-6)


@pytest.mark.parametrize("option", [{"first": -1}, {"first": 2}, {"first": True}])
def test_bad_first(geometry, option):
    with pytest.raises(ValueError, match="first"):
        create("sandwich", geometry, **option)


@pytest.mark.parametrize("dim, message", [(0, "at least 2"), (5, "dim must be even, got 5"), (64.0, "must be an integer")])
def test_bad_options(geometry, dim, message):
    with pytest.raises(ValueError, match=message):
        create("sandwich", geometry, dim=dim)


@pytest.mark.parametrize("most", [0, sandwich_module.AT_ONCE])
def test_a_number_alone_is_that_of_the_block(geometry, most, monkeypatch):
    """However the frequencies are summed."""
    monkeypatch.setattr(sandwich_module, "AT_ONCE", most)
    sandwich, distance = create("sandwich", geometry), torch.arange(300)
    block = sandwich.bias(torch.tensor(2), distance, torch.zeros(300, dtype=torch.long))
    single = torch.vmap(lambda t: sandwich.bias(torch.tensor(2), t, torch.zeros_like(t)))(distance)
    torch.testing.assert_close(single, block, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape, axes", [((300,), 2), ((), 0), ((1 << 9, 1 << 9), 2)])
def test_frequencies_have_an_axis_where_there_is_room(geometry, shape, axes):
    """A table of distances takes one sum, not a kernel for each frequency; one number inside a kernel, and a large block, take no axis."""
    sandwich = create("sandwich", geometry)
    with Sizes() as sizes:
        sandwich.bias(torch.tensor(0), torch.zeros(shape, dtype=torch.long), torch.zeros((), dtype=torch.long))
    assert max(sizes.dims) == axes


class Sizes(TorchDispatchMode):
    """How many axes the cosines have."""

    def __init__(self):
        super().__init__()
        self.dims = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.cos.default:
            self.dims.append(out.ndim)
        return out
