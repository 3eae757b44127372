"""The engine of accelerators, with a kernel written out: every encoding under every mask against the dense definition in float64."""

import gc
import itertools
import weakref

import pytest
import reference_flex
import torch
from test_attention import Site, setting
from test_paths import OWN, TOLERANCE
from tiny import options_for, tiny_config, tiny_model
from torch import nn
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.testing import assert_close
from transformers import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sliding_window_causal_mask_function

import hf_posenc
from hf_posenc.attention import blocks, choice, entry, flex, layout, places, sparse, structured
from hf_posenc.attention.call import Call
from hf_posenc.attention.dense import by_group
from hf_posenc.attention.entry import posenc_attention
from hf_posenc.attention.masks import key_positions
from hf_posenc.attention.positions import COUNTED
from hf_posenc.compat import called_by_sizes, create_causal_mask, create_sliding_window_causal_mask
from hf_posenc.encodings import ENCODINGS, Geometry, Region, naming

BEYOND = ("meet", "mix", "normalise", "attended")
"""Stages of which the definition below knows nothing; what they do is done alike on every device, by block or in the stock kernel."""
SCORING = [n for n in hf_posenc.list_encodings() if ENCODINGS[n].has(*naming.SCORING) and not ENCODINGS[n].has(*BEYOND)]
LENGTH, NATIVE = 200, 96


@pytest.fixture
def accelerated(nothing_at_hand, monkeypatch):
    """CPU tensors take the paths of an accelerator; the paths that are taken."""
    monkeypatch.setattr(Call, "place", "cuda")
    monkeypatch.setattr(blocks, "_free", lambda device: 1 << 30)
    monkeypatch.setattr(flex, "kernel", reference_flex.kernel)
    taken = []

    def choose(encoding, asked):
        taken.append(choice.choose(encoding, asked).path)
        return choice.Choice(taken[-1], "")

    monkeypatch.setattr(entry, "choose", choose)
    return taken


def site_of(name, **sizes):
    """An attention module with the encoding, and q, k, v."""
    site, *states = setting(name if name not in OWN else "alibi", native=NATIVE, **sizes)
    if name in OWN:
        site = Site(OWN[name](Geometry(64, 4, 2, 16, max_positions=NATIVE)), 2)
    return site, *states


def problem(kind, queries=LENGTH, keys=LENGTH):
    """Positions of queries and keys, the pairs [B,1,Q,K] that meet, and the mask that says so."""
    i, j = torch.arange(queries)[:, None] + keys - queries, torch.arange(keys)
    k_pos, seen = j.expand(2, -1), (j <= i).expand(2, 1, -1, -1)
    if kind == "padded":
        start = torch.tensor([70, 0])
        k_pos = (j - start[:, None]).clamp(min=0)
        seen = seen & (j >= start[:, None])[:, None, None]
    elif kind == "packed":
        document = j // 77
        k_pos = (j - 77 * document).expand(2, -1)
        seen = seen & (document[i[:, 0], None] == document)
    elif kind == "window":
        seen = seen & (j > i - 50)
    elif kind == "holes":
        seen = (seen & (torch.rand(2, 1, queries, keys, generator=torch.Generator().manual_seed(0)) < 0.6)) | (i == j)
    elif kind == "jumps":
        k_pos = torch.stack((j + 40 * (j > 90), j + 25 * (j > 30)))
    mask = None if kind in ("plain", "jumps") and queries in (1, keys) else seen.contiguous()
    if kind == "numbers":
        row = torch.arange(2)[:, None, None, None]
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min) + 0.5 * torch.sin(j + i + 3.0 * row) * seen
    return k_pos[:, keys - queries :], k_pos, seen, mask


def dense(encoding, q, k, v, q_pos, k_pos, seen, numbers=0.0, softcap=None, sinks=None):
    """The definition of attention under an encoding, all of it in the dtype of `q`."""
    stored, scaling = encoding.cached_key(k, k_pos), q.shape[-1] ** -0.5
    scores = encoding.content_scores(q, stored, q_pos, k_pos, scaling)
    hidden = scores == -torch.inf
    scores = scores if softcap is None else (softcap * torch.tanh(scores / softcap)).masked_fill(hidden, -torch.inf)
    if encoding.has("context_bias"):
        scores = scores + encoding.context_bias(q, stored, q_pos, k_pos, scaling)
    if encoding.has("bias"):
        scores = scores + encoding.bias_matrix(q_pos.double(), k_pos.double())
    scores = (scores + numbers).masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks.double().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)), -1)
    weights = scores.softmax(-1).nan_to_num(0.0)[..., : k.shape[2]]
    return by_group(weights, v).transpose(1, 2)


