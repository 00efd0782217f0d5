"""Notebook 03: exemplars and their mean, and the pictures of a phase and of all phases."""

import pytest
import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

from course_utils.classroom.pictures import nb03
from course_utils.data import LabeledImages
from course_utils.incremental import herding
from course_utils.networks import MLP
from course_utils.training import extract_features


def test_joined_images_keep_their_labels():
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 8, 8)
    first, second = (LabeledImages(images[k], torch.tensor(k), list("ABC")) for k in ([0, 1], [2]))
    both = nb03.joined(second, first)
    assert both.labels.tolist() == [2, 0, 1] and both.images[:, 0, 0, 0].tolist() == [2, 0, 1]
    assert both.class_names == ["A", "B", "C"] and len(first) == 2


def test_the_released_choice_begins_as_herding_and_has_no_image_twice():
    rows = F.normalize(torch.randn(60, 16, generator=torch.Generator().manual_seed(0)) + 1, dim=1)
    chosen = nb03.released_choice(rows, 10)
    assert len(set(chosen)) == 10 and chosen[:2] == [int(i) for i in herding(rows, 10)][:2]
    assert nb03.released_choice(torch.eye(3)[[0, 0, 0]], 2) == [0], "it ends where no second row is ever the nearest"


def test_the_mean_of_some_rows_against_that_of_all():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    distance, angle, length = nb03.mean_of_some(rows, [0])
    assert distance == pytest.approx(0.5**0.5) and angle == pytest.approx(45, abs=1e-3)
    assert length == pytest.approx(100 * 2**0.5, abs=1e-3)
    assert nb03.mean_of_some(rows, [0, 1]) == pytest.approx((0, 0, 100), abs=0.05)


def test_drift_and_accuracies_of_a_model_that_stays_and_of_one_that_turned():
    images = torch.randint(256, (6, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    torch.manual_seed(0)
    model = MLP(3)
    before = extract_features(model, LabeledImages(images, torch.zeros(6, dtype=torch.long), list("ABC")))
    said = model.head(before).argmax(1)
    labels = torch.where(torch.arange(6) < 3, said, (said + 1) % 3)  # the first three are read rightly
    data = LabeledImages(images, labels, list("ABC"))
    drift, old, new = nb03.drift_and_accuracies(model, data, before, num_old=2)
    right, is_old = torch.arange(6) < 3, labels < 2
    assert drift == pytest.approx(0, abs=1e-3)
    assert (old, new) == pytest.approx([100 * right[s].float().mean().item() for s in (is_old, ~is_old)], nan_ok=True)
    assert nb03.drift_and_accuracies(model, data, -before, num_old=2)[0] == pytest.approx(200, abs=1e-3)


def test_a_number_over_seeds_is_mean_and_spread_in_its_unit():
    assert nb03.shown([0.5, 0.52], unit=100) == "51.0 ± 1.4" and nb03.shown([1, 3], 2) == "2.00 ± 1.41"


def test_pictures_show_the_numbers_they_are_given():
    axes = Figure().subplots(1, 3)
    epochs = [[1.0, 90.0, 50.0], [3.0, 80.0, 70.0]]
    nb03.draw_while_learning(axes, {"cross-entropy": [epochs], "LUCIR": [epochs, epochs]})
    for ax, values in zip(axes, ([1, 3], [90, 80], [50, 70]), strict=True):
        assert [list(line.get_ydata()) for line in ax.lines] == [values] * 2 and list(ax.lines[0].get_xdata()) == [0, 1]
    assert [text.get_text() for text in axes[2].get_legend().get_texts()] == ["cross-entropy", "LUCIR"]

    axes = Figure().subplots()
    nb03.draw_over_phases(axes, {"LUCIR": [[90, 80], [92, 84]]}, [14, 17])
    assert list(axes.lines[0].get_ydata()) == [91, 82] and axes.get_xticks().tolist() == [14, 17]

    axes = Figure().subplots(2, 1)
    seeds = [{"norms": torch.tensor([1.0, 2.0]), "biases": torch.tensor([0.0, 0.5])}] * 2
    nb03.draw_rows_and_biases(axes, seeds, "AB", 1)
    assert [bar.get_height() for bar in axes[0].patches] == [1, 2] and axes[1].get_ylabel() == "bias"
