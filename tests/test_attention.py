"""The attention paths against the dense definition in float64, and what they allocate."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import options_for
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.masking_utils import flex_attention_mask

import hf_posenc
from hf_posenc.attention import dense, distance, regional
from hf_posenc.attention.entry import EncodingSite, posenc_attention
from hf_posenc.attention.masks import key_positions
from hf_posenc.encodings import Geometry

IN_ATTENTION = [n for n in hf_posenc.list_encodings() if {"bias", "regions", "rotate"} & set(hf_posenc.describe(n).stages)]
every_encoding = pytest.mark.parametrize("name", IN_ATTENTION)


class Site(nn.Module):
    """The least of an attention module: what the attention function reads."""

    def __init__(self, encoding, groups):
        super().__init__()
        self.encoding, self.num_key_value_groups = encoding, groups
        self.posenc_site = EncodingSite(self, "encoding")
        self.eval()


def setting(name, heads=4, groups=2, width=16, queries=40, keys=40, batch=2, native=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    geometry = Geometry(heads * width, heads, groups, width, max_positions=native)
    torch.manual_seed(seed)
    site = Site(hf_posenc.create(name, geometry, **options_for(name)), heads // groups)
    q = torch.randn(batch, heads, queries, width, generator=generator)
    k, v = (torch.randn(batch, groups, keys, width, generator=generator) for _ in range(2))
    return site, q, k, v


def reference(encoding, q, k, v, q_pos, k_pos, seen):
    """Softmax over the visible scores in float64; rows that see nothing give 0."""
    scores = encoding.scores(q.double(), k.double(), q_pos, k_pos).masked_fill(~seen, -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)
    return (weights @ v.double().repeat_interleave(q.shape[1] // v.shape[1], 1)).transpose(1, 2)


@st.composite
def cases(draw):
    groups = draw(st.integers(1, 3))
    queries = draw(st.integers(1, 70))
    return {
        "name": draw(st.sampled_from(IN_ATTENTION)),
        "groups": groups,
        "heads": groups * draw(st.integers(1, 4)),
        "width": draw(st.sampled_from([4, 8, 18])),
        "queries": queries,
        "keys": queries + draw(st.integers(0, 30)),
        "batch": draw(st.integers(1, 3)),
        "native": draw(st.integers(2, 40)),
        "seed": draw(st.integers(0, 9)),
    }


@given(cases(), st.booleans(), st.integers(0, 5), st.sampled_from([None, 3, 17]), st.booleans())
@settings(max_examples=120, deadline=None)
def test_any_shape_and_mask(case, offset, padding, window, grad):
    """Random heads, groups, widths, cache lengths, offsets, left padding, windows: output and gradients of q, k, v."""
    site, q, k, v = setting(**case)
    queries, keys = q.shape[2], k.shape[2]
    q_pos = (torch.arange(queries) + keys - queries)[None].expand(len(q), -1) + (100 if offset else 0)
    k_pos = torch.arange(keys)[None].expand(len(q), -1) + (100 if offset else 0)
    seen = (k_pos[:, None] <= q_pos[:, :, None]) & (torch.arange(keys) >= min(padding, keys - 1))
    if window is not None:
        seen = seen & (k_pos[:, None] > q_pos[:, :, None] - window)
    seen = seen[:, None]
    inputs = [x.clone().requires_grad_(grad) for x in (q, k, v)]
    twins = [x.clone().double().requires_grad_(grad) for x in (q, k, v)]
    output, _ = posenc_attention("sdpa", site, *inputs, seen, position_ids=q_pos)
    expected = reference(site.encoding, *twins, q_pos, k_pos, seen)
    rows = seen.any(-1).transpose(1, 2)[..., None].expand_as(output)
    assert output.isfinite().all()
    assert_close(output[rows], expected.float()[rows], atol=1e-5, rtol=1e-4)
    if grad:
        output[rows].square().sum().backward()
        expected[rows].square().sum().backward()
        for ours, theirs in zip(inputs, twins, strict=True):
            assert_close(ours.grad, theirs.grad.float(), atol=1e-4, rtol=1e-3)


@every_encoding
@pytest.mark.parametrize("length", [1, 7, 70])
def test_without_a_mask_attention_is_causal(name, length):
    site, q, k, v = setting(name, queries=length, keys=length, native=20)
    pos = torch.arange(length)[None]
    output, _ = posenc_attention("sdpa", site, q, k, v, None, position_ids=pos)
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    assert_close(output, reference(site.encoding, q, k, v, pos.expand(2, -1), pos.expand(2, -1), seen).float(), atol=1e-5, rtol=1e-4)


LEARNED = [n for n in IN_ATTENTION if list(hf_posenc.create(n, Geometry(64, 4), **options_for(n)).parameters())]


@pytest.mark.parametrize("name", LEARNED)
def test_parameters_get_the_gradient_of_the_definition(name, monkeypatch):
    monkeypatch.setattr(distance, "HANKEL_ROWS", 16)
    site, q, k, v = setting(name)
    parameters = list(site.encoding.parameters())
    pos = torch.arange(40)[None].expand(2, -1)
    output = posenc_attention("sdpa", site, q, k, v, None, position_ids=pos)[0]
    expected = reference(site.encoding, q, k, v, pos, pos, torch.ones(40, 40, dtype=torch.bool).tril())
    ours, theirs = (torch.autograd.grad(x.square().sum(), parameters) for x in (output, expected))
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_blocks_that_do_not_divide(monkeypatch):
    """All paths, with blocks of 16 rows on 40 queries."""
    for module, constant in ((distance, "HANKEL_ROWS"), (regional, "ROWS")):
        monkeypatch.setattr(module, constant, 16)
    monkeypatch.setattr(dense, "BLOCK_BYTES", 1)
    for name in IN_ATTENTION:
        site, q, k, v = setting(name)
        pos = torch.arange(40)[None].expand(2, -1)
        seen = torch.ones(40, 40, dtype=torch.bool).tril()
        expected = reference(site.encoding, q, k, v, pos, pos, seen).float()
        for mask in (None, seen.expand(2, 1, 40, 40)):
            for grad in (False, True):
                output, _ = posenc_attention("sdpa", site, q.clone().requires_grad_(grad), k, v, mask, position_ids=pos)
                assert_close(output, expected, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_gaps_in_the_positions_are_distances():
    """Positions that jump (PoSE) are not distances in the row: the table must not be read as if they were."""
    site, q, k, v = setting("alibi", queries=10, keys=10)
    pos = torch.tensor([0, 1, 2, 3, 50, 51, 52, 90, 91, 92])[None]
    output, _ = posenc_attention("sdpa", site, q, k, v, None, position_ids=pos)
    seen = torch.ones(10, 10, dtype=torch.bool).tril()
    assert_close(output, reference(site.encoding, q, k, v, pos, pos, seen).float(), atol=1e-5, rtol=1e-4)


class Largest(TorchDispatchMode):
    """Number of elements in the largest storage that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return out


