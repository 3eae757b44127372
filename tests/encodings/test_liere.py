import dataclasses

import numpy as np
import pytest
import torch
from tiny import off_start, tiny_model
from torch.testing import assert_close

import hf_posenc
from hf_posenc.encodings import create
from hf_posenc.encodings.rotary.generators import matrix_exp

POS = torch.randint(0, 9, (3, 1, 5), generator=torch.Generator().manual_seed(0))


def moved(name, geometry, **options):
    encoding = create(name, geometry, **options).double()
    torch.manual_seed(0)
    for parameter in encoding.parameters():
        parameter.data.normal_(0, 0.3)
    return encoding


def rotation(start, upper, position):
    """exp of the sum over axes, by the eigenvectors of i A: [b,b] of A's start [n,b,b] and the entries above the diagonal [n,b(b-1)/2]."""
    width = start.shape[-1]
    total = np.zeros((width, width))
    for axis, p in enumerate(position):
        above = np.zeros((width, width))
        above[np.triu_indices(width, 1)] = upper[axis]
        total += p * (start[axis] + above - above.T)
    values, vectors = np.linalg.eigh(1j * total)
    return (vectors @ np.diag(np.exp(-1j * values)) @ vectors.conj().T).real


@pytest.mark.parametrize("interleaved", [False, True])
def test_scores(geometry, random_qk, interleaved):
    """Against R(p_i) q . R(p_j) k, with blocks of two pairs each and the frequencies of RoPE by hand."""
    liere = moved("liere", dataclasses.replace(geometry, interleaved=interleaved), axes=3, block=4)
    q, k, _ = random_qk(geometry, 5)
    scores = liere.scores(q, k, POS.expand(-1, 2, -1), POS.expand(-1, 2, -1)).detach()
    upper, expected = liere.upper.detach().numpy(), 0.0
    order = np.arange(8) if interleaved else np.array([0, 4, 1, 5, 2, 6, 3, 7])
    x, y = q[1, 2, 4].numpy()[order], k[1, 1, 3].numpy()[order]
    for block in range(2):
        start = np.zeros((3, 4, 4))
        for pair in range(2):
            number = 2 * block + pair
            start[number % 3, 2 * pair + 1, 2 * pair] = np.float32(10_000 ** (-number / 4))
            start[number % 3, 2 * pair, 2 * pair + 1] = -np.float32(10_000 ** (-number / 4))
        here, there = (rotation(start, upper[:, 1, block], POS[:, 0, at].tolist()) for at in (4, 3))
        part = slice(4 * block, 4 * block + 4)
        expected += (here @ x[part]) @ (there @ y[part]) / np.sqrt(8)
    assert scores[1, 2, 4, 3].item() == pytest.approx(expected, rel=1e-6)


def test_generators_are_those_of_the_authors():
    """`LierePositionEncoder` of StanfordMIMI/LieRE, whose triangle begins at 1/2: the upper triangle less its transpose."""
    from hf_posenc.encodings.rotary.generators import skew

    raw = torch.arange(9.0).view(3, 3)
    upper = torch.triu(raw, diagonal=1) - 0.5
    rows, columns = torch.triu_indices(3, 3, 1)
    torch.testing.assert_close(skew(raw[rows, columns], 3), upper - upper.T)


@pytest.mark.parametrize(
    "name, options", [("liere", {}), ("liere", {"axes": 3, "block": 4}), ("comrope", {}), ("comrope", {"form": "linear"})]
)
@torch.no_grad()
def test_text_alone_is_rope_at_first(name, options):
    stock, ids = tiny_model("llama"), torch.arange(3, 20)[None]
    model = hf_posenc.patch(tiny_model("llama"), name, **options)
    torch.testing.assert_close(model(ids).logits, stock(ids).logits, atol=1e-4, rtol=1e-4)
    assert (off_start(model)(ids).logits - stock(ids).logits).abs().max() > 1e-3


@pytest.mark.parametrize("form", ["axial", "linear"])
def test_scores_of_comrope_stay_when_an_axis_is_moved(geometry, random_qk, form):
    """That is what commuting is for: LieRE's do not."""
    q, k, _ = random_qk(geometry, 5)
    for name, options in (("comrope", {"form": form}), ("liere", {})):
        encoding = moved(name, geometry, block=4, **options)
        here = POS[:2].expand(-1, 2, -1)
        there = here + torch.tensor([7, 0])[:, None, None]
        same = torch.allclose(encoding.scores(q, k, here, here), encoding.scores(q, k, there, there), atol=1e-5)
        assert same == (name == "comrope")


@pytest.mark.parametrize("form", ["axial", "linear"])
def test_comrope_by_hand(geometry, random_qk, form):
    """exp((p_i - p_j) . c A) between query and key, block by block."""
    comrope = moved("comrope", geometry, block=4, form=form)
    q, k, _ = random_qk(geometry, 5)
    at = POS[:2].expand(-1, 2, -1)
    scores = comrope.scores(q, k, at, at).detach()
    order, expected = np.array([0, 4, 1, 5, 2, 6, 3, 7]), 0.0
    x, y = q[1, 2, 4].numpy()[order], k[1, 1, 3].numpy()[order]
    for block in range(2):
        shares = [float(axis == block) for axis in range(2)]
        if form == "linear":
            shares = [0.5 + comrope.share[axis, 1, block].item() for axis in range(2)]
        start = np.zeros((1, 4, 4))
        for pair in range(2):
            start[0, 2 * pair + 1, 2 * pair] = np.float32(10_000 ** (-(2 * block + pair) / 4))
            start[0, 2 * pair, 2 * pair + 1] = -start[0, 2 * pair + 1, 2 * pair]
        far = sum(c * float(p[0, 4] - p[0, 3]) for c, p in zip(shares, POS, strict=False))
        turned = rotation(start, [comrope.upper[1, block].detach().numpy()], [far]) @ x[4 * block : 4 * block + 4]
        expected += turned @ y[4 * block : 4 * block + 4] / np.sqrt(8)
    assert scores[1, 2, 4, 3].item() == pytest.approx(expected, rel=1e-6)


def test_far_positions_are_exact(geometry, random_qk):
    """A hundred thousand tokens on: squaring in float32 would lose the third digit."""
    q, k, pos = (x.float() if x.is_floating_point() else x for x in random_qk(geometry, 9))
    liere = create("liere", geometry)
    near, far = (liere.scores(q, k, at, at) for at in ((pos + d).expand(2, -1, -1) for d in (0, 100_000)))
    torch.testing.assert_close(far, near, atol=2e-6, rtol=0)


@pytest.mark.parametrize("block", [3, 16, 2.0])
def test_a_block_divides_the_head(geometry, block):
    with pytest.raises(ValueError, match="block must be"):
        create("liere", geometry, block=block)


def test_the_exponential_is_an_operation_that_graphs_leave_out():
    """It copies to the host, as the one of PyTorch does; its gradient is another way to that one's."""
    x, weights = torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=True), torch.randn(3, 4, 4, dtype=torch.float64)
    (found,) = torch.autograd.grad((matrix_exp(x) * weights).sum(), x)
    (expected,) = torch.autograd.grad((torch.linalg.matrix_exp(x) * weights).sum(), x)
    assert_close(found, expected)
    assert {*torch.library.opcheck(matrix_exp, (x,)).values()} == {"SUCCESS"}
    assert torch.Tag.cudagraph_unsafe in torch.ops.hf_posenc.matrix_exp.default.tags
