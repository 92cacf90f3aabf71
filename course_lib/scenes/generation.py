"""Scenes drawn at random: a camera, objects on the ground before it, ground, backdrop and light."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from course_lib.scenes.masks import seen
from course_lib.scenes.world import BACKDROPS, COLOURS, GROUNDS, LIGHTS, SIZES, TEXTURES, THINGS, Camera, Scene, Thing

MOST_OBJECTS = 10
_HEIGHTS = {"small": (0.95, 1.2), "large": (1.65, 2.0)}  # metres
_FIGURE = 1.35  # times as high, for its limbs to be seen
_TILT = {"square": 0.25, "triangle": 0.12, "star": 0.3, "heart": 0.3, "tree": 0.06}  # radians at most, either way
_NEAREST = 0.95  # row of the foot of the nearest objects, as a part of the image's height


@dataclass(frozen=True)
class _Layout:
    """Where objects stand. `height`: of the camera, in metres. `reach`: the farthest objects are so many times farther
    than the nearest. `overlap`: of the smaller of two objects' frames, at most, for both to be seen."""

    height: tuple[float, float]
    reach: float
    overlap: float


_USUAL = _Layout(height=(1.5, 1.9), reach=1.9, overlap=0.55)  # seen from a person's height
_NEAR = _Layout(height=(1.4, 1.7), reach=1.25, overlap=0.3)


class _Dice:
    """Numbers and names from one random generator."""

    def __init__(self, rng: torch.Generator) -> None:
        self.rng = rng

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.rng, dtype=torch.float64))

    def number(self, low: int, high: int) -> int:
        """From low to high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.rng))

    def one_of(self, names: Sequence[str]) -> str:
        return names[self.number(0, len(names) - 1)]


def draw_scene(
    rng: torch.Generator,
    size: int = 64,
    *,
    objects: tuple[int, int] = (1, 5),
    things: Sequence[str] = THINGS,
    textures: Sequence[str] = TEXTURES,
    near: bool = False,
) -> Scene:
    """A random scene whose objects are all to be seen: at least a quarter of each is in the image and not hidden.

    Args:
        rng: all chance comes from it; on the CPU.
        size: of the image, 32 to 256 pixels; does not change what is drawn, apart from objects on the brink.
        objects: the least and the most objects; fewer where there is no room, as in a quarter of scenes of 5.
        things: the classes to draw from.
        textures: the textures to draw from.
        near: brings all objects near the camera, with little overlap, so that shapes can be told at 32×32, too.

    Raises:
        ValueError: another size, number of objects, class or texture.
        TypeError: rng that is no torch.Generator.
    """
    if not isinstance(rng, torch.Generator):
        raise TypeError(f"expected a torch.Generator; got {type(rng).__name__}")
    least, most = objects
    if not 0 <= least <= most <= MOST_OBJECTS:
        raise ValueError(f"expected 0 ≤ least ≤ most ≤ {MOST_OBJECTS} objects; got {objects}")
    for what, chosen, known in (("things", things, THINGS), ("textures", textures, TEXTURES)):
        unknown = [name for name in chosen if name not in known]
        if unknown or not chosen:
            raise ValueError(f"expected {what} of {', '.join(known)}; got {', '.join(unknown) or 'none'}")

    dice, layout = _Dice(rng), _NEAR if near else _USUAL
    # The horizon in the upper half of the image.
    camera = Camera(focal=dice.between(1.0, 1.25), horizon=dice.between(0.3, 0.42), height=dice.between(*layout.height))
    scene = Scene(
        things=_draw_things(dice, camera, layout, dice.number(least, most), things, textures),
        ground=dice.one_of(GROUNDS),
        backdrop=dice.one_of(BACKDROPS),
        light=LIGHTS[(0, 0, 1, 2)[dice.number(0, 3)]],  # half of all scenes by day
        camera=camera,
        shore=_nearest(camera) * _USUAL.reach * dice.between(1.1, 1.6),
        pattern=dice.number(0, 999),
        size=size,
    )
    return replace(scene, things=tuple(t for t, part in zip(scene.things, seen(scene), strict=True) if part >= 0.25))


def _nearest(camera: Camera) -> float:
    """Depth in metres of the nearest objects."""
    return camera.focal * camera.height / (_NEAREST - camera.horizon)


def _draw_things(
    dice: _Dice, camera: Camera, layout: _Layout, count: int, things: Sequence[str], textures: Sequence[str]
) -> tuple[Thing, ...]:
    """`count` objects on the ground before the camera, back to front, none quite behind another.

    Where there is no room after many attempts, there are fewer.
    """
    placed: list[Thing] = []
    for _ in range(20 * count):
        if len(placed) == count:
            break
        candidate = _draw_thing(dice, camera, layout.reach, dice.one_of(things), textures)
        if all(_overlap(camera, candidate, other) < layout.overlap for other in placed):
            placed.append(candidate)
    return tuple(sorted(placed, key=lambda thing: -thing.z))


def _draw_thing(dice: _Dice, camera: Camera, reach: float, name: str, textures: Sequence[str]) -> Thing:
    size, is_figure = dice.one_of(SIZES), name == "figure"
    height = dice.between(*_HEIGHTS[size]) * (_FIGURE if is_figure else 1)
    z = _nearest(camera) / dice.between(1 / reach, 1)  # evenly over the rows of the image
    x = dice.between(-0.4, 0.4) * z / camera.focal  # of the image's width, from its middle
    tilt = _TILT.get(name, 0.0) * dice.between(-1, 1)
    pose = _draw_pose(dice) if is_figure else ()
    return Thing(name, size, dice.one_of(textures), dice.one_of(COLOURS), height, x, z, tilt, pose)


def _draw_pose(dice: _Dice) -> tuple[float, ...]:
    """Arms from hanging to raised, legs from closed to a stride."""
    shoulders = [dice.between(0.2, 2.7) for _ in range(2)]
    elbows = [dice.between(-0.3, 1.2) for _ in range(2)]
    hips = [dice.between(0.0, 0.55) for _ in range(2)]
    knees = [dice.between(-0.5, 0.1) for _ in range(2)]
    return (*shoulders, *elbows, *hips, *knees)


def _overlap(camera: Camera, one: Thing, two: Thing) -> float:
    """Overlap of two objects' square frames, as a part of the smaller frame."""
    frames = []
    for thing in (one, two):
        foot, top = (camera.project(thing.x, y, thing.z, 1) for y in (0.0, thing.height))
        half = (foot[1] - top[1]) / 2
        frames.append((foot[0] - half, top[1], foot[0] + half, foot[1]))
    (a, b, c, d), (e, f, g, h) = frames
    overlap = max(0.0, min(c, g) - max(a, e)) * max(0.0, min(d, h) - max(b, f))
    return overlap / min((c - a) * (d - b), (g - e) * (h - f))
