"""Radiance fields: a density and a colour at every point of space, and the pictures that light makes of them.

A ray gathers colour on its way: C = Σ T_i (1 − e^(−σ_i δ_i)) c_i, with T_i = e^(−Σ_{j<i} σ_j δ_j) what is left of the
light (Max 1995; Mildenhall et al. 2020, NeRF). Two fields: a grid of voxels with trilinear interpolation (after
Plenoxels, Fridovich-Keil et al. 2022, and DVGO, Sun et al. 2022), and NeRF's network.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.base.loop import descend
from course_lib.base.sampling import evaluating
from course_lib.reconstruction.cameras import Camera
from course_lib.reconstruction.views import Box, Views

Field = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def ray_weights(sigma: Tensor, delta: Tensor) -> Tensor:
    """How much each piece of a ray contributes to its colour.

    Exact where the density is constant in each piece, whatever its length.

    Args:
        sigma: densities (..., S), ≥ 0, per unit of length.
        delta: lengths (..., S), ≥ 0.

    Returns:
        (..., S), ≥ 0; they sum to 1 − e^(−Σ σ δ) ≤ 1, and the rest is the light from behind.
    """
    absorbed = sigma * delta
    T = torch.exp(-(absorbed.cumsum(-1) - absorbed))  # transmittance up to the piece
    return T * -torch.expm1(-absorbed)


def enter_and_leave(origins: Tensor, directions: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave a box, as lengths (N,) from their origins; equal for rays that miss it.

    Args:
        origins, directions: (N, 3), directions of length 1.
        box: two opposite corners.
    """
    low, high = (torch.tensor(corner).to(origins) for corner in box)
    inverse = 1 / torch.where(directions.abs() < 1e-9, 1e-9, directions)
    a, b = (low - origins) * inverse, (high - origins) * inverse
    near = torch.minimum(a, b).amax(-1).clamp_min(0)
    return near, torch.maximum(torch.maximum(a, b).amin(-1), near)


