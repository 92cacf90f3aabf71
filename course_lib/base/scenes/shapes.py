"""What the objects are made of: discs, thick lines and rounded polygons, in a frame of their own."""

import math
from dataclasses import dataclass

from course_lib.base.scenes.world import Thing

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
    """All points within `radius` of a point, a line or a polygon.

    Attributes:
        points: one, two, or the corners of a polygon.
        hole: points nearer than that are not part of it; of a point or a line alone.
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
    x, y = at["head"]
    face = [((x - 0.045, y + 0.01),), ((x + 0.045, y + 0.01),)]  # two eyes, and a smile of two lines
    face += [((x + side * 0.035, y - 0.05), (x, y - 0.062)) for side in (-1, 1)]
    features = [Part(points, 0.022 if len(points) == 1 else 0.009, tone="ink") for points in face]
    return (*legs, *hands, *sleeves, torso, head, *features)


_LEG = (("hip", "knee"), ("knee", "foot"))
_TORSO = ("left_shoulder", "right_shoulder", "right_hip", "left_hip")


def parts_of(thing: Thing) -> tuple[tuple[Part, ...], Points]:
    """The object's parts and, of a figure, its KEYPOINTS: untilted, y up, in units of its height, around its middle."""
    if thing.name != "figure":
        return SHAPES[thing.name], ()
    joints = _joints(thing.pose)
    return _figure(joints), joints
