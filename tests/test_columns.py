"""ALiBi through kernels that add nothing to the scores: as further columns of queries and keys."""

import sys
from types import ModuleType

import pytest
import torch
import transformers.modeling_flash_attention_utils as utils
from test_attention import Site
from tiny import tiny_model
from torch.testing import assert_close
from transformers import DynamicCache, LlamaConfig

import hf_posenc
from hf_posenc.attention import columns
from hf_posenc.attention.entry import posenc_attention
from hf_posenc.attention.layout import Layout
from hf_posenc.attention.positions import COUNTED
from hf_posenc.encodings import Geometry, widths


def states(queries, keys, heads=12, groups=4, width=64, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, heads, queries, width, generator=generator)
    k, v = (torch.randn(2, groups, keys, width, generator=generator) for _ in range(2))
    return tuple(x.to(dtype) for x in (q, k, v))


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)):
    """Flash attention [B,Q,H,D], as it is documented: products of the dtype it is given summed in float32, the queries last of the keys."""
    assert q.dtype == k.dtype == v.dtype and q.dtype in (torch.bfloat16, torch.float16)
    assert q.shape[-1] == k.shape[-1] == v.shape[-1] and q.shape[-1] % 8 == 0
    query, key, value = (x.float().transpose(1, 2) for x in (q, k, v))
    shared = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(shared, 1).mT * softmax_scale
    rows, keys = scores.shape[-2:]
    seen = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)
    if window_size[0] >= 0:
        seen = seen.triu(keys - rows - window_size[0])
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1) if causal else scores.softmax(-1)
    return (weights @ value.repeat_interleave(shared, 1)).to(q.dtype).transpose(1, 2)


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)
):
    """The same for texts one behind the other: [tokens,H,D]."""
    bounds = zip(*(x.tolist() for x in (cu_seqlens_q, cu_seqlens_q[1:], cu_seqlens_k, cu_seqlens_k[1:])), strict=False)
    parts = [(q[None, i:j], k[None, m:n], v[None, m:n]) for i, j, m, n in bounds]
    return torch.cat([flash_attn_func(*x, softmax_scale=softmax_scale, causal=causal, window_size=window_size)[0] for x in parts])


@pytest.fixture
def flash_attention(monkeypatch):
    """A flash-attn package, so that all of transformers' own code for it runs, but for the kernels."""
    package, padding = ModuleType("flash_attn"), ModuleType("flash_attn.bert_padding")
    functions = {"flash_attn_func": flash_attn_func, "flash_attn_varlen_func": flash_attn_varlen_func, "flash_attn_with_kvcache": None}
    vars(package).update(functions)
    padding.pad_input, padding.unpad_input = utils._pad_input, utils._unpad_input
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", padding)
    monkeypatch.setattr(utils, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(utils, "_loaded_implementation", None)
    columns._takes_slopes.cache_clear()
    yield package
    columns._takes_slopes.cache_clear()


def site_of(heads, groups, width):
    site = Site(hf_posenc.create("alibi", Geometry(heads * width, heads, groups, width)), heads // groups)
    site.config, site.is_causal = LlamaConfig(attn_implementation="hf_posenc_flash_attention_2"), True
    return site


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
    bare = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), softmax_scale=64**-0.5, causal=True)
    noise = (bare.double() - plain(q, k, v, seen)).abs().max()
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


@pytest.mark.parametrize("more", [{"temperature": {"name": "llama4", "floor_scale": 8, "attn_scale": 0.5}}, {"heads": "::2"}])
def test_what_is_composed(flash_attention, more):
    """A factor on the queries leaves the numbers of the heads alone; heads without a bias have none."""
    q, k, v = states(90, 90)
    site, pos = site_of(12, 4, 64), torch.arange(90)[None].expand(2, -1)
    site.encoding = hf_posenc.create("alibi", site.encoding.geometry, **more)
    seen = torch.ones(90, 90, dtype=torch.bool).tril()
    output, _ = posenc_attention("flash_attention_2", site, q, k, v, None, position_ids=pos)
    error = (output.double() - reference(site, q, k, v, pos, pos, seen)).abs().max()
    site.encoding = hf_posenc.create("alibi", site.encoding.geometry)
    alone, _ = posenc_attention("flash_attention_2", site, q, k, v, None, position_ids=pos)
    noise = (alone.double() - reference(site, q, k, v, pos, pos, seen)).abs().max()
    assert error < 3 * noise and (alone.double() - output.double()).abs().max() > 10 * noise


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
        assert_close(widths.parts(x, dtype).double().sum(-1), x.double(), rtol=2**-22, atol=2**-24)


