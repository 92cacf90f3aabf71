"""Inpainting and outpainting with any trained diffusion model, without new training.

A model of images knows how a missing part may look; it only has to be told the rest. Replacement does so at every step:
known pixels are set to the given image with the noise of that time (Song et al. 2021, arXiv 2011.13456, appendix
I.2). But the step that paints the missing part then learns of them too late, and the seam shows. RePaint (Lugmayr et
al. 2022) goes back some steps by adding noise, and forth again, until both parts fit.

`consistent` tells the model any other linear knowledge, such as the mean of each 4×4 pixels: super-resolution by
diffusion, with as many answers as there are noises (Wang et al. 2023, DDNM).
"""

import itertools
import operator
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from course_lib.base import images as image_tools
from course_lib.base import runtime
from course_lib.base.sampling import evaluating
from course_lib.diffusion.denoiser import Denoiser, Model, guided
from course_lib.diffusion.process import Schedule, posterior_coefficients, q_sample
from course_lib.diffusion.samplers import Noise, State, ddpm, last, noise_stream


def repaint_times(times: Sequence[int], jump: int = 1, resamplings: int = 1) -> list[int]:
    """The times of RePaint: down as `times`, but every `jump` steps up again and down anew, so that each is walked down
    `resamplings` times (Lugmayr et al. 2022, appendix B).

    repaint_times([4, 3, 2, 1, 0], jump=2, resamplings=2) is [4, 3, 2, 3, 4, 3, 2, 1, 0, 1, 2, 1, 0].
    The number of calls of the model is `resamplings` times that of the steps.

    Args:
        times: falling.
        jump: steps that a jump goes back; the last piece of `times` may be shorter.
        resamplings: 1 is replacement alone.

    Raises:
        ValueError: fewer than two times, times that do not fall, or numbers below 1.
        TypeError: numbers that are not whole.
    """
    times, jump, resamplings = [operator.index(t) for t in times], operator.index(jump), operator.index(resamplings)
    if jump < 1 or resamplings < 1 or len(times) < 2 or any(s >= t for t, s in itertools.pairwise(times)):
        raise ValueError(f"expected falling times, jump and resamplings ≥ 1; got {times[:8]}, {jump}, {resamplings}")
    walk = times[:1]
    for first in range(0, len(times) - 1, jump):
        piece = times[first : first + jump + 1]
        for repeat in range(resamplings):
            walk += ([] if repeat == 0 else piece[-2::-1]) + piece[1:]
    return walk


@torch.no_grad()
def repaint(
    model: Model,
    x: Tensor,
    schedule: Schedule,
    times: Sequence[int],
    condition: Tensor | None = None,
    *,
    known: Tensor,
    mask: Tensor,
    noise: Noise = None,
    clip: float | None = None,
) -> Iterator[State]:
    """RePaint (Lugmayr et al. 2022, algorithm 1) along times that fall and, for resampling, rise.

    Down from t to s, the missing part takes a step of DDPM and the known part is q(X_s | X_0); up, all of X gets the
    noise of the forward process. Departure: their jumps end above t = 0; here the last piece may be walked anew, too.

    Args:
        model: ε_θ(x, t, condition).
        x: X_T ~ N(0, I), floats (B, …); it begins at times[0].
        schedule: of the forward process.
        times: whole numbers T … 0 from the latest to the last, see `repaint_times`.
        condition: handed to the model.
        known: X_0 (B, …), of which only the known part counts.
        mask: bool, True where X_0 is known; its shape broadcasts to that of x.
        noise: where all further noise comes from, see `samplers.noise_stream`.
        clip: clamps each X̂_0 to [-clip, clip]; None does not.

    Yields:
        A state a step, with x at t = 0 exactly `known` where that is known.

    Raises:
        ValueError: shapes that do not fit, a time that is the same twice in a row, and what `samplers.ddpm` refuses.
        TypeError: a mask that is not bool.
    """
    check_mask(mask, x)
    if known.shape != x.shape:
        raise ValueError(f"expected known images {tuple(x.shape)}, got {tuple(known.shape)}")
    x, known = runtime.wide(x), runtime.wide(known)
    stream = noise_stream(noise, x)
    for t, s in itertools.pairwise(times):
        if s < t:
            _, x, x0 = next(ddpm(model, x, schedule, [t, s], condition, noise=stream, clip=clip))
            given = known if s == 0 else q_sample(known, s, next(stream), schedule)
            x = torch.where(mask, given, x)
        else:
            beta = posterior_coefficients(s, t, schedule, x)[3]
            x = (1 - beta).sqrt() * x + beta.sqrt() * next(stream)
        yield State(s, x, x0)


