"""base/widgets.py, without a browser: what is displayed, and what moving a control does."""

import sys
import types

import ipywidgets as widgets
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from course_lib.base import plots
from course_lib.base import widgets as course_widgets
from course_lib.base.loop import Loop


@pytest.fixture
def displayed(monkeypatch):
    """Stands in for the notebook's display: what was shown, and the updates of the image."""
    shown, updates = [], []

    class Handle:
        def update(self, figure):
            updates.append(figure)

    def display(thing, display_id=False):
        shown.append(thing)
        return Handle() if display_id else None

    monkeypatch.setattr(course_widgets, "display", display)
    return shown, updates


@pytest.fixture
def colab(displayed, monkeypatch):
    """Colab's kernel: what was shown, and the frames in the order in which they were cleared for a new figure."""
    shown, _ = displayed
    frames, cleared = [], []

    class Frame(widgets.Output):
        def __enter__(self):
            frames.append(self)

        def __exit__(self, *exception):
            frames.pop()

    monkeypatch.setattr(widgets, "Output", Frame)
    monkeypatch.setattr(course_widgets, "clear_output", lambda wait: cleared.append((frames[-1], wait, len(frames))))
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    return shown, cleared


def test_in_colab_an_output_widget_holds_the_figure(colab):
    shown, cleared = colab
    x = widgets.IntSlider(value=1, min=0, max=9)
    course_widgets.explore(lambda x: Figure(figsize=(x, x)), x=x)
    frame = shown[1]
    assert isinstance(frame, widgets.Output) and [figure.get_figwidth() for figure in shown[2:3]] == [1]
    x.value = 4
    assert shown[-1].get_figwidth() == 4
    assert cleared == [(frame, True, 1)] * 2, "in the figure's own frame, after the new one has come, not nested"


def test_in_colab_a_live_plot_stays_in_its_frame(colab, loop):
    shown, cleared = colab
    loop.hooks = [course_widgets.live(lambda loop: Figure(), 3)]
    loop.run()
    frame, *figures = shown
    assert len(figures) == 3 and cleared == [(frame, True, 1)] * 3


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


@pytest.fixture
def loop() -> Loop:
    """Seven steps that train nothing."""
    parts = {"network": nn.Linear(1, 1)}
    return Loop(lambda x: {"loss": x.mean()}, torch.rand(5, 1), steps=7, batch_size=2, stateful=parts)


def test_a_live_plot_draws_in_place_and_leaves_the_last_figure(displayed, loop):
    shown, updates = displayed
    lengths = []

    def draw(loop):
        lengths.append(len(loop.history["loss"]))
        return plots.curves(loop.history, xlabel="step", ylabel="loss")

    loop.hooks = [course_widgets.live(draw, 3)]
    loop.run()
    assert lengths == [3, 6, 7]
    assert [type(thing) for thing in shown] == [Figure] and len(updates) == 2
    assert len(updates[-1].axes[0].lines[0].get_xdata()) == 7


def test_a_live_plot_follows_its_run_into_another_cell(displayed, loop, monkeypatch):
    shown, updates = displayed

    class Shell:
        execution_count = 1

    monkeypatch.setattr(course_widgets, "get_ipython", lambda: Shell)
    hook = course_widgets.live(lambda loop: Figure(), 1)
    for loop.done, Shell.execution_count in ((1, 1), (2, 1), (3, 5), (4, 5), (5, 5)):
        hook(loop)
    assert len(shown) == 2 and len(updates) == 3


def check_double(double):
    for x in (1, -3):
        if double(x) + 0 != 2 * x:  # as an assert of a lesson does, which pytest does not rewrite
            raise AssertionError(f"double({x}) is {2 * x}, not {double(x)}")


def my_double(x):
    raise NotImplementedError


def test_verdict_says_what_is_wrong_and_never_raises(capsys):
    def stops(x):
        return x / 0

    def squares(x):
        return 2 * x**2

    for answer in (my_double, squares, lambda x: None, stops, lambda x: x + x):
        course_widgets.verdict(check_double, answer)
    line = stops.__code__.co_firstlineno + 1
    assert capsys.readouterr().out.splitlines() == [
        "my_double: not written yet.",
        "✗ squares: double(-3) is -6, not 18",
        "✗ <lambda> returned what the check cannot use: TypeError: unsupported operand type(s) for +: "
        "'NoneType' and 'int'",
        f"✗ stops stopped in line {line} of its cell: ZeroDivisionError: division by zero",
        "✓ <lambda> is right.",
    ]
