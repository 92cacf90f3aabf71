"""Losses by hand, and the variational bound against torch.distributions and exact likelihoods."""

import math

import pytest
import torch
from conftest import normal, rng
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

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
def test_times_are_spread_evenly(n, T, seed):
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


@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
def test_simple_loss_by_hand(prediction_type):
    schedule = diffusion.cosine(50)
    x0, noise, t = normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1), torch.tensor([1, 20, 50])
    loss = diffusion.simple_loss(diffusion.Denoiser(Wave(), schedule, prediction_type), x0, t, noise)
    total = 0.0
    for k in range(3):
        a = math.sqrt(schedule.alpha_bar[t[k]])
        s = math.sqrt(1 - schedule.alpha_bar[t[k]])
        x = a * x0[k] + s * noise[k]
        wanted = {"epsilon": noise[k], "x0": x0[k], "v": a * noise[k] - s * x0[k]}.get(prediction_type)
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
    """Hang et al. 2023, section 3.4: min(SNR, γ) over SNR, 1 and SNR + 1."""
    schedule = diffusion.cosine(100)
    t, like = torch.tensor([1, 30, 50, 70, 100]), torch.zeros(5, 1, 2, 2, dtype=torch.float64)
    snr = [float(schedule.alpha_bar[k] / (1 - schedule.alpha_bar[k])) for k in t]
    for prediction_type, per in {"epsilon": lambda s: s, "x0": lambda s: 1.0, "v": lambda s: s + 1}.items():
        found = diffusion.weight(prediction_type, t, schedule, gamma, like)
        assert found.shape == (5, 1, 1, 1)
        assert found.flatten().tolist() == pytest.approx([min(s, gamma) / per(s) for s in snr])


@drawn
@given(t=st.integers(1, 100), gamma=st.floats(0.1, 100), seed=st.integers(0, 99))
def test_weighted_losses_of_all_kinds_are_the_same_error_of_x0(t, gamma, seed):
    """The same X̂_0, expressed as ε, as X_0 or as v, costs min(SNR, γ) |X̂_0 − X_0|²."""
    schedule = diffusion.cosine(100)
    x0, noise, estimate = (normal(2, 3, seed=3 * seed + k) for k in range(3))
    a, s = schedule.alpha_bar[t].sqrt(), (1 - schedule.alpha_bar[t]).sqrt()
    x = a * x0 + s * noise
    implied = (x - a * estimate) / s
    predictions = {"epsilon": implied, "x0": estimate, "v": a * implied - s * estimate}
    expected = min(float(a**2 / s**2), gamma) * float((estimate - x0).square().mean())
    for prediction_type, prediction in predictions.items():
        denoiser = diffusion.Denoiser(nn.Identity(), schedule, prediction_type)
        denoiser.network.forward = lambda x, t, prediction=prediction: prediction
        loss = diffusion.simple_loss(denoiser, x0, torch.full((2,), t), noise, gamma=gamma)
        assert float(loss) == pytest.approx(expected, rel=1e-6), prediction_type


def test_weights_refuse():
    schedule, t = diffusion.cosine(10), torch.tensor([3])
    for prediction_type, gamma in (("mu", 5.0), ("e", 5.0), ("v", 0.0), ("v", -1.0), ("v", math.nan)):
        with pytest.raises(ValueError, match="expected gamma > 0 and a prediction_type of epsilon, x0, v; got"):
            diffusion.weight(prediction_type, t, schedule, gamma, torch.zeros(1))


# The variational bound


def wave(x, t, condition=None):
    return Wave()(x, t, condition)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_terms_of_the_bound_against_torch(variance):
    schedule, T = diffusion.cosine(6), 6
    x0, noise = normal(3, 1, 2, 2), [normal(3, 1, 2, 2, seed=t) for t in range(1, T + 1)]
    terms = diffusion.bound_terms(wave, x0, schedule, noise=noise, variance=variance, bins=None)
    assert terms.shape == (3, T + 1) and terms.dtype == torch.float64
    ratio, beta = schedule.alpha_bar, schedule.beta
    tilde = [math.nan, *((1 - ratio[t - 1]) / (1 - ratio[t]) * beta[t] for t in range(1, T + 1))]
    sigma = (beta if variance == "large" else torch.tensor([math.nan, tilde[2], *tilde[2:]])).sqrt()
    for t in range(1, T + 1):
        x = ratio[t].sqrt() * x0 + (1 - ratio[t]).sqrt() * noise[t - 1]
        epsilon = wave(x, torch.full((3,), t))
        model = Normal((x - beta[t] / (1 - ratio[t]).sqrt() * epsilon) / (1 - beta[t]).sqrt(), sigma[t])
        if t == 1:
            expected = -model.log_prob(x0)
        else:
            exact, _ = diffusion.posterior(x0, x, t, schedule)
            expected = kl_divergence(Normal(exact, tilde[t].sqrt()), model)
        torch.testing.assert_close(terms[:, t - 1], expected.sum((1, 2, 3)))
    left = Normal(ratio[T].sqrt() * x0, (1 - ratio[T]).sqrt())
    torch.testing.assert_close(terms[:, T], kl_divergence(left, Normal(0.0, 1.0)).sum((1, 2, 3)))


MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)
ROOT = torch.tensor([[1.0, 0.0], [0.6, 0.5]], dtype=torch.float64)
COVARIANCE = ROOT @ ROOT.T


def mean_gap(T: int, variance: str) -> float:
    """E[bound] − E[−log p(X_0)] of the exact denoiser, without sampling error.

    Every term is a quadratic of Gaussian numbers, four in all: two of X_0, two of the noise. The eight points ±2 on
    the axes have their first and second moments, so that means over them are exact.
    """
    schedule = diffusion.cosine(T)
    data = diffusion.gaussian(MEAN, COVARIANCE, schedule)
    axes = 2 * torch.cat([torch.eye(4), -torch.eye(4)]).double()
    x0 = MEAN + axes[:, :2] @ ROOT.T
    terms = diffusion.bound_terms(data, x0, schedule, noise=[axes[:, 2:]] * T, variance=variance, bins=None)
    return float((terms.sum(1) + MultivariateNormal(MEAN, COVARIANCE).log_prob(x0)).mean())


def divergence_of_the_chains(T: int, variance: str) -> float:
    """The same gap by theory: KL(p(X_T) ‖ N(0, I)) + Σ_t KL(q(X_{t−1} | X_t) ‖ p_θ(X_{t−1} | X_t))."""
    schedule, eye, zero = diffusion.cosine(T), torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    a, beta = schedule.alpha_bar, schedule.beta
    gap = kl_divergence(
        MultivariateNormal(a[T].sqrt() * MEAN, a[T] * COVARIANCE + (1 - a[T]) * eye), MultivariateNormal(zero, eye)
    )
    for t in range(1, T + 1):
        before = a[t - 1] * COVARIANCE + (1 - a[t - 1]) * eye  # the covariance of X_{t−1}
        # Of X_{t−1} once X_t = √(1 − β) X_{t−1} + √β ε is seen, by Kalman's rule; the means agree.
        reverse = before - (1 - beta[t]) * before @ torch.linalg.inv((1 - beta[t]) * before + beta[t] * eye) @ before
        tilde = (1 - a[max(t, 2) - 1]) / (1 - a[max(t, 2)]) * beta[max(t, 2)]
        sigma2 = beta[t] if variance == "large" else tilde
        gap = gap + kl_divergence(MultivariateNormal(zero, reverse), MultivariateNormal(zero, sigma2 * eye))
    return float(gap)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("T", [10, 100])
def test_the_bound_exceeds_the_likelihood_by_the_divergence_of_the_chains(T, variance):
    assert mean_gap(T, variance) == pytest.approx(divergence_of_the_chains(T, variance), rel=1e-8)


def test_the_bound_becomes_the_likelihood_as_T_grows():
    """With σ_t² = β_t tenfold nearer with ten times the steps; β̃_t stays too small near the data for any T."""
    gaps = [mean_gap(T, "large") for T in (10, 100, 1000)]
    assert gaps[0] > 5 * gaps[1] > 25 * gaps[2] > 0 and gaps[2] < 0.002
    assert mean_gap(1000, "small") > 1


