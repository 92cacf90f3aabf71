"""Interactive explorations: sliders above a figure that also renders where nothing is alive (GitHub, PDF)."""

from collections.abc import Callable

import ipywidgets as widgets
from IPython.display import display
from matplotlib.figure import Figure


def explore(draw: Callable[..., Figure], *, button: str | None = None, **controls: widgets.Widget) -> None:
    """Show controls, and below them `draw(name=value, …)`, drawn anew whenever a control moves.

    The figure is an ordinary output of the cell, replaced in place: without a kernel, the one drawn from the
    controls' first values stays visible. An error appears under the figure instead of vanishing in a log.

    Args:
        draw: takes the controls' values by name and returns a figure.
        button: the label of a button that starts the drawing, for drawings of a second or more; without it every
            move of a control draws.
        controls: ipywidgets with a `value`.
    """
    below = widgets.Output()
    run = widgets.Button(description=button or "", button_style="primary", icon="play")
    display(widgets.VBox([*controls.values(), *([run] if button else [])]))
    picture = display(draw(**_values(controls)), display_id=True)
    display(below)

    def update(_: object) -> None:
        below.clear_output()
        run.disabled = True
        try:
            with below:
                picture.update(draw(**_values(controls)))
        finally:
            run.disabled = False

    if button:
        run.on_click(update)
    else:
        for control in controls.values():
            control.observe(update, names="value")


def _values(controls: dict[str, widgets.Widget]) -> dict[str, object]:
    return {name: control.value for name, control in controls.items()}
