"""Both processes against Bayes' rule and the chain, conversions against each other, exact denoisers against autograd.

The other files of this topic: `test_diffusion_losses.py`, `test_diffusion_samplers.py`, `test_diffusion_training.py`.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import normal, rng
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence

from course_lib import diffusion
from course_lib.base.unet import Config, UNet
from course_lib.diffusion import Schedule
from course_lib.diffusion.process import PREDICTION_TYPES, posterior_coefficients

drawn = settings(max_examples=60, deadline=None, derandomize=True, database=None)
SCHEDULES = {
    "linear": diffusion.linear(100),
    "cosine": diffusion.cosine(100),
    "straight": diffusion.straight(100),
    "from_betas": diffusion.from_betas(torch.tensor([0.3, 0.001, 0.9, 0.02])),
    "from_function": diffusion.from_function(lambda u: math.exp(-6 * u**2), 50),
}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4)


# Schedules


@each_schedule
def test_schedules_fall_from_data_to_noise(schedule):
    ratio = schedule.alpha_bar
    assert ratio.dtype == torch.float64 and len(ratio) == schedule.T + 1
    assert ratio[0] == 1 and ratio[-1] > 0 and (ratio.diff() < 0).all()
    assert schedule.beta[0] == 0 and (schedule.beta[1:] > 0).all() and (schedule.beta < 1).all()
    assert math.isinf(schedule.snr[0]) and (schedule.snr.diff()[1:] < 0).all()
    product = 1.0
    for t in range(1, schedule.T + 1):
        product *= 1 - float(schedule.beta[t])
        assert float(ratio[t]) == pytest.approx(product, rel=1e-12)
        assert float(schedule.snr[t]) == pytest.approx(product / (1 - product), rel=1e-12)


def test_linear_is_the_papers():
    schedule = diffusion.linear()
    betas = [1e-4 + (0.02 - 1e-4) * k / 999 for k in range(1000)]
    assert schedule.beta[1:].tolist() == pytest.approx(betas, rel=1e-9)
    assert float(schedule.alpha_bar[-1]) == pytest.approx(math.exp(math.fsum(math.log1p(-b) for b in betas)), rel=1e-12)
    assert float(schedule.alpha_bar[-1]) == pytest.approx(4.036e-5, rel=1e-4)
    # With other numbers of steps the noise at the end stays about the same.
    for T in (250, 4000):
        assert -math.log(diffusion.linear(T).alpha_bar[-1]) == pytest.approx(10.05, rel=0.05)


def test_cosine_is_the_papers():
    for T, s in ((1000, 0.008), (20, 0.1)):
        schedule = diffusion.cosine(T, s)
        f = [math.cos(math.pi / 2 * (t / T + s) / (1 + s)) ** 2 for t in range(T + 1)]
        assert schedule.alpha_bar[:-1].tolist() == pytest.approx([x / f[0] for x in f[:-1]], rel=1e-9)
        # f(T) is 0, which is where β is held at 0.999.
        assert float(schedule.alpha_bar[-1]) == pytest.approx(0.001 * f[-2] / f[0], rel=1e-9)


def test_of_a_function():
    found = diffusion.from_function(lambda u: 3 * math.exp(-5 * u), 40).alpha_bar.tolist()
    assert found == pytest.approx([math.exp(-5 * t / 40) for t in range(41)], rel=1e-12)
    assert diffusion.from_function(lambda u: 1 - u, 5).beta[-1] == 0.999


@pytest.mark.parametrize(("name", "schedule"), [("linear", diffusion.linear), ("squaredcos_cap_v2", diffusion.cosine)])
def test_schedules_equal_diffusers(name, schedule):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(1000, beta_schedule=name).alphas_cumprod.double()  # in float32
    torch.testing.assert_close(schedule().alpha_bar[1:], theirs, rtol=1e-4, atol=1e-6)


def test_small_noise_keeps_its_digits():
    """In float32 1 − ᾱ_1 would be 0: the schedule is in float64 to the end."""
    schedule = diffusion.from_betas(torch.tensor([1e-10, 0.5], dtype=torch.float64))
    _, s = schedule.at(1, torch.zeros(1))
    assert s.dtype == torch.float32 and float(s) == pytest.approx(1e-5, rel=1e-6)
    _, _, tilde, beta = posterior_coefficients(2, 1, schedule, torch.zeros(1))
    assert float(tilde) == pytest.approx(1e-10, rel=1e-5) and float(beta) == 0.5


@drawn
@given(shape=shapes, dtype=st.sampled_from([torch.float32, torch.float64]), seed=st.integers(0, 99))
def test_at_fits_the_images(shape, dtype, seed):
    schedule, like = SCHEDULES["cosine"], torch.zeros(shape, dtype=dtype)
    t = torch.randint(101, shape[:1], generator=rng(seed))
    for found, exact in zip(schedule.at(t, like), (schedule.alpha_bar, 1 - schedule.alpha_bar), strict=True):
        assert found.shape == (shape[0], *[1] * (len(shape) - 1)) and found.dtype == dtype
        assert torch.equal(found.flatten(), exact[t].sqrt().to(dtype))
        for k in range(shape[0]):
            alone = schedule.at(int(t[k]), like)
            assert alone[0].shape == (1,) * len(shape) and found.flatten()[k] in alone


@drawn
@given(T=st.integers(1, 300), data=st.data())
def test_times_fall_evenly_from_T_to_0(T, data):
    calls = data.draw(st.integers(1, T))
    schedule = diffusion.from_function(lambda u: math.exp(-u), T)
    times = schedule.times(calls)
    assert times[0] == T and times[-1] == 0 and len(times) == calls + 1
    for t, s in itertools.pairwise(times):
        assert isinstance(t, int) and t > s and abs((t - s) - T / calls) <= 1
    assert schedule.times(T) == list(range(T, -1, -1))


@drawn
@given(T=st.integers(1, 300), rho=st.floats(1, 50), data=st.data())
def test_times_by_rho_fall_whatever_they_are(T, rho, data):
    calls = data.draw(st.integers(1, T))
    times = diffusion.cosine(T).times(calls, rho)
    assert len(times) == calls + 1 and times[-1] == 0 and times[0] <= T and all(type(t) is int for t in times)
    assert all(t > s for t, s in itertools.pairwise(times))


@pytest.mark.parametrize("make", [diffusion.cosine, diffusion.linear], ids=lambda make: make.__name__)
def test_times_by_rho_are_equation_5(make):
    """Karras et al. 2022: σ_i = (σ_max^(1/ρ) + i/(n − 1) (σ_min^(1/ρ) − σ_max^(1/ρ)))^ρ, between its neighbours'."""
    schedule, n = make(5000), 12
    sigma = ((1 - schedule.alpha_bar) / schedule.alpha_bar).sqrt().tolist()
    for rho in (1, 3.0, np.float32(7)):
        top, low = 80 ** (1 / float(rho)), sigma[1] ** (1 / float(rho))
        for i, t in enumerate(schedule.times(n, rho)[:-1]):
            wanted = (top + i / (n - 1) * (low - top)) ** float(rho)
            assert sigma[t - 1] < wanted < sigma[t + 1]


