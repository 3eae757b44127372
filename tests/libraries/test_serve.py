"""`transformers serve` with a checkpoint that has an encoding of this package."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from families import tiny_config
from tiny import save_tiny
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import hf_posenc

ROOT = Path(__file__).parents[2]
COMMAND = re.search(r"python -c '(import hf_posenc; .*?)' serve", (ROOT / "README.md").read_text())[1]


@pytest.fixture
def folder(tmp_path):
    folder = save_tiny(tmp_path / "stock")
    torch.manual_seed(1)
    hf_posenc.patch(AutoModelForCausalLM.from_pretrained(folder), "shaw").save_pretrained(tmp_path / "patched")
    AutoTokenizer.from_pretrained(folder, eos_token="<s>", pad_token="<s>").save_pretrained(tmp_path / "patched")
    return tmp_path / "patched"


@pytest.mark.parametrize(
    ("family", "auto"), [("llama", AutoModelForCausalLM), ("gpt2", AutoModelForCausalLM), ("bart", AutoModelForSeq2SeqLM)]
)
def test_what_loads_by_the_name_of_a_class_finds_the_auto_class(family, auto, tmp_path):
    model = auto.from_config(tiny_config(family))
    hf_posenc.patch(model, "t5").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [type(model).__name__]
    assert AutoConfig.from_pretrained(tmp_path).architectures == [auto.__name__]


@pytest.mark.slow
def test_the_server(folder):
    """It answers as `generate` does."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    pytest.importorskip("openai")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", COMMAND, "serve", folder, "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    log = folder / "log.txt"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}, stdout=out, stderr=out)
    try:
        asked = {"model": str(folder), "prompt": "abcde", "max_tokens": 6, "temperature": 0}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
        )
        deadline = time.monotonic() + 90
        while True:
            try:
                answer = json.loads(urllib.request.urlopen(request, timeout=60).read())
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.3)
    finally:
        server.terminate()
        server.wait()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    given = tokenizer("abcde", return_tensors="pt")
    made = model.generate(**given, max_new_tokens=6, do_sample=False)[0, given["input_ids"].shape[1] :]
    assert answer["choices"][0]["text"] == tokenizer.decode(made, skip_special_tokens=True)
