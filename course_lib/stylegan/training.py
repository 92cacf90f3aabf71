"""Alternating training with lazy R1 and style mixing, as a step for `base.training.Loop`."""

import torch
from torch import Tensor

from course_lib.base.training import Step, descend
from course_lib.gan import discriminator_loss, frozen, generator_loss, r1_penalty, signed
from course_lib.stylegan.networks import StyleDiscriminator, StyleGenerator
from course_lib.stylegan.sampling import mix


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
    """One step of D and one of G a batch, on the same generated pictures, with the losses of chapter 3.

    Args:
        rng: draws z, noise and crossovers, on its own device; give it to the loop as a part, so that a run resumes.
        r1: γ of the penalty γ/2 E ‖∇D‖² at the real pictures (StyleGAN, appendix C).
        lazy: the penalty comes at every so many steps and then counts as many times (StyleGAN2, section 3.1, which has
            16 and also corrects Adam's settings, by 16/17).
        mixing: the share of pictures with mixed styles (StyleGAN, section 3.1), so that no layer relies on the styles
            of others.

    Returns:
        batch → named losses. A batch is pictures in [0, 1], or a tuple (pictures, labels); labels are not used.

    Raises:
        ValueError: a negative r1, lazy below 1, mixing outside [0, 1].
    """
    if r1 < 0 or lazy < 1 or not 0 <= mixing <= 1:
        raise ValueError(f"expected r1 ≥ 0, lazy ≥ 1 and mixing in [0, 1]; got {r1}, {lazy} and {mixing}")

    def draw(B: int, like: Tensor) -> Tensor:
        z = torch.randn(2 * B, generator.z_dim, generator=rng, device=rng.device).to(like)
        ws = generator.styles(z)
        generator.mapping.track(ws[:, 0])
        crossover = torch.randint(1, generator.layers, (B,), generator=rng, device=rng.device)
        is_mixed = torch.rand(B, generator=rng, device=rng.device) < mixing
        return mix(ws[:B], ws[B:], torch.where(is_mixed, crossover, generator.layers))

    def step(batch: Tensor | tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        real = signed(batch[0] if isinstance(batch, tuple | list) else batch)
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
