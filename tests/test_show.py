"""What is shown of encodings: the numbers and the lines that are drawn, against the formulas; files, page and command."""

import math

import peft
import pytest
import torch
from matplotlib.image import imread
from test_comparison import Page
from tiny import options_for, save_tiny, tiny_model
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import hf_posenc
from hf_posenc import cli
from hf_posenc.plotting import new_axes
from hf_posenc.showing import html, numbers
from hf_posenc.showing.plots import draw_near, draw_past, draw_similarity, draw_wavelengths, panels
from hf_posenc.showing.subject import Subject

WIDE = hf_posenc.Geometry(64, 4, num_kv_heads=2, max_positions=40)
"""Heads of 16 dimensions, trained for 40 tokens."""


def view(name, geometry=WIDE, **options):
    return numbers.View(Subject.alone(name, options, geometry))


def lines(draw, view):
    """The lines of a picture, by name: x -> y."""
    _, axes = new_axes()
    draw(axes, view)
    named = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    return {line.get_label(): dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in named}


def turned(distance, frequencies, width=16):
    """The mean score of equal contents that are `distance` tokens apart, less that of the contents alone."""
    cosines = sum(math.cos(distance * f) for f in frequencies)
    return (2 * cosines + width - 2 * len(frequencies)) / width**0.5 - width**0.5


ROPE = [10_000 ** (-2 * k / 16) for k in range(8)]


def test_the_lines_of_alibi_have_its_slopes():
    for draw, last in ((draw_near, 39), (draw_past, 79)):
        drawn = lines(draw, view("alibi"))
        for head in range(4):
            line = drawn[f"head {head}"]
            assert line[0] == 0 and line[last] == pytest.approx(-last * 4.0 ** -(head + 1))
            assert all(y == pytest.approx(-x * 4.0 ** -(head + 1)) for x, y in line.items())
    assert lines(draw_past, view("alibi"))["trained at 40"].keys() == {40}


def test_the_line_of_rope_is_a_sum_of_cosines():
    (line,) = (line for name, line in lines(draw_near, view("rope")).items() if name == "all heads")
    assert line == {d: pytest.approx(turned(d, ROPE), abs=1e-5) for d in range(40)}


def test_wavelengths_are_those_of_the_formulas():
    drawn = lines(draw_wavelengths, view("linear", factor=4.0))
    assert drawn["the model's own"] == {k: pytest.approx(2 * math.pi * 10_000 ** (2 * k / 16)) for k in range(8)}
    assert drawn["linear"] == {k: pytest.approx(4 * 2 * math.pi * 10_000 ** (2 * k / 16)) for k in range(8)}
    assert set(drawn["trained at 40"].values()) == {40} and set(drawn["asked to reach 160"].values()) == {160}
    assert list(lines(draw_wavelengths, view("sinusoidal"))["sinusoidal"].values()) == pytest.approx(
        [2 * math.pi * 10_000 ** (2 * k / 64) for k in range(32)]
    )
    assert not view("alibi").wavelengths and list(view("rerope").wavelengths) == list(view("rope").wavelengths) == ["the model's own"]


def test_frequencies_that_follow_the_length_are_shown_at_both_lengths():
    found = view("dynamic_ntk", factor=4.0, step=1).wavelengths
    stretched = 10_000 * (4 * 160 / 40 - 3) ** (16 / 14)
    assert found["text of 40"].tolist() == pytest.approx([2 * math.pi * 10_000 ** (2 * k / 16) for k in range(8)])
    assert found["text of 160"].tolist() == pytest.approx([2 * math.pi * stretched ** (2 * k / 16) for k in range(8)], rel=1e-4)


def test_heads_with_frequencies_of_their_own():
    found = view("ms_poe").wavelengths
    native = [2 * math.pi * 10_000 ** (2 * k / 16) for k in range(8)]
    assert list(found) == ["the model's own", "ms_poe, 0", "ms_poe, 1"]
    for head, ratio in ((0, 1.8), (1, 1.2)):
        assert found[f"ms_poe, {head}"].tolist() == pytest.approx([ratio * wavelength for wavelength in native])


def test_what_goes_with_any_encoding():
    found = view("alibi", heads="::2").within.mean
    for head, slope in enumerate((2.0**-4, 0, 2.0**-8, 0)):  # of a model with two heads
        assert found[head, 10] == pytest.approx(-10 * slope)
    assert view("alibi", heads="::2").wavelengths == {}
    past = view("nope", temperature="log_n", sliding_window=20).past
    at = dict(zip(past.distances.tolist(), past.mean[0].tolist(), strict=True))
    assert at[19] == pytest.approx(4 * (math.log(80) / math.log(40) - 1), rel=1e-4) and math.isnan(at[20])


