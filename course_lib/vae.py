"""The variational autoencoder (Kingma & Welling 2014, arXiv 1312.6114), and one whose likelihood is known exactly.

An encoder gives each image x a Gaussian q(z|x) = N(μ, diag σ²), a decoder gives each z a distribution p(x|z), and
z ~ N(0, I) a priori. Training raises the ELBO, E_q log p(x|z) − KL(q(z|x) ‖ p(z)) ≤ log p(x) (equation 3). The
networks are those of the paper's appendix C, with ReLU for tanh. Everything is in nats, per image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.base import sampling, zoo
from course_lib.base.images import check_range, once
from course_lib.base.loop import Step, descend
from course_lib.base.runtime import wide


def reparameterise(mu: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    """z = μ + σ ⊙ ε: a draw from N(μ, diag σ²) through which gradients reach μ and σ (section 2.4).

    Args:
        mu: μ (..., z_dim).
        log_var: log σ² (..., z_dim).
        noise: ε ~ N(0, I), of a shape that broadcasts with them.

    Returns:
        (..., z_dim).
    """
    return mu + torch.exp(0.5 * log_var) * noise


def kl_divergence(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(μ, diag σ²) ‖ N(0, I)) = −½ Σ (1 + log σ² − μ² − σ²), in nats (appendix B).

    Args:
        mu: μ (..., z_dim).
        log_var: log σ² (..., z_dim).

    Returns:
        (...), at least 0; of half precision in float32.
    """
    mu, log_var = wide(mu), wide(log_var)
    return -0.5 * (1 + log_var - mu.square() - log_var.exp()).sum(-1)


def bernoulli_log_likelihood(logits: Tensor, images: Tensor) -> Tensor:
    """log p(x|z) = Σ x log y + (1 − x) log(1 − y) over the pixels, y = σ(logits) (appendix C.1), in nats.

    For greys between 0 and 1 this is no longer a probability of x: it is the expectation of the log-likelihood of
    pixels that are coins, heads with probability x.

    Args:
        logits: (..., C, H, W).
        images: floats in [0, 1] or booleans, of a shape that broadcasts with the logits.

    Returns:
        (...), at most 0; of half precision in float32.

    Raises:
        TypeError: images of integers.
    """
    if not images.is_floating_point() and images.dtype != torch.bool:  # bytes may reach 255
        raise TypeError(f"expected images as floats in [0, 1] or booleans; got {images.dtype}")
    dtype = torch.promote_types(wide(logits).dtype, images.dtype)
    logits, images = torch.broadcast_tensors(logits.to(dtype), images.to(dtype))
    return -F.binary_cross_entropy_with_logits(logits, images, reduction="none").sum((-3, -2, -1))


