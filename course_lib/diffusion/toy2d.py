"""Data so simple that all about it is known: Gaussian mixtures, and a spiral of points in the plane.

For a mixture the best possible ε_θ has a closed form, so whatever a sampler gets wrong is its own fault. In the plane
everything can be drawn: `PointNetwork` denoises points.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.base.layers import timestep_embedding
from course_lib.diffusion.process import Schedule


class GaussianMixture:
    """X_0 ~ Σ_k w_k N(m_k, C_k) in d dimensions, and the optimal ε*(x, t) = E[ε | X_t = x], which is itself a model.

    X_t is a mixture too, of N(√ᾱ_t m_k, ᾱ_t C_k + (1 − ᾱ_t) I), and ε* = −√(1 − ᾱ_t) ∇ log p_t(x) (Vincent 2011).

    Args:
        weights: (K,), positive; divided by their sum.
        means: (K, d), of the same float type and on the same device.
        covariances: (K, d, d), as the means; symmetric and positive semi-definite.
        schedule: of the forward process.

    Raises:
        ValueError: shapes that do not fit, weights that are not positive, or matrices that are no covariances.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor, schedule: Schedule) -> None:
        K, d = means.shape if means.ndim == 2 else (0, 0)
        if weights.shape != (K,) or covariances.shape != (K, d, d) or not K or not (weights > 0).all():
            raise ValueError(
                "expected weights (K,) > 0, means (K, d) and covariances (K, d, d); got "
                f"{tuple(weights.shape)}, {tuple(means.shape)}, {tuple(covariances.shape)}"
            )
        eigenvalues, V = torch.linalg.eigh(covariances)
        rounding, skew = 1e-5 * covariances.abs().amax((1, 2)), (covariances - covariances.mT).abs().amax((1, 2))
        if (skew > rounding).any() or (eigenvalues[:, 0] < -rounding).any():
            raise ValueError("expected symmetric covariances without negative eigenvalues")
        self.weights, self.means, self.covariances = weights / weights.sum(), means, covariances
        self.roots = V * eigenvalues.clamp_min(0).sqrt()[:, None]
        self.schedule = schedule

    def sample(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """n draws (n, d) of X_0; rng is on the means' device, None is torch's own."""
        chosen = torch.multinomial(self.weights, n, replacement=True, generator=rng)
        noise = torch.randn(n, self.means.shape[1], generator=rng, dtype=self.means.dtype, device=self.means.device)
        return self.means[chosen] + (self.roots[chosen] @ noise[..., None])[..., 0]

    def log_density(self, x: Tensor, t: int = 0) -> Tensor:
        """log p_t(x) (B,) of x (B, d), in float32 at least."""
        return torch.logsumexp(self._joint(x, t)[0], 0)

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """ε*(x, t) (B, d) of x (B, d), in x's dtype; t int64 (B,), all the same, as samplers ask.

        Raises:
            ValueError: different times.
        """
        if not (t == t[0]).all():
            raise ValueError("expected one time for all")
        time = int(t[0])
        log_joint, pulls = self._joint(x, time)
        responsibilities = log_joint.softmax(0)
        return (self.schedule.at(time, x)[1] * (responsibilities[:, None] * pulls).sum(0).T).to(x.dtype)

    def _joint(self, x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """log w_k N(x; …) (K, B) and Σ_k⁻¹(x − √ᾱ m_k) (K, d, B), at time t."""
        a, b = self.schedule.at(t, x[..., None])  # (1, 1, 1)
        x, d = x.to(a.dtype), x.shape[1]  # in float32 at least
        covariances = a**2 * self.covariances.to(x) + b**2 * torch.eye(d).to(x)
        difference = x.T - a * self.means.to(x)[:, :, None]
        L = torch.linalg.cholesky(covariances)
        pulls = torch.cholesky_solve(difference, L)
        log_det = 2 * L.diagonal(dim1=1, dim2=2).log().sum(1)
        outside = self.weights.to(x).log() - 0.5 * (log_det + d * math.log(2 * math.pi))
        return outside[:, None] - 0.5 * (difference * pulls).sum(1), pulls


def gaussian(mean: Tensor, covariance: Tensor, schedule: Schedule) -> GaussianMixture:
    """X_0 ~ N(mean (d,), covariance (d, d)), a mixture of one."""
    return GaussianMixture(mean.new_ones(1), mean[None], covariance[None], schedule)


def spiral(n: int, rng: torch.Generator | None = None, noise: float = 0.04) -> Tensor:
    """n points (n, 2) float32 along a spiral of one and a half turns, within about [-1.7, 1.7], in no order.

    Args:
        n: how many.
        rng: on the CPU; None: torch's own.
        noise: standard deviation of the points around the line.

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"expected n ≥ 1, got {n}")
    u = torch.rand(n, generator=rng).sqrt()  # the square root spreads the points evenly along the line
    radius, angle = 1.6 * (0.1 + 0.9 * u), 3 * math.pi * u
    line = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return line + noise * torch.randn(n, 2, generator=rng)


def cat_outline(n: int) -> Tensor:
    """n points (n, 2) float64, evenly spaced along a cat's head within [-1.5, 1.5]: contour, ears, eyes and nose.

    Means for a `GaussianMixture`: then the best denoiser of a cat is known.

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"expected n ≥ 1, got {n}")

    def arc(x: float, y: float, width: float, height: float, begin: float, end: float) -> Tensor:
        angle = math.pi / 180 * torch.linspace(begin, end, 100, dtype=torch.float64)
        return torch.stack([x + width * angle.cos(), y + height * angle.sin()], 1)

    head, ears = arc(0, -0.2, 1.3, 1.1, 130, 410), [[0.84, 0.64], [1.15, 1.5], [0.4, 0.85], [-0.4, 0.85], [-1.15, 1.5]]
    contour = torch.cat([head, torch.tensor([*ears, [-0.84, 0.64]], dtype=torch.float64)])
    eyes = [arc(side, 0.0, 0.2, 0.27, 0, 360) for side in (-0.5, 0.5)]
    nose = torch.tensor([[-0.16, -0.4], [0.16, -0.4], [0.0, -0.58], [-0.16, -0.4]], dtype=torch.float64)
    ends = torch.cat([torch.stack([line[:-1], line[1:]], 1) for line in (contour, *eyes, nose)])
    begin, way = ends[:, 0], ends[:, 1] - ends[:, 0]
    lengths = way.norm(dim=1).cumsum(0)  # from the first point to the end of each piece
    where = (torch.arange(n, dtype=torch.float64) + 0.5) / n * lengths[-1]
    piece = torch.searchsorted(lengths, where)
    return begin[piece] + (1 - (lengths[piece] - where) / way[piece].norm(dim=1))[:, None] * way[piece]


class PointNetwork(nn.Module):
    """(x, t) → a prediction for each point: three residual layers, whose inputs the embedding of t scales and shifts.

    Sines and cosines of both coordinates go in beside them: from the plain numbers an MLP learns fine structure slowly
    (Tancik et al. 2020).

    Args:
        width: of the hidden layers.
    """

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, 2 * width))
        self.first = nn.Linear(2 + 8, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.last = nn.Linear(width, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, 2) of points x (B, 2) at times t (B,).

        Raises:
            ValueError: other shapes.
        """
        if x.ndim != 2 or x.shape[1] != 2 or t.shape != x.shape[:1]:
            raise ValueError(f"expected x (B, 2) and t (B,), got {tuple(x.shape)} and {tuple(t.shape)}")
        exact = torch.promote_types(x.dtype, torch.float32)  # bfloat16 cannot tell 999 from 1000
        scale, shift = self.time(timestep_embedding(t.to(exact), 32).to(x.dtype)).chunk(2, 1)
        angles = torch.cat([math.pi / 2 * x, math.pi * x], 1)
        h = self.first(torch.cat([x, angles.sin(), angles.cos()], 1))
        for layer in self.layers:
            h = h + layer(F.silu((1 + scale) * h + shift))
        return self.last(F.silu(h))
