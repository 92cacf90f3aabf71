"""How good is a detector? Average precision at one threshold, and the twelve numbers of COCO (Lin et al. 2014).

What overlaps is a parameter: boxes here, masks in segmentation. The rules are those of COCO's own evaluation, the fine
print included, and the results equal its to rounding: `evaluate(found, truth).summary()`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.detection import boxes

# NumPy's to the last bit, as in COCO's evaluation; torch's linspace rounds otherwise, and ties would break otherwise.
THRESHOLDS = torch.from_numpy(np.linspace(0.5, 0.95, 10))  # of the overlap: 0.50, 0.55, …, 0.95
RECALLS = torch.from_numpy(np.linspace(0, 1, 101))  # where a precision–recall curve is read
MAX_DETECTIONS = (1, 10, 100)  # the best so many of each image and class
SIZES = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # areas, in pixels²

Overlap = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Objects:
    """The objects of one image: the true ones, or with scores the detected ones. N may be 0.

    NumPy arrays become tensors.

    Attributes:
        shapes: (N, 4) boxes xyxy in pixels, or whatever the overlap function takes, such as (N, H, W) masks.
        labels: (N,) integers, the classes.
        scores: (N,) of detections; None for true objects.
        areas: (N,) in square pixels, for the numbers by size; by default those of the boxes.
        crowd: (N,) bool, of true objects: regions of many objects, which nobody has to find; by default none.

    Raises:
        TypeError: labels that are no integers, crowd that is no bool, or boxes that are not floating-point.
        ValueError: lengths that differ, scores that are NaN, shapes other than boxes without areas, or boxes that
            `check_boxes` refuses.
    """

    shapes: Tensor
    labels: Tensor
    scores: Tensor | None = None
    areas: Tensor | None = None
    crowd: Tensor | None = None

    def __post_init__(self) -> None:
        fill = object.__setattr__  # the class is frozen for others
        for name, given in vars(self).items():
            if given is not None:
                fill(self, name, torch.as_tensor(given))
        if self.areas is None:
            if self.shapes.shape[1:] != (4,):
                raise ValueError(f"expected boxes (N, 4), or areas with other shapes; got {tuple(self.shapes.shape)}")
            fill(self, "areas", boxes.area(self.shapes))
        if self.crowd is None:
            fill(self, "crowd", torch.zeros_like(self.labels, dtype=torch.bool))
        for name in ("labels", "scores", "areas", "crowd"):
            given = getattr(self, name)
            if given is not None and given.shape != self.shapes.shape[:1]:
                raise ValueError(
                    f"{len(self.shapes)} shapes need {name} ({len(self.shapes)},); got {tuple(given.shape)}"
                )
        if self.labels.is_floating_point() or self.labels.dtype == torch.bool or self.crowd.dtype != torch.bool:
            raise TypeError(f"expected labels as integers, crowd as bool; got {self.labels.dtype}, {self.crowd.dtype}")
        if self.scores is not None and self.scores.isnan().any():
            raise ValueError("scores must not be NaN")

    def __len__(self) -> int:
        return len(self.shapes)

    def to(self, device: torch.device | str) -> "Objects":
        """The same on another device."""
        return Objects(*(None if part is None else part.to(device) for part in vars(self).values()))

    def __getitem__(self, chosen: Tensor) -> "Objects":
        """Some of them, by indices (K,) or a bool mask (N,).

        Raises:
            TypeError: uint8, which could mean either.
        """
        if torch.as_tensor(chosen).dtype == torch.uint8:
            raise TypeError("expected indices as int64 or a mask of bool; got uint8")
        return Objects(*(None if part is None else part[chosen] for part in vars(self).values()))


def precision_recall_curve(scores: Tensor, correct: Tensor, positives: int) -> tuple[Tensor, Tensor]:
    """Precision and recall of the best k detections, for every k: the curve, point by point.

    Precision (точность): what proportion of the k is correct. Recall (полнота): what proportion of all true objects is
    found.

    Args:
        scores: (N,), any order; equal ones stay in theirs. A tensor or a NumPy array, as `correct`.
        correct: (N,) bool.
        positives: number of true objects, > 0.

    Returns:
        (N,) float64 each, by falling score.

    Raises:
        TypeError: correct that is no bool.
        ValueError: no true objects, for then recall means nothing, or fewer than correct detections; lengths that
            differ, or scores that are NaN.
    """
    scores, correct = torch.as_tensor(scores), torch.as_tensor(correct)
    if correct.dtype != torch.bool:
        raise TypeError(f"expected correct as bool; got {correct.dtype}")
    if scores.ndim != 1 or correct.shape != scores.shape or scores.isnan().any():
        raise ValueError(f"expected scores and correct (N,), no NaN; got {tuple(scores.shape)}, {tuple(correct.shape)}")
    if positives < 1 or int(correct.sum()) > positives:
        raise ValueError(f"{int(correct.sum())} correct detections cannot be among {positives} true objects")
    hits = correct[scores.argsort(descending=True, stable=True)].double().cumsum(0)
    return hits / torch.arange(1, len(hits) + 1, device=hits.device), hits / positives


def interpolated(precision: Tensor, recall: Tensor) -> Tensor:
    """The best precision reached at each of 101 recalls 0, 0.01, …, 1 or beyond it; 0 where recall never gets.

    Args:
        precision, recall: (..., N), recall not falling.

    Returns:
        (..., 101) float64; its mean is the average precision.
    """
    recalls = RECALLS.to(recall.device).expand(*recall.shape[:-1], -1).contiguous()
    reached = F.pad(precision.double(), (0, 1))  # 0 beyond the last recall
    envelope = reached.flip(-1).cummax(-1).values.flip(-1)
    return envelope.gather(-1, torch.searchsorted(recall.double().contiguous(), recalls))


def average_precision(scores: Tensor, correct: Tensor, positives: int) -> float:
    """The area under the precision–recall curve as COCO measures it: the mean of `interpolated`.

    Takes, and refuses, what `precision_recall_curve` does.
    """
    return float(interpolated(*precision_recall_curve(scores, correct, positives)).mean())


def assign(overlaps: Tensor, thresholds: Tensor, ignored: Tensor, crowd: Tensor) -> Tensor:
    """Which true object each detection is taken to have found; the matching of COCO.

    Detections choose in their order, the best first. Each takes, of the objects still free that it overlaps at least
    by the threshold, the one it overlaps most; an ignored object only where there is no other. A crowd is never
    used up.

    Args:
        overlaps: (D, G) of detections, by falling score, with the true objects of the same class.
        thresholds: (T,).
        ignored: (A, G) bool, of A different questions.
        crowd: (G,) bool.

    Returns:
        (A, T, D) int64: the index of the object, −1 for none.

    Raises:
        TypeError: ignored or crowd that are no bool.
    """
    if ignored.dtype != torch.bool or crowd.dtype != torch.bool:
        raise TypeError(f"expected ignored and crowd as bool; got {ignored.dtype}, {crowd.dtype}")
    D, G = overlaps.shape
    A, T = len(ignored), len(thresholds)
    result = overlaps.new_full((A, T, D), -1, dtype=torch.int64)
    if G == 0:
        return result
    free = torch.ones(A, T, G, dtype=torch.bool, device=overlaps.device)
    enough = overlaps[:, None] >= thresholds.clamp(max=1 - 1e-10)[:, None]  # (D, T, G)
    wanted = ~ignored[:, None]
    for d in range(D):
        possible = free & enough[d]
        best = possible & wanted
        best = torch.where(best.any(-1, keepdim=True), best, possible)
        # The last of equals, as COCO has it: argmax finds the first.
        index = G - 1 - torch.where(best, overlaps[d], -1).flip(-1).argmax(-1)
        result[:, :, d] = torch.where(best.any(-1), index, -1)
        taken = best & (torch.arange(G, device=index.device) == index[..., None]) & ~crowd
        free &= ~taken
    return result


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; −1 where there was nothing to find.

    Attributes:
        precision: (T, R, K, A, M) by threshold, recall, class, size and number of detections.
        recall: (T, K, A, M).
        classes: the K labels, sorted.
    """

    precision: Tensor
    recall: Tensor
    classes: tuple[int, ...]

    def mean_precision(self, threshold: float | None = None, size: str = "all", label: int | None = None) -> float:
        """Mean AP over classes, and over all thresholds or for one of them; for one size or one class, too.

        Raises:
            ValueError: another threshold than 0.50, 0.55, …, 0.95, another size, or a class without true objects.
        """
        precision = self.precision[:, :, :, _index(list(SIZES), size, "size"), -1]
        if threshold is not None:
            at = (THRESHOLDS - threshold).abs() < 1e-6
            if not at.any():
                raise ValueError(f"thresholds are 0.50, 0.55, …, 0.95; got {threshold}")
            precision = precision[at]
        return _mean(precision if label is None else precision[:, :, _index(self.classes, label, "class")])

    def mean_recall(self, detections: int = 100, size: str = "all") -> float:
        """Largest recall, averaged over classes and thresholds, with at most so many detections an image and class.

        Raises:
            ValueError: another number of detections than 1, 10, 100, or another size.
        """
        most = _index(MAX_DETECTIONS, detections, "number of detections")
        return _mean(self.recall[:, :, _index(list(SIZES), size, "size"), most])

    def summary(self) -> dict[str, float]:
        """COCO's twelve numbers, by name and in its order."""
        by_size = list(SIZES)[1:]
        named = {"AP": self.mean_precision(), "AP50": self.mean_precision(0.5), "AP75": self.mean_precision(0.75)}
        named |= {f"AP {size}": self.mean_precision(size=size) for size in by_size}
        named |= {f"AR {n}": self.mean_recall(n) for n in MAX_DETECTIONS}
        return named | {f"AR {size}": self.mean_recall(size=size) for size in by_size}


