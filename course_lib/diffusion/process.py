"""The forward process, which turns data into noise, and what is known of the way back.

Times are whole numbers: X_0 is the data (images around [-1, 1]), X_T nearly pure noise. A `Schedule` says how much of
the data is left at each time; `q_sample` adds noise, `posterior` is the way back for a known X_0. A network may predict
the noise, X_0 or a mixture of both: `target` says what it learns, `to_x0` and `to_epsilon` what an answer means.

All functions take float tensors (B, …) and a time t: a number for all, or int64 (B,), one for each. They compute in
float32 at least, and what has the shape of the data has its dtype, too.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "x0", "v", "velocity", "mu"]
PREDICTION_TYPES = get_args(PredictionType)
SIGMA_MAX = 80.0  # of Karras et al. 2022, table 1


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise schedule ᾱ_t: q(X_t | X_0) = N(√ᾱ_t X_0, (1 − ᾱ_t) I) (Ho et al. 2020, equation 4).

    Attributes:
        alpha_bar: ᾱ_0 = 1 > ᾱ_1 > … > ᾱ_T > 0, (T + 1,) float64 on the CPU: so 1 − ᾱ_t has its digits also where it
            is tiny.

    Raises:
        ValueError: another shape or dtype, or numbers that do not begin at 1, do not fall all the time, or reach 0 or
            NaN.
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
            t: a time, or integers (B,), one for each image, also from NumPy; low … T.
            like: floats (B, …), whose device and number of dimensions they get.
            low: 1 where t = 0 has no meaning.

        Returns:
            (B, 1, …) each, or (1, 1, …) for one time; of the dtype of `like`, but float32 where that is a half
            precision, so that a product with images is computed in float32.

        Raises:
            ValueError: a time out of range (on a GPU, torch's own error), or another number of times.
            TypeError: times that are not whole, or `like` that is no float.
        """
        ratio = self._alpha_bar_at(t, like, low)
        return _shaped(ratio.sqrt(), like), _shaped((1 - ratio).sqrt(), like)

    def _alpha_bar_at(self, t: Tensor | int, like: Tensor, low: int) -> Tensor:
        """ᾱ_t (B,) float64 on the device of t, or (1,) for one time; the errors are those of `at`."""
        if not like.is_floating_point():
            raise TypeError(f"expected data of floats, got {like.dtype}")
        is_number = not isinstance(t, Tensor)
        t = torch.as_tensor(t)
        is_number &= t.ndim == 0
        if t.is_floating_point() or t.dtype == torch.bool:
            raise TypeError(f"expected whole times, got {t.dtype}")
        if is_number:
            t = t[None]
        elif t.shape != like.shape[:1]:
            raise ValueError(f"expected {len(like)} times, one for each image; got {tuple(t.shape)}")
        if t.device.type == "cpu" and t.numel() and (t.min() < low or t.max() > self.T):  # a GPU would have to wait
            raise ValueError(f"expected times {low} … {self.T}, got {int(t.min())} … {int(t.max())}")
        return self.alpha_bar.to(t.device)[t.long()]

    def times(self, calls: int, rho: float | None = None) -> list[int]:
        """t_1 > t_2 > … > 0: times for a sampler of `calls` steps; `calls` = T gives all.

        Args:
            calls: 1 … T.
            rho: None: spaced evenly from T on. A number: ρ of Karras et al. (2022, arXiv 2206.00364, equation 5), whose
                value is 7: σ^(1/ρ) falls evenly, where σ = √(1 − ᾱ)/√ᾱ, from 80, at which next to nothing is left of an
                image, or from σ_T if that is less, to σ_1. Each time is the nearest whole one that is left.

        Raises:
            ValueError: calls outside 1 … T, rho below 1.
            TypeError: calls that are not whole.
        """
        calls = operator.index(calls)
        if not 1 <= calls <= self.T:
            raise ValueError(f"expected 1 … {self.T} calls, got {calls}")
        if rho is None:
            return [round(t) for t in torch.linspace(self.T, 0, calls + 1, dtype=torch.float64).tolist()]
        if not 1 <= rho < math.inf:
            raise ValueError(f"expected rho of 1 or more, got {rho}")
        rho, sigma = float(rho), self.snr[1:].rsqrt()
        ends = [min(SIGMA_MAX, sigma[-1].item()), sigma[0].item()]
        wanted = torch.linspace(*(end ** (1 / rho) for end in ends), calls, dtype=torch.float64) ** rho
        nearest = 1 + (sigma.log()[:, None] - wanted.log()).abs().argmin(0)
        times = [self.T + 1]
        for k, t in enumerate(nearest.tolist()):
            times.append(min(times[-1] - 1, max(t, calls - k)))  # falls, and leaves enough for those that follow
        return [*times[1:], 0]

    def distance_to_noise(self, x0: Tensor) -> Tensor:
        """KL(q(X_T | X_0) ‖ N(0, I)) of each image, in nats: ½ Σ (ᾱ_T x² − ᾱ_T − log(1 − ᾱ_T)) over its pixels.

        It is what is left of the image at the end: 0 for T → ∞, as the lecture says.

        Args:
            x0: (B, …).

        Returns:
            (B,) float64.
        """
        left = self.alpha_bar[-1].item()
        x = x0.detach().to("cpu", torch.float64).flatten(1)
        return 0.5 * (left * x.square() - left - math.log1p(-left)).sum(1)


