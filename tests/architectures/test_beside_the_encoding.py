"""Families that do more to queries and keys than turn them: temperatures, norms, a rotation the other way round, fewer keys."""

import pytest
import torch
from families import tiny_config, tiny_model
from tiny import off_start
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import hf_posenc
from hf_posenc.architectures import ARCHITECTURES
from hf_posenc.architectures.base import Architecture
from hf_posenc.architectures.mla import MLA
from hf_posenc.architectures.query_scale import Ministral3
from hf_posenc.attention import probe
from hf_posenc.attention.entry import GIVEN
from hf_posenc.attention.hooks import ReadableMask
from hf_posenc.attention.structured import in_blocks
from hf_posenc.patching import Request, apply, patch_of, proof, running

CLOSE = {"atol": 2e-5, "rtol": 2e-4}
IDS = torch.tensor([[5, 9, 2, 40, 17, 8, 33, 21, 4, 11, 61, 7]])


@torch.no_grad()
def logits(model, ids=IDS, **inputs):
    return model(input_ids=ids, **{"use_cache": False} | inputs).logits


@pytest.fixture
def unproven(monkeypatch):
    monkeypatch.setattr(proof, "_proven", set())


def queries_at(model, layer, pos):
    """What reaches the attention function of `layer` where all tokens are one, at `pos`: [H,Q,D]."""
    attention = patch_of(model).attentions[layer]
    with probe.looking() as seen, running.implementation(patch_of(model), probe.NAME):
        logits(model, torch.full((1, len(pos)), 5), position_ids=torch.tensor([pos]))
    return seen[attention].query[0]


# -- temperatures -----------------------------------------------------------------------------------------------------------


def rope_of(original):
    return {"rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": original}


@pytest.mark.parametrize(
    ("model_type", "layer", "formula"),
    [
        ("ministral3", 0, lambda t: 1 + 0.1 * torch.log(1 + torch.floor(t / 4))),
        ("mistral4", 1, lambda t: 1 + 0.1 * torch.log(1 + torch.floor(t / 4))),
        ("beam", -1, lambda t: (1 + (t + 1) / 2048) ** 0.1),
    ],
)
@torch.no_grad()
def test_a_temperature_stays_and_is_all_that_stays(model_type, layer, formula):
    """Without an encoding, queries of one token differ by the temperature of their positions alone."""
    own = tiny_config(model_type).get_text_config().rope_parameters
    model = tiny_model(model_type, rope_parameters=own if model_type == "beam" else own | {"original_max_position_embeddings": 4})
    layer %= len(patch_of(model).attentions)
    hf_posenc.patch(model, "nope", layers="all")
    pos = [0, 3, 4, 9, 40, 5000]
    queries, scale = queries_at(model, layer, pos).double(), formula(torch.tensor(pos, dtype=torch.float64))
    assert_close(queries, queries[:, :1] / scale[0] * scale[:, None], atol=1e-5, rtol=1e-5)


def test_a_temperature_that_is_not_the_familys_is_refused(unproven, monkeypatch):
    class Hotter(Ministral3):
        def query_scale(self, config, layer, pos):
            return super().query_scale(config, layer, pos) ** 2

    for architecture in (Architecture(), Hotter()):
        monkeypatch.setitem(ARCHITECTURES._entries, "ministral3", architecture)
        with pytest.raises(ValueError, match=r"depends on positions|temperature"):
            hf_posenc.patch(tiny_model("ministral3", rope_parameters=rope_of(4)), "alibi")


@torch.no_grad()
def test_another_scheme_leaves_the_temperature(tmp_path):
    """YaRN has an entry of the same name, which must not reach it."""
    model = hf_posenc.patch(tiny_model("ministral3", rope_parameters=rope_of(4)), "yarn", factor=4.0)
    assert model.config.rope_parameters["original_max_position_embeddings"] == 4
    model.save_pretrained(tmp_path)
    assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model), **CLOSE)


@torch.no_grad()
def test_a_factor_of_yarn_that_is_in_the_scale_of_the_products_is_not_in_its_cosines():
    """DeepSeek's two equal `mscale` make the factor on cos and sin 1, and multiply the products of all dimensions by 1.14^2 instead."""
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 8}
    model = tiny_model("deepseek_v3", rope_parameters=yarn | {"mscale": 1.0, "mscale_all_dim": 1.0}, max_position_embeddings=32)
    stock, record = logits(model), patch_of(model)
    assert record.geometry(0).rope_type == "yarn" and record.geometry(0).attention_factor == 1.0
    apply(record, Request("rope", {}, tuple(record.attentions)), native_slot=False)
    assert_close(logits(model), stock, **CLOSE)


# -- norms after the rotation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), [("rerope", {"window": 3}), ("rope", {"partial": 0.5})])
def test_a_rotation_that_would_come_too_late_is_refused(name, options):
    with pytest.raises(ValueError, match="weighs their dimensions between its rotation and its attention"):
        hf_posenc.patch(tiny_model("hunyuan_v1_dense"), name, **options)


