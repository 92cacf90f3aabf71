"""Hidden checks of the assignment on GANs."""

import math

import numpy as np
import torch
from scipy.special import rel_entr
from scipy.stats import entropy
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from grading.checks import Code, Student, exercise, same


def draw(rng: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=rng))


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64)


@exercise(points=3, needs=["losses"])
def losses(student: Student, rng: torch.Generator):
    """The two losses, from logits"""
    for scale, what in ((2, "ordinary logits"), (90, "large logits")):
        real, fake = scale * normal(rng, draw(rng, 3, 9)), scale * normal(rng, draw(rng, 10, 15))
        fake[0], real[0] = -200 if scale > 9 else -2, -200 if scale > 9 else -2
        ones, zeros = torch.ones_like, torch.zeros_like
        right = cross_entropy(real, ones(real)) + cross_entropy(fake, zeros(fake)), cross_entropy(fake, ones(fake))
        found = student.call("losses", real, fake)
        found = found if isinstance(found, list | tuple) and len(found) == 2 else (None, None)
        yield same(found[0], right[0], f"D's loss, {what}", points=0.75)
        yield same(found[1], right[1], f"G's loss, {what}", points=0.75)


@exercise(points=4, needs=["best_discriminator", "divergence"])
def theory(student: Student, rng: torch.Generator):
    """The theory, where everything can be counted"""
    p, q = (torch.rand(9, generator=rng, dtype=torch.float64) for _ in range(2))
    p[:3], q[2:5] = 0, 0
    p, q = p / p.sum(), q / q.sum()
    right = torch.tensor(np.divide(p, p + q, out=np.full(9, 0.5), where=(p + q).numpy() > 0))
    yield same(student.call("best_discriminator", p, q), right, "D*, zeros among the probabilities", points=2)
    middle = (p + q) / 2
    found = student.call("divergence", p, q)
    yield same(
        found,
        torch.as_tensor(rel_entr(p.numpy(), middle.numpy()).sum() + rel_entr(q.numpy(), middle.numpy()).sum()) / 2,
        "the divergence, with zeros",
    )
    a, b = (torch.rand(5, generator=rng, dtype=torch.float64) + 0.1 for _ in range(2))
    a, b = a / a.sum(), b / b.sum()
    c = (a + b) / 2
    right = torch.as_tensor((entropy(a.numpy(), c.numpy()) + entropy(b.numpy(), c.numpy())) / 2)
    yield same(student.call("divergence", a, b), right, "the divergence, without zeros", tolerance=1e-6)


@exercise(points=3, needs=["r1"])
def penalty(student: Student, rng: torch.Generator):
    """The penalty R1"""
    x, gamma = normal(rng, 6, 2, 3), 0.5 + 3 * torch.rand((), generator=rng).item()
    a = 0.5 + torch.rand((), generator=rng).item()
    # a · the sum of cubes has the gradient 3a x²
    right = gamma / 2 * (9 * a**2 * x**4).sum((1, 2)).mean()
    cubes = Code(f"lambda x: {a!r} * (x ** 3).flatten(1).sum(1)")
    yield same(student.call("r1", cubes, x, gamma), right, "a discriminator of cubes")
    w = normal(rng, 6)
    lines = "w.requires_grad_()\nvalue = r1(lambda x: x.flatten(1) @ w, x, gamma)\nvalue.backward()\nresult = w.grad"
    yield same(student.evaluate(lines, w=w, x=x, gamma=gamma), gamma * w, "what its weights learn from it", points=2)


STEP = """
G, D = torch.nn.Linear(4, 5, dtype=torch.float64), torch.nn.Linear(5, 1, dtype=torch.float64)
with torch.no_grad():
    for parameter, value in zip([*G.parameters(), *D.parameters()], weights):
        parameter.copy_(value)
logits = lambda images: torch.tanh(D(images))[:, 0]
optimisers = torch.optim.SGD(G.parameters(), lr=rate), torch.optim.SGD(D.parameters(), lr=rate)
calls = []
G.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
losses = [game_step(G, Network(D, logits), *optimisers, x, z) for _ in range(2)]
result = [list(map(list, losses)), [p.detach() for p in (*G.parameters(), *D.parameters())],
          [p.grad for p in D.parameters()]]
"""
NETWORK = """
class Network(torch.nn.Module):
    def __init__(self, inner, logits):
        super().__init__()
        self.inner, self.logits = inner, logits
    def forward(self, images):
        return self.logits(images)
"""


