"""The loss at several lengths, and the callback that logs it."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tiny import save_tiny, tiny_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import hf_posenc
from hf_posenc.evaluation import CorpusError
from hf_posenc.training import LengthEvaluation, chunk_loss, perplexities, window_nll
from hf_posenc.training.lengths import by_range

SETTINGS = {
    "max_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 2,
    "report_to": "none",
    "learning_rate": 1e-3,
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture
def model(tmp_path):
    return AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "model"))


def text(length=300, words=257):
    return torch.randint(0, words, (length,), generator=torch.Generator().manual_seed(0))


def trainer_of(folder, model, **more):
    rows = text(128, model.config.vocab_size).view(8, 16).tolist()
    data = Dataset.from_dict({"input_ids": rows, "labels": rows})
    return Trainer(model, TrainingArguments(str(folder), **(SETTINGS | more)), train_dataset=data, eval_dataset=data)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("at_once", [1, 1 << 26])
def test_window_nll_weights_tokens(model, at_once, chunked, monkeypatch):
    """Against the probabilities by hand; batches of unequal size must not matter, nor a loss in chunks."""
    if chunked:
        chunk_loss(model, 7)
    monkeypatch.setattr("hf_posenc.training.lengths.LOGITS_AT_ONCE", at_once)
    ids = text(50)
    total = 0.0
    for start in (0, 16, 32):
        window = ids[start : start + 16]
        with torch.no_grad():
            p = model.eval()(window[None]).logits[0].double().softmax(-1)
        total -= sum(p[t, window[t + 1]].log().item() for t in range(15))
    nats, count = window_nll(model.train(), ids, 16)
    assert count == 45 and nats == pytest.approx(total / 45, rel=1e-5)
    assert model.training
    assert window_nll(model, ids, 16, max_windows=1)[1] == 15
    with pytest.raises(CorpusError, match="50 tokens, fewer than one window of 64"):
        window_nll(model, ids, 64)


def test_the_callback_logs_every_length_and_chooses_the_best_checkpoint(model, tmp_path):
    """On the text that it trains on, the model with the highest loss is the first; the weights come from its folder."""
    hf_posenc.patch(model, "alibi")
    ids, metric = text(128), "eval_nll@32"
    best = {"load_best_model_at_end": True, "metric_for_best_model": metric, "greater_is_better": True}
    trainer = trainer_of(tmp_path, model, learning_rate=1e-2, **best)
    evaluation = LengthEvaluation(ids, [32, 16]).attach(trainer)
    trainer.train()
    trainer.save_state()
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    logged = [entry for entry in history if metric in entry]
    assert [entry["step"] for entry in logged] == [2, 4, 4]
    assert all(entry.keys() >= {"eval_nll@16", metric} for entry in logged)
    assert logged[0][metric] > logged[1][metric]
    assert trainer.state.best_metric == logged[0][metric] and trainer.state.best_global_step == 2
    assert evaluation.last[metric] == logged[0][metric] == window_nll(model, ids, 32)[0]  # as measured when training ends
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    assert all(map(torch.equal, again.parameters(), trainer.model.parameters()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_has_diverged_stops_the_run_with_a_message(value, model, tmp_path):
    trainer = trainer_of(tmp_path, model)
    LengthEvaluation(text(), [16, 32]).attach(trainer)
    with torch.no_grad():
        model.get_decoder().norm.weight.fill_(value)
    with pytest.raises(FloatingPointError, match=r"after 0 steps eval_nll@16 is nan, eval_nll@32 is nan.*lower the learning rate"):
        trainer.evaluate()
    assert not any("eval_nll@16" in entry for entry in trainer.state.log_history)


def test_perplexities_of_very_large_losses_are_infinite():
    assert math.isnan(perplexities([float("nan")])[0])
    assert perplexities([0.0, 1.0, 1e4]) == [1.0, pytest.approx(2.718281828), float("inf")]


RANK = """
import json, pathlib, sys
sys.path.insert(0, sys.argv[2])
from test_lengths import distributed
pathlib.Path(sys.argv[1] + "-" + __import__("os").environ["RANK"]).write_text(json.dumps(distributed(sys.argv[1])))
__import__("torch").distributed.destroy_process_group()
"""


def distributed(folder):
    """What this process finds: with 3 windows of 100 tokens the shares are unequal, with 1 of 300 one process has none."""
    model = hf_posenc.patch(tiny_model("llama"), "alibi")
    trainer = trainer_of(
        folder, model, learning_rate=0.1, load_best_model_at_end=True, metric_for_best_model="eval_nll@20", eval_steps=1, save_steps=1
    )
    seen = []
    model.get_decoder().register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True)
    evaluation = LengthEvaluation(text(words=60), [20, 100, 300]).attach(trainer)
    found, tokens = evaluation.measure(model), sum(seen)
    trainer.train()
    return {"found": found, "tokens": tokens, "best": trainer.state.best_global_step, "last": evaluation.last}


@pytest.mark.slow
def test_two_processes_share_the_windows_and_agree(tmp_path):
    script, here = tmp_path / "rank.py", Path(__file__).parent
    script.write_text(RANK)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(here.parents[1]), str(here.parent)))}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(script)]
    done = subprocess.run([*command, str(tmp_path / "out"), str(here)], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"out-{rank}").read_text()) for rank in (0, 1)]
    for name in ("found", "best", "last"):
        assert ranks[0][name] == ranks[1][name]
    assert ranks[1]["tokens"] < ranks[0]["tokens"] < 900
    model = hf_posenc.patch(tiny_model("llama"), "alibi")
    for length in (20, 100, 300):
        assert ranks[0]["found"][f"eval_nll@{length}"] == pytest.approx(window_nll(model, text(words=60), length)[0], rel=1e-6)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("at_once", [1, 1 << 26])
def test_nats_by_position_are_those_of_the_probabilities(model, at_once, chunked, monkeypatch, tmp_path):
    """The longest windows; each range of positions against the probabilities by hand."""
    if chunked:
        chunk_loss(model, 7)
    monkeypatch.setattr("hf_posenc.training.lengths.LOGITS_AT_ONCE", at_once)
    ids, length = text(200), 90
    evaluation = LengthEvaluation(ids, [length, 32]).attach(trainer_of(tmp_path, model))
    found = evaluation.measure(model)
    windows = ids[: 2 * length].view(2, length)
    with torch.no_grad():
        p = model.eval()(windows).logits.double().softmax(-1)
    nats = -p[:, :-1].gather(2, windows[:, 1:, None])[..., 0].log().mean(0)
    torch.testing.assert_close(evaluation.by_position, nats, rtol=1e-5, atol=0)
    assert found["eval_nll@90"] == pytest.approx(nats.mean().item(), rel=1e-6)
    ranges = by_range(evaluation.by_position, 2)
    assert [(start, stop) for start, stop, _ in ranges] == [(1, 16), (16, 32), (32, 48), (48, 64), (64, 90)]
    for start, stop, mean in ranges:
        assert mean == pytest.approx(nats[start - 1 : stop - 1].mean().item(), rel=1e-5)