def test_times_by_rho_begin_where_the_schedule_ends():
    """Where even the last time has less noise than 80 times the data."""
    schedule = diffusion.from_function(lambda u: math.exp(-u), 50)
    assert schedule.times(5, 7.0)[0] == 50 and schedule.times(50, 7.0) == schedule.times(50)


@each_schedule
def test_distance_to_noise_equals_torch(schedule):
    x0 = normal(4, 2, 3, 3, dtype=torch.float32)
    ratio = schedule.alpha_bar[-1]
    expected = kl_divergence(Normal(ratio.sqrt() * x0, (1 - ratio).sqrt()), Normal(0.0, 1.0)).sum((1, 2, 3))
    found = schedule.distance_to_noise(x0)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_at_the_end_nothing_is_left_of_the_image():
    """The lecture's X_T → N(0, I) as T → ∞, for steps of one size: ᾱ_T = 0.98^T."""
    left = [diffusion.from_betas(torch.full((T,), 0.02)).distance_to_noise(torch.ones(1, 784)) for T in (10, 100, 1000)]
    assert left[0] > 100 > left[1] > 10 and left[2] < 1e-6


def test_schedules_refuse():
    for T in (20, 0, -1):
        with pytest.raises(ValueError, match=f"expected T > 20, got {T}"):
            diffusion.linear(T)
    with pytest.raises(ValueError, match="expected T ≥ 1, got 0"):
        diffusion.cosine(0)
    for betas in ([], [0.0], [1.0], [0.1, math.nan], [[0.1]]):
        with pytest.raises(ValueError, match=r"expected at least one β, all in \(0, 1\)"):
            diffusion.from_betas(torch.tensor(betas))
    for function in (lambda u: 1 + u, lambda u: math.nan, lambda u: 1.0):
        with pytest.raises(ValueError, match="expected at least one β"):
            diffusion.from_function(function, 5)
    for values in ([1.0, 0.5, 0.5], [0.9, 0.5], [1.0, 0.0], [1.0, math.nan], [1.0, -0.1]):
        with pytest.raises(ValueError, match="alpha_bar must begin at 1 and fall at every step"):
            Schedule(torch.tensor(values, dtype=torch.float64))
    for values in (torch.tensor([1.0, 0.5]), torch.ones(1).double(), torch.ones(1, 2).double()):
        with pytest.raises(ValueError, match=r"expected alpha_bar \(T \+ 1,\) float64 with T ≥ 1, got"):
            Schedule(values)
    for calls in (0, 101):
        with pytest.raises(ValueError, match=f"expected 1 … 100 calls, got {calls}"):
            SCHEDULES["cosine"].times(calls)
        with pytest.raises(ValueError, match=f"expected 1 … 100 calls, got {calls}"):
            SCHEDULES["cosine"].times(calls, 7.0)
    for rho in (0, 0.9, -7.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"expected rho of 1 or more, got {rho}"):
            SCHEDULES["cosine"].times(5, rho)


