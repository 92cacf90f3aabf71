"""How much of the image is left at each time: the noise schedule ᾱ_t of the forward process.

Times are whole numbers: t = 0 is the data, ᾱ_0 = 1; t = T is nearly pure noise. Everything is kept in float64 and
handed out in the precision and on the device of the images, so that 1 − ᾱ_t has its digits also where it is tiny.


The two processes of the lecture: forward, which adds noise, and what is known of the way back.

All functions take images (B, …) and times t: a number, or int64 (B,). X_0 is the data, around [-1, 1] for images.
"""

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Schedule:
    """ᾱ_0 = 1 > ᾱ_1 > … > ᾱ_T > 0 of q(X_t | X_0) = N(√ᾱ_t X_0, (1 − ᾱ_t) I) (Ho et al. 2020, equation 4).

    Attributes:
        alpha_bar: (T + 1,) float64 on the CPU.

    Raises:
        ValueError: numbers that do not begin at 1, do not fall all the time, or reach 0 or NaN.
    """

    alpha_bar: Tensor

    def __post_init__(self) -> None:
        a = self.alpha_bar
        if a.ndim != 1 or len(a) < 2 or a.dtype != torch.float64:
            raise ValueError(f"expected alpha_bar (T + 1,) float64 with T ≥ 1, got {tuple(a.shape)} {a.dtype}")
        if a[0] != 1 or not (a.diff() < 0).all() or not a[-1] > 0:  # written so that NaN fails, too
            raise ValueError("alpha_bar must begin at 1 and fall at every step, to a last value above 0")

    @property
    def T(self) -> int:
        """The last time."""
        return len(self.alpha_bar) - 1

    @property
    def beta(self) -> Tensor:
        """β_t = 1 − ᾱ_t/ᾱ_{t−1} (T + 1,) float64, the variance of the noise of step t; β_0 = 0."""
        beta = torch.zeros_like(self.alpha_bar)
        beta[1:] = 1 - self.alpha_bar[1:] / self.alpha_bar[:-1]
        return beta

    @property
    def snr(self) -> Tensor:
        """The signal-to-noise ratio ᾱ_t/(1 − ᾱ_t) (T + 1,) float64; infinite at t = 0."""
        return self.alpha_bar / (1 - self.alpha_bar)

    def at(self, t: Tensor | int, like: Tensor, low: int = 0) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1 − ᾱ_t), for multiplication with images.

        Args:
            t: a time, or int64 (B,), one for each image; low … T.
            like: (B, …), whose dtype, device and number of dimensions they get.
            low: 1 where t = 0 has no meaning.

        Returns:
            (B, 1, …) each, or scalars () for one time.

        Raises:
            ValueError: a time out of range (on a GPU, torch's own error), or another number of times.
            TypeError: times that are not whole.
        """
        return self.pick(self.alpha_bar.sqrt(), t, like, low), self.pick((1 - self.alpha_bar).sqrt(), t, like, low)

    def pick(self, table: Tensor, t: Tensor | int, like: Tensor, low: int = 0) -> Tensor:
        """The entries of a table (T + 1,) float64 at times t, shaped as `at` describes, with its errors."""
        if isinstance(t, Tensor):
            if t.is_floating_point() or t.dtype == torch.bool:
                raise TypeError(f"expected whole times, got {t.dtype}")
            if t.shape != like.shape[:1]:
                raise ValueError(f"expected {len(like)} times, one for each image; got {tuple(t.shape)}")
            if t.device.type == "cpu":
                self.check(t, low)
            return table.to(like.device, like.dtype)[t.to(like.device)].view(-1, *[1] * (like.ndim - 1))
        t = operator.index(t)
        self.check(torch.tensor(t), low)
        return table[t].to(like.device, like.dtype)

    def check(self, t: Tensor, low: int = 0) -> None:
        """Raises ValueError for times below `low` or above T."""
        if t.numel() and (t.min() < low or t.max() > self.T):
            raise ValueError(f"expected times {low} … {self.T}, got {int(t.min())} … {int(t.max())}")

    def times(self, calls: int) -> list[int]:
        """T = t_1 > t_2 > … > 0: times for a sampler of `calls` steps, spaced evenly; `calls` = T gives all.

        Raises:
            ValueError: calls outside 1 … T.
        """
        if not 1 <= calls <= self.T:
            raise ValueError(f"expected 1 … {self.T} calls, got {calls}")
        return [round(t) for t in torch.linspace(self.T, 0, calls + 1, dtype=torch.float64).tolist()]

    def distance_to_noise(self, x0: Tensor) -> Tensor:
        """KL(q(X_T | X_0) ‖ N(0, I)) of each image, in nats: ½ Σ (ᾱ_T x² − ᾱ_T − log(1 − ᾱ_T)) over its pixels.

        It is what is left of the image at the end: 0 for T → ∞, as the lecture says.

        Args:
            x0: (B, …). Returns (B,) float64.
        """
        left = self.alpha_bar[-1].item()
        x = x0.detach().to("cpu", torch.float64).flatten(1)
        return 0.5 * (left * x.square() - left - math.log1p(-left)).sum(1)


def from_betas(betas: Tensor) -> Schedule:
    """A schedule of your own, from the variances β_1 … β_T (T,) in (0, 1) of the steps.

    Raises:
        ValueError: variances outside (0, 1), or none.
    """
    betas = torch.as_tensor(betas, dtype=torch.float64, device="cpu")
    if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas < 1)).all():
        raise ValueError("expected at least one β, all in (0, 1)")
    return Schedule(torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, 0)]))


def linear(T: int = 1000) -> Schedule:
    """β rises evenly from 10⁻⁴ to 0.02 in T = 1000 steps (Ho et al. 2020, section 4); for other T, times 1000/T.

    Raises:
        ValueError: T of 20 or less, where a β would reach 1.
    """
    if T <= 20:
        raise ValueError(f"expected T > 20, got {T}")
    return from_betas(torch.linspace(1e-4, 0.02, T, dtype=torch.float64) * (1000 / T))


def cosine(T: int = 1000, s: float = 0.008) -> Schedule:
    """ᾱ_t = f(t)/f(0), f(t) = cos²(π/2 · (t/T + s)/(1 + s)), β at most 0.999 (Nichol & Dhariwal 2021, equation 17).

    The image fades evenly, while `linear` spends its last quarter on what is already noise.
    """
    return from_function(lambda u: math.cos(math.pi / 2 * (u + s) / (1 + s)) ** 2, T)


def from_function(alpha_bar: Callable[[float], float], T: int) -> Schedule:
    """A schedule from any falling ᾱ(u), u = t/T from 0 to 1, divided by ᾱ(0); each β is at most 0.999.

    Raises:
        ValueError: T below 1, or a function that does not fall.
    """
    if T < 1:
        raise ValueError(f"expected T ≥ 1, got {T}")
    values = torch.tensor([alpha_bar(t / T) for t in range(T + 1)], dtype=torch.float64)
    return from_betas((1 - values[1:] / values[:-1]).clamp_max(0.999))


PredictionType = Literal["epsilon", "x0", "v", "mu"]
PREDICTION_TYPES = ("epsilon", "x0", "v", "mu")
Noise = torch.Generator | Iterable[Tensor] | None  # where ε comes from: see `noise_stream`


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


def target(prediction_type: PredictionType, x0: Tensor, noise: Tensor, t: Tensor | int, schedule: Schedule) -> Tensor:
    """What a network of that `prediction_type` should answer at X_t = √ᾱ_t X_0 + √(1 − ᾱ_t) ε.

    | prediction_type | target | |
    |---|---|---|
    | `epsilon` | ε | the lecture's; Ho et al. 2020 |
    | `x0` | X_0 | the clean image |
    | `v` | √ᾱ_t ε − √(1 − ᾱ_t) X_0 | Salimans & Ho 2022, appendix D; means something at both ends |
    | `mu` | the mean of q(X_{t−1} given X_t, X_0) | what the reverse process needs |

    Raises:
        ValueError: another prediction_type, or times out of range; of `mu`, t = 0.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "x0":
        return x0
    a, s = schedule.at(t, x0)
    if prediction_type == "v":
        return a * noise - s * x0
    _check(prediction_type)
    return posterior(x0, a * x0 + s * noise, t, schedule)[0]


def to_x0(
    prediction_type: PredictionType, prediction: Tensor, x: Tensor, t: Tensor | int, schedule: Schedule
) -> Tensor:
    """The estimate of X_0 that a prediction amounts to, at X_t = x.

    Raises:
        ValueError: another prediction_type, or times out of range; of `mu`, t = 0.
    """
    if prediction_type == "x0":
        return prediction
    a, s = schedule.at(t, x)
    if prediction_type == "epsilon":
        return (x - s * prediction) / a
    if prediction_type == "v":
        return a * x - s * prediction
    _check(prediction_type)
    c_0, c_t, _, _ = posterior_coefficients(t, t - 1, schedule, x)
    return (prediction - c_t * x) / c_0


def to_epsilon(
    prediction_type: PredictionType, prediction: Tensor, x: Tensor, t: Tensor | int, schedule: Schedule
) -> Tensor:
    """The estimate of the noise ε that a prediction amounts to, at X_t = x, for t from 1.

    Raises:
        ValueError: another prediction_type, or times out of range.
    """
    if prediction_type == "epsilon":
        return prediction
    a, s = schedule.at(t, x, low=1)
    if prediction_type == "v":
        return s * x + a * prediction
    return (x - a * to_x0(prediction_type, prediction, x, t, schedule)) / s


def noise_stream(noise: Noise, like: Tensor) -> Iterator[Tensor]:
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


def _check(prediction_type: str) -> None:
    if prediction_type != "mu":
        raise ValueError(f"expected a prediction_type of {', '.join(PREDICTION_TYPES)}; got {prediction_type!r}")
