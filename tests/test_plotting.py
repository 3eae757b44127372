"""The picture of perplexity against length."""

import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from hf_posenc.plotting import plot_perplexity, plot_retrieval

CURVES = {
    "rope": {64: 5.0, 128: 40.0, 256: math.inf},
    "alibi": {256: 5.2, 64: 5.1, 128: 5.3},
    "learned": {64: 6.0, 128: math.nan, 256: None},
}


@pytest.fixture
def axes(monkeypatch):
    """The axes of every picture that is saved."""
    seen = []
    save = Figure.savefig

    def remember(figure, *args, **kwargs):
        seen.extend(figure.axes)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", remember)
    return seen


def test_every_value_is_drawn_where_it_belongs(axes, tmp_path):
    plot_perplexity(CURVES, tmp_path / "new" / "curve.png", title="a title", train_length=64)
    lines = {line.get_label(): line for line in axes[0].get_lines()}
    assert list(lines) == ["rope", "alibi", "learned", "trained at 64"]  # the order of the right ends, the shorter one last
    assert list(lines["alibi"].get_xdata()) == [64, 128, 256] and list(lines["alibi"].get_ydata()) == [5.1, 5.3, 5.2]
    assert list(lines["learned"].get_xdata()) == [64]
    assert list(axes[0].get_xticks()) == [64, 128, 256] and axes[0].get_xscale() == axes[0].get_yscale() == "log"
    assert len({line.get_marker() for line in lines.values()}) == len({line.get_color() for line in lines.values()}) == 4
    assert imread(tmp_path / "new" / "curve.png").ndim == 3


def test_what_is_off_the_scale_is_clipped_and_named(axes, tmp_path):
    plot_perplexity({**CURVES, "ntk": {64: 5.0, 128: 1e9}}, tmp_path / "curve.png")
    rope, ntk = (next(line for line in axes[0].get_lines() if line.get_label() == name) for name in ("rope", "ntk"))
    assert rope.get_ydata()[2] == ntk.get_ydata()[1] < 100
    assert [text.get_text() for text in axes[0].texts] == ["↑ ntk: 1e+09", "↑ rope: inf"]


def test_one_outlier_does_not_set_the_scale(axes, tmp_path):
    """Ten curves between 10 and 13 and one value of 5,000 or of a million: the axis ends near 13, and the number is told."""
    for outlier in (5e3, 1e6):
        curves = {str(i): {64: 10.0 + i / 5, 128: 11.0 + i / 5} for i in range(10)}
        plot_perplexity({**curves, "broken": {64: 12.0, 128: outlier}}, tmp_path / "curve.png")
        low, high = axes[-1].get_ylim()
        assert 8 < low < 10 and 13 < high < 25
        assert [text.get_text() for text in axes[-1].texts] == [f"↑ broken: {outlier:.2g}"]


@pytest.mark.parametrize("values", [[4, 30, 200, 1500, 9000], [3, 3.1, 900, 1000, 1100, 1200]])
def test_what_grows_by_steps_or_is_common_is_no_outlier(axes, tmp_path, values):
    plot_perplexity({"one": {64 * at: float(value) for at, value in enumerate(values, 1)}}, tmp_path / "curve.png")
    assert list(axes[0].get_lines()[0].get_ydata()) == values and not axes[0].texts


def shown(axes, name):
    """How many points of the picture have the colour of a line."""
    line = next(line for line in axes.get_lines() if line.get_label() == name)
    picture, colour = np.asarray(axes.figure.canvas.buffer_rgba())[..., :3], np.round(np.array(to_rgb(line.get_color())) * 255)
    return (picture == colour).all(axis=-1).sum()


def test_lines_on_each_other_all_show(axes, tmp_path):
    """Two that part at the end, two that are one, and one apart: each has as much colour as the one that nothing covers, or half of it."""
    curves = {"stock": {64: 5.0, 128: 6.0, 256: 7.0, 512: 30.0}, "ntk": {64: 5.0, 128: 6.0, 256: 7.0, 512: 7.5}}
    curves |= {"yarn": {64: 9.0, 128: 9.1, 256: 9.2, 512: 9.3}, "linear": {64: 9.0, 128: 9.1, 256: 9.2, 512: 9.3}}
    curves |= {"alone": {64: 15.0, 128: 15.1, 256: 15.2, 512: 15.3}}
    plot_perplexity(curves, tmp_path / "curve.png")
    found = {name: shown(axes[0], name) for name in curves}
    assert min(found.values()) > 0.4 * found["alone"], found
    looks = {line.get_label(): (line.get_linestyle(), line.get_markersize()) for line in axes[0].get_lines()}
    assert looks["alone"][0] == "-" and all(looks[name][0] == "--" for name in curves if name != "alone")
    assert looks["yarn"][1] != looks["linear"][1] and looks["stock"][1] != looks["ntk"][1]