def gaussian_log_density(x: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
    """log N(x; μ, diag σ²), in nats.

    Args:
        x: (..., d).
        mu: μ (..., d), of a shape that broadcasts with x.
        log_var: log σ² (..., d), likewise.

    Returns:
        (...); of half precision in float32.
    """
    x, mu, log_var = wide(x), wide(mu), wide(log_var)
    return -0.5 * (math.log(2 * math.pi) + log_var + (x - mu).square() / log_var.exp()).sum(-1)


def importance_bound(log_joint: Tensor, log_q: Tensor) -> Tensor:
    """log 1/K Σ_k p(x, z_k)/q(z_k|x): a bound that rises with K from the ELBO to log p(x) (Burda et al. 2016, eq. 8).

    Args:
        log_joint: log p(x, z_k) at draws z_k of q, (K, B).
        log_q: log q(z_k|x) at the same draws, (K, B).

    Returns:
        (B,), in nats; on average at most log p(x); of half precision in float32.
    """
    return torch.logsumexp(wide(log_joint) - wide(log_q), 0) - math.log(len(log_joint))


class VAE(nn.Module):
    """Fully connected encoder and decoder of one hidden layer each, with Bernoulli pixels.

    Input of another floating dtype is converted to that of the weights.

    Args:
        channels: of the images.
        size: of the images, in pixels.
        hidden: units of each hidden layer.
        z_dim: numbers in z; 2 makes a plane one can look at.
    """

    def __init__(self, channels: int = 1, size: int = 28, hidden: int = 500, z_dim: int = 20) -> None:
        super().__init__()
        self.shape, self.z_dim = (channels, size, size), z_dim
        pixels = channels * size * size
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, 2 * z_dim))
        self.decoder = nn.Sequential(nn.Linear(z_dim, hidden), nn.ReLU(), nn.Linear(hidden, pixels))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ² of q(z|x), (B, z_dim) each.

        Args:
            images: floats (B, C, H, W) in [0, 1]. Their values are not looked at, see `vae_step`.

        Raises:
            ValueError: another shape, no images, or no floats.
        """
        if images.shape[1:] != self.shape or len(images) == 0 or not images.is_floating_point():
            given = f"{images.dtype} of {tuple(images.shape)}"
            raise ValueError(f"expected images, floats (B, {', '.join(map(str, self.shape))}); got {given}")
        return self.encoder(images.to(self.encoder[1].weight.dtype)).chunk(2, 1)

    def decode(self, z: Tensor) -> Tensor:
        """Logits (..., C, H, W) of the pixels, of z (..., z_dim); their sigmoid is the mean image.

        Raises:
            ValueError: z of another size.
        """
        if z.ndim < 1 or z.shape[-1] != self.z_dim:
            raise ValueError(f"expected z (..., {self.z_dim}), got {tuple(z.shape)}")
        return self.decoder(z.to(self.decoder[0].weight.dtype)).unflatten(-1, self.shape)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, C, H, W) of reconstructions, and μ and log σ² (B, z_dim).

        Args:
            images: floats (B, C, H, W) in [0, 1].
            noise: ε (B, z_dim).

        Raises:
            ValueError: noise or images of another shape, no images, or no floats.
        """
        mu, log_var = self.encode(images)
        if noise.shape != mu.shape:
            raise ValueError(f"expected noise {tuple(mu.shape)}, got {tuple(noise.shape)}")
        return self.decode(reparameterise(mu, log_var, noise)), mu, log_var


