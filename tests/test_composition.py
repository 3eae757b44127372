"""Options of every encoding: a temperature, a window, heads. What is composed does all that its parts do, on the same paths."""

import copy
import dataclasses
import io

import pytest
import torch
from tiny import options_for, tiny_model
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

import hf_posenc
from hf_posenc.attention.choice import Prospect, choose
from hf_posenc.encodings import ENCODINGS, Geometry, create, options_of
from hf_posenc.encodings.base import COMPOSITIONS, OVERRIDABLE, products
from hf_posenc.encodings.composing.made import Composed
from hf_posenc.patching import patch_of

GEOMETRY = Geometry(32, 4, 2, max_positions=12)
STEP = {"name": "llama4", "floor_scale": 4}
SOME = {
    "rotation": ("yarn", {"temperature": "log_n"}),
    "bias": ("alibi", {"temperature": "ssmax"}),
    "remap": ("rerope", {"temperature": STEP}),
    "by length": ("dynamic_ntk", {"temperature": "ssmax"}),
    "content": ("shaw", {"temperature": STEP}),
    "table": ("learned", {"temperature": "head_scale"}),
    "nothing": ("nope", {"sliding_window": 5, "temperature": STEP}),
    "window": ("rope", {"sliding_window": 5}),
    "chunks": ("kerple", {"attention_chunk": 4}),
    "remap in a window": ("self_extend", {"sliding_window": 9}),
    "half of the heads": ("rope", {"heads": ":2"}),
    "heads, all": ("alibi", {"heads": [0, 3], "temperature": "ssmax", "sliding_window": 5}),
    "gates": ("fox", {"temperature": STEP, "sliding_window": 5}),
    "weights": ("stick_breaking", {"sliding_window": 5, "temperature": "ssmax"}),
    "beside the embeddings": ("alibi", {"embedding": "sinusoidal", "temperature": STEP}),
    "beside the tokens": ("fire", {"embedding": {"name": "abacus", "digits": list(range(3, 33))}}),
    "parts": ("by_head", {"parts": [{"name": "yarn", "factor": 2.0, "heads": [2, 3], "temperature": STEP}, {"name": "shaw"}]}),
}
"""A composition or two of each kind: an encoding with options of every encoding."""
some = pytest.mark.parametrize("which", SOME)
CLOSE = {"atol": 2e-5, "rtol": 2e-4}


def states(length=30):
    torch.manual_seed(0)
    q, k = (torch.randn(2, heads, length, 8, dtype=torch.float64) for heads in (4, 2))
    return q, k, torch.arange(length).expand(2, -1)


def asked(which):
    """The name and the options."""
    name, options = SOME[which]
    return name, {**options_for(name), **options}


def patched(which, arch="llama", **changes):
    model = tiny_model(arch, **changes)
    torch.manual_seed(7)
    name, options = asked(which)
    hf_posenc.patch(model, name, **options)
    with torch.no_grad():
        for parameter in (p for each in patch_of(model).placements for p in each.encoding.parameters()):
            parameter.add_(0.1)
    return model


# -- what it computes -----------------------------------------------------------------------------------------------------


def state_of(encoding, pos):
    """Of made-up tokens."""
    x = torch.sin(torch.arange(2 * 30 * 32).view(2, 30, 32).double())
    return encoding.state(x, pos) if encoding.has("state") else None


def scores_of(encoding, q, k, pos):
    """[B,H,Q,K], with the states of made-up tokens."""
    where = on_axes(encoding, pos)
    return encoding.scores(q, k, where, where, state=state_of(encoding, pos))


