"""Flex attention with a bias as CUDA kernels: inductor's code for a GPU, compiled to machine code without one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from triton_codegen import SHARED, Compiled, compiled

from hf_posenc.encodings import ENCODINGS
from hf_posenc.encodings.base import Geometry

pytestmark = pytest.mark.slow
B, G, BLOCK = 2, 2, 128
Mod = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def triton():
    pytest.importorskip("triton", reason="the compiler of CUDA kernels is not installed")


# What is compiled. It runs in a process of its own, on fake tensors.


def ints(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32, device="cuda")


def block_mask(length: int, keys: int) -> BlockMask:
    first, end = ints(B, length), ints(B, length)
    blocks = -(-length // BLOCK), -(-keys // BLOCK)
    lists = (ints(B, 1, blocks[0]), ints(B, 1, *blocks)) * 2
    return BlockMask.from_kv_blocks(
        *lists, BLOCK_SIZE=BLOCK, mask_mod=lambda b, h, i, j: (j >= first[b, i]) & (j < end[b, i]), seq_lengths=(length, keys)
    )


def tensors(heads: int, length: int, keys: int, width: int, train: bool) -> list[Tensor]:
    shapes = ((B, heads, length, width), (B, G, keys, width), (B, G, keys, width))
    return [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=train) for shape in shapes]


def table_mod(heads: int, length: int, keys: int, train: bool = False, cap: float | None = None) -> Mod:
    table, q_pos, k_pos = torch.randn(heads, 4096, device="cuda", requires_grad=train), ints(B, length), ints(B, keys)

    def mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if cap is not None:
            score = torch.tanh(score / cap) * cap
        return score + table[h, (q_pos[b, i] - k_pos[b, j]).clamp(0, table.shape[1] - 1)]

    return mod


def attend(mod: Mod, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
    mask = block_mask(query.shape[2], key.shape[2])
    compile = options.pop("compile", None) or torch.compile(flex_attention)
    return compile(query, key, value, score_mod=mod, block_mask=mask, enable_gqa=query.shape[1] != key.shape[1], **options)


def table(
    heads: int = 8, length: int = 256, keys: int = 256, width: int = 64, train: bool = False, cap: float | None = None, **options: Any
) -> None:
    output = attend(table_mod(heads, length, keys, train, cap), *tensors(heads, length, keys, width, train), **options)
    if train:
        output.sum().backward()


def module(name: str, length: int, keys: int) -> None:
    with torch.device("cuda"):
        encoding = ENCODINGS[name](Geometry(hidden_size=512, num_heads=8))
    q_pos, k_pos = ints(B, length), ints(B, keys)
    with torch.no_grad():
        attend(lambda score, b, h, i, j: score + encoding.bias(h, q_pos[b, i], k_pos[b, j]), *tensors(8, length, keys, 64, False))


def merged() -> None:
    qkv: list[Tensor] = tensors(8, 256, 256, 64, True)
    options: dict[str, Any] = {"compile": torch.compile(flex_attention), "return_aux": AuxRequest(lse=True)}
    parts = [attend(table_mod(8, 256, 256, True), *qkv, **options) for _ in range(2)]
    lse = torch.stack([aux.lse for _, aux in parts])
    weights = torch.exp(lse - lse.logsumexp(0))
    sum(weight[..., None] * output for weight, (output, _) in zip(weights, parts, strict=True)).sum().backward()


def decoding(lengths: list[int]) -> None:
    compile = torch.compile(flex_attention)
    for keys in lengths:
        table(length=1, keys=keys, compile=compile)


def kinds(number: int, **options: Any) -> None:
    """As many score functions, compiled one by one: stand-ins for encodings of different classes."""
    for _ in range(number):
        scope: dict[str, Any] = {"inner": table_mod(8, 256, 256)}
        exec("def mod(score, b, h, i, j): return inner(score, b, h, i, j)", scope)
        attend(scope["mod"], *tensors(8, 256, 256, 64, False), compile=torch.compile(flex_attention, **options))


# What came of it.


def check(result: Compiled, capability: int) -> None:
    for kernel in result.kernels:
        assert kernel.shared <= SHARED[capability]
    for kernel in result.attention:
        assert "bfloat16" not in kernel.source  # scores and biases stay in float32
        assert ".to(tl.float32)" in kernel.source


def atomics(kernel_ptx: str) -> int:
    return len(re.findall(r"\b(?:atom|red)\.", kernel_ptx))


@pytest.mark.parametrize(("heads", "width", "capability"), [(6, 80, 90), (8, 64, 80), (8, 128, 90)])
def test_training(heads: int, width: int, capability: int) -> None:
    """The gradient of the table is one atomic addition a score, in the loop over queries alone."""
    result = compiled(table, capability=capability, heads=heads, width=width, train=True, cap=50.0)
    check(result, capability)
    forward, backward = result.attention
    assert not atomics(forward.ptx) and atomics(backward.ptx)
    assert backward.source.count("tl.atomic_add") == 2 and "WRITE_DQ : tl.constexpr = True" in backward.source


@pytest.mark.parametrize("heads", [6, 8])
def test_decoding(heads: int) -> None:
    """Split over the keys where as many heads as a power of two share them."""
    result = compiled(table, heads=heads, length=1, keys=1000)
    check(result, 90)
    (kernel,) = result.attention
    assert ("SPLIT_KV" in kernel.source) == (heads == 8)


def test_short_prompt() -> None:
    """Between the lengths of the two kernels, where torch 2.13 picks none by itself when heads share keys (pytorch/pytorch#185349)."""
    check(compiled(table, length=100, kernel_options={"BACKEND": "TRITON"}), 90)


@pytest.mark.parametrize(("name", "length", "binaries"), [("kerple", 256, True), ("fire", 1, False), ("fire", 256, False)])
def test_module(name: str, length: int, binaries: bool) -> None:
    """The assembler takes a minute for the 32 units of FIRE."""
    result = compiled(module, name=name, length=length, keys=256, binaries=binaries)
    check(result, 90)
    assert len(result.attention) == 1


def test_merged() -> None:
    result = compiled(merged)
    check(result, 90)
    assert result.graphs == 2  # the second call, with another mask and another table, compiles nothing
    assert len(result.attention) == 2


def test_growing() -> None:
    assert compiled(decoding, lengths=[1000, 1001, 1024, 1025, 1152, 1153, 2000, 4096], binaries=False).graphs <= 3


def test_many_kinds() -> None:
    """More of them than the 8 that all compiled functions share otherwise."""
    assert compiled(kinds, number=12, binaries=False, isolate_recompiles=True).graphs == 12