@torch.no_grad()
def test_its_own_rotation_can_be_stretched():
    model = hf_posenc.patch(tiny_model("hunyuan_v1_dense"), "yarn", factor=4.0)
    said = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    stock = tiny_model(
        "hunyuan_v1_dense", rope_parameters=said | {"original_max_position_embeddings": model.config.max_position_embeddings // 4}
    )
    stock.load_state_dict(model.state_dict(), strict=False)
    assert_close(logits(model), logits(stock), **CLOSE)


@torch.no_grad()
def test_a_rotation_the_other_way_round():
    """NanoChat turns by -t: as a patched one does whose pairs are told otherwise, it would look ahead."""
    model = tiny_model("nanochat")
    seen = {}
    for name, options in (("rope", {}), ("linear", {"factor": 4.0})):
        apply(patch_of(model), Request(name, options, (0, 1)), native_slot=False)
        seen[name] = logits(model)
        hf_posenc.unpatch(model)
        hf_posenc.patch(model, name, **options)
        assert hf_posenc.inspect(model).encodings[0].place == "in the native slot"
        assert_close(seen[name], logits(model), **CLOSE)
        hf_posenc.unpatch(model)
    assert not torch.allclose(seen["rope"], seen["linear"])


# -- heads that differ by layer -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_each_layer_has_slopes_for_its_own_heads():
    """Against the stock model, each attention of which is handed a mask of numbers of its own."""
    heads = [2, 4]
    types = ["full_attention", "full_attention"]
    model = tiny_model("laguna", num_hidden_layers=2, num_attention_heads_per_layer=heads, layer_types=types, mlp_layer_types=["dense"] * 2)
    attentions = patch_of(model).attentions
    assert [attentions[i].num_heads for i in (0, 1)] == heads
    hf_posenc.patch(model, "alibi", layers="all")
    alibi = logits(model)
    assert [e.layers for e in hf_posenc.inspect(model).encodings] == [(0,), (1,)]
    hf_posenc.patch(model, "nope", layers="all")

    def biased(attention, args, kwargs):
        pos = torch.arange(IDS.shape[1])
        slopes = torch.tensor([2.0 ** (-8 * (h + 1) / attention.num_heads) for h in range(attention.num_heads)])
        bias = -slopes[:, None, None] * (pos[:, None] - pos)
        return args, kwargs | {"attention_mask": bias.masked_fill(pos > pos[:, None], -1e30)[None]}

    for attention in attentions.values():
        attention.register_forward_pre_hook(biased, with_kwargs=True)
    assert_close(alibi, logits(model), **CLOSE)


def test_heads_that_are_said_wrongly_are_refused(unproven, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES._entries, "mimo_v2_flash", Architecture())
    with pytest.raises(ValueError, match=r"is said to have .* key-value heads"):
        hf_posenc.patch(tiny_model("mimo_v2_flash"), "alibi", layers="all")


# -- attentions that choose their keys ------------------------------------------------------------------------------------------


FEW = {
    "deepseek_v32": "index_topk",
    "glm_moe_dsa": "index_topk",
    "axk2": "index_topk",
    "dots3_note_text": "index_topk",
    "doge": "keep_window_size",
}


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", FEW)
@torch.no_grad()
def test_chosen_keys_are_those_of_the_stock_model(model_type, backend):
    """The choice is made by the rotation that the family was trained with, whatever acts in its attention; other layers keep theirs."""
    model = tiny_model(model_type, **{FEW[model_type]: 4})
    model.set_attn_implementation(backend)
    stock, layers = logits(model), tuple(patch_of(model).attentions)
    wide = tiny_model(model_type, **{FEW[model_type]: 64})
    assert not torch.allclose(stock, logits(wide))
    for chosen in (layers, layers[:1]):
        apply(patch_of(model), Request("rope", {}, chosen), native_slot=False)
        assert_close(logits(model), stock, **CLOSE)
        hf_posenc.unpatch(model)
    assert torch.equal(logits(model), stock)


@pytest.mark.parametrize("model_type", FEW)
@torch.no_grad()
def test_without_an_encoding_keys_are_chosen_as_beside_a_bias(model_type):
    """One of zeros, in the attention function."""
    model = tiny_model(model_type, **{FEW[model_type]: 4})
    record = patch_of(model)
    for layers in (tuple(record.attentions), (0,)):
        zeros = {i: proof.NoBias(record.geometry(i)) for i in layers}
        with running.having(record, proof._placements(record, zeros)):
            wanted = logits(model)
        assert_close(logits(hf_posenc.patch(model, "nope", layers=layers)), wanted, **CLOSE)
        hf_posenc.unpatch(model)


def test_a_mask_in_blocks_is_written_down_for_those_who_read_it():
    """As the masks of transformers are kept on an accelerator; Doge takes one in blocks for none."""
    padding = torch.ones(1, 130).index_fill(1, torch.tensor([0]), 0)
    mask = in_blocks(1, 130, 130, attention_mask=padding)
    model = hf_posenc.patch(tiny_model("doge"), "alibi", layers=[0])
    for attention in patch_of(model).attentions.values():  # those without an encoding too
        hook = next(hook for hook in attention._forward_pre_hooks.values() if isinstance(hook, ReadableMask))
        arguments = hook(attention, (None, None, mask), {})[1]
        assert arguments[GIVEN] is mask
        assert torch.equal(arguments["attention_mask"][0, 0], torch.ones(130, 130).tril().bool() & padding.bool())


@torch.no_grad()
def decoded(model):
    first = model(input_ids=IDS[:, :7], use_cache=True)
    parts, cache = [first.logits], first.cache
    for at in range(7, IDS.shape[1]):
        parts.append(model(input_ids=IDS[:, at : at + 1], cache=cache, use_cache=True).logits)
    return torch.cat(parts, 1)


@pytest.mark.parametrize(("name", "options"), [("rope", {}), ("rerope", {"window": 64})])
@pytest.mark.parametrize("model_type", FEW)
def test_chosen_keys_are_where_they_are_when_decoding(model_type, name, options):
    """A mask with holes says nothing of positions."""
    model = tiny_model(model_type, **{FEW[model_type]: 4})
    stock = decoded(model)
    apply(patch_of(model), Request(name, options, tuple(patch_of(model).attentions)), native_slot=False)
    assert_close(decoded(model), stock, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["alibi", "t5", "rope"])
@pytest.mark.parametrize(("model_type", "few"), [("doge", {"keep_window_size": 4}), ("glm5_next", {"index_topk": 4, "index_kpool": 4})])
def test_encodings_of_chosen_keys_when_decoding(model_type, few, name):
    model = tiny_model(model_type, **few)
    apply(patch_of(model), Request(name, {}, tuple(patch_of(model).attentions)), native_slot=False)
    assert_close(decoded(model), logits(model), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["cable", "carope"])
@torch.no_grad()
def test_sums_along_the_text_are_over_keys_that_were_not_chosen_too(name):
    model = tiny_model("doge", keep_window_size=4)
    apply(patch_of(model), Request(name, {}, tuple(patch_of(model).attentions)), native_slot=False)
    off_start(model)
    assert_close(decoded(model), logits(model), atol=1e-3, rtol=1e-3)


# -- latents in the cache -----------------------------------------------------------------------------------------------------


def test_a_cache_that_holds_something_else_is_seen(unproven, monkeypatch):
    class CachedAsTheyAre(MLA):
        caches_keys = True

    monkeypatch.setitem(ARCHITECTURES._entries, "deepseek_v3", CachedAsTheyAre())
    with pytest.raises(ValueError, match=r"KV cache does not hold the keys|a trial"):
        hf_posenc.patch(tiny_model("deepseek_v3"), "alibi")


# -- no positions ---------------------------------------------------------------------------------------------------------------


WITHOUT = {"granitemoehybrid": {"position_embedding_type": None}, "zamba2": {"use_mem_rope": False}}


@pytest.mark.parametrize("model_type", ["jamba", "nemotron_h", "zamba", "kimi_linear", *WITHOUT])
@torch.no_grad()
def test_without_positions_there_is_nothing_to_take_out(model_type):
    model = tiny_model(model_type, **WITHOUT.get(model_type, {}))
    with pytest.raises(ValueError, match="no positions by design: the patch would have no effect"):
        hf_posenc.patch(model, "nope")
    with pytest.raises(ValueError, match="by design: there is no rotation that 'yarn' could stretch"):
        hf_posenc.patch(model, "yarn", factor=4.0)
    geometry = patch_of(model).geometry(next(iter(patch_of(model).attentions)))
    assert (geometry.theta, geometry.rotary_dim) == (1e4, geometry.head_dim)
    hf_posenc.patch(model, "rope")
    assert hf_posenc.inspect(model).encodings[0].layers == tuple(patch_of(model).attentions)
    assert not hf_posenc.inspect(model).stock_checkpoint


@pytest.mark.parametrize(("model_type", "changes"), [("granitemoehybrid", {}), ("zamba2", {"use_mem_rope": True})])
@torch.no_grad()
def test_families_that_may_have_a_rotation(model_type, changes, tmp_path):
    model = tiny_model(model_type, **changes)
    stock = logits(model)
    apply(patch_of(model), Request("rope", {}, tuple(patch_of(model).attentions)), native_slot=False)
    assert_close(logits(model), stock, **CLOSE)
    hf_posenc.patch(model, "yarn", factor=4.0)
    assert hf_posenc.inspect(model).stock_checkpoint
    model.save_pretrained(tmp_path)
    assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model), **CLOSE)