def skip_what_lies_beyond(encoding, pos):
    if not encoding.any_length and int(pos.max()) >= encoding.context_length:
        pytest.skip("past what the encoding reaches")


def expected_path(name, grad, regional):
    """What an accelerator does, from what the encoding declares."""
    cls = OWN.get(name) or ENCODINGS[name]
    if cls.has(*naming.BY_BLOCK) or (cls.data_dependent and regional):
        return "blocks"
    if not cls.has("bias") and not regional:
        return "stock"
    learned = name == "leaning" or (name in ENCODINGS and list(hf_posenc.create(name, Geometry(64, 4), **options_for(name)).parameters()))
    return "blocks" if grad and learned and not cls.relative else "flex"


CASES = [(kind, LENGTH, LENGTH) for kind in ("plain", "padded", "packed", "window", "holes", "jumps", "numbers")]
CASES += [("window", 140, 300), ("padded", 60, LENGTH), ("plain", 1, LENGTH), ("padded", 1, LENGTH), ("plain", 256, 256)]


@pytest.mark.cover(
    "name grad", "encoding_kind case", "encoding_stages case grad", name=[*SCORING, "slanted", "leaning"], case=CASES, grad=[False, True]
)
def test_every_encoding_under_every_mask(accelerated, name, case, grad):
    kind, queries, keys = case
    if kind in ("jumps", "packed") and queries != keys:
        pytest.skip("cached keys are one position apart")
    site, q, k, v = site_of(name, queries=queries, keys=keys)
    q_pos, k_pos, seen, mask = problem(kind, queries, keys)
    skip_what_lies_beyond(site.encoding, q_pos)
    numbers = mask.double().masked_fill(~seen, 0) if kind == "numbers" else 0.0
    twins = [x.double().requires_grad_(grad) for x in (q, k, v)]
    wanted = dense(site.encoding, *twins, q_pos, k_pos, seen, numbers)
    inputs = [x.clone().requires_grad_(grad) for x in (q, k, v)]
    with torch.set_grad_enabled(grad):
        output, _ = posenc_attention("sdpa", site, *inputs, mask, position_ids=q_pos)
    real = seen.any(-1)[:, 0]  # what a query gives that sees nothing is nobody's business, as long as it is finite
    assert output.isfinite().all()
    assert_close(output.double()[real], wanted[real], **TOLERANCE[torch.float32])
    regional = entry.are_bounded(layout.Layout(q_pos, mask, keys).regions(site.encoding))
    assert accelerated == [expected_path(name, grad, regional)]
    if grad:
        learned = [p for p in site.encoding.parameters() if p.requires_grad]
        sums = output.double()[real].square().sum(), wanted[real].square().sum()
        ours = torch.autograd.grad(sums[0], inputs + learned, allow_unused=True, materialize_grads=True)
        theirs = torch.autograd.grad(sums[1], twins + learned, allow_unused=True, materialize_grads=True)
        for one, other in zip(ours, theirs, strict=True):
            scale = max(1.0, float(other.abs().max()))
            assert_close(one.double() / scale, other.double() / scale, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["alibi", "fire", "rerope"])
def test_positions_between_whole_numbers_go_by_query_block(accelerated, name):
    site, q, k, v = site_of(name, queries=LENGTH, keys=LENGTH)
    q_pos, k_pos, seen, mask = problem("padded")
    q_pos, k_pos = 1.1 * q_pos + 0.3, 1.1 * k_pos + 0.3
    output, _ = posenc_attention("sdpa", site, q, k, v, mask, position_ids=q_pos)
    real = seen.any(-1)[:, 0]
    wanted = dense(site.encoding, *(x.double() for x in (q, k, v)), q_pos, k_pos, seen)
    assert accelerated == ["blocks"]
    assert_close(output.double()[real], wanted[real], **TOLERANCE[torch.float32])


