"""From noise to data: DDPM's ancestral sampler, DDIM, DPM-Solver++(2M) with or without dice, and Heun's method.

`sample` gives finished images, from any of them. Each sampler is an iterator over falling times t_1 > t_2 > … that
yields a `State` a step, so that a lesson can draw what happens, and memory does not grow with the number of steps;
`last` runs one to its end. (It begins, and complains of its arguments, when its first state is asked for.)

With the angle φ of √ᾱ = cos φ, √(1 − ᾱ) = sin φ, the deterministic samplers solve dX/dφ = cos φ ε_θ − sin φ X̂_0, the
probability-flow ODE (Song et al. 2021, arXiv 2011.13456, equation 13), along which X_T turns into data without any new
noise. States and coefficients are float32 or float64, whatever the precision of the network.
"""

import collections
import inspect
import itertools
import math
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from course_lib.base import runtime
from course_lib.base.sampling import in_batches, starting_noise
from course_lib.diffusion.denoiser import Denoiser, Model, guided
from course_lib.diffusion.process import Schedule, check_noise, posterior_coefficients

Noise = torch.Generator | Iterable[Tensor] | None  # where ε comes from: see `noise_stream`


class State(NamedTuple):
    """What a step leaves.

    Attributes:
        t: the time reached.
        x: X_t (B, …), in the dtype of the noise that the sampler began with; float32 where that was a half precision.
        x0: the estimate X̂_0 (B, …) that the step used.
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
        model: ε_θ(x, t, condition), whose x has the dtype of the states.
        x: X_T ~ N(0, I), floats (B, …); it begins at times[0].
        schedule: of the forward process.
        times: falling whole numbers, T … 0; None: all of them. With gaps, the steps are those of the chain of the times
            that remain (Nichol & Dhariwal 2021, section 4).
        condition: handed to the model.
        noise: where the ε of each step comes from, see `noise_stream`. The step to t = 0 needs none.
        variance: σ_t² as β̃_t ("small", right for data that is one point) or β_t ("large", right for N(0, I) data).
        clip: clamps each X̂_0 to [-clip, clip]: 1 for images, whose pixels end there; None does not.

    Raises:
        ValueError: times that do not fall from T or less to 0 or more, noise of another shape, with NaN, or that ends
            too early, another variance, x that holds NaN or infinity, or a model that changes x's shape.
        TypeError: times that are not whole, or x that is no float.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"expected variance small or large, got {variance!r}")
    x, steps = _start(x, schedule, times)
    stream = noise_stream(noise, x)
    for t, s in steps:
        x0, _ = _estimate(model, x, t, condition, schedule, clip)
        c_0, c_t, small, large = posterior_coefficients(t, s, schedule, x)
        x = c_0 * x0 + c_t * x
        if s > 0:
            x = x + (small if variance == "small" else large).sqrt() * next(stream)
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
        model: ε_θ(x, t, condition).
        x: X_T ~ N(0, I), floats (B, …); it begins at times[0].
        schedule: of the forward process.
        times: falling whole numbers, T … 0; None: all of them.
        condition: handed to the model.
        eta: η, from 0 to 1.
        noise: where the ε of each step comes from, see `noise_stream`; with η = 0 none is needed.
        clip: clamps each X̂_0 to [-clip, clip]; None does not.

    Raises:
        ValueError: eta outside [0, 1], times that do not fall from T or less to 0 or more, noise of another shape, with
            NaN, or that ends too early, x that holds NaN or infinity, or a model that changes x's shape.
        TypeError: times that are not whole, or x that is no float.
    """
    x, steps = _start(x, schedule, times)
    stream = noise_stream(noise, x)
    for t, s in steps:
        x0, _ = _estimate(model, x, t, condition, schedule, clip)
        x = _towards(x0, x, t, s, schedule, eta, stream)
        yield State(s, x, x0)