def test_pairs_that_do_not_turn_have_no_wavelength():
    still = view("p_rope", p=0.5).wavelengths["p_rope"]
    assert still[:4].isfinite().all() and still[4:].isinf().all()
    assert len(lines(draw_wavelengths, view("p_rope", p=0.5))["p_rope"]) == 4


def test_the_temperature_of_yarn_shows_where_nothing_turns():
    mean = view("yarn", factor=4.0).within.mean
    assert mean[:, 0].tolist() == pytest.approx([4 * ((0.1 * math.log(4) + 1) ** 2 - 1)] * 4)


def test_remaps_past_the_trained_length():
    past = view("rerope", window=8, log_scaling=False).past
    at = dict(zip(past.distances.tolist(), past.mean[0].tolist(), strict=True))
    assert past.query == 79 and at[7] == pytest.approx(turned(7, ROPE), abs=1e-5)
    assert all(y == pytest.approx(turned(8, ROPE), abs=1e-5) for d, y in at.items() if d >= 8)
    drawn = lines(draw_past, view("streaming_llm", window=8, sinks=2))
    assert [x for x, y in drawn["all heads"].items() if not math.isnan(y)] == [*range(8), 78, 79]


def test_similarity_of_positions():
    found = view("sinusoidal").similarity
    waves = [10_000 ** (-2 * k / 64) for k in range(32)]
    expected = [[sum(math.cos((i - j) * w) for w in waves) / 32 for j in range(64)] for i in range(64)]
    assert found.positions.tolist() == list(range(64)) and torch.allclose(found.values, torch.tensor(expected).double(), atol=1e-5)
    _, axes = new_axes()
    draw_similarity(axes, view("alibi"))
    shown = axes.get_images()[0].get_array()
    slope = sum(4.0 ** -(head + 1) for head in range(4)) / 4
    assert shown[50, 20] == pytest.approx(-30 * slope) and shown.mask[20, 50] and not shown.mask[50, 50]


def test_what_a_token_becomes():
    found = view("sinusoidal").embedded
    token, at = found.token.tolist(), found.becomes.tolist()
    for pos in (0, 1, 63):
        for k in range(32):
            angle, pair = pos * 10_000 ** (-2 * k / 64), slice(2 * k, 2 * k + 2)
            added = [now - alone for now, alone in zip(at[pos][pair], token[pair], strict=True)]
            assert added == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-4)
    assert view("rope").embedded is None


def test_scores_of_embeddings_are_products_of_what_is_added():
    found = view("sinusoidal").within
    for distance in (0, 1, 17, 39):
        cosines = sum(math.cos(distance * 10_000 ** (-2 * k / 64)) for k in range(32))
        assert found.mean[0, found.distances.tolist().index(distance)] == pytest.approx(cosines / 8, abs=1e-5)


def test_what_ends_at_a_length_says_so():
    learned = view("learned")
    assert learned.past is None and "past the learned table of 40 positions" in learned.refused
    longer = view("learned", max_positions=50)
    assert longer.past.query == 49 and "50" in longer.refused
    assert view("alibi").refused == ""


def test_nothing_is_said_to_be_nothing():
    assert panels(view("nope"))[0].says(view("nope")) == "Positions add nothing to scores."
    assert "starts at zero" in panels(view("multiplicative"))[0].says(view("multiplicative"))
    assert "starts at zero" not in panels(view("shaw"))[0].says(view("shaw"))


# -- contents ---------------------------------------------------------------------------------------------------------


def test_vectors_that_meet_the_query_show_by_their_lengths():
    """The mean over contents is 0, and the mean square of q a / sqrt(D) is that of a."""
    found = view("shaw", max_distance=5)
    table = found.subject.encoding.table
    assert found.within.mean.abs().max() < 1e-9
    for at, distance in enumerate(found.within.distances.tolist()):
        assert found.within.spread[:, at].tolist() == pytest.approx([table[min(distance, 5)].norm().item() / 4] * 4)


def test_transformer_xl_shows_what_does_not_depend_on_contents():
    """v W R(t) / sqrt(D) alone is left of the mean."""
    found = view("transformer_xl")
    v, w = found.subject.encoding.v, found.subject.encoding.w
    for at, distance in enumerate(found.within.distances.tolist()):
        angles = torch.tensor([distance * 10_000 ** (-2 * k / 64) for k in range(32)], dtype=torch.float64)
        expected = (v[:, None] @ w @ torch.cat((angles.sin(), angles.cos())))[:, 0] / 4
        assert torch.allclose(found.within.mean[:, at], expected, atol=1e-7)