def _shaped(values: Tensor, like: Tensor) -> Tensor:
    """Coefficients (B,) or (1,) with the device and the dimensions of `like`, in its dtype or float32 for a half one.

    Also a single one gets all dimensions: torch rounds a scalar () to the dtype of what it is multiplied with.
    """
    values = values.to(like.device, torch.promote_types(like.dtype, torch.float32))
    return values.view(-1, *[1] * (like.ndim - 1))


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

    Raises:
        ValueError: T below 1.
    """
    return from_function(lambda u: math.cos(math.pi / 2 * (u + s) / (1 + s)) ** 2, T)


def straight(T: int = 1000) -> Schedule:
    """The straight path of flow matching, z_s = (1 − s) X_0 + s ε with s = t/T, as a schedule (Lipman et al. 2023).

    z_s is not of unit variance, X_t is: X_t = z_s/√((1 − s)² + s²), so √ᾱ_t and √(1 − ᾱ_t) are in the ratio 1 − s to s.
    All samplers apply, and `ddim` is Euler's method along z: z_r = z_s + (r − s)(ε − X̂_0). At s = 1 nothing of X_0 is
    left; as each β is at most 0.999, the last time stands for an s a little below 1.

    Raises:
        ValueError: T below 1.
    """
    return from_function(lambda s: (1 - s) ** 2 / ((1 - s) ** 2 + s**2), T)


def from_function(alpha_bar: Callable[[float], float], T: int) -> Schedule:
    """A schedule from any falling ᾱ(u), u = t/T from 0 to 1, divided by ᾱ(0); each β is at most 0.999.

    Raises:
        ValueError: T below 1, or a function that does not fall.
    """
    if T < 1:
        raise ValueError(f"expected T ≥ 1, got {T}")
    values = torch.tensor([alpha_bar(t / T) for t in range(T + 1)], dtype=torch.float64)
    return from_betas((1 - values[1:] / values[:-1]).clamp_max(0.999))


def from_betas(betas: Tensor) -> Schedule:
    """A schedule from the variances β_1 … β_T (T,) in (0, 1) of the steps.

    Raises:
        ValueError: variances outside (0, 1), or none.
    """
    betas = torch.as_tensor(betas, dtype=torch.float64, device="cpu")
    if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas < 1)).all():
        raise ValueError("expected at least one β, all in (0, 1)")
    return Schedule(torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, 0)]))


def q_sample(x0: Tensor, t: Tensor | int, noise: Tensor, schedule: Schedule) -> Tensor:
    """X_t = √ᾱ_t X_0 + √(1 − ᾱ_t) ε in one go (Ho et al. 2020, equation 4).

    Args:
        x0: floats (B, …).
        t: 0 … T.
        noise: ε ~ N(0, I), of x0's shape.
        schedule: of the process.

    Raises:
        ValueError: shapes that differ, times out of range.
        TypeError: x0 that is no float, times that are not whole.
    """
    check_noise(noise, x0)
    a, b = schedule.at(t, x0)
    return (a * x0 + b * noise).to(x0.dtype)


def q_step(x: Tensor, t: int, noise: Tensor, schedule: Schedule) -> Tensor:
    """One step of the chain: X_t = √(1 − β_t) X_{t−1} + √β_t ε (equation 2).

    Args:
        x: X_{t−1}, floats (B, …).
        t: 1 … T.
        noise: ε ~ N(0, I), of x's shape.
        schedule: of the process.

    Raises:
        ValueError: shapes that differ, a time out of range.
        TypeError: x that is no float, a time that is not whole.
    """
    check_noise(noise, x)
    beta = posterior_coefficients(t, t - 1, schedule, x)[3]
    return ((1 - beta).sqrt() * x + beta.sqrt() * noise).to(x.dtype)


def check_noise(noise: Tensor, x: Tensor) -> None:
    """Raises ValueError for noise of another shape than x: it would be broadcast."""
    if noise.shape != x.shape:
        raise ValueError(f"expected noise {tuple(x.shape)}, got {tuple(noise.shape)}")


def posterior_coefficients(t: Tensor | int, s: Tensor | int, schedule: Schedule, like: Tensor) -> tuple[Tensor, ...]:
    """The numbers of q(X_s | X_t, X_0) for s < t, which is Gaussian; s = t − 1 is the paper's (equations 6 and 7).

    Args:
        t: a time from 1, or int64 (B,).
        s: a time before t, or as many as t.
        schedule: of the process.
        like: floats (B, …), whose device and number of dimensions the numbers get.

    Returns:
        c_0, c_t, β̃, β, of shapes and dtype as `Schedule.at` gives: the mean is c_0 X_0 + c_t X_t, the variance β̃, and
        β is that of the forward step from s to t.

    Raises:
        ValueError: times out of range, or s that is not before t.
        TypeError: times that are not whole, or `like` that is no float.
    """
    # In float64 to the end: 1 − ᾱ_t/ᾱ_s is the difference of numbers that are nearly equal.
    now, then = schedule._alpha_bar_at(t, like, 1).cpu(), schedule._alpha_bar_at(s, like, 0).cpu()
    beta = 1 - now / then
    if not (beta > 0).all():
        raise ValueError(f"expected s < t, got {s} and {t}")
    c_0 = then.sqrt() * beta / (1 - now)
    c_t = (now / then).sqrt() * (1 - then) / (1 - now)
    return tuple(_shaped(c, like) for c in (c_0, c_t, beta * (1 - then) / (1 - now), beta))


def posterior(x0: Tensor, x: Tensor, t: Tensor | int, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Mean (B, …) and variance ((B, 1, …) or (1, 1, …)) of q(X_{t−1} | X_t, X_0) (equations 6 and 7).

    Args:
        x0: X_0, floats (B, …).
        x: X_t, of the same shape.
        t: 1 … T.
        schedule: of the process.

    Raises:
        ValueError: times out of range.
        TypeError: x that is no float, times that are not whole.
    """
    c_0, c_t, variance, _ = posterior_coefficients(t, t - 1, schedule, x)
    return (c_0 * x0 + c_t * x).to(x.dtype), variance


