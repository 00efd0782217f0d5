"""The site: built once from the notebooks as they are stored and a small one with frames; then looked at.

COURSE_SITE=folder looks at every page of a finished site in the browser as well.
"""

import io
import os
import re
import shutil
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from course_utils.classroom import frames

pytest.importorskip("sphinx", reason="the extra [site] is not installed")
from course_utils.classroom import site, site_api, site_check

BROWSER = next(filter(None, map(shutil.which, site_check.BROWSERS)), None)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")  # Sphinx's
in_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
MADE_UP = "99_made_up"
INDEX = {
    "size": [80, 40],
    "names": ["shade", "side"],
    "values": [["0", "100", "200"], ["left", "right"]],
    "start": [1, 0],
}


TABLE = "<table><tr><th>beside the slider</th></tr></table>"
STILL = frames.markup(INDEX, "data:image/png;base64,", "Shade 100.", line="Run this cell to move the sliders.")


def png(shade):
    out = io.BytesIO()
    Image.new("RGB", (160, 80), (shade, shade, shade)).save(out, "PNG")
    return out.getvalue()


def html_output(text):
    return new_output("display_data", {"text/html": text})


def made_up(folder):
    """A notebook with a slider and an exercise, and its frames."""
    drawn = [(png(shade + 5 * right), f"Shade {shade}, {right}.") for shade in (0, 100, 200) for right in (0, 1)]
    frames.write(folder / "0", INDEX, drawn)
    cells = [
        new_markdown_cell(
            "# 99 · Made up\n\n**Predict.** How dark?\n\n[01](01_weight_norm_bias.ipynb) [code](../course.py)"
        ),
        new_code_cell("guess = 1", metadata={"tags": ["predict"]}),
        new_code_cell("drawing = 2", metadata={"tags": ["machinery"]}),
        new_code_cell("check('9.1', f)", metadata={"tags": ["check-9.1"]}),
        new_code_cell("explore(picture)", metadata={"tags": ["widget"]}, outputs=[*map(html_output, (TABLE, STILL))]),
    ]
    language = {"language_info": {"name": "python"}}
    return MADE_UP, new_notebook(cells=cells, metadata=language), frames.read(folder)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    notebooks = [*site.take(still=True), made_up(folder / "frames")]
    return folder / "out", site.build(folder / "out", notebooks), notebooks


def test_every_notebook_and_file_of_the_package_has_a_page_and_no_link_is_broken(built):
    out, numbers, notebooks = built
    pages = site_check.pages_of(out)
    assert {f"notebooks/{name}.html" for name, _, _ in notebooks} < set(pages)
    assert {f"package/{name}.html" for name in site_api.front()} < set(pages)
    assert {"index.html", "glossary.html", "slides.html", "search.html", "slides/01_40.html"} < set(pages)
    assert numbers == {"pages": len(pages), "sliders": 1, "positions": 6}
    assert site_check.broken_links(out) == []
    assert site.megabytes(out) < 25


def test_what_a_reader_sees_of_a_notebook(built):
    text = (built[0] / f"notebooks/{MADE_UP}.html").read_text(encoding="utf-8")
    assert "The check runs in JupyterLab." in text and "check(&#39;9.1" not in text
    assert text.count("<details") == 2, "machinery and the slider's own code are folded"
    assert '<div class="course-predict">' in text
    assert "beside the slider" in text and "data-frames" in text and "explore-still" not in text
    assert (
        'href="01_weight_norm_bias.html"' in text and "course.py" not in text.split("<article")[1].split("</article")[0]
    )


def test_every_picture_has_an_alternative_text_and_is_a_file(built):
    for page in (built[0] / "notebooks").glob("[0-9]*.html"):
        article = page.read_text(encoding="utf-8").split("<article")[1].split("</article")[0]
        pictures = re.findall(r"<img\b[^>]*>", article)
        assert pictures and all(re.search(r'\balt="[^"]+"', tag) for tag in pictures), page.name
        assert not any("data:" in tag for tag in pictures), page.name


