"""The attention paths against the dense definition in float64, and what they allocate."""

import gc
from functools import partial

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from tiny import options_for, state_of, tiny_model
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hf_posenc
from hf_posenc.attention import blocks, entry, kernels, regional, tiles
from hf_posenc.attention.cached import STATE
from hf_posenc.attention.entry import EncodingSite
from hf_posenc.attention.layout import Layout
from hf_posenc.attention.masks import key_positions
from hf_posenc.compat import flex_attention_mask
from hf_posenc.encodings import ENCODINGS, Geometry, PositionalEncoding
from hf_posenc.encodings.naming import BEFOREHAND, BY_BLOCK, EMBEDDING, SCORING, STAGES

IN_ATTENTION = [n for n in hf_posenc.list_encodings() if ENCODINGS[n].has(*(stage for stage in STAGES if stage not in BEFOREHAND))]
every_encoding = partial(pytest.mark.cover, "name", name=IN_ATTENTION)
"""Every encoding in one case; further groups of cases are given."""


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
    options = options_for(name)
    if "max_positions" in options:
        options["max_positions"] = 100 + 4 * keys  # positions may jump
    site = Site(hf_posenc.create(name, geometry, **options), heads // groups)
    keys = keys if site.encoding.axes == 1 else queries  # where keys lie on several axes only their cache knows
    q = torch.randn(batch, heads, queries, width, generator=generator)
    k, v = (torch.randn(batch, groups, keys, width, generator=generator) for _ in range(2))
    return site, q, k, v


def posenc_attention(backend, site, q, k, v, mask, **kwargs):
    """The attention function, handed the states of the tokens as the hook before a layer does."""
    state = state_of(site.encoding, k)
    if state is not None and not site.encoding.caches_state:
        state = state[:, :, -q.shape[2] :]
    return entry.posenc_attention(backend, site, q, k, v, mask, **kwargs | ({} if state is None else {STATE: state}))


def reference(encoding, q, k, v, q_pos, k_pos, seen):
    """Softmax over the visible scores in float64; rows that see nothing give 0."""
    seen = (seen if seen.ndim == 4 else seen[None, None]).expand(len(q), -1, -1, -1)
    q, k, v = q.double(), k.double(), encoding.value(v.double(), k_pos)
    pos = (q_pos, k_pos) if encoding.axes == 1 else (q_pos.expand(encoding.axes, -1, -1), k_pos.expand(encoding.axes, -1, -1))
    state = state_of(encoding, k)
    scores = encoding.scores(q, k, *pos, state=state, seen=seen)
    block = encoding.block(q, k, *pos, state=state, seen=seen)
    if encoding.has("normalise"):
        weights = encoding.normalise(scores, block).masked_fill(~seen, 0)
    else:
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
    output = weights @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    return (output + encoding.attended(weights, block) if encoding.has("attended") else output).transpose(1, 2)


def setting_of(case):
    """The setting of a case, unless the encoding refuses in words such heads: an odd number of them, or of pairs."""
    try:
        return setting(**case)
    except ValueError:
        reject()


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
        "native": draw(st.integers(12, 40)),
        "seed": draw(st.integers(0, 9)),
    }