def elbo(vae: VAE, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms of the bound for each image: E_q log p(x|z), estimated by one draw, and the KL divergence.

    The ELBO is the first minus the second (equation 7 with L = 1).

    Args:
        images: floats (B, C, H, W) in [0, 1]. Their values are not looked at, see `vae_step`.
        noise: ε (B, z_dim).

    Returns:
        (B,) each, in nats; float32, or float64 for images in float64.

    Raises:
        ValueError: noise or images of another shape, no images, or no floats.
    """
    images, logits, mu, log_var = (_widened(x, images) for x in (images, *vae(images, noise)))
    return bernoulli_log_likelihood(logits, images), kl_divergence(mu, log_var)


def _widened(x: Tensor, images: Tensor) -> Tensor:
    """In the images' dtype, at least float32: half precision is too coarse for sums over hundreds of pixels."""
    return x.to(torch.promote_types(images.dtype, torch.float32))


def log_likelihood(vae: VAE, images: Tensor, noise: Tensor) -> Tensor:
    """`importance_bound` on log p(x), one draw for each row of noise.

    Args:
        images: floats (B, C, H, W) in [0, 1].
        noise: ε (K, B, z_dim).

    Returns:
        (B,), in nats; float32, or float64 for images in float64.

    Raises:
        TypeError: images that are no floats.
        ValueError: noise or images of another shape, no images, NaN, or values outside [0, 1].
    """
    check_range(images)
    mu, log_var = (_widened(x, images) for x in vae.encode(images))
    if noise.ndim != 3 or noise.shape[1:] != mu.shape:
        raise ValueError(f"expected noise (K, {', '.join(map(str, mu.shape))}), got {tuple(noise.shape)}")
    z = reparameterise(mu, log_var, noise)
    zero = torch.zeros_like(mu)
    likelihood = bernoulli_log_likelihood(_widened(vae.decode(z), images), _widened(images, images))
    log_joint = likelihood + gaussian_log_density(z, zero, zero)
    return importance_bound(log_joint, gaussian_log_density(z, mu, log_var))


def vae_step(vae: VAE, optimiser: torch.optim.Optimizer, rng: torch.Generator) -> Step:
    """A step that raises the mean ELBO of a batch (algorithm 1).

    Args:
        vae: is trained.
        optimiser: of its weights.
        rng: draws ε, on its own device; give it to the loop as stateful, so that a run resumes.

    Returns:
        batch → the mean `reconstruction` (−E_q log p(x|z)) and `KL`, in nats an image. A batch is images in
        [0, 1], or a tuple (images, labels); labels are not used. Of the first batch the step looks at the values,
        of later ones it does not. It raises ValueError or TypeError for images that are not floats
        (B, C, H, W) in [0, 1].
    """
    check_images = once(check_range)

    def step(batch: Tensor | tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images = batch[0] if isinstance(batch, tuple | list) else batch
        check_images(images)
        noise = torch.randn(len(images), vae.z_dim, generator=rng, device=rng.device).to(images)
        likelihood, divergence = (term.mean() for term in elbo(vae, images, noise))
        descend(divergence - likelihood, optimiser)
        return {"reconstruction": -likelihood.detach(), "KL": divergence.detach()}

    return step


def sample(vae: VAE, z: Tensor | int, rng: torch.Generator | None = None) -> Tensor:
    """The means (B, C, H, W) in [0, 1] of p(x|z), for z from N(0, I).

    The means, as everyone shows them: a draw of p(x|z) itself would toss each pixel as a coin, black or white.

    Args:
        vae: works in evaluation mode; then each of its layers is in its own mode again.
        z: (B, z_dim), or how many to draw from N(0, I).
        rng: draws z, on its own device; None: torch's own.

    Raises:
        ValueError: no images asked for, or z of another size.
    """
    z = sampling.starting_noise(z, (vae.z_dim,), vae, rng)
    return sampling.in_batches(vae, lambda z: vae.decode(z).sigmoid(), z)


class LinearGaussian(nn.Module):
    """A VAE small enough for algebra: z ~ N(0, I), x = W z + b + s ε, so that x ~ N(b, W Wᵀ + s² I).

    Its decoder is linear and its pixels are Gaussian (probabilistic PCA, Tipping & Bishop 1999), which makes log p(x)
    and the true posterior known. With q the posterior, the ELBO equals log p(x); with any other q it lies below, by
    KL(q ‖ posterior).

    Args:
        W: (d, z_dim).
        b: (d,).
        s: the pixels' standard deviation, > 0.

    Raises:
        ValueError: shapes that do not fit, or s ≤ 0.
    """

    def __init__(self, W: Tensor, b: Tensor, s: float) -> None:
        super().__init__()
        if W.ndim != 2 or b.shape != W.shape[:1]:
            raise ValueError(f"expected W (d, z_dim) and b (d,), got {tuple(W.shape)} and {tuple(b.shape)}")
        if not s > 0:
            raise ValueError(f"expected s > 0, got {s}")
        self.register_buffer("W", W)
        self.register_buffer("b", b)
        self.s = s

    def log_likelihood(self, x: Tensor) -> Tensor:
        """log p(x) (B,) of x (B, d), exactly, in nats."""
        covariance = self.W @ self.W.T + self.s**2 * torch.eye(len(self.b)).to(self.W)
        return torch.distributions.MultivariateNormal(self.b, covariance).log_prob(x)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean (B, z_dim) and the covariance (z_dim, z_dim), the same for every x, of p(z|x)."""
        precision = torch.eye(self.W.shape[1]).to(self.W) + self.W.T @ self.W / self.s**2
        covariance = torch.linalg.inv(precision)
        return (x - self.b) @ self.W @ covariance / self.s**2, covariance

    def elbo(self, x: Tensor, mu: Tensor, covariance: Tensor) -> Tensor:
        """The ELBO (B,), exactly, in nats, under q = N(mu, covariance).

        Args:
            x: (B, d).
            mu: (B, z_dim).
            covariance: (z_dim, z_dim), of every x.
        """
        d, z_dim = self.W.shape
        error = (x - self.b - mu @ self.W.T).square().sum(1) + (self.W @ covariance @ self.W.T).trace()
        likelihood = -0.5 * (d * math.log(2 * math.pi * self.s**2) + error / self.s**2)
        divergence = 0.5 * (covariance.trace() + mu.square().sum(1) - z_dim - torch.logdet(covariance))
        return likelihood - divergence


zoo.register("vae_mnist", VAE)