def on_axes(encoding, pos):
    """Text alone, alike on all axes."""
    return pos if encoding.axes == 1 else pos.expand(encoding.axes, -1, -1)


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_temperature_multiplies_the_products_of_any_encoding_and_nothing_else(name):
    q, k, pos = states()
    plain, warm = (create(name, GEOMETRY, **options_for(name), **more).double() for more in ({}, {"temperature": STEP}))
    warm.load_state_dict(plain.state_dict())
    assert torch.equal(*(encoding.cached_key(k, on_axes(encoding, pos)) for encoding in (plain, warm)))
    factor = 1 + 0.1 * torch.log(1 + torch.floor((pos.double() + 1) / 4))[:, None, :, None]
    ours, theirs = (scores_of(encoding, q, k, pos) for encoding in (warm, plain))
    where = on_axes(plain, pos)
    block = plain.block(q, k, where, where, state=state_of(plain, pos))
    content = products(*plain.meet(block)) * block.scaling if plain.has("meet") else plain.content_scores(q, block.k, pos, pos)
    multiplied = create("nope", GEOMETRY).scores(q, k, pos, pos) if plain.adds_columns else content
    heated = content + multiplied * (factor - 1)
    seen = (pos[:, None, :] <= pos[:, :, None])[:, None] & theirs.isfinite()
    if plain.has("bias", "context_bias") or not plain.has("mix"):
        expected = heated + (theirs - content)
    else:  # where scores double with the queries, they are products, whoever makes them
        linear = torch.allclose((scores_of(plain, 2 * q, k, pos) - 2 * theirs).where(seen, 0), torch.zeros(()).double(), atol=1e-9)
        expected = theirs * factor if linear else plain.mix(heated, block)
    assert_close(*(x.where(seen, 0) for x in (ours, expected)), rtol=1e-6, atol=1e-9)
    assert torch.equal(ours.isfinite(), theirs.isfinite())


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_window_hides_what_lies_before_it_and_nothing_else(name):
    q, k, pos = states()
    distance = (pos[:, :, None] - pos[:, None, :])[:, None]
    plain = create(name, GEOMETRY, **options_for(name)).double()
    for option, seen in {"sliding_window": distance < 7, "attention_chunk": distance <= pos[:, None, :, None] % 7}.items():
        near = create(name, GEOMETRY, **options_for(name), **{option: 7}).double()
        near.load_state_dict(plain.state_dict())
        ours, theirs = (scores_of(encoding, q, k, pos).masked_fill(distance < 0, -torch.inf) for encoding in (near, plain))
        assert_close(ours, theirs.masked_fill(~seen, -torch.inf), rtol=0, atol=1e-12)


def test_of_two_windows_the_narrower_counts():
    q, k, pos = states()
    distance = (pos[:, :, None] - pos[:, None, :])[:, None]
    scores = create("rope", GEOMETRY, sliding_window=3, attention_chunk=7).scores(q, k, pos, pos)
    seen = (distance >= 0) & (distance < 3) & (distance <= pos[:, None, :, None] % 7)
    assert bool(((scores.isfinite() & (distance >= 0)) == seen).all())
    with pytest.raises(ValueError, match="sliding_window must be an integer"):
        create("rope", GEOMETRY, sliding_window=0, attention_chunk=7)


@torch.no_grad()
def test_a_sliding_window_is_that_of_mistral():
    ids = torch.arange(3, 40)[None]
    theirs = tiny_model("mistral", sliding_window=6)
    ours = tiny_model("mistral", sliding_window=None)
    hf_posenc.patch(ours, "rope", sliding_window=6)
    assert_close(ours(ids).logits, theirs(ids).logits, **CLOSE)


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("more", [{"temperature": STEP}, {"sliding_window": 5}])
def test_the_stages_are_those_of_the_encoding(name, more):
    """So that paths, and what the KV cache holds, are chosen as for it alone."""
    alone, composed = create(name, GEOMETRY, **options_for(name)), create(name, GEOMETRY, **options_for(name), **more)
    added = {"bias" if alone.has("meet") else "regions"}
    if "temperature" in more:
        added = set() if alone.has("meet", "regions") else {"rotate"}
    assert {s for s in OVERRIDABLE if composed.has(s)} == {s for s in OVERRIDABLE if alone.has(s)} | added


