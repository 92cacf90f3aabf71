"""Boxes: the overlap of two of them (IoU, GIoU), and the suppression of duplicates.

Everywhere in the course a box is (x1, y1, x2, y2) in pixels, left, top, right, bottom, with x2 ≥ x1 and y2 ≥ y1; pixel
(column, row) covers [column, column + 1] × [row, row + 1], so a whole image is (0, 0, W, H). From other formats,
`torchvision.ops.box_convert` converts.

Boxes in half precision are computed with, and come back, in float32: bfloat16 cannot tell pixel 257 from 258, and
float16 ends at an area of 65504.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from course_lib.base.runtime import wide


def check_boxes(boxes: Tensor) -> Tensor:
    """The boxes themselves, if they are (..., 4) floating-point, finite, and in the format xyxy as far as one can see.

    It looks at the values, so on a GPU it waits; a training step does without.

    Raises:
        TypeError: not a tensor of floating-point numbers.
        ValueError: another shape, NaN or infinity, or corners in the wrong order: most often boxes in another format.
    """
    if not isinstance(boxes, Tensor) or not boxes.is_floating_point():
        given = boxes.dtype if isinstance(boxes, Tensor) else type(boxes).__name__
        raise TypeError(f"boxes must be a floating-point tensor (..., 4), got {given}")
    if boxes.ndim < 1 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must be (..., 4), got {tuple(boxes.shape)}")
    if not boxes.isfinite().all():
        raise ValueError("boxes must be finite; got NaN or infinity")
    wrong = (boxes[..., 2:] < boxes[..., :2]).any(-1)
    if wrong.any():
        example = [round(value, 2) for value in boxes[wrong][0].tolist()]
        raise ValueError(
            f"boxes must be (x1, y1, x2, y2) with x2 ≥ x1 and y2 ≥ y1; got {example}. "
            "Are they (x, y, width, height)? Then torchvision.ops.box_convert(boxes, 'xywh', 'xyxy') first"
        )
    return boxes


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) xyxy cut off at the border of an image of size (H, W) in pixels; outside, nothing is left of one.

    Raises:
        TypeError: boxes that are not floating-point.
        ValueError: boxes that `check_boxes` refuses.
    """
    H, W = size
    boxes = wide(check_boxes(boxes)).clamp(min=0)
    return torch.minimum(boxes, boxes.new_tensor([W, H, W, H]))


def area(boxes: Tensor) -> Tensor:
    """(...) areas in square pixels of boxes (..., 4) xyxy.

    Raises:
        TypeError: boxes that are not floating-point.
        ValueError: boxes that `check_boxes` refuses.
    """
    return _area(check_boxes(boxes))


def _area(boxes: Tensor) -> Tensor:
    x1, y1, x2, y2 = _coordinates(boxes)
    return (x2 - x1) * (y2 - y1)


