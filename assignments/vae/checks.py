"""Hidden checks of the assignment on VAEs."""

import math

import torch
import torch.nn.functional as F
from scipy.special import expit, logsumexp
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from course_lib.base import datasets, zoo
from grading.checks import Handle, Part, Student, exercise, holds, same

ENOUGH, GOOD, READ = -23.0, -22.1, 0.85  # nats an image, nats an image, proportion read as ordered


def draw(rng: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=rng))


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64)


@exercise(points=3, needs=["kl_between"], forbids=["torch.distributions.kl_divergence", "torch.nn.functional.kl_div"])
def divergence(student: Student, rng: torch.Generator):
    """From any cloud to any other"""

    def right(mu_q: Tensor, log_var_q: Tensor, mu_p: Tensor, log_var_p: Tensor) -> Tensor:
        q, p = (Normal(m, v.exp() ** 0.5) for m, v in ((mu_q, log_var_q), (mu_p, log_var_p)))
        return kl_divergence(q, p).sum(-1)

    d = draw(rng, 2, 6)
    four = [normal(rng, 5, d) for _ in range(4)]
    yield same(student.call("kl_between", *four), right(*four), "q and p both arbitrary")
    more = [normal(rng, 2, 3, 4), normal(rng, 2, 3, 4), normal(rng, 4), normal(rng, 4)]
    yield same(student.call("kl_between", *more), right(*more), "three axes, and one p for all")
    thin = [normal(rng, 6, 3), normal(rng, 6, 3) - 8, normal(rng, 6, 3), normal(rng, 6, 3)]
    yield same(student.call("kl_between", *thin), right(*thin), "a very narrow q", points=0.5)
    found = student.call("kl_between", *thin[2:], *thin[:2])
    yield same(found, right(*thin[2:], *thin[:2]), "a very narrow p", points=0.5)


@exercise(points=4, needs=["log_probability"])
def greys(student: Student, rng: torch.Generator):
    """A likelihood for greys"""

    def right(x: Tensor, mu: Tensor, log_s: Tensor) -> Tensor:
        """By the formula as it stands, which float64 survives near the mean."""
        a, b = ((x + half - mu) / log_s.exp() for half in (0.5, -0.5))
        P = torch.tensor(expit(a.numpy()) - expit(b.numpy()))
        P = torch.where(x == 0, torch.tensor(expit(a.numpy())), P)
        P = torch.where(x == 255, torch.tensor(expit(-b.numpy())), P)
        return P.log().sum((1, 2, 3))

    shape = (3, 2, draw(rng, 3, 5), 4)
    x = torch.randint(1, 255, shape, generator=rng)
    log_s = 1.5 + normal(rng, *shape) / 2
    mu = x + normal(rng, *shape) * 3
    yield same(student.call("log_probability", x, mu, log_s), right(x, mu, log_s), "greys near their means", 1.5)
    ends = 255 * torch.randint(0, 2, shape, generator=rng)
    mu = ends + 4 * normal(rng, *shape)
    yield same(student.call("log_probability", ends, mu, log_s), right(ends, mu, log_s), "black and white pixels")
    x, s = torch.full((1, 1, 1, 1), draw(rng, 20, 60)), 1 + torch.rand((), generator=rng).item()
    mu, log_s = torch.full(x.shape, 2000.0).double(), torch.full(x.shape, math.log(s)).double()
    # So far out the sigmoid is an exponential: P = e^{(k − ½ − μ)/s} (e^{1/s} − 1).
    far = (x.item() - 0.5 - 2000) / s + math.log(math.expm1(1 / s))
    found = student.call("log_probability", x, mu, log_s)
    yield same(found, torch.tensor([far], dtype=torch.float64), "a grey far below its mean", 0.75)
    found = student.call("log_probability", 255 - x, 255 - mu, log_s)
    yield same(found, torch.tensor([far], dtype=torch.float64), "a grey far above its mean", 0.75)


@exercise(points=3, needs=["tighter"], forbids=["course_lib.vae.importance_bound"])
def weights(student: Student, rng: torch.Generator):
    """A bound that you can tighten"""

    def right(log_w: Tensor) -> list[Tensor]:
        bound, count = [], []
        for column in log_w.T.numpy():
            whole = logsumexp(column)
            bound.append(whole - math.log(len(column)))
            count.append(math.exp(2 * whole - logsumexp(2 * column)))
        return [torch.tensor(bound, dtype=torch.float64), torch.tensor(count, dtype=torch.float64)]

    log_w = 2 * normal(rng, draw(rng, 4, 9), draw(rng, 10, 12))
    for shift, what in ((0.0, "ordinary weights"), (-12_000.0, "tiny weights"), (900.0, "huge weights")):
        found = student.call("tighter", log_w + shift)
        found = found if isinstance(found, list | tuple) and len(found) == 2 else (None, None)
        bound, count = right(log_w + shift)
        close = same(
            found[0] - shift if isinstance(found[0], Tensor) else None, bound - shift, f"{what}: the bound", 0.5
        )
        yield close
        yield same(found[1], count, f"{what}: the effective number", 0.5)


