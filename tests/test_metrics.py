"""metrics.py against scikit-learn, slow references, and the borders of its definitions."""

import math

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score, roc_curve
from sklearn.metrics import confusion_matrix as sklearn_confusion

from course_utils.metrics import (
    average_incremental_accuracy,
    balanced_accuracy,
    best_temperature,
    calibration_error,
    confusion_matrix,
    difference_text,
    error_blocks,
    forgetting,
    mean_and_spread,
    open_set_auroc,
    open_set_f_measure,
    open_set_fpr,
    paired_interval,
    per_class_accuracy,
    reliability_bins,
    shot_accuracy,
    shot_groups,
)

NAN = math.nan


def some(n, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(classes, (2, n), generator=generator)


def close(a, b, tolerance=1e-6):
    return torch.allclose(torch.as_tensor(a).double(), torch.as_tensor(b).double(), atol=tolerance, equal_nan=True)


@pytest.mark.parametrize(("n", "classes", "seed"), [(200, 7, 0), (31, 2, 1), (500, 40, 2)])
def test_per_class_and_balanced_accuracy_agree_with_scikit_learn(n, classes, seed):
    predictions, labels = some(n, classes, seed)
    recalls = recall_score(labels, predictions, labels=range(classes), average=None, zero_division=NAN)
    assert close(per_class_accuracy(predictions, labels, classes), recalls)
    assert balanced_accuracy(predictions, labels, classes) == pytest.approx(
        balanced_accuracy_score(labels, predictions), abs=1e-6
    )


def test_a_class_without_images_is_nan_and_not_part_of_the_balanced_accuracy():
    predictions, labels = torch.tensor([0, 0, 3, 1]), torch.tensor([0, 0, 3, 3])
    assert close(per_class_accuracy(predictions, labels, 4), [1, NAN, NAN, 0.5])
    assert balanced_accuracy(predictions, labels, 4) == 0.75
    nothing = torch.zeros(0, dtype=torch.long)
    assert close(per_class_accuracy(nothing, nothing, 2), [NAN, NAN])
    assert math.isnan(balanced_accuracy(nothing, nothing, 2))


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([0, 1], [0, 3], r"labels: got 0 to 3; allowed: 0 to 2"),
        ([0, 1], [-1, 1], r"labels: got -1 to 1; allowed: 0 to 2"),
        ([0, 1, 2], [0, 1], r"predictions: got shape \(3,\) beside labels of shape \(2,\)"),
        ([[0, 1]], [[0, 1]], r"both of shape \(N,\)"),
        ([0.0, 1.0], [0.0, 1.0], r"labels: got torch.float32"),
    ],
)
def test_wrong_predictions_and_labels_are_refused(predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        per_class_accuracy(torch.tensor(predictions), torch.tensor(labels), 3)


# ---- many, medium, few ---------------------------------------------------------------------------------------------


def test_classes_with_exactly_20_and_100_images_are_medium():
    counts = [5000, 101, 100, 99, 21, 20, 19, 1]
    assert shot_groups(counts).tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
    per_class = torch.tensor([0.1, 0.3, 0.2, 0.4, 0.6, 0.8, 0.5, 0.7])
    groups = shot_accuracy(per_class, torch.tensor(counts))
    assert groups == pytest.approx({"many": 0.2, "medium": 0.5, "few": 0.6, "all": 0.45})


def test_the_borders_can_be_moved():
    groups = shot_accuracy(torch.tensor([1.0, 0.5, 0.0]), [10, 5, 4], many=9, few=5)
    assert groups == pytest.approx({"many": 1, "medium": 0.5, "few": 0, "all": 0.5})
    assert shot_groups([5, 4], many=4, few=5).tolist() == [0, 2], "an empty middle is allowed"


@pytest.mark.parametrize(
    ("profile", "sizes"),
    [((10, 5000, 0.01), (8, 2, 0)), ((100, 500, 0.01), (35, 35, 30)), ((100, 500, 0.02), (41, 41, 18))],
)
def test_the_groups_of_long_tailed_cifar_are_those_of_the_literature(profile, sizes):
    classes, top, share = profile
    counts = [int(top * share ** (j / (classes - 1))) for j in range(classes)]
    assert torch.bincount(shot_groups(counts), minlength=3).tolist() == list(sizes)


def test_an_empty_group_is_nan_and_not_zero():
    groups = shot_accuracy(torch.tensor([0.5, 0.7]), [500, 300])
    assert groups["many"] == pytest.approx(0.6)
    assert math.isnan(groups["medium"]) and math.isnan(groups["few"])


def test_a_class_without_test_images_does_not_spoil_its_group():
    per_class = per_class_accuracy(torch.tensor([0, 0, 3]), torch.tensor([0, 0, 3]), 4)
    groups = shot_accuracy(per_class, [500, 400, 50, 5])
    assert groups["many"] == 1 and groups["few"] == 1 and math.isnan(groups["medium"])
    assert groups["all"] == balanced_accuracy(torch.tensor([0, 0, 3]), torch.tensor([0, 0, 3]), 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"per_class": torch.ones(3), "class_counts": [1, 2]}, r"per_class: got shape \(3,\); allowed: \(2,\)"),
        ({"per_class": torch.ones(2), "class_counts": [1, -2]}, r"class_counts: got \[1, -2\]"),
        ({"per_class": torch.ones(2), "class_counts": [1, NAN]}, r"class_counts: got \[1.0, nan\]"),
        ({"per_class": torch.ones(1), "class_counts": [1], "many": 10, "few": 12}, r"few: got 12 with many=10"),
    ],
)
def test_wrong_groups_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        shot_accuracy(**arguments)


