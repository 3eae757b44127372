"""Models around a decoder of text: the decoder is patched, all else stays as it was."""

import copy
import json

import pytest
import torch
from families import image_text_types, model_class, seq2seq_types, tiny_config, tiny_model
from tiny import save_tiny
from torch import nn
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput

import hf_posenc
from hf_posenc.patching import patch_of
from hf_posenc.patching.twin import sharpen

CLOSE = {"atol": 5e-5, "rtol": 2e-4}
AUTO = {
    "llava": AutoModelForImageTextToText,
    "qwen2_vl": AutoModelForImageTextToText,
    "gemma3": AutoModelForImageTextToText,
    "smolvlm": AutoModelForImageTextToText,
    "qwen2_audio": AutoModelForMultimodalLM,
    "bart": AutoModelForSeq2SeqLM,
    "marian": AutoModelForSeq2SeqLM,
    "t5gemma": AutoModelForSeq2SeqLM,
}
FIRST = ("llava", "qwen2_vl", "bart")
each = pytest.mark.parametrize("kind", [kind if kind in FIRST else pytest.param(kind, marks=pytest.mark.slow) for kind in AUTO])
IDS = torch.tensor([[5, 9, 2, 40, 17, 8, 33, 21, 4, 11], [7, 3, 19, 60, 41, 6, 15, 28, 30, 12]])
SOURCE = torch.tensor([[25, 29, 22, 40, 47], [37, 33, 39, 60, 41]])


def config_of(kind):
    config = tiny_config(kind)
    if kind == "qwen2_vl":
        config.vision_config.hidden_size = config.text_config.hidden_size
        config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id = 100, 101, 102, 103
    return config


def build(kind, config=None, **kwargs):
    torch.manual_seed(0)
    model = model_class(kind, AUTO[kind] is AutoModelForSeq2SeqLM)._from_config(config or config_of(kind), **kwargs).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("encoder.embed_positions" not in name)  # a table that marian computes and never saves
    kept = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    sharpen(model)
    with torch.no_grad():
        for name, value in kept.items():
            model.get_parameter(name).copy_(value)
    return model


def inputs(model, ids=IDS, **more):
    return {"input_ids": SOURCE, "decoder_input_ids": ids, **more} if model.config.is_encoder_decoder else {"input_ids": ids, **more}


def decoder_in(model):
    return patch_of(model).backbone


def towers(model):
    """The models within the model that are neither its decoder nor around it."""
    decoder = decoder_in(model)
    inner = [m for m in model.modules() if isinstance(m, PreTrainedModel) and decoder not in list(m.modules())]
    return [m for m in inner if m not in list(decoder.modules())]


def heads_of(model):
    return patch_of(model).geometry(0).num_heads


class Still(nn.Module):
    """A rotary module whose rotation is none."""

    def __init__(self, rotary):
        super().__init__()
        self.rotary = rotary

    def forward(self, *args, **kwargs):
        cos, sin = self.rotary(*args, **kwargs)
        return torch.ones_like(cos), torch.zeros_like(sin)


def without_positions(model):
    """The stock model with its own encoding taken out by hand."""
    decoder = model.get_decoder()
    if hasattr(decoder, "rotary_emb"):
        decoder.rotary_emb = Still(decoder.rotary_emb)
    else:
        nn.init.zeros_(decoder.embed_positions.weight)
    return model


def alibi_mask(heads, pos):
    """[1,H,Q,Q] of what ALiBi adds, and of the future."""
    slopes = torch.tensor([2.0 ** (-8 * (h + 1) / heads) for h in range(heads)])
    distance = (pos[:, None] - pos[None]).float()
    ahead = torch.ones(len(pos), len(pos), dtype=torch.bool).triu(1)
    return (-slopes[:, None, None] * distance).masked_fill(ahead, torch.finfo(torch.float32).min)[None]


# -- the right numbers ------------------------------------------------------------------------------------------------


