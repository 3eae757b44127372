"""Packing, the loss at several lengths, and the callback that logs it."""

import json

import pytest
import torch
from datasets import Dataset
from tiny import save_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import hf_posenc
from hf_posenc.evaluation import CorpusError
from hf_posenc.training import IGNORED, LengthEvaluation, pack, unpack, window_nll


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture
def tokenizer(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = tokenizer.bos_token
    return tokenizer


def test_packing_keeps_every_token_and_ends_every_document(tokenizer):
    documents = ["first document", "2nd", "the third one is longer than one block"]
    blocks = pack(Dataset.from_dict({"text": [documents[0], "", *documents[1:]]}), tokenizer, 8)
    expected = []
    for document in documents:
        expected += tokenizer(document, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    assert len(expected) % 8
    assert unpack(blocks).tolist() == expected
    assert all(len(row) == 8 for name in ("input_ids", "labels") for row in blocks[name])
    inputs, labels = (torch.tensor(blocks[name]).flatten() for name in ("input_ids", "labels"))
    assert inputs[: len(expected)].tolist() == expected
    assert labels[: len(expected)].tolist() == expected and (labels[len(expected) :] == IGNORED).all()


def test_a_text_shorter_than_a_block_says_what_is_missing(tokenizer):
    with pytest.raises(CorpusError, match=r"6 tokens, fewer than one block of 8"):
        pack(Dataset.from_dict({"text": ["short"]}), tokenizer, 8)


@pytest.mark.parametrize("at_once", [1, 1 << 26])
def test_window_nll_weights_tokens(model, at_once, monkeypatch):
    """Against the probabilities by hand; batches of unequal size must not matter."""
    monkeypatch.setattr("hf_posenc.training.LOGITS_AT_ONCE", at_once)
    ids = torch.randint(0, 257, (50,), generator=torch.Generator().manual_seed(0))
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


def test_the_callback_logs_every_length(model, tmp_path):
    hf_posenc.patch(model, "alibi")
    ids = torch.randint(0, 257, (300,), generator=torch.Generator().manual_seed(0))
    rows = ids[:128].view(8, 16).tolist()
    data = Dataset.from_dict({"input_ids": rows, "labels": rows})
    settings = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_nll@32",
        greater_is_better=False,
        report_to="none",
        learning_rate=1e-3,
    )
    trainer = Trainer(model, settings, train_dataset=data, eval_dataset=data)
    evaluation = LengthEvaluation(ids, [16, 32]).attach(trainer)
    trainer.train()
    trainer.save_state()
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    logged = [entry for entry in history if "eval_nll@32" in entry]
    assert {entry["step"] for entry in logged} == {2, 4}
    assert evaluation.last["eval_nll@32"] == window_nll(model, ids, 32)[0]
    assert logged[0]["eval_nll@32"] != logged[-1]["eval_nll@32"]
    assert trainer.state.best_metric == min(entry["eval_nll@32"] for entry in logged)
