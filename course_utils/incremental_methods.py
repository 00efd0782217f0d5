"""Methods of class-incremental learning as small choices (`Arm`), and the loss that follows from them.

`ARMS` names the methods of the course: replay, iCaRL's distillation, WA, BiC, and LUCIR (Hou et al. 2019) step by step.
`CONTROLS` takes them apart: each differs from a neighbour in one choice, so that a difference has one cause.
`course_utils.incremental.run_incremental()` takes an arm through the phases.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import LabeledImages, class_counts
from .losses import (
    adaptive_less_forget_weight,
    distillation_loss,
    inter_class_separation_loss,
    less_forget_loss,
    score_distillation_loss,
)
from .machinery.checks import floats
from .networks import ImageClassifier
from .runtime import require
from .training import extract_features


@dataclass(frozen=True)
class Arm:
    """One method of class-incremental learning, as choices.

    head: "linear" or "cosine".
    last_relu: whether features end in a ReLU and so are never negative. None: as in LUCIR's released code, where a
        linear head has it and a cosine head has not.
    distill: what of the teacher is kept: "none", its "logits" (softened), its "scores" (cosines of the old classes) or
        its "features" (less-forget constraint).
    weight: what scores or features weigh: lambda_base sqrt(n_old / n_new) for "old/new", as in LUCIR's released code;
        lambda_base sqrt(n_new / n_old) for "new/old", as equation 7 is printed; lambda_base for "constant". None: as
        released, 1 for scores and "old/new" for features.
    share: cross-entropy and distillation of logits weigh n_new and n_old of n_old + n_new (as for BiC); else 1 and 1.
        Matters only if logits are distilled.
    imprint: start new rows at the mean direction of their class (cosine head only).
    freeze_old_rows: only the rows of the newest classes are trained (cosine head only).
    separate: inter-class separation, with `margin` and the `k` nearest new classes.
    clip: negative weights of the classifier are set to 0 before every step and at the end (linear head only). WA wants
        it: above a last ReLU, a longer row then means larger logits.
    correct: after training, "none", "align" (WA), "bias" (BiC) or "fine-tune" (the head, on balanced exemplars).
    less_forget: lambda_base, for features and wherever `weight` is given.
    """

    head: str = "cosine"
    last_relu: bool | None = None
    distill: str = "none"
    weight: str | None = None
    share: bool = False
    imprint: bool = True
    freeze_old_rows: bool = False
    separate: bool = False
    clip: bool = False
    correct: str = "none"
    less_forget: float = 5.0
    margin: float = 0.5
    k: int = 2

    def __post_init__(self):
        choices = {
            "head": ("linear", "cosine"),
            "last_relu": (None, True, False),
            "distill": ("none", "logits", "scores", "features"),
            "weight": (None, "old/new", "new/old", "constant"),
            "correct": ("none", "align", "bias", "fine-tune"),
        }
        for name, allowed in choices.items():
            require(getattr(self, name) in allowed, name, repr(getattr(self, name)), ", ".join(map(str, allowed)))
        not_with = {
            "linear": (("freeze_old_rows", True), ("separate", True), ("distill", "scores")),
            "cosine": (("clip", True), ("correct", "align")),
        }
        (other,) = not_with.keys() - {self.head}
        for name, value in not_with[self.head]:
            got = f"{value!r} with a {self.head} head"
            require(getattr(self, name) != value, name, got, f"with a {other} head")
        weighs = self.weight is None or self.distill in ("scores", "features")
        require(weighs, "weight", f"{self.weight!r} with distill {self.distill!r}", "with scores or features")
        require(self.less_forget >= 0, "less_forget", self.less_forget, "at least 0")
        require(math.isfinite(self.margin), "margin", self.margin, "a number")
        require(self.k >= 1, "k", self.k, "at least 1")

    @property
    def keeps_last_relu(self) -> bool:
        return self.head == "linear" if self.last_relu is None else self.last_relu

    @property
    def family(self) -> str:
        """Arms of one family start from the same base model: "linear", "linear, no ReLU", "cosine", "cosine, ReLU"."""
        usual = {"linear": True, "cosine": False}[self.head] == self.keeps_last_relu
        return self.head if usual else f"{self.head}, {'ReLU' if self.keeps_last_relu else 'no ReLU'}"

    def distillation_weight(self, num_old: int, num_new: int) -> float:
        """What scores or features weigh beside the cross-entropy."""
        weight = self.weight or ("old/new" if self.distill == "features" else "one")
        return {
            # lambda_base sqrt(n_old / n_new)   (Hou et al. 2019, equation 7, as released)
            "old/new": adaptive_less_forget_weight(self.less_forget, num_old, num_new),
            # lambda_base sqrt(n_new / n_old)   (the same, as printed)
            "new/old": adaptive_less_forget_weight(self.less_forget, num_new, num_old),
            "constant": self.less_forget,
            "one": 1.0,
        }[weight]


ARMS = {
    "replay": Arm("linear"),
    "distillation (iCaRL)": Arm("linear", distill="logits"),
    "WA": Arm("linear", distill="logits", share=True, clip=True, correct="align"),
    "BiC": Arm("linear", distill="logits", share=True, correct="bias"),
    "cosine": Arm(),
    "cosine + score distillation": Arm(distill="scores"),
    "cosine + frozen rows": Arm(freeze_old_rows=True),
    "cosine + less-forget": Arm(distill="features", freeze_old_rows=True),
    "LUCIR": Arm(distill="features", freeze_old_rows=True, separate=True),
    "LUCIR + fine-tuning": Arm(distill="features", freeze_old_rows=True, separate=True, correct="fine-tune"),
}

_BIC = Arm("linear", distill="logits", share=True, correct="bias")
CONTROLS = {
    # the network without the method, and the method without its network
    "replay, no ReLU": Arm("linear", last_relu=False),
    "distillation, no ReLU": Arm("linear", last_relu=False, distill="logits"),
    "BiC, no ReLU": replace(_BIC, last_relu=False),
    "cosine, ReLU": Arm(last_relu=True),
    "cosine, not imprinted": Arm(imprint=False),
    "cosine + distillation": Arm(distill="logits"),
    "cosine + BiC": Arm(distill="logits", share=True, correct="bias"),
    "LUCIR, ReLU": Arm(last_relu=True, distill="features", freeze_old_rows=True, separate=True),
    "LUCIR, not imprinted": Arm(imprint=False, distill="features", freeze_old_rows=True, separate=True),
    # repairs without one of their steps
    "BiC, no correction": replace(_BIC, correct="none"),  # also WA, neither clipped nor aligned
    "WA, no clipping": Arm("linear", distill="logits", share=True, correct="align"),
    "WA, no aligning": Arm("linear", distill="logits", share=True, clip=True),
    # scores against features: weight 1 or lambda, old rows free or frozen
    "scores, weight 1, frozen": Arm(distill="scores", freeze_old_rows=True),
    "scores, lambda, free": Arm(distill="scores", weight="old/new"),
    "scores, lambda, frozen": Arm(distill="scores", weight="old/new", freeze_old_rows=True),
    "features, weight 1, free": Arm(distill="features", weight="constant", less_forget=1.0),
    "features, weight 1, frozen": Arm(distill="features", weight="constant", less_forget=1.0, freeze_old_rows=True),
    "features, lambda, free": Arm(distill="features"),
    # lambda upside down
    "less-forget, printed lambda": Arm(distill="features", weight="new/old", freeze_old_rows=True),
    "LUCIR, printed lambda": Arm(distill="features", weight="new/old", freeze_old_rows=True, separate=True),
}


class BiasCorrection:
    """BiC (Wu et al. 2019, equation 4): logits of the newest classes become alpha z + beta; others stay.

    `fit()` learns the two numbers on held-out images with as many of old as of new classes, by cross-entropy plus
    0.05 beta^2. Two numbers, a convex problem: solved to the end by L-BFGS instead of epochs of SGD.

    Differs from the released code in: `run_incremental()` holds exemplars of old classes out of this phase only, so
    most were trained on when their class was new. There they are set aside before the first training, the base phase
    included; here all methods share one base, which has seen all its images.
    """

    def __init__(self, num_old: int, num_new: int, alpha: float = 1.0, beta: float = 0.0):
        require(min(num_old, num_new) >= 1, "num_old, num_new", f"{num_old}, {num_new}", "at least 1")
        self.newest, self.alpha, self.beta = slice(num_old, num_old + num_new), alpha, beta

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, C) to (B, C), the newest classes last."""
        shape = tuple(logits.shape)
        require(shape[1:] == (self.newest.stop,), "logits", f"shape {shape}", f"(B, {self.newest.stop})")
        (logits,) = floats(logits=logits)
        # z_j -> alpha z_j + beta for the newest classes j
        corrected = logits.clone()
        corrected[:, self.newest] = self.alpha * logits[:, self.newest] + self.beta
        return corrected

    def fit(self, logits: Tensor, labels: Tensor) -> BiasCorrection:
        """logits: (N, C), not corrected; labels: (N,). Returns itself."""
        from scipy.optimize import minimize  # here: it takes a second to import, in every process of run_grid()

        seen = f"shape {tuple(logits.shape)}, {len(labels)} labels"
        require(len(logits) == len(labels) > 0, "logits", seen, "one label each")
        class_counts(labels, self.newest.stop)  # refuses labels of other classes
        require(logits.isfinite().all(), "logits", "NaN or infinity", "finite numbers")
        (logits,) = floats(logits=logits)
        logits, labels = logits.detach().cpu().double(), labels.cpu().long()  # Apple GPUs have no float64

        def loss(pair):
            self.alpha, self.beta = torch.tensor(pair, dtype=torch.float64, requires_grad=True)
            # CE(alpha z + beta) + 0.05 beta^2
            value = F.cross_entropy(self(logits), labels) + 0.05 * self.beta**2
            return value.item(), [g.item() for g in torch.autograd.grad(value, (self.alpha, self.beta))]

        self.alpha, self.beta = minimize(loss, [1.0, 0.0], jac=True, method="L-BFGS-B").x.tolist()
        return self