def _coordinates(boxes: Tensor) -> Tensor:
    """(4, ...) x1, y1, x2, y2, each contiguous in memory: over every fourth number kernels run several times slower."""
    return wide(boxes).movedim(-1, 0).contiguous()


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, 0 where the whole is 0; without the NaN that a gradient would meet there."""
    empty = whole <= 0
    return torch.where(empty, 0, part / torch.where(empty, 1, whole))


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """(...) areas in square pixels that boxes have in common, one by one; (..., 4) xyxy, of shapes that broadcast.

    The boxes are taken to be in order, see `check_boxes`.
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
        TypeError: boxes that are not floating-point.
        ValueError: boxes that `check_boxes` refuses.
    """
    total, common = area(a) + area(b), intersection(a, b)
    return _ratio(common, total - common)


def giou(a: Tensor, b: Tensor, *, check: bool = True) -> Tensor:
    """Generalised IoU of boxes, one by one: IoU − |C ∖ (A ∪ B)| / |C| in [−1, 1], C the smallest box around both.

    Rezatofighi et al. 2019, algorithm 1. Equal to the IoU where C has no gaps; where the boxes do not meet, it still
    grows as they approach. Of a C without area nothing is subtracted.

    Args:
        a, b: (..., 4) xyxy, of shapes that broadcast.
        check: whether to look at the values, for which a GPU waits; a training step does not.

    Returns:
        (...).

    Raises:
        TypeError: boxes that are not floating-point.
        ValueError: boxes that `check_boxes` refuses.
    """
    if check:
        check_boxes(a)
        check_boxes(b)
    a, b = wide(a), wide(b)
    common = intersection(a, b)
    union = _area(a) + _area(b) - common
    around = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return _ratio(common, union) - _ratio(around - union, around)


def pairwise(overlap: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """`iou` or `giou` of every box of one set with every box of the other.

    Args:
        overlap: takes boxes that broadcast.
        a: (..., N, 4) xyxy.
        b: (..., M, 4) xyxy.

    Returns:
        (..., N, M).
    """
    return overlap(a[..., :, None, :], b[..., None, :, :])


def crowd_iou(a: Tensor, b: Tensor, crowd: Tensor) -> Tensor:
    """COCO's overlap of detections with true boxes, all pairs: IoU, but |A ∩ B| / |A| where B is marked as a crowd.

    A crowd is one box around many objects; a detection anywhere inside of it is not held against the detector.

    Args:
        a: (N, 4) detections.
        b: (M, 4) true boxes.
        crowd: (M,) bool.

    Returns:
        (N, M) in [0, 1].

    Raises:
        TypeError: boxes that are not floating-point, or crowd that is no bool.
        ValueError: boxes that `check_boxes` refuses.
    """
    if crowd.dtype != torch.bool:
        raise TypeError(f"expected crowd as bool; got {crowd.dtype}")
    area_a, area_b, common = area(a)[:, None], area(b), intersection(a[:, None], b)
    return _ratio(common, torch.where(crowd, area_a, area_a + area_b - common))


BLOCK = 256  # boxes that are decided together; their overlaps fit a processor's cache


def nms(boxes: Tensor, scores: Tensor, threshold: float = 0.5, labels: Tensor | None = None) -> Tensor:
    """The boxes that greedy non-maximum suppression keeps.

    The best box stays and removes all that overlap it by more than the threshold; then the best of the rest, and so on.
    Boxes of equal scores come in the order given. Here the greedy choice is made for a block of boxes at once: a box
    stays if no better box *that stays* overlaps it, and repeating that sentence from "all stay" arrives at the greedy
    answer, in as many rounds as the longest chain of removals (Zheng et al. 2021, "cluster NMS").

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,), any order, without NaN.
        threshold: IoU in [0, 1]; only more than this removes.
        labels: (N,) integers: boxes of different labels leave each other alone. For a batch of images, number
            the pairs (image, class).

    Returns:
        (K,) int64 indices of boxes, by falling score.

    Raises:
        TypeError: boxes that are not floating-point, scores or labels that are no tensors.
        ValueError: boxes that `check_boxes` refuses, scores or labels of another shape, NaN among the scores, or a
            threshold outside [0, 1].
    """
    _check(boxes, scores, labels)
    if not 0 <= threshold <= 1:
        raise ValueError(f"expected a threshold of IoU in [0, 1], got {threshold}")
    areas = _area(boxes)

    def overlap(rows: Tensor, columns: Tensor) -> Tensor:
        """(R, C) bool: whether boxes of the same label have an IoU above the threshold."""
        common = intersection(boxes[rows, None], boxes[columns])
        above = common / (areas[rows, None] + areas[columns] - common) > threshold  # 0/0 is not above
        return above if labels is None else above & (labels[rows, None] == labels[columns])

    by_score = scores.argsort(descending=True, stable=True)
    order = by_score if labels is None else by_score[labels[by_score].argsort(stable=True)]
    kept = order[:0]
    for block in order.split(BLOCK):
        # Class after class: of the boxes already kept, only those of the block's first class can matter to it.
        better = kept if labels is None else kept[labels[kept] == labels[block[:1]]]
        block = block[~overlap(better, block).any(0)]
        better_removes = overlap(block, block).triu_(1)
        stays, before = torch.ones_like(block, dtype=torch.bool), None
        while before is None or not torch.equal(stays, before):
            before, stays = stays, ~better_removes[stays].any(0)
        kept = torch.cat([kept, block[stays]])
    is_kept = torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, kept, True)
    return by_score[is_kept[by_score]]


def _check(boxes: Tensor, scores: Tensor, labels: Tensor | None) -> None:
    check_boxes(boxes)
    for name, given in {"scores": scores, "labels": scores if labels is None else labels}.items():
        if not isinstance(given, Tensor):
            raise TypeError(f"expected {name} as a tensor, got {type(given).__name__}")
        if boxes.ndim != 2 or given.shape != boxes.shape[:1]:
            raise ValueError(f"expected boxes (N, 4) and {name} (N,), got {tuple(boxes.shape)}, {tuple(given.shape)}")
    if scores.isnan().any():
        raise ValueError("scores must not be NaN")


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    kind: str = "gaussian",
    sigma: float = 0.5,
    threshold: float = 0.3,
    minimum: float = 1e-3,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Soft non-maximum suppression (Bodla et al. 2017, figure 2): an overlapped box loses score instead of its life.

    The best box is taken out; each of the others, of the same label, has its score multiplied by exp(−IoU²/σ)
    (`gaussian`, equation 3), or by 1 − IoU where the IoU is at least the threshold (`linear`, equation 2).

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,) ≥ 0.
        kind: `gaussian` or `linear`.
        sigma: of `gaussian`, > 0.
        threshold: of `linear`, in [0, 1].
        minimum: boxes end when the best score left is below this.
        labels: (N,) integers, or None for one class.

    Returns:
        (K,) int64 indices of boxes in the order of their choice, and their (K,) lowered scores, which fall.

    Raises:
        TypeError: boxes that are not floating-point, scores or labels that are no tensors.
        ValueError: what `nms` refuses; an unknown kind; σ ≤ 0; scores that are negative or no floats.
    """
    _check(boxes, scores, labels)
    if kind not in ("gaussian", "linear") or not sigma > 0 or not 0 <= threshold <= 1:
        raise ValueError(
            f"expected gaussian with σ > 0 or linear with a threshold in [0, 1]; got {kind!r}, {sigma}, {threshold}"
        )
    if minimum != minimum or not scores.is_floating_point():
        raise ValueError(f"expected a minimum that is a number, and scores as floats; got {minimum}, {scores.dtype}")
    if (scores < 0).any():
        raise ValueError(f"scores must not be negative; got {float(scores.min()):.3g}")
    left, indices, lowered = wide(scores), [], []
    while len(indices) < len(boxes) and float(left.max()) >= minimum:
        best = int(left.argmax())
        indices.append(best)
        lowered.append(float(left[best]))
        overlap = iou(boxes[best], boxes)
        factor = torch.exp(-overlap.square() / sigma)
        if kind == "linear":
            factor = torch.where(overlap >= threshold, 1 - overlap, 1)
        left = left * (factor if labels is None else torch.where(labels == labels[best], factor, 1))
        left[indices] = -math.inf  # again for all that were chosen: −∞ times a factor of 0 is NaN
    return torch.tensor(indices, dtype=torch.int64, device=boxes.device), left.new_tensor(lowered)