# ---- calibration ---------------------------------------------------------------------------------------------------


def slow_calibration_error(probabilities, labels, bins):
    error = 0.0
    for m in range(bins):
        inside = [
            i for i, p in enumerate(probabilities.tolist()) if m / bins < max(p) <= (m + 1) / bins or (m == 0 == max(p))
        ]
        if inside:
            accuracy = sum(int(probabilities[i].argmax() == labels[i]) for i in inside) / len(inside)
            confidence = sum(float(probabilities[i].max()) for i in inside) / len(inside)
            error += len(inside) / len(labels) * abs(accuracy - confidence)
    return error


@pytest.mark.parametrize(("n", "classes", "bins"), [(60, 3, 7), (200, 10, 15), (40, 2, 1), (5, 4, 100)])
def test_calibration_error_agrees_with_a_slow_reference(n, classes, bins):
    generator = torch.Generator().manual_seed(n)
    probabilities = (3 * torch.randn(n, classes, generator=generator, dtype=torch.float64)).softmax(1)
    labels = torch.randint(classes, (n,), generator=generator)
    want = slow_calibration_error(probabilities, labels, bins)
    assert want > 0.01
    assert calibration_error(probabilities, labels, bins=bins) == pytest.approx(want, abs=1e-9)


def test_reliability_bins_hold_what_the_calibration_error_sums():
    generator = torch.Generator().manual_seed(4)
    probabilities = torch.randn(300, 4, generator=generator).mul(2).softmax(1)
    labels = torch.randint(4, (300,), generator=generator)
    found = reliability_bins(probabilities, labels, bins=7)
    filled = [j for j in range(7) if found["count"][j]]
    error = sum(found["count"][j] * abs(found["accuracy"][j] - found["confidence"][j]) for j in filled) / 300
    assert error == pytest.approx(calibration_error(probabilities, labels, bins=7), abs=1e-6)
    assert sum(found["count"]) == 300 and len(filled) < 7, "nothing is less sure than 1 in 4"
    assert all(j / 7 < found["confidence"][j] <= (j + 1) / 7 for j in filled)
    assert all(math.isnan(found["accuracy"][j]) for j in range(7) if j not in filled)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_the_best_temperature_makes_the_confidence_the_accuracy(dtype):
    """80 of 100 images right, all with logits (a, 0): 1 / (1 + e^(-a / T)) = 0.8 at T = a / log 4."""
    labels = torch.zeros(100).long()
    labels[80:] = 1
    for a in (0.5, 2.0, 9.0):
        logits = torch.tensor([[a, 0.0]], dtype=dtype).expand(100, 2)
        assert best_temperature(logits, labels) == pytest.approx(a / math.log(4), rel=1e-4)
        assert best_temperature(3 * logits, labels) == pytest.approx(3 * a / math.log(4), rel=1e-4)