def test_times_out_of_range_are_refused():
    schedule, x = SCHEDULES["cosine"], normal(2, 3)
    for t in (-1, 101, torch.tensor([0, 101]), torch.tensor([-1, 5])):
        with pytest.raises(ValueError, match="expected times 0 … 100, got"):
            schedule.at(t, x)
    for t in (torch.tensor([1]), torch.tensor(1), torch.tensor([[1, 2]])):
        with pytest.raises(ValueError, match="expected 2 times, one for each image"):
            schedule.at(t, x)
    for t in (1.5, torch.tensor([1.0, 2.0]), torch.tensor([True, False])):
        with pytest.raises(TypeError, match="whole times|integer"):
            schedule.at(t, x)
    for t in (0, torch.tensor([0, 7])):
        for refused in (
            lambda t: diffusion.posterior(x, x, t, schedule),
            lambda t: diffusion.mu_from_epsilon(x, t, x, schedule),
            lambda t: diffusion.target("mu", x, x, t, schedule),
            lambda t: diffusion.to_x0("mu", x, x, t, schedule),
            lambda t: diffusion.to_epsilon("x0", x, x, t, schedule),
            lambda t: diffusion.to_epsilon("v", x, x, t, schedule),
        ):
            with pytest.raises(ValueError, match="expected times 1 … 100, got 0"):
                refused(t)
    with pytest.raises(ValueError, match="expected times 1 … 100, got 0"):
        diffusion.q_step(x, 0, x, schedule)
    with pytest.raises(ValueError, match="expected s < t, got 5 and 5"):
        posterior_coefficients(5, 5, schedule, x)
    with pytest.raises(ValueError, match="expected s < t"):
        posterior_coefficients(torch.tensor([5, 6]), torch.tensor([4, 7]), schedule, x)


# The forward process


@each_schedule
def test_the_chain_arrives_where_the_closed_form_does(schedule):
    """Exactly: every step is linear, so a 1 in X_0, or in the noise of one step, shows what becomes of it."""
    T = schedule.T
    impulses = torch.eye(T + 1, dtype=torch.float64)  # column 0 is X_0, column t the noise of step t
    x = impulses[0]
    for t in range(1, T + 1):
        x = diffusion.q_step(x, t, impulses[t], schedule)
        a, s = schedule.at(t, x)
        torch.testing.assert_close(x[:1], a)
        torch.testing.assert_close(x[1:].square().sum()[None], s**2)


def test_the_chain_by_sampling():
    schedule, n, generator = diffusion.cosine(20), 20_000, rng(1)
    x = x0 = torch.full((n,), 1.5, dtype=torch.float64)
    for t in range(1, 15):
        x = diffusion.q_step(x, t, torch.randn(n, generator=generator, dtype=torch.float64), schedule)
    direct = diffusion.q_sample(x0, 14, torch.randn(n, generator=generator, dtype=torch.float64), schedule)
    mean, variance = 1.5 * schedule.alpha_bar[14].sqrt(), 1 - schedule.alpha_bar[14]
    for found in (x, direct):
        assert abs(found.mean() - mean) < 4.5 * (variance / n).sqrt()
        assert abs(found.var() / variance - 1) < 4.5 * math.sqrt(2 / n)


def test_q_sample_of_different_times():
    schedule, x0, noise = SCHEDULES["cosine"], normal(3, 1, 2, 2), normal(3, 1, 2, 2, seed=1)
    t = torch.tensor([0, 40, 100])
    together = diffusion.q_sample(x0, t, noise, schedule)
    assert torch.equal(together[0], x0[0])
    for k in range(3):
        alone = diffusion.q_sample(x0[k : k + 1], int(t[k]), noise[k : k + 1], schedule)
        torch.testing.assert_close(together[k : k + 1], alone)
    torch.testing.assert_close(together[2], noise[2], atol=1e-2, rtol=0)
    for refuse in (diffusion.q_sample, diffusion.q_step):
        with pytest.raises(ValueError, match=r"expected noise \(3, 1, 2, 2\), got \(1, 2, 2\)"):
            refuse(x0, 1, noise[0], schedule)


def test_a_noise_stream_repeats_with_its_rng():
    like = normal(2, 3, dtype=torch.float32)
    one, two = diffusion.noise_stream(rng(4), like), diffusion.noise_stream(rng(4), like)
    first, second = next(one), next(one)
    assert first.shape == (2, 3) and first.dtype == torch.float32 and not torch.equal(first, second)
    assert torch.equal(next(two), first) and torch.equal(next(two), second)


# Data that is not float32 or float64


HALF = (torch.bfloat16, torch.float16)
PROCESSES = {
    "q_sample": lambda x, y, t, schedule: diffusion.q_sample(x, t, y, schedule),
    "q_step": lambda x, y, t, schedule: diffusion.q_step(x, t, y, schedule),
    "posterior": lambda x, y, t, schedule: diffusion.posterior(y, x, t, schedule)[0],
    "mu_from_epsilon": lambda x, y, t, schedule: diffusion.mu_from_epsilon(x, t, y, schedule),
}
for _type in PREDICTION_TYPES:
    PROCESSES |= {
        f"target {_type}": lambda x, y, t, schedule, kind=_type: diffusion.target(kind, x, y, t, schedule),
        f"to_x0 {_type}": lambda x, y, t, schedule, kind=_type: diffusion.to_x0(kind, y, x, t, schedule),
        f"to_epsilon {_type}": lambda x, y, t, schedule, kind=_type: diffusion.to_epsilon(kind, y, x, t, schedule),
    }
