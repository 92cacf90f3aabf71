"""Colours and textures: the backdrop with its ground, and the objects in front of it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib.base.scenes.masks import Cutout, centres
from course_lib.base.scenes.shapes import signed_distance
from course_lib.base.scenes.world import STUFF, Scene, Thing


def _rgb(code: str) -> Tensor:
    return torch.tensor([int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)])[:, None, None]


PAINTS = {
    name: _rgb(code)
    for name, code in {
        "red": "E23B3B",
        "orange": "F58A1F",
        "yellow": "FFD530",
        "green": "23994F",
        "blue": "2E6BDC",
        "purple": "8A4BC6",
        "pink": "F67FB4",
        "hills": "7FA38B",
        "water": "5FB0C9",
        "grass": "A3CC7A",
        "sand": "EAD6A4",
        "snow": "EEF3F8",
        "wood": "8A5A3B",
        "skin": "F5C9A2",
        "trousers": "3E4A6B",
        "ink": "2B2233",
    }.items()
}
# Of the sky overhead, of the sky at the horizon, and what the light does to everything on the ground.
SKIES = {
    "day": (_rgb("6CB6EA"), _rgb("DDF1FB"), _rgb("FFFFFF")),
    "dusk": (_rgb("7468A8"), _rgb("FFC089"), _rgb("FFD9C4")),
    "night": (_rgb("10183A"), _rgb("3F4F86"), _rgb("8F9CCB")),
}
HILLS_DEPTH = 80.0  # metres: where the hills stand, a card like all else


@dataclass(frozen=True)
class Backdrop:
    """Everything behind the objects.

    Attributes:
        image: (3, H, W) float32 in [0, 1].
        stuff: (H, W) int64, indices into STUFF.
        depth: (H, W) float32, metres along the camera's axis; infinity for the sky.
    """

    image: Tensor
    stuff: Tensor
    depth: Tensor


def _over(image: Tensor, paint: Tensor, alpha: Tensor) -> Tensor:
    return image + (paint - image) * alpha


def _noise(x: Tensor, y: Tensor, grain: float) -> Tensor:
    """A number in [0, 1) for each pair of integers, as good as random; the fraction of a large sine."""
    return (torch.sin(x * 12.9898 + y * 78.233 + grain * 3.17) * 43758.5453).frac().abs()


def _flecks(x: Tensor, y: Tensor, cell: float, length: float, width: float, grain: float) -> Tensor:
    """1 in small ellipses, one at a random place in each cell of a grid, else 0."""
    i, j = (x / cell).floor(), (y / cell).floor()
    across = 0.2 + 0.6 * _noise(i, j, grain)
    along = 0.2 + 0.6 * _noise(i, j, grain + 0.5)
    return (torch.hypot((x / cell - i - across) / length, (y / cell - j - along) / width) < 1).float()


def backdrop(scene: Scene) -> Backdrop:
    """Sky, hills or water, and ground, with the objects' shadows on it."""
    size, camera = scene.size, scene.camera
    f, horizon = camera.focal * size, camera.horizon * size
    columns, rows = centres(0, size), centres(0, size)[:, None]
    below = (rows - horizon).clamp_min(1e-6)
    Z = f * camera.height / below  # depth of the ground, (H, 1)
    X = (columns - size / 2) * Z / f + camera.x  # (H, W)
    high, low, light = SKIES[scene.light]
    image = _sky(scene, high, low)
    ground = _over(_ground(scene, X, Z + camera.z), torch.zeros(3, 1, 1), _shadows(scene, X, Z + camera.z))
    land = (rows > horizon).expand(size, size)
    stuff = torch.where(land, STUFF.index(scene.ground), STUFF.index("sky"))
    depth = torch.where(land, Z, math.inf)
    if scene.backdrop == "water":
        alpha = (((Z + camera.z) / scene.shore - 1) * below + 0.5).clamp(0, 1)
        ground = _over(ground, _water(scene, X, Z + camera.z), alpha.float())
        stuff = torch.where(land & (Z + camera.z > scene.shore), STUFF.index("water"), stuff)
    haze = (Z / 60).clamp_max(1).float() * 0.5
    image = _over(image, _over(ground * light, low, haze), (rows - horizon + 0.5).clamp(0, 1).float())
    if scene.backdrop == "hills":
        away = HILLS_DEPTH - camera.z
        top, foot = _hills(scene, columns, away), horizon + f * camera.height / away
        alpha = torch.minimum(rows - top, foot - rows).add(0.5).clamp(0, 1).float()
        image = _over(image, _over(PAINTS["hills"] * light, low, 0.25 + 0.3 * (rows - top).float() / size), alpha)
        hills = (rows > top) & (rows <= foot)
        stuff, depth = torch.where(hills, STUFF.index("hills"), stuff), torch.where(hills, away, depth)
    return Backdrop(image.clamp(0, 1), stuff, depth.float())


