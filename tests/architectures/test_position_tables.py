"""GPT-2 and OPT: a learned position table that feeds the embeddings of all layers."""

import pytest
import torch
from tiny import NATIVE, tiny_model
from torch.testing import assert_close

import hf_posenc
from hf_posenc.patching import patch_of

CLOSE = {"atol": 2e-5, "rtol": 2e-4}
both = pytest.mark.parametrize("arch", ["gpt2", "opt"])


def table(model):
    return model.transformer.wpe.weight if model.config.model_type == "gpt2" else model.model.decoder.embed_positions.weight[2:]


@both
@torch.no_grad()
def test_learned_keeps_the_table(arch, batch):
    short = {k: v[:, 5:] for k, v in batch.items()}
    model = tiny_model(arch)
    positions = {"position_ids": (short["attention_mask"].cumsum(-1) - 1).clamp(min=0)}
    stock = model(**short, **positions).logits
    hf_posenc.patch(model, "learned")
    assert torch.equal(model(**short, **positions).logits, stock)
    hf_posenc.patch(model, "learned", max_positions=40)
    ends = table(tiny_model(arch))[[0, -1]]
    assert_close(table(model)[[0, -1]], ends)
    assert len(table(model)) == model.config.max_position_embeddings == 40
    assert len(table(hf_posenc.unpatch(model))) == model.config.max_position_embeddings == NATIVE


@both
@torch.no_grad()
def test_a_shorter_table_is_the_front_of_the_longer(arch):
    model = hf_posenc.patch(tiny_model(arch), "learned", max_positions=7)
    assert torch.equal(table(model), table(tiny_model(arch))[:7])
    with pytest.raises(ValueError, match="past the learned table of 7"):
        model(torch.ones(1, 8, dtype=torch.long))


@both
@torch.no_grad()
def test_table_out_of_the_model_is_out_of_the_checkpoint(arch):
    model = hf_posenc.patch(tiny_model(arch), "alibi")
    assert not any("wpe" in k or "embed_positions" in k for k in model.state_dict())
    model(torch.ones(1, 3 * NATIVE, dtype=torch.long))  # ALiBi knows no end


@both
def test_nope_on_some_layers_is_impossible(arch):
    model = tiny_model(arch)
    with pytest.raises(ValueError, match="feeds every layer"):
        hf_posenc.patch(model, "nope", layers=1)
    hf_posenc.patch(model, "nope", layers="all")
    hf_posenc.patch(model, "rope", layers=1)
    assert [e.name for e in hf_posenc.inspect(model).encodings] == ["rope"]


@both
@torch.no_grad()
def test_bare_forward_with_left_padding_is_right(arch, batch):
    """Stock GPT-2 counts padding as positions; a patched one does not, whatever the encoding."""
    pad = 5
    model = hf_posenc.patch(tiny_model(arch), "learned", max_positions=20)
    assert_close(model(**batch).logits[0, pad:], model(batch["input_ids"][:1, pad:]).logits[0], **CLOSE)


@both
def test_a_growing_table_trains(arch):
    model = hf_posenc.patch(tiny_model(arch), "learned", max_positions=40)
    ids = torch.randint(3, 60, (2, 30))
    model(ids, labels=ids).loss.backward()
    parameter = dict(model.named_parameters())["transformer.wpe.weight" if arch == "gpt2" else "model.decoder.embed_positions.weight"]
    used = parameter.grad.abs().sum(-1)[2 if arch == "opt" else 0 :] > 0
    assert used.tolist() == [True] * 29 + [False] * 11  # the last token predicts nothing


@both
def test_ropes_that_scale_count_from_the_table(arch):
    model = hf_posenc.patch(tiny_model(arch), "yarn", target_length=36)
    assert patch_of(model).placements[0].encoding.factor == 3.0
    assert model.config.max_position_embeddings == 36


def test_gpt2_variants_that_bypass_the_interface_are_refused():
    with pytest.raises(ValueError, match="reorder_and_upcast_attn"):
        hf_posenc.patch(tiny_model("gpt2", reorder_and_upcast_attn=True), "alibi")
    with pytest.raises(ValueError, match="cross-attention"):
        hf_posenc.patch(tiny_model("gpt2", add_cross_attention=True), "alibi")


@torch.no_grad()
def test_gpt2_scales_its_scores_by_layer(batch):
    """`scale_attn_by_inverse_layer_idx` reaches the attention function as `scaling`, and must not be dropped there."""
    model = tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True)
    for name in ("alibi", "rope", "rerope"):
        hf_posenc.patch(model, name)
        logits = model(**batch).logits[batch["attention_mask"].bool()]
        model.set_attn_implementation("eager")
        assert_close(model(**batch).logits[batch["attention_mask"].bool()], logits, **CLOSE)
        model.set_attn_implementation("sdpa")
    plain = hf_posenc.patch(tiny_model("gpt2"), "alibi")
    assert not torch.allclose(plain(**batch).logits, hf_posenc.patch(model, "alibi")(**batch).logits)


@torch.no_grad()
def test_opt_with_projected_embeddings(batch):
    model = tiny_model("opt", word_embed_proj_dim=32)
    with pytest.raises(ValueError, match="projects them from 32 to 64 dimensions first"):
        hf_posenc.patch(model, "sinusoidal")
    hf_posenc.patch(model, "learned", max_positions=20)(**batch)  # the model's own table sits after the projection
    pad = 5
    for name in ("alibi", "rope"):
        hf_posenc.patch(model, name)
        assert_close(model(**batch).logits[0, pad:], model(batch["input_ids"][:1, pad:]).logits[0], **CLOSE)
