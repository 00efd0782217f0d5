"""`python -m course_utils experiments list | run | report`: long experiments, stopped and taken up at any moment."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

RUNS = Path("runs")
EXAMPLES = """\
examples:
  python -m course_utils experiments run letters
  python -m course_utils experiments run letters --seeds 3 --methods "cross-entropy, LDAM + DRW, cRT"
  python -m course_utils experiments run path/to/folder --skip-broken
  python -m course_utils experiments run cifar10-lt --data path/to/folder --jobs 2
  python -m course_utils experiments run letters --cluster tcp://127.0.0.1:8786
  python -m course_utils experiments report letters
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m course_utils", description=__doc__.splitlines()[0])
    commands = top.add_subparsers(required=True, metavar="experiments")
    experiments = commands.add_parser(
        "experiments",
        help="list, run or report experiments",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = experiments.add_subparsers(required=True, dest="action", metavar="list|run|report")
    actions.add_parser("list", help="the named experiments and the methods")
    run = actions.add_parser(
        "run",
        help="run an experiment, or what is missing of it",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Every finished training is one small JSON file, so a run that was stopped goes on where it was.",
    )
    run.add_argument(
        "name",
        help="a named experiment, or a folder of images: train/CLASS/*.png|jpg and test/CLASS, or CLASS folders alone",
    )
    run.add_argument("--out", type=Path, help="where the results go; by default runs/NAME")
    run.add_argument("--seeds", type=seeds, metavar="N|A,B,...", help="how many seeds, or which ones")
    run.add_argument("--methods", type=methods, metavar="A,B,...", help="some of the experiment's methods")
    run.add_argument("--epochs", type=int, help="instead of the experiment's own")
    run.add_argument("--batch-size", type=int, help="instead of the experiment's own")
    run.add_argument("--lr", type=float, help="learning rate, instead of the experiment's own")
    run.add_argument("--network", choices=("MLP", "SmallCNN", "ResNet32"), help="instead of the experiment's own")
    run.add_argument("--precision", choices=("auto", "float32", "bfloat16"), help="auto: bfloat16 on a GPU that has it")
    run.add_argument("--max-count", type=int, help="images of the largest class")
    run.add_argument("--ratio", type=float, help="largest class divided by smallest, of an exponential tail")
    run.add_argument("--size", type=int, help="side to which a folder's images are scaled")
    run.add_argument(
        "--data",
        metavar="FOLDER",
        help="a folder of images in place of the experiment's data, such as an unpacked copy of CIFAR-10",
    )
    run.add_argument("--skip-broken", action="store_true", help="leave out files that are no readable images")
    run.add_argument("--jobs", type=int, help="processes; by default one for each core")
    run.add_argument("--cluster", metavar="ADDRESS", help="address of a Dask scheduler, instead of processes here")
    report = actions.add_parser("report", help="tables and figures of what is finished")
    report.add_argument("name", nargs="?", help="a named experiment; by default all in runs/")
    report.add_argument("--out", type=Path, help="the folder that run wrote to")
    return top


def seeds(text: str) -> tuple[int, ...]:
    """ "5" is 0 to 4; "3,7" is 3 and 7."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts) or text.strip() == "0":
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a number of seeds such as 5, or seeds such as 0,3,4")
    return tuple(map(int, parts)) if "," in text else tuple(range(int(parts[0])))


def methods(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def list_text() -> str:
    from ..methods import METHODS
    from .studies import STUDIES

    lines = ["experiments:"]
    lines += [f"  {n:18s}{s.what}; {len(s.methods)} methods, {len(s.seeds)} seeds" for n, s in STUDIES.items()]
    lines += [
        "",
        "methods:",
        *(f"  {name:26s}{method.what} (notebook {method.notebook})" for name, method in METHODS.items()),
    ]
    return "\n".join(lines)


def run(options: argparse.Namespace) -> str:
    from .runs import changed, run_study
    from .studies import STUDIES

    name, source = options.name, options.data
    if name not in STUDIES:
        if not Path(name).is_dir():
            raise ValueError(f"name: got {name!r}; allowed: {', '.join(STUDIES)}, or a folder of images")
        if source is not None:
            raise ValueError("--data: allowed only with a named experiment")
        name, source = "folder", name
    study = changed(
        STUDIES[name],
        seeds=options.seeds,
        methods=options.methods,
        epochs=options.epochs,
        lr=options.lr,
        batch_size=options.batch_size,
        network=options.network,
        max_count=options.max_count,
        ratio=options.ratio,
        size=options.size,
        precision=options.precision,
    )
    title = Path(source).resolve().name if name == "folder" and source else name
    out = options.out or RUNS / title
    cells = run_study(
        title, study, out, jobs=options.jobs, cluster=options.cluster, source=source, skip_broken=options.skip_broken
    )
    return f"{len(cells)} trainings are in {out}; now: python -m course_utils experiments report --out {out}"


def report(options: argparse.Namespace) -> str:
    from .reports import write_report

    if options.name and options.out:
        raise ValueError("--out: allowed only without a name")
    folders = (
        [options.out or RUNS / options.name]
        if options.out or options.name
        else sorted(path.parent for path in RUNS.glob("*/study.json"))
    )
    if not folders:
        raise ValueError("runs/ holds no experiment; start one with `experiments run NAME`")
    paths = [write_report(folder) for folder in folders]
    return "\n".join([paths[0].read_text(encoding="utf-8")] if len(paths) == 1 else []) + "\n".join(map(str, paths))


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        print({"list": lambda _: list_text(), "run": run, "report": report}[options.action](options))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
