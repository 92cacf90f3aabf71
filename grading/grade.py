"""Grade one notebook: run its cells in a sandbox, then the hidden checks from outside."""

import ast
import hashlib
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from grading.assignment import Assignment
from grading.checks import Outcome, Student, StudentError, run
from grading.match import match, parsed
from grading.sandbox import Job, Limits, Sandbox

CELL_SECONDS = 60.0  # for a cell; the release's own take 20 s at most
ALL_SECONDS = 600.0  # for all cells of a submission together


@dataclass
class Report:
    """What a submission earned, and what a person should know.

    Attributes:
        assignment: its name.
        version: of the assignment.
        outcomes: of the exercises.
        errors: of the cells that failed, by their number in the notebook from 1; 0 is what the assignment gives.
        flags: what an instructor should look at: forbidden calls, a process that ended, cells in unusual places.
        doubts: why a person must decide, by exercise or question; such an exercise has no points until then.
        answers: to the questions that a person grades.
    """

    assignment: str
    version: str
    outcomes: list[Outcome] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    doubts: dict[str, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)

    @property
    def earned(self) -> float:
        return sum(outcome.earned for outcome in self.outcomes)

    @property
    def points(self) -> float:
        return sum(outcome.exercise.points for outcome in self.outcomes)


def seed_of(*words: str) -> int:
    """A seed that depends on words alone: a regrade draws the same inputs, and every student gets other ones."""
    return int.from_bytes(hashlib.sha256("\0".join(words).encode()).digest()[:6], "big")


def grade(assignment: Assignment, notebook: Any, sandbox: Sandbox, secret: str, limits: Limits | None = None) -> Report:
    """Grade a submission.

    Args:
        assignment: with the hidden checks.
        notebook: the submission, of nbformat 4; of it only the sources of cells are used, and names to find them by.
        sandbox: to run it in.
        secret: words that no student knows and a regrade repeats; the checks' inputs are drawn from them.
        limits: of the process.
    """
    matched = match(assignment, notebook)
    report = Report(assignment.name, assignment.version, flags=matched.notes, answers=matched.answers)
    sources = dict(matched.sources)
    report.flags += forbidden_calls(assignment, sources)
    deadly: set[int] = set()
    job = _prepared(sandbox, limits, sources, deadly, report)
    try:
        for exercise in assignment.exercises:
            if not job.alive:  # one function that hangs costs its own exercise only
                job = _prepared(sandbox, limits, sources, deadly, report)
            rng = torch.Generator().manual_seed(seed_of(secret, assignment.name, exercise.name))
            report.outcomes.append(run(exercise, Student(job), rng))
            if not job.alive:
                report.flags.append(f"the process ended in {exercise.name}: {report.outcomes[-1].parts[-1].reason}")
    finally:
        job.close()
    report.doubts = {name: why for name, why in matched.doubts.items() if name in assignment.questions}
    for outcome in report.outcomes:
        name = outcome.exercise.name
        doubt = outcome.fault or (matched.doubts.get(name) if outcome.missing else None)
        if doubt and outcome.earned < outcome.exercise.points:
            report.doubts[name] = doubt
    return report


def _prepared(
    sandbox: Sandbox, limits: Limits | None, sources: dict[int, str], deadly: set[int], report: Report
) -> Job:
    """A process in which all cells have run but those that end it; these are found, and left out the next time."""
    while True:
        job, left = sandbox.start(limits), ALL_SECONDS
        for number, source in sources.items():
            if number in deadly:
                continue
            begun = time.monotonic()
            try:
                error = job.ask({"do": "run", "source": source}, min(CELL_SECONDS, left))["error"]
            except (StudentError, KeyError, TypeError) as failure:
                error = str(failure)
            left = max(1.0, left - (time.monotonic() - begun))
            if error:
                report.errors[number] = str(error)
            if not job.alive:
                deadly.add(number)
                report.flags.append(f"the process ended in cell {number}, which is left out: {error}")
                break
        else:
            return job


def forbidden_calls(assignment: Assignment, sources: dict[int, str]) -> list[str]:
    """Where a submission calls what an exercise forbids, found in its text: for the instructor, not a verdict."""
    forbidden = {name: exercise.name for exercise in assignment.exercises for name in exercise.forbids}
    found = []
    for number, source in sources.items():
        if (tree := parsed(source)) is None:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                last = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
                for name, exercise in forbidden.items():
                    if last == name.rpartition(".")[2]:
                        found.append(f"cell {number}, line {node.lineno} calls {last}, which {exercise} forbids")
    return found