@torch.no_grad()
def dpm_solver(
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
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): second order at one call a step.

    It is DDIM with memory: the last two X̂_0 tell how X̂_0 is changing over λ = log √ᾱ/√(1 − ᾱ), and the step goes
    towards where it will be in the middle of the step. The first step, and one that ends at t = 0, where λ is infinite,
    are DDIM's. With η = 1 it is their SDE-DPM-Solver++(2M) (appendix A), to `ddpm` what the plain one is to `ddim`.

    Args:
        model: ε_θ(x, t, condition).
        x: X_T ~ N(0, I), floats (B, …); it begins at times[0].
        schedule: of the forward process.
        times: falling whole numbers, T … 0; None: all of them.
        condition: handed to the model.
        eta: η of `ddim`, from 0 to 1: how much of each step's noise is new.
        noise: where the ε of each step comes from, see `noise_stream`; with η = 0 none is needed.
        clip: clamps each X̂_0 to [-clip, clip]; None does not.

    Raises:
        ValueError: eta outside [0, 1], times that do not fall from T or less to 0 or more, noise of another shape, with
            NaN, or that ends too early, x that holds NaN or infinity, or a model that changes x's shape.
        TypeError: times that are not whole, or x that is no float.
    """
    lam = (schedule.snr.log() / 2).tolist()  # λ of all times in float64: h is the difference of two that are near
    x, steps = _start(x, schedule, times)
    stream = noise_stream(noise, x)
    before: tuple[Tensor, float] | None = None  # X̂_0 and h of the step before
    for t, s in steps:
        x0, _ = _estimate(model, x, t, condition, schedule, clip)
        h, ahead = lam[s] - lam[t], x0
        if before is not None and s > 0:
            ahead = x0 + h / (2 * before[1]) * (x0 - before[0])
        x = _towards(ahead, x, t, s, schedule, eta, stream)
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

    Args:
        model: ε_θ(x, t, condition).
        x: X_T ~ N(0, I), floats (B, …); it begins at times[0].
        schedule: of the forward process.
        times: falling whole numbers, T … 0; None: all of them.
        condition: handed to the model.
        clip: clamps each X̂_0 to [-clip, clip]; None does not.

    Raises:
        ValueError: times that do not fall from T or less to 0 or more, x that holds NaN or infinity, or a model that
            changes x's shape.
        TypeError: times that are not whole, or x that is no float.
    """
    phi = torch.atan2((1 - schedule.alpha_bar).sqrt(), schedule.alpha_bar.sqrt()).tolist()
    x, steps = _start(x, schedule, times)
    for t, s in steps:
        cos_t, sin_t, cos_s, sin_s = math.cos(phi[t]), math.sin(phi[t]), math.cos(phi[s]), math.sin(phi[s])
        x0, epsilon = _estimate(model, x, t, condition, schedule, clip)
        euler = cos_s * x0 + sin_s * epsilon  # exact while X̂_0 and ε stay: DDIM's step
        if s == 0:
            x = euler
        else:
            slope = cos_t * epsilon - sin_t * x0
            x0_s, epsilon_s = _estimate(model, euler, s, condition, schedule, clip)
            x = x + (phi[s] - phi[t]) / 2 * (slope + cos_s * epsilon_s - sin_s * x0_s)
        yield State(s, x, x0)


def last(states: Iterable[State]) -> Tensor:
    """X of the last state: runs a sampler to its end and keeps nothing on the way."""
    return collections.deque(states, maxlen=1).pop().x


def noise_stream(noise: Noise, like: Tensor) -> Iterator[Tensor]:
    """ε ~ N(0, I) of the shape, dtype and device of `like` (B, …), time after time.

    Args:
        noise: a torch.Generator, or tensors of that shape to be used one after the other, or None: torch's own
            generator.
        like: what the noise is for.

    Raises:
        ValueError: when its turn comes, a tensor of another shape or with NaN; or when there is none left.
    """
    if noise is None or isinstance(noise, torch.Generator):
        device = like.device if noise is None else noise.device
        while True:
            yield torch.randn(like.shape, generator=noise, device=device, dtype=like.dtype).to(like.device)
    for given in noise:
        check_noise(given, like)
        if not given.isfinite().all():
            raise ValueError("expected noise of finite numbers, got NaN or infinity")
        yield given
    raise ValueError("the noise given ends before the steps do")


def _start(x: Tensor, schedule: Schedule, times: Sequence[int] | None) -> tuple[Tensor, list[tuple[int, int]]]:
    """X_T in float32 at least, and the steps (t, s), once all that could be wrong with them is known to be right."""
    if not x.is_floating_point():
        raise TypeError(f"expected x of floats, got {x.dtype}")
    if not x.isfinite().all():
        raise ValueError("expected x of finite numbers, got NaN or infinity")
    times = list(range(schedule.T, -1, -1)) if times is None else [operator.index(t) for t in times]
    steps = list(itertools.pairwise(times))
    if not steps or times[0] > schedule.T or times[-1] < 0 or any(t <= s for t, s in steps):
        raise ValueError(f"expected at least two falling times between {schedule.T} and 0; got {times[:8]}")
    return runtime.wide(x), steps


