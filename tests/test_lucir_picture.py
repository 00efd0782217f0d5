"""pictures/lucir.py: nothing lies on anything else, all is large enough for a projector, and the cures are cures."""

import itertools

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from course_utils.classroom.pictures import lucir


@pytest.fixture
def axes():
    figure = Figure(figsize=(6, 3))
    FigureCanvasAgg(figure)
    axes = lucir.lucir_schematic(figure)
    figure.canvas.draw()
    return axes


def words_of(axes):
    return [text for text in axes.texts if text.get_text()]


def test_the_figure_is_as_large_as_the_slide_and_says_what_it_shows(axes):
    assert axes.figure.get_size_inches().tolist() == [12, 5]
    assert lucir.LUCIR_ALT.endswith(".") and len(lucir.LUCIR_ALT) > 100


def test_words_are_large_inside_the_figure_and_apart(axes):
    boxes = [(text.get_text(), text.get_window_extent()) for text in words_of(axes)]
    assert len(boxes) > 30 and min(text.get_fontsize() for text in words_of(axes)) >= 11
    whole = axes.figure.bbox
    for name, box in boxes:
        assert whole.x0 < box.x0 < box.x1 < whole.x1 and whole.y0 < box.y0 < box.y1 < whole.y1, name
    for (a, first), (b, second) in itertools.combinations(boxes, 2):
        assert not first.overlaps(second), (a, b)


def test_each_cure_has_its_number_twice_and_its_equation_once(axes):
    said = [text.get_text() for text in words_of(axes)]
    assert [said.count(number) for number in "123"] == [2, 2, 2]
    for title, words, equation in lucir.CURES:
        assert [said.count(text) for text in (title, words, equation)] == [1, 1, 1]


def test_the_right_circles_show_what_the_equations_ask_for(axes):
    """Arrows from the middle of each circle, in the order of drawing: row by row, the problem and then the cure."""
    circles = [patch.center for patch in axes.patches if getattr(patch, "radius", 0) == lucir.RADIUS]
    rays = {centre: [] for centre in circles}
    for arrow in (text for text in axes.texts if isinstance(text, Annotation)):
        if tuple(arrow.xyann) in rays:
            rays[tuple(arrow.xyann)].append((np.array(arrow.xy) - arrow.xyann) / lucir.RADIUS)
    norms, equal, turned, held, near, apart = rays.values()
    assert np.ptp([np.linalg.norm(row) for row in norms]) > 0.5
    for unit in (equal, turned, held, near, apart):
        assert [np.linalg.norm(row) for row in unit] == pytest.approx([1] * len(unit))
    assert held[0] @ held[1] > 0.9 > 0.5 > turned[0] @ turned[1]  # teacher's and student's feature
    (old, feature, new), (old_too, feature_too, pushed) = near, apart
    assert old @ feature - new @ feature < 0.5 < old_too @ feature_too - pushed @ feature_too
