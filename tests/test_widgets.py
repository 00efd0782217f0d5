"""widgets.py: sliders that move a picture, and the sweep that tries every position."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from course_utils.classroom import frames, widgets
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

    drawn = sweep(picture, size=SMALL, height=[1, 2, 3], color=["red", "blue"])
    assert [text for _, text in drawn[:3]] == ["height 1, red", "height 1, blue", "height 2, red"] and len(drawn) == 6
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
    """What explore() displays: (live sliders, outputs) of each call."""
    outputs, made = [], []

    class Recorded(widgets.Sliders):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append((self, outputs))

    def display(data, metadata=None, raw=False):
        outputs.append({"output_type": "display_data", "data": data, "metadata": metadata or {}})

    monkeypatch.setattr(widgets, "display", display)
    monkeypatch.setattr(widgets, "Sliders", Recorded)
    monkeypatch.delenv("COURSE_SWEEP_WIDGETS", raising=False)
    monkeypatch.delenv("COURSE_FRAMES", raising=False)
    return made


def test_moving_a_slider_changes_sentence_and_picture(shown):
    explore(bar_picture, size=SMALL, height=[1, 5, 9], color=["red", "blue"])
    [(live, _)] = shown
    assert live.shown["sentence"] == "height 1, red" and live.shown["places"] == [0, 0]
    assert live.shown["png"] == Canvas(bar_picture, SMALL).draw(height=1)[0]
    live.places = [2, 0]
    assert live.shown["sentence"] == "height 9, red" and live.shown["places"] == [2, 0]
    live.places = [2, 1]
    assert live.shown["sentence"] == "height 9, blue"
    wanted = Canvas(bar_picture, SMALL).draw(height=9, color="blue")[0]
    assert np.array_equal(pixels(live.shown["png"]), pixels(wanted))


def test_explore_reaches_every_position_and_starts_where_it_is_told(shown):
    explore(bar_picture, size=SMALL, start={"height": 5}, height=[1, 5, 9])
    [(live, _)] = shown
    assert live.shown["sentence"] == "height 5, red" and live.places == [1]
    for place, value in enumerate([1, 5, 9]):
        live.places = [place]
        assert live.shown["sentence"] == f"height {value}, red"


def test_after_an_error_picture_and_sentence_stay_and_its_text_is_told(shown):
    explore(broken_at_2, size=SMALL, height=[1, 2, 3])
    [(live, _)] = shown
    before = live.shown
    live.places = [1]
    assert live.shown == before | {"asked": [1], "error": "ZeroDivisionError: at height 2"}
    live.places = [2]
    assert live.shown["sentence"] == "height 3, red" and live.shown["error"] == "" and live.shown["places"] == [2]


def test_sliders_have_names_and_speak_values(shown):
    explore(bar_picture, size=SMALL, start={"height": 5}, height=[1, 5, 9], color=["red", "<b>"])
    [(live, _)] = shown
    assert '<figure class="explore"' in live.html and 'aria-label="Sliders: height, color"' in live.html
    assert (
        '<label><span>height</span><input type="range" min="0" max="2" step="1" value="1" '
        'aria-label="height" aria-valuetext="5"' in live.html
    )
    assert 'alt="height 5, red"' in live.html and "<b>" not in live.html


def test_without_a_kernel_sentence_and_picture_of_the_first_position_remain(shown):
    explore(bar_picture, size=SMALL, start={"height": 5}, height=[1, 5, 9], color=["red", "blue"])
    [(_, (still, view))] = shown
    assert still["data"]["text/html"].startswith("<style>") and without_kernel(view) == []
    [kept] = without_kernel(still)
    assert [*kept["data"]] == ["text/html", "image/png", "text/plain"] and "<style>" not in kept["data"]["text/html"]
    assert kept["data"]["text/plain"] == "height 5, red\nRun this cell to move the sliders."
    page = kept["data"]["text/html"]
    assert 'alt="height 5, red"' in page and widgets.HINT in page and "<input" not in page and "<script" not in page
    assert kept["metadata"] == {"image/png": {"alt": "height 5, red", "width": 200}}
    assert pixels(kept["data"]["image/png"]).shape == (240, 320, 3)
    other = {"output_type": "stream", "name": "stdout", "text": "hello"}
    assert without_kernel(other) == [other]


def test_in_the_tests_explore_sweeps_and_then_shows_the_sliders(shown, monkeypatch, capsys, tmp_path):
    log = tmp_path / "sweeps.txt"
    monkeypatch.setenv("COURSE_SWEEP_WIDGETS", str(log))
    explore(bar_picture, size=SMALL, height=[1, 5, 9], color=["red", "blue"])
    assert log.read_text() == "6\n" and capsys.readouterr().out == "" and len(shown) == 1
    with pytest.raises(ZeroDivisionError):
        explore(broken_at_2, size=SMALL, height=[1, 2])


# ---- frames --------------------------------------------------------------------------------------------------------


def blind_at_5(figure):
    """The same picture at 5 and 9."""
    bar = bar_picture(figure)
    return lambda height: bar(height=min(height, 5))


def test_frames_hold_every_position_and_equal_pictures_once(shown, monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_FRAMES", str(tmp_path))
    monkeypatch.setattr(widgets, "calls", iter([0, 1]))
    explore(bar_picture, size=SMALL, start={"color": "blue"}, height=[1, 5, 9], color=["red", "blue"])
    explore(blind_at_5, size=SMALL, height=[1, 5, 9])
    first, second = frames.read(tmp_path)
    assert first["folder"] == tmp_path / "0" and first["size"] == [200, 150] and first["start"] == [0, 1]
    assert first["names"] == ["height", "color"] and first["values"] == [["1", "5", "9"], ["red", "blue"]]
    assert [text for _, text in first["frames"]] == [f"height {h}, {c}" for h in (1, 5, 9) for c in ("red", "blue")]
    wanted = Canvas(bar_picture, SMALL).draw(height=9, color="red")[0]
    assert np.array_equal(pixels((tmp_path / "0" / first["frames"][4][0]).read_bytes()), pixels(wanted))
    one, other, same = [file for file, _ in second["frames"]]
    assert one != other and other == same and len([*(tmp_path / "1").glob("*.webp")]) == 2
    page = frames.figure_html(first, "_static/x/")
    assert (
        f'src="_static/x/{first["frames"][1][0]}"' in page and 'alt="height 1, blue"' in page and "data-frames" in page
    )
    (tmp_path / "1" / other).unlink()
    with pytest.raises(ValueError, match="a missing picture"):
        frames.read(tmp_path)
    (tmp_path / "1" / "index.json").write_text(json.dumps({"names": []}))
    with pytest.raises(ValueError, match=r"index\.json is damaged"):
        frames.read(tmp_path)


@pytest.mark.parametrize("positions", [{}, {"height": [1]}, {"height": [1, 2], "color": ["red"]}])
def test_a_slider_needs_two_positions(positions):
    with pytest.raises(ValueError, match="positions: allowed: at least one setting, each with at least two values"):
        explore(bar_picture, **positions)


def test_a_start_that_is_no_position_is_refused(shown):
    for start in ({"height": 4}, {"hight": 5}):
        with pytest.raises(ValueError, match="start: "):
            explore(bar_picture, size=SMALL, start=start, height=[1, 5, 9])
