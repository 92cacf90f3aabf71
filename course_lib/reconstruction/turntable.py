"""A toy on a turntable: things of the toy world in three dimensions, of which surface, volume and every view are known.

The toy world's objects are made of parts: all points within a radius of a point, a line or a polygon. In the plane that
gives a disc, a thick line, a rounded polygon; in space a ball, a capsule, a rounded slab. So a figure, a tree and a
ball stand on a round table. Z is up, and lengths are about a metre.
"""

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from course_lib.reconstruction.cameras import Camera, orbit
from course_lib.scenes import Thing
from course_lib.scenes.rendering import PAINTS
from course_lib.scenes.world import parts_of

BOX = ((-0.9, -0.9, -0.82), (0.9, 0.9, 0.8))  # around all of it; the table ends at its bottom
_LIGHT = F.normalize(torch.tensor([0.4, -0.5, 0.9]), dim=0)  # where it comes from; it stays, so that colours do, too
_TABLE, _TOP, _EDGE = 0.82, -0.72, 0.05  # radius of the table, height of its top, half its thickness


@dataclass(frozen=True)
class Toy:
    """The solids of a toy, by kind, so that distances to all of one kind are a few matrix products.

    Attributes:
        start, end: of E capsules' axes, (E, 3); of a ball both are its middle.
        quads: corners (Q, 4, 3) of flat convex slabs.
        radius: of the E capsules, then of the Q slabs, (E + Q,).
        colour: (1 + E + Q, 3) in [0, 1], of the table first.
        stripes: period of white stripes along Z, 0 where plain; (1 + E + Q,).
    """

    start: Tensor
    end: Tensor
    quads: Tensor
    radius: Tensor
    colour: Tensor
    stripes: Tensor

    def distances(self, X: Tensor) -> Tensor:
        """Signed distances of points (N, 3) to the table and each solid, (N, 1 + E + Q); exact outside."""
        rim = (X[:, :2].norm(dim=1) - _TABLE + _EDGE).clamp_min(0)
        table = torch.hypot(rim, X[:, 2] - _TOP + _EDGE) - _EDGE
        flat = [self._to_quad(X, quad) for quad in self.quads]
        solids = torch.cat([_to_segments(X, self.start, self.end), torch.stack(flat, 1)], 1) - self.radius
        return torch.cat([table[:, None], solids], 1)

    @staticmethod
    def _to_quad(X: Tensor, corners: Tensor) -> Tensor:
        """Distances (N,) to a flat convex polygon (n, 3): to its plane for points above it, else to its sides."""
        sides = corners.roll(-1, 0) - corners
        normal = F.normalize(torch.linalg.cross(sides[0], sides[1]), dim=0)
        outwards = torch.linalg.cross(sides, normal.expand_as(sides))
        above = ((X @ outwards.T - (corners * outwards).sum(1)) <= 0).all(1)
        to_sides = _to_segments(X, corners, corners + sides).amin(1)
        return torch.where(above, ((X - corners[0]) @ normal).abs(), to_sides)


