"""The `hf-posenc` command, and the example of the README."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import save_tiny, tiny_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import hf_posenc
from hf_posenc import cli
from hf_posenc.training import describe_scheme, list_schemes

README = Path(__file__).parents[1] / "README.md"


def test_list_names_every_encoding(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # as wide as it takes
    assert cli.main(["list"]) == 0
    shown = {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:] if line[:1].strip()}
    assert shown == set(hf_posenc.list_encodings())


def test_mixes_are_named_with_what_they_are(capsys):
    assert cli.main(["mixes"]) == 0
    shown = {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:] if line[:1].strip()}
    assert shown == set(hf_posenc.list_mixes()) and all(f"`{name}`" in README.read_text() for name in shown)


def test_position_schemes_are_a_class_of_their_own(capsys):
    assert cli.main(["list", "--class", "training"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:] if line[:1].strip()} == set(list_schemes())
    assert cli.main(["list", "--class", "training", "--needs_training", "yes"]) == 1
    assert capsys.readouterr().err == "error: position schemes are no encodings, and have no --needs-training: leave it out\n"


@pytest.mark.parametrize("name", list_schemes())
def test_describe_prints_a_position_scheme(name, capsys):
    assert cli.main(["describe", name]) == 0
    assert capsys.readouterr().out == f"{describe_scheme(name)}\n"


def test_models_are_types_of_transformers_that_a_patch_takes(capsys):
    assert cli.main(["models"]) == 0
    shown = capsys.readouterr().out.split()
    assert shown == hf_posenc.list_model_types() == sorted(shown)
    assert {"gpt2", "llama", "bloom", "deepseek_v3", "qwen3_moe", "whisper"} <= set(shown) and "mamba" not in shown
    assert set(shown) <= set(CONFIG_MAPPING)


@pytest.mark.parametrize("name", hf_posenc.list_encodings())
def test_describe_prints_documentation_and_options(name, capsys):
    assert cli.main(["describe", name]) == 0
    shown, description = capsys.readouterr().out, hf_posenc.describe(name)
    assert description.documentation in shown
    assert all(f"{option}=" in shown for option in description.options)


def test_inspect_reports_what_is_saved(tmp_path, capsys):
    folder = save_tiny(tmp_path / "stock")
    hf_posenc.patch(AutoModelForCausalLM.from_pretrained(folder), "alibi").save_pretrained(tmp_path / "patched")
    assert cli.main(["inspect", str(folder)]) == 0
    assert "patched: no" in capsys.readouterr().out
    assert cli.main(["inspect", str(tmp_path / "patched")]) == 0
    assert "patched: alibi" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["describe", "yran"],
        ["describe", "cape:scale=2"],
        ["describe", "cape", "--model", "demo"],
        ["inspect", "nowhere/at/all"],
        ["compare", "--steps", "0"],
        ["finetune", "gone.yaml"],
    ],
)
def test_mistakes_are_one_line(words, capsys):
    assert cli.main(words) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: ") and "Traceback" not in captured.err


def test_the_installed_command_knows_every_recipe():
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-m", "hf_posenc.cli", "--help"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0
    others = {"benchmark", "benchmark_perplexity", "trl_sft"}
    recipes = {path.stem for path in (README.parent / "recipes").glob("*.py")} - others
    assert all(re.search(rf"^ +{recipe}\b", done.stdout, re.MULTILINE) for recipe in recipes)


@torch.no_grad()
def test_the_encoding_in_the_readme_works():
    code = next(block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "@register" in block)
    exec(code, {})
    try:
        ids = torch.arange(5, 14)[None]
        model = tiny_model("llama")
        stock = model(ids).logits
        assert not torch.allclose(hf_posenc.patch(model, "log_distance")(ids).logits, stock, atol=1e-3)
    finally:
        hf_posenc.encodings.ENCODINGS._entries.pop("log_distance")


def test_the_readme_names_what_there_is():
    text = README.read_text()
    assert all(f"`{name}`" in text for name in (*hf_posenc.list_encodings(), *hf_posenc.architectures.ARCHITECTURES))


def test_the_readme_tells_of_this_version_and_of_files_that_there_are():
    contributing, changes = README.read_text().partition("## Contributing")[2].split("## Changes")
    files = set(re.findall(r"(?:tests|hf_posenc)/[\w/]+(?:\.py)?", contributing)) - {"tests/encodings/test_NAME.py"}
    assert len(files) > 8 and not [file for file in files if not (README.parent / file).exists()]
    assert f"\n### {hf_posenc.__version__}\n" in changes
