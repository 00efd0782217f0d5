"""One look: the style sheet of site and slides has the colours of the figures; its text can be read, light and dark.
The picture of README.md moves slowly, says in words what it shows, and has the numbers of notebook 01."""

import re
from pathlib import Path

import nbformat
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from course_utils.classroom import figures
from course_utils.classroom.pictures import readme
from course_utils.data import english_letter_counts

PAGES = Path(figures.__file__).parent / "pages"
CSS = (PAGES / "course.css").read_text(encoding="utf-8")
BLOCKS = [dict(re.findall(r"(--course-[a-z]+): *([^;]+);", block)) for block in re.findall(r"\{([^{}]*)\}", CSS)]
ROOT = Path(__file__).parents[1]
LIGHT, DARK, BY_SYSTEM = [block for block in BLOCKS if "--course-text" in block]
LOOKS = {"light": LIGHT, "dark": LIGHT | DARK}
COLORS = {name for name, value in LIGHT.items() if value.startswith("#")}


def luminance(color):
    """Relative luminance as WCAG 2.1 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21)
    assert contrast("#777777", "#FFFFFF") == pytest.approx(4.48, abs=0.005)


def test_groups_have_the_colours_of_the_figures_and_no_other_thing_has():
    groups = {f"--course-{name}": color for name, color in figures.GROUP_COLORS.items() if name != "all"}
    assert {name: LIGHT[name] for name in groups} == groups and not groups.keys() & DARK.keys()
    others = {look[name].upper() for look in LOOKS.values() for name in COLORS - groups.keys()}
    assert not others & {color.upper() for color in groups.values()}
    assert LIGHT["--course-accent"] == figures.ACCENT


def test_the_strip_has_the_shares_of_the_letters():
    groups = figures.group_of(english_letter_counts(500))
    first, second = (100 * sum(g in part for g in groups) / 26 for part in (["many"], ["many", "medium"]))
    assert f"var(--course-many) {first:.0f}%, var(--course-medium) {first:.0f}% {second:.1f}%" in CSS


@pytest.mark.parametrize("look", LOOKS)
def test_text_has_a_contrast_of_at_least_four_and_a_half_and_marks_of_three(look):
    found = LOOKS[look]
    for back in ("--course-back", "--course-box"):
        for text in ("--course-text", "--course-quiet", "--course-accent"):
            assert contrast(found[text], found[back]) >= 4.5, (text, back)
        for mark in ("--course-many", "--course-medium", "--course-few"):
            assert contrast(found[mark], found[back]) >= 3, (mark, back)
    assert found["--course-paper"] == "#FFFFFF", "pictures are drawn for white"


def test_both_ways_to_the_dark_are_the_same_and_change_every_colour_but_those_that_stay():
    assert DARK == BY_SYSTEM
    stay = {"--course-many", "--course-medium", "--course-few", "--course-paper"}
    assert DARK.keys() == COLORS - stay


def test_every_property_that_a_page_uses_is_defined_and_the_file_is_small():
    used = {
        name for path in PAGES.glob("*.css") for name in re.findall(r"var\((--course-[\w-]+)", path.read_text("utf-8"))
    }
    assert used and used <= LIGHT.keys()
    assert len(CSS.splitlines()) <= 80


def steps_of(path):
    with Image.open(path) as image:
        for k in range(image.n_frames):
            image.seek(k)
            yield image.info["duration"], image.convert("RGB")


def check_pictures(folder):
    """Both files show the same six steps, slowly, in the colours of the groups; the text inside of them."""
    gif, png = (folder / f"readme_figure.{ending}" for ending in ("gif", "png"))
    assert gif.stat().st_size <= 400_000
    steps = list(steps_of(gif))
    assert len(steps) == 6 and all(3000 <= duration <= 4000 for duration, _ in steps)
    with Image.open(png) as sheet, Image.open(gif) as moving:
        assert "loop" not in moving.info, "it plays once"
        assert sheet.info["Description"] == moving.info["comment"].decode()
        width, height = moving.size
        assert width >= 1.5 * 830 and 1.6 < width / height < 2 and sheet.size == (2 * width, 3 * height)
        still, alt = sheet.convert("RGB"), sheet.info["Description"]
    for k, (_, step) in enumerate(steps):
        x, y = k % 2 * width, k // 2 * height
        assert step.tobytes() == still.crop((x, y, x + width, y + height)).tobytes()
        colors = {color for _, color in step.getcolors(1000)}
        assert {tuple(round(255 * c) for c in to_rgb(figures.GROUP_COLORS[g])) for g in ("many", "medium")} < colors
    return alt


def test_the_picture_of_the_readme_is_that_of_the_numbers_given(tmp_path, monkeypatch):
    counts, names = [200, 150, 50, 10, 5], list("EABQZ")
    right = [torch.tensor(values) for values in ([1.0, 0.9, 0.8, 0.2, 0.0], [0.9, 0.8, 0.8, 0.7, 0.9])]
    right += [torch.full((5,), 0.95), torch.tensor([0.95, 0.95, 0.9, 0.4, 0.2])]
    right = dict(zip(("long tail", "equal norms", "balanced", "long-tail norms"), right, strict=True))
    pictures = {"Z": torch.zeros(5, 1, 8, 8, dtype=torch.uint8)}
    given = pictures, counts, names, [torch.arange(5.0, 0, -1), torch.full((5,), 3.0)], right
    monkeypatch.delenv("COURSE_README", raising=False)
    monkeypatch.chdir(tmp_path)
    readme.keep(*given)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("COURSE_README", str(tmp_path))
    readme.keep(*given)
    alt = check_pictures(tmp_path)
    text = (200 * 1.0 + 150 * 0.9 + 50 * 0.8 + 10 * 0.2) / 415
    assert "E has 200, Z only 5." in alt and f"reads {100 * text:.0f} % of the letters of a text" in alt
    assert [int(number) for number in re.findall(r"(\d+) %", alt)] == [round(100 * text), 10, 80, 95, 30]
    assert "of Q and Z it now reads 80 %. Frequent letters lose 10 points." in alt


def test_the_picture_of_the_readme_has_the_numbers_of_the_notebook_and_its_words_stand_in_the_readme():
    alt = check_pictures(ROOT / "notebooks")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"![{alt}](notebooks/readme_figure.gif)" in text, f"the text in the brackets is to be: {alt}"
    assert "(notebooks/readme_figure.png)" in text
    nb = nbformat.read(ROOT / "notebooks" / "01_weight_norm_bias.ipynb", 4)
    [cell] = [cell for cell in nb.cells if "readme-figure" in cell.metadata.get("tags", [])]
    said = next(o.data["text/plain"] for o in cell.outputs if "Figure: " in o.get("data", {}).get("text/plain", ""))
    facts = said.rsplit(": ", 1)[1].split(" · ")
    found = dict(re.fullmatch(r"(.*) (\d+) %", fact).groups() for fact in facts)
    wanted = ("as trained", "equal norms", "balanced data", "balanced data, long-tail norms")
    assert re.findall(r"(\d+) %", alt)[1:] == [found[name] for name in wanted]
