"""The two processes of the lecture: forward, which adds noise, and what is known of the way back.

All functions take pictures (B, …) and times t: a number, or int64 (B,). X_0 is the data, around [-1, 1] for pictures.
"""

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor

from course_lib.diffusion.schedule import Schedule

Kind = Literal["epsilon", "x0", "v", "mu"]
KINDS = ("epsilon", "x0", "v", "mu")
Noise = torch.Generator | Iterable[Tensor] | None  # where ε comes from: see `fresh`


def q_sample(x0: Tensor, t: Tensor | int, noise: Tensor, schedule: Schedule) -> Tensor:
    """X_t = √ᾱ_t X_0 + √(1 − ᾱ_t) ε in one go (Ho et al. 2020, equation 4).

    Args:
        x0: (B, …). t: 0 … T. noise: ε ~ N(0, I), of x0's shape.

    Raises:
        ValueError: shapes that differ, times out of range.
    """
    _check_noise(noise, x0)
    a, s = schedule.at(t, x0)
    return a * x0 + s * noise


def q_step(x: Tensor, t: int, noise: Tensor, schedule: Schedule) -> Tensor:
    """One step of the chain: X_t = √(1 − β_t) X_{t−1} + √β_t ε (equation 2), for t from 1.

    Raises:
        ValueError: shapes that differ, a time out of range.
    """
    _check_noise(noise, x)
    beta = schedule.pick(schedule.beta, t, x, low=1)
    return (1 - beta).sqrt() * x + beta.sqrt() * noise


def posterior_coefficients(t: Tensor | int, s: Tensor | int, schedule: Schedule, like: Tensor) -> tuple[Tensor, ...]:
    """The numbers of q(X_s | X_t, X_0) for s < t, which is Gaussian; s = t − 1 is the paper's (equations 6 and 7).

    Args:
        t, s: times, both whole numbers or both int64 (B,). like: as for `Schedule.at`.

    Returns:
        c_0, c_t, β̃, β, shaped as `Schedule.at` does: the mean is c_0 X_0 + c_t X_t, the variance β̃, and β is that of
        the forward step from s to t.

    Raises:
        ValueError: times out of range, or s that is not before t.
    """
    # In float64 to the end: 1 − ᾱ_t/ᾱ_s is the difference of numbers that are nearly equal.
    wide = like.new_empty(like.shape[:1] + (1,) * (like.ndim - 1), dtype=torch.float64, device="cpu")
    t, s = (time.cpu() if isinstance(time, Tensor) else time for time in (t, s))
    now, then = schedule.pick(schedule.alpha_bar, t, wide, low=1), schedule.pick(schedule.alpha_bar, s, wide)
    beta = 1 - now / then
    if not (beta > 0).all():
        raise ValueError(f"expected s < t, got {s} and {t}")
    c_0 = then.sqrt() * beta / (1 - now)
    c_t = (now / then).sqrt() * (1 - then) / (1 - now)
    return tuple(c.to(like.device, like.dtype) for c in (c_0, c_t, beta * (1 - then) / (1 - now), beta))


def posterior(x0: Tensor, x: Tensor, t: Tensor | int, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Mean (B, …) and variance (() or (B, 1, …)) of q(X_{t−1} | X_t, X_0) (equations 6 and 7), for t from 1.

    Args:
        x0, x: (B, …), X_0 and X_t.

    Raises:
        ValueError: times out of range.
    """
    c_0, c_t, variance, _ = posterior_coefficients(t, t - 1, schedule, x)
    return c_0 * x0 + c_t * x, variance


def mu_from_epsilon(x: Tensor, t: Tensor | int, epsilon: Tensor, schedule: Schedule) -> Tensor:
    """μ_θ(X_t, t) = (X_t − β_t/√(1 − ᾱ_t) ε_θ)/√(1 − β_t) (equation 11), for t from 1.

    Raises:
        ValueError: times out of range.
    """
    _, s = schedule.at(t, x, low=1)
    beta = schedule.pick(schedule.beta, t, x)
    return (x - beta / s * epsilon) / (1 - beta).sqrt()


def target(kind: Kind, x0: Tensor, noise: Tensor, t: Tensor | int, schedule: Schedule) -> Tensor:
    """What a network of that kind should answer at X_t = √ᾱ_t X_0 + √(1 − ᾱ_t) ε.

    | kind | target | |
    |---|---|---|
    | `epsilon` | ε | the lecture's; Ho et al. 2020 |
    | `x0` | X_0 | the clean picture |
    | `v` | √ᾱ_t ε − √(1 − ᾱ_t) X_0 | Salimans & Ho 2022, appendix D; means something at both ends |
    | `mu` | the mean of q(X_{t−1} given X_t, X_0) | what the reverse process needs |

    Raises:
        ValueError: another kind, or times out of range; of `mu`, t = 0.
    """
    if kind == "epsilon":
        return noise
    if kind == "x0":
        return x0
    a, s = schedule.at(t, x0)
    if kind == "v":
        return a * noise - s * x0
    _check(kind)
    return posterior(x0, a * x0 + s * noise, t, schedule)[0]


def to_x0(kind: Kind, prediction: Tensor, x: Tensor, t: Tensor | int, schedule: Schedule) -> Tensor:
    """The estimate of X_0 that a prediction of some kind amounts to, at X_t = x.

    Raises:
        ValueError: another kind, or times out of range; of `mu`, t = 0.
    """
    if kind == "x0":
        return prediction
    a, s = schedule.at(t, x)
    if kind == "epsilon":
        return (x - s * prediction) / a
    if kind == "v":
        return a * x - s * prediction
    _check(kind)
    c_0, c_t, _, _ = posterior_coefficients(t, t - 1, schedule, x)
    return (prediction - c_t * x) / c_0


def to_epsilon(kind: Kind, prediction: Tensor, x: Tensor, t: Tensor | int, schedule: Schedule) -> Tensor:
    """The estimate of the noise ε that a prediction of some kind amounts to, at X_t = x, for t from 1.

    Raises:
        ValueError: another kind, or times out of range.
    """
    if kind == "epsilon":
        return prediction
    a, s = schedule.at(t, x, low=1)
    if kind == "v":
        return s * x + a * prediction
    return (x - a * to_x0(kind, prediction, x, t, schedule)) / s


def fresh(noise: Noise, like: Tensor) -> Iterator[Tensor]:
    """ε ~ N(0, I) of the shape, dtype and device of `like` (B, …), time after time.

    Args:
        noise: a generator, tensors of that shape to be used one after the other, or None: torch's own generator.

    Raises:
        ValueError: when its turn comes, a tensor of another shape or with NaN; or when there is none left.
    """
    if noise is None or isinstance(noise, torch.Generator):
        device = like.device if noise is None else noise.device
        while True:
            yield torch.randn(like.shape, generator=noise, device=device, dtype=like.dtype).to(like.device)
    for given in noise:
        _check_noise(given, like)
        if not given.isfinite().all():
            raise ValueError("expected noise of finite numbers, got NaN or infinity")
        yield given
    raise ValueError("the noise given ends before the steps do")


def _check_noise(noise: Tensor, x: Tensor) -> None:
    if noise.shape != x.shape:
        raise ValueError(f"expected noise {tuple(x.shape)}, got {tuple(noise.shape)}")


def _check(kind: str) -> None:
    if kind != "mu":
        raise ValueError(f"expected a kind of {', '.join(KINDS)}; got {kind!r}")
