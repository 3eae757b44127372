"""What a fine-tuning run is trained on when its text comes from several sources."""

import json
from collections import Counter
from itertools import pairwise

import pytest
from tiny import save_tiny
from transformers import AutoTokenizer

from hf_posenc import finetuning
from hf_posenc.finetuning.data import load_blocks
from hf_posenc.finetuning.run import prepare, train

SIZE = 32
LENGTHS = {"books": (100, 40), "code": (70, 90), "web": (9, 30)}
"""Documents and their bytes, which are their tokens."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(model):
    return AutoTokenizer.from_pretrained(model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A file of each source, whose every document is its first letter over and over; and one of long and short documents."""
    folder = tmp_path_factory.mktemp("texts")
    for name, (length, count) in LENGTHS.items():
        write(folder / f"{name}.jsonl", [name[0] * length] * count)
    write(folder / "both.jsonl", ["l" * 40, "s" * 20] * 30 + ["x" * 90] * 10)
    return folder


def write(file, documents):
    file.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))


def arguments(folder, model, *more, out="out"):
    words = [str(folder / word) if word.partition("@")[0].partition(":")[0].endswith("jsonl") else word for word in more]
    fixed = ["--block_size", str(SIZE), "--eval_tokens", "64", "--use_cpu", "true", "--per_device_train_batch_size", "4"]
    return ["--model", str(model), "--output_dir", str(folder / out), *fixed, *words]


def blocks(tokenizer, *argv):
    return load_blocks(finetuning.parse(arguments(*argv)), tokenizer)


def owners(tokenizer, rows):
    """How many rows are of each letter, padding apart; a row of several counts as theirs together."""
    return Counter("".join(sorted(set(tokenizer.decode(row, skip_special_tokens=True)))) for row in rows["input_ids"])


PROLONG = ["--mix", "books.jsonl@0.5", "code.jsonl@0.5", "--min_length", str(SIZE), "--replay", "web.jsonl", "--replay_share", "0.4"]


def test_each_source_gets_its_share_of_all_steps(tokenizer, folder, model):
    """60 % long in two halves, 40 % short, of 25 steps of 4 x 2 rows: more than books has."""
    found = blocks(tokenizer, folder, model, *PROLONG, "--max_steps", "25", "--gradient_accumulation_steps", "2")
    assert owners(tokenizer, found.train) == {"b": 60, "c": 60, "w": 80}
    assert owners(tokenizer, found.test) == {"b": 3}  # two blocks of tokens and one more, of the first source
    of_each = [line.partition(": ")[2] for line in found.mix.split("\n")]
    assert of_each == ["30.0%, 60 of 117 blocks", "30.0%, 60 of 180 blocks", "40.0%, 80 of 9 blocks (8.9 times)"]


@pytest.mark.parametrize("steps", [1, 7, 11])
def test_a_share_that_does_not_come_out_even_is_within_one_block(tokenizer, folder, model, steps):
    more = ["--mix", "books.jsonl@0.34", "code.jsonl@0.66", "--replay", "web.jsonl", "--replay_share", "0.15", "--max_steps", str(steps)]
    found = owners(tokenizer, blocks(tokenizer, folder, model, *more).train)
    assert found.total() == 4 * steps
    for letter, share in {"b": 0.289, "c": 0.561, "w": 0.15}.items():
        assert abs(found[letter] - share * 4 * steps) <= 1


def test_no_block_comes_twice_before_all_came_once(tokenizer, folder, model):
    write(folder / "other.jsonl", [f"{at:032}" for at in range(20)])
    more = ["--dataset", "books.jsonl", "--replay", "other.jsonl", "--replay_share", "0.5", "--max_steps", "25"]
    counted = Counter(map(tuple, blocks(tokenizer, folder, model, *more).train["input_ids"]))
    replayed = [count for row, count in counted.items() if not tokenizer.decode(row).startswith("b")]
    assert sorted(replayed) == 10 * [2] + 10 * [3]
    cut = blocks(tokenizer, folder, model, *more[:-1], "4").train
    first = {tokenizer.decode(row) for row in cut["input_ids"]} & {f"{at:032}" for at in range(8)}
    assert 0 < len(first) < 8  # of a source that is not needed whole, any blocks and not the first ones


def test_an_epoch_has_the_long_text_once(tokenizer, folder, model):
    found = blocks(tokenizer, folder, model, *PROLONG, "--num_train_epochs", "3")
    counted = owners(tokenizer, found.train)
    assert counted["b"] == 117 == counted["c"] and counted["w"] == 156
    many = blocks(tokenizer, folder, model, "--dataset", "web.jsonl", "--replay", "books.jsonl", "--replay_share", "0.5")
    assert owners(tokenizer, many.train) == {"w": 6, "b": 6}


def test_documents_of_one_file_are_divided_by_length(tokenizer, folder, model):
    more = ["--mix", "both.jsonl:min_length=64@0.25", "both.jsonl:min_length=32@0.75", "--replay", "both.jsonl", "--replay_share", "0.5"]
    found = blocks(tokenizer, folder, model, *more, "--max_steps", "20")
    assert owners(tokenizer, found.train) == {"x": 10, "l": 30, "s": 40}
    assert "both.jsonl from 64 tokens: 12.5%, 10 of 17 blocks" in found.mix
    assert "both.jsonl from 32 to 63 tokens: 37.5%" in found.mix and "both.jsonl from 1 to 31 tokens: 50.0%" in found.mix


