"""Hidden checks of the assignment on editing."""

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve
from skimage.metrics import structural_similarity
from torch import Tensor

from course_lib.diffusion import process
from grading.checks import Code, Student, exercise, holds, same


def draw(rng: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=rng))


def uniform(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=rng, dtype=torch.float64)


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def schedule(rng: torch.Generator, T: int) -> Tensor:
    """Some ᾱ_0 … ᾱ_T."""
    inner = uniform(rng, T).sort(descending=True).values * 0.97 + 0.01
    return torch.cat([torch.ones(1, dtype=torch.float64), inner])


SCORES = ["skimage.metrics.structural_similarity", "course_lib.editing.super_resolution.ssim"]


@exercise(points=3, needs=["structure"], forbids=SCORES)
def structure(student: Student, rng: torch.Generator):
    """What decibels miss"""

    def right(x: Tensor, y: Tensor, side: int) -> Tensor:
        """By scikit-image, with its border, which has no whole windows, cut off."""
        options = {"win_size": side, "data_range": 1.0, "use_sample_covariance": False}
        pairs = zip(x[:, 0].numpy(), y[:, 0].numpy(), strict=True)
        return torch.tensor([structural_similarity(a, b, **options) for a, b in pairs], dtype=torch.float64)

    x = uniform(rng, 3, 1, draw(rng, 14, 20), draw(rng, 22, 30))
    y = (0.7 * x + 0.2 * uniform(rng, *x.shape) + 0.1).clamp(0, 1)
    for side in (7, draw(rng, 1, 2) * 2 + 1):
        yield same(student.call("structure", x, y, side), right(x, y, side), f"windows of {side} pixels a side")
    faint = 0.4 + 0.03 * normal(rng, 2, 1, 12, 13)
    worse = faint + 0.02 * normal(rng, *faint.shape)
    found = student.call("structure", faint, worse, 3)
    yield same(found, right(faint, worse, 3), "faint images, where the small numbers count")


