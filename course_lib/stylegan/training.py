"""Alternating training with lazy R1 and style mixing, as a step for the loop of the course; sampling; mixing."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from course_lib.base import sampling
from course_lib.base.loop import Step
from course_lib.gan import adversarial_step
from course_lib.stylegan.networks import StyleDiscriminator, StyleGenerator


def stylegan_step(
    generator: StyleGenerator,
    discriminator: StyleDiscriminator,
    generator_optimiser: torch.optim.Optimizer,
    discriminator_optimiser: torch.optim.Optimizer,
    rng: torch.Generator,
    *,
    r1: float = 3.0,
    lazy: int = 8,
    mixing: float = 0.9,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> Step:
    """One step of D and one of G a batch, on the same generated images, with the losses of the lecture's GAN.

    Args:
        generator: is trained; its mean style is tracked.
        discriminator: is trained.
        generator_optimiser: of the generator's weights.
        discriminator_optimiser: of the discriminator's weights.
        rng: draws z, noise and crossovers, on its own device; give it to the loop as stateful, so that a run resumes.
        r1: γ of the penalty γ/2 E ‖∇D‖² at the real images (StyleGAN, appendix C).
        lazy: the penalty is computed once in so many steps and then counts as many times (StyleGAN2, section 3.1, which
            has 16 and also corrects Adam's settings, by 16/17).
        mixing: the proportion of images with mixed styles (StyleGAN, section 3.1), so that no layer relies on the
            styles of others.
        augment: as for `gan.adversarial_step`.

    Returns:
        batch → named losses. A batch is images in [0, 1], or a tuple (images, labels); labels are not used. Of the
        first batch the step looks at the values, of later ones it does not. It raises ValueError or TypeError for
        images that are not floats (B, C, H, W) in [0, 1].

    Raises:
        ValueError: a negative r1, lazy below 1, mixing outside [0, 1].
    """
    if r1 < 0 or lazy < 1 or not 0 <= mixing <= 1:
        raise ValueError(f"expected r1 ≥ 0, lazy ≥ 1 and mixing in [0, 1]; got {r1}, {lazy} and {mixing}")

    def lazy_r1() -> float:
        is_due = discriminator.steps % lazy == 0
        discriminator.steps += 1
        return lazy * r1 if is_due else 0.0

    def generate(real: Tensor) -> Tensor:
        B = len(real)
        z = torch.randn(2 * B, generator.z_dim, generator=rng, device=rng.device).to(real)
        ws = generator.styles(z)
        generator.mapping.track(ws[:, 0])
        crossover = torch.randint(1, generator.layers, (B,), generator=rng, device=rng.device)
        is_mixed = torch.rand(B, generator=rng, device=rng.device) < mixing
        ws = mix(ws[:B], ws[B:], torch.where(is_mixed, crossover, generator.layers))
        return generator.synthesis(ws, generator.noise(B, rng))

    optimisers = generator_optimiser, discriminator_optimiser
    return adversarial_step(generator, discriminator, *optimisers, rng, r1=lazy_r1, generate=generate, augment=augment)


def sample(
    generator: StyleGenerator,
    z: Tensor | int,
    rng: torch.Generator | None = None,
    *,
    truncation: float = 1.0,
    noise: Sequence[Tensor] | None = None,
) -> Tensor:
    """Images (B, channels, size, size) in [0, 1].

    Args:
        generator: works in evaluation mode; then each of its layers is in its own mode again.
        z: (B, z_dim), or how many to draw from N(0, I).
        rng: draws z and the noise, on its own device; None: torch's own.
        truncation: ψ, see `StyleGenerator.styles`.
        noise: for each layer (B, 1, H, H), or (1, 1, H, H) for all images; None draws it.

    Raises:
        ValueError: no images asked for; z or noise of other shapes.
    """
    z = sampling.starting_noise(z, (generator.z_dim,), generator, rng)
    noise = generator.noise(len(z), rng) if noise is None else noise
    images = sampling.in_batches(generator, lambda z, *noise: generator(z, truncation, noise), z, *noise)
    return ((images + 1) / 2).contiguous()


def mix(ws_coarse: Tensor, ws_fine: Tensor, crossover: int | Tensor) -> Tensor:
    """Style mixing (StyleGAN, section 3.1): the first `crossover` layers of one style, the others of another.

    Args:
        ws_coarse: styles (B, layers, w_dim).
        ws_fine: styles of the same shape.
        crossover: from 0 to layers, for all images, or int64 (B,), whose values are not looked at: in training a GPU
            would wait.

    Returns:
        (B, layers, w_dim).

    Raises:
        ValueError: shapes that differ, or one crossover for all outside of 0 … layers.
    """
    if ws_coarse.shape != ws_fine.shape or ws_coarse.ndim != 3:
        given = f"{tuple(ws_coarse.shape)} and {tuple(ws_fine.shape)}"
        raise ValueError(f"expected two styles (B, layers, w_dim), got {given}")
    B, layers, _ = ws_coarse.shape
    if not isinstance(crossover, Tensor) and not 0 <= crossover <= layers:
        raise ValueError(f"expected a crossover of 0 … {layers}, got {crossover}")
    crossover = torch.as_tensor(crossover, device=ws_coarse.device).expand(B)
    is_coarse = torch.arange(layers, device=ws_coarse.device) < crossover[:, None]
    return torch.where(is_coarse[:, :, None], ws_coarse, ws_fine)
