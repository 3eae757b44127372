"""The picture of perplexity against length."""

import math

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from hf_posenc.plotting import plot_perplexity

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
