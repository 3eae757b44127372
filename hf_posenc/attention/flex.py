"""Biases and regions inside compiled flex attention: one kernel for each region, whatever the length."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from ..encodings import Region
from . import sparse
from .call import Call
from .distance import distance_table
from .masks import ByIndex, additive, by_index

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
FEW = 128
"""Queries below which a bias is written down, if that takes no more than `ROWS_BYTES`: every bias is then the same small kernel."""
ROWS_BYTES = 1 << 28
VARIANTS = 64
"""Kernels of one owner, by what is 1 or alike in their shapes: past PyTorch's limit of 8 attention would go on uncompiled, as a square."""


def attention(call: Call, regions: list[Region]) -> Tensor:
    """Output [B,Q,H,V]; queries that see nothing give 0."""
    bias = score_mod(call)
    with_lse = len(regions) > 1 or call.sinks is not None
    parts = [_part(call, i, region, bias, with_lse) for i, region in enumerate(regions)]
    output, lse = merged(parts) if len(parts) > 1 else parts[0]
    if call.sinks is not None:
        assert lse is not None
        output = output * torch.sigmoid(lse - call.sinks.to(lse)[:, None])[..., None].to(output.dtype)
    return output.transpose(1, 2)


def _part(call: Call, index: int, region: Region, bias: ScoreMod | None, with_lse: bool) -> tuple[Tensor, Tensor | None]:
    layout = call.layout
    mask = sparse.block_mask_of(layout, call.encoding, index, region)
    query, key = region.rotate(call.query, call.key, layout.q_pos, layout.k_pos)
    sizes = (*query.shape[1:2], *key.shape[1:2], query.shape[3], layout.num_queries == 1)
    owner = (type(call.encoding), type(call.mask), index, query.device, call.dtype, call.learning, call.scaling, call.softcap, *sizes)
    mods: dict[str, Any] = {"score_mod": bias, "block_mask": mask, "options": kernel_options(call)}
    return kernel(owner, query, key, call.value, scaling=call.scaling, lse=with_lse, **mods)


def kernel(
    owner: Hashable,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score_mod: ScoreMod | None,
    block_mask: BlockMask,
    scaling: float,
    lse: bool,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """One call of flex attention: output [B,H,Q,V], and the log-sum-exp [B,H,Q] in float32 if it is asked for.

    Args:
        owner: those who share it share what has been compiled, and PyTorch's limit on how often. A number that would be compiled in as
            it is, or else break the kernel up, has to be part of it.
        query: [B,H,Q,D]. key: [B,G,K,D]. value: [B,G,K,V].
    """
    function: Any = flex_attention if torch.compiler.is_compiling() else _compiled(owner)
    asked: dict[str, Any] = {"return_aux": AuxRequest(lse=True)} if lse else {}
    gqa = query.shape[1] != key.shape[1]
    mods: dict[str, Any] = {"score_mod": score_mod, "block_mask": block_mask}
    found = function(query, key, value, scale=scaling, enable_gqa=gqa, kernel_options=options, **mods, **asked)
    return (found[0], found[1].lse) if lse else (found, None)


def kernel_options(call: Call) -> dict[str, Any]:
    """What PyTorch should not choose by itself.

    Its kernel for decoding fails to compile for some numbers of queries from 2 to 127 where key heads are shared (pytorch/pytorch#185349);
    and blocks of 128 leave no registers for a bias that is computed pair by pair, nor shared memory for numbers that are read so.
    """
    if call.place not in ("cuda", "xpu") or call.layout.num_queries == 1:
        return {}
    biased = call.encoding.has("bias") and (_is_written(call) or _reach(call) is None)
    by_pair = biased or additive(call.mask, slice(None)) is not None
    return {"BACKEND": "TRITON"} | ({"BLOCK_M": 64, "BLOCK_N": 32} if by_pair else {})


def _is_written(call: Call) -> bool:
    """Whether there are so few queries that the bias of all pairs is no more than a few rows."""
    batch, heads, queries, _ = call.query.shape
    return queries == 1 or (queries < FEW and 4 * batch * heads * queries * call.layout.num_keys <= ROWS_BYTES)


def _reach(call: Call) -> int | None:
    """How long a table of distances has to be for this call; None where the bias is computed pair by pair."""
    return call.layout.reach if call.encoding.relative else None


@cache
def _compiled(owner: Hashable) -> Callable:
    return cast(Any, torch.compile)(flex_attention, isolate_recompiles=True, recompile_limit=VARIANTS)


def merged(parts: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor]:
    """Attention over all keys, from that over disjoint sets of them: outputs [B,H,Q,V] and log-sum-exps [B,H,Q]."""
    lses = torch.stack([lse for _, lse in parts if lse is not None])
    top = lses.detach().amax(0).clamp(min=torch.finfo(lses.dtype).min)
    shares = (lses - top).exp()
    total = shares.sum(0).clamp(min=torch.finfo(shares.dtype).tiny)  # 0 for a query that sees nothing
    shares = shares / total
    output = shares.new_zeros(())
    for (part, _), share in zip(parts, shares, strict=True):
        output = output + part.to(shares.dtype) * share[..., None]
    return output.to(parts[0][0].dtype), total.log() + top


def score_mod(call: Call) -> ScoreMod | None:
    """What is done to a score in the kernel, the scaled product in float32; None for nothing."""
    softcap, extra, bias = call.softcap, additive(call.mask, slice(None)), _bias(call)
    numbers = None if extra is None else by_index(extra)
    if softcap is None and numbers is None and bias is None:
        return None

    def modified(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        if bias is not None:
            score = score + bias(b, h, q, k)
        if numbers is not None:
            score = score + numbers(b, h, q, k)
        return score

    return modified


def _bias(call: Call) -> ByIndex | None:
    """The bias of a pair by its indices: written down, from a table of distances, or computed in the kernel."""
    encoding, layout = call.encoding, call.layout
    if not encoding.has("bias"):
        return None
    if _is_written(call):
        return by_index(_made(call, "rows", lambda: encoding.bias_matrix(*layout.distinct_positions).float()))
    q_pos, k_pos = layout.small_positions
    reach = _reach(call)
    if reach is None:

        def computed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return encoding.bias(h, q_pos[b, q], k_pos[b, k])

        return computed
    table = _made(call, "table", lambda: distance_table(encoding, reach, call.query.device).contiguous())

    def looked_up(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return table[h, (q_pos[b, q] - k_pos[b, k]).clamp(0, table.shape[1] - 1)]

    return looked_up


def _made(call: Call, what: str, make: Callable[[], Tensor]) -> Tensor:
    """Made once a forward pass; with gradients by each layer, because gradient checkpointing runs layers again."""
    return make() if call.learning else call.layout.once((call.encoding, what), make)
