"""A model to keep: one file that names the class of photographs, at the place where it works.

`PhotoClassifier` holds all that an answer needs: backbone, head, class names, how a picture becomes numbers, and which
shares of the classes its logits take for granted. Where it works, the shares are often others than in training. If
softmax of the logits z is right for the shares p_j, then for the shares q_j it is softmax of

    z_j + log q_j - log p_j        (Saerens et al. 2002, equation 2.4)

It is saved as one safetensors file: numbers and JSON, and no code that could run when it is loaded.

    python -m course_utils predict model.safetensors FOLDER --prior equal --out answers.csv
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .backbones import LITE0, Backbone, EqualLength, backbone, whole_model
from .decoupling import LearnableWeightScaling, NearestClassMean
from .heads import CosineClassifier
from .losses import effective_number_weights
from .machinery.picture_files import pictures_below
from .methods import METHODS
from .networks import ImageClassifier, device_of
from .photos import Photos, View
from .runtime import located, read_tensors, require, write_atomically, write_tensors
from .training import predict

FORMAT = "longtail-course photo classifier 1"
ASSUMED = {  # q: softmax of these methods is meant for shares p_j ~ n_j^q; that of all others for equal shares, q = 0
    "cross-entropy": 1.0,
    "focal loss": 1.0,
    "cosine classifier": 1.0,
    "LDAM": 1.0,
    "square-root sampling": 0.5,
}


def assumed_shares(method: str, counts: Iterable[int]) -> Tensor:
    """float64 (C,): which shares of the classes the logits of a method of `METHODS` take for granted; they sum to 1.

    counts: n_j, images of each class in training, at least 1.

    Balanced softmax, logit adjustment, class-balanced sampling, re-weighting and what is chosen by balanced accuracy
    take equal shares. The class-balanced loss takes n_j times its weights. For focal loss and margins it is a rule of
    thumb: their softmax is not made to be right.
    """
    require(method in METHODS, "method", repr(method), ", ".join(METHODS))
    n = torch.tensor([float(count) for count in counts], dtype=torch.float64)
    require(len(n) and (n >= 1).all(), "counts", n.tolist(), "at least 1 for each class")
    # p_j ~ n_j^q
    shares = (
        n * effective_number_weights(n, 0.99).double()
        if method == "class-balanced loss"
        else n ** ASSUMED.get(method, 0.0)
    )
    return shares / shares.sum()


@dataclass(frozen=True)
class Answers:
    """What a `PhotoClassifier` says: logits float32 (N, C) for the shares of the place, one row for each of N paths."""

    paths: tuple[str, ...]
    class_names: tuple[str, ...]
    logits: Tensor
    calibrated: bool

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def labels(self) -> Tensor:
        """int64 (N,): the class of each picture."""
        return self.logits.argmax(1)

    @property
    def probabilities(self) -> Tensor:
        """(N, C), rows sum to 1.

        Raises:
            ValueError: the head gives distances, which mean nothing as probabilities.
        """
        require(self.calibrated, "probabilities", "those of a head that gives distances", "a method with probabilities")
        return self.logits.softmax(1)

    def csv(self) -> str:
        """Lines file, class, probability, second class, its probability; empty where there are no probabilities."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "class", "probability", "second class", "second probability"])
        best = self.logits.topk(min(2, len(self.class_names)), dim=1).indices.tolist()
        shares = self.probabilities.tolist() if self.calibrated else None
        for i, (path, row) in enumerate(zip(self.paths, best, strict=True)):
            cells = [path]
            for j in row:
                cells += [self.class_names[j], f"{shares[i][j]:.4f}" if shares else ""]
            writer.writerow(cells)
        return text.getvalue()


