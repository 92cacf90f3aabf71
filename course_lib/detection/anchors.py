"""Anchors: boxes laid over the image beforehand, of which a network says which hold an object, and how to move them.

As in Faster R-CNN (Ren et al. 2015) and RetinaNet (Lin et al. 2017, arXiv 1708.02002). The course's own
detector does without them: each cell answers for itself.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from course_lib.base.runtime import wide
from course_lib.detection.boxes import check_boxes, iou, pairwise

BACKGROUND, IGNORED = -1, -2  # what `match_anchors` says of an anchor without an object


def cell_centres(h: int, w: int, stride: int, device: torch.device | str | None = None) -> Tensor:
    """(2, h, w) float32: x and y of the middles of a grid's cells, in pixels.

    Args:
        h, w: of the grid, in cells.
        stride: of the grid, in pixels.
        device: of the result; the CPU by default.
    """
    y, x = ((torch.arange(n, dtype=torch.float32, device=device) + 0.5) * stride for n in (h, w))
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1])


def anchor_grid(size: tuple[int, int], stride: int, sides: Sequence[float], ratios: Sequence[float] = (1.0,)) -> Tensor:
    """Boxes of every side and ratio around the middle of every cell of a grid; those at the border stick out.

    Args:
        size: (H, W) of the grid, in cells.
        stride: of the grid, in pixels.
        sides: square roots of the areas, in pixels.
        ratios: height / width; the area does not depend on them.

    Returns:
        (H · W · A, 4) float32 xyxy, A = len(sides) · len(ratios): cells row by row, in each the sides in order, for
        each side the ratios.

    Raises:
        ValueError: a grid without cells, or anything not above 0.
    """
    if min(*size, stride, *sides, *ratios, len(sides), len(ratios)) <= 0:
        raise ValueError(f"all must be above 0: size {size}, stride {stride}, sides {sides}, ratios {ratios}")
    H, W = size
    centres = cell_centres(H, W, stride).flatten(1).T[:, None]  # (H · W, 1, 2)
    side, ratio = (torch.as_tensor(numbers, dtype=torch.float32) for numbers in (sides, ratios))
    side = side[:, None]
    half = torch.stack([side / ratio.sqrt(), side * ratio.sqrt()], -1).view(1, -1, 2) / 2
    return torch.cat([centres - half, centres + half], -1).view(-1, 4)


def match_anchors(anchors: Tensor, boxes: Tensor, *, high: float = 0.7, low: float = 0.3) -> Tensor:
    """Which true box each anchor has to find (Ren et al. 2015, section 3.1.2).

    An anchor takes the box it overlaps most if their IoU is at least `high`; below `low` it is background, and between
    the two nothing is asked of it. Then every box also gets the anchors that overlap it most, however little that is,
    if they meet at all, so that every object is learned from. (An anchor that is best for one box keeps the box that
    it itself overlaps most.)

    Args:
        anchors: (A, 4) xyxy.
        boxes: (N, 4) xyxy.
        high, low: IoU, 0 ≤ low ≤ high ≤ 1.

    Returns:
        (A,) int64: the index of the box, or `BACKGROUND` (−1), or `IGNORED` (−2).

    Raises:
        TypeError: boxes or anchors that are not floating-point.
        ValueError: boxes or anchors that `check_boxes` refuses; thresholds in the wrong order.
    """
    if not 0 <= low <= high <= 1:
        raise ValueError(f"expected 0 ≤ low ≤ high ≤ 1, got low {low} and high {high}")
    overlaps = pairwise(iou, boxes, anchors)
    if len(boxes) == 0 or len(anchors) == 0:
        return torch.full(overlaps.shape[1:], BACKGROUND, device=anchors.device)
    value, index = overlaps.max(0)
    best = overlaps.amax(1, keepdim=True)
    needed = ((overlaps == best) & (best > 0)).any(0)
    result = torch.where(value >= high, index, torch.where(value < low, BACKGROUND, IGNORED))
    return torch.where(needed, index, result)


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """The four numbers a network regresses: t = ((x − x_a)/w_a, (y − y_a)/h_a, log w/w_a, log h/h_a).

    Girshick et al. 2014, appendix C; x, y, w, h are centre and size of the box, with index a of the anchor. The same
    error in t is the same error relative to the size of the object.

    Args:
        boxes, anchors: (..., 4) xyxy of shapes that broadcast, with areas above 0.

    Returns:
        (..., 4).

    Raises:
        TypeError: boxes or anchors that are not floating-point.
        ValueError: boxes or anchors that `check_boxes` refuses, or without width or height.
    """
    (centre, size), (anchor_centre, anchor_size) = _centre_and_size(boxes), _centre_and_size(anchors)
    if not ((size > 0).all() and (anchor_size > 0).all()):
        raise ValueError("boxes and anchors must have widths and heights above 0: their logarithm is taken")
    return torch.cat([(centre - anchor_centre) / anchor_size, (size / anchor_size).log()], -1)


def decode_boxes(t: Tensor, anchors: Tensor) -> Tensor:
    """The boxes (..., 4) xyxy of numbers t (..., 4) as `encode_boxes` makes them.

    Raises:
        TypeError: anchors that are not floating-point.
        ValueError: anchors that `check_boxes` refuses; t of another shape.
    """
    if t.shape[-1:] != (4,):
        raise ValueError(f"expected t (..., 4), got {tuple(t.shape)}")
    anchor_centre, anchor_size = _centre_and_size(anchors)
    shift, scale = wide(t).split(2, -1)
    centre, size = anchor_centre + shift * anchor_size, anchor_size * scale.exp()
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    x1y1, x2y2 = wide(check_boxes(boxes)).split(2, -1)
    return (x1y1 + x2y2) / 2, x2y2 - x1y1
