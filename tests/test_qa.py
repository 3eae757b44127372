"""RULER's questions of SQuAD and HotpotQA: the formats, the documents of a prompt, and the score."""

import json
import re
from pathlib import Path

import pytest
from questions import paragraph, save_hotpotqa, save_questions, save_squad
from tiny import save_tiny
from transformers import AutoTokenizer

from hf_posenc.cli import main
from hf_posenc.evaluation import CorpusError
from hf_posenc.evaluation.retrieval import Prompts
from hf_posenc.evaluation.tasks import create, qa_data, scores

INSTRUCTION = "Answer the question based on the given documents. Only give me the answer and do not output any other words."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return save_questions(tmp_path_factory.mktemp("questions"))


def read(file):
    """The JSON in a file."""
    return json.loads(Path(file).read_text())


def documents(tokenizer, task, length, trial=0):
    """The prompt, and what its documents say."""
    prompt = Prompts(task, tokenizer).prompt(length, None, trial)
    text = tokenizer.decode(prompt.input_ids[: prompt.start])
    assert text.startswith(f"{INSTRUCTION}\n\nThe following are given documents.\n\nDocument 1:\n")
    assert re.search(rf"\n\n{re.escape(INSTRUCTION)}\n\nQuestion: [^\n]+\? Answer: $", text), "constants.py of NVIDIA/RULER"
    context = text.split("given documents.\n\n", 1)[1].rsplit(f"\n\n{INSTRUCTION}", 1)[0]
    told = re.split(r"(?:^|\n\n)Document (\d+):\n", context)[1:]
    assert [int(number) for number in told[::2]] == [*range(1, len(told) // 2 + 1)]
    return prompt, told[1::2]


@pytest.mark.parametrize("trial", range(6))
def test_documents_of_the_article_come_first_and_all_are_in_any_order(tokenizer, files, trial):
    task = create("qa_1", **files["qa_1"])
    prompt, told = documents(tokenizer, task, 4000, trial)
    number = int(re.search(r"bridge (\d+)", prompt.question)[1])
    right = (f"Town{number}", f"at Town{number}") if "Where" in prompt.question else (str(1500 + number),)
    assert prompt.keys == right, "every answer of the authors is a reference"
    whole = told[:-1]
    assert paragraph(number) in whole and len({*whole}) == len(whole) > 8
    article = {paragraph(number // 4 * 4 + at) for at in range(4)}
    assert article <= {*whole} and {*whole} <= {*task.data.documents} and any(each.startswith(told[-1]) for each in task.data.documents)
    _, few = documents(tokenizer, task, 1250, trial)
    assert {*few[:-1]} < article and paragraph(number) in few[:-1]


def test_the_place_of_the_right_document_is_any(tokenizer, files):
    places = set()
    for trial in range(12):
        prompt, told = documents(tokenizer, create("qa_1", **files["qa_1"]), 4000, trial)
        places.add(told.index(paragraph(int(re.search(r"bridge (\d+)", prompt.question)[1]))))
    assert len(places) > 5


def test_all_ten_documents_of_hotpotqa_are_there_and_come_again_where_there_are_no_more(tokenizer, files):
    task = create("qa_2", **files["qa_2"])
    prompt, told = documents(tokenizer, task, 6000)
    number = int(re.search(r"bridge (\d+)", prompt.question)[1]) - 4
    assert {f"Bridge {number + at}\n{paragraph(number + at)}" for at in range(10)} <= {*told[:-1]}
    assert prompt.keys == (f"Town{number + 3}",) and len({*told}) == len(told)
    _, told = documents(tokenizer, task, 60000)
    assert {*task.data.documents} == {*told[:-1]} and len(told) > len(task.data.documents)


def test_every_question_is_asked_once_before_one_is_asked_again(files):
    task = create("qa_1", **files["qa_1"])
    asked = [task.question(4000, None, trial).after for trial in range(80)]
    assert len({*asked[:40]}) == 40 and asked[:40] == asked[40:] and not any("Who paid" in each for each in asked)


@pytest.mark.parametrize("name", ["qa_1", "qa_2"])
def test_chance_sees_none_of_the_documents_that_answer(files, name):
    """Also where the context of the other question has room for all documents there are."""
    task = create(name, **files[name])
    for trial in range(12):
        own, text = task.asked(trial), task.other(0, None, trial).text(300)
        assert not any(task.data.documents[number] in text for number in own.documents)


def test_a_hub_has_the_same_questions(files, tmp_path, monkeypatch):
    """Rows as rajpurkar/squad_v2 and hotpotqa/hotpot_qa have them."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = []
    for article in read(files["qa_1"]["squad"])["data"]:
        for told in article["paragraphs"]:
            for each in told["qas"]:
                answers = {key: [answer[key] for answer in each["answers"]] for key in ("text", "answer_start")}
                rows.append({"title": article["title"], "context": told["context"], "question": each["question"], "answers": answers})
    (tmp_path / "squad").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "squad" / "validation.parquet")
    assert qa_data.squad(str(tmp_path / "squad")) == qa_data.squad(files["qa_1"]["squad"])
    rows = read(files["qa_2"]["hotpotqa"])
    for row in rows:
        titles, sentences = zip(*row["context"], strict=True)
        row["context"] = {"title": titles, "sentences": sentences}
        del row["supporting_facts"]
    folder = tmp_path / "hotpotqa" / "distractor"
    folder.mkdir(parents=True)
    datasets.Dataset.from_list(rows).to_parquet(folder / "validation.parquet")
    configs = "---\nconfigs:\n- config_name: distractor\n  data_files:\n  - split: validation\n    path: distractor/*\n---\n"
    (folder.parent / "README.md").write_text(configs)
    assert qa_data.hotpotqa(str(folder.parent)) == qa_data.hotpotqa(files["qa_2"]["hotpotqa"])


def test_one_of_the_right_answers_is_enough():
    """Numbers of string_match_part after postprocess_pred (NVIDIA/RULER, c3f5e3b4), run on the same outputs."""
    cases = [
        ("in the 10th century\n", ["10th Century", "the first half of the 10th century"], 1.0),
        ("France and\x00Spain", ["spain", "Norway"], 1.0),
        ("nowhere", ["France", "Spain"], 0.0),
        ("", ["France"], 0.0),
    ]
    assert [scores.any_found(said, references) for said, references, _ in cases] == [score for *_, score in cases]
    assert create("qa_1").score("Spain", ("France", "Spain"), "") == 1.0


def test_a_file_of_another_format_is_named(tmp_path, files):
    broken = tmp_path / "broken.json"
    for text, message in (("{", "is not JSON"), ("[]", "not in the format of SQuAD"), ('{"data": []}', "has no questions")):
        broken.write_text(text)
        qa_data.squad.cache_clear()
        with pytest.raises(CorpusError, match=message):
            create("qa_1", squad=str(broken)).material()
    with pytest.raises(CorpusError, match="not in the format of HotpotQA"):
        create("qa_2", hotpotqa=files["qa_1"]["squad"]).material()
    with pytest.raises(CorpusError, match=r"gone\.parquet"):
        create("qa_2", hotpotqa=str(tmp_path / "gone.parquet")).material()
    with pytest.raises(CorpusError, match="same documents"):
        create("qa_1", squad=save_squad(tmp_path, articles=1, paragraphs=1)).other(0, None, 0)


def test_a_changed_file_is_another_run(tmp_path, tokenizer):
    found = set()
    for questions in (11, 12):
        qa_data.hotpotqa.cache_clear()
        found.add(Prompts(create("qa_2", hotpotqa=save_hotpotqa(tmp_path, questions)), tokenizer).filler_identity["sha256"])
    assert len(found) == 2


def test_the_recipe_reports_them_apart(folder, files, tmp_path, capsys):
    words = ["--tasks", "json_kv", "passkey", "qa_1", "--lengths", "1250", "--trials", "1", "--device", "cpu"]
    words = ["retrieval", "--model", str(folder), "--output_dir", str(tmp_path), *words]
    assert main([*words, "--squad", files["qa_1"]["squad"]]) == 0
    said = capsys.readouterr().out
    assert "stock qa_1" in said and said.count("stock mean") == 1 and "mean: without qa_1, whose" in said
    (result,) = [read(path) for path in tmp_path.glob("stock-qa_1-*.json")]
    assert result["source"] == "RULER" and [cell["context"] for cell in result["cells"]] == ["short", "other", "whole"]
    assert main([*words, "--tasks", "passkey", "qa_1", "--squad", files["qa_1"]["squad"]]) == 0
    said = capsys.readouterr().out
    assert "stock mean" not in said and said.count("measured before") == 2
    assert main([*words, "--tasks", "passkey", "--squad", "other.json"]) == 0
    assert "measured before" in capsys.readouterr().out, "the file of another task is nothing to this one"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["qa_1"], "qa_1 asks questions of SQuAD: give its file (dev-v2.0.json)"),
        (["ruler-qa"], "qa_1 asks questions of SQuAD"),
        (["qa_2"], "qa_2 asks questions of HotpotQA: give its file (hotpot_dev_distractor_v1.json)"),
        (["qa_1", "--squad", "gone.json"], "gone.json"),
        (["qa_2", "--hotpotqa", "./gone/set"], "./gone/set"),
    ],
)
def test_without_the_data_nothing_begins(folder, tmp_path, capsys, words, message):
    assert main(["retrieval", "--model", str(folder), "--output_dir", str(tmp_path / "out"), "--device", "cpu", "--tasks", *words]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line and not (tmp_path / "out").exists()