each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


@each_process
def test_integer_data_is_refused(process):
    """Coefficients below 1 would become 0 in its dtype."""
    schedule, noise = diffusion.cosine(), torch.ones(1, 2)
    for x in (torch.tensor([[-1, 1]]), torch.tensor([[0, 255]], dtype=torch.uint8), torch.tensor([[True, False]])):
        for t in (500, torch.tensor([500])):
            with pytest.raises(TypeError, match=f"floats, got {x.dtype}"):
                process(x, noise, t, schedule)


def test_float_data_of_whole_numbers():
    found = diffusion.q_sample(torch.tensor([[-1.0, 1.0]]), 500, torch.ones(1, 2), diffusion.cosine())
    torch.testing.assert_close(found, torch.tensor([[0.0087, 1.4142]]), rtol=0, atol=1e-4)


@each_process
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_rounds_data_but_no_coefficients(process, dtype):
    """The result is that of float64, to the last place of the data's own dtype."""
    schedule, x, y = diffusion.cosine(), normal(3, 2).to(dtype), normal(3, 2, seed=1).to(dtype)
    for t in (1, 2, 500, 998, torch.tensor([3, 500, 990])):
        found, exact = process(x, y, t, schedule), process(x.double(), y.double(), t, schedule)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4)


def test_times_of_any_integers():
    schedule, x, noise = diffusion.cosine(100), normal(3, 2), normal(3, 2, seed=1)
    expected = diffusion.q_sample(x, torch.tensor([1, 0, 100]), noise, schedule)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(diffusion.q_sample(x, torch.tensor([1, 0, 100], dtype=dtype), noise, schedule), expected)
    for one in (np.int64(40), np.uint8(40)):
        assert torch.equal(diffusion.q_sample(x, one, noise, schedule), diffusion.q_sample(x, 40, noise, schedule))
        assert schedule.times(one) == schedule.times(40)
    for process in (diffusion.q_sample, diffusion.mu_from_epsilon):
        for kind in (np.int64, np.uint8):
            found = process(x, np.array([1, 2, 100], kind), noise, schedule)
            assert torch.equal(found, process(x, torch.tensor([1, 2, 100]), noise, schedule))
    for wrong in (np.array([1.0, 2, 3]), 40.0, True):
        with pytest.raises(TypeError, match="expected whole times, got torch"):
            diffusion.q_sample(x, wrong, noise, schedule)
    with pytest.raises(ValueError, match=r"expected 3 times, one for each image; got \(2,\)"):
        diffusion.q_sample(x, np.array([1, 2]), noise, schedule)
    with pytest.raises(TypeError, match="float"):
        schedule.times(20.0)


# The way back


@each_schedule
def test_posterior_is_bayes_rule(schedule):
    """q(X_{t−1} | X_0) as the prior, q(X_t | X_{t−1}) as the likelihood: precisions add up."""
    x0, x = torch.tensor([0.7, -1.3], dtype=torch.float64).split(1)
    for t in range(2, schedule.T + 1):
        before, beta = schedule.alpha_bar[t - 1], schedule.beta[t]
        precision = 1 / (1 - before) + (1 - beta) / beta
        mean, variance = diffusion.posterior(x0, x, t, schedule)
        expected = (before.sqrt() * x0 / (1 - before) + (1 - beta).sqrt() * x / beta) / precision
        torch.testing.assert_close(mean, expected)
        torch.testing.assert_close(variance, 1 / precision[None])
    mean, variance = diffusion.posterior(x0, x, 1, schedule)
    assert float(mean) == pytest.approx(0.7) and float(variance) == 0  # X_0 is given


@pytest.mark.parametrize(("t", "s"), [(30, 29), (30, 10), (95, 20), (2, 1)])
def test_posterior_across_several_steps_on_a_grid(t, s):
    """Moments of q(X_s | X_0) q(X_t | X_s), summed over X_s, whose likelihood is a chain of steps from s to t."""
    schedule = SCHEDULES["cosine"]
    ratio = schedule.alpha_bar
    x0, x = 0.4, 0.9
    grid = torch.linspace(-9, 9, 200_001, dtype=torch.float64)
    gain = torch.prod(1 - schedule.beta[s + 1 : t + 1])
    likelihood = Normal(gain.sqrt() * grid, (1 - gain).sqrt()).log_prob(torch.tensor(x))
    p = (Normal(ratio[s].sqrt() * x0, (1 - ratio[s]).sqrt()).log_prob(grid) + likelihood).softmax(0)
    mean = (p * grid).sum()
    c_0, c_t, tilde, beta = (c.squeeze() for c in posterior_coefficients(t, s, schedule, grid))
    torch.testing.assert_close(c_0 * x0 + c_t * x, mean)
    torch.testing.assert_close(tilde, (p * (grid - mean).square()).sum())
    torch.testing.assert_close(beta, 1 - gain)


