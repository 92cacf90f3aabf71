"""What a diffusion model is trained on, and how good it is as a model of the data's probability.

The training step for the one loop of the course.
"""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from course_lib.base.loop import Step, descend
from course_lib.diffusion.denoiser import Denoiser, Model
from course_lib.diffusion.process import (
    Noise,
    PredictionType,
    Schedule,
    noise_stream,
    posterior_coefficients,
    q_sample,
    target,
)


def draw_times(n: int, T: int, rng: torch.Generator | None = None) -> Tensor:
    """int64 (n,), each uniform on 1 … T, and all of them spread evenly: one in each n-th part of the range.

    Departure from Ho et al., who draw each on its own: a batch that happens to hold many late times has another loss
    for that reason alone, and even spreading takes this noise away (Kingma et al. 2021; they share one
    offset in all parts, here each part draws its own).

    Args:
        rng: on its own device, where the times are, too; None: torch's own.
    """
    device = "cpu" if rng is None else rng.device
    u = torch.rand(n, generator=rng, device=device)
    order = torch.randperm(n, generator=rng, device=device)
    return (((order + u) / n * T).long() + 1).clamp_max(T)


def weight(prediction_type: PredictionType, t: Tensor, schedule: Schedule, gamma: float, like: Tensor) -> Tensor:
    """min-SNR-γ weights (B, 1, …) of the squared error of a prediction (Hang et al. 2023, section 3.4).

    All types of prediction describe the same estimate, and an error of X̂_0 counts min(SNR, γ). Without weights the
    ε loss counts it SNR times, which late times hardly feel.

    Args:
        t: int64 (B,), 1 … T. gamma: γ > 0; the paper advises 5. like: (B, …), as for `Schedule.at`.

    Raises:
        ValueError: γ ≤ 0, or the prediction_type `mu`, for which no such weight is in use.
    """
    if not gamma > 0 or prediction_type not in ("epsilon", "x0", "v"):
        raise ValueError(
            f"expected gamma > 0 and a prediction_type of epsilon, x0, v; got {gamma} and {prediction_type!r}"
        )
    snr = schedule.snr
    per_x0 = {"epsilon": snr, "x0": torch.ones_like(snr), "v": snr + 1}[
        prediction_type
    ]  # squared errors: prediction_type's for one of X̂_0
    table = snr.clamp_max(gamma) / per_x0
    table[0] = 0  # no time of training, and ∞/∞
    return schedule.pick(table, t, like)


def simple_loss(
    denoiser: Denoiser,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    condition: Tensor | None = None,
    condition_mask: Tensor | None = None,
    gamma: float | None = None,
) -> Tensor:
    """E |target − prediction(X_t, t)|², a mean over pixels and images (Ho et al. 2020, equation 14, for ε).

    Args:
        x0: (B, …), around [-1, 1]. t: int64 (B,), 1 … T. noise: ε of x0's shape.
        condition, condition_mask: as for `Denoiser.predict`.
        gamma: weighs the times by min-SNR-γ, see `weight`; None: all alike.

    Returns:
        A scalar.
    """
    schedule = denoiser.schedule
    prediction = denoiser.predict(q_sample(x0, t, noise, schedule), t, condition, condition_mask)
    error = (prediction - target(denoiser.prediction_type, x0, noise, t, schedule)).square()
    return (error if gamma is None else weight(denoiser.prediction_type, t, schedule, gamma, x0) * error).mean()


@torch.no_grad()
def bound_terms(
    model: Model,
    x0: Tensor,
    schedule: Schedule,
    condition: Tensor | None = None,
    *,
    noise: Noise = None,
    variance: Literal["small", "large"] = "small",
    bins: int | None = 256,
) -> Tensor:
    """The terms L_0, L_1, …, L_T of the variational bound on −log p(X_0) (Ho et al. 2020, equation 5), in nats.

    L_0 = −log p(X_0 | X_1), L_{t−1} = KL(q(X_{t−1} | X_t, X_0) ‖ p_θ(X_{t−1} | X_t)), L_T = KL(q(X_T | X_0) ‖ N(0, I)).
    One draw of X_t for each t, so T calls of the model; their sum over t is unbiased. `bits_per_dimension` adds up.

    Args:
        model: ε_θ(x, t, condition).
        x0: (B, …). With bins: 8-bit images as 2·k/255 − 1.
        noise: the ε of X_1, X_2, …, each of x0's shape: a generator, tensors, or torch's own (None).
        variance: σ_t² of p_θ, β̃_t ("small"; at t = 1, where that is 0, β̃_2) or β_t ("large"). For data that has a
            density, the bound is tight as T → ∞ with "large" only: near the data, β̃_t is too small.
        bins: 256: L_0 is the probability of the pixel's bin (equation 13). None: data is continuous, L_0 a density.

    Returns:
        (B, T + 1) float64, on the CPU.

    Raises:
        ValueError: another variance, no images, NaN, or noise of another shape or that ends too early.
    """
    if variance not in ("small", "large") or not len(x0) or not x0.isfinite().all():
        raise ValueError(f"expected variance small or large, and finite data; got {variance!r}, {tuple(x0.shape)}")
    last = schedule.distance_to_noise(x0)
    columns = list(_terms(model, x0, schedule, condition, noise, variance, bins))
    return torch.stack([*columns, last], 1)