@dataclass(frozen=True)
class PhotoClassifier:
    """A network with all that is needed to use it. Made by `of()`, kept by `save()`, read by `load()`.

    model: as `backbones.whole_model()` or `fine_tune()` give it, pictures to logits. view: how pictures become floats.
    backbone: its name, as `backbones.backbone()` takes it. method: of `METHODS`. counts: n_j of the training images.
    """

    model: ImageClassifier
    class_names: tuple[str, ...]
    view: View
    backbone: str
    method: str
    counts: tuple[int, ...]

    def __post_init__(self):
        classes = {"class_names": len(self.class_names), "counts": len(self.counts)}
        for name, number in classes.items():
            require(number == self.model.num_classes, name, number, f"{self.model.num_classes}, as the model has")
        parts = self.model.backbone
        whole = isinstance(parts, nn.Sequential) and len(parts) == 2 and isinstance(parts[1], EqualLength)
        require(whole, "model", f"a backbone of {type(parts).__name__}", "one of whole_model() or fine_tune()")
        _head_numbers(self.model.head)
        assumed_shares(self.method, self.counts)

    @classmethod
    def of(cls, backbone: Backbone, model: ImageClassifier, train: Photos, method: str) -> PhotoClassifier:
        """model: pictures to logits, trained by `method` on the photographs `train`; or the model of `train_heads()`,
        trained on their features, and then the backbone comes below it.
        """
        counts = tuple(train.counts.tolist())
        if isinstance(model.backbone, EqualLength):
            model = whole_model(backbone, model)
        return cls(model, train.class_names, train.view, backbone.name, method, counts)

    def save(self, path: str | Path) -> None:
        """One safetensors file at `path`, whole or not there. A digest covers all of it."""
        about = {
            "format": FORMAT,
            "class_names": list(self.class_names),
            "counts": list(self.counts),
            "method": self.method,
            "view": self.view.numbers(),
            "backbone": self.backbone,
            "feature_dim": self.model.feature_dim,
            "feature_length": self.model.backbone[1].length,
            "head": _head_numbers(self.model.head),
        }
        write_tensors(path, self.model.state_dict(), about)

    @classmethod
    def load(cls, path: str | Path, own: Backbone | None = None) -> PhotoClassifier:
        """What `save()` wrote, on the CPU, in evaluation mode: with the same answers, bit for bit.

        own: a backbone of your own for which the file was made; its weights come from the file, and it is used, not
        copied. A file never says which code to run.

        Raises:
            ValueError: no such file, another program's, a damaged or changed one, or one that needs another backbone.
        """
        about, tensors = read_tensors(path)
        require(about.get("format") == FORMAT, "path", f"{path} of format {about.get('format')!r}", repr(FORMAT))
        try:
            return cls._made(about, tensors, own)
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} does not hold what {FORMAT} says ({type(error).__name__}: {error})") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def _made(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor], own: Backbone | None) -> PhotoClassifier:
        name, width, names = about["backbone"], about["feature_dim"], tuple(about["class_names"])
        if own is None:
            require(
                _is_known(name), "own", None, f"a Backbone like the one called {name!r} for which the file was made"
            )
        else:
            seen, need = f"{own.name!r} with {own.feature_dim} features", f"{name!r} with {width}"
            require((own.name, own.feature_dim) == (name, width), "own", seen, need)
        network = nn.Sequential(
            (own or backbone(name, None)).module, EqualLength(torch.zeros(width), about["feature_length"])
        )
        model = ImageClassifier(network, width, len(names), _head_of(about["head"], width, len(names)))
        model.load_state_dict(tensors)
        return cls(model.eval(), names, View.of(about["view"]), name, about["method"], tuple(about["counts"]))

    def shift(self, prior: str | Mapping[str, float]) -> Tensor:
        """float32 (C,), log q_j - log p_j: what is added to the logits where the classes have the shares `prior`.

        prior: q, "equal", "as trained" for the shares of the training images, or {class name: share}, which need not
        sum to 1; a class with share 0 is never the answer.

        Raises:
            ValueError: a class that is missing or unknown, a share below 0, or shares for a head that gives distances.
        """
        counts = torch.tensor(self.counts, dtype=torch.float64)
        if isinstance(prior, str):
            allowed = "'equal', 'as trained' or {class name: share}"
            require(prior in ("equal", "as trained"), "prior", repr(prior), allowed)
            q = counts if prior == "as trained" else torch.ones_like(counts)
        else:
            given = isinstance(prior, Mapping)
            require(given, "prior", repr(prior), "'equal', 'as trained' or {class name: share}")
            odd = sorted(map(str, prior.keys() ^ set(self.class_names)))
            each = f"a share for each of {len(counts)} classes"
            require(not odd, "prior", f"{', '.join(odd)} missing or unknown", each)
            shares = [prior[name] for name in self.class_names]
            require(all(isinstance(share, int | float) for share in shares), "prior", shares, "numbers")
            q = torch.tensor(shares, dtype=torch.float64)
            ok = bool((q >= 0).all()) and 0 < q.sum() < math.inf
            require(ok, "prior", q.tolist(), "finite numbers of at least 0, one of them above 0")
        q = q / q.sum()
        equal = bool((q == q[0]).all())
        allowed = f"'equal': {self.method} gives distances and no probabilities"
        require(METHODS[self.method].probabilities or equal, "prior", prior, allowed)
        # log q_j - log p_j
        return (q.log() - assumed_shares(self.method, self.counts).log()).float()

    def predict(
        self,
        what: str | Path | Iterable[str | Path] | Photos,
        *,
        prior: str | Mapping[str, float] = "equal",
        batch_size: int = 32,
        workers: int = 0,
        skip_broken: bool = False,
    ) -> Answers:
        """The class of every picture, where the classes have the shares `prior`.

        what: a file, a folder with pictures in it and below it, several of both, or `Photos`, whose view is not used.
        skip_broken: leave out files that are no readable pictures, with a warning that names them.

        Raises:
            ValueError: no picture, a file that is none, or a prior as in `shift()`.
        """
        shift = self.shift(prior).to(device_of(self.model))
        photos = self._photos(what, workers, skip_broken).to(device_of(self.model))
        logits = predict(self.model, photos, batch_size=batch_size)
        paths = tuple(photos.path(i) for i in range(len(photos)))
        return Answers(paths, self.class_names, (logits + shift).cpu(), METHODS[self.method].probabilities)

    def export_onnx(self, path: str | Path, *, prior: str | Mapping[str, float] = "equal") -> None:
        """One ONNX file for programs without Python: images uint8 (B, 3, S, S), as `view.plain()` cuts them, to logits.

        The view's mean and std and the shift to `prior` are inside; class names and view are in its metadata.

        Raises:
            ValueError: onnx or onnxscript is not installed, or a prior as in `shift()`.
        """
        missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(f"export_onnx() needs {' and '.join(missing)}: pip install {' '.join(missing)}")
        whole = _FromPixels(self.model, self.view, self.shift(prior).to(device_of(self.model))).eval()
        images = torch.zeros(2, 3, self.view.size, self.view.size, dtype=torch.uint8, device=device_of(self.model))
        how: Any = {"dynamo": True, "dynamic_shapes": {"images": {0: torch.export.Dim("batch")}}, "verbose": False}
        how |= {"input_names": ["images"], "output_names": ["logits"]}
        program: Any = torch.onnx.export(whole, (images,), **how)
        notes = {"class_names": self.class_names, "view": self.view.numbers(), "format": FORMAT}
        program.model.metadata_props.update({key: json.dumps(value) for key, value in notes.items()})
        data = program.model_proto.SerializeToString()
        write_atomically(path, lambda file: file.write(data))

    def _photos(self, what: Any, workers: int, skip_broken: bool) -> Photos:
        if isinstance(what, Photos):
            return what.with_view(self.view)
        paths = []
        for place in map(located, [what] if isinstance(what, str | Path) else what):
            require(place.exists(), "what", str(place), "files or folders that exist")
            paths += pictures_below(place) if place.is_dir() else [place]
        require(paths, "what", f"no picture in {what}", "at least one picture that can be read here")
        found = Path(), [str(path) for path in paths], [0] * len(paths), ("unknown",)
        return replace(Photos.from_found(found, self.view, workers, skip_broken), root="")  # paths as they were given


