"""incremental_methods.py: an arm is a sum of terms, each worked out by hand here; the teacher stays as it is."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from course_utils.data import LabeledImages
from course_utils.heads import CosineClassifier, extended_linear
from course_utils.incremental_methods import ARMS, CONTROLS, Arm, BiasCorrection, PhaseObjective
from course_utils.losses import (
    distillation_loss,
    inter_class_separation_loss,
    less_forget_loss,
    score_distillation_loss,
)
from course_utils.networks import MLP
from course_utils.training import fit, to_float

OLD, NEW = 3, 2


pytestmark = pytest.mark.usefixtures("one_thread")


def some_data(n=60):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, 1, 5, 5), dtype=torch.uint8, generator=generator)
    return LabeledImages(images, torch.arange(n) % (OLD + NEW), tuple("abcde"))


DATA = some_data()
IMAGES, LABELS, INDICES = to_float(DATA.images), DATA.labels, torch.arange(60)


def models(head):
    """A teacher with the old classes, and a student with all, elsewhere in weight space."""
    torch.manual_seed(0)
    own_head = CosineClassifier(6, OLD, scale=5.0) if head == "cosine" else None
    teacher = MLP(OLD, in_features=25, hidden=9, feature_dim=6, head=own_head)
    student = copy.deepcopy(teacher)
    if head == "cosine":
        student.head.extend(NEW)
    else:
        student.head = extended_linear(student.head, NEW)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.3 * torch.randn(parameter.shape) * parameter.abs().mean()
    return teacher, student


def value_of(arm, correction=None):
    teacher, student = models(arm.head)
    return PhaseObjective(arm, teacher, OLD, NEW, correction)(student, IMAGES, LABELS, INDICES).item()


# ---- choices ---------------------------------------------------------------------------------------------------------


def test_the_named_arms_go_step_by_step():
    def changes(a, b):
        a, b = vars(ARMS[a]), vars(ARMS[b])
        return {name for name in a if a[name] != b[name]}

    assert changes("replay", "distillation (iCaRL)") == {"distill"}
    assert changes("distillation (iCaRL)", "WA") == {"correct", "share", "clip"}
    assert changes("distillation (iCaRL)", "BiC") == {"correct", "share"}
    assert changes("cosine", "cosine + score distillation") == {"distill"}
    assert changes("cosine", "cosine + frozen rows") == {"freeze_old_rows"}
    assert changes("cosine + frozen rows", "cosine + less-forget") == {"distill"}
    assert changes("cosine + less-forget", "LUCIR") == {"separate"}
    assert changes("LUCIR", "LUCIR + fine-tuning") == {"correct"}
    paper = ARMS["LUCIR"]
    assert (paper.less_forget, paper.margin, paper.k, paper.imprint) == (5, 0.5, 2, True)


def test_a_control_differs_from_its_neighbour_in_one_choice():
    arms = ARMS | CONTROLS
    assert len(arms) == len(ARMS) + len(CONTROLS) and len({repr(arm) for arm in arms.values()}) == len(arms)
    pairs = {
        ("replay", "replay, no ReLU"): {"last_relu"},
        ("distillation (iCaRL)", "distillation, no ReLU"): {"last_relu"},
        ("BiC", "BiC, no ReLU"): {"last_relu"},
        ("cosine", "cosine, ReLU"): {"last_relu"},
        ("LUCIR", "LUCIR, ReLU"): {"last_relu"},
        ("cosine", "cosine, not imprinted"): {"imprint"},
        ("LUCIR", "LUCIR, not imprinted"): {"imprint"},
        ("cosine", "cosine + distillation"): {"distill"},
        ("cosine + distillation", "cosine + BiC"): {"share", "correct"},
        ("BiC", "BiC, no correction"): {"correct"},
        ("WA", "WA, no clipping"): {"clip"},
        ("WA", "WA, no aligning"): {"correct"},
        ("WA, no aligning", "BiC, no correction"): {"clip"},
        ("cosine + score distillation", "scores, weight 1, frozen"): {"freeze_old_rows"},
        ("cosine + score distillation", "scores, lambda, free"): {"weight"},
        ("scores, lambda, free", "scores, lambda, frozen"): {"freeze_old_rows"},
        ("scores, lambda, free", "features, lambda, free"): {"distill", "weight"},
        ("features, weight 1, free", "features, weight 1, frozen"): {"freeze_old_rows"},
        ("features, lambda, free", "cosine + less-forget"): {"freeze_old_rows"},
        ("cosine + less-forget", "less-forget, printed lambda"): {"weight"},
        ("LUCIR", "LUCIR, printed lambda"): {"weight"},
    }
    for (a, b), names in pairs.items():
        assert {name for name, value in vars(arms[a]).items() if value != vars(arms[b])[name]} == names, (a, b)
    assert CONTROLS.keys() <= {name for pair in pairs for name in pair}
    no_relu = replace(arms["cosine, not imprinted"], head="linear", imprint=True)  # a linear head is never imprinted
    assert no_relu.family == "linear" and replace(no_relu, last_relu=False) == arms["replay, no ReLU"]


@pytest.mark.parametrize(
    ("arm", "family", "relu"),
    [
        (Arm("linear"), "linear", True),
        (Arm("linear", last_relu=True), "linear", True),
        (Arm("linear", last_relu=False), "linear, no ReLU", False),
        (Arm(), "cosine", False),
        (Arm(last_relu=False), "cosine", False),
        (Arm(last_relu=True), "cosine, ReLU", True),
    ],
)
def test_arms_of_one_family_share_their_base(arm, family, relu):
    assert (arm.family, arm.keeps_last_relu) == (family, relu)


@pytest.mark.parametrize(
    ("options", "weight"),
    [
        ({"distill": "features"}, 5 * math.sqrt(20 / 3)),
        ({"distill": "features", "less_forget": 2.0}, 2 * math.sqrt(20 / 3)),
        ({"distill": "features", "weight": "old/new"}, 5 * math.sqrt(20 / 3)),
        ({"distill": "features", "weight": "new/old"}, 5 * math.sqrt(3 / 20)),
        ({"distill": "features", "weight": "constant", "less_forget": 0.3}, 0.3),
        ({"distill": "scores", "less_forget": 0.3}, 1),
        ({"distill": "scores", "weight": "old/new"}, 5 * math.sqrt(20 / 3)),
        ({"distill": "scores", "weight": "new/old", "less_forget": 2.0}, 2 * math.sqrt(3 / 20)),
        ({"distill": "scores", "weight": "constant"}, 5),
    ],
)
def test_what_scores_or_features_weigh(options, weight):
    assert Arm(**options).distillation_weight(20, 3) == pytest.approx(weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "round"}, "head: got 'round'; allowed: linear, cosine"),
        ({"distill": "rows"}, "distill: got 'rows'; allowed: none, logits, scores, features"),
        ({"correct": "bic"}, "correct: got 'bic'; allowed: none, align, bias, fine-tune"),
        ({"head": "linear", "freeze_old_rows": True}, "freeze_old_rows: got True with a linear head"),
        ({"head": "linear", "separate": True}, "separate: got True with a linear head"),
        ({"head": "linear", "distill": "scores"}, "distill: got 'scores' with a linear head"),
        ({"clip": True}, "clip: got True with a cosine head; allowed: with a linear head"),
        ({"correct": "align"}, "correct: got 'align' with a cosine head; allowed: with a linear head"),
        ({"last_relu": "no"}, "last_relu: got 'no'; allowed: None, True, False"),
        ({"distill": "features", "weight": "old"}, "weight: got 'old'; allowed: None, old/new, new/old, constant"),
        ({"weight": "old/new"}, "weight: got 'old/new' with distill 'none'; allowed: with scores or features"),
        ({"distill": "logits", "weight": "constant"}, "weight: got 'constant' with distill 'logits'"),
        ({"less_forget": -1.0}, "less_forget: got -1.0; allowed: at least 0"),
        ({"less_forget": math.nan}, "less_forget: got nan"),
        ({"margin": math.nan}, "margin: got nan; allowed: a number"),
        ({"k": 0}, "k: got 0; allowed: at least 1"),
    ],
)
def test_choices_that_do_not_exist_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Arm(**options)


# ---- the loss of an arm ----------------------------------------------------------------------------------------------


def test_the_objective_is_the_sum_of_the_terms_of_the_arm():
    teacher, student = models("cosine")
    with torch.no_grad():
        features, old_features = student.features(IMAGES), teacher.features(IMAGES)
        cosines, old_cosines = student.head.cosines(features), teacher.head.cosines(old_features)
        cross_entropy = F.cross_entropy(student.head.scale * cosines, LABELS).item()
        logits = distillation_loss(student(IMAGES), teacher(IMAGES)).item()
        scores = score_distillation_loss(cosines, old_cosines).item()
        forget = 3.0 * math.sqrt(OLD / NEW) * less_forget_loss(features, old_features).item()
        separate = inter_class_separation_loss(cosines, LABELS, OLD, 0.7, 1).item()
    assert min(logits, scores, forget, separate) > 0.01
    arm = Arm(less_forget=3.0, margin=0.7, k=1)
    for options, want in [
        ({}, cross_entropy),
        ({"distill": "logits"}, cross_entropy + logits),
        ({"distill": "logits", "share": True}, 2 / 5 * cross_entropy + 3 / 5 * logits),
        ({"distill": "scores"}, cross_entropy + scores),
        ({"distill": "scores", "weight": "old/new"}, cross_entropy + 3 * math.sqrt(OLD / NEW) * scores),
        ({"distill": "features", "weight": "new/old"}, cross_entropy + NEW / OLD * forget),
        ({"distill": "features"}, cross_entropy + forget),
        ({"separate": True}, cross_entropy + separate),
        ({"distill": "features", "separate": True}, cross_entropy + forget + separate),
    ]:
        assert value_of(replace(arm, **options)) == pytest.approx(want, abs=1e-5), options


def test_clipping_sets_negative_weights_to_0_before_the_loss():
    teacher, student = models("linear")
    clipped = copy.deepcopy(student)
    with torch.no_grad():
        clipped.head.weight.copy_(student.head.weight.where(student.head.weight > 0, torch.zeros(())))
    bias, (plain, clip) = student.head.bias.clone(), (Arm("linear"), Arm("linear", clip=True))
    want = PhaseObjective(plain, teacher, OLD, NEW)(clipped, IMAGES, LABELS, INDICES)
    unclipped = PhaseObjective(plain, teacher, OLD, NEW)(student, IMAGES, LABELS, INDICES)
    got = PhaseObjective(clip, teacher, OLD, NEW)(student, IMAGES, LABELS, INDICES)
    assert got.item() == want.item() != unclipped.item()
    assert torch.equal(student.head.weight, clipped.head.weight) and torch.equal(student.head.bias, bias)


def test_a_linear_arm_distils_logits_that_bias_correction_has_corrected():
    teacher, student = models("linear")
    correction = BiasCorrection(2, 1, alpha=0.5, beta=-0.7)  # the newest class of the phase before
    with torch.no_grad():
        old = teacher(IMAGES)
        corrected = torch.cat([old[:, :2], 0.5 * old[:, 2:] - 0.7], 1)
        cross_entropy, logits = F.cross_entropy(student(IMAGES), LABELS), student(IMAGES)
    arm = Arm("linear", distill="logits")
    want = (cross_entropy + distillation_loss(logits, corrected)).item()
    assert value_of(arm, correction) == pytest.approx(want, abs=1e-5)
    assert abs(value_of(arm) - want) > 1e-3


@pytest.mark.parametrize("name", ARMS)
@pytest.mark.parametrize("cached", [False, True])
def test_the_teacher_is_a_frozen_copy(name, cached):
    teacher, student = models(ARMS[name].head)
    objective = PhaseObjective(ARMS[name], teacher, OLD, NEW, images=DATA if cached else None)
    before = [p.clone() for p in teacher.parameters()]
    fit(student, DATA, objective=objective, epochs=1, batch_size=16, augment=None, progress=False)
    for given, copied, was in zip(teacher.parameters(), objective.teacher.parameters(), before, strict=True):
        assert torch.equal(given, was) and torch.equal(copied, was)
        assert given.requires_grad and not copied.requires_grad and given.grad is copied.grad is None
    assert teacher.training and not any(module.training for module in objective.teacher.modules())


@pytest.mark.parametrize("name", [name for name, arm in ARMS.items() if arm.distill != "none"])
@pytest.mark.parametrize("sampler_seed", [0, 1])
def test_a_cached_teacher_trains_the_same_weights_and_is_not_asked_again(name, sampler_seed):
    results = []
    for cached in (False, True):
        teacher, student = models(ARMS[name].head)
        objective = PhaseObjective(ARMS[name], teacher, OLD, NEW, images=DATA if cached else None)
        if cached:
            objective.teacher = None
        history = fit(
            student,
            DATA,
            objective=objective,
            epochs=3,
            batch_size=16,
            lr=0.05,
            augment=None,
            seed=sampler_seed,
            progress=False,
        )
        results.append((student, history))
    (plain, losses), (fast, again) = results
    for a, b in zip(plain.parameters(), fast.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert [row["loss"] for row in losses] == pytest.approx([row["loss"] for row in again], abs=1e-5)
    untrained = models(ARMS[name].head)[1]
    assert not torch.allclose(plain.head.weight, untrained.head.weight, atol=1e-3), "there was training"


def test_objectives_that_cannot_be_are_refused():
    teacher, student = models("cosine")
    with pytest.raises(ValueError, match="k: got 3; allowed: 1 to 2, the number of new classes"):
        PhaseObjective(Arm(separate=True, k=3), teacher, OLD, NEW)
    PhaseObjective(Arm(k=3), teacher, OLD, NEW)  # without separation k does not matter
    with pytest.raises(ValueError, match="num_old, num_new: got 3, 0"):
        PhaseObjective(Arm(), teacher, OLD, 0)
    with pytest.raises(ValueError, match="model: got 3 classes; allowed: 3 old and 2 new"):
        PhaseObjective(Arm(), teacher, OLD, NEW)(teacher, IMAGES, LABELS, INDICES)
    wider = MLP(OLD, in_features=25, hidden=9, feature_dim=8, head=CosineClassifier(8, OLD))
    with pytest.raises(ValueError, match=r"features: got shape \(60, 6\) beside old_features of \(60, 8\)"):
        PhaseObjective(Arm(distill="features"), wider, OLD, NEW)(student, IMAGES, LABELS, INDICES)


# ---- BiC -------------------------------------------------------------------------------------------------------------


def biased(alpha=0.6, beta=-1.5, images=400):
    """Logits of 3 old and 2 new classes that are right, until the new ones are made larger by the inverse of (a, b)."""
    generator = torch.Generator().manual_seed(0)
    right = 2 * torch.randn(images, 5, generator=generator)
    labels = torch.multinomial(right.softmax(1), 1, generator=generator)[:, 0]
    wrong = right.clone()
    wrong[:, 3:] = (right[:, 3:] - beta) / alpha
    return wrong, labels


def test_bias_correction_with_alpha_1_and_beta_0_is_the_identity():
    logits = biased()[0]
    corrected = BiasCorrection(3, 2)(logits)
    assert torch.equal(corrected, logits) and corrected is not logits


def test_bias_correction_changes_the_newest_columns_only():
    logits = biased()[0]
    before, corrected = logits.clone(), BiasCorrection(3, 2, alpha=0.5, beta=-2.0)(logits)
    assert torch.equal(corrected[:, :3], logits[:, :3]) and torch.equal(logits, before)
    assert torch.allclose(corrected[:, 3:], 0.5 * logits[:, 3:] - 2)


def test_bias_correction_finds_the_two_numbers_and_mends_the_predictions():
    logits, labels = biased(beta=-0.4, images=20_000)
    correction = BiasCorrection(3, 2)
    assert correction.fit(logits, labels) is correction
    assert correction.alpha == pytest.approx(0.6, abs=0.06)
    assert -0.4 < correction.beta < -0.1  # 0.05 beta^2 pulls it towards 0
    assert isinstance(correction.alpha, float) and isinstance(correction.beta, float)

    def right(z):
        return (z.argmax(1) == labels).float().mean()

    assert right(correction(logits)) > right(logits) + 0.03


def test_bias_correction_ends_where_a_slow_search_finds_nothing_better():
    logits, labels = biased(images=300)
    correction = BiasCorrection(3, 2).fit(logits, labels)

    def loss(alpha, beta):
        z = torch.cat([logits[:, :3], alpha * logits[:, 3:] + beta], 1).double()
        return F.cross_entropy(z, labels).item() + 0.05 * beta**2

    best = loss(correction.alpha, correction.beta)
    for step in (0.3, 0.03, 0.003):
        for da, db in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)):
            assert loss(correction.alpha + da * step, correction.beta + db * step) > best
    assert best < loss(1, 0) - 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BiasCorrection(0, 2), "num_old, num_new: got 0, 2; allowed: at least 1"),
        (lambda: BiasCorrection(3, 0), "num_old, num_new: got 3, 0"),
        (lambda: BiasCorrection(3, 2)(torch.ones(4, 6)), r"logits: got shape \(4, 6\); allowed: \(B, 5\)"),
        (lambda: BiasCorrection(3, 2)(torch.ones(5)), r"logits: got shape \(5,\)"),
        (lambda: BiasCorrection(3, 2).fit(torch.ones(1, 5), torch.tensor([5])), "labels: got 5 to 5; allowed: 0 to 4"),
        (lambda: BiasCorrection(3, 2).fit(torch.ones(3, 5), torch.tensor([0, 4])), r"logits: got shape \(3, 5\), 2"),
        (lambda: BiasCorrection(3, 2).fit(torch.ones(0, 5), torch.zeros(0).long()), r"logits: got shape \(0, 5\)"),
    ],
)
def test_wrong_arguments_of_bias_correction_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
