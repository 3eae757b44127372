"""Every way to generate, against the plainest: one full pass without a cache for each token. Names no encoding."""

import functools

import design
import pytest
import torch
import transformers
from tiny import TINY, options_for, tiny_for, tiny_model
from transformers import CompileConfig, DynamicCache, GenerationConfig, QuantizedCache

import hf_posenc
from hf_posenc.encodings import ENCODINGS
from hf_posenc.patching import patch_of

NEW = 8
QUANTIZED = {"fp8": ("torch", {}), "quanto": ("optimum.quanto", {"nbits": 4, "q_group_size": 16})}
"""Backends of quantized caches, with the module that each needs and its options."""
STATELESS = [name for name in ENCODINGS if not ENCODINGS[name].has("state")]
FAMILIES = {"gpt2": {}, "llama": {}, "mistral": {"sliding_window": 6}}


every_kind = pytest.mark.cover("encoding_stages", "family", family=FAMILIES)


@pytest.fixture
def prompts():
    return made_prompts()


def made_prompts():
    """Two rows, the first padded on the left."""
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


@pytest.fixture
def prompt(prompts):
    """The second row alone."""
    return {key: value[1:] for key, value in prompts.items()}


def stock_model(family, seed=0):
    """With room for all that is generated."""
    return tiny_model(family, seed, max_position_embeddings=64, **FAMILIES[family])


def patched_model(family, name):
    """With parameters that have learned something, whatever they start from."""
    model = hf_posenc.patch(tiny_for(name, family, **FAMILIES[family]), name, layers="all", **options_for(name))
    torch.manual_seed(7)
    with torch.no_grad():
        for placement in patch_of(model).placements:
            for parameter in placement.encoding.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


@torch.no_grad()
def plain(model, input_ids, attention_mask, steps=NEW):
    """The most likely continuation [B,T+steps]: for each token one pass over all before it, each row on its own, unpadded."""
    rows = []
    for ids, mask in zip(input_ids, attention_mask, strict=True):
        row = ids[mask.bool()][None]
        for _ in range(steps):
            row = torch.cat((row, model(row, use_cache=False).logits[:, -1:].argmax(-1)), 1)
        rows.append(torch.cat((ids[~mask.bool()], row[0])))
    return torch.stack(rows)


def generated(model, prompts, **settings):
    return model.generate(**prompts, **{"max_new_tokens": NEW, "eos_token_id": TINY["vocab_size"], "do_sample": False, **settings})


@pytest.mark.cover("encoding_stages family", family=FAMILIES)
def test_greedy(family, name, prompts):
    model = patched_model(family, name)
    expected = plain(model, **prompts)
    assert torch.equal(generated(model, prompts), expected)
    assert torch.equal(generated(model, prompts, use_cache=False), expected)
    assert torch.equal(generated(model, prompts, cache_implementation="static"), expected)


@functools.cache
def stock_prefills_in_chunks(family, cache):
    """Whether stock transformers can: 5.0 loses keys of a sliding window, or wants the model's cache to be there already."""
    model, prompts = stock_model(family), made_prompts()
    try:
        return torch.equal(generated(model, prompts, prefill_chunk_size=4, cache_implementation=cache), plain(model, **prompts))
    except (IndexError, ValueError):
        return False


@every_kind
def test_prefill_in_chunks(family, name, prompts):
    model = patched_model(family, name)
    expected, missed = plain(model, **prompts), []
    for cache in ("dynamic", "static"):
        settings = {"prefill_chunk_size": 4, "cache_implementation": cache}
        if stock_prefills_in_chunks(family, cache):
            assert torch.equal(generated(model, prompts, **settings), expected)
        else:
            missed.append(cache)
    if missed:
        pytest.skip(f"stock transformers does not do this with a {' or '.join(missed)} cache")


