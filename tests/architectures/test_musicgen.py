"""MusicGen: the decoder of a composite, with several codes a token and a table of sinusoids."""

import pytest
import torch
from families import sharpen
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForTextToWaveform, EncodecConfig, MusicgenConfig, MusicgenForConditionalGeneration, T5Config

import hf_posenc
from hf_posenc.patching import patch_of
from hf_posenc.patching.twin import small

CLOSE = {"atol": 5e-5, "rtol": 5e-4}
CODES = torch.arange(3, 14) + torch.arange(4)[:, None]  # of one text, in four codebooks


def tiny():
    torch.manual_seed(0)
    sound = EncodecConfig(num_filters=4, hidden_size=16, codebook_dim=16, codebook_size=64, num_lstm_layers=1)
    parts = {"text_encoder": small(T5Config(num_layers=2)), "decoder": small(AutoConfig.for_model("musicgen_decoder", num_hidden_layers=2))}
    config = MusicgenConfig(audio_encoder=sound.to_dict(), **{name: part.to_dict() for name, part in parts.items()})
    model = MusicgenForConditionalGeneration(config).eval()
    sharpen(model)
    return model


def logits(model, codes=CODES, **more):
    return model(input_ids=torch.arange(3, 9)[None], decoder_input_ids=codes, use_cache=False, **more).logits


class Times0:
    """After a table has been looked up: nothing of it."""

    def __call__(self, module, args, rows):
        return rows * 0


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@torch.no_grad()
def test_no_positions_and_alibi_are_what_they_say(backend):
    model, bare = tiny(), tiny()
    stock = logits(model)
    patch_of(bare).backbone.embed_positions.register_forward_hook(Times0())
    model.decoder.set_attn_implementation(backend)
    assert_close(logits(hf_posenc.patch(model, "nope")), logits(bare), **CLOSE)
    heads, steps = patch_of(model).geometry(0).num_heads, torch.arange(CODES.shape[1])
    bias = -(2 ** (-8 * (torch.arange(heads) + 1) / heads))[:, None, None] * (steps[:, None] - steps[None])
    bias = bias.masked_fill(torch.ones_like(bias[0]).triu(1).bool(), torch.finfo(torch.float32).min)
    bare.decoder.set_attn_implementation("eager")
    wanted = logits(bare, decoder_attention_mask=bias[None])
    assert (wanted - stock).abs().max() > 0.1
    assert_close(logits(hf_posenc.patch(model, "alibi")), wanted, **CLOSE)
    model.decoder.set_attn_implementation("sdpa")
    assert torch.equal(logits(hf_posenc.unpatch(model)), stock)


@torch.no_grad()
def test_decoding_padding_and_saving(tmp_path):
    model = hf_posenc.patch(tiny(), "rope")
    decoder, whole = patch_of(model).backbone, logits(model)
    states = decoder(CODES, use_cache=False).last_hidden_state
    padded = torch.cat((torch.ones(4, 3, dtype=torch.long), CODES), 1)
    mask = torch.cat((torch.zeros(1, 3, dtype=torch.long), torch.ones_like(CODES[:1])), 1)
    assert_close(decoder(padded, attention_mask=mask, use_cache=False).last_hidden_state[:, 3:], states, **CLOSE)
    first = decoder(CODES[:, :6], use_cache=True)
    steps, cache = [first.last_hidden_state], first.cache
    for at in range(6, CODES.shape[1]):
        steps.append(decoder(CODES[:, at : at + 1], cache=cache, use_cache=True).last_hidden_state)
    assert_close(torch.cat(steps, 1), states, **CLOSE)
    model.save_pretrained(tmp_path)
    again = AutoModelForTextToWaveform.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), whole)
    assert torch.equal(logits(hf_posenc.unpatch(again)), logits(tiny()))


def test_no_encoding_of_the_embeddings():
    with pytest.raises(ValueError, match="of which this model has several"):
        hf_posenc.patch(tiny(), "learned")
