"""The two objectives of a GAN on logits, the R1 penalty, and what theory says of the optimum.

With logits l and D = σ(l): log D = −softplus(−l) and log(1 − D) = −softplus(l), exact for any l, where a
logarithm of a rounded probability would be −∞. All losses are to be minimised; they are means over the batch.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.base import runtime

EQUILIBRIUM = -math.log(4)  # of E log D(X) + E log(1 − D(G(Z))), where p_G = P and D = ½ (Goodfellow 2014, theorem 1)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """−E log D(X) − E log(1 − D(G(Z))): minus the value of the game (Goodfellow et al. 2014, equation 1).

    Args:
        real: logits of real images, of any shape.
        fake: logits of generated images, of any shape.

    Returns:
        A scalar ≥ 0, as of all losses here; at the equilibrium log 4.
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """−E log D(G(Z)), the lecture's objective of the generator, "non-saturating" (Goodfellow 2014, section 3).

    Its gradient with respect to a logit is −(1 − D): largest when the discriminator is sure of the fake.
    """
    return F.softplus(-fake).mean()


def saturating_generator_loss(fake: Tensor) -> Tensor:
    """E log(1 − D(G(Z))), the generator's side of the minimax game.

    Its gradient with respect to a logit is −D: it vanishes exactly when the generator has everything to learn.
    """
    return -F.softplus(fake).mean()


def r1_penalty(discriminator: nn.Module, images: Tensor, labels: Tensor | None = None) -> Tensor:
    """E ‖∇ₓ l(x)‖² over real images; times γ/2 it is the R1 of Mescheder et al. 2018, equation 9.

    A discriminator that is flat around the data cannot push the generator away from it once it has arrived.

    Args:
        discriminator: a module (images[, labels]) → logits (B,), without batch normalisation, whose statistics
            of the batch would enter the gradient. (StyleGAN's `minibatch_stddev` couples images, too; as in the
            paper, that is accepted.)
        images: real ones, floats (B, ...).
        labels: int64 (B,), where the discriminator has classes.

    Returns:
        A scalar ≥ 0 that can be differentiated by the discriminator's weights.

    Raises:
        ValueError: the discriminator has batch normalisation in training mode, or refuses the images.
    """
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in discriminator.modules()):
        raise ValueError("R1 needs a discriminator without batch normalisation")
    with runtime.no_autocast(images.device):  # a squared gradient is too fine for 8 bits
        x = runtime.wide(images.detach()).requires_grad_()
        logits = discriminator(x) if labels is None else discriminator(x, labels)
        (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        return gradient.square().flatten(1).sum(1).mean()


def optimal_discriminator(p: Tensor, q: Tensor) -> Tensor:
    """D* = p/(p + q), the best answer to densities p of the data and q of the generator (Goodfellow 2014, eq. 2).

    Args:
        p: the density of the data at some points, ≥ 0.
        q: the generator's at the same points, ≥ 0, of a shape that broadcasts.

    Returns:
        D* in [0, 1]; ½ where both densities are 0, since no point ever falls there.

    Raises:
        ValueError: a negative density or one that is not a number.
    """
    p, q = _densities(p, q)
    total = p + q
    return torch.where(total > 0, p / torch.where(total > 0, total, 1), 0.5)


def jensen_shannon(p: Tensor, q: Tensor, cell: float | Tensor) -> Tensor:
    """The Jensen–Shannon divergence ½ KL(p‖m) + ½ KL(q‖m), m = (p + q)/2, as a sum over a grid, in nats.

    The value of the game against D* is 2 JS − log 4 (Goodfellow 2014, equation 6).

    Args:
        p: a density at the points of a grid, ≥ 0.
        q: another one at the same points.
        cell: the volume that a point stands for.

    Returns:
        A scalar between 0 (p = q) and log 2 (nowhere both positive), up to the error of the grid.

    Raises:
        ValueError: a negative density or one that is not a number.
    """
    p, q = _densities(p, q)
    return (best_value(p, q, cell) - EQUILIBRIUM * (((p + q) * cell).sum() / 2)) / 2


def best_value(p: Tensor, q: Tensor, cell: float | Tensor) -> Tensor:
    """The value of the game against D*, max over D of ∫ p log D + q log(1 − D), in nats; −log 4 where p = q.

    Args:
        p: the density of the data at the points of a grid, ≥ 0.
        q: the generator's at the same points.
        cell: the volume that a point stands for.

    Raises:
        ValueError: a negative density or one that is not a number.
    """
    p, q = _densities(p, q)
    # As differences of logarithms: D* itself rounds to 1 where p is much larger than q, and log(1 − D*) to −∞.
    logs = torch.xlogy(p, p) + torch.xlogy(q, q) - torch.xlogy(p + q, p + q)
    return (logs * cell).sum()


def _densities(*densities: Tensor) -> list[Tensor]:
    """In float32 or more: bytes wrap in sums, and halves overflow."""
    for density in densities:
        if not (density >= 0).all():
            raise ValueError(f"densities must be numbers ≥ 0; the smallest is {float(density.min()):.3g}")
    return list(map(runtime.wide, densities))
