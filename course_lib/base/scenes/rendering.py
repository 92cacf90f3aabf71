"""From the description of a scene to its picture and everything that is true of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib.base.scenes.captions import caption_of
from course_lib.base.scenes.masks import Cutout, without_hidden
from course_lib.base.scenes.painting import backdrop, paint
from course_lib.base.scenes.shapes import KEYPOINTS
from course_lib.base.scenes.world import CLASSES, THINGS, Scene

STUFF_SEGMENTS = 1000  # a panoptic id above it is stuff: 1000 + its class


@dataclass(frozen=True)
class Picture:
    """A picture with its labels, for N objects from back to front. Pixel coordinates start at the picture's corner:
    the centre of row i, column j is (x, y) = (j + ½, i + ½).

    Attributes:
        image: (3, H, W) float32 in [0, 1].
        boxes: (N, 4) float32, (x0, y0, x1, y1) in pixels, tight around the masks: the last column is x1 − 1.
        labels: (N,) int64, indices into THINGS, and also into CLASSES.
        masks: (N, H, W) bool, what is seen of each object; disjoint.
        semantic: (H, W) int64, indices into CLASSES: things first, then stuff.
        panoptic: (H, W) int64: n + 1 on object n; STUFF_SEGMENTS + class on stuff. No 0, no void.
        keypoints: (N, K, 3) float32: x, y in pixels and visibility as in COCO: 2 seen, 1 hidden by a nearer object,
            0 outside the picture or not a figure, with x = y = 0.
        depth: (H, W) float32, metres along the camera's axis to what is seen; infinity for the sky.
        camera: (3, 3) float32, intrinsics K in pixels: K (X, Y, Z) = Z (x, y, 1), with Y pointing down.
        caption: in words; `parse` reads it.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor
    semantic: Tensor
    panoptic: Tensor
    keypoints: Tensor
    depth: Tensor
    camera: Tensor
    caption: str


def render(scene: Scene) -> Picture:
    """The picture of a scene and its labels; objects of which too little is seen are left out of all of them."""
    scene, cutouts, masks = without_hidden(scene)
    behind = backdrop(scene)
    image, depth = behind.image, behind.depth
    semantic = behind.stuff + len(THINGS)
    panoptic = semantic + STUFF_SEGMENTS
    labels = torch.tensor([CLASSES.index(thing.name) for thing in scene.things], dtype=torch.int64)
    for n, (thing, cutout, mask) in enumerate(zip(scene.things, cutouts, masks, strict=True)):
        paint(image, scene, thing, cutout)
        semantic[mask], panoptic[mask], depth[mask] = labels[n], n + 1, thing.z - scene.camera.z
    return Picture(
        image=image,
        boxes=tight_boxes(masks),
        labels=labels,
        masks=masks,
        semantic=semantic,
        panoptic=panoptic,
        keypoints=_keypoints(cutouts, panoptic, scene.size),
        depth=depth,
        camera=scene.camera.intrinsics(scene.size),
        caption=caption_of(scene),
    )


def tight_boxes(masks: Tensor) -> Tensor:
    """Boxes (N, 4) float32, (x0, y0, x1, y1) in pixels, around masks (N, H, W) that are not empty."""
    boxes = []
    for along in (masks.any(1), masks.any(2)):  # columns, rows
        length = along.shape[1]
        first = along.byte().argmax(1)
        boxes.append((first, length - along.flip(1).byte().argmax(1)))
    (x0, x1), (y0, y1) = boxes
    return torch.stack([x0, y0, x1, y1], 1).float()


def _keypoints(cutouts: list[Cutout], panoptic: Tensor, size: int) -> Tensor:
    keypoints = torch.zeros(len(cutouts), len(KEYPOINTS), 3)
    for n, cutout in enumerate(cutouts):
        for k, (x, y) in enumerate(cutout.outline.joints):
            if 0 <= x < size and 0 <= y < size:
                nearest = int(panoptic[int(y), int(x)])
                hidden = n + 1 < nearest < STUFF_SEGMENTS
                keypoints[n, k] = torch.tensor([x, y, 1 if hidden else 2])
    return keypoints
