"""The canvas in JupyterLab: strokes by mouse and finger, and the kernel's answer to each."""

import nbformat
import numpy as np
import pytest
from test_lab import close, errors_of, run_all

SETUP = "import torch\nfrom course_lib.base.canvas import Canvas"
CANVAS = """
cross = torch.zeros(1, 1, 64, 64)
cross[..., 32, :] = cross[..., :, 32] = 1
Canvas(lambda lines: 1 - lines, {"nothing": torch.zeros(1, 1, 64, 64), "cross": cross})
"""
READ = """async (thing) => {
    const copy = new OffscreenCanvas(64, 64).getContext("2d");
    if (thing.decode) await thing.decode();
    copy.drawImage(thing, 0, 0, 64, 64);
    return [...copy.getImageData(0, 0, 64, 64).data].filter((_, k) => k % 4 === 0);
}"""


@pytest.fixture
def drawn(watch, jupyter, tmp_path):
    """Opens the notebook; its page, and a function that waits for the answer and returns what is drawn, bool (64, 64).

    The answer here is black on white, as the canvas itself, so it tells what arrived in the kernel.
    """
    notebook = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, (SETUP, CANVAS))])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "canvas.ipynb")
    watched = watch(has_touch=True)
    assert not errors_of(run_all(watched, f"{jupyter(tmp_path)}/lab/tree/canvas.ipynb"))
    cell = watched.page.locator(".jp-Notebook .jp-Cell").nth(1)
    paper, answer = cell.locator("canvas"), cell.get_by_alt_text("the answer")
    paper.wait_for()

    def arrived() -> np.ndarray:
        for _ in range(240):
            watched.page.wait_for_timeout(250)
            here, there = paper.evaluate(READ), answer.evaluate(READ)
            if here == there:
                return np.array(here).reshape(64, 64) == 0
        raise AssertionError("the answer is not that of what is drawn")

    yield watched, cell, arrived
    close(watched.page)


def stroke(page, paper, places: np.ndarray) -> None:
    """Presses the mouse, leads it along places (n, 2) of the canvas in [0, 1], and lets it go."""
    box = paper.bounding_box()
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places.tolist()]
    page.mouse.move(*at[0])
    page.mouse.down()
    for place in at[1:]:
        page.mouse.move(*place)
    page.mouse.up()


def neighbours(lines: np.ndarray) -> np.ndarray:
    """How many of the eight pixels around each are drawn."""
    padded = np.pad(lines.astype(int), 1)
    return sum(padded[1 + v : 65 + v, 1 + u : 65 + u] for v in (-1, 0, 1) for u in (-1, 0, 1)) - lines


def test_what_is_drawn_arrives(drawn):
    watched, cell, arrived = drawn
    page, paper = watched.page, cell.locator("canvas")
    paper.scroll_into_view_if_needed()
    assert not arrived().any()

    turn = np.linspace(0, 1.5 * np.pi, 200)
    stroke(page, paper, 0.5 + 0.35 * np.stack([np.cos(turn), np.sin(turn)], 1))
    arc = arrived()
    watched.shot("canvas-stroke")
    v, u = np.nonzero(arc)
    away = np.hypot((u + 0.5) / 64 - 0.5, (v + 0.5) / 64 - 0.5)
    assert np.abs(away - 0.35).max() < 1.5 / 64, "where the mouse was"
    count = neighbours(arc)[arc]
    assert sorted(count)[:2] == [1, 1] and (count[count > 1] == 2).all(), "one line without a gap, one pixel wide"

    stroke(page, paper, np.array([[0.1, 0.1], [0.9, 0.8]]))
    line = arrived() & ~arc
    assert 40 < line.sum() <= 52 and line[6, 6] and line[51, 57], "two places far apart are joined"
    stroke(page, paper, np.array([[0.5, 0.5], [1.4, 0.5]]))
    assert arrived()[32, 32:].all(), "out of the canvas, to its edge"
    for _ in range(2):
        cell.get_by_role("button", name="undo").click()
    assert (arrived() == arc).all(), "stroke by stroke"

    cell.get_by_role("button", name="cross").click()
    cross = arrived()
    assert cross[32].all() and cross[:, 32].all() and cross.sum() == 127
    cell.get_by_role("button", name="eraser").click()
    stroke(page, paper, np.array([[0.5, 0.5], [0.51, 0.51]]))
    assert not arrived()[31:34, 31:34].any() and arrived().sum() == 127 - 5
    cell.get_by_role("button", name="undo").click()
    assert (arrived() == cross).all()
    cell.get_by_role("button", name="clear").click()
    assert not arrived().any()

    cell.get_by_role("button", name="pen").click()
    box = paper.bounding_box()
    page.touchscreen.tap(box["x"] + 0.25 * box["width"] + 1, box["y"] + 0.5 * box["height"] + 1)
    assert np.argwhere(arrived()).tolist() == [[32, 16]], "a finger"
    assert not watched.outside and not [error for error in watched.errors if "canvas" in error]
