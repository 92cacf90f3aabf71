"""From a network to the three kinds of answers, and their scores on scenes: mIoU, mask AP, panoptic quality."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from course_lib.base import runtime, scenes
from course_lib.detection import coco
from course_lib.segmentation import panoptic, semantic
from course_lib.segmentation.instance import Instances, instances, mask_iou
from course_lib.segmentation.network import Maps

THINGS = range(len(scenes.THINGS))
STUFF = range(len(scenes.THINGS), len(scenes.CLASSES))
LEAST_STUFF = 16  # pixels of a segment of stuff


@torch.no_grad()
def predict(network: nn.Module, pictures: Tensor, batch_size: int = 50) -> Maps:
    """The network's maps of any number of pictures (N, 3, H, W) in [0, 1], batch by batch, on the CPU.

    In evaluation mode, so that a picture's maps do not depend on the others; then each layer is in its own mode again.

    Raises:
        TypeError: pictures that are no floats, most often bytes from 0 to 255.
    """
    if not pictures.is_floating_point():
        raise TypeError(f"expected pictures as floats in [0, 1], got {pictures.dtype}")
    weight, modes, parts = next(network.parameters()), {m: m.training for m in network.modules()}, []
    network.eval()
    try:
        for part in pictures.split(batch_size):
            with runtime.autocast(weight.device):
                parts.append([x.float().cpu() for x in network(part.to(weight))])
    finally:
        for module, training in modes.items():
            module.training = training
    return Maps(*map(torch.cat, zip(*parts, strict=True)))


def answer(maps: Maps, index: int, *, threshold: float = 0.1) -> tuple[Tensor, Instances, panoptic.Panoptic]:
    """The three answers for one picture among some: semantic map, instances, panoptic map.

    Args:
        maps: of `predict`. index: of the picture. threshold: of centres, see `instance.find_centres`.
    """
    probabilities = maps.logits[index].softmax(0)
    classes = probabilities.argmax(0)
    found = instances(probabilities, maps.heatmap[index], maps.offsets[index], THINGS, threshold=threshold)
    merged = panoptic.merge(classes, found.masks, found.labels, found.scores, STUFF, least_area=LEAST_STUFF)
    return classes, found, merged


def truth(picture: scenes.Picture) -> tuple[Tensor, Instances, panoptic.Panoptic]:
    """The right answers for a scene."""
    labels = {i: int(picture.semantic[picture.panoptic == i][0]) for i in picture.panoptic.unique().tolist()}
    return picture.semantic, Instances(picture.masks, picture.labels), panoptic.Panoptic(picture.panoptic, labels)


def evaluate(network: nn.Module, pictures: Sequence[scenes.Picture], *, threshold: float = 0.1) -> dict[str, float]:
    """All scores on some scenes of one size.

    Returns:
        "mIoU"; "mask AP" (0.50:0.95) and "mask AP50"; "PQ", "SQ" and "RQ", means over classes, and "PQ things",
        "PQ stuff".
    """
    maps = predict(network, torch.stack([picture.image for picture in pictures]))
    found = [answer(maps, i, threshold=threshold) for i in range(len(pictures))]
    right = [truth(picture) for picture in pictures]
    confusion = sum(
        semantic.confusion_matrix(f[0], t[0], len(scenes.CLASSES)) for f, t in zip(found, right, strict=True)
    )
    ap = coco.evaluate([f[1].objects() for f in found], [t[1].objects() for t in right], mask_iou)
    quality = panoptic.panoptic_quality([f[2] for f in found], [t[2] for t in right])
    means = panoptic.mean_quality(quality)
    return {
        "mIoU": semantic.mean_iou(confusion),
        "mask AP": ap.mean_precision(),
        "mask AP50": ap.mean_precision(0.5),
        "PQ": means.pq,
        "SQ": means.sq,
        "RQ": means.rq,
        "PQ things": panoptic.mean_quality(quality, THINGS).pq,
        "PQ stuff": panoptic.mean_quality(quality, STUFF).pq,
    }
