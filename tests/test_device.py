"""The package on a device that is not the CPU: a pretended one, so that every machine can test it."""

import math
import os
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from pretend_gpu import DEVICE, OnGPU, pretend_gpu

from course_utils.data import LabeledImages, class_counts, long_tailed
from course_utils.decoupling import retrain_end_to_end
from course_utils.heads import equalize_norms, weight_align, with_norms
from course_utils.incremental import herding, nearest_mean, run_incremental, train_base
from course_utils.incremental_methods import ARMS
from course_utils.losses import (
    FocalLoss,
    LDAMHingeLoss,
    effective_number_weights,
    inter_class_separation_loss,
    inverse_frequency_weights,
    ldam_margins,
)
from course_utils.methods import METHODS, all_logits, train_methods
from course_utils.metrics import (
    accepting_threshold,
    calibration_error,
    confusion_matrix,
    error_blocks,
    open_set_auroc,
    open_set_f_measure,
    open_set_fpr,
    per_class_accuracy,
    reliability_bins,
    shot_accuracy,
)
from course_utils.networks import MLP, ResNet32
from course_utils.openworld import DiscriminativeCentroidLoss, open_world_scores, reject
from course_utils.sampling import ClassBalancedSampler, class_probabilities
from course_utils.training import SGD, extract_features, fit, predict, random_flip

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def gpu():
    with pretend_gpu() as device:
        yield device


