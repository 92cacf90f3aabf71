"""From heat maps to objects: peaks, their boxes, and what suppression leaves of them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.detection.boxes import clip
from course_lib.detection.coco import Objects
from course_lib.detection.network import STRIDE, Detector, Prediction
from course_lib.detection.suppression import nms


def peaks(heat: Tensor) -> Tensor:
    """(B, K, h, w) bool: cells that no neighbour, of eight, outshines (Zhou et al. 2019, section 4)."""
    return heat == F.max_pool2d(heat, 3, stride=1, padding=1)


def objects(
    predicted: Prediction, *, minimum: float = 0.05, suppress: float | None = 0.6, most: int = 100
) -> list[Objects]:
    """The objects of each picture, by falling score.

    Args:
        predicted: of B pictures.
        minimum: the least score, in [0, 1].
        suppress: IoU above which the worse of two boxes of one class is dropped; None: never. A peak is already the
            best of its neighbours, so there is little to do.
        most: the best so many of a picture.

    Returns:
        For each picture boxes inside of it, labels and scores in [0, 1].
    """
    h, w = predicted.heat.shape[-2:]
    found = []
    for heat, boxes, peak in zip(predicted.heat.sigmoid(), predicted.boxes, peaks(predicted.heat), strict=True):
        label, row, column = (peak & (heat >= minimum)).nonzero(as_tuple=True)
        scores = heat[label, row, column]
        corners = clip(boxes[:, row, column].T, (h * STRIDE, w * STRIDE))
        kept = scores.argsort(descending=True, stable=True)
        if suppress is not None:
            kept = nms(corners, scores, suppress, label)
        found.append(Objects(corners[kept[:most]], label[kept[:most]], scores[kept[:most]]))
    return found


@torch.no_grad()
def detect(detector: Detector, pictures: Tensor, batch_size: int = 64, **settings: float) -> list[Objects]:
    """What the detector finds in pictures (B, 3, H, W) in [0, 1], one `Objects` each, on their device.

    The sides are filled up with grey to what the network wants, and the boxes cut at the picture's own border.

    Args:
        detector: in eval mode. settings: as for `objects`.

    Raises:
        ValueError: the detector is training: its BatchNorm would let pictures of a batch see each other.
        TypeError: pictures that are no floats, most often bytes from 0 to 255.
    """
    if not pictures.is_floating_point():
        raise TypeError(f"expected pictures as floats in [0, 1], got {pictures.dtype}")
    if detector.training:
        raise ValueError("call detector.eval() first: BatchNorm must not look at the batch")
    weight = next(detector.parameters())
    H, W = pictures.shape[-2:]
    found = []
    for part in pictures.split(batch_size):
        filled = F.pad(part.to(weight), (0, -W % detector.coarsest, 0, -H % detector.coarsest), value=0.5)
        for each in objects(detector(filled), **settings):
            found.append(Objects(clip(each.shapes, (H, W)), each.labels, each.scores).to(pictures.device))
    return found
