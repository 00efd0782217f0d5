"""Notebook 08: groups with its own borders, accuracy at a place, the picture of places, exercise 8.2 in use."""

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.figure import Figure

from course_utils.classroom import figures
from course_utils.classroom.exercises.nb08 import at_the_place, balanced_head
from course_utils.classroom.pictures import nb08
from course_utils.machinery.files import DATA_FOLDER
from course_utils.photos import Photos, View

COUNTS = [40, 20, 3]


def test_groups_have_the_borders_of_this_notebook():
    assert nb08.groups_of([31, 30, 10, 9]) == ["many", "medium", "medium", "few"]
    found = nb08.by_group(torch.tensor([0, 1, 1, 2, 0]), torch.tensor([0, 1, 2, 2, 2]), COUNTS)
    assert found["groups"] == pytest.approx({"many": 1, "medium": 1, "few": 1 / 3, "all": 7 / 9})
    assert found["per_class"] == pytest.approx([1, 1, 1 / 3])


def test_shares_are_powers_of_the_counts():
    torch.testing.assert_close(nb08.shares_of(COUNTS, 1.0), torch.tensor(COUNTS) / 63)
    torch.testing.assert_close(nb08.shares_of(COUNTS, 0.0), torch.full((3,), 1 / 3))
    turned = nb08.shares_of(COUNTS, -1.0)
    torch.testing.assert_close(turned * torch.tensor(COUNTS), torch.full((3,), float(turned[0] * 40)))


def test_accuracy_at_a_place_is_that_of_pictures_drawn_with_its_shares():
    labels, said = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 0, 1, 0, 0, 1])
    shares = torch.tensor([0.5, 0.3, 0.2])
    assert nb08.accuracy_there(said, labels, shares) == pytest.approx(100 * (0.5 * 1 + 0.3 * 0.5))
    drawn = torch.multinomial(shares[labels] / 2, 200_000, True, generator=torch.Generator().manual_seed(0))
    assert nb08.accuracy_there(said, labels, shares) == pytest.approx(
        100 * float((said == labels)[drawn].float().mean()), abs=0.5
    )


def test_the_picture_of_places_moves_points_to_what_the_rule_says():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(20)
    logits = torch.randn(60, 3, generator=generator) + 2 * torch.nn.functional.one_hot(labels, 3)
    assumed = {"a": torch.tensor(COUNTS) / 63, "b": torch.full((3,), 1 / 3)}
    answers = {head: [(logits, labels), (logits.flip(0), labels.flip(0))] for head in assumed}
    figure = Figure(figsize=nb08.PLACE_SIZE)
    update = nb08.place_picture(at_the_place, answers, assumed, COUNTS, ["x", "y", "z_z"])(figure)
    sentence = update(place="all equal", told="nothing")
    want = nb08.accuracy_there(logits.argmax(1), labels, torch.full((3,), 1 / 3))
    assert f"a {want:.1f}" in sentence and f"b {want:.1f}" in sentence
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == pytest.approx([100 / 3] * 3)
    moved = update(place="as in training", told="its true shares")
    shares = torch.tensor(COUNTS) / 63
    a, b = (at_the_place(logits, assumed[head], shares).argmax(1) for head in "ab")
    assert f"a {nb08.accuracy_there(a, labels, shares):.1f}" in moved
    assert f"b {nb08.accuracy_there(b, labels, shares):.1f}" in moved
    assert torch.equal(a, logits.argmax(1)) and not torch.equal(b, a)


def test_the_folder_is_drawn_with_its_largest_and_smallest_classes():
    photos = Photos.from_list(DATA_FOLDER / "clipart" / "pictures.txt", view=View(size=32, fit="pad"))
    figure, axes = figures.axes_grid(1, 2)
    nb08.folder_picture(axes, photos, photos.counts.tolist(), columns=3)
    ticks = [label.get_text() for label in axes[1].get_yticklabels()]
    assert ticks[0] == "mammal" and set(ticks[-2:]) == {"ball", "book"}
    assert axes[1].images[0].get_array().shape == (5 * 32, 3 * 32, 3)
    plt.close(figure)


def test_the_head_by_hand_learns_the_rare_class_as_well():
    """Two overlapping clouds, 60 to 4: without log n_j the rare one is hardly ever named."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([60, 4])
    labels = torch.arange(2).repeat_interleave(counts)
    centers = torch.tensor([[-0.7, 0.0], [0.7, 0.0]])
    head = balanced_head(centers[labels] + torch.randn(64, 2, generator=generator), labels, 300, 0.1)
    fresh = torch.arange(2).repeat_interleave(500)
    points = centers[fresh] + torch.randn(1000, 2, generator=generator)
    with torch.no_grad():
        rare = (head(points).argmax(1) == 1)[fresh == 1].float().mean()
        biased = ((head(points) + counts.log()).argmax(1) == 1)[fresh == 1].float().mean()
    assert rare > 0.6 > 0.3 > biased
