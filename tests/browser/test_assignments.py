"""Assignments in a real browser: a student solves the release in JupyterLab, a person grades the text in formgrader."""

import json
import os
from pathlib import Path

import pytest
from test_lab import close, open_notebook

from grading import assignment, gradebook
from grading.course import Course

NAME = "upsampling"
MADE = assignment.load(NAME)
ANSWER = "Each of the four positions has weights of its own. <img src=x onerror=alert(1)>"
CORNERS = """def stretch(x, size):
    # as if the corners were aligned
    u = torch.linspace(0, x.shape[-1] - 1, size)
    left = u.floor().long()
    right = (left + 1).clamp(max=x.shape[-1] - 1)
    return x[..., left] * (1 - u + left) + x[..., right] * (u - left)
"""


def cells(page) -> dict[str, tuple[int, dict]]:
    """The number of each cell that has a name, and the cell, by that name."""
    found = page.evaluate("() => jupyterapp.shell.currentWidget.content.model.toJSON().cells")
    names = [cell["metadata"].get("nbgrader", {}).get("grade_id") for cell in found]
    return {name: (number, found[number]) for number, name in enumerate(names) if name}


def run(page, name: str, source: str | None = None) -> list[dict]:
    """Write into a cell by hand where a source is given, press Shift-Enter, and wait; the cell's outputs."""
    number, before = cells(page)[name]
    editor = page.locator(".jp-Notebook .jp-Cell").nth(number).locator(".cm-content")
    editor.click()
    if source is not None:
        editor.fill(source)
        assert cells(page)[name][1]["source"] == source
    page.keyboard.press("Shift+Enter")
    page.wait_for_function(
        """([number, before]) => jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle' &&
        ![null, before].includes(jupyterapp.shell.currentWidget.content.model.cells.get(number).executionCount)""",
        arg=[number, before["execution_count"]],
    )
    return cells(page)[name][1]["outputs"]


def test_a_student_solves_one_exercise_and_is_told_what_is_wrong_with_another(watch, jupyter, tmp_path):
    path = tmp_path / f"{NAME}.ipynb"
    path.write_text(json.dumps(MADE.release()))
    watched = watch()
    page = open_notebook(watched, f"{jupyter(tmp_path)}/lab/tree/{path.name}")
    assert run(page, "setup") == []
    assert run(page, "blur") == []
    (stub,) = run(page, "check_blur")
    assert stub["ename"] == "NotImplementedError", "as it was handed out"
    assert run(page, "blur", MADE.answers().RIGHT["blur"]) == run(page, "check_blur") == [], "solved: nothing is said"
    assert run(page, "linear", CORNERS) == []
    (wrong,) = run(page, "check_linear")
    assert wrong["ename"] == "AssertionError" and "quarters between the pixels" in wrong["evalue"]
    page.get_by_text("AssertionError: a ramp doubled").scroll_into_view_if_needed()
    watched.shot("assignment-student")
    number, check = cells(page)["check_linear"]
    page.locator(".jp-Notebook .jp-Cell").nth(number).locator(".cm-content").click()
    page.keyboard.type("x")
    assert cells(page)["check_linear"][1]["source"] == check["source"], "a check cannot be edited"
    assert not watched.outside and not watched.broken_images()
    close(page)


@pytest.fixture
def course(tmp_path) -> Course:
    """Two students whose exercises have been checked; a person must read their answers to the question."""
    pytest.importorskip("nbgrader", reason="nbgrader is not installed (pip install -e .[grading])")
    import test_gradebook

    made = Course(tmp_path, MADE)
    for student, share in (("anna", 1.0), ("ben", 0.5)):
        notebook = MADE.filled({"explain": f"I am {student}. {ANSWER}"})
        path = tmp_path / "submitted" / student / NAME / "a.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(notebook))
        made.write_report(student, test_gradebook.report(MADE, notebook, share))
    test_gradebook.write(made)
    return made


def test_a_person_grades_the_text_in_formgrader(watch, jupyter, course):
    """Opened from JupyterLab's menu; the points arrive in the gradebook, and nothing that a student wrote is run."""
    import nbconvert
    import nbgrader

    # Where their templates and menus lie, should one be installed beside the environment.
    prefixes = [Path(package.__file__).parents[4] for package in (nbgrader, nbconvert)]
    places = {
        "JUPYTER_CONFIG_PATH": os.pathsep.join(f"{prefix}/etc/jupyter" for prefix in prefixes),
        "JUPYTER_PATH": os.pathsep.join(f"{prefix}/share/jupyter" for prefix in prefixes),
    }
    address, watched, dialogs = jupyter(course.folder, **places), watch(), []
    page = watched.page
    page.on("dialog", lambda dialog: dialogs.append(dialog.message) or dialog.dismiss())
    page.goto(f"{address}/lab?reset")
    page.get_by_role("menuitem", name="Nbgrader").click()
    page.get_by_role("menuitem", name="Formgrader", exact=True).click()
    page.frame_locator("iframe").get_by_role("link", name=NAME).first.wait_for()
    watched.shot("formgrader-assignments")
    page.goto(f"{address}/formgrader/gradebook/{NAME}/{NAME}")
    page.get_by_role("link", name="Submission #1").click()
    page.locator("input#explain.needs_manual_grade").wait_for()
    page.get_by_text("four positions has weights of its own").scroll_into_view_if_needed()
    watched.shot("formgrader-text")
    page.locator("#explain").fill("1.5")
    with page.expect_response(lambda response: response.request.method == "PUT"):
        page.locator("#explain").press("Tab")
    watched.shot("formgrader-graded")
    assert list(gradebook.given(course).items()) in ([(("anna", "explain"), 1.5)], [(("ben", "explain"), 1.5)])
    assert not dialogs