@in_browser
def test_pages_in_a_browser(built):
    pages = ["index.html", f"notebooks/{MADE_UP}.html", "package/losses.html"]
    assert list(site_check.faults(built[0], pages)) == []


@in_browser
@pytest.mark.skipif("COURSE_SITE" not in os.environ, reason="COURSE_SITE names no finished site")
def test_a_finished_site():
    folder = Path(os.environ["COURSE_SITE"]).expanduser()
    pages = site_check.pages_of(folder)
    assert pages and site_check.broken_links(folder) == []
    assert list(site_check.faults(folder, pages)) == []


# ---- the checks do fail --------------------------------------------------------------------------------------------

PLANTED = """<html lang="en"><head><title>x</title></head><body><main><h1>x</h1>
<a href="none.html">a</a><a href="#none">b</a><a href="https://example.org/">c</a>
<script src="http://192.0.2.1/x.js"></script><img src="x.webp">
<div style="width: 3000px">x</div></main></body></html>"""
SLIDER = """<html lang="en"><head><title>x</title></head><body><main><h1>x</h1>FIGURE</main></body></html>"""


def test_broken_links_and_what_comes_from_elsewhere_are_found(tmp_path):
    (tmp_path / "x.html").write_text(PLANTED, encoding="utf-8")
    wrong = site_check.broken_links(tmp_path)
    assert [line.split(": ", 1)[1] for line in wrong] == [
        "a leads nowhere: #none",
        "a leads nowhere: none.html",
        "img leads nowhere: x.webp",
        "script comes from elsewhere: http://192.0.2.1/x.js",
    ]


@in_browser
def test_requests_pictures_without_words_and_sliders_that_do_nothing_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(site_check, "PATIENCE", 300)
    _, _, (index,) = made_up(tmp_path / "frames")
    still = SLIDER.replace("FIGURE", frames.figure_html(index, "frames/0").replace(" hidden", ""))
    (tmp_path / "x.html").write_text(PLANTED, encoding="utf-8")
    (tmp_path / "y.html").write_text(still, encoding="utf-8")  # without explore.js
    wrong = "\n".join(site_check.faults(tmp_path, ["x.html", "y.html"]))
    for part in (
        "http x.html: http://192.0.2.1/x.js",
        "file x.html: http://192.0.2.1/x.js",
        "image-alt",
        "pixels wide in a window of 1366",
        "figure 1, slider 1: does not show",
    ):
        assert part in wrong, wrong


def test_a_check_says_what_is_missing(tmp_path, monkeypatch, capsys):
    (tmp_path / "x.html").touch()
    monkeypatch.setattr(site_check, "PACKAGES", ("no_such_package",))
    assert site_check.main([str(tmp_path)]) == 2
    assert 'no no_such_package; allowed: installed: python -m pip install -e ".[test]"' in capsys.readouterr().err
    monkeypatch.setattr(site_check, "BROWSERS", ())
    monkeypatch.setattr(site_check, "CHANNELS", ())
    with pytest.raises(ValueError, match="browser: got none; allowed: Chrome, Chromium or Edge"):
        site_check.open_browser(None)


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match=r"out: got .*; allowed: a new or empty folder"):
        site.build(tmp_path, [])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_checkout_with_a_site_in_it_is_left_alone(tmp_path):
    for name in (".nojekyll", site.MARK):
        (tmp_path / name).touch()
    (tmp_path / ".git").mkdir()
    with pytest.raises(ValueError, match=r"out: got .*no \.git"):
        site.build(tmp_path, [])
    assert (tmp_path / ".git").is_dir()


def test_frames_of_another_run_are_refused(tmp_path):
    name, notebook, (index,) = made_up(tmp_path / "frames")
    with pytest.raises(ValueError, match="more folders of frames than sliders"):
        site.build(tmp_path / "out", [(name, notebook, [index, index])])


def test_a_complaint_of_sphinx_is_an_error(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "index.md").write_text("# 99\n\n[x](nowhere.md)\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"nowhere\.md"):
        site._run_sphinx(tmp_path / "source", tmp_path / "out", tmp_path / "trees")
