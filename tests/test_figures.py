"""figures.py by what it draws: heights, places, colours; not pixels."""

import io
import re
import warnings

import matplotlib
import nbformat

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

from course_utils.classroom import figures
from course_utils.classroom.figures import GROUP_COLORS, GROUP_HATCHES, GROUP_MARKERS, feature_plane
from course_utils.classroom.notebooks import find_notebooks
from course_utils.classroom.pictures import course_map, nb01, taxonomy
from course_utils.classroom.pictures.nb04 import accuracy_table
from course_utils.classroom.widgets import sweep
from course_utils.heads import equalize_biases, equalize_norms
from course_utils.methods import METHODS
from course_utils.metrics import paired_interval

COUNTS = [500, 100, 20, 19]


@pytest.fixture
def axes():
    figure, axes = figures.axes_grid()
    yield axes
    plt.close(figure)


def test_groups_differ_in_colour_marker_and_hatch():
    for style in (GROUP_COLORS, GROUP_MARKERS, GROUP_HATCHES):
        assert len({style[group] for group in ("many", "medium", "few")}) == 3
    assert figures.group_of(COUNTS) == ["many", "medium", "medium", "few"]


def test_korean_and_chinese_names_have_letters_where_a_font_is_installed(axes):
    families = plt.rcParams["font.family"]
    assert families[0] == "sans-serif" and len(families) <= 3
    if len(families) == 1:
        pytest.skip("no Korean or Chinese font among those that are looked for")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of letters that its fonts do not have
        axes.set_title("가지 cat" if set(figures._KOREAN) & set(families) else "茄子 cat")
        axes.figure.canvas.draw()


def test_a_second_font_without_bold_is_no_message_under_a_picture(axes, caplog):
    """As Korean and Chinese ones may be: matplotlib says so in the notebook, where a reader can do nothing about it."""
    with plt.rc_context({"font.family": ["sans-serif", "DejaVu Sans Display"]}):
        axes.set_title("bold", weight="bold", family=plt.rcParams["font.family"], size=17.5)
        axes.figure.canvas.draw()
    assert not caplog.records


def test_class_bars_have_the_heights_in_the_order_asked_for(axes):
    assert figures.class_bars(axes, [0.9, 0.7, 0.5, 0.1], "EABZ", COUNTS, order=[3, 0, 2]) is axes
    bars = axes.patches
    assert [bar.get_height() for bar in bars] == [0.1, 0.9, 0.5]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["Z", "E", "B"]
    assert [to_hex(bar.get_facecolor()).upper() for bar in bars] == [GROUP_COLORS[g] for g in ("few", "many", "medium")]
    assert [bar.get_hatch() or "" for bar in bars] == [GROUP_HATCHES[g] for g in ("few", "many", "medium")]


def test_class_bars_without_an_order_are_in_the_order_of_the_classes(axes):
    figures.class_bars(axes, [3, 2, 1, 0], "EABZ", COUNTS)
    assert [bar.get_height() for bar in axes.patches] == [3, 2, 1, 0]
    assert [text.get_text() for text in axes.get_xticklabels()] == list("EABZ")


def test_group_points_show_every_seed_and_the_mean(axes):
    seeds = [{"many": 0.9, "medium": 0.8, "few": 0.1, "all": 0.6}, {"many": 0.7, "medium": 0.6, "few": 0.3, "all": 0.5}]
    figures.group_points(axes, {"plain": seeds, "balanced": seeds[:1]}, groups=("many", "few"))
    drawn = {(line.get_marker(), line.get_markersize(), tuple(np.round(line.get_xdata(), 6))) for line in axes.lines}
    many, few = GROUP_MARKERS["many"], GROUP_MARKERS["few"]
    plain = {(many, 4, (90, 70)), (many, 9, (80,)), (few, 4, (10, 30)), (few, 9, (20,))}
    assert drawn == plain | {(many, 4, (90,)), (many, 9, (90,)), (few, 4, (10,)), (few, 9, (10,))}
    assert [text.get_text() for text in axes.get_yticklabels()] == ["plain", "balanced"]
    assert axes.yaxis_inverted(), "the first method stands on top"
    heights = [line.get_ydata()[0] for line in axes.lines]
    assert max(heights[:4]) < 0.5 < min(heights[4:])