@every_kind
def test_beams_and_samples(family, name, prompts):
    """The cache is reordered and repeated; without one there is nothing to get wrong."""
    model = patched_model(family, name)
    for settings in ({"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "num_return_sequences": 3}):
        runs = []
        for use_cache in (False, True):
            torch.manual_seed(11)
            runs.append(generated(model, prompts, use_cache=use_cache, **settings))
        assert torch.equal(*runs), settings


@every_kind
def test_drafts(family, name, prompt):
    """Drafted tokens that are not accepted are cut from the cache of the model, and from that of the assistant."""
    model, stock = patched_model(family, name), stock_model(family)
    if FAMILIES[family] and not hasattr(DynamicCache, "activate_past_recording"):
        pytest.skip("in this transformers what has left a window is gone")
    expected = plain(model, **prompt)
    assert torch.equal(generated(model, prompt, assistant_model=stock), expected)
    assert torch.equal(generated(stock, prompt, assistant_model=model), plain(stock, **prompt))
    looked_up = generated(model, prompt, prompt_lookup_num_tokens=3)  # which stock transformers 5.0 may take further than it is asked to
    assert torch.equal(looked_up[:, : expected.shape[1]], expected)


def goes_on(model, prompt):
    """The text after `prompt`, from a cache that had three tokens more."""
    ids, cache = prompt["input_ids"], DynamicCache(config=model.config)
    if hasattr(cache, "activate_past_recording"):
        cache.activate_past_recording()
    model(torch.cat((ids, ids[:, :3]), 1), past_key_values=cache)
    cache.crop(-4)
    return generated(model, prompt, past_key_values=cache)


@functools.cache
def windows_go_back():
    """Whether a stock model with windows goes on from a cropped cache: not up to 5.17."""
    try:
        goes_on(tiny_model("mistral"), {name: column[1:] for name, column in made_prompts().items()})
    except (RuntimeError, ValueError):
        return False
    return True


@every_kind
@torch.no_grad()
def test_crop_and_go_on(family, name, prompt):
    model = patched_model(family, name)
    if FAMILIES[family] and not windows_go_back():
        pytest.skip("in this transformers what has left a window is gone")
    assert torch.equal(goes_on(model, prompt), plain(model, **prompt))


@every_kind
@torch.no_grad()
def test_a_cache_is_taken_up_again(family, name, prompt):
    """A conversation: the cache of one `generate` is given to the next, with more text."""
    model = patched_model(family, name)
    first = model.generate(**prompt, max_new_tokens=3, min_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    longer = {"input_ids": torch.cat((first.sequences, prompt["input_ids"][:, :2]), 1)}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    assert torch.equal(generated(model, longer, past_key_values=first.past_key_values), plain(model, **longer))


@pytest.mark.cover("encoding_stages", "family backend", name=STATELESS, family=["gpt2", "llama"], backend=QUANTIZED)
@torch.no_grad()
def test_quantized_caches(family, name, backend, prompt):
    """Keys are rounded: no more is lost than the stock model loses. Numbers of tokens that lie beside the keys are rounded with them."""
    module, options = QUANTIZED[backend]
    pytest.importorskip(module)
    if backend == "fp8" and not hasattr(transformers.cache_utils, "Fp8QuantizedLayer"):
        pytest.skip("this transformers has no such cache")
    ids, errors = prompt["input_ids"].repeat(1, 2)[:, :12], []
    if ENCODINGS[name].has("notes"):
        with pytest.raises(ValueError, match="rounds what an encoding has noted"):
            patched_model(family, name)(ids, past_key_values=QuantizedCache(backend, stock_model(family).config, **options))
        return
    for model in (stock_model(family), patched_model(family, name)):
        full = model(ids, use_cache=False).logits
        cache, parts = QuantizedCache(backend, model.config, **options), []
        for start, end in ((0, 6), (6, 7), (7, 12)):
            parts.append(model(ids[:, start:end], past_key_values=cache, position_ids=torch.arange(start, end)[None]).logits)
        errors.append((torch.cat(parts, 1) - full)[:, 6:].std() / full.std())
    assert 0 < errors[1] < 3 * errors[0]


@pytest.mark.slow
@every_kind
def test_compiled_decoding(family, name, prompts):
    """A static cache lets `generate` compile its steps: here without kernels of their own, which take long to build."""
    model = patched_model(family, name)
    settings = CompileConfig(backend="eager", mode=None)
    settings._compile_all_devices = True
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert torch.equal(generated(model, prompts, cache_implementation="static", compile_config=settings), plain(model, **prompts))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="offloading moves the cache off an accelerator")
@every_kind
def test_offloaded_caches(family, name, prompts):
    device = torch.accelerator.current_accelerator()
    model, prompts = patched_model(family, name).to(device), {key: value.to(device) for key, value in prompts.items()}
    expected = plain(model, **prompts)
    for cache in ("offloaded", "offloaded_static"):
        assert torch.equal(generated(model, prompts, cache_implementation=cache), expected)


def batched(model, prompts):
    """The new tokens of each row, by continuous batching."""
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(*prompts.values(), strict=True)]
    settings = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    if not hasattr(transformers, "ContinuousBatchingConfig"):
        pytest.skip("continuous batching is set up otherwise in this transformers")
    limits = transformers.ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=64, use_cuda_graph=False)
    answers = model.generate_batch(rows, settings, continuous_batching_config=limits, progress_bar=False)
    assert not any(answer.error for answer in answers.values()), answers
    return torch.tensor([answer.generated_tokens for answer in answers.values()])


@functools.cache
def batches_what_it_should():
    """Whether continuous batching is right for a stock Llama, on a CPU: not up to 5.8."""
    prompts = made_prompts()
    return torch.equal(batched(stock := tiny_model("llama"), prompts), plain(stock, **prompts)[:, -NEW:])


@pytest.mark.cover("encoding_stages", "family", family=["gpt2", "llama"])
def test_continuous_batching_works_or_is_refused(family, name, prompts):
    model = patched_model(family, name)
    if any(placement.in_attention or placement.encoding.noted for placement in patch_of(model).placements):
        for backend in (None, "sdpa", "eager"):
            if backend:
                model.set_attn_implementation(backend)
            with pytest.raises(ValueError, match=r"continuous batching .* Use generate\(\)"):
                batched(model, prompts)
        hf_posenc.unpatch(model)
        assert "init_continuous_batching" not in model.__dict__
    elif not batches_what_it_should():
        pytest.skip("in this transformers a stock model gives other texts too")
    else:
        assert torch.equal(batched(model, prompts), plain(model, **prompts)[:, -NEW:])


@torch.no_grad()
def test_a_paged_cache_is_refused_by_the_backbone():
    """By a manager that was made before the patch."""
    model = patched_model("llama", next(name for name in ENCODINGS if ENCODINGS[name].only("bias")))
    with pytest.raises(ValueError, match="continuous batching"):
        model(torch.tensor([[3, 4]]), cache=object())


def test_the_reference_tells_encodings_apart(prompt):
    continuations = {tuple(plain(patched_model("llama", name), **prompt)[0].tolist()) for name in design.one_of_each("encoding_stages")}
    assert len(continuations) > 2
