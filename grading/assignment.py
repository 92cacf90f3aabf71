"""An assignment: a source notebook in nbgrader's format with its solutions, and beside it the hidden checks.

    assignments/TOPIC/TOPIC.ipynb     text, solution cells, self-check cells with points, one question graded by hand
    assignments/TOPIC/ru/TOPIC.ipynb  the same cells in Russian, kept in step by `website/russian.py`
    assignments/TOPIC/checks.py       the hidden checks, one function for each exercise (`checks.py` in this folder)
    assignments/TOPIC/answers.py      other right solutions, and wrong ones as students write them, for the tests

In the notebook an exercise NAME is a code cell with `grade_id` NAME and the solution between `### BEGIN SOLUTION` and
`### END SOLUTION`, and after it a locked cell `check_NAME` that carries the points and lets students check themselves.
In every language the cells have the same names and points, so the same checks grade what comes back.
"""

import copy
import hashlib
import importlib.util
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat

from grading.checks import Exercise
from grading.sandbox import ROOT

FOLDER = ROOT / "assignments"
_SOLUTION = re.compile(r"(?ms)^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION$")
STUB = {
    "en": {"code": "raise NotImplementedError  # your code here", "markdown": "YOUR ANSWER HERE"},
    "ru": {"code": "raise NotImplementedError  # здесь ваш код", "markdown": "ЗДЕСЬ ВАШ ОТВЕТ"},
}


class AssignmentError(ValueError):
    """An assignment whose notebook and checks do not belong together; the message says where."""


def grade_id(cell: Any) -> str | None:
    """The name by which nbgrader knows a cell."""
    return cell.metadata.get("nbgrader", {}).get("grade_id")


@dataclass(frozen=True)
class Assignment:
    """One assignment in one language.

    Attributes:
        folder: where it lies; its name is the topic's.
        language: of its texts, a key of `STUB`.

    Raises:
        AssignmentError: a file is missing or broken; an exercise has no cell, no check, or other points there.
    """

    folder: Path
    language: str = "en"

    def __post_init__(self) -> None:
        for file in (self.path, self.folder / "checks.py"):
            if not file.is_file():
                raise AssignmentError(f"expected {file.relative_to(self.folder)} in {self.folder.name}/")
        worth = {
            grade_id(cell).removeprefix("check_"): cell.metadata.nbgrader.points
            for cell in self.source.cells
            if cell.metadata.get("nbgrader", {}).get("grade") and not cell.metadata.nbgrader.solution
        }
        stated = {exercise.name: exercise.points for exercise in self.exercises}
        if worth != stated:
            raise AssignmentError(f"{self.name}: the notebook has the points {worth}, checks.py {stated}")
        for exercise in self.exercises:
            if not _SOLUTION.search(self.cell(exercise.name).source):
                raise AssignmentError(f"{self.name}: the cell {exercise.name} has no solution between its markers")

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def path(self) -> Path:
        return self._notebook(self.language)

    def _notebook(self, language: str) -> Path:
        return self.folder / ("" if language == "en" else language) / f"{self.name}.ipynb"

    @cached_property
    def editions(self) -> dict[str, "Assignment"]:
        """This assignment in the languages that it is there in; the checks are shared."""
        there = [language for language in STUB if self._notebook(language).is_file()]
        return {key: self if key == self.language else Assignment(self.folder, key) for key in there}

    @cached_property
    def source(self) -> Any:
        """The notebook with its solutions."""
        return nbformat.read(self.path, as_version=4)

    @cached_property
    def exercises(self) -> list[Exercise]:
        """The exercises that are graded by checks, in the order of `checks.py`."""
        module = _module(self.folder / "checks.py", f"checks_{self.name}")
        return [
            thing.exercise for thing in vars(module).values() if isinstance(getattr(thing, "exercise", None), Exercise)
        ]

    @cached_property
    def questions(self) -> dict[str, float]:
        """The points of the cells that a person grades, by their `grade_id`."""
        marks = [cell.metadata.get("nbgrader", {}) for cell in self.source.cells]
        return {mark.grade_id: float(mark.points) for mark in marks if mark.get("grade") and mark.get("solution")}

    @property
    def points(self) -> float:
        return sum(exercise.points for exercise in self.exercises) + sum(self.questions.values())

    @cached_property
    def version(self) -> str:
        """Changes whenever a notebook or a check does, so that grades of an older version can be found."""
        files = [self.folder / "checks.py", *map(self._notebook, STUB)]
        return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()[:12]

    def cell(self, name: str) -> Any:
        """The cell with that `grade_id`.

        Raises:
            AssignmentError: there is none, or there are two.
        """
        found = [cell for cell in self.source.cells if grade_id(cell) == name]
        if len(found) != 1:
            raise AssignmentError(f"{self.name}: {len(found)} cells are called {name}")
        return found[0]

    def answers(self) -> ModuleType:
        """`answers.py`: right and wrong solutions for the tests."""
        return _module(self.folder / "answers.py", f"answers_{self.name}")

    def release(self) -> Any:
        """The notebook as students get it: stubs instead of solutions, no outputs, locked cells not editable."""
        notebook, stub = copy.deepcopy(self.source), STUB[self.language]
        for cell in notebook.cells:
            mark = cell.metadata.get("nbgrader", {})
            if mark.get("solution"):
                cell.source = _SOLUTION.sub(lambda found, kind=cell.cell_type: found[1] + stub[kind], cell.source)
                if mark.get("grade") and stub[cell.cell_type] not in cell.source:
                    cell.source = stub[cell.cell_type]
            if mark.get("locked"):
                cell.metadata["editable"] = cell.metadata["deletable"] = False
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        notebook.metadata["grading"] = {"assignment": self.name, "version": self.version}
        return notebook

    def filled(self, solutions: dict[str, str]) -> Any:
        """The source notebook with other solutions: the code of exercise cells by name, the rest as it is."""
        notebook = copy.deepcopy(self.source)
        for cell in notebook.cells:
            if grade_id(cell) in solutions:
                cell.source = solutions[grade_id(cell)]
        return notebook


def _module(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names() -> list[str]:
    """The assignments that there are."""
    return sorted(path.parent.name for path in FOLDER.glob("*/checks.py"))


def load(name: str, language: str = "en") -> Assignment:
    """An assignment by its topic.

    Raises:
        AssignmentError: an unknown name, a language that it is not there in, or an assignment that is broken.
    """
    if name not in names():
        raise AssignmentError(f"expected an assignment of {', '.join(names())}; got {name!r}")
    editions = Assignment(FOLDER / name).editions
    if language not in editions:
        raise AssignmentError(f"{name}: expected a language of {', '.join(editions)}; got {language!r}")
    return editions[language]
