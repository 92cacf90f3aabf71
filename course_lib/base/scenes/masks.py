"""Which pixels an object covers, and which of them are seen."""

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from course_lib.base.scenes.outlines import Outline, outline, signed_distance
from course_lib.base.scenes.world import Camera, Scene, Thing

FEWEST_PIXELS = 8  # an object of which fewer are seen is not in the scene


@dataclass(frozen=True)
class Cutout:
    """An object and the rectangle of pixels around it, which may extend beyond the picture.

    Attributes:
        outline: in pixels of the picture.
        left, top: the rectangle's first column and row.
        distance: (h, w) float64, signed distance of the pixels' centres to the object, in pixels; inside below 0.
    """

    outline: Outline
    left: int
    top: int
    distance: Tensor

    @property
    def x(self) -> Tensor:
        """Centres of the rectangle's columns, (w,)."""
        return centres(self.left, self.distance.shape[1])

    @property
    def y(self) -> Tensor:
        """Centres of the rectangle's rows, (h,)."""
        return centres(self.top, self.distance.shape[0])

    def window(self, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Rows and columns of the part inside a picture of `size`: in the picture's counting, and the rectangle's."""
        ranges = []
        for start, length in zip((self.top, self.left), self.distance.shape, strict=True):
            low, high = (min(max(at, 0), size) for at in (start, start + length))
            ranges.append((slice(low, high), slice(low - start, high - start)))
        (rows, own_rows), (columns, own_columns) = ranges
        return (rows, columns), (own_rows, own_columns)


def centres(start: int, length: int) -> Tensor:
    """Pixel centres start + ½, …, float64, (length,)."""
    return torch.arange(start, start + length, dtype=torch.float64) + 0.5


@functools.lru_cache(maxsize=32)  # who draws a scene, looks whether all of it is seen, and renders it next
def cut_out(thing: Thing, camera: Camera, size: int) -> Cutout:
    """An object as the camera sees it in a picture of `size`, with a margin of one pixel around it."""
    shape = outline(thing, camera, size)
    extent = [(*point, part.radius + 1) for part in shape.parts for point in part.points]
    left, top = (math.floor(min(p[axis] - p[2] for p in extent)) for axis in (0, 1))
    right, bottom = (math.ceil(max(p[axis] + p[2] for p in extent)) for axis in (0, 1))
    x, y = centres(left, right - left), centres(top, bottom - top)
    return Cutout(shape, left, top, signed_distance(shape.parts, x, y))


def whole_masks(cutouts: list[Cutout], size: int) -> Tensor:
    """Where each object would be seen if it were alone: (N, size, size) bool, true where a pixel's centre is inside."""
    masks = torch.zeros(len(cutouts), size, size, dtype=torch.bool)
    for mask, cutout in zip(masks, cutouts, strict=True):
        inside, own = cutout.window(size)
        mask[inside] = cutout.distance[own] <= 0
    return masks


def visible_masks(whole: Tensor) -> Tensor:
    """Of masks (N, H, W) from back to front, what the later ones leave of each."""
    in_front = whole.flip(0).cumsum(0).flip(0) - whole.int()
    return whole & (in_front == 0)


def seen(scene: Scene) -> list[float]:
    """Of each object, the part that is in the picture and not hidden, 0 to 1; 0 if it is fewer than FEWEST_PIXELS."""
    cutouts = [cut_out(thing, scene.camera, scene.size) for thing in scene.things]
    visible = visible_masks(whole_masks(cutouts, scene.size)).sum((1, 2)).tolist()
    areas = [int((cutout.distance <= 0).sum()) for cutout in cutouts]
    return [p / max(area, 1) if p >= FEWEST_PIXELS else 0.0 for p, area in zip(visible, areas, strict=True)]


def without_hidden(scene: Scene) -> tuple[Scene, list[Cutout], Tensor]:
    """The scene without objects of which fewer than FEWEST_PIXELS are seen; cutouts, visible masks (N, H, W)."""
    cutouts = [cut_out(thing, scene.camera, scene.size) for thing in scene.things]
    whole = whole_masks(cutouts, scene.size)
    kept = [n for n, pixels in enumerate(visible_masks(whole).sum((1, 2)).tolist()) if pixels >= FEWEST_PIXELS]
    scene = replace(scene, things=tuple(scene.things[n] for n in kept))
    return scene, [cutouts[n] for n in kept], visible_masks(whole[kept])
