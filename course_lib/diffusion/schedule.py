"""How much of the picture is left at each time: the noise schedule ᾱ_t of the forward process.

Times are whole numbers: t = 0 is the data, ᾱ_0 = 1; t = T is nearly pure noise. Everything is kept in float64 and
handed out in the precision and on the device of the pictures, so that 1 − ᾱ_t has its digits also where it is tiny.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

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
        """√ᾱ_t and √(1 − ᾱ_t), for multiplication with pictures.

        Args:
            t: a time, or int64 (B,), one for each picture; low … T.
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
                raise ValueError(f"expected {len(like)} times, one for each picture; got {tuple(t.shape)}")
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
        """KL(q(X_T | X_0) ‖ N(0, I)) of each picture, in nats: ½ Σ (ᾱ_T x² − ᾱ_T − log(1 − ᾱ_T)) over its pixels.

        It is what is left of the picture at the end: 0 for T → ∞, as the lecture says.

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

    The picture fades evenly, while `linear` spends its last quarter on what is already noise.
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
