"""Scores of tasks while a model trains."""

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import save_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

import hf_posenc
from hf_posenc.evaluation import retrieval
from hf_posenc.evaluation.tasks.passkey import PasskeyTask
from hf_posenc.training import LengthEvaluation, TaskEvaluation

TASK = PasskeyTask(digits=1)
SETTINGS = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "report_to": "none", "use_cpu": True}


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def trainer_of(folder, model, **more):
    rows = torch.randint(0, 257, (8, 16), generator=torch.Generator().manual_seed(0)).tolist()
    data = Dataset.from_dict({"input_ids": rows, "labels": rows})
    arguments = TrainingArguments(str(folder), **(SETTINGS | {"learning_rate": 1e-2, "disable_tqdm": True} | more))
    return Trainer(model, arguments, train_dataset=data, eval_dataset=data)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """It has dropout: random numbers matter."""
    return save_tiny(tmp_path_factory.mktemp("gpt2"), "gpt2")


class Random(TrainerCallback):
    """The random numbers of each step, as they are when it ends."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seen.append((random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), model.training))


def trained(source, folder, tasks, lengths=(700, 800), generate=False, **more):
    """A short run on a patched model: its Trainer, what was random, and the callback."""
    model, tokenizer = load(source)
    trainer = trainer_of(folder, hf_posenc.patch(model, "alibi"), **more)
    watch = Random()
    trainer.add_callback(watch)
    callback = TaskEvaluation(tokenizer, tasks, lengths, 1, generate).attach(trainer) if tasks else None
    trainer.train()
    return trainer, watch.seen, callback


def test_scores_are_those_of_retrieval_and_choose_the_best_checkpoint(gpt2, tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "passkey_800"}
    trainer, _, callback = trained(gpt2, tmp_path, [TASK, "json_kv"], **best)
    trainer.save_state()
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    logged = [entry for entry in history if "eval_passkey_800" in entry]
    assert [entry["step"] for entry in logged] == [2, 4, 4]
    assert trainer.args.greater_is_better and trainer.state.best_metric == max(entry["eval_passkey_800"] for entry in logged)
    for task in (TASK, "json_kv"):
        found = retrieval(trainer.model, callback.tokenizer, task, [700, 800], trials=1)
        for length, scores in found.scores().items():
            assert callback.last[f"eval_{found.protocol}_{length}"] == sum(scores) / len(scores)
    assert callback.names == [*callback.last] and callback.last.keys() == {
        f"eval_{task}_{length}" for task in ("passkey", "json_kv") for length in (700, 800)
    }


def test_training_is_the_same_with_and_without(gpt2, tmp_path):
    how = {"eval_on_start": True, "max_steps": 3, "save_strategy": "no"}
    one, seen, _ = trained(gpt2, tmp_path / "with", [TASK], [400], generate=True, **how)
    other, without, _ = trained(gpt2, tmp_path / "without", [], **how)
    assert seen == without and all(training for *_, training in seen)
    assert all(map(torch.equal, one.model.parameters(), other.model.parameters()))
    assert one.model.config.use_cache == other.model.config.use_cache
    assert one.model.generation_config.to_dict() == other.model.generation_config.to_dict()


@dataclass(frozen=True)
class Spoken(PasskeyTask):
    """Full marks for one string."""

    said: str = ""

    def score(self, said, references, question):
        return float(said == self.said)


def test_what_the_model_writes_is_scored(gpt2, tmp_path):
    model, tokenizer = load(gpt2)
    task = Spoken(digits=1)
    result = retrieval(hf_posenc.patch(model, "alibi"), tokenizer, task, [400], trials=1, generate=True, controls=False)
    trainer = trainer_of(tmp_path, model)
    found = [TaskEvaluation(tokenizer, [Spoken(digits=1, said=said)], [400], 1, True).attach(trainer).measure(model) for said in ("", "?")]
    assert result.cells[0].generated in (0.0, 1.0)
    assert [each["eval_passkey_400"] for each in found] == [result.cells[0].generated, 0.0]


def test_stock_dynamic_ntk_forgets_the_longest_prompt(tmp_path):
    """Else training would go on with the frequencies of the evaluation."""
    source = save_tiny(tmp_path / "model")
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source, rope_parameters=scaling), AutoTokenizer.from_pretrained(source)
    before = model.model.rotary_emb.inv_freq.clone()
    trainer = trainer_of(tmp_path, model)
    evaluations = [LengthEvaluation(torch.arange(200) % 60, [150]), TaskEvaluation(tokenizer, [TASK], [400], 1)]
    for each in evaluations:
        each.attach(trainer).on_evaluate(trainer.args, trainer.state, trainer.control, model=model)
        assert torch.equal(model.model.rotary_emb.inv_freq, before)
    retrieval(model, tokenizer, TASK, [400], trials=1, controls=False)
    assert not torch.equal(model.model.rotary_emb.inv_freq, before)


def test_what_cannot_be_scored_is_refused_at_once(gpt2, tmp_path):
    model, tokenizer = load(gpt2)
    trainer = trainer_of(tmp_path, model)
    with pytest.raises(ValueError, match="Did you mean 'passkey'"):
        TaskEvaluation(tokenizer, ["paskey"], [400])
    with pytest.raises(ValueError, match="passkey: a length of 40 tokens is too short: the words around the filler need"):
        TaskEvaluation(tokenizer, [TASK], [40])
    with pytest.raises(ValueError, match="the model has a table of 64 positions and 400 were asked for"):
        TaskEvaluation(tokenizer, [TASK], [400]).attach(trainer)
    with pytest.raises(ValueError, match="score the saved model instead"):
        TaskEvaluation(tokenizer, [TASK], [400]).attach(SimpleNamespace(is_fsdp_enabled=True))
    names = [each.task.name for each in TaskEvaluation(tokenizer, ["babilong", TASK, "babilong_qa2"], [4000]).prompts]
    assert names == ["babilong_qa1", "babilong_qa2", "babilong_qa3", "passkey"]


RANK = """
import json, pathlib, sys
sys.path.insert(0, sys.argv[2])
from test_tasks_callback import TASK, trained
best = {"load_best_model_at_end": True, "metric_for_best_model": "json_kv_700"}
_, _, callback = trained(sys.argv[3], sys.argv[1], [TASK, "json_kv"], **best)
pathlib.Path(sys.argv[1] + "-" + __import__("os").environ["RANK"]).write_text(json.dumps(callback.last))
"""


@pytest.mark.slow
def test_two_processes_share_the_prompts_and_agree(gpt2, tmp_path):
    script, here = tmp_path / "rank.py", Path(__file__).parent
    script.write_text(RANK)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(here.parents[1]), str(here.parent)))}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(script)]
    words = [*command, str(tmp_path / "out"), str(here), str(gpt2)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"out-{rank}").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1] and len(ranks[0]) == 4
    assert "Traceback" not in done.stderr
