"""Figures in one legible style. Every function returns a `Figure`; Jupyter shows the one a cell ends with.

The figures do not register with pyplot, so nothing needs closing and nothing is shown twice.
"""

import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from course_lib.base.images import to_array

# Okabe & Ito's palette, which colour-blind readers tell apart too; its yellow is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

_STYLE = {
    "figure.dpi": 100,
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 2,
    "legend.frameon": False,
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
}


def use_style(quality: int = 82) -> None:
    """Set the course's style for this kernel; a notebook's figures become JPEG, a tenth of PNG's size for photos.

    Args:
        quality: of the JPEGs, up to 95; less for a lesson of many figures, which must stay below 700 kB.
    """
    mpl.rcParams.update(_STYLE)
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # not in a notebook: there is nothing to choose
        return
    if plt.get_backend().lower().endswith("inline"):
        set_matplotlib_formats("jpeg", pil_kwargs={"quality": quality})


def show(
    images: Tensor | Sequence[Tensor],
    titles: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    height: float = 1.9,
    smooth: bool = True,
) -> Figure:
    """Images side by side, each under its title; a column is as wide as the widest image in it.

    Args:
        images: a batch (B, C, H, W), or a list of images (1, C, H, W) or (C, H, W), which may differ in size;
            values in [0, 1], C of 1 or 3.
        titles: one for each image.
        columns: how many in a row; all by default.
        height: of a row, in inches.
        smooth: False shows pixels as squares.

    Raises:
        ValueError: no images, or another number of titles.
    """
    arrays = [to_array(image) for image in images]
    if not arrays or (titles is not None and len(titles) != len(arrays)):
        raise ValueError(f"{len(arrays)} images cannot be shown under {len(titles or [])} titles")
    columns = min(columns or len(arrays), len(arrays))
    rows = math.ceil(len(arrays) / columns)
    aspects = [array.shape[1] / array.shape[0] for array in arrays]
    widths = [max(aspects[column::columns]) for column in range(columns)]
    title_lines = max((title.count("\n") + 1 for title in titles), default=0) if titles else 0
    size = (height * sum(widths), rows * (height + 0.22 * title_lines))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, width_ratios=widths).ravel()
    for ax in axes:
        ax.set_axis_off()
    for index, array in enumerate(arrays):
        axes[index].imshow(array, vmin=0, vmax=1, interpolation="antialiased" if smooth else "nearest")
        if titles is not None:
            axes[index].set_title(titles[index])
    return figure


def curves(
    lines: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    log: bool = False,
    size: tuple[float, float] = (7, 3.2),
) -> Figure:
    """Named lines against their index (or a mapping's own (x, y) pair of sequences) with a legend.

    Args:
        lines: name → y values, or name → (x values, y values).
        xlabel: with its unit, where there is one.
        ylabel: with its unit, where there is one.
        title: of the plot.
        log: whether the y axis is logarithmic.
        size: of the figure, (width, height) in inches.
    """
    figure = Figure(figsize=size, layout="constrained")
    ax = figure.subplots()
    for name, values in lines.items():
        paired = isinstance(values, tuple)
        ax.plot(*(values if paired else (range(len(values)), values)), label=name)
    label(ax, xlabel, ylabel, title)
    if log:
        ax.set_yscale("log")
    ax.legend()
    return figure


def label(ax: Axes, xlabel: str, ylabel: str, title: str = "") -> None:
    """Name both axes and the plot."""
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)


def matrix(
    ax: Axes,
    M: np.ndarray,
    title: str = "",
    *,
    numbers: bool = True,
    top: float | None = None,
    frame: tuple[int, int, int] | None = None,
    cut: int = 0,
) -> None:
    """A matrix as cells in shades of blue, zeros white, each with its number.

    Args:
        ax: where to draw.
        M: (H, W), numbers from 0 up.
        title: above it.
        numbers: whether to write them; zeros never are.
        top: the number that gets the darkest shade; None: the largest of M.
        frame: (row, column, side) of a square of cells to frame.
        cut: the width of a grey border, in cells: what will be cut off.
    """
    H, W = M.shape
    ax.imshow(M, cmap="Blues", vmin=0, vmax=1.4 * (M.max() if top is None else top))  # a number stays readable
    for (i, j), value in np.ndenumerate(M):
        if min(i, j, H - 1 - i, W - 1 - j) < cut:
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, color="silver", linewidth=0))
        if numbers and value:
            ax.text(j, i, f"{value:g}", ha="center", va="center")
    if frame:
        row, column, side = frame
        corner = column - 0.5, row - 0.5
        ax.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=COLOURS[1], linewidth=2.5, clip_on=False))
    ax.set(title=title, xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(True)
    ax.spines[:].set_color("silver")


def to_image(figure: Figure) -> Tensor:
    """A figure as pixels (1, 3, H, W) in [0, 1]: a frame for `images.gif`."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = torch.from_numpy(np.array(canvas.buffer_rgba())[..., :3])
    return pixels.permute(2, 0, 1)[None].float() / 255


def pointed(
    images: Tensor | Sequence[Tensor],
    points: Sequence[Tensor],
    lines: Sequence[tuple[int, int]],
    titles: Sequence[str] | None = None,
    *,
    shown: Sequence[Tensor] | None = None,
    colours: Sequence[str] | None = None,
    columns: int | None = None,
    height: float = 1.9,
    width: float = 1.5,
) -> Figure:
    """Images side by side as in `show`, with their points joined by lines.

    Args:
        images: see `show`.
        points: for each image (N, K, 2) xy in pixels from the image's corner.
        lines: pairs of indices into the K points.
        titles: one for each image.
        shown: for each image (N, K) bool: which points to draw; all by default.
        colours: one for each line; by default all alike.
        columns: see `show`.
        height: see `show`.
        width: of lines, in points.
    """
    figure = show(images, titles, columns=columns, height=height)
    colours = colours or [COLOURS[1]] * len(lines)
    for n, (ax, objects) in enumerate(zip(figure.axes, points, strict=False)):
        visible = objects.new_ones(objects.shape[:2]).bool() if shown is None else shown[n]
        limits = ax.axis()
        # Matplotlib counts from the first pixel's centre.
        for object_, there in zip(objects.detach().cpu() - 0.5, visible.cpu(), strict=True):
            for (a, b), colour in zip(lines, colours, strict=True):
                if there[a] and there[b]:
                    ax.plot(*object_[[a, b]].T.tolist(), color=colour, linewidth=width, solid_capstyle="round")
            ax.scatter(
                *object_[there].T.tolist(), s=4 * width, color="white", edgecolor="black", linewidth=0.4, zorder=3
            )
        ax.axis(limits)
    return figure
