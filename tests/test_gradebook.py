"""nbgrader's side: its validation and release, its gradebook, what formgrader shows. Needs the extra `grading`."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("nbgrader", reason="nbgrader is not installed (pip install -e .[grading])")

from grading import assignment, feedback, grade, gradebook, match
from grading.checks import Outcome, Part
from grading.course import Course, CourseError

NAMES = assignment.names()
MADE = assignment.load("upsampling")
XSS = "<script>alert(1)</script> $a < b$"


def report(made, notebook, share=1.0):
    """What the checks would have found, without running them."""
    found = grade.Report(made.name, made.version, answers=match.match(made, notebook).answers)
    for exercise in made.exercises:
        found.outcomes.append(Outcome(exercise, [Part(exercise.points, exercise.points * share, "a reason")]))
    return {"file": "a.ipynb", "time": "2026-05-01T12:00:00", "key": "", "sandbox": True, **feedback.as_dict(found)}


@pytest.fixture
def course(tmp_path):
    (tmp_path / "course.ini").write_text("[upsampling]\ndeadline = 2026-05-01 00:00\npenalty = 10\n")
    made = Course(tmp_path, MADE)
    for student, share in (("anna", 1.0), ("ben", 0.5)):
        notebook = MADE.filled({"explain": XSS})
        notebook.cells += [nbformat.v4.new_raw_cell("<script>raw</script>")]
        path = tmp_path / "submitted" / student / "upsampling" / "a.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(notebook))
        made.write_report(student, report(MADE, notebook, share))
    return made


def write(course):
    reports = course.reports()
    totals = course.totals(reports, gradebook.given(course))
    gradebook.write(course, reports, totals)
    return totals


def contents(folder):
    """All that the gradebook says, without its random ids."""
    found = {}
    with gradebook.opened(folder) as book:
        for one in book.assignments:
            found[one.name] = (
                one.max_score,
                str(one.duedate),
                sorted(cell.name for cell in one.notebooks[0].source_cells),
            )
            for sub in one.submissions:
                grades = sorted(
                    (g.name, g.auto_score, g.manual_score, g.needs_manual_grade, g.max_score)
                    for g in sub.notebooks[0].grades
                )
                found[one.name, sub.student.id] = (sub.score, sub.late_submission_penalty, str(sub.timestamp), grades)
    return found


@pytest.mark.parametrize(("name", "language"), [*((name, "en") for name in NAMES), ("upsampling", "ru")])
def test_nbgrader_releases_the_source_as_we_do(name, language, tmp_path):
    """`nbgrader generate_assignment`, in its own process as an instructor starts it."""
    folder = tmp_path / "source" / name
    folder.mkdir(parents=True)
    made = assignment.load(name, language)
    shutil.copy(made.path, folder)
    command = [sys.executable, "-m", "nbgrader", "generate_assignment", name, f"--CourseDirectory.root={tmp_path}"]
    with gradebook.opened(tmp_path):  # puts alembic on the search path
        pass
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = nbformat.read(tmp_path / "release" / name / f"{name}.ipynb", 4)
    ours = made.release()
    assert [cell.cell_type for cell in theirs.cells] == [cell.cell_type for cell in ours.cells]
    marks = [
        [cell.metadata.get("nbgrader", {}).get(key) for cell in nb.cells]
        for nb in (theirs, ours)
        for key in ("grade_id", "points")
    ]
    assert marks[:2] == marks[2:]
    assert not [cell for cell in theirs.cells if "SOLUTION" in cell.source]


def test_the_gradebook_holds_points_penalties_and_what_waits(course):
    totals = write(course)
    assert totals["anna"].total == 18 and totals["ben"].total == 9, "a day late"
    found = contents(course.folder)
    assert found["upsampling"][0] == 22 and len(found["upsampling"][2]) == 14
    score, penalty, _, grades = found["upsampling", "anna"]
    assert (score, penalty) == (20, 2)
    assert ("explain", None, None, True, 2) in grades and ("check_linear", 4, None, False, 4) in grades
    write(course)
    assert contents(course.folder) == found, "writing again changes nothing"


def test_points_given_in_formgrader_count_and_stay(course):
    write(course)
    with gradebook.opened(course.folder) as book:
        for name, points in (("explain", 1.5), ("check_linear", 3.0)):
            grade = book.find_grade(name, "upsampling", "upsampling", "ben")
            grade.manual_score, grade.needs_manual_grade = points, False
        book.db.commit()
    for _ in range(2):
        totals = write(course)
        assert totals["ben"].points["explain"] == 1.5 and totals["ben"].points["linear"] == 3
        assert totals["ben"].waits == [] and totals["anna"].waits == ["explain"]
    grades = contents(course.folder)["upsampling", "ben"][3]
    assert ("explain", None, 1.5, False, 2) in grades and ("check_linear", 2, 3, False, 4) in grades
    (course.results / "by_hand.csv").write_text("student,item,points\nben,explain,1\n")
    assert write(course)["ben"].points["explain"] == 1, "the table counts where both are filled"


def test_formgrader_opens_it_and_nothing_in_it_is_markup(course):
    """As formgrader's own handler does it."""
    from nbconvert.exporters import HTMLExporter
    from nbgrader.apps.api import NbGraderAPI
    from nbgrader.coursedir import CourseDirectory
    from nbgrader.preprocessors import GetGrades

    write(course)
    directory = CourseDirectory(root=str(course.folder))
    listed = NbGraderAPI(directory).get_notebook_submissions("upsampling", "upsampling")
    assert {one["student"]: one["needs_manual_grade"] for one in listed} == {"anna": True, "ben": True}
    path = Path(directory.format_path(directory.autograded_directory, "anna", "upsampling")) / "upsampling.ipynb"
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    exporter = HTMLExporter()
    exporter.register_preprocessor(GetGrades, enabled=True)
    about = {"notebook": "upsampling", "assignment": "upsampling", "student": "anna", "db_url": directory.db_url}
    page, resources = exporter.from_notebook_node(notebook, resources={"nbgrader": about})
    assert resources["nbgrader"]["score"] == 18
    assert not [markup for markup in ("<script>alert", "<script>raw") if markup in page]
    assert "alert(1)" in page and "stretch" in page


