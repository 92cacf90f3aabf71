"""From the description of a scene to its image and labels: the backdrop, the objects in front of it, and what is true.

`render` puts them together; it is at the end.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib.scenes.captions import describe
from course_lib.scenes.masks import Cutout, centres, signed_distance, without_hidden
from course_lib.scenes.world import CLASSES, KEYPOINTS, STUFF, THINGS, Scene, Thing


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
        "cloud": "FFFFFF",
        "wood": "8A5A3B",
        "skin": "F5C9A2",
        "trousers": "3E4A6B",
        "ink": "2B2233",
    }.items()
}
# Of the sky overhead, of the sky at the horizon, and what the light does to everything on the ground.
SKIES = {
    "day": (_rgb("6CB6EA"), _rgb("CBE8F8"), _rgb("FFFFFF")),
    "dusk": (_rgb("7468A8"), _rgb("FFC79B"), _rgb("E2C0CA")),
    "night": (_rgb("10183A"), _rgb("3F4F86"), _rgb("949BC4")),
}
# Small marks on the ground: side of the square that holds one, their half width and length in it, and strength.
_FLECKS = {"grass": (0.4, 0.12, 0.5, 0.35), "sand": (0.3, 0.2, 0.2, 0.25), "snow": (0.9, 0.4, 0.4, 0.07)}
HILLS_DEPTH = 80.0  # metres: where the hills stand, a card like all else


def _over(image: Tensor, paint: Tensor, alpha: Tensor) -> Tensor:
    return image + (paint - image) * alpha


def _scattered(x: Tensor, y: Tensor, pattern: int) -> tuple[Tensor, Tensor, Tensor]:
    """Marks thrown on the plane, one at a random place in each unit square: offsets to it, and a random number of it.

    Random as a hash of the square is, in integers, so that it is the same on every machine.
    """
    i, j = x.floor(), y.floor()
    h = (i.long() * 73_856_093) ^ (j.long() * 19_349_663) ^ (pattern * 83_492_791)
    h = (h ^ (h >> 13)) * 1_274_126_177
    first, second, third = (((h >> bits) & 1023).float() / 1024 for bits in (12, 22, 32))
    return x - i - 0.25 - 0.5 * first, y - j - 0.25 - 0.5 * second, third


def backdrop(scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """Everything behind the objects: sky, hills or water, and ground with the objects' shadows on it.

    Returns:
        The image (3, H, W) float32 in [0, 1]; its stuff (H, W) int64, indices into STUFF; its depth (H, W) float32,
        metres along the camera's axis, infinity for the sky.
    """
    size, camera = scene.size, scene.camera
    f, horizon = camera.focal * size, camera.horizon * size
    columns, rows = centres(0, size), centres(0, size)[:, None]
    below = (rows - horizon).clamp_min(1e-6)
    Z = f * camera.height / below  # depth of the ground, (H, 1)
    X = (columns - size / 2) * Z / f + camera.x  # (H, W)
    high, low, light = SKIES[scene.light]
    image = _sky(scene, high, low, light)
    ground = _over(_ground(scene, X, Z + camera.z), torch.zeros(3, 1, 1), _shadows(scene, X, Z + camera.z))
    land = (rows > horizon).expand(size, size)
    stuff = torch.where(land, STUFF.index(scene.ground), STUFF.index("sky"))
    depth = torch.where(land, Z, math.inf)
    if scene.backdrop == "water":
        alpha = (((Z + camera.z) / scene.shore - 1) * below + 0.5).clamp(0, 1)
        ground = _over(ground, _water(scene, X, Z + camera.z), alpha.float())
        stuff = torch.where(land & (Z + camera.z > scene.shore), STUFF.index("water"), stuff)
    haze = (Z / 60).clamp_max(1).float() * 0.3
    image = _over(image, _over(ground * light, low, haze), (rows - horizon + 0.5).clamp(0, 1).float())
    if scene.backdrop == "hills":
        away = HILLS_DEPTH - camera.z
        top, foot = _hills(scene, columns, away), horizon + f * camera.height / away
        alpha = torch.minimum(rows - top, foot - rows).add(0.5).clamp(0, 1).float()
        image = _over(image, _over(PAINTS["hills"] * light, low, 0.25 + 0.3 * (rows - top).float() / size), alpha)
        hills = (rows > top) & (rows <= foot)
        stuff, depth = torch.where(hills, STUFF.index("hills"), stuff), torch.where(hills, away, depth)
    return image.clamp(0, 1), stuff, depth.float()


def _sky(scene: Scene, high: Tensor, low: Tensor, light: Tensor) -> Tensor:
    x = centres(0, scene.size).float() / scene.size
    y = x[:, None]
    image = _over(high, low, (y / scene.camera.horizon).clamp_max(1))
    if scene.light == "night":
        dx, dy, brightness = _scattered(x / 0.1, y / 0.1, scene.pattern)
        return _over(image, PAINTS["cloud"], brightness * (2 - torch.hypot(dx, dy) / 0.06).clamp(0, 1))
    dx, dy, puff = _scattered(x / 0.45, y / 0.2, scene.pattern)
    round_, flat = torch.hypot(dx / 0.2, dy / 0.24), torch.hypot(dx.abs() - 0.14, (dy - 0.08) / 0.7) / 0.16
    cloud = (1 - torch.minimum(round_, flat)).mul(5).clamp(0, 1) * (dy < 0.16)
    not_setting = y - 0.2 * dy < 0.7 * scene.camera.horizon  # a cloud half behind the horizon looks like the sun
    return _over(image, PAINTS["cloud"] * light, 0.8 * cloud * (puff > 0.3) * not_setting)


def _ground(scene: Scene, X: Tensor, Z: Tensor) -> Tensor:
    X, Z = X.float(), Z.float()
    waves = sum(
        torch.sin(a * X + b * Z + c * scene.pattern) for a, b, c in ((1.3, 0.9, 1), (-0.7, 1.6, 2), (2.9, 2.3, 3))
    )
    cell, width, length, strength = _FLECKS[scene.ground]
    dx, dz, shade = _scattered(X / cell, Z / cell, scene.pattern)
    flecks = strength * shade * (1 - torch.hypot(dx / width, dz / length)).mul(2).clamp(0, 1)
    return PAINTS[scene.ground] * (1 + (4 / Z).clamp_max(1) * (0.03 * waves - flecks))


def _water(scene: Scene, X: Tensor, Z: Tensor) -> Tensor:
    X, Z = X.float(), Z.float()
    glint = torch.sin(40 * Z.log() + torch.sin(0.5 * X + scene.pattern))
    return PAINTS["water"] * (1 + 0.08 * glint)


def _hills(scene: Scene, columns: Tensor, away: float) -> Tensor:
    """Row of the hills' top at each column, (W,)."""
    size, camera = scene.size, scene.camera
    X = (columns - size / 2) * away / (camera.focal * size) + camera.x
    heights = 9 + 3.5 * torch.sin(X / 9 + scene.pattern) + 2 * torch.sin(X / 4.1 + 2 * scene.pattern)
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
    (rows, columns), whole = cutout.inside(scene.size)
    x, y = centres(0, scene.size)[columns], centres(0, scene.size)[rows]
    light = _over(SKIES[scene.light][2], PAINTS["cloud"], 0.5)
    up = ((cutout.origin[1] - y) / cutout.scale).float()[:, None]
    region = image[:, rows, columns]
    for tone in dict.fromkeys(part.tone for part in cutout.parts):
        alone = [part for part in cutout.parts if part.tone == tone]
        distance = (whole if len(alone) == len(cutout.parts) else signed_distance(alone, x, y)).float()
        if tone == "main":
            colour = _texture(thing, cutout, x, y)
        else:
            colour = PAINTS[thing.colour] * 0.8 if tone == "sleeve" else PAINTS[tone]
        contour = 0 if tone == "ink" else max(0.022 * cutout.scale, 0.6)  # thinner would be lost
        rim = (distance + contour + 0.5).clamp(0, 1) * 0.5
        colour = colour * (1 + 0.22 * up) * light
        region = _over(region, colour * (1 - rim), (0.5 - distance).clamp(0, 1))
    image[:, rows, columns] = region.clamp(0, 1)


