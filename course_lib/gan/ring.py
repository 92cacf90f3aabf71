"""A ring of Gaussians in the plane: the smallest data on which mode collapse is seen, and counted."""

import math

import torch
from torch import Tensor, nn

from course_lib.gan.networks import check_floats

MODES, RADIUS, STD = 8, 2.0, 0.02  # of Metz et al. 2017, "Unrolled GAN", appendix A


def ring_centres(modes: int = MODES, radius: float = RADIUS) -> Tensor:
    """The centres (modes, 2) of Gaussians at equal distances on a circle, the first one to the right, float32.

    Args:
        modes: how many.
        radius: of the circle.

    Raises:
        ValueError: fewer than one mode.
    """
    if modes < 1:
        raise ValueError(f"a ring needs at least one mode; got {modes}")
    angles = 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes
    return (radius * torch.stack([angles.cos(), angles.sin()], 1)).float()


def ring(
    n: int, modes: int = MODES, radius: float = RADIUS, std: float = STD, rng: torch.Generator | None = None
) -> Tensor:
    """n points (n, 2) of the mixture, float32, on the device of `rng`; every mode has the same weight.

    Args:
        n: how many.
        modes: Gaussians on the ring.
        radius: of the ring.
        std: standard deviation of each Gaussian.
        rng: None: torch's own.

    Raises:
        ValueError: no points, fewer than one mode, a negative std.
    """
    if n < 1 or std < 0:
        raise ValueError(f"expected n ≥ 1 and std ≥ 0; got {n} and {std}")
    device = None if rng is None else rng.device
    which = torch.randint(modes, (n,), generator=rng, device=device)
    return ring_centres(modes, radius).to(device)[which] + std * torch.randn(n, 2, generator=rng, device=device)


def mode_proportions(samples: Tensor, centres: Tensor, std: float = STD) -> Tensor:
    """The proportion (modes,), float64, of all samples that lie at each mode: within 3 std, and at no nearer one.

    Srivastava et al. 2017 ("VEEGAN", section 4.1) call a mode covered as soon as one sample lies there, even of
    thousands; proportions tell more. Of true samples, 98.9 % lie at a mode: 1 − e^(−9/2).

    Args:
        samples: points (n, 2).
        centres: of the modes, (modes, 2), as `ring_centres` gives them.
        std: standard deviation of each mode.

    Raises:
        ValueError: other shapes, no points, or points that are not numbers.
    """
    if samples.ndim != 2 or samples.shape[1] != centres.shape[-1] or not len(samples) or not samples.isfinite().all():
        raise ValueError(f"expected finite points (n, {centres.shape[-1]}), n ≥ 1; got {tuple(samples.shape)}")
    distance, nearest = torch.cdist(samples.double(), centres.to(samples.device).double()).min(1)
    counts = nearest[distance <= 3 * std].bincount(minlength=len(centres))
    return counts.double() / len(samples)


class PointGenerator(nn.Module):
    """Noise (B, z_dim) → points (B, 2), anywhere in the plane: two hidden layers of ReLU."""

    classes = None

    def __init__(self, z_dim: int = 16, hidden: int = 128) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.layers = nn.Sequential(
            nn.Linear(z_dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2)
        )

    def forward(self, z: Tensor) -> Tensor:
        """Points.

        Raises:
            ValueError: z of another shape or no z.
        """
        check_floats(z, "z", self.z_dim)
        return self.layers(z.to(self.layers[0].weight.dtype))


class PointDiscriminator(nn.Module):
    """Points (B, 2) → logits (B,): two hidden layers of leaky ReLU."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits.

        Raises:
            ValueError: points not in the plane, or none.
        """
        check_floats(x, "points", 2)
        return self.layers(x.to(self.layers[0].weight.dtype)).squeeze(1)
