"""Hidden checks of the assignment on diffusion."""

import itertools
import math

import torch
from torch import Tensor

from course_lib.diffusion import process
from grading.checks import Code, Student, exercise, holds, same


def draw(rng: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=rng))


def falling(T: int, rng: torch.Generator) -> Tensor:
    """Some ᾱ of T steps."""
    return torch.rand(T, generator=rng, dtype=torch.float64).sort(descending=True).values * 0.98 + 0.01


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def like(a: Tensor, x: Tensor) -> Tensor:
    return a.reshape(-1, *[1] * (x.ndim - 1))


@exercise(points=3, needs=["linear_alpha_bar"])
def schedule(student: Student, rng: torch.Generator):
    """The linear schedule"""
    for T in (1000, draw(rng, 150, 900), draw(rng, 12, 17)):
        left, right = 1.0, []
        for t in range(T):
            beta = (1e-4 + (0.02 - 1e-4) * t / (T - 1)) * 1000 / T
            left *= 1 - min(beta, 0.999)
            right.append(left)
        found = student.call("linear_alpha_bar", T)
        yield same(found, torch.tensor(right, dtype=torch.float64), f"{T} steps", tolerance=1e-9)


@exercise(points=3, needs=["noisy"])
def forward(student: Student, rng: torch.Generator):
    """The direct way in one leap"""
    T = draw(rng, 20, 40)
    alpha_bar = falling(T, rng)
    everything = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar])
    for shape, what in (((5, 3, 4, 4), "images"), ((7, 2), "points")):
        x0, noise, t = normal(rng, *shape), normal(rng, *shape), torch.randint(0, T + 1, shape[:1], generator=rng)
        t[0], t[1] = 0, T
        a = like(everything[t], x0)
        right = a.sqrt() * x0 + (1 - a).sqrt() * noise
        yield same(student.call("noisy", x0, t, noise, alpha_bar), right, what)
    x0, noise, t = normal(rng, 2, 3).float(), normal(rng, 2, 3).float(), torch.tensor([T, 1])
    found = student.call("noisy", x0, t, noise, alpha_bar)
    yield holds(isinstance(found, Tensor) and found.dtype == torch.float32, "images in float32 stay in float32")


@exercise(points=4, needs=["posterior"])
def posterior(student: Student, rng: torch.Generator):
    """One step back, if X_0 were known"""
    T = draw(rng, 20, 40)
    alpha_bar = falling(T, rng)
    everything = [1.0, *alpha_bar.tolist()]
    x0, xt, t = normal(rng, 6, 2, 3), normal(rng, 6, 2, 3), torch.randint(2, T + 1, (6,), generator=rng)
    means, variances = [], []
    for k, time in enumerate(t.tolist()):  # the product of two Gaussians in X_{t-1}, by their precisions
        before, alpha = everything[time - 1], everything[time] / everything[time - 1]
        precision = 1 / (1 - before) + alpha / (1 - alpha)
        means.append((math.sqrt(before) * x0[k] / (1 - before) + math.sqrt(alpha) * xt[k] / (1 - alpha)) / precision)
        variances.append(1 / precision)
    found = student.call("posterior", x0, xt, t, alpha_bar)
    found = found if isinstance(found, list | tuple) and len(found) == 2 else (found, None)
    yield same(found[0], torch.stack(means), "the mean", points=2)
    yield same(found[1], torch.tensor(variances, dtype=torch.float64), "the variance")
    found = student.call("posterior", x0, xt, torch.ones(6, dtype=torch.int64), alpha_bar)
    yield same(found, [x0, torch.zeros(6, dtype=torch.float64)], "t = 1")


