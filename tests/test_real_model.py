"""SmolLM2-135M on English prose: what the encodings do to real pretrained weights."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_posenc
from hf_posenc.evaluation import embedded_corpus, fetch_demo_model

pytestmark = pytest.mark.slow
NATIVE = 8192


@pytest.fixture(scope="module")
def demo():
    path = fetch_demo_model()
    ids = AutoTokenizer.from_pretrained(path)(embedded_corpus(), return_tensors="pt").input_ids[0]
    return path, ids


@pytest.fixture
def model(demo):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield AutoModelForCausalLM.from_pretrained(demo[0], dtype=torch.float32).eval()
    torch.set_num_threads(threads)


@torch.no_grad()
def decoded_and_evaluated(model, ids, start):
    """Logits of the tokens from `start` on: through the cache one at a time, and in one pass."""
    cache = model(ids[None, :start], logits_to_keep=1).past_key_values
    steps = []
    for token in ids[start:]:
        out = model(token.view(1, 1), past_key_values=cache)
        cache = out.past_key_values
        steps.append(out.logits[0])
    return torch.cat(steps), model(ids[None], use_cache=False, logits_to_keep=len(ids) - start).logits[0]


def test_dynamic_ntk_decodes_as_it_evaluates(model, demo):
    """Across the native context, where the frequencies begin to change."""
    hf_posenc.patch(model, "dynamic_ntk", factor=2.0, step=4)
    decoded, evaluated = decoded_and_evaluated(model, demo[1][: NATIVE + 12], NATIVE - 4)
    torch.testing.assert_close(decoded, evaluated, atol=2e-3, rtol=1e-3)


def test_stock_dynamic_ntk_does_not(demo):
    """The reason for having our own: the same check on transformers' scheme fails, on a shorter context for time's sake."""
    theta = AutoModelForCausalLM.from_pretrained(demo[0]).config.rope_parameters["rope_theta"]
    parameters = {"rope_type": "dynamic", "rope_theta": theta, "factor": 2.0}
    stock = AutoModelForCausalLM.from_pretrained(demo[0], max_position_embeddings=512, rope_parameters=parameters).eval()
    decoded, evaluated = decoded_and_evaluated(stock, demo[1][:768], 500)
    assert (decoded - evaluated).abs().max() > 0.1


@torch.no_grad()
def test_rope_is_the_stock_model(model, demo):
    ids = demo[1][None, :256]
    stock = model(ids).logits
    assert torch.equal(hf_posenc.patch(model, "rope")(ids).logits, stock)


@torch.no_grad()
def test_rerope_within_its_window_is_the_stock_model(model, demo):
    ids = demo[1][None, :256]
    stock = model(ids).logits
    torch.testing.assert_close(hf_posenc.patch(model, "rerope", window=256)(ids).logits, stock, atol=2e-3, rtol=1e-3)


@torch.no_grad()
def test_alibi_checkpoint_of_a_real_model_loads_again(model, demo, tmp_path):
    ids = demo[1][None, :128]
    patched = hf_posenc.patch(model, "alibi")(ids).logits
    model.save_pretrained(tmp_path, max_shard_size="200MB")
    again = AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu"})
    assert torch.equal(again(ids).logits, patched)