class _FromPixels(nn.Module):
    """uint8 images to logits for the shares of the place."""

    def __init__(self, model: ImageClassifier, view: View, shift: Tensor):
        super().__init__()
        self.model, self.view, self.shift = model, view, shift

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.view.to_float(images)) + self.shift


def _is_known(name: str) -> bool:
    """Whether `backbone()` can make it."""
    return name == LITE0 or name.startswith(("torchvision/", "timm/"))


# ---- heads, as plain values ------------------------------------------------------------------------------------------


def _head_numbers(head: nn.Module) -> dict[str, Any]:
    """What a head is made with, besides its weights."""
    kind = type(head).__name__
    if isinstance(head, nn.Linear):
        return {"kind": kind, "bias": head.bias is not None}
    if isinstance(head, CosineClassifier):
        require(len(head.rows) == 1, "model", "a cosine head whose rows came in phases", "one with all rows at once")
    if isinstance(head, NearestClassMean):
        return {"kind": kind, "treatment": head.treatment}
    known = isinstance(head, CosineClassifier | LearnableWeightScaling)
    require(known, "model", f"a head of {kind}", "Linear, CosineClassifier, NearestClassMean or LearnableWeightScaling")
    return {"kind": kind}


def _head_of(numbers: Mapping[str, Any], width: int, classes: int) -> nn.Module:
    """The head of `_head_numbers()`; its weights are still to come."""
    kind, zeros = numbers.get("kind"), torch.zeros(classes, width)
    if kind == "Linear":
        return nn.utils.skip_init(nn.Linear, width, classes, bias=bool(numbers["bias"]))
    if kind == "CosineClassifier":
        return CosineClassifier(width, classes, learn_scale=False)
    if kind == "NearestClassMean":
        return NearestClassMean(zeros, torch.arange(classes), classes, numbers["treatment"])
    require(kind == "LearnableWeightScaling", "head", repr(kind), "a head that `save()` writes")
    return LearnableWeightScaling(zeros)


# ---- the command -----------------------------------------------------------------------------------------------------


def predict_folder(model: str, what: list[str], prior: str, out: Path | None, workers: int, skip_broken: bool) -> str:
    """`python -m course_utils predict`: the answers as CSV, or, with `out`, where they are.

    model: a file of `PhotoClassifier.save()`. what: folders or files. prior: equal, "as trained", as-trained, or
    a JSON file {class: share}.
    """
    found: Any = prior.replace("-", " ")
    if located(prior).is_file():
        try:
            found = json.loads(located(prior).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"--prior: {prior} is no JSON ({error})") from None
        require(isinstance(found, dict), "--prior", f"{prior} with a {type(found).__name__}", "{class: share}")
    else:
        ways = "equal, as-trained, or a JSON file {class: share}"
        require(found in ("equal", "as trained"), "--prior", f"{prior!r}, which is no file", ways)
    answers = PhotoClassifier.load(model).predict(what, prior=found, workers=workers, skip_broken=skip_broken)
    if out is None:
        return answers.csv().rstrip("\n")
    write_atomically(out, lambda file: file.write(answers.csv().encode("utf-8", "surrogateescape")))
    return f"{len(answers)} answers are in {out}"