@each
@torch.no_grad()
def test_alibi_is_a_mask_of_numbers_on_the_decoder(kind):
    model, stock = build(kind), without_positions(build(kind, attn_implementation="eager"))
    heads = heads_of(model)
    hf_posenc.patch(model, "alibi", layers="all")
    mask = "decoder_attention_mask" if model.config.is_encoder_decoder else "attention_mask"
    expected = stock(**inputs(stock, **{mask: alibi_mask(heads, torch.arange(10))})).logits
    assert_close(model(**inputs(model)).logits, expected, **CLOSE)


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "gemma3"])
@pytest.mark.parametrize(("name", "options"), [("rerope", {"window": 3}), ("yarn", {"factor": 4.0})])
@torch.no_grad()
def test_as_the_decoder_patched_on_its_own(kind, name, options):
    model = build(kind)
    alone = hf_posenc.patch(copy.deepcopy(decoder_in(model)), name, **options)
    hf_posenc.patch(model, name, **options)
    assert_close(model(**inputs(model)).logits, model.lm_head(alone(IDS)[0]), **CLOSE)


@each
@torch.no_grad()
def test_all_else_is_untouched_and_unpatch_gives_it_back(kind):
    model = build(kind)
    before = model(**inputs(model))
    entries, kinds = copy.deepcopy(model.config.to_dict()), [type(m.config) for m in model.modules() if hasattr(m, "config")]
    numbers = {name: x.clone() for name, x in [*model.named_parameters(), *model.named_buffers()]}
    found = [(tower, tower.config, copy.deepcopy(tower.config.to_dict())) for tower in towers(model)]
    hf_posenc.patch(model, "alibi")
    assert decoder_in(model).config._attn_implementation.startswith("hf_posenc")
    for tower, config, said in found:
        assert tower.config is config and config.to_dict() == said and not config._attn_implementation.startswith("hf_posenc")
    assert all(torch.equal(x, numbers[name]) for name, x in model.named_parameters())
    assert all(torch.equal(x, numbers[name]) for name, x in model.named_buffers() if name in numbers and "rotary_emb" not in name)
    after = model(**inputs(model))
    assert not torch.allclose(after.logits, before.logits)
    if model.config.is_encoder_decoder:
        assert torch.equal(after.encoder_last_hidden_state, before.encoder_last_hidden_state)
    hf_posenc.unpatch(model)
    assert torch.equal(model(**inputs(model)).logits, before.logits)
    assert model.config.to_dict() == entries and [type(m.config) for m in model.modules() if hasattr(m, "config")] == kinds
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@each
@torch.no_grad()
def test_models_of_one_configuration_do_not_disturb_each_other(kind):
    config = config_of(kind)
    one, other = build(kind, config), build(kind, config)
    before, entries = other(**inputs(other)).logits, copy.deepcopy(config.to_dict())
    hf_posenc.patch(one, "yarn", factor=4.0)
    scaled = one(**inputs(one)).logits
    hf_posenc.patch(other, "alibi")
    assert torch.equal(one(**inputs(one)).logits, scaled)
    hf_posenc.unpatch(one)
    hf_posenc.unpatch(other)
    assert torch.equal(other(**inputs(other)).logits, before) and config.to_dict() == entries


@each
@torch.no_grad()
def test_the_configuration_around_contains_that_of_the_decoder(kind):
    model = build(kind)
    hf_posenc.patch(model, "yarn", factor=4.0, layers="all")
    if kind in ("bart", "marian"):  # whose encoder has the same one
        assert model.config is model.get_encoder().config and model.config is not decoder_in(model).config
        return
    inner = model.config.get_text_config(decoder=True)
    assert inner is decoder_in(model).config and "yarn" in repr(inner.rope_parameters)
    model.set_attn_implementation("eager")
    assert inner._attn_implementation == "eager"
    hf_posenc.patch(model, "alibi")
    assert inner is not None and decoder_in(model).config._attn_implementation == "hf_posenc_eager"


