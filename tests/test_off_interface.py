"""Families that write their attention down, off transformers' attention interface."""

import copy
import pickle
import threading

import pytest
import torch
from families import model_class, tiny_config
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, StaticCache
from transformers.models.falcon.modeling_falcon import build_alibi_tensor
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import hf_posenc
from hf_posenc.architectures import ARCHITECTURES
from hf_posenc.architectures.gpt_neo import GPTNeo
from hf_posenc.attention.products import Divided
from hf_posenc.attention.seam import Interface
from hf_posenc.patching import Request, apply, patch_of, proof
from hf_posenc.patching.twin import sharpen

CLOSE = {"atol": 1e-4, "rtol": 1e-3}
LENGTH = 12
BIG_BIRD = {"attention_type": "original_full"}
CASES = {
    "falcon": ("falcon", {}),
    "falcon eager": ("falcon", {"_attn_implementation": "eager"}),
    "falcon, keys for each head": ("falcon", {"multi_query": False}),
    "falcon, newer": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 1}),
    "falcon alibi": ("falcon", {"alibi": True}),
    "bloom": ("bloom", {}),
    "bloom, three heads": ("bloom", {"hidden_size": 48, "n_head": 3}),
    "mpt": ("mpt", {}),
    "mpt, three heads": ("mpt", {"d_model": 48, "n_heads": 3}),
    "gpt_neo": ("gpt_neo", {"window_size": 5}),
    "openai-gpt": ("openai-gpt", {}),
    "gpt_neox_japanese": ("gpt_neox_japanese", {}),
    "xglm": ("xglm", {"attention_heads": 1}),
    "trocr": ("trocr", {"decoder_attention_heads": 1}),
    "trocr, sinusoids": ("trocr", {"decoder_attention_heads": 1, "use_learned_position_embeddings": False}),
    "mvp": ("mvp", {"decoder_attention_heads": 1}),
    "megatron-bert": ("megatron-bert", {}),
    "rembert": ("rembert", {}),
    "big_bird": ("big_bird", BIG_BIRD),
    "roformer": ("roformer", {}),
}
NATIVE_IN_ATTENTION = [
    case for case in CASES if case.split(",")[0].split()[0] in ("falcon", "bloom", "mpt", "gpt_neox_japanese", "roformer")
]
ROTARY = [case for case in NATIVE_IN_ATTENTION if case.split(",")[0] not in ("falcon alibi", "bloom", "mpt")]
ONE_OF_EACH = [
    "falcon",
    "falcon eager",
    "falcon alibi",
    "bloom",
    "mpt",
    "gpt_neo",
    "gpt_neox_japanese",
    "xglm",
    "trocr",
    "mvp",
    "megatron-bert",
]

every_case = pytest.mark.parametrize("case", CASES)
one_of_each = pytest.mark.parametrize("case", ONE_OF_EACH)


def built(case):
    family, changes = CASES[case]
    return build(family, **changes)


def build(family, _attn_implementation=None, **changes):
    torch.manual_seed(0)
    config = tiny_config(family)
    for name, value in changes.items():
        setattr(config, name, value)
    config._attn_implementation = _attn_implementation
    model = model_class(family)._from_config(config).float().eval()
    sharpen(model)
    return model


@pytest.fixture
def padded(batch):
    """Rows of which the first is padded on the left, and what is real in them."""
    batch = {name: x[:, :LENGTH] for name, x in batch.items()}
    return batch, batch["attention_mask"].bool()


def in_attention(model, name, **options):
    record = patch_of(model)
    apply(record, Request(name, options, tuple(record.attentions)), native_slot=False)
    return model


# -- the numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", NATIVE_IN_ATTENTION)
@torch.no_grad()
def test_the_native_encoding_in_the_place_of_the_familys_own(case, padded):
    (batch, real), model = padded, built(case)
    stock = model(**batch).logits[real]
    in_attention(model, patch_of(model).architecture.native_name)
    assert_close(model(**batch).logits[real], stock, **CLOSE)
    hf_posenc.patch(model, "nope")
    assert not torch.allclose(model(**batch).logits[real], stock, atol=1e-2)


