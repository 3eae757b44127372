"""Any padding, with any cache: the numbers are those of the same text alone, in one piece, without a cache."""

import functools

import pytest
import torch
from tiny import off_start, options_for, tiny_for, tiny_model
from torch.testing import assert_close
from transformers import DynamicCache, GPT2DoubleHeadsModel, QuantizedCache, StaticCache

import hf_posenc
from hf_posenc.encodings import ENCODINGS
from hf_posenc.encodings.naming import EMBEDDING
from hf_posenc.patching import patch_of

CLOSE = {"atol": 2e-5, "rtol": 2e-4}
EXACT = {"atol": 1e-9, "rtol": 1e-9}
LENGTH = 14
every_encoding = pytest.mark.parametrize("name", hf_posenc.list_encodings())


def patched(arch, name, **changes):
    model = tiny_for(name, arch, **changes)
    torch.manual_seed(7)
    return off_start(hf_posenc.patch(model, name, layers="all", **options_for(name)))


def paddings():
    """[B,L] bool: where rows have tokens. Each row another way, and no two of the same length."""
    seen = torch.ones(5, LENGTH, dtype=torch.bool)
    seen[1, :6] = False  # a whole piece of a prefill
    seen[2, 8:12] = False  # a prompt padded on the right, then new tokens
    seen[3, :2], seen[3, 9:11] = False, False
    seen[4, [4, 5, 8]] = False  # holes in the text
    return seen


def caches(config):
    return {"dynamic": DynamicCache(config=config), "static": StaticCache(config=config, max_cache_len=LENGTH + 9)}


@pytest.mark.cover("name", "encoding_kind arch", arch=["llama", "gpt2", "mistral"])
@torch.no_grad()
def test_every_padding_with_every_cache(arch, name):
    """Prefilled at once, in pieces that end within the padding, and token by token; in float64, so that nothing hides in rounding."""
    check_paddings(patched(arch, name).double(), windows=arch == "mistral")


@pytest.mark.parametrize("arch", ["llama", "mistral"])
@pytest.mark.parametrize("name, options", [("path", {}), ("path", {"taps": 1, "forget": True}), ("selective_rope", {"gate": True})])
@torch.no_grad()
def test_what_looks_back_reads_past_padding(arch, name, options):
    """With numbers as after training: at first convolutions look at the token itself alone."""
    model = hf_posenc.patch(tiny_model(arch), name, layers="all", **options).double()
    torch.manual_seed(0)
    for placement in patch_of(model).placements:
        for parameter in placement.encoding.parameters():
            parameter.normal_()
    check_paddings(model, windows=arch == "mistral")


def check_paddings(model, windows):
    """Under `windows` a row is not the same alone: they count padding within the text, in stock models too."""
    seen = paddings()
    ids = torch.randint(3, 60, seen.shape, generator=torch.Generator().manual_seed(2))
    alone = [model(row[mask][None], use_cache=False).logits[0] for row, mask in zip(ids, seen, strict=True)]
    positions = (seen.long().cumsum(-1) - 1).masked_fill(~seen, 1)  # what `generate` gives to padding is any number
    whole = model(ids, attention_mask=seen.long(), position_ids=positions, use_cache=False).logits
    if not windows:
        assert_close(whole[seen], torch.cat(alone), **EXACT)
    for ends in ((LENGTH,), (10, 11, 12, 13, LENGTH), (5, 9, LENGTH)):
        for kind, cache in caches(model.config).items():
            parts, start = [], 0
            for end in ends:
                inputs = {"attention_mask": seen[:, :end].long(), "position_ids": positions[:, start:end]}
                parts.append(model(ids[:, start:end], **inputs, past_key_values=cache, use_cache=True).logits)
                start = end
            assert_close(torch.cat(parts, 1)[seen], whole[seen], **EXACT, msg=lambda m, at=f"{kind} cache, pieces {ends}": f"{at}: {m}")


@every_encoding
@torch.no_grad()
def test_positions_that_jump_are_exact_in_one_pass_with_every_cache(name):
    model = patched("llama", name).double()
    ids = torch.randint(3, 60, (2, LENGTH), generator=torch.Generator().manual_seed(2))
    positions = torch.arange(LENGTH)[None] + torch.tensor([[7], [0]]) * (torch.arange(LENGTH) > 5)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    inputs = {"attention_mask": mask, "position_ids": positions}
    wanted = model(ids, **inputs, use_cache=False).logits[mask.bool()]
    for kind, cache in caches(model.config).items():
        found = model(ids, **inputs, past_key_values=cache, use_cache=True).logits[mask.bool()]
        assert_close(found, wanted, **EXACT, msg=lambda m, kind=kind: f"{kind} cache: {m}")


