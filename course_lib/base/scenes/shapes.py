"""The objects' outlines: polygons, discs and thick lines, and how far a point is from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib.base.scenes.world import Scene, Thing

Points = tuple[tuple[float, float], ...]

KEYPOINTS = (
    "head",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_hand",
    "right_hand",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_foot",
    "right_foot",
)  # left and right are the figure's own, and it looks at us: its left is on the right
SKELETON = tuple(
    (KEYPOINTS.index(a), KEYPOINTS.index(b))
    for a, b in (
        ("head", "left_shoulder"),
        ("head", "right_shoulder"),
        ("left_shoulder", "right_shoulder"),
        ("left_shoulder", "left_elbow"),
        ("right_shoulder", "right_elbow"),
        ("left_elbow", "left_hand"),
        ("right_elbow", "right_hand"),
        ("left_shoulder", "left_hip"),
        ("right_shoulder", "right_hip"),
        ("left_hip", "right_hip"),
        ("left_hip", "left_knee"),
        ("right_hip", "right_knee"),
        ("left_knee", "left_foot"),
        ("right_knee", "right_foot"),
    )
)


@dataclass(frozen=True)
class Part:
    """All points within `radius` of a point, a line or a polygon, and not within `hole` of its first point.

    Attributes:
        points: one, two, or the corners of a polygon.
        tone: what it is painted with: "main" is the object's own colour and texture.
    """

    points: Points
    radius: float = 0.0
    hole: float = 0.0
    tone: str = "main"


def _star(outer: float, inner: float) -> Points:
    angles = [math.pi / 2 + k * math.pi / 5 for k in range(10)]
    return tuple(
        ((inner if k % 2 else outer) * math.cos(a), (inner if k % 2 else outer) * math.sin(a))
        for k, a in enumerate(angles)
    )


_C = 0.44  # half diagonal of the heart's square, on whose upper sides sit two half discs

# In a frame with y up, about one unit high around the origin.
SHAPES: dict[str, tuple[Part, ...]] = {
    "disc": (Part(((0.0, 0.0),), 0.5),),
    "ring": (Part(((0.0, 0.0),), 0.5, hole=0.25),),
    "square": (Part(((-0.4, -0.4), (0.4, -0.4), (0.4, 0.4), (-0.4, 0.4)), 0.06),),
    "triangle": (Part(((-0.52, -0.45), (0.52, -0.45), (0.0, 0.47)), 0.04),),
    "star": (Part(_star(0.52, 0.23), 0.04),),
    "heart": (
        Part(((0.0, -0.47), (_C, _C - 0.47), (0.0, 2 * _C - 0.47), (-_C, _C - 0.47)), 0.02),
        Part(((_C / 2, 1.5 * _C - 0.47),), _C / math.sqrt(2) + 0.02),
        Part(((-_C / 2, 1.5 * _C - 0.47),), _C / math.sqrt(2) + 0.02),
    ),
    "tree": (
        Part(((-0.05, -0.5), (0.05, -0.5), (0.05, 0.0), (-0.05, 0.0)), 0.02, tone="wood"),
        Part(((0.0, 0.22),), 0.28),
        Part(((-0.2, 0.0),), 0.19),
        Part(((0.2, 0.0),), 0.19),
        Part(((-0.15, 0.05), (0.15, 0.05)), 0.17),
    ),
}


def _towards(origin: tuple[float, float], angle: float, length: float) -> tuple[float, float]:
    """`length` away from `origin`, at an angle from straight down to the right."""
    return origin[0] + length * math.sin(angle), origin[1] - length * math.cos(angle)


def _joints(pose: tuple[float, ...]) -> Points:
    """The KEYPOINTS of a figure, y up, its hips around the origin."""
    joints = {"head": (0.0, 0.42)}
    for side, sign, angles in (("left", 1, pose[0::2]), ("right", -1, pose[1::2])):
        shoulder, elbow, hip, knee = (sign * angle for angle in angles)
        joints[f"{side}_shoulder"] = (sign * 0.1, 0.25)
        joints[f"{side}_elbow"] = _towards(joints[f"{side}_shoulder"], shoulder, 0.17)
        joints[f"{side}_hand"] = _towards(joints[f"{side}_elbow"], shoulder + elbow, 0.16)
        joints[f"{side}_hip"] = (sign * 0.065, 0.0)
        joints[f"{side}_knee"] = _towards(joints[f"{side}_hip"], hip, 0.2)
        joints[f"{side}_foot"] = _towards(joints[f"{side}_knee"], hip + knee, 0.2)
    return tuple(joints[name] for name in KEYPOINTS)


def _figure(joints: Points) -> tuple[Part, ...]:
    at = dict(zip(KEYPOINTS, joints, strict=True))
    sides = ("left", "right")
    legs = [Part((at[f"{s}_{a}"], at[f"{s}_{b}"]), 0.05, tone="trousers") for s in sides for a, b in _LEG]
    hands = [Part((at[f"{s}_elbow"], at[f"{s}_hand"]), 0.042, tone="skin") for s in sides]
    sleeves = [Part((at[f"{s}_shoulder"], at[f"{s}_elbow"]), 0.048, tone="sleeve") for s in sides]
    torso = Part(tuple(at[name] for name in _TORSO), 0.055)
    head = Part((at["head"],), 0.12, tone="skin")
    eyes = [Part(((at["head"][0] + dx, at["head"][1] + 0.01),), 0.022, tone="ink") for dx in (-0.045, 0.045)]
    return (*legs, *hands, *sleeves, torso, head, *eyes)


_LEG = (("hip", "knee"), ("knee", "foot"))
_TORSO = ("left_shoulder", "right_shoulder", "right_hip", "left_hip")


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


def outline(scene: Scene, thing: Thing) -> Outline:
    """The object's outline as the scene's camera sees it: turned by its tilt, its lowest point on the ground."""
    joints = _joints(thing.pose) if thing.pose else ()
    parts = _figure(joints) if joints else SHAPES[thing.name]
    c, s = math.cos(thing.tilt), math.sin(thing.tilt)
    turned = [[(c * x - s * y, s * x + c * y) for x, y in part.points] for part in parts]
    lowest = min(y - part.radius for part, points in zip(parts, turned, strict=True) for _, y in points)
    u, v = scene.camera.project(thing.x, 0.0, thing.z, scene.size)
    scale = thing.height * scene.camera.focal * scene.size / (thing.z - scene.camera.z)

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
        radius = torch.tensor([part.radius for part in lines], dtype=x.dtype)[:, None, None]
        found.append((_to_segments(start, end, x, y) - radius).amin(0))
    for part in parts:
        if part.hole:  # of an object of one part
            u, v = part.points[0]
            found[0] = torch.maximum(found[0], part.hole - torch.hypot(x - u, y[:, None] - v))
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
