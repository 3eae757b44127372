"""The picture of perplexity against length."""

import math

import pytest
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
    assert [text.get_text() for text in axes[0].texts] == ["ntk: 1e+09", "rope: inf"]


def test_many_lines_stay_distinguishable(axes, tmp_path):
    plot_perplexity({str(i): {64: 5.0 + i, 128: 6.0 + i} for i in range(20)}, tmp_path / "curve.png")
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes[0].get_lines()}
    assert len(looks) == 20


def test_a_failure_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "curve.png"
    plot_perplexity(CURVES, path)
    before = path.read_bytes()

    def half(figure, target, **kwargs):
        target.write_bytes(before[:100])
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
