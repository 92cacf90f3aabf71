"""Pinhole cameras: how a point falls on a pixel, the ray back from a pixel, and a point from several pixels.

World and camera axes are right-handed. In the camera's frame X points to the right, Y down, Z forward. Pixel
coordinates start at the image's corner: the centre of row i, column j is (j + ½, i + ½), as everywhere in the course.
Lengths have the world's unit. After Hartley & Zisserman, *Multiple View Geometry*, 2004 (HZ).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Camera:
    """A pinhole: the world point X falls on the pixel x with  depth · (x, 1) = K (R X + t).

    Attributes:
        K: intrinsics (3, 3), upper triangular, in pixels: focal lengths, principal point (x, y), last row (0, 0, 1).
        R: rotation (3, 3) from the world's axes to the camera's; with t the extrinsics.
        t: (3,), the world's origin in the camera's frame.
        height, width: of the image, in pixels.

    Raises:
        TypeError: K, R or t that is no tensor of floats.
        ValueError: other shapes, a K with a focal length that is not positive, an R that is no rotation, no pixels.
    """

    K: Tensor
    R: Tensor
    t: Tensor
    height: int
    width: int

    def __post_init__(self) -> None:
        for name, shape in (("K", (3, 3)), ("R", (3, 3)), ("t", (3,))):
            value = getattr(self, name)
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise TypeError(f"{name}: expected a tensor of floats; got {type(value).__name__}")
            if value.shape != shape or not value.isfinite().all():
                raise ValueError(f"{name}: expected finite numbers {shape}; got {tuple(value.shape)}")
        R = self.R.double()
        orthogonal = (R @ R.T - torch.eye(3, dtype=R.dtype, device=R.device)).abs().max() < 1e-2
        if not orthogonal or torch.linalg.det(R) < 0:
            raise ValueError("R: expected a rotation, R Rᵀ = I and det R = 1")
        if not (self.K.diagonal()[:2] > 0).all() or self.height < 1 or self.width < 1:
            raise ValueError(
                f"expected focal lengths and image sides above 0; got {self.height}×{self.width}, {self.K}"
            )

    @property
    def P(self) -> Tensor:
        """The projection matrix K [R | t], (3, 4)."""
        return self.K @ torch.cat([self.R, self.t[:, None]], 1)

    @property
    def centre(self) -> Tensor:
        """Where the pinhole is in the world, −Rᵀ t, (3,)."""
        return -self.R.T @ self.t

    def project(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels and depths of world points.

        Args:
            X: (..., 3).

        Returns:
            Pixel coordinates (..., 2), NaN for a point that is not in front of the camera; depths (...), along the
            camera's axis, negative behind it.
        """
        inside = X @ self.R.T + self.t
        depth = inside[..., 2]
        x = (inside @ self.K.T)[..., :2] / torch.where(depth > 0, depth, torch.nan)[..., None]
        return x, depth

    def rays(self) -> tuple[Tensor, Tensor]:
        """The rays through the centres of all pixels: their origins and directions of length 1, (H, W, 3) each."""
        K = {"dtype": self.K.dtype, "device": self.K.device}
        y, x = torch.meshgrid(torch.arange(self.height, **K) + 0.5, torch.arange(self.width, **K) + 0.5, indexing="ij")
        pixels = torch.stack([x, y, torch.ones_like(x)], -1)
        # R X + t = depth · K⁻¹ (x, 1), so that X = centre + depth · Rᵀ K⁻¹ (x, 1).
        directions = pixels @ torch.linalg.inv(self.K).T @ self.R
        directions = directions / directions.norm(dim=-1, keepdim=True)
        return self.centre.expand_as(directions), directions

    def resized(self, height: int, width: int) -> "Camera":
        """The same camera with another number of pixels."""
        scale = torch.tensor([width / self.width, height / self.height, 1]).to(self.K)
        return replace(self, K=scale[:, None] * self.K, height=height, width=width)


def look_at(
    eye: Sequence[float] | Tensor,
    target: Sequence[float] | Tensor,
    *,
    size: int,
    focal: float,
    up: Sequence[float] = (0.0, 0.0, 1.0),
) -> Camera:
    """A camera of square images that looks from one point at another, upright.

    Args:
        eye: where it is, 3 numbers.
        target: what it sees in the middle.
        size: height and width of its images, in pixels.
        focal: focal length, in widths of the image.
        up: the direction that is up in the image, not along the axis.

    Raises:
        ValueError: eye and target are the same, or the axis points along `up`.
    """
    eye, target, up = (torch.as_tensor(v, dtype=torch.float32) for v in (eye, target, up))
    forward = torch.nn.functional.normalize(target - eye, dim=0)
    right = torch.linalg.cross(forward, up)
    if not right.norm() > 1e-6:
        raise ValueError(f"expected an axis that is not along {up.tolist()}; got {eye.tolist()} → {target.tolist()}")
    right = right / right.norm()
    R = torch.stack([right, torch.linalg.cross(forward, right), forward])
    K = torch.tensor([[focal * size, 0, size / 2], [0, focal * size, size / 2], [0, 0, 1]])
    return Camera(K, R, -R @ eye, size, size)


