"""Class-incremental learning: classes arrive in phases, and only a few images of each old class are kept.

A method is an `Arm` (arms.py), a set of small choices; `ARMS` names those of the course, LUCIR (Hou et al. 2019) among
them. `run_incremental()` takes any arm through all phases. In every phase it (1) keeps a frozen copy of the model, the
teacher, (2) adds rows for the new classes, (3) trains on all new images and the exemplars of old classes, (4) chooses
exemplars of the new classes by herding, (5) measures. Classes are numbered in the order in which they arrive.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import LabeledImages, class_counts
from .heads import CosineClassifier, extended_linear, row_norms, weight_align
from .incremental_methods import Arm, BiasCorrection, PhaseObjective, clip_weights
from .losses import less_forget_loss
from .metrics import balanced_accuracy, error_blocks, per_class_accuracy
from .networks import MLP, ImageClassifier
from .training import Augmentation, evaluating, extract_features, fit, random_shift


@dataclass
class IncrementalResult:
    """What `run_incremental()` measured.

    phases: one dictionary a phase, shares from 0 to 1; see `run_incremental()`.
    by_phase: (P, P), row p: accuracy after phase p on the classes of phases 0 .. p, NaN for later ones.
    predictions: after each phase, for the test images of all classes seen, in the order of `test.only(class_names)`.
    model: after the last phase. class_names: in the order of arrival.
    """

    phases: list[dict[str, float]]
    by_phase: Tensor
    predictions: list[Tensor]
    model: ImageClassifier
    class_names: list[str]


# ---- exemplars -------------------------------------------------------------------------------------------------------


def herding(features: Tensor, k: int) -> Tensor:
    """Choose `k` rows whose mean stays close to the mean of all: indices int64 (k,), in order of choice.

    features: (N, D) of one class; they are normalized here. The t-th choice is the row x, not chosen before, that is
    largest in <t mu - (sum of the rows chosen so far), x>, which brings the mean of the chosen rows closest to mu
    (Rebuffi et al. 2017, algorithm 4). The first j of k choices are the choices for j.

    Raises:
        ValueError: k outside 1 .. N, or features that are not finite.
    """
    if features.ndim != 2 or not 1 <= k <= len(features):
        raise ValueError(f"k: got {k} for features of shape {tuple(features.shape)}; allowed: 1 to N for (N, D)")
    if not features.isfinite().all():
        raise ValueError("features: got NaN or infinite numbers; allowed: finite ones")
    rows = F.normalize(features, dim=1)
    goal = rows.mean(0)
    missing, free, chosen = goal.clone(), torch.zeros(len(rows), device=rows.device), []
    for _ in range(k):
        best = (rows @ missing + free).argmax(0, keepdim=True)
        free[best] = -torch.inf
        missing += goal - rows[best][0]
        chosen.append(best)
    return torch.cat(chosen)


def nearest_mean(features: Tensor, stored: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Predictions int64 (B,): the class whose mean of normalized stored features has the largest cosine.

    features: (B, D). stored: (N, D) with labels (N,); every class has to occur. With exemplars as stored images this
    is the NME read-out of iCaRL; with all training images it is NCM, an oracle that no learner with a small memory has.
    """
    if stored.ndim != 2 or len(stored) != len(labels) or features.shape[1:] != stored.shape[1:]:
        raise ValueError(
            f"features: got shape {tuple(features.shape)} beside stored ones of {tuple(stored.shape)} with "
            f"{len(labels)} labels; allowed: (B, D) and (N, D), one label each"
        )
    counts = class_counts(labels, num_classes)
    if not counts.all():
        raise ValueError(f"labels: class {int(counts.argmin())} has no stored image; allowed: at least one each")
    sums = stored.new_zeros(num_classes, stored.shape[1])
    means = F.normalize(sums.index_add(0, labels, F.normalize(stored, dim=1)), dim=1)
    return (features @ means.T).argmax(1)


# ---- phases ----------------------------------------------------------------------------------------------------------