@each
@pytest.mark.parametrize("cache", [None, "static"])
@torch.no_grad()
def test_as_decoded_so_evaluated(kind, cache):
    model = build(kind)
    for name, options in [("alibi", {}), ("rerope", {"window": 3})]:
        hf_posenc.patch(model, name, **options)
        start = {"input_ids": SOURCE} if model.config.is_encoder_decoder else {"input_ids": IDS}
        how = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": 1, "eos_token_id": None}
        how |= {"forced_eos_token_id": None, "decoder_start_token_id": 2} if model.config.is_encoder_decoder else {}
        how |= {"suppress_tokens": [0]}  # padding, which some hide wherever it stands
        new = model.generate(**start, **how, cache_implementation=cache, output_logits=True, return_dict_in_generate=True)
        full = model(**inputs(model, new.sequences)).logits[:, -6:-1]
        assert_close(torch.stack(new.logits, 1), full, **CLOSE)


@pytest.mark.parametrize("kind", ["bart", "marian", "t5gemma"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@torch.no_grad()
def test_padding_of_either_side_is_invisible(kind, backend):
    if (kind, backend) == ("t5gemma", "sdpa"):
        pytest.skip("transformers has no sdpa for it")
    model = hf_posenc.patch(build(kind, attn_implementation=backend), "alibi")
    ids, source = torch.cat((torch.ones_like(IDS[:, :2]), IDS), 1), torch.cat((torch.ones_like(SOURCE[:, :3]), SOURCE), 1)
    masks = [torch.ones_like(ids), torch.ones_like(source)]
    masks[0][:, :2] = masks[1][:, :3] = 0
    padded = model(input_ids=SOURCE, decoder_input_ids=ids, decoder_attention_mask=masks[0]).logits[:, 2:]
    assert_close(padded, model(**inputs(model)).logits, **CLOSE)
    hidden = model.get_encoder()(SOURCE)[0]
    spaced = torch.cat((torch.randn_like(hidden[:, :3]), hidden), 1)
    seen = model(encoder_outputs=BaseModelOutput(last_hidden_state=spaced), attention_mask=masks[1], decoder_input_ids=IDS).logits
    assert_close(seen, model(**inputs(model)).logits, **CLOSE)


# -- checkpoints ------------------------------------------------------------------------------------------------------


@each
@torch.no_grad()
def test_saved_and_loaded(kind, tmp_path):
    for name, options in [("yarn", {"factor": 4.0}), ("alibi", {}), ("t5", {})]:
        model = hf_posenc.patch(build(kind), name, layers="all", **options)
        folder = tmp_path / name
        model.save_pretrained(folder)
        told = json.loads((folder / "config.json").read_text())
        stock = name == "yarn" and kind not in ("bart", "marian")
        assert hf_posenc.inspect(model).stock_checkpoint == stock == (told["model_type"] != "hf_posenc")
        if not stock:
            assert told["base_model_type"] == model.config.model_type
        again, report = AUTO[kind].from_pretrained(folder, output_loading_info=True)
        assert type(again) is type(model) and not report["missing_keys"] and not report["unexpected_keys"]
        assert torch.equal(again.eval()(**inputs(again)).logits, model(**inputs(model)).logits)
        assert again.config.model_type == model.config.model_type
        if not stock and kind not in ("bart", "marian"):  # whose table is gone
            assert torch.equal(hf_posenc.unpatch(again)(**inputs(again)).logits, build(kind)(**inputs(again)).logits)


@torch.no_grad()
def test_a_saved_wrapper_through_other_doors(tmp_path):
    model = hf_posenc.patch(build("llava"), "alibi")
    hidden = model.model(IDS)[0]
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModel.from_pretrained(tmp_path).eval()(IDS)[0], hidden)
    model.model.save_pretrained(tmp_path / "base")
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "base").eval()(IDS)[0], hidden)
    with pytest.raises(Exception, match="hf_posenc"):
        LlavaForConditionalGeneration.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="AutoModelForSeq2SeqLM has no class"):
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path)


