"""What a denoiser is trained on: the loss, its weights, and the training step for the one loop of the course."""

import torch
from torch import Tensor

from course_lib.base.images import check_range, once
from course_lib.base.loop import Step, descend
from course_lib.base.runtime import wide
from course_lib.diffusion.denoiser import Denoiser
from course_lib.diffusion.process import PredictionType, Schedule, q_sample, target


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
        denoiser: its network is trained.
        optimiser: of the network's weights.
        rng: draws times, noise and whose conditions count, on its own device; make it `stateful` in the loop.
        drop: how often a condition is left out, so that the network learns to do without (Ho & Salimans 2022,
            algorithm 1; they advise 0.1 to 0.2). None: the network takes no condition, labels are not used.
        gamma: γ > 0 of the min-SNR weights, see `weight`; None: all times count alike.
        clip: longest gradient, see `loop.descend`.

    Returns:
        batch → the mean `loss`. A batch is a tuple (x, condition) or x alone: images (B, C, H, W), floats in [0, 1],
        which become [-1, 1], or points (B, d), which stay as they are.

    Raises:
        ValueError: drop outside [0, 1]; of the step: no condition where one is needed, or images outside [0, 1] in the
            first batch. (Later ones are not looked at: a GPU would have to wait.)
        TypeError: of the step, images that are no floats.
    """
    if drop is not None and not 0 <= drop <= 1:
        raise ValueError(f"expected drop in [0, 1], got {drop}")
    check_images = once(check_range)

    def step(batch: Tensor | tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, condition = batch if isinstance(batch, tuple | list) else (batch, None)
        if drop is None:
            condition = None
        elif condition is None:
            raise ValueError("drop is given, so the batches must be tuples (x, condition)")
        if x.ndim == 4:
            check_images(x)
            x = 2 * x - 1
        t = draw_times(len(x), denoiser.schedule.T, rng).to(x.device)
        noise = torch.randn(x.shape, generator=rng, device=rng.device).to(x)
        condition_mask = None
        if condition is not None:
            condition_mask = (torch.rand(len(x), generator=rng, device=rng.device) >= drop).to(x.device)
        loss = simple_loss(denoiser, x, t, noise, condition, condition_mask, gamma)
        descend(loss, optimiser, clip)
        return {"loss": loss.detach()}

    return step


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

    For the velocity on the `straight` schedule it is flow matching's loss (Lipman et al. 2023, equation 23; there the
    network gets z_s, here X_t, which is z_s at unit variance).

    Args:
        denoiser: whose network predicts.
        x0: floats (B, …), around [-1, 1].
        t: int64 (B,), 1 … T.
        noise: ε of x0's shape.
        condition: what the network takes; None: unconditional.
        condition_mask: bool (B,), whose conditions count; None: all.
        gamma: γ of the min-SNR weights, see `weight`; None: all times count alike.

    Returns:
        A scalar; in float32 where x0 is of half precision.

    Raises:
        ValueError: shapes that differ, times out of range, what `weight` and the network refuse.
        TypeError: x0 that is no float, times that are not whole.
    """
    prediction_type, schedule = denoiser.prediction_type, denoiser.schedule
    prediction = denoiser.predict(q_sample(x0, t, noise, schedule), t, condition, condition_mask)
    error = (wide(prediction) - target(prediction_type, x0, noise, t, schedule)).square()
    if gamma is not None:
        error = weight(prediction_type, t, schedule, gamma, x0) * error
    return error.mean()


def weight(prediction_type: PredictionType, t: Tensor, schedule: Schedule, gamma: float, like: Tensor) -> Tensor:
    """min-SNR-γ weights (B, 1, …) of the squared error of a prediction (Hang et al. 2023, section 3.4).

    All types of prediction describe the same estimate, and an error of X̂_0 counts min(SNR, γ). Without weights the
    ε loss counts it SNR times: late times hardly matter.

    Args:
        prediction_type: `epsilon`, `x0`, `v` or `velocity`.
        t: int64 (B,), 1 … T.
        schedule: of the process.
        gamma: γ > 0; the paper advises 5.
        like: floats (B, …), whose device and number of dimensions the weights get.

    Raises:
        ValueError: γ ≤ 0, the prediction_type `mu`, for which no such weight is in use, or times out of range.
    """
    gamma = float(gamma)
    if not gamma > 0 or prediction_type not in ("epsilon", "x0", "v", "velocity"):
        raise ValueError(
            f"expected gamma > 0 and a prediction_type of epsilon, x0, v, velocity; got {gamma} and {prediction_type!r}"
        )
    a, b = schedule.at(t, like, low=1)
    snr = (a / b).square()
    # The squared error that an error of 1 of X̂_0 amounts to.
    of_x0 = {"epsilon": snr, "x0": 1.0, "v": snr + 1, "velocity": (1 + a / b).square()}[prediction_type]
    return snr.clamp_max(gamma) / of_x0


def draw_times(n: int, T: int, rng: torch.Generator | None = None) -> Tensor:
    """int64 (n,), each uniform on 1 … T, and together evenly distributed: one in each n-th part of the range.

    Departure from Ho et al., who draw each on its own: a batch that happens to hold many late times has another loss
    for that reason alone, and even distribution takes this noise away (Kingma et al. 2021; they use one offset in all
    parts, here each part draws its own).

    Args:
        n: how many.
        T: the last time.
        rng: draws on its own device, where the times are, too; None: torch's own.
    """
    device = "cpu" if rng is None else rng.device
    u = torch.rand(n, generator=rng, device=device)
    order = torch.randperm(n, generator=rng, device=device)
    return (((order + u) / n * T).long() + 1).clamp_max(T)