def train_base(
    head: str,
    train: LabeledImages,
    *,
    network: Callable[..., ImageClassifier] = MLP,
    epochs: int = 8,
    batch_size: int = 128,
    lr: float = 0.05,
    augment: Augmentation | None = random_shift,
    scale: float = 5.0,
    seed: int = 0,
) -> ImageClassifier:
    """The model of phase 0: cross-entropy on the first classes. One for each kind of head serves all arms.

    Under a cosine head an MLP or SmallCNN loses its last ReLU, as in LUCIR, so that cosines fill -1 to 1; a ResNet32
    keeps it. Weights depend on `seed` alone; torch's global generator is left as it was.
    """
    if head not in ("linear", "cosine"):
        raise ValueError(f"head: got {head!r}; allowed: linear, cosine")
    with _drawing(seed, train.images):
        model = network(train.num_classes)
        if head == "cosine":
            _remove_last_relu(model.backbone)
            model.head = CosineClassifier(model.feature_dim, train.num_classes, scale=scale)
    model.to(train.images.device)
    fit(model, train, epochs=epochs, batch_size=batch_size, lr=lr, augment=augment, seed=seed, progress=False)
    return model


@contextlib.contextmanager
def _drawing(seed: int, images: Tensor) -> Iterator[None]:
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        torch.manual_seed(seed)
        yield


def _remove_last_relu(backbone: nn.Module) -> None:
    """Of a sequence of layers, if none with weights comes after it."""
    for i in reversed(range(len(backbone) if isinstance(backbone, nn.Sequential) else 0)):
        if isinstance(backbone[i], nn.ReLU):
            del backbone[i]
            return
        if any(True for _ in backbone[i].parameters()):
            return


