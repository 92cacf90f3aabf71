"""Non-maximum suppression: of boxes that claim the same object, one stays (greedy), or the others fade (soft)."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from course_lib.detection.boxes import area, check_boxes, intersection, iou

BLOCK = 256  # boxes that are decided together; their overlaps fit a processor's cache


def nms(boxes: Tensor, scores: Tensor, threshold: float = 0.5, labels: Tensor | None = None) -> Tensor:
    """The boxes that greedy non-maximum suppression keeps.

    The best box stays and removes all that overlap it by more than the threshold; then the best of the rest, and so on.
    Boxes of equal scores come in the order given. Here the greedy choice is made for a block of boxes at once: a box
    stays if no better box *that stays* overlaps it, and repeating that sentence from "all stay" arrives at the greedy
    answer, in as many rounds as the longest chain of removals (Zheng et al. 2021, "cluster NMS").

    Args:
        boxes: (N, 4) xyxy. scores: (N,), any order, without NaN.
        threshold: IoU in [0, 1]; only more than this removes.
        labels: (N,) integers: boxes of different labels leave each other alone. For a batch of pictures, number
            the pairs (picture, class).

    Returns:
        (K,) int64 indices of boxes, by falling score.

    Raises:
        TypeError, ValueError: as for `check_boxes`; scores or labels of another shape, NaN among the scores, or a
            threshold outside [0, 1].
    """
    _check(boxes, scores, labels)
    if not 0 <= threshold <= 1:
        raise ValueError(f"expected a threshold of IoU in [0, 1], got {threshold}")
    areas = area(boxes)

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
    for name, given in {"scores": scores, "labels": labels}.items():
        if given is not None and (boxes.ndim != 2 or given.shape != boxes.shape[:1]):
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
        boxes: (N, 4) xyxy. scores: (N,) ≥ 0. labels: (N,) integers, or None for one class.
        sigma: of `gaussian`, > 0. threshold: of `linear`, in [0, 1].
        minimum: boxes end when the best score left is below this.

    Returns:
        (K,) int64 indices of boxes in the order of their choice, and their (K,) lowered scores, which fall.

    Raises:
        TypeError, ValueError: as for `nms`; an unknown kind; σ ≤ 0; scores that are negative or no floats.
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
    chosen = list(_fading(boxes, scores.clone(), kind, sigma, threshold, minimum, labels))
    indices = torch.tensor([index for index, _ in chosen], dtype=torch.int64, device=boxes.device)
    return indices, scores.new_tensor([score for _, score in chosen])


def _fading(
    boxes: Tensor, left: Tensor, kind: str, sigma: float, threshold: float, minimum: float, labels: Tensor | None
) -> Iterator[tuple[int, float]]:
    """Index and lowered score of the best box, again and again; `left` are the scores, −∞ for boxes taken out."""
    taken = torch.zeros_like(left, dtype=torch.bool)
    for _ in range(len(boxes)):
        best = int(left.argmax())
        score = float(left[best])
        if score < minimum:
            return
        yield best, score
        overlap = iou(boxes[best], boxes)
        factor = torch.exp(-overlap.square() / sigma)
        if kind == "linear":
            factor = torch.where(overlap >= threshold, 1 - overlap, 1)
        left *= factor if labels is None else torch.where(labels == labels[best], factor, 1)
        taken[best] = True
        left[taken] = -math.inf  # again for all: −∞ times a factor of 0 is NaN