def clip_weights(head: nn.Linear) -> None:
    """Set negative weights to 0, in place (WA, Zhao et al. 2020, section 4.2)."""
    with torch.no_grad():
        head.weight.clamp_(min=0)


class PhaseObjective:
    """The sum of the terms that an arm chose, for `fit(objective=...)`.

    teacher: the model before this phase. num_old, num_new: classes. If `images` is given (uint8, the images of `fit`,
    in its order, and no augmentation), the teacher looks at them once, instead of at every batch of every epoch.
    """

    def __init__(
        self,
        arm: Arm,
        teacher: ImageClassifier,
        num_old: int,
        num_new: int,
        correction: BiasCorrection | None = None,
        images: LabeledImages | None = None,
    ):
        enough = not arm.separate or arm.k <= num_new
        require(enough, "k", arm.k, f"1 to {num_new}, the number of new classes")
        self.arm, self.num_old, self.num_new, self.correction = arm, num_old, num_new, correction
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        require(min(num_old, num_new) >= 1, "num_old, num_new", f"{num_old}, {num_new}", "at least 1")
        self.weight = arm.distillation_weight(num_old, num_new)
        self.cached = None
        if images is not None and arm.distill != "none":
            self.cached = self._of_teacher(extract_features(self.teacher, images))

    @torch.no_grad()
    def _of_teacher(self, features: Tensor) -> Tensor:
        if self.arm.distill == "features":
            return features
        if self.arm.distill == "scores":
            return self.teacher.head.cosines(features)
        logits = self.teacher.head(features)
        return logits if self.correction is None else self.correction(logits)

    def __call__(self, model: ImageClassifier, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        arm, features = self.arm, model.features(images)
        if arm.clip:
            clip_weights(model.head)
        if arm.head == "cosine":
            cosines = model.head.cosines(features)
            logits = model.head.scale * cosines
        else:
            logits = model.head(features)
        classes, here = self.num_old + self.num_new, logits.shape[1]
        require(here == classes, "model", f"{here} classes", f"{self.num_old} old and {self.num_new} new")
        # L = L_ce
        loss = F.cross_entropy(logits, labels)
        if arm.distill != "none":
            with torch.no_grad():
                kept = self._of_teacher(self.teacher.features(images)) if self.cached is None else self.cached[indices]
        if arm.distill == "logits":
            # L = (n_new / n) L_ce + (n_old / n) L_distill, or L_ce + L_distill
            part = self.num_old / classes
            weights = (1 - part, part) if arm.share else (1, 1)
            loss = weights[0] * loss + weights[1] * distillation_loss(logits, kept)
        elif arm.distill == "scores":
            # L = L_ce + lambda L_distill of the cosines, lambda = 1 as released
            loss = loss + self.weight * score_distillation_loss(cosines, kept)
        elif arm.distill == "features":
            # L = L_ce + lambda L_forget, lambda = lambda_base sqrt(n_old / n_new) as released
            loss = loss + self.weight * less_forget_loss(features, kept)
        if arm.separate:
            # ... + L_separate
            loss = loss + inter_class_separation_loss(cosines, labels, self.num_old, arm.margin, arm.k)
        return loss