def test_a_temperature_needs_a_label_for_each_row_of_finite_logits():
    logits = torch.randn(4, 3)
    for wrong, labels, what in (
        (logits[:0], torch.zeros(0).long(), "logits"),
        (logits * math.nan, torch.zeros(4).long(), "logits"),
        (logits, torch.zeros(3).long(), "labels"),
        (logits, torch.full((4,), 3), "labels"),
    ):
        with pytest.raises(ValueError, match=f"^{what}: "):
            best_temperature(wrong, labels)


def test_calibration_error_of_the_sure_and_right_is_0_and_of_the_sure_and_wrong_1():
    probabilities, right = torch.eye(4), torch.arange(4)
    assert calibration_error(probabilities, right) == 0
    assert calibration_error(probabilities, right.flip(0)) == 1


@pytest.mark.parametrize(
    ("probabilities", "labels", "options", "message"),
    [
        (torch.randn(4, 3), torch.zeros(4).long(), {}, r"probabilities: got -.* to .*; allowed: 0 to 1 \(softmax"),
        (torch.rand(4, 3) / 4, torch.zeros(4).long(), {}, "probabilities: .*other sums; allowed: .*rows that sum to 1"),
        (torch.full((4, 3), NAN), torch.zeros(4).long(), {}, "probabilities: got .*; allowed"),
        (torch.ones(4), torch.zeros(4).long(), {}, r"probabilities: got shape \(4,\); allowed: shape"),
        (torch.ones(4, 1), torch.zeros(3).long(), {}, "one prediction for each label"),
        (torch.ones(4, 1), torch.zeros(4).long(), {"bins": 0}, "bins: got 0; allowed: at least 1"),
    ],
)
def test_wrong_probabilities_are_refused(probabilities, labels, options, message):
    with pytest.raises(ValueError, match=message):
        calibration_error(probabilities, labels, **options)


# ---- over time -----------------------------------------------------------------------------------------------------


def test_average_incremental_accuracy_is_the_mean_over_phases():
    assert average_incremental_accuracy([0.9, 0.7, 0.5]) == pytest.approx(0.7)
    published = [76.86, 69.62, 64.64, 59.26, 55.92, 54.41]  # LUCIR on CIFAR-100, 50 classes and 5 phases of 10
    assert average_incremental_accuracy(published) == pytest.approx(63.45, abs=0.005), "with the base phase"
    assert average_incremental_accuracy(published[1:]) == pytest.approx(60.77, abs=0.005), "without it"
    with pytest.raises(ValueError, match="accuracies: got none"):
        average_incremental_accuracy([])


@pytest.mark.parametrize("phases", [2, 3, 6])
def test_forgetting_agrees_with_a_slow_reference(phases):
    table = torch.rand(phases, phases, generator=torch.Generator().manual_seed(phases))
    later = torch.ones(phases, phases).triu(1).bool()
    table[later] = NAN
    drops = [
        max(float(table[row, task]) for row in range(task, phases - 1)) - float(table[-1, task])
        for task in range(phases - 1)
    ]
    assert forgetting(table) == pytest.approx(sum(drops) / len(drops), abs=1e-6)


def test_forgetting_is_negative_if_old_tasks_got_better():
    assert forgetting(torch.tensor([[0.5, NAN], [0.75, 1.0]])) == -0.25


@pytest.mark.parametrize("table", [torch.ones(1, 1), torch.ones(2, 3), torch.ones(3)])
def test_forgetting_needs_a_square_of_two_phases(table):
    with pytest.raises(ValueError, match=r"per_phase: got shape .*allowed: \(P, P\)"):
        forgetting(table)


def test_forgetting_refuses_a_task_that_was_never_measured():
    with pytest.raises(ValueError, match="per_phase"):
        forgetting(torch.tensor([[NAN, NAN], [0.5, 1.0]]))


def slow_blocks(predictions, labels, num_old):
    pairs = list(zip(predictions.tolist(), labels.tolist(), strict=True))
    old, new = [(p, y) for p, y in pairs if y < num_old], [(p, y) for p, y in pairs if y >= num_old]
    return {
        "old_to_old": sum(p != y and p < num_old for p, y in old) / len(old),
        "old_to_new": sum(p >= num_old for p, y in old) / len(old),
        "new_to_old": sum(p < num_old for p, y in new) / len(new),
        "new_to_new": sum(p != y and p >= num_old for p, y in new) / len(new),
        "share_new": sum(p >= num_old for p, y in pairs) / len(new),
    }


