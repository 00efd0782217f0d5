"""All functions of the lessons that take tensors, on generated inputs: types, shapes, order, NaN, nothing, nonsense.

The table `CASES` says what each argument is, as "kind axes": N images, M other images, C classes, D features; and what
comes out. Half precision has to give exactly what the same numbers give in float32, small integers what they give in
int64, or be refused by the name of the argument.
"""

import importlib
import inspect
import math
import tempfile
from functools import partial
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from pretend_gpu import pretend_gpu
from torch import nn

import course_utils
from course_utils.backbones import EqualLength
from course_utils.data import LabeledImages, class_counts, long_tailed
from course_utils.decoupling import (
    LearnableWeightScaling,
    NearestClassMean,
    class_means,
    retrain_classifier,
    tau_normalize,
    tau_sweep,
    train_head,
)
from course_utils.heads import (
    CosineClassifier,
    equalize_biases,
    equalize_norms,
    positive_norms,
    row_norms,
    weight_align,
    with_norms,
)
from course_utils.incremental import herding, nearest_mean, new_class_margins
from course_utils.incremental_methods import BiasCorrection
from course_utils.losses import (
    DeferredReweighting,
    FocalLoss,
    LDAMHingeLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    distillation_loss,
    drw_weights,
    effective_number_weights,
    inter_class_separation_loss,
    inverse_frequency_weights,
    ldam_margins,
    less_forget_loss,
    score_distillation_loss,
)
from course_utils.metrics import (
    accepting_threshold,
    balanced_accuracy,
    best_temperature,
    calibration_error,
    confidence_of,
    confusion_matrix,
    error_blocks,
    forgetting,
    open_set_auroc,
    open_set_f_measure,
    open_set_fpr,
    per_class_accuracy,
    reliability_bins,
    shot_accuracy,
    shot_groups,
)
from course_utils.networks import MLP, SmallCNN
from course_utils.openworld import (
    DiscriminativeCentroidLoss,
    MetaEmbeddingClassifier,
    ModulatedAttention,
    centroid_distances,
    nearest_distance,
    open_world_scores,
    reject,
    squash,
    with_attention,
)
from course_utils.sampling import (
    ClassBalancedSampler,
    DeferredResampler,
    InstanceBalancedSampler,
    ProgressivelyBalancedSampler,
    SquareRootSampler,
    class_probabilities,
)
from course_utils.training import random_flip, random_shift, to_float

pytestmark = pytest.mark.usefixtures("one_thread")

HOME = tempfile.TemporaryDirectory()  # for what hypothesis writes; gone with this process
hypothesis.configuration.set_hypothesis_home_dir(HOME.name)


# ---- what there is ---------------------------------------------------------------------------------------------------


class Case:
    """How one function is called. run: function (number of classes, **tensors) -> result.

    gives: axes of the result, after "class" if it holds classes; None: other images or classes in another order give
    another result. order: which of "NMC" may be permuted. fixed: axes whose length the function knows or compares.
    nothing: what an empty set of images gives, if that is no NaN. blank: NaN may come out, as for a group without
    classes. loose: images of any number of axes.
    """

    def __init__(
        self, run, gives="", *, order="NMC", fixed="N", nothing=math.nan, blank=False, loose=False, **arguments
    ):
        self.run, self.gives, self.order, self.fixed = run, gives, order, fixed
        self.nothing, self.blank, self.loose = nothing, blank, loose
        self.arguments = {name: tuple(kind.split()) for name, kind in arguments.items()}


