"""What the checks of an assignment are written with. They run in the grader's own process and never enter the sandbox.

`assignments/TOPIC/checks.py` has one function for each exercise:

    @exercise(points=3, needs=["gram_matrix"], forbids=["torch.cdist"])
    def gram(student, rng):
        "The Gram matrix."
        for shape in [(1, 3, 4, 5), (2, 8, 1, 7)]:
            F = torch.randn(shape, generator=rng)
            yield same(student.call("gram_matrix", F), style_transfer.gram(F), "the Gram matrix", points=1)
        ...

It calls the student's functions with inputs drawn anew, compares what comes back with the reference, and yields parts:
each its points, whether they are earned, and a reason that a student may read. An error of the student's ends the
exercise; parts that were not reached earn nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from grading.sandbox import Job, StudentError
from grading.wire import Code, Handle  # noqa: F401 (checks use Code)

SECONDS = 20.0  # for a call of a student's function


@dataclass(frozen=True)
class Part:
    """Some points of an exercise.

    Attributes:
        points: that it is worth.
        earned: from 0 to `points`.
        reason: why they are earned or not, for the student.
    """

    points: float
    earned: float
    reason: str


class Student:
    """A submission's functions, called across the border of the sandbox.

    Args:
        job: its process, whose cells have run.
        seconds: for each call, unless the call says otherwise; SECONDS by default.
    """

    def __init__(self, job: Job, seconds: float | None = None) -> None:
        self._job, self._seconds = job, seconds or SECONDS

    def call(
        self, function: "str | Handle | tuple[Handle, str]", *args: Any, seconds: float | None = None, **kwargs: Any
    ) -> Any:
        """Call a function of the submission.

        Args:
            function: its name; or something that an earlier call returned and that is called itself; or such a thing
                and the name of its method.
            args: numbers, strings, tensors, lists and dictionaries of these, what earlier calls returned, `Code`.
            seconds: for this call.
            kwargs: as `args`.

        Returns:
            Numbers, strings, tensors on the CPU, lists, tuples and dictionaries of these; a `Handle` for all else.

        Raises:
            StudentError: it is missing, raises, hangs, or answers what cannot be read.
        """
        target, path = _place(function)
        message = {"do": "call", "target": target, "path": path, "args": list(args), "kwargs": kwargs}
        return self._ask(message, path, seconds or self._seconds)

    def evaluate(self, source: str, **values: Any) -> Any:
        """Run some lines on the submission's side, where its functions are at hand, and get what they call `result`.

        For what a call alone cannot say: a gradient, a step of an optimiser. A submission may read these lines, so
        nothing in them may be an answer.

        Args:
            source: the lines; the submission's names, `torch` and `values` can be used.
            values: as the arguments of `call`.

        Raises:
            StudentError: as for `call`.
        """
        return self._ask({"do": "evaluate", "source": source, "values": values}, "", self._seconds)

    def get(self, value: "str | tuple[Handle, str]") -> Any:
        """A variable of the submission, or an attribute of what an earlier call returned.

        Raises:
            StudentError: it is missing or cannot be read.
        """
        target, path = _place(value)
        return self._job.ask({"do": "get", "target": target, "path": path}, self._seconds)

    def _ask(self, message: dict[str, Any], path: str, seconds: float) -> Any:
        try:
            return self._job.ask(message, seconds)
        except StudentError as error:
            raise StudentError(f"{path}: {error}" if path else str(error)) from error

    def has(self, *names: str) -> list[str]:
        """Those of the names that the submission defines."""
        return [name for name in self._job.ask({"do": "names", "names": list(names)}, self._seconds) if name in names]


def _place(what: "str | Handle | tuple[Handle, str]") -> tuple[Handle | None, str]:
    if isinstance(what, str):
        return None, what
    return (what, "") if isinstance(what, Handle) else what


Check = Callable[[Student, torch.Generator], Iterator[Part]]


@dataclass(frozen=True)
class Exercise:
    """An exercise's hidden check.

    Attributes:
        name: of the check's function, and of the notebook's cell (its `grade_id`).
        title: the first line of its docstring, for the student's feedback.
        points: of all its parts.
        needs: names that the submission must define.
        forbids: what a solution must not call; a call is reported to the instructor, and costs nothing by itself.
        check: the function.
    """

    name: str
    title: str
    points: float
    needs: tuple[str, ...]
    forbids: tuple[str, ...]
    check: Check


def exercise(points: float, needs: list[str], forbids: list[str] | None = None) -> Callable[[Check], Check]:
    """Mark a function of `checks.py` as an exercise's check; see the module.

    Args:
        points: of all parts that it yields together.
        needs: names that the submission must define.
        forbids: dotted names that a solution must not call ("torch.nn.functional.conv_transpose2d").
    """

    def mark(check: Check) -> Check:
        title = (check.__doc__ or check.__name__).strip().splitlines()[0].rstrip(".")
        made = Exercise(check.__name__, title, float(points), tuple(needs), tuple(forbids or ()), check)
        check.exercise = made  # type: ignore[attr-defined]
        return check

    return mark


@dataclass
class Outcome:
    """What an exercise earned.

    Attributes:
        exercise: which one.
        parts: with their reasons; together they are worth all its points.
        missing: names that the submission does not define: perhaps nobody's fault but the matching's, so a person
            should look.
        fault: what went wrong in the check itself on this answer; a person must look.
    """

    exercise: Exercise
    parts: list[Part] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    fault: str = ""

    @property
    def earned(self) -> float:
        return sum(part.earned for part in self.parts)


def run(exercise: Exercise, student: Student, rng: torch.Generator) -> Outcome:
    """Run a check; whatever the submission does, the outcome has all points of the exercise in parts.

    Raises:
        ValueError: the check's own fault: parts of more points than the exercise has.
    """
    outcome = Outcome(exercise)
    try:
        defined = student.has(*exercise.needs)
        outcome.missing = [name for name in exercise.needs if name not in defined]
        if outcome.missing:
            raise StudentError(f"not defined: {', '.join(outcome.missing)}")
        for part in exercise.check(student, rng):
            outcome.parts.append(part)
    except StudentError as error:
        reason = str(error)
    except Exception as error:  # an answer of a kind that the check does not expect must not stop the batch
        reason = outcome.fault = f"the check could not judge this answer ({type(error).__name__}: {error})"[:500]
    else:
        reason = ""
    left = exercise.points - sum(part.points for part in outcome.parts)
    if left < -1e-9 or (not reason and left > 1e-9):
        raise ValueError(
            f"the parts of {exercise.name} have {exercise.points - left:g} points, not {exercise.points:g}"
        )
    if left > 1e-9:
        outcome.parts.append(Part(left, 0.0, reason))
    return outcome


# --- parts


def holds(condition: bool, reason: str, points: float = 1) -> Part:
    """A part that is earned where a condition holds.

    Args:
        condition: compared by the grader from plain numbers.
        reason: what the condition says, in words: "the weights sum to one".
        points: of the part.
    """
    return Part(points, points if condition else 0.0, reason if condition else f"not so: {reason}")


def same(found: Any, expected: Any, what: str, points: float = 1, tolerance: float = 1e-4) -> Part:
    """A part that is earned by the right numbers: shape, kind of numbers and values.

    Args:
        found: what the student's function returned.
        expected: a number, a bool, a string, a tensor, or a list or tuple of these.
        what: what it is, in words.
        points: of the part.
        tolerance: allowed difference of floats, relative to the largest expected value or to 1.
    """
    problem = difference(found, expected, tolerance)
    return Part(points, 0.0 if problem else points, f"{what}: {problem or 'right'}")


def difference(found: Any, expected: Any, tolerance: float = 1e-4) -> str | None:
    """What distinguishes an answer from the right one, in words that do not give it away; None where nothing does."""
    if isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            return f"expected {len(expected)} values, got {_describe(found)}"
        problems = (difference(mine, right, tolerance) for mine, right in zip(found, expected, strict=True))
        return next((problem for problem in problems if problem), None)
    if isinstance(expected, Tensor):
        if not isinstance(found, Tensor):
            return f"expected a tensor, got {_describe(found)}"
        if found.shape != expected.shape:
            return f"expected the shape {tuple(expected.shape)}, got {tuple(found.shape)}"
        if not expected.is_floating_point():
            if found.is_floating_point():
                return f"expected whole numbers or bools, got {found.dtype}"
            wrong = (found.long() != expected.long()).sum().item()
            return f"{wrong} of {expected.numel()} values are wrong" if wrong else None
        if not found.is_floating_point():
            return f"expected floats, got {found.dtype}"
    elif isinstance(expected, str | bool):
        return None if type(found) is type(expected) and found == expected else f"wrong ({_describe(found)})"
    else:
        if isinstance(found, Tensor) and found.numel() == 1:
            found = found.item()
        if isinstance(found, bool) or not isinstance(found, int | float):
            return f"expected a number, got {_describe(found)}"
        if isinstance(expected, int):
            return None if found == expected else "the wrong number"
    mine = torch.as_tensor(found, dtype=torch.float64)
    right = torch.as_tensor(expected, dtype=torch.float64)
    if not right.numel():
        return None
    if mine.isnan().any() and not right.isnan().any():
        return "it has NaN"
    off = (mine - right).abs().nan_to_num(nan=0.0, posinf=float("inf")).max().item()
    if (mine == right).all():
        off = 0.0
    scale = max(1.0, right[right.isfinite()].abs().max().item() if right.isfinite().any() else 1.0)
    return None if off <= tolerance * scale else f"off by up to {off:.3g}"


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Handle):
        return f"something else ({value.kind})"
    return type(value).__name__
