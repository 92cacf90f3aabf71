"""Boxes: their formats, the overlap of two of them (IoU), and one that still has a gradient where they miss (GIoU).

Everywhere in the course a box is (x1, y1, x2, y2) in pixels, left, top, right, bottom, with x2 ≥ x1 and y2 ≥ y1; pixel
(column, row) covers [column, column + 1] × [row, row + 1], so a whole picture is (0, 0, W, H).
"""

from collections.abc import Callable

import torch
from torch import Tensor

FORMATS = ("xyxy", "xywh", "cxcywh")


def check_boxes(boxes: Tensor, name: str = "boxes") -> Tensor:
    """The boxes themselves, if they are (..., 4) floating-point, finite, and in the format xyxy as far as one can see.

    Raises:
        TypeError: not a tensor of floating-point numbers.
        ValueError: another shape, NaN or infinity, or corners in the wrong order: most often boxes in another format.
    """
    _check_shape(boxes, name)
    if boxes.numel() == 0:
        return boxes
    if not boxes.isfinite().all():
        raise ValueError(f"{name} must be finite; got NaN or infinity")
    wrong = (boxes[..., 2:] < boxes[..., :2]).any(-1)
    if wrong.any():
        example = [round(value, 2) for value in boxes[wrong][0].tolist()]
        raise ValueError(
            f"{name} must be (x1, y1, x2, y2) with x2 ≥ x1 and y2 ≥ y1; got {example}. "
            "Are they (x, y, width, height)? Then convert(boxes, 'xywh', 'xyxy') first"
        )
    return boxes


def _check_shape(boxes: Tensor, name: str = "boxes") -> None:
    if not isinstance(boxes, Tensor) or not boxes.is_floating_point():
        given = boxes.dtype if isinstance(boxes, Tensor) else type(boxes).__name__
        raise TypeError(f"{name} must be a floating-point tensor (..., 4), got {given}")
    if boxes.ndim < 1 or boxes.shape[-1] != 4:
        raise ValueError(f"{name} must be (..., 4), got {tuple(boxes.shape)}")


def convert(boxes: Tensor, source: str, target: str) -> Tensor:
    """Boxes (..., 4) in another format; differentiable.

    Args:
        source, target: `xyxy` (two corners), `xywh` (top left corner and size, as COCO's files), or `cxcywh` (centre
            and size).

    Raises:
        TypeError: not floating-point. ValueError: an unknown format, another shape, or what cannot be of the source
            format: a corner before the other, a negative width or height.
    """
    if source not in FORMATS or target not in FORMATS:
        raise ValueError(f"formats are {', '.join(FORMATS)}; got {source!r} and {target!r}")
    if source == "xyxy":
        x1y1, x2y2 = check_boxes(boxes).split(2, -1)
    else:
        _check_shape(boxes)
        first, size = boxes.split(2, -1)
        if not (size >= 0).all():  # written so that NaN fails too
            raise ValueError(f"boxes in {source} must have widths and heights ≥ 0; got {float(size.min()):.3g}")
        x1y1 = first if source == "xywh" else first - size / 2
        x2y2 = x1y1 + size
    size = x2y2 - x1y1
    parts = {"xyxy": (x1y1, x2y2), "xywh": (x1y1, size), "cxcywh": (x1y1 + size / 2, size)}
    return torch.cat(parts[target], -1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) xyxy cut off at the border of a picture of size (H, W) in pixels; outside, nothing is left of one.

    Raises:
        TypeError, ValueError: as for `check_boxes`.
    """
    H, W = size
    return torch.minimum(check_boxes(boxes).clamp(min=0), boxes.new_tensor([W, H, W, H]))


def area(boxes: Tensor) -> Tensor:
    """(...) areas of boxes (..., 4) xyxy, in square pixels; at least float32, for a half ends at 65504."""
    x1, y1, x2, y2 = _coordinates(check_boxes(boxes))
    return (x2 - x1) * (y2 - y1)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, 0 where the whole is 0; without the NaN that a gradient would meet there."""
    empty = whole <= 0
    return torch.where(empty, 0, part / torch.where(empty, 1, whole))


def _coordinates(boxes: Tensor) -> Tensor:
    """(4, ...) x1, y1, x2, y2, each contiguous in memory: over every fourth number kernels run several times slower."""
    return _wide(boxes).movedim(-1, 0).contiguous()


def _wide(boxes: Tensor) -> Tensor:
    return boxes.to(torch.promote_types(boxes.dtype, torch.float32))


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """(...) areas in square pixels that boxes have in common, one by one; (..., 4) xyxy, of shapes that broadcast.

    At least float32, as `area`; the boxes are taken to be in order, see `check_boxes`.
    """
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = _coordinates(a), _coordinates(b)
    width = torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)
    height = torch.minimum(ay2, by2) - torch.maximum(ay1, by1)
    return width.clamp(min=0) * height.clamp(min=0)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes, one by one: |A ∩ B| / |A ∪ B| in [0, 1]; differentiable.

    Its gradient is zero wherever the boxes do not meet. Two boxes without area have an IoU of 0.

    Args:
        a, b: (..., 4) xyxy, of shapes that broadcast; for all pairs see `pairwise`.

    Returns:
        (...).

    Raises:
        TypeError, ValueError: as for `check_boxes`.
    """
    total, common = area(a) + area(b), intersection(a, b)
    return _ratio(common, total - common).to(torch.promote_types(a.dtype, b.dtype))


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of boxes, one by one: IoU − |C ∖ (A ∪ B)| / |C| in [−1, 1], C the smallest box around both.

    Rezatofighi et al. 2019, algorithm 1. Equal to the IoU where C has no gaps; where the boxes do not meet, it still
    grows as they approach. Of a C without area nothing is subtracted.

    Args:
        a, b: (..., 4) xyxy, of shapes that broadcast.

    Returns:
        (...).

    Raises:
        TypeError, ValueError: as for `check_boxes`.
    """
    total, common = area(a) + area(b), intersection(a, b)
    union = total - common
    extent = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    around = _wide(extent).prod(-1)
    return (_ratio(common, union) - _ratio(around - union, around)).to(extent.dtype)


def pairwise(overlap: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """`iou` or `giou` of every box of one set with every box of the other.

    Args:
        overlap: takes boxes that broadcast. a: (..., N, 4) xyxy. b: (..., M, 4) xyxy.

    Returns:
        (..., N, M).
    """
    return overlap(a[..., :, None, :], b[..., None, :, :])


def crowd_iou(a: Tensor, b: Tensor, crowd: Tensor) -> Tensor:
    """COCO's overlap of detections with true boxes, all pairs: IoU, but |A ∩ B| / |A| where B is marked as a crowd.

    A crowd is one box around many objects; a detection anywhere inside of it is not held against the detector.

    Args:
        a: (N, 4) detections. b: (M, 4) true boxes. crowd: (M,) bool.

    Returns:
        (N, M) in [0, 1].
    """
    a, b = a[:, None], b[None]
    total, common = area(a) + area(b), intersection(a, b)
    return _ratio(common, torch.where(crowd, area(a), total - common))
