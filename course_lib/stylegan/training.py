"""Alternating training with lazy R1 and style mixing, as a step for the loop of the course; sampling; mixing."""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from course_lib.base import sampling
from course_lib.base.images import check_range, once
from course_lib.base.loop import Step, descend
from course_lib.gan import discriminator_loss, frozen, generator_loss, r1_penalty, signed
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

    Returns:
        batch → named losses. A batch is images in [0, 1], or a tuple (images, labels); labels are not used. Of the
        first batch the step looks at the values, of later ones it does not. It raises ValueError or TypeError for
        images that are not floats (B, C, H, W) in [0, 1].

    Raises:
        ValueError: a negative r1, lazy below 1, mixing outside [0, 1].
    """
    r1, lazy, mixing = float(r1), operator.index(lazy), float(mixing)
    if r1 < 0 or lazy < 1 or not 0 <= mixing <= 1:
        raise ValueError(f"expected r1 ≥ 0, lazy ≥ 1 and mixing in [0, 1]; got {r1}, {lazy} and {mixing}")
    check_images = once(check_range)

    def draw(B: int, like: Tensor) -> Tensor:
        z = torch.randn(2 * B, generator.z_dim, generator=rng, device=rng.device).to(like)
        ws = generator.styles(z)
        generator.mapping.track(ws[:, 0])
        crossover = torch.randint(1, generator.layers, (B,), generator=rng, device=rng.device)
        is_mixed = torch.rand(B, generator=rng, device=rng.device) < mixing
        return _mix(ws[:B], ws[B:], torch.where(is_mixed, crossover, generator.layers))

    def step(batch: Tensor | tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images = batch[0] if isinstance(batch, tuple | list) else batch
        check_images(images)
        real = signed(images)
        fake = generator.synthesis(draw(len(real), real), generator.noise(len(real), rng))
        on_real, on_fake = discriminator(real).float(), discriminator(fake.detach()).float()
        named = {"D": discriminator_loss(on_real, on_fake)}
        loss = named["D"]
        if r1 and discriminator.steps % lazy == 0:
            named["R1"] = r1_penalty(discriminator, real)
            loss = loss + lazy * r1 / 2 * named["R1"]
        descend(loss, discriminator_optimiser)
        discriminator.steps += 1
        with frozen(discriminator):
            named["G"] = generator_loss(discriminator(fake).float())
            descend(named["G"], generator_optimiser)
        named["D(x)"], named["D(G(z))"] = on_real.sigmoid().mean(), on_fake.sigmoid().mean()
        return {name: value.detach() for name, value in named.items()}

    return step


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
        crossover: from 0 to layers, for all images, or (B,) of them.

    Returns:
        (B, layers, w_dim).

    Raises:
        ValueError: shapes that differ, or a crossover outside of 0 … layers.
    """
    if ws_coarse.shape != ws_fine.shape or ws_coarse.ndim != 3:
        given = f"{tuple(ws_coarse.shape)} and {tuple(ws_fine.shape)}"
        raise ValueError(f"expected two styles (B, layers, w_dim), got {given}")
    layers, crossover = ws_coarse.shape[1], torch.as_tensor(crossover)
    if ((crossover < 0) | (crossover > layers)).any():
        raise ValueError(f"expected a crossover of 0 … {layers}, got {crossover.tolist()}")
    return _mix(ws_coarse, ws_fine, crossover)


def _mix(ws_coarse: Tensor, ws_fine: Tensor, crossover: Tensor) -> Tensor:
    """`mix` without a look at the crossovers, for which a GPU would wait."""
    layers = torch.arange(ws_coarse.shape[1], device=ws_coarse.device)
    is_coarse = layers < crossover.to(ws_coarse.device).expand(len(ws_coarse))[:, None]
    return torch.where(is_coarse[:, :, None], ws_coarse, ws_fine)