def test_gates_that_read_the_text():
    """FoX with gates that look at nothing: log sigmoid(b) a token."""
    found = view("fox", bias=1.0).within
    expected = F.logsigmoid(torch.tensor(1.0).double()) * found.distances
    assert torch.allclose(found.mean, expected.expand(4, -1), atol=1e-5) and found.alike


def test_weights_that_come_from_no_softmax_stand_for_scores_by_their_logarithms():
    """A stick is broken at each token: about E log(1 - sigmoid(z)) = -0.806 for z of a normal distribution; none is left for the query."""
    found = view("stick_breaking").within
    assert found.mean[:, 0].isnan().all()
    assert found.mean[:, 10].tolist() == pytest.approx([-8.06] * 4, rel=0.2)


# -- every encoding ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", hf_posenc.list_encodings())
def test_every_encoding_can_be_seen(name):
    found = view(name, hf_posenc.Geometry(64, 4, max_positions=12), **options_for(name))
    heads = 4 if found.subject.attends else 1
    for row in (found.within, found.past):
        assert row is None or (row.mean.shape == (heads, len(row.distances)) and row.mean.isfinite().any(-1).all())
    assert found.similarity.values.shape == (len(found.similarity.positions),) * 2 and found.similarity.values.isfinite().any()
    assert len(panels(found)) == 3 + bool(found.wavelengths) + (found.embedded is not None)
    assert all(panel.says(found) for panel in panels(found))


# -- models -----------------------------------------------------------------------------------------------------------


def within(label, model, layer=None, **options):
    return numbers.View(Subject.within(label, options, model, layer))


def test_a_stock_model_shows_its_own():
    found = within("stock", tiny_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 500.0}))
    assert found.subject.encoding.name == "rope" and found.subject.place == "llama, layer 0 of 2" and found.subject.trained == 12
    assert found.wavelengths["the model's own"].tolist() == pytest.approx([2 * math.pi * 500 ** (2 * k / 16) for k in range(8)])
    model = tiny_model("gpt2")
    table = model.transformer.wpe.weight.detach().double()
    assert torch.allclose(within("stock", model).embedded.added, table, atol=1e-6)
    assert within("stock", tiny_model("bloom")).subject.encoding.name == "alibi"


def test_learned_numbers_of_a_patched_model_are_shown_and_stay():
    model = hf_posenc.patch(tiny_model("llama"), "t5", num_buckets=4, max_distance=8)
    with torch.no_grad():
        model.model.positional_encoding.table.copy_(torch.arange(16.0).view(4, 4))
    before = hf_posenc.inspect(model).fingerprint
    for label in ("t5", "stock"):
        assert within(label, model).within.mean[:, :3].tolist() == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
    fresh = within("t5:num_buckets=4", model, num_buckets=4)  # of others options than are there
    assert fresh.within.mean[0, :3].tolist() != [0, 4, 8]
    assert within("alibi", model).within.mean[:, 4].tolist() == pytest.approx([-4 * 4.0 ** -(head + 1) for head in range(4)])
    assert hf_posenc.inspect(model).fingerprint == before and [e.name for e in hf_posenc.inspect(model).encodings] == ["t5"]


def test_what_an_adapter_has_trained_is_shown():
    model = hf_posenc.patch(tiny_model("llama"), "t5", num_buckets=4, max_distance=8)
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["positional_encoding"]))
    with torch.no_grad():
        next(x for name, x in tuned.named_parameters() if "positional_encoding.modules_to_save" in name).fill_(3.0)
    found = within("stock", tuned)
    assert found.within.mean[:, :9].eq(3).all()
    assert html.facts(found, hf_posenc.describe("t5"))["learned numbers"] == "16"


def test_a_table_in_the_place_of_the_models_own_is_read_there():
    model = hf_posenc.patch(tiny_model("gpt2"), "learned", max_positions=20)
    with torch.no_grad():
        model.transformer.wpe.weight.fill_(2.0)
    assert torch.allclose(within("stock", model).embedded.added, torch.full((20, 64), 2.0).double(), atol=1e-5)


def test_each_layer_can_be_looked_at():
    model = hf_posenc.patch(tiny_model("llama"), "fire")
    with torch.no_grad():
        model.model.positional_encoding_1.w2.zero_()
        model.model.positional_encoding_1.b2.copy_(torch.arange(4.0))
    assert within("fire", model, layer=1).within.mean[:, 3].tolist() == [0, 1, 2, 3]
    assert within("fire", model).within.mean[:, 3].tolist() == within("fire", model, layer=0).within.mean[:, 3].tolist() != [0, 1, 2, 3]
    with pytest.raises(ValueError, match="layer 2 has no attention; those with are 0, 1"):
        within("fire", model, layer=2)


