"""What the catalogue says of encodings, and how it is filtered."""

import pytest
import torch
from tiny import options_for

import hf_posenc
from hf_posenc import cli
from hf_posenc.attention.choice import Prospect, choose
from hf_posenc.attention.entry import are_bounded
from hf_posenc.encodings import ENCODINGS, Geometry, PositionalEncoding, create, register


@pytest.mark.parametrize("name", hf_posenc.list_encodings())
def test_the_cost_is_the_path_that_attention_takes(name):
    encoding = create(name, Geometry(64, 4, max_positions=12), **options_for(name))
    pos = torch.arange(96 if encoding.any_length else encoding.context_length)[None]
    regional = are_bounded(encoding.regions(pos, pos))
    path = choose(encoding, Prospect("sdpa", "cpu", torch.float32, regional)).path
    assert hf_posenc.describe(name).cost == path


def test_filters_are_met_together():
    assert {"alibi", "t5", "kerple", "sandwich"} <= set(hf_posenc.list_encodings(class_="bias", cost="table", relative=True))
    assert "fire" in hf_posenc.list_encodings(class_="bias", relative=False) and "fire" not in hf_posenc.list_encodings(cost="table")
    ready = hf_posenc.list_encodings(class_="rotary", needs_training=False)
    assert {"yarn", "ntk", "dynamic_ntk"} <= set(ready) and not {"rope", "linear", "rerope"} & set(ready)
    assert "dynamic_ntk" in hf_posenc.list_encodings(caches="raw") and "rope" not in hf_posenc.list_encodings(caches="raw")
    assert {"learned", "self_extend"} <= set(hf_posenc.list_encodings(any_length=False))
    assert hf_posenc.list_encodings() == sorted(ENCODINGS) and len(hf_posenc.list_encodings()) >= 26


def test_every_encoding_is_in_one_part_of_each_filter():
    everything = hf_posenc.list_encodings()
    for name, values in {
        "needs_training": {True, False},
        "relative": {True, False},
        "any_length": {True, False},
        **{name: {getattr(hf_posenc.describe(each), name) for each in everything} for name in ("class_", "cost", "caches")},
    }.items():
        parts = [hf_posenc.list_encodings(**{name: value}) for value in values]
        assert all(parts) and sorted(each for part in parts for each in part) == everything


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"class_": "bais"}, "no encoding has class 'bais'. Did you mean 'bias'"),
        ({"cost": "free"}, "no encoding has cost 'free'. There are: blocks, regions, stock, table"),
        ({"relative": 3}, "relative is one of .* got 3"),
    ],
)
def test_a_filter_that_nothing_can_meet(wanted, message):
    with pytest.raises(ValueError, match=message):
        hf_posenc.list_encodings(**wanted)


def names_in(table):
    return [line.split()[0] for line in table.splitlines()[1:]]


def test_the_command_filters(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert cli.main(["list", "--class", "bias", "--needs-training", "yes", "--cost", "table"]) == 0
    assert names_in(capsys.readouterr().out) == hf_posenc.list_encodings(class_="bias", needs_training=True, cost="table")
    assert cli.main(["list", "--any_length", "no"]) == 0
    assert names_in(capsys.readouterr().out) == hf_posenc.list_encodings(any_length=False)
    assert cli.main(["list", "--relative", "perhaps"]) == 1
    assert capsys.readouterr().err == "error: --relative is yes or no, got 'perhaps'\n"


def test_a_description_takes_apart_what_the_documentation_says():
    alibi, yarn, streaming = (hf_posenc.describe(name) for name in ("alibi", "yarn", "streaming_llm"))
    assert alibi.source == "Press et al., 2021, arXiv:2108.12409, section 3" and alibi.differs == ""
    assert yarn.differs == "Differs from the paper: the ramp is linear in the index of the pair, as in the authors' code."
    assert streaming.differs.count("Differs from") == 2 and "\n" not in streaming.differs
    assert "cost: table, a table of distances" in str(alibi) and "class: bias" in str(alibi)


def test_every_difference_is_told():
    for name in hf_posenc.list_encodings():
        description = hf_posenc.describe(name)
        assert description.differs.count("Differs from") == description.documentation.count("Differs from"), name
        cited = "arXiv:" in description.documentation.split("\n\n")[0]  # some are nobody's
        assert not cited or "arXiv:" in description.source, f"{name}: the first line has no (Authors, year, arXiv:id, section)"


def test_what_it_starts_as_follows_the_options(capsys):
    state = torch.random.get_rng_state()
    assert hf_posenc.describe("t5").starts_as == "" and hf_posenc.describe("t5", init="zero").starts_as == "nope"
    assert hf_posenc.describe("multiplicative").starts_as == "nope" and hf_posenc.describe("yarn").starts_as == ""
    assert torch.equal(torch.random.get_rng_state(), state)
    assert cli.main(["describe", "t5:init=zero"]) == 0
    shown = capsys.readouterr().out
    assert "the same logits as with: nope" in shown and "init='zero'" in shown and "num_buckets=32" in shown


def test_an_encoding_of_ones_own_has_a_class_of_its_own():
    @register("log_distance")
    class LogDistance(PositionalEncoding):
        """A bias of -log(1 + distance)."""

        relative, starts_as = True, "nope"

        def bias(self, h, q_pos, k_pos):
            return -torch.log1p((q_pos - k_pos).clamp(min=0).float())

    try:
        assert hf_posenc.list_encodings(class_="own") == ["log_distance"]
        assert "the same logits as with: nope" in str(hf_posenc.describe("log_distance"))
    finally:
        ENCODINGS._entries.pop("log_distance")