def orbit(
    azimuth: float,
    elevation: float,
    *,
    size: int,
    distance: float = 3.0,
    focal: float = 1.4,
    target: Sequence[float] = (0.0, 0.0, 0.0),
) -> Camera:
    """A camera on a sphere around `target`, looking at it; Z is up.

    Args:
        azimuth: angle around Z, from the X axis, in degrees.
        elevation: angle above the horizon, in degrees, within ±89.
        size: of its images, in pixels.
        distance: from the target.
        focal: focal length, in widths of the image.
        target: a point of the world.

    Raises:
        ValueError: an elevation at which "up" has no meaning.
    """
    if not -89 <= elevation <= 89:
        raise ValueError(f"expected an elevation within ±89°; got {elevation}")
    a, e = math.radians(azimuth), math.radians(elevation)
    offset = torch.tensor([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    target = torch.tensor(target, dtype=torch.float32)
    return look_at(target + distance * offset, target, size=size, focal=focal)


def triangulate(P: Tensor, x: Tensor) -> Tensor:
    """World points from their pixels in two or more views, by the linear method (HZ 12.2).

    Each view says x × (P X) = 0, two equations: x₁ p₃ᵀX = p₁ᵀX and x₂ p₃ᵀX = p₂ᵀX. The solution is the right singular
    vector of the least singular value. It is exact without noise, and with noise the best for nothing in particular.

    Args:
        P: projection matrices (V, 3, 4), V ≥ 2.
        x: pixels (V, N, 2).

    Returns:
        (N, 3); infinite for parallel rays.

    Raises:
        ValueError: other shapes, NaN, or cameras that all stand at one point: they see no depth.
    """
    V = len(P)
    if P.ndim != 3 or P.shape[1:] != (3, 4) or V < 2 or x.ndim != 3 or x.shape[::2] != (V, 2):
        raise ValueError(f"expected P (V, 3, 4) and x (V, N, 2), V ≥ 2; got {tuple(P.shape)} and {tuple(x.shape)}")
    if not x.isfinite().all():
        raise ValueError("expected finite pixels; is a point behind a camera?")
    centres = torch.linalg.solve(P[:, :, :3], -P[:, :, 3:])[..., 0]
    if (centres - centres[0]).abs().max() <= 1e-6 * (1 + centres.abs().max()):
        raise ValueError("the cameras stand at one point: depth cannot be triangulated")
    P = P / P[:, 2, :3].norm(dim=-1)[:, None, None]  # so that every view's equations weigh alike
    A = x[..., None] * P[:, None, 2:, :] - P[:, None, :2, :]  # (V, N, 2, 4)
    A = A.movedim(0, 1).flatten(1, 2)  # (N, 2V, 4)
    A = A / A.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    X = torch.linalg.svd(A)[2][:, -1]
    return X[:, :3] / X[:, 3:]


def triangulate_optimal(P: Tensor, x: Tensor, steps: int = 10) -> Tensor:
    """World points with the least squared reprojection error, which is the most likely one under Gaussian noise.

    Gauss–Newton from the linear solution: a few steps suffice. (For two views HZ 12.5 has a closed form, the roots of
    a polynomial of degree 6.)

    Args:
        P: projection matrices (V, 3, 4), V ≥ 2.
        x: pixels (V, N, 2).
        steps: of Gauss–Newton.

    Returns:
        (N, 3).

    Raises:
        ValueError: as `triangulate`.
    """
    X = triangulate(P, x)
    for _ in range(steps):
        h = torch.einsum("vij,nj->vni", P[:, :, :3], X) + P[:, None, :, 3]  # (V, N, 3)
        residual = x - h[..., :2] / h[..., 2:]
        # ∂(h₁/h₃)/∂X = (p₁ − (h₁/h₃) p₃) / h₃, likewise the second.
        J = (P[:, None, :2, :3] - (h[..., :2] / h[..., 2:])[..., None] * P[:, None, 2:, :3]) / h[..., 2:, None]
        J, r = J.movedim(0, 1).flatten(1, 2), residual.movedim(0, 1).flatten(1, 2)  # (N, 2V, 3), (N, 2V)
        H = J.mT @ J
        damping = 1e-12 * H.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None] * torch.eye(3).to(H)
        X = X + torch.linalg.solve(H + damping, (J.mT @ r[..., None]))[..., 0]
    return X
