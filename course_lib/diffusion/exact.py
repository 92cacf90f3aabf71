"""Data so simple that the best possible ε_θ is known in closed form: Gaussians and their mixtures.

Where the denoiser is exact, whatever a sampler or a bound gets wrong is its own fault.
"""

import math

import torch
from torch import Tensor

from course_lib.diffusion.schedule import Schedule


class Mixture:
    """X_0 ~ Σ_k w_k N(m_k, C_k) in d dimensions, and the optimal ε*(x, t) = E[ε | X_t = x], which is itself a model.

    X_t is a mixture too, of N(√ᾱ_t m_k, ᾱ_t C_k + (1 − ᾱ_t) I), and ε* = −√(1 − ᾱ_t) ∇ log p_t(x) (Vincent 2011).

    Args:
        weights: (K,), positive; divided by their sum. means: (K, d). covariances: (K, d, d), symmetric and positive
            semi-definite. All floats of one type, on one device.
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
        """n draws (n, d) of X_0, with a generator on the means' device."""
        chosen = torch.multinomial(self.weights, n, replacement=True, generator=rng)
        noise = torch.randn(n, self.means.shape[1], generator=rng, dtype=self.means.dtype, device=self.means.device)
        return self.means[chosen] + (self.roots[chosen] @ noise[..., None])[..., 0]

    def log_density(self, x: Tensor, t: int = 0) -> Tensor:
        """log p_t(x) (B,) of x (B, d)."""
        return torch.logsumexp(self._joint(x, t)[0], 0)

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """ε*(x, t) (B, d) of x (B, d); t int64 (B,), all the same, as samplers ask.

        Raises:
            ValueError: different times.
        """
        if not (t == t[0]).all():
            raise ValueError("expected one time for all")
        time = int(t[0])
        log_joint, pulls = self._joint(x, time)
        responsibilities = log_joint.softmax(0)
        return self.schedule.at(time, x)[1] * (responsibilities[:, None] * pulls).sum(0).T

    def _joint(self, x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """log w_k N(x; …) (K, B) and Σ_k⁻¹(x − √ᾱ m_k) (K, d, B), at time t."""
        a, b = self.schedule.at(t, x)
        d = x.shape[1]
        covariances = a**2 * self.covariances.to(x) + b**2 * torch.eye(d).to(x)
        difference = x.T - a * self.means.to(x)[:, :, None]
        L = torch.linalg.cholesky(covariances)
        pulls = torch.cholesky_solve(difference, L)
        log_det = 2 * L.diagonal(dim1=1, dim2=2).log().sum(1)
        outside = self.weights.to(x).log() - 0.5 * (log_det + d * math.log(2 * math.pi))
        return outside[:, None] - 0.5 * (difference * pulls).sum(1), pulls


def gaussian(mean: Tensor, covariance: Tensor, schedule: Schedule) -> Mixture:
    """X_0 ~ N(mean (d,), covariance (d, d)), a mixture of one."""
    return Mixture(mean.new_ones(1), mean[None], covariance[None], schedule)