@drawn
@given(shape=shapes, t=st.integers(1, 100), seed=st.integers(0, 99))
def test_mu_from_epsilon_is_the_posterior_mean_at_the_estimate(shape, t, seed):
    schedule, x, epsilon = SCHEDULES["linear"], normal(*shape, seed=seed), normal(*shape, seed=seed + 100)
    estimate = diffusion.to_x0("epsilon", epsilon, x, t, schedule)
    mean, _ = diffusion.posterior(estimate, x, t, schedule)
    torch.testing.assert_close(diffusion.mu_from_epsilon(x, t, epsilon, schedule), mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(diffusion.to_epsilon("mu", mean, x, t, schedule), epsilon, rtol=1e-6, atol=1e-6)


@settings(drawn, max_examples=200)
@given(
    prediction_type=st.sampled_from(PREDICTION_TYPES),
    shape=shapes,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    name=st.sampled_from(["linear", "cosine"]),
    seed=st.integers(0, 999),
    whole=st.booleans(),
)
def test_conversions_are_each_others_inverses(prediction_type, shape, dtype, name, seed, whole):
    """From truth to prediction and back, and from any prediction to estimates and back; int t and tensor t alike."""
    schedule = SCHEDULES[name]
    x0, noise, other = (normal(*shape, seed=3 * seed + k, dtype=dtype) for k in range(3))
    t = torch.randint(1, 101, shape[:1], generator=rng(seed))
    t = int(t[0]) if whole else t
    x = diffusion.q_sample(x0, t, noise, schedule)
    a, s = schedule.at(t, x)
    c_0 = posterior_coefficients(t, t - 1, schedule, x)[0]
    # What rounding grows to where an image, noise, or a difference of means is nearly all lost.
    tolerance = float(64 * torch.finfo(dtype).eps / (torch.minimum(a, c_0) * s).min())

    def close(one: torch.Tensor, two: torch.Tensor) -> None:
        assert one.dtype == dtype and one.shape == x.shape
        torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)

    answer = diffusion.target(prediction_type, x0, noise, t, schedule)
    close(diffusion.to_x0(prediction_type, answer, x, t, schedule), x0)
    close(diffusion.to_epsilon(prediction_type, answer, x, t, schedule), noise)
    # Any answer at any x: its two estimates fit x, and amount to that answer.
    x0, noise = (convert(prediction_type, other, x, t, schedule) for convert in (diffusion.to_x0, diffusion.to_epsilon))
    scale = 1 + float(x0.abs().max()) + float(noise.abs().max())
    close(diffusion.q_sample(x0, t, noise, schedule) / scale, x / scale)
    close(diffusion.target(prediction_type, x0, noise, t, schedule) / scale, other / scale)


def test_a_time_for_all_is_that_time_for_each():
    schedule, x, y = SCHEDULES["cosine"], normal(3, 2), normal(3, 2, seed=1)
    for prediction_type, convert in itertools.product(
        PREDICTION_TYPES, (diffusion.to_x0, diffusion.to_epsilon, diffusion.target)
    ):
        one, each = (convert(prediction_type, x, y, t, schedule) for t in (17, torch.full((3,), 17)))
        torch.testing.assert_close(one, each)


def test_v_is_the_velocity_along_the_circle():
    """dX/dφ with √ᾱ = cos φ (Salimans & Ho 2022, appendix D), by a difference quotient over neighbouring times."""
    schedule, x0, noise = diffusion.cosine(100_000), normal(5), normal(5, seed=1)
    x = [diffusion.q_sample(x0, t, noise, schedule) for t in (29_999, 30_001)]
    phi = [float(torch.acos(schedule.alpha_bar[t].sqrt())) for t in (29_999, 30_001)]
    v = diffusion.target("v", x0, noise, 30_000, schedule)
    torch.testing.assert_close((x[1] - x[0]) / (phi[1] - phi[0]), v, rtol=1e-6, atol=1e-6)


def test_velocity_is_that_of_the_straight_path():
    """dz/ds of z_s = (1 − s) X_0 + s ε (Lipman et al. 2023), by a difference quotient over neighbouring times.

    On `straight` t is Ts; on any schedule X_t is z_s at unit variance, with s/(1 − s) = √(1 − ᾱ_t)/√ᾱ_t.
    """
    x0, noise = normal(5), normal(5, seed=1)
    for schedule in (diffusion.straight(100_000), diffusion.cosine(100_000)):
        z, s = [], []
        for t in (29_999, 30_001):
            a, b = schedule.at(t, x0)
            s.append(float(b / (a + b)))
            z.append(diffusion.q_sample(x0, t, noise, schedule) / (a + b))
            torch.testing.assert_close(z[-1], (1 - s[-1]) * x0 + s[-1] * noise)
        velocity = diffusion.target("velocity", x0, noise, 30_000, schedule)
        torch.testing.assert_close((z[1] - z[0]) / (s[1] - s[0]), velocity, rtol=1e-6, atol=1e-6)
    straight = diffusion.straight(1000)
    for t in (1, 250, 500, 999):
        assert float(straight.snr[t].sqrt()) == pytest.approx((1000 - t) / t, rel=1e-9)


