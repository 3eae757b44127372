"""The pages of this package in a real browser: they render, the console stays empty, and they ask for nothing."""

import io
from pathlib import Path

import browser
import design
import matplotlib.colors
import matplotlib.image
import pytest
from test_comparison import SMALL
from test_finetune_report import reported
from test_recipe_finetune import arguments
from tiny import options_for, save_tiny

import hf_posenc
from hf_posenc import comparison
from hf_posenc.plotting import COLOURS
from hf_posenc.showing.plots import PANELS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.executable() is None, reason="no Chromium here: apt-get install chromium-headless-shell, or set CHROME"),
]
PICTURES = "[...document.images].map(image => image.complete && image.naturalWidth > 100 && image.getBoundingClientRect().width > 100)"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def opened():
    with browser.Browser() as found:
        yield found


def whole(opened, path, pictures, width=1100):
    """Open a page and look at what every page must be."""
    opened.open(path, width)
    assert opened.run(PICTURES) == [True] * pictures
    assert opened.problems == [] and opened.run(OVERFLOW) == 0
    assert [url for url in opened.requests if not url.startswith("data:")] == [path.resolve().as_uri()]


def test_what_shows_encodings(opened, tmp_path):
    labels = ["alibi", "yarn:factor=4", "sinusoidal", "learned:max_positions=64", "shaw", "stick_breaking", "self_extend"]
    shown = hf_posenc.show(labels, geometry=hf_posenc.Geometry(64, 4, max_positions=64), output_dir=tmp_path)
    pictures = 1 + sum(bool(panel.of(view)) for view in shown.views.values() for panel in PANELS)
    whole(opened, shown.html, pictures, width=400)
    whole(opened, shown.html, pictures)
    picture = matplotlib.image.imread(io.BytesIO(opened.picture()))
    first_head = (abs(picture[..., :3] - [68 / 255, 1 / 255, 84 / 255]) < 0.02).all(-1).sum()  # where viridis begins
    assert first_head > 300
    opened.run("document.querySelector('nav a:last-child').click()")
    assert opened.run("Math.abs(document.getElementById('part7').getBoundingClientRect().top) < 400")


def test_encodings_of_every_kind_have_their_part_of_a_page(opened, tmp_path):
    plan = {name: options_for(name) for name in design.one_of_each()}
    shown = hf_posenc.show(plan, geometry=hf_posenc.Geometry(64, 4, max_positions=12), output_dir=tmp_path)
    whole(opened, shown.html, 1 + sum(bool(panel.of(view)) for view in shown.views.values() for panel in PANELS))
    assert opened.run("[...document.querySelectorAll('section h2')].map(each => each.textContent)") == list(plan)


def test_what_a_study_leaves(opened, tmp_path):
    (tmp_path / "text.txt").write_text("All work and no play makes Jack a dull boy. " * 100)
    sizes = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    more = ["--seeds", "0", "--text", str(tmp_path / "text.txt"), "--output_dir", str(tmp_path)]
    assert comparison.main(["--encoding", "rope", "alibi", *sizes, *more]) == 0
    whole(opened, tmp_path / "report.html", 3)
    column = "[...document.querySelectorAll('.results tbody tr')].map(row => row.cells[0].textContent)"
    opened.run("document.querySelector('.results th').click()")
    assert opened.run(column) == ["alibi", "rope"] and opened.problems == []


def test_the_report_of_a_fine_tuning_run(opened, tmp_path):
    (tmp_path / "text.txt").write_text("All work and no play makes Jack a dull boy. " * 100)
    more = ["--encoding", "yarn", "--factor", "4", "--eval_lengths", "32", "128", "--eval_tasks", "passkey", "--eval_tasks_lengths", "400"]
    reported(arguments(save_tiny(tmp_path / "model"), tmp_path / "text.txt", tmp_path, *more, "--logging_steps", "2"))
    whole(opened, tmp_path / "report.html", 2, width=400)
    whole(opened, tmp_path / "report.html", 2)
    assert (
        opened.run("[...document.querySelectorAll('h2')].length") == 5 and opened.run("document.querySelectorAll('.tasks td').length") == 4
    )
    for picture in ("positions", "loss"):
        shown = matplotlib.image.imread(io.BytesIO(opened.picture(f"img#{picture}")))[..., :3]
        for colour in COLOURS[:2]:  # of the curves before and after, of training and held-out text
            assert (abs(shown - matplotlib.colors.to_rgb(colour)) < 0.02).all(-1).sum() > 300, (picture, colour)


def test_a_page_that_asks_for_something_is_found_out(opened, tmp_path):
    bad = Path(tmp_path / "bad.html")
    bad.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("no"); undefined.x</script>')
    opened.open(bad)
    assert "http://127.0.0.1:9/x.png" in opened.requests and len(opened.problems) >= 3
    assert opened.run(PICTURES) == [False]