@every_encoding
@pytest.mark.parametrize("grad", [False, True])
def test_no_square_is_ever_made(name, grad):
    """At 4,096 tokens the largest float tensor is far from [H, L, L], in the backward pass too."""
    heads, length = 4, 4096
    site, q, k, v = setting(name, heads=heads, groups=2, width=8, queries=length, keys=length, batch=1, native=2048)
    pos = torch.arange(length)[None]
    q.requires_grad_(grad)
    with Largest() as largest:
        output = posenc_attention("sdpa", site, q, k, v, None, position_ids=pos)[0]
        if grad:
            output.sum().backward()
    assert largest.elements <= dense.BLOCK_BYTES // 4 + 16 * heads * length
    assert largest.elements < heads * length * length / 3


def test_a_row_that_sees_nothing_is_finite():
    for name in IN_ATTENTION:
        site, q, k, v = setting(name, queries=6, keys=6)
        seen = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
        seen[0, :, :, :3] = False
        output, _ = posenc_attention("sdpa", site, q, k, v, seen, position_ids=torch.arange(6)[None])
        assert output.isfinite().all(), name


def test_positions_of_cached_keys():
    seen = torch.tensor([[False, False, True, True, True], [True, True, True, True, True]])
    last = torch.tensor([[2], [4]])
    for mask in (seen[:, None, None], torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, None, None], seen):
        assert key_positions(last, mask, 5)[seen].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert key_positions(torch.tensor([[7]]), None, 3).tolist() == [[5, 6, 7]]
    sliding = torch.tensor([[True, True, True, False], [False, True, True, True]])[None, None]
    assert key_positions(torch.tensor([[8, 9]]), sliding, 4).tolist() == [[6, 7, 8, 9]]
    static = torch.tensor([True, True, False, False])[None, None, None]
    assert key_positions(torch.tensor([[1]]), static, 4)[0, :2].tolist() == [0, 1]


@pytest.mark.slow
@every_encoding
@torch.no_grad()
def test_compiled_flex_attention(name):
    """The real kernel, through the compiler."""
    site, q, k, v = setting(name, queries=130, keys=130, native=64)
    mask = flex_attention_mask(2, 130, 130)
    pos = torch.arange(130)[None]
    output, _ = posenc_attention("flex_attention", site, q, k, v, mask, position_ids=pos)
    seen = torch.ones(130, 130, dtype=torch.bool).tril()
    assert_close(output, reference(site.encoding, q, k, v, pos.expand(2, -1), pos.expand(2, -1), seen).float(), atol=1e-4, rtol=1e-3)