def test_other_prediction_types_are_refused():
    x, schedule = normal(2), SCHEDULES["cosine"]
    for refuse in (diffusion.target, diffusion.to_x0, diffusion.to_epsilon):
        with pytest.raises(ValueError, match="expected a prediction_type of epsilon, x0, v, velocity, mu; got 'score'"):
            refuse("score", x, x, 3, schedule)
    with pytest.raises(ValueError, match="expected a prediction_type of epsilon, x0, v, velocity, mu; got 'score'"):
        diffusion.Denoiser(nn.Identity(), schedule, "score")


# The denoiser and guidance


class Answer(nn.Module):
    """Answers what it was told to, and remembers what it was asked."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer, self.asked = answer, []

    def forward(self, *given_):
        self.asked.append(given_)
        return self.answer


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_denoiser_names_the_noise(prediction_type):
    schedule, t = SCHEDULES["cosine"], torch.tensor([1, 50, 90])
    x0, noise = normal(3, 2), normal(3, 2, seed=1)
    x = diffusion.q_sample(x0, t, noise, schedule)
    network = Answer(diffusion.target(prediction_type, x0, noise, t, schedule))
    denoiser = diffusion.Denoiser(network, schedule, prediction_type, (2,))
    torch.testing.assert_close(denoiser(x, t), noise, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(denoiser.predict(x, t), network.answer)
    assert len(network.asked) == 2 and all(len(given_) == 2 for given_ in network.asked)
    denoiser(x, t, "c")
    denoiser.predict(x, t, "c", "condition_mask")
    assert [given_[2:] for given_ in network.asked[2:]] == [("c", None), ("c", "condition_mask")]


def test_a_denoiser_widens_what_mixed_precision_leaves():
    denoiser = diffusion.Denoiser(Answer(normal(3, 2).bfloat16()), SCHEDULES["cosine"], "v")
    for dtype in (torch.float32, torch.float64):
        x, t = normal(3, 2, dtype=dtype), torch.tensor([1, 2, 3])
        assert denoiser(x, t).dtype == denoiser.predict(x, t).dtype == dtype


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_only_the_network_of_a_denoiser_is_in_half(prediction_type, dtype):
    """Its input and its answer are rounded, and nothing else is."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.7, dtype=dtype))

        def forward(self, x, t):
            assert x.dtype == dtype
            return x * self.weight

    schedule, t, x = SCHEDULES["cosine"], torch.tensor([1, 50, 100]), normal(3, 2, dtype=torch.float32)
    denoiser = diffusion.Denoiser(Half(), schedule, prediction_type)
    answer = (x.to(dtype) * denoiser.network.weight).float()
    assert torch.equal(denoiser.predict(x, t), answer)
    assert torch.equal(denoiser(x, t), diffusion.to_epsilon(prediction_type, answer, x, t, schedule))


def test_a_denoiser_refuses_times():
    denoiser = diffusion.Denoiser(Answer(normal(1, 2)), SCHEDULES["cosine"])
    for t in (0, 101):
        with pytest.raises(ValueError, match=f"expected times 1 … 100, got {t} … {t}"):
            denoiser(normal(1, 2), torch.tensor([t]))


def test_guidance():
    calls = []

    def model(x, t, condition):
        calls.append(condition)
        return torch.sin(x) if condition is None else torch.cos(x) * condition

    x, t, c = normal(4), torch.tensor(3), torch.tensor(2.0)
    without, with_it = model(x, t, None), model(x, t, c)
    for scale, expected, number in (
        (1, with_it, 1),
        (1.0, with_it, 1),
        (0, without, 1),
        (0.0, without, 1),
        (0.5, (without + with_it) / 2, 2),
        (3.0, without + 3 * (with_it - without), 2),
        (-1.0, 2 * without - with_it, 2),
    ):
        calls.clear()
        torch.testing.assert_close(diffusion.guided(model, scale)(x, t, c), expected)
        assert len(calls) == number
    calls.clear()
    assert torch.equal(diffusion.guided(model, 3.0)(x, t, None), without) and calls == [None]
    for scale in (np.float32(3), np.float64(3), np.int64(3), torch.tensor(3.0)):
        assert torch.equal(diffusion.guided(model, scale)(x, t, c), diffusion.guided(model, 3.0)(x, t, c))


def test_guidance_of_gaussians_is_a_power_of_the_condition():
    """The guided score is that of p(x) (p(x|c)/p(x))^w: for Gaussians of one variance, a mean that is extrapolated."""
    schedule, far = diffusion.cosine(100), torch.tensor([2.0, 1.0]).double()
    centre, eye = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)

    def model(x, t, condition):
        return diffusion.gaussian(centre if condition is None else far, eye, schedule)(x, t)

    x, t = normal(5, 2), torch.full((5,), 40)
    expected = diffusion.gaussian(2.5 * far, eye, schedule)(x, t)
    torch.testing.assert_close(diffusion.guided(model, 2.5)(x, t, torch.ones(5)), expected)


# Exact denoisers


def blobs() -> diffusion.GaussianMixture:
    weights, roots = torch.tensor([1.0, 2.0, 5.0]).double(), normal(3, 2, 2)
    return diffusion.GaussianMixture(weights, 2 * normal(3, 2, seed=1), roots @ roots.mT, SCHEDULES["cosine"])


