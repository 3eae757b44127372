"""Files that are damaged, of the wrong kind, or have no room left: one line that names them, and nothing of the user's is lost."""

import os
import shutil
from pathlib import Path

import pytest
from test_evaluation import ids, tiny
from tiny import save_tiny
from transformers import AutoModelForCausalLM

from hf_posenc import cli
from hf_posenc.evaluation import CorpusError, dataset_texts, perplexity
from hf_posenc.evaluation.journal import Journal
from hf_posenc.evaluation.models import read_model
from hf_posenc.evaluation.perplexity import cli as perplexity_cli
from hf_posenc.evaluation.perplexity.tally import Record
from hf_posenc.files import check_writable, replace_atomically, write_atomically
from hf_posenc.finetuning.arguments import DataArguments
from hf_posenc.finetuning.data import load_texts
from hf_posenc.plotting import plot_perplexity

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="a device that is always full")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def numbered(tmp_path):
    """A journal with the records of two documents."""
    model, text = tiny(), [ids(24), ids(30, seed=2)]
    expected = perplexity(model, text, lengths=[24], journal=tmp_path)
    (file,) = tmp_path.glob("*.jsonl")
    return model, text, expected, file


JUNK = [bytes(range(256)) * 40, b"\x80\x81\n\xff\xfe", b'5\n"text"\n[1]\n{"index": 1}\nnull\n{}', b"\0" * 4096]


@pytest.mark.parametrize("junk", JUNK)
def test_a_journal_that_was_damaged_is_named_and_what_it_still_says_is_used(numbered, junk):
    model, text, expected, file = numbered
    first, second = file.read_bytes().splitlines()
    ran = []
    model.model.register_forward_hook(lambda module, args, kwargs, output: ran.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    for damaged, missing in (([junk], 2), ([first, junk, second], 0), ([junk, second], 1)):
        file.write_bytes(b"\n".join([*damaged, b""]))
        ran.clear()
        with pytest.warns(UserWarning, match=f"{file.name} has .* cannot be read"):
            found = perplexity(model, text, lengths=[24], journal=file.parent)
        assert found.scores == expected.scores and ran.count(24) == missing
        assert file.read_bytes().startswith(b"\n".join(damaged)), "nothing is taken out of the file"


def test_a_torn_last_line_is_no_damage(numbered, recwarn):
    model, text, expected, file = numbered
    file.write_bytes(file.read_bytes()[:-20])
    assert perplexity(model, text, lengths=[24], journal=file.parent).scores == expected.scores
    assert not [each for each in recwarn if file.name in str(each.message)]


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_weights_that_were_cut_short_are_named(model, left, tmp_path, capsys):
    folder = shutil.copytree(model, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:left])
    commands = [(cli.main, ["inspect", str(folder)])]
    commands += [(perplexity_cli.main, ["--model", str(folder), "--lengths", "32", "--output_dir", str(tmp_path / "out")])]
    for main, words in commands:
        assert main(words) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {weights} is damaged or cut short") and error.count("\n") == 1


def test_of_several_files_of_weights_the_broken_one_is_named(tmp_path):
    AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "whole")).save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    first, *others = sorted((tmp_path / "parts").glob("*.safetensors"))
    others[0].write_bytes(others[0].read_bytes()[:-5])
    with pytest.raises(ValueError) as error:
        read_model(str(tmp_path / "parts"))
    assert str(others[0]) in str(error.value) and str(first) not in str(error.value)


DAMAGED = {
    "empty.jsonl": (b"", "is empty"),
    "empty.csv": (b"", "is empty"),
    "numbers.jsonl": (b'{"text": 5}\n{"text": 6}\n', "holds int64, not text"),
    "numbers.csv": (b"text\n1\n2\n", "holds int"),
    "lists.jsonl": (b'{"text": ["a", "b"]}\n', "holds List, not text"),
    "mixed.jsonl": (b'{"text": "a"}\n{"text": 3}\n', "not text"),
    "nothing.jsonl": (b"\n\n", "no text|no data"),
    "torn.jsonl": (b'{"text": "a"}\n{"text": "b\n', "cannot load the dataset .*JSON"),
    "binary.jsonl": (bytes(range(256)) * 4, "cannot load the dataset .*JSON"),
    "binary.parquet": (b"PAR1" + bytes(range(256)), "cannot load the dataset"),
}


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("name", DAMAGED)
def test_a_dataset_that_holds_no_text_is_named(name, streaming, tmp_path):
    content, reason = DAMAGED[name]
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(CorpusError, match=reason) as error:
        list(dataset_texts(str(file), streaming=streaming))
    assert str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["empty.jsonl", "numbers.jsonl", "numbers.csv", "lists.jsonl"])
def test_no_training_on_a_dataset_that_holds_no_text(name, tmp_path):
    content, reason = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=reason):
        load_texts(DataArguments(), str(tmp_path / name))


def no_room(*_, **__):
    with open(FULL, "wb", buffering=0) as file:
        file.write(b"x")


@needs_full
def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "run.json", "old")
    with pytest.raises(OSError, match=r"No space left on device: '.*run\.json'"):
        replace_atomically(path, no_room)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", no_room)
    with pytest.raises(OSError, match=r"No space left on device: '.*curve\.png'"):
        plot_perplexity({"rope": {64: 5.0}}, tmp_path / "curve.png")
    assert list(tmp_path.iterdir()) == [path]


@needs_full
def test_a_journal_without_room_is_named(tmp_path):
    journal = Journal(tmp_path / "stock-0", Record)
    journal.file.symlink_to(FULL)
    with pytest.raises(OSError, match=r"No space left on device: '.*stock-0\.0\.jsonl'"):
        journal.add(Record(0, "a", 5, "b"))


def test_others_may_read_what_was_written_as_they_may_read_any_file(tmp_path):
    (tmp_path / "plain").write_text("text")
    assert write_atomically(tmp_path / "run.json", "text").stat().st_mode == os.stat(tmp_path / "plain").st_mode


RECIPES = {
    "perplexity": ["--lengths", "16"],
    "passkey": ["--lengths", "300", "--trials", "1"],
    "retrieval": ["--lengths", "800", "--trials", "1", "--tasks", "niah_single_1"],
    "compare": ["--encoding", "alibi", "--steps", "2"],
    "finetune": ["--block_size", "32"],
}


@pytest.mark.parametrize("inside", [".", "deeper/still"])
@pytest.mark.parametrize("recipe", cli.RECIPES)
def test_an_output_folder_that_cannot_be_written_is_found_first(recipe, inside, tmp_path, capsys):
    """Before the model is looked for: there is none."""
    (tmp_path / "file").touch()
    there = ["--model", str(tmp_path / "gone"), "--output_dir", str(tmp_path / "file" / inside)]
    assert cli.main([recipe, *RECIPES[recipe], *there]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: cannot write to --output_dir {tmp_path / 'file'}") and err.count("\n") == 1


@pytest.mark.parametrize("there", [True, False])
def test_looking_whether_a_folder_can_be_written_leaves_nothing(there, tmp_path):
    folder = tmp_path if there else tmp_path / "a" / "b"
    check_writable(folder)
    assert list(tmp_path.iterdir()) == []
