"""How good are points? The proportion within reach (PCK), the mean distance (NME), and COCO's similarity and AP.

COCO replaces the overlap of boxes by the object keypoint similarity (OKS), and all else stays as in detection; so
`evaluate` here is detection's, told another overlap, and its results equal pycocotools' to rounding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from course_lib.base.runtime import wide
from course_lib.detection import coco
from course_lib.detection.boxes import check_boxes
from course_lib.detection.coco import Evaluation, Objects
from course_lib.keypoints.people import COCO_SPREAD

MAX_PEOPLE = 20  # the best so many of each image
SIZES = {name: coco.SIZES[name] for name in ("all", "medium", "large")}  # small people have no keypoints


def _checked(keypoints: Tensor, what: str) -> Tensor:
    if not isinstance(keypoints, Tensor) or not keypoints.is_floating_point():
        kind = keypoints.dtype if isinstance(keypoints, Tensor) else type(keypoints).__name__
        raise TypeError(f"expected {what} as floats, got {kind}")
    return wide(keypoints)


def oks(found: Tensor, truth: Tensor, areas: Tensor, boxes: Tensor, spread: Sequence[float] = COCO_SPREAD) -> Tensor:
    """Object keypoint similarity (Lin et al. 2014, keypoint challenge): mean of exp(−d²/2s²k²) over labelled points.

    Here d is the distance of a found point from the true one, s² the object's area, and k twice the spread of that
    point. Of an object without labelled points, d is how far a found point lies outside a box twice as large: then a
    detection of such a person, whom nobody has to find, is not wrong.

    Args:
        found: (D, K, 2 or more) xy in pixels.
        truth: (G, K, 3): x, y, visibility; 0 is not labelled.
        areas: (G,) in square pixels, of the objects' masks.
        boxes: (G, 4) xyxy of the objects.
        spread: (K,), as a part of the object's size.

    Returns:
        (D, G) float64 in [0, 1].

    Raises:
        TypeError: points that are no floats.
        ValueError: shapes that do not fit, or points that are not finite.
    """
    found, truth = _checked(found, "found points").double(), _checked(truth, "true points").double()
    G, K = truth.shape[:2]
    if found.ndim != 3 or found.shape[1] != K or truth.shape[2:] != (3,) or len(spread) != K or areas.shape != (G,):
        raise ValueError(
            f"expected found (D, K, 2), truth (G, K, 3), areas (G,) and K spreads; got {tuple(found.shape)}, "
            f"{tuple(truth.shape)}, {tuple(areas.shape)} and {len(spread)}"
        )
    if not (found.isfinite().all() and truth.isfinite().all()):
        raise ValueError("expected finite points; got NaN or infinity")
    boxes = check_boxes(boxes).double()
    k2 = (2 * torch.as_tensor(spread, dtype=torch.float64, device=found.device)) ** 2
    labelled = (truth[..., 2] > 0) | ~(truth[..., 2] > 0).any(-1, keepdim=True)  # without any: all, by the box
    by_point = found[:, None, :, :2] - truth[..., :2]
    extent = boxes[:, 2:] - boxes[:, :2]
    low, high = (boxes[:, :2] - extent)[:, None], (boxes[:, 2:] + extent)[:, None]
    points = found[:, None, :, :2]
    outside = (low - points).clamp(min=0) + (points - high).clamp(min=0)
    apart = torch.where((truth[..., 2] > 0).any(-1)[:, None, None], by_point, outside)
    # NumPy's spacing(1), by which COCO's program avoids a division by 0.
    e = apart.square().sum(-1) / k2 / (areas.double()[:, None] + 2.0**-52) / 2
    return (torch.exp(-e) * labelled).sum(-1) / labelled.sum(-1)


def true_people(keypoints: Tensor, boxes: Tensor, areas: Tensor, crowd: Tensor | None = None) -> Objects:
    """The people of an image, for `evaluate`. Those without a labelled point nobody has to find.

    Args:
        keypoints: (G, K, 3): x, y, visibility.
        boxes: (G, 4) xyxy in pixels.
        areas: (G,) in square pixels, of the masks.
        crowd: (G,) bool: regions of many people; by default none.

    Raises:
        TypeError, ValueError: what `Objects` and `check_boxes` refuse, or keypoints of another shape.
    """
    keypoints = _checked(keypoints, "keypoints").double()
    if keypoints.ndim != 3 or keypoints.shape[2] != 3:
        raise ValueError(f"expected keypoints (G, K, 3), got {tuple(keypoints.shape)}")
    boxes, areas = check_boxes(boxes).double(), areas.double()
    packed = torch.cat([keypoints, torch.cat([boxes[:, :2], areas[:, None], boxes[:, 2:], areas[:, None]], 1)
                        .view(-1, 2, 3)], 1)  # fmt: skip
    # An area below 0 is in no range of sizes: ignored, and unlike a crowd, used up by the first who finds it.
    counted = torch.where((keypoints[..., 2] > 0).any(-1), areas, -1.0)
    return Objects(packed, torch.zeros(len(keypoints), dtype=torch.int64), areas=counted, crowd=crowd)


def found_people(keypoints: Tensor, scores: Tensor) -> Objects:
    """The best `MAX_PEOPLE` that were found in an image, for `evaluate`; the area is that of the box of the points.

    Args:
        keypoints: (D, K, 2 or more) xy in pixels.
        scores: (D,).

    Raises:
        TypeError, ValueError: what `Objects` refuses, or keypoints of another shape.
    """
    keypoints = _checked(keypoints, "keypoints").double()
    if keypoints.ndim != 3 or keypoints.shape[2] < 2 or keypoints.shape[1] == 0 or scores.shape != keypoints.shape[:1]:
        raise ValueError(
            f"expected keypoints (D, K, 2) and scores (D,), got {tuple(keypoints.shape)}, {tuple(scores.shape)}"
        )
    points = keypoints[..., :2]
    areas = (points.amax(1) - points.amin(1)).prod(-1)
    labels = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    return Objects(points, labels, scores, areas)[scores.argsort(descending=True, stable=True)[:MAX_PEOPLE]]


def evaluate(found: Sequence[Objects], truth: Sequence[Objects], spread: Sequence[float] = COCO_SPREAD) -> Evaluation:
    """Compare found people with the true ones, image by image, as COCO does.

    Args:
        found: of `found_people`, one for each image.
        truth: of `true_people`, in the same order.
        spread: (K,), see `oks`.

    Returns:
        precision (T, R, 1, A, 1) and recall (T, 1, A, 1), for all, medium and large people, as of pycocotools.

    Raises:
        ValueError: other numbers of images, or shapes that do not fit.
    """

    def overlap(points: Tensor, packed: Tensor, _: Tensor) -> Tensor:
        corners = packed[:, -2:]
        boxes = torch.cat([corners[:, 0, :2], corners[:, 1, :2]], 1)
        return oks(points, packed[:, :-2], corners[:, 0, 2], boxes, spread)

    whole = coco.evaluate(found, truth, overlap)
    chosen = [list(coco.SIZES).index(name) for name in SIZES]
    return Evaluation(whole.precision[:, :, :, chosen, -1:], whole.recall[:, :, chosen, -1:], whole.classes)


def summary(evaluation: Evaluation) -> dict[str, float]:
    """COCO's ten numbers for keypoints by name and in its order; −1 where there was nothing to find."""
    named = {}
    for name, values in {"AP": evaluation.precision, "AR": evaluation.recall}.items():
        at = {f"{t:g}": (coco.THRESHOLDS - t).abs() < 1e-6 for t in (0.5, 0.75)}
        named |= {name: _mean(values[..., 0, :])}
        named |= {f"{name}{100 * float(t):.0f}": _mean(values[mask][..., 0, :]) for t, mask in at.items()}
        named |= {f"{name} {size}": _mean(values[..., a, :]) for a, size in enumerate(SIZES) if size != "all"}
    return named