def test_a_layer_without_an_encoding_of_the_catalogue():
    with pytest.raises(ValueError, match="layer 0 has no encoding of the catalogue"):
        within("stock", tiny_model("ctrl"))


# -- files ------------------------------------------------------------------------------------------------------------


def test_one_picture_and_one_page_that_needs_no_other_file(tmp_path):
    shown = hf_posenc.show(["alibi", "learned"], geometry=WIDE, output_dir=tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["show.html", "show.png"]
    assert imread(shown.png).shape[0] > 500 and shown._repr_png_() == shown.png.read_bytes()
    text = shown.html.read_text()
    page = Page(text)
    pictures = 1 + 3 + 4
    assert not page.open and page.tags.count("img") == pictures and page.tags.count("section") == 2
    assert "script" not in page.tags and "link" not in page.tags
    assert sorted({link.partition(",")[0] for link in page.links}) == ["#part1", "#part2", "data:image/svg+xml;base64"]
    assert all(f"{-(2**i) / 4:.4g}" in page.cells for i in range(7)) and "past the learned table of 40 positions" in text
    assert hf_posenc.describe("alibi").source in page.cells


def test_what_a_name_holds_is_shown_and_not_obeyed(monkeypatch):
    monkeypatch.setattr(html, "panels", lambda view: [])
    text = html.page({"<script>alert(1)</script>": view("alibi")}, "<b>")
    assert "script" not in Page(text).tags and "b" not in Page(text).tags and "&lt;script&gt;alert(1)" in text


def test_the_numbers_of_a_table_are_those_of_the_picture():
    within, past = html.tables(view("alibi"))
    assert [row[0] for row in within["rows"]] == ["0", "1", "2", "4", "8", "16", "32", "39"]
    assert within["rows"][-1][1:] == ["-9.75", "-2.438", "-0.6094", "-0.1523"] and past["rows"][-1][0] == "79"
    (hidden, _) = html.tables(view("streaming_llm", window=8, sinks=2))
    assert hidden["header"] == ["distance", "all heads"] and dict(hidden["rows"])["16"] == "–"
    *_, token = html.tables(view("sinusoidal"))
    alone, first = token["rows"][:2]
    assert float(first[2]) == pytest.approx(float(alone[2]) + 1, abs=1e-3)  # cos 0


def test_the_command(tmp_path, capsys, monkeypatch):
    saved = hf_posenc.patch(AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "stock")), "kerple")
    saved.save_pretrained(tmp_path / "model")
    seen = {}
    monkeypatch.setattr("hf_posenc.showing.verb.figure_of_all", lambda views: seen.update(views) or new_axes()[0])
    monkeypatch.setattr("hf_posenc.showing.verb.page", lambda views, title: title)
    folder = str(tmp_path / "out")
    assert cli.main(["show", "--model", str(tmp_path / "model"), "--layer", "1", "--output_dir", folder]) == 0
    assert capsys.readouterr().out.split() == [f"{folder}/show.png", f"{folder}/show.html"]
    assert seen["stock"].subject.encoding.name == "kerple" and seen["stock"].subject.place.endswith("layer 1 of 2")
    live = saved.model.positional_encoding
    assert all(torch.equal(a, b.double()) for a, b in zip(seen["stock"].subject.encoding.parameters(), live.parameters(), strict=True))
    assert cli.main(["show", "yarn:factor=4", "rope", "--output-dir", folder]) == 0
    assert list(seen) == ["stock", "yarn:factor=4", "rope"] and seen["yarn:factor=4"].subject.reach == 4 * 2048


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show"], "nothing to show: name encodings"),
        (["show", "alibbi"], "unknown encoding 'alibbi'. Did you mean 'alibi'"),
        (["show", "yarn"], "takes either factor= or target_length="),
        (["show", "alibi:slope=2"], "'alibi' has no option 'slope'"),
        (["show", "stock"], "give a model"),
        (["show", "nope:layers=3::4"], "layers= is about the layers of a model"),
        (["show", "alibi", "--layer", "3"], "layer= is about the layers of a model"),
        (["show", "alibi", "--model", "nowhere/at/all"], "nowhere/at/all"),
        (["show", "alibi", "--output_dir", "/proc/nothing"], "cannot write to --output_dir /proc/nothing"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys, monkeypatch):
    monkeypatch.setattr("hf_posenc.showing.verb.save", None)  # nothing is drawn before it is found
    assert cli.main(words) == 1
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("error: ") and message in error[-1]
