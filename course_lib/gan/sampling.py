"""From noise to pictures in [0, 1], and the way from one noise to another."""

import torch
from torch import Tensor, nn

BATCH = 256


@torch.no_grad()
def sample(
    generator: nn.Module, z: Tensor | int, labels: Tensor | None = None, rng: torch.Generator | None = None
) -> Tensor:
    """Pictures (B, C, H, W) in [0, 1], clamped, from a generator whose pictures lie around [-1, 1].

    The generator works in evaluation mode (batch normalisation with its running statistics, so that a picture does
    not depend on its neighbours) and returns to its own mode.

    Args:
        generator: (z[, labels]) → pictures, with attributes `z_dim` and `classes`.
        z: noise (B, z_dim), or how many to draw from N(0, I).
        labels: int64 (B,) for a conditional generator; None draws them: 0, 1, …, one after the other.
        rng: for drawing z; None: torch's own.

    Raises:
        ValueError: no pictures asked for, or what the generator refuses.
    """
    weight = next(generator.parameters())
    if isinstance(z, int):
        if z < 1:
            raise ValueError(f"expected at least one picture; got {z}")
        z = torch.randn(z, generator.z_dim, generator=rng, device=weight.device if rng is None else rng.device)
    z = z.to(weight)
    if generator.classes is not None and labels is None:
        labels = torch.arange(len(z), device=z.device) % generator.classes
    if labels is not None and len(labels) != len(z):
        raise ValueError(f"expected as many labels as rows of z; got {len(labels)} and {len(z)}")
    training = generator.training
    generator.eval()
    try:
        chunks = [None] * len(z.split(BATCH)) if labels is None else labels.to(z.device).split(BATCH)
        parts = [
            generator(part) if chosen is None else generator(part, chosen)
            for part, chosen in zip(z.split(BATCH), chunks, strict=True)
        ]
    finally:
        generator.train(training)
    return ((torch.cat(parts) + 1) / 2).clamp(0, 1).contiguous()


def slerp(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """The way from noise a to noise b along the sphere: sin((1 − t)Ω)/sin Ω · a + sin(tΩ)/sin Ω · b (White 2016).

    The right way for Gaussian z. In d dimensions nearly all of N(0, I) lies at distance √d from 0, and two draws
    are nearly at right angles; the middle of the straight line between them, (a + b)/2, has length √(d/2), where
    the generator has never been. With Ω = 90° the two weights are cos and sin, and the result is N(0, I) again.

    Args:
        a, b: (..., z_dim), of shapes that broadcast.
        t: from 0 (a) to 1 (b), a number or a tensor that broadcasts, such as (n, 1).

    Returns:
        (..., z_dim). Of equal or opposite directions, where no arc is the shortest, the straight line.

    Raises:
        ValueError: the last dimensions differ.
    """
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"a and b must have the same z_dim; got {tuple(a.shape)} and {tuple(b.shape)}")
    t = torch.as_tensor(t, dtype=a.dtype, device=a.device)
    cosine = torch.cosine_similarity(a, b, dim=-1).clamp(-1, 1)[..., None]
    omega = torch.arccos(cosine)
    sine = torch.sin(omega)
    parallel = sine < 1e-4
    sine = torch.where(parallel, 1, sine)
    weights = [torch.sin(s * omega) / sine for s in (1 - t, t)]
    return torch.where(parallel, torch.lerp(a, b, t), weights[0] * a + weights[1] * b)