def test_a_difference_is_drawn_with_its_interval_and_hollow_if_it_is_a_tie(axes):
    figures.difference_line(axes, [1.0, 1.4, 1.2], 0)
    figures.difference_line(axes, [-3.0, -2.0], 1)
    figures.difference_line(axes, [2.0], 2)
    figures.difference_line(axes, [2.0, float("nan")], 3)
    clear, tie, *rest = axes.lines[:3], axes.lines[3:6], axes.lines[6], axes.lines[7]
    for (seeds, interval, mean), values in ((clear, [1.0, 1.4, 1.2]), (tie, [-3.0, -2.0])):
        assert list(seeds.get_xdata()) == values and tuple(interval.get_xdata()) == paired_interval(values)
        assert mean.get_xdata() == pytest.approx([np.mean(values)]) and interval.get_color() == mean.get_color()
    assert clear[2].get_color() == clear[2].get_markerfacecolor() != tie[2].get_color()
    assert tie[2].get_markerfacecolor() == "white" and [line.get_marker() for line in rest] == [".", "."]


def test_differences_stand_in_their_order_with_a_line_at_zero(axes):
    figures.difference_lines(axes, {"first": [1.0, 1.4, 1.2], "nothing": [], "last": [-3.0, -2.0]})
    assert [text.get_text() for text in axes.get_yticklabels()] == ["first", "nothing", "last"]
    assert axes.yaxis_inverted(), "the first comparison stands on top"
    means = {line.get_ydata()[0]: line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"}
    assert means == pytest.approx({0: 1.2, 2: -2.5})
    assert list(axes.lines[-1].get_xdata()) == [0, 0] and len(axes.patches) == 2


def test_the_accuracy_table_frames_the_pick_of_validation_and_marks_its_ties(axes):
    test = [[[80, 82, 84], [81, 83, 85.1], [90, 91, 92]], [[79, 83, 86], [70, 71, 72], [80, 82, 84]]]
    validation = np.zeros((2, 3, 1))
    validation[0, 0] = 1  # not the best on test images
    accuracy_table(axes, test, validation, ["a", "b"], ["x", "y", "z"])
    said = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axes.texts}
    assert said[0, 0] == "82.0 ± 2.0" and said[0, 2] == "91.0 ± 1.0" and said[1, 1] == "71.0 ± 1.0"
    # of the differences, [-1, -1, -1.1] are clear of 0, [1, -1, -2] and [0, 0, 0] are not
    assert {place for place, text in said.items() if text.endswith(" =")} == {(1, 0), (1, 2)}
    (frame,) = axes.patches
    assert frame.get_x() < 0 < frame.get_x() + frame.get_width() < 1 and frame.get_y() < 0 < frame.get_y() + 0.9 < 1


def test_group_legend_has_colour_and_marker(axes):
    figures.group_legend(axes)
    handles = axes.get_legend().legend_handles
    assert [(h.get_color(), h.get_marker()) for h in handles] == [
        (GROUP_COLORS[g], GROUP_MARKERS[g]) for g in ("many", "medium", "few")
    ]


def test_group_points_have_a_band_for_every_second_method_that_reaches_under_its_name(axes):
    seeds = [{"many": 0.9, "medium": 0.8, "few": 0.1, "all": 0.6}]
    figures.group_points(axes, {"plain": seeds, "balanced": seeds, "shuffled": seeds})
    assert [(band.get_y(), band.get_height()) for band in axes.patches] == [(-0.5, 1), (1.5, 1)]
    assert all(band.get_x() < 0 and not band.get_clip_on() for band in axes.patches)
    assert axes.get_ylim() == (2.5, -0.5)


def test_the_map_has_an_arrow_for_what_the_notebooks_say_they_need():
    figure, alt = course_map.draw()
    drawn = [text.get_text()[:2] for text in figure.axes[0].texts if text.get_text()]
    assert drawn == list(course_map.COURSE) and all(number in alt for number in drawn)
    before = {number: set(needs.split()) for number, (*_, needs) in course_map.COURSE.items()}
    for number in before:  # and what those need
        before[number] |= set().union(*(before[first] for first in before[number]))
    for path in find_notebooks()[1:]:
        text = nbformat.read(path, 4).cells[0].source
        asked = re.search(r"^\*\*You need\*\*(.*?)\*\*Time", text, re.MULTILINE | re.DOTALL)[1]
        needs = set(re.findall(r"\b0[1-9]\b", re.sub(r"\([^)]*\)", "", asked)))
        number = path.name[:2]
        assert needs <= before[number] | {course_map.MAP_HELPS.get(number)}, path.stem
        assert set(course_map.COURSE[number][3].split()) <= needs | {"01"}, path.stem