@pytest.mark.cover("name", "encoding_kind dtype", name=[*SCORING, *OWN], dtype=[torch.bfloat16, torch.float16])
def test_half_precision(accelerated, name, dtype):
    site, q, k, v = site_of(name, queries=LENGTH, keys=LENGTH)
    site.encoding.to(dtype)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    q_pos, k_pos, seen, mask = problem("padded")
    skip_what_lies_beyond(site.encoding, q_pos)
    output, _ = posenc_attention("sdpa", site, q, k, v, mask, position_ids=q_pos)
    wanted = dense(site.encoding, q.double(), k.double(), v.double(), q_pos, k_pos, seen)
    real = seen.any(-1)[:, 0]
    assert output.dtype == dtype
    assert_close(output.double()[real], wanted[real], **TOLERANCE[dtype])


@pytest.mark.cover("encoding_kind", name=SCORING)
def test_softcaps_and_sinks(accelerated, name):
    site, q, k, v = site_of(name, queries=LENGTH, keys=LENGTH)
    q_pos, k_pos, seen, mask = problem("window")
    skip_what_lies_beyond(site.encoding, q_pos)
    sinks = torch.linspace(-1, 2, q.shape[1])
    for more in ({"softcap": 1.5}, {"s_aux": sinks}, {"softcap": 1.5, "s_aux": sinks}):
        output, _ = posenc_attention("sdpa", site, q, k, v, mask, position_ids=q_pos, **more)
        states = (x.double() for x in (q, k, v))
        wanted = dense(site.encoding, *states, q_pos, k_pos, seen, softcap=more.get("softcap"), sinks=more.get("s_aux"))
        assert_close(output.double(), wanted, **TOLERANCE[torch.float32])


@pytest.mark.parametrize("name", ["alibi", "rerope"])
def test_gradients_of_sinks_beside_queries_that_see_nothing(accelerated, name, monkeypatch):
    """What reaches the log-sum-exp is a number there too: in the real kernel, anything else would spread over all keys."""
    came_back = []

    def kernel(*args, **kwargs):
        output, lse = reference_flex.kernel(*args, **kwargs)
        lse.register_hook(came_back.append)
        return output, lse

    monkeypatch.setattr(flex, "kernel", kernel)
    site, q, k, v = site_of(name, queries=LENGTH, keys=LENGTH)
    q_pos, k_pos, seen, mask = problem("padded")
    states = [x.requires_grad_() for x in (q, k, v, torch.linspace(-1, 2, 4))]
    twins = [x.detach().double().requires_grad_() for x in states]
    output, _ = posenc_attention("sdpa", site, *states[:3], mask, position_ids=q_pos, s_aux=states[3])
    wanted = dense(site.encoding, *twins[:3], q_pos, k_pos, seen, sinks=twins[3])
    assert_close(output.double(), wanted, **TOLERANCE[torch.float32])
    theirs = torch.autograd.grad(wanted.square().sum(), twins)
    for one, other in zip(torch.autograd.grad(output.square().sum(), states), theirs, strict=True):
        assert_close(one.double(), other, atol=1e-4, rtol=1e-3)
    assert came_back and all(x.isfinite().all() for x in came_back)


BY_HEAD = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH) < 50) | (torch.arange(4)[:, None, None] == 0)


@pytest.mark.parametrize("backend", ["sdpa", "flex_attention", "eager"])
@pytest.mark.parametrize("place", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["alibi", "fire", "rerope"])
def test_heads_that_see_different_keys(name, place, backend, request):
    """The first sees all that came before, the others 50 keys."""
    if place == "cuda":
        request.getfixturevalue("accelerated")
    site, q, k, v = site_of(name, queries=LENGTH, keys=LENGTH)
    q_pos, k_pos, seen, _ = problem("plain")
    seen = mask = (seen & BY_HEAD).contiguous()
    if backend != "sdpa":
        mask = create_block_mask(lambda b, h, i, j: (j <= i) & ((i - j < 50) | (h == 0)), 2, 4, LENGTH, LENGTH, device="cpu")
    with torch.no_grad():
        output, _ = posenc_attention(backend, site, q, k, v, mask, position_ids=q_pos)
    wanted = dense(site.encoding, q.double(), k.double(), v.double(), q_pos, k_pos, seen)
    assert_close(output.double(), wanted, **TOLERANCE[torch.float32])