def test_slopes_of_falcon_are_rounded_and_divided():
    """By bfloat16, which holds those of eight heads but not those of twelve, and by sqrt(D)."""
    model = build("falcon", alibi=True, hidden_size=96, num_attention_heads=12)
    slopes = build_alibi_tensor(torch.ones(1, 2), 12, torch.float32)[:, 0, 1] * 8**-0.5
    assert patch_of(model).geometry(0).slopes == tuple(slopes.tolist())


@pytest.mark.parametrize("case", ROTARY)
@torch.no_grad()
def test_a_remap_beyond_its_window_is_the_native_rotation(case, padded):
    (batch, real), model = padded, built(case)
    stock = model(**batch).logits[real]
    hf_posenc.patch(model, "rerope", window=LENGTH)
    assert_close(model(**batch).logits[real], stock, **CLOSE)


class Biased:
    """Before an attention module: the bias [H,Q,K] among the numbers that it adds to its scores anyway."""

    def __init__(self, bias):
        self.bias = bias

    def __call__(self, attention, args, kwargs):
        if "position_bias" in kwargs:
            return args, kwargs | {"position_bias": self.bias}
        mask = kwargs["attention_mask"]
        mask = torch.zeros(()) if mask is None else mask
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        return args, kwargs | {"attention_mask": mask + self.bias}


@pytest.mark.parametrize("case", [case for case in CASES if case != "falcon alibi"])
@torch.no_grad()
def test_a_bias_against_the_mask(case):
    """Added to the mask, it meets none of the factors that families put on their products."""
    model, ids = built(case), torch.arange(1, 2 * LENGTH + 1).view(2, -1)
    heads = patch_of(model).geometry(0).num_heads
    slopes = {1: [2**-8], 2: [2**-4, 2**-8], 3: [2**-4, 2**-8, 2**-2]}[heads]
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    bias = -torch.tensor(slopes)[:, None, None] * distance
    hf_posenc.patch(model, "nope")
    before = model(ids).logits
    handles = [a.register_forward_pre_hook(Biased(bias), with_kwargs=True) for a in patch_of(model).attentions.values()]
    wanted = model(ids).logits
    assert not torch.allclose(wanted, before, atol=1e-4)
    for handle in handles:
        handle.remove()
    hf_posenc.patch(model, "alibi")
    assert_close(model(ids).logits, wanted, **CLOSE)


class Turned:
    """After a projection [B,T,H*D]: turned as Llama turns its heads."""

    def __init__(self, heads):
        self.heads = heads

    def __call__(self, projection, args, x):
        x = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        width = x.shape[-1]
        angle = torch.arange(x.shape[2])[:, None] * 10000 ** -(torch.arange(0, width, 2) / width)
        cos, sin = (f(torch.cat((angle, angle), -1))[None] for f in (torch.cos, torch.sin))
        return apply_rotary_pos_emb(x, x, cos, sin)[0].transpose(1, 2).flatten(2)


@pytest.mark.parametrize("case", ["gpt_neo", "xglm", "trocr", "mvp", "megatron-bert", "rembert", "big_bird"])
@torch.no_grad()
def test_a_rotation_against_projections_that_turn(case):
    model, ids = built(case), torch.arange(1, 2 * LENGTH + 1).view(2, -1)
    heads = patch_of(model).geometry(0).num_heads
    hf_posenc.patch(model, "nope")
    projections = [
        getattr(attention, name)
        for attention in patch_of(model).attentions.values()
        for name in ("q_proj", "k_proj", "query", "key")
        if hasattr(attention, name)
    ]
    handles = [projection.register_forward_hook(Turned(heads)) for projection in projections]
    wanted = model(ids).logits
    for handle in handles:
        handle.remove()
    hf_posenc.patch(model, "rope")
    assert_close(model(ids).logits, wanted, **CLOSE)


