"""The parts of the controlled study: same data, same start, what is measured, and what the report says of it."""

import base64
import html.parser
import json
import math
import re
import shlex
import statistics

import pytest
import torch
from tiny import tiny_model

import hf_posenc
from hf_posenc import comparison
from hf_posenc.comparison.base import Scratch, build, has_position
from hf_posenc.comparison.data import Corpus, read_corpus
from hf_posenc.comparison.measure import nats_by_length, nats_by_position
from hf_posenc.comparison.plots import length_figure
from hf_posenc.comparison.summary import Spread, spread, summary
from hf_posenc.comparison.training import train
from hf_posenc.flags import parse

SMALL = {"steps": 4, "batch_size": 4, "train_length": 16, "eval_tokens": 256, "hidden_size": 16, "num_layers": 1}


def small(**changes):
    return comparison.CompareArguments(**{**SMALL, **changes})


def variants(*labels, **changes):
    return comparison.read_variants(small(encoding=list(labels), **changes))


def seen_in_training(label, seed, folder, **changes):
    """The batches that reached the model in a training, as they were."""
    arguments = small(encoding=[label], seeds=[seed], **changes)
    study = comparison.prepare(arguments)
    model = build(study.base, study.runs[0].variant, seed)
    seen = []
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["input_ids"].clone()), with_kwargs=True)
    train(model, study.batches(seed), arguments, seed, folder, lambda done: None)
    return torch.cat(seen), study


def test_every_encoding_sees_the_same_batches_and_another_seed_others(tmp_path):
    alibi, study = seen_in_training("alibi", 0, tmp_path)
    shaw, _ = seen_in_training("shaw", 0, tmp_path)  # which draws more random numbers for its parameters
    split, _ = seen_in_training("alibi", 0, tmp_path, accumulate=2)
    other, _ = seen_in_training("alibi", 1, tmp_path)
    assert torch.equal(alibi, study.batches(0)) and torch.equal(alibi, shaw) and torch.equal(alibi, split) and not torch.equal(alibi, other)
    text = (study.corpus.test.tolist(), *study.corpus.blocks.tolist())
    assert sorted(alibi.tolist()) == sorted(text[1:])  # one pass: every block once
    assert b"".join(map(bytes, text)) == hf_posenc.evaluation.embedded_corpus().encode()[: 256 + 16 * 16]


def test_every_pass_over_the_data_is_complete_and_in_another_order():
    order = Corpus(torch.arange(8), torch.arange(10)[:, None]).batches(seed=0, count=25).flatten().tolist()
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10)) and order[:10] != order[10:20]
    assert len(order) == 25


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_encoding_starts_from_the_same_weights(family):
    base = Scratch(small(model_type=family))
    stock = base.start(0).state_dict()
    few = ["factor=2", "max_positions=64", "wavelet_pe.scales=4", "abacus.digits=[3,4]", "bipe.separators=[5]"]
    for variant in variants(*hf_posenc.list_encodings(), option=few):
        model = build(base, variant, 0)
        own = {name for name in model.state_dict() if "positional_encoding" in name or "wpe" in name}
        shared = {name: value for name, value in model.state_dict().items() if name not in own}
        assert set(stock) - {"transformer.wpe.weight"} == set(shared), variant.label
        assert all(torch.equal(value, stock[name]) for name, value in shared.items()), variant.label
    assert not torch.equal(base.start(1).state_dict()["lm_head.weight"], stock["lm_head.weight"])