def test_cached_keys_count_if_any_head_sees_them():
    seen = torch.ones(1, 2, 2, 6, dtype=torch.bool).tril(4)
    seen[:, 0, :, :3] = False
    assert key_positions(torch.tensor([[4, 5]]), seen, 6).tolist() == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("size", [(128, 64), (64, 64), (256, 256)])
@pytest.mark.parametrize("name", ["alibi", "rerope"])
def test_masks_with_blocks_of_another_size(accelerated, name, size):
    site, q, k, v = site_of(name, queries=300, keys=300)
    q_pos, k_pos, seen, _ = problem("window", 300, 300)
    mask = create_block_mask(lambda b, h, i, j: (j <= i) & (j > i - 50), None, None, 300, 300, device="cpu", BLOCK_SIZE=size)
    with torch.no_grad():
        output, _ = posenc_attention("flex_attention", site, q, k, v, mask, position_ids=q_pos)
    wanted = dense(site.encoding, q.double(), k.double(), v.double(), q_pos, k_pos, seen)
    assert_close(output.double(), wanted, **TOLERANCE[torch.float32])


def test_queries_that_see_nothing_leave_no_trace_in_the_gradients():
    """A kernel adds what it makes of the gradient of a log-sum-exp to the gradients of others."""
    lses = [torch.tensor([[[0.0, -torch.inf, -torch.inf]]], requires_grad=True) for _ in range(2)]
    output, lse = flex.merged([(torch.zeros(1, 1, 3, 2), each) for each in lses])
    (output.sum() + torch.sigmoid(lse - 1).sum()).backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in lses)


def test_kernels_beyond_the_limit_of_pytorch(monkeypatch):
    """A limit that is reached would mean attention without a kernel, all scores at once."""
    stock, compiled = torch.compile, []
    count = lambda graph, inputs: compiled.append(graph) or graph.forward  # noqa: E731
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: stock(*args, **kwargs, backend=count))
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    flex._compiled.cache_clear()
    q, mask = torch.randn(1, 1, 8, 8), sparse.block_mask(layout.Layout(torch.arange(8)[None], None, 8), Region(None))
    for at in range(12):
        score_mod = eval(f"lambda s, b, h, i, j: s + {at}.5")
        flex.kernel("owner", q, q, q, score_mod=score_mod, block_mask=mask, scaling=1.0, lse=False, options={})
    flex._compiled.cache_clear()
    assert len(compiled) == 12


class Deep(nn.Module):
    """A bias with a module within."""

    def __init__(self):
        super().__init__()
        self.inner, self.slope = nn.Linear(2, 2), nn.Parameter(torch.ones(2))


def test_an_encoding_follows_its_layer_with_all_that_is_in_it():
    there = places._on(encoding := Deep(), torch.device("meta"))
    assert {x.device.type for x in there.parameters()} == {"meta"}
    assert {x.device.type for x in encoding.parameters()} == {"cpu"}
    assert places._on(encoding, torch.device("cpu")) is encoding


def test_a_mask_is_gone_with_the_last_who_holds_it(monkeypatch):
    """Not when Python looks for cycles: on a device it is large."""
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "sdpa", called_by_sizes(structured.in_blocks))
    mask = masks("padded")()
    mask.to("meta"), mask.to("cpu"), mask.written()
    alive = weakref.ref(mask)
    gc.disable()
    try:
        del mask
        assert alive() is None
    finally:
        gc.enable()


def test_what_is_looked_at_in_one_go_does_not_grow_with_the_batch(monkeypatch):
    monkeypatch.setattr(sparse, "SCAN_PAIRS", 1 << 18)
    sizes = []
    stock = sparse._reduced
    monkeypatch.setattr(sparse, "_reduced", lambda pairs: sizes.append(pairs.numel()) or stock(pairs))
    structured.in_blocks(4, 512, 512, attention_mask=torch.ones(4, 512).tril(-1), allow_is_causal_skip=False)
    assert max(sizes) == 1 << 18


def test_dropout_goes_by_block(accelerated):
    """Flex attention has none: all of it would be lost without a word."""
    site, q, k, v = site_of("alibi", queries=LENGTH, keys=LENGTH)
    site.train()
    q_pos, *_ = problem("plain")
    outputs = [posenc_attention("sdpa", site, q, k, v, None, position_ids=q_pos, dropout=0.5)[0] for _ in range(2)]
    assert set(accelerated) == {"blocks"}
    assert not torch.equal(*outputs)


