"""Class-incremental learning: classes arrive in phases, and only a few images of each old class are kept.

A method is an `Arm` (incremental_methods.py), a set of small choices; LUCIR (Hou et al. 2019) is one of them.
`run_incremental()` takes any arm through all phases. In every phase it (1) keeps a frozen copy of the model, the
teacher, (2) adds rows for the new classes, (3) trains on all new images and the exemplars of old classes, (4) chooses
exemplars of the new classes by herding, and drops old ones where memory is limited in total, (5) measures. Classes are
numbered in the order in which they arrive.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from numbers import Integral
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import LabeledImages, class_counts
from .decoupling import class_means
from .heads import CosineClassifier, extended_linear, row_norms, weight_align
from .incremental_methods import Arm, BiasCorrection, PhaseObjective, clip_weights
from .losses import less_forget_loss
from .machinery.checks import floats
from .metrics import balanced_accuracy, error_blocks, per_class_accuracy
from .networks import MLP, ImageClassifier
from .runtime import keeping_random_state, require
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

    Differs from the released code of LUCIR in: a row is never chosen again. There it may be, and is then taken off the
    sum once more without filling a place, so later choices can differ; the more rows are chosen, the more of them.
    """
    shape = tuple(features.shape)
    require(len(shape) == 2 and 1 <= k <= shape[0], "k", f"{k} for features of shape {shape}", "1 to N for (N, D)")
    require(features.isfinite().all(), "features", "NaN or infinite numbers", "finite ones")
    rows = F.normalize(floats(features=features)[0], dim=1)
    goal = rows.mean(0)
    missing, free, chosen = goal.clone(), rows.new_zeros(len(rows)), []
    for _ in range(k):
        # missing = t mu - sum of the rows chosen so far; next is argmax_x <missing, x>
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
    fit = stored.ndim == 2 and features.shape[1:] == stored.shape[1:]
    seen = f"shape {tuple(features.shape)} beside stored ones of {tuple(stored.shape)}"
    require(fit, "features", seen, "(B, D) beside (N, D)")
    require(features.isfinite().all(), "features", "NaN or infinite numbers", "finite ones")
    features, stored = floats(features=features, stored=stored)
    means = F.normalize(class_means(F.normalize(stored, dim=1), labels, num_classes), dim=1)
    # argmax_j cos(f, mu_j); the length of f does not matter
    return (features @ means.T).argmax(1)


# ---- phases ----------------------------------------------------------------------------------------------------------


def train_base(
    head: str,
    train: LabeledImages,
    *,
    last_relu: bool | None = None,
    network: Callable[..., ImageClassifier] = MLP,
    epochs: int = 8,
    batch_size: int = 128,
    lr: float = 0.05,
    augment: Augmentation | None = random_shift,
    scale: float = 5.0,
    seed: int = 0,
) -> ImageClassifier:
    """The model of phase 0: cross-entropy on the first classes. One for each `Arm.family` serves all its arms.

    last_relu: whether an MLP or SmallCNN keeps its last ReLU. None: under a linear head; under a cosine head it is
    taken away, as in LUCIR, so that cosines fill -1 to 1. A ResNet32 keeps its own. Weights depend on `seed` alone;
    torch's global generator is left as it was.
    """
    arm = Arm(head, last_relu=last_relu)
    with keeping_random_state(train.device) as reseed:
        reseed(seed)
        model = network(train.num_classes)
        if not arm.keeps_last_relu:
            _remove_last_relu(model.backbone)
        if head == "cosine":
            model.head = CosineClassifier(model.feature_dim, train.num_classes, scale=scale)
    model.to(train.device)
    fit(model, train, epochs=epochs, batch_size=batch_size, lr=lr, augment=augment, seed=seed, progress=False)
    return model


def _remove_last_relu(backbone: Any) -> None:
    """Of a sequence of layers, if none with weights comes after it."""
    if (found := _last_activation(backbone)) is not None:
        backbone[found] = nn.Identity()


def _last_activation(backbone: Any) -> int | None:
    """Where in a sequence of layers its last ReLU is, or the identity that took its place; None if there is neither."""
    layers = backbone if isinstance(backbone, nn.Sequential) else nn.Sequential()
    for i in reversed(range(len(layers))):
        if isinstance(layers[i], nn.ReLU | nn.Identity):
            return i
        if any(True for _ in layers[i].parameters()):
            return None
    return None