def images_of(counts, seed=0):
    """Grey 16 x 16 noise whose brightness tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    noise = 80 * torch.rand(len(labels), 1, 16, 16, generator=generator)
    return LabeledImages((noise + 25 * labels[:, None, None, None]).byte(), labels, tuple("abcdef"[: len(counts)]))


# ---- the pretended GPU is as strict as a real one --------------------------------------------------------------------


def test_tensors_of_two_devices_do_not_mix(gpu):
    there = torch.zeros(3, device=gpu.device)
    assert {t.device for t in (there, there + 1, there + torch.tensor(1.0))} == {DEVICE}
    with pytest.raises(RuntimeError, match="add: shapes"):
        there + torch.zeros(3)
    with pytest.raises(RuntimeError, match="mm: shapes"):
        torch.nn.Linear(3, 2)(there[None])
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    with pytest.raises(TypeError, match="no float64"):
        there.double()


def test_what_waits_is_listed(gpu):
    numbers = torch.arange(4.0).to(gpu.device)
    assert not gpu.waits and type(numbers) is OnGPU
    weight = torch.ones(4, device=gpu.device, requires_grad=True)
    (weight * numbers).sum().backward()
    numbers[[0, 2]] += weight.grad[[0, 2]]
    assert not gpu.waits
    assert numbers.cpu().tolist() == [0, 1, 4, 3]
    for wait in (
        numbers.sum().item,
        numbers.tolist,
        numbers.cpu,
        numbers.nonzero,
        lambda: numbers[numbers > 1],
        lambda: bool(numbers[0] > 0),
    ):
        before = len(gpu.waits)
        wait()
        assert len(gpu.waits) == before + 1


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_the_same_answers_there_and_waits_once_an_epoch_not_once_a_batch(name):
    train, validation = images_of([60, 30, 12, 5]), images_of([8] * 4, seed=1)

    def logits(device, batch_size):
        data = train.to(device), validation.to(device)
        trained = train_methods([name], *data, epochs=4, batch_size=batch_size, defer_at=0.5)
        return all_logits(trained, data[1])[name]

    expected, waits = logits("cpu", 16), []
    for batch_size in (16, 8):
        with pretend_gpu() as gpu:
            answers = logits(gpu.device, batch_size)
        waits.append(Counter(gpu.waits))
        assert type(answers) is OnGPU and (batch_size == 8 or torch.equal(answers.inner, expected))
    assert waits[0] and waits[1] == waits[0]  # with twice as many batches


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in ARMS), ("LUCIR", {"augment": None})])
def test_every_arm_gives_the_same_answers_there_and_does_not_wait_at_every_batch(name, options):
    train, test = images_of([24] * 6), images_of([8] * 6, seed=1)
    options = {"exemplars": 12, "epochs": 2, "oracle": True} | options

    def result(device, batch_size):
        network = partial(MLP, in_features=256)
        base = train_base(ARMS[name].head, train.only("abc").to(device), network=network, epochs=2)
        data = train.to(device), test.to(device)
        return run_incremental(ARMS[name], *data, ["abc", "def"], base=base, batch_size=batch_size, **options)

    expected, waits = result("cpu", 16), []
    for batch_size in (16, 8):
        with pretend_gpu() as gpu:
            found = result(gpu.device, batch_size)
        waits.append(len(gpu.waits))
        if batch_size == 16:
            assert str(found.phases) == str(expected.phases)
            for there, here in zip(found.predictions, expected.predictions, strict=True):
                assert type(there) is OnGPU and torch.equal(there.inner, here)
    batches = 2 * 108 / 16  # more of them in the second run
    assert abs(waits[1] - waits[0]) < batches / 2  # BiC: its solver may take some steps more or fewer


def test_one_step_of_the_optimizer_is_four_calls_however_many_layers_there_are(gpu):
    model = ResNet32(4).to(gpu.device)
    optimizer = SGD(model, 0.9, 5e-4)
    model(torch.zeros(2, 3, 32, 32, device=gpu.device)).sum().backward()
    gpu.calls.clear()
    optimizer.step()
    assert gpu.calls == ["_foreach_add", "_foreach_mul_", "_foreach_add_", "_foreach_add_"]


def test_resnet_with_flips_a_head_trained_end_to_end_and_read_outs(gpu):
    train = images_of([20, 10])
    train = LabeledImages(train.images.repeat(1, 3, 2, 2), train.labels, train.class_names)

    def answers(device):
        torch.manual_seed(0)
        model, data = ResNet32(2).to(device), train.to(device)
        fit(model, data, epochs=1, augment=random_flip, sampler=ClassBalancedSampler(data.labels))
        model = retrain_end_to_end(model, data, epochs=1)
        return predict(model, data), extract_features(model, data)

    for there, here in zip(answers(gpu.device), answers("cpu"), strict=True):
        assert type(there) is OnGPU and torch.equal(there.cpu(), here)


# ---- everything else that takes tensors ------------------------------------------------------------------------------

PREDICTIONS, LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 2]), torch.tensor([0, 1, 2, 1, 1, 2, 0])
OPEN_LABELS = torch.tensor([0, 1, -1, 1, -1, 2, 0])
PROBABILITIES = (torch.arange(21.0).view(7, 3) % 5).softmax(1)
CONFIDENCE, COUNTS = PROBABILITIES.amax(1), torch.tensor([200, 30, 5])
ROWS = torch.arange(1.0, 13).view(4, 3).sin()
CALLS = {
    "per_class_accuracy": lambda to: per_class_accuracy(to(PREDICTIONS), to(LABELS), 3),
    "shot_accuracy": lambda to: shot_accuracy(to(torch.rand(3, generator=torch.Generator().manual_seed(0))), COUNTS),
    "shot_accuracy, counts there": lambda to: shot_accuracy([0.5, 0.25, 0.125], to(COUNTS)),
    "calibration_error": lambda to: calibration_error(to(PROBABILITIES), to(LABELS)),
    "reliability_bins": lambda to: reliability_bins(to(PROBABILITIES), to(LABELS), bins=3)["count"],
    "confusion_matrix": lambda to: confusion_matrix(to(PREDICTIONS), to(LABELS), 3),
    "error_blocks": lambda to: error_blocks(to(PREDICTIONS), to(LABELS), 2),
    "open_set_f_measure": lambda to: open_set_f_measure(to(PREDICTIONS), to(OPEN_LABELS)),
    "open_set_auroc": lambda to: open_set_auroc(to(CONFIDENCE), to(OPEN_LABELS) == -1),
    "open_set_fpr": lambda to: open_set_fpr(to(CONFIDENCE), to(OPEN_LABELS) == -1),
    "open_world_scores": lambda to: open_world_scores(to(PROBABILITIES), to(OPEN_LABELS), COUNTS),
    "reject": lambda to: reject(to(PROBABILITIES), 0.6),
    "accepting_threshold": lambda to: accepting_threshold(to(CONFIDENCE)),
    "class_probabilities": lambda to: class_probabilities(to(COUNTS), 0.5),
    "effective_number_weights": lambda to: effective_number_weights(to(COUNTS)),
    "inverse_frequency_weights": lambda to: inverse_frequency_weights(to(COUNTS)),
    "ldam_margins": lambda to: ldam_margins(to(COUNTS)),
    "FocalLoss": lambda to: FocalLoss(2.0, to(torch.ones(3)))(to(PROBABILITIES), to(LABELS)),
    "LDAMHingeLoss": lambda to: LDAMHingeLoss(COUNTS)(to(PROBABILITIES), to(LABELS)),
    "inter_class_separation_loss": lambda to: inter_class_separation_loss(to(PROBABILITIES), to(LABELS), 1, k=1),
    "DiscriminativeCentroidLoss": lambda to: DiscriminativeCentroidLoss()(
        to(ROWS), to(torch.tensor([0, 1, 1, 0])), to(ROWS[:2])
    ),
    "herding": lambda to: herding(to(ROWS), 3),
    "nearest_mean": lambda to: nearest_mean(to(ROWS), to(ROWS), to(torch.tensor([0, 1, 1, 0])), 2),
    "equalize_norms": lambda to: equalize_norms(to(ROWS), 0.5),
    "with_norms": lambda to: with_norms(to(ROWS), to(torch.arange(1.0, 5))),
    "weight_align": lambda to: weight_align(to(ROWS), 2),
    "class_counts": lambda to: class_counts(to(LABELS), 3),
    "long_tailed": lambda to: long_tailed(images_of([9, 9]).to(to(LABELS).device), [5, 2], seed=0).counts,
}


@pytest.mark.parametrize("name", CALLS)
def test_the_same_numbers_there(name, gpu):
    here = CALLS[name](lambda tensor: tensor)
    there = CALLS[name](lambda tensor: tensor.to(gpu.device))
    if isinstance(here, torch.Tensor):
        assert torch.equal(there.cpu(), here)
    elif isinstance(here, dict):
        assert there.keys() == here.keys()
        assert all(there[k] == here[k] or (math.isnan(here[k]) and math.isnan(there[k])) for k in here)
    else:
        assert there == here


def test_herding_does_not_wait_for_each_choice(gpu):
    waits = []
    for k in (2, 4):
        gpu.waits.clear()
        herding(ROWS.to(gpu.device), k)
        waits.append(len(gpu.waits))
    assert waits[0] == waits[1]


# ---- notebooks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", os.environ.get("COURSE_GPU_NOTEBOOKS", "06").split(","))
def test_a_notebook_runs_there(number):
    """Notebook 06; others when their numbers are in COURSE_GPU_NOTEBOOKS, as "01,02,03" (minutes each)."""
    program = Path(__file__).with_name("notebook_on_gpu.py")
    done = subprocess.run([sys.executable, program, number], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
