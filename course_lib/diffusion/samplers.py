"""From noise to data: DDPM's ancestral sampler, DDIM, DPM-Solver++(2M), and Heun's method.

Each is a generator over falling times t_1 > t_2 > … that yields a `State` a step, so that a lesson can draw what
happens, and memory does not grow with the number of steps; `last` runs one to its end. (A generator begins, and
complains of its arguments, when its first state is asked for.) With the angle φ of √ᾱ = cos φ, √(1 − ᾱ) = sin φ, the
deterministic ones solve dX/dφ = cos φ ε_θ − sin φ X̂_0, the probability-flow ODE (Song et al. 2021, arXiv 2011.13456,
equation 13), along which X_T turns into data without any new noise.


From a trained denoiser to images in [0, 1]: batches, a progress bar, guidance, and any of the samplers.
"""

import collections
import inspect
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from course_lib.diffusion.denoiser import Denoiser, Model, guided
from course_lib.diffusion.process import Noise, Schedule, noise_stream, posterior_coefficients


@dataclass(frozen=True)
class State:
    """What a step leaves.

    Attributes:
        t: the time reached. x: X_t (B, …). x0: the estimate of X_0 (B, …) that the step used.
    """

    t: int
    x: Tensor
    x0: Tensor


@torch.no_grad()
def ddpm(
    model: Model,
    x: Tensor,
    schedule: Schedule,
    times: Sequence[int] | None = None,
    condition: Tensor | None = None,
    *,
    noise: Noise = None,
    variance: Literal["small", "large"] = "small",
    clip: float | None = None,
) -> Iterator[State]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): X_s ~ N(μ_θ(X_t, t), σ_t² I), one random step after the other.

    Args:
        model: ε_θ(x, t, condition).
        x: X_T ~ N(0, I), (B, …); it begins at times[0].
        schedule: of the forward process.
        times: falling whole numbers, T … 0; None: all of them. With gaps, the steps are those of the chain of the times
            that remain (Nichol & Dhariwal 2021, section 4).
        condition: handed to the model.
        noise: where each step's ε comes from: a generator, tensors of x's shape, or torch's own (None); see
            `process.noise_stream`. The step to t = 0 needs none.
        variance: σ_t² as β̃_t ("small", right for data that is one point) or β_t ("large", right for N(0, I) data).
        clip: clamps each X̂_0 to [-clip, clip]: 1 for images, whose pixels end there; None does not.

    Raises:
        ValueError: times that do not fall from T or less to 0 or more, noise of another shape, with NaN, or that ends
            too early, another variance, x that holds NaN or infinity, or a model that changes x's shape.
        TypeError: times that are not whole.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"expected variance small or large, got {variance!r}")
    steps, drawn = _start(x, schedule, times), noise_stream(noise, x)
    for t, s in steps:
        x0, _ = _estimate(model, x, t, condition, schedule, clip)
        c_0, c_t, small, large = posterior_coefficients(t, s, schedule, x)
        x = c_0 * x0 + c_t * x
        if s > 0:
            x = x + (small if variance == "small" else large).sqrt() * next(drawn)
        yield State(s, x, x0)


@torch.no_grad()
def ddim(
    model: Model,
    x: Tensor,
    schedule: Schedule,
    times: Sequence[int] | None = None,
    condition: Tensor | None = None,
    *,
    eta: float = 0.0,
    noise: Noise = None,
    clip: float | None = None,
) -> Iterator[State]:
    """Denoising diffusion implicit models (Song et al. 2021, arXiv 2010.02502, equation 12).

    X_s = √ᾱ_s X̂_0 + √(1 − ᾱ_s − σ²) ε_θ + σ ε with σ² = η² β̃. η = 0 is deterministic, Euler's method on the ODE; η = 1
    is `ddpm` with the small variance.

    Args:
        eta: η, from 0 to 1.
        model, x, schedule, times, condition, noise, clip: as for `ddpm`.

    Raises:
        ValueError: eta outside [0, 1], or as for `ddpm`.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"expected eta in [0, 1], got {eta}")
    steps, drawn = _start(x, schedule, times), noise_stream(noise, x)
    for t, s in steps:
        x0, epsilon = _estimate(model, x, t, condition, schedule, clip)
        a, b = schedule.at(s, x)
        variance = eta**2 * posterior_coefficients(t, s, schedule, x)[2]
        x = a * x0 + (b**2 - variance).clamp_min(0).sqrt() * epsilon
        if eta > 0 and s > 0:
            x = x + variance.sqrt() * next(drawn)
        yield State(s, x, x0)


@torch.no_grad()
def dpm_solver(
    model: Model,
    x: Tensor,
    schedule: Schedule,
    times: Sequence[int] | None = None,
    condition: Tensor | None = None,
    *,
    clip: float | None = None,
) -> Iterator[State]:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): second order at one call a step.

    What it adds to DDIM is memory: the last two X̂_0 tell how X̂_0 is changing, and the step follows that line. The
    first step, and one that ends at t = 0, where λ = log √ᾱ/√(1 − ᾱ) is infinite, are DDIM's.

    Args and errors: those of `ddpm`.
    """
    before: tuple[Tensor, Tensor] | None = None  # X̂_0 and the step in λ, of the step before
    for t, s in _start(x, schedule, times):
        x0, _ = _estimate(model, x, t, condition, schedule, clip)
        (a, b), (a_s, b_s) = schedule.at(t, x), schedule.at(s, x)
        h = (a_s / b_s).log() - (a / b).log()
        ahead = x0
        if before is not None and s > 0:
            ahead = x0 + h / (2 * before[1]) * (x0 - before[0])
        x = b_s / b * x - a_s * torch.expm1(-h) * ahead
        before = x0, h
        yield State(s, x, x0)