@pytest.mark.parametrize(("classes", "num_old", "seed"), [(5, 3, 0), (5, 1, 1), (9, 8, 2)])
def test_error_blocks_agree_with_a_slow_reference_and_sum_to_all_errors(classes, num_old, seed):
    predictions, labels = some(300, classes, seed)
    blocks = error_blocks(predictions, labels, num_old)
    assert blocks == pytest.approx(slow_blocks(predictions, labels, num_old))
    old = (labels < num_old).double().mean().item()
    errors = old * (blocks["old_to_old"] + blocks["old_to_new"])
    errors += (1 - old) * (blocks["new_to_old"] + blocks["new_to_new"])
    assert errors == pytest.approx((predictions != labels).double().mean().item())


def test_error_blocks_of_all_right_and_of_all_called_new():
    labels = torch.tensor([0, 0, 1, 2, 3])
    right = {"old_to_old": 0, "old_to_new": 0, "new_to_old": 0, "new_to_new": 0, "share_new": 1}
    assert error_blocks(labels, labels, 2) == right
    new = {"old_to_old": 0, "old_to_new": 1, "new_to_old": 0, "new_to_new": 0.5, "share_new": 2.5}
    assert error_blocks(torch.full((5,), 3), labels, 2) == new


@pytest.mark.parametrize(
    ("num_old", "nothing"), [(9, ("new_to_old", "new_to_new", "share_new")), (0, ("old_to_old", "old_to_new"))]
)
def test_error_blocks_of_no_images_are_nan(num_old, nothing):
    blocks = error_blocks(torch.tensor([0, 3, 9]), torch.tensor([0, 1, 2]), num_old)
    assert {name for name, value in blocks.items() if math.isnan(value)} == set(nothing)
    assert not any(math.isinf(value) for value in blocks.values())


