"""base/widgets.py, without a browser: what is displayed, and what moving a control does."""

import ipywidgets as widgets
import pytest
from matplotlib.figure import Figure

from course_lib.base import widgets as course_widgets


@pytest.fixture
def displayed(monkeypatch):
    """Stands in for the notebook's display: what was shown, and the updates of the picture."""
    shown, updates = [], []

    class Handle:
        def update(self, figure):
            updates.append(figure)

    def display(thing, display_id=False):
        shown.append(thing)
        return Handle() if display_id else None

    monkeypatch.setattr(course_widgets, "display", display)
    return shown, updates


def test_moving_a_slider_draws_anew(displayed):
    shown, updates = displayed
    calls = []

    def draw(x, y):
        calls.append((x, y))
        return Figure()

    x, y = widgets.IntSlider(value=3, min=0, max=9), widgets.Dropdown(options=["a", "b"])
    course_widgets.explore(draw, x=x, y=y)
    assert calls == [(3, "a")] and isinstance(shown[1], Figure)  # drawn once, so that a static page shows it
    assert list(shown[0].children) == [x, y]
    x.value, y.value = 5, "b"
    assert calls[1:] == [(5, "a"), (5, "b")] and len(updates) == 2


def test_a_button_waits_to_be_pressed(displayed):
    shown, updates = displayed
    x = widgets.IntSlider(value=1, min=0, max=9)
    course_widgets.explore(lambda x: Figure(), button="Paint", x=x)
    button = shown[0].children[-1]
    x.value = 7
    assert button.description == "Paint" and not updates
    button.click()
    assert len(updates) == 1 and not button.disabled


def test_an_error_leaves_the_button_alive(displayed, caplog):
    shown, updates = displayed

    def draw(x):
        if x > 1:
            raise ValueError("too large")
        return Figure()

    x = widgets.IntSlider(value=1, min=0, max=9)
    course_widgets.explore(draw, button="Run", x=x)
    button = shown[0].children[-1]
    x.value = 5
    button.click()  # ipywidgets logs what a callback raises; in a notebook the Output widget shows it first
    assert "too large" in caplog.text and not updates and not button.disabled
    x.value = 0
    button.click()
    assert len(updates) == 1