def _to_segments(X: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Distances (N, E) of points (N, 3) to segments."""
    direction = end - start
    length = direction.square().sum(1).clamp_min(1e-12)
    from_start = X.square().sum(1, keepdim=True) - 2 * X @ start.T + start.square().sum(1)
    q = X @ direction.T - (start * direction).sum(1)
    along = (q / length).clamp(0, 1)
    return (from_start - along * (2 * q - along * length)).clamp_min(0).sqrt()


def _standing(thing: Thing, yaw: float) -> list[tuple[Tensor, float, Tensor, float]]:
    """Corners, radius, colour and stripes of a thing's parts, its foot on the table, turned by `yaw` around Z."""
    parts, _ = parts_of(thing)
    low = min(y - part.radius for part in parts for _, y in part.points)
    c, s = math.cos(yaw), math.sin(yaw)
    solids = []
    for part in parts:
        colour = PAINTS[thing.colour] * 0.8 if part.tone == "sleeve" else PAINTS.get(part.tone, PAINTS[thing.colour])
        flat = torch.tensor(part.points) * thing.height
        x, y = flat[:, 0], flat[:, 1] - low * thing.height
        depth = 0.1 * thing.height if part.tone == "ink" else 0.0  # the face is on the front of the head
        corners = torch.stack([c * x + s * depth + thing.x, s * x - c * depth + thing.z, y + _TOP], 1)
        stripes = 0.4 * thing.height if thing.texture == "striped" and part.tone == "main" else 0.0
        solids.append((corners, part.radius * thing.height, colour.flatten(), stripes))
    return solids


@functools.cache
def toy() -> Toy:
    """What stands on the turntable: a figure that waves, a tree and a striped ball, on a wooden table."""
    pose = (2.3, 0.4, 0.5, 0.9, 0.25, 0.25, 0.0, 0.0)
    figure = Thing("figure", "large", "plain", "blue", 1.45, 0.0, -0.05, pose=pose)
    tree = Thing("tree", "large", "plain", "green", 1.0, -0.45, 0.35)
    ball = Thing("disc", "small", "striped", "red", 0.42, 0.42, -0.35)
    solids = _standing(figure, math.radians(20)) + _standing(tree, 0.6) + _standing(ball, 0.0)
    capsules = [solid for solid in solids if len(solid[0]) < 3]
    quads = [solid for solid in solids if len(solid[0]) == 4]
    in_order = [(None, 0.0, PAINTS["wood"].flatten(), 0.0), *capsules, *quads]
    return Toy(
        start=torch.stack([corners[0] for corners, *_ in capsules]),
        end=torch.stack([corners[-1] for corners, *_ in capsules]),
        quads=torch.stack([corners for corners, *_ in quads]),
        radius=torch.tensor([solid[1] for solid in in_order[1:]]),
        colour=torch.stack([solid[2] for solid in in_order]),
        stripes=torch.tensor([solid[3] for solid in in_order]),
    )


def signed_distance(X: Tensor) -> Tensor:
    """Distance of points (..., 3) to the toy, negative inside; exact outside, a bound inside; (...)."""
    return toy().distances(X.reshape(-1, 3).float()).amin(1).view(X.shape[:-1])


def true_volume(n: int = 128) -> float:
    """The toy's volume, from n³ points of a lattice in its box."""
    low, high = (torch.tensor(corner) for corner in BOX)
    axes = [a + (b - a) * (torch.arange(n) + 0.5) / n for a, b in zip(low, high, strict=True)]
    plane = torch.cartesian_prod(*axes[:2])
    inside = sum(int((signed_distance(F.pad(plane, (0, 1), value=float(z))) < 0).sum()) for z in axes[2])
    return inside / n**3 * float((high - low).prod())


def draw_view(camera: Camera, samples: int = 2) -> tuple[Tensor, Tensor]:
    """The toy on white, by sphere tracing: a ray may advance by the distance to the nearest surface.

    Args:
        camera: outside of the toy.
        samples: rays along a pixel's side; their mean is the pixel.

    Returns:
        Image (3, H, W) float32 in [0, 1], and the proportion of the pixel that the toy covers, (H, W).
    """
    fine = camera.resized(camera.height * samples, camera.width * samples)
    origins, directions = (v.reshape(-1, 3).float() for v in fine.rays())
    # Of the whole ray, only what lies in the ball around the table and the toy is of interest.
    middle = -(origins * directions).sum(-1)
    half = (1.25**2 - (origins + middle[:, None] * directions).square().sum(-1)).clamp_min(0).sqrt()
    t, active, hit = (middle - half).clamp_min(0), half > 0, torch.zeros_like(middle, dtype=torch.bool)
    for _ in range(300):  # rays that graze the table take small steps; few are left by then
        rays = active.nonzero()[:, 0]
        if not len(rays):
            break
        d = signed_distance(origins[rays] + t[rays, None] * directions[rays])
        t[rays] += d
        hit[rays] |= d < 2e-3
        active[rays] = (d >= 2e-3) & (t[rays] < (middle + half)[rays])
    colours = torch.ones_like(origins)
    colours[hit] = _shade(origins[hit] + t[hit, None] * directions[hit])
    H, W = camera.height, camera.width
    image = F.avg_pool2d(colours.T.reshape(1, 3, H * samples, W * samples), samples)[0]
    covered = F.avg_pool2d(hit.float().view(1, 1, H * samples, W * samples), samples)[0, 0]
    return image.clamp(0, 1), covered


def _shade(X: Tensor) -> Tensor:
    """Colours (N, 3) of points on the surface: matt, lit by the sky and a lamp."""
    distance, index = toy().distances(X).min(1)
    normal = F.normalize(torch.stack([signed_distance(X + e) - distance for e in 2e-3 * torch.eye(3)], 1), dim=1)
    colour, period = toy().colour[index], toy().stripes[index]
    white = (period > 0) & ((X[:, 2] - _TOP) % period.clamp_min(1e-6) < period / 2)
    colour = torch.where(white[:, None], 0.95, colour)
    rings = (index == 0) & (X[:, 2] > _TOP - 0.02) & ((X[:, :2].norm(dim=1) * 6) % 1 < 0.5)
    colour = torch.where(rings[:, None], 0.8 * colour + 0.2, colour)
    light = 0.6 + 0.4 * (normal @ _LIGHT).clamp_min(0) + 0.08 * normal[:, 2]
    return (colour * light[:, None]).clamp(0, 1)


def turntable_cameras(
    n: int, size: int, *, start: float = 0.0, elevations: tuple[float, ...] = (-12, 12, 40)
) -> list[Camera]:
    """n cameras around the toy, at equal angles, by turns at several elevations.

    Args:
        n: how many, ≥ 1.
        size: of their images, in pixels.
        start: azimuth of the first, in degrees.
        elevations: in degrees.

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"expected at least one camera; got {n}")
    return [
        orbit(start + 360 * k / n, elevations[k % len(elevations)], size=size, distance=3.6, focal=1.45)
        for k in range(n)
    ]


def draw_views(cameras: list[Camera], samples: int = 2) -> tuple[Tensor, Tensor]:
    """`draw_view` of cameras with images of one size: (N, 3, H, W) and (N, H, W)."""
    drawn = [draw_view(camera, samples) for camera in tqdm(cameras, "drawing views", unit="view", delay=2, leave=False)]
    images, covered = zip(*drawn, strict=True)
    return torch.stack(images), torch.stack(covered)
