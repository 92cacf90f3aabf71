"""A number and how far to trust it: sample size and 95 % interval, by bootstrap or, for a share, in closed form.

Used through `base/metrics.py`, which measures the numbers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Z = 1.959964  # 95 % of a Gaussian lies within ± Z standard deviations


@dataclass(frozen=True)
class Score:
    """A number with its sample size `n` (of generated pictures, or of what else is said) and 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}], n = {self.n:,}"

    def __float__(self) -> float:
        return self.value


def interval(value: float, repeats: Tensor, n: int) -> Score:
    """The score of `value` with its basic interval: as the repeats lie about the value, the value lies about the truth.

    Args:
        value: of the sample. repeats: (R,), of resamples. n: size of the sample.
    """
    low, high = torch.quantile(repeats.double(), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Score(value, 2 * value - high, 2 * value - low, n)


def bootstrap(
    metric: Callable[..., float], *samples: Tensor, repeats: int = 100, generator: torch.Generator | None = None
) -> Score:
    """A metric's value and 95 % interval, by drawing from each sample as many rows again, with replacement.

    The interval is the *basic* one (Davison & Hinkley 1997, section 5.2): resampling adds the same upward bias to a
    Fréchet distance that sampling has added already, so the usual percentile interval lies twice too high. The basic
    one reflects it: it is an interval for the metric of *infinitely many* pictures, and a biased value may lie outside.

    Args:
        metric: takes the samples, gives a number.
        samples: tensors (N_i, ...), each resampled by itself; n of the score is the last one's.
        repeats: 100 are enough for an interval's first digit.
        generator: draws the rows; on the CPU. By default one with seed 0: the same samples, the same interval.

    Raises:
        ValueError: no samples, an empty one, or less than 2 repeats.
    """
    if not samples or repeats < 2 or min(map(len, samples)) == 0:
        raise ValueError(f"expected samples and repeats ≥ 2; got {[len(s) for s in samples]} and {repeats}")
    generator = generator or torch.Generator().manual_seed(0)
    values = []
    for _ in range(repeats):
        rows = [torch.randint(len(s), (len(s),), generator=generator).to(s.device) for s in samples]
        values.append(float(metric(*(s[r] for s, r in zip(samples, rows, strict=True)))))
    return interval(float(metric(*samples)), torch.tensor(values, dtype=torch.float64), len(samples[-1]))


def share(hits: Tensor) -> Score:
    """The share of True in booleans (N,), with Wilson's interval (1927).

    A share needs no bootstrap, whose interval has no width where all, or none, of the N hit.

    Args:
        hits: such as `predicted == asked`, the class agreement of a conditional generator, or
            `predicted == predicted.mode().values`, the share of the commonest class.

    Raises:
        ValueError: not booleans (N,), or none.
    """
    if hits.dtype != torch.bool or hits.ndim != 1 or len(hits) == 0:
        raise ValueError(f"expected booleans (N,); got {hits.dtype} {tuple(hits.shape)}")
    n, p = len(hits), float(hits.double().mean())
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    # At p = 0 and 1 the bounds are 0 and 1 up to rounding, which must not exclude the value itself.
    return Score(p, min(p, max(0.0, middle - half)), max(p, min(1.0, middle + half)), n)


def check_sets(least: int, **sets: Tensor) -> list[Tensor]:
    """The sets of features (N, D), detached, after a look at them.

    Raises:
        ValueError: not all (N, D) with one D, fewer than `least` rows, NaN or infinity.
        TypeError: other numbers than floats.
    """
    shapes = {name: tuple(x.shape) for name, x in sets.items()}
    if any(x.ndim != 2 for x in sets.values()) or len({x.shape[1:] for x in sets.values()}) > 1:
        raise ValueError(f"expected features (N, D) of one D; got {shapes}")
    if not all(x.is_floating_point() for x in sets.values()):
        raise TypeError(f"expected floats; got {', '.join(f'{name}: {x.dtype}' for name, x in sets.items())}")
    if any(len(x) < least for x in sets.values()):
        raise ValueError(f"expected {least} pictures or more in each set; got {shapes}")
    for name, x in sets.items():
        if not x.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinity in {int((~x.isfinite()).any(1).sum())} of {len(x)} rows")
    return [x.detach() for x in sets.values()]


def exact_sets(least: int, **sets: Tensor) -> list[Tensor]:
    """The same in float64; on the CPU where they lie on Apple's GPUs, which lack it."""
    return [x.to("cpu" if x.device.type == "mps" else x.device, torch.float64) for x in check_sets(least, **sets)]