def _index(known: Sequence[object], wanted: object, what: str) -> int:
    if wanted not in known:
        raise ValueError(f"expected a {what} of {', '.join(map(str, known))}; got {wanted!r}")
    return known.index(wanted)


def _mean(values: Tensor) -> float:
    there = values[values > -1]
    return float(there.mean()) if len(there) else -1.0


def evaluate(found: Sequence[Objects], truth: Sequence[Objects], overlap: Overlap = boxes.crowd_iou) -> Evaluation:
    """Compare detections with the truth, image by image, as COCO does.

    Permuting detections of different scores changes nothing; equal scores count in the order given, as in COCO.

    Args:
        found: one `Objects` with scores for each image.
        truth: the true ones, in the same order.
        overlap: (shapes of D detections, shapes of G true objects, crowd (G,) bool) → (D, G) in [0, 1].

    Raises:
        ValueError: other numbers of images, or detections without scores.
    """
    if len(found) != len(truth):
        raise ValueError(f"detections of {len(found)} images cannot be compared with the truth of {len(truth)}")
    if any(objects.scores is None for objects in found):
        raise ValueError("detections need scores")
    classes = tuple(sorted({label for objects in truth for label in objects.labels.tolist()}))
    shape = (len(classes), len(SIZES), len(MAX_DETECTIONS))
    precision = torch.full((len(THRESHOLDS), len(RECALLS), *shape), -1.0, dtype=torch.float64)
    recall = torch.full((len(THRESHOLDS), *shape), -1.0, dtype=torch.float64)
    for k, label in enumerate(classes):
        # Images that have nothing to do with the class change nothing.
        pairs = [
            (f, t) for f, t in zip(found, truth, strict=True) if (f.labels == label).any() or (t.labels == label).any()
        ]
        images = [_compare(f, t, label, overlap) for f, t in pairs]
        positives = sum(counted.sum(1) for *_, counted in images)
        for m, limit in enumerate(MAX_DETECTIONS):
            scores = torch.cat([scores[:limit] for scores, *_ in images])
            order = scores.argsort(descending=True, stable=True)
            right, wrong = (
                torch.cat([image[i][..., :limit] for image in images], -1)[..., order].double().cumsum(-1)
                for i in (1, 2)
            )  # (A, T, N)
            for a in positives.nonzero().flatten().tolist():
                r = right[a] / positives[a]
                recall[:, k, a, m] = r[:, -1] if len(scores) else 0
                p = right[a] / (right[a] + wrong[a]).clamp(min=1)
                precision[:, :, k, a, m] = interpolated(p, r)
    return Evaluation(precision, recall, classes)