@torch.no_grad()
def heun(
    model: Model,
    x: Tensor,
    schedule: Schedule,
    times: Sequence[int] | None = None,
    condition: Tensor | None = None,
    *,
    clip: float | None = None,
) -> Iterator[State]:
    """Heun's method on the probability-flow ODE: go there by Euler, look at the slope, take the mean of both slopes.

    As in Karras et al. (2022, algorithm 1), the step that ends at t = 0 is Euler's, so n steps to 0 take 2n − 1 calls.
    Departure: they integrate over σ = tan φ, which is unbounded where the image is pure noise; here over φ.

    Args and errors: those of `ddpm`.
    """
    for t, s in _start(x, schedule, times):
        phi, phi_s = (torch.atan2(b, a) for a, b in (schedule.at(time, x) for time in (t, s)))
        x0, epsilon = _estimate(model, x, t, condition, schedule, clip)
        euler = phi_s.cos() * x0 + phi_s.sin() * epsilon  # exact while X̂_0 and ε stay: DDIM's step
        if s == 0:
            x = euler
        else:
            slope = phi.cos() * epsilon - phi.sin() * x0
            x0_s, epsilon_s = _estimate(model, euler, s, condition, schedule, clip)
            x = x + (phi_s - phi) / 2 * (slope + phi_s.cos() * epsilon_s - phi_s.sin() * x0_s)
        yield State(s, x, x0)


def last(states: Iterable[State]) -> Tensor:
    """X of the last state: runs a sampler to its end and keeps nothing on the way."""
    return collections.deque(states, maxlen=1).pop().x


def _start(x: Tensor, schedule: Schedule, times: Sequence[int] | None) -> list[tuple[int, int]]:
    """The steps (t, s), once all that could be wrong with the arguments is known to be right."""
    if not x.is_floating_point() or not x.isfinite().all():
        raise ValueError(f"expected x of finite floats; got {x.dtype}{'' if x.isfinite().all() else ' with NaN or ∞'}")
    times = list(range(schedule.T, -1, -1)) if times is None else [operator.index(t) for t in times]
    steps = list(itertools.pairwise(times))
    if not steps or times[0] > schedule.T or times[-1] < 0 or any(t <= s for t, s in steps):
        raise ValueError(f"expected at least two falling times between {schedule.T} and 0; got {times[:8]}")
    return steps


def _estimate(
    model: Model, x: Tensor, t: int, condition: Tensor | None, schedule: Schedule, clip: float | None
) -> tuple[Tensor, Tensor]:
    """X̂_0 and ε that fit together: √ᾱ X̂_0 + √(1 − ᾱ) ε = x."""
    epsilon = model(x, torch.full((len(x),), t, device=x.device), condition)
    if epsilon.shape != x.shape:
        raise ValueError(f"the model returned {tuple(epsilon.shape)} for x {tuple(x.shape)}")
    a, b = schedule.at(t, x)
    x0 = (x - b * epsilon) / a
    if clip is None:
        return x0, epsilon
    x0 = x0.clamp(-clip, clip)
    return x0, (x - a * x0) / b


Sampler = Callable[..., Iterator[State]]
BATCH = 250


def sample(
    denoiser: Denoiser,
    x: Tensor | int,
    condition: Tensor | None = None,
    *,
    sampler: Sampler = dpm_solver,
    steps: int = 20,
    guidance_scale: float = 1.0,
    rng: torch.Generator | None = None,
    clip: float | None = 1.0,
    **options: object,
) -> Tensor:
    """Images (B, C, H, W) in [0, 1], clamped, in batches of 250, with a progress bar where it takes over 2 s.

    Args:
        denoiser: works in evaluation mode, and returns to its own.
        x: X_T ~ N(0, I) (B, C, H, W), or how many to draw.
        condition: int64 (B,) classes or (B, d) vectors; None: unconditional.
        sampler: `ddpm`, `ddim`, `dpm_solver` or `heun`.
        steps: of the sampler, over times spaced evenly. Each is a call of the network, of `heun` nearly two, and with a
            guidance scale other than 0 and 1 twice as many.
        guidance_scale: of the guidance, see `guided`.
        rng: draws x and, for `ddpm`, all further noise; None: torch's own.
        clip: see `ddpm`. options: more of the sampler, such as `eta`; not `noise`, for which `rng` is there.

    Raises:
        ValueError: no images asked for, a condition of another length, or what sampler and network refuse.
    """
    weight = next(denoiser.parameters())
    if isinstance(x, int):
        if x < 1 or denoiser.shape is None:
            raise ValueError(f"expected at least one image, and a denoiser that knows their shape; got {x}")
        device = weight.device if rng is None else rng.device
        x = torch.randn(x, *denoiser.shape, generator=rng, device=device)
    x = x.to(weight)
    if not len(x):
        raise ValueError(f"expected at least one image, got {tuple(x.shape)}")
    if condition is not None and len(condition) != len(x):
        raise ValueError(f"expected as many conditions as images; got {len(condition)} and {len(x)}")
    if "noise" in inspect.signature(sampler).parameters:
        options = {"noise": rng} | options
    conditions = [None] * len(x.split(BATCH)) if condition is None else condition.to(x.device).split(BATCH)
    model, times = guided(denoiser, guidance_scale), denoiser.schedule.times(steps)
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