@pytest.mark.parametrize(
    ("name", "options"), [("alibi", {}), ("rerope", {"window": 3}), ("shaw", {"values": False}), ("dual_chunk", {}), ("lm_infinite", {})]
)
@pytest.mark.parametrize("case", [case for case in CASES if case != "openai-gpt"])
@torch.no_grad()
def test_decoding_is_the_forward_pass_and_padding_is_invisible(case, name, options, padded):
    (batch, real), model = padded, built(case)
    hf_posenc.patch(model, name, **options)
    whole = model(**batch).logits
    out = model(batch["input_ids"][:, :7], attention_mask=batch["attention_mask"][:, :7], use_cache=True)
    steps = [out.logits]
    for end in range(8, LENGTH + 1):
        ids = batch["input_ids"][:, end - 1 : end]
        out = model(ids, attention_mask=batch["attention_mask"][:, :end], use_cache=True, cache=out.cache)
        steps.append(out.logits)
    assert_close(torch.cat(steps, 1)[real], whole[real], **CLOSE)
    alone = model(batch["input_ids"][:1, 5:]).logits
    assert_close(whole[:1, 5:], alone, **CLOSE)


@every_case
@torch.no_grad()
def test_unpatching_leaves_nothing(case, padded):
    (batch, _), model = padded, built(case)
    stock, names = model(**batch).logits, [name for name, _ in model.named_modules()]
    for name in ("t5", "rerope", "nope"):
        hf_posenc.patch(model, name)
    hf_posenc.unpatch(model)
    assert torch.equal(model(**batch).logits, stock)
    assert [name for name, _ in model.named_modules()] == names
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@every_case
@torch.no_grad()
def test_a_saved_model_comes_back(case, padded, tmp_path):
    (batch, real), model = padded, built(case)
    hf_posenc.patch(model, "alibi").save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert hf_posenc.inspect(loaded).fingerprint == hf_posenc.inspect(model).fingerprint
    assert_close(loaded(**batch).logits[real], model(**batch).logits[real], **CLOSE)


@one_of_each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(case, dtype, padded):
    (batch, real), model = padded, built(case)
    wanted = hf_posenc.patch(model, "rerope", window=3)(**batch).logits[real]
    half = hf_posenc.patch(built(case).to(dtype), "rerope", window=3)(**batch).logits[real].float()
    assert (half - wanted).abs().mean() < 0.03 * wanted.abs().mean() * (8 if dtype == torch.bfloat16 else 1)


# -- training -----------------------------------------------------------------------------------------------------------


def gradients(model, batch, real):
    model(**batch).logits[real].square().mean().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@one_of_each
def test_what_is_learned_gets_its_gradient(case, padded):
    (batch, real), model = padded, built(case)
    hf_posenc.patch(model, "shaw", values=False)
    found = gradients(model, batch, real)
    learned = {name: p for name, p in model.named_parameters() if "positional_encoding" in name}
    assert learned and learned.keys() <= found.keys()
    name, parameter = learned.popitem()
    torch.manual_seed(1)
    direction = torch.randn_like(parameter)
    step, losses = 1e-3, []
    with torch.no_grad():
        for sign in (1, -1):
            parameter += sign * step * direction
            losses.append(model(**batch).logits[real].double().square().mean())
            parameter -= sign * step * direction
    assert_close((found[name] * direction).sum().double(), (losses[0] - losses[1]) / (2 * step), atol=1e-3, rtol=2e-2)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("case", ["bloom", "gpt_neo", "falcon", "falcon alibi"])
def test_checkpointed_layers_run_again_under_the_encoding(case, reentrant, padded):
    (batch, real), model = padded, built(case)
    hf_posenc.patch(model, "kerple").train()
    wanted = gradients(model, batch, real)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    found = gradients(model, batch, real)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert_close(found[name], wanted[name], atol=1e-5, rtol=1e-3, msg=name)


# -- the seam ----------------------------------------------------------------------------------------------------------


def modes():
    """How many watch PyTorch's functions now."""
    return torch._C._len_torch_function_stack()


@pytest.mark.parametrize("when", ["within", "before"])
@pytest.mark.parametrize("name", ["alibi", "rerope"])
@torch.no_grad()
def test_an_error_in_the_forward_leaves_nothing_behind(when, name, padded, recwarn):
    batch, _ = padded
    model = hf_posenc.patch(built("bloom"), name)
    logits, attention = model(**batch).logits, model.transformer.h[0].self_attention

    def fail(*_):
        raise KeyError("out of luck")

    place = attention.dense if when == "within" else attention
    handle = place.register_forward_pre_hook(fail, prepend=True)
    with pytest.raises(KeyError, match="out of luck"):
        model(**batch)
    handle.remove()
    assert modes() == 0 and not recwarn.list
    assert torch.equal(model(**batch).logits, logits)