def in_torch(mixture: diffusion.GaussianMixture, t: int) -> MixtureSameFamily:
    ratio = mixture.schedule.alpha_bar[t]
    covariances = ratio * mixture.covariances + (1 - ratio) * torch.eye(mixture.means.shape[1])
    parts = MultivariateNormal(ratio.sqrt() * mixture.means, covariances)
    return MixtureSameFamily(Categorical(mixture.weights), parts)


@pytest.mark.parametrize("t", [1, 10, 50, 100])
def test_exact_denoiser_is_the_score(t):
    mixture, x = blobs(), (2 * normal(20, 2, seed=2)).requires_grad_()
    log_density = mixture.log_density(x, t)
    torch.testing.assert_close(log_density, in_torch(mixture, t).log_prob(x))
    score = torch.autograd.grad(log_density.sum(), x)[0]
    epsilon = mixture(x.detach(), torch.full((20,), t))
    torch.testing.assert_close(epsilon, -(1 - mixture.schedule.alpha_bar[t]).sqrt() * score)


def test_density_of_the_data():
    mixture, x = blobs(), normal(20, 2, seed=2)
    torch.testing.assert_close(mixture.log_density(x), in_torch(mixture, 0).log_prob(x))


@pytest.mark.parametrize("t", [20, 60, 95])
def test_exact_denoiser_is_the_mean_noise(t):
    """E[ε | X_t = x] by Bayes' rule, summed over a fine grid of X_0."""
    mixture, schedule = blobs(), SCHEDULES["cosine"]
    a, b = schedule.alpha_bar[t].sqrt(), (1 - schedule.alpha_bar[t]).sqrt()
    axis = torch.linspace(-9, 9, 361, dtype=torch.float64)
    x0 = torch.cartesian_prod(axis, axis)
    prior, x = in_torch(mixture, 0).log_prob(x0), normal(4, 2, seed=3)
    noise = (x[:, None] - a * x0) / b
    p = (prior + Normal(0.0, 1.0).log_prob(noise).sum(2)).softmax(1)
    expected = (p[..., None] * noise).sum(1)
    torch.testing.assert_close(mixture(x, torch.full((4,), t)), expected, rtol=1e-5, atol=1e-5)


def test_exact_denoiser_of_a_gaussian():
    """ε* = b Σ_t⁻¹ (x − a m): for N(m, 1) in each direction simply b (x − a m)."""
    schedule, m, x = SCHEDULES["cosine"], normal(3), normal(6, 3, seed=1)
    a, b = schedule.at(30, x)
    found = diffusion.gaussian(m, torch.eye(3, dtype=torch.float64), schedule)(x, torch.full((6,), 30))
    torch.testing.assert_close(found, b * (x - a * m))
    one_point = diffusion.gaussian(m, torch.zeros(3, 3, dtype=torch.float64), schedule)
    torch.testing.assert_close(one_point(x, torch.full((6,), 30)), (x - a * m) / b)
    assert torch.equal(one_point.sample(2, rng()), m.expand(2, 3))


def test_draws_of_a_mixture():
    mixture, n = blobs(), 40_000
    x = mixture.sample(n, rng())
    assert torch.equal(x, mixture.sample(n, rng())) and x.dtype == torch.float64
    expected = in_torch(mixture, 0)
    assert ((x.mean(0) - expected.mean).abs() < 4.5 * (expected.variance / n).sqrt()).all()
    # The surprise of draws has the entropy's mean: it would not, were the shapes of the blobs wrong.
    torch.manual_seed(1)
    reference = expected.sample((n,))
    surprise, of_reference = mixture.log_density(x), mixture.log_density(reference)
    error = float((surprise.var() + of_reference.var()).sqrt()) / math.sqrt(n)
    assert abs(float(surprise.mean() - of_reference.mean())) < 4.5 * error


def test_exact_denoiser_on_devices(device):
    mixture, x, t = blobs(), normal(4, 2, dtype=torch.float32), torch.full((4,), 30)
    found = mixture(x.to(device), t.to(device))
    assert found.dtype == torch.float32 and found.device.type == device.type
    torch.testing.assert_close(found.cpu().double(), mixture(x.double(), t), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", HALF)
def test_exact_denoiser_of_half_precision(dtype):
    """Only x is rounded, and ε* at the end."""
    mixture, x, t = blobs(), normal(4, 2).to(dtype), torch.full((4,), 30)
    found = mixture(x, t)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), mixture(x.double(), t), rtol=torch.finfo(dtype).eps, atol=1e-4)
    torch.testing.assert_close(
        mixture.log_density(x, 30).double(), mixture.log_density(x.double(), 30), rtol=1e-4, atol=1e-4
    )