@pytest.mark.cover("name", "encoding_kind arch", arch=["llama", "gpt2"])
@torch.no_grad()
def test_right_padded_prompts_generate_the_same_with_every_cache(arch, name):
    model, prompts = patched(arch, name).double(), torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(prompts)
    mask[0, 6:] = 0
    settings = {"attention_mask": mask, "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    dynamic, static = (model.generate(prompts, **settings, **cache) for cache in ({}, {"cache_implementation": "static"}))
    assert torch.equal(dynamic, static)


@pytest.mark.parametrize("name", ["rerope", "t5", "rope"])
@torch.no_grad()
def test_quantized_cache(name):
    """Its first tokens are whole: as long as they are all, so are the numbers."""
    pytest.importorskip("optimum.quanto")
    model, seen = patched("gpt2", name), paddings()
    ids = torch.randint(3, 60, seen.shape, generator=torch.Generator().manual_seed(2))
    cache = QuantizedCache("quanto", model.config, residual_length=64)
    inputs = {"attention_mask": seen.long(), "position_ids": (seen.long().cumsum(-1) - 1).clamp(min=0)}
    assert_close(model(ids, **inputs, past_key_values=cache).logits[seen], model(ids, **inputs, use_cache=False).logits[seen], **CLOSE)


@pytest.mark.cover("encoding_stages", "given", given=[(), ("attention_mask",), ("position_ids",), ("attention_mask", "position_ids")])
@torch.no_grad()
def test_several_choices_in_a_row(name, given):
    """GPT-2 takes [batch, choices, tokens] and makes one batch of it, after positions are settled."""
    torch.manual_seed(5)
    model = patched("gpt2", name)
    double = GPT2DoubleHeadsModel(tiny_for(name, "gpt2").config).eval()
    double.transformer.load_state_dict(tiny_for(name, "gpt2").transformer.state_dict())
    double.lm_head.weight = double.transformer.wte.weight
    torch.manual_seed(7)
    hf_posenc.patch(double, name, layers="all", **options_for(name))
    model.load_state_dict(double.state_dict(), strict=False)
    ids = torch.randint(3, 60, (2, 3, 9))
    mask = torch.ones_like(ids)
    mask[0, 1, :4] = 0
    inputs = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    inputs = {key: inputs[key] for key in given}
    if ENCODINGS[name].has(*EMBEDDING) and hf_posenc.inspect(double).encodings[0].place != "in the native slot":
        with pytest.raises(ValueError, match="2-D"):
            double(ids, **inputs)
        return
    found = double(ids, **inputs).logits
    wanted = model(ids.flatten(0, 1), **{key: x.flatten(0, 1) for key, x in inputs.items()}).logits
    keep = (mask if "attention_mask" in given else torch.ones_like(mask)).bool()
    assert_close(found[keep], wanted.unflatten(0, (2, 3))[keep], **CLOSE)


# -- positions without values -----------------------------------------------------------------------------------------


@functools.cache
def runs_without_numbers(arch):
    """Whether the stock model does: GPT-OSS has kernels that do not."""
    try:
        return tiny_model(arch, pad_token_id=None).to("meta")(torch.zeros(2, 10, dtype=torch.long, device="meta")).logits.is_meta
    except RuntimeError:
        return False


@pytest.mark.cover("encoding_kind", "arch")
def test_shapes_alone(arch, name):
    """On the meta device there is nothing to look at."""
    if not runs_without_numbers(arch):
        pytest.skip("nor does the stock model run there")
    model = patched(arch, name, pad_token_id=None).to("meta")
    ids = torch.zeros(2, 10, dtype=torch.long, device="meta")
    for inputs in ({}, {"labels": ids}, {"position_ids": torch.zeros_like(ids)}):  # a 2-D mask is looked at by transformers itself
        out = model(ids, **inputs)
        assert out.logits.is_meta and out.logits.shape == (2, 10, 61)
    assert model(ids[:, :1], past_key_values=model(ids, use_cache=True).past_key_values).logits.shape == (2, 1, 61)


# -- attention weights ------------------------------------------------------------------------------------------------


@pytest.mark.cover("name", "encoding_kind arch", arch=["llama", "gpt2"])
@torch.no_grad()
def test_attention_weights_are_those_of_the_patched_model(arch, name):
    model, ids = tiny_model(arch), torch.randint(3, 60, (2, 11), generator=torch.Generator().manual_seed(2))
    model.set_attn_implementation("eager")
    torch.manual_seed(7)
    hf_posenc.patch(model, name, layers="all", **options_for(name))
    asked = model(ids, output_attentions=True, use_cache=False).attentions
    model.config.output_attentions = True
    found = model(ids, use_cache=False).attentions
    assert len(found) == len(asked) == 2
    for one, other in zip(found, asked, strict=True):
        assert torch.equal(one, other) and one.shape == (2, 4, 11, 11)
        if not ENCODINGS[name].has("normalise"):
            assert_close(one.sum(-1), torch.ones(2, 4, 11), atol=1e-5, rtol=1e-5)
    generated = model.generate(ids, max_new_tokens=2, min_new_tokens=2, return_dict_in_generate=True, output_attentions=True)
    assert_close(generated.attentions[0][0], asked[0], **CLOSE)
    model.config.output_attentions = False
    assert hf_posenc.unpatch(model).config._attn_implementation == "eager"


def test_attention_weights_need_an_eager_model():
    """As in stock transformers, whose message names the attention that the user chose."""
    model = tiny_model("llama")
    model.set_attn_implementation("sdpa")
    hf_posenc.patch(model, "alibi")
    with pytest.raises(ValueError, match="set to sdpa"):
        model.config.output_attentions = True
    assert model.config._attn_implementation == "hf_posenc_sdpa"
