"""methods.py: every method does something, within one budget, and chooses on validation images only."""

import math
from functools import partial

import pytest
import torch

from course_utils import methods, training
from course_utils.data import LabeledImages
from course_utils.decoupling import tau_normalize
from course_utils.methods import (
    LDAM_SCALE,
    METHODS,
    NEEDS,
    TAUS,
    CachedFeatures,
    Method,
    Setting,
    Stage,
    adjust,
    all_logits,
    choose_tau,
    linear_head,
    run_fit,
    train_method,
    train_methods,
    trainings_of,
    unit_cosine,
)
from course_utils.metrics import balanced_accuracy
from course_utils.networks import SmallCNN
from course_utils.training import extract_features, predict

COUNTS = (60, 25, 6)
CLASSES = ("a", "b", "c")
EPOCHS = 6


def noisy(counts, seed):
    """16 x 16 images: a bright stripe whose place says the class, under much noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = torch.randint(0, 200, (len(labels), 1, 16, 16), generator=generator)
    for j in range(len(counts)):
        images[labels == j, :, 5 * j + 1 : 5 * j + 4] += 40
    return LabeledImages(images.to(torch.uint8), labels, CLASSES)


TRAIN, VALIDATION, TEST = noisy(COUNTS, 0), noisy((20, 20, 20), 1), noisy((50, 50, 50), 2)


class TinyNet(SmallCNN):
    """Counts the images that run through its first layer in training."""

    trained_on = 0

    def __init__(self, num_classes):
        super().__init__(num_classes, width=4)
        self.backbone[0].register_forward_pre_hook(self.count)

    @staticmethod
    def count(module, arguments):
        if torch.is_grad_enabled():
            TinyNet.trained_on += len(arguments[0])


OPTIONS = {"network": TinyNet, "epochs": EPOCHS, "batch_size": 16, "augment": None, "defer_at": 0.5}


def test_one_name_one_method_and_each_says_what_it_needs():
    for name, method in METHODS.items():
        assert (method.train is None) != (method.finish is None), name
        assert set(method.needs) <= NEEDS.keys() and method.what and len(method.notebook) == 2
        assert ("training" in method.needs) == (method.train is not None) or name == "cross-entropy"
        assert METHODS[method.after].train is not None


@pytest.fixture(scope="module")
def all_trained():
    return train_methods(METHODS, TRAIN, VALIDATION, **OPTIONS)


def test_every_method_changes_something(all_trained):
    assert list(all_trained) == [name for members in trainings_of(METHODS).values() for name in members]
    logits = {name: trained.logits(TEST) for name, trained in all_trained.items()}
    for name, found in logits.items():
        assert found.shape == (150, 3) and found.isfinite().all()
        for other, theirs in logits.items():
            assert name == other or not torch.allclose(found, theirs, atol=1e-3), f"{name} is {other}"


def test_logits_of_all_methods_at_once_are_those_of_each(all_trained):
    together = all_logits(all_trained, TEST)
    assert list(together) == list(all_trained)
    for name, trained in all_trained.items():
        assert torch.equal(together[name], trained.logits(TEST)), name


def test_all_spend_one_budget_and_it_is_what_went_through_the_backbone(all_trained):
    for name in METHODS:
        TinyNet.trained_on = 0
        cost = train_method(name, TRAIN, VALIDATION, **OPTIONS).cost
        assert TinyNet.trained_on == cost["backbone_images"] == EPOCHS * sum(COUNTS), name
        assert cost["seconds"] > 0
        assert (cost["head_images"] > 0) == (name in ("cRT", "LWS"))
        reads = "features" in METHODS[name].needs or name == "OLTR memory"
        assert cost["feature_images"] == sum(COUNTS) * reads + 60 * ("validation" in METHODS[name].needs)
        shared = {k: v for k, v in all_trained[name].cost.items() if k != "seconds"}
        assert shared == {k: v for k, v in cost.items() if k != "seconds"}


def test_methods_that_share_a_training_train_once_and_are_the_same_as_alone(all_trained, monkeypatch):
    started = []
    real = methods.fit
    monkeypatch.setattr(methods, "fit", lambda *a, **k: started.append(1) or real(*a, **k))
    names = ["cRT", "tau-normalization", "cross-entropy"]
    together = train_methods(names, TRAIN, VALIDATION, **OPTIONS)
    assert started == [1] and list(together) == ["cross-entropy", "tau-normalization", "cRT"]
    for name in names:
        assert torch.equal(together[name].logits(TEST), all_trained[name].logits(TEST))
        assert together[name].chosen == all_trained[name].chosen


def test_a_method_without_choices_does_not_look_at_validation_images(all_trained):
    for name, method in METHODS.items():
        if "validation" not in method.needs:
            assert torch.equal(train_method(name, TRAIN, **OPTIONS).logits(TEST), all_trained[name].logits(TEST))
            assert all_trained[name].chosen == {}
        else:
            with pytest.raises(ValueError, match=f"validation: got None; allowed: images to choose on, for {name}"):
                train_method(name, TRAIN, **OPTIONS)


@pytest.mark.parametrize("wanted", [0.0, 0.7, 2.0])
def test_tau_is_chosen_on_validation_images(wanted):
    """Their labels are what one tau says, so this tau, or one before it that says the same, is the best."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 8, generator=generator) * torch.tensor([4.0, 2.0, 0.5])[:, None]
    features = torch.randn(60, 8, generator=generator)
    said = [(features @ tau_normalize(weight, tau).T).argmax(1) for tau in TAUS]
    validation = LabeledImages(VALIDATION.images, said[TAUS.index(wanted)], CLASSES)
    model, setting = SmallCNN(3, head=linear_head(weight)), Setting(train=TRAIN, validation=validation)
    finished = choose_tau(CachedFeatures(model, setting, torch.zeros(91, 8), features))
    scores = [balanced_accuracy(guess, validation.labels, 3) for guess in said]
    assert finished.chosen == {"tau": TAUS[scores.index(1.0)]} and (scores[0] < 1 or wanted == 0)
    assert torch.equal(finished.head(features).argmax(1), validation.labels)
    assert finished.head.bias is None