def test_slopes_that_the_kernel_takes(flash_attention):
    """Where the installed flash attention has ALiBi built in, it has the slopes, and keys are no wider; its distances go by index."""
    asked = []

    def native(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), alibi_slopes=None):
        if alibi_slopes is None:
            return flash_attn_func(q, k, v, dropout_p, softmax_scale, causal, window_size)
        asked.append((q.shape, alibi_slopes))
        return q

    flash_attention.flash_attn_func = native
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


@pytest.mark.parametrize("layout", ["plain", "padded", "decoded"])
@pytest.mark.parametrize(("family", "name"), [("llama", "alibi"), ("gpt2", "alibi"), ("gpt2", "rope"), ("mistral", "alibi")])
@torch.no_grad()
def test_in_a_model(flash_attention, family, name, layout):
    """A model that was loaded with flash attention gives what it gives with sdpa, through transformers' own function."""
    model, twin = (tiny_model(family).to(torch.bfloat16) for _ in range(2))
    model.config._attn_implementation_internal = "flash_attention_2"  # as it is set where the kernels are installed
    for each in (model, twin):
        hf_posenc.patch(each, name, layers="all", verify=False)
    assert hf_posenc.inspect(model).attention == "flash_attention_2"
    ids, mask = torch.randint(3, 60, (2, 30), generator=torch.Generator().manual_seed(0)), torch.ones(2, 30, dtype=torch.long)
    given = {}
    if layout == "padded":
        mask[0, :7] = 0
        given = {"attention_mask": mask}
    if layout == "decoded":
        cache = DynamicCache(config=model.config)
        pieces = [model(ids[:, at], cache=cache).logits for at in (slice(0, 11), slice(11, 20), slice(20, 21), slice(21, 30))]
        logits = torch.cat(pieces, 1)
    else:
        logits = model(ids, **given).logits
    assert_close(logits[mask.bool()], twin(ids, **given).logits[mask.bool()], atol=0.2, rtol=0.05)


@torch.no_grad()
def test_packed_documents(flash_attention):
    """Flash attention tells documents by their positions where they are all in one row; elsewhere they would see each other."""
    model, twin = (tiny_model("llama").to(torch.bfloat16) for _ in range(2))
    model.config._attn_implementation_internal = "flash_attention_2"
    for each in (model, twin):
        hf_posenc.patch(each, "alibi", verify=False)
    ids, pos = torch.randint(3, 60, (2, 30), generator=torch.Generator().manual_seed(0)), (torch.arange(30) % 17)[None]
    for mask in (None, torch.ones(1, 30, dtype=torch.long)):
        given = {"position_ids": pos, "attention_mask": mask, "use_cache": False}
        assert_close(model(ids[:1], **given).logits, twin(ids[:1], **given).logits, atol=0.2, rtol=0.05)
    with pytest.raises(ValueError, match="one row without padding"):
        model(ids, position_ids=pos.expand(2, -1), use_cache=False)
    mask = torch.ones(1, 30, dtype=torch.long).index_fill(1, torch.tensor([29]), 0)
    with pytest.raises(ValueError, match="one row without padding"):
        model(ids[:1], position_ids=pos, attention_mask=mask, use_cache=False)


@pytest.mark.parametrize(
    ("family", "changes", "name"),
    [("llama", {}, "t5"), ("llama", {}, "rerope"), ("gemma2", {}, "alibi"), ("llama", {"head_dim": 256}, "alibi")],
)
def test_what_flash_attention_cannot_do(family, changes, name):
    """A bias that is no product, regions, a softcap (which would cap the bias too), heads that are as wide as can be."""
    model = tiny_model(family, **changes)
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2"):
        hf_posenc.patch(model, name)
