"""incremental.py: exemplars, phases and what is measured after each, on six small classes that come two by two."""

import copy
import functools
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from course_utils import incremental
from course_utils.data import LabeledImages
from course_utils.heads import CosineClassifier
from course_utils.incremental import herding, nearest_mean, new_class_margins, run_incremental, train_base
from course_utils.incremental_methods import ARMS, CONTROLS, Arm, BiasCorrection, PhaseObjective
from course_utils.metrics import average_incremental_accuracy, balanced_accuracy, error_blocks, forgetting
from course_utils.networks import MLP, ResNet32, SmallCNN
from course_utils.training import extract_features, predict

PHASES = ["ab", "cd", "ef"]
NUMBERS = {"epochs": 2, "batch_size": 16, "exemplars": 5, "augment": None}


pytestmark = pytest.mark.usefixtures("one_thread")


def some_data(each, seed):
    """Six classes: a faint pattern of its own under noise."""
    patterns = torch.randint(90, (6, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    noise = torch.randint(166, (6 * each, 1, 8, 8), generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(6 * each) % 6
    return LabeledImages((patterns[labels] + noise).to(torch.uint8), labels, tuple("abcdef"))


TRAIN, TEST = some_data(30, 1), some_data(12, 2)
SMALL = functools.partial(MLP, in_features=64, hidden=16, feature_dim=6)


@functools.cache
def _base(head, first, network, last_relu):
    options = {"network": network, "epochs": 3, "batch_size": 16, "augment": None, "scale": 5.0}
    return train_base(head, TRAIN.only(first), last_relu=last_relu, **options)


def base(head="cosine", first="ab", network=SMALL, last_relu=None):
    return copy.deepcopy(_base(head, first, network, last_relu))


def run(arm=ARMS["LUCIR"], phases=PHASES, train=TRAIN, test=TEST, **options):
    arm = (ARMS | CONTROLS)[arm] if isinstance(arm, str) else arm
    options = NUMBERS | options
    if "base" not in options:
        options["base"] = base(arm.head, "".join(phases[0]), last_relu=arm.last_relu)
    return run_incremental(arm, train, test, phases, **options)


def models_of(arm, **options):
    """The model after each phase."""
    models = []
    result = run(arm, watch=lambda phase, model: models.append(copy.deepcopy(model)), **options)
    return result, models


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def spy_on(monkeypatch, name):
    """Every call of a function of incremental.py: its arguments, and what it gave back."""
    calls, original = [], getattr(incremental, name)

    def wrapped(*args, **options):
        calls.append((args, options, original(*args, **options)))
        return calls[-1][2]

    monkeypatch.setattr(incremental, name, wrapped)
    return calls


# ---- herding ---------------------------------------------------------------------------------------------------------


def some_features(n=60, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator) + torch.randn(dim, generator=generator)


def slow_herding(features, k):
    """iCaRL, algorithm 4: the mean of the chosen rows, anew for every candidate, closest to the mean of all."""
    rows = F.normalize(features.double(), dim=1)
    goal, chosen = rows.mean(0), []
    for _ in range(k):
        distances = [
            math.inf if i in chosen else (goal - rows[[*chosen, i]].mean(0)).norm().item() for i in range(len(rows))
        ]
        chosen.append(min(range(len(rows)), key=distances.__getitem__))
    return chosen


@pytest.mark.parametrize(("n", "dim", "k", "seed"), [(60, 8, 20, 0), (40, 3, 40, 1), (25, 64, 7, 2), (1, 4, 1, 3)])
def test_herding_agrees_with_the_running_mean_of_icarl(n, dim, k, seed):
    features = some_features(n, dim, seed)
    before, chosen = features.clone(), herding(features, k)
    assert chosen.tolist() == slow_herding(features, k)
    assert chosen.dtype == torch.int64 and torch.equal(features, before)


def test_the_first_of_many_choices_are_the_choices_for_fewer_and_none_comes_twice():
    features = some_features()
    chosen = herding(features, 60).tolist()
    assert sorted(chosen) == list(range(60))
    for k in (1, 2, 7, 20, 59):
        assert herding(features, k).tolist() == chosen[:k]


def test_herding_comes_closer_to_the_mean_than_chance_and_than_the_nearest_rows():
    features = some_features(200, 16)
    rows = F.normalize(features, dim=1)
    goal = rows.mean(0)

    def distance(chosen):
        return (rows[chosen].mean(0) - goal).norm().item()

    nearest = (rows - goal).norm(dim=1).topk(20, largest=False).indices
    random = [distance(torch.randperm(200, generator=torch.Generator().manual_seed(s))[:20]) for s in range(20)]
    assert distance(herding(features, 20)) < 0.6 * min(*random, distance(nearest))


def test_herding_sees_directions_only_in_every_precision():
    features = some_features()
    chosen = herding(features, 20)
    assert torch.equal(herding(features * torch.linspace(0.01, 9, 60)[:, None], 20), chosen)
    assert torch.equal(herding(features.double(), 20), chosen)
    assert not torch.equal(herding(features + 1, 20), chosen)


@pytest.mark.parametrize(
    ("features", "k", "message"),
    [
        (some_features(), 0, r"k: got 0 for features of shape \(60, 8\); allowed: 1 to N"),
        (some_features(), 61, "k: got 61"),
        (torch.ones(5), 2, r"k: got 2 for features of shape \(5,\)"),
        (torch.full((5, 2), math.nan), 2, "features: got NaN or infinite numbers"),
        (torch.full((5, 2), math.inf), 2, "features: got NaN or infinite numbers"),
    ],
)
def test_what_cannot_be_herded_is_refused(features, k, message):
    with pytest.raises(ValueError, match=message):
        herding(features, k)


# ---- reading out -----------------------------------------------------------------------------------------------------


def test_nearest_mean_agrees_with_a_slow_reference():
    torch.manual_seed(0)
    features, stored = torch.randn(30, 5), torch.randn(50, 5) * torch.linspace(0.1, 20, 50)[:, None]
    labels = torch.randint(4, (50,), generator=torch.Generator().manual_seed(2))
    means = [torch.stack([r / r.norm() for r in stored[labels == j]]).mean(0) for j in range(4)]
    want = [max(range(4), key=lambda j: float(f @ means[j] / means[j].norm())) for f in features]
    assert nearest_mean(features, stored, labels, 4).tolist() == want and len(set(want)) == 4
    assert nearest_mean(features.double(), stored.double(), labels, 4).tolist() == want
    assert nearest_mean(3 * features, stored, labels, 4).tolist() == want


@pytest.mark.parametrize(
    ("features", "stored", "labels", "message"),
    [
        (torch.ones(2, 3), torch.ones(3, 3), [0, 0, 2], "labels: got no image of class 1; allowed: at least one"),
        (torch.ones(2, 3), torch.ones(3, 3), [0, 1, 3], "labels: got 0 to 3; allowed: 0 to 2"),
        (torch.ones(2, 3), torch.ones(3, 3), [0, 1, -1], "labels: got -1 to 1; allowed: 0 to 2"),
        (torch.ones(2, 4), torch.ones(3, 3), [0, 1, 2], r"features: got shape \(2, 4\) beside stored ones of \(3, 3\)"),
        (
            torch.ones(2, 3),
            torch.ones(4, 3),
            [0, 1, 2],
            r"labels: got torch.int64 of shape \(3,\); allowed: int64 of shape \(4,\)",
        ),
    ],
)
def test_means_that_cannot_be_are_refused(features, stored, labels, message):
    with pytest.raises(ValueError, match=message):
        nearest_mean(features, stored, torch.tensor(labels), 3)


def test_margins_against_new_classes_agree_with_a_slow_reference():
    cosines = some_features(40, 7).tanh()
    labels = torch.arange(40) % 7
    want = [row[y] - max(row[4:]) for row, y in zip(cosines.tolist(), labels.tolist(), strict=True) if y < 4]
    margins = new_class_margins(cosines, labels, 4)
    assert margins.tolist() == pytest.approx(want) and (margins < 0).any() and (margins > 0).any()
    for num_old in (0, 7):
        with pytest.raises(ValueError, match=f"num_old: got {num_old}; allowed: 1 to 6"):
            new_class_margins(cosines, labels, num_old)
    with pytest.raises(ValueError, match="labels: got 1 to 7; allowed: 0 to 6"):
        new_class_margins(cosines, labels + 1, 4)


# ---- the base --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "has_one"),
    [
        (SMALL, True),
        (lambda n: SmallCNN(n, width=4), True),
        (lambda n: SmallCNN(n, width=4, feature_dim=5), False),
        (lambda n: ResNet32(n, in_channels=1), False),
    ],
    ids=["MLP", "SmallCNN", "SmallCNN with a linear layer", "ResNet32"],
)
def test_features_end_in_a_relu_as_asked_for_and_by_default_under_a_linear_head(network, has_one):
    few = TRAIN.only("ab").subset(torch.arange(16))
    torch.manual_seed(0)
    whole = network(2).backbone
    for head, last_relu in itertools.product(("linear", "cosine"), (None, True, False)):
        model = train_base(head, few, network=network, epochs=1, augment=None, last_relu=last_relu)
        gone = has_one and not (head == "linear" if last_relu is None else last_relu)
        kinds = [(type(a), type(b)) for a, b in zip(whole, model.backbone, strict=True) if type(a) is not type(b)]
        assert kinds == [(nn.ReLU, nn.Identity)] * gone
        assert isinstance(model.head, CosineClassifier if head == "cosine" else nn.Linear)
        if has_one:
            assert (extract_features(model, few).min() < 0).item() is gone
    assert model.head.num_classes == model.num_classes == 2 and model.head.in_features == model.feature_dim


def test_the_base_depends_on_its_seed_alone_and_torchs_generator_stays():
    models = []
    for disturb in range(3):
        torch.manual_seed(disturb)
        state = torch.get_rng_state()
        models.append(train_base("cosine", TRAIN.only("ab"), network=SMALL, epochs=1, seed=min(disturb, 1)))
        assert torch.equal(torch.get_rng_state(), state)
    assert not same(models[0], models[1]) and same(models[1], models[2])
    with pytest.raises(ValueError, match="head: got 'round'; allowed: linear, cosine"):
        train_base("round", TRAIN)


def test_no_gpu_is_reseeded(monkeypatch):
    """torch.manual_seed() reseeds all of them, for good."""
    start = base()
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("torch.manual_seed() was called"))
    train_base("cosine", TRAIN.only("ab"), network=SMALL, epochs=1)
    run(Arm(imprint=False), base=start, epochs=1)


def test_a_base_that_is_given_and_one_that_is_trained_inside_give_the_same_result():
    big = [LabeledImages(d.images.repeat(1, 1, 4, 4)[:, :, 2:30, 2:30], d.labels, d.class_names) for d in (TRAIN, TEST)]
    for arm in (ARMS["replay"], Arm(imprint=False), Arm("linear", last_relu=False)):
        options = {"epochs": 1, "batch_size": 64, "augment": None, "seed": 3}
        given = train_base(arm.head, big[0].only("ab"), last_relu=arm.last_relu, **options)
        before = copy.deepcopy(given)
        torch.manual_seed(77)
        outside = run_incremental(arm, *big, PHASES, base=given, exemplars=5, **options)
        torch.rand(5)
        state = torch.get_rng_state()
        inside = run_incremental(arm, *big, PHASES, exemplars=5, **options)
        assert same(outside.model, inside.model) and outside.phases == inside.phases
        assert same(given, before) and torch.equal(torch.get_rng_state(), state)
        other = run_incremental(arm, *big, PHASES, base=given, exemplars=5, **options | {"seed": 4})
        assert not same(other.model, inside.model)


def test_new_rows_of_two_phases_do_not_start_alike(monkeypatch):
    """Both phases draw with the same seed."""
    starts = []
    monkeypatch.setattr(incremental, "fit", lambda model, *args, **options: starts.append(model.head.weight[-2:]))
    run(Arm(imprint=False))
    assert len(starts) == 2 and not torch.equal(*starts)


# ---- phases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exemplars", [1, 5, None])
def test_a_phase_trains_on_all_new_images_and_on_the_exemplars_of_old_classes(monkeypatch, exemplars):
    fits = spy_on(monkeypatch, "fit")
    run(exemplars=exemplars)
    kept = exemplars or 30
    assert [args[1].counts.tolist() for args, *_ in fits] == [[kept] * 2 + [30] * 2 + [0] * 2, [kept] * 4 + [30] * 2]


def test_exemplars_are_herded_once_with_the_features_of_their_own_phase(monkeypatch):
    fits = spy_on(monkeypatch, "fit")
    _, models = models_of("cosine")
    for phase in (1, 2):
        data = fits[phase - 1][0][1]
        for j in range(2 * phase):
            mine = TRAIN.images[TRAIN.labels == j]
            features = extract_features(models[j // 2], LabeledImages(mine, torch.zeros(30).long(), ("x",)))
            assert torch.equal(data.images[data.labels == j], mine[herding(features, 5)])


def test_bic_holds_out_a_tenth_of_the_exemplars_and_as_many_new_images_and_never_trains_on_them(monkeypatch):
    fits, corrected = spy_on(monkeypatch, "fit"), []
    monkeypatch.setattr(
        BiasCorrection,
        "fit",
        lambda self, logits, labels, fit=BiasCorrection.fit: corrected.append(labels) or fit(self, logits, labels),
    )
    run("BiC", exemplars=20)
    assert [args[1].counts.tolist() for args, *_ in fits] == [[18, 18, 28, 28, 0, 0], [18] * 4 + [28] * 2]
    assert [labels.bincount().tolist() for labels in corrected] == [[2] * 4, [2] * 6]


def uneven(counts):
    """Eight classes with so many images each, and a base for the first four."""
    labels = torch.arange(8).repeat_interleave(torch.tensor(counts))
    images = torch.randint(256, (len(labels), 1, 8, 8), generator=torch.Generator().manual_seed(0))
    data = LabeledImages(images.to(torch.uint8), labels, tuple("abcdefgh"))
    start = train_base("linear", data.only("abcd"), network=SMALL, epochs=1, augment=None)
    return {"phases": ["abcd", "efgh"], "train": data, "test": data, "base": start, "epochs": 1}


LONG_TAIL = 300, 200, 100, 50, 25, 12, 8, 5


@pytest.mark.parametrize(
    ("counts", "exemplars", "trained", "held_out"),
    [
        (LONG_TAIL, None, [299, 199, 99, 49, 24, 11, 7, 4], [1] * 8),
        (LONG_TAIL[::-1], None, [4, 7, 11, 24, 49, 99, 199, 299], [1] * 8),
        ((90, 80, 70, 60, 50, 40, 30, 25), None, [88, 78, 68, 58, 48, 38, 28, 23], [2] * 8),
        ((2,) * 8, None, [1] * 8, [1] * 8),
        ((30, 3, 30, 30, 30, 30, 2, 30), 20, [19, 2, 19, 19, 29, 29, 1, 29], [1] * 8),
        ((60,) * 8, 40, [36] * 4 + [56] * 4, [4] * 8),
    ],
)
def test_bic_trains_on_every_class_and_holds_out_equally_many_of_each(
    monkeypatch, counts, exemplars, trained, held_out
):
    options = uneven(counts)
    fits, corrected = spy_on(monkeypatch, "fit"), []
    monkeypatch.setattr(BiasCorrection, "fit", lambda self, logits, labels: corrected.append(labels) or self)
    run("BiC", exemplars=exemplars, **options)
    assert fits[0][0][1].counts.tolist() == trained
    assert corrected[0].bincount().tolist() == held_out


def test_bic_refuses_a_class_with_one_image(monkeypatch):
    options = uneven((9, 9, 9, 9, 9, 9, 1, 9))
    with pytest.raises(
        ValueError, match="train: got one image of class 'g'; allowed: at least 2 of each class for BiC"
    ):
        run("BiC", exemplars=None, **options)
    fits = spy_on(monkeypatch, "fit")
    run("replay", exemplars=None, **options)
    assert fits[0][0][1].counts[6] == 1


# ---- a memory that is limited in total -------------------------------------------------------------------------------


def test_a_total_memory_keeps_the_first_exemplars_of_each_class(monkeypatch):
    """31 images for 2, 4, then 6 classes: 15, 7 and 5 of each; class d has 6 images, so its list is never cut to 7."""
    sixth_d = (TRAIN.labels == 3).nonzero()[5, 0]
    train = only_some((TRAIN.labels != 3) | (torch.arange(len(TRAIN)) <= sixth_d))
    stored = []
    monkeypatch.setattr(
        incremental._Learner,
        "choose_exemplars",
        lambda self, *args, choose=incremental._Learner.choose_exemplars: (
            choose(self, *args) or stored.append(list(self.memory))
        ),
    )
    fits = spy_on(monkeypatch, "fit")
    _, models = models_of("cosine", train=train, exemplars=..., memory=31)
    assert [[len(mine) for mine in memory] for memory in stored] == [[15] * 2, [7] * 3 + [6], [5] * 6]
    assert [args[1].counts.tolist() for args, *_ in fits] == [[15] * 2 + [30, 6, 0, 0], [7] * 3 + [6] + [30] * 2]
    for phase, memory in enumerate(stored):
        assert sum(map(len, memory)) <= 31
        for j, places in enumerate(memory):
            mine = (train.labels == j).nonzero()[:, 0]
            features = extract_features(models[j // 2], train.subset(mine))
            quota = min(len(mine), 31 // (2 * phase + 2))
            assert places.tolist() == [mine[i].item() for i in slow_herding(features, quota)]


def test_a_total_memory_is_what_nme_and_fine_tuning_read(monkeypatch):
    fits = spy_on(monkeypatch, "fit")
    means = spy_on(monkeypatch, "nearest_mean")
    run("LUCIR + fine-tuning", exemplars=..., memory=31)
    assert [args[1].counts.tolist() for args, *_ in fits[1::2]] == [[7] * 4 + [0] * 2, [5] * 6]
    assert [args[2].bincount().tolist() for args, *_ in means] == [[15] * 2, [7] * 4, [5] * 6]


def test_a_memory_without_a_remainder_in_the_end_is_not_the_same_as_exemplars():
    """Six classes of 5 in the end, but 15 of each of the two classes at first."""
    many, few = run(exemplars=..., memory=30), run(exemplars=5)
    assert not same(many.model, few.model)
    assert run(exemplars=..., memory=10**6).phases == run(exemplars=..., memory=180).phases


def test_twenty_exemplars_are_the_default(monkeypatch):
    fits = spy_on(monkeypatch, "fit")
    run(exemplars=...)
    assert [args[1].counts.tolist() for args, *_ in fits] == [[20, 20, 30, 30, 0, 0], [20] * 4 + [30] * 2]


def test_what_is_measured_agrees_with_slow_references():
    result, models = models_of("LUCIR", oracle=True, epochs=3)
    table = torch.full((3, 3), math.nan)
    for phase, (row, model) in enumerate(zip(result.phases, models, strict=True)):
        seen, old = 2 * phase + 2, 2 * phase
        train, test = TRAIN.only("abcdef"[:seen]), TEST.only("abcdef"[:seen])
        predictions = predict(model, test).argmax(1)
        assert torch.equal(result.predictions[phase], predictions)
        assert (row["phase"], row["classes"]) == (phase, seen)
        assert row["accuracy"] == pytest.approx(balanced_accuracy(predictions, test.labels, seen))
        features, stored = extract_features(model, test), extract_features(model, train)
        means = nearest_mean(features, stored, train.labels, seen)
        assert row["accuracy_ncm"] == pytest.approx(balanced_accuracy(means, test.labels, seen))
        for q in range(phase + 1):
            mine = test.labels // 2 == q
            table[phase, q] = (predictions[mine] == test.labels[mine]).float().mean()
        if not phase:
            assert set(row) == {"phase", "classes", "accuracy", "accuracy_nme", "accuracy_ncm"}
            continue
        assert {k: row[k] for k in error_blocks(predictions, test.labels, old)} == error_blocks(
            predictions, test.labels, old
        )
        before = extract_features(models[phase - 1], test)[test.labels < old]
        drift = 1 - F.cosine_similarity(features[test.labels < old], before).mean().item()
        assert row["drift"] == pytest.approx(drift, abs=1e-6) and drift > 1e-4
        norms = [w.norm().item() for w in model.head.weight]
        ratio = sum(norms[old:]) / 2 / (sum(norms[:old]) / old)
        assert row["norm_ratio"] == pytest.approx(ratio, rel=1e-5)
        assert row["row_angle"] < 1e-4 and "bias_gap" not in row, "old rows are frozen"
    assert torch.equal(result.by_phase.isnan(), table.isnan())
    assert torch.allclose(result.by_phase, table, equal_nan=True) and math.isfinite(forgetting(result.by_phase))
    assert same(result.model, models[-1]) and result.class_names == list("abcdef")
    accuracies = [row["accuracy"] for row in result.phases]
    assert 0.3 < average_incremental_accuracy(accuracies) < 1


def test_a_linear_head_reports_the_turn_of_its_rows_and_the_gap_of_its_biases():
    result, models = models_of("replay", epochs=3)
    for phase in (1, 2):
        row, now, then = result.phases[phase], models[phase].head, models[phase - 1].head
        pairs = zip(now.weight.detach(), then.weight.detach(), strict=False)
        cosines = [float(a @ b / a.norm() / b.norm()) for a, b in pairs]
        turn = sum(math.degrees(math.acos(min(1, c))) for c in cosines) / len(cosines)
        assert row["row_angle"] == pytest.approx(turn, rel=1e-2) and turn > 0.5
        gap = now.bias[2 * phase :].mean() - now.bias[: 2 * phase].mean()
        assert row["bias_gap"] == pytest.approx(gap.item(), abs=1e-6)


def test_nme_reads_the_exemplars_and_not_all_images():
    row = run(oracle=True, exemplars=1).phases[-1]
    everything = run(oracle=True, exemplars=None).phases[-1]
    assert everything["accuracy_nme"] == everything["accuracy_ncm"]
    assert row["accuracy_nme"] != row["accuracy_ncm"]


@pytest.mark.parametrize("name", ["cosine + frozen rows", "LUCIR"])
def test_frozen_rows_stay_bit_for_bit_and_the_others_learn(name):
    _, models = models_of(name)
    for phase in (1, 2):
        now, then = models[phase].head, models[phase - 1].head
        assert torch.equal(now.weight[: 2 * phase], then.weight)
        assert now.scale != then.scale and not same(models[phase].backbone, models[phase - 1].backbone)
    _, free = models_of("cosine")
    assert not torch.equal(free[1].head.weight[:2], free[0].head.weight)


def test_imprinted_rows_start_at_the_mean_direction_of_their_class(monkeypatch):
    starts = []
    monkeypatch.setattr(incremental, "fit", lambda model, *args, **options: starts.append(copy.deepcopy(model)))
    run("cosine")
    for phase, model in enumerate(starts, start=1):
        new = TRAIN.only("abcdef"[2 * phase : 2 * phase + 2])
        directions = F.normalize(extract_features(model, new), dim=1)
        for j in range(2):
            mean = directions[new.labels == j].mean(0)
            assert F.cosine_similarity(model.head.weight[2 * phase + j], mean, dim=0) > 0.999999


def test_the_grown_head_gives_the_old_logits_until_it_is_trained(monkeypatch):
    starts = []
    monkeypatch.setattr(incremental, "fit", lambda model, *args, **options: starts.append(predict(model, TEST)))
    for head in ("cosine", "linear"):
        starts.clear()
        run(Arm(head))
        want = predict(base(head), TEST)
        assert starts[1].shape == (len(TEST), 6)
        if head == "cosine":
            assert torch.equal(starts[0][:, :2], want) and torch.equal(starts[1][:, :4], starts[0])
        assert torch.allclose(starts[0][:, :2], want, atol=1e-6)


def test_wa_leaves_the_groups_with_one_mean_norm():
    aligned, plain = run("WA"), run("distillation (iCaRL)")
    assert [row["norm_ratio"] for row in aligned.phases[1:]] == pytest.approx([1, 1], abs=1e-5)
    assert all(abs(row["norm_ratio"] - 1) > 0.01 for row in plain.phases[1:])
    assert aligned.model.head.weight.min() == 0 > plain.model.head.weight.min()


@pytest.mark.parametrize("arm", ["BiC", "cosine + BiC"])
def test_bic_corrects_the_newest_logits_in_its_predictions_and_for_the_next_teacher(arm, monkeypatch):
    corrections = spy_on(monkeypatch, "BiasCorrection")
    objectives = spy_on(monkeypatch, "PhaseObjective")
    result, models = models_of(arm, exemplars=20)
    first, second = (correction for *_, correction in corrections)
    assert (first.newest, second.newest) == (slice(2, 4), slice(4, 6))
    logits = predict(models[2], TEST)
    want = torch.cat([logits[:, :4], second.alpha * logits[:, 4:] + second.beta], 1).argmax(1)
    assert torch.equal(result.predictions[2], want) and not torch.equal(want, logits.argmax(1))
    assert [objective.correction for *_, objective in objectives] == [None, first]


@pytest.mark.parametrize("head", ["cosine", "linear"])
def test_fine_tuning_changes_the_head_only(head):
    """Not the backbone, nor the statistics of its batch normalization, nor the scale."""
    network = functools.partial(SmallCNN, width=4)
    options = {"phases": ["ab", "cd"], "base": base(head, "ab", network), "seed": 1}
    frozen = head == "cosine"
    plain = run(Arm(head, freeze_old_rows=frozen), **options).model
    tuned = run(Arm(head, freeze_old_rows=frozen, correct="fine-tune"), **options).model
    assert any("running_mean" in name for name in plain.backbone.state_dict()) and same(plain.backbone, tuned.backbone)
    if head == "cosine":
        assert torch.equal(plain.head.scale, tuned.head.scale)
    else:
        assert not torch.equal(plain.head.bias, tuned.head.bias)
    for old_and_new in (slice(0, 2), slice(2, 4)):
        assert not torch.allclose(plain.head.weight[old_and_new], tuned.head.weight[old_and_new], atol=1e-5)
    assert [p.requires_grad for p in plain.parameters()] == [p.requires_grad for p in tuned.parameters()]


def test_fine_tuning_sees_as_many_images_of_each_class(monkeypatch):
    fits = spy_on(monkeypatch, "fit")
    run("LUCIR + fine-tuning", lr=0.04)
    assert [args[1].counts.tolist() for args, *_ in fits[1::2]] == [[5] * 4 + [0] * 2, [5] * 6]
    assert [options["lr"] for _, options, _ in fits] == pytest.approx([0.04, 0.004] * 2)


@pytest.mark.parametrize("name", ["distillation (iCaRL)", "BiC", "cosine + score distillation", "LUCIR"])
def test_a_cached_teacher_gives_the_same_phases_where_nothing_is_augmented(name, monkeypatch):
    objectives = spy_on(monkeypatch, "PhaseObjective")
    cached = run(name, exemplars=10)
    assert all(objective.cached is not None for *_, objective in objectives)

    def without_images(arm, teacher, num_old, num_new, correction=None, images=None):
        return PhaseObjective(arm, teacher, num_old, num_new, correction)

    monkeypatch.setattr(incremental, "PhaseObjective", without_images)
    plain = run(name, exemplars=10)
    for a, b in zip(cached.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    for a, b in zip(cached.phases, plain.phases, strict=True):
        assert a == pytest.approx(b, abs=1e-3)


def test_nothing_is_cached_where_images_are_augmented(monkeypatch):
    objectives, seen = spy_on(monkeypatch, "PhaseObjective"), []
    augmented = run(augment=lambda images, generator: seen.append(1) or images.flip(3))
    assert [objective.cached for *_, objective in objectives] == [None, None] and seen
    assert not same(augmented.model, run().model)


def test_a_scrambled_order_of_classes_is_the_natural_one_under_other_names():
    """Labels become places in the order of arrival, one to one."""
    scrambled = ["eb", "fa", "dc"]
    place = {name: label for label, name in enumerate("ebfadc")}
    renamed = []
    for data in (TRAIN, TEST):
        labels = torch.tensor([place[data.class_names[y]] for y in data.labels.tolist()])
        assert (labels.bincount() == data.counts).all() and not torch.equal(labels, data.labels)
        renamed.append(LabeledImages(data.images, labels, tuple("ebfadc")))
    start = train_base("cosine", TRAIN.only("eb"), network=SMALL, epochs=2, augment=None)
    first = run(phases=scrambled, base=start)
    second = run(phases=scrambled, base=start, train=renamed[0], test=renamed[1])
    assert first.class_names == list("ebfadc")
    assert same(first.model, second.model) and first.phases == second.phases
    assert [list(p) for p in first.predictions] == [list(p) for p in second.predictions]
    right = first.predictions[-1] == TEST.only("ebfadc").labels
    assert right.float().mean() == pytest.approx(first.phases[-1]["accuracy"], abs=1e-6)
    assert right.float().mean() > 0.5


def test_phases_may_be_of_different_sizes():
    result = run(phases=["abc", "d", "ef"], arm=Arm(distill="features", separate=True, k=1, freeze_old_rows=True))
    assert [row["classes"] for row in result.phases] == [3, 4, 6] and result.model.num_classes == 6
    assert result.by_phase[2].isfinite().all() and [len(p) for p in result.predictions] == [36, 48, 72]


# ---- every choice does something -------------------------------------------------------------------------------------

LUCIR, DISTILLATION = ARMS["LUCIR"], ARMS["distillation (iCaRL)"]


@pytest.mark.parametrize(
    ("arm", "changes"),
    [
        (Arm(), {"head": "linear"}),
        (Arm(), {"distill": "logits"}),
        (Arm(), {"distill": "scores"}),
        (Arm(), {"distill": "features"}),
        (Arm(), {"last_relu": True}),
        (DISTILLATION, {"last_relu": False}),
        (Arm(distill="scores"), {"weight": "old/new"}),
        (LUCIR, {"weight": "new/old"}),
        (LUCIR, {"weight": "constant"}),
        (Arm(distill="logits"), {"correct": "bias"}),
        (DISTILLATION, {"share": True}),
        (Arm(), {"imprint": False}),
        (Arm(), {"freeze_old_rows": True}),
        (Arm(), {"separate": True}),
        (DISTILLATION, {"correct": "align"}),
        (DISTILLATION, {"clip": True}),
        (DISTILLATION, {"correct": "bias"}),
        (DISTILLATION, {"correct": "fine-tune"}),
        (LUCIR, {"correct": "fine-tune"}),
        (LUCIR, {"less_forget": 0.5}),
        (LUCIR, {"margin": 0.1}),
        (LUCIR, {"k": 1}),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_every_choice_of_an_arm_changes_the_logits(arm, changes):
    other = Arm(**{**vars(arm), **changes})
    options = {"exemplars": 10, "epochs": 1}
    logits, changed = (predict(run(a, **options).model, TEST) for a in (arm, other))
    assert (logits - changed).abs().max() > 1e-3


@pytest.mark.parametrize(
    "changes", [{"exemplars": 9}, {"epochs": 3}, {"batch_size": 7}, {"lr": 0.02}, {"seed": 5}], ids=str
)
def test_every_number_changes_the_logits(changes):
    assert (predict(run().model, TEST) - predict(run(**changes).model, TEST)).abs().max() > 1e-3


# ---- bad input -------------------------------------------------------------------------------------------------------


def only_some(keep):
    return TRAIN.subset(keep.nonzero()[:, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exemplars": 0}, r"exemplars: got 0; allowed: at least 1 .*, or None"),
        ({"exemplars": -3}, "exemplars: got -3"),
        ({"exemplars": 2.5}, "exemplars: got 2.5; allowed: .* whole, or None"),
        ({"memory": 30}, "exemplars, memory: got 5, 30; allowed: one of the two"),
        ({"exemplars": None, "memory": 30}, "exemplars, memory: got None, 30; allowed: one of the two"),
        (
            {"exemplars": ..., "memory": 5},
            "memory: got 5; allowed: a whole number of at least 6: 1 for each of 6 classes",
        ),
        ({"exemplars": ..., "memory": 31.5}, "memory: got 31.5; allowed: a whole number of at least 6"),
        (
            {"arm": "BiC", "exemplars": ..., "memory": 59},
            "memory: got 59; allowed: a whole number of at least 60: 10 for each of 6",
        ),
        ({"arm": "BiC", "exemplars": 9}, "exemplars: got 9; allowed: at least 1 .10 for BiC"),
        ({"phases": ["abcdef"]}, "phases: got 1; allowed: at least 2"),
        ({"phases": ["ab", "", "cd"]}, r"phases: got \[\] as phase 1; allowed: at least one class, none seen before"),
        ({"phases": ["", "ab"]}, r"phases: got \[\] as phase 0"),
        (
            {"phases": ["ab", "cd", "ea"]},
            r"phases: got \['e', 'a'\] as phase 2; allowed: at least one class, none seen",
        ),
        ({"phases": ["ab", "cc"]}, r"phases: got \['c', 'c'\] as phase 1"),
        ({"phases": ["ab", "cz"]}, r"class_names: got \['z'\]; allowed: some of a, b, c"),
        ({"phases": ["ab", "cd", "e"]}, "k: got 2 with 1 new classes in phase 2; allowed: at most that many"),
        ({"phases": ["abc", "de"], "base": base()}, "base: got 2 classes; allowed: 3, those of phases"),
        ({"base": base("linear")}, "base: got a Linear; allowed: a cosine head"),
        ({"arm": "replay", "base": base("cosine")}, "base: got a CosineClassifier; allowed: a linear head"),
        (
            {"base": base(last_relu=True)},
            "base: got with a last ReLU; allowed: one without a last ReLU, as the arm says",
        ),
        (
            {"arm": "BiC", "exemplars": 10, "base": base("linear", last_relu=False)},
            "base: got without a last ReLU; allowed: one with a last ReLU",
        ),
        (
            {"train": only_some(TRAIN.labels != 3)},
            "train: got no image of class 'd'; allowed: at least one of each class",
        ),
        ({"epochs": 0}, "epochs: got 0; allowed: at least 1"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        run(**{"base": base()} | options)


def test_few_images_of_a_class_are_all_kept(monkeypatch):
    fits = spy_on(monkeypatch, "fit")
    first_d = (TRAIN.labels == 3).nonzero()[0, 0]
    train = only_some((TRAIN.labels != 3) | (torch.arange(len(TRAIN)) == first_d))
    run(train=train)
    assert fits[1][0][1].counts.tolist() == [5, 5, 5, 1, 30, 30]


def test_a_class_without_test_images_is_left_out():
    test = TEST.subset((TEST.labels != 3).nonzero()[:, 0])
    result = run(test=test)
    assert result.by_phase[1:, :2].isfinite().all() and math.isfinite(result.phases[-1]["accuracy"])