def run_incremental(
    arm: Arm,
    train: LabeledImages,
    test: LabeledImages,
    phases: Sequence[Sequence[str]],
    *,
    base: ImageClassifier | None = None,
    exemplars: int | None = 20,
    epochs: int = 8,
    batch_size: int = 128,
    lr: float = 0.05,
    augment: Augmentation | None = random_shift,
    oracle: bool = False,
    watch: Callable[[int, ImageClassifier], None] | None = None,
    seed: int = 0,
) -> IncrementalResult:
    """Learn the classes of `phases[0]`, then those of `phases[1]`, and so on, and measure after each.

    Args:
        phases: class names, each once, at least two phases.
        base: a model from `train_base()` for phases[0]; it is copied, not changed. Trained here if None.
        exemplars: images kept of each old class, chosen by herding; None keeps all (joint training).
        epochs, batch_size, lr, augment: of every phase, with SGD and a cosine schedule each.
        oracle: also read out NCM, with the means of *all* training images.
        watch: called as watch(phase, model) after each phase; the model must not be changed.

    Returns:
        In `phases`: "accuracy" (balanced, over all classes seen, by the head), "accuracy_nme" (nearest mean of
        exemplars), "accuracy_ncm" (with `oracle`), and from phase 1 on the blocks of `metrics.error_blocks()`, "drift"
        (mean of 1 - cosine between the features of old test images before and after), "norm_ratio" (mean norm of new
        rows by that of old ones), "row_angle" (mean turn of old rows, degrees) and, with a linear head, "bias_gap".

    Raises:
        ValueError: no exemplars, a phase without a new class, an unknown class or one without training images, k above
            the new classes of a phase, or a base with another head or for another number of classes.
    """
    order = [name for phase in phases for name in phase]
    if len(phases) < 2:
        raise ValueError(f"phases: got {len(phases)}; allowed: at least 2")
    for p, phase in enumerate(phases):
        if not len(phase) or set(phase) & set(order[: sum(map(len, phases[:p]))]) or len(set(phase)) < len(phase):
            raise ValueError(f"phases: phase {p} is {list(phase)}; allowed: at least one class, none seen before")
        if p and arm.separate and arm.k > len(phase):
            raise ValueError(f"k: got {arm.k} with {len(phase)} new classes in phase {p}; allowed: at most that many")
    if exemplars is not None and exemplars < (10 if arm.correct == "bias" else 1):
        raise ValueError(f"exemplars: got {exemplars}; allowed: at least 1 (10 for BiC, which holds some out), or None")
    train, test = train.only(order), test.only(order)
    if not train.counts.all():
        raise ValueError(f"train: no image of class {order[int(train.counts.argmin())]!r}; allowed: at least one each")
    starts = [sum(map(len, phases[:p])) for p in range(len(phases) + 1)]
    options = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "augment": augment, "seed": seed}
    model = train_base(arm.head, train.only(order[: starts[1]]), **options) if base is None else copy.deepcopy(base)
    if getattr(model.head, "num_classes", getattr(model.head, "out_features", None)) != starts[1]:
        raise ValueError(f"base: made for another number of classes; allowed: {starts[1]}, those of phases[0]")
    if isinstance(model.head, CosineClassifier) != (arm.head == "cosine"):
        raise ValueError(f"base: has a {type(model.head).__name__}; allowed: a {arm.head} head")

    memory: list[Tensor] = []  # for each class the places of its exemplars in `train`
    by_phase = torch.full((len(phases),) * 2, torch.nan)
    rows, all_predictions, correction = [], [], None
    for p in range(len(phases)):
        old, seen = starts[p], starts[p + 1]
        new = ((train.labels >= old) & (train.labels < seen)).nonzero()[:, 0]
        teacher = copy.deepcopy(model) if p else None
        if p:
            correction = _learn_phase(arm, model, teacher, train, new, memory, seen - old, correction, options)
        new_features, new_labels = extract_features(model, train.subset(new)), train.labels[new]
        for j in range(old, seen):
            mine = (new_labels == j).nonzero()[:, 0]
            if exemplars is not None:
                mine = mine[herding(new_features[mine], min(exemplars, len(mine)))]
            memory.append(new[mine])
        if p and arm.correct == "fine-tune":
            _fine_tune(arm, model, teacher, train.subset(torch.cat(memory)), old, seen - old, options)
        row, predictions = _measure(model, teacher, train, test, memory, old, seen, correction, oracle)
        right = per_class_accuracy(predictions, test.labels[test.labels < seen], seen)
        for q in range(p + 1):
            by_phase[p, q] = right[starts[q] : starts[q + 1]].nanmean()
        rows.append({"phase": p, "classes": seen} | row)
        all_predictions.append(predictions)
        if watch is not None:
            watch(p, model)
    return IncrementalResult(rows, by_phase, all_predictions, model, order)


