"""The page for users of TRL, as a user runs it."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_posenc

pytest.importorskip("trl")
FILE = Path(__file__).parents[1] / "recipes" / "trl_sft.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("trl_sft", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("model"))
    AutoTokenizer.from_pretrained(folder, eos_token="<s>", pad_token="<s>").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("encoding", "option"), [("yarn", ["--factor", "2"]), ("kerple", []), ("rerope", ["--option", "window=8"])])
def test_a_patched_model_is_trained_saved_and_loaded(encoding, option, recipe, model, tmp_path, capsys):
    shared = ["--model", str(model), "--output_dir", str(tmp_path), "--max_steps", "8", "--learning_rate", "1e-2", "--logging_steps", "1"]
    recipe.run([*shared, "--encoding", encoding, *option, "--use_cpu", "true"])
    out = capsys.readouterr().out
    assert f"patched: {encoding}" in out and "the same positional encoding is live in it" in out
    losses = [float(loss) for loss in re.findall(r"'loss': '?([\d.]+)", out)]
    assert len(losses) == 8 and losses[-1] < losses[0] - 0.5
    assert not torch.equal(
        load_file(tmp_path / "model.safetensors")["lm_head.weight"], load_file(model / "model.safetensors")["lm_head.weight"]
    )
    again = hf_posenc.inspect(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert [found.name for found in again.encodings] == [encoding] or again.stock_checkpoint


def test_a_checkpoint_with_another_encoding_is_noticed(recipe, model, tmp_path, monkeypatch):
    def save_stock(trainer):
        hf_posenc.unpatch(trainer.model).save_pretrained(trainer.args.output_dir)
        hf_posenc.patch(trainer.model, "alibi")

    monkeypatch.setattr(recipe.SFTTrainer, "save_model", save_stock)
    with pytest.raises(ValueError, match="another positional encoding"):
        recipe.run(["--model", str(model), "--output_dir", str(tmp_path), "--max_steps", "1", "--encoding", "alibi", "--use_cpu", "true"])


def test_the_page_is_one_page():
    assert len(FILE.read_text().splitlines()) <= 64