def _mean(values: Tensor) -> float:
    there = values[values > -1]
    return float(there.mean()) if len(there) else -1.0


def distances(found: Tensor, truth: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """How far found points are from the true ones, in a scale of the object's own, and which count.

    Args:
        found: (N, K, 2 or more) xy.
        truth: (N, K, 3): x, y, visibility; 0 does not count.
        scale: (N,) in pixels, above 0: the longer side of the box, or the distance of the eyes' outer corners.

    Returns:
        (N, K) float64 or float32 distances, and (N, K) bool.

    Raises:
        TypeError: points that are no floats.
        ValueError: shapes that do not fit, or a scale that is not above 0.
    """
    found, truth = _checked(found, "found points"), _checked(truth, "true points")
    if truth.ndim != 3 or truth.shape[2] != 3 or found.shape[:2] != truth.shape[:2] or scale.shape != truth.shape[:1]:
        raise ValueError(
            f"expected found (N, K, 2), truth (N, K, 3) and scale (N,), got {tuple(found.shape)}, "
            f"{tuple(truth.shape)}, {tuple(scale.shape)}"
        )
    if not (scale > 0).all():
        raise ValueError("expected a scale above 0 for each object")
    return (found[..., :2] - truth[..., :2]).norm(dim=-1) / scale[:, None], truth[..., 2] > 0


def pck(found: Tensor, truth: Tensor, scale: Tensor, reach: float = 0.1) -> float:
    """Percentage of correct keypoints (Yang and Ramanan 2013), as a proportion: of labelled points, those within reach.

    Args:
        found, truth, scale: see `distances`.
        reach: in scales; 0.1 with the box's longer side is PCK@0.1.

    Returns:
        In [0, 1]; NaN where no point is labelled.
    """
    far, counts = distances(found, truth, scale)
    return float((far[counts] <= reach).double().mean())


def nme(found: Tensor, truth: Tensor, scale: Tensor) -> float:
    """Normalised mean error: the mean distance of labelled points, in scales; NaN where none is labelled.

    Args:
        found, truth, scale: see `distances`.
    """
    far, counts = distances(found, truth, scale)
    return float(far[counts].double().mean())
