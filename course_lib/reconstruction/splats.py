"""3D Gaussian splatting in plain PyTorch (Kerbl et al. 2023): a scene as coloured, transparent Gaussian blobs.

Each blob is projected to an ellipse in the image (Zwicker et al. 2001, EWA splatting), all are sorted by depth, and
each pixel lays them over each other from front to back, by the same sum as along a ray of a radiance field. As in the
paper this is done in tiles, so that a pixel meets only the blobs nearby; the tiles come one after the other.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.base import runtime, zoo
from course_lib.base.loop import descend
from course_lib.reconstruction.cameras import Camera
from course_lib.reconstruction.views import Views

BLUR = 0.3  # variance in pixels that is added to every ellipse, so that none falls between pixels (as in the paper)
MOST_OPAQUE = 0.99  # as in the paper
FAINTEST = 1 / 255  # below it a blob is not drawn (as in the paper)
TILE = 16  # side in pixels (as in the paper)
NEAR = 0.05  # depth before which blobs are left out


def rotations(q: Tensor) -> Tensor:
    """Rotation matrices (N, 3, 3) of quaternions (N, 4), (w, x, y, z) of any length but 0."""
    w, x, y, z = F.normalize(q, dim=1).unbind(1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def covariances(q: Tensor, scales: Tensor) -> Tensor:
    """Σ = R S Sᵀ Rᵀ (N, 3, 3), the paper's equation 6, which is a covariance whatever the optimiser does.

    Args:
        q: quaternions (N, 4).
        scales: standard deviations along the axes (N, 3), > 0.
    """
    RS = rotations(q) * scales[:, None]
    return RS @ RS.mT


def project(means: Tensor, Sigma: Tensor, camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussians in space as Gaussians in the image, the paper's equation 5: Σ' = J W Σ Wᵀ Jᵀ.

    J is the derivative of the projection at the mean, W the rotation R of the camera.

    Args:
        means: (N, 3).
        Sigma: (N, 3, 3).
        camera: see Camera.

    Returns:
        Means (N, 2) and covariances (N, 2, 2) in pixels, and depths (N,); all of them in front of the camera.
    """
    K, R = camera.K.to(means), camera.R.to(means)
    X, Y, Z = (means @ R.T + camera.t.to(means)).unbind(1)
    fx, fy, zero = K[0, 0], K[1, 1], torch.zeros_like(Z)
    J = torch.stack([fx / Z, zero, -fx * X / Z**2, zero, fy / Z, -fy * Y / Z**2], 1).view(-1, 2, 3)
    JW = J @ R
    x = torch.stack([fx * X / Z + K[0, 2], fy * Y / Z + K[1, 2]], 1)
    return x, JW @ Sigma @ JW.mT, Z


def splat(
    x: Tensor,
    Sigma: Tensor,
    opacity: Tensor,
    colour: Tensor,
    height: int,
    width: int,
    background: float = 1.0,
) -> Tensor:
    """Lays Gaussians over each other, the first in front; tile by tile, each with the blobs that reach it.

    Args:
        x: means (N, 2) in pixels, from front to back.
        Sigma: covariances (N, 2, 2), in pixels².
        opacity: (N,) in [0, 1], at the means. Where it has fallen below 1/255 a blob ends, as in the paper.
        colour: (N, 3) in [0, 1].
        height, width: of the image.
        background: the brightness behind all.

    Returns:
        (3, H, W).
    """
    with torch.no_grad():  # opacity · e^(−q/2) ≥ 1/255 inside of an ellipse; this is the box around it
        q = 2 * (opacity / FAINTEST).clamp_min(1e-12).log()
        reach = (q.clamp_min(0)[:, None] * Sigma.diagonal(dim1=1, dim2=2)).sqrt()
        low, high = x - reach, torch.where(q[:, None] > 0, x + reach, -torch.inf)
    rows = []
    for top in range(0, height, TILE):
        bottom, tiles = min(top + TILE, height), []
        in_row = (high[:, 1] > top) & (low[:, 1] < bottom)
        for left in range(0, width, TILE):
            right = min(left + TILE, width)
            n = (in_row & (high[:, 0] > left) & (low[:, 0] < right)).nonzero()[:, 0]
            columns, lines = (torch.arange(*ends).to(x) + 0.5 for ends in ((left, right), (top, bottom)))
            tiles.append(_tile(columns, lines, x[n], Sigma[n], opacity[n], colour[n], background))
        rows.append(torch.cat(tiles, 2))
    return torch.cat(rows, 1)