@torch.no_grad()
def test_threads_have_their_own(padded):
    """Two threads in the same layer at once, at other positions and lengths."""
    batch, _ = padded
    model = hf_posenc.patch(built("bloom"), "kerple")
    inputs = [batch, {"input_ids": batch["input_ids"][:, :5]}]
    wanted, found, barrier = [model(**x).logits for x in inputs], [None, None], threading.Barrier(2)
    for attention in patch_of(model).attentions.values():
        attention.query_key_value.register_forward_hook(lambda *_: [barrier.wait(10), None][1])

    def run(i):
        with torch.no_grad():
            found[i] = model(**inputs[i]).logits

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for have, want in zip(found, wanted, strict=True):
        assert_close(have, want)


@one_of_each
@torch.no_grad()
def test_copies_and_pickles(case, padded):
    batch, _ = padded
    model = hf_posenc.patch(built(case), "alibi")
    logits = model(**batch).logits
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(**batch).logits, logits)
        hf_posenc.patch(again, "nope")
        assert not torch.allclose(again(**batch).logits, logits)
    assert torch.equal(model(**batch).logits, logits)


@torch.no_grad()
def test_layers_that_keep_what_they_had(padded):
    """A layer of BLOOM without a patch has its own ALiBi; one with another encoding has that alone."""
    (batch, real), model = padded, built("bloom")
    stock = model(**batch).logits[real]
    in_attention(model, "alibi")
    hf_posenc.patch(model, "alibi", layers=[1])
    hf_posenc.unpatch(model)
    hf_posenc.patch(model, "alibi", layers=[1])
    assert_close(model(**batch).logits[real], stock, **CLOSE)
    hf_posenc.patch(model, "nope", layers=[1])
    one = model(**batch).logits[real]
    hf_posenc.patch(model, "nope")
    both = model(**batch).logits[real]
    assert not torch.allclose(one, stock, atol=1e-3) and not torch.allclose(one, both, atol=1e-3)


@pytest.mark.parametrize(("case", "path"), [("bloom", "scores"), ("falcon", "table"), ("falcon eager", "scores")])
def test_the_path_is_told(case, path):
    report = hf_posenc.inspect(hf_posenc.patch(built(case), "alibi"))
    assert report.encodings[0].path.path == path
    assert report.attention == ("eager" if path == "scores" else "sdpa")
    if path == "scores":
        assert "as this family does" in str(report)


@torch.no_grad()
def test_every_layer_of_gpt_neo_gets_an_encoding():
    """Its table feeds the layers with a window too."""
    model = hf_posenc.patch(built("gpt_neo"), "alibi")
    assert hf_posenc.inspect(model).encodings[0].layers == (0, 1)


@torch.no_grad()
def test_mpt_reaches_past_the_length_of_its_own_bias():
    model, ids = build("mpt", max_seq_len=8), torch.arange(1, 13)[None]
    with pytest.raises(RuntimeError):
        model(ids)
    assert model.config.max_seq_len == 8
    assert_close(hf_posenc.patch(model, "alibi")(ids).logits, build("mpt", max_seq_len=16)(ids).logits, **CLOSE)


# -- what is refused ----------------------------------------------------------------------------------------------------


@pytest.fixture
def forgotten(monkeypatch):
    monkeypatch.setattr(proof, "_proven", set())


class ByEinsum(GPTNeoSelfAttention):
    def _attn(self, query, key, value, attention_mask=None):
        weights = torch.einsum("bhqd,bhkd->bhqk", query, key) + attention_mask
        return torch.einsum("bhqk,bhkd->bhqd", weights.softmax(-1), value), weights


def test_an_attention_that_makes_no_product(forgotten):
    model = built("gpt_neo")
    for attention in patch_of(model).attentions.values():
        attention.__class__ = ByEinsum
    with pytest.raises(ValueError, match=r"has not multiplied queries and keys|never reaches a product"):
        hf_posenc.patch(model, "alibi")
    assert modes() == 0 and not hf_posenc.inspect(model).encodings
    hf_posenc.patch(model, "alibi", verify=False)
    with pytest.raises(RuntimeError, match="ByEinsum has not multiplied queries and keys"):
        model(torch.arange(1, 9)[None])
    assert modes() == 0


