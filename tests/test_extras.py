"""Without the libraries of an extra, what needs none works, and the rest says which extra it is before it has done anything."""

import json
import sys

import pytest
from tiny import save_tiny, tiny_model

import hf_posenc
from hf_posenc import cli
from hf_posenc.evaluation.tasks.words import word_list
from hf_posenc.extras import MissingExtra, extra
from hf_posenc.finetuning.model import add_lora


@pytest.fixture
def without(monkeypatch):
    """Makes a library one that is not installed."""

    def hide(library):
        for name in [library, *(name for name in sys.modules if name.startswith(f"{library}."))]:
            monkeypatch.setitem(sys.modules, name, None)

    return hide


SMALL = ["--steps", "1", "--batch_size", "1", "--train_length", "16", "--eval_tokens", "128", "--hidden_size", "16", "--num_layers", "1"]


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
@pytest.mark.parametrize("words", [["show", "alibi"], ["compare", "--encoding", "nope", *SMALL]], ids=" ".join)
def test_a_page_is_refused_before_anything_is_done(words, library, without, tmp_path, capsys):
    without(library)
    assert cli.main([*words, "--output_dir", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == f"error: {library} is not installed: pip install 'hf_posenc[report]'\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["perplexity", "--lengths", "32"], ["passkey", "--lengths", "500", "--depths", "1"]], ids=" ".join)
def test_numbers_are_measured_without_their_pictures(words, without, tmp_path, capsys):
    without("matplotlib")
    model = save_tiny(tmp_path / "model")
    assert cli.main([*words, "--model", str(model), "--device", "cpu", "--output_dir", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.endswith("no pictures: matplotlib is not installed: pip install 'hf_posenc[report]'\n")
    (result,) = (tmp_path / "out").glob("stock-*.json")
    assert json.loads(result.read_text())["complete"] and (tmp_path / "out" / f"{words[0]}.csv").stat().st_size > 100
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_task_whose_words_are_missing_is_refused_before_anything_is_done(without, tmp_path, capsys):
    word_list.cache_clear()
    without("wonderwords")
    model = save_tiny(tmp_path / "model")
    words = ["retrieval", "--model", str(model), "--tasks", "niah_single_1", "--output_dir", str(tmp_path / "out")]
    capsys.readouterr()
    assert cli.main(words) == 1
    assert capsys.readouterr().err == "error: wonderwords is not installed: pip install 'hf_posenc[tasks]'\n"
    assert not (tmp_path / "out").exists()


def test_adapters_name_their_extra(without):
    without("peft")
    with pytest.raises(ImportError, match=r"^peft is not installed: pip install 'hf_posenc\[peft\]'$"):
        add_lora(hf_posenc.patch(tiny_model("llama"), "kerple"), None)


def test_an_import_that_fails_otherwise_is_told_as_it_is():
    with pytest.raises(ImportError, match="cannot import name") as caught, extra("report"):
        from math import nosuch  # noqa: F401
    assert not isinstance(caught.value, MissingExtra)