def masks(draw_from, kind, queries, keys, batch):
    """Positions [B,Q], [B,K] and visibility [B,1,Q,K] of a batch, as transformers would have them for this kind of input."""
    index, own = torch.arange(keys), torch.arange(queries) + keys - queries
    start = torch.zeros(batch, keys, dtype=torch.long)  # of the text that each key belongs to
    if kind == "left padding":
        start = torch.randint(0, max(1, keys - queries // 2), (batch, 1), generator=draw_from).expand(-1, keys)
    if kind == "packing":
        cuts = torch.rand(batch, keys, generator=draw_from) < 0.04
        start = (cuts * index).cummax(-1).values
    k_pos, q_pos = index - start, own - start[:, own]
    seen = (index <= own[:, None]) & (index >= start[:, own, None])
    return q_pos.clamp(min=0), k_pos, seen[:, None]


@given(cases(), st.sampled_from(["plain", "left padding", "packing"]), st.sampled_from([None, 1, 3, 17]), st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_shape_and_mask(case, kind, window, offset, grad):
    """Random heads, groups, widths, cache lengths, offsets, padding, documents, windows: output and gradients of q, k, v."""
    if kind == "packing":
        case = case | {"keys": case["queries"]}  # documents are packed where there is no cache
    site, q, k, v = setting_of(case)
    q_pos, k_pos, seen = masks(torch.Generator().manual_seed(case["seed"]), kind, q.shape[2], k.shape[2], len(q))
    q_pos, k_pos = q_pos + 100 * offset, k_pos + 100 * offset
    if window is not None:
        seen = seen & (k_pos[:, None, None] > q_pos[:, None, :, None] - window)
    check(site, q, k, v, q_pos, k_pos, seen, grad)


def check(site, q, k, v, q_pos, k_pos, seen, grad):
    """The engine against the definition, on the rows that see something; the others are finite."""
    inputs = [x.clone().requires_grad_(grad) for x in (q, k, v)]
    twins = [x.clone().double().requires_grad_(grad) for x in (q, k, v)]
    output, _ = posenc_attention("sdpa", site, *inputs, seen, position_ids=q_pos)
    expected = reference(site.encoding, *twins, q_pos, k_pos, seen)
    rows = seen.any(-1).transpose(1, 2)[..., None].expand_as(output)
    assert output.isfinite().all()
    assert_close(output[rows], expected.float()[rows], atol=1e-5, rtol=1e-4)
    if grad:
        learned = [p for p in site.encoding.parameters() if p.requires_grad]
        ours = torch.autograd.grad(output[rows].square().sum(), inputs + learned, allow_unused=True, materialize_grads=True)
        theirs = torch.autograd.grad(expected[rows].square().sum(), twins + learned, allow_unused=True, materialize_grads=True)
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one, other.to(one), atol=2e-4, rtol=2e-3)


@given(cases(), st.sampled_from(["holes", "ragged"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_visibility_at_all(case, kind, grad):
    """Masks with holes or with any first key, and positions that jump: no path may take them for something simpler."""
    case = case | {"keys": case["queries"]}
    site, q, k, v = setting_of(case)
    generator, length = torch.Generator().manual_seed(case["seed"]), q.shape[2]
    steps = torch.randint(1, 4, (len(q), length), generator=generator) if kind == "holes" else torch.ones(len(q), length, dtype=torch.long)
    seen = (torch.rand(len(q), 1, length, length, generator=generator) < 0.7).tril()
    if kind == "ragged":
        index = torch.arange(length)
        first = (torch.rand(len(q), length, generator=generator) * index * 0.9).long().cummax(-1).values
        seen = ((index >= first[..., None]) & (index <= index[:, None]))[:, None]
    seen = seen | torch.eye(length, dtype=torch.bool)
    check(site, q, k, v, steps.cumsum(-1), steps.cumsum(-1), seen, grad)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["alibi", "fire", "kerple", "rerope", "rope", "sandwich"])
def test_positions_between_whole_numbers(name, grad):
    """Also where they lie one apart: no path counts with them as with indices."""
    site, q, k, v = setting(name, queries=23, keys=23)
    steps, seen = torch.arange(23.0), torch.ones(2, 1, 23, 23, dtype=torch.bool).tril()
    for pos in (torch.stack((steps, steps + 0.5)), torch.stack((steps * 1.1 + 3, steps + 0.4 * steps.sin()))):
        check(site, q, k, v, pos, pos, seen, grad)


def test_sums_of_diagonals():
    x, line = torch.randn(2, 5, 7), torch.zeros(2, 20)
    kernels.add_diagonals(x, line[:, 3:])
    expected = torch.zeros(2, 20)
    for r in range(5):
        for c in range(7):
            expected[:, 3 + r + c] += x[:, r, c]
    assert_close(line, expected)


@every_encoding("encoding_kind length", length=[1, 7, 70])
def test_without_a_mask_attention_is_causal(name, length):
    site, q, k, v = setting(name, queries=length, keys=length, native=20)
    pos = torch.arange(length)[None]
    output, _ = posenc_attention("sdpa", site, q, k, v, None, position_ids=pos)
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    assert_close(output, reference(site.encoding, q, k, v, pos.expand(2, -1), pos.expand(2, -1), seen).float(), atol=1e-5, rtol=1e-4)


@every_encoding("encoding_kind grad", grad=[False, True])
def test_numbers_that_do_not_lie_side_by_side(name, grad):
    """As a convolution along the text leaves them; and gradients that are one number, seen everywhere."""
    site, *inputs = setting(name, queries=23, keys=23)
    inputs = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in inputs]
    assert all(x.clone().stride(-1) != 1 for x in inputs)
    pos, seen = torch.arange(23)[None].expand(2, -1), torch.ones(2, 1, 23, 23, dtype=torch.bool).tril()
    check(site, *inputs, pos, pos, seen, grad)
    if grad:
        twins = [x.double().requires_grad_() for x in inputs]
        inputs = [x.requires_grad_() for x in inputs]
        ours = torch.autograd.grad(posenc_attention("sdpa", site, *inputs, None, position_ids=pos)[0].sum(), inputs)
        theirs = torch.autograd.grad(reference(site.encoding, *twins, pos, pos, seen).sum(), twins)
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one, other.to(one), atol=2e-4, rtol=2e-3)


MADE = {n: hf_posenc.create(n, Geometry(64, 4), **options_for(n)) for n in IN_ATTENTION}
LEARNED = [n for n, encoding in MADE.items() if list(encoding.parameters()) and not encoding.has(*EMBEDDING)]


@pytest.mark.parametrize("name", LEARNED)
def test_parameters_get_the_gradient_of_the_definition(name, monkeypatch):
    monkeypatch.setattr(tiles, "ROWS", 16)
    monkeypatch.setattr(kernels, "TABLE_BYTES", 1)
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
    monkeypatch.setattr(tiles, "ROWS", 16)
    monkeypatch.setattr(regional, "FULL", 8)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
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


def largest_tensor(name, grad, seen=None, pos=None, heads=4, length=4096, native=2048):
    site, q, k, v = setting(name, heads=heads, groups=2, width=8, queries=length, keys=length, batch=1, native=native)
    pos = torch.arange(length)[None] if pos is None else pos
    q.requires_grad_(grad)
    with Largest() as largest:
        output = posenc_attention("sdpa", site, q, k, v, seen, position_ids=pos)[0]
        if grad:
            output.sum().backward()
    return largest.elements


@every_encoding("encoding_kind grad", grad=[False, True])
def test_no_square_is_ever_made(name, grad, monkeypatch):
    """At 2,048 tokens, and blocks that are as much smaller, the largest float tensor is far from [H, L, L], in the backward pass too."""
    heads, length = 4, 2048
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 23)
    allowed = heads * length * length // 5
    assert allowed > blocks.BLOCK_BYTES // 4
    assert largest_tensor(name, grad, length=length, native=length // 2) <= allowed


DESCRIBED = {n: hf_posenc.describe(n) for n in IN_ATTENTION}
BLOCKED = [n for n, d in DESCRIBED.items() if set(BY_BLOCK) & set(d.stages)]
TILED = [n for n, d in DESCRIBED.items() if n not in BLOCKED and ("regions" in d.stages or ("bias" in d.stages and d.relative))]


@pytest.mark.cover("name", "encoding_kind kind grad", name=TILED, kind=["plain", "padding", "packing", "window"], grad=[False, True])
def test_no_bias_is_ever_materialised(name, kind, grad):
    """Distances and regions: not even a block of biases for each head, whatever the mask."""
    length = 2048
    index = torch.arange(length)
    start = {"padding": torch.full((length,), 300), "packing": torch.where(index < 700, 0, 700)}.get(kind, torch.zeros_like(index))
    seen = (index <= index[:, None]) & (index >= start[:, None])
    if kind == "window":
        seen &= index > index[:, None] - 600
    pos = (index - start).clamp(min=0)[None]
    learned = name in LEARNED and grad  # whose gradient looks at some rows at a time
    by_block = name in LEARNED and "regions" in DESCRIBED[name].stages  # rotations that learn have no fused kernel
    allowed = max(tiles.ROWS * 1200, 4 * length * 8 * 4, (kernels.TABLE_BYTES // 4) * learned * 2, (blocks.BLOCK_BYTES // 4) * by_block)
    assert largest_tensor(name, grad, seen[None, None], pos, length=length, native=512) <= allowed


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


@every_encoding("encoding_kind grad", grad=[False, True])
def test_block_masks(name, grad):
    """A model loaded for flex attention gets the same on a CPU, by the paths of a CPU."""
    site, q, k, v = setting(name, queries=40, keys=40)
    pos, seen = torch.arange(40)[None].expand(2, -1), torch.ones(40, 40, dtype=torch.bool).tril()
    if not set(SCORING) & set(DESCRIBED[name].stages):
        return  # a rotation alone is handed on to flex itself
    q.requires_grad_(grad)
    output, _ = posenc_attention("flex_attention", site, q, k, v, flex_attention_mask(2, 40, 40), position_ids=pos)
    assert_close(output, reference(site.encoding, q, k, v, pos, pos, seen).float(), atol=1e-5, rtol=1e-4)
    if grad:
        output.sum().backward()
        assert q.grad.isfinite().all() and q.grad.any()


FAR = 1 << 25  # float32 no longer holds every integer
HALF = [n for n in IN_ATTENTION if DESCRIBED[n].any_length]


@pytest.mark.cover(
    "name start", "encoding_kind dtype start", name=HALF, dtype=[torch.float32, torch.bfloat16, torch.float16], start=[5000, FAR]
)
def test_precision(name, dtype, start):
    """Angles, biases and the merge do not know the dtype of the model; positions beyond bfloat16's 256 and float32's 2 ** 24 count."""
    site, q, k, v = setting(name, queries=40, keys=40, native=64)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    pos = start + torch.arange(40)[None].expand(2, -1)
    output, _ = posenc_attention("sdpa", site, q, k, v, None, position_ids=pos)
    expected = reference(site.encoding, q, k, v, pos, pos, torch.ones(40, 40, dtype=torch.bool).tril())
    # Half a dozen roundings of inputs and weights; a position rounded to the dtype would be off by more than the scores themselves.
    unit = max(torch.finfo(dtype).eps, 1e-5)
    assert output.dtype == dtype
    assert (output.double() - expected).abs().max() < 24 * unit


@pytest.mark.parametrize("name", HALF)
def test_autocast(name):
    site, q, k, v = setting(name, queries=40, keys=40, native=64)
    pos = 5000 + torch.arange(40)[None].expand(2, -1)
    q.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # As under autocast in a model: values from a linear layer, queries and keys through a rotation in float32.
        output, _ = posenc_attention("sdpa", site, q.bfloat16().float(), k.bfloat16().float(), v.bfloat16(), None, position_ids=pos)
    expected = reference(site.encoding, q.bfloat16(), k.bfloat16(), v.bfloat16(), pos, pos, torch.ones(40, 40, dtype=torch.bool).tril())
    assert (output.double() - expected).abs().max() < 24 * torch.finfo(torch.bfloat16).eps
    output.float().sum().backward()
    assert q.grad.isfinite().all()


def test_a_forward_pass_leaves_nothing_behind():
    """What layers share about the positions dies with the forward pass."""
    model = hf_posenc.patch(tiny_model("llama"), "alibi")
    ids, mask = torch.randint(2, 60, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0
    for _ in range(3):
        model(ids, attention_mask=mask).logits.sum().backward()
    gc.collect()
    assert not [x for x in gc.get_objects() if isinstance(x, Layout)]


def test_one_bias_for_all_heads():
    class Flat(PositionalEncoding):
        relative = True

        def bias(self, h, q_pos, k_pos):
            return -0.1 * (q_pos - k_pos).abs().float()

    site, q, k, v = setting("alibi")
    site.encoding = Flat(site.encoding.geometry)
    pos, seen = torch.arange(40)[None].expand(2, -1), torch.ones(40, 40, dtype=torch.bool).tril()
    expected = reference(site.encoding, q, k, v, pos, pos, seen).float()
    for mask in (None, seen[None, None] & torch.rand(1, 1, 40, 40).lt(2)):
        assert_close(posenc_attention("sdpa", site, q, k, v, mask, position_ids=pos)[0], expected, atol=1e-5, rtol=1e-4)
    Flat.relative = False
    assert_close(posenc_attention("sdpa", site, q, k, v, None, position_ids=pos.clone())[0], expected, atol=1e-5, rtol=1e-4)
