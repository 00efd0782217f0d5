"""widgets.py: sliders that move a picture, and the sweep that tries every position."""

import io

import ipywidgets
import numpy as np
import pytest
from PIL import Image

from course_utils.classroom import widgets
from course_utils.classroom.widgets import Canvas, explore, sweep, without_kernel

SMALL = (2, 1.5)


def bar_picture(figure):
    """A bar of height `height`, in the colour `color`."""
    axes = figure.subplots()
    [bar] = axes.bar([0], [0])
    axes.set_ylim(0, 10)

    def update(height, color="red"):
        bar.set(height=height, facecolor=color)
        return f"height {height}, {color}"

    return update


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


# ---- Canvas --------------------------------------------------------------------------------------------------------


def test_a_canvas_draws_and_says_what_it_draws():
    png, sentence = Canvas(bar_picture, SMALL).draw(height=7)
    assert sentence == "height 7, red" and pixels(png).shape == (240, 320, 3)


def test_a_canvas_used_before_gives_the_same_bytes_as_a_new_one():
    used = Canvas(bar_picture, SMALL)
    seen = {}
    for height in (3, 8, 3, 0, 8):
        png, _ = used.draw(height=height, color="blue")
        assert png == Canvas(bar_picture, SMALL).draw(height=height, color="blue")[0]
        seen.setdefault(height, set()).add(png)
    assert all(len(pngs) == 1 for pngs in seen.values()) and len(set.union(*seen.values())) == 3


def test_the_axes_do_not_jump_while_a_slider_moves():
    canvas = Canvas(bar_picture, SMALL)
    canvas.draw(height=3)
    before = canvas.figure.axes[0].get_position().bounds
    canvas.figure.axes[0].set_ylim(0, 1_000_000)  # wider labels would push the axes to the right
    canvas.draw(height=3)
    assert canvas.figure.axes[0].get_position().bounds == before


# ---- sweep ---------------------------------------------------------------------------------------------------------


def test_a_sweep_reaches_every_combination():
    reached = []

    def picture(figure):
        update = bar_picture(figure)

        def spy(**values):
            reached.append((values["height"], values["color"]))
            return update(**values)

        return spy

    assert sweep(picture, size=SMALL, height=[1, 2, 3], color=["red", "blue"]) == 6
    assert sorted(reached) == [(h, c) for h in (1, 2, 3) for c in ("blue", "red")]


def broken_at_2(figure):
    def update(height):
        if height == 2:
            raise ZeroDivisionError("at height 2")
        return bar(height=height)

    bar = bar_picture(figure)
    return update


def silent_at_2(figure):
    def update(height):
        bar(height=height)
        return "" if height == 2 else "a sentence"

    bar = bar_picture(figure)
    return update


def deaf(figure):
    """Moves with `height`, whatever `color` says."""
    bar = bar_picture(figure)
    return lambda height, color: bar(height=height)


@pytest.mark.parametrize(
    ("picture", "positions", "error", "message"),
    [
        (broken_at_2, {"height": [1, 2, 3]}, ZeroDivisionError, "at height 2"),
        (silent_at_2, {"height": [1, 2, 3]}, AssertionError, "no sentence at .*2"),
        (deaf, {"height": [1, 2], "color": ["red", "blue"]}, AssertionError, "moving color never changes the picture"),
    ],
)
def test_a_sweep_finds_what_is_broken(picture, positions, error, message):
    with pytest.raises(error, match=message):
        sweep(picture, size=SMALL, **positions)


# ---- explore -------------------------------------------------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch):
    """What explore() displays: the box of widgets, found by the id in the display data, and the data beside it."""
    boxes = []

    def display(data, metadata, raw):
        model = data["application/vnd.jupyter.widget-view+json"]["model_id"]
        box = ipywidgets.widget_serialization["from_json"](f"IPY_MODEL_{model}", None)
        boxes.append((box, {"output_type": "display_data", "data": data, "metadata": metadata}))

    monkeypatch.setattr(widgets, "display", display)
    monkeypatch.delenv("COURSE_SWEEP_WIDGETS", raising=False)
    return boxes


def test_moving_a_slider_changes_sentence_and_picture(shown):
    explore(bar_picture, size=SMALL, height=[1, 5, 9], color=["red", "blue"])
    [(box, _)] = shown
    height, color, sentence, image = box.children
    assert isinstance(height, ipywidgets.SelectionSlider) and isinstance(color, ipywidgets.SelectionSlider)
    assert (height.description, color.description) == ("height", "color")
    assert sentence.value == "height 1, red" and image.value == Canvas(bar_picture, SMALL).draw(height=1)[0]
    height.value = 9
    assert sentence.value == "height 9, red"
    color.value = "blue"
    assert sentence.value == "height 9, blue"
    assert np.array_equal(pixels(image.value), pixels(Canvas(bar_picture, SMALL).draw(height=9, color="blue")[0]))


def test_explore_reaches_every_position_and_starts_where_it_is_told(shown):
    explore(bar_picture, size=SMALL, start={"height": 5}, height=[1, 5, 9])
    [(box, _)] = shown
    slider, sentence, _image = box.children
    assert sentence.value == "height 5, red"
    assert list(slider.options) == [1, 5, 9]
    for value in slider.options:
        slider.value = value
        assert sentence.value == f"height {value}, red"


def test_without_a_kernel_sentence_and_picture_of_the_first_position_remain(shown):
    explore(bar_picture, size=SMALL, start={"height": 5}, height=[1, 5, 9], color=["red", "blue"])
    [(_, output)] = shown
    text, picture = without_kernel(output)
    hint = "Sliders: height, color. Run this cell to move them."
    assert text["data"] == {
        "text/html": f"<p>height 5, red<br><em>{hint}</em></p>",
        "text/plain": f"height 5, red\n{hint}",
    }
    assert picture["metadata"] == {"image/png": {"alt": "height 5, red", "width": 200}}
    assert [*picture["data"]] == ["image/png"] and pixels(picture["data"]["image/png"]).shape == (240, 320, 3)
    other = {"output_type": "stream", "name": "stdout", "text": "hello"}
    assert without_kernel(other) == [other]


def test_in_the_tests_explore_sweeps_and_then_shows_the_sliders(shown, monkeypatch, capsys, tmp_path):
    log = tmp_path / "sweeps.txt"
    monkeypatch.setenv("COURSE_SWEEP_WIDGETS", str(log))
    explore(bar_picture, size=SMALL, height=[1, 5, 9], color=["red", "blue"])
    assert log.read_text() == "6\n" and capsys.readouterr().out == "" and len(shown) == 1
    with pytest.raises(ZeroDivisionError):
        explore(broken_at_2, size=SMALL, height=[1, 2])


@pytest.mark.parametrize("positions", [{}, {"height": [1]}, {"height": [1, 2], "color": ["red"]}])
def test_a_slider_needs_two_positions(positions):
    with pytest.raises(ValueError, match="positions: allowed: at least one setting, each with at least two values"):
        explore(bar_picture, **positions)


def test_a_start_that_is_no_position_is_refused(shown):
    for start in ({"height": 4}, {"hight": 5}):
        with pytest.raises(ValueError, match="start: "):
            explore(bar_picture, size=SMALL, start=start, height=[1, 5, 9])
