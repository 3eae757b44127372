"""Perplexity of SmolLM2-135M: against full logits, the loop of the transformers documentation, the harness; memory at 16k."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_protocols import documentation_loop, pooled
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_posenc
from hf_posenc.evaluation import embedded_corpus, fetch_demo_model, perplexity

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def demo():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    path = fetch_demo_model()
    tokenizer = AutoTokenizer.from_pretrained(path)
    yield AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), tokenizer
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ids(demo):
    return demo[1](embedded_corpus(), return_tensors="pt").input_ids[0]


def test_prefix_is_the_naive_computation_with_all_logits(demo, ids):
    with torch.no_grad():
        logits = demo[0](ids[None, :4096]).logits[0, :-1]
    naive = F.cross_entropy(logits, ids[1:4096]).item()
    result = perplexity(demo[0], ids, lengths=[4096])
    assert result.scores[0].nats == pytest.approx(naive, abs=1e-4)
    assert result.forward == "one per document" and not result.cache


def test_passes_through_the_cache_are_one_pass(demo, ids):
    one, passes = (perplexity(demo[0], ids, lengths=[3000], pass_tokens=size).scores[0].nats for size in (None, 700))
    assert passes == pytest.approx(one, abs=1e-4)


def test_sliding_is_the_loop_of_the_documentation(demo, ids):
    expected, count = pooled(documentation_loop(demo[0], ids[:2500], 1024, 512))
    score = perplexity(demo[0], ids[:2500], lengths=[1024], protocol="sliding", stride=512).scores[0]
    assert (score.nats, score.tokens_scored) == (pytest.approx(expected, abs=1e-4), count)


def test_disjoint_is_the_rolling_loglikelihood_of_the_harness(demo):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    model, tokenizer = demo
    text = embedded_corpus()[:6000]
    harness = huggingface.HFLM(pretrained=model, tokenizer=tokenizer, max_length=512, batch_size=1, device="cpu")
    (loglikelihood,) = harness.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)
    score = perplexity(model, tokenizer, text, lengths=[512], protocol="disjoint", bos="always").scores[0]
    assert score.nats * score.tokens_scored == pytest.approx(-loglikelihood, rel=1e-5)


def test_a_patched_model_is_what_the_harness_measures(demo):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    model, tokenizer = demo
    text = embedded_corpus()[:1500]
    with hf_posenc.patched(model, "linear", factor=4.0):
        harness = huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu")
        assert harness.max_length == 4 * 8192, "the patch tells the harness how far the context reaches"
        harness = huggingface.HFLM(pretrained=model, tokenizer=tokenizer, max_length=256, batch_size=1, device="cpu")
        (loglikelihood,) = harness.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)
    how = {"lengths": [256], "protocol": "disjoint", "bos": "always"}
    results = perplexity(model, tokenizer, text, encodings={"stock": {}, "linear": {"factor": 4.0}}, **how)
    found = {name: result.scores[0].nats * result.scores[0].tokens_scored for name, result in results.items()}
    assert found["linear"] == pytest.approx(-loglikelihood, rel=1e-5)
    assert found["stock"] < 0.8 * found["linear"]


def test_decoded_is_prefix_but_not_for_stock_dynamic_ntk(demo, ids):
    """Past a context length of 128, which the frequencies of both depend on."""
    path, theta = demo[0].config.name_or_path, demo[0].config.rope_parameters["rope_theta"]
    short = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, max_position_embeddings=128).eval()
    stock = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=torch.float32,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "dynamic", "rope_theta": theta, "factor": 4.0},
    ).eval()
    hf_posenc.patch(short, "dynamic_ntk", factor=4.0)
    nats = {
        (name, protocol): perplexity(model, ids, lengths=[384], protocol=protocol).scores[0].nats
        for name, model in (("ours", short), ("stock", stock))
        for protocol in ("prefix", "decoded")
    }
    assert nats["ours", "decoded"] == pytest.approx(nats["ours", "prefix"], abs=1e-4)
    assert abs(nats["stock", "decoded"] - nats["stock", "prefix"]) > 0.01


def test_twice_the_context_without_training_in_one_process_below_the_bar(demo, tmp_path):
    """Stock breaks down past its 8,192 tokens, yarn and dynamic NTK do not; 16,384 tokens take at most 1.7 GB, weights included."""
    # glibc keeps freed blocks of any size by default: up to 0.2 GB more or less, from run to run.
    freed_at_once = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT), **freed_at_once}
    what = ["--model", demo[0].config.name_or_path, "--dtype", "float32", "--lengths", "8192", "16384", "--output_dir", str(tmp_path)]
    command = [
        sys.executable,
        str(ROOT / "recipes" / "perplexity.py"),
        *what,
        "--encoding",
        "stock",
        "yarn",
        "dynamic_ntk",
        "--factor",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=2000)
    assert done.returncode == 0, done.stderr
    found = {name: json.loads(next(tmp_path.glob(f"{name}-*.json")).read_text()) for name in ("stock", "yarn", "dynamic_ntk")}
    assert max(result["peak_memory"] for result in found.values()) <= 1.7e9
    curves = {name: [score["perplexity"] for score in result["scores"]] for name, result in found.items()}
    assert curves["stock"][1] > 1.5 * curves["stock"][0]
    assert max(curves["yarn"][1], curves["dynamic_ntk"][1]) < 1.05 * curves["stock"][0]
