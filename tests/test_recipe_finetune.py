"""The fine-tuning recipe from the outside: a tiny model, the embedded corpus."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import save_tiny
from transformers import AutoModelForCausalLM

import hf_posenc
from hf_posenc import finetuning

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("A sentence to learn, over and over, with a number: 12345. " * 60)
    return path


def arguments(model, text, output, *more):
    shared = ["--block_size", "32", "--max_steps", "6", "--save_steps", "3", "--learning_rate", "1e-2", "--use_cpu", "true"]
    return ["--model", str(model), "--text", str(text), "--output_dir", str(output), *shared, *more]


def test_the_recipe_as_a_command(model, text, tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    more = ["--encoding", "t5", "--eval-lengths", "32", "128", "--gradient_checkpointing", "true", "--bf16", "true"]
    command = [sys.executable, str(ROOT / "recipes" / "finetune.py"), *arguments(model, text, tmp_path / "out", *more)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "patched: t5" in done.stdout and "eval_nll@128:" in done.stdout and "loaded again" in done.stdout
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert hf_posenc.inspect(again).encodings[0].name == "t5"


def test_an_interrupted_run_ends_where_it_would_have(model, text, tmp_path):
    out = tmp_path / "out"
    finetuning.run(*finetuning.parse(arguments(model, text, out, "--encoding", "kerple")))
    whole = AutoModelForCausalLM.from_pretrained(out).state_dict()
    shutil.rmtree(out / "checkpoint-6")
    (out / "model.safetensors").unlink()
    finetuning.run(*finetuning.parse(arguments(model, text, out, "--encoding", "kerple")))
    resumed = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    start = AutoModelForCausalLM.from_pretrained(model).state_dict()
    assert not torch.equal(start["lm_head.weight"], whole["lm_head.weight"])


def test_an_adapter_trains_the_encoding_too(model, text, tmp_path, capsys):
    more = ["--encoding", "kerple", "--lora_rank", "2", "--eval_strategy", "steps", "--eval_steps", "3"]
    finetuning.run(*finetuning.parse(arguments(model, text, tmp_path / "out", *more)))
    assert "loaded again" in capsys.readouterr().out
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert any("positional_encoding" in name for name in saved)

    from peft import PeftModel

    torch.manual_seed(1)
    base = hf_posenc.patch(AutoModelForCausalLM.from_pretrained(model), "kerple")
    adapted = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged").eval()
    ids = torch.arange(40)[None]
    torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-5)


def test_checkpoints_of_another_run_are_not_continued(model, text, tmp_path, capsys):
    assert finetuning.main(arguments(model, text, tmp_path / "out", "--encoding", "alibi")) == 0
    assert finetuning.main(arguments(model, text, tmp_path / "out", "--encoding", "nope")) == 1
    assert "encoding was 'alibi', is 'nope'" in capsys.readouterr().err


def test_an_encoding_that_is_live_already_is_not_called_new(model, text, tmp_path, capsys):
    patched = hf_posenc.patch(AutoModelForCausalLM.from_pretrained(model), "alibi")
    patched.save_pretrained(tmp_path / "patched")
    shutil.copy(model / "tokenizer.json", tmp_path / "patched")
    shutil.copy(model / "tokenizer_config.json", tmp_path / "patched")
    assert finetuning.main(arguments(tmp_path / "patched", text, tmp_path / "out", "--encoding", "alibi")) == 1
    assert "live in the model already" in capsys.readouterr().err


def test_layers():
    assert [finetuning.parse_layers(given) for given in ("all", "3::4", ":-1", "0,3")] == [
        "all",
        slice(3, None, 4),
        slice(None, -1),
        [0, 3],
    ]


def test_settings_from_a_file_with_flags_on_top(model, text, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(
        f"model: {model}\nencoding: linear\nfactor: 2.0\ntext: [{text}]\nblock_size: 32\nmax_steps: 9\neval_lengths: [32, 64]\n"
    )
    model_args, data_args, settings = finetuning.parse([str(file), "--max_steps", "2"])
    assert (model_args.encoding, model_args.factor, data_args.eval_lengths, settings.max_steps) == ("linear", 2.0, [32, 64], 2)


@pytest.mark.parametrize("preset", sorted((ROOT / "recipes" / "configs" / "finetune").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_preset_is_understood(preset):
    model_args, _, settings = finetuning.parse([str(preset)])
    assert model_args.encoding in hf_posenc.list_encodings() and settings.max_steps > 0
    finetuning.encoding_options(model_args)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--encoding", "alibbi"], "Did you mean 'alibi'"),
        (["--encoding", "yarn"], "takes either factor= or target_length="),
        (["--encoding", "yarn", "--factor", "nan"], "factor must be a finite number"),
        (["--factor", "2"], "takes no options"),
        (["--encoding", "alibi", "--block_size", "100000"], "fewer than one block of 100,000"),
        (["--encoding", "alibi", "--eval_lengths", "4096"], "held out for the test at 4,096 tokens"),
        (["--encoding", "learned", "--eval_lengths", "128"], "past the learned table of"),
        (["--encoding", "alibi", "--layers", "every"], "neither 'all', nor a slice"),
        (["--encoding", "alibi", "--layers", "7"], "the model has layers 0 to 1"),
        (["--encoding", "alibi", "--dataset", "nowhere.csv"], "exclude each other"),
    ],
)
def test_mistakes_are_one_line(model, text, tmp_path, capsys, more, message):
    assert finetuning.main(arguments(model, text, tmp_path / "out", *more)) == 1
    err = capsys.readouterr().err.strip().split("\n")[-1]
    assert err.startswith("error: ") and message in err
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_a_missing_file_is_named(model, tmp_path, capsys):
    assert finetuning.main(arguments(model, tmp_path / "gone.txt", tmp_path / "out")) == 1
    assert "gone.txt" in capsys.readouterr().err