def test_the_processor_lies_with_the_checkpoint(tmp_path):
    save_tiny(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    processor = LlavaProcessor(CLIPImageProcessor(), tokenizer, patch_size=14, vision_feature_select_strategy="default")
    hf_posenc.patch(build("llava"), "alibi").save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), LlavaProcessor)
    assert AutoTokenizer.from_pretrained(tmp_path)("a b").input_ids == tokenizer("a b").input_ids


@torch.no_grad()
def test_a_decoder_patched_on_its_own_is_seen_from_around(tmp_path):
    model = build("llava")
    hf_posenc.patch(model.model.language_model, "alibi")
    expected = model(IDS).logits
    assert [e.name for e in hf_posenc.inspect(model).encodings] == ["alibi"]
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForImageTextToText.from_pretrained(tmp_path).eval()(IDS).logits, expected)
    hf_posenc.unpatch(model)
    assert torch.equal(model(IDS).logits, build("llava")(IDS).logits)


# -- positions on several axes ------------------------------------------------------------------------------------------


def with_images(model):
    """A batch with an image of 2 x 2 tokens in each row, at different places."""
    ids = torch.tensor([[5, 6, 102, 100, 100, 100, 100, 103, 9, 10, 11], [7, 8, 13, 14, 102, 100, 100, 100, 100, 103, 33]])
    patch = model.config.vision_config.patch_size
    pixels = torch.randn(32, 3 * 2 * patch**2, generator=torch.Generator().manual_seed(1))
    grid = torch.tensor([[1, 4, 4], [1, 4, 4]])
    return {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": grid, "mm_token_type_ids": (ids == 100).long()}


def fresh(model, **inputs):
    """Logits of a pass that knows nothing of those before it."""
    model.model.rope_deltas = None
    return model(**inputs).logits


@torch.no_grad()
def test_the_native_slot_keeps_its_axes():
    """As transformers has it, on all layers at once and one after the other."""
    model = build("qwen2_vl")
    config, batch = copy.deepcopy(model.config), with_images(model)
    text = config.text_config
    text.rope_parameters |= {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": text.max_position_embeddings}
    stock = type(model)(config).eval()
    stock.load_state_dict(model.state_dict())
    native, expected = fresh(model, **batch), fresh(stock, **batch)
    assert not torch.allclose(native, expected)
    hf_posenc.patch(model, "yarn", factor=4.0)
    assert torch.equal(fresh(model, **batch), expected)
    hf_posenc.patch(model, "yarn", factor=4.0, layers=[0])
    assert not torch.allclose(fresh(model, **batch), expected)
    hf_posenc.patch(model, "yarn", factor=4.0, layers=[1])
    assert torch.equal(fresh(model, **batch), expected)
    hf_posenc.unpatch(model)
    assert torch.equal(fresh(model, **batch), native)


@torch.no_grad()
def test_the_attention_function_counts_tokens():
    model, stock = build("qwen2_vl"), without_positions(build("qwen2_vl", attn_implementation="eager"))
    batch = with_images(model)
    mask = alibi_mask(heads_of(model), torch.arange(11))
    media = {name: batch[name] for name in ("input_ids", "image_grid_thw", "mm_token_type_ids")}
    axes = stock.model.get_rope_index(**media)[0]
    assert not torch.equal(axes[0], axes[1])
    hf_posenc.patch(model, "alibi")
    expected = fresh(stock, **batch, attention_mask=mask, position_ids=axes)
    assert_close(fresh(model, **batch), expected, **CLOSE)
    assert_close(fresh(model, **batch, position_ids=axes), expected, **CLOSE)
    text = torch.arange(11).expand(1, 2, -1)
    assert_close(fresh(model, **batch, position_ids=torch.cat((text, axes))), expected, **CLOSE)
    assert "count" in str(hf_posenc.inspect(model))


@pytest.mark.parametrize("name", ["alibi", "yarn"])
@torch.no_grad()
def test_generation_goes_on_behind_images(name):
    model = build("qwen2_vl")
    hf_posenc.patch(model, name, **({"factor": 4.0} if name == "yarn" else {}))
    batch = with_images(model)
    how = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "output_logits": True, "return_dict_in_generate": True}
    new = model.generate(**batch, **how)
    kinds = torch.cat((batch["mm_token_type_ids"], torch.zeros(2, 4, dtype=torch.long)), 1)
    full = fresh(model, **(batch | {"input_ids": new.sequences, "mm_token_type_ids": kinds}))
    assert_close(torch.stack(new.logits, 1), full[:, -5:-1], **CLOSE)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("cache", [None, "static"])
@torch.no_grad()
def test_tokens_that_see_ahead(backend, cache):
    model = build("gemma3", attn_implementation=backend)
    kinds = torch.zeros_like(IDS)
    kinds[:, 2:6] = 1
    hf_posenc.patch(model, "alibi", layers="all")
    assert model(IDS, token_type_ids=torch.zeros_like(IDS)).logits.isfinite().all()
    with pytest.raises(ValueError, match="see tokens after them"):
        model.generate(IDS, token_type_ids=kinds, attention_mask=torch.ones_like(IDS), max_new_tokens=2, cache_implementation=cache)
    hf_posenc.patch(model, "nope", layers="all")
    stock = without_positions(build("gemma3", attn_implementation=backend))
    assert_close(model(IDS, token_type_ids=kinds).logits, stock(IDS, token_type_ids=kinds).logits, **CLOSE)


def test_a_decoder_that_is_not_served():
    """One that has no configuration of its own."""
    model = model_class("fsmt", True)._from_config(tiny_config("fsmt"))
    with pytest.raises(ValueError, match=r"'fsmt' is not supported: FSMTDecoder"):
        hf_posenc.patch(model, "alibi")
    assert not any(m._forward_pre_hooks for m in model.modules())


# -- every type that can be built and run without media -----------------------------------------------------------------

REFUSED = """ernie4_5_vl_moe fsmt hy_v4_vl inkling2 inkling2_loop inkling_mm_model led muse_glimmer muse_spark
    prophetnet t5gemma2"""
AROUND = sorted({*image_text_types(), *seq2seq_types()})


def through(model, folder):
    """What an Auto class makes of the model once it is saved, in eval mode."""
    model.save_pretrained(folder)
    for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq):
        if auto._model_mapping.get(type(model.config), None) is type(model):
            return auto.from_pretrained(folder).eval()
    return type(model).from_pretrained(folder).eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", AROUND)
@torch.no_grad()
def test_each_type_is_served_or_refused(kind, tmp_path):
    try:
        model = tiny_model(kind, seq2seq=kind in seq2seq_types())
        assert model.num_parameters() < 1e8, "large"
        stock = model(**inputs(model)).logits
        again = through(model, tmp_path / "stock")
    except Exception as error:
        pytest.skip(f"not built, run or loaded without media: {error}")
    found = torch.equal(again(**inputs(again)).logits, stock)
    served = []
    for name, options in [("alibi", {}), ("yarn", {"factor": 4.0}), ("rerope", {"window": 3})]:
        try:
            hf_posenc.patch(model, name, **options)
        except ValueError:
            continue
        served.append(name)
        changed = model(**inputs(model)).logits
        assert not torch.allclose(changed, stock, atol=1e-5)
        if found:
            loaded = through(model, tmp_path / name)
            assert torch.equal(loaded(**inputs(loaded)).logits, changed)
        hf_posenc.unpatch(model)
        assert torch.equal(model(**inputs(model)).logits, stock)
    assert bool(served) != (kind in REFUSED.split())
