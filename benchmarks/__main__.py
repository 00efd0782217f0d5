"""`python -m benchmarks NAME [options]`, from the project's folder."""

import sys

from . import (
    decoupling,
    experiments,
    fine_tuning,
    incremental,
    losses,
    openworld,
    photograph_folders,
    photographs,
    training,
)

BENCHMARKS = {
    "training": training.main,
    "incremental": incremental.main,
    "decoupling": decoupling.main,
    "losses": losses.main,
    "openworld": openworld.main,
    "experiments": experiments.main,
    "fine-tuning": fine_tuning.main,
    "photographs": photographs.main,
    "photograph-folders": photograph_folders.main,
}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in BENCHMARKS:
        print(f"usage: python -m benchmarks {{{','.join(BENCHMARKS)}}} [--help]", file=sys.stderr)
        return 2
    return BENCHMARKS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