def test_the_text_that_is_tested_on_does_not_depend_on_the_training(tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text("\n".join(json.dumps({"body": f"Document {index}. " * 20}) for index in range(50)))
    given = {"dataset": str(file), "text_column": "body"}
    short, long = (read_corpus(a := small(**given, steps=steps), Scratch(a)) for steps in (4, 12))
    assert torch.equal(short.test, long.test) and bytes(short.test.tolist()).startswith(b"Document 0. ")
    assert torch.equal(long.blocks[: len(short.blocks)], short.blocks) and len(long.blocks) == 48
    joined = b"\n\n".join((f"Document {index}. " * 20).encode() for index in range(50))
    assert bytes(long.test.tolist() + long.blocks.flatten().tolist()) == joined[: 256 + 48 * 16]


def reference_nats(model, ids, length):
    """[windows, length - 1] from all logits of one window at a time."""
    windows = ids[: len(ids) // length * length].view(-1, length)
    with torch.no_grad():
        logs = [model(window[None]).logits[0, :-1].double().log_softmax(-1) for window in windows]
    return -torch.stack([log[torch.arange(length - 1), window[1:]] for log, window in zip(logs, windows, strict=True)])


def test_nats_by_length_and_by_position():
    model = hf_posenc.patch(tiny_model("llama"), "alibi")
    ids = torch.randint(3, 60, (150,), generator=torch.Generator().manual_seed(0))
    expected = {length: reference_nats(model, ids, length) for length in (12, 70)}
    found = nats_by_length(model, ids, [12, 70])
    assert found == {length: pytest.approx(nats.mean().item(), rel=1e-5) for length, nats in expected.items()}
    by_position = nats_by_position(model, ids, 70)
    assert [(start, stop) for start, stop, _ in by_position] == [(1, 16), (16, 32), (32, 64), (64, 70)]
    for start, stop, nats in by_position:
        assert nats == pytest.approx(expected[70][:, start - 1 : stop - 1].mean().item(), rel=1e-5)
    assert sum((stop - start) * nats for start, stop, nats in by_position) / 69 == pytest.approx(found[70], rel=1e-5)
    assert [(start, stop) for start, stop, _ in nats_by_position(model, ids, 12)] == [(1, 12)]


@pytest.mark.parametrize("label", ["stock", "learned"])
def test_a_position_table_ends_where_it_ends(label):
    model = build(Scratch(small(model_type="gpt2")), variants(label)[0], 0)
    assert has_position(model, 15) and not has_position(model, 16)
    assert has_position(build(Scratch(small(model_type="llama")), variants("stock")[0], 0), 1000)


def test_options_go_where_they_are_meant():
    asked = {"encoding": ["yarn", "yarn:factor=8,beta_fast=16", "linear", "sinusoidal", "stock"]}
    found = {v.label: v.options for v in variants(*asked["encoding"], option=["factor=2", "yarn.factor=4", "yarn.beta_slow=2"])}
    assert found == {
        "yarn": {"factor": 4, "beta_slow": 2},
        "yarn:factor=8,beta_fast=16": {"factor": 8, "beta_fast": 16, "beta_slow": 2},
        "linear": {"factor": 2},
        "sinusoidal": {"scale": 0.02},
        "stock": {},
    }


def test_mean_and_sample_standard_deviation():
    assert spread([1.0, 3.0]) == Spread(2.0, pytest.approx(math.sqrt(2)), 2)
    assert spread([5.0]) == Spread(5.0, None, 1)
    assert str(spread([2.0, 4.0, 6.0])) == "4.00 ± 2.00" and str(spread([7.0])) == "7.00" and str(spread([1e5])) == "1.0e+05"
    assert spread([1.0, math.inf]) == Spread(math.inf, math.inf, 2)


def found(label, nats):
    return {
        "nats": nats,
        "by_position": [[1, 16, 2.0]],
        "train_loss": {"1": 5.0},
        "train_seconds": 1,
        "parameters": 7,
        "fingerprint": "f",
        "settings": {"encoding": label},
    }


def test_the_band_is_one_standard_deviation_around_the_mean():
    figure = length_figure([summary("alibi", [found("alibi", {"16": n, "32": n + 1}) for n in (1.0, 1.2, 1.5)])], "", 16, "byte")
    (line,) = [line for line in figure.axes[0].get_lines() if line.get_label() == "alibi"]
    (band,) = figure.axes[0].collections
    values = [[math.exp(n) for n in (1.0, 1.2, 1.5)], [math.exp(n + 1) for n in (1.0, 1.2, 1.5)]]
    assert list(line.get_ydata()) == pytest.approx([statistics.fmean(v) for v in values])
    corners = {(x, round(float(y), 6)) for x, y in band.get_paths()[0].vertices}
    edges = [(x, statistics.fmean(v) + sign * statistics.stdev(v)) for x, v in zip((16, 32), values, strict=True) for sign in (-1, 1)]
    assert {(x, round(y, 6)) for x, y in edges} == corners


class Page(html.parser.HTMLParser):
    """The elements of a page and the text in its cells."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.cells, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action", "poster")]
        assert not [name for name, _ in attrs if name.startswith("on")], attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data.strip())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study whose names would do harm if the page obeyed them."""
    folder = tmp_path_factory.mktemp("study")
    text = folder / "<img src=x onerror=alert(1)>&<script>.txt"
    text.write_text("All work and no play makes Jack a dull boy. " * 100)
    asked = ["--encoding", "learned", "kerple:kernel=power", "--seeds", "0", "1", "--text", str(text)]
    sizes = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    argv = [*asked, *sizes, "--output_dir", str(folder / "out")]
    assert comparison.main(argv) == 0
    return folder / "out", argv


def test_the_page_needs_no_other_file_and_obeys_no_name(study):
    text = (study[0] / "report.html").read_text()
    page = Page(text)
    assert not page.open and page.tags.count("script") == 1 and page.tags.count("img") == 3
    assert len(page.links) == 3 and all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    assert "link" not in page.tags and "iframe" not in page.tags and not re.search(r"@import|url\(|https?://", text)
    for link in page.links:
        picture = base64.b64decode(link.partition(",")[2]).decode()
        assert "<svg" in picture and all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', picture))
        assert "<script" not in picture and "<image" not in picture


def test_every_number_is_on_the_page(study):
    cells = Page((study[0] / "report.html").read_text()).cells
    results = [json.loads(path.read_text()) for path in study[0].glob("*.json")]
    assert len(results) == 4
    for label in ("learned", "kerple:kernel=power"):
        mine = [r for r in results if r["settings"]["encoding"] == label]
        for length in ("16", "32", "64", "128"):
            values = [math.exp(r["nats"][length]) for r in mine if r["nats"][length] is not None]
            assert (f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}" if values else "-") in cells
            assert all(f"{r['nats'][length]:.4f}" in cells for r in mine if values)
        assert f"{mine[0]['parameters']:,}" in cells
    text = (study[0] / "report.html").read_text()
    for result in results:
        assert result["fingerprint"] in text and result["settings"]["batches"] in text and result["settings"]["start"] in text
    assert results[0]["versions"]["torch"] in text and "not defined at a length of 32, 64, 128" in text


def test_the_command_on_the_page_asks_for_the_same_study(study):
    text = (study[0] / "report.html").read_text()
    words = shlex.split(html.unescape(re.search(r"<pre>(.*)</pre>", text, re.DOTALL)[1]))
    assert words[:2] == ["hf-posenc", "compare"]
    asked, again = (parse([comparison.CompareArguments], "hf-posenc compare", argv)[0] for argv in (study[1], words[2:]))
    assert asked == again
