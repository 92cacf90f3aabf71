"""Objects as the camera sees them: their outlines in the image, the pixels they cover, and which of these are seen."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from course_lib.scenes.world import Camera, Part, Points, Scene, Thing, parts_of


def signed_distance(parts: Sequence[Part], x: Tensor, y: Tensor) -> Tensor:
    """Distance of points to the union of some parts, negative inside; exact outside, a bound inside.

    Args:
        parts: in pixels.
        x: (W,), columns in pixels, float64.
        y: (H,), rows in pixels, float64.

    Returns:
        (H, W), in pixels.
    """
    lines = [part for part in parts if len(part.points) < 3]
    found = [_to_polygon(part.points, x, y) - part.radius for part in parts if len(part.points) > 2]
    if lines:
        start, end = (torch.tensor([part.points[i] for part in lines], dtype=x.dtype) for i in (0, -1))
        limits = torch.tensor([(part.radius, part.hole or -math.inf) for part in lines], dtype=x.dtype)
        radius, hole = limits.T[..., None, None]
        distance = _to_segments(start, end, x, y)
        found.append(torch.maximum(distance - radius, hole - distance).amin(0))
    return torch.stack(found).amin(0)


def _to_segments(start: Tensor, end: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Distance (E, H, W) of points to segments from `start` to `end`, (E, 2)."""
    start, direction = start[..., None, None], (end - start)[..., None, None]
    dx, dy = x - start[:, 0], y[:, None] - start[:, 1]
    ex, ey = direction.unbind(1)
    along = ((dx * ex + dy * ey) / (ex**2 + ey**2).clamp_min(1e-12)).clamp(0, 1)
    return torch.hypot(dx - along * ex, dy - along * ey)


def _to_polygon(corners: Points, x: Tensor, y: Tensor) -> Tensor:
    """Distance (H, W) of points to a polygon's sides; negative inside, where a ray crosses an odd number of sides."""
    start = torch.tensor(corners, dtype=x.dtype)
    end = start.roll(-1, 0)
    distance = _to_segments(start, end, x, y).amin(0)
    (ax, ay), (bx, by) = (points.T[..., None, None] for points in (start, end))
    row = y[:, None]
    slope = (bx - ax) / torch.where(by == ay, 1, by - ay)  # a level side is crossed by no level ray
    crossed = ((ay <= row) != (by <= row)) & (x < ax + (row - ay) * slope)
    return torch.where(crossed.sum(0) % 2 == 1, -distance, distance)


FEWEST_PIXELS = 8  # an object of which fewer are seen is not in the scene


@dataclass(frozen=True)
class Cutout:
    """An object in the image, all in pixels, y down, and the rectangle around it, which may extend beyond the image.

    Attributes:
        parts: what it consists of, later ones over earlier ones.
        origin: the middle of the frame that its texture is attached to.
        scale: a unit's length in that frame.
        joints: of a figure, the KEYPOINTS; else empty.
        left, top: the rectangle's first column and row.
        distance: (h, w) float64, signed distance of the pixels' centres to the object; inside below 0.
    """

    parts: tuple[Part, ...]
    origin: tuple[float, float]
    scale: float
    joints: Points
    left: int
    top: int
    distance: Tensor

    def inside(self, size: int) -> tuple[tuple[slice, slice], Tensor]:
        """Of the rectangle's part inside an image of `size`: rows and columns there, and the distance."""
        ranges = []
        for start, length in zip((self.top, self.left), self.distance.shape, strict=True):
            low, high = (min(max(at, 0), size) for at in (start, start + length))
            ranges.append((slice(low, high), slice(low - start, high - start)))
        (rows, own_rows), (columns, own_columns) = ranges
        return (rows, columns), self.distance[own_rows, own_columns]


def centres(start: int, length: int) -> Tensor:
    """Pixel centres start + ½, …, float64, (length,)."""
    return torch.arange(start, start + length, dtype=torch.float64) + 0.5


@functools.lru_cache(maxsize=32)  # who draws a scene, looks whether all of it is seen, and renders it next
def cut_out(thing: Thing, camera: Camera, size: int) -> Cutout:
    """An object as the camera sees it in an image of `size`: turned by its tilt, its lowest point on the ground.

    The rectangle leaves a margin of one pixel around it.
    """
    parts, joints = parts_of(thing)
    c, s = math.cos(thing.tilt), math.sin(thing.tilt)

    def turned(points: Points) -> Points:
        return tuple((c * x - s * y, s * x + c * y) for x, y in points)

    lowest = min(y - part.radius for part in parts for _, y in turned(part.points))
    u, v = camera.project(thing.x, 0.0, thing.z, size)
    scale = thing.height * camera.focal * size / (thing.z - camera.z)

    def pixels(points: Points) -> Points:
        return tuple((u + scale * x, v - scale * (y - lowest)) for x, y in turned(points))

    parts = tuple(Part(pixels(p.points), scale * p.radius, scale * p.hole, p.tone) for p in parts)
    extent = [(*point, part.radius + 1) for part in parts for point in part.points]
    left, top = (math.floor(min(p[axis] - p[2] for p in extent)) for axis in (0, 1))
    right, bottom = (math.ceil(max(p[axis] + p[2] for p in extent)) for axis in (0, 1))
    distance = signed_distance(parts, centres(left, right - left), centres(top, bottom - top))
    return Cutout(parts, (u, v + scale * lowest), scale, pixels(joints), left, top, distance)


def whole_masks(cutouts: list[Cutout], size: int) -> Tensor:
    """Where each object would be seen if it were alone: (N, size, size) bool, true where a pixel's centre is inside."""
    masks = torch.zeros(len(cutouts), size, size, dtype=torch.bool)
    for mask, cutout in zip(masks, cutouts, strict=True):
        place, distance = cutout.inside(size)
        mask[place] = distance <= 0
    return masks


def visible_masks(whole: Tensor) -> Tensor:
    """Of masks (N, H, W) from back to front, what the later ones leave of each."""
    in_front = whole.flip(0).cumsum(0).flip(0) - whole.int()
    return whole & (in_front == 0)


def seen(scene: Scene) -> list[float]:
    """Of each object, the part that is in the image and not hidden, 0 to 1; 0 if it is fewer than FEWEST_PIXELS."""
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
