"""What answers a student: sliders above a figure, figures during training, and the verdict on a piece of code.

The figures also render where nothing is alive (GitHub, PDF).
"""

import sys
import traceback
from collections.abc import Callable

import ipywidgets as widgets
from IPython import get_ipython
from IPython.display import clear_output, display
from matplotlib.figure import Figure

from course_lib.base.loop import Loop, every


def explore(draw: Callable[..., Figure], *, button: str | None = None, **controls: widgets.Widget) -> None:
    """Show controls, and below them `draw(name=value, …)`, drawn anew whenever a control moves.

    The figure is an ordinary output of the cell, replaced in place: without a kernel, the one drawn from the
    controls' first values stays visible. (Colab: see `_show`.) An error appears under the figure instead of
    vanishing in a log.

    Args:
        draw: takes the controls' values by name and returns a figure.
        button: the label of a button that starts the drawing, for drawings of a second or more; without it every
            move of a control draws.
        controls: ipywidgets with a `value`.
    """
    below = widgets.Output()
    run = widgets.Button(description=button or "", button_style="primary", icon="play")
    display(widgets.VBox([*controls.values(), *([run] if button else [])]))
    replace = _show(draw(**_values(controls)))
    display(below)

    def update(_: object) -> None:
        below.clear_output()
        run.disabled = True
        figure = None
        try:
            with below:  # in a notebook an error ends here, shown
                figure = draw(**_values(controls))
            if figure is not None:
                replace(figure)
        finally:
            run.disabled = False

    if button:
        run.on_click(update)
    else:
        for control in controls.values():
            control.observe(update, names="value")


def _show(figure: Figure) -> Callable[[Figure], None]:
    """Show a figure; the function that comes back puts another one in its place.

    An output of the cell is what a page keeps without a kernel. But not every front end lets a widget's callback
    replace one. In Colab the figure therefore stands in an Output widget.
    """
    if "google.colab" not in sys.modules:  # which Colab's kernel imports as it starts
        return display(figure, display_id=True).update
    frame = widgets.Output()
    display(frame)

    def replace(figure: Figure) -> None:
        with frame:
            clear_output(wait=True)
            display(figure)

    replace(figure)
    return replace


def _values(controls: dict[str, widgets.Widget]) -> dict[str, object]:
    return {name: control.value for name, control in controls.items()}


def live(draw: Callable[[Loop], Figure], n: int) -> Callable[[Loop], None]:
    """A hook for `loop.Loop` that shows `draw(loop)` after every n steps, each figure in place of the last one.

    As in `explore`, the figure is an ordinary output of the cell: the last one stays, on a static page too. Its
    drawing counts as training time (about 0.1 s for a small figure), so choose n for a drawing every second or two.

    Args:
        draw: takes the loop, and returns a figure of its `history`, or of samples from what it trains. It may use
            torch's random numbers freely: `loop.every` keeps them apart from the training's.
        n: steps between two figures.
    """
    replace, cell = None, None

    def show(loop: Loop) -> None:
        nonlocal replace, cell
        shell = get_ipython()
        here = shell.execution_count if shell else None
        if replace is None or here != cell:  # the run may go on in another cell, after an interruption
            replace, cell = _show(draw(loop)), here
        else:
            replace(draw(loop))

    return every(n, show)


def verdict(check: Callable[[Callable], object], answer: Callable) -> None:
    """Say in one line whether a student's answer passes a check, and what is wrong where it does not.

    A lesson runs on whatever the answer is: nothing is raised.

    Args:
        check: takes the answer, calls it, and asserts what must hold; its messages say which invariant failed.
        answer: the student's function or class. An answer that raises NotImplementedError is not written yet.
    """
    name = answer.__name__
    try:
        check(answer)
    except NotImplementedError:
        print(f"{name}: not written yet.")
    except AssertionError as error:
        print(f"✗ {name}: {error or 'an assert of the check failed'}")
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)[2:]]  # below verdict and check
        what = f"stopped in line {lines[0]} of its cell" if lines else "returned what the check cannot use"
        print(f"✗ {name} {what}: {type(error).__name__}: {error}")
    else:
        print(f"✓ {name} is right.")
