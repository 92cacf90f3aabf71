"""What there is in the toy world: the description of a scene in metres, without any pixels.

X points to the right, Y up, Z away from the camera; the ground is the plane Y = 0. Objects are flat cards that stand
upright on it and face the camera, like scenery in a toy theatre, so that each has one depth. They are made of discs,
thick lines and rounded polygons, in a frame of their own.
"""

import math
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

THINGS = ("disc", "square", "triangle", "star", "ring", "heart", "tree", "figure")  # what can be counted
STUFF = ("sky", "hills", "water", "grass", "sand", "snow")  # what cannot
CLASSES = THINGS + STUFF  # a class id is an index into this; a label of an object thus into THINGS, too

PALETTE = {
    "disc": "#d62728",
    "square": "#ff7f0e",
    "triangle": "#e0b400",
    "star": "#7b3fb5",
    "ring": "#e863b5",
    "heart": "#8c1c3a",
    "tree": "#0b6623",
    "figure": "#8b5a2b",
    "sky": "#cfe8f7",
    "hills": "#9db5a0",
    "water": "#6aa5d9",
    "grass": "#b5d99a",
    "sand": "#eddcb1",
    "snow": "#f3f3f3",
}  # what figures draw a class with, as matplotlib reads it: a class keeps its colour through the course

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
TEXTURES = ("plain", "striped", "dotted", "checked")
SIZES = ("small", "large")
GROUNDS = ("grass", "sand", "snow")
BACKDROPS = ("nothing", "hills", "water")  # between the ground and the sky
LIGHTS = ("day", "dusk", "night")

JOINT_ANGLES = 8  # of a figure: left and right shoulder, elbow, hip and knee, in this order
SMALLEST, LARGEST = 32, 256  # side of an image, in pixels


@dataclass(frozen=True)
class Camera:
    """A pinhole above the ground that looks along Z; all images are square.

    With f = focal · size and y₀ = horizon · size in pixels, the point (X, Y, Z) falls on
    u = size/2 + f (X − x)/(Z − z), v = y₀ + f (height − Y)/(Z − z). The axis stays level and the horizon is moved by
    shifting the film, as photographers of buildings do, so that upright things stay upright.

    Attributes:
        focal: focal length, in widths of the image.
        horizon: row of the horizon, as a part of the image's height, from the top.
        height: over the ground, in metres.
        x, z: place over the ground, in metres; move it for a second view.
    """

    focal: float
    horizon: float
    height: float
    x: float = 0.0
    z: float = 0.0

    def __post_init__(self) -> None:
        numbers = (self.focal, self.horizon, self.height, self.x, self.z)
        if not all(map(math.isfinite, numbers)) or not min(self.focal, self.height) > 0:
            raise ValueError(f"expected finite numbers, focal length and height above 0; got {self}")

    def intrinsics(self, size: int) -> Tensor:
        """K (3, 3), float32, in pixels: [[f, 0, size/2], [0, f, y₀], [0, 0, 1]], for y pointing down."""
        f = self.focal * size
        return torch.tensor([[f, 0, size / 2], [0, f, self.horizon * size], [0, 0, 1]])

    def project(self, X: float, Y: float, Z: float, size: int) -> tuple[float, float]:
        """Pixel coordinates (u, v) of a point in metres, in an image of `size`; the first pixel's centre is (½, ½).

        Raises:
            ValueError: a point that is not in front of the camera.
        """
        depth = Z - self.z
        if not depth > 0:
            raise ValueError(f"expected a point in front of the camera; its depth is {depth:.3g} m")
        scale = self.focal * size / depth
        return size / 2 + scale * (X - self.x), self.horizon * size + scale * (self.height - Y)


def _check_names(*pairs: tuple[str, tuple[str, ...]]) -> None:
    for name, allowed in pairs:
        if name not in allowed:
            raise ValueError(f"expected one of {', '.join(allowed)}; got {name!r}")


@dataclass(frozen=True)
class Thing:
    """An object of the scene.

    Attributes:
        name: its class, one of THINGS.
        size: one of SIZES.
        height: in metres, as it stands untilted and, for a figure, with straight legs.
        texture, colour: of TEXTURES and COLOURS.
        x, z: where its foot's middle stands, in metres.
        tilt: in radians, counter-clockwise.
        pose: of a figure, JOINT_ANGLES angles in radians, each outwards from the limb above it; else empty.
    """

    name: str
    size: str
    texture: str
    colour: str
    height: float
    x: float
    z: float
    tilt: float = 0.0
    pose: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_names((self.name, THINGS), (self.size, SIZES), (self.texture, TEXTURES), (self.colour, COLOURS))
        angles = JOINT_ANGLES if self.name == "figure" else 0
        if len(self.pose) != angles:
            raise ValueError(f"expected a pose of {angles} angles for a {self.name}; got {len(self.pose)}")
        if not (self.height > 0 and math.isfinite(self.height)):
            raise ValueError(f"expected a height above 0 m; got {self.height}")
        if not all(map(math.isfinite, (self.x, self.z, self.tilt, *self.pose))):
            raise ValueError(f"expected finite places and angles; got {self}")