def test_short_documents_share_a_block_and_do_not_see_each_other(tokenizer, folder, model):
    found = blocks(tokenizer, folder, model, *PROLONG, "--max_steps", "25").train
    assert "position_ids" in found.column_names
    for row in found:
        begin = [at for at, position in enumerate(row["position_ids"]) if position == 0]
        short = tokenizer.decode(row["input_ids"]).startswith("w")
        assert all(row["labels"][at] == -100 for at in begin) and (len(begin) > 1 if short else begin == [0])
    assert {len(row["input_ids"]) for row in found} == {SIZE}


def test_the_same_seed_is_the_same_mix(tokenizer, folder, model):
    one, same, other = (
        blocks(tokenizer, folder, model, *PROLONG, "--max_steps", "25", "--seed", seed).train["input_ids"][:] for seed in ("1", "1", "2")
    )
    assert one == same != other
    letters = "".join(tokenizer.decode(row)[0] for row in one)
    assert sum(here != there for here, there in pairwise(letters)) > 40  # of 100 rows: no source comes in one piece


@pytest.mark.slow
def test_several_processes_tokenize_the_same_blocks(tokenizer, folder, model):
    one, two = (blocks(tokenizer, folder, model, *PROLONG, "--max_steps", "25", "--num_proc", each).train for each in ("1", "2"))
    assert owners(tokenizer, one) == owners(tokenizer, two)


def run(argv, stop=None):
    """Train; the ids of every micro-batch that is trained on."""
    settings, trainer, evaluation = prepare(finetuning.parse(argv))
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, given: seen.append(given["input_ids"].tolist()) if module.training else None, with_kwargs=True
    )
    train(settings, trainer, evaluation)
    return seen


def test_a_resumed_run_sees_the_batches_that_it_would_have_seen(folder, model):
    argv = arguments(folder, model, *PROLONG, "--max_steps", "6", "--save_steps", "3", out="resumed")
    whole = run(argv)[-6:]  # after those of the estimate
    (folder / "resumed" / "checkpoint-6" / "trainer_state.json").unlink()
    assert run(argv)[-3:] == whole[3:] and len({str(batch) for batch in whole}) == 6


def test_a_mix_of_other_length_is_another_run(folder, model, capsys):
    """It would have other blocks in another order, and what a run goes on with would have been there before."""
    argv = arguments(folder, model, *PROLONG, "--save_steps", "3", out="longer")
    run([*argv, "--max_steps", "3"])
    assert finetuning.main([*argv, "--max_steps", "6"]) == 1
    assert "checkpoints of another run (blocks of all steps was 12, is 24)" in capsys.readouterr().err
    one = arguments(folder, model, "--dataset", "code.jsonl", "--save_steps", "3", out="longer_alone")
    run([*one, "--max_steps", "3"])
    assert len(run([*one, "--max_steps", "6"])) > 3  # beside the estimate


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--mix", "books.jsonl@0.5", "code.jsonl@0.6"], "the shares of --mix sum to 1.1"),
        (["--mix", "books.jsonl@0.5", "code.jsonl"], "sum to 0.5, and 1 have none"),
        (["--mix", "books.jsonl@-0.5", "code.jsonl@1.5"], "a share is a number above 0"),
        (["--mix", "books.jsonl@nan"], "a share is a number above 0"),
        (["--mix", "books.jsonl@half"], "a share is a number above 0"),
        (["--mix", "books.jsonl:min_length=x@1"], "min_length is a number of tokens"),
        (["--mix", "books.jsonl:min_length=0@1"], "min_length is a number of tokens"),
        (["--mix", "@0.5", "code.jsonl@0.5"], "--mix '@0.5' names no file and no dataset"),
        (["--mix", "books.jsonl", "--text", "text.txt"], "--mix says where the text comes from"),
        (["--mix", "books.jsonl", "books.jsonl"], "is named twice"),
        (["--dataset", "books.jsonl", "--replay", "books.jsonl", "--replay_share", "0.1"], "is named twice"),
        (["--text", "a.txt", "--replay", "./b/../a.txt", "--replay_share", "0.1"], "a.txt is in --text and in --replay"),
        (["--dataset", "books.jsonl", "--replay", "web.jsonl"], "give both, or neither"),
        (["--dataset", "books.jsonl", "--replay_share", "0.4"], "give both, or neither"),
        (["--replay", "web.jsonl", "--replay_share", "1.5"], "--replay_share must be a finite number of at least 0 and at most 1, got 1.5"),
        (["--replay", "web.jsonl", "--replay_share", "1"], "--replay_share 1 leaves nothing to mix"),
        (["--dataset", "books.jsonl", "--min_length", "200"], "no document has at least 200 tokens: the longest of 40 has 100"),
        (["--mix", "books.jsonl", "code.jsonl", "--min_length", "80"], "code.jsonl: no document has at least 80 tokens"),
        (["--mix", "books.jsonl", "gone.jsonl"], "gone.jsonl"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(folder, model, tmp_path, capsys, more, message):
    argv = arguments(folder, model, *more, "--output_dir", str(tmp_path / "out"))
    assert finetuning.main(argv) == 1
    err = capsys.readouterr().err.strip().split("\n")[-1]
    assert err.startswith("error: ") and message in err
    assert not (tmp_path / "out").exists()