@pytest.mark.parametrize(("n", "classes", "seed"), [(200, 7, 0), (31, 2, 1), (3, 40, 2), (0, 3, 0)])
def test_the_confusion_matrix_agrees_with_scikit_learn(n, classes, seed):
    predictions, labels = some(n, classes, seed)
    want = sklearn_confusion(labels, predictions, labels=range(classes)) if n else torch.zeros(3, 3)
    matrix = confusion_matrix(predictions, labels, classes)
    assert matrix.dtype == torch.int64 and matrix.tolist() == want.tolist()


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([0, 3], [0, 1], "predictions: got 0 to 3; allowed: 0 to 2"),
        ([-1, 1], [0, 1], "predictions: got -1 to 1; allowed: 0 to 2"),
        ([0, 1], [0, 3], "labels: got 0 to 3; allowed: 0 to 2"),
        ([0, 1], [0], r"predictions: got shape \(2,\) beside labels of shape \(1,\)"),
    ],
)
def test_a_confusion_matrix_of_unknown_classes_is_refused(predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(torch.tensor(predictions), torch.tensor(labels), 3)


# ---- open world ----------------------------------------------------------------------------------------------------


def slow_f_measure(predictions, labels, older):
    """As in the released OLTR code: false positives include rejected known images, in the older one they do not."""
    true_positive = false_positive = false_negative = 0
    for p, y in zip(predictions.tolist(), labels.tolist(), strict=True):
        true_positive += y != -1 and p == y
        false_positive += y != -1 and p != y and (p != -1 or not older)
        false_negative += y == -1 and p != -1
    precision = true_positive / (true_positive + false_positive)
    recall = true_positive / (true_positive + false_negative)
    return 2 * precision * recall / (precision + recall + 1e-12)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_f_measure_agrees_with_a_slow_reference(seed, older):
    predictions, labels = some(300, 5, seed) - 1
    want = slow_f_measure(predictions, labels, older)
    assert open_set_f_measure(predictions, labels, older=older) == pytest.approx(want, abs=1e-9)


def test_the_two_f_measures_differ_by_the_known_images_that_are_rejected():
    labels = torch.tensor([0, 1, 2, 3, -1, -1])
    rejected = torch.tensor([0, 1, -1, -1, -1, 0])
    assert open_set_f_measure(rejected, labels) == pytest.approx(2 * 2 / 4 * 2 / 3 / (2 / 4 + 2 / 3))
    assert open_set_f_measure(rejected, labels, older=True) == pytest.approx(2 * 1 * 2 / 3 / (1 + 2 / 3))
    wrong = torch.tensor([0, 1, 0, 0, -1, 0])  # the same images, now taken for a wrong class
    assert open_set_f_measure(wrong, labels, older=True) == open_set_f_measure(wrong, labels)
    assert open_set_f_measure(wrong, labels) == open_set_f_measure(rejected, labels)


def test_the_older_f_measure_grows_whenever_a_wrong_known_image_is_rejected_and_the_released_one_does_not_change():
    predictions, labels = some(200, 6, 4) - 1
    older, released = [], []
    for i in [None, *((labels >= 0) & (predictions >= 0) & (predictions != labels)).nonzero()[:, 0].tolist()]:
        if i is not None:
            predictions[i] = -1
        older.append(open_set_f_measure(predictions, labels, older=True))
        released.append(open_set_f_measure(predictions, labels))
    assert len(older) > 50 and older == sorted(set(older))
    assert len(set(released)) == 1


def test_without_rejection_recall_is_that_of_tp_over_tp_and_all_open_images():
    predictions, labels = torch.tensor([0, 1, 1, 0, 1, 0, 1]), torch.tensor([0, 1, 0, 0, -1, -1, -1])
    precision, recall = 3 / 4, 3 / (3 + 3)
    for older in (False, True):
        want = 2 * precision * recall / (precision + recall)
        assert open_set_f_measure(predictions, labels, older=older) == pytest.approx(want)


@pytest.mark.parametrize("older", [False, True])
def test_f_measure_at_its_borders(older):
    known, none_known, rejected = torch.tensor([0, 1, 2]), torch.full((3,), -1), torch.full((3,), -1)
    assert open_set_f_measure(known, known, older=older) == 1, "no open image, all right"
    assert open_set_f_measure(rejected, known, older=older) == 0
    assert open_set_f_measure(rejected, none_known, older=older) == 0, "no known image: nothing can be right"
    assert open_set_f_measure(known, none_known, older=older) == 0
    assert math.isnan(open_set_f_measure(known[:0], known[:0], older=older))
    with pytest.raises(ValueError, match=r"predictions: got shape \(2,\) beside labels of shape \(3,\)"):
        open_set_f_measure(known[:2], known, older=older)


def test_f_measure_by_hand():
    labels = torch.tensor([0, 1, 2, -1, -1])
    assert open_set_f_measure(labels, labels) == 1, "all known right, all open rejected"
    nothing_rejected = torch.tensor([0, 1, 2, 0, 1])
    assert open_set_f_measure(nothing_rejected, labels) == pytest.approx(2 * 1 * 0.6 / 1.6), "recall = TP / (TP + open)"
    known_rejected = torch.tensor([0, 1, -1, -1, -1])
    assert open_set_f_measure(known_rejected, labels) == pytest.approx(2 * 2 / 3 * 1 / (2 / 3 + 1))
    assert open_set_f_measure(torch.full((5,), -1), labels) == 0, "everything rejected"


def test_auroc_agrees_with_scikit_learn_in_every_precision():
    generator = torch.Generator().manual_seed(0)
    is_open = torch.rand(200, generator=generator) < 0.3
    confidence = (torch.rand(200, generator=generator) - 0.3 * is_open).to(torch.bfloat16)
    want = roc_auc_score((~is_open).numpy(), confidence.float().numpy())
    assert 0.6 < want < 0.99
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert open_set_auroc(confidence.to(dtype), is_open) == pytest.approx(want)


def test_auroc_is_1_if_known_is_always_surer_and_nan_with_one_kind_only():
    confidence = torch.tensor([0.9, 0.8, 0.2])
    assert open_set_auroc(confidence, torch.tensor([False, False, True])) == 1
    assert open_set_auroc(confidence, torch.tensor([True, True, False])) == 0
    assert math.isnan(open_set_auroc(confidence, torch.ones(3, dtype=torch.bool)))
    assert math.isnan(open_set_auroc(confidence, torch.zeros(3, dtype=torch.bool)))


def slow_fpr(confidence, is_open, accepted):
    """The largest of all values as a threshold that accepts enough known images."""
    known, unknown = (
        [c for c, o in zip(confidence.tolist(), is_open.tolist(), strict=True) if o == which] for which in (False, True)
    )
    for threshold in sorted(known, reverse=True):
        if sum(c >= threshold for c in known) >= accepted * len(known) - 1e-9:
            return sum(c >= threshold for c in unknown) / len(unknown)


@pytest.mark.parametrize(("n", "ties", "seed"), [(200, False, 0), (57, True, 1), (2000, True, 2), (5, False, 6)])
@pytest.mark.parametrize("accepted", [0.95, 0.5, 1.0])
def test_fpr_agrees_with_a_slow_reference_and_the_curve_of_scikit_learn(n, ties, seed, accepted):
    generator = torch.Generator().manual_seed(seed)
    is_open = torch.rand(n, generator=generator) < 0.4
    confidence = torch.rand(n, generator=generator, dtype=torch.float64) - 0.2 * is_open
    confidence = (confidence * 20).round() / 20 if ties else confidence
    rate = open_set_fpr(confidence, is_open, accepted=accepted)
    assert 0 < is_open.sum() < n and rate == pytest.approx(slow_fpr(confidence, is_open, accepted), abs=1e-6)
    false, true, _ = roc_curve((~is_open).numpy(), confidence.numpy(), drop_intermediate=False)
    assert rate == pytest.approx(false[true >= accepted - 1e-9].min(), abs=1e-6)


def test_fpr_by_hand():
    confidence = torch.tensor([0.9, 0.8, 0.7, 0.2, 0.75, 0.1])
    is_open = torch.tensor([False, False, False, False, True, True])
    assert open_set_fpr(confidence, is_open, accepted=0.5) == 0, "the threshold is 0.8"
    assert open_set_fpr(confidence, is_open, accepted=0.75) == 0.5, "the threshold is 0.7"
    assert open_set_fpr(confidence, is_open) == 0.5 and open_set_fpr(-confidence, is_open) == 1
    assert open_set_fpr(torch.full((6,), 0.3), is_open) == 1, "nothing tells them apart"
    assert math.isnan(open_set_fpr(confidence, torch.ones(6, dtype=torch.bool)))
    assert math.isnan(open_set_fpr(confidence, torch.zeros(6, dtype=torch.bool)))
    assert open_set_fpr(torch.tensor([0.6, 0.4]), torch.tensor([False, True])) == 0, "one image of each kind"


@pytest.mark.parametrize("accepted", [0.0, 1.01, -1, NAN])
def test_a_share_outside_its_range_is_refused(accepted):
    with pytest.raises(ValueError, match=r"accepted: got .*; allowed: above 0, at most 1"):
        open_set_fpr(torch.rand(4), torch.tensor([True, False, True, False]), accepted=accepted)


# ---- types of numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_calibration_of_many_images_is_right_in_every_precision(dtype):
    probabilities = torch.tensor([0.9, 0.1], dtype=dtype).expand(10_000, 2)
    labels, confidence = torch.arange(10_000) % 2, probabilities[0, 0].item()  # 0.8984 in bfloat16
    assert calibration_error(probabilities, labels) == pytest.approx(confidence - 0.5, abs=1e-4)
    assert confidence - 0.5 == pytest.approx(0.4, abs=0.002)
    bins = reliability_bins(probabilities, labels)
    assert bins["accuracy"][13] == 0.5 and bins["confidence"][13] == pytest.approx(confidence, abs=1e-4)


def test_calibration_of_a_million_images_is_right():
    probabilities = torch.tensor([0.9, 0.1]).expand(1_000_000, 2)
    assert calibration_error(probabilities, torch.zeros(1_000_000).long()) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_short_integers_do_not_wrap(dtype):
    predictions, labels = some(2000, 26, 3)
    short = predictions.to(dtype), labels.to(dtype)
    want = sklearn_confusion(labels, predictions, labels=range(26))
    assert confusion_matrix(*short, 26).tolist() == want.tolist()
    assert close(per_class_accuracy(*short, 300)[:26], per_class_accuracy(predictions, labels, 26))
    assert shot_groups(torch.tensor([120, 5], dtype=dtype), many=300, few=200).tolist() == [2, 2]


def test_auroc_sees_what_only_float64_can_tell_apart():
    confidence = 1 - torch.tensor([1e-9, 2e-9, 3e-9], dtype=torch.float64)
    assert open_set_auroc(confidence, torch.tensor([False, False, True])) == 1


@pytest.mark.parametrize("score", [open_set_auroc, open_set_fpr])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_a_mask_of_0_and_1_is_refused(score, dtype):
    confidence, is_open = torch.tensor([0.9, 0.8, 0.7, 0.75]), torch.tensor([0, 0, 1, 1], dtype=dtype)
    with pytest.raises(ValueError, match=r"is_open: got torch.* of shape \(4,\); allowed: bool of shape \(4,\), as of"):
        score(confidence, is_open)
    assert open_set_fpr(confidence, is_open.bool()) == 0


def test_rejected_images_are_in_no_block_of_errors_and_wrong_for_the_accuracy():
    labels, rejected = torch.tensor([0, 1, 2]), torch.tensor([0, -1, 2])
    with pytest.raises(ValueError, match=r"predictions: got \[-1\]; allowed: classes, at least 0"):
        error_blocks(rejected, labels, 1)
    with pytest.raises(ValueError, match=r"labels: got \[-1\]"):
        error_blocks(labels, rejected, 1)
    assert per_class_accuracy(rejected, labels, 3).tolist() == [1, 0, 1]


@pytest.mark.parametrize("labels", [[0, 2], [-1, 0]])
def test_calibration_of_labels_that_are_no_class_is_refused(labels):
    with pytest.raises(ValueError, match=r"labels: got .*; allowed: 0 to 1"):
        calibration_error(torch.full((2, 2), 0.5), torch.tensor(labels))


def test_means_of_half_precision_numbers_are_those_of_floats():
    values = torch.tensor([0.1, 0.2, 0.4], dtype=torch.bfloat16)
    assert mean_and_spread(values) == mean_and_spread(values.tolist())
    assert average_incremental_accuracy(values) == average_incremental_accuracy(values.tolist())
    table = torch.tensor([[0.9, NAN], [0.3, 0.8]], dtype=torch.bfloat16)
    assert forgetting(table) == forgetting(table.float())


# ---- intervals over seeds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, confidence", [(2, 0.95), (3, 0.9), (5, 0.95), (12, 0.5)])
def test_paired_interval_is_that_of_scipy(n, confidence):
    from scipy import stats

    values = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) * 3 + 1
    want = stats.t.interval(confidence, n - 1, values.mean().item(), stats.sem(values.numpy()))
    assert paired_interval(values.tolist(), confidence) == pytest.approx(want, rel=1e-9)
    assert paired_interval(v for v in values) == paired_interval(values.tolist()), "an iterator, of tensors"


