"""`python -m course_utils experiments list | run | report`, `predict MODEL FOLDER`, `grade 03 FOLDER`, `handout 03`."""

import importlib
import sys

COMMANDS = {"grade": "classroom.grading", "handout": "classroom.handout"}


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] in COMMANDS:
        return importlib.import_module(f"course_utils.{COMMANDS[arguments[0]]}").main(arguments[1:])
    from .experiments.command import main

    return main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
