"""Panoptic segmentation (Kirillov et al. 2019, arXiv 1801.00868): the merging rule, and panoptic quality.

A panoptic map gives every pixel a segment's id; each segment has one class. Things, which can be counted, have a
segment for each object; stuff has one segment for each class and image. Pixels of no segment are void.

At the end: from a network to the three kinds of answers, and their scores on scenes (mIoU, mask AP, panoptic quality).
"""

import operator
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from course_lib import scenes
from course_lib.base import runtime, sampling
from course_lib.base.images import check_range
from course_lib.detection import coco
from course_lib.segmentation import semantic
from course_lib.segmentation.instance import Instances, instances, mask_iou
from course_lib.segmentation.model import Maps
from course_lib.segmentation.semantic import as_masks


@dataclass(frozen=True)
class Panoptic:
    """A panoptic map. NumPy arrays become tensors, and whole numbers of any kind, as tensors of one, plain ones.

    Args:
        ids: int64 (H, W), or another integer type.
        labels: the class of each segment by its id. Other ids are void.
        crowds: ids of segments, of the truth, that hold a group of objects which nobody separated.

    Raises:
        TypeError: ids or classes that are not whole numbers.
        ValueError: another shape, or a crowd without a class.
    """

    ids: Tensor
    labels: Mapping[int, int]
    crowds: Collection[int] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", semantic.as_map(self.ids, "ids"))
        # A tensor is found in a dictionary only by itself, not by its value.
        labels = {operator.index(segment): operator.index(label) for segment, label in self.labels.items()}
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "crowds", frozenset(map(operator.index, self.crowds)))
        if self.ids.ndim != 2:
            raise ValueError(f"expected ids (H, W); got {tuple(self.ids.shape)}")
        if unknown := set(self.crowds) - set(self.labels):
            raise ValueError(f"the crowds {sorted(unknown)} have no class")

    def semantic(self, void: int = 255) -> Tensor:
        """The class of every pixel, int64 (H, W); `void` where there is none."""
        found = torch.full_like(self.ids, void)
        for segment, label in self.labels.items():
            found[self.ids == segment] = label
        return found


def merge(
    classes: Tensor,
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    stuff: Collection[int],
    *,
    least_score: float = 0.0,
    least_proportion: float = 0.5,
    least_area: int = 0,
) -> Panoptic:
    """One panoptic map of a semantic map and of masks that may overlap (Kirillov et al. 2019, section 7).

    The masks come in the order of their scores; each takes the pixels that are still free, and is dropped where too few
    of its pixels were. Then stuff fills what is left, as the semantic map says; what this calls a thing stays void.

    Args:
        classes: int64 (H, W), the semantic map.
        masks: bool (N, H, W).
        labels: int64 (N,), classes of things.
        scores: (N,).
        stuff: the classes of stuff.
        least_score: masks below it are dropped.
        least_proportion: of a mask's pixels that must be free, in [0, 1].
        least_area: segments of stuff with fewer pixels become void: slips that would count as false alarms.

    Returns:
        ids from 1, first the things by falling score, then stuff; 0 is void.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: masks that are no booleans, classes that are not whole numbers.
    """
    classes, masks = semantic.as_map(classes), as_masks(masks)
    labels, scores = semantic.as_map(labels, "labels"), torch.as_tensor(scores)
    N = len(masks)
    if masks.shape != (N, *classes.shape) or classes.ndim != 2 or labels.shape != (N,) or scores.shape != (N,):
        raise ValueError(
            "expected classes (H, W), masks (N, H, W), labels (N,) and scores (N,); got "
            + ", ".join(str(tuple(x.shape)) for x in (classes, masks, labels, scores))
        )
    ids, found = torch.zeros_like(classes), {}
    for index in scores.argsort(descending=True, stable=True).tolist():
        free = masks[index] & (ids == 0)
        enough = free.sum() > 0 and free.sum() >= least_proportion * masks[index].sum()
        if scores[index] >= least_score and enough:
            found[len(found) + 1] = int(labels[index])
            ids[free] = len(found)
    for label in sorted(map(operator.index, stuff)):
        free = (classes == label) & (ids == 0)
        if free.sum() >= max(least_area, 1):
            found[len(found) + 1] = label
            ids[free] = len(found)
    return Panoptic(ids, found)


