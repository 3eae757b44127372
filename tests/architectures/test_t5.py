"""T5 and its kin: a learned bias by buckets of distances, and a decoder beside an encoder."""

import pytest
import torch
from families import tiny_model
from torch.testing import assert_close
from transformers import AutoModelForSeq2SeqLM, T5EncoderModel

import hf_posenc
from hf_posenc.patching import patch_of

CLOSE = {"atol": 5e-5, "rtol": 5e-4}
TEXT = torch.arange(3, 12)[None]
IDS = torch.tensor([[5, 9, 2, 40, 17, 8, 33, 21, 4, 11]])
every_type = pytest.mark.parametrize("arch", ["t5", "umt5", *(pytest.param(a, marks=pytest.mark.slow) for a in ("mt5", "longt5"))])


def tiny(arch):
    model = tiny_model(arch, seq2seq=True)
    with torch.no_grad():
        for table in tables(model):
            table.weight.normal_()
        for parameter in (p for n, p in model.named_parameters() if n.endswith((".q.weight", ".k.weight"))):
            parameter.mul_(0.3)  # T5 does not divide its scores, and what is random would leave the softmax one-hot
    return model


def tables(model):
    found = (block.layer[0].SelfAttention for block in model.get_decoder().block)
    return [attention.relative_attention_bias for attention in found if attention.has_relative_attention_bias]


def without_bias(arch):
    model = tiny(arch)
    with torch.no_grad():
        for table in tables(model):
            table.weight.zero_()
    return model


def use(model, backend):
    if backend == "sdpa" and not model._supports_sdpa:
        pytest.skip("a family of eager attention alone")
    model.set_attn_implementation(backend)


def logits(model, ids=IDS, **more):
    return model(input_ids=TEXT.expand(len(ids), -1), decoder_input_ids=ids, use_cache=False, **more).logits


def alibi(heads):
    steps = torch.arange(IDS.shape[1])
    slopes = torch.tensor([2 ** (-8 * (i + 1) / heads) for i in range(heads)])
    return -slopes[:, None, None] * (steps[:, None] - steps[None])


@every_type
@torch.no_grad()
def test_its_own_buckets_in_the_attention_function_are_the_stock_model(arch):
    model = tiny(arch)
    stock = logits(model)
    for name in ("nope", "t5"):
        hf_posenc.patch(model, name)
        same = name == "t5" and arch != "umt5"  # each layer of which has buckets of its own
        assert (logits(model) - stock).abs().max() < 1e-4 if same else (logits(model) - stock).abs().max() > 0.05
    assert torch.equal(logits(hf_posenc.unpatch(model)), stock)
    hf_posenc.patch(model, "t5", layers=[0])  # the rest hand the native bias on
    assert (torch.allclose(logits(model), stock, atol=1e-4)) == (arch != "umt5")


@every_type
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@torch.no_grad()
def test_no_positions_and_alibi_are_what_they_say(arch, backend):
    model, bare = tiny(arch), without_bias(arch)
    use(model, backend)
    assert_close(logits(hf_posenc.patch(model, "nope")), logits(bare), **CLOSE)
    bias = alibi(patch_of(model).geometry(None).num_heads)
    hidden = torch.ones_like(bias[0]).triu(1).bool()
    bare.set_attn_implementation("eager")
    wanted = logits(bare, decoder_attention_mask=bias.masked_fill(hidden, torch.finfo(torch.float32).min)[None])
    assert (wanted - logits(bare)).abs().max() > 5e-3
    assert_close(logits(hf_posenc.patch(model, "alibi")), wanted, **CLOSE)


class Instead:
    """In the place of what the attention of one layer computes, or before what it is handed: another bias."""

    def __init__(self, bias):
        self.bias = bias

    def __call__(self, *_, **__):
        return self.bias

    def before(self, module, args, kwargs):
        return args, kwargs | {"position_bias": self.bias}


@every_type
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@torch.no_grad()
def test_a_layer_alone_leaves_the_others_their_bias(arch, backend):
    model, other = tiny(arch), tiny(arch)
    use(model, backend)
    hf_posenc.patch(model, "alibi", layers=-1)
    last = other.get_decoder().block[-1].layer[0].SelfAttention
    instead = Instead(alibi(last.n_heads)[None])
    if arch == "umt5":
        last.compute_bias = instead
    else:
        last.register_forward_pre_hook(instead.before, with_kwargs=True)
    assert_close(logits(model), logits(other), **CLOSE)
    with pytest.raises(ValueError, match="cannot be limited"):
        hf_posenc.patch(tiny(arch), "nope", layers=-1)


@every_type
@pytest.mark.parametrize("name", ["alibi", "rope", "t5", "learned"])
@torch.no_grad()
def test_decoding_padding_and_saving(arch, name, tmp_path):
    model = hf_posenc.patch(tiny(arch), name)
    whole = logits(model)
    padded = torch.cat((torch.zeros(1, 3, dtype=torch.long), IDS), 1)
    mask = torch.cat((torch.zeros(1, 3, dtype=torch.long), torch.ones_like(IDS)), 1)
    assert_close(logits(model, padded, decoder_attention_mask=mask)[:, 3:], whole, **CLOSE)
    first = model(input_ids=TEXT, decoder_input_ids=IDS[:, :6], use_cache=True)
    steps, cache = [first.logits], first.cache
    for at in range(6, IDS.shape[1]):
        steps.append(model(input_ids=TEXT, decoder_input_ids=IDS[:, at : at + 1], cache=cache, use_cache=True).logits)
    assert_close(torch.cat(steps, 1), whole, **CLOSE)
    model.save_pretrained(tmp_path)
    assert_close(logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()), whole, atol=0, rtol=0)


def test_an_encoder_is_refused():
    with pytest.raises(ValueError, match="sees both ways"):
        hf_posenc.patch(T5EncoderModel(tiny("t5").config), "alibi")


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@torch.no_grad()
def test_cross_attention_sees_the_whole_text(backend):
    """Of another family, which has a table: no mask at all means both ways there, not one."""
    model, bare = tiny_model("bart", seq2seq=True), tiny_model("bart", seq2seq=True)
    model.set_attn_implementation(backend)
    bare.set_attn_implementation("eager")
    bare.get_decoder().embed_positions.weight.zero_()
    bias = alibi(patch_of(model).geometry(None).num_heads)
    hidden = torch.ones_like(bias[0]).triu(1).bool()
    wanted = logits(bare, decoder_attention_mask=bias.masked_fill(hidden, torch.finfo(torch.float32).min)[None])
    assert_close(logits(hf_posenc.patch(model, "alibi")), wanted, **CLOSE)