def seeded(make, *arguments, **options):
    """A module with the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*arguments, **options)


def imprinted(c, features, labels):
    head = seeded(CosineClassifier, features.shape[-1], c).to(labels.device)
    head.imprint(features, labels)
    return head.weight.detach()


def images_of(c, labels):
    return LabeledImages(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8).to(labels.device), labels, names(c))


def names(c):
    return tuple(map(str, range(c)))


def fitted(c, logits, labels):
    found = BiasCorrection(1, c - 1).fit(logits, labels)
    return torch.tensor([found.alpha, found.beta])


def deferred(c, class_counts, logits, labels):
    loss = DeferredReweighting(partial(FocalLoss, 1.0), class_counts, 10)
    loss.set_epoch(9)
    return loss(logits, labels)


def centroid_loss(c, features, labels, centroids):
    forms = (DiscriminativeCentroidLoss(10.0, 0.5, pairwise) for pairwise in (False, True))
    return torch.stack([form(features, labels, centroids) for form in forms])


def head_losses(c, features, labels):
    head = seeded(nn.Linear, features.shape[-1], c).to(features.device)
    return torch.tensor(train_head(head, features, labels, epochs=2, lr=1e-3))


def attention(c, x):
    layer = seeded(ModulatedAttention, 3, 4, 4)
    nn.init.ones_(layer.out.weight)
    return layer.to(x.device)(x)


def attended(c, images):
    model = seeded(SmallCNN, c, width=2).to(images.device).eval()
    return with_attention(model, images).features(images).detach()


FLOATS = ("real", "probability", "cosine", "confidence", "positive", "accuracy")
INTEGERS = ("class", "said", "old", "open")

CASES = {
    # metrics
    "metrics.per_class_accuracy": Case(
        lambda c, predictions, labels: per_class_accuracy(predictions, labels, c),
        "C",
        predictions="said N",
        labels="class N",
    ),
    "metrics.balanced_accuracy": Case(
        lambda c, predictions, labels: balanced_accuracy(predictions, labels, c), predictions="said N", labels="class N"
    ),
    "metrics.shot_accuracy": Case(
        lambda c, per_class, class_counts: shot_accuracy(per_class, class_counts, many=60, few=30),
        fixed="C",
        blank=True,
        per_class="accuracy C",
        class_counts="count0 C",
    ),
    "metrics.shot_groups": Case(lambda c, class_counts: shot_groups(class_counts), "C", class_counts="count0 C"),
    "metrics.best_temperature": Case(
        lambda c, logits, labels: best_temperature(logits, labels), logits="real N C", labels="class N"
    ),
    "metrics.calibration_error": Case(
        lambda c, probabilities, labels: calibration_error(probabilities, labels, bins=8),
        probabilities="probability N C",
        labels="class N",
    ),
    "metrics.reliability_bins": Case(
        lambda c, probabilities, labels: reliability_bins(probabilities, labels, bins=4),
        blank=True,
        probabilities="probability N C",
        labels="class N",
    ),
    "metrics.confidence_of": Case(
        lambda c, probabilities: confidence_of(probabilities)[0], "N", fixed="", probabilities="probability N C"
    ),
    "metrics.forgetting": Case(
        lambda c, per_phase: forgetting(per_phase), order="", fixed="C", per_phase="accuracy C C"
    ),
    "metrics.error_blocks": Case(
        lambda c, predictions, labels: error_blocks(predictions, labels, 1),
        order="N",
        blank=True,
        predictions="old N",
        labels="old N",
    ),
    "metrics.confusion_matrix": Case(
        lambda c, predictions, labels: confusion_matrix(predictions, labels, c),
        "C C",
        nothing=0,
        predictions="class N",
        labels="class N",
    ),
    "metrics.open_set_f_measure": Case(
        lambda c, predictions, labels: open_set_f_measure(predictions, labels), predictions="open N", labels="open N"
    ),
    "metrics.open_set_auroc": Case(
        lambda c, confidence, is_open: open_set_auroc(confidence, is_open), confidence="confidence N", is_open="mask N"
    ),
    "metrics.open_set_fpr": Case(
        lambda c, confidence, is_open: open_set_fpr(confidence, is_open, accepted=0.7),
        confidence="confidence N",
        is_open="mask N",
    ),
    "metrics.accepting_threshold": Case(
        lambda c, confidence: accepting_threshold(confidence, 0.3), fixed="", confidence="confidence N"
    ),
    "openworld.open_world_scores": Case(
        lambda c, probabilities, labels, class_counts: open_world_scores(probabilities, labels, class_counts),
        blank=True,
        fixed="NC",
        probabilities="probability N C",
        labels="open N",
        class_counts="count0 C",
    ),
    "openworld.reject": Case(
        lambda c, probabilities: reject(probabilities, 0.4), "class N", fixed="", probabilities="probability N C"
    ),
    # losses
    "losses.inverse_frequency_weights": Case(
        lambda c, class_counts: inverse_frequency_weights(class_counts), "C", class_counts="count C"
    ),
    "losses.effective_number_weights": Case(
        lambda c, class_counts: effective_number_weights(class_counts, 0.9), "C", class_counts="count C"
    ),
    "losses.ldam_margins": Case(lambda c, class_counts: ldam_margins(class_counts), "C", class_counts="count C"),
    "losses.drw_weights": Case(lambda c, class_counts: drw_weights(9, 10, class_counts), "C", class_counts="count C"),
    "losses.FocalLoss": Case(
        lambda c, logits, labels, weight: FocalLoss(2.0, weight)(logits, labels),
        fixed="NC",
        logits="real N C",
        labels="class N",
        weight="positive C",
    ),
    "losses.LogitAdjustedLoss": Case(
        lambda c, class_counts, logits, labels, weight: LogitAdjustedLoss(class_counts, 0.7, weight).to(logits.device)(
            logits, labels
        ),
        fixed="NC",
        class_counts="count C",
        logits="real N C",
        labels="class N",
        weight="positive C",
    ),
    "losses.LDAMLoss": Case(
        lambda c, class_counts, cosines, labels, weight: LDAMLoss(class_counts, weight=weight).to(cosines.device)(
            cosines, labels
        ),
        fixed="NC",
        class_counts="count C",
        cosines="cosine N C",
        labels="class N",
        weight="positive C",
    ),
    "losses.LDAMHingeLoss": Case(
        lambda c, class_counts, cosines, labels, weight: LDAMHingeLoss(class_counts, weight=weight).to(cosines.device)(
            cosines, labels
        ),
        fixed="NC",
        class_counts="count C",
        cosines="cosine N C",
        labels="class N",
        weight="positive C",
    ),
    "losses.DeferredReweighting": Case(
        deferred, fixed="NC", class_counts="count C", logits="real N C", labels="class N"
    ),
    "losses.distillation_loss": Case(
        lambda c, logits, old_logits: distillation_loss(logits, old_logits, 3.0),
        logits="real N C",
        old_logits="real N C",
    ),
    "losses.score_distillation_loss": Case(
        lambda c, cosines, old_cosines: score_distillation_loss(cosines, old_cosines),
        cosines="cosine N C",
        old_cosines="cosine N C",
    ),
    "losses.less_forget_loss": Case(
        lambda c, features, old_features: less_forget_loss(features, old_features),
        fixed="ND",
        features="real N D",
        old_features="real N D",
    ),
    "losses.inter_class_separation_loss": Case(
        lambda c, cosines, labels: inter_class_separation_loss(cosines, labels, 1, k=1),
        order="N",
        nothing=0,
        cosines="cosine N C",
        labels="class N",
    ),
    # heads
    "heads.CosineClassifier": Case(
        lambda c, features: seeded(CosineClassifier, features.shape[-1] if features.ndim == 2 else 5, c).to(
            features.device
        )(features),
        "N C",
        order="N",
        fixed="",
        features="real N D",
    ),
    "heads.CosineClassifier.imprint": Case(imprinted, "C D", order="N", features="real N D", labels="class N"),
    "heads.row_norms": Case(lambda c, weight: row_norms(weight), "C", fixed="", weight="real C D"),
    "heads.positive_norms": Case(lambda c, weight: positive_norms(weight), "C", fixed="", weight="real C D"),
    "heads.weight_align": Case(lambda c, weight: weight_align(weight, 1), "C D", order="", fixed="", weight="real C D"),
    "heads.equalize_norms": Case(lambda c, weight: equalize_norms(weight, 0.7), "C D", fixed="", weight="real C D"),
    "heads.with_norms": Case(
        lambda c, weight, norms: with_norms(weight, norms), "C D", fixed="C", weight="real C D", norms="positive C"
    ),
    "heads.equalize_biases": Case(lambda c, bias: equalize_biases(bias, 0.7), "C", fixed="", bias="real C"),
    # decoupling
    "decoupling.tau_normalize": Case(lambda c, weight: tau_normalize(weight, 0.7), "C D", fixed="", weight="real C D"),
    "decoupling.tau_sweep": Case(
        lambda c, features, weight, bias: tau_sweep(features, weight, [0.7], bias)[0],
        "class N",
        fixed="CD",
        features="real N D",
        weight="real C D",
        bias="real C",
    ),
    "decoupling.class_means": Case(
        lambda c, features, labels: class_means(features, labels, c), "C D", features="real N D", labels="class N"
    ),
    "decoupling.NearestClassMean": Case(
        lambda c, features, labels: NearestClassMean(features, labels, c)(features),
        "N C",
        features="real N D",
        labels="class N",
    ),
    "decoupling.LearnableWeightScaling": Case(
        lambda c, features, weight, bias: LearnableWeightScaling(weight, bias)(features).detach(),
        "N C",
        fixed="CD",
        features="real N D",
        weight="real C D",
        bias="real C",
    ),
    "decoupling.train_head": Case(head_losses, order="", features="real N D", labels="class N"),
    "decoupling.retrain_classifier": Case(
        lambda c, features, labels: retrain_classifier(features, labels, c, epochs=1, lr=1e-3).weight.detach(),
        order="",
        features="real N D",
        labels="class N",
    ),
    # incremental
    "incremental.herding": Case(
        lambda c, features: features[herding(features, 3)], order="N", fixed="", features="real N D"
    ),
    "incremental.nearest_mean": Case(
        lambda c, features, stored, labels: nearest_mean(features, stored, labels, c),
        "class M",
        fixed="ND",
        features="real M D",
        stored="real N D",
        labels="class N",
    ),
    "incremental.new_class_margins": Case(
        lambda c, cosines, labels: new_class_margins(cosines, labels, 1).sort()[0],
        order="N",
        cosines="cosine N C",
        labels="class N",
    ),
    "incremental_methods.BiasCorrection.__call__": Case(
        lambda c, logits: BiasCorrection(1, c - 1, 0.7, 0.3)(logits), "N C", order="N", fixed="C", logits="real N C"
    ),
    "incremental_methods.BiasCorrection.fit": Case(fitted, order="", fixed="NC", logits="real N C", labels="class N"),
    # openworld
    "openworld.centroid_distances": Case(
        lambda c, features, centroids: centroid_distances(features, centroids),
        "N C",
        fixed="D",
        features="real N D",
        centroids="real C D",
    ),
    "openworld.nearest_distance": Case(
        lambda c, features, centroids: nearest_distance(features, centroids),
        "N",
        fixed="D",
        features="real N D",
        centroids="real C D",
    ),
    "openworld.squash": Case(lambda c, vectors: squash(vectors), "N D", fixed="", vectors="real N D"),
    "openworld.MetaEmbeddingClassifier": Case(
        lambda c, features, centroids: seeded(MetaEmbeddingClassifier, centroids)(features).detach(),
        "N C",
        order="N",
        fixed="D",
        features="real N D",
        centroids="real C D",
    ),
    "openworld.DiscriminativeCentroidLoss": Case(
        centroid_loss, fixed="ND", features="real N D", labels="class N", centroids="real C D"
    ),
    "openworld.ModulatedAttention": Case(attention, "N 3 4 4", fixed="34", x="real N 3 4 4"),
    "openworld.with_attention": Case(attended, "N 8", order="N", fixed="", images="real N 1 8 8"),
    "backbones.EqualLength": Case(
        lambda c, features, center: EqualLength(center)(features),
        "N D",
        fixed="D",
        features="real N D",
        center="real D",
    ),
    # data, samplers, networks, batches
    "data.class_counts": Case(lambda c, labels: class_counts(labels, c), "C", fixed="", nothing=0, labels="class N"),
    "data.LabeledImages": Case(
        lambda c, labels: images_of(c, labels).counts, "C", nothing=0, fixed="", labels="class N"
    ),
    "data.Labeled.subset": Case(
        lambda c, indices: images_of(c, torch.arange(c).to(indices.device)).subset(indices).labels,
        "class N",
        order="N",
        fixed="",
        indices="class N",
    ),
    "data.long_tailed": Case(
        lambda c, counts: long_tailed(images_of(c, torch.arange(c).repeat_interleave(120)), counts, seed=0).counts,
        "C",
        fixed="C",
        counts="whole C",
    ),
    "sampling.class_probabilities": Case(
        lambda c, class_counts: class_probabilities(class_counts, 0.3), "C", class_counts="count C"
    ),
    **{
        f"sampling.{kind.__name__}": Case(
            lambda c, labels, kind=kind, options=options: kind(labels, **options).indices(),
            order="",
            fixed="",
            labels="label N",
        )
        for kind, options in (
            (InstanceBalancedSampler, {}),
            (ClassBalancedSampler, {}),
            (SquareRootSampler, {}),
            (ProgressivelyBalancedSampler, {"epochs": 3}),
            (DeferredResampler, {"epochs": 3}),
        )
    },
    "networks.ImageClassifier": Case(
        lambda c, images: seeded(MLP, c, in_features=16).to(images.device)(images).detach(),
        "N C",
        order="N",
        fixed="",
        loose=True,
        images="real N 1 4 4",
    ),
    "training.to_float": Case(
        lambda c, images: to_float(images), "N 1 4 4", fixed="", loose=True, images="pixel N 1 4 4"
    ),
    "training.random_shift": Case(
        lambda c, images: random_shift(images, torch.Generator().manual_seed(0)),
        order="",
        fixed="",
        images="pixel N 1 4 4",
    ),
    "training.random_flip": Case(
        lambda c, images: random_flip(images, torch.Generator().manual_seed(0)),
        order="",
        fixed="",
        images="pixel N 1 4 4",
    ),
}

NOT_HERE = {
    "data.LabeledFeatures.__init__": "any width is right; the rest is in test_labeled.py",
    "data.Labeled.stream": "called by Batches with places that it counted",
    "photos.Photos": "of files; test_photos.py",
    "backbones.fine_tune": "of files; test_backbones.py",
    "classifier.Answers": "holds what predict() gave",
    "networks.EfficientNetLite0": "a backbone of 3.4 million weights; test_backbones.py",
    "runtime.write_tensors": "keeps types; test_backbones.py",
    "photos.View": "sees what it has read itself",
    "checks.floats": "what all of these take their arguments through",
    "checks.sums": "of values and groups that were checked",
    "runtime.on_cpu": "reads no number",
    "runtime.tensor_digest": "tells types apart, too",
    "incremental.IncrementalResult": "holds results",
    "openworld.MetaEmbedding": "holds results",
    "methods.CachedFeatures": "holds what extract_features() gave",
    "methods.Setting": "holds a function",
    "methods.ldam_loss": "is LDAMLoss",
    "methods.linear_head": "makes a head of weights that were computed",
    "incremental_methods.PhaseObjective": "called by fit() with its batches",
    "openworld.CentroidObjective": "called by fit() with its batches",
    "training.fit": "takes a function",
    "training.SGD": "takes its own state",
    "sampling.EpochSampler": "the common part of the samplers",
    "sampling.shuffled_within": "inside of the samplers",
    "sampling.pick": "inside of the samplers",
}


def test_no_function_that_takes_tensors_is_forgotten():
    def takes(function):
        return any("Tensor" in str(p.annotation) for p in inspect.signature(function).parameters.values())

    found = set()
    for file in Path(course_utils.__file__).parent.glob("[a-z]*.py"):
        module = importlib.import_module(f"course_utils.{file.stem}")
        for name, thing in vars(module).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
                continue
            if inspect.isclass(thing):
                own = {k: f for k, f in vars(thing).items() if inspect.isfunction(f) and (k[0] != "_" or k[:2] == "__")}
                methods = [f"{file.stem}.{name}.{k}" for k, function in own.items() if takes(function)]
                whole = f"{file.stem}.{name}"
                found |= {whole if whole in CASES.keys() | NOT_HERE.keys() else method for method in methods}
            elif callable(thing) and takes(thing):
                found.add(f"{file.stem}.{name}")
    assert len(found) > 60 and found <= CASES.keys() | NOT_HERE.keys(), sorted(found - CASES.keys() - NOT_HERE.keys())
    assert not CASES.keys() & NOT_HERE.keys()


# ---- inputs ----------------------------------------------------------------------------------------------------------


def drawn(case, seed, n, c, d, size, ties=True):
    """Inputs that are right, in float64 and int64. Every class occurs; n more images than classes."""
    generator = torch.Generator().manual_seed(seed)
    lengths = {"N": c + n, "M": n + 1, "C": c, "D": d}
    found = {}
    for name, (kind, *axes) in case.arguments.items():
        shape = [lengths[axis] if axis in lengths else int(axis) for axis in axes]
        found[name] = _values(kind if ties or kind != "probability" else "softmax", shape, c, size, generator)
    return found


def _values(kind, shape, c, size, generator):
    def uniform():
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    if kind == "real":
        return size * torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "softmax":
        return (8 * uniform()).softmax(1)
    if kind == "probability":  # multiples of 1/64, which every type holds exactly
        bins = torch.multinomial(torch.rand(shape, generator=generator) ** 3 + 1e-6, 64, True, generator=generator)
        return nn.functional.one_hot(bins, shape[1]).sum(1).double() / 64
    if kind in ("class", "said", "old", "label", "open"):
        values = torch.cat([torch.arange(c), torch.randint(c, (shape[0] - c,), generator=generator)])
        values = values[torch.randperm(len(values), generator=generator)]
        return torch.where(uniform() < 0.3, -1, values) if kind == "open" else values
    if kind == "mask":
        mask = uniform() < 0.4
        mask[0], mask[1] = True, False
        return mask
    if kind in ("count", "count0", "whole"):
        return torch.randint(1, 120, shape, generator=generator)
    if kind == "pixel":
        return torch.randint(256, shape, generator=generator).byte()
    return {"cosine": 2 * uniform() - 1, "positive": uniform() + 0.5}.get(kind, uniform())


def typed(case, values, float_type, int_type):
    kinds = {name: kind for name, (kind, *_) in case.arguments.items()}
    types = {name: float_type if v.is_floating_point() else int_type for name, v in values.items()}
    types |= {name: torch.int8 for name, kind in kinds.items() if kind == "open" and int_type == torch.uint8}  # has -1
    fixed = ("mask", "pixel")
    return {name: v if kinds[name] in fixed else v.to(types[name]) for name, v in values.items()}


def numbers(result):
    """Whatever comes out, as one tensor of float64."""
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, list | tuple):
        return torch.cat([numbers(value).flatten() for value in result])
    return torch.as_tensor(result).detach().cpu().double()


def refusal(case, c, values):
    """The text of the ValueError that names an argument; None if there was a result."""
    try:
        case.run(c, **values)
    except ValueError as error:
        assert str(error).split(":")[0] in (*case.arguments, "k"), f"names no argument: {error}"  # k of herding()
        return str(error)
    return None


def generated(examples, **more):
    """A decorator: run with some sizes, the same ones every time."""

    def decorate(test):
        given = hypothesis.given(
            seed=st.integers(0, 2**32 - 1),
            n=st.integers(2, 12),
            c=st.sampled_from([2, 3, 5, 26]),
            d=st.integers(2, 6),
            size=st.sampled_from([1.0, 300.0]),
            **more,
        )
        calm = hypothesis.settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate],
        )
        return calm(given(test))

    return decorate


def for_every_case(check, record_property=None, note="", least=0):
    """Call check(name, case), which gives a number of inputs; all failures at once."""
    failures, total = {}, 0
    for name, case in CASES.items():
        try:
            total += check(name, case)
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {str(error)[:300]}"
    assert not failures, "\n".join(f"{name}: {text}" for name, text in failures.items())
    assert total >= least
    if record_property:
        record_property("note", note.format(total))


# ---- types -----------------------------------------------------------------------------------------------------------

HALVES, FLOAT_TYPES = (torch.float16, torch.bfloat16), (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INT_TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def test_short_types_give_what_the_same_numbers_give_in_long_ones(record_property):
    def check(name, case):
        calls = []

        @generated(8, float_type=st.sampled_from(FLOAT_TYPES), int_type=st.sampled_from(INT_TYPES))
        def same(seed, n, c, d, size, float_type, int_type):
            short = typed(case, drawn(case, seed, n, c, d, size), float_type, int_type)
            long = typed(case, short, torch.float32 if float_type in HALVES else float_type, torch.int64)
            want = numbers(case.run(c, **long))
            assert case.blank or want.isfinite().all(), f"{want} of good numbers"
            calls.append(c)
            try:
                found = numbers(case.run(c, **short))
            except ValueError as error:
                assert str(error).split(":")[0] in case.arguments and int_type != torch.int64, error
            else:
                torch.testing.assert_close(found, want, rtol=0, atol=0, equal_nan=True)
            if not case.gives.startswith("class"):
                exact = numbers(case.run(c, **typed(case, short, torch.float64, torch.int64)))
                scale = exact.nan_to_num().abs().max().item()
                torch.testing.assert_close(want, exact, rtol=1e-4, atol=1e-4 * scale, equal_nan=True)

        same()
        return len(calls)

    for_every_case(check, record_property, "{} generated inputs in all types", least=400)


# ---- order -----------------------------------------------------------------------------------------------------------


def test_the_order_of_images_and_of_classes_does_not_matter(record_property):
    def check(name, case):
        calls = []

        @generated(4)
        def same(seed, n, c, d, size):
            values = drawn(case, seed, n, c, d, 1.0, ties=False)
            generator = torch.Generator().manual_seed(seed)
            lengths = {
                axis: values[a].shape[i] for a, (_, *axes) in case.arguments.items() for i, axis in enumerate(axes)
            }
            lengths["C"] = c
            moves = {axis: torch.randperm(lengths[axis], generator=generator) for axis in case.order if axis in lengths}

            def moved(tensor, kind, axes):
                for i, axis in enumerate(axes):
                    tensor = tensor.index_select(i, moves[axis]) if axis in moves else tensor
                if "C" in moves and kind in ("class", "said", "open"):
                    tensor = torch.cat([moves["C"].argsort(), torch.tensor([-1])])[tensor]
                return tensor

            want = case.run(c, **values)
            kind, axes = ("class" if "class" in case.gives else "", case.gives.replace("class", "").split())
            if isinstance(want, torch.Tensor) and axes:
                want = moved(want, kind, axes)
            found = case.run(c, **{a: moved(v, *_kind_and_axes(case, a)) for a, v in values.items()})
            torch.testing.assert_close(numbers(found), numbers(want), rtol=1e-5, atol=1e-5, equal_nan=True)
            calls.append(c)

        if case.order:
            same()
        return len(calls)

    for_every_case(check, record_property, "{} generated inputs in another order", least=150)


def _kind_and_axes(case, name):
    kind, *axes = case.arguments[name]
    return kind, axes


# ---- NaN, and nothing ------------------------------------------------------------------------------------------------

NAN_HAS_A_MEANING = ("metrics.shot_accuracy",)  # a class without test images


def test_nan_is_refused_or_comes_out(record_property):
    def check(name, case):
        calls = []

        @generated(3, alone=st.booleans())
        def seen(seed, n, c, d, size, alone):
            values = drawn(case, seed, n, c, d, size)
            for argument in [a for a, v in values.items() if v.dtype == torch.float64]:
                spoiled = values[argument].clone()
                first = values["labels"].argmin() if "labels" in values and "N" in case.arguments[argument] else 0
                spoiled[first if alone else ...] = math.nan
                bad = values | {argument: spoiled}
                calls.append(argument)
                text = refusal(case, c, bad)
                if text is None:
                    result = case.run(c, **bad)
                    whole = isinstance(result, torch.Tensor) and not result.is_floating_point()
                    assert not case.blank and not whole and not numbers(result).isfinite().all(), (
                        f"{argument}: {result}"
                    )

        if name not in NAN_HAS_A_MEANING:
            seen()
        return len(calls)

    for_every_case(check, record_property, "{} inputs with NaN, each refused, or NaN came out", least=100)


def test_an_average_over_nothing_is_nan_and_nothing_else_is_made_of_it():
    def check(name, case):
        values = drawn(case, 0, 4, 3, 2, 1.0)
        for argument, (_, *axes) in case.arguments.items():
            if "N" in axes:
                values[argument] = values[argument][:0]
        if any("N" in axes for _, *axes in case.arguments.values()) and refusal(case, 3, values) is None:
            found = numbers(case.run(3, **values))
            ok = not found.numel() or (
                found.isnan().any() if math.isnan(case.nothing) else (found == case.nothing).all()
            )
            assert ok, found
        return 1

    for_every_case(check)


# ---- nonsense --------------------------------------------------------------------------------------------------------


class Series:
    """As much of a pandas Series as tells that its numbers have names."""

    def __init__(self, numbers, index):
        self.numbers, self.index = list(numbers), list(index)

    def keys(self):
        return self.index

    def __getitem__(self, key):
        return self.numbers[self.index.index(key)]

    def __iter__(self):
        return iter(self.numbers)

    def __len__(self):
        return len(self.numbers)


def nonsense(name, case, argument, values):
    """(what, a wrong value) for this argument."""
    kind, *axes = case.arguments[argument]
    as_float = values.double()
    if not case.loose:
        yield "one axis more", values[None]
    for i, axis in enumerate(axes):
        if axis in case.fixed:
            yield f"one more along {axis}", torch.cat([values, values.narrow(i, 0, 1)], i)
    if kind in FLOATS:
        yield "complex", values.to(torch.complex64)
        if kind not in ("positive", "accuracy"):
            yield "integers", values.long()
            yield "bool", values > 0
    if kind == "probability":
        yield "logits", 3 * values - 0.5
        yield "too large", 3 * values + 1
    if kind == "cosine" and name.startswith("losses.") and "labels" in case.arguments:
        yield "no cosines", 5 * values + 1
    if kind in INTEGERS:
        yield "floats", as_float
        yield "half", values.half()
        yield "complex", values.to(torch.complex64)
        yield "bool", values > 0
        if kind != "said":
            yield "too small", values - values.max() - 2
        if kind == "class":
            yield "too large", values + values.max() + 1
            yield "one too large", values + 1
    if kind == "mask":
        yield from (("of 0 and 1", values.to(t)) for t in (torch.uint8, torch.int64, torch.float32))
    if kind in ("count", "count0", "whole", "positive") and axes == ["C"]:
        yield "negative", -values
        yield "one NaN", torch.cat([as_float[1:], torch.tensor([math.nan])])
        yield "one infinite", torch.cat([as_float[1:], torch.tensor([math.inf])])
        yield "bool", values > 0
        yield "text", "many"
        yield "texts", ["many"] * len(values)
        yield "a list of lists", [[float(v)] for v in values]
        yield "names", {chr(97 + j): v for j, v in enumerate(values.tolist())}
        order = values.argsort(descending=True).roll(1).tolist()
        order = order if order != sorted(order) else order[::-1]
        yield "value_counts()", Series(values[order].tolist(), order)
        yield "another order", {j: values[j].item() for j in order}
        yield "from 1", {j + 1: v for j, v in enumerate(values.tolist())}
    if kind in ("count", "whole"):
        yield "an empty class", values - values.min()
        yield "none", values[:0]
    if kind == "whole":
        yield "too many", values + 120
        yield "halves", as_float + 0.5
    if kind == "pixel":
        yield "no batch", values[0] if "random" in name else values[0].float()


def test_nonsense_is_refused_by_name(record_property):
    def check(name, case):
        calls, wrong = [], []

        @generated(3)
        def refused(seed, n, c, d, size):
            values = drawn(case, seed, n, c, d, size)
            for argument in case.arguments:
                for what, bad in nonsense(name, case, argument, values[argument]):
                    calls.append(what)
                    try:
                        if refusal(case, c, values | {argument: bad}) is None:
                            wrong.append(f"{argument}: {what} gave a result")
                    except Exception as error:
                        wrong.append(f"{argument}: {what}: {type(error).__name__}: {str(error)[:150]}")

        refused()
        assert not wrong, "; ".join(dict.fromkeys(wrong))
        return len(calls)

    for_every_case(check, record_property, "{} generated wrong inputs, all refused by name", least=300)


@pytest.mark.parametrize("argument", ["class_counts", "counts", "per_class", "weight", "norms"])
def test_numbers_of_classes_come_in_any_container_in_the_order_of_the_classes(argument):
    pandas = pytest.importorskip("pandas")
    for case in CASES.values():
        if argument in case.arguments and len(case.arguments[argument]) == 2:
            values = drawn(case, 1, 4, 5, 3, 1.0)
            plain, want = values[argument], numbers(case.run(5, **values))
            for same in (
                plain.tolist(),
                tuple(plain.tolist()),
                plain.numpy(),
                dict(enumerate(plain.tolist())),
                pandas.Series(plain.numpy()),
                Series(plain.tolist(), range(5)),
            ):
                found = numbers(case.run(5, **values | {argument: same}))
                torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6, equal_nan=True)
            if argument in ("class_counts", "counts"):
                drawn_labels = np.repeat(np.arange(5), [3, 9, 5, 1, 7])
                with pytest.raises(
                    ValueError, match=rf"{argument}: got them for \[1, 4, 2, 0, 3\]; allowed: for 0, 1, 2"
                ):
                    case.run(5, **values | {argument: pandas.Series(drawn_labels).value_counts()})


# ---- on a device -----------------------------------------------------------------------------------------------------


def test_the_pretended_gpu_gives_the_same_numbers():
    def check(name, case):
        values = typed(case, drawn(case, 2, 5, 3, 4, 1.0), torch.float32, torch.int64)
        want = numbers(case.run(3, **values))
        with pretend_gpu() as gpu:
            there = {a: v.to(gpu.device) for a, v in values.items()}
            found = numbers(case.run(3, **there))
        torch.testing.assert_close(found, want, rtol=0, atol=0, equal_nan=True)
        return 1

    for_every_case(check)