def test_what_was_chosen_is_kept(all_trained):
    assert {name: list(one.chosen) for name, one in all_trained.items() if one.chosen} == {
        "tau-normalization": ["tau"],
        "NCM": ["treatment"],
        "cRT": ["epochs"],
        "LWS": ["epochs"],
    }


def test_best_takes_the_first_of_equal_heads():
    setting = Setting(train=TRAIN, validation=VALIDATION)
    cached = CachedFeatures(None, setting, torch.zeros(91, 3), torch.eye(3)[VALIDATION.labels])
    heads = {"wrong": lambda f: -f, "first": lambda f: f, "second": lambda f: 2 * f}
    assert cached.best(heads) == "first"


def test_logit_adjustment_takes_the_log_of_the_share_away(all_trained):
    plain, adjusted = (all_trained[name].logits(TEST) for name in ("cross-entropy", "logit adjustment"))
    shares = torch.tensor([n / sum(COUNTS) for n in COUNTS])
    assert torch.allclose(adjusted, plain - shares.log(), atol=1e-5)


@pytest.mark.parametrize("tau", [0, 0.5, 1, 1.7])
def test_tau_says_how_much_of_the_log_logit_adjustment_takes(all_trained, tau, monkeypatch):
    monkeypatch.setitem(METHODS, "my own", Method("a test", "05", ("counts",), finish=partial(adjust, tau=tau)))
    plain, own = all_trained["cross-entropy"].logits(TEST), train_method("my own", TRAIN, **OPTIONS).logits(TEST)
    want = [[z - tau * math.log(n / sum(COUNTS)) for z, n in zip(row, COUNTS, strict=True)] for row in plain.tolist()]
    assert torch.allclose(own, torch.tensor(want), atol=1e-5)
    assert torch.equal(own, plain) == (tau == 0)


