"""Decoders like Bart's and like BERT: a table elsewhere, looked up by a count of the model's own, from behind padding, or computed."""

import math

import pytest
import torch
from families import tiny_model
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel

import hf_posenc
from hf_posenc.architectures import ARCHITECTURES
from hf_posenc.patching import patch_of

CLOSE = {"atol": 5e-5, "rtol": 5e-4}
KINDS = ["bart", "biogpt", "marian", "bert", "roberta", "electra", "gpt_bigcode"]
MORE = ["mbart", "plbart", "blenderbot", "blenderbot-small", "bigbird_pegasus", "pegasus", "bert-generation", "ernie", "roc_bert"]
MORE += ["camembert", "data2vec-text", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"]
every_type = pytest.mark.parametrize("arch", KINDS + [pytest.param(arch, marks=pytest.mark.slow) for arch in MORE])
IDS = torch.tensor([[5, 9, 2, 40, 17, 8, 33, 21, 4, 11, 60, 7]])


class Nothing(nn.Module):
    """A table of zeros, written for this test."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, *args, **kwargs):
        return self.table(*args, **kwargs) * 0


def without_table(arch):
    """A stock model whose table says nothing."""
    model = tiny_model(arch)
    owner, name = {
        "gpt_bigcode": (model.base_model, "wpe"),
        "biogpt": (model.base_model, "embed_positions"),
    }.get(arch) or (
        (model.base_model.decoder, "embed_positions")
        if hasattr(model.base_model, "decoder")
        else (model.base_model.embeddings, "position_embeddings")
    )
    setattr(owner, name, Nothing(getattr(owner, name)))
    return model


def slopes(heads):
    """Of ALiBi, for a power of two (Press et al., 2021)."""
    return torch.tensor([2 ** (-8 * (i + 1) / heads) for i in range(heads)], dtype=torch.float64)


@every_type
@torch.no_grad()
def test_no_positions_and_alibi_are_what_they_say(arch):
    model, bare = tiny_model(arch), without_table(arch)
    stock = model(IDS).logits
    assert_close(hf_posenc.patch(model, "nope")(IDS).logits, bare(IDS).logits, **CLOSE)
    heads = patch_of(model).geometry(None).num_heads
    assert math.log2(heads).is_integer()
    steps = torch.arange(IDS.shape[1])
    distance = steps[:, None] - steps[None]
    mask = (-slopes(heads)[:, None, None] * distance).masked_fill(distance < 0, torch.finfo(torch.float32).min)[None].float()
    bare.set_attn_implementation("eager")
    wanted = bare(IDS, attention_mask=mask).logits
    assert (wanted - stock).abs().max() > 0.1
    assert_close(hf_posenc.patch(model, "alibi")(IDS).logits, wanted, **CLOSE)
    assert torch.equal(hf_posenc.unpatch(model)(IDS).logits, stock)


@every_type
@pytest.mark.parametrize("name", ["learned", "alibi", "rope"])
@torch.no_grad()
def test_padding_on_the_left_is_invisible_and_decoding_is_a_forward_pass(arch, name):
    model = hf_posenc.patch(tiny_model(arch), name)
    whole = model(IDS, use_cache=False).logits
    padded = torch.cat((torch.full((1, 3), model.config.pad_token_id or 0), IDS), 1)
    mask = torch.cat((torch.zeros(1, 3, dtype=torch.long), torch.ones_like(IDS)), 1)
    assert_close(model(padded, attention_mask=mask, use_cache=False).logits[:, 3:], whole, **CLOSE)
    first = model(IDS[:, :7], use_cache=True)
    steps, cache = [first.logits], first.cache
    for at in range(7, IDS.shape[1]):
        steps.append(model(IDS[:, at : at + 1], cache=cache, use_cache=True).logits)
    assert_close(torch.cat(steps, 1), whole, **CLOSE)


@every_type
@torch.no_grad()
def test_learned_is_the_table_that_the_model_has(arch):
    model = tiny_model(arch)
    stock = model(IDS).logits
    hf_posenc.patch(model, "learned")
    if arch in ("marian", "pegasus"):  # which has none that was learned
        assert not torch.allclose(model(IDS).logits, stock, atol=0.1)
    else:
        assert torch.equal(model(IDS).logits, stock)
        length = patch_of(model).geometry(None).max_positions
        hf_posenc.patch(model, "learned", max_positions=2 * length)
        assert hf_posenc.inspect(model).context_length == 2 * length
    assert torch.equal(hf_posenc.unpatch(model)(IDS).logits, stock)


@every_type
def test_saved_and_trained(arch, tmp_path):
    for name in ("alibi", "learned"):
        model = hf_posenc.patch(tiny_model(arch), name)
        with torch.no_grad():
            logits = model(IDS).logits
        model.save_pretrained(tmp_path / name)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()
        with torch.no_grad():
            assert_close(again(IDS).logits, logits, atol=0, rtol=0)
        again(IDS, labels=IDS).loss.backward()
        unused = ("pooler", "crossattention", "encoder_attn", "shape_embed", "pronunciation_embed", "map_inputs_layer", "enlarged")
        used = {n: p for n, p in again.named_parameters() if p.requires_grad and not any(x in n for x in unused)}
        assert not [n for n, p in used.items() if p.grad is None]


@pytest.mark.parametrize("arch", ["marian", "pegasus"])
@torch.no_grad()
def test_a_computed_table_comes_back_without_a_checkpoint_that_holds_it(arch, tmp_path):
    model = tiny_model(arch)
    table = model.base_model.decoder.embed_positions
    table.weight.copy_(table.create_weight())
    stock = model(IDS).logits
    hf_posenc.patch(model, "alibi").save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(hf_posenc.unpatch(again)(IDS).logits, stock)


@torch.no_grad()
def test_roberta_counts_from_behind_the_rows_of_padding():
    """Position ids that the caller gives are rows of its table; those that are counted are not."""
    model = tiny_model("roberta")
    rows = torch.arange(IDS.shape[1])[None] + 2
    stock, shifted = model(IDS).logits, model(IDS, position_ids=rows + 3).logits
    assert torch.equal(model(IDS, position_ids=rows).logits, stock)
    hf_posenc.patch(model, "learned")
    assert torch.equal(model(IDS).logits, stock)
    assert torch.equal(model(IDS, position_ids=rows + 3).logits, shifted)
    last = model.config.max_position_embeddings - 2
    with pytest.raises(ValueError, match=f"past the learned table of {last} positions"):
        model(torch.ones(1, last + 1, dtype=torch.long) * 5)
    hf_posenc.patch(model, "lm_infinite", window=4, sinks=1)
    assert_close(model(IDS).logits, hf_posenc.patch(without_padding_rows(model), "lm_infinite", window=4, sinks=1)(IDS).logits, **CLOSE)


def without_padding_rows(roberta):
    """The same weights as BERT, which counts from 0."""
    bert = BertLMHeadModel(BertConfig(**{k: v for k, v in roberta.config.to_dict().items() if k in vars(BertConfig())})).eval()
    bert.bert.load_state_dict(hf_posenc.unpatch(roberta).roberta.state_dict())
    bert.cls = roberta.lm_head
    hf_posenc.patch(roberta, "lm_infinite", window=4, sinks=1)
    return bert


@pytest.mark.parametrize("arch", ["bert", "roberta"])
@torch.no_grad()
def test_past_the_context(arch):
    """Where a model looks up its token types by position."""
    model = hf_posenc.patch(tiny_model(arch, max_position_embeddings=16), "alibi")
    long = torch.arange(3, 43)[None]
    assert model(long).logits.shape[1] == 40
    assert_close(model(long).logits[:, :12], model(long[:, :12]).logits, **CLOSE)


def test_a_model_that_sees_both_ways_is_refused():
    with pytest.raises(ValueError, match=r"sees both ways.*is_decoder=True"):
        hf_posenc.patch(tiny_model("bert", is_decoder=False), "alibi")


def test_embeddings_that_are_changed_before_positions_are_added(monkeypatch):
    with pytest.raises(ValueError, match="normalises them"):
        hf_posenc.patch(tiny_model("blenderbot-small"), "sinusoidal")
    scaled = tiny_model("marian")
    scaled.base_model.decoder.embed_scale = 8.0
    with pytest.raises(ValueError, match="multiplies them by 8 afterwards"):
        hf_posenc.patch(scaled, "sinusoidal")
    with pytest.raises(ValueError, match="with shapes and sounds beside them"):
        hf_posenc.patch(tiny_model("roc_bert"), "sinusoidal")
    for arch in ("roc_bert", "blenderbot-small"):  # and if nobody knew
        monkeypatch.setattr(type(ARCHITECTURES[arch]), "check_encoding", lambda *_: None)
        with pytest.raises(ValueError, match="does something else to them before it adds its own"):
            hf_posenc.patch(tiny_model(arch), "sinusoidal")


@torch.no_grad()
def test_electra_adds_positions_before_it_widens_the_embeddings():
    model = tiny_model("electra")
    x = model.get_input_embeddings()(IDS)
    assert x.shape[-1] == model.config.embedding_size < model.config.hidden_size
    t, k = torch.arange(IDS.shape[1])[:, None], torch.arange(0, x.shape[-1], 2)
    angle = t / 10_000 ** (k / x.shape[-1])
    wave = torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)
    wanted = without_table("electra")(inputs_embeds=x + wave).logits
    assert_close(hf_posenc.patch(model, "sinusoidal")(IDS).logits, wanted, **CLOSE)


@torch.no_grad()
def test_multi_query_has_one_key_head():
    assert patch_of(tiny_model("gpt_bigcode")).geometry(None).num_kv_heads == 1