def run_incremental(
    arm: Arm,
    train: LabeledImages,
    test: LabeledImages,
    phases: Sequence[Sequence[str]],
    *,
    base: ImageClassifier | None = None,
    exemplars: int | EllipsisType | None = ...,
    memory: int | None = None,
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
        exemplars: images kept of each old class, chosen by herding, 20 by default; None keeps all (joint training).
        memory: instead of `exemplars`, images kept of all classes together: memory // (classes seen) of each, so lists
            of exemplars lose their last ones in every phase. What a small class does not fill stays empty.
        epochs, batch_size, lr, augment: of every phase, with SGD and a cosine schedule each.
        oracle: also read out NCM, with the means of *all* training images.
        watch: called as watch(phase, model) after each phase; the model must not be changed.

    Returns:
        In `phases`: "accuracy" (balanced, over all classes seen, by the head), "accuracy_nme" (nearest mean of
        exemplars), "accuracy_ncm" (with `oracle`), and from phase 1 on the blocks of `metrics.error_blocks()`, "drift"
        (mean of 1 - cosine between the features of old test images before and after), "norm_ratio" (mean norm of new
        rows by that of old ones), "row_angle" (mean turn of old rows, degrees) and, with a linear head, "bias_gap".

    Raises:
        ValueError: no exemplars, or both `exemplars` and `memory`; a phase without a new class, an unknown class or one
            without training images (BiC: with one, as it holds one out), k above the new classes of a phase, or a base
            with another head, with or without a last ReLU against the arm, or for another number of classes.

    Differs from the released code of LUCIR in: a total memory is rounded down to whole images of each class; there
    (`--fix_budget`), up, so it keeps a little more than its budget.
    """
    order = [name for phase in phases for name in phase]
    _check_phases(arm, phases)
    starts = [0, *accumulate(map(len, phases))]
    quotas = _quotas(arm, starts[1:], exemplars, memory)
    train, test = train.only(order), test.only(order)
    empty = order[int(train.counts.argmin())]
    require(train.counts.all(), "train", f"no image of class {empty!r}", "at least one of each class")
    enough = arm.correct != "bias" or train.counts.min() > 1
    require(enough, "train", f"one image of class {empty!r}", "at least 2 of each class for BiC, which holds one out")
    options: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "augment": augment, "seed": seed}
    if base is None:
        base = train_base(arm.head, train.only(order[: starts[1]]), last_relu=arm.last_relu, **options)
    model = copy.deepcopy(base)
    there = getattr(model.head, "num_classes", getattr(model.head, "out_features", None))
    require(there == starts[1], "base", f"{there} classes", f"{starts[1]}, those of phases[0]")
    kind, cosine = type(model.head).__name__, isinstance(model.head, CosineClassifier)
    require(cosine == (arm.head == "cosine"), "base", f"a {kind}", f"a {arm.head} head")
    if (found := _last_activation(model.backbone)) is not None:
        kinds = {True: "with a last ReLU", False: "without a last ReLU"}
        relu = isinstance(model.backbone[found], nn.ReLU)
        require(relu == arm.keeps_last_relu, "base", kinds[relu], f"one {kinds[arm.keeps_last_relu]}, as the arm says")

    learner = _Learner(arm, model, train, options)
    result = IncrementalResult([], torch.full((len(phases),) * 2, torch.nan), [], model, order)
    for p, (old, seen) in enumerate(pairwise(starts)):
        teacher = copy.deepcopy(model) if p else None
        new = ((train.labels >= old) & (train.labels < seen)).nonzero()[:, 0]
        if teacher is not None:
            learner.learn(teacher, new, seen - old)
        learner.choose_exemplars(new, quotas[p])
        if teacher is not None and arm.correct == "fine-tune":
            learner.fine_tune(teacher, seen - old)
        seen_test = test.subset((test.labels < seen).nonzero()[:, 0])
        row, predictions = learner.measure(teacher, seen_test, old, oracle)
        right = per_class_accuracy(predictions, seen_test.labels, seen)
        for q in range(p + 1):
            result.by_phase[p, q] = right[starts[q] : starts[q + 1]].nanmean()
        result.phases.append({"phase": p, "classes": seen} | row)
        result.predictions.append(predictions)
        if watch is not None:
            watch(p, model)
    return result


def _check_phases(arm: Arm, phases: Sequence[Sequence[str]]) -> None:
    require(len(phases) >= 2, "phases", len(phases), "at least 2")
    seen: set[str] = set()
    for p, phase in enumerate(phases):
        fresh = 0 < len(phase) == len(set(phase) - seen)
        require(fresh, "phases", f"{list(phase)} as phase {p}", "at least one class, none seen before")
        enough = not p or not arm.separate or arm.k <= len(phase)
        require(enough, "k", f"{arm.k} with {len(phase)} new classes in phase {p}", "at most that many")
        seen |= set(phase)


def _quotas(arm: Arm, seen: list[int], exemplars: Any, memory: int | None) -> list[int | None]:
    """How many images of each class stay after each phase, from the classes seen by then; None: all."""
    least = 10 if arm.correct == "bias" else 1
    if memory is None:
        number = 20 if exemplars is ... else exemplars
        fine = number is None or (isinstance(number, Integral) and number >= least)
        require(fine, "exemplars", number, "at least 1 (10 for BiC, which holds some out), whole, or None")
        return [number] * len(seen)
    require(exemplars is ..., "exemplars, memory", f"{exemplars}, {memory}", "one of the two")
    fine = isinstance(memory, Integral) and memory >= least * seen[-1]
    allowed = f"a whole number of at least {least * seen[-1]}: {least} for each of {seen[-1]} classes"
    require(fine, "memory", memory, allowed)
    # memory // classes seen
    return [memory // classes for classes in seen]


@dataclass
class _Learner:
    """What goes from phase to phase: the model, trained in place, and the exemplars."""

    arm: Arm
    model: ImageClassifier
    train: LabeledImages
    options: dict[str, Any]  # of fit()
    memory: list[Tensor] = field(default_factory=list)  # for each class the places of its exemplars in `train`
    correction: BiasCorrection | None = None

    def learn(self, teacher: ImageClassifier, new: Tensor, num_new: int) -> None:
        """Train on the images at the places `new` and on the exemplars."""
        arm, model, num_old, seed = self.arm, self.model, len(self.memory), self.options["seed"]
        with keeping_random_state(new.device) as reseed:
            reseed(seed * 1_000_003 + num_old)
            self._grow(self.train.subset(new), num_new)
        kept, held_out = self.memory, []
        if arm.correct == "bias":
            kept, new, held_out = self._hold_out(new)
        data = self.train.subset(torch.cat([new, *kept]))
        cached = data if self.options["augment"] is None else None
        objective = PhaseObjective(arm, teacher, num_old, num_new, self.correction, cached)
        fit(model, data, objective=objective, progress=False, **self.options)
        if arm.clip:
            clip_weights(model.head)
        if arm.correct == "align":
            with torch.no_grad():
                model.head.weight.copy_(weight_align(model.head.weight, num_old))
        if arm.correct == "bias":
            images = self.train.subset(torch.cat(held_out))
            logits = model.head(extract_features(model, images))
            self.correction = BiasCorrection(num_old, num_new).fit(logits, images.labels)

    def _grow(self, new: LabeledImages, num_new: int) -> None:
        arm, model = self.arm, self.model
        if arm.head == "linear":
            model.head = extended_linear(model.head, num_new)
        else:
            model.head.extend(num_new)
            if arm.imprint:
                model.head.imprint(extract_features(model, new), new.labels)
            if arm.freeze_old_rows:
                model.head.freeze_old_rows()
        model.num_classes += num_new

    def _hold_out(self, new: Tensor) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        """For BiC: exemplars and new images to train on, and as many images of each old and new class held out.

        That many: a tenth of the exemplars of a class, or of the images of the smallest class if it has fewer.
        """
        labels, seed = self.train.labels[new], self.options["seed"]
        by_class = [new[labels == j] for j in labels.unique()]
        each = max(1, min(map(len, self.memory + by_class)) // 10)
        kept, held_out = [m[:-each] for m in self.memory], [m[-each:] for m in self.memory]
        for mine in by_class:
            held_out.append(mine[torch.randperm(len(mine), generator=torch.Generator().manual_seed(seed))[:each]])
        return kept, new[~torch.isin(new, torch.cat(held_out))], held_out

    def choose_exemplars(self, new: Tensor, quota: int | None) -> None:
        """Keep the first `quota` of each old class, and herd as many of each new one; `new`: places of its images."""
        self.memory = [mine[:quota] for mine in self.memory]
        features, labels = extract_features(self.model, self.train.subset(new)), self.train.labels[new]
        for j in labels.unique():
            mine = (labels == j).nonzero()[:, 0]
            if quota is not None:
                mine = mine[herding(features[mine], min(quota, len(mine)))]
            self.memory.append(new[mine])

    def fine_tune(self, teacher: ImageClassifier, num_new: int) -> None:
        """On exemplars alone: all rows and biases, a tenth of the learning rate; backbone and scale stand still."""
        model = self.model
        trained = {p: p.requires_grad for p in model.parameters()}
        model.requires_grad_(False)
        for part in model.head.parameters():
            part.requires_grad_(part.ndim > 0)
        balanced = self.train.subset(torch.cat(self.memory))
        plain = replace(self.arm, distill="none", weight=None)
        objective = PhaseObjective(plain, teacher, len(self.memory) - num_new, num_new)
        fit(model, balanced, objective=objective, progress=False, **self.options | {"lr": self.options["lr"] / 10})
        for parameter, value in trained.items():
            parameter.requires_grad_(value)

    def measure(
        self, teacher: ImageClassifier | None, test: LabeledImages, old: int, oracle: bool
    ) -> tuple[dict[str, float], Tensor]:
        """A row of `IncrementalResult.phases`, and the predictions; `test` has the classes seen so far."""
        model, seen, train = self.model, len(self.memory), self.train
        features = extract_features(model, test)
        with evaluating(model):
            logits = model.head(features)
        predictions = (logits if self.correction is None else self.correction(logits)).argmax(1)

        def accuracy(images: LabeledImages) -> float:
            means = nearest_mean(features, extract_features(model, images), images.labels, seen)
            return balanced_accuracy(means, test.labels, seen)

        row = {
            "accuracy": balanced_accuracy(predictions, test.labels, seen),
            "accuracy_nme": accuracy(train.subset(torch.cat(self.memory))),
        }
        if oracle:
            row["accuracy_ncm"] = accuracy(train.subset((train.labels < seen).nonzero()[:, 0]))
        if teacher is not None:
            before = test.subset((test.labels < old).nonzero()[:, 0])
            row |= error_blocks(predictions, test.labels, old)
            row["drift"] = less_forget_loss(features[test.labels < old], extract_features(teacher, before)).item()
            row |= _row_changes(model.head, teacher.head, old)
        return row, predictions


@torch.no_grad()
def _row_changes(head: Any, before: Any, old: int) -> dict[str, float]:
    norms, rows, were = row_norms(head.weight), F.normalize(head.weight[:old], dim=1), F.normalize(before.weight, dim=1)
    # angle = 2 asin(chord / 2), exactly 0 for a row that stayed
    angle = 2 * ((rows - were).norm(dim=1) / 2).clamp(max=1).asin()
    found = {"norm_ratio": norms[old:].mean() / norms[:old].mean(), "row_angle": torch.rad2deg(angle).mean()}
    if isinstance(head, nn.Linear):
        found["bias_gap"] = head.bias[old:].mean() - head.bias[:old].mean()
    return {name: value.item() for name, value in found.items()}


def new_class_margins(cosines: Tensor, labels: Tensor, num_old: int) -> Tensor:
    """cos(f, w_y) minus the largest cosine with a new class, for the images of old classes among `labels`: (N_old,).

    Below 0 the image is taken for a new class (if it is not lost to another old class already).
    """
    class_counts(labels, cosines.shape[1])  # refuses labels of other classes
    require(1 <= num_old < cosines.shape[1], "num_old", num_old, f"1 to {cosines.shape[1] - 1}")
    (cosines,), labels = floats(cosines=cosines), labels.long()
    seen = f"shape {tuple(cosines.shape)} with {len(labels)} labels"
    require(cosines.ndim == 2 and len(cosines) == len(labels), "cosines", seen, "(N, C) with (N,)")
    old = labels < num_old
    # cos(f, w_y) - max over new j of cos(f, w_j)
    return cosines[old].gather(1, labels[old, None])[:, 0] - cosines[old, num_old:].amax(1)
