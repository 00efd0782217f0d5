"""`python -m course_utils experiments list | run | status | stop | report`: long runs, which may stop at any moment.

And `python -m course_utils predict MODEL FOLDER`: what a saved model says about pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..methods import METHODS
from ..photo_sets import PUBLISHED
from ..runtime import located, require, say
from . import background
from .large import LARGE
from .studies import CHOICES, STUDIES, Study
from .study_data import WITH_VALIDATION, has_validation, missing
from .tables import TABLES, Table

RUNS = Path("runs")
ALL = STUDIES | LARGE
EXAMPLES = """\
examples:
  python -m course_utils experiments run letters
  python -m course_utils experiments run letters --seeds 3 --methods "cross-entropy, LDAM + DRW, cRT"
  python -m course_utils experiments run path/to/folder --skip-broken
  python -m course_utils experiments run cifar10-lt --data path/to/folder --jobs 2
  python -m course_utils experiments run cifar10-lt --data path/to/folder --background --jobs 1
  python -m course_utils experiments status cifar10-lt
  python -m course_utils experiments run letters --cluster tcp://127.0.0.1:8786
  python -m course_utils experiments report letters
"""
WATCHING = {
    "status": "what is finished, under way and missing, and the time left",
    "stop": "end a run; the same command goes on from there",
    "report": "tables and figures of what is finished",
}
KINDS = {"int": int, "float": float}
METAVARS = {"seeds": "N|A,B,...", "methods": "A,B,...", "features": "NAME", "shares": "FILE.json"}
WORDS = {
    "seeds": "how many seeds, or which ones",
    "methods": "some of the experiment's methods; they run in this order, all of them with one seed after the other",
    "size": "side to which a folder's images or photographs are scaled",
    "max_count": "images of the largest class",
    "ratio": "largest class divided by smallest",
    "validation": "images of each class for choices, where the data have no such split",
    "validation_from": "where they come from: set aside before the tail is cut, or unused, what the tail leaves",
    "features": "of a folder: a pretrained backbone such as efficientnet-lite0 whose features stay, or none; by "
    "default efficientnet-lite0 where it is installed and the pictures are larger than 64 pixels",
    "shares": "{class: share} of the place where the model will work, for photographs",
}


def without_effect(study: Study | Table, folder: Path | None = None) -> dict[str, str]:
    """{option: why it would change nothing} for this study, of a folder or of the data it names."""
    if isinstance(study, Table):
        return {field.name: "this experiment is always the same" for field in fields(Study)}
    idle = {}
    if study.features == "none":
        idle["shares"] = "it is for photographs with --features"
    else:
        idle |= dict.fromkeys(("network", "augment", "size"), "the pretrained features stay as they are")
    if folder is None:
        idle["features"] = "only a folder's pictures have them"
    if study.profile == "as it is":
        idle |= dict.fromkeys(("max_count", "ratio"), "the images are taken as they are; --profile cuts a tail")
        idle |= dict.fromkeys(("validation", "validation_from"), "a fifth of each class is set aside")
    if study.data in PUBLISHED:
        idle["data"] = "COURSE_DATA names the folder with these photographs"
        idle |= dict.fromkeys(("validation", "validation_from"), "the data have validation images")
    if study.profile == "english":
        idle["ratio"] = "English text decides the tail"
    if study.profile == "in proportion":
        idle["ratio"] = "the data decide the tail"
    if has_validation(folder) if folder else study.data in WITH_VALIDATION:
        idle |= dict.fromkeys(("validation", "validation_from"), "the data have validation images")
    if study.schedule == "cosine":
        idle |= dict.fromkeys(("factor", "warmup"), "they belong to the schedule step")
        if not any(name.endswith("DRW") for name in study.methods):
            idle["defer_at"] = "it belongs to the schedule step and to methods with DRW"
    elif study.defer_at == 1:
        idle["factor"] = "with defer_at 1 the learning rate never drops"
    return idle if folder or study.data in PUBLISHED else idle | {"size": "only a folder's images are scaled"}


def parser() -> argparse.ArgumentParser:
    shown: dict[str, Any] = {"epilog": EXAMPLES, "formatter_class": argparse.RawDescriptionHelpFormatter}
    top = argparse.ArgumentParser(prog="python -m course_utils", description=__doc__.splitlines()[0])
    commands = top.add_subparsers(required=True, metavar="experiments|predict")
    predict = commands.add_parser("predict", help="the class of every picture in a folder, by a model that was saved")
    predict.set_defaults(action="predict")
    predict.add_argument("model", help="the file that PhotoClassifier.save() wrote")
    predict.add_argument("what", nargs="+", metavar="FOLDER", help="a folder with pictures in it or below it, or files")
    about = "shares of the classes where the pictures come from: equal, as-trained, or a JSON file {class: share}"
    predict.add_argument("--prior", default="equal", help=f"{about}; by default equal")
    predict.add_argument("--out", type=located, help="a CSV file for the answers; by default the screen")
    predict.add_argument("--workers", type=int, default=0, help="processes that read pictures; by default this one")
    predict.add_argument("--skip-broken", action="store_true", help="leave out files that are no readable images")
    experiments = commands.add_parser("experiments", help="list, run, watch or report experiments", **shown)
    actions = experiments.add_subparsers(required=True, dest="action", metavar="list|run|status|stop|report")
    actions.add_parser("list", help="the named experiments and the methods")
    shown["description"] = "Every finished training is one small JSON file, so a run that was stopped goes on."
    run = actions.add_parser("run", help="run an experiment, or what is missing of it", **shown)
    folder = "a folder of pictures: train/CLASS and test/CLASS, maybe val/CLASS, or CLASS folders alone"
    both = "where a folder is called like an experiment, write ./NAME for the folder"
    run.add_argument("name", help=f"a named experiment, or {folder}; {both}")
    run.add_argument("--out", type=located, help="where the results go; by default runs/NAME")
    for field in fields(Study):
        if field.name not in ("what", "data"):
            kind = {"seeds": seeds, "methods": methods, "shares": shares}.get(field.name) or KINDS.get(
                field.type.split()[0], str
            )
            options: dict[str, Any] = {"choices": CHOICES.get(field.name), "metavar": METAVARS.get(field.name)}
            about = WORDS.get(field.name, f"instead of the experiment's own (usually {field.default})")
            run.add_argument("--" + field.name.replace("_", "-"), type=kind, help=about, **options)
    about = "a folder of images in place of the experiment's data, such as an unpacked copy of CIFAR-10"
    run.add_argument("--data", metavar="FOLDER", help=about)
    run.add_argument("--skip-broken", action="store_true", help="leave out files that are no readable images")
    run.add_argument("--jobs", type=int, help="processes; by default one for each core")
    run.add_argument("--cluster", metavar="ADDRESS", help="address of a Dask scheduler, instead of processes here")
    about = "return at once; the run goes on at lowest priority, and ends with `experiments stop`"
    run.add_argument("--background", action="store_true", help=about)
    run.add_argument("--detached", action="store_true", help=argparse.SUPPRESS)  # what --background starts
    for action, about in WATCHING.items():
        watching = actions.add_parser(action, help=about)
        watching.add_argument("name", nargs="?", help="a named experiment; by default all in runs/")
        watching.add_argument("--out", type=located, help="the folder that run wrote to")
    return top


def seeds(text: str) -> tuple[int, ...]:
    """ "5" is 0 to 4; "3,7" is 3 and 7."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts) or set(text.strip()) == {"0"}:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a number of seeds such as 5, or seeds such as 0,3,4")
    if max(map(int, parts)) >= 2**31 or ("," not in text and int(parts[0]) > 1000):
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: at most 1000 seeds, each below {2**31}")
    return tuple(map(int, parts)) if "," in text else tuple(range(int(parts[0])))