@pytest.mark.parametrize(
    ("seam", "fault"), [(Divided(), "does not put the factor"), (Interface(), "never reaches the attention interface")]
)
def test_a_wrong_description(seam, fault, forgotten, monkeypatch):
    wrong = GPTNeo()
    monkeypatch.setattr(wrong, "seam", seam, raising=False)
    monkeypatch.setitem(ARCHITECTURES._entries, "gpt_neo", wrong)
    with pytest.raises(ValueError, match=fault):
        hf_posenc.patch(built("gpt_neo"), "alibi")


REFUSED = {
    "eager Falcon adds its bias twice": (
        "falcon",
        {"alibi": True, "_attn_implementation": "eager"},
        "alibi",
        "native bias .* other numbers",
    ),
    "BigBird in blocks": ("big_bird", {"attention_type": "block_sparse"}, "alibi", "attention_type='original_full'"),
    "MVP with prompts": ("mvp", {"use_prompt": True}, "alibi", "use_prompt"),
    "TrOCR needs ids": ("trocr", {"use_learned_position_embeddings": False}, "learned", "wants ids"),
    "RoFormer turns values": ("roformer", {"rotary_value": True}, "alibi", "rotary_value"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_served(why, padded):
    family, changes, name, match = REFUSED[why]
    model, (batch, _) = build(family, **changes), padded
    stock = model(**batch).logits
    with pytest.raises(ValueError, match=match):
        hf_posenc.patch(model, name)
    assert torch.equal(model(**batch).logits, stock)


def test_flash_attention_is_refused():
    model = built("gpt_neo")
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match=r"'flash_attention_2' cannot carry at all; .* one of eager, sdpa"):
        hf_posenc.patch(model, "rope")


# -- lengths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["gpt_neo", "openai-gpt"])
@pytest.mark.parametrize(("name", "options"), [("nope", {}), ("alibi", {}), ("learned", {"max_positions": 24})])
@torch.no_grad()
def test_texts_longer_than_a_causal_buffer(case, name, options, tmp_path):
    """What a model of that length computes, and the buffer comes back."""
    family, changes = CASES[case]
    length, table = ("max_position_embeddings", "wpe") if family == "gpt_neo" else ("n_positions", "positions_embed")
    model, longer = build(family, **changes, **{length: 8}), build(family, **changes, **{length: 32})
    ids = torch.arange(1, 21)[None]
    with pytest.raises((RuntimeError, IndexError)):
        model(ids)
    buffers = {key: x.clone() for key, x in model.named_buffers()}
    longer.load_state_dict(model.state_dict() | {key: x for key, x in longer.state_dict().items() if table in key})
    hf_posenc.patch(model, name, **options)
    if name == "learned":
        getattr(longer.transformer, table).weight[:24] = getattr(model.transformer, table).weight
    else:
        hf_posenc.patch(longer, name)
    assert_close(model(ids).logits, longer(ids).logits, **CLOSE)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_close(loaded(ids).logits, longer(ids).logits, **CLOSE)
    hf_posenc.unpatch(model)
    assert {key for key, _ in model.named_buffers()} == buffers.keys()
    assert all(torch.equal(x, buffers[key]) for key, x in model.named_buffers())


class Stop:
    def __call__(self, *_):
        raise KeyboardInterrupt


@torch.no_grad()
def test_ctrl_c_in_the_attention_leaves_nothing_behind(padded):
    (batch, _), model = padded, hf_posenc.patch(built("bloom"), "alibi")
    wanted, modes = model(**batch).logits, torch._C._len_torch_function_stack()
    handle = patch_of(model).attentions[0].query_key_value.register_forward_pre_hook(Stop())
    with pytest.raises(KeyboardInterrupt):
        model(**batch)
    handle.remove()
    query, key = torch.arange(12.0).view(1, 2, 2, 3), torch.ones(1, 2, 3, 2)
    assert torch.equal(torch.matmul(query, key), query.sum(-1, keepdim=True).expand(-1, -1, -1, 2))
    assert torch.equal(model(**batch).logits, wanted)
    assert torch._C._len_torch_function_stack() == modes


@torch.no_grad()
def test_a_static_cache_of_bloom():
    """Longer than the bias that the model makes beside a mask."""
    model, ids = hf_posenc.patch(built("bloom"), "alibi"), torch.arange(1, 11)[None]
    whole = model(ids).logits
    cache, parts = StaticCache(config=model.config, max_cache_len=16), []
    for start, end in ((0, 6), (6, 10)):
        out = model(ids[:, start:end], attention_mask=torch.ones(1, end, dtype=torch.long), cache=cache, use_cache=True)
        parts.append(out.logits)
    assert_close(torch.cat(parts, 1), whole, **CLOSE)


@pytest.mark.parametrize("name", ["alibi", "rerope"])
@torch.no_grad()
def test_bloom_generates_into_a_static_cache(name, padded):
    """Its mask is as long as the cache from the beginning, and there is padding in it."""
    (batch, _), model = padded, built("bloom")
    hf_posenc.patch(model, name, **({"window": 3} if name == "rerope" else {}))
    how = {"do_sample": False, "max_new_tokens": 4, "eos_token_id": None, "pad_token_id": 0}
    how |= {"return_dict_in_generate": True, "output_logits": True}
    wanted = model.generate(**batch, **how)
    found = model.generate(**batch, **how, cache_implementation="static", disable_compile=True)
    assert_close(torch.stack(found.logits), torch.stack(wanted.logits), **CLOSE)


@pytest.mark.parametrize("family", ["gptj", "codegen"])
@torch.no_grad()
def test_angles_from_a_table(family, padded, tmp_path):
    """Beyond its rows, in some layers, scaled, and after a reload."""
    (batch, real), model = padded, build(family, n_positions=LENGTH)
    longer = build(family, n_positions=4 * LENGTH)
    ids = torch.arange(1, 3 * LENGTH)[None]
    stock = model(**batch).logits
    with pytest.raises(IndexError):
        model(ids)
    hf_posenc.patch(model, "rope")
    assert torch.equal(model(**batch).logits, stock)
    assert_close(model(ids).logits, longer(ids).logits, **CLOSE)
    linear = hf_posenc.patch(model, "linear", factor=4.0)(ids).logits
    in_attention(longer, "linear", factor=4.0)
    assert_close(linear, longer(ids).logits, **CLOSE)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert hf_posenc.inspect(loaded).whole and hf_posenc.inspect(loaded).fingerprint == hf_posenc.inspect(model).fingerprint
    assert_close(loaded(ids).logits, linear, **CLOSE)
    for layer in range(2):
        hf_posenc.unpatch(model)
        hf_posenc.patch(model, "linear", factor=4.0, layers=layer)
        hf_posenc.unpatch(longer)
        apply(patch_of(longer), Request("linear", {"factor": 4.0}, (layer,)), native_slot=False)
        assert_close(model(**batch).logits[real], longer(**batch).logits[real], **CLOSE)
        hf_posenc.patch(model, "alibi", layers=layer)
        one = model(**batch).logits[real]
        assert not torch.allclose(one, stock[real], atol=1e-3)
    hf_posenc.patch(model, "rope").bfloat16()
    assert hf_posenc.inspect(model).whole
    table = hf_posenc.unpatch(model).transformer.rotary_emb.embed_positions
    assert torch.equal(table, build(family, n_positions=LENGTH).transformer.rotary_emb.embed_positions)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["falcon eager", "bloom", "falcon", "gpt_neo", "mpt"])
@torch.no_grad()
def test_compiled(case, padded):
    """With breaks in the graph; in eager mode afterwards no positions are left."""
    (batch, real), model = padded, hf_posenc.patch(built(case), "rerope", window=3)
    wanted, record = model(**batch).logits[real], patch_of(model)
    compiled = torch.compile(model, backend="eager")
    assert_close(compiled(**batch).logits[real], wanted)
    assert modes() == 0 and record.settled.pos is None and record.settled.traced is None


def test_an_export_is_refused():
    model, ids = hf_posenc.patch(built("bloom"), "alibi"), torch.arange(1, 9)[None]
    with pytest.raises(RuntimeError, match=r"BloomAttention .* cannot be exported"):
        torch.export.export(model, (ids,), {"use_cache": False})
    assert modes() == 0