@pytest.mark.parametrize("tau", [-0.1, math.inf, math.nan])
def test_a_tau_that_cannot_be_is_refused(tau):
    cached = CachedFeatures(SmallCNN(3), Setting(train=TRAIN), torch.zeros(91, 8))
    with pytest.raises(ValueError, match=f"tau: got {tau}; allowed: a finite number of at least 0"):
        adjust(cached, tau)


def test_softmax_of_ldam_has_the_scale_of_its_loss(all_trained):
    for name in ("LDAM", "LDAM + DRW"):
        logits = all_trained[name].logits(TEST)
        cosines = all_trained[name].model.head.cosines(extract_features(all_trained[name].model, TEST))
        assert torch.allclose(logits, LDAM_SCALE * cosines, atol=1e-4) and LDAM_SCALE == 30


def test_seeds_differ_and_repeat_and_leave_torch_alone(all_trained):
    torch.manual_seed(5)
    other = train_method("LDAM + DRW", TRAIN, VALIDATION, seed=1, **OPTIONS).logits(TEST)
    again = train_method("LDAM + DRW", TRAIN, VALIDATION, seed=0, **OPTIONS).logits(TEST)
    train_methods(["tau-normalization", "logit adjustment", "cRT"], TRAIN, VALIDATION, **OPTIONS)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))
    assert torch.equal(again, all_trained["LDAM + DRW"].logits(TEST)) and not torch.allclose(other, again)


def test_all_methods_of_a_seed_start_with_one_backbone():
    setting = Setting(train=TRAIN, network=TinyNet, seed=3)
    first, second = setting.new_model(), setting.new_model(unit_cosine)
    assert all(
        torch.equal(a, b) for a, b in zip(first.backbone.parameters(), second.backbone.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.train])
def test_a_training_that_was_stopped_goes_on_to_the_same_result(name, all_trained, tmp_path, monkeypatch):
    started, real = [], training.set_rate

    def stopped(optimizer, lr):
        started.append(lr)
        if len(started) == 5:
            raise InterruptedError
        return real(optimizer, lr)

    options = OPTIONS | {"checkpoint": tmp_path / "run"}
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(training, "set_rate", stopped)
        train_method(name, TRAIN, **options)
    names = ["run.1.pt", "run.2.pt"] if name == "OLTR memory" else ["run.1.pt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    trained = train_method(name, TRAIN, **options)
    assert torch.equal(trained.logits(TEST), all_trained[name].logits(TEST))
    assert trained.cost["backbone_images"] == EPOCHS * sum(COUNTS)


def test_a_method_of_two_stages_can_be_added_and_pays_both_out_of_one_budget(monkeypatch, tmp_path):
    def two_stages(setting):
        first = run_fit(setting, setting.new_model(), epochs=2)
        second = run_fit(setting, first.model, epochs=setting.epochs - 2, stage=2)
        return Stage(second.model, first.images + second.images, first.seconds + second.seconds)

    monkeypatch.setitem(METHODS, "two stages", Method("a test", "06", ("training", "memory"), train=two_stages))
    trained = train_method("two stages", TRAIN, checkpoint=tmp_path / "run", **OPTIONS)
    assert trained.cost["backbone_images"] == EPOCHS * sum(COUNTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.1.pt", "run.2.pt"]
    assert torch.equal(trained.logits(TEST), predict(trained.model, TEST))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="method: got 'LDAM-DRW'; allowed: cross-entropy, "):
        train_method("LDAM-DRW", TRAIN)
    with pytest.raises(ValueError, match="method: got 'none'"):
        trainings_of([])
    with pytest.raises(ValueError, match="train: got no image of class 'b'"):
        train_method("LDAM", TRAIN.subset((TRAIN.labels != 1).nonzero()[:, 0]))
    with pytest.raises(ValueError, match="validation: got other classes than train has"):
        train_method("LDAM", TRAIN, VALIDATION.only(["a", "b"]))
    assert not any(math.isnan(v) for v in train_method("LDAM", TRAIN, **OPTIONS).cost.values())
