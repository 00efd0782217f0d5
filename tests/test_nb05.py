"""Notebook 05: what its trainings need beside the method, the margin in a loss, and the pictures of its numbers."""

from functools import partial

import pytest
import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

from course_utils.classroom.pictures import nb05
from course_utils.data import LabeledImages
from course_utils.losses import LDAMLoss
from course_utils.networks import MLP
from course_utils.training import fit, random_shift


def images_of(count, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
    return LabeledImages(images, torch.arange(count) % classes, [f"class {j}" for j in range(classes)])


@pytest.mark.parametrize(("method", "scale"), [("LDAM + DRW", 1.0), ("cosine balanced softmax", 30.0)])
def test_cosine_heads_start_with_rows_of_norm_one_and_only_that_of_ldam_has_no_scale(method, scale):
    head = nb05.new_model(method, 0, MLP, classes=4, device=torch.device("cpu")).head
    assert head.weight.norm(dim=1).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    assert float(head.scale) == scale and not head.scale.requires_grad


def test_other_methods_have_a_linear_head():
    assert isinstance(
        nb05.new_model("balanced softmax", 0, MLP, classes=4, device=torch.device("cpu")).head, torch.nn.Linear
    )


def test_batches_are_those_of_fit():
    data, seen = images_of(150), []
    model = nb05.new_model("cross-entropy", 0, MLP, classes=4, device=torch.device("cpu"))
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()) if model.training else None)
    fit(model, data, epochs=2, lr=0.01, seed=3, batch_size=64, augment=random_shift)
    of_epoch = nb05.epochs_of(data, 3)
    again = [images for epoch in (0, 1) for images, _ in of_epoch(epoch)]
    assert len(seen) == len(again) == 6
    assert all(torch.equal(a, b) for a, b in zip(seen, again, strict=True))


def test_a_probe_reads_what_lies_apart_and_nothing_that_was_shuffled():
    data = images_of(80)
    bright = LabeledImages(
        (data.labels[:, None, None, None] * 80).expand(-1, 1, 28, 28).byte(), data.labels, data.class_names
    )
    model = nb05.new_model("cross-entropy", 0, MLP, classes=4, device=torch.device("cpu"))
    assert nb05.linear_probe(model, bright, bright) == 100
    other = LabeledImages(bright.images, (bright.labels + 1) % 4, bright.class_names)
    assert nb05.linear_probe(model, bright, other) == 0


def test_rows_learned_with_margins_give_the_rare_class_its_lead():
    points, labels = nb05.points_on_circle([300, 60, 6])
    assert points.norm(dim=1).tolist() == pytest.approx([1.0] * 366, abs=1e-5)
    assert torch.bincount(labels).tolist() == [300, 60, 6]
    margins = LDAMLoss([300, 60, 6]).margins

    def loss(cosines, labels, margins):
        return F.cross_entropy(20 * (cosines - margins * F.one_hot(labels, 3)), labels, reduction="none")

    kept = []
    for own in (0 * margins, margins):
        rows, leads = nb05.learn_rows(points, labels, partial(loss, margins=own), steps=400)
        cosines = points @ F.normalize(rows, dim=1).T
        best = torch.stack([max(c[j] for j in range(3) if j != y) for c, y in zip(cosines, labels, strict=True)])
        assert torch.allclose(leads, cosines[torch.arange(366), labels] - best, atol=1e-6)
        kept.append((leads > margins[labels])[labels == 2].float().mean().item())
    assert kept[1] > kept[0] + 0.3


def test_rows_of_tables_are_means_and_spreads_in_percent():
    seeds = [dict.fromkeys(("many", "medium", "few", "all"), value) for value in (0.5, 0.52)]
    [row] = nb05.score_rows({"one": seeds})
    assert row == {"method": "one", "seeds": 2} | dict.fromkeys(("many", "medium", "few", "all"), "51.0 ± 1.4")
    assert nb05.percent([0.5, 0.52], 2) == "51.00 ± 1.41"


def test_pictures_show_the_numbers_they_are_given():
    top, bottom = Figure().subplots(2, 1)
    right = {"a": torch.tensor([1.0, 0.75, 0.5]), "b": torch.tensor([0.9, 0.8, 0.7])}
    trained = {"a": torch.tensor([1.0, 1.0, 0.25]), "b": torch.ones(3)}
    nb05.draw_letter_errors([top, bottom], right, [20, 500, 3], "KEZ", trained)
    assert [bar.get_height() for bar in top.patches] == [25, 0, 50] and top.lines[0].get_ydata().tolist() == [0, 0, 75]
    assert [text.get_text() for text in bottom.get_xticklabels()] == list("EKZ")

    axes = Figure().subplots()
    scores = {
        (True, 0.0): [{"all": 0.5, "few": 0.1}, {"all": 0.7, "few": 0.3}],
        (False, 0.6): [{"all": 0.4, "few": 0.2}],
    }
    nb05.draw_moments(axes, scores)
    drawn = {line.get_label(): (list(line.get_xdata()), pytest.approx(list(line.get_ydata()))) for line in axes.lines}
    assert drawn["all, rate drops"] == ([0.0], [60]) and drawn["few, rate stays high"] == ([0.6], [20])

    axes = Figure().subplots()
    nb05.draw_norms(axes, [([1.5, 2.0], 0.92), ([4.0, 4.5], 0.5)], "J")
    assert list(axes.lines[1].get_ydata()) == [1.0, 4.0, 4.5]
    assert [line.get_label() for line in axes.lines] == ["seed 0: reads 92 % of J", "seed 1: reads 50 % of J"]

    left, right = Figure().subplots(1, 2)
    seeds = [[{"few": 10.0, "many": 90.0}, {"few": 30.0, "many": 80.0}]]
    nb05.draw_over_epochs([left, right], ("few", "many"), {"LDAM + DRW": seeds}, drop=1.5)
    assert list(left.lines[0].get_ydata()) == [10, 30] and list(right.lines[0].get_ydata()) == [90, 80]
    assert left.lines[1].get_xdata() == [1.5, 1.5] and left.get_title() == "few"
