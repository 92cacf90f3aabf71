"""JupyterLab as `make lab` opens it: the map, and every lesson run from top to bottom, its controls moved by hand."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
LESSONS = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "notebooks").rglob("*.ipynb"))]

COLAB = """
import sys, types
if {colab}:
    sys.modules["google.colab"] = types.ModuleType("google.colab")
import ipywidgets as widgets, torch
from matplotlib.figure import Figure
from course_lib.base import plots
from course_lib.base.loop import Loop
from course_lib.base.widgets import explore, live

plots.use_style()
# ---
def draw(x):
    figure = Figure(figsize=(3, 2))
    figure.subplots().set_title(f"x = {{x}}")
    return figure

parts = {{"network": torch.nn.Linear(1, 1)}}
step = lambda x: {{"loss": x.mean()}}
Loop(step, torch.rand(5, 1), steps=6, batch_size=2, stateful=parts, hooks=[live(lambda loop: draw(loop.done), 2)]).run()
explore(draw, x=widgets.IntSlider(value=3, min=0, max=9))
"""


@pytest.fixture(scope="session")
def lab(tmp_path_factory, jupyter) -> str:
    """The address of a JupyterLab on a copy of the course's pages."""
    root = tmp_path_factory.mktemp("course")
    for name in LESSONS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    for colab in (True, False):
        sources = COLAB.format(colab=colab).split("# ---\n")
        notebook = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, sources)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, root / f"colab_{colab}.ipynb")
    return jupyter(root)


def open_notebook(watched, address: str):
    """Its page, when the kernel waits for work."""
    page = watched.page
    page.goto(f"{address}?reset")  # without what was open before
    page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady")
    page.wait_for_function("() => jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'")
    return page


def run_all(watched, address: str) -> list[dict]:
    """Open a notebook and run all of its cells, as the menu does; the cells with their outputs."""
    page = open_notebook(watched, address)
    page.evaluate("async () => { await jupyterapp.commands.execute('notebook:run-all-cells'); }")
    page.wait_for_timeout(2000)  # pictures and widgets arrive after the last answer
    return page.evaluate("() => jupyterapp.shell.currentWidget.content.model.toJSON().cells")


def close(page) -> None:
    """Ends the kernel, which holds a gigabyte."""
    page.evaluate("async () => { await jupyterapp.serviceManager.sessions.shutdownAll(); }")


def errors_of(cells: list[dict]) -> list[str]:
    """What went wrong in which cell."""
    outputs = [(cell, output) for cell in cells for output in cell.get("outputs", [])]
    found = [(cell, output) for cell, output in outputs if output["output_type"] == "error"]
    return [f"{''.join(cell['source'])[:60]!r}: {output['ename']}: {output['evalue']}" for cell, output in found]


def pictures(cell) -> list[str]:
    """The addresses of a cell's pictures, the data itself."""
    return cell.locator(".jp-OutputArea img").evaluate_all("all => all.map(i => i.src)")


def press(key: str):
    """Moves a slider: to the other side where it is at its end."""

    def move(control) -> None:
        before = control.get_attribute("aria-valuetext")
        control.focus()
        control.press(key)
        if control.get_attribute("aria-valuetext") == before:
            control.press("ArrowLeft")

    return move


KINDS = {  # the part of a control that a hand takes, and what it does
    "slider": (".widget-slider .noUi-handle", press("ArrowRight")),
    "dropdown": (
        ".widget-dropdown select",
        lambda menu: menu.select_option(
            index=menu.evaluate("m => (m.selectedIndex + 1) % m.options.length"),
        ),
    ),
    "toggle": (".widget-toggle-buttons button:not(.mod-active)", lambda button: button.click()),
    "checkbox": (".widget-checkbox input", lambda box: box.click()),
    "text": (".widget-text input", lambda field: (field.fill("2"), field.press("Enter"))),
    "play": (".widget-play button", lambda button: button.click()),
    "canvas": (
        ".jp-OutputArea canvas",
        lambda paper: paper.drag_to(paper, source_position={"x": 40, "y": 200}, target_position={"x": 250, "y": 180}),
    ),
}


def answers(page, cell, control, move) -> bool:
    """Whether the cell's picture changes after a control has been moved, and its button pressed where it has one."""
    before = pictures(cell)
    control.scroll_into_view_if_needed()
    move(control)
    for button in cell.locator("button.mod-primary").all():
        button.click()
    for _ in range(240):
        if pictures(cell) != before:
            return True
        page.wait_for_timeout(250)
    return False


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_runs_and_its_controls_answer(watch, lab, lesson):
    watched = watch()
    page = watched.page
    cells = run_all(watched, f"{lab}/lab/tree/{lesson}")
    assert not errors_of(cells)
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]))
    assert not watched.broken_images() and not watched.outside, "without a network, too"
    assert page.locator("mjx-container").count() or "$" not in json.dumps(cells)
    tried, moved = set(), set()
    explorations = [i for i, cell in enumerate(cells) if re.search(r"(explore|Canvas)\(", "".join(cell["source"]))]
    for index in explorations:
        cell = page.locator(".jp-Notebook .jp-Cell").nth(index)
        cell.locator(".jupyter-widgets").first.wait_for(
            timeout=120_000
        )  # never: the extension jupyterlab_widgets is missing
        for kind, (part, move) in KINDS.items():
            if kind not in moved and cell.locator(part).count():
                tried.add(kind)
                if any(answers(page, cell, control, move) for control in cell.locator(part).all()):
                    moved.add(kind)
        cell.locator(".jupyter-widgets").first.scroll_into_view_if_needed()
        watched.shot(f"lab-{Path(lesson).stem}-{index}")
    close(page)
    assert moved == tried, f"no picture changes with {sorted(tried - moved)}"
    assert moved or not explorations


@pytest.mark.skipif(not LESSONS[0].startswith("notebooks/00_"), reason="the lesson that is the map is not there yet")
def test_the_map_leads_to_the_lessons(watch, lab):
    watched = watch()
    watched.page.goto(f"{lab}/lab/tree/{LESSONS[0]}")
    links = watched.page.locator('.jp-RenderedMarkdown a[href*=".ipynb"]:not([href*="colab"])')
    links.first.wait_for()
    watched.shot("lab-map")
    links.first.click()
    watched.page.wait_for_function("() => [...jupyterapp.shell.widgets('main')].length === 2")


@pytest.mark.parametrize("colab", [True, False], ids=["colab", "elsewhere"])
def test_both_ways_to_replace_a_picture(watch, lab, colab):
    """Colab's Output widget, and the cell's own output: one picture of the training, one that follows the slider."""
    name = f"colab_{colab}.ipynb"
    watched = watch()
    cells = run_all(watched, f"{lab}/lab/tree/{name}")
    assert not errors_of(cells)
    cell = watched.page.locator(".jp-Notebook .jp-Cell").nth(1)
    assert len(pictures(cell)) == 2
    framed = cell.locator(".jp-OutputArea .jp-OutputArea img").count()  # in an Output widget
    assert framed == (2 if colab else 0)
    part, move = KINDS["slider"]
    training, _ = pictures(cell)
    assert answers(watched.page, cell, cell.locator(part).first, move)
    assert len(pictures(cell)) == 2 and pictures(cell)[0] == training
    watched.shot(f"lab-{name.removesuffix('.ipynb')}")
    close(watched.page)
