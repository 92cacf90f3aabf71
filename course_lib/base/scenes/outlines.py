"""Objects as the camera sees them, and how far a point of the picture is from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib.base.scenes.shapes import Part, Points, parts_of
from course_lib.base.scenes.world import Camera, Thing


@dataclass(frozen=True)
class Outline:
    """An object in the picture, all in pixels, y down.

    Attributes:
        parts: what it consists of, later ones over earlier ones.
        origin, scale, tilt: the frame that its texture is attached to: its middle, a unit's length, its turn.
        joints: of a figure, the KEYPOINTS; else empty.
    """

    parts: tuple[Part, ...]
    origin: tuple[float, float]
    scale: float
    tilt: float
    joints: Points = ()


def outline(thing: Thing, camera: Camera, size: int) -> Outline:
    """An object as the camera sees it in a picture of `size`: turned by its tilt, its lowest point on the ground."""
    parts, joints = parts_of(thing)
    c, s = math.cos(thing.tilt), math.sin(thing.tilt)
    turned = [[(c * x - s * y, s * x + c * y) for x, y in part.points] for part in parts]
    lowest = min(y - part.radius for part, points in zip(parts, turned, strict=True) for _, y in points)
    u, v = camera.project(thing.x, 0.0, thing.z, size)
    scale = thing.height * camera.focal * size / (thing.z - camera.z)

    def pixels(points: list[tuple[float, float]]) -> Points:
        return tuple((u + scale * x, v - scale * (y - lowest)) for x, y in points)

    return Outline(
        tuple(
            Part(pixels(points), scale * part.radius, scale * part.hole, part.tone)
            for part, points in zip(parts, turned, strict=True)
        ),
        (u, v + scale * lowest),
        scale,
        thing.tilt,
        pixels([(c * x - s * y, s * x + c * y) for x, y in joints]),
    )


def signed_distance(parts: Sequence[Part], x: Tensor, y: Tensor) -> Tensor:
    """Distance of points to the union of some parts, negative inside; exact outside, a bound inside.

    Args:
        x: (W,). y: (H,). In pixels, float64. Returns (H, W).
    """
    lines = [part for part in parts if len(part.points) < 3]
    found = [_to_polygon(part.points, x, y) - part.radius for part in parts if len(part.points) > 2]
    if lines:
        start, end = (torch.tensor([part.points[i] for part in lines], dtype=x.dtype) for i in (0, -1))
        limits = torch.tensor([(part.radius, part.hole or -math.inf) for part in lines], dtype=x.dtype)
        radius, hole = limits.T[..., None, None]
        distance = _to_segments(start, end, x, y)
        found.append(torch.maximum(distance - radius, hole - distance).amin(0))
    return torch.stack(found).amin(0) if len(found) > 1 else found[0]


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