def test_mixtures_refuse():
    one, two, eye = torch.ones(1), torch.ones(2), torch.eye(2)
    good = (two, torch.zeros(2, 2), torch.stack([eye, eye]))
    diffusion.GaussianMixture(*good, SCHEDULES["cosine"])
    for k, bad in (
        (0, one), (0, -two), (0, two * 0), (0, torch.ones(2, 1)), (1, torch.zeros(2)), (1, torch.zeros(2, 3)),
        (2, eye[None]), (2, eye), (0, two * math.nan),
    ):  # fmt: skip
        arguments = [bad if i == k else x for i, x in enumerate(good)]
        with pytest.raises(ValueError, match=r"expected weights \(K,\) > 0, means \(K, d\) and cov"):
            diffusion.GaussianMixture(*arguments, SCHEDULES["cosine"])
    for bad in (-eye, torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.tensor([[1.0, 0.3], [0.2, 1.0]])):
        with pytest.raises(ValueError, match="expected symmetric covariances without negative eigenvalues"):
            diffusion.GaussianMixture(*good[:2], torch.stack([eye, bad]), SCHEDULES["cosine"])
    with pytest.raises(ValueError, match="expected one time for all"):
        blobs()(normal(2, 2), torch.tensor([1, 2]))


# Points in the plane


def test_the_spiral_has_one_and_a_half_turns_and_even_density():
    x = diffusion.spiral(20_000, rng(), noise=0.0)
    assert x.shape == (20_000, 2) and x.dtype == torch.float32 and torch.equal(x, diffusion.spiral(20_000, rng(), 0.0))
    radius = x.norm(dim=1)
    assert radius.min() > 0.15 and 1.59 < radius.max() <= 1.6001
    u = (radius / 1.6 - 0.1) / 0.9
    torch.testing.assert_close(x / radius[:, None], torch.stack([(3 * math.pi * u).cos(), (3 * math.pi * u).sin()], 1))
    # The curve's length grows with its radius: of equal pieces of the area of u, all hold as many points.
    counts = (u.square() * 10).long().clamp_max(9).bincount(minlength=10)
    assert ((counts - 2000).abs() < 4.5 * math.sqrt(2000)).all()


def test_noise_of_the_spiral():
    off = diffusion.spiral(5000, rng(), noise=0.1) - diffusion.spiral(5000, rng(), noise=0.0)
    assert off.std().item() == pytest.approx(0.1, rel=0.05)
    with pytest.raises(ValueError, match="expected n ≥ 1, got 0"):
        diffusion.spiral(0)


def test_the_cat_is_symmetric_even_and_has_two_eyes():
    n = 400
    points = diffusion.cat_outline(n)
    assert points.shape == (n, 2) and points.dtype == torch.float64 and points.abs().max() <= 1.5
    mirrored = torch.cdist(points * torch.tensor([-1.0, 1.0]).double(), points).min(1).values
    assert mirrored.max() < 0.03, "left and right alike"
    nearest = torch.cdist(points, points).fill_diagonal_(9).min(1).values
    assert nearest.max() < 1.05 * nearest.median(), "nowhere a gap"
    inside = points[points.norm(dim=1) < 0.75]
    eyes = [int((side * inside[:, 0] > 0.25).sum()) for side in (-1, 1)]
    assert min(eyes) > 30 and abs(eyes[0] - eyes[1]) <= 2
    assert diffusion.cat_outline(1).shape == (1, 2)
    with pytest.raises(ValueError, match="expected n ≥ 1, got 0"):
        diffusion.cat_outline(0)


def test_the_point_network():
    torch.manual_seed(0)
    network, x = diffusion.PointNetwork(16).double(), normal(5, 2)
    t = torch.tensor([1, 2, 3, 4, 500])
    out = network(x, t)
    assert out.shape == (5, 2) and out.dtype == torch.float64
    torch.testing.assert_close(network(x[4:], t[4:]), out[4:])  # each point by itself
    assert torch.pdist(network(x[:1].expand(5, 2), t)).min() > 1e-3  # and the time matters
    out.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in network.parameters())
    for bad in ((x[:, :1], t), (x, t[:2]), (x, t[:, None]), (x[0], t)):
        with pytest.raises(ValueError, match=r"expected x \(B, 2\) and t \(B,\), got"):
            network(*bad)


@pytest.mark.parametrize("dtype", HALF)
def test_the_point_network_in_half_knows_every_time(dtype):
    """bfloat16 cannot tell 999 from 1000; their embedding can."""
    torch.manual_seed(0)
    network, t = diffusion.PointNetwork(16), torch.tensor([997, 998, 999, 1000])
    seen = []
    network.time[0].register_forward_pre_hook(lambda _, given_: seen.append(given_[0].float()))
    for each in (network, network.to(dtype)):
        each(torch.ones(4, 2, dtype=next(each.parameters()).dtype), t)
    assert torch.pdist(seen[1]).min() > 0.1
    torch.testing.assert_close(seen[1], seen[0], rtol=0, atol=torch.finfo(dtype).eps)


def test_a_mask_without_conditions_is_not_dropped():
    denoiser = diffusion.Denoiser(UNet(Config(classes=3, width=8, multipliers=(1,))), diffusion.cosine())
    x, t, condition_mask = torch.zeros(2, 1, 4, 4), torch.tensor([1, 2]), torch.tensor([True, False])
    for call in (
        lambda: denoiser.predict(x, t, None, condition_mask),
        lambda: diffusion.simple_loss(denoiser, x, t, x, None, condition_mask),
    ):
        with pytest.raises(ValueError, match="condition_mask needs a condition"):
            call()