def test_formgrader_shows_a_russian_submission_in_russian(course):
    made = assignment.load("upsampling", "ru")
    notebook = made.filled({"explain": "Перекрытия ровные, а веса разные."})
    (course.folder / "submitted" / "anna" / "upsampling" / "a.ipynb").write_text(json.dumps(notebook))
    write(course)
    shown = nbformat.read(course.folder / "autograded" / "anna" / "upsampling" / "upsampling.ipynb", 4)
    assert [cell.id for cell in shown.cells] == [cell.id for cell in made.source.cells], "no cell is taken for another"
    assert "Задание" in shown.cells[0].source and "а веса разные" in shown.cells[-1].source


def test_an_assignment_that_changed_changes_the_gradebook(course, monkeypatch):
    write(course)
    course.__dict__.pop("worth", None)
    kept = [exercise for exercise in assignment.load("upsampling").exercises if exercise.name != "blur"]
    shorter = MADE.release()
    shorter.cells = [cell for cell in shorter.cells if assignment.grade_id(cell) not in ("blur", "check_blur")]
    monkeypatch.setitem(course.assignment.__dict__, "exercises", kept)
    monkeypatch.setattr(assignment.Assignment, "release", lambda self: nbformat.from_dict(shorter))
    for student in ("anna", "ben"):
        found = course.reports()[student]
        del found["exercises"]["blur"]
        course.write_report(student, found)
    write(course)
    found = contents(course.folder)
    assert found["upsampling"][0] == 20 and found["upsampling", "anna"][0] == 18


def test_one_writer_at_a_time(course):
    write(course)
    with (course.folder / ".gradebook.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CourseError, match="another process writes"):
            write(course)


def test_a_writer_that_is_killed_leaves_a_gradebook_that_goes_on(course):
    write(course)
    right = contents(course.folder)
    program = "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); import test_gradebook as t\n" \
        "t.write(t.Course(Path(sys.argv[1]), t.MADE))"  # fmt: skip
    command = [sys.executable, "-c", program, str(course.folder), str(Path(__file__).parent)]
    for wanted in ("gradebook.db", "autograded/anna"):
        for path in ("gradebook.db", ".gradebook.db.new"):
            (course.folder / path).unlink(missing_ok=True)
        shutil.rmtree(course.folder / "autograded", ignore_errors=True)
        process = subprocess.Popen(command, start_new_session=True)
        while not (course.folder / wanted).exists() and process.poll() is None:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        write(course)
        assert contents(course.folder) == right
