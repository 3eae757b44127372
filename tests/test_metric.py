"""Perplexity as a metric of the `evaluate` library: loaded from the installed package without a hub, by one process and by several."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

import hf_posenc

ROUNDS = [[[(2.5, 3), (0.25, 1)], [(40.0, 9), (1e-9, 2)]], [[(3.0, 2)], []], [[], [(5.0, 4), (0.5, 7)]]]
"""Nats and predictions of the texts of two processes, in three rounds; in some of them one has nothing."""
PROCESS = """
import json, sys, evaluate, hf_posenc
rank, processes, cache, rounds = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
metric = evaluate.load(
    hf_posenc.metric_path(), num_process=processes, process_id=rank, experiment_id="texts", cache_dir=cache, timeout=60
)
found = []
for share in rounds:
    for nats, tokens in share:
        metric.add_batch(nats=[nats], tokens=[tokens])
    found.append(metric.compute())
print(json.dumps(found))
"""


@pytest.fixture
def metric(tmp_path):
    return evaluate.load(hf_posenc.metric_path(), cache_dir=str(tmp_path), keep_in_memory=True)


def mean(texts):
    return sum(nats for nats, _ in texts) / sum(tokens for _, tokens in texts)


def start(folder, rank, processes, rounds):
    """A new process that knows no hub and no cache."""
    fresh = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "home"),
        "HF_MODULES_CACHE": str(folder / f"modules{rank}"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", PROCESS, str(rank), str(processes), str(folder / "shared"), json.dumps(rounds)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path(hf_posenc.__file__).parents[1]), **fresh}, **pipes)


def finished(process):
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return json.loads(out)


def test_tokens_are_weighted_equally_and_sums_stay_in_float64(metric):
    metric.add_batch(nats=torch.tensor([2.5, 0.25]), tokens=[3, 1])
    metric.add_batch(nats=np.array([40.0, 1e-9]), tokens=np.array([9, 2]))
    found = metric.compute()
    assert found["tokens"] == 15
    assert found["nats"] == pytest.approx((42.75 + 1e-9) / 15, rel=1e-15)
    assert found["perplexity"] == pytest.approx(math.exp((42.75 + 1e-9) / 15), rel=1e-15)


def test_predictions_one_by_one_have_the_textbook_standard_error(metric):
    nats = [1.0, 2.0, 6.0, 3.5]
    found = metric.compute(nats=nats, tokens=[1] * 4)
    assert found["nats"] == pytest.approx(np.mean(nats)) and found["standard_error"] == pytest.approx(np.std(nats, ddof=1) / 2)


def test_nothing_is_an_error_and_too_much_is_infinite(metric):
    with pytest.raises(ValueError, match="no prediction to pool"):
        metric.compute()
    assert metric.compute(nats=[2000.0], tokens=[2])["perplexity"] == math.inf


@pytest.mark.slow
def test_processes_get_the_numbers_of_one_round_after_round(tmp_path):
    """Also where one has nothing to add, and where one is ahead: a round is read before the files of the next are written."""
    processes = [start(tmp_path, rank, 2, [shares[rank] for shares in ROUNDS]) for rank in range(2)]
    first, second = map(finished, processes)
    assert second == [None] * 3
    for found, shares in zip(first, ROUNDS, strict=True):
        texts = [text for share in shares for text in share]
        assert found["tokens"] == sum(tokens for _, tokens in texts) and found["nats"] == pytest.approx(mean(texts), rel=1e-15)


def test_the_module_is_installed_with_the_package():
    root = Path(hf_posenc.__file__).parent
    (patterns,) = re.findall(r"^hf_posenc = (\[.*\])$", (root.parent / "pyproject.toml").read_text(), re.MULTILINE)
    assert Path(hf_posenc.metric_path(), "token_perplexity.py") in {path for pattern in json.loads(patterns) for path in root.glob(pattern)}