@exercise(points=5, needs=["paste"])
def seam(student: Student, rng: torch.Generator):
    """A seam that nobody sees"""

    def right(target: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        """Pixel by pixel, and solved as a sparse system."""
        unknown = {(y, x): k for k, (y, x) in enumerate(mask.nonzero().tolist())}
        matrix, result = lil_matrix((len(unknown), len(unknown))), target.double().clone()
        right_side = np.zeros((len(unknown), target.shape[1]))
        for (y, x), k in unknown.items():
            matrix[k, k] = 4
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                right_side[k] += (source[0, :, y, x] - source[0, :, v, u]).numpy()
                if (v, u) in unknown:
                    matrix[k, unknown[v, u]] = -1
                else:
                    right_side[k] += target[0, :, v, u].numpy()
        result[:, :, mask] = torch.tensor(spsolve(matrix.tocsr(), right_side)).reshape(len(unknown), -1).T[None]
        return result

    def region(H: int, W: int) -> Tensor:
        """A ragged mask that leaves the border free."""
        mask = torch.zeros(H, W, dtype=torch.bool)
        mask[1 : H - 1, 1 : W - 1] = torch.rand(H - 2, W - 2, generator=rng) < 0.6
        return mask

    target, source = uniform(rng, 1, 3, 12, draw(rng, 13, 16)), 2 * uniform(rng, 1, 3, 12, 16)
    source = source[..., : target.shape[3]].contiguous()
    mask = region(*target.shape[2:])
    found = student.call("paste", target, source, mask)
    whole = isinstance(found, Tensor) and found.shape == target.shape and bool(found.isfinite().all())
    outside = whole and torch.equal(found[..., ~mask].double(), target[..., ~mask])
    yield holds(outside, "outside of the mask, and only there, the target's own pixels", points=0.5)
    yield same(found, right(target, source, mask), "a ragged mask, three channels", points=2)
    block = torch.zeros(20, 18, dtype=torch.bool)
    block[2:18, 3:15] = True
    target, source = uniform(rng, 1, 1, 20, 18).float(), uniform(rng, 1, 1, 20, 18).float()
    found = student.call("paste", target, source, block)
    yield same(found, right(target, source, block).float(), "a large block, where every equation must be solved", 1.5)
    hole = student.call("paste", target, 0 * source, block)
    yield same(hole, right(target, 0 * source, block).float(), "a hole filled without a source", tolerance=1e-3)


@exercise(points=4, needs=["walk", "up"], forbids=["course_lib.editing.repaint_times", "course_lib.diffusion.q_step"])
def jumps(student: Student, rng: torch.Generator):
    """Down, up, and down again"""

    def right(T: int, jump: int, n: int) -> list[int]:
        """Step by step, counting how often the end of each piece was reached."""
        time, times, visits = T, [T], dict.fromkeys(range(0, T, jump), 0)
        while True:
            time -= 1
            times.append(time)
            if time in visits:
                visits[time] += 1
                if visits[time] < n:
                    times += range(time + 1, time + jump + 1)
                    time += jump
                elif time == 0:
                    return times

    jump = draw(rng, 2, 5)
    for T, j, n in ((jump * draw(rng, 3, 5), jump, draw(rng, 2, 4)), (draw(rng, 5, 9), 1, 3)):
        yield same(student.call("walk", T, j, n), right(T, j, n), f"the walk from {T}, jump {j}, each {n} times")
    alpha_bar = schedule(rng, 30)
    t, u = draw(rng, 3, 10), draw(rng, 14, 29)
    for low, high, what in ((t, u, f"from time {t} to {u}"), (0, u, f"from time 0 to {u}")):
        x, noise = normal(rng, 3, 2, 4), normal(rng, 3, 2, 4)
        signal = math.sqrt(alpha_bar[high].item() / alpha_bar[low].item())
        # The variances: 1 − ᾱ_t of X_t, shrunk, and the new noise make 1 − ᾱ_u.
        fresh = math.sqrt((1 - alpha_bar[high].item()) - signal**2 * (1 - alpha_bar[low].item()))
        yield same(student.call("up", x, low, high, noise, alpha_bar), signal * x + fresh * noise, what)


# The best denoiser for data N(m, s²), on the submission's side; TABLE stands for ᾱ.
GAUSSIAN = (
    "(lambda TABLE: lambda x, t: (1 - TABLE[t].view(-1, 1)).sqrt() * (x - TABLE[t].view(-1, 1).sqrt() * {m})"
    " / (TABLE[t].view(-1, 1) * {s} ** 2 + 1 - TABLE[t].view(-1, 1)))(torch.tensor({table}, dtype=torch.float64))"
)


@exercise(points=4, needs=["invert"])
def backwards(student: Student, rng: torch.Generator):
    """A sampler run backwards"""
    table = process.cosine(200).alpha_bar
    m, s = 1 + torch.rand((), generator=rng).item(), 0.3 + 0.4 * torch.rand((), generator=rng).item()
    denoiser = Code(GAUSSIAN.format(m=m, s=s, table=table.tolist()))

    def noise_in(x: Tensor, t: int) -> Tensor:
        a = table[t].item()
        return math.sqrt(1 - a) * (x - math.sqrt(a) * m) / (a * s**2 + 1 - a)

    def step(x: Tensor, t: int, u: int, at: int) -> Tensor:
        """DDIM from t to u, up or down, by the noise predicted at a time."""
        e, (a, b) = noise_in(x, at), (table[t].item(), table[u].item())
        return math.sqrt(b / a) * x + (math.sqrt(1 - b) - math.sqrt(b / a) * math.sqrt(1 - a)) * e

    def right(x: Tensor, times: list[int]) -> Tensor:
        for t, u in itertools.pairwise(times):
            x = step(x, t, u, u)
        return x

    x = m + s * normal(rng, 6, 3)
    for times in ([0, draw(rng, 120, 190)], [0, 4, draw(rng, 20, 60), draw(rng, 100, 150), 195]):
        yield same(student.call("invert", denoiser, x, times, table), right(x, times), f"times {times}")
    many = list(range(196))
    found = student.call("invert", denoiser, m + s * normal(rng, 3000, 1), many, table)
    good = isinstance(found, Tensor) and found.shape == (3000, 1)
    mean, deviation = (found.double().mean().item(), found.double().std().item()) if good else (9.0, 9.0)
    # Five standard errors of 3,000 numbers, and what 195 steps and the last ᾱ leave.
    yield holds(abs(mean) < 0.15 and abs(deviation - 1) < 0.1, "many steps: the data become noise N(0, 1)")
    back = student.call("invert", denoiser, x, many, table)
    if isinstance(back, Tensor) and back.shape == x.shape:
        back = back.double()
        for t, u in itertools.pairwise(reversed(many)):
            back = step(back, t, u, t)
    yield same(back, x, "many steps there, and the grader's steps back: the image again", tolerance=2e-2)


@exercise(points=3, needs=["pairwise_loss"], forbids=["course_lib.text_to_image.contrastive_loss"])
def pairs(student: Student, rng: torch.Generator):
    """Pairs, without a softmax"""

    def right(x: Tensor, y: Tensor, s: float, b: float) -> Tensor:
        total = 0.0
        for i, picture in enumerate(x):
            for j, caption in enumerate(y):
                logit = s * F.cosine_similarity(picture, caption, dim=0).item() + b
                total += np.logaddexp(0, -logit if i == j else logit)
        return torch.tensor(total / len(x), dtype=torch.float64)

    for s, b, what in ((2 + 3 * uniform(rng, 1).item(), -1.5, "a small scale"), (300.0, -40.0, "a large scale")):
        x, y = 3 * normal(rng, draw(rng, 5, 8), 4), normal(rng, 8, 4)
        y = y[: len(x)]
        yield same(student.call("pairwise_loss", x, y, s, b), right(x, y, s, b), what)
    x = normal(rng, 4, 3)
    y = 0.3 * x
    y[1] = -x[1]
    found = student.call("pairwise_loss", x, y, 5000.0, 10.0)
    yield same(found, right(x, y, 5000.0, 10.0), "a pair that is sure and wrong")


@exercise(points=3, needs=["classify"])
def sentences(student: Student, rng: torch.Generator):
    """Many sentences for a class"""

    def right(pictures: Tensor, prompts: Tensor, valid: Tensor, s: float) -> Tensor:
        rows = []
        for picture in pictures:
            scores = []
            for captions, counts in zip(prompts, valid.tolist(), strict=True):
                units = [c / c.norm() for c, use in zip(captions, counts, strict=True) if use]
                mean = torch.stack(units).mean(0)
                scores.append(s * (mean @ picture) / (mean.norm() * picture.norm()))
            weights = (torch.stack(scores) - max(scores)).exp()
            rows.append(weights / weights.sum())
        return torch.stack(rows)

    K, P, D = draw(rng, 3, 5), draw(rng, 4, 6), draw(rng, 5, 8)
    pictures, prompts = normal(rng, 7, D), normal(rng, K, P, D) * (0.2 + 4 * uniform(rng, K, P, 1))
    everyone = torch.ones(K, P, dtype=torch.bool)
    found = student.call("classify", pictures, prompts, everyone, 4.0)
    yield same(found, right(pictures, prompts, everyone, 4.0), "captions of different lengths, all valid")
    some = torch.rand(K, P, generator=rng) < 0.5
    some[:, 0], some[0, 1], some[1, 1:] = True, True, False
    found = student.call("classify", pictures, prompts, some, 9.0)
    yield same(found, right(pictures, prompts, some, 9.0), "some captions do not count")
    found = student.call("classify", 20 * pictures, prompts, everyone, 200.0)
    yield same(found, right(pictures, prompts, everyone, 200.0), "a large scale")
