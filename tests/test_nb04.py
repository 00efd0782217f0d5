"""Notebook 04: its pictures, and exercise 4.1 beside the sampler of the package."""

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.figure import Figure

from course_utils.classroom import figures
from course_utils.classroom.exercises.nb04 import class_balanced_epoch, epoch_by_chances
from course_utils.classroom.pictures.nb04 import differences_in_bands, sampler_picture, sorted_rows
from course_utils.sampling import ClassBalancedSampler, SquareRootSampler

COUNTS = [60, 12, 4]
LABELS = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))


@pytest.fixture
def axes():
    figure, axes = figures.axes_grid()
    yield axes
    plt.close(figure)


def test_rows_are_sorted_and_only_what_repeats_a_class_is_boxed(axes):
    images = torch.zeros(8, 1, 6, 6, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([2, 0, 2, 1, 0, 1, 2, 3])  # shows the class in a corner
    labels = [torch.tensor([2, 0, 2, 1]), torch.tensor([0, 1, 2, 3])]
    sorted_rows(axes, [images[:4], images[4:]], labels, ["first", "second"])
    table = axes.images[0].get_array()
    corners = [[255 - int(table[8 * y, 8 * x]) for x in range(4)] for y in range(2)]
    assert corners == [[0, 1, 2, 2], [0, 1, 2, 3]]
    (box,) = axes.patches
    assert 24 - 1 <= box.get_x() <= 24 and box.get_y() < 1 and box.get_width() <= 8
    assert [t.get_text() for t in axes.get_yticklabels()] == ["first", "second"]


def test_bands_have_a_name_and_every_line_its_interval(axes):
    bands = {"NCM": {"a": [1.0, 2.0, 3.0], "b": [-4.0, 0.0, 5.0]}, "cRT": {"a": [2.0, 2.1, 2.2]}}
    differences_in_bands(axes, bands)
    assert [t.get_text() for t in axes.texts] == ["NCM", "cRT"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b", "a"]
    places = axes.get_yticks()
    assert list(places) == sorted(places) and axes.get_ylim()[0] > places[-1] > places[0] > axes.get_ylim()[1]
    faces = [line.get_markerfacecolor() for line in axes.lines if line.get_marker() == "D"]
    assert [face == "white" for face in faces] == [True, True, False]  # [-0.5, 4.5] and the second hold 0


def test_the_bars_of_an_epoch_are_what_was_drawn():
    draw = {"once": torch.arange(76), "rare": torch.tensor([72] * 10 + [0] * 5)}
    figure = Figure()
    update = sampler_picture(lambda name, epoch: draw[name], LABELS, COUNTS, "ABC")(figure)
    said = "rare, epoch 3: A comes 5 times, C 10 times, each image of C 2.5 times."
    assert update(sampler="rare", epoch=3) == said
    heights = [bar.get_height() for bar in figure.axes[0].patches if isinstance(bar, plt.Rectangle)]
    assert heights[:3] == [5, 0, 10]
    assert "each image of C 1.0 times." in update(sampler="once", epoch=0)


@pytest.mark.parametrize("length", [76, 50, 200])
def test_by_hand_and_the_package_show_every_image_as_often(length):
    by_hand = class_balanced_epoch(LABELS, length, torch.Generator().manual_seed(0))
    package = ClassBalancedSampler(LABELS, num_samples=length).indices()
    for one in (by_hand, package):
        classes = LABELS[one].bincount(minlength=3)
        assert classes.max() - classes.min() <= 1
        for j in range(3):
            times = one.bincount(minlength=76)[LABELS == j]
            assert times.max() - times.min() <= 1


def test_by_chances_draws_as_the_square_root_sampler():
    package = SquareRootSampler(LABELS, num_samples=50_000)
    by_hand = epoch_by_chances(LABELS, package.probabilities(), 50_000, torch.Generator().manual_seed(1))
    shares = [LABELS[one].bincount(minlength=3) / 50_000 for one in (by_hand, package.indices())]
    assert torch.allclose(*shares, atol=0.015)