@dataclass(frozen=True)
class Quality:
    """Panoptic quality and its two factors, PQ = SQ × RQ, with what was counted.

    `iou` is Σ IoU over the matched pairs; SQ is its mean over them, RQ the F1 score of the matching.
    """

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: "Quality") -> "Quality":
        return Quality(self.iou + other.iou, self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def sq(self) -> float:
        """Segmentation quality: the mean IoU of the matched pairs; 0 without any."""
        return self.iou / self.tp if self.tp else 0.0

    @property
    def rq(self) -> float:
        """Recognition quality TP / (TP + FP/2 + FN/2); 0 where there is nothing."""
        total = self.tp + self.fp / 2 + self.fn / 2
        return self.tp / total if total else 0.0

    @property
    def pq(self) -> float:
        """Panoptic quality Σ IoU / (TP + FP/2 + FN/2)."""
        return self.sq * self.rq


class Summary(NamedTuple):
    """The mean of PQ, SQ and RQ over the `n` classes that occur in the truth or in a prediction."""

    pq: float
    sq: float
    rq: float
    n: int


def _shared(a: Tensor, b: Tensor) -> dict[tuple[int, int], int]:
    """How many pixels have one id in `a` and another in `b`, for each pair of ids that meets."""
    (ids_a, places_a), (ids_b, places_b) = (x.unique(return_inverse=True) for x in (a, b))
    pairs, counts = (len(ids_b) * places_a + places_b).unique(return_counts=True)
    met = zip(ids_a[pairs // len(ids_b)].tolist(), ids_b[pairs % len(ids_b)].tolist(), strict=True)
    return dict(zip(met, counts.tolist(), strict=True))


def match(predicted: Panoptic, truth: Panoptic) -> dict[int, Quality]:
    """What one image adds to each class's quality (Kirillov et al. 2019, section 4; as in COCO's panopticapi).

    A predicted and a true segment of one class match where their IoU is above 1/2; so no segment matches twice. Void of
    the truth does not count in the union. Crowds match nothing and are not missed; an unmatched prediction is forgiven
    where more than half of it lies in void or in crowds of its class.

    Raises:
        ValueError: maps of two sizes.
    """
    if predicted.ids.shape != truth.ids.shape:
        raise ValueError(f"expected maps of one size; got {tuple(predicted.ids.shape)} and {tuple(truth.ids.shape)}")
    shared = _shared(predicted.ids, truth.ids)
    area_p, area_g, void, forgiven = Counter(), Counter(), Counter(), Counter()
    for (p, g), n in shared.items():
        area_p[p] += n
        area_g[g] += n
        if g not in truth.labels:
            void[p] += n
    found: dict[int, Quality] = defaultdict(Quality)
    unmatched_p = {p for p in area_p if p in predicted.labels}
    unmatched_g = {g for g in area_g if g in truth.labels and g not in truth.crowds}
    for (p, g), n in shared.items():
        if p not in predicted.labels or predicted.labels[p] != truth.labels.get(g):
            continue
        if g in truth.crowds:
            forgiven[p] += n
            continue
        iou = n / (area_p[p] + area_g[g] - n - void[p])
        if iou > 0.5:
            found[predicted.labels[p]] += Quality(iou=iou, tp=1)
            unmatched_p.remove(p)
            unmatched_g.remove(g)
    for p in unmatched_p:
        if void[p] + forgiven[p] <= area_p[p] / 2:
            found[predicted.labels[p]] += Quality(fp=1)
    for g in unmatched_g:
        found[truth.labels[g]] += Quality(fn=1)
    return dict(found)


def panoptic_quality(predicted: Collection[Panoptic], truth: Collection[Panoptic]) -> dict[int, Quality]:
    """The quality of each class over all images: counts are added up before anything is divided.

    Args:
        predicted: maps of some images.
        truth: maps of the same images in the same order.

    Raises:
        ValueError: two numbers of images, or maps of two sizes.
    """
    if len(predicted) != len(truth):
        raise ValueError(f"expected as many predictions as truths; got {len(predicted)} and {len(truth)}")
    total: dict[int, Quality] = defaultdict(Quality)
    for p, g in zip(predicted, truth, strict=True):
        for label, quality in match(p, g).items():
            total[label] += quality
    return dict(total)


def mean_quality(qualities: Mapping[int, Quality], classes: Collection[int] | None = None) -> Summary:
    """Means over classes: all that occur, or those among `classes`, such as the things.

    PQ of the means is not the product of the other two: the product holds for each class.
    """
    wanted = qualities if classes is None else set(map(operator.index, classes))
    kept = [quality for label, quality in qualities.items() if label in wanted]
    n = len(kept)
    means = [sum(getattr(quality, name) for quality in kept) / max(n, 1) for name in ("pq", "sq", "rq")]
    return Summary(*means, n)


def paint_panoptic(panoptic: Panoptic, scale: int = 1) -> Tensor:
    """A panoptic map as an image (3, scale · H, scale · W): the classes' colours, and a white line around each thing.

    The second and third object of a class are a little brighter. A larger scale makes the line thinner.
    """
    image, ids = semantic.enlarge(semantic.paint(panoptic.semantic()), scale), semantic.enlarge(panoptic.ids, scale)
    seen = []
    for segment, label in panoptic.labels.items():
        if label < len(scenes.THINGS):
            mask = ids == segment
            brighter = (0.0, 0.35, 0.18)[seen.count(label) % 3]
            seen.append(label)
            image[:, mask] = image[:, mask] + brighter * (1 - image[:, mask])
            image[:, semantic.rim(mask)] = 1.0
    return image


THINGS = range(len(scenes.THINGS))
STUFF = range(len(scenes.THINGS), len(scenes.CLASSES))
LEAST_STUFF = 16  # pixels of a segment of stuff


@torch.no_grad()
def predict(network: nn.Module, images: Tensor, batch_size: int = 50) -> Maps:
    """The network's maps of any number of images (N, 3, H, W) in [0, 1], batch by batch, on the CPU.

    In evaluation mode, so that an image's maps do not depend on the others; then each layer is in its own mode again.

    Args:
        network: gives `Maps`.
        images: floats, on any device.
        batch_size: images at a time.

    Raises:
        TypeError: images that are no floats, most often bytes from 0 to 255.
        ValueError: another shape, NaN, or values outside [0, 1].
    """
    if len(images):
        check_range(images)
    weight, parts = next(network.parameters()), []
    # Mixed precision is for networks in float32; others compute in their own.
    mixed = runtime.autocast if weight.dtype == torch.float32 else runtime.no_autocast
    with sampling.evaluating(network), mixed(weight.device):
        for part in images.split(batch_size):
            parts.append([x.float().cpu() for x in network(part.to(weight))])
    return Maps(*map(torch.cat, zip(*parts, strict=True)))


def answer(maps: Maps, index: int, *, threshold: float = 0.1) -> tuple[Tensor, Instances, Panoptic]:
    """The three answers for one image among some: semantic map, instances, panoptic map.

    Args:
        maps: of `predict`.
        index: of the image.
        threshold: of centres, see `instance.find_centres`.
    """
    probabilities = maps.logits[index].softmax(0)
    classes = probabilities.argmax(0)
    found = instances(probabilities, maps.heatmap[index], maps.offsets[index], THINGS, threshold=threshold)
    merged = merge(classes, found.masks, found.labels, found.scores, STUFF, least_area=LEAST_STUFF)
    return classes, found, merged


def truth(scene: scenes.Rendering) -> tuple[Tensor, Instances, Panoptic]:
    """The right answers for a scene."""
    labels = {i: int(scene.semantic[scene.panoptic == i][0]) for i in scene.panoptic.unique().tolist()}
    return scene.semantic, Instances(scene.masks, scene.labels), Panoptic(scene.panoptic, labels)


def evaluate(network: nn.Module, renderings: Sequence[scenes.Rendering], *, threshold: float = 0.1) -> dict[str, float]:
    """All scores on some scenes of one size.

    Returns:
        "mIoU"; "mask AP" (0.50:0.95) and "mask AP50"; "PQ", "SQ" and "RQ", means over classes, and "PQ things",
        "PQ stuff".
    """
    maps = predict(network, torch.stack([each.image for each in renderings]))
    answers = (answer(maps, i, threshold=threshold) for i in range(len(renderings)))
    classes, found, merged = zip(*answers, strict=True)
    true_classes, true_objects, true_maps = zip(*map(truth, renderings), strict=True)
    confusion = semantic.confusion_matrix(torch.stack(classes), torch.stack(true_classes), len(scenes.CLASSES))
    ap = coco.evaluate([f.objects() for f in found], [t.objects() for t in true_objects], mask_iou)
    quality = panoptic_quality(merged, true_maps)
    means = mean_quality(quality)
    return {
        "mIoU": semantic.mean_iou(confusion),
        "mask AP": ap.mean_precision(),
        "mask AP50": ap.mean_precision(0.5),
        "PQ": means.pq,
        "SQ": means.sq,
        "RQ": means.rq,
        "PQ things": mean_quality(quality, THINGS).pq,
        "PQ stuff": mean_quality(quality, STUFF).pq,
    }
