"""Exercises: a stub raises `Todo`, `check("1.1", answer)` says what is right or wrong, and mutants test the check.

The exercises of notebook 01 are data in `nb01.py`, and so on. `python -m course_utils.classroom.exercises` writes their
solutions into the notebooks.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...runtime import say
from ..progress import remember


class Todo(Exception):
    """Raised by the stub of an exercise that nobody has answered yet."""


class Wrong(Exception):
    """Raised by a verifier; the message is the one line that the reader sees."""


@dataclass(frozen=True)
class Exercise:
    """One exercise as data.

    goal: one sentence. verify: takes the reader's answer, raises `Wrong` with a helpful line, returns nothing if it
    is right. solution: a right answer, short, as a reader would write it. mutants: plausible wrong answers, each a
    function; `verify` has to reject every one.
    """

    goal: str
    verify: Callable[[Callable], None]
    solution: Callable
    mutants: tuple[Callable, ...]


def find(number: str) -> Exercise:
    """The exercise "1.2" is number 2 of notebook 01.

    Raises:
        ValueError: there is no such exercise.
    """
    notebook, _, _ = str(number).partition(".")
    try:
        return importlib.import_module(f".nb{int(notebook):02d}", __package__).EXERCISES[number]
    except (ValueError, KeyError, ModuleNotFoundError):
        raise ValueError(f"number: there is no exercise {number!r}; it looks like '1.2'") from None


def check(number: str, answer: Callable) -> None:
    """Print one line: not attempted yet, right, or what is wrong and by how much. What is right is remembered
    (`classroom/progress.py`).

    With COURSE_REQUIRE_SOLUTIONS=1 in the environment anything but a right answer raises `Wrong`: for tests and for
    teachers who collect answers.
    """
    exercise = find(number)
    line, done = _verdict(number, exercise, answer)
    if not done and os.environ.get("COURSE_REQUIRE_SOLUTIONS"):
        raise Wrong(line)
    if done:
        remember(number)
    say(line)


def yours(number: str, answer: Callable, package: Callable | None = None) -> Callable:
    """The reader's `answer` to an exercise if its check passes, else `package`; prints one line that says which.

        margins = yours("5.2", margins, ldam_margins)  # the experiment below trains with them

    package: the function of the package that does the same; the exercise's own solution by default.
    """
    exercise = find(number)
    line, done = _verdict(number, exercise, answer)
    reason = "" if done else " (yours is not attempted yet)" if line[0] == "⏳" else " (the check rejects yours)"
    say(f"Exercise {number}: from here on {'your' if done else 'our'} function is used{reason}.")
    return answer if done else exercise.solution if package is None else package


def _verdict(number: str, exercise: Exercise, answer: Callable) -> tuple[str, bool]:
    try:
        exercise.verify(keeping(answer))
    except Todo:
        return f"⏳ Exercise {number}: not attempted yet. Goal: {exercise.goal}", False
    except Wrong as error:
        return f"❌ Exercise {number}: {error}", False
    except Exception as error:  # the reader's code failed: name it, without our stack
        message = " ".join(str(error).split())
        return f"❌ Exercise {number}: your function stopped with {type(error).__name__}: {message}", False
    return f"✅ Exercise {number}: right.", True


def keeping(answer: Callable) -> Callable:
    """`answer`, which raises `Wrong` where it changes a tensor, a list or a dictionary that it was given.

    The experiments give it what cells below use again: `counts.sort()` is right once and spoils the rest. Classes and
    what cannot be called are handed back as they are.
    """
    import torch

    if isinstance(answer, type) or not callable(answer):
        return answer

    def copied(given: Any) -> Any:
        if isinstance(given, list):
            return [copied(value) for value in given]
        if isinstance(given, dict):
            return {key: copied(value) for key, value in given.items()}
        return given.detach().clone() if isinstance(given, torch.Tensor) else given

    def same(given: Any, before: Any) -> bool:
        if isinstance(given, torch.Tensor):
            return given.shape == before.shape and torch.allclose(given, before, rtol=0, atol=0, equal_nan=True)
        if isinstance(given, dict):
            return same([*given, *given.values()], [*before, *before.values()])
        if isinstance(given, list):
            return len(given) == len(before) and all(map(same, given, before))
        return given is before

    def call(*arguments, **named):
        given: dict[int | str, Any] = {**dict(enumerate(arguments)), **named}
        before = {key: copied(value) for key, value in given.items()}
        result = answer(*arguments, **named)
        for key, value in given.items():
            if not same(value, before[key]):
                name = dict(enumerate(inspect.signature(answer).parameters)).get(key, key)
                raise Wrong(f"your function changes `{name}`, which cells below use again; work on a copy of it")
        return result

    return call


def expect_close(got: Any, want: Any, case: str, tolerance: float = 1e-4) -> None:
    """Raise `Wrong` unless two numbers or lists of numbers agree; NaN equals NaN.

    It says the first two numbers that differ, and the factor if all are wrong by the same one.
    """
    import torch

    try:
        got_tensor = torch.as_tensor(got, dtype=torch.float64).cpu()
    except (TypeError, ValueError, RuntimeError):
        hint = "None: is there a `return`?" if got is None else type(got).__name__
        raise Wrong(f"expected numbers {case}, got {hint}") from None
    want_tensor = torch.as_tensor(want, dtype=torch.float64).cpu()
    if got_tensor.shape != want_tensor.shape:
        raise Wrong(f"expected shape {tuple(want_tensor.shape)} {case}, got {tuple(got_tensor.shape)}")
    wrong = ~torch.isclose(got_tensor, want_tensor, rtol=tolerance, atol=tolerance, equal_nan=True)
    if wrong.any():
        factor = (got_tensor / want_tensor)[want_tensor != 0]
        alike = len(factor) > 1 and torch.allclose(factor, factor[:1].expand_as(factor), rtol=1e-3, atol=0)
        hint = f"; all your numbers are {factor[0]:.3g} times what is expected" if alike and factor[0] else ""
        raise Wrong(f"{case}: got {got_tensor[wrong][0]:.7g}, expected {want_tensor[wrong][0]:.7g}{hint}")
