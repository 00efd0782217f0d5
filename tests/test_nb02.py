"""Notebook 02: sectors on a circle, and the head of exercise 2.1 in training."""

import pytest
import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

from course_utils.classroom.exercises.nb02 import CosineHead
from course_utils.classroom.pictures.nb02 import angles_to_own, draw_learnt_scales, draw_sectors, mean_angle, sectors
from course_utils.data import LabeledImages
from course_utils.heads import CosineClassifier
from course_utils.networks import MLP
from course_utils.training import fit, predict


def rows_at(*degrees):
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_sectors_of_known_rows():
    begins, widths = sectors(rows_at(0.0, 90.0, 200.0) * torch.tensor([[5.0], [0.1], [2.0]]))
    assert begins.tolist() == pytest.approx([280, 45, 145], abs=1e-3)
    assert widths.tolist() == pytest.approx([125, 100, 135], abs=1e-3)


@pytest.mark.parametrize("classes", [2, 3, 6, 26])
def test_a_sector_is_what_the_cosine_head_says(classes):
    weight = torch.randn(classes, 2, generator=torch.Generator().manual_seed(classes))
    begins, widths = sectors(weight)
    assert widths.sum().item() == pytest.approx(360, abs=1e-2)
    degrees = torch.linspace(0, 359.9, 3600)
    said = (rows_at(*degrees.tolist()) @ F.normalize(weight, dim=1).T).argmax(1)
    inside = (degrees[:, None] - begins) % 360 < widths
    assert (inside[torch.arange(3600), said].float().mean() > 0.99) and (inside.sum(1) == 1).float().mean() > 0.99
    share = torch.bincount(said, minlength=classes) / 10
    assert share.tolist() == pytest.approx(widths.tolist(), abs=0.3)


@pytest.mark.parametrize("weight", [torch.ones(3), torch.ones(3, 3), torch.ones(1, 2)])
def test_sectors_need_two_rows_in_the_plane(weight):
    with pytest.raises(ValueError, match="weight: got"):
        sectors(weight)


def test_angles_between_rows_and_to_own_images():
    assert mean_angle(rows_at(0.0, 90.0, 200.0) * 3) == pytest.approx((90 + 110 + 160) / 3, abs=1e-3)
    features, labels = rows_at(20.0, 40.0, 80.0) * torch.tensor([[1.0], [9.0], [2.0]]), torch.tensor([0, 0, 1])
    assert angles_to_own(rows_at(0.0, 90.0), features, labels).tolist() == pytest.approx([30, 10], abs=1e-3)


def test_a_learnt_scale_is_drawn_from_its_start():
    axes = draw_learnt_scales(Figure().subplots(), {10: [[12, 14], [14, 16]], 1: [[5, 9], [7, 11]]})
    assert [list(line.get_ydata()) for line in axes.lines] == [[10, 13, 15], [1, 6, 10]]
    assert [line.get_label() for line in axes.lines] == ["starts at 10", "starts at 1"] and axes.get_xlim() == (0, 2)


def test_every_class_has_a_sector_a_ring_and_its_name():
    axes = Figure().subplots()
    features, labels = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 3
    draw_sectors(axes, rows_at(0.0, 90.0, 200.0), features, labels, [200, 50, 5], "ABC")
    assert len(axes.patches) == 6 and sorted(text.get_text() for text in axes.texts) == sorted("AABBCC")


def test_the_head_of_the_exercise_trains_as_the_package_does_bit_for_bit():
    images = torch.randint(256, (40, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data, said = LabeledImages(images, torch.arange(40) % 4, list("ABCD")), []
    for make in (CosineHead, CosineClassifier):
        torch.manual_seed(0)
        model = MLP(4)
        first, model.head = model.head.weight, make(64, 4, 10.0, True)
        model.head.weight.data.copy_(first)
        fit(model, data, epochs=5, batch_size=8, progress=False)
        said.append(predict(model, data))
    assert torch.equal(*said)