def _texture(thing: Thing, cutout: Cutout, x: Tensor, y: Tensor) -> Tensor:
    """Colours (3, h, w) of an object's own paint and of the pattern on it, which turns with it."""
    paint = PAINTS[thing.colour]
    if thing.texture == "plain":
        return paint
    u, v = (x - cutout.origin[0]).float(), (y - cutout.origin[1]).float()[:, None]
    c, s = math.cos(thing.tilt), math.sin(thing.tilt)
    u, v = c * u - s * v, s * u + c * v
    period = (0.2 if thing.name == "figure" else 0.32) * cutout.scale
    across, along = ((w / period).sub((w / period).round()).abs() * period for w in (u, v))  # to the nearest line
    if thing.texture == "striped":
        inside = period / 4 - along
    elif thing.texture == "dotted":
        inside = 0.3 * period - torch.hypot(across, along)
    else:
        a, b = period / 4 - across, period / 4 - along
        inside = torch.minimum(a.abs(), b.abs()) * torch.sign(a * b)
    return _over(paint, _over(paint, PAINTS["cloud"], 0.72), (inside + 0.5).clamp(0, 1))


STUFF_SEGMENTS = 1000  # a panoptic id above it is stuff: 1000 + its class


@dataclass(frozen=True)
class Rendering:
    """An image with its labels, for N objects from back to front. Pixel coordinates start at the image's corner:
    the centre of row i, column j is (x, y) = (j + ½, i + ½).

    Attributes:
        image: (3, H, W) float32 in [0, 1].
        boxes: (N, 4) float32, (x0, y0, x1, y1) in pixels, tight around the masks: the last column is x1 − 1.
        labels: (N,) int64, indices into THINGS, and also into CLASSES.
        masks: (N, H, W) bool, what is seen of each object; disjoint.
        semantic: (H, W) int64, indices into CLASSES: things first, then stuff.
        panoptic: (H, W) int64: n + 1 on object n; STUFF_SEGMENTS + class on stuff. No 0, no void.
        keypoints: (N, K, 3) float32: x, y in pixels and visibility as in COCO: 2 seen, 1 hidden by a nearer object,
            0 outside the image or not a figure, with x = y = 0.
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


def render(scene: Scene) -> Rendering:
    """The image of a scene and its labels; objects of which too little is seen are left out of all of them."""
    scene, cutouts, masks = without_hidden(scene)
    image, stuff, depth = backdrop(scene)
    semantic = stuff + len(THINGS)
    panoptic = semantic + STUFF_SEGMENTS
    labels = torch.tensor([CLASSES.index(thing.name) for thing in scene.things], dtype=torch.int64)
    for n, (thing, cutout, mask) in enumerate(zip(scene.things, cutouts, masks, strict=True)):
        paint(image, scene, thing, cutout)
        semantic[mask], panoptic[mask], depth[mask] = labels[n], n + 1, thing.z - scene.camera.z
    return Rendering(
        image=image,
        boxes=tight_boxes(masks),
        labels=labels,
        masks=masks,
        semantic=semantic,
        panoptic=panoptic,
        keypoints=_keypoints(cutouts, panoptic, scene.size),
        depth=depth,
        camera=scene.camera.intrinsics(scene.size),
        caption=describe(scene),
    )


def tight_boxes(masks: Tensor) -> Tensor:
    """Boxes (N, 4) float32, (x0, y0, x1, y1) in pixels, around masks (N, H, W); of an empty one, zeros."""
    ends = []
    for along in (masks.any(1), masks.any(2)):  # columns, rows
        length = along.shape[1]
        ends.append((along.byte().argmax(1), length - along.flip(1).byte().argmax(1)))
    (x0, x1), (y0, y1) = ends
    return (torch.stack([x0, y0, x1, y1], 1) * masks.any(1).any(1)[:, None]).float()


def _keypoints(cutouts: list[Cutout], panoptic: Tensor, size: int) -> Tensor:
    keypoints = torch.zeros(len(cutouts), len(KEYPOINTS), 3)
    for n, cutout in enumerate(cutouts):
        for k, (x, y) in enumerate(cutout.joints):
            if 0 <= x < size and 0 <= y < size:
                nearest = int(panoptic[int(y), int(x)])
                hidden = n + 1 < nearest < STUFF_SEGMENTS
                keypoints[n, k] = torch.tensor([x, y, 1 if hidden else 2])
    return keypoints