def mu_from_epsilon(x: Tensor, t: Tensor | int, epsilon: Tensor, schedule: Schedule) -> Tensor:
    """μ_θ(X_t, t) = (X_t − β_t/√(1 − ᾱ_t) ε_θ)/√(1 − β_t) (equation 11).

    Args:
        x: X_t, floats (B, …).
        t: 1 … T.
        epsilon: ε_θ, of x's shape.
        schedule: of the process.

    Raises:
        ValueError: times out of range.
        TypeError: x that is no float, times that are not whole.
    """
    _, b = schedule.at(t, x, low=1)
    beta = posterior_coefficients(t, t - 1, schedule, x)[3]
    return ((x - beta / b * epsilon) / (1 - beta).sqrt()).to(x.dtype)


def target(prediction_type: PredictionType, x0: Tensor, noise: Tensor, t: Tensor | int, schedule: Schedule) -> Tensor:
    """What a network of this `prediction_type` should answer at X_t = √ᾱ_t X_0 + √(1 − ᾱ_t) ε.

    | prediction_type | target | |
    |---|---|---|
    | `epsilon` | ε | the lecture's; Ho et al. 2020 |
    | `x0` | X_0 | the clean image |
    | `v` | √ᾱ_t ε − √(1 − ᾱ_t) X_0 | Salimans & Ho 2022, appendix D; means something at both ends |
    | `velocity` | ε − X_0 | of the straight path, see `straight`; Lipman et al. 2023, Liu et al. 2023 |
    | `mu` | the mean of q(X_{t−1} given X_t, X_0) | what the reverse process needs |

    Raises:
        ValueError: another prediction_type, or times out of range; of `mu`, t = 0.
        TypeError: x0 that is no float, times that are not whole.
    """
    check_prediction_type(prediction_type)
    a, b = schedule.at(t, x0)
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "x0":
        return x0
    if prediction_type == "v":
        return (a * noise - b * x0).to(x0.dtype)
    if prediction_type == "velocity":
        return noise - x0
    return posterior(x0, a * x0 + b * noise, t, schedule)[0].to(x0.dtype)


