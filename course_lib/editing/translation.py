"""From one image to another: SDEdit, which needs nothing but a diffusion model."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from tqdm.auto import tqdm

from course_lib.base import images as image_tools
from course_lib.base import runtime
from course_lib.base.sampling import evaluating
from course_lib.diffusion.denoiser import Denoiser, guided
from course_lib.diffusion.process import Schedule, q_sample
from course_lib.diffusion.samplers import State, ddim, last


def sdedit_times(schedule: Schedule, strength: float, steps: int) -> list[int]:
    """Falling times from t₀ = strength · T to 0, spaced as those of a sampler of `steps` steps over all of T.

    Args:
        schedule: of the forward process.
        strength: from 0, which gives [0], to 1, which gives all.
        steps: 1 … T, from T to 0.

    Raises:
        ValueError: a strength outside [0, 1], or other steps.
        TypeError: steps that are not whole.
    """
    strength = float(strength)
    if not 0 <= strength <= 1:  # written so that NaN fails, too
        raise ValueError(f"expected a strength in [0, 1], got {strength}")
    start = round(strength * schedule.T)
    return [start, *(t for t in schedule.times(steps) if t < start)]


@torch.no_grad()
def sdedit(
    denoiser: Denoiser,
    images: Tensor,
    strength: float,
    condition: Tensor | None = None,
    *,
    steps: int = 40,
    sampler: Callable[..., Iterator[State]] = ddim,
    guidance_scale: float = 1.0,
    noise: Tensor | None = None,
    rng: torch.Generator | None = None,
) -> Tensor:
    """SDEdit (Meng et al. 2022): noise drowns what is wrong with a rough image; the model finds a real one near it.

    X_{t₀} = √ᾱ X_0 + √(1 − ᾱ) ε of the given image at t₀ = strength · T, then the way back. A low strength is faithful,
    a high one realistic; 0 returns the image, 1 draws a new one.

    Args:
        denoiser: works in evaluation mode.
        images: (B, C, H, W) in [0, 1], of the denoiser's size.
        strength: from 0 to 1.
        condition: int64 (B,) classes, or one for all; None: unconditional.
        steps: over all of T; of these, `strength` is the proportion that is walked.
        sampler: one that needs no further noise: `ddim`, `dpm_solver` or `heun`.
        guidance_scale: see `diffusion.guided`.
        noise: ε ~ N(0, I), of the images' shape; None: drawn from rng.
        rng: None: torch's own.

    Returns:
        (B, C, H, W) in [0, 1], clamped.

    Raises:
        ValueError: images out of range or of another size than the denoiser's, a strength outside [0, 1], noise of
            another shape, and what the denoiser refuses.
        TypeError: images that are no floats, or steps that are not whole.
    """
    image_tools.check_range(images)
    if denoiser.shape is not None and images.shape[1:] != denoiser.shape:
        raise ValueError(f"this denoiser knows images {denoiser.shape}, got {tuple(images.shape[1:])}")
    times = sdedit_times(denoiser.schedule, strength, steps)
    if len(times) < 2:
        return images.clone()
    device = next(denoiser.parameters()).device
    x0 = (2 * runtime.wide(images) - 1).to(device)
    if noise is None:
        noise = torch.randn(x0.shape, generator=rng, device=rng.device if rng else device, dtype=x0.dtype)
    x = q_sample(x0, times[0], noise.to(x0), denoiser.schedule)
    if condition is not None:
        condition = torch.as_tensor(condition, device=device).expand(len(x), *condition.shape[1:])
    states = sampler(guided(denoiser, guidance_scale), x, denoiser.schedule, times, condition, clip=1.0)
    shown = {"total": len(times) - 1, "desc": "SDEdit", "unit": " steps", "delay": 2, "leave": False}
    with evaluating(denoiser):
        x = last(tqdm(states, **shown))
    return ((x + 1) / 2).clamp(0, 1).to(images)