def _sky(scene: Scene, high: Tensor, low: Tensor) -> Tensor:
    size = scene.size
    rows, columns = centres(0, size).float()[:, None] / size, centres(0, size).float() / size
    image = _over(high, low, (rows / scene.camera.horizon).clamp_max(1))
    if scene.light == "night":
        return _over(image, torch.ones(3, 1, 1), 0.8 * _flecks(columns, rows, 0.11, 0.07, 0.07, scene.grain))
    clouds = _flecks(columns, rows, 0.37, 0.42, 0.14, scene.grain)
    return _over(image, torch.ones(3, 1, 1), 0.4 * clouds)


def _ground(scene: Scene, X: Tensor, Z: Tensor) -> Tensor:
    paint = PAINTS[scene.ground]
    X, Z = X.float(), Z.float()
    phases = [scene.grain * k % 6.283 for k in (1.0, 1.7, 2.3)]
    waves = sum(torch.sin(a * X + b * Z + p) for a, b, p in zip((1.3, -0.7, 2.9), (0.9, 1.6, 2.3), phases, strict=True))
    fade = (4 / Z).clamp_max(1)
    flecks = _flecks(X, Z.expand_as(X), 0.45, 0.16, 0.3, scene.grain)
    return paint * (1 + 0.025 * waves * fade - 0.16 * flecks * fade)


def _water(scene: Scene, X: Tensor, Z: Tensor) -> Tensor:
    X, Z = X.float(), Z.float()
    glint = torch.sin(40 * Z.log() + torch.sin(0.5 * X + scene.grain))
    return PAINTS["water"] * (1 + 0.08 * glint)


def _hills(scene: Scene, columns: Tensor, away: float) -> Tensor:
    """Row of the hills' top at each column, (W,)."""
    size, camera = scene.size, scene.camera
    X = (columns - size / 2) * away / (camera.focal * size) + camera.x
    heights = 9 + 3.5 * torch.sin(X / 9 + scene.grain) + 2 * torch.sin(X / 4.1 + 2 * scene.grain)
    return camera.horizon * size + camera.focal * size * (camera.height - heights) / away


def _shadows(scene: Scene, X: Tensor, Z: Tensor) -> Tensor:
    shade = torch.zeros_like(X)
    for thing in scene.things:
        away = torch.hypot((X - thing.x) / (0.5 * thing.height), (Z - thing.z) / (0.22 * thing.height))
        shade = torch.maximum(shade, 0.38 * (1.25 - away).mul(2).clamp(0, 1))
    return shade.float()


def paint(image: Tensor, scene: Scene, thing: Thing, cutout: Cutout) -> None:
    """Paint an object into `image`, (3, H, W) in [0, 1], in place; edges are smoothed by their distance.

    Each of its tones is a layer with a dark contour; lit from above.
    """
    (rows, columns), own = cutout.window(scene.size)
    x, y = cutout.x[own[1]], cutout.y[own[0]]
    parts = cutout.outline.parts
    light = _over(SKIES[scene.light][2], torch.ones(3, 1, 1), 0.4)
    up = ((cutout.outline.origin[1] - y) / cutout.outline.scale).float()[:, None]
    region = image[:, rows, columns]
    for tone in dict.fromkeys(part.tone for part in parts):
        alone = [part for part in parts if part.tone == tone]
        distance = cutout.distance[own] if len(alone) == len(parts) else signed_distance(alone, x, y)
        distance = distance.float()
        colour = _texture(thing, cutout, x, y) if tone == "main" else _tone(tone, thing)
        contour = min(max(0.045 * cutout.outline.scale, 0.7), 3.0) * (0 if tone == "ink" else 1)
        rim = (distance + contour + 0.5).clamp(0, 1) * 0.5
        colour = colour * (1 + 0.22 * up) * light
        region = _over(region, colour * (1 - rim), (0.5 - distance).clamp(0, 1))
    image[:, rows, columns] = region.clamp(0, 1)


def _tone(tone: str, thing: Thing) -> Tensor:
    return PAINTS[thing.colour] * 0.8 if tone == "sleeve" else PAINTS[tone]


def _texture(thing: Thing, cutout: Cutout, x: Tensor, y: Tensor) -> Tensor:
    """Colours (3, h, w) of an object's own paint and of the pattern on it, which turns with it."""
    paint = PAINTS[thing.colour]
    if thing.texture == "plain":
        return paint
    u, v = ((x - cutout.outline.origin[0]).float(), (y - cutout.outline.origin[1]).float()[:, None])
    c, s = math.cos(thing.tilt), math.sin(thing.tilt)
    u, v = c * u - s * v, s * u + c * v
    period = (0.2 if thing.name == "figure" else 0.32) * cutout.outline.scale
    across, along = ((w / period).sub((w / period).round()).abs() * period for w in (u, v))  # to the nearest line
    if thing.texture == "striped":
        inside = period / 4 - along
    elif thing.texture == "dotted":
        inside = 0.3 * period - torch.hypot(across, along)
    else:
        a, b = period / 4 - across, period / 4 - along
        inside = torch.minimum(a.abs(), b.abs()) * torch.sign(a * b)
    return _over(paint, _over(paint, torch.ones(3, 1, 1), 0.72), (inside + 0.5).clamp(0, 1))