@pytest.mark.parametrize("kind", ["plain", "padded", "window", "holes"])
@pytest.mark.parametrize("name", [n for n in SCORING if expected_path(n, False, True) == "flex"])
def test_the_kernel_of_pytorch(accelerated, name, kind, monkeypatch):
    """PyTorch's own reference of its kernel takes what it is given, log-sum-exp included."""
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(flex, "kernel", KERNEL)
    monkeypatch.setattr(flex, "_compiled", lambda owner: torch_flex.flex_attention)
    site, q, k, v = site_of(name, queries=LENGTH, keys=LENGTH)
    q_pos, k_pos, seen, mask = problem(kind)
    with torch.no_grad():
        output, _ = posenc_attention("sdpa", site, q, k, v, mask, position_ids=q_pos)
    assert accelerated == ["flex"]
    wanted = dense(site.encoding, q.double(), k.double(), v.double(), q_pos, k_pos, seen)
    real = seen.any(-1)[:, 0]
    assert_close(output.double()[real], wanted[real], **TOLERANCE[torch.float32])


KERNEL = flex.kernel


@pytest.mark.parametrize("name", ["alibi", "rerope"])
@torch.no_grad()
def test_masks_that_follow_from_the_shapes_are_made_once(accelerated, name, monkeypatch):
    model, made = hf_posenc.patch(tiny_model("llama"), name, **options_for(name)), []
    real = sparse.block_mask
    monkeypatch.setattr(sparse, "block_mask", lambda where, region: made.append(region) or real(where, region))
    regions = len(model.model.positional_encoding.regions(torch.zeros(1, 3), torch.zeros(1, 3)))
    ids = torch.randint(3, 60, (2, 30), generator=torch.Generator().manual_seed(0))
    sparse._kept.clear()
    expected = {length: model(ids[:, :length]).logits for length in (20, 30)}
    assert len(made) == 2 * regions
    for length in (30, 20, 30):
        assert torch.equal(model(ids[:, :length]).logits, expected[length])
    assert len(made) == 2 * regions
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    for positions in (None, torch.arange(30)[None]):  # a mask, or positions that are given, might say anything
        before = len(made)
        for _ in range(2):
            model(ids, attention_mask=mask if positions is None else None, position_ids=positions)
        assert len(made) == before + 2 * regions
    for length in range(1, 2 * sparse.KEPT):
        model(ids[:, :length])
    assert all(len(kept) <= sparse.KEPT for kept in sparse._kept.values())


@pytest.mark.parametrize("name", ["alibi", "rerope"])
def test_masks_of_a_pass_that_is_run_again(accelerated, name, monkeypatch):
    """Gradient checkpointing comes back with gradients to what it first did without: only then there has to be what they go by."""
    seen = []
    monkeypatch.setattr(flex, "kernel", lambda *args, **kwargs: seen.append(kwargs["block_mask"]) or reference_flex.kernel(*args, **kwargs))
    site, q, k, v = site_of(name, queries=LENGTH, keys=LENGTH)
    q_pos, *_ = problem("plain")
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            posenc_attention("sdpa", site, q, k, v, None, position_ids=q_pos)
    half = len(seen) // 2
    assert all(mask.q_indices is None for mask in seen[:half])
    assert all(mask.q_indices is not None for mask in seen[half:])


# -- blocks ---------------------------------------------------------------------------------------------------------------


def spread(mask: BlockMask, pairs) -> torch.Tensor:
    """How often each pair [B,1,Q,K] is attended to."""
    queries, keys = mask.shape[-2:]
    return reference_flex.occurrences(mask, reference_flex.indices((len(pairs), 1, queries, keys), pairs.device)).expand_as(pairs)


def fewest(pairs) -> int:
    """Blocks that have any pair, counted one by one."""
    starts = itertools.product(range(0, pairs.shape[-2], sparse.SIZE), range(0, pairs.shape[-1], sparse.SIZE))
    return sum(int(pairs[..., q : q + sparse.SIZE, k : k + sparse.SIZE].flatten(1).any(1).sum()) for q, k in starts)


