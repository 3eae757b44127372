"""Families that compute their sinusoids: nothing of them is learned, so nothing of them is lost."""

import copy

import pytest
import torch
from families import tiny_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import hf_posenc
from hf_posenc.patching import patch_of

CLOSE = {"atol": 5e-5, "rtol": 5e-4}
IDS = torch.tensor([[5, 9, 2, 40, 17, 8, 33, 21, 4, 11]])
BESIDE_AN_ENCODER = ("m2m_100", "nllb-moe", "pegasus_x", "seamless_m4t", "speech_to_text")
SLOW = ("nllb-moe", "pegasus_x", "seamless_m4t", "kosmos-2.5")
every_type = pytest.mark.parametrize(
    "arch", ["ctrl", "m2m_100", "speech_to_text", "whisper", *(pytest.param(arch, marks=pytest.mark.slow) for arch in SLOW)]
)


def tiny(arch):
    return tiny_model(arch, seq2seq=arch in BESIDE_AN_ENCODER)


def states(model, ids=IDS, **more):
    """Last hidden states of the decoder alone."""
    return patch_of(model).backbone(ids, use_cache=False, **more).last_hidden_state


class Times0:
    """After a table has been looked up: nothing of it."""

    def __call__(self, module, args, kwargs, rows):
        return rows * 0


def without_positions(arch):
    model = tiny(arch)
    decoder = patch_of(model).backbone
    if arch == "ctrl":
        decoder.pos_encoding.zero_()
    else:
        decoder.embed_positions.register_forward_hook(Times0(), with_kwargs=True)
    return model


@every_type
@torch.no_grad()
def test_no_positions_and_alibi_are_what_they_say(arch):
    model, bare = tiny(arch), without_positions(arch)
    stock = states(model)
    assert_close(states(hf_posenc.patch(model, "nope")), states(bare), **CLOSE)
    steps, heads = torch.arange(IDS.shape[1]), patch_of(model).geometry(None).num_heads
    slopes = 2 ** (-8 * (torch.arange(heads) + 1) / heads)
    assert not heads & (heads - 1)  # else ALiBi has other slopes
    distance = steps[:, None] - steps[None]
    mask = (-slopes[:, None, None] * distance).masked_fill(distance < 0, torch.finfo(torch.float32).min)[None]
    bare.set_attn_implementation("eager")
    wanted = states(bare, attention_mask=mask)
    assert (wanted - stock).abs().max() > 0.1
    assert_close(states(hf_posenc.patch(model, "alibi")), wanted, **CLOSE)
    assert torch.equal(states(hf_posenc.unpatch(model)), stock)


@every_type
@pytest.mark.parametrize("name", ["alibi", "rope"])
@torch.no_grad()
def test_decoding_padding_length_and_copies(arch, name):
    model = hf_posenc.patch(tiny(arch), name)
    whole, decoder = states(model), patch_of(model).backbone
    assert torch.equal(states(copy.deepcopy(model)), whole)
    padded = torch.cat((torch.ones(1, 3, dtype=torch.long), IDS), 1)  # what most of these take for padding
    mask = torch.cat((torch.zeros(1, 3, dtype=torch.long), torch.ones_like(IDS)), 1)
    assert_close(states(model, padded, attention_mask=mask)[:, 3:], whole, **CLOSE)
    first = decoder(IDS[:, :6], use_cache=True)
    steps, cache = [first.last_hidden_state], first.cache
    for at in range(6, IDS.shape[1]):
        steps.append(decoder(IDS[:, at : at + 1], cache=cache, use_cache=True).last_hidden_state)
    assert_close(torch.cat(steps, 1), whole, **CLOSE)
    half = hf_posenc.patch(tiny(arch).to(torch.bfloat16), name)
    assert states(half).dtype == torch.bfloat16
    assert states(hf_posenc.unpatch(half)).dtype == torch.bfloat16


@pytest.mark.parametrize("arch", ["ctrl", "m2m_100", pytest.param("seamless_m4t", marks=pytest.mark.slow)])
@torch.no_grad()
def test_a_reloaded_checkpoint_can_go_back(arch, tmp_path):
    model = tiny(arch)
    stock = states(model)
    wanted = states(hf_posenc.patch(model, "alibi"))
    model.save_pretrained(tmp_path)
    auto = AutoModelForSeq2SeqLM if arch in BESIDE_AN_ENCODER else AutoModelForCausalLM
    again = auto.from_pretrained(tmp_path).eval()
    assert torch.equal(states(again), wanted)
    assert torch.equal(states(hf_posenc.unpatch(again)), stock)


@torch.no_grad()
def test_ctrl_keeps_its_buffer():
    model = tiny("ctrl")
    table = model.transformer.pos_encoding
    hf_posenc.patch(model, "alibi")
    assert "pos_encoding" not in dict(model.transformer.named_buffers())
    long = torch.arange(3, 103)[None].repeat(1, 4)
    assert_close(states(model, long)[:, :90], states(model, long[:, :90]), **CLOSE)
    hf_posenc.unpatch(model)
    assert torch.equal(dict(model.transformer.named_buffers())["pos_encoding"], table)
    assert not any("pos_encoding" in name for name in model.state_dict())


def test_what_is_scaled_before_it_meets_its_positions():
    with pytest.raises(ValueError, match="multiplies them by"):
        hf_posenc.patch(tiny("ctrl"), "sinusoidal")


@torch.no_grad()
def test_whisper_has_a_table_under_another_length():
    model = tiny("whisper")
    stock = states(model)
    assert torch.equal(states(hf_posenc.patch(model, "learned")), stock)
    hf_posenc.patch(model, "learned", max_positions=1000)
    assert patch_of(model).backbone.config.max_target_positions == 1000 == hf_posenc.inspect(model).context_length
    assert states(model, torch.arange(3, 103)[None].repeat(1, 9)).shape[1] == 900
    assert patch_of(hf_posenc.unpatch(model)).backbone.config.max_target_positions == 448
