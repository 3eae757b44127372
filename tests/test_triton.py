"""What the engine has compiled for a GPU: inductor's code for CUDA, and machine code of it, without one."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from test_attention import Site
from tiny import options_for
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache
from triton_codegen import SHARED, Compiled, compiled

import hf_posenc
from hf_posenc.attention import call, flex, layout, structured
from hf_posenc.attention.entry import posenc_attention
from hf_posenc.attention.positions import COUNTED
from hf_posenc.encodings import ENCODINGS, Geometry

pytestmark = pytest.mark.slow
B, NATIVE = 2, 128
IN_KERNEL = [n for n in hf_posenc.list_encodings() if ENCODINGS[n].has("bias") or ENCODINGS[n].has("regions")]


@pytest.fixture(autouse=True)
def triton():
    pytest.importorskip("triton", reason="the compiler of CUDA kernels is not installed")


# What is compiled. It runs in a process of its own, on fake tensors.


def believe() -> None:
    """Let the engine take fake tensors for real ones, and tell it what it would look up in the positions of a whole text."""
    call.has_values = layout.has_values = lambda x: True  # type: ignore[assignment]
    layout.Layout.extents = property(lambda self: (list(range(self.num_queries)),) * 2)  # type: ignore[assignment,method-assign]


def attend(site: Site, queries: int = 256, keys: int = 256, train: bool = False, padded: bool = False, **kwargs: Any) -> None:
    """One call of the attention function, in bfloat16."""
    g = site.encoding.geometry
    shapes = (B, g.num_heads, queries, g.head_dim), *2 * ((B, g.num_kv_heads, keys, g.head_dim),)
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=train) for shape in shapes)
    pos = torch.arange(keys - queries, keys, device="cuda").expand(B if padded else 1, -1).clone()
    setattr(pos, COUNTED, True)
    padding = torch.ones(B, keys, dtype=torch.long, device="cuda") if padded else None
    mask = structured.in_blocks(B, queries, keys, keys - queries, attention_mask=padding, device="cuda") if padded else None
    with torch.set_grad_enabled(train):
        output, _ = posenc_attention("sdpa", site, q, k, v, mask, position_ids=pos, **kwargs)
    if train:
        output.sum().backward()


def layer(names: list[str], calls: list[dict], heads: int = 8, groups: int = 2, width: int = 64, sinks: bool = False) -> None:
    """The same calls with each of the encodings."""
    believe()
    extra: dict[str, Any] = {"s_aux": torch.randn(heads, device="cuda", requires_grad=True)} if sinks else {}
    for name in names:
        with torch.device("cuda"):
            encoding = hf_posenc.create(name, Geometry(heads * width, heads, groups, width, max_positions=NATIVE), **options_for(name))
        for kwargs in calls:
            attend(Site(encoding, heads // groups), **kwargs, **extra)


def by_default(**kwargs: Any) -> None:
    """With the kernels that PyTorch chooses."""
    flex.kernel_options = lambda call: {}  # type: ignore[assignment]
    layer(**kwargs)


def model_with(name: str) -> LlamaForCausalLM:
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 128, "vocab_size": 64, "max_position_embeddings": NATIVE}
    with unset_fake_temporarily():
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, **sizes)).bfloat16().eval()
        hf_posenc.patch(model, name, verify=False)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    believe()
    return model.to("cuda")


def tokens(length: int) -> torch.Tensor:
    return torch.zeros(B, length, dtype=torch.long, device="cuda")


@torch.no_grad()
def model(name: str, lengths: list[int], whole: bool = False) -> None:
    """Forward passes of a model, layer by layer or as one graph."""
    run: Any = model_with(name)
    run = torch.compile(run, fullgraph=True) if whole else run
    for length in lengths:
        run(tokens(length), use_cache=False)


@torch.no_grad()
def static(name: str) -> None:
    """Steps of decoding with a static cache, as one graph."""
    stock = model_with(name)
    with torch.device("cuda"):
        cache = StaticCache(config=stock.config, max_cache_len=512)
        cache.early_initialization(B, 2, 64, torch.bfloat16, torch.device("cuda"))
    run: Any = torch.compile(stock, fullgraph=True)
    for at in range(256, 259):
        run(tokens(1), past_key_values=cache, use_cache=True, position_ids=torch.full((1, 1), at, device="cuda"))


# What came of it.


def check(result: Compiled, attention: int, capability: int = 90, stack: int | None = None) -> Compiled:
    """Args: attention: kernels of flex attention. stack: bytes that a thread of one of them may use at most."""
    assert len(result.attention) == attention
    for kernel in result.kernels:
        assert kernel.shared <= SHARED[capability]
    for kernel in result.attention:
        assert "bfloat16" not in kernel.source  # scores and biases stay in float32
        assert stack is None or kernel.stack <= stack
    return result


def atomics(ptx: str) -> int:
    return len(re.findall(r"\b(?:atom|red)\.", ptx))


@pytest.mark.parametrize(
    ("shape", "kwargs", "capability"),
    [
        ({"heads": 6, "width": 80, "sinks": True}, {"softcap": 50.0}, 90),
        ({"heads": 8, "width": 64}, {"padded": True}, 80),
        ({"heads": 8, "width": 128}, {}, 90),
    ],
)
def test_training(shape: dict, kwargs: dict, capability: int) -> None:
    """The gradient of a learned table is one atomic addition a score, in the loop over queries alone."""
    result = compiled(layer, capability=capability, names=["t5"], calls=[{"train": True, **kwargs}], **shape)
    forward, backward = check(result, 2, capability).attention
    assert not atomics(forward.ptx) and atomics(backward.ptx)
    assert backward.source.count("tl.atomic_add") == 2


@pytest.mark.parametrize(("name", "queries"), [("alibi", 256), ("fire", 256), ("fire", 33), ("fire", 1), ("t5", 33)])
def test_forward(name: str, queries: int) -> None:
    """Numbers that are computed, or read, for each pair get blocks that leave room for them; tables, and one query, do without."""
    small = queries > 1 and name != "alibi"
    result = check(compiled(layer, names=[name], calls=[{"queries": queries, "keys": 256}]), 1, stack=64 if small else 800)
    assert ("BLOCK_N : tl.constexpr = 32" in result.attention[0].source) == small


def test_regions() -> None:
    """One kernel for each region, and one for its backward pass."""
    result = check(compiled(layer, names=["rerope"], calls=[{"train": True}, {"train": True, "padded": True}], binaries=False), 8)
    assert result.graphs == 8
    check(compiled(layer, names=["rerope"], calls=[{}]), 2)


def test_every_encoding() -> None:
    """More of them than the 8 functions that PyTorch would compile for one place in the code; with regions by queries too."""
    names = [n for n in IN_KERNEL if not ENCODINGS[n].data_dependent]
    result = compiled(layer, names=names, calls=[{}, {"padded": True}], binaries=False)
    assert len(names) >= 12 and result.graphs == len(result.attention) >= 2 * len(names)


@pytest.mark.parametrize("names", [["alibi", "fire"], ["rerope"]])
def test_decoding(names: list[str]) -> None:
    """A growing cache is compiled for at most three times for each encoding and region; heads that share keys are split over the keys."""
    calls = [{"queries": 1, "keys": keys} for keys in (1000, 1001, 1024, 1025, 1152, 1153, 2000, 4096)]
    result = compiled(layer, names=names, calls=calls, binaries=False)
    assert result.graphs == len(result.attention) <= 3 * 2
    assert all("SPLIT_KV" in kernel.source for kernel in result.attention)


def test_short_prompt() -> None:
    """Between the lengths of its two kernels torch 2.13 picks none by itself where heads share keys (pytorch/pytorch#185349)."""
    short: dict[str, Any] = {"names": ["rerope"], "calls": [{"queries": 33}], "binaries": False}
    check(compiled(layer, **short), 2)
    with pytest.raises(RuntimeError, match="NoValidChoicesError"):
        compiled(by_default, **short)


@pytest.mark.parametrize("name", ["fire", "t5"])
def test_layers(name: str) -> None:
    """Four layers, with parameters of their own or without, and any length from 128 tokens: one graph, and one for all other lengths."""
    assert check(compiled(model, name=name, lengths=[256, 384, 500], binaries=False), 2).graphs == 2


@pytest.mark.parametrize("name", ["alibi", "rerope"])
def test_whole_model(name: str) -> None:
    """In one graph all layers, and the regions, share a kernel."""
    assert check(compiled(model, name=name, lengths=[256], whole=True, binaries=False), 1).graphs == 1


@pytest.mark.parametrize("name", ["alibi", "rerope"])
def test_whole_step(name: str) -> None:
    """A step of decoding with a static cache."""
    assert check(compiled(static, name=name, binaries=False), 1).graphs == 1
