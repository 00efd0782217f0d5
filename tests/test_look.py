"""One look: the style sheet of site and slides has the colours of the figures, and text can be read, light and dark."""

import re
from pathlib import Path

import pytest
from matplotlib.colors import to_rgb

from course_utils.classroom import figures
from course_utils.data import english_letter_counts

PAGES = Path(figures.__file__).parent / "pages"
CSS = (PAGES / "course.css").read_text(encoding="utf-8")
BLOCKS = [dict(re.findall(r"(--course-[a-z]+): *([^;]+);", block)) for block in re.findall(r"\{([^{}]*)\}", CSS)]
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