@pytest.mark.parametrize(
    "arch", ["llama", "gpt2", "opt", "bloom", "mpt", "gemma3_text", "hunyuan_v1_dense", "llama4_text", "gpt_oss", "smollm3", "phi3"]
)
@torch.no_grad()
def test_a_temperature_alone_leaves_the_encoding_of_the_model_where_it_is(arch):
    """A scale of 1 is the model to the bit, in whatever way its family holds its positions; one of 2 is not."""
    model, ids = tiny_model(arch), torch.arange(3, 15)[None]
    stock = model(ids).logits
    hf_posenc.patch(model, "head_scale")
    assert torch.equal(model(ids).logits, stock)
    assert "beside the native encoding" in hf_posenc.inspect(model).encodings[0].place
    hf_posenc.patch(model, "head_scale", init=2.0)
    assert not torch.allclose(model(ids).logits, stock, atol=1e-3)
    assert torch.equal(hf_posenc.unpatch(model)(ids).logits, stock)


def test_where_what_turns_comes_before_a_norm_only_what_does_not_turn_may_be_composed():
    model = tiny_model("hunyuan_v1_dense")
    for name, more in (("alibi", {"temperature": "ssmax"}), ("nope", {"sliding_window": 4}), ("alibi", {"heads": "::2"})):
        hf_posenc.patch(model, name, **more)
    for more in ({"temperature": "ssmax"}, {"sliding_window": 4}, {"heads": ":2"}):
        with pytest.raises(ValueError, match="turns queries and keys in the attention function"):
            hf_posenc.patch(model, "rope", **more)


def test_beside_a_bias_that_is_handed_down_a_temperature_is_refused():
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4))
    with pytest.raises(ValueError, match="takes its place, by temperature='log_n'"):
        hf_posenc.patch(model, "log_n")
    hf_posenc.patch(model, "t5", temperature="log_n")


# -- how it computes it ---------------------------------------------------------------------------------------------------


def test_a_temperature_takes_no_path_away():
    cpu = Prospect("sdpa", "cpu", torch.float32, regional=False)
    for more in ({}, {"temperature": "ssmax"}, {"temperature": "log_n"}):
        for learning in (False, True):
            paths = [
                path_of(name, dataclasses.replace(cpu, learning=learning), more) for name in ("rope", "nope", "alibi", "rerope", "shaw")
            ]
            learned = learning and more == {"temperature": "ssmax"}
            assert paths == ["stock", "stock", "table", "blocks" if learned else "regions", "blocks"]
        gpu = Prospect("sdpa", "cuda", torch.bfloat16, regional=False)
        assert [path_of(name, gpu, more) for name in ("rope", "alibi", "rerope")] == ["stock", "flex", "flex"]
        flash = Prospect("flash_attention_2", "cuda", torch.bfloat16, regional=False)
        assert [path_of(name, flash, more) for name in ("rope", "alibi")] == ["stock", "columns"]


def path_of(name, prospect, more):
    encoding = create(name, Geometry(64, 4, max_positions=64), **options_for(name), **more)
    return choose(encoding, dataclasses.replace(prospect, regional=encoding.has("regions"))).path


@some
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@torch.no_grad()
def test_decoding_equals_evaluation(which, arch, batch):
    model, (ids, mask) = patched(which, arch), batch.values()
    full = model(**batch).logits
    for steps in ([12, 1, 1, 1, 1, 1], [3, 7, 2, 5]):
        seen, cache, parts = 0, None, []
        for n in steps:
            out = model(ids[:, seen : seen + n], attention_mask=mask[:, : seen + n], past_key_values=cache, use_cache=True)
            cache, seen = out.past_key_values, seen + n
            parts.append(out.logits)
        assert_close(torch.cat(parts, 1)[mask.bool()], full[mask.bool()], **CLOSE)
    assert_close(full[0, 5:], model(ids[:1, 5:]).logits[0], **CLOSE)  # padding on the left is invisible


@some
@torch.no_grad()
def test_every_backend_computes_the_definition(which, batch):
    model, keep = patched(which), batch["attention_mask"].bool()
    sdpa = model(**batch).logits[keep]
    with torch.compiler.set_stance("force_eager"):
        for backend in ("eager", "flex_attention"):
            model.set_attn_implementation(backend)
            assert_close(model(**batch).logits[keep], sdpa, **CLOSE)