@exercise(points=5, needs=["game_step"])
def step(student: Student, rng: torch.Generator):
    """One step of the game"""
    rate = 0.2 + 0.3 * torch.rand((), generator=rng).item()
    x, z = normal(rng, 7, 5), normal(rng, 7, 4)
    weights = [normal(rng, *shape) / 2 for shape in ((5, 4), (5,), (1, 5), (1,))]
    found = student.evaluate(NETWORK + STEP, x=x, z=z, rate=rate, weights=weights)
    # The same two steps, from the formulas.
    A, a, w, c = (weight.clone().requires_grad_() for weight in weights)
    right_losses, of_D = [], []
    for _ in range(2):
        real, fake = torch.tanh(x @ w.mT + c)[:, 0], torch.tanh((z @ A.mT + a).detach() @ w.mT + c)[:, 0]
        loss_D = cross_entropy(real, torch.ones(7).double()) + cross_entropy(fake, torch.zeros(7).double())
        of_D = torch.autograd.grad(loss_D, [w, c])
        w, c = ((p - rate * g).detach().requires_grad_() for p, g in zip((w, c), of_D, strict=True))
        loss_G = cross_entropy(torch.tanh((z @ A.mT + a) @ w.mT + c)[:, 0], torch.ones(7).double())
        of_G = torch.autograd.grad(loss_G, [A, a])
        A, a = ((p - rate * g).detach().requires_grad_() for p, g in zip((A, a), of_G, strict=True))
        right_losses.append([loss_D.item(), loss_G.item()])
    good = isinstance(found, list) and len(found) == 3
    losses, networks, gradients = found if good else (None, None, None)
    yield same(losses, right_losses, "the losses of two steps", tolerance=1e-7)
    good = isinstance(networks, list) and len(networks) == 4
    yield same(networks[2:] if good else None, [w.detach(), c.detach()], "D after two steps", 1.5, 1e-7)
    yield same(networks[:2] if good else None, [A.detach(), a.detach()], "G after two steps", 1.5, 1e-7)
    yield same(gradients, list(of_D), "the gradients that stay with D", tolerance=1e-7)


@exercise(points=3, needs=["walk"])
def walk(student: Student, rng: torch.Generator):
    """A walk on the sphere"""
    n = draw(rng, 4, 9)
    a = normal(rng, 12)
    across = normal(rng, 12)
    across = across - (across @ a) / (a @ a) * a
    angle = 0.4 + 2 * torch.rand((), generator=rng).item()
    b = math.cos(angle) * a + math.sin(angle) * a.norm() / across.norm() * across
    t = torch.linspace(0, angle, n, dtype=torch.float64)[:, None]
    right = torch.cos(t) * a + torch.sin(t) * a.norm() / across.norm() * across  # along the circle through both
    yield same(student.call("walk", a, b, n), right, "two points at the same distance from 0")
    angle_b = 1.7 * b
    share = torch.linspace(0, 1, n, dtype=torch.float64)[:, None] * angle
    right = (torch.sin(angle - share) * a + torch.sin(share) * angle_b) / math.sin(angle)
    yield same(student.call("walk", a, angle_b, n), right, "points at different distances from 0")
    straight = a + torch.linspace(0, 1, n, dtype=torch.float64)[:, None] * 0.5 * a
    found = student.call("walk", a.float(), 1.5 * a.float(), n)
    yield same(found, straight.float(), "parallel points, in float32", tolerance=1e-3)


@exercise(points=3, needs=["shares"])
def modes(student: Student, rng: torch.Generator):
    """Which modes are there"""
    centres, points = 3 * normal(rng, 5, 2), 4 * normal(rng, 300, 2)
    radius = 1.5 + torch.rand((), generator=rng).item()

    def right(points: Tensor) -> Tensor:
        counts = [0] * 6
        for point in points.tolist():
            distances = [math.dist(point, centre) for centre in centres.tolist()]
            near = min(distances) <= radius
            counts[distances.index(min(distances)) if near else 5] += 1
        return torch.tensor(counts).double() / len(points)

    yield same(student.call("shares", points, centres, radius), right(points), "300 points")
    yield same(student.call("shares", points[:3] + 100, centres, radius), right(points[:3] + 100), "nothing near")
    broken = points.clone()
    broken[:60] = math.nan
    expected = right(torch.where(broken.isnan(), torch.full_like(broken, 1e9), broken))
    yield same(student.call("shares", broken, centres, radius), expected, "some points are NaN")
