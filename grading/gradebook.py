"""The course's points in nbgrader's gradebook, so that its formgrader can be used to read and grade free texts.

`gradebook.db` is written from what `course.py` knows, as often as wanted: a run that was killed is repeated, and points
that a person gave in formgrader stay. Formgrader shows the notebooks in `autograded/`: the assignment with the
student's sources in it, without outputs, so that nothing of a submission runs in the instructor's browser.
"""

import contextlib
import fcntl
import html
import os
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import nbformat

from course_lib.base.checkpoints import write_atomically
from grading.assignment import grade_id
from grading.course import Course, CourseError, Total, clean, readable
from grading.match import edition, match, plain


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Any]:
    """The gradebook of a course, for one writer at a time; made where it is missing.

    Args:
        folder: of the course.

    Raises:
        CourseError: nbgrader is missing, or another process writes.
    """
    try:
        import nbgrader
        from nbgrader.api import Gradebook
        from sqlalchemy.exc import SAWarning
    except ImportError as error:
        raise CourseError(f"nbgrader is missing ({error}): pip install -e .[grading]") from error
    # nbgrader starts alembic by name.
    places = [sysconfig.get_path("scripts"), str(Path(nbgrader.__file__).parents[4] / "bin")]
    os.environ["PATH"] = os.pathsep.join([*places, os.environ.get("PATH", os.defpath)])
    path, new = folder / "gradebook.db", folder / ".gradebook.db.new"
    with (folder / ".gradebook.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CourseError(f"another process writes {path}") from error
        if not path.exists():  # whole or not at all: nbgrader makes the tables and their version in several steps
            new.unlink(missing_ok=True)
            with Gradebook(f"sqlite:///{new}"):
                pass
            os.replace(new, path)
        with Gradebook(f"sqlite:///{path}") as book, warnings.catch_warnings():
            warnings.simplefilter("ignore", SAWarning)  # nbgrader adds a submission before its session knows it
            yield book


def given(course: Course) -> dict[tuple[str, str], float]:
    """Points that a person gave in formgrader, by student and item; none where there is no gradebook."""
    if not (course.folder / "gradebook.db").exists():
        return {}
    with opened(course.folder) as book:
        return {
            (submission.student.id, grade.name.removeprefix("check_")): grade.manual_score
            for submission in book.assignment_submissions(course.name)
            for grade in submission.notebooks[0].grades
            if grade.manual_score is not None
        }


def write(course: Course, reports: Mapping[str, Mapping[str, Any]], totals: Mapping[str, Total]) -> None:
    """Bring the gradebook and the notebooks for formgrader up to date.

    Args:
        course: with the assignment.
        reports: what the checks found, by student.
        totals: of the same students.
    """
    name, release = course.name, course.assignment.release()
    write_atomically(course.folder / "source" / name / f"{name}.ipynb", course.assignment.path.read_bytes())
    with opened(course.folder) as book:
        _structure(book, course, release)
        for student, report in reports.items():
            notebook = _readable_notebook(course, student, report)
            path = course.folder / "autograded" / student / name / f"{name}.ipynb"
            write_atomically(path, clean(nbformat.writes(notebook)).encode())
            book.update_or_create_student(student)
            _submission(book, course, student, report, totals[student])


def _utc(time: datetime | None) -> datetime | None:
    return time.astimezone(timezone.utc).replace(tzinfo=None) if time else None


def _structure(book: Any, course: Course, release: Any) -> None:
    """The assignment, its notebook and its cells; cells that it has no more go with their grades."""
    from nbgrader.utils import compute_checksum

    name = course.name
    book.update_or_create_assignment(name, duedate=_utc(course.deadline()))
    notebook = book.update_or_create_notebook(name, name)
    marks = {grade_id(cell): cell.metadata.nbgrader for cell in release.cells if grade_id(cell)}
    for old in [*notebook.grade_cells, *notebook.solution_cells, *notebook.source_cells]:
        if old.name not in marks:
            for thing in [*getattr(old, "grades", []), *getattr(old, "comments", []), old]:
                book.db.delete(thing)
    book.db.commit()
    for cell in release.cells:
        mark = marks.get(grade_id(cell))
        if mark is None:
            continue
        if mark.grade:
            book.update_or_create_grade_cell(
                mark.grade_id, name, name, max_score=float(mark.points), cell_type=cell.cell_type
            )
        if mark.solution:
            book.update_or_create_solution_cell(mark.grade_id, name, name)
        about = {"cell_type": cell.cell_type, "locked": mark.locked, "source": cell.source}
        book.update_or_create_source_cell(mark.grade_id, name, name, checksum=compute_checksum(cell), **about)


def _submission(book: Any, course: Course, student: str, report: Mapping[str, Any], total: Total) -> None:
    """One student's grades, in one transaction."""
    from nbgrader.api import Comment, Grade, MissingEntry

    name = course.name
    try:
        submission = book.find_submission(name, student)
    except MissingEntry:
        submission = book.add_submission(name, student)
    own, due = course.deadline(student), course.deadline()
    submission.timestamp = _utc(datetime.fromisoformat(report["time"])) if report.get("time") else None
    submission.extension = own - due if own and due and own != due else None
    notebook = submission.notebooks[0]
    notebook.late_submission_penalty = total.penalty
    grades = {grade.cell_id: grade for grade in notebook.grades}
    known = {comment.cell_id for comment in notebook.comments}
    for cell in notebook.notebook.grade_cells:
        grade = grades.get(cell.id) or Grade(cell_id=cell.id, notebook=notebook)
        points = total.points[cell.name.removeprefix("check_")]
        if grade.manual_score is None or grade.manual_score != points:
            grade.auto_score = points
        grade.needs_manual_grade = points is None
    for cell in notebook.notebook.solution_cells:
        if cell.id not in known:
            Comment(cell_id=cell.id, notebook=notebook)
    book.db.commit()


def _readable_notebook(course: Course, student: str, report: Mapping[str, Any]) -> Any:
    """The assignment with a student's sources in it, and all other cells behind it; no markup of the student's."""
    try:
        notebook = readable((course.folder / "submitted" / student / course.name / report["file"]).read_bytes())
    except (OSError, ValueError) as error:
        shown = course.assignment.release()
        shown.cells.insert(0, nbformat.v4.new_markdown_cell(html.escape(str(error))))
        return shown
    cells, place = plain(notebook, []), match(course.assignment, notebook).place
    sources = {cell.number: cell.source for cell in cells}
    shown = edition(course.assignment, cells).release()
    known = {cell.source.strip() for cell in shown.cells}
    for cell in shown.cells:
        mark = cell.metadata.get("nbgrader", {})
        if mark.get("solution"):
            text = "\n\n".join(sources.pop(number, "") for number in place.get(grade_id(cell), []))
            cell.source = html.escape(text, quote=False) if cell.cell_type == "markdown" else text
    others = [source for source in sources.values() if source.strip() and source.strip() not in known]
    if others:
        shown.cells.append(nbformat.v4.new_markdown_cell("## Other cells of the submission"))
        shown.cells += [nbformat.v4.new_code_cell(source) for source in others]  # raw and Markdown may be markup
    return shown