@torch.no_grad()
def test_padding_that_stands_before_keys_it_sees_is_no_number_for_others():
    """What `generate` gives to padding within a text is position 1: within the window of the mixture there is nothing but the future."""
    model = hf_posenc.patch(tiny_model("llama"), "dape", attention_chunk=4)
    ids, mask = torch.arange(3, 17)[None], torch.ones(1, 14, dtype=torch.long)
    mask[0, 9:11] = 0
    positions, keep = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1), mask[0].bool()
    logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    assert_close(logits[0, keep], model(ids[:, keep], use_cache=False).logits[0], **CLOSE)


# -- what becomes of it ---------------------------------------------------------------------------------------------------


@some
@torch.no_grad()
def test_it_comes_and_goes_is_copied_saved_and_loaded(which, batch, tmp_path):
    batch = {key: x[:, 5:] for key, x in batch.items()}
    stock = tiny_model("llama")(**batch).logits
    model = patched(which)
    logits, report = model(**batch).logits, hf_posenc.inspect(model)
    assert not torch.allclose(logits, stock) and report.encodings[0].options == asked(which)[1]
    twin, held = copy.deepcopy(model), io.BytesIO()
    torch.save(model, held)
    held.seek(0)
    model.save_pretrained(tmp_path)
    for other in (twin, torch.load(held, weights_only=False), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert torch.equal(other(**batch).logits, logits) and hf_posenc.inspect(other).fingerprint == report.fingerprint
        assert torch.equal(hf_posenc.unpatch(other)(**batch).logits, stock)


@some
def test_it_trains(which, batch):
    model = patched(which).train()
    model.gradient_checkpointing_enable()
    model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.any() for n, p in model.named_parameters() if "positional_encoding" in n)


def test_adapters_train_it_in_full(tmp_path):
    peft = pytest.importorskip("peft")
    model = hf_posenc.patch(tiny_model("llama"), "yarn", factor=2.0, temperature="ssmax")
    names = ["positional_encoding", "positional_encoding_1"]
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", modules_to_save=names, task_type="CAUSAL_LM"))
    ids = torch.arange(3, 20)[None]
    model(ids, labels=ids).loss.backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any() and "heat" in n}
    assert len(trained) == 2
    with torch.no_grad():
        for n, p in model.named_parameters():
            if n in trained:
                p.mul_(2)
    logits = model(ids).logits
    model.save_pretrained(tmp_path)
    base = hf_posenc.patch(tiny_model("llama"), "yarn", factor=2.0, temperature="ssmax")
    assert_close(peft.PeftModel.from_pretrained(base, tmp_path)(ids).logits, logits)


@pytest.mark.parametrize(
    ("name", "layers"), [("yarn", [(0,), (1,)]), ("alibi", [(0,), (1,)]), ("shaw", [(0,), (1,)]), ("kerple", [(0, 1)])]
)
def test_a_learned_temperature_is_each_layers_own_where_its_encoding_is_not_shared(name, layers):
    model = hf_posenc.patch(tiny_model("llama"), name, **options_for(name), temperature="ssmax")
    assert [p.layers for p in patch_of(model).placements] == layers


# -- mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": "hot"}, "'hot' is no temperature. There are drope_scale"),
        ({"temperature": "alibi"}, "'alibi' is no temperature"),
        ({"temperature": 2.0}, "temperature= is a name, or"),
        ({"temperature": {"trained_length": 5}}, "temperature= is a name, or"),
        ({"temperature": {"name": "log_n", "length": 5}}, "'log_n' has no option 'length'"),
        ({"sliding_window": 0}, "sliding_window must be an integer of at least 1"),
        ({"attention_chunk": "4"}, "attention_chunk must be an integer"),
        ({"temprature": "log_n"}, "Did you mean 'temperature'"),
    ],
)
def test_mistakes(options, message):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=message):
        hf_posenc.patch(model, "rope", **options)
    assert not patch_of(model).placements