@exercise(points=3, needs=["from_velocity"])
def velocity(student: Student, rng: torch.Generator):
    """Three names for one prediction"""
    T = draw(rng, 20, 40)
    alpha_bar = falling(T, rng)
    alpha_bar[-1] = 1e-24  # whoever divides by its root returns rounding errors
    x0, noise, t = normal(rng, 6, 1, 5), normal(rng, 6, 1, 5), torch.randint(1, T, (6,), generator=rng)
    t[-1] = T
    signal, spread = like(alpha_bar[t - 1], x0).sqrt(), (1 - like(alpha_bar[t - 1], x0)).sqrt()
    xt, v = signal * x0 + spread * noise, signal * noise - spread * x0
    found = student.call("from_velocity", xt, v, t, alpha_bar)
    found = found if isinstance(found, list | tuple) and len(found) == 2 else (None, None)
    yield same(found[0][:-1] if isinstance(found[0], Tensor) else None, x0[:-1], "the image")
    yield same(found[1][:-1] if isinstance(found[1], Tensor) else None, noise[:-1], "the noise")
    right = [x0[-1], noise[-1]]
    last = [part[-1] if isinstance(part, Tensor) and len(part) == 6 else None for part in found]
    yield same(last, right, "both, where nearly nothing of the image is left", tolerance=1e-6)


@exercise(points=3, needs=["guided"])
def guidance(student: Student, rng: torch.Generator):
    """Guidance that keeps its contrast"""
    c, u = normal(rng, 4, 3, 5, 5) * torch.tensor([0.3, 1, 2, 5]).double().reshape(4, 1, 1, 1), normal(rng, 4, 3, 5, 5)
    w, phi = 2 + 4 * torch.rand((), generator=rng).item(), 0.3 + 0.4 * torch.rand((), generator=rng).item()
    strong = (1 - w) * u + w * c
    yield same(student.call("guided", c, u, w), strong, f"w = {w:.2f}, not rescaled")
    ratio = torch.tensor([(a.std() / b.std()).item() for a, b in zip(c, strong, strict=True)]).double()
    rescaled = strong * ratio.reshape(4, 1, 1, 1)
    found = student.call("guided", c, u, w, phi)
    yield same(found, phi * rescaled + (1 - phi) * strong, f"w = {w:.2f}, φ = {phi:.2f}", points=2)


# The best denoiser for data N(m, s²), on the submission's side; ALPHA stands for ᾱ.
GAUSSIAN = "lambda x, t: (1 - ALPHA[t - 1][:, None]).sqrt() * (x - ALPHA[t - 1][:, None].sqrt() * {m}) / " \
           "(ALPHA[t - 1][:, None] * {s} ** 2 + 1 - ALPHA[t - 1][:, None])"  # fmt: skip


@exercise(points=5, needs=["ddim"])
def sampler(student: Student, rng: torch.Generator):
    """A sampler in few steps"""
    alpha_bar = process.cosine(200).alpha_bar[1:]
    numbers = f"torch.tensor({alpha_bar.tolist()}, dtype=torch.float64)"
    m, s = 1 + torch.rand((), generator=rng).item(), 0.3 + 0.4 * torch.rand((), generator=rng).item()
    denoiser = Code(f"(lambda ALPHA: {GAUSSIAN.format(m=m, s=s)})({numbers})")
    everything = [1.0, *alpha_bar.tolist()]

    def deterministic(x: Tensor, times: list[int]) -> Tensor:
        for t, u in itertools.pairwise(times):
            a, b = everything[t], everything[u]
            noise = math.sqrt(1 - a) * (x - math.sqrt(a) * m) / (a * s**2 + 1 - a)
            x = math.sqrt(b / a) * (x - math.sqrt(1 - a) * noise) + math.sqrt(1 - b) * noise
        return x

    x = normal(rng, 5, 3)
    for times in ([200, 0], [200, draw(rng, 120, 160), draw(rng, 20, 90), 5, 0]):
        yield same(student.call("ddim", denoiser, x, times, alpha_bar), deterministic(x, times), f"times {times}")
    many = list(range(200, -1, -1))
    found = student.call("ddim", denoiser, normal(rng, 4000, 1), many, alpha_bar, 1.0)
    good = isinstance(found, Tensor) and found.shape == (4000, 1)
    mean, deviation = (found.double().mean().item(), found.double().std().item()) if good else (math.nan, math.nan)
    # Five standard errors of 4,000 samples, and the 2 % by which 200 steps miss.
    yield holds(abs(mean - m) < 5 * s / 4000**0.5 + 0.02, "η = 1, 200 steps: the samples have the data's mean")
    yield holds(abs(deviation / s - 1) < 0.08, "η = 1, 200 steps: the samples have the data's standard deviation")
    again = student.call("ddim", denoiser, x, [200, 0], alpha_bar, 0.0)
    yield same(again, deterministic(x, [200, 0]), "η = 0 draws nothing")
