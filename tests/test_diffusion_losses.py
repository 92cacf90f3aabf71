"""Times, losses and weights by hand, and the least loss by the exact denoiser."""

import math

import pytest
import torch
from conftest import normal, rng
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course_lib import diffusion

drawn = settings(max_examples=50, deadline=None, derandomize=True, database=None)


class Wave(nn.Module):
    """A prediction, from all that a network is given."""

    def forward(self, x, t, condition=None, condition_mask=None):
        out = torch.sin(x + t.view(-1, *[1] * (x.ndim - 1)))
        if condition is not None:
            condition = condition.view(-1, *[1] * (x.ndim - 1))
            out = out + (condition if condition_mask is None else condition * condition_mask.view(condition.shape))
        return out


# Times


@drawn
@given(n=st.integers(0, 40), T=st.integers(1, 50), seed=st.integers(0, 99))
def test_times_are_evenly_distributed(n, T, seed):
    t = diffusion.draw_times(n, T, rng(seed))
    assert t.shape == (n,) and t.dtype == torch.int64
    for i, time in enumerate(t.sort().values.tolist()):  # one in each n-th part of the range
        assert math.floor(i * T / n) + 1 <= time <= math.ceil((i + 1) * T / n)
    if n % T == 0:
        assert t.bincount(minlength=T + 1)[1:].unique().tolist() in ([], [n // T])


def test_each_time_by_itself_is_uniform():
    """Pearson's χ² of the first and of the last time of many batches, 9 degrees of freedom."""
    T, batches, generator = 10, 2000, rng(1)
    t = torch.stack([diffusion.draw_times(7, T, generator) for _ in range(batches)])
    for column in (t[:, 0], t[:, -1]):
        counts = column.bincount(minlength=T + 1)[1:].double()
        assert ((counts - batches / T).square() / (batches / T)).sum() < 27.9  # exceeded once in 1,000 times


def test_times_repeat_with_the_generator():
    assert torch.equal(diffusion.draw_times(9, 100, rng(3)), diffusion.draw_times(9, 100, rng(3)))
    assert not torch.equal(diffusion.draw_times(9, 100, rng(3)), diffusion.draw_times(9, 100, rng(4)))
    torch.manual_seed(3)
    assert torch.equal(diffusion.draw_times(9, 100), diffusion.draw_times(9, 100, rng(3)))


# The simple loss


@pytest.mark.parametrize("prediction_type", diffusion.process.PREDICTION_TYPES)
def test_simple_loss_by_hand(prediction_type):
    schedule = diffusion.cosine(50)
    x0, noise, t = normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1), torch.tensor([1, 20, 50])
    loss = diffusion.simple_loss(diffusion.Denoiser(Wave(), schedule, prediction_type), x0, t, noise)
    total = 0.0
    for k in range(3):
        a = math.sqrt(schedule.alpha_bar[t[k]])
        s = math.sqrt(1 - schedule.alpha_bar[t[k]])
        x = a * x0[k] + s * noise[k]
        wanted = {"epsilon": noise[k], "x0": x0[k], "v": a * noise[k] - s * x0[k], "velocity": noise[k] - x0[k]}
        wanted = wanted.get(prediction_type)
        if prediction_type == "mu":
            beta, before = float(schedule.beta[t[k]]), float(schedule.alpha_bar[t[k] - 1])
            wanted = (math.sqrt(before) * beta * x0[k] + math.sqrt(1 - beta) * (1 - before) * x) / s**2
        total += float((torch.sin(x + t[k]) - wanted).square().sum())
    assert float(loss) == pytest.approx(total / x0.numel(), rel=1e-9)


def test_simple_loss_hands_on_conditions():
    denoiser = diffusion.Denoiser(Wave(), diffusion.cosine(50))
    x0, noise, t = normal(2, 3), normal(2, 3, seed=1), torch.tensor([4, 40])
    c, condition_mask = torch.tensor([1.0, 2.0]).double(), torch.tensor([True, False])
    x = diffusion.q_sample(x0, t, noise, denoiser.schedule)
    for given_, added in (((), [0.0, 0.0]), ((c,), [1.0, 2.0]), ((c, condition_mask), [1.0, 0.0])):
        expected = (torch.sin(x + t[:, None]) + torch.tensor(added)[:, None] - noise).square().mean()
        torch.testing.assert_close(diffusion.simple_loss(denoiser, x0, t, noise, *given_), expected)


def test_the_exact_denoiser_has_the_least_loss():
    """E |ε − ε*|² is what cannot be known; any other answer at X_t costs its square distance from ε* on top."""
    schedule, n = diffusion.cosine(100), 4000
    data = diffusion.gaussian(normal(2), torch.tensor([[1.0, 0.4], [0.4, 0.3]]).double(), schedule)

    class Exact(nn.Module):
        def __init__(self, off: float) -> None:
            super().__init__()
            self.off = off

        def forward(self, x, t):
            return data(x, t) + self.off

    x0, noise, t = data.sample(n, rng()), normal(n, 2, seed=1), torch.full((n,), 60)
    best, off = (float(diffusion.simple_loss(diffusion.Denoiser(Exact(d), schedule), x0, t, noise)) for d in (0.0, 0.3))
    a, b = schedule.alpha_bar[60], 1 - schedule.alpha_bar[60]
    eigenvalues = torch.linalg.eigvalsh(data.covariances[0])
    unknown = float((a * eigenvalues / (a * eigenvalues + b)).mean())  # of the variance of ε given X_t
    assert best == pytest.approx(unknown, rel=0.1)  # χ² of 8,000 numbers: 1.6 % a standard error
    assert off == pytest.approx(best + 0.09, abs=0.02)


# Weights


@pytest.mark.parametrize("gamma", [0.5, 5.0, 1e9])
def test_weights_are_their_definition(gamma):
    """Hang et al. 2023, section 3.4: min(SNR, γ) over SNR, 1 and SNR + 1; over (1 + √SNR)² for the velocity."""
    schedule = diffusion.cosine(100)
    t, like = torch.tensor([1, 30, 50, 70, 100]), torch.zeros(5, 1, 2, 2, dtype=torch.float64)
    snr = [float(schedule.alpha_bar[k] / (1 - schedule.alpha_bar[k])) for k in t]
    worth = {"epsilon": lambda s: s, "x0": lambda s: 1.0, "v": lambda s: s + 1, "velocity": lambda s: (1 + s**0.5) ** 2}
    for prediction_type, per in worth.items():
        found = diffusion.weight(prediction_type, t, schedule, gamma, like)
        assert found.shape == (5, 1, 1, 1)
        assert found.flatten().tolist() == pytest.approx([min(s, gamma) / per(s) for s in snr])


@drawn
@given(t=st.integers(1, 100), gamma=st.floats(0.1, 100), seed=st.integers(0, 99))
def test_weighted_losses_of_all_prediction_types_are_the_same_error_of_x0(t, gamma, seed):
    """The same X̂_0, expressed as ε, as X_0, as v or as a velocity, costs min(SNR, γ) |X̂_0 − X_0|²."""
    schedule = diffusion.cosine(100)
    x0, noise, estimate = (normal(2, 3, seed=3 * seed + k) for k in range(3))
    a, s = schedule.alpha_bar[t].sqrt(), (1 - schedule.alpha_bar[t]).sqrt()
    x = a * x0 + s * noise
    implied = (x - a * estimate) / s
    predictions = {"epsilon": implied, "x0": estimate, "v": a * implied - s * estimate}
    predictions["velocity"] = implied - estimate
    expected = min(float(a**2 / s**2), gamma) * float((estimate - x0).square().mean())
    for prediction_type, prediction in predictions.items():
        denoiser = diffusion.Denoiser(nn.Identity(), schedule, prediction_type)
        denoiser.network.forward = lambda x, t, prediction=prediction: prediction
        loss = diffusion.simple_loss(denoiser, x0, torch.full((2,), t), noise, gamma=gamma)
        assert float(loss) == pytest.approx(expected, rel=1e-6), prediction_type


def test_weights_refuse():
    schedule, t = diffusion.cosine(10), torch.tensor([3])
    for prediction_type, gamma in (("mu", 5.0), ("e", 5.0), ("v", 0.0), ("v", -1.0), ("v", math.nan)):
        with pytest.raises(
            ValueError, match="expected gamma > 0 and a prediction_type of epsilon, x0, v, velocity; got"
        ):
            diffusion.weight(prediction_type, t, schedule, gamma, torch.zeros(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_in_half_precision_is_computed_in_float32(dtype):
    """An error of 300 is squared beyond float16."""
    schedule, x0, t = diffusion.cosine(), normal(4, 3).to(dtype), torch.tensor([1, 300, 600, 1000])
    noise = normal(4, 3, seed=1).to(dtype)

    class Far(nn.Module):
        def forward(self, x, t):
            return torch.full_like(x, 300)

    far = diffusion.Denoiser(Far(), schedule, "epsilon")
    expected = (300 - noise.double()).square().mean()
    found = diffusion.simple_loss(far, x0, t, noise)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