def _terms(
    model: Model,
    x0: Tensor,
    schedule: Schedule,
    condition: Tensor | None,
    noise: Noise,
    variance: str,
    bins: int | None,
) -> Iterator[Tensor]:
    """L_0 … L_{T−1}, (B,) each."""
    for t, epsilon in zip(range(1, schedule.T + 1), noise_stream(noise, x0), strict=False):
        x = q_sample(x0, t, epsilon, schedule)
        a, b = schedule.at(t, x)
        estimate = (x - b * model(x, torch.full((len(x),), t, device=x.device), condition)) / a
        c_0, _, small, large = posterior_coefficients(t, t - 1, schedule, x)
        difference = c_0 * (x0 - estimate)  # of the means of q and of p_θ
        if t == 1:  # the posterior is X_0 itself, without variance, and its mean the estimate
            if variance == "small" and schedule.T > 1:
                large = posterior_coefficients(2, 1, schedule, x)[2]
            found = -_log_likelihood(x0, estimate, large.sqrt(), bins)
        else:
            sigma2 = small if variance == "small" else large
            found = 0.5 * ((small + difference.square()) / sigma2 - 1 - (small / sigma2).log())
        yield found.flatten(1).sum(1).to("cpu", torch.float64)


def _log_likelihood(x: Tensor, mean: Tensor, sigma: Tensor, bins: int | None) -> Tensor:
    """log N(x; mean, σ²) of each number, or the log of its mass in x's bin, the outermost ones reaching to ±∞."""
    z = (x - mean) / sigma
    if bins is None:
        return -0.5 * (z.square() + math.log(2 * math.pi)) - sigma.log()
    half = 1 / (bins - 1)
    up, down = ((x + side * half - mean) / sigma for side in (1, -1))
    log_below_up, log_above_down = torch.special.log_ndtr(up), torch.special.log_ndtr(-down)
    # Φ(up) − Φ(down), from whichever side keeps the digits.
    flip = down > 0
    high, low = torch.where(flip, -down, up), torch.where(flip, -up, down)
    log_high, log_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    middle = log_high + torch.log1p(-torch.exp(log_low - log_high).clamp_max(1 - 1e-7))
    edge = 1 - half / 2
    return torch.where(x < -edge, log_below_up, torch.where(x > edge, log_above_down, middle))


def bits_per_dimension(terms: Tensor, x0: Tensor) -> Tensor:
    """The bound (B,) in bits a number: how long, at best, a compressed image would be. From `bound_terms`.

    Args:
        terms: (B, T + 1) nats. x0: (B, …), the images they belong to.
    """
    return terms.sum(1) / (x0[0].numel() * math.log(2))


def diffusion_step(
    denoiser: Denoiser,
    optimiser: torch.optim.Optimizer,
    rng: torch.Generator,
    *,
    drop: float | None = None,
    gamma: float | None = None,
    clip: float | None = 1.0,
) -> Step:
    """Ho et al. 2020, algorithm 1: a time and a noise for every image, and a step towards naming the noise.

    Args:
        denoiser: its network is trained. rng: draws times and noise, on its own device; give it to the loop as a part.
        drop: how often a condition is left out, so that the network learns to do without (Ho & Salimans 2022,
            algorithm 1; they advise 0.1 to 0.2). None: the network takes no condition, labels are not used.
        gamma: min-SNR weighting, see `losses.weight`; None: none.
        clip: longest gradient, see `training.descend`.

    Returns:
        batch → the mean `loss`. A batch is a tuple (x, condition) or x alone; images in [0, 1], which become
        [-1, 1], or points (B, d), which stay as they are.

    Raises:
        ValueError: drop outside [0, 1]; of the step: no condition where one is needed.
    """
    if drop is not None and not 0 <= drop <= 1:
        raise ValueError(f"expected drop in [0, 1], got {drop}")

    def step(batch: Tensor | tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, condition = batch if isinstance(batch, tuple | list) else (batch, None)
        if drop is None:
            condition = None
        elif condition is None:
            raise ValueError("drop is given, so the batches must be tuples (x, condition)")
        x0 = 2 * x - 1 if x.ndim == 4 else x
        t = draw_times(len(x0), denoiser.schedule.T, rng).to(x0.device)
        noise = torch.randn(x0.shape, generator=rng, device=rng.device).to(x0)
        condition_mask = None
        if condition is not None:
            condition_mask = (torch.rand(len(x0), generator=rng, device=rng.device) >= drop).to(x0.device)
        loss = simple_loss(denoiser, x0, t, noise, condition, condition_mask, gamma)
        descend(loss, optimiser, clip)
        return {"loss": loss.detach()}

    return step
