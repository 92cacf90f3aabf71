"""What there is in the toy world: the description of a scene in metres, without any pixels.

X points to the right, Y up, Z away from the camera; the ground is the plane Y = 0. Objects are flat cards that stand
upright on it and face the camera, like scenery in a toy theatre, so that each has one depth.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

THINGS = ("disc", "square", "triangle", "star", "ring", "heart", "tree", "figure")  # what can be counted
STUFF = ("sky", "hills", "water", "grass", "sand", "snow")  # what cannot
CLASSES = THINGS + STUFF  # a class id is an index into this; a label of an object thus into THINGS, too

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
TEXTURES = ("plain", "striped", "dotted", "checked")
SIZES = ("small", "large")
GROUNDS = ("grass", "sand", "snow")
BACKDROPS = ("nothing", "hills", "water")  # between the ground and the sky
LIGHTS = ("day", "dusk", "night")

JOINT_ANGLES = 8  # of a figure: left and right shoulder, elbow, hip and knee, in this order
SMALLEST, LARGEST = 32, 256  # side of a picture, in pixels


@dataclass(frozen=True)
class Camera:
    """A pinhole above the ground that looks along Z; all pictures are square.

    With f = focal · size and y₀ = horizon · size in pixels, the point (X, Y, Z) falls on
    u = size/2 + f (X − x)/(Z − z), v = y₀ + f (height − Y)/(Z − z). The axis stays level and the horizon is moved by
    shifting the film, as photographers of buildings do, so that upright things stay upright.

    Attributes:
        focal: focal length, in widths of the picture.
        horizon: row of the horizon, as a part of the picture's height, from the top.
        height: over the ground, in metres. x, z: place over the ground, in metres; move it for a second view.
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
        """Pixel coordinates (u, v) of a point in metres, in a picture of `size`; the first pixel's centre is (½, ½).

        Raises:
            ValueError: a point that is not in front of the camera.
        """
        depth = Z - self.z
        if not depth > 0:
            raise ValueError(f"expected a point in front of the camera; its depth is {depth:.3g} m")
        scale = self.focal * size / depth
        return size / 2 + scale * (X - self.x), self.horizon * size + scale * (self.height - Y)


@dataclass(frozen=True)
class Thing:
    """An object of the scene.

    Attributes:
        name: its class, one of THINGS.
        size: one of SIZES. height: in metres, as it stands untilted and, for a figure, with straight legs.
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
        for value, allowed in zip(
            (self.name, self.size, self.texture, self.colour), (THINGS, SIZES, TEXTURES, COLOURS), strict=True
        ):
            if value not in allowed:
                raise ValueError(f"expected one of {', '.join(allowed)}; got {value!r}")
        angles = JOINT_ANGLES if self.name == "figure" else 0
        if len(self.pose) != angles:
            raise ValueError(f"expected a pose of {angles} angles for a {self.name}; got {len(self.pose)}")
        if not (self.height > 0 and math.isfinite(self.height)):
            raise ValueError(f"expected a height above 0 m; got {self.height}")
        if not all(map(math.isfinite, (self.x, self.z, self.tilt, *self.pose))):
            raise ValueError(f"expected finite places and angles; got {self}")


@dataclass(frozen=True)
class Scene:
    """All there is to know of a picture. `dataclasses.replace(scene, size=256)` is the same scene in more pixels.

    Attributes:
        things: the objects, back to front: from the largest z to the smallest.
        ground, backdrop, light: of GROUNDS, BACKDROPS and LIGHTS.
        camera: see Camera.
        shore: z where the ground ends and the water begins, in metres, if the backdrop is water.
        grain: number that decides on the small pattern of ground and sky, 0 … 999.
        size: height and width of the picture, in pixels.
    """

    things: tuple[Thing, ...]
    ground: str
    backdrop: str
    light: str
    camera: Camera
    shore: float
    grain: int
    size: int = 64

    def __post_init__(self) -> None:
        for value, allowed in ((self.ground, GROUNDS), (self.backdrop, BACKDROPS), (self.light, LIGHTS)):
            if value not in allowed:
                raise ValueError(f"expected one of {', '.join(allowed)}; got {value!r}")
        if not isinstance(self.size, int) or not SMALLEST <= self.size <= LARGEST:
            raise ValueError(f"expected a size of {SMALLEST} to {LARGEST} pixels; got {self.size!r}")
        if not math.isfinite(self.shore):
            raise ValueError(f"expected a shore at a finite distance; got {self.shore}")
        depths = [thing.z for thing in self.things]
        if depths != sorted(depths, reverse=True):
            raise ValueError(f"expected things from back to front; their z are {depths}")
