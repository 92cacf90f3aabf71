"""Samplers where the best denoiser is known: whatever they get wrong is their own fault.

For Gaussian data every sampler is an affine map of the noise it is given, so its mean and covariance can be read off
without drawing; and the probability-flow ODE has a solution in closed form. For a mixture, scipy solves it.
"""

import functools
import gc
import itertools
import math
import weakref

import numpy as np
import pytest
import torch
from conftest import normal, rng
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from course_lib import diffusion
from course_lib.diffusion import ddim, ddpm, dpm_solver, heun

drawn = settings(max_examples=40, deadline=None, derandomize=True, database=None)
SAMPLERS = (ddpm, ddim, dpm_solver, heun)
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.__name__)


def float64(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


MEAN = float64(1.0, -0.5, 0.3)
ROOT = float64([1.0, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.3, 0.2, 0.25])
COVARIANCE = ROOT @ ROOT.T  # its eigenvalues are 0.04, 0.26 and 1.5
SCALE = (COVARIANCE.diag()[:, None] * COVARIANCE.diag()).sqrt()


def blob(schedule: diffusion.Schedule) -> diffusion.GaussianMixture:
    return diffusion.gaussian(MEAN, COVARIANCE, schedule)


WEIGHTS, MEANS = float64(0.3, 0.7), float64([-1.0, -0.5], [1.0, 0.5])
COVARIANCES = float64([[0.05, 0.02], [0.02, 0.04]], [[0.03, -0.01], [-0.01, 0.06]])


def pair(schedule: diffusion.Schedule) -> diffusion.GaussianMixture:
    return diffusion.GaussianMixture(WEIGHTS, MEANS, COVARIANCES, schedule)


def wave(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
    """Some smooth ε_θ of no data at all."""
    return torch.sin(2 * x + 0.01 * t.view(-1, *[1] * (x.ndim - 1))) + (0 if condition is None else condition)


# Moments


def response(sampler, schedule, times, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance, exactly, of what a sampler makes of Gaussian data.

    One run on a batch of impulses: nothing; 1 in a single coordinate of X_T; 1 in a single coordinate of the noise of
    a single step.
    """
    d, steps = len(MEAN), len(times) - 1
    impulses = torch.eye(d * steps, dtype=torch.float64).reshape(steps, d, d * steps).mT
    batches = [torch.cat([torch.zeros(1, d), part]) for part in impulses]
    if sampler is not heun:
        options["noise"] = batches[1:]
    out = diffusion.last(sampler(blob(schedule), batches[0], schedule, times, **options))
    gains = out[1:] - out[0]
    return out[0], gains.T @ gains


# The largest error of a covariance, as a proportion of the variances; what was found is about two thirds of it.
@pytest.mark.parametrize(
    ("sampler", "options", "bounds"),
    [
        (ddpm, {}, {50: 0.18, 200: 0.055}),
        (ddpm, {"variance": "large"}, {50: 0.035, 200: 0.009}),
        (ddim, {}, {50: 0.1, 200: 0.025}),
        (ddim, {"eta": 0.5}, {50: 0.12, 200: 0.032}),
        (ddim, {"eta": 1.0}, {50: 0.18, 200: 0.055}),
        (dpm_solver, {}, {50: 0.005, 200: 0.0006}),
        (dpm_solver, {"eta": 0.5}, {50: 0.005, 200: 0.0006}),
        (dpm_solver, {"eta": 1.0}, {50: 0.036, 200: 0.005}),
        (heun, {}, {50: 0.012, 200: 0.0018}),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_mean_and_covariance_without_sampling_error(sampler, options, bounds):
    schedule = diffusion.cosine(1000)
    for steps, bound in bounds.items():
        mean, covariance = response(sampler, schedule, schedule.times(steps), **options)
        assert (mean - MEAN).abs().max() < 2e-4
        assert ((covariance - COVARIANCE) / SCALE).abs().max() < bound


@pytest.mark.parametrize(("eta", "bound"), [(0.0, 0.016), (1.0, 0.045)])
def test_mean_and_covariance_at_the_times_of_karras(eta, bound):
    """They begin where 1/80 of the mean is left, which the start N(0, I) has not."""
    schedule = diffusion.cosine(1000)
    mean, covariance = response(dpm_solver, schedule, schedule.times(50, 7.0), eta=eta)
    assert (mean - MEAN).abs().max() < 1 / 80
    assert ((covariance - COVARIANCE) / SCALE).abs().max() < bound


@pytest.mark.parametrize("variance", ["small", "large"])
def test_all_steps_of_ddpm(variance):
    """As the lecture has them; what is wrong with the covariance falls as 1/T."""
    errors = []
    for T in (100, 200, 400):
        schedule = diffusion.cosine(T)
        mean, covariance = response(ddpm, schedule, range(T, -1, -1), variance=variance)
        torch.testing.assert_close(mean, MEAN, rtol=0, atol=1e-6)
        errors.append(float(((covariance - COVARIANCE) / SCALE).abs().max()))
    assert errors[-1] < 0.03
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    ("sampler", "steps", "options"),
    [
        (ddpm, 500, {}),
        (ddpm, 500, {"variance": "large"}),
        (ddim, 300, {}),
        (ddim, 500, {"eta": 1.0}),
        (dpm_solver, 50, {}),
        (dpm_solver, 50, {"eta": 1.0}),
        (heun, 50, {}),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_mean_and_covariance_of_samples(sampler, steps, options):
    """Within 4.5 standard errors of n draws, and the 2 % that the steps may cost."""
    schedule, n = diffusion.cosine(1000), 4000
    if sampler is not heun:
        options = {"noise": rng(1)} | options
    x = diffusion.last(sampler(blob(schedule), normal(n, 3), schedule, schedule.times(steps), **options))
    assert ((x.mean(0) - MEAN).abs() < 4.5 * (COVARIANCE.diag() / n).sqrt()).all()
    errors = ((SCALE**2 + COVARIANCE**2) / n).sqrt()  # of the entries of a covariance (Isserlis 1918)
    assert ((torch.cov(x.T) - COVARIANCE).abs() < 4.5 * errors + 0.02 * SCALE).all()


@pytest.mark.parametrize(
    ("sampler", "steps", "options"),
    [
        (ddpm, 250, {}),
        (ddpm, 250, {"variance": "large"}),
        (ddim, 60, {}),
        (ddim, 250, {"eta": 1.0}),
        (dpm_solver, 20, {}),
        (dpm_solver, 40, {"eta": 1.0}),
        (heun, 20, {}),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_modes_of_a_mixture_keep_their_weights(sampler, steps, options):
    schedule, n = diffusion.cosine(1000), 5000
    if sampler is not heun:
        options = {"noise": rng(2)} | options
    x = diffusion.last(sampler(pair(schedule), normal(n, 2, seed=1), schedule, schedule.times(steps), **options))
    left = x @ float64(2.0, 1.0) < 0  # the modes are 10 standard deviations apart
    assert abs(float(left.double().mean()) - 0.3) < 4.5 * math.sqrt(0.3 * 0.7 / n)
    for mode, mean, covariance in zip((left, ~left), MEANS, COVARIANCES, strict=True):
        assert (x[mode].mean(0) - mean).abs().max() < 0.03
        assert ((torch.cov(x[mode].T) - covariance).abs() < 0.2 * covariance.diag().max()).all()


# Order of convergence


FINE = diffusion.cosine(4096)
FROM, TO = 3072, 1024  # 2048 = 2¹¹ steps apart, so that halving is exact; and no step ends at 0


def slopes(sampler, model, x: torch.Tensor, exact: torch.Tensor, counts: tuple[int, ...]) -> list[float]:
    """log₂ of how much smaller the error is with twice the steps."""
    errors = []
    for steps in counts:
        times = range(FROM, TO - 1, -(FROM - TO) // steps)
        errors.append(float((diffusion.last(sampler(model, x, FINE, times)) - exact).norm()))
    return [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]


def root(t: int) -> torch.Tensor:
    """The symmetric root of the covariance of X_t."""
    ratio = FINE.alpha_bar[t]
    eigenvalues, V = torch.linalg.eigh(ratio * COVARIANCE + (1 - ratio) * torch.eye(3))
    return (V * eigenvalues.sqrt()) @ V.T


ORDERS = {ddim: 1, dpm_solver: 2, heun: 2}
each_order = pytest.mark.parametrize(("sampler", "order"), ORDERS.items(), ids=[f.__name__ for f in ORDERS])


@each_order
def test_order_on_a_gaussian(sampler, order):
    """Along the ODE a point stays the same number of deviations off: X_s = mean_s + root_s root_t⁻¹ (X_t − mean_t)."""
    x = normal(16, 3)
    mean_from, mean_to = FINE.alpha_bar[FROM].sqrt() * MEAN, FINE.alpha_bar[TO].sqrt() * MEAN
    exact = mean_to + (x - mean_from) @ torch.linalg.inv(root(FROM)) @ root(TO)
    for slope in slopes(sampler, blob(FINE), x, exact, (16, 32, 64, 128)):
        assert slope == pytest.approx(order, abs=0.06)


@functools.cache
def solution_on_a_mixture() -> tuple[torch.Tensor, torch.Tensor]:
    """Points at FROM, and where the ODE over φ leads them at TO: by scipy, with ε* in NumPy."""
    weights, means, covariances = (x.numpy() for x in (WEIGHTS, MEANS, COVARIANCES))

    def slope(phi: float, flat: np.ndarray) -> np.ndarray:
        x, a, b = flat.reshape(-1, 1, 2), math.cos(phi), math.sin(phi)
        covariances_t = a**2 * covariances + b**2 * np.eye(2)
        pulls = np.linalg.solve(covariances_t, (x - a * means)[..., None])[..., 0]
        p = weights / np.sqrt(np.linalg.det(covariances_t)) * np.exp(-((x - a * means) * pulls).sum(-1) / 2)
        epsilon = b * (p[..., None] * pulls).sum(1) / p.sum(1, keepdims=True)
        return (a * epsilon - b * (x[:, 0] - b * epsilon) / a).flatten()

    x = normal(6, 2, seed=3)
    phi = [math.acos(math.sqrt(FINE.alpha_bar[t])) for t in (FROM, TO)]
    solved = solve_ivp(slope, phi, x.flatten().numpy(), method="DOP853", rtol=1e-10, atol=1e-10)
    return x, torch.from_numpy(solved.y[:, -1]).reshape(-1, 2)


@each_order
def test_order_on_a_mixture(sampler, order):
    """Where ε* is not linear in x."""
    x, exact = solution_on_a_mixture()
    for slope in slopes(sampler, pair(FINE), x, exact, (64, 128, 256, 512)):
        assert slope == pytest.approx(order, abs=0.1)


# One sampler against another, and against its algorithm


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_is_algorithm_2(variance):
    """Written out: μ from ε, with σ_t² = β_t or β̃_t (Ho et al. 2020, section 3.2)."""
    schedule = diffusion.linear(30)
    x, noise = normal(4, 2), [normal(4, 2, seed=t) for t in range(29)]
    found = diffusion.last(ddpm(wave, x, schedule, noise=noise, variance=variance))
    for t in range(30, 0, -1):
        a, before, beta = schedule.alpha_bar[t], schedule.alpha_bar[t - 1], schedule.beta[t]
        x = (x - beta / (1 - a).sqrt() * wave(x, torch.full((4,), t))) / (1 - beta).sqrt()
        sigma2 = beta if variance == "large" else (1 - before) / (1 - a) * beta
        x = x + sigma2.sqrt() * noise[30 - t] if t > 1 else x
    torch.testing.assert_close(found, x, rtol=1e-11, atol=1e-11)


@drawn
@given(times=st.sets(st.integers(0, 50), min_size=2, max_size=9), clip=st.sampled_from([None, 1.0]))
def test_ddim_with_eta_1_is_ddpm(times, clip):
    """With the same noise, for any times and any model."""
    schedule, times = diffusion.cosine(50), sorted(times, reverse=True)
    noise = [normal(3, 2, seed=k) for k in range(len(times))]
    both = [
        list(sampler(wave, normal(3, 2), schedule, times, noise=noise, clip=clip, **options))
        for sampler, options in ((ddpm, {"variance": "small"}), (ddim, {"eta": 1.0}))
    ]
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one.x, other.x, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_is_equation_12(eta):
    """With σ as in equation 16 (Song et al. 2021; their α is ᾱ)."""
    schedule, times = diffusion.cosine(50), [45, 30, 12, 3]
    x, noise = normal(4, 2), [normal(4, 2, seed=k) for k in range(3)]
    found = diffusion.last(ddim(wave, x, schedule, times, eta=eta, noise=noise))
    for k, (t, s) in enumerate(itertools.pairwise(times)):
        now, then = schedule.alpha_bar[t], schedule.alpha_bar[s]
        epsilon = wave(x, torch.full((4,), t))
        sigma = eta * ((1 - then) / (1 - now)).sqrt() * (1 - now / then).sqrt()
        estimate = (x - (1 - now).sqrt() * epsilon) / now.sqrt()
        x = then.sqrt() * estimate + (1 - then - sigma**2).sqrt() * epsilon + sigma * noise[k]
    torch.testing.assert_close(found, x)


def test_respaced_ddpm_is_the_chain_of_the_times_that_remain():
    """The same as all steps of a schedule that has no others (Nichol & Dhariwal 2021, section 4)."""
    schedule, times = diffusion.cosine(40), [40, 33, 20, 7, 2, 0]
    remaining = diffusion.Schedule(schedule.alpha_bar[times[::-1]])

    def renamed(x, t, condition):
        return wave(x, torch.full_like(t, times[::-1][int(t[0])]))

    for variance in ("small", "large"):
        noise = [normal(3, 2, seed=k) for k in range(4)]
        one = diffusion.last(ddpm(wave, normal(3, 2), schedule, times, noise=noise, variance=variance))
        other = diffusion.last(ddpm(renamed, normal(3, 2), remaining, noise=noise, variance=variance))
        torch.testing.assert_close(one, other)


def test_dpm_solver_is_algorithm_2():
    """Lu et al. 2022 (2211.01095): with λ = log α/σ, h and r = h_{i−1}/h_i, D = (1 + 1/2r) x_i − 1/2r x_{i−1}."""
    schedule, times = diffusion.cosine(100), [90, 70, 45, 30, 10]
    found = diffusion.last(dpm_solver(wave, normal(4, 2), schedule, times))
    alpha, sigma = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
    lam = (alpha / sigma).log()
    x, before, h_before = normal(4, 2), None, None
    for t, s in itertools.pairwise(times):
        estimate = (x - sigma[t] * wave(x, torch.full((4,), t))) / alpha[t]
        h, D = lam[s] - lam[t], estimate
        if before is not None:
            r = h_before / h
            D = (1 + 1 / (2 * r)) * estimate - 1 / (2 * r) * before
        x = sigma[s] / sigma[t] * x - alpha[s] * ((-h).exp() - 1) * D
        before, h_before = estimate, h
    torch.testing.assert_close(found, x)


def test_dpm_solver_with_noise_is_sde_dpm_solver():
    """Lu et al. 2022, appendix A: x_s = σ_s/σ_t e^(−h) x_t + α_s (1 − e^(−2h)) D + σ_s √(1 − e^(−2h)) z."""
    schedule, times = diffusion.cosine(100), [90, 70, 45, 30, 10]
    noise = [normal(4, 2, seed=k) for k in range(4)]
    found = diffusion.last(dpm_solver(wave, normal(4, 2), schedule, times, eta=1.0, noise=noise))
    alpha, sigma = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
    lam = (alpha / sigma).log()
    x, before, h_before = normal(4, 2), None, None
    for z, (t, s) in zip(noise, itertools.pairwise(times), strict=True):
        estimate = (x - sigma[t] * wave(x, torch.full((4,), t))) / alpha[t]
        h, D = lam[s] - lam[t], estimate
        if before is not None:
            D = estimate + h / h_before * (estimate - before) / 2
        lost = 1 - (-2 * h).exp()
        x = sigma[s] / sigma[t] * (-h).exp() * x + alpha[s] * lost * D + sigma[s] * lost.sqrt() * z
        before, h_before = estimate, h
    torch.testing.assert_close(found, x)


@drawn
@given(times=st.sets(st.integers(0, 50), min_size=2, max_size=3), eta=st.sampled_from([0.0, 0.3, 1.0]))
def test_without_memory_dpm_solver_is_ddim(times, eta):
    """In its first step, and in a last one to 0: whatever the noise."""
    schedule, times = diffusion.cosine(50), [*sorted(times, reverse=True)[:2]]
    one, other = (
        diffusion.last(sampler(wave, normal(3, 2), schedule, times, eta=eta, noise=[normal(3, 2, seed=9)]))
        for sampler in (ddim, dpm_solver)
    )
    torch.testing.assert_close(one, other)


# Flow matching


def best_velocity(x: torch.Tensor, t: int, schedule: diffusion.Schedule) -> torch.Tensor:
    """E[ε − X_0 | X_t = x] of the Gaussian data, by the regression of one Gaussian on another (3,3 matrices)."""
    a, b, one = schedule.alpha_bar[t].sqrt(), (1 - schedule.alpha_bar[t]).sqrt(), torch.eye(3, dtype=torch.float64)
    gain = (b * one - a * COVARIANCE) @ torch.linalg.inv(a**2 * COVARIANCE + b**2 * one)
    return -MEAN + (x - a * MEAN) @ gain.T


class BestVelocity(torch.nn.Module):
    """It, as a network."""

    def __init__(self, schedule: diffusion.Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return best_velocity(x, int(t[0]), self.schedule)


def flow(schedule: diffusion.Schedule) -> diffusion.Denoiser:
    return diffusion.Denoiser(BestVelocity(schedule), schedule, "velocity")


@pytest.mark.parametrize("t", [1, 20, 50, 99])
def test_flow_matching_finds_the_best_velocity_of_gaussian_data(t):
    """Its loss has no slope there: Gauss and Hermite's rule gives the expectation over X_0 and ε exactly."""
    schedule = diffusion.straight(100)
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    points = torch.tensor(list(itertools.product(nodes, repeat=6)), dtype=torch.float64)
    proportions = torch.tensor(list(itertools.product(weights / weights.sum(), repeat=6)), dtype=torch.float64).prod(1)
    x0, noise = MEAN + points[:, :3] @ ROOT.T, points[:, 3:]

    gain, shift = torch.zeros(2, 3, 3, dtype=torch.float64).requires_grad_()  # of an affine map beside the best one

    class Affine(torch.nn.Module):
        def forward(self, x, t):
            # The loss is a plain mean: the points' proportions go into the errors.
            error = best_velocity(x, int(t[0]), schedule) + x @ gain + shift[0] - (noise - x0)
            return noise - x0 + error * (len(x) * proportions).sqrt()[:, None]

    denoiser = diffusion.Denoiser(Affine(), schedule, "velocity")
    loss = diffusion.simple_loss(denoiser, x0, torch.full((len(x0),), t), noise)
    for slope in torch.autograd.grad(loss, (gain, shift)):
        assert slope.abs().max() < 1e-12 < loss.item()


def test_the_velocity_of_gaussian_data_names_the_best_noise():
    for schedule in (diffusion.straight(50), diffusion.cosine(50)):
        x = normal(7, 3)
        for t in (1, 25, 50):
            times = torch.full((7,), t)
            torch.testing.assert_close(flow(schedule)(x, times), blob(schedule)(x, times))


@drawn
@given(times=st.sets(st.integers(0, 40), min_size=2, max_size=9))
def test_ddim_is_eulers_method_on_the_straight_path(times):
    """z_r = z_s + (r − s) u(z_s, s), of any network at any times; X_t = z_s/√((1 − s)² + s²)."""
    schedule, times = diffusion.straight(40), sorted(times, reverse=True)

    class Network(torch.nn.Module):
        def forward(self, x, t):
            return wave(x, t)

    x = normal(4, 2)
    found = diffusion.last(ddim(diffusion.Denoiser(Network(), schedule, "velocity"), x, schedule, times))
    s = [float((1 - a).sqrt() / (a.sqrt() + (1 - a).sqrt())) for a in schedule.alpha_bar]
    z = x * math.hypot(1 - s[times[0]], s[times[0]])
    for t, r in itertools.pairwise(times):
        z = z + (s[r] - s[t]) * wave(z / math.hypot(1 - s[t], s[t]), torch.full((4,), t))
    torch.testing.assert_close(found, z / math.hypot(1 - s[times[-1]], s[times[-1]]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("sampler", "bounds"),
    [(ddim, {50: 0.09, 200: 0.023}), (dpm_solver, {50: 0.009, 200: 0.001}), (heun, {50: 0.002, 200: 0.00012})],
)
def test_the_flow_carries_noise_to_gaussian_data(sampler, bounds):
    """Mean and covariance of what comes out, without sampling error, of Euler's method and the others."""
    schedule = diffusion.straight(1000)
    for steps, bound in bounds.items():
        mean, covariance = response(sampler, schedule, schedule.times(steps))
        assert (mean - MEAN).abs().max() < 2e-4
        assert ((covariance - COVARIANCE) / SCALE).abs().max() < bound


def test_a_single_point_is_reached_in_one_step_of_euler():
    """Paths to one point are straight lines, which no method can leave; a bend needs more than one point of data."""
    schedule, point = diffusion.straight(64), float64(0.7, -0.2)
    x = normal(5, 2)
    start = diffusion.GaussianMixture(float64(1.0)[0:1], point[None], torch.zeros(1, 2, 2).double(), schedule)
    for times in ([63, 0], [63, 40, 11, 0]):
        torch.testing.assert_close(diffusion.last(ddim(start, x, schedule, times)), point.expand(5, 2))


def test_one_step_to_the_end_is_the_estimate():
    schedule, x = diffusion.cosine(10), normal(3, 2)
    for sampler in SAMPLERS:
        state = next(sampler(wave, x, schedule, [7, 0]))
        estimate = diffusion.to_x0("epsilon", wave(x, torch.full((3,), 7)), x, 7, schedule)
        torch.testing.assert_close(state.x, estimate)
        torch.testing.assert_close(state.x0, estimate)


# What they yield and take


@each_sampler
@pytest.mark.parametrize("clip", [None, 0.5])
def test_states(sampler, clip):
    schedule, times = diffusion.cosine(50), [48, 30, 29, 5, 0]
    x, seen = normal(4, 1, 2, 3), []

    def model(x, t, condition):
        seen.append((t.tolist(), condition))
        assert not torch.is_grad_enabled()
        return wave(x, t)

    states = list(sampler(model, x, schedule, times, condition="c", clip=clip))
    assert [state.t for state in states] == times[1:]
    asked = [t for t, s in itertools.pairwise(times) for t in ([t, s] if sampler is heun and s else [t])]
    assert seen == [([t] * 4, "c") for t in asked]
    before = x
    for t, state in zip(times, states, strict=False):
        estimate = diffusion.to_x0("epsilon", wave(before, torch.full((4,), t)), before, t, schedule)
        torch.testing.assert_close(state.x0, estimate if clip is None else estimate.clamp(-0.5, 0.5))
        assert state.x.shape == x.shape and state.x.dtype == x.dtype
        before = state.x
    torch.testing.assert_close(states[-1].x, states[-1].x0)
    assert clip is None or states[-1].x.abs().max() <= 0.5


def test_states_of_ddim_lie_between_the_estimates():
    """X_s = √ᾱ_s X̂_0 + √(1 − ᾱ_s) ε, of the ε that goes with X̂_0, clipped too."""
    schedule, times = diffusion.cosine(50), [40, 25, 10]
    x = normal(4, 2)
    for t, state in zip(times, ddim(wave, x, schedule, times, clip=1.0), strict=False):
        a, b = schedule.alpha_bar[t].sqrt(), (1 - schedule.alpha_bar[t]).sqrt()
        epsilon = (x - a * state.x0) / b
        torch.testing.assert_close(state.x, diffusion.q_sample(state.x0, state.t, epsilon, schedule))
        x = state.x


def test_callers_gradients_stay_on_between_states():
    for sampler in SAMPLERS:
        x = normal(2, 2).requires_grad_()
        for state in sampler(wave, x, diffusion.cosine(4)):
            assert torch.is_grad_enabled() and not state.x.requires_grad


@pytest.mark.parametrize(
    "sampler", [ddpm, functools.partial(ddim, eta=0.7), functools.partial(dpm_solver, eta=0.7)], ids=lambda f: None
)
def test_noise_given_or_drawn(sampler):
    schedule, x = diffusion.cosine(12), normal(3, 2)
    source = rng(7)
    given_ = [torch.randn(3, 2, generator=source, dtype=torch.float64) for _ in range(11)]

    def drawn_with(noise) -> torch.Tensor:
        return diffusion.last(sampler(wave, x, schedule, noise=noise))

    expected = drawn_with(given_)
    assert torch.equal(drawn_with(torch.stack(given_)), expected)
    assert torch.equal(drawn_with(rng(7)), expected)
    assert not torch.equal(drawn_with(rng(8)), expected)
    torch.manual_seed(7)
    assert torch.equal(drawn_with(None), expected)


def test_deterministic_samplers_draw_nothing():
    before = torch.get_rng_state()
    for sampler in (ddim, dpm_solver, heun):
        diffusion.last(sampler(wave, normal(2, 2), diffusion.cosine(5)))
    assert torch.equal(torch.get_rng_state(), before)


@each_sampler
def test_memory_does_not_grow_with_steps(sampler):
    """Of all states and all tensors that the model saw, only the latest are alive."""
    schedule, seen, alive = diffusion.cosine(60), [], []

    def model(x, t, condition):
        epsilon = wave(x, t)
        seen.extend(map(weakref.ref, (x, t, epsilon)))
        return epsilon

    gc.disable()  # whoever waits for the collector has let memory grow
    try:
        for state in sampler(model, normal(2, 2), schedule):
            seen.extend(map(weakref.ref, (state.x, state.x0)))
            alive.append(len({id(tensor) for found in seen if (tensor := found()) is not None}))
    finally:
        gc.enable()
    assert max(alive) <= max(alive[:5]) <= 8


@each_sampler
def test_dtypes_and_devices(sampler, device):
    schedule, x = diffusion.cosine(20), normal(5, 3)
    options = {"noise": [normal(5, 3, seed=k).float().to(device) for k in range(5)]} if sampler is ddpm else {}
    found = diffusion.last(sampler(blob(schedule), x.float().to(device), schedule, schedule.times(5), **options))
    assert found.dtype == torch.float32 and found.device.type == device.type
    options = {"noise": [normal(5, 3, seed=k) for k in range(5)]} if sampler is ddpm else {}
    expected = diffusion.last(sampler(blob(schedule), x, schedule, schedule.times(5), **options))
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-3, atol=1e-3)


# Networks in half precision


class GaussianVelocity(torch.nn.Module):
    """The optimal v of the Gaussian as a network in another precision: its input and its answer are rounded."""

    def __init__(self, schedule: diffusion.Schedule, dtype: torch.dtype) -> None:
        super().__init__()
        self.schedule, self.weight = schedule, torch.nn.Parameter(torch.ones((), dtype=dtype))

    def forward(self, x, t):
        assert x.dtype == self.weight.dtype
        a, b = self.schedule.at(t, x.double())
        epsilon = blob(self.schedule)(x.double(), t)
        return (a * epsilon - b * (x.double() - b * epsilon) / a).to(x.dtype)


@each_sampler
@pytest.mark.parametrize("steps", [20, 300])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_the_network_is_in_half(sampler, steps, dtype):
    """Coefficients and states are exact, so that the rounding of one v is all that a step can get wrong.

    States and coefficients of 8 bits made NaN of 300 steps, and the first estimates of 20 wrong by more than 1.
    """
    schedule, x = diffusion.cosine(), normal(200, 3).to(dtype)
    noise = [normal(200, 3, seed=k).float() for k in range(steps)]

    def states(model, x) -> list[diffusion.State]:
        options = {"noise": [each.to(x.dtype) for each in noise]} if sampler is ddpm else {}
        return list(sampler(model, x, schedule, schedule.times(steps), **options))

    found = states(diffusion.Denoiser(GaussianVelocity(schedule, dtype), schedule, "v"), x.float())
    exact = states(blob(schedule), x.double())
    eps = torch.finfo(dtype).eps
    for state, expected in zip(found, exact, strict=True):
        assert state.x.dtype == state.x0.dtype == torch.float32
        torch.testing.assert_close(state.x.double(), expected.x, rtol=0, atol=16 * eps)
        torch.testing.assert_close(state.x0.double(), expected.x0, rtol=0, atol=16 * eps)


@each_sampler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_noise_in_half_is_widened(sampler, dtype):
    """Before anything is computed: the same as from the same numbers in float32, drawn noise included."""
    schedule, x = diffusion.cosine(50), normal(4, 3).to(dtype)
    options = {"noise": rng(3)} if sampler is ddpm else {}
    found = diffusion.last(sampler(wave, x, schedule, **options))
    options = {"noise": rng(3)} if sampler is ddpm else {}
    assert found.dtype == torch.float32
    assert torch.equal(found, diffusion.last(sampler(wave, x.float(), schedule, **options)))


@each_sampler
def test_refuses(sampler):
    schedule, x = diffusion.cosine(10), normal(2, 3)

    def first(x=x, model=wave, times=None, **options):
        return next(sampler(model, x, schedule, times, **options))

    for times in ([], [10], [5, 5], [3, 7], [11, 3], [3, -1]):
        with pytest.raises(ValueError, match="expected at least two falling times between 10 and 0"):
            first(times=times)
    with pytest.raises(TypeError, match="float"):
        first(times=[7.5, 0])
    for bad in (torch.where(x > 0, math.nan, x), x / 0):
        with pytest.raises(ValueError, match="expected x of finite numbers"):
            first(bad)
    with pytest.raises(TypeError, match="expected x of floats, got torch.int64"):
        first(x.long())
    with pytest.raises(ValueError, match=r"the model returned \(2, 6\) for x \(2, 3\)"):
        first(model=lambda x, t, condition: torch.cat([x, x], 1))  # as networks that predict a variance, too


def test_refuses_bad_noise():
    schedule, x = diffusion.cosine(10), normal(2, 3)
    for sampler, options in ((ddpm, {}), (ddim, {"eta": 0.5}), (dpm_solver, {"eta": 0.5})):
        with pytest.raises(ValueError, match=r"expected noise \(2, 3\), got \(3,\)"):
            next(sampler(wave, x, schedule, noise=x, **options))
        with pytest.raises(ValueError, match="expected noise of finite numbers"):
            next(sampler(wave, x, schedule, noise=[x * math.nan], **options))
        with pytest.raises(ValueError, match="the noise given ends before the steps do"):
            list(sampler(wave, x, schedule, noise=[x, x], **options))


def test_refuses_bad_options():
    schedule, x = diffusion.cosine(10), normal(2, 3)
    with pytest.raises(ValueError, match="expected variance small or large, got 'medium'"):
        next(ddpm(wave, x, schedule, variance="medium"))
    for eta in (-0.1, 1.1, math.nan, np.float32(2)):
        with pytest.raises(ValueError, match=r"expected eta in \[0, 1\], got"):
            next(ddim(wave, x, schedule, eta=eta))
        with pytest.raises(ValueError, match=r"expected eta in \[0, 1\], got"):
            next(dpm_solver(wave, x, schedule, eta=eta))
