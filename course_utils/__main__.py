"""`python -m course_utils experiments list | run | report`, `predict MODEL FOLDER`, `grade 03 FOLDER`, `handout 03`."""

import importlib
import sys

COMMANDS = {"grade": "classroom.grading", "handout": "classroom.handout"}


def main(arguments: list[str]) -> int:
    own = COMMANDS.get(arguments[0] if arguments else "")
    try:
        room = importlib.import_module(f"course_utils.{own or 'experiments.command'}")
    except ModuleNotFoundError as error:
        if str(error.name).startswith("course_utils"):
            raise
        sys.stderr.write(
            f"course_utils: {sys.executable} has no {error.name}. Switch on the environment that "
            "`python course.py lab` makes (README.md, Two commands), or install the course for this Python\n"
        )
        return 2
    return room.main(arguments[1:] if own else arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