def test_paired_interval_holds_the_truth_as_often_as_it_says():
    samples = torch.randn(2000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tolist()
    ends = [paired_interval(sample) for sample in samples]
    assert sum(low <= 0 <= high for low, high in ends) / 2000 == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(
    "differences, confidence, message",
    [
        ([], 0.95, "differences: got 0 of them; allowed: at least 2, one a seed"),
        ([1.0], 0.95, "differences: got 1 of them; allowed: at least 2, one a seed"),
        ([1.0, math.nan], 0.95, "differences: got .*nan.*; allowed: finite numbers"),
        ([1.0, 2.0], 95, "confidence: got 95; allowed: above 0 and below 1"),
    ],
)
def test_paired_interval_refuses(differences, confidence, message):
    with pytest.raises(ValueError, match=message):
        paired_interval(differences, confidence)


@pytest.mark.parametrize(
    "differences, text",
    [
        ([1.0, 1.4, 1.2], "+1.2 [+0.7, +1.7]"),
        ([-3.0, -2.0], "-2.5 [-8.9, +3.9] tie"),
        ([-3.0, -2.5, -2.8], "-2.8 [-3.4, -2.1]"),
        ([0.0, 0.0], "+0.0 [+0.0, +0.0] tie"),
        (iter([1.0, 1.4, 1.2]), "+1.2 [+0.7, +1.7]"),
        ([2.0], "+2.0"),
        ([], "–"),
        ([1.0, NAN], "–"),
    ],
)
def test_a_difference_is_told_with_its_interval_and_as_a_tie_where_that_holds_0(differences, text):
    assert difference_text(differences) == text


def test_f_measure_refuses_a_type_that_cannot_hold_minus_1():
    with pytest.raises(ValueError, match=r"labels: got torch\.uint8; allowed: a type that can hold -1, such as int64"):
        open_set_f_measure(torch.tensor([0, 1]), torch.tensor([0, 255], dtype=torch.uint8))
