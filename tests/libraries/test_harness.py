"""lm-eval, by `hf-posenc eval`: tasks for several encodings of one model."""

import json

import pytest
import torch
from tiny import save_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_posenc
from hf_posenc.cli import main

pytest.importorskip("lm_eval")
QUESTIONS = [("one two three", [" four", " zebra"], 0), ("a b c", [" q", " d"], 1), ("red green", [" blue", " xylophone"], 0)]
TASK = """
task: counting
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
target_delimiter: ""
metric_list: [{metric: acc}]
"""


@pytest.fixture
def asked(tmp_path):
    """A model with a tokenizer, and a folder with a task."""
    rows = [{"question": question, "choices": choices, "label": label} for question, choices, label in QUESTIONS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "counting.yaml").write_text(TASK.replace("FILE", str(tmp_path / "rows.jsonl")))
    model = save_tiny(tmp_path / "model")
    where = ["--model", str(model), "--include_path", str(tmp_path / "tasks"), "--output_dir", str(tmp_path / "out"), "--tasks", "counting"]
    return ["eval", *where], model, tmp_path / "out"


def likeliest(model, tokenizer):
    """The share of questions whose right answer has the higher probability, one pass for each."""
    right = 0
    for question, choices, label in QUESTIONS:
        scores = []
        for choice in choices:
            before, whole = (tokenizer(text, return_tensors="pt").input_ids for text in (question, question + choice))
            nats = model(whole).logits.log_softmax(-1)[0, :-1].gather(-1, whole[0, 1:, None])[before.shape[1] - 1 :]
            scores.append(nats.sum().item())
        right += scores.index(max(scores)) == label
    return right / len(QUESTIONS)


@torch.no_grad()
def test_each_encoding_has_its_own_scores_and_what_is_measured_is_taken(asked, capsys):
    words, folder, output = asked
    assert main([*words, "--encoding", "stock", "alibi"]) == 0
    shown = capsys.readouterr().out
    assert "counting acc,none" in shown and "alibi" in shown
    found = {path.name.split("-")[0]: json.loads(path.read_text()) for path in output.glob("*.json")}
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    for name in ("stock", "alibi"):
        if name != "stock":
            hf_posenc.patch(model, name)
        assert found[name]["scores"]["counting"]["acc,none"] == pytest.approx(likeliest(model, tokenizer))
        assert found[name]["samples"] == {"counting": len(QUESTIONS)} and name in found[name]["live"] + "stock"
    assert main([*words, "--encoding", "stock", "alibi"]) == 0
    assert capsys.readouterr().out.count("measured before") == 2
    assert (output / "eval.csv").read_text().splitlines()[0] == "encoding,task,metric,value,stderr"


def test_mistakes_are_found_first(asked, capsys):
    words, *_ = asked
    for more, message in ((["nosuch"], "--tasks nosuch: lm-eval has none of that name"), ([], "expected at least one argument")):
        assert main([*words[:-1], *more]) == 1
        assert message in capsys.readouterr().err
    assert main(["eval"]) == 1
    assert "--tasks is missing" in capsys.readouterr().err
