"""From z to pictures in [0, 1], and from two styles to one: the coarse of the first, the fine of the second."""

from collections.abc import Sequence

import torch
from torch import Tensor

from course_lib.stylegan.networks import StyleGenerator

BATCH = 256  # pictures at a time


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
    """Pictures (B, channels, size, size) in [0, 1]; as `gan.sample`, with what only styles offer.

    Args:
        z: (B, z_dim), or how many to draw from N(0, I).
        rng: draws z and the noise; None: torch's own.
        truncation: ψ, see `StyleGenerator.styles`.
        noise: as for `StyleGenerator.synthesis`; (1, 1, H, H) gives all pictures the same. None draws it.

    Raises:
        ValueError: no pictures asked for, or what the generator refuses.
    """
    like = generator.constant
    if isinstance(z, int):
        if z < 1:
            raise ValueError(f"expected at least one picture; got {z}")
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
        crossover: 0 … layers, for all pictures, or (B,) of them.

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
