"""Alternating training with lazy R1 and style mixing, as a step for `base.training.Loop`.

From z to images in [0, 1], and from two styles to one: the coarse of the first, the fine of the second.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

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
    """One step of D and one of G a batch, on the same generated images, with the losses of chapter 3.

    Args:
        rng: draws z, noise and crossovers, on its own device; give it to the loop as a part, so that a run resumes.
        r1: γ of the penalty γ/2 E ‖∇D‖² at the real images (StyleGAN, appendix C).
        lazy: the penalty comes at every so many steps and then counts as many times (StyleGAN2, section 3.1, which has
            16 and also corrects Adam's settings, by 16/17).
        mixing: the share of images with mixed styles (StyleGAN, section 3.1), so that no layer relies on the styles
            of others.

    Returns:
        batch → named losses. A batch is images in [0, 1], or a tuple (images, labels); labels are not used.

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


BATCH = 256  # images at a time


@torch.no_grad()
def sample(
    generator: StyleGenerator,
    z: Tensor | int,
    labels: None = None,
    rng: torch.Generator | None = None,
    *,
    truncation: float = 1.0,
    noise: Sequence[Tensor] | None = None,
) -> Tensor:
    """Images (B, channels, size, size) in [0, 1]; as `gan.sample`, with what only styles offer.

    Args:
        z: (B, z_dim), or how many to draw from N(0, I).
        rng: draws z and the noise; None: torch's own.
        truncation: ψ, see `StyleGenerator.styles`.
        noise: as for `StyleGenerator.synthesis`; (1, 1, H, H) gives all images the same. None draws it.

    Raises:
        ValueError: no images asked for, or what the generator refuses.
    """
    like = generator.constant
    if isinstance(z, int):
        if z < 1:
            raise ValueError(f"expected at least one image; got {z}")
        z = torch.randn(z, generator.z_dim, generator=rng, device=rng.device if rng else like.device)
    noise = generator.noise(len(z), rng) if noise is None else noise
    parts = []
    for start in range(0, len(z), BATCH):
        rows = slice(start, start + BATCH)
        part = [layer if len(layer) == 1 else layer[rows] for layer in noise]
        parts.append(generator(z[rows].to(like), labels, truncation, part))
    return ((torch.cat(parts) + 1) / 2).contiguous()


def mix(ws_coarse: Tensor, ws_fine: Tensor, crossover: int | Tensor) -> Tensor:
    """Style mixing (StyleGAN, section 3.1): the first `crossover` layers of one style, the others of another.

    Args:
        ws_coarse, ws_fine: (B, layers, w_dim) each.
        crossover: 0 … layers, for all images, or (B,) of them.

    Raises:
        ValueError: shapes that differ, or a crossover outside of 0 … layers.
    """
    if ws_coarse.shape != ws_fine.shape or ws_coarse.ndim != 3:
        given = f"{tuple(ws_coarse.shape)} and {tuple(ws_fine.shape)}"
        raise ValueError(f"expected two styles (B, layers, w_dim), got {given}")
    B, layers, _ = ws_coarse.shape
    crossover = torch.as_tensor(crossover, device=ws_coarse.device)
    if ((crossover < 0) | (crossover > layers)).any():
        raise ValueError(f"expected a crossover of 0 … {layers}, got {crossover.tolist()}")
    is_coarse = torch.arange(layers, device=ws_coarse.device) < crossover.expand(B)[:, None]
    return torch.where(is_coarse[:, :, None], ws_coarse, ws_fine)
