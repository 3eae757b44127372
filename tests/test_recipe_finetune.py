"""The fine-tuning recipe from the outside: tiny models, the real Trainer."""

import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny import save_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import hf_posenc
from hf_posenc import finetuning
from hf_posenc.benchmarking import peak_bytes
from hf_posenc.evaluation.models import read_model
from hf_posenc.finetuning import model as models
from hf_posenc.finetuning.checkpoints import file_sizes
from hf_posenc.finetuning.estimate import estimate
from hf_posenc.finetuning.reload import compare
from hf_posenc.finetuning.run import prepare, train
from hf_posenc.finetuning.verify import expect, reloads
from hf_posenc.flags import CONFIGS

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
PRESETS = sorted(path.stem for path in (CONFIGS / "finetune").glob("*.yaml"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("gpt2"), "gpt2")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("A sentence to learn, over and over, with a number: 12345. " * 60)
    return path


def arguments(model, text, output, *more):
    shared = ["--block_size", "32", "--max_steps", "6", "--save_steps", "3", "--learning_rate", "1e-2", "--use_cpu", "true"]
    return ["--model", str(model), "--text", str(text), "--output_dir", str(output), *shared, *more]


def fit(argv):
    """Train and save, without the fresh process; the Trainer."""
    prepared = prepare(finetuning.parse(argv))
    train(*prepared)
    return prepared[1]


def weights(folder):
    return load_file(next(folder.glob("*model.safetensors")))  # of a model, or of an adapter


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def last_line(text):
    return text.strip().split("\n")[-1]


def history(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def command(*argv):
    return [sys.executable, str(ROOT / "recipes" / "finetune.py"), *argv]


def test_the_recipe_as_a_command(model, text, tmp_path):
    more = ["--encoding", "t5", "--eval-lengths", "32", "128", "--activation_checkpointing", "true", "--bf16", "true"]
    done = subprocess.run(
        command(*arguments(model, text, tmp_path / "out", *more)), capture_output=True, text=True, env=ENVIRONMENT, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "patched: t5" in done.stdout and "eval_nll@128:" in done.stdout and "1 process(es)" in done.stdout
    assert "context of the result: any number of tokens" in done.stdout and "estimate:" in done.stdout
    assert "loaded again in a new process: logits differ by 0.0e+00" in done.stdout
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert hf_posenc.inspect(again).encodings[0].name == "t5"


def watch(model):
    """A list that gets the ids and positions of every batch that the model computes a training loss for."""
    seen = []

    def note(module, args, given):
        if module.training:
            seen.append((given["input_ids"], given.get("position_ids", torch.arange(given["input_ids"].shape[1]))))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


@pytest.mark.parametrize("preset", [pytest.param(name, marks=[pytest.mark.slow] * name.endswith("-512k")) for name in PRESETS])
def test_every_preset_trains_when_shortened(preset, model, gpt2, text, tmp_path):
    asked = finetuning.parse(["--preset", preset])
    assert asked.encoding.encoding in hf_posenc.list_encodings() and asked.training.max_steps > 0
    family = gpt2 if asked.model.model.endswith("gpt2") else model
    replay = tmp_path / "short.txt"
    replay.write_text("0123456789" * 48)  # whole blocks
    short = ["--eval_lengths", "32", "64", "--eval_tokens", "128", "--max_steps", "4", "--warmup_steps", "1", "--save_steps", "2"]
    short += ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "2"]
    short += ["--target_length", "256"] * bool(asked.encoding.target_length)
    short += ["--position_target", "256"] * bool(asked.course.position_scheme)
    short += ["--anneal_steps", "3"] * bool(asked.course.anneal)
    short += ["--length_schedule", "0=8", "1=16", "3=32"] * bool(asked.course.length_schedule)
    short += ["--option_schedule", "theta", "0=1000000", "1=5000000", "3=10000000"] * bool(asked.course.option_schedule)
    short += ["--min_length", "32"] * (asked.data.min_length > 1)
    short += ["--replay", str(replay)] * bool(asked.data.replay_share)
    prepared = prepare(finetuning.parse(["--preset", preset, *arguments(family, text, tmp_path, *short)]))
    trainer, seen = prepared[1], watch(prepared[1].model)
    train(*prepared)
    seen = seen[-8:]  # 4 steps of 2, after the estimate and the evaluation at the start
    assert [len(ids[0]) for ids, _ in seen] == ([8, 8, 16, 16, 16, 16, 32, 32] if asked.course.length_schedule else [32] * 8)
    assert {ids.numel() for ids, _ in seen} == {32}
    assert any(positions.max() >= 64 for _, positions in seen) == bool(asked.course.position_scheme)
    if asked.course.anneal:
        values = [entry["rope.theta"] for entry in trainer.state.log_history if "rope.theta" in entry]
        assert (values[0], values[-1], len(values)) == (500_000, 15_300_000, 4) and values == sorted(values)
    if asked.course.option_schedule:
        values = [entry["rope.theta"] for entry in trainer.state.log_history if "rope.theta" in entry]
        assert values == [1_000_000, 5_000_000, 10_000_000]
    if asked.data.replay_share:
        digits = torch.tensor(AutoTokenizer.from_pretrained(family)("0123456789")["input_ids"])
        assert sum(bool(torch.isin(ids, digits).all()) for ids, _ in seen) == 3  # 40 % of 8, the estimate's batch apart
        assert trainer.lr_scheduler.get_last_lr() == pytest.approx(2 * [0.1 * 1e-2])  # with weight decay and without
    if asked.course.lora_rank:
        assert set(models.trained(trainer.model)) == {"LoRA", "embeddings", "norms"}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.state.global_step == 4 and losses and all(map(math.isfinite, losses))
    again = read_model(str(tmp_path))
    assert hf_posenc.inspect(again).fingerprint == hf_posenc.inspect(trainer.model).fingerprint
    assert hf_posenc.inspect(again).fingerprint != hf_posenc.inspect(AutoModelForCausalLM.from_pretrained(family)).fingerprint
    ids = torch.arange(60)[None]
    torch.testing.assert_close(again(ids).logits, trainer.model.eval()(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_second_stage_goes_on_from_the_first(model, text, tmp_path):
    """A patched checkpoint is patched again: the same encoding at another theta, and the weights of the first stage."""
    one, two = (finetuning.parse(["--preset", f"easycontext-{length}"]).course for length in ("64k", "512k"))
    first = ["--length_schedule", "0=16", "1=32", "--option_schedule", "theta", "0=1000000", "1=5000000", "--max_steps", "2"]
    fit(["--preset", "easycontext-64k", *arguments(model, text, tmp_path / "one", *first, "--eval_tokens", "128", "--eval_lengths", "32")])
    second = ["--length_schedule", "0=32", "1=64", "--option_schedule", "theta", "0=10000000", "1=250000000", "--block_size", "64"]
    second += ["--max_steps", "2", "--eval_tokens", "128", "--eval_lengths", "64", "--learning_rate", "0"]
    trainer = fit(["--preset", "easycontext-512k", *arguments(tmp_path / "one", text, tmp_path / "two", *second)])
    assert [entry["rope.theta"] for entry in trainer.state.log_history if "rope.theta" in entry] == [1e7, 2.5e8]
    assert hf_posenc.inspect(trainer.model).encodings[0].options["theta"] == 2.5e8
    assert equal(weights(tmp_path / "one"), weights(tmp_path / "two"))  # trained on at a learning rate of 0
    stages = [float(stage.partition("=")[2]) for course in (one, two) for stage in course.option_schedule[1:]]
    assert stages == [1e6, 5e6, 1e7, 2.5e7, 5e7, 1e8, 2.5e8]  # of the authors' script


COURSES = {
    "kerple": ["--encoding", "kerple", "--gradient_accumulation_steps", "2"],
    "pose": ["--encoding", "linear", "--target_length", "256", "--position_scheme", "pose"],
    "anneal": ["--encoding", "yarn", "--anneal", "factor=1:4", "--anneal_steps", "5"],
    "lengths": ["--encoding", "alibi", "--length_schedule", "0=8", "2=16", "4=32"],
    "lora": ["--encoding", "kerple", "--lora_rank", "2", "--lora_dropout", "0.5"],
}


@pytest.mark.parametrize("course", COURSES)
def test_an_interrupted_run_ends_where_it_would_have(course, gpt2, model, text, tmp_path):
    base = model if course in ("pose", "anneal") else gpt2  # this GPT-2 has dropout: random numbers matter
    argv = arguments(base, text, tmp_path, *COURSES[course], "--logging_steps", "1")
    fit(argv)
    whole, log = weights(tmp_path), history(tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-6")
    next(tmp_path.glob("*model.safetensors")).unlink()
    fit(argv)
    assert equal(whole, weights(tmp_path))
    assert [e["loss"] for e in log if "loss" in e] == [e["loss"] for e in history(tmp_path) if "loss" in e]
    assert not equal(whole, weights(tmp_path / "checkpoint-3"))


@pytest.mark.parametrize(
    ("scheme", "more"),
    [
        ("pose", ["--encoding", "alibi", "--position_target", "64", "--boundaries", "respect", "--position_option", "chunks=3"]),
        ("cream", ["--encoding", "alibi", "--position_target", "64", "--length_schedule", "0=8", "2=32"]),
        ("shape", ["--encoding", "sinusoidal", "--position_option", "max_offset=40"]),
        ("cape", ["--encoding", "rope", "--option", "theta=500"]),
        ("giraffe", ["--encoding", "fire"]),
        ("position_coupling", ["--encoding", "rope", "--option", "theta=500", "--position_option", "max_position=9"]),
    ],
)
def test_position_schemes(scheme, more, model, tmp_path, capsys):
    """Documents are kept apart, every batch of training is at other positions, and what is measured beside it is not."""
    text = tmp_path / "sums.jsonl"
    text.write_text("".join(json.dumps({"text": f"{a}+{a * 7}={str(a * 8)[::-1]}"}) + "\n" for a in range(10, 200)))
    argv = ["--model", str(model), "--dataset", str(text), "--output_dir", str(tmp_path / "out"), "--block_size", "32", "--max_steps", "3"]
    prepared = prepare(finetuning.parse([*argv, "--use_cpu", "true", "--save_strategy", "no", "--position_scheme", scheme, *more]))
    assert f"positions: {scheme}" in capsys.readouterr().out
    seen, masks = watch(prepared[1].model), []
    prepared[1].model.register_forward_pre_hook(lambda module, args, given: masks.append(given.get("attention_mask")), with_kwargs=True)
    train(*prepared)
    assert seen and all(int(mask.max()) > 2 for mask in masks if mask is not None) == prepared[0].boundaries
    assert not any(torch.equal(positions, torch.arange(ids.shape[1]).expand_as(ids)) for ids, positions in seen)
    assert math.isfinite(prepared[2].last["eval_nll@32"])


def test_a_finished_run_is_left_as_it_is(model, text, tmp_path):
    argv = arguments(model, text, tmp_path, "--encoding", "alibi")
    fit(argv)
    whole = weights(tmp_path)
    assert fit(argv).state.global_step == 6
    assert equal(whole, weights(tmp_path))


@pytest.mark.slow
def test_a_finished_run_as_a_command_says_so_and_is_verified_again(model, text, tmp_path, capfd):
    argv = arguments(model, text, tmp_path, "--encoding", "yarn", "--anneal", "factor=1:4", "--length_schedule", "0=16", "2=32")
    argv += ["--disable_tqdm", "false"]
    fit(argv)
    whole = weights(tmp_path)
    capfd.readouterr()
    assert finetuning.main(argv) == 0
    out, err = capfd.readouterr()
    assert "finished: all steps were made before" in out and "eval_nll@32:" in out and "Traceback" not in err
    assert "loaded again in a new process: logits differ by 0.0e+00" in out
    assert equal(whole, weights(tmp_path))


class Paired(TrainerCallback):
    """Closes at the end what it opened at the beginning."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.open = [state.global_step]

    def on_train_end(self, args, state, control, **kwargs):
        self.open.remove(6)


def test_any_callback_survives_the_end_of_a_finished_run(model, text, tmp_path):
    argv = arguments(model, text, tmp_path, "--encoding", "alibi")
    fit(argv)
    prepared, callback = prepare(finetuning.parse(argv)), Paired()
    prepared[1].add_callback(callback)
    train(*prepared)
    assert callback.open == []


def test_a_killed_run_ends_where_it_would_have(gpt2, text, tmp_path):
    more = ["--encoding", "kerple", "--max_steps", "60", "--save_steps", "2", "--save_total_limit", "2"]
    fit(arguments(gpt2, text, tmp_path / "whole", *more))
    process = subprocess.Popen(command(*arguments(gpt2, text, tmp_path / "killed", *more)), env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    while not (tmp_path / "killed" / "checkpoint-4" / "files.json").exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    fit(arguments(gpt2, text, tmp_path / "killed", *more))
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    assert history(tmp_path / "whole")[-1]["eval_nll@32"] == history(tmp_path / "killed")[-1]["eval_nll@32"]


def truncate(file):
    file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth"])
@pytest.mark.parametrize("damage", [truncate, pytest.param(Path.unlink, marks=pytest.mark.slow)])
def test_a_run_goes_on_from_the_last_whole_checkpoint(damage, name, model, text, tmp_path, capsys):
    argv = arguments(model, text, tmp_path, "--encoding", "alibi")
    fit(argv)
    whole = weights(tmp_path)
    damage(tmp_path / "checkpoint-6" / name)
    fit(argv)
    out = capsys.readouterr().out
    assert f"checkpoint-6 is incomplete ({name}" in out and f"going on from {tmp_path / 'checkpoint-3'}" in out
    assert equal(whole, weights(tmp_path))
    damage(tmp_path / "checkpoint-6" / name)
    assert finetuning.main([*argv, "--resume_from_checkpoint", str(tmp_path / "checkpoint-6")]) == 1
    assert f"cannot go on from {tmp_path / 'checkpoint-6'}: {name}" in capsys.readouterr().err


def test_a_checkpoint_asked_for_by_name_is_taken_and_later_ones_are_written_anew(model, text, tmp_path, capsys):
    argv = arguments(model, text, tmp_path, "--encoding", "alibi")
    fit(argv)
    whole = weights(tmp_path)
    (tmp_path / "checkpoint-6" / "old").touch()
    fit([*argv, "--resume_from_checkpoint", str(tmp_path / "checkpoint-3")])
    assert f"going on from {tmp_path / 'checkpoint-3'}" in capsys.readouterr().out
    assert equal(whole, weights(tmp_path)) and not (tmp_path / "checkpoint-6" / "old").exists()


def test_a_checkpoint_without_sizes_counts_once_its_last_file_is_there(model, text, tmp_path, capsys):
    argv = arguments(model, text, tmp_path, "--encoding", "alibi")
    fit(argv)
    (tmp_path / "checkpoint-6" / "files.json").unlink()
    fit(argv)
    assert f"going on from {tmp_path / 'checkpoint-6'}" in capsys.readouterr().out


@pytest.mark.parametrize("limit", [100_000, 200_000], ids=["weights", "optimizer"])
def test_a_full_disk_is_one_line_and_costs_no_earlier_checkpoint(limit, model, text, tmp_path, capsys):
    argv = arguments(model, text, tmp_path, "--encoding", "alibi")
    fit([*argv, "--max_steps", "3", "--lr_scheduler_type", "constant"])
    before = file_sizes(tmp_path / "checkpoint-3")
    assert 100_000 < before["model.safetensors"] < 200_000 and before["optimizer.pt"] > 200_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        assert finetuning.main([*argv, "--lr_scheduler_type", "constant"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = last_line(capsys.readouterr().err)
    assert error.startswith(f"error: cannot write {tmp_path / 'checkpoint-6'}") and "make room on the disk" in error
    assert file_sizes(tmp_path / "checkpoint-3") == before
    fit([*argv, "--lr_scheduler_type", "constant"])
    assert f"going on from {tmp_path / 'checkpoint-3'}" in capsys.readouterr().out


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(model, text, tmp_path, capsys):
    more = ["--encoding", "alibi", "--learning_rate", "1e38", "--lr_scheduler_type", "constant", "--save_steps", "2"]
    assert finetuning.main(arguments(model, text, tmp_path, *more, "--logging_steps", "100")) == 1
    error = last_line(capsys.readouterr().err)
    assert error.startswith("error: the loss is ") and "at step 2: lower --learning_rate" in error and "no checkpoint yet" in error
    assert not list(tmp_path.glob("checkpoint-*"))


def test_an_adapter_trains_the_encoding_too(model, text, tmp_path):
    more = ["--encoding", "kerple", "--lora_rank", "2", "--eval_strategy", "steps", "--eval_steps", "3"]
    trainer = fit(arguments(model, text, tmp_path, *more))
    assert any("positional_encoding" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    ids = torch.arange(40)[None]
    expected = trainer.model.eval()(ids).logits
    torch.manual_seed(1)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), tmp_path).eval()
    torch.testing.assert_close(adapted(ids).logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(adapted.merge_and_unload()(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_embeddings_trained_beside_an_adapter_stay_tied(model, text, tmp_path):
    tied = AutoModelForCausalLM.from_pretrained(model, tie_word_embeddings=True)
    tied.save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "tied")
    before = weights(tmp_path / "tied")["model.embed_tokens.weight"]
    more = ["--encoding", "linear", "--factor", "2", "--lora_rank", "2", "--lora_also_train", "embed_tokens", "norm"]
    trainer = fit(arguments(tmp_path / "tied", text, tmp_path, *more))
    counts = models.trained(trainer.model)
    assert counts["embeddings"] == before.numel() and counts["norms"] == 5 * 32
    ids = torch.arange(40)[None]
    expected = trainer.model.eval()(ids).logits
    again = read_model(str(tmp_path))
    torch.testing.assert_close(again(ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(again.get_input_embeddings().weight, before)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight


@pytest.mark.slow
def test_another_model_in_the_folder_is_noticed(model, text, tmp_path, capfd):
    argv = arguments(model, text, tmp_path, "--encoding", "alibi")
    trainer, ids = fit(argv), torch.arange(40)[None]
    with torch.no_grad():
        trainer.model.model.norm.weight[0] += 0.1
    assert not reloads(trainer.model, tmp_path, ids)
    assert "is not the one that was trained: its logits differ" in capfd.readouterr().err
    expect(trainer.model, ids[:, :1], tmp_path / "expected.pt")  # a single token has the same logits without positions
    hf_posenc.patch(trainer.model, "nope").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the positional encoding in"):
        compare(str(tmp_path), str(tmp_path / "expected.pt"))


def random_state():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_training_is_the_same_with_and_without_the_estimate(gpt2, text, tmp_path):
    more = ["--encoding", "kerple", "--activation_checkpointing", "true", "--per_device_train_batch_size", "4"]
    with_estimate = fit(arguments(gpt2, text, tmp_path / "with", *more))
    _, trainer, _ = prepare(finetuning.parse(arguments(gpt2, text, tmp_path / "without", *more)))
    trainer.train()
    assert equal(with_estimate.model.state_dict(), trainer.model.state_dict())


def test_the_estimate_measures_and_touches_nothing(gpt2, text, tmp_path):
    more = ["--encoding", "kerple", "--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "4", "--bf16", "true"]
    _, trainer, _ = prepare(finetuning.parse(arguments(gpt2, text, tmp_path, *more)))
    before, state, modes = random_state(), trainer.model.state_dict(), [m.training for m in trainer.model.modules()]
    state = {name: tensor.clone() for name, tensor in state.items()}
    found = estimate(trainer, done=2)
    assert random_state() == before and [m.training for m in trainer.model.modules()] == modes
    assert equal(state, trainer.model.state_dict()) and all(p.grad is None for p in trainer.model.parameters())
    assert (found.rows, found.length, found.micro_batches) == (4, 32, (6 - 2) * 2)
    trainer.train()
    kept = [v for states in trainer.optimizer.state.values() for v in states.values() if v.ndim]
    assert found.optimizer == sum(v.numel() * v.element_size() for v in kept)
    assert found.weights == sum(p.numel() * 4 for p in trainer.model.parameters()) < found.working  # gradients alone are as much
    assert 0 < found.seconds < 10


@pytest.mark.parametrize(
    "more", ["", "activation_checkpointing true", "bf16 true", "gradient_accumulation_steps 3", "optim sgd", "lora_rank 2"]
)
def test_the_estimate_of_memory_is_what_training_takes(more, model, text, tmp_path):
    flags = [f"--{more.split()[0]}", more.split()[1]] if more else []
    quiet = ["--encoding", "kerple", "--max_steps", "2", "--save_strategy", "no", "--eval_on_start", "false", "--report", "false"]
    _, trainer, evaluation = prepare(finetuning.parse(arguments(model, text, tmp_path, *quiet, *flags)))
    trainer.remove_callback(evaluation)
    found = estimate(trainer)
    assert found.working + found.optimizer == pytest.approx(peak_bytes(trainer.train, "cpu"), rel=0.03)


def test_the_estimate_alone_leaves_nothing_behind(model, text, tmp_path, capsys):
    out = tmp_path / "out"
    assert finetuning.main(arguments(model, text, out, "--encoding", "alibi", "--estimate_only", "true")) == 0
    assert "tokens/s), measured; x 6 =" in capsys.readouterr().out
    assert not any(out.rglob("*"))


def test_the_best_checkpoint_is_chosen_by_the_loss_at_a_length(model, text, tmp_path):
    more = ["--encoding", "alibi", "--eval_lengths", "32", "64", "--eval_strategy", "steps", "--eval_steps", "1", "--save_steps", "1"]
    more += ["--metric_for_best_model", "nll@64", "--load_best_model_at_end", "true", "--learning_rate", "0.3", "--max_steps", "5"]
    trainer = fit(arguments(model, text, tmp_path, *more, "--lr_scheduler_type", "constant"))
    found = {e["step"]: e["eval_nll@64"] for e in trainer.state.log_history if "eval_nll@64" in e and "eval_loss" not in e and e["step"]}
    best = min(found, key=found.get)
    assert equal(weights(tmp_path), weights(tmp_path / f"checkpoint-{best}"))


def test_the_loss_in_chunks_trains_the_same_model(model, text, tmp_path):
    chunked = fit(arguments(model, text, tmp_path / "chunked", "--encoding", "yarn", "--factor", "2", "--loss_chunk", "7"))
    stock = fit(arguments(model, text, tmp_path / "stock", "--encoding", "yarn", "--factor", "2", "--loss_chunk", "0"))
    assert "forward" in vars(chunked.model) and "forward" not in vars(stock.model)
    for name, tensor in stock.model.state_dict().items():
        torch.testing.assert_close(chunked.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_documents_are_kept_apart_where_the_family_does_not_do_it(text, tmp_path):
    save_tiny(tmp_path / "opt", "opt")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": word * 9}) for word in ("one ", "", "two ", "  ", "three ", "four ", "five ") * 9))
    argv = ["--model", str(tmp_path / "opt"), "--dataset", str(rows), "--block_size", "64", "--encoding", "rope", "--use_cpu", "true"]
    _, trainer, _ = prepare(finetuning.parse([*argv, "--output_dir", str(tmp_path / "out")]))
    row = {name: torch.tensor(column)[None] for name, column in trainer.train_dataset[0].items()}
    starts = (row["position_ids"][0] == 0).nonzero()[1:, 0]
    assert len(starts)  # more than one document, and no empty ones
    assert (starts[1:] - starts[:-1] > 1).all()
    other = {**row, "input_ids": row["input_ids"].clone()}
    other["input_ids"][0, : starts[-1]] += 1
    with torch.no_grad():
        one, two = (trainer.model.eval()(input_ids=r["input_ids"], position_ids=r["position_ids"], use_cache=False) for r in (row, other))
    torch.testing.assert_close(one.logits[0, starts[-1] :], two.logits[0, starts[-1] :])
    _, crossing, _ = prepare(finetuning.parse([*argv, "--boundaries", "cross", "--output_dir", str(tmp_path / "out")]))
    assert "position_ids" not in crossing.train_dataset.column_names


def test_a_longer_context_is_written_down(model, text, tmp_path):
    more = ["--encoding", "rope", "--option", "theta=500000", "--block_size", "128", "--max_steps", "1"]
    trainer = fit(arguments(model, text, tmp_path, *more))
    assert models.context(trainer.model) == "128 tokens"
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.max_position_embeddings == 128
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length >= 128


def test_what_is_trained_and_for_how_long(gpt2, model):
    stock = AutoModelForCausalLM.from_pretrained(gpt2)
    assert models.trained(stock) == {
        "embeddings": (257 + 64) * 32,
        "norms": 5 * 2 * 32,
        "the rest": stock.num_parameters() - 321 * 32 - 320,
    }
    assert models.context(stock) == "64 tokens"
    patched = hf_posenc.patch(AutoModelForCausalLM.from_pretrained(model), "fire")
    learned = sum(p.numel() for name, p in patched.named_parameters() if "positional_encoding" in name)
    assert models.trained(patched)["encoding"] == learned > 0 and models.context(patched) == "any number of tokens"
    assert models.context(hf_posenc.patch(patched, "nope", layers=[0])) == "64 tokens"
    assert models.context(hf_posenc.patch(patched, "yarn", factor=4.0)) == "256 tokens"


def test_checkpoints_of_another_run_are_not_continued(model, text, tmp_path, capsys):
    fit(arguments(model, text, tmp_path, "--encoding", "alibi"))
    assert finetuning.main(arguments(model, text, tmp_path, "--encoding", "nope")) == 1
    assert "encoding was 'alibi', is 'nope'" in capsys.readouterr().err


def test_an_encoding_that_is_live_already_is_not_called_new(model, text, tmp_path, capsys):
    patched = hf_posenc.patch(AutoModelForCausalLM.from_pretrained(model), "alibi")
    patched.save_pretrained(tmp_path / "patched")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "patched")
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
    found = finetuning.parse([str(file), "--max_steps", "2"])
    assert (found.encoding.encoding, found.encoding.factor, found.eval_lengths, found.training.max_steps) == ("linear", 2.0, [32, 64], 2)


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
        (["--encoding", "learned", "--position_scheme", "pose", "--position_target", "128"], "past the learned table of"),
        (["--encoding", "learned", "--position_scheme", "shape"], "past the learned table of"),
        (["--encoding", "learned", "--position_scheme", "cape"], "'learned' is not defined"),
        (["--encoding", "alibi", "--position_scheme", "shape"], "'alibi' sees only how far they lie apart"),
        (["--encoding", "yarn", "--factor", "2", "--position_scheme", "pose", "--position_target", "256"], "asked to reach 128"),
        (["--encoding", "alibi", "--position_scheme", "poze"], "Did you mean 'pose'"),
        (["--encoding", "alibi", "--position_scheme", "pose"], "position scheme 'pose' needs target_length"),
        (["--encoding", "alibi", "--position_scheme", "giraffe", "--position_option", "x"], "--position_option 'x' is not of the form"),
        (["--encoding", "alibi", "--position_target", "64"], "no effect without --position_scheme"),
        (["--encoding", "alibi", "--layers", "every"], "neither 'all', nor a slice"),
        (["--encoding", "alibi", "--layers", "7"], "the model has layers 0 to 1"),
        (["--encoding", "alibi", "--dataset", "nowhere.csv"], "exclude each other"),
        (["--encoding", "alibi", "--expect_processes", "2"], "1 process(es) run and 2 were expected"),
        (["--encoding", "alibi", "--length_schedule", "0=16"], "ends at 16 tokens, --block_size is 32"),
        (["--encoding", "alibi", "--length_schedule", "0=5", "2=32"], "must divide the longest one"),
        (["--encoding", "alibi", "--length_schedule", "16"], "not of the form step=value"),
        (["--anneal", "factor=1:4"], "name it with --encoding"),
        (["--option_schedule", "theta", "0=1000", "2=2000"], "name it with --encoding"),
        (["--encoding", "rope", "--option_schedule", "theta", "0=1000"], "begin at step 0 and are at least two"),
        (["--encoding", "rope", "--option_schedule", "0=1000", "2=2000"], "begins with the name of an option"),
        (["--encoding", "rope", "--option_schedule", "theta", "1000"], "is not of the form step=value"),
        (["--encoding", "rope", "--option_schedule", "x", "0=1", "2=2", "--anneal", "theta=1:2"], "exclude each other"),
        (["--encoding", "rope", "--option_schedule", "theta", "0=1000", "6=2000"], "has a stage from step 6 on, and the run ends after 6"),
        (["--encoding", "alibi", "--length_schedule", "0=16", "6=32"], "has a stage from step 6 on, and the run ends after 6"),
        (["--encoding", "yarn", "--anneal", "factor=1:4", "--anneal_steps", "7"], "more than the run has, 6"),
        (["--encoding", "alibi", "--anneal_steps", "3"], "--anneal_steps has no effect without --anneal"),
        (["--encoding", "alibi", "--length_schedule", "0=16", "0=8", "2=32"], "has two values for one step"),
        (["--encoding", "yarn", "--anneal", "factor=4"], "not of the form option=start:end"),
        (["--encoding", "yarn", "--factor", "2", "--anneal", "factor=1:4"], "factor is given twice"),
        (["--encoding", "yarn", "--anneal", "factor=1:4", "--max_steps", "-1"], "needs a number of steps"),
        (["--encoding", "fire", "--anneal", "c=0.1:1"], "has no option 'c'"),
        (["--encoding", "alibi", "--resume_from_checkpoint", "gone"], "cannot go on from gone"),
        (["--encoding", "alibi", "--lora_targets", "q_proj"], "--lora_targets has no effect without --lora_rank"),
        (["--lora_alpha", "4", "--lora_also_train", "norm"], "--lora_alpha, --lora_also_train has no effect without --lora_rank"),
        (["--eval_trials", "3", "--eval_generate"], "--eval_trials, --eval_generate has no effect without --eval_tasks"),
        (
            ["--metric_for_best_model", "nll@64"],
            "--metric_for_best_model nll@64 is not what an evaluation of this run measures, which is: loss",
        ),
        (
            ["--eval_tasks", "passkey", "--eval_tasks_lengths", "400", "--metric_for_best_model", "eval_passkey_500"],
            "which is: loss, nll@32, passkey_400",
        ),
        (["--eval_tasks", "paskey"], "Did you mean 'passkey'"),
        (["--eval_tasks", "passkey", "--eval_tasks_lengths", "40"], "passkey: a length of 40 tokens is too short"),
        (["--encoding", "learned", "--eval_tasks", "passkey", "--eval_tasks_lengths", "400"], "past the learned table of"),
        (["--encoding", "alibi", "--max_steps", "0"], "--max_steps (-1 for --num_train_epochs) must be an integer of at least 1"),
        (["--encoding", "alibi", "--max_steps", "-1", "--num_train_epochs", "0"], "--num_train_epochs must be a finite number above 0"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(model, text, tmp_path, capsys, more, message):
    assert finetuning.main(arguments(model, text, tmp_path / "out", *more)) == 1
    err = last_line(capsys.readouterr().err)
    assert err.startswith("error: ") and message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("inside", [".", "deeper/still"])
def test_an_output_folder_that_cannot_be_written_is_found_before_anything_is_loaded(inside, model, text, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys.modules[prepare.__module__], "load_blocks", None)
    monkeypatch.setattr(sys.modules[prepare.__module__], "load_tokenizer", None)
    for encoding in ("stock", "alibi"):
        assert finetuning.main(arguments(model, text, tmp_path / "file" / inside, "--encoding", encoding)) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"error: cannot write to --output_dir {tmp_path / 'file'}") and err.count("\n") == 1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("more", [[], ["--encoding", "alibi"], ["--encoding", "alibi", "--boundaries", "cross"]])
def test_weights_that_are_no_numbers_are_blamed_for_it(dtype, more, model, text, tmp_path, capsys):
    broken = AutoModelForCausalLM.from_pretrained(model)
    broken.model.layers[1].mlp.up_proj.weight.data[3, 5] = torch.nan if dtype == "float32" else 1e9
    shutil.copytree(model, tmp_path / "broken")
    broken.save_pretrained(tmp_path / "broken")
    assert finetuning.main(arguments(tmp_path / "broken", text, tmp_path / "out", "--dtype", dtype, *more)) == 1
    err = last_line(capsys.readouterr().err)
    assert err.startswith(
        f"error: {tmp_path / 'broken'} has weights that are NaN or infinite as {dtype} (model.layers.1.mlp.up_proj.weight, 1"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("harm", [truncate, Path.unlink])
def test_a_damaged_model_is_one_line_that_names_it(file, harm, model, text, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "broken")
    harm(tmp_path / "broken" / file)
    assert finetuning.main(arguments(tmp_path / "broken", text, tmp_path / "out", "--encoding", "alibi")) == 1
    err = capsys.readouterr().err
    assert last_line(err).startswith("error: ") and str(tmp_path / "broken") in last_line(err) and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_packing_is_proved_before_the_first_step(model, text, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(sys.modules[prepare.__module__], "check_isolation", calls.append)
    argv = arguments(model, text, tmp_path, "--encoding", "alibi")
    _, trainer, _ = prepare(finetuning.parse(argv))
    assert calls == [trainer.model]
    prepare(finetuning.parse([*argv, "--boundaries", "cross", "--output_dir", str(tmp_path / "cross")]))
    assert len(calls) == 1


def test_a_missing_file_is_named(model, tmp_path, capsys):
    assert finetuning.main(arguments(model, tmp_path / "gone.txt", tmp_path / "out")) == 1
    assert "gone.txt" in capsys.readouterr().err


def test_a_tokenizer_of_another_model_is_refused(model, text, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "small")
    AutoModelForCausalLM.from_pretrained(model).resize_token_embeddings(100)
    small = AutoModelForCausalLM.from_pretrained(model)
    small.resize_token_embeddings(100)
    small.save_pretrained(tmp_path / "small")
    assert finetuning.main(arguments(tmp_path / "small", text, tmp_path / "out", "--encoding", "alibi")) == 1
    assert "it is not the tokenizer of this model" in last_line(capsys.readouterr().err)


@pytest.mark.parametrize("config", sorted((CONFIGS / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_understands_each_of_its_configurations(config):
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(config)).mixed_precision == "bf16"
    assert config.read_text().startswith("# Untested")


@pytest.mark.slow
def test_two_processes_train_what_one_does(model, text, tmp_path):
    (tmp_path / "short.jsonl").write_text("".join(json.dumps({"text": f"Short text {number}."}) + "\n" for number in range(99)))
    shared = ["--encoding", "kerple", "--eval_lengths", "32", "64", "--logging_steps", "1", "--seed", "3"]
    shared += ["--replay", str(tmp_path / "short.jsonl"), "--replay_share", "0.25"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29633"]
    two = arguments(model, text, tmp_path / "two", *shared, "--per_device_train_batch_size", "2", "--expect_processes", "2")
    two.remove("--use_cpu"), two.remove("true")  # found out on a machine without accelerators
    done = subprocess.run([*launch, *command(*two)[1:]], capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stdout and done.stdout.count("eval_nll@64:") == done.stdout.count("report: ") == 1
    assert done.stdout.count("short.jsonl: 25.0%, 6 of ") == 1
    fit(arguments(model, text, tmp_path / "one", *shared, "--per_device_train_batch_size", "4"))
    losses = [[e["loss"] for e in history(tmp_path / name) if "loss" in e] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_ctrl_c_while_training_is_one_line(model, text, tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers.Trainer.training_step", stop)
    assert finetuning.main(arguments(model, text, tmp_path / "out", "--encoding", "alibi")) == 130
    assert capsys.readouterr().err.strip().endswith("the same command goes on from the last checkpoint")


def test_tasks_are_scored_while_training_and_choose_the_best_checkpoint(model, text, tmp_path, capsys):
    more = ["--encoding", "alibi", "--eval_tasks", "passkey", "--eval_tasks_lengths", "400", "--eval_trials", "2", "--lora_rank", "2"]
    more += ["--eval_strategy", "steps", "--eval_steps", "3", "--metric_for_best_model", "passkey_400", "--load_best_model_at_end", "true"]
    trainer = fit(arguments(model, text, tmp_path, *more))
    found = {entry["step"]: entry["eval_passkey_400"] for entry in trainer.state.log_history if "eval_passkey_400" in entry}
    assert [*found] == [0, 3, 6] and trainer.state.best_metric == max(found[3], found[6])
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length >= 400
    shutil.rmtree(tmp_path / "checkpoint-6")
    again = fit(arguments(model, text, tmp_path, *more))
    assert found == {entry["step"]: entry["eval_passkey_400"] for entry in again.state.log_history if "eval_passkey_400" in entry}
