"""What the KV cache holds, and that everything that is done to a cache leaves it right."""

import copy
import pickle

import pytest
import torch
from tiny import NATIVE, options_for, tiny_model
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

import hf_posenc
from hf_posenc.encodings import ENCODINGS, register
from hf_posenc.encodings.base import products
from hf_posenc.encodings.rotary.rope import RoPE
from hf_posenc.patching import Request, apply, patch_of

CLOSE = {"atol": 2e-5, "rtol": 2e-4}
IDS = torch.randint(3, 60, (2, 17), generator=torch.Generator().manual_seed(5))
FAMILIES = ("gpt2", "opt")
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def tagged():
    """An encoding with two columns of state beside the rotated key: one of its content, one of its position."""

    @register("tagged")
    class Tagged(RoPE):
        """RoPE and a score between the query and what each key was before it was rotated."""

        relative = False

        def cached_key(self, k, pos):
            state = torch.stack((k[..., 0].tanh(), (pos * 0.7).cos()[:, None].expand(k.shape[:-1]).to(k)), -1)
            return torch.cat((super().cached_key(k, pos), state), -1)

        def context_bias(self, q, k, q_pos, k_pos, scaling):
            return products(q[..., :2], k[..., q.shape[-1] :])

    yield "tagged"
    del ENCODINGS._entries["tagged"]


def patched_model(family, name, **changes):
    return hf_posenc.patch(tiny_model(family, **changes), name, layers="all", **options_for(name))


def seam_model(family, name):
    """Patched in the attention function, where the native slot could hold the encoding too."""
    model = tiny_model(family)
    apply(patch_of(model), Request(name, options_for(name), (0, 1)), native_slot=False)
    return model


def caches(model):
    """An empty cache of each kind."""
    return DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=24)


def step(model, cache, ids, start, end):
    """Logits of the tokens from `start` to `end`, which go into the cache."""
    return model(ids[:, start:end], past_key_values=cache, position_ids=torch.arange(start, end)[None]).logits


def layers_of(model):
    record = patch_of(model)
    return list(record.architecture.attentions(record.backbone).values())


@every_family
@pytest.mark.parametrize("name", ["rope", "yarn", "rerope", "tagged"])
@torch.no_grad()
def test_decoding_equals_one_pass(family, name, tagged):
    model = patched_model(family, name)
    full = model(IDS, use_cache=False).logits
    for cache in caches(model):
        parts = [step(model, cache, IDS, start, end) for start, end in ((0, 7), (7, 8), (8, 9), (9, 13), (13, 17))]
        assert_close(torch.cat(parts, 1), full, **CLOSE)


@every_family
@torch.no_grad()
def test_a_cache_that_was_sized_in_advance(family, tagged):
    """By the width of a head, as `generate` does for a prefill in chunks."""
    model = patched_model(family, tagged)
    full = model(IDS, use_cache=False).logits
    for cache in caches(model):
        cache.early_initialization(2, 4, 16, torch.float32, "cpu")
        parts = [step(model, cache, IDS, start, end) for start, end in ((0, 7), (7, 8), (8, 17))]
        assert_close(torch.cat(parts, 1), full, **CLOSE)
        assert cache.layers[0].keys.shape[-1] == 18


@torch.no_grad()
def test_nothing_is_rotated_twice():
    """The stock model does the same rotation in its own way."""
    stock, model = tiny_model("llama"), seam_model("llama", "rope")
    ids = IDS[:, :NATIVE]
    full = stock(ids).logits
    assert_close(model(ids, use_cache=False).logits, full, **CLOSE)
    for cache in caches(model):
        assert_close(torch.cat([step(model, cache, ids, at, at + 4) for at in (0, 4, 8)], 1), full, **CLOSE)


def turned(key, positions, theta, factor=1.0):
    """Halves of keys [G,K,D] turned one number at a time, in float64."""
    out, half = key.double().clone(), key.shape[-1] // 2
    for t, position in enumerate(positions):
        for i in range(half):
            angle = torch.tensor(position * theta[i], dtype=torch.float64)
            a, b = key[:, t, i].double(), key[:, t, i + half].double()
            out[:, t, i] = factor * (a * angle.cos() - b * angle.sin())
            out[:, t, i + half] = factor * (a * angle.sin() + b * angle.cos())
    return out