def to_x0(
    prediction_type: PredictionType, prediction: Tensor, x: Tensor, t: Tensor | int, schedule: Schedule
) -> Tensor:
    """The estimate X̂_0 (B, …) that a prediction (B, …) amounts to, at X_t = x.

    Raises:
        ValueError: another prediction_type, or times out of range; of `mu`, t = 0.
        TypeError: x that is no float, times that are not whole.
    """
    check_prediction_type(prediction_type)
    a, b = schedule.at(t, x)
    if prediction_type == "x0":
        return prediction
    if prediction_type == "epsilon":
        return ((x - b * prediction) / a).to(x.dtype)
    if prediction_type == "v":
        return (a * x - b * prediction).to(x.dtype)
    if prediction_type == "velocity":  # x = a X_0 + b ε = (a + b) X_0 + b (ε − X_0)
        return ((x - b * prediction) / (a + b)).to(x.dtype)
    c_0, c_t, _, _ = posterior_coefficients(t, t - 1, schedule, x)
    return ((prediction - c_t * x) / c_0).to(x.dtype)


def to_epsilon(
    prediction_type: PredictionType, prediction: Tensor, x: Tensor, t: Tensor | int, schedule: Schedule
) -> Tensor:
    """The estimate of the noise ε (B, …) that a prediction (B, …) amounts to, at X_t = x, for t from 1.

    Raises:
        ValueError: another prediction_type, or times out of range.
        TypeError: x that is no float, times that are not whole.
    """
    a, b = schedule.at(t, x, low=1)
    if prediction_type == "epsilon":
        return prediction
    if prediction_type == "v":
        return (b * x + a * prediction).to(x.dtype)
    if prediction_type == "velocity":
        return ((x + a * prediction) / (a + b)).to(x.dtype)
    return ((x - a * to_x0(prediction_type, prediction, x.to(a.dtype), t, schedule)) / b).to(x.dtype)


def check_prediction_type(prediction_type: str) -> None:
    """Raises ValueError for what is not one of the five."""
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"expected a prediction_type of {', '.join(PREDICTION_TYPES)}; got {prediction_type!r}")
