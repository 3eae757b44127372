"""ALiBi through kernels that add nothing to the scores: as further columns of queries and keys."""

import pytest
import torch
from test_attention import Site
from tiny import tiny_model
from torch.testing import assert_close
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import hf_posenc
from hf_posenc.attention import columns
from hf_posenc.attention.entry import posenc_attention
from hf_posenc.attention.layout import Layout
from hf_posenc.attention.positions import COUNTED
from hf_posenc.encodings import Geometry


def states(queries, keys, heads=12, groups=4, width=64, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, heads, queries, width, generator=generator)
    k, v = (torch.randn(2, groups, keys, width, generator=generator) for _ in range(2))
    return tuple(x.to(dtype) for x in (q, k, v))


def flash(module, query, key, value, mask, scaling, **kwargs):
    """What a flash attention does, and no more: products of the dtype it is given, summed in float32; a 2-D mask, values padded."""
    assert query.dtype in (torch.bfloat16, torch.float16)
    assert query.shape[-1] % 8 == 0
    width = value.shape[-1]
    scores = query.float() @ key.float().repeat_interleave(query.shape[1] // key.shape[1], 1).mT * scaling
    rows, keys = scores.shape[-2:]
    seen = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)
    if mask is not None:
        seen = seen & mask[:, None, None].bool()
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
    output = weights @ value.float().repeat_interleave(query.shape[1] // value.shape[1], 1)
    return output[..., :width].to(query.dtype).transpose(1, 2), None


@pytest.fixture
def flash_attention(monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", flash)


def site_of(heads, groups, width):
    return Site(hf_posenc.create("alibi", Geometry(heads * width, heads, groups, width)), heads // groups)


def reference(site, q, k, v, q_pos, k_pos, seen):
    scores = site.encoding.scores(q.double(), k.double(), q_pos, k_pos).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1).nan_to_num(0.0) @ v.double().repeat_interleave(q.shape[1] // k.shape[1], 1)).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [8, 12])
@pytest.mark.parametrize("start", [0, 60_000, 1_000_000])
def test_as_exact_as_the_kernel(flash_attention, dtype, heads, start):
    """Slopes that half precision does not hold (12 heads), at positions that it does not hold."""
    q, k, v = states(300, 300, heads=heads, dtype=dtype)
    site, pos = site_of(heads, 4, 64), (torch.arange(300) + start)[None].expand(2, -1)
    seen = torch.ones(300, 300, dtype=torch.bool).tril()
    output, _ = posenc_attention("flash_attention_2", site, q, k, v, None, position_ids=pos)
    noise = (flash(None, q, k, v, None, 64**-0.5)[0].double() - plain(q, k, v, seen)).abs().max()
    error = (output.double() - reference(site, q, k, v, pos, pos, seen)).abs().max()
    assert error < 2 * noise


def plain(q, k, v, seen):
    scores = (q.double() @ k.double().repeat_interleave(q.shape[1] // k.shape[1], 1).mT * q.shape[-1] ** -0.5).masked_fill(
        ~seen, -torch.inf
    )
    return (scores.softmax(-1) @ v.double().repeat_interleave(q.shape[1] // v.shape[1], 1)).transpose(1, 2)


@pytest.mark.parametrize("padding", [0, 30])
def test_padding_and_a_cache(flash_attention, padding):
    q, k, v = states(40, 100)
    site, mask = site_of(12, 4, 64), torch.ones(2, 100, dtype=torch.long)
    mask[0, :padding] = 0
    k_pos = (mask.cumsum(-1) - 1).clamp(min=0)
    seen = torch.ones(40, 100, dtype=torch.bool).tril(60) & mask[:, None, None].bool()
    output, _ = posenc_attention("flash_attention_2", site, q, k, v, mask if padding else None, position_ids=k_pos[:, 60:])
    assert_close(output.double(), reference(site, q, k, v, k_pos[:, 60:], k_pos, seen), atol=2e-2, rtol=2e-2)


def test_gradients(flash_attention):
    q, k, v = (x.requires_grad_() for x in states(50, 50))
    site, pos = site_of(12, 4, 64), torch.arange(50)[None].expand(2, -1)
    seen = torch.ones(50, 50, dtype=torch.bool).tril()
    output, _ = posenc_attention("flash_attention_2", site, q, k, v, None, position_ids=pos)
    ours = torch.autograd.grad(output.float().square().sum(), (q, k, v))
    twins = [x.detach().double().requires_grad_() for x in (q, k, v)]
    theirs = torch.autograd.grad(reference(site, *twins, pos, pos, seen).square().sum(), twins)
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one.double() / other.abs().max(), other / other.abs().max(), atol=2e-2, rtol=2e-2)


def test_parts_add_up():
    x = torch.tensor([0.8408964, 27_001.0, 1e-3, 65_501.0, -3.14159265, 0.0])
    for dtype in (torch.bfloat16, torch.float16):
        assert_close(columns.parts(x, dtype).double().sum(-1), x.double(), rtol=2**-22, atol=2**-24)


def test_slopes_that_the_kernel_takes(flash_attention, monkeypatch):
    """Where the installed flash attention has ALiBi built in, it has the slopes, and keys are no wider; its distances go by index."""
    asked = []

    def native(q, k, v, softmax_scale, causal, alibi_slopes):
        asked.append((q.shape, alibi_slopes))
        return q

    monkeypatch.setattr(columns, "_takes_slopes", lambda: native)
    q, k, v = states(20, 20)
    site = site_of(12, 4, 64)
    counted, given = torch.arange(20)[None], torch.arange(20)[None]
    vars(counted)[COUNTED] = True
    assert Layout.of(counted, None, 2, 20).counted
    posenc_attention("flash_attention_2", site, q, k, v, None, position_ids=counted)
    assert [shape for shape, _ in asked] == [(2, 20, 12, 64)]
    assert_close(asked[0][1], 2.0 ** -torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]))
    posenc_attention("flash_attention_2", site, q, k, v, None, position_ids=given)
    posenc_attention("flash_attention_2", site, q, k, v, torch.ones(2, 20), position_ids=counted)
    assert len(asked) == 1


@torch.no_grad()
def test_in_a_model(flash_attention):
    """A model that was loaded with flash attention takes ALiBi, and gives what sdpa gives."""
    model, twin = (tiny_model("llama", head_dim=16).to(torch.bfloat16) for _ in range(2))
    model.config._attn_implementation = "flash_attention_2"
    hf_posenc.patch(model, "alibi", verify=False)
    hf_posenc.patch(twin, "alibi")
    ids = torch.randint(3, 60, (2, 30), generator=torch.Generator().manual_seed(0))
    assert_close(model(ids).logits, twin(ids).logits, atol=0.15, rtol=0.05)


@pytest.mark.parametrize(
    ("family", "changes", "name"),
    [("llama", {}, "t5"), ("llama", {}, "rerope"), ("gemma2", {}, "alibi"), ("llama", {"head_dim": 256}, "alibi")],
)
def test_what_flash_attention_cannot_do(family, changes, name):
    """A bias that is no product, regions, a softcap (which would cap the bias too), heads that are as wide as can be."""
    model = tiny_model(family, **changes)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2"):
        hf_posenc.patch(model, name)
