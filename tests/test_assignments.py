"""Every assignment: reference and alternative earn all points, each wrong solution loses some in its exercise alone.

The submissions run without isolation here (they are our own); tests/test_grading.py tests the sandbox.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue

import pytest

from grading import assignment, grade, match
from grading.__main__ import with_tables
from grading.sandbox import Sandbox

NAMES = assignment.names()
WORKERS = min(4, os.cpu_count() or 1)
each = pytest.mark.parametrize("name", NAMES)
EDITIONS = [edition for name in NAMES for edition in assignment.load(name).editions.values()]
each_edition = pytest.mark.parametrize("made", EDITIONS, ids=lambda made: f"{made.name}-{made.language}")


@pytest.fixture(scope="module")
def idle():
    """Sandboxes that nobody uses now, one for each worker."""
    waiting = SimpleQueue()
    with ExitStack() as stack:
        for _ in range(WORKERS):
            waiting.put(stack.enter_context(Sandbox(isolated=False)))
        yield waiting


def earned(made, idle, notebook):
    sandbox = idle.get()
    try:
        report = grade.grade(made, notebook, sandbox, "secret")
    finally:
        idle.put(sandbox)
    return {outcome.exercise.name: outcome.earned for outcome in report.outcomes}, report


def full(made):
    return {exercise.name: exercise.points for exercise in made.exercises}


def test_there_are_assignments():
    assert NAMES


@each
def test_reference_and_alternative_earn_everything(name, idle):
    made = assignment.load(name)
    assert 5 <= len(made.exercises) <= 8 and len(made.questions) == 1
    alternatives = made.answers().RIGHT
    assert alternatives.keys() == full(made).keys()
    for notebook in (made.source, made.filled(alternatives)):
        points, report = earned(made, idle, notebook)
        assert points == full(made), [part.reason for outcome in report.outcomes for part in outcome.parts]
        assert not report.errors and not report.flags, "the self-checks pass, nothing forbidden is called"


@each
def test_wrong_solutions_lose_points_where_they_are_wrong(name, idle):
    made = assignment.load(name)
    wrong = made.answers().WRONG
    assert wrong.keys() == full(made).keys() and all(len(found) >= 4 for found in wrong.values())
    tried = [(exercise, *solution) for exercise, solutions in wrong.items() for solution in solutions.items()]
    with ThreadPoolExecutor(WORKERS) as pool:
        found = pool.map(lambda each: earned(made, idle, made.filled({each[0]: each[2]}))[0], tried)
        for (exercise, what, _), points in zip(tried, found, strict=True):
            lost = {key for key, most in full(made).items() if points[key] < most}
            assert lost == {exercise}, f"{exercise}, {what}: {points}"


@each_edition
def test_the_release_gives_nothing_away(made, idle):
    points, report = earned(assignment.load(made.name), idle, made.release())
    assert set(points.values()) == {0.0} and not report.flags and set(report.answers.values()) == {""}
    text = "\n".join(cell.source for cell in made.release().cells)
    assert "BEGIN SOLUTION" not in text and "END SOLUTION" not in text
    for block in re.findall(
        r"(?s)### BEGIN SOLUTION\n(.*?)### END SOLUTION", "\n".join(c.source for c in made.source.cells)
    ):
        lines = [line.strip() for line in block.splitlines() if len(line.strip()) > 20]
        assert lines and not [line for line in lines if line in text]
    hidden = (made.folder / "checks.py").read_text()
    for line in (line.strip() for line in hidden.splitlines()):
        assert len(line) < 30 or line.startswith(("import", "from", '"')) or line not in text, line


@each_edition
def test_the_release_is_nbgraders_format(made):
    validator = pytest.importorskip("nbgrader.nbgraderformat.v3").MetadataValidatorV3
    validator().validate_nb(made.release())


@pytest.mark.parametrize("made", [m for m in EDITIONS if m.language != "en"], ids=lambda m: f"{m.name}-{m.language}")
def test_the_same_checks_grade_every_language(made, idle):
    """The assignment is loaded as for the English ones; every cell is found by its name, every self-check passes."""
    graded = assignment.load(made.name)
    assert made.version == graded.version and made.questions == graded.questions
    points, report = earned(graded, idle, made.source)
    assert points == full(graded), [part.reason for outcome in report.outcomes for part in outcome.parts]
    assert not report.errors and not report.flags and not report.doubts
    found = match.match(graded, made.release())
    assert found.share == 1 and not found.answered and not found.notes and not found.doubts
    assert all(len(numbers) == 1 for numbers in found.place.values())


def test_the_table_of_one_assignment_leaves_those_of_others():
    page = (assignment.FOLDER / "README.md").read_text(encoding="utf-8")
    assert with_tables(page, {}, keep=True) == page
    changed = with_tables(page, {"gan": "### gan\n| one |\n"}, keep=True)
    assert "### gan\n| one |\n\n### " in changed and changed.count("### ") == page.count("### ")
    alone = with_tables(page, {"gan": "### gan\n| one |\n"}, keep=False)
    assert alone.count("### ") == 1 and alone.startswith(page.partition("<!-- table -->")[0])