@pytest.mark.parametrize(("queries", "keys"), [(512, 512), (500, 500), (130, 700), (1, 700)])
@pytest.mark.parametrize("kind", ["plain", "padded", "packed", "window", "holes"])
def test_blocks_hold_the_mask_and_no_more(kind, queries, keys):
    q_pos, _, seen, mask = problem(kind, queries, keys)
    found = sparse.block_mask(layout.Layout(q_pos, mask, keys), Region(None))
    assert torch.equal(spread(found, seen), seen.int())
    listed = found.kv_num_blocks.sum() + found.full_kv_num_blocks.sum()
    assert int(listed) * len(seen) // len(found.kv_num_blocks) == fewest(seen)
    full = reference_flex.blocks(found.full_kv_num_blocks, found.full_kv_indices, -(-keys // sparse.SIZE))
    assert not full[..., keys // sparse.SIZE :].any()  # of a block with fewer keys a kernel would have to look at each pair


IN_REGIONS = [n for n in SCORING if ENCODINGS[n].has("regions") and not ENCODINGS[n].data_dependent]


@pytest.mark.cover("name", "encoding_kind kind", name=IN_REGIONS, kind=["plain", "padded", "packed", "window"])
def test_regions_share_the_pairs(name, kind):
    """Each visible pair is in one region at most, and only in the blocks of its own."""
    site, *_ = site_of(name)
    q_pos, k_pos, seen, mask = problem(kind, 700, 700)
    where = layout.Layout(q_pos, mask, 700)
    total = 0
    for region in site.encoding.regions(q_pos, k_pos):
        found, pairs = sparse.block_mask(where, region), seen & region.pairs(q_pos, k_pos)
        assert torch.equal(spread(found, seen), pairs.int())
        listed = int(found.kv_num_blocks.sum() + found.full_kv_num_blocks.sum()) * len(seen) // len(found.kv_num_blocks)
        assert listed <= (1.25 * fewest(pairs) + 2 if kind == "plain" else fewest(seen))
        total = total + pairs.int()
    assert total.max() <= 1


def masks(kind, length=300):
    """What transformers makes of one batch: through its sdpa function, and through ours as on an accelerator."""
    config = tiny_config("mistral" if kind == "window" else "llama", **({"sliding_window": 60} if kind == "window" else {}))
    config._attn_implementation = "sdpa"
    embeds, padding, pos, cache = torch.zeros(2, length, 64), None, torch.arange(length)[None], None
    if kind == "padded":
        padding = torch.ones(2, length, dtype=torch.long)
        padding[0, :130] = 0
    if kind == "packed":
        pos = pos % 110
    if kind == "chunk":
        cache = DynamicCache(config=config)
        cache.update(torch.zeros(2, 2, 80, 16), torch.zeros(2, 2, 80, 16), 0)
        cache.update(torch.zeros(2, 2, 80, 16), torch.zeros(2, 2, 80, 16), 1)
        padding = torch.ones(2, length + 80, dtype=torch.long)
        padding[1, :20] = 0
    make = create_sliding_window_causal_mask if kind == "window" else create_causal_mask
    return lambda: make(config, embeds, padding, cache, position_ids=pos)


@pytest.mark.parametrize("kind", ["plain", "padded", "packed", "window", "chunk"])
def test_masks_of_transformers_in_blocks(kind, monkeypatch):
    stock = masks(kind)()
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "sdpa", called_by_sizes(structured.in_blocks))
    ours = masks(kind)()
    if stock is None:
        assert ours is None
        return
    assert isinstance(ours, structured.StructuredMask)
    assert torch.equal(spread(ours, stock), stock.int())
    assert torch.equal(ours.written(), stock)
    assert ours.to("cpu") is ours


def seen_by(offset, kv_offset, padding, window):
    """[1,1,130,K] bool."""
    query, key = torch.arange(130)[:, None] + offset, torch.arange(150) + kv_offset
    seen = (key <= query) & (key > query - window) & (key < padding.shape[1])
    return (seen & padding[0, key.clamp(max=padding.shape[1] - 1)].bool())[None, None]


@pytest.mark.parametrize("kind", ["rolled on", "more room than mask", "counts on"])
def test_masks_of_caches_in_blocks(kind):
    """Keys that do not begin with the first, keys that the caller has not spoken of, and an offset that the cache counts on in."""
    window, kv_offset = 60, 33 if kind == "rolled on" else 0
    offset = torch.tensor(20) if kind == "counts on" else 20 + kv_offset
    padding = torch.ones(1, 140 if kind == "more room than mask" else 150 + kv_offset, dtype=torch.long)
    padding[0, :40] = 0
    function = sliding_window_causal_mask_function(window)
    mask = structured.in_blocks(1, 130, 150, offset, kv_offset, function, padding, allow_is_causal_skip=False)
    wanted = seen_by(int(offset), kv_offset, padding, window)
    if kind == "counts on":
        offset += 130
    assert torch.equal(spread(mask, wanted), wanted.int())
    assert torch.equal(mask.written(), wanted)


@torch.no_grad()
def test_two_encodings_of_a_kind_keep_masks_of_their_own(accelerated):
    q_pos, k_pos, seen, _ = problem("plain")
    for window in (3, 20):
        site, q, k, v = site_of("rerope", queries=LENGTH, keys=LENGTH)
        site.encoding = hf_posenc.create("rerope", site.encoding.geometry, window=window)
        output, _ = posenc_attention("sdpa", site, q, k, v, None, position_ids=counted(q_pos))
        wanted = dense(site.encoding, q.double(), k.double(), v.double(), q_pos, k_pos, seen)
        assert_close(output.double(), wanted, **TOLERANCE[torch.float32])


@torch.no_grad()
@pytest.mark.parametrize("name", ["alibi", "rerope"])
def test_caches_of_other_lengths_have_masks_of_their_own(accelerated, name):
    """There is no mask for a prompt that fills the front of a static cache, nor for one token that sees all."""
    for queries, keys in ((140, 300), (140, 200), (1, 100), (1, 300)):
        site, q, k, v = site_of(name, queries=queries, keys=keys)
        q_pos, k_pos = (torch.arange(n).expand(2, -1) for n in (queries, keys))
        q_pos = q_pos if queries > 1 else k_pos[:, -1:]
        output, _ = posenc_attention("sdpa", site, q, k, v, None, position_ids=counted(q_pos))
        wanted = dense(site.encoding, q.double(), k.double(), v.double(), q_pos, k_pos, k_pos[:, None, None] <= q_pos[:, None, :, None])
        assert_close(output.double(), wanted, **TOLERANCE[torch.float32])


def counted(pos):
    pos = pos.clone()
    setattr(pos, COUNTED, True)
    return pos


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["t5", "fire"])
def test_layers_that_are_run_again(accelerated, name, reentrant):
    model, ids = hf_posenc.patch(tiny_model("llama"), name, **options_for(name)).train(), torch.arange(3, 60)[None].repeat(1, 3)
    found = []
    for again in (False, True):
        model.zero_grad()
        if again:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model(ids, use_cache=False).logits.square().mean().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*found, strict=True):
        assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_mask_follows_its_layer(monkeypatch):
    """To another device goes what its function holds too, once for all layers there; the meta device stands for one."""
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "sdpa", called_by_sizes(structured.in_blocks))
    mask = masks("padded")()
    there = mask.to("meta")
    assert there is mask.to(torch.device("meta"))
    assert there.to("meta") is there
    index = reference_flex.indices((2, 1, 300, 300), torch.device("meta"))
    assert there.mask_mod(*index).device.type == "meta"
    assert there.kv_indices.device.type == "meta"
    assert mask.mask_mod(*reference_flex.indices((2, 1, 300, 300), torch.device("cpu"))).device.type == "cpu"


@pytest.mark.slow
@pytest.mark.cover("name", name=[n for n in SCORING if ENCODINGS[n].has("bias")], kind=["plain", "padded", "window"])
@torch.no_grad()
def test_compiled(accelerated, name, kind, monkeypatch):
    """What PyTorch compiles for a CPU: one length, since more of them do not compile there, and no regions, for want of a log-sum-exp."""
    monkeypatch.setattr(flex, "kernel", KERNEL)
    flex._compiled.cache_clear()
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    monkeypatch.setattr(flex, "kernel_options", lambda call: {})
    for seed in range(3):  # as in three layers
        site, q, k, v = site_of(name, queries=LENGTH, keys=LENGTH, seed=seed)
        q_pos, k_pos, seen, mask = problem(kind)
        output, _ = posenc_attention("sdpa", site, q, k, v, mask, position_ids=q_pos)
        wanted = dense(site.encoding, q.double(), k.double(), v.double(), q_pos, k_pos, seen)
        real = seen.any(-1)[:, 0]
        assert_close(output.double()[real], wanted[real], **TOLERANCE[torch.float32])
    assert set(accelerated) == {"flex"}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1