@exercise(points=3, needs=["awake", "free_nats"])
def lazy(student: Student, rng: torch.Generator):
    """Lazy codes"""
    n, least = draw(rng, 15, 30), 0.01 + 0.02 * torch.rand((), generator=rng).item()
    deviations = torch.tensor([0.3, 1.4, 0.8, 1.15, 0.9, 3]).double() * math.sqrt(least)
    moved = normal(rng, n, 6)
    moved = (moved - moved.mean(0)) / moved.var(0, unbiased=False).sqrt() * deviations
    middle = torch.tensor([5.0, 0, -3, 0, 0, 2]).double()
    found = student.call("awake", moved + middle, least)
    yield same(found, deviations**2 > least, f"which of 6 coordinates are awake, {n} images")
    few = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double() * math.sqrt(least) * torch.tensor([0.8, 1.2]).double()
    yield same(student.call("awake", few, least), torch.tensor([False, True]), "two images", points=0.5)
    kl = normal(rng, 9, 5).square() * torch.tensor([0.02, 0.1, 0.6, 1, 4]).double()
    floor = (kl.mean(0).sort().values[1:3].sum() / 2).item()
    expected = sum(max(floor, column.mean().item()) for column in kl.T)
    found = student.call("free_nats", kl, floor)
    yield same(found, torch.tensor(expected, dtype=torch.float64), "the sum with its floor")
    lines = "kl.requires_grad_()\nfree_nats(kl, floor).backward()\nresult = kl.grad"
    slope = (kl.mean(0) > floor).double().expand(9, 5) / 9
    yield same(student.evaluate(lines, kl=kl, floor=floor), slope, "its gradient", points=0.5)


GRADIENTS = """
z.requires_grad_(), book.requires_grad_()
quantised, which, loss = quantise(z, book)
through = torch.autograd.grad((quantised * pull).sum(), [z, book], retain_graph=True, allow_unused=True)
learned = torch.autograd.grad(loss, [z, book], allow_unused=True)
zeros = [torch.zeros_like(z), torch.zeros_like(book)]
result = [[zero if g is None else g for g, zero in zip(pair, zeros)] for pair in (through, learned)]
"""


@exercise(points=4, needs=["quantise"])
def codes(student: Student, rng: torch.Generator):
    """Codes that are whole numbers: VQ-VAE"""
    D, K = draw(rng, 3, 5), draw(rng, 6, 9)
    z, book, weight = normal(rng, 2, D, 3, draw(rng, 4, 6)), normal(rng, K, D), 0.25
    B, _, H, W = z.shape
    numbers = torch.zeros(B, H, W, dtype=torch.int64)
    nearest = torch.zeros_like(z)
    for b in range(B):
        for y in range(H):
            for x in range(W):
                gaps = [math.dist(z[b, :, y, x].tolist(), code.tolist()) for code in book]
                numbers[b, y, x] = gaps.index(min(gaps))
                nearest[b, :, y, x] = book[numbers[b, y, x]]
    pull = normal(rng, *z.shape)
    found = student.call("quantise", z, book)
    found = list(found) if isinstance(found, list | tuple) and len(found) == 3 else [None] * 3
    yield same(found[1], numbers, "the numbers of the codes")
    yield same(found[0], nearest, "the quantised map", points=0.5)
    error = (z - nearest).square().mean()
    yield same(found[2], (1 + weight) * error, "the loss", points=0.5)
    answer = student.evaluate(GRADIENTS, z=z, book=book, pull=pull)
    through, learned = answer if isinstance(answer, list) and len(answer) == 2 else (None, None)
    yield same(through, [pull, torch.zeros_like(book)], "the gradient that goes straight through")
    slope = 2 * (z - nearest) / z.numel()
    onto = torch.zeros_like(book)
    onto.index_add_(0, numbers.flatten(), -slope.permute(0, 2, 3, 1).reshape(-1, D))
    yield same(learned, [weight * slope, onto], "the gradient of the loss", tolerance=1e-5)


@exercise(points=6, needs=["train"], forbids=["course_lib.vae.VAE", "course_lib.vae.vae_step"])
def order(student: Student, rng: torch.Generator):
    """Digits to order"""
    x, y = datasets.load("digits", "test")[:]
    network = student.call("train", *datasets.load("digits")[:], seconds=60.0)
    if not isinstance(network, Handle):
        yield Part(6, 0.0, "expected an object with the methods encode and decode")
        return
    cloud = student.call((network, "encode"), x, y)
    shapes = (
        [part.shape if isinstance(part, Tensor) else None for part in cloud] if isinstance(cloud, list | tuple) else 0
    )
    if shapes != [(len(x), 4)] * 2:
        yield Part(6, 0.0, f"encode: expected two tensors of shape ({len(x)}, 4)")
        return
    mu, log_var = (part.double() for part in cloud)
    z = mu + log_var.mul(0.5).exp() * normal(rng, *mu.shape)
    logits = student.call((network, "decode"), z.float(), y)
    if not isinstance(logits, Tensor) or logits.shape != x.shape:
        yield Part(6, 0.0, f"decode: expected logits of shape {tuple(x.shape)}")
        return
    yield holds(bool(logits.isfinite().all()), "encode and decode return what was asked for")
    error = F.binary_cross_entropy_with_logits(logits.double(), x.double(), reduction="sum") / len(x)
    cost = kl_divergence(Normal(mu, (log_var / 2).exp()), Normal(0.0, 1.0)).sum(1).mean()
    bound = -(error + cost).item()
    yield holds(bound > ENOUGH, f"an ELBO above {ENOUGH} nats an image ({bound:.2f})")
    yield holds(bound > GOOD, f"an ELBO above {GOOD} nats an image ({bound:.2f})", points=2)
    wanted = torch.arange(10).repeat(40)
    written = student.call((network, "decode"), normal(rng, 400, 4).float(), wanted)
    proper = isinstance(written, Tensor) and written.shape == (400, 1, 8, 8)
    with torch.no_grad():
        judged = zoo.load("classifier_digits", "cpu")(written.float().sigmoid()).argmax(1) if proper else -wanted - 1
    read = (judged == wanted).double().mean().item()
    yield holds(read >= READ, f"{READ:.0%} of the digits are read as ordered ({read:.0%})", points=2)