def _estimate(
    model: Model, x: Tensor, t: int, condition: Tensor | None, schedule: Schedule, clip: float | None
) -> tuple[Tensor, Tensor]:
    """X̂_0 and ε that fit together: √ᾱ X̂_0 + √(1 − ᾱ) ε = x."""
    epsilon = model(x, torch.full((len(x),), t, device=x.device), condition).to(x.dtype)
    if epsilon.shape != x.shape:
        raise ValueError(f"the model returned {tuple(epsilon.shape)} for x {tuple(x.shape)}")
    a, b = schedule.at(t, x)
    x0 = (x - b * epsilon) / a
    if clip is None:
        return x0, epsilon
    x0 = x0.clamp(-clip, clip)
    return x0, (x - a * x0) / b


def _towards(x0: Tensor, x: Tensor, t: int, s: int, schedule: Schedule, eta: float, stream: Iterator[Tensor]) -> Tensor:
    """X_s from X_t = x if X_0 is x0: √ᾱ_s x0 + √(1 − ᾱ_s − σ²) ε + σ · fresh noise, with x's own ε and σ² = η² β̃."""
    eta = float(eta)
    if not 0 <= eta <= 1:
        raise ValueError(f"expected eta in [0, 1], got {eta}")
    (a, b), (a_s, b_s) = schedule.at(t, x), schedule.at(s, x)
    variance = eta**2 * posterior_coefficients(t, s, schedule, x)[2]
    x = a_s * x0 + (b_s**2 - variance).clamp_min(0).sqrt() / b * (x - a * x0)
    return x + variance.sqrt() * next(stream) if eta > 0 and s > 0 else x


BATCH = 250


def sample(
    denoiser: Denoiser,
    x: Tensor | int,
    condition: Tensor | None = None,
    *,
    sampler: Callable[..., Iterator[State]] = dpm_solver,
    steps: int | Sequence[int] = 20,
    guidance_scale: float = 1.0,
    rng: torch.Generator | None = None,
    clip: float | None = 1.0,
    **options: object,
) -> Tensor:
    """Images (B, C, H, W) in [0, 1], clamped, in batches of 250, with a progress bar where it takes over 2 s.

    They are float32, of a network in float64 float64. On a CPU `runtime.fastest_threads` chooses the number of threads,
    which changes the last bits of sums.

    Args:
        denoiser: works in evaluation mode; after it, each of its parts has its own mode again.
        x: X_T ~ N(0, I) (B, C, H, W), or how many to draw.
        condition: int64 (B,) classes or (B, d) vectors, or one for all; None: unconditional.
        sampler: `ddpm`, `ddim`, `dpm_solver` or `heun`.
        steps: of the sampler, over times spaced evenly; or the falling times, such as `Schedule.times` with a rho. Each
            step is a call of the network, of `heun` nearly two, and with a guidance scale other than 0 and 1 twice as
            many.
        guidance_scale: of the guidance, see `guided`.
        rng: draws x and, for `ddpm`, all further noise; None: torch's own.
        clip: clamps each X̂_0 to [-clip, clip]; None does not.
        options: more of the sampler, such as `eta`; not `noise`, for which `rng` is there.

    Raises:
        ValueError: no images asked for, a number of them where the denoiser does not know their shape, a condition of
            another length, or what sampler and network refuse.
        TypeError: steps that are not whole, or classes that are no integers.
    """
    if denoiser.shape is None and torch.as_tensor(x).ndim == 0:
        raise ValueError(f"this denoiser does not know the shape of its images; hand over their noise, not {x}")
    x = starting_noise(x, denoiser.shape, denoiser, rng)
    x = x.to(torch.promote_types(next(denoiser.parameters()).dtype, torch.float32))
    if "noise" in inspect.signature(sampler).parameters:
        options = {"noise": rng} | options
    model = guided(denoiser, guidance_scale)
    times = steps if isinstance(steps, Sequence) else denoiser.schedule.times(steps)
    total = (len(times) - 1) * math.ceil(len(x) / BATCH)
    shown = {"total": total, "desc": "sampling", "unit": " steps", "delay": 2, "leave": False}
    with runtime.fastest_threads(x.device.type == "cpu") as step_took, tqdm(**shown) as bar:

        def draw(x: Tensor, condition: Tensor | None) -> Tensor:
            began = time.perf_counter()
            for state in sampler(model, x, denoiser.schedule, times, condition, clip=clip, **options):
                bar.update()
                began, before = time.perf_counter(), began
                step_took(began - before)
                x = state.x
            return x

        images = in_batches(denoiser, draw, x, condition, batch_size=BATCH)
    return ((images + 1) / 2).clamp(0, 1).contiguous()