def sample_rays(near: Tensor, far: Tensor, n: int, rng: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """A place in each of n equal pieces of rays, and the pieces' lengths.

    Args:
        near, far: (N,).
        n: pieces.
        rng: draws places in the pieces, on its own device, so that training sees all of them; None: their middles.

    Returns:
        t (N, n), increasing, and delta (N, n).
    """
    at = torch.full((len(near), n), 0.5, device=near.device)
    if rng is not None:
        at = torch.rand(len(near), n, generator=rng, device=rng.device).to(near.device)
    delta = ((far - near) / n)[:, None]
    return near[:, None] + delta * (torch.arange(n, device=near.device) + at).to(near), delta.expand(-1, n)


def render_rays(field: "VoxelGrid | RadianceMLP", origins: Tensor, directions: Tensor, n: int,
                rng: torch.Generator | None = None, background: float = 1.0) -> Tensor:  # fmt: skip
    """The colours (N, 3) of rays.

    Args:
        field: gives densities (M,) and colours (M, 3) for points (M, 3) and directions (M, 3); its `box` bounds it and
            its `occupied(points)` tells where to ask at all.
        origins, directions: (N, 3).
        n: pieces of each ray.
        rng: see `sample_rays`.
        background: the brightness behind everything.
    """
    near, far = enter_and_leave(origins, directions, field.box)
    t, delta = sample_rays(near, far, n, rng)
    X = origins[:, None] + t[..., None] * directions[:, None]
    asked = field.occupied(X) & (delta > 0)
    density, colour = field(X[asked], directions[:, None].expand_as(X)[asked])
    # A network under autocast answers in bfloat16; the sums along rays need more digits.
    sigma = torch.zeros_like(t).masked_scatter(asked, density.to(t))
    c = torch.zeros_like(X).masked_scatter(asked[..., None].expand_as(X), colour.to(X))
    weights = ray_weights(sigma, delta)
    return (weights[..., None] * c).sum(1) + background * (1 - weights.sum(1, keepdim=True))


class VoxelGrid(nn.Module):
    """Density and colour at the corners of n×n×n cells, in between by trilinear interpolation.

    Args:
        box: two opposite corners of what it describes.
        n: corners along each side, ≥ 2.
        occupancy: (m, m, m) bool: which cells of an equal division of the box may hold anything; None: all.

    Raises:
        ValueError: n below 2, an empty box, or an occupancy of another shape, or with nothing in it.
    """

    def __init__(self, box: Box, n: int, occupancy: Tensor | None = None) -> None:
        super().__init__()
        low, high = torch.tensor(box)
        if n < 2 or not (low < high).all():
            raise ValueError(f"expected n ≥ 2 and a box with low < high; got {n}, {box}")
        occupancy = torch.ones(1, 1, 1, dtype=torch.bool) if occupancy is None else occupancy
        if occupancy.ndim != 3 or occupancy.dtype != torch.bool or not occupancy.any():
            raise ValueError(f"expected a bool occupancy (m, m, m) that is not empty; got {tuple(occupancy.shape)}")
        self.box, self.n = box, n
        self.values = nn.Parameter(torch.zeros(n**3, 4))  # of each corner: density and colour, before their ranges
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.register_buffer("occupancy", occupancy)

    def occupied(self, X: Tensor) -> Tensor:
        """Which points (..., 3) lie in occupied cells, (...) bool."""
        m = self.occupancy.shape[0]
        i, j, k = (((X - self.low) / (self.high - self.low)) * m).long().clamp(0, m - 1).unbind(-1)
        return self.occupancy[i, j, k]

    def corners(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Of points (M, 3): the numbers of the 8 corners around them, and their weights, (M, 8) each."""
        n = self.n
        u = ((X - self.low) / (self.high - self.low)).clamp(0, 1) * (n - 1)
        cell = u.detach().floor().clamp_max(n - 2)
        f = torch.stack([1 - (u - cell), u - cell], -1)  # (M, 3, 2)
        weights = (f[:, 0, :, None, None] * f[:, 1, None, :, None] * f[:, 2, None, None, :]).flatten(1)
        step = torch.arange(2, device=X.device)
        offsets = (step[:, None, None] * n * n + step[:, None] * n + step).flatten()
        i, j, k = cell.long().unbind(-1)
        return ((i * n + j) * n + k)[:, None] + offsets, weights

    def forward(self, X: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Densities (M,) and colours (M, 3) at points (M, 3); the directions do not matter."""
        corners, weights = self.corners(X)
        values = F.embedding_bag(corners, self.values, per_sample_weights=weights, mode="sum")
        return 30 * F.softplus(values[:, 0] - 2), torch.sigmoid(values[:, 1:])

    @torch.no_grad()
    def refined(self, n: int) -> "VoxelGrid":
        """The same field on a grid of another number of corners."""
        finer = VoxelGrid(self.box, n, self.occupancy).to(self.values)
        cube = self.values.T.reshape(1, 4, self.n, self.n, self.n)
        finer.values.copy_(F.interpolate(cube, (n, n, n), mode="trilinear", align_corners=True)[0].flatten(1).T)
        return finer


def positional_encoding(x: Tensor, frequencies: int) -> Tensor:
    """x, then sin(2ᵏπx) and cos(2ᵏπx) for k < L (NeRF's equation 4, and x before it); (..., d) → (..., d (2L + 1))."""
    angles = x[..., None, :] * (math.pi * 2.0 ** torch.arange(frequencies, device=x.device).to(x))[:, None]
    return torch.cat([x, torch.stack([angles.sin(), angles.cos()], -2).flatten(-3)], -1)


class RadianceMLP(nn.Module):
    """NeRF's network, smaller: density from the place alone, colour from place and direction.

    Args:
        box: two opposite corners of what it describes.
        frequencies: L of the place's encoding; 0 is none.
        width: of the hidden layers; the paper has 256.
        depth: how many of them; the paper has 8.
        occupancy: as of `VoxelGrid`.
    """

    def __init__(
        self, box: Box, frequencies: int = 8, width: int = 128, depth: int = 4, occupancy: Tensor | None = None
    ) -> None:
        super().__init__()
        self.box, self.frequencies = box, frequencies
        occupancy = torch.ones(1, 1, 1, dtype=torch.bool) if occupancy is None else occupancy
        low, high = torch.tensor(box)
        for name, value in (("low", low), ("high", high), ("occupancy", occupancy)):
            self.register_buffer(name, value)
        sizes = [3 * (2 * frequencies + 1), *[width] * depth]
        layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
        self.trunk = nn.Sequential(*layers)
        self.density = nn.Linear(width, 1)
        self.colour = nn.Sequential(nn.Linear(width + 3 * 5, width // 2), nn.ReLU(), nn.Linear(width // 2, 3))

    occupied = VoxelGrid.occupied

    def forward(self, X: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Densities (M,) and colours (M, 3) at points (M, 3), seen along directions (M, 3) of length 1."""
        place = 2 * (X - self.low) / (self.high - self.low) - 1
        h = self.trunk(positional_encoding(place, self.frequencies))
        sigma = 30 * F.softplus(self.density(h)[:, 0] - 2)
        return sigma, torch.sigmoid(self.colour(torch.cat([h, positional_encoding(directions, 2)], 1)))


@dataclass(frozen=True)
class Rays:
    """All rays of some views, for `Loop`: `rays[indices]` gives origins, directions and colours, (B, 3) each."""

    origins: Tensor
    directions: Tensor
    colours: Tensor

    @classmethod
    def of(cls, views: Views) -> "Rays":
        """Every pixel of the views."""
        origins, directions = zip(*(camera.rays() for camera in views.cameras), strict=True)
        parts = (torch.stack(origins), torch.stack(directions), views.images.movedim(1, -1))
        return cls(*(part.reshape(-1, 3) for part in parts))

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.origins[index], self.directions[index], self.colours[index]


def radiance_step(
    field: nn.Module, optimiser: torch.optim.Optimizer, n: int, rng: torch.Generator
) -> Callable[[tuple[Tensor, Tensor, Tensor]], dict[str, Tensor]]:
    """A step for `Loop` on `Rays`: the mean squared error of the colours.

    Args:
        field: as of `render_rays`.
        optimiser: of the field.
        n: pieces of a ray.
        rng: draws the places on the rays.
    """

    def step(batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        origins, directions, colours = batch
        loss = F.mse_loss(render_rays(field, origins, directions, n, rng), colours)
        descend(loss, optimiser)
        return {"loss": loss.detach()}

    return step


@torch.no_grad()
def render_field(field: nn.Module, camera: Camera, n: int = 96, rays: int = 4096) -> Tensor:
    """The image (3, H, W) in [0, 1] that a camera sees of a field.

    Args:
        field: as of `render_rays`.
        camera: outside of the field's box or in it.
        n: pieces of a ray.
        rays: at a time.
    """
    device = next(field.parameters()).device
    origins, directions = (v.reshape(-1, 3).to(device) for v in camera.rays())
    parts = zip(origins.split(rays), directions.split(rays), strict=True)
    with evaluating(field):
        colours = torch.cat([render_rays(field, o, d, n) for o, d in parts])
    return colours.T.reshape(3, camera.height, camera.width).clamp(0, 1)


def psnr(image: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, of values in [0, 1]: 10 log₁₀ (1 / mean squared error)."""
    return float(-10 * torch.log10((image - truth).square().mean()))


def mean_psnr(draw: Callable[[Camera], Tensor], views: Views) -> float:
    """The mean of the views' PSNR in dB, as papers report it."""
    scores = [psnr(draw(camera).cpu(), image) for camera, image in zip(views.cameras, views.images, strict=True)]
    return sum(scores) / len(scores)
