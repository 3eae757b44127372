"""SmolLM2-135M, trained at 8,192 tokens, looks for a number in 12,288."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_posenc.evaluation.demo_model import fetch_demo_model
from hf_posenc.evaluation.retrieval import passkey

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    path = fetch_demo_model()
    yield AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(path)
    torch.set_num_threads(threads)


def test_yarn_finds_beyond_the_trained_length_what_the_stock_model_does_not(demo):
    found = passkey(*demo, [12288], [0.25], 1, encodings={"stock": {}, "yarn": {"factor": 2.0}})
    stock, yarn = (found[name].cells[0] for name in ("stock", "yarn"))
    assert (stock.exact, yarn.exact) == (0.0, 1.0)
    assert stock.nats > 10 * yarn.nats


def test_within_the_trained_length_the_number_is_found_and_generated(demo):
    """Over all depths, in every form of the task; generation through the cache says what teacher forcing says."""
    for task in ({}, {"distractors": 4}, {"filler": "essay"}, {"chat": True}):
        (result,) = passkey(*demo, [512], [0.0, 0.5, 1.0], 1, generate=True, encodings=["stock"], **task).values()
        assert [cell.exact for cell in result.cells] == [cell.generated for cell in result.cells] == [1.0, 1.0, 1.0], task