def test_the_bound_of_draws_exceeds_their_likelihood():
    schedule, n = diffusion.cosine(200), 3000
    data = diffusion.gaussian(MEAN, COVARIANCE, schedule)
    x0 = data.sample(n, rng(5))
    terms = diffusion.bound_terms(data, x0, schedule, noise=rng(6), variance="large", bins=None)
    gap = terms.sum(1) + data.log_density(x0)
    assert abs(float(gap.mean()) - mean_gap(200, "large")) < 4.5 * float(gap.std()) / math.sqrt(n) < 0.15


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize(("level", "scale"), [(0.0, 0.001), (0.3, 0.05), (-1.4, 0.3), (0.99, 1.0), (-0.2, 20.0)])
def test_probabilities_of_all_bins_sum_to_one(steps, variance, level, scale):
    """L_0 for each value a pixel can have, of a model that always estimates X̂_0 = level, from sharp to vague."""
    schedule = diffusion.from_betas(torch.tensor([scale**2 / (1 + scale**2), 0.5, 0.5])[:steps])

    def model(x, t, condition):
        a, b = schedule.at(t, x)
        return (x - a * level) / b

    values = (2 * torch.arange(256, dtype=torch.float64) / 255 - 1)[:, None]
    log_p = -diffusion.bound_terms(model, values, schedule, noise=rng(), variance=variance)[:, 0]
    assert float(torch.logsumexp(log_p, 0).exp()) == pytest.approx(1, abs=1e-9)
    # And one by one: differences of the Gaussian's distribution function where they have digits.
    small = steps > 1 and variance == "small"
    sigma2 = schedule.beta[1] * (schedule.beta[2] / (1 - schedule.alpha_bar[2]) if small else 1)
    cdf = Normal(level, sigma2.sqrt()).cdf
    low, high = cdf(values - 1 / 255), cdf(values + 1 / 255)
    low[0], high[-1] = 0, 1
    expected = (high - low)[:, 0]
    clear = expected > 1e-6
    torch.testing.assert_close(log_p.exp()[clear], expected[clear], rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_bins_have_finite_logarithms(dtype):
    """A grey pixel where white, or black, was sure: the probability is 10⁻²¹⁵⁶, its logarithm a number."""
    schedule, grey = diffusion.from_betas(torch.tensor([1e-4])), torch.zeros(1, 1, dtype=dtype)
    for sure in (-1.0, 1.0):

        def model(x, t, condition, sure=sure):
            a, b = schedule.at(t, x)
            return (x - a * sure) / b

        found = diffusion.bound_terms(model, grey, schedule, noise=rng())[0, 0]
        assert float(found) == pytest.approx(-stats.norm.logsf((1 - 1 / 255) / 0.01), rel=1e-4)


def test_conditions_reach_the_model_of_the_bound():
    schedule, x0, c = diffusion.cosine(4), normal(3, 2), normal(3, seed=1)
    terms = [diffusion.bound_terms(wave, x0, schedule, condition, noise=rng()) for condition in (None, c)]
    assert (terms[0] - terms[1])[:, :4].abs().min() > 0 and torch.equal(terms[0][:, 4], terms[1][:, 4])


def test_bits_per_dimension():
    """8 bits a number for who knows nothing: all 256 values alike."""
    x0, nats = torch.zeros(2, 3, 4, 5), 60 * math.log(256)
    terms = torch.tensor([[nats, 0.0, 0.0], [nats / 4, nats / 4, 0.0]], dtype=torch.float64)
    assert diffusion.bits_per_dimension(terms, x0).tolist() == pytest.approx([8, 4])


def test_the_bound_in_float32():
    """Terms whose two variances differ in the last digits only."""
    schedule, x0 = diffusion.cosine(200), normal(4, 6).clamp(-1, 1)
    noise = [normal(4, 6, seed=t) for t in range(200)]
    exact = diffusion.bound_terms(wave, x0, schedule, noise=noise)
    found = diffusion.bound_terms(wave, x0.float(), schedule, noise=[z.float() for z in noise])
    torch.testing.assert_close(found.sum(1), exact.sum(1), rtol=1e-4, atol=1e-3)


def test_the_bound_refuses():
    schedule, x0 = diffusion.cosine(3), normal(2, 2)
    with pytest.raises(ValueError, match="expected variance small or large, and finite data; got 'medium'"):
        diffusion.bound_terms(wave, x0, schedule, variance="medium")
    with pytest.raises(ValueError, match=r"finite data; got 'small', \(2, 2\)"):
        diffusion.bound_terms(wave, x0 * math.nan, schedule)
    with pytest.raises(ValueError, match=r"\(0, 2\)"):
        diffusion.bound_terms(wave, x0[:0], schedule)
    with pytest.raises(ValueError, match="the noise given ends before the steps do"):
        diffusion.bound_terms(wave, x0, schedule, noise=[x0, x0])
    with pytest.raises(ValueError, match=r"expected noise \(2, 2\), got \(2,\)"):
        diffusion.bound_terms(wave, x0, schedule, noise=x0)