@dataclass(frozen=True)
class Scene:
    """All there is to know of an image. `dataclasses.replace(scene, size=256)` is the same scene in more pixels.

    Attributes:
        things: the objects, back to front: from the largest z to the smallest.
        ground, backdrop, light: of GROUNDS, BACKDROPS and LIGHTS.
        camera: see Camera.
        shore: z where the ground ends and the water begins, in metres, if the backdrop is water.
        pattern: number that decides on the small pattern of ground and sky, 0 … 999.
        size: height and width of the image, in pixels.
    """

    things: tuple[Thing, ...]
    ground: str
    backdrop: str
    light: str
    camera: Camera
    shore: float
    pattern: int
    size: int = 64

    def __post_init__(self) -> None:
        _check_names((self.ground, GROUNDS), (self.backdrop, BACKDROPS), (self.light, LIGHTS))
        if isinstance(self.size, Integral):  # NumPy's too
            object.__setattr__(self, "size", int(self.size))
        if not isinstance(self.size, int) or not SMALLEST <= self.size <= LARGEST:
            raise ValueError(f"expected a size of {SMALLEST} to {LARGEST} pixels; got {self.size!r}")
        if not math.isfinite(self.shore):
            raise ValueError(f"expected a shore at a finite distance; got {self.shore}")
        depths = [thing.z for thing in self.things]
        if depths != sorted(depths, reverse=True):
            raise ValueError(f"expected things from back to front; their z are {depths}")


Points = tuple[tuple[float, float], ...]

_SIDES = ("left", "right")  # the figure's own, and it looks at us: its left is on the right
_JOINTS = ("shoulder", "elbow", "hand", "hip", "knee", "foot")
_BONES = (("shoulder", "elbow"), ("elbow", "hand"), ("shoulder", "hip"), ("hip", "knee"), ("knee", "foot"))
KEYPOINTS = ("head", *(f"{side}_{joint}" for joint in _JOINTS for side in _SIDES))
SKELETON = tuple(
    (KEYPOINTS.index(a), KEYPOINTS.index(b))
    for a, b in (
        *(("head", f"{side}_shoulder") for side in _SIDES),
        ("left_shoulder", "right_shoulder"),
        ("left_hip", "right_hip"),
        *((f"{side}_{a}", f"{side}_{b}") for side in _SIDES for a, b in _BONES),
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
    corners = [(inner if k % 2 else outer, math.pi / 2 + k * math.pi / 5) for k in range(10)]
    return tuple((radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in corners)


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
    legs = [Part((at[f"{s}_{a}"], at[f"{s}_{b}"]), 0.05, tone="trousers") for s in _SIDES for a, b in _BONES[-2:]]
    hands = [Part((at[f"{s}_elbow"], at[f"{s}_hand"]), 0.042, tone="skin") for s in _SIDES]
    sleeves = [Part((at[f"{s}_shoulder"], at[f"{s}_elbow"]), 0.048, tone="sleeve") for s in _SIDES]
    torso = Part(tuple(at[name] for name in ("left_shoulder", "right_shoulder", "right_hip", "left_hip")), 0.055)
    head = Part((at["head"],), 0.12, tone="skin")
    x, y = at["head"]
    face = [((x - 0.045, y + 0.01),), ((x + 0.045, y + 0.01),)]  # two eyes, and a smile of two lines
    face += [((x + side * 0.035, y - 0.05), (x, y - 0.062)) for side in (-1, 1)]
    features = [Part(points, 0.022 if len(points) == 1 else 0.009, tone="ink") for points in face]
    return (*legs, *hands, *sleeves, torso, head, *features)


def parts_of(thing: Thing) -> tuple[tuple[Part, ...], Points]:
    """The object's parts and, of a figure, its KEYPOINTS: untilted, y up, in units of its height, around its middle."""
    if thing.name != "figure":
        return SHAPES[thing.name], ()
    joints = _joints(thing.pose)
    return _figure(joints), joints