def _tile(
    columns: Tensor,
    lines: Tensor,
    x: Tensor,
    Sigma: Tensor,
    opacity: Tensor,
    colour: Tensor,
    background: float,
) -> Tensor:
    """`splat` for the pixels (h,) × (w,), with every blob at every pixel; (3, h, w)."""
    if not len(x):
        return columns.new_full((3, len(lines), len(columns)), background)
    a, b, c = Sigma[:, 0, 0], Sigma[:, 0, 1], Sigma[:, 1, 1]
    determinant = (a * c - b * b).clamp_min(1e-12)
    dx, dy = columns - x[:, :1], lines - x[:, 1:]  # (N, w), (N, h)
    # ½ dᵀ Σ⁻¹ d, from rows, columns and their product.
    along_x = 0.5 * dx.square() * (c / determinant)[:, None]
    along_y = 0.5 * dy.square() * (a / determinant)[:, None]
    mixed = (dy * (b / determinant)[:, None])[:, :, None] * dx[:, None]
    power = along_x[:, None] + along_y[:, :, None] - mixed  # (N, h, w)
    alpha = opacity[:, None, None] * torch.exp(-power)
    alpha = torch.where(alpha < FAINTEST, 0, alpha.clamp_max(MOST_OPAQUE))
    absorbed = -torch.log1p(-alpha)
    behind = absorbed.cumsum(0)
    weights = alpha * torch.exp(absorbed - behind)
    return torch.einsum("nk,nhw->khw", colour, weights) + background * torch.exp(-behind[-1])


class Splats(nn.Module):
    """N Gaussian blobs.

    Args:
        n: how many, ≥ 1.

    Attributes:
        means: (N, 3).
        log_scales: (N, 3), of the standard deviations along the axes.
        quaternions: (N, 4), of the axes.
        opacity: (N,), before the sigmoid.
        colour: (N, 3), before the sigmoid.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        if n < 1:
            raise ValueError(f"expected at least one splat; got {n}")
        self.means = nn.Parameter(torch.zeros(n, 3))
        self.log_scales = nn.Parameter(torch.full((n, 3), -3.0))
        self.quaternions = nn.Parameter(torch.tensor([1.0, 0, 0, 0]).repeat(n, 1))
        self.opacity = nn.Parameter(torch.zeros(n))
        self.colour = nn.Parameter(torch.zeros(n, 3))

    @classmethod
    @torch.no_grad()
    def at(cls, points: Tensor, scale: float) -> "Splats":
        """Grey, round blobs at points (N, 3), half transparent, with a standard deviation of `scale`."""
        splats = cls(len(points))
        splats.means.copy_(points)
        splats.log_scales.fill_(torch.tensor(scale).log())
        return splats

    def forward(self, camera: Camera, background: float = 1.0) -> Tensor:
        """The image (3, H, W) that a camera sees; blobs that are not before it are left out."""
        with runtime.no_autocast(self.means.device):  # places in pixels need more digits than bfloat16 has
            return self._draw(camera, background)

    def _draw(self, camera: Camera, background: float) -> Tensor:
        R, t = camera.R.to(self.means), camera.t.to(self.means)
        depth = (self.means @ R.T + t)[:, 2].detach()
        order = depth.argsort()
        order = order[depth[order] > NEAR]
        if not len(order):
            return torch.full((3, camera.height, camera.width), background).to(self.means)
        Sigma = covariances(self.quaternions[order], self.log_scales[order].exp())
        x, flat, _ = project(self.means[order], Sigma, camera)
        flat = flat + BLUR * torch.eye(2).to(flat)
        opacity, colour = self.opacity[order].sigmoid(), self.colour[order].sigmoid()
        return splat(x, flat, opacity, colour, camera.height, camera.width, background)

    def groups(self) -> list[dict]:
        """Parameters for Adam, each kind with its learning rate; for scenes of a size of about 2."""
        rates = {"means": 8e-3, "log_scales": 4e-2, "quaternions": 4e-2, "opacity": 0.1, "colour": 8e-2}
        return [{"params": [getattr(self, name)], "lr": rate} for name, rate in rates.items()]


class Pictures:
    """Views for `Loop`, one at a time: `pictures[index]` gives the index and the picture, (1,) and (1, 3, H, W)."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return index, self.views.images[index]


def splat_step(
    splats: Splats, optimiser: torch.optim.Optimizer, cameras: list[Camera]
) -> Callable[[tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """A step for `Loop` on `Pictures`: mean squared error of whole pictures.

    The paper has an absolute error and SSIM; for PSNR on small pictures the square is the shorter way.
    """

    def step(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        index, pictures = batch
        drawn = torch.stack([splats(cameras[i]) for i in index.tolist()])
        loss = F.mse_loss(drawn, pictures)
        descend(loss, optimiser)
        return {"loss": loss.detach()}

    return step


zoo.register("splats_turntable", lambda n=800: Splats(n))