def test_many_lines_stay_distinguishable(axes, tmp_path):
    plot_perplexity({str(i): {64: 5.0 + i, 128: 6.0 + i} for i in range(20)}, tmp_path / "curve.png")
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes[0].get_lines()}
    assert len(looks) == 20


def test_the_name_of_a_file_leaves_room_for_the_picture(axes, tmp_path):
    name = f"longrope:{'/runs-of-a-project' * 8}/longrope.json"
    plot_perplexity({"stock": {64: 5.0}, name: {64: 6.0}}, tmp_path / "curve.png")
    assert axes[0].get_position().width > 0.4
    assert name in [text.get_text().replace("\n", "") for text in axes[0].get_legend().get_texts()]
    plot_retrieval({(64, 0.0): 1.0}, tmp_path / "grid.png", title=f"m\n{name}")
    assert axes[1].get_title().replace("\n", "") == f"m{name}" and max(map(len, axes[1].get_title().split("\n"))) < 60


def test_a_failure_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "curve.png"
    plot_perplexity(CURVES, path)
    before = path.read_bytes()

    def half(figure, target, **kwargs):
        target.write(before[:100])
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="disk full"):
        plot_perplexity(CURVES, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("curves", [{}, {"rope": {}}, {"rope": {64: None, 128: math.nan}}])
def test_nothing_to_draw(curves, tmp_path):
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_perplexity(curves, tmp_path / "curve.png")


GRID = {(1024, 0.0): 1.0, (1024, 0.5): 0.75, (2048, 0.0): 0.25, (4096, 0.0): 0.0, (4096, 0.5): 0.5}


def test_every_cell_of_a_heat_map_has_its_colour_and_its_number(axes, tmp_path):
    plot_retrieval(GRID, tmp_path / "new" / "map.png", title="a title", train_length=2048)
    (image,) = axes[0].get_images()
    assert image.get_array().filled(-1).tolist() == [[1.0, 0.25, 0.0], [0.75, -1, 0.5]]  # the first depth on top, nothing at (2048, 0.5)
    assert image.get_clim() == (0, 1)
    written = {text.get_position(): text.get_text() for text in axes[0].texts}
    assert written == {(0, 0): "100%", (1, 0): "25%", (2, 0): "0%", (0, 1): "75%", (2, 1): "50%"}
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["1,024", "2,048", "4,096"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["0%", "50%"]
    (line,) = axes[0].get_lines()
    assert list(line.get_xdata()) == [1.5, 1.5] and "trained at 2,048" in axes[0].get_xlabel()  # between 2,048 and 4,096
    assert imread(tmp_path / "new" / "map.png").ndim == 3


def test_the_colours_of_a_heat_map_keep_their_order_in_grey_and_its_numbers_can_be_read(axes, tmp_path):
    """Luminance rises with the share (as everyone sees it), and each number stands out from its cell (WCAG contrast ratio)."""
    shares = {(1024, depth / 20): depth / 20 for depth in range(21)}
    plot_retrieval(shares, tmp_path / "map.png")
    (image,) = axes[0].get_images()
    light = [luminance(image.to_rgba(share)[:3]) for share in sorted(shares.values())]
    assert light == sorted(light) and light[-1] - light[0] > 0.5
    inks = [1.0 if text.get_color() == "white" else 0.0 for text in axes[0].texts]
    assert all((max(a, b) + 0.05) / (min(a, b) + 0.05) > 4.5 for a, b in zip(light, inks, strict=True))


def test_tasks_are_rows_in_their_order(axes, tmp_path):
    plot_retrieval({(1024, "vt"): 1.0, (2048, "vt"): 0.5, (1024, "cwe"): 0.25}, tmp_path / "map.png")
    assert axes[0].get_images()[0].get_array().filled(-1).tolist() == [[1.0, 0.5], [0.25, -1]]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["vt", "cwe"] and axes[0].get_ylabel() == "task"


def luminance(colour):
    """Relative luminance of an sRGB colour (WCAG 2.1)."""
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("train_length", [None, 512, 4096, 100_000])
def test_no_line_where_all_lengths_are_on_one_side(axes, tmp_path, train_length):
    plot_retrieval(GRID, tmp_path / "map.png", train_length=train_length)
    assert not axes[0].get_lines() and "trained" not in axes[0].get_xlabel()


@pytest.mark.parametrize("grid", [{}, {(64, 0.0): 1.5}, {(64, 0.0): math.nan}])
def test_no_heat_map_of_what_is_no_share(grid, tmp_path):
    with pytest.raises(ValueError, match="shares from 0 to 1"):
        plot_retrieval(grid, tmp_path / "map.png")
