"""Matching: what Colab, VS Code, Kaggle and students do to a notebook costs nobody a point."""

import copy
import gc
import random
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest

from grading import assignment, course, grade, match
from grading.sandbox import Sandbox

MADE, RUSSIAN = assignment.load("upsampling"), assignment.load("upsampling", "ru")
EXPLAIN = "Because the kernel's weights need not be equal."


@pytest.fixture(scope="module")
def plain():
    with Sandbox(isolated=False) as made:
        yield made


def solved(made=MADE):
    notebook = copy.deepcopy(made.source)
    notebook.cells[-1].source = EXPLAIN
    return notebook


def place(notebook, name):
    return next(i for i, cell in enumerate(notebook.cells) if assignment.grade_id(cell) == name)


def bare(notebook):
    """What Colab leaves: ids of its own, no metadata of nbgrader."""
    for cell in notebook.cells:
        cell.metadata = {"id": uuid.uuid4().hex[:12]}
        cell.id = uuid.uuid4().hex[:8]
        if cell.cell_type == "code":
            cell.outputs = []
    notebook.metadata = {"colab": {"provenance": []}, "kernelspec": {"name": "none", "display_name": "gone"}}
    return notebook


def colab(notebook):
    return bare(notebook)


def kaggle(notebook):
    """Kaggle: a cell of its own first, format 4.4 without ids, sources with trailing spaces."""
    notebook = bare(notebook)
    notebook.cells.insert(
        0, nbformat.v4.new_code_cell("import os\nfor d, _, f in os.walk('/kaggle/input'):\n    print(f)")
    )
    for cell in notebook.cells:
        cell.source += "\n"
        cell.pop("id", None)
    notebook.nbformat_minor = 4
    return notebook


def split(notebook):
    at = place(notebook, "transposed")
    old = notebook.cells[at]
    head = nbformat.v4.new_code_cell("def helper(x):\n    return x", metadata=copy.deepcopy(old.metadata))
    notebook.cells.insert(at, head)
    return notebook


def split_without_ids(notebook):
    return bare(split(notebook))


def copied(notebook, made=MADE):
    """The stub again below the answer, as after "duplicate cell" before it was filled."""
    at = place(notebook, "linear")
    stub = copy.deepcopy(made.release().cells[at])
    stub.id = uuid.uuid4().hex[:8]
    notebook.cells.insert(at + 1, stub)
    return notebook


def copied_without_ids(notebook, made=MADE):
    return bare(copied(notebook, made))


def answers_in_new_cells(notebook, made=MADE):
    """Every stub untouched, the answer in a new cell before or behind it."""
    for number, exercise in enumerate(MADE.exercises):
        at = place(notebook, exercise.name)
        answer = nbformat.v4.new_code_cell(notebook.cells[at].source)
        notebook.cells[at].source = made.release().cells[place(made.source, exercise.name)].source
        notebook.cells.insert(at + number % 2, answer)
    at = place(notebook, "explain")
    notebook.cells[at].source = assignment.STUB[made.language]["markdown"]
    notebook.cells.insert(at, nbformat.v4.new_markdown_cell(EXPLAIN))
    return notebook


def question_answered_in_new_cells(notebook):
    notebook = bare(notebook)
    notebook.cells[-1:] = [nbformat.v4.new_markdown_cell(part) for part in EXPLAIN.split(" weights ")]
    return notebook


def retyped(notebook):
    """Two answers became Markdown and raw text."""
    for name, kind in (("blur", "markdown"), ("shuffle", "raw")):
        at = place(notebook, name)
        old = notebook.cells[at]
        make = nbformat.v4.new_markdown_cell if kind == "markdown" else nbformat.v4.new_raw_cell
        notebook.cells[at] = make(old.source, metadata=old.metadata, id=old.id)
    return notebook


def moved(notebook):
    """Every cell somewhere else; what the notebook gives is missing."""
    notebook = bare(notebook)
    del notebook.cells[1]
    random.Random(0).shuffle(notebook.cells)
    return notebook


def without_checks(notebook):
    notebook.cells = [cell for cell in notebook.cells if not (assignment.grade_id(cell) or "").startswith("check_")]
    return notebook


def old_format(notebook):
    content = nbformat.writes(nbformat.v3.convert.downgrade(bare(notebook)), version=3)
    return course.readable(content.encode())


def hostile_metadata(notebook):
    for number, cell in enumerate(notebook.cells):
        cell.metadata = {"nbgrader": (5, [1], {"grade_id": [1], "points": 99})[number % 3]}
    return notebook


