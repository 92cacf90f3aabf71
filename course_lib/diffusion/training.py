"""The training step for the one loop of the course."""

import torch
from torch import Tensor

from course_lib.base.training import Step, descend
from course_lib.diffusion.denoiser import Denoiser
from course_lib.diffusion.losses import draw_times, simple_loss


def diffusion_step(
    denoiser: Denoiser,
    optimiser: torch.optim.Optimizer,
    rng: torch.Generator,
    *,
    drop: float | None = None,
    gamma: float | None = None,
    clip: float | None = 1.0,
) -> Step:
    """Ho et al. 2020, algorithm 1: a time and a noise for every picture, and a step towards naming the noise.

    Args:
        denoiser: its network is trained. rng: draws times and noise, on its own device; give it to the loop as a part.
        drop: how often a condition is left out, so that the network learns to do without (Ho & Salimans 2022,
            algorithm 1; they advise 0.1 to 0.2). None: the network takes no condition, labels are not used.
        gamma: min-SNR weighting, see `losses.weight`; None: none.
        clip: longest gradient, see `training.descend`.

    Returns:
        batch → the mean `loss`. A batch is a tuple (x, condition) or x alone; pictures in [0, 1], which become
        [-1, 1], or points (B, d), which stay as they are.

    Raises:
        ValueError: drop outside [0, 1]; of the step: no condition where one is needed.
    """
    if drop is not None and not 0 <= drop <= 1:
        raise ValueError(f"expected drop in [0, 1], got {drop}")

    def step(batch: Tensor | tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, condition = batch if isinstance(batch, tuple | list) else (batch, None)
        if drop is None:
            condition = None
        elif condition is None:
            raise ValueError("drop is given, so the batches must be tuples (x, condition)")
        x0 = 2 * x - 1 if x.ndim == 4 else x
        t = draw_times(len(x0), denoiser.schedule.T, rng).to(x0.device)
        noise = torch.randn(x0.shape, generator=rng, device=rng.device).to(x0)
        keep = None
        if condition is not None:
            keep = (torch.rand(len(x0), generator=rng, device=rng.device) >= drop).to(x0.device)
        loss = simple_loss(denoiser, x0, t, noise, condition, keep, gamma)
        descend(loss, optimiser, clip)
        return {"loss": loss.detach()}

    return step