def check_mask(mask: Tensor, x: Tensor) -> None:
    """Refuse a mask that is not bool (TypeError), or whose shape does not broadcast to that of x (ValueError)."""
    if mask.dtype != torch.bool:
        raise TypeError(f"expected a mask of bool, True where pixels are known; got {mask.dtype}")
    sides = zip(mask.shape[::-1], x.shape[::-1], strict=False)
    if mask.ndim > x.ndim or any(m not in (1, n) for m, n in sides):
        raise ValueError(f"expected a mask that broadcasts to {tuple(x.shape)}, got {tuple(mask.shape)}")


def inpaint(
    denoiser: Denoiser,
    images: Tensor,
    mask: Tensor,
    condition: Tensor | None = None,
    *,
    steps: int = 20,
    jump: int = 1,
    resamplings: int = 5,
    guidance_scale: float = 1.0,
    rng: torch.Generator | None = None,
) -> Tensor:
    """Paint what is missing of images, all in one batch; what is known stays bit for bit.

    Args:
        denoiser: works in evaluation mode; after it, each of its parts has its own mode again.
        images: (B, C, H, W) in [0, 1], of the denoiser's size; the same one several times gives several answers.
        mask: bool (H, W), (1, 1, H, W) or (B, 1, H, W): True where a pixel is known.
        condition: int64 (B,) classes, or one for all; None: unconditional.
        steps: from noise to image, see `Schedule.times`. `steps` · `resamplings` calls of the model, twice as many with
            a guidance scale other than 0 and 1.
        jump: see `repaint_times`.
        resamplings: see `repaint_times`.
        guidance_scale: see `diffusion.guided`.
        rng: of all the noise; None: torch's own.

    Returns:
        (B, C, H, W) in [0, 1], of the dtype of `images`.

    Raises:
        ValueError: images out of range or of another size than the denoiser's, a mask that does not fit, and what the
            denoiser refuses.
        TypeError: images that are no floats, a mask that is not bool, or numbers that are not whole.
    """
    image_tools.check_range(images)
    if denoiser.shape is not None and images.shape[1:] != denoiser.shape:
        raise ValueError(f"this denoiser knows images {denoiser.shape}, got {tuple(images.shape[1:])}")
    device = next(denoiser.parameters()).device
    known, mask = (2 * runtime.wide(images) - 1).to(device), torch.as_tensor(mask).to(device)
    check_mask(mask, known)
    noise = torch.randn(known.shape, generator=rng, device=rng.device if rng else device, dtype=known.dtype)
    times = repaint_times(denoiser.schedule.times(steps), jump, resamplings)
    if condition is not None:
        condition = torch.as_tensor(condition, device=device).expand(len(known), *condition.shape[1:])
    options = {"known": known, "mask": mask, "noise": rng, "clip": 1.0}
    states = repaint(guided(denoiser, guidance_scale), noise.to(device), denoiser.schedule, times, condition, **options)
    shown = {"total": len(times) - 1, "desc": "inpainting", "unit": " steps", "delay": 2, "leave": False}
    with evaluating(denoiser):
        x = last(tqdm(states, **shown))
    painted = ((x + 1) / 2).clamp(0, 1).to(images)
    return torch.where(mask.to(images.device), images, painted)


def consistent(model: Model, schedule: Schedule, project: Callable[[Tensor], Tensor]) -> Model:
    """The model whose every estimate X̂_0 agrees with what is known: ε of project(X̂_0), for any sampler.

    DDNM (Wang et al. 2023, equation 13): for a known y = A X_0 the projection is X̂_0 + A⁺(y − A X̂_0), which changes
    nothing but what A sees.

    Args:
        model: ε_θ(x, t, condition).
        schedule: of the forward process.
        project: X̂_0 (B, …), clamped to [-1, 1], → the nearest that agrees.
    """

    def epsilon(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        a, b = schedule.at(t, x, low=1)
        x0 = (x - b * model(x, t, condition)) / a
        return (x - a * project(x0.clamp(-1, 1))) / b

    return epsilon


def seam(images: Tensor, mask: Tensor) -> float:
    """How much neighbours differ across the border between known and painted pixels: the mean of |difference|.

    Only in comparison with real images at the same border does it say whether the seam shows.

    Args:
        images: (B, C, H, W) in [0, 1].
        mask: bool, broadcasts to images.

    Raises:
        ValueError: shapes that do not fit, or a mask without a border.
        TypeError: images that are no floats, or a mask that is not bool.
    """
    image_tools.check_batch(images)
    check_mask(mask, images)
    mask, images = mask.expand_as(images), runtime.wide(images)
    steps = (
        [(z[..., 1:, :], z[..., :-1, :]) for z in (images, mask)],
        [(z[..., 1:], z[..., :-1]) for z in (images, mask)],
    )
    across = torch.cat([(x - y).abs()[m != n] for (x, y), (m, n) in steps])
    if not len(across):
        raise ValueError("expected a mask with known and missing pixels")
    return across.mean().item()