@pytest.mark.parametrize("name", ENCODINGS)
def test_what_is_around_an_encoding_hides_nothing_of_it(name):
    """An attribute of the same name would be the other's."""
    alone = create(name, GEOMETRY, **options_for(name))
    composed = create(name, GEOMETRY, **options_for(name), temperature="ssmax", sliding_window=5)
    around = {"made_of", "made_with", "heat", "firsts"}
    assert not [own for own in around if hasattr(alone, own) and not isinstance(alone, Composed)]
    own = [*dict(alone.named_buffers(recurse=False)), *dict(alone.named_parameters(recurse=False)), *dict(alone.named_children())]
    assert all(type(getattr(composed, each)) is type(getattr(alone, each)) for each in own)


@pytest.mark.parametrize("name", ENCODINGS)
def test_no_encoding_has_an_option_of_its_own_under_the_name_of_one_of_all(name):
    assert not set(options_of(ENCODINGS[name])) & set(COMPOSITIONS)


# -- embeddings ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_an_encoding_of_the_embeddings_beside_one_of_the_attention():
    """The numbers of the inner encoding alone, on embeddings to which the other was added by hand."""
    numbers = torch.arange(10, 22)[None]
    numbers[:, ::5] = 50  # what is no digit
    model = hf_posenc.patch(tiny_model("llama"), "fire", embedding={"name": "abacus", "digits": list(range(3, 33))})
    encoding = patch_of(model).placements[0].encoding
    encoding.beside.table.normal_()
    place = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1])
    by_hand = hf_posenc.patch(tiny_model("llama"), "fire", layers="all")
    for mine, placement in zip(patch_of(model).placements, patch_of(by_hand).placements, strict=True):
        placement.encoding.load_state_dict({k: v for k, v in mine.encoding.state_dict().items() if "beside" not in k})
    vectors = by_hand.get_input_embeddings()(numbers) + encoding.beside.table[place]
    assert_close(model(numbers).logits, by_hand(inputs_embeds=vectors).logits, **CLOSE)
    assert (model(numbers).logits - by_hand(numbers).logits).abs().max() > 0.1


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("fire", "alibi", "does not act on the embeddings, or not on them alone. There are .*abacus.*sinusoidal"),
        ("fire", "bipe", "does not act on the embeddings, or not on them alone"),
        ("sinusoidal", "abacus", "acts on the embeddings, or reads tokens, itself"),
        ("bipe", "sinusoidal", "acts on the embeddings, or reads tokens, itself"),
        ("fire", "abacuss", "did you mean 'abacus'"),
        ("fire", ["abacus"], "a name, or"),
    ],
)
def test_what_cannot_be_beside(name, value, message):
    with pytest.raises(ValueError, match=f"(?i){message}"):
        create(name, GEOMETRY, embedding=value)


def test_a_table_of_the_embeddings_ends_where_it_ends():
    model = hf_posenc.patch(tiny_model("llama"), "alibi", embedding={"name": "learned", "max_positions": 10})
    model(torch.arange(3, 13)[None])
    with pytest.raises(ValueError, match="position 10 lies past the learned table of 10 positions"):
        model(torch.arange(3, 14)[None])


def test_the_embeddings_are_those_of_all_layers_and_are_added_once():
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="reaches every layer"):
        hf_posenc.patch(model, "fire", layers=[0], embedding="sinusoidal")
    gemma, table = tiny_model("gemma3_text"), create("sinusoidal", patch_of(tiny_model("gemma3_text")).geometry(0))
    hf_posenc.patch(gemma, "rope", layers="all", embedding="sinusoidal")
    assert len(patch_of(gemma).placements) == 2  # for two native geometries
    seen, ids = [], torch.arange(3, 9)[None]
    gemma.model.layers[0].register_forward_pre_hook(lambda _, args, kwargs: seen.append((*args, *kwargs.values())[0]), with_kwargs=True)
    gemma(ids)
    expected = table.embed(gemma.get_input_embeddings()(ids), torch.arange(6)[None])
    assert_close(seen[0], expected)
