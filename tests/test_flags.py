"""The flags of every recipe: checked when they are read, by one declaration each, from the command line and from files alike."""

import importlib.util
import json
import re
import runpy
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
import yaml
from transformers import TrainingArguments

from hf_posenc import comparison, finetuning
from hf_posenc.cli import COMMANDS, RECIPES
from hf_posenc.cli import main as command
from hf_posenc.doctor.cli import DoctorArguments
from hf_posenc.evaluation.harness.cli import HarnessArguments
from hf_posenc.evaluation.perplexity.cli import PerplexityArguments
from hf_posenc.evaluation.retrieval.cli import RetrievalArguments
from hf_posenc.evaluation.retrieval.passkey_cli import PasskeyArguments
from hf_posenc.finetuning import arguments as tuning
from hf_posenc.flags import parse
from hf_posenc.recommending.cli import RecommendArguments
from hf_posenc.searching.cli import SearchArguments

RECIPES_FOLDER = Path(__file__).parents[1] / "recipes"


@cache
def recipe(name):
    spec = importlib.util.spec_from_file_location(name, RECIPES_FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PARSERS = {
    "perplexity": partial(parse, [PerplexityArguments], "hf-posenc perplexity"),
    "passkey": partial(parse, [PasskeyArguments], "hf-posenc passkey"),
    "retrieval": partial(parse, [RetrievalArguments], "hf-posenc retrieval"),
    "compare": partial(parse, [comparison.CompareArguments], "hf-posenc compare"),
    "finetune": finetuning.parse,
    "doctor": partial(parse, [DoctorArguments], "hf-posenc doctor"),
    "eval": partial(parse, [HarnessArguments], "hf-posenc eval"),
    "recommend": partial(parse, [RecommendArguments], "hf-posenc recommend"),
    "search": partial(parse, [SearchArguments], "hf-posenc search"),
    "benchmark": lambda words: parse([recipe("benchmark").Arguments], "recipes/benchmark.py", words),
    "benchmark_perplexity": lambda words: parse([recipe("benchmark_perplexity").Arguments], "recipes/benchmark_perplexity.py", words),
}
OWN = {
    "perplexity": [PerplexityArguments],
    "passkey": [PasskeyArguments],
    "retrieval": [RetrievalArguments],
    "compare": [comparison.CompareArguments],
    "finetune": [tuning.ModelArguments, tuning.EncodingArguments, tuning.DataArguments, tuning.CourseArguments, tuning.EvaluationArguments],
    "doctor": [DoctorArguments],
    "eval": [HarnessArguments],
    "recommend": [RecommendArguments],
    "search": [SearchArguments],
    "benchmark": [recipe("benchmark").Arguments],
    "benchmark_perplexity": [recipe("benchmark_perplexity").Arguments],
}
NUMBERS = [
    (name, field)
    for name, kinds in OWN.items()
    for kind in kinds
    for field, hint in get_type_hints(kind).items()
    if field in {each.name for each in fields(kind)} and re.search(r"\b(int|float)\b", str(hint))
]


def refusal(name, words):
    with pytest.raises(ValueError) as caught:
        PARSERS[name](words)
    return str(caught.value)


def test_the_numbers_of_all_recipes_are_found():
    assert len(NUMBERS) > 50 and {name for name, _ in NUMBERS} == set(OWN)
    assert {path.stem for path in RECIPES_FOLDER.glob("*.py")} == {*OWN, "trl_sft"} - {"doctor", "eval", "recommend", "search"}


@pytest.mark.parametrize("value", ["-7", "nan", "inf", "1e400", "x", "", "1,2"])
@pytest.mark.parametrize(("name", "field"), NUMBERS)
def test_every_number_has_bounds(name, field, value, tmp_path):
    """A flag without a check takes -7 or NaN."""
    message = refusal(name, [f"--{field}", value])
    assert f"--{field}" in message and "\n" not in message
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({field: value}))
    assert refusal(name, [str(file)]).startswith(f"{file}: ")


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("perplexity", ["--documents", "0"], "--documents must be an integer of at least 1, got 0"),
        ("perplexity", ["--batch_tokens", "-1"], "--batch_tokens must be an integer of at least 1"),
        ("perplexity", ["--chunk", "0"], "--chunk must be an integer of at least 1"),
        ("perplexity", ["--lengths", "64", "1"], "--lengths must be an integer of at least 2, got 1"),
        ("perplexity", ["--factor", "1e30"], "--factor must be a finite number at least 1 and at most 10000, got 1e+30"),
        ("perplexity", ["--dtype", "float8"], "--dtype: invalid choice: 'float8'"),
        ("perplexity", ["--device", "foo"], "--device 'foo' cannot be used here"),
        ("perplexity", ["--device", "meta"], "--device 'meta' cannot be used here"),
        ("perplexity", ["--protocol", "suffix"], "unknown protocol 'suffix'"),
        ("perplexity", ["--encodings", "yarn"], "unknown flag '--encodings'. Did you mean '--encoding'"),
        ("perplexity", ["--length", "64"], "unknown flag '--length'. Did you mean '--lengths'"),
        ("perplexity", ["yarn"], "unknown flag 'yarn'"),
        ("compare", ["--heads", "2"], "Did you mean '--num_heads'"),
        ("compare", ["--seeds", "1", "-1"], "--seeds must be an integer of at least 0, got -1"),
        ("passkey", ["--depths", "-0.5"], "--depths must be a finite number of at least 0"),
        ("finetune", ["--block_size", "0"], "--block_size must be an integer of at least 2"),
        ("finetune", ["--block_size", "1"], "--block_size must be an integer of at least 2"),
        ("finetune", ["--eval_lengths", "0"], "--eval_lengths must be an integer of at least 2"),
        ("finetune", ["--pose_target", "512"], "unknown flag '--pose_target'. Did you mean '--position_target'"),
        (
            "finetune",
            ["--position_scheme", "pose", "--position_target", "512"],
            "--position_target 512 leaves no positions to skip for blocks of 1024 tokens",
        ),
        ("finetune", ["--learning_rate", "nan"], "--learning_rate must be a finite number"),
        ("finetune", ["--learning_rate", "-1"], "--learning_rate must be a finite number of at least 0"),
        ("finetune", ["--adam_beta1", "nan"], "--adam_beta1 must be a finite number"),
        ("finetune", ["--max_steps", "0"], "--max_steps (-1 for --num_train_epochs) must be an integer of at least 1"),
        ("finetune", ["--max_steps", "-2"], "--max_steps (-1 for --num_train_epochs) must be an integer of at least 1"),
        ("finetune", ["--num_train_epochs", "0"], "--num_train_epochs must be a finite number above 0"),
        ("finetune", ["--per_device_train_batch_size", "0"], "--per_device_train_batch_size must be an integer of at least 1"),
        ("finetune", ["--dtype", "float8"], "--dtype: invalid choice: 'float8'"),
        ("benchmark", ["--parts", "atention"], "--parts is one of attention, "),
        ("benchmark_perplexity", ["--parts", "decode"], "invalid choice: 'decode'"),
    ],
)
def test_a_value_that_a_flag_cannot_have_is_named(name, words, message):
    assert message in refusal(name, words)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistake_is_one_line_and_status_1(name, capsys):
    for words in (["--nosuch"], ["--output_dir"], ["gone.yaml"], ["--preset", "nosuch"]):
        assert command([name, *words]) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and "HfArgumentParser" not in err, err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there():
    assert "--device 'cuda' cannot be used here" in refusal("perplexity", ["--device", "cuda"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lengths: [64, x]", "argument --lengths: invalid int value: 'x'"),
        ("lengths: [64, null]", "argument --lengths: invalid int value: 'None'"),
        ("lengths: 64.5", "argument --lengths: invalid int value: '64.5'"),
        ("model: [x]", "model takes one value, got a list: ['x']"),
        ("overwrite: maybe", "overwrite"),
        ("a:\n\t- b", "cannot be read as settings: while scanning"),
        ("- lengths", "holds no settings"),
        ("", "holds no settings"),
        ("length: 64", "unknown settings: length. Did you mean 'lengths'"),
        ("1: 2", "unknown settings: 1"),
        ("lengths: 64\nchunk: 0", "--chunk must be an integer of at least 1"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(text, message, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    found = refusal("perplexity", [str(file)])
    assert message in found and found.startswith(str(file)) and "\n" not in found


def test_a_file_that_is_no_text_and_one_with_tabs(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    assert str(tmp_path / "a.yaml") in refusal("perplexity", [str(tmp_path / "a.yaml")])
    (tmp_path / "a.json").write_text('{\n\t"lengths": [64],\n\t"key_tokens": true\n}')
    (found,) = PARSERS["perplexity"]([str(tmp_path / "a.json")])
    assert found.lengths == [64] and found.key_tokens is True


def test_a_file_says_what_the_same_flags_say(tmp_path):
    settings = {
        "lengths": 64,
        "encoding": ["stock", "yarn:factor=2.5,layers=3::4"],
        "option": "window=8",
        "stride": None,
        "key_tokens": True,
    }
    settings |= {"text": ["-a b.txt"], "text_column": "-c", "layers": "0,2", "factor": 2, "streaming": False}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "a.json").write_text(json.dumps(settings))
    words = ["--lengths", "64", "--encoding", "stock", "yarn:factor=2.5,layers=3::4", "--option", "window=8", "--key_tokens"]
    words += ["--text=-a b.txt", "--text_column=-c", "--layers", "0,2", "--factor", "2", "--no_streaming"]
    read = PARSERS["perplexity"]
    assert read([str(tmp_path / "a.yaml")]) == read([str(tmp_path / "a.json")]) == read(words)
    (found,) = read([str(tmp_path / "a.yaml"), "--lengths", "8", "16", "--key-tokens", "false"])
    assert found.lengths == [8, 16] and found.key_tokens is False and found.stride is None and found.factor == 2.0


def test_never_is_a_large_number_of_steps(tmp_path):
    found = finetuning.parse(["--save_steps", "100000000", "--logging_steps", "0.1", "--output_dir", str(tmp_path)])
    assert (found.training.save_steps, found.training.logging_steps) == (100_000_000, 0.1)


def test_dictionaries_of_training_arguments_come_from_a_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("lr_scheduler_kwargs: {min_lr: 1.0e-6}\nmax_steps: 4\n")
    assert finetuning.parse([str(file), "--output_dir", str(tmp_path)]).training.lr_scheduler_kwargs == {"min_lr": 1e-6}


def help_of(name, capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        command([name, *words])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_in_groups_and_shows_every_flag_of_ours(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    shown = help_of(name, capsys, "--help")
    assert shown.startswith(f"usage: hf-posenc {name} ")
    flags = re.findall(r"^  --(\w+)", shown, re.MULTILINE)
    own = [each.name for kind in OWN[name] for each in fields(kind)]
    assert set(own) <= set(flags) and len(flags) == len(set(flags))
    assert len(re.findall(r"^\S.*:$", shown, re.MULTILINE)) >= 2 and "None" not in shown and "[]" not in shown
    zeros = [each.name for kind in OWN[name] for each in fields(kind) if each.default == 0 and each.default is not False]
    assert all(re.search(rf"--{zero}\b[^-]*\(default: 0", shown) for zero in zeros), "0 is a default like any other"


@pytest.mark.parametrize("script", ["benchmark", "benchmark_perplexity", "trl_sft"])
def test_what_is_no_command_is_not_called_one(script, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [script, "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(RECIPES_FOLDER / f"{script}.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith(f"usage: recipes/{script}.py ")


def test_finetune_shows_few_flags_of_others_last_and_all_on_demand(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    shown, everything = (help_of("finetune", capsys, flag) for flag in ("--help", "--help-all"))
    few, all_ = (re.findall(r"^  --(\w+)", text, re.MULTILINE) for text in (shown, everything))
    theirs = {each.name for each in fields(TrainingArguments) if each.init}
    own = [name for name in few if name not in theirs]
    assert few[: len(own)] == own and 12 <= len(few) - len(own) <= 24 and theirs <= set(all_) and few == all_[: len(few)]
    titles = re.findall(r"^(\S.*):$", shown, re.MULTILINE)
    assert [title.split()[-1].strip(".") for title in titles[:5]] == [
        "model",
        "encoding",
        "text",
        "text",
        "scheme",
    ] and "valuation" in titles[5]
    assert f"{len(theirs) - len(few) + len(own)} more flags, of TrainingArguments: --help-all" in shown and "more flags" not in everything


def test_one_name_for_one_thing():
    """What all recipes have is called the same in all."""
    names = {name: {each.name for kind in OWN[name] for each in fields(kind)} for name in OWN}
    for name in RECIPES:
        assert {"model", "encoding", "layers", "factor", "target_length", "option"} <= names[name]
    assert not [name for name in names if {"encodings", "num_hidden_layers", "heads"} & names[name]]
