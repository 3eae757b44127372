"""How far a model is from itself right after a patch."""

import math

import pytest
import torch
from tiny import save_tiny, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_posenc
from hf_posenc import cli
from hf_posenc.evaluation import embedded_corpus
from hf_posenc.evaluation.warm_start import warm_start

IDS = torch.randint(3, 60, (9,), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def both(model, name, ids, **options):
    """Logits [L][V] before and after, as lists of Python numbers."""
    before = model(ids[None]).logits[0].double().tolist()
    with hf_posenc.patched(model, name, **options):
        return before, model(ids[None]).logits[0].double().tolist()


def distribution(row):
    whole = sum(math.exp(x - max(row)) for x in row)
    return [math.exp(x - max(row)) / whole for x in row]


@pytest.mark.parametrize(("name", "options"), [("alibi", {}), ("yarn:factor=4", {"factor": 4.0}), ("nope", {"layers": "1::2"})])
def test_the_differences_are_those_of_the_logits(name, options):
    model = tiny_model("llama")
    given = {"layers": slice(1, None, 2)} if "layers" in options else options
    before, after = both(model, name.partition(":")[0], IDS, **given)
    found = warm_start(model, IDS, name, options)
    assert found.tokens == len(IDS)
    assert found.largest == pytest.approx(max(abs(a - b) for rows in zip(before, after, strict=True) for a, b in zip(*rows, strict=True)))
    p, q = ([distribution(row) for row in rows] for rows in (before, after))
    divergences = [sum(a * math.log(a / b) for a, b in zip(*rows, strict=True)) for rows in zip(p, q, strict=True)]
    assert found.kl == pytest.approx(sum(divergences) / len(IDS), rel=1e-3) and found.kl > 1e-6
    for nats, rows in ((found.before, p), (found.after, q)):
        assert nats == pytest.approx(-sum(math.log(rows[at][IDS[at + 1]]) for at in range(len(IDS) - 1)) / (len(IDS) - 1), rel=1e-4)


def test_a_model_with_its_own_encoding_is_itself_and_stays_as_it_was():
    model = tiny_model("llama").train()
    found = warm_start(model, IDS, "rope")
    assert found.largest == found.kl == 0 and found.before == found.after
    assert model.training and not hf_posenc.inspect(model).encodings


def test_describe_measures_on_request(tmp_path, capsys):
    folder = save_tiny(tmp_path / "model")
    assert cli.main(["describe", "alibi", "--model", str(folder)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(embedded_corpus()[:1000], return_tensors="pt", add_special_tokens=False).input_ids[0, :64]
    before, after = both(model, "alibi", ids)
    largest = max(abs(a - b) for rows in zip(before, after, strict=True) for a, b in zip(*rows, strict=True))
    assert f"on 64 tokens: logits differ by at most {largest:.3g}," in last


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["describe", "yarn", "--model", "MODEL"], "takes either factor= or target_length="),
        (["describe", "alibi:slope=1"], "'alibi' has no option 'slope'"),
        (["describe", "alibi", "--model", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_what_cannot_be_measured_is_an_error_of_one_line(words, message, tmp_path, capsys):
    folder = str(save_tiny(tmp_path / "model"))
    assert cli.main([folder if word == "MODEL" else word for word in words]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
