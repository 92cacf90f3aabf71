"""Boxes in a figure, each with its name and score, so that no label lies on another."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextToPath
from torch import Tensor

from course_lib import scenes
from course_lib.base import plots
from course_lib.detection.boxes import check_boxes, intersection
from course_lib.detection.coco import Objects

PALETTE = scenes.PALETTE | {"person": "#00a8b5"}
PAD = 1.5  # around a label's text, in points


def place_labels(boxes: Tensor, sizes: Tensor, limits: tuple[float, float]) -> Tensor:
    """Where the labels of boxes go: beside their box, inside the image, and free of the labels placed before.

    The first box chooses first: above its top left corner, below it, inside of it, the same on the right; if another
    label is in the way everywhere, at the nearest free place on a grid of lines. Where nothing is free, the least
    overlap is taken.

    Args:
        boxes: (N, 4) xyxy.
        sizes: (N, 2) width and height of the labels, in the same unit.
        limits: (H, W) of the image.

    Returns:
        (N, 4) xyxy of the labels.

    Raises:
        TypeError: boxes that are not floating-point.
        ValueError: boxes that `check_boxes` refuses, or sizes of another shape.
    """
    check_boxes(boxes)
    if sizes.shape != (len(boxes), 2):
        raise ValueError(f"{len(boxes)} boxes need sizes ({len(boxes)}, 2), got {tuple(sizes.shape)}")
    H, W = limits
    placed = boxes.new_zeros(0, 4)
    for (x1, y1, x2, y2), (w, h) in zip(boxes.tolist(), sizes.tolist(), strict=True):
        corners = [(x, y) for x in (x1, x2 - w) for y in (y1 - h, y2, y1, y2 - h)]
        rows, columns = max(int(H / h), 1), max(int(W / w), 1)
        grid = [(w * i, h * j) for i in range(columns) for j in range(rows)]
        grid.sort(key=lambda at, x1=x1, y1=y1: (at[0] - x1) ** 2 + (at[1] - y1) ** 2)
        at = boxes.new_tensor([*corners, *grid])
        at = torch.stack([at[:, 0].clamp(0, max(W - w, 0)), at[:, 1].clamp(0, max(H - h, 0))], 1)
        candidates = torch.cat([at, at + at.new_tensor([w, h])], 1)
        taken = intersection(candidates[:, None], placed).sum(1)
        free = (taken < 1e-6 * w * h).nonzero()
        placed = torch.cat([placed, candidates[free[0] if len(free) else taken.argmin()[None]]])
    return placed


def boxed(
    images: Tensor | Sequence[Tensor],
    objects: Sequence[Objects],
    names: Sequence[str],
    titles: Sequence[str] | None = None,
    *,
    dashed: Sequence[Objects] | None = None,
    minimum: float = 0.0,
    text: bool = True,
    columns: int | None = None,
    height: float = 2.1,
    colours: Mapping[str, str] = PALETTE,
) -> Figure:
    """Images side by side as in `plots.show`, with the boxes of their objects, the names and, of finds, the scores.

    Args:
        images: a batch (B, 3, H, W), or a list of images (1, 3, H, W) or (3, H, W).
        objects: of each image, with boxes in its pixels.
        names: of the classes; a single name is not written, only its scores.
        titles: one for each image.
        dashed: further objects of each image, such as true ones or missed ones, drawn with dashed lines.
        minimum: the least score that is drawn.
        text: whether to label the boxes.
        columns: how many images in a row; all by default.
        height: of a row, in inches.
        colours: by name; names without one get a colour of `plots.COLOURS`.

    Raises:
        ValueError: other numbers of images and of objects.
    """
    figure = plots.show(images, titles, columns=columns, height=height)
    if len(objects) != len(images) or (dashed is not None and len(dashed) != len(images)):
        raise ValueError(f"{len(images)} images need as many objects; got {len(objects)} and {len(dashed or [])}")
    for n, (ax, found) in enumerate(zip(figure.axes, objects, strict=False)):
        H, W = images[n].shape[-2:]
        ax.get_images()[0].set_extent((0, W, H, 0))
        if found.scores is not None:
            found = found[found.scores >= minimum]
            found = found[found.scores.argsort(descending=True)]
        parts = [(found.to("cpu"), "-")] + ([(dashed[n].to("cpu"), (0, (3, 2)))] if dashed else [])
        _draw(ax, parts, names, (H, W), 72 * height / H, text, colours)
    return figure


def _draw(
    ax: Axes, parts: list, names: Sequence[str], size: tuple[int, int], scale: float, text: bool, colours
) -> None:
    """The boxes of (objects, line style), then all their labels; the scale is in points a pixel."""
    labels, boxes, shades = [], [], []
    for objects, style in parts:
        for n, (x1, y1, x2, y2) in enumerate(objects.shapes.tolist()):
            label = int(objects.labels[n])
            colour = colours.get(names[label], plots.COLOURS[label % len(plots.COLOURS)])
            frame = {"fill": False, "linewidth": 2, "linestyle": style, "edgecolor": colour, "clip_on": False}
            on_top = 1 + 1 / (n + 1)  # the first, which is the best, so that boxes in one place have its colour
            ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, zorder=on_top, **frame))
            score = "" if objects.scores is None else f"{float(objects.scores[n]):.2f}"
            if written := score if len(names) == 1 else f"{names[label]} {score}".strip():
                labels.append(written)
                boxes.append((x1, y1, x2, y2))
                shades.append(colour)
    if not (text and labels):
        return
    sizes = torch.tensor([_extent(label) for label in labels]) / scale
    for (x1, y1, x2, y2), label, colour in zip(
        place_labels(torch.tensor(boxes), sizes, size).tolist(), labels, shades, strict=True
    ):
        ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, facecolor=colour, alpha=0.9, zorder=3, linewidth=0))
        red, green, blue = to_rgb(colour)
        ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.6 else "white"
        middle = {"x": (x1 + x2) / 2, "y": (y1 + y2) / 2, "ha": "center", "va": "center_baseline"}
        ax.text(s=label, color=ink, fontproperties=FONT, zorder=4, **middle)


FONT = FontProperties(family="DejaVu Sans", size=7.5)


@lru_cache
def _extent(text: str) -> tuple[float, float]:
    """Width and height of a label in points, with its margin and what a figure's layout may take of the scale."""
    width, _, _ = TextToPath().get_text_width_height_descent(text, FONT, ismath=False)
    return 1.1 * (width + 2 * PAD), 1.1 * (FONT.get_size_in_points() + 2 * PAD)