def _compare(found: Objects, truth: Objects, label: int, overlap: Overlap) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One image and class: scores (D,), which are right and which wrong (A, T, D), which objects count (A, G)."""
    found, truth = found[found.labels == label], truth[truth.labels == label]
    found = found[found.scores.argsort(descending=True, stable=True)[: MAX_DETECTIONS[-1]]]
    low, high = torch.tensor(list(SIZES.values()), dtype=torch.float64, device=truth.areas.device).T[..., None]
    ignored = truth.crowd | (truth.areas < low) | (truth.areas > high)  # (A, G)
    # In float32 an IoU of 7/10 is below 0.7: boxes with whole numbers would miss a threshold that they reach.
    shapes = [o.shapes.double() if o.shapes.is_floating_point() else o.shapes for o in (found, truth)]
    overlaps = overlap(*shapes, truth.crowd).double()
    thresholds = THRESHOLDS.to(overlaps.device)
    index = assign(overlaps, thresholds, ignored, truth.crowd)
    # A column for "none", which −1 points at.
    of_ignored = F.pad(ignored, (0, 1))[:, None].expand(-1, len(thresholds), -1).gather(-1, index % (len(truth) + 1))
    matched = index >= 0
    outside = ((found.areas < low) | (found.areas > high))[:, None]  # (A, 1, D)
    right, wrong = matched & ~of_ignored, ~matched & ~outside
    return found.scores.double().cpu(), right.cpu(), wrong.cpu(), ~ignored.cpu()