@pytest.mark.parametrize(
    "change",
    [
        colab, kaggle, split, split_without_ids, copied, copied_without_ids, answers_in_new_cells, retyped, moved,
        without_checks, old_format, question_answered_in_new_cells, hostile_metadata,
    ],
)  # fmt: skip
def test_every_point_is_still_there(change, plain):
    notebook = change(solved())
    report = grade.grade(MADE, notebook, plain, "secret")
    assert report.earned == 20, (report.errors, report.flags, report.doubts)
    if change is moved:  # the answer may stand anywhere; then a person is asked
        assert EXPLAIN in report.answers["explain"] or "explain" in report.doubts
    else:
        assert not report.doubts
        assert report.answers["explain"].replace("\n\n", " weights ") == EXPLAIN


@pytest.mark.parametrize("change", [colab, kaggle, copied_without_ids, answers_in_new_cells, moved, without_checks])
def test_every_point_is_still_there_in_russian(change, plain):
    """Collected and graded by the assignment as it is loaded for everybody; its language is found in its cells."""
    notebook = solved(RUSSIAN)
    changed = change(notebook, RUSSIAN) if change in (copied_without_ids, answers_in_new_cells) else change(notebook)
    report = grade.grade(MADE, changed, plain, "secret")
    assert report.earned == 20, (report.errors, report.flags, report.doubts)
    if change is not moved:
        assert report.answers["explain"] == EXPLAIN and not report.doubts
    for given in (RUSSIAN.release(), bare(RUSSIAN.release())):
        found = match.match(MADE, given)
        assert found.share == 1 and not found.answered and not found.notes and found.answers == {"explain": ""}


def renamed(notebook):
    at = place(notebook, "linear")
    notebook.cells[at].source = notebook.cells[at].source.replace("def stretch", "def strech")
    return notebook


def renamed_without_ids(notebook):
    return bare(renamed(notebook))


def deleted(notebook):
    del notebook.cells[place(notebook, "linear")]
    return bare(notebook)


def markdown_with_a_fence(notebook):
    at = place(notebook, "linear")
    old = notebook.cells[at]
    notebook.cells[at] = nbformat.v4.new_markdown_cell(f"My answer:\n```\n{old.source}\n```", metadata=old.metadata)
    return notebook


@pytest.mark.parametrize("change", [renamed, renamed_without_ids, deleted, markdown_with_a_fence])
def test_what_is_not_sure_waits_for_a_person(change, plain):
    report = grade.grade(MADE, change(solved()), plain, "secret")
    assert report.earned == 16 and list(report.doubts) == ["linear"], (report.doubts, report.flags)
    assert "stretch not found: its cell" in report.doubts["linear"]


def test_stubs_and_wrong_answers_are_no_doubt(plain):
    report = grade.grade(MADE, bare(MADE.release()), plain, "secret")
    assert report.earned == 0 and not report.doubts and report.answers == {"explain": ""}
    assert match.match(MADE, MADE.release()).answered == []
    assert len(match.match(MADE, bare(solved())).answered) == 6
    failing = MADE.filled({"linear": "1 / 0\ndef stretch(x, size): return x"})
    report = grade.grade(MADE, failing, plain, "secret")
    assert report.earned == 16 and not report.doubts and "ZeroDivisionError" in str(report.errors)


def test_an_empty_and_another_notebook_are_doubted(plain):
    for notebook in (nbformat.v4.new_notebook(), assignment.load("gan").source):
        found = match.match(MADE, notebook)
        assert {exercise.name for exercise in MADE.exercises} <= found.doubts.keys() and found.share < 0.25


@pytest.mark.parametrize(
    "source",
    ["-" * 200_000 + "1", "x" + ".y" * 99_000, "(" * 5000, "a " * 90_000, "x" * 300_000, "\ud800", "\x00", "% \n" * 9],
)
def test_sources_made_to_stop_the_grader_do_not(source):
    notebook = bare(MADE.release())
    notebook.cells += [nbformat.v4.new_code_cell("") for _ in range(5)]
    for cell in notebook.cells[-5:]:
        cell.source = source
    found = match.match(MADE, notebook)
    assert found.share == 1 and not found.doubts
    grade.forbidden_calls(MADE, dict(found.sources))


def test_names_that_a_cell_defines():
    source = "%matplotlib inline\nimport a.b, c as d\nfrom e import f\ng, (h, *i) = 1, (2, 3)\n"
    source += "if j := 1:\n  !ls\n  class K: l = 1\n"
    source += "with open(m) as n: o: int = 1\nfor p in q: pass\ndef r(s): t = 1\nu = [v for v in w]"
    assert match.defined(source) == set("adfghijKnopru")
    assert match.defined("def (") is None


def test_threads_parse_side_by_side():
    """CPython 3.11 raised SystemError where a thread's turn ended in the middle of a tree, as in a finalizer."""

    class Slow:
        def __del__(self):
            sum(range(300))

    def parse(_):
        for _ in range(200):
            slow = Slow()
            slow.ring = slow
            assert match.parsed("def f(x):\n" + "".join(f"    y{i} = x + {i} * (x - 1)\n" for i in range(10)))

    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.freeze()
    gc.set_threshold(1)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(parse, range(8)))
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
        gc.unfreeze()