@pytest.mark.parametrize("family, projection", [("gpt2", "c_attn"), ("opt", "k_proj")])
@pytest.mark.parametrize("name", ["rope", "yarn"])
@torch.no_grad()
def test_the_cache_holds_the_rotated_key(family, projection, name):
    model, raw = patched_model(family, name), []
    attention = layers_of(model)[0]
    getattr(attention, projection).register_forward_hook(lambda module, args, output: raw.append(output.clone()))
    cache = DynamicCache(config=model.config)
    for start, end in ((0, 6), (6, 7)):
        step(model, cache, IDS, start, end)
    width = model.config.hidden_size
    key = torch.cat(raw, 1)[0, :, width : 2 * width] if family == "gpt2" else torch.cat(raw, 1)[0]
    key = key.unflatten(-1, (4, -1)).transpose(0, 1)
    encoding = attention.posenc_site.encoding
    theta = [10_000.0 ** (-2 * i / 16) for i in range(8)] if name == "rope" else encoding.inv_freq.double().tolist()
    expected = turned(key, range(7), theta, encoding.attention_factor)
    assert_close(cache.layers[0].keys[0].double(), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_needs_no_rotation_is_cached_raw():
    for name in ("alibi", "dynamic_ntk"):
        model = patched_model("gpt2", name)
        assert not any(layer._forward_pre_hooks for layer in layers_of(model))
        step(model, DynamicCache(config=model.config), IDS, 0, 4)


@every_family
@pytest.mark.parametrize("name", ["rope", "tagged"])
@torch.no_grad()
def test_crop_and_go_on(family, name, tagged):
    model = patched_model(family, name)
    cache = DynamicCache(config=model.config)
    step(model, cache, IDS, 0, 12)
    cache.crop(-5)
    other = torch.cat((IDS[:, :7], IDS[:, 12:16]), 1)
    full = model(other, use_cache=False).logits[:, 7:]
    assert_close(torch.cat([step(model, cache, other, at, at + 1) for at in range(7, 11)], 1), full, **CLOSE)


@every_family
@pytest.mark.parametrize("name", ["rope", "tagged"])
@torch.no_grad()
def test_rows_of_a_cache_move(family, name, tagged):
    """Beam search reorders rows, sampling repeats them, contrastive search selects some."""
    model = patched_model(family, name)
    moves = {
        "reorder_cache": (torch.tensor([1, 1]), [1, 1]),
        "batch_repeat_interleave": (2, [0, 0, 1, 1]),
        "batch_select_indices": (torch.tensor([1]), [1]),
    }
    for move, (argument, rows) in moves.items():
        for cache in caches(model)[: 2 if move == "reorder_cache" else 1]:
            step(model, cache, IDS, 0, 8)
            getattr(cache, move)(argument)
            full = model(IDS[rows], use_cache=False).logits
            assert_close(step(model, cache, IDS[rows], 8, 11), full[:, 8:11], msg=lambda m, move=move: f"{move}: {m}", **CLOSE)


@torch.no_grad()
def test_positions_that_jump_stay_with_their_keys():
    """A rotated key keeps the position it was rotated at: the stock model does the same."""
    positions = torch.tensor([[0, 1, 2, 5, 6, 9, 10, 11]])
    stock, model = tiny_model("llama"), seam_model("llama", "rope")
    logits = []
    for each in (stock, model):
        cache = DynamicCache(config=each.config)
        each(IDS[:, :6], position_ids=positions[:, :6], past_key_values=cache, attention_mask=torch.ones(2, 6))
        logits.append(each(IDS[:, 6:8], position_ids=positions[:, 6:], past_key_values=cache, attention_mask=torch.ones(2, 8)).logits)
    assert_close(logits[1], logits[0], **CLOSE)


class Sines(TorchDispatchMode):
    """Counts the sines that are computed: one for each pair of dimensions and position."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket == torch.ops.aten.sin:
            self.count += out.numel()
        return out


@torch.no_grad()
def test_a_decoding_step_turns_one_key():
    model = patched_model("gpt2", "rope")
    cache = DynamicCache(config=model.config)
    step(model, cache, IDS, 0, 16)
    with Sines() as sines:
        step(model, cache, IDS, 16, 17)
    pairs, layers = 8, 2
    assert 0 < sines.count <= 2 * len(IDS) * pairs * layers  # a query and a key


@torch.no_grad()
def test_the_cache_keeps_the_dtype():
    model = patched_model("gpt2", "rope").to(torch.bfloat16)
    encoding, cache = layers_of(model)[0].posenc_site.encoding, DynamicCache(config=model.config)
    encoding.cached_key = lambda k, pos: k.float()
    step(model, cache, IDS, 0, 4)
    assert cache.layers[0].keys.dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", ["fox", "bipe"])
@torch.no_grad()
def test_autocast_decodes_what_lies_beside_the_keys(name, family):
    """A family that rotates, if by nothing, hands over keys in float32 and values in bfloat16."""
    model = patched_model(family, name)
    full = model(IDS, use_cache=False).logits
    with torch.autocast("cpu", torch.bfloat16):
        for cache in caches(model):
            found = torch.cat([step(model, cache, IDS, start, end) for start, end in ((0, 12), (12, 13), (13, 17))], 1)
            assert cache.layers[0].keys.dtype == torch.bfloat16
            assert (found - full).abs().mean() < 0.05 * full.abs().mean()


@torch.no_grad()
def test_autocast_rounds_no_state():
    model, said = patched_model("llama", "cable"), []
    encoding = layers_of(model)[0].posenc_site.encoding
    state = encoding.state
    encoding.state = lambda x, pos: said.append((x, pos, state(x, pos))) or said[-1][-1]
    with torch.autocast("cpu", torch.bfloat16):
        model(IDS)
    ((x, pos, found),) = said
    assert torch.equal(found, state(x, pos))


@torch.no_grad()
def test_a_cache_in_two_parts():
    model = patched_model("gpt2", "rope")
    full = model(IDS, use_cache=False).logits
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    parts = [step(model, cache, IDS, start, end) for start, end in ((0, 12), (12, 17))]
    assert_close(torch.cat(parts, 1), full, **CLOSE)


def test_gradients_flow_through_the_cache():
    model, grads = patched_model("gpt2", "rope"), []
    for split in (None, 6):
        cache = None if split is None else DynamicCache(config=model.config)
        if cache is not None:
            step(model, cache, IDS, 0, split)
            model.zero_grad()
        logits = model(IDS).logits[:, 6:] if split is None else step(model, cache, IDS, 6, 17)
        logits.square().sum().backward()
        grads.append(layers_of(model)[0].c_attn.weight.grad.clone())
        model.zero_grad()
    assert_close(grads[1], grads[0], atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_copies_and_pickles_decode():
    model = patched_model("gpt2", "rope")
    full = model(IDS, use_cache=False).logits
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        hf_posenc.unpatch(model)
        cache = DynamicCache(config=twin.config)
        assert_close(torch.cat([step(twin, cache, IDS, start, start + 1) for start in range(17)], 1), full, **CLOSE)
    assert not any(layer._forward_pre_hooks for layer in layers_of(model))


def compiled_decoding(backend):
    model = patched_model("gpt2", "rope")
    full = model(IDS, use_cache=False).logits
    cache = caches(model)[1]
    step(model, cache, IDS, 0, 8)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    assert_close(torch.cat([step(compiled, cache, IDS, at, at + 1) for at in range(8, 17)], 1), full[:, 8:], **CLOSE)


@torch.no_grad()
def test_decoding_is_one_graph():
    compiled_decoding("eager")


@pytest.mark.slow
@torch.no_grad()
def test_compiled_decoding():
    compiled_decoding("inductor")