def _learn_phase(
    arm: Arm,
    model: ImageClassifier,
    teacher: ImageClassifier,
    train: LabeledImages,
    new: Tensor,
    memory: list[Tensor],
    num_new: int,
    correction,
    options: dict,
):
    """Train `model` in place; returns BiC's correction, or None."""
    num_old = len(memory)
    with _drawing(options["seed"] * 1_000_003 + num_old, train.images):
        _grow(arm, model, train.subset(new), num_new)
    kept, held_out = memory, None
    if arm.correct == "bias":  # as many held-out images of each new class as of each old one, none of them trained on
        each = max(1, len(memory[0]) // 10)
        kept, held_out = [m[:-each] for m in memory], [m[-each:] for m in memory]
        for j in range(num_old, num_old + num_new):
            mine = new[train.labels[new] == j]
            pick = mine[torch.randperm(len(mine), generator=torch.Generator().manual_seed(options["seed"]))[:each]]
            held_out.append(pick)
            new = new[~torch.isin(new, pick)]
    data = train.subset(torch.cat([new, *kept]))
    cached = data if options["augment"] is None else None
    objective = PhaseObjective(arm, teacher, num_old, num_new, correction, cached)
    fit(model, data, objective=objective, progress=False, **options)
    if arm.clip:
        clip_weights(model.head)
    if arm.correct == "align":
        with torch.no_grad():
            model.head.weight.copy_(weight_align(model.head.weight, num_old))
    if held_out is None:
        return None
    images = train.subset(torch.cat(held_out))
    with torch.no_grad():
        logits = model.head(extract_features(model, images))
    return BiasCorrection(num_old, num_new).fit(logits, images.labels)


def _grow(arm: Arm, model: ImageClassifier, new: LabeledImages, num_new: int) -> None:
    if arm.head == "linear":
        model.head = extended_linear(model.head, num_new)
    else:
        model.head.extend(num_new)
        if arm.imprint:
            model.head.imprint(extract_features(model, new), new.labels)
        if arm.freeze_old_rows:
            model.head.freeze_old_rows()
    model.num_classes += num_new


def _fine_tune(
    arm: Arm,
    model: ImageClassifier,
    teacher: ImageClassifier,
    balanced: LabeledImages,
    num_old: int,
    num_new: int,
    options: dict,
) -> None:
    """Class-balanced fine-tuning: all rows and biases, a tenth of the learning rate; backbone and scale stand still."""
    trained = {p: p.requires_grad for p in model.parameters()}
    model.requires_grad_(False)
    for part in model.head.parameters():
        part.requires_grad_(part.ndim > 0)
    objective = PhaseObjective(replace(arm, distill="none"), teacher, num_old, num_new)
    fit(model, balanced, objective=objective, progress=False, **options | {"lr": options["lr"] / 10})
    for parameter, value in trained.items():
        parameter.requires_grad_(value)


def _measure(
    model: ImageClassifier,
    teacher: ImageClassifier | None,
    train: LabeledImages,
    test: LabeledImages,
    memory: list[Tensor],
    old: int,
    seen: int,
    correction,
    oracle: bool,
) -> tuple[dict, Tensor]:
    test = test.subset((test.labels < seen).nonzero()[:, 0])
    features = extract_features(model, test)
    with evaluating(model):
        logits = model.head(features)
    predictions = (logits if correction is None else correction(logits)).argmax(1)

    def accuracy(images: LabeledImages) -> float:
        means = nearest_mean(features, extract_features(model, images), images.labels, seen)
        return balanced_accuracy(means, test.labels, seen)

    row = {
        "accuracy": balanced_accuracy(predictions, test.labels, seen),
        "accuracy_nme": accuracy(train.subset(torch.cat(memory))),
    }
    if oracle:
        row["accuracy_ncm"] = accuracy(train.subset((train.labels < seen).nonzero()[:, 0]))
    if teacher is not None:
        before = test.subset((test.labels < old).nonzero()[:, 0])
        row |= error_blocks(predictions, test.labels, old)
        row["drift"] = less_forget_loss(features[test.labels < old], extract_features(teacher, before)).item()
        weight, was = model.head.weight.detach(), teacher.head.weight.detach()
        norms = row_norms(weight)
        row["norm_ratio"] = (norms[old:].mean() / norms[:old].mean()).item()
        chord = (F.normalize(weight[:old], dim=1) - F.normalize(was, dim=1)).norm(dim=1)
        turn = 2 * (chord / 2).clamp(max=1).asin()  # exactly 0 for a row that stayed
        row["row_angle"] = torch.rad2deg(turn).mean().item()
        if isinstance(model.head, nn.Linear):
            bias = model.head.bias.detach()
            row["bias_gap"] = (bias[old:].mean() - bias[:old].mean()).item()
    return row, predictions


def new_class_margins(cosines: Tensor, labels: Tensor, num_old: int) -> Tensor:
    """cos(f, w_y) minus the largest cosine with a new class, for the images of old classes among `labels`: (N_old,).

    Below 0 the image is taken for a new class (if it is not lost to another old class already).
    """
    class_counts(labels, cosines.shape[1])  # refuses labels of other classes
    if not 1 <= num_old < cosines.shape[1]:
        raise ValueError(f"num_old: got {num_old}; allowed: 1 to {cosines.shape[1] - 1}")
    old = labels < num_old
    return cosines[old].gather(1, labels[old, None])[:, 0] - cosines[old, num_old:].amax(1)
