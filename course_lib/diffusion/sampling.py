"""From a trained denoiser to pictures in [0, 1]: batches, a progress bar, guidance, and any of the samplers."""

import inspect
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from tqdm.auto import tqdm

from course_lib.diffusion.denoiser import Denoiser, guided
from course_lib.diffusion.samplers import State, dpm_solver

Sampler = Callable[..., Iterator[State]]
BATCH = 250


def sample(
    denoiser: Denoiser,
    x: Tensor | int,
    condition: Tensor | None = None,
    *,
    sampler: Sampler = dpm_solver,
    steps: int = 20,
    scale: float = 1.0,
    rng: torch.Generator | None = None,
    clip: float | None = 1.0,
    **options: object,
) -> Tensor:
    """Pictures (B, C, H, W) in [0, 1], clamped, in batches of 250, with a progress bar where it takes over 2 s.

    Args:
        denoiser: works in evaluation mode, and returns to its own.
        x: X_T ~ N(0, I) (B, C, H, W), or how many to draw.
        condition: int64 (B,) classes or (B, d) vectors; None: unconditional.
        sampler: `ddpm`, `ddim`, `dpm_solver` or `heun`.
        steps: of the sampler, over times spaced evenly. Each is a call of the network, of `heun` nearly two, and with a
            guidance scale other than 0 and 1 twice as many.
        scale: of the guidance, see `guided`.
        rng: draws x and, for `ddpm`, all further noise; None: torch's own.
        clip: see `ddpm`. options: more of the sampler, such as `eta`; not `noise`, for which `rng` is there.

    Raises:
        ValueError: no pictures asked for, a condition of another length, or what sampler and network refuse.
    """
    weight = next(denoiser.parameters())
    if isinstance(x, int):
        if x < 1 or denoiser.shape is None:
            raise ValueError(f"expected at least one picture, and a denoiser that knows their shape; got {x}")
        device = weight.device if rng is None else rng.device
        x = torch.randn(x, *denoiser.shape, generator=rng, device=device)
    x = x.to(weight)
    if not len(x):
        raise ValueError(f"expected at least one picture, got {tuple(x.shape)}")
    if condition is not None and len(condition) != len(x):
        raise ValueError(f"expected as many conditions as pictures; got {len(condition)} and {len(x)}")
    if "noise" in inspect.signature(sampler).parameters:
        options = {"noise": rng} | options
    conditions = [None] * len(x.split(BATCH)) if condition is None else condition.to(x.device).split(BATCH)
    model, times = guided(denoiser, scale), denoiser.schedule.times(steps)
    training, parts = denoiser.training, []
    denoiser.eval()
    try:
        with tqdm(total=steps * len(conditions), desc="sampling", unit=" steps", delay=2, leave=False) as bar:
            for part, chosen in zip(x.split(BATCH), conditions, strict=True):
                for state in sampler(model, part, denoiser.schedule, times, chosen, clip=clip, **options):
                    bar.update()
                    done = state.x
                parts.append(done)
    finally:
        denoiser.train(training)
    return ((torch.cat(parts) + 1) / 2).clamp(0, 1).contiguous()