def methods(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def shares(text: str) -> dict[str, float]:
    """The shares of classes in a JSON file."""
    try:
        found = json.loads(located(text).read_text(encoding="utf-8"))
        return {str(name): float(share) for name, share in found.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        problem = " ".join(str(error).split())
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a JSON file {{class: share}} ({problem})") from None


def list_text(_options: argparse.Namespace) -> str:
    lines = [f"  {n:18s}{s.what}; {len(s.methods)} methods, {len(s.seeds)} seeds" for n, s in ALL.items()]
    gaps = {name: missing(study.data) for name, study in LARGE.items()}
    lines += [f"  {name} is not here: {way}" for name, way in gaps.items() if way]
    lines += [f"  {n:18s}{t.what}; {len(list(t.rows()))} trainings" for n, t in TABLES.items()]
    known = [f"  {name:26s}{method.what} (notebook {method.notebook})" for name, method in METHODS.items()]
    return "\n".join(["experiments:", *lines, "", "methods:", *known])


def run(options: argparse.Namespace) -> str:
    name, source = options.name, options.data
    if name not in ALL and name not in TABLES:
        allowed = f"{', '.join([*ALL, *TABLES])}, or a folder of images"
        if located(name).is_file():
            allowed += "; texts in a CSV file: course_utils.texts.load_texts(), as notebook 09 does"
        require(located(name).is_dir(), "name", f"{name!r}, which is no folder", allowed)
        if source is not None:
            raise ValueError("--data: allowed only with a named experiment")
        name, source = "folder", name
    elif source is None and Path(name).is_dir():
        way = f"write ./{name} for the folder; the experiment runs where no folder is called so"
        raise ValueError(f"name: {name!r} is both an experiment and a folder here; {way}")
    if options.skip_broken and source is None:
        raise ValueError("--skip-broken: allowed only with a folder of images")
    if options.jobs is not None and options.cluster is not None:
        raise ValueError("--jobs: allowed only without --cluster, whose workers are as many as they are")
    chosen = {f.name: getattr(options, f.name) for f in fields(Study) if getattr(options, f.name, None) is not None}
    study: Study | Table = TABLES[name] if name in TABLES else ALL[name]
    folder = None if source is None else located(source)
    if isinstance(study, Study):
        if folder is not None and folder.is_dir():
            study = _with_features(study, name, folder, chosen)
        study = replace(study, **{k: v for k, v in chosen.items() if k != "data"})
    for option, why in without_effect(study, folder).items():
        require(option not in chosen, option, repr(chosen.get(option)), f"nothing: {why}")
    title = folder.resolve().name or name if name == "folder" and folder else name
    out = options.out or RUNS / title
    inside = folder is not None and folder.is_dir() and located(out).resolve().is_relative_to(folder.resolve())
    require(not inside, "out", str(out), "a folder outside the images, which results would be taken for (--out)")
    if options.background and not options.detached:
        return background.start(out, options.arguments)
    if options.detached:
        background.lowest_priority()
    with background.alone_in(out):
        return _run(name, title, study, out, source, options)


def _run(
    name: str, title: str, study: Study | Table, out: Path, source: str | None, options: argparse.Namespace
) -> str:
    from .runs import run_study

    how = {name: getattr(options, name) for name in ("jobs", "cluster", "skip_broken")}
    if name == "folder" and source and options.cluster is None and isinstance(study, Study):
        _say_how_long(study, source, out, options)
    cells = run_study(title, study, out, source=source, **how)
    found = f"{len(cells)} trainings are in {out}; now: python -m course_utils experiments report --out {out}"
    if isinstance(study, Study) and study.features != "none" and options.cluster is None:
        from .photographs import finish

        found += "\n" + finish(out, str(source), options.skip_broken)
    return found


def _with_features(study: Study, name: str, folder: Path, chosen: dict[str, Any]) -> Study:
    """Heads on pretrained features, if one asks for them, or if a folder of photographs is best served with them."""
    if "features" not in chosen and name != "folder":
        return study
    from .photographs import usual_features, with_features

    features = chosen.get("features")
    if features is None:
        try:
            features, why = usual_features(folder)
            say(why)
        except ValueError:  # no folder of pictures: said when it is read, after the options were looked at
            features = "none"
    chosen["features"] = features
    return with_features(study, features)


def _say_how_long(study: Study, source: str, out: Path, options: argparse.Namespace) -> None:
    from .photographs import estimate
    from .workers import jobs_or_default

    if not (out / "cells").is_dir():
        say(estimate(study, str(located(source)), jobs_or_default(options.jobs), out / "features", options.skip_broken))


def predict(options: argparse.Namespace) -> str:
    from ..classifier import predict_folder

    how = options.prior, options.out, options.workers, options.skip_broken
    return predict_folder(options.model, options.what, *how)


def _folders(options: argparse.Namespace, *files: str) -> list[Path]:
    """Those that are meant: one, or all in runs/ that have one of the files."""
    if options.name and options.out:
        raise ValueError("--out: allowed only without a name")
    if options.name or options.out:
        return [options.out or RUNS / options.name]
    folders = sorted({RUNS / path.relative_to(RUNS).parts[0] for file in files for path in RUNS.glob(f"*/{file}")})
    if not folders:
        raise ValueError("runs/ holds no experiment; start one with `experiments run NAME`")
    return folders


def status(options: argparse.Namespace) -> str:
    from .progress import status_text

    return "\n\n".join(
        map(
            status_text,
            _folders(options, "study.json", background.LOCK, background.LOG, f"checkpoints/{background.PLAN}"),
        )
    )


def stop(options: argparse.Namespace) -> str:
    return "\n".join(map(background.stop, _folders(options, background.LOCK, "study.json")))


def report(options: argparse.Namespace) -> str:
    from .reports import write_report

    folders = _folders(options, "study.json")
    paths = [write_report(folder) for folder in folders]
    return "\n".join([paths[0].read_text(encoding="utf-8")] if len(paths) == 1 else []) + "\n".join(map(str, paths))


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    options.arguments = arguments
    actions = {"list": list_text, "run": run, "status": status, "stop": stop, "report": report, "predict": predict}
    try:
        say(actions[options.action](options))
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        say(f"error: {' '.join(str(error).split()) or type(error).__name__}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here", sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
