"""Hidden checks of the assignment on upsampling."""

import itertools

import numpy as np
import torch
import torch.nn.functional as F

from grading.checks import Part, Student, exercise, holds, same

RESIZE = ["torch.nn.functional.interpolate", "torch.nn.Upsample", "torch.nn.functional.grid_sample"]
TRANSPOSED = [f"torch.nn.{kind}" for kind in ("ConvTranspose1d", "functional.conv_transpose1d", "functional.fold")]


def draw(rng: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=rng))


@exercise(points=3, needs=["fitting_layers"])
def kernels(student: Student, rng: torch.Generator):
    """Which layers fit"""
    for factor, largest in ((2, draw(rng, 8, 15)), (3, draw(rng, 9, 16)), (draw(rng, 4, 6), 3)):
        triples = itertools.product(range(1, largest + 1), range(1, 9), range(largest))
        right = [(k, s, p) for k, s, p in triples if k % s == 0 and s == factor and k - 2 * p == s]
        found = student.call("fitting_layers", factor, largest)
        yield same(found, right, f"layers that enlarge {factor} times, kernels up to {largest}")


@exercise(points=4, needs=["stretch"], forbids=RESIZE)
def linear(student: Student, rng: torch.Generator):
    """Linear interpolation along one axis"""

    def expected(x: torch.Tensor, size: int) -> torch.Tensor:
        n = x.shape[-1]
        places = (np.arange(size) + 0.5) * n / size - 0.5
        rows = [np.interp(places, np.arange(n), row) for row in x.double().reshape(-1, n).numpy()]
        return torch.tensor(np.array(rows)).reshape(*x.shape[:-1], size)

    for what, n, more in (("enlarged", draw(rng, 3, 9), draw(rng, 4, 30)), ("made smaller", draw(rng, 20, 40), -10)):
        x = torch.randn(2, 3, n, generator=rng, dtype=torch.float64)
        yield same(student.call("stretch", x, n + more), expected(x, n + more), f"a signal {what}")
    x = torch.randn(1, generator=rng)
    yield same(student.call("stretch", x, 5), x.expand(5), "a signal of one sample", points=0.5)
    x = torch.randn(4, 2, 1, 6, generator=rng, dtype=torch.float64)
    yield same(student.call("stretch", x, 11), expected(x, 11), "four axes", points=0.5)
    x = torch.tensor([-1.0, 1.0]).repeat(1500)  # positions in float32 are off by a ten-thousandth here
    yield same(student.call("stretch", x, 7919), expected(x, 7919).float(), "a long signal", tolerance=1e-5)


@exercise(points=5, needs=["transposed"], forbids=TRANSPOSED)
def transposed(student: Student, rng: torch.Generator):
    """A transposed convolution with channels"""
    for stride, k, padding in ((1, 3, 0), (2, 4, 1), (3, 2, 0)):
        x = torch.randn(2, draw(rng, 2, 4), draw(rng, 4, 7), generator=rng, dtype=torch.float64)
        w = torch.randn(x.shape[1], draw(rng, 1, 5), k, generator=rng, dtype=torch.float64)
        right = F.conv_transpose1d(x, w, None, stride, padding)
        yield same(
            student.call("transposed", x, w, stride, padding), right, f"kernel {k}, stride {stride}, padding {padding}"
        )
    x = torch.randn(1, 2, 4, generator=rng, dtype=torch.float64)
    w = torch.randn(2, 3, 3, generator=rng, dtype=torch.float64).requires_grad_()
    (right,) = torch.autograd.grad(F.conv_transpose1d(x, w, None, 2, 1).square().sum(), w)
    lines = "w.requires_grad_()\ntransposed(x, w, 2, 1).square().sum().backward()\nresult = w.grad"
    found = student.evaluate(lines, x=x, w=w)
    yield same(found, right, "the gradient of the squared output by the kernel", points=2)


@exercise(points=2, needs=["depth_to_space"], forbids=["torch.nn.functional.pixel_shuffle", "torch.nn.PixelShuffle"])
def shuffle(student: Student, rng: torch.Generator):
    """Pixel shuffle, the other order"""
    for r in (2, 3):
        x = torch.randn(2, r * r * draw(rng, 2, 3), draw(rng, 1, 4), draw(rng, 5, 6), generator=rng)
        B, channels, h, w = x.shape
        right = torch.empty(B, channels // r**2, r * h, r * w)
        for i, j in itertools.product(range(r), repeat=2):
            first = (i * r + j) * right.shape[1]
            right[:, :, i::r, j::r] = x[:, first : first + right.shape[1]]
        yield same(student.call("depth_to_space", x, r), right, f"cells of {r} × {r}")


@exercise(points=2, needs=["visits"])
def blur(student: Student, rng: torch.Generator):
    """How often a pixel is visited"""
    for n, k, s in ((draw(rng, 3, 9), draw(rng, 4, 9), draw(rng, 2, 3)), (draw(rng, 2, 5), 1, 4)):
        right = F.conv_transpose1d(torch.ones(1, 1, n), torch.ones(1, 1, k), None, s).long()[0, 0]
        yield same(student.call("visits", n, k, s), right, f"{n} pixels, kernel {k}, stride {s}")


@exercise(points=4, needs=["learn_kernel"])
def learned(student: Student, rng: torch.Generator):
    """Learn to enlarge"""
    k = 6

    def pairs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.randn(count, 80, generator=rng, dtype=torch.float64).cumsum(1)  # smooth, as signals are
        y = y - y.mean(1, keepdim=True)
        x = F.conv1d(F.pad(y[:, None], (1, 1), "replicate"), taps[None, None], stride=2)[:, 0]
        return x, y

    def error(kernel: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> float:
        enlarged = F.conv_transpose1d(x[:, None], kernel.double()[None, None], None, 2, (k - 2) // 2)[:, 0]
        return (enlarged - y).square().mean().item()

    taps = torch.rand(4, generator=rng, dtype=torch.float64) + 0.2
    taps = taps / taps.sum()
    x, y = pairs(200)
    found = student.call("learn_kernel", x, y, k)
    if not isinstance(found, torch.Tensor) or found.shape != (k,):
        yield Part(4, 0.0, f"expected a kernel of {k} numbers")
        return
    columns = [
        F.conv_transpose1d(x[:, None], unit[None, None], None, 2, 2)[:, 0].flatten() for unit in torch.eye(k).double()
    ]
    best = torch.linalg.lstsq(torch.stack(columns, 1), y.flatten()[:, None]).solution[:, 0]
    fresh = pairs(200)
    mine, least, nothing = (error(kernel, *fresh) for kernel in (found, best, 0 * best))
    yield holds(mine < 0.2 * nothing, "new signals are enlarged better than by nothing at all")
    yield holds(mine <= 1.02 * least, "the error on new signals is within 2 % of the least", points=3)