def test_letter_scatter_names_every_point(axes):
    figures.letter_scatter(axes, [1, 2, 3, 4], [5, 6, 7, 8], "EABZ", COUNTS, labels="EABZ")
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines] == [(1, 5), (2, 6), (3, 7), (4, 8)]
    named = [(text.get_text(), text.xy) for text in axes.texts]
    assert named == [("E", (1, 5)), ("A", (2, 6)), ("B", (3, 7)), ("Z", (4, 8))]
    with pytest.raises(ValueError):
        figures.letter_scatter(axes, [1, 2], [5, 6, 7], "EAB", COUNTS[:3], labels="")


def test_letter_scatter_writes_the_lower_of_two_names_at_one_place_below(axes):
    figures.letter_scatter(axes, [1, 2, 2], [5, 6, 7], "EAB", COUNTS[:3], labels="EAB")
    assert [text.get_position()[1] > 0 for text in axes.texts] == [True, False, True]


@pytest.mark.parametrize("channels", [1, 3])
def test_image_rows_put_every_image_in_its_place(axes, channels):
    images = torch.randint(256, (5, channels, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    figures.image_rows(axes, images, columns=3, row_names=["first", "second"])
    table = axes.images[0].get_array()
    assert table.shape[:2] == (2 * 6, 3 * 5)
    for i, image in enumerate(images):
        y, x = 6 * (i // 3), 5 * (i % 3)
        want = 255 - image[0].numpy() if channels == 1 else image.permute(1, 2, 0).numpy()
        assert np.array_equal(table[y : y + 4, x : x + 3], want)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["first", "second"]
    assert len(axes.get_xticks()) == 0


# ---- the plane of two features -------------------------------------------------------------------------------------


def head(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 2, generator=generator), 0.3 * torch.randn(4, generator=generator)


@pytest.mark.parametrize(("seed", "extent", "points"), [(0, 2.0, 9), (1, 0.5, 6)])
def test_plane_regions_agree_with_brute_force(seed, extent, points):
    weight, bias = head(seed)
    regions = figures.plane_regions(weight, bias, extent, points)
    line = torch.linspace(-extent, extent, points)
    for row in range(points):
        for column in range(points):
            logits = [w[0] * line[column] + w[1] * line[row] + b for w, b in zip(weight, bias, strict=True)]
            assert regions[row, column] == int(np.argmax(logits))
    assert len(np.unique(regions)) > 1


def test_regions_have_a_colour_of_their_own():
    colors = figures.region_colors(COUNTS)
    assert colors.shape == (4, 3) and 0 <= colors.min() and colors.max() <= 1
    assert len({tuple(color) for color in colors}) == 4


def contents(axes):
    picture = axes.images[0]
    return (
        picture.get_array().tolist(),
        picture.get_extent(),
        [([*line.get_xdata()], [*line.get_ydata()], line.get_color(), line.get_marker()) for line in axes.lines],
        [(text.get_text(), text.get_position()) for text in axes.texts],
        axes.get_xlim() + axes.get_ylim(),
    )


def test_a_moved_feature_plane_is_like_a_new_one():
    figure, (moved, fresh) = figures.axes_grid(1, 2)
    artists = feature_plane(moved, *head(0), COUNTS, "EABZ", extent=2.0, arrow_scale=0.5)
    before = contents(moved)
    figures.move_feature_plane(artists, *head(1))
    feature_plane(fresh, *head(1), COUNTS, "EABZ", extent=2.0, arrow_scale=0.5)
    assert contents(moved) == contents(fresh) != before
    plt.close(figure)


def test_arrows_of_a_feature_plane_are_the_scaled_rows(axes):
    weight, bias = head(0)
    feature_plane(axes, weight, bias, COUNTS, "EABZ", extent=2.0, arrow_scale=0.5)
    assert [line.get_xdata()[1] for line in axes.lines] == pytest.approx((0.5 * weight[:, 0]).tolist())
    assert [line.get_ydata()[1] for line in axes.lines] == pytest.approx((0.5 * weight[:, 1]).tolist())


# ---- pictures for sliders ------------------------------------------------------------------------------------------


def test_the_profile_picture_draws_at_every_position_and_counts_right():
    figure = matplotlib.figure.Figure()
    update = figures.profile_picture(10, 5000, compare=[5, 4])(figure)
    sentence = update(profile="exponential", ratio=100)
    heights = [bar.get_height() for bar in figure.axes[0].patches[:10]]
    assert heights == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert "12406 images" in sentence and "8 many, 2 medium, 0 few" in sentence
    drawn = sweep(figures.profile_picture(10, 5000), profile=["exponential", "step"], ratio=[1, 10, 100], size=(8, 4))
    assert len(drawn) == 6


def test_the_norm_picture_starts_at_the_trained_classifier_and_moves_both_sides():
    weight, bias = head(0)
    features, labels = torch.randn(80, 2, generator=torch.Generator().manual_seed(5)), torch.arange(80) % 4
    picture = nb01.norm_picture(features, labels, weight, bias, COUNTS, (weight, bias, COUNTS, "EABZ", 2.0))
    figure = matplotlib.figure.Figure()
    update = picture(figure)
    left, right = figure.axes
    for strength in (0.0, 0.7):
        update(strength=strength)
        w, b = equalize_norms(weight, strength), equalize_biases(bias, strength)
        right_answers = (features @ w.T + b).argmax(1) == labels
        per_class = torch.stack([right_answers[labels == j].float().mean() for j in range(4)])
        want = [per_class[0], per_class[1:3].mean(), per_class[3], per_class.mean()]
        assert [bar.get_height() for bar in left.patches] == pytest.approx([100 * float(x) for x in want], abs=1e-3)
        assert np.array_equal(right.images[0].get_array(), figures.plane_regions(w, b, 2.0))
    assert len(sweep(picture, strength=[0.0, 0.5, 1.0], size=(4, 2))) == 3


# ---- pictures of notebook 01 ----------------------------------------------------------------------------------------


def test_what_letters_are_taken_for_is_written_where_it_is_not_zero(axes):
    nb01.draw_taken_for(axes, torch.tensor([[0.4, 99.6], [60.0, 40.0]]), "JQ", "OI")
    assert {(text.get_text(), text.get_position()) for text in axes.texts} == {
        ("100", (1, 0)),
        ("60", (0, 1)),
        ("40", (1, 1)),
    }


def test_rows_in_training_are_means_over_seeds_and_the_second_data_set_is_dashed():
    def history(*values):
        return [{f"{what} {name}": value for what in ("norm", "cosine") for name in "EZ"} for value in values]

    figure, axes = figures.axes_grid(1, 2)
    nb01.draw_rows_in_training(axes, {"long": [history(0.1, 0.4), history(0.3, 0.8)], "even": [history(0.5, 0.7)]})
    for ax in axes:
        drawn = [(line.get_label(), line.get_linestyle(), [*np.round(line.get_ydata(), 6)]) for line in ax.lines[:4]]
        long, even = ("-", [0.2, 0.6]), ("--", [0.5, 0.7])
        assert drawn == [("E, long", *long), ("Z, long", *long), ("E, even", *even), ("Z, even", *even)]
    plt.close(figure)


def test_planes_have_the_longest_arrow_at_three_quarters_of_the_way_to_the_border():
    weight, bias = head(0)
    labels = torch.arange(80) % 4
    features = torch.randn(80, 2, generator=torch.Generator().manual_seed(5))
    plane = {"weight": weight, "bias": bias, "features": features, "labels": labels}
    figure, axes = figures.axes_grid(1, 3)
    nb01.draw_planes(axes, {"long": plane, "even": plane}, COUNTS, "EABZ", "ZB", zoom=0.5)
    extent = axes[0].get_xlim()[1]
    for ax in axes:
        tips = torch.tensor(np.array([line.get_xydata()[1] for line in ax.lines[:4]]))
        assert tips.norm(dim=1).max() == pytest.approx(0.75 * extent)
        shown = ax.lines[4].get_xydata()
        assert np.allclose(shown, features[labels >= 2].numpy())
    assert axes[1].get_xlim() == (-0.5, 0.5) and axes[2].get_xlim() == axes[0].get_xlim()
    inside = [max(map(abs, text.xy)) <= 0.5 for text in axes[0].texts]
    assert [text.get_visible() for text in axes[0].texts] == [not near for near in inside]
    assert all(text.get_visible() for ax in axes[1:] for text in ax.texts)
    plt.close(figure)


# ---- show() --------------------------------------------------------------------------------------------------------


def test_show_emits_a_small_png_with_its_text(monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "display", lambda *data, **options: shown.append((*data, options)))
    figure, axes = figures.axes_grid(width=5, height=2)
    axes.imshow(np.random.default_rng(0).random((50, 50, 3)))
    figures.show(figure, "Fifty by fifty random colours.")
    [(data, options)] = shown
    shown_with = {"alt": "Fifty by fifty random colours.", "width": 500}
    assert options == {"metadata": {"image/png": shown_with}, "raw": True}
    assert data["text/plain"] == "Figure: Fifty by fifty random colours."
    picture = Image.open(io.BytesIO(data["image/png"]))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "P", (800, 320))
    assert len(picture.getcolors()) <= 256 and "Software" not in picture.info
    assert not plt.fignum_exists(figure.number), "the figure is closed"


@pytest.mark.parametrize("alt", ["", "  \n"])
def test_show_refuses_a_figure_without_words(axes, alt):
    with pytest.raises(ValueError, match="alt: got an empty text"):
        figures.show(axes.figure, alt)


def test_a_table_is_shown_as_html_and_as_text(monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "display", lambda data, raw: shown.append(data))
    rows = [{"head": "linear <b>", "few, %": "1.5 ± 0.2"}, {"head": "cosine", "few, %": 20}]
    figures.show_table(rows, "three seeds & more")
    [data] = shown
    lines = [line.split() for line in data["text/plain"].splitlines()]
    assert lines == [
        ["head", "few,", "%"],
        ["linear", "<b>", "1.5", "±", "0.2"],
        ["cosine", "20"],
        ["three", "seeds", "&", "more"],
    ]
    assert data["text/plain"].splitlines()[2].startswith("cosine   ")
    for part in (
        '<td style="text-align: left;">cosine</td>',
        "<th>few, %</th>",
        "<td>1.5 ± 0.2</td>",
        "linear &lt;b&gt;",
        "<em>three seeds &amp; more</em>",
    ):
        assert part in data["text/html"]


@pytest.mark.parametrize("rows", [[], [{"a": 1}, {"b": 1}], [{"a": 1, "b": 2}, {"b": 2, "a": 1}], [{"a": 1}, {}]])
def test_a_table_with_ragged_rows_is_refused(rows):
    with pytest.raises(ValueError, match=r"rows(\[1\])?: got "):
        figures.show_table(rows)


def test_curves_are_means_over_seeds_in_a_band_from_lowest_to_highest(axes):
    figures.curves(axes, {"E": [[1, 2, 6], [3, 4, 8]], "Z": [[0, 0, 0]]}, Z={"color": "red", "linestyle": ":"})
    e, z = axes.lines
    assert (e.get_label(), z.get_label(), z.get_color()) == ("E", "Z", "red")
    assert [*e.get_xdata()] == [1, 2, 3] and [*e.get_ydata()] == [2, 3, 7] and [*z.get_ydata()] == [0, 0, 0]
    corners = {(x, y) for x, y in axes.collections[0].get_paths()[0].vertices.tolist()}
    assert corners == {(1, 1), (2, 2), (3, 6), (1, 3), (2, 4), (3, 8)}
    figures.curves(axes, {"late": [[1, 2]]}, x=[10, 20])
    assert [*axes.lines[-1].get_xdata()] == [10, 20]
    for bad in ([1, 2, 3], []):
        with pytest.raises(ValueError, match=r"series\['bad'\]: got shape .*; allowed: \(seeds, epochs\)"):
            figures.curves(axes, {"bad": bad})


def test_group_lines_follow_the_results_in_percent(axes):
    steps = [{"many": 0.9, "medium": 0.8, "few": 0.1, "all": 0.6}, {"many": 0.7, "medium": 0.6, "few": 0.3, "all": 0.5}]
    figures.group_lines(axes, [0.0, 1.0], steps)
    drawn = {line.get_color(): [round(y) for y in line.get_ydata()] for line in axes.lines}
    wanted = {"many": [90, 70], "medium": [80, 60], "few": [10, 30], "all": [60, 50]}
    assert drawn == {GROUP_COLORS[group]: values for group, values in wanted.items()}


def test_the_taxonomy_has_every_method_once_inside_its_box():
    placed = [name for _, cells in taxonomy.CHANGES.values() for names in cells for name in names]
    assert sorted([*placed, "cross-entropy"]) == sorted(METHODS)
    figure, _ = taxonomy.draw()
    figure.canvas.draw()
    (axes,) = figure.axes
    boxes = [patch.get_window_extent() for patch in axes.patches]
    words = [text for text in axes.texts if text.get_text().split("  ")[0] in placed]
    assert len(words) == len(placed)
    for text in words:
        x0, y0, x1, y1 = text.get_window_extent().extents
        assert any(box.contains(x0, y0) and box.contains(x1, y1) for box in boxes), text.get_text()
    plt.close(figure)
