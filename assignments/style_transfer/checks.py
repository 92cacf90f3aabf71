"""Hidden checks of the assignment on style transfer."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm
from torch import Tensor

from grading.checks import Code, Part, Student, exercise, holds, same

LIBRARY = ["course_lib.style_transfer.gram_matrix", "course_lib.style_transfer.with_colours_of"]


def draw(rng: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=rng))


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64)


@exercise(points=3, needs=["sees"])
def receptive(student: Student, rng: torch.Generator):
    """How far a layer sees"""

    def pixels(layers: list[tuple[int, int]], position: int) -> range:
        """The pixels that a position depends on, walking back from the last layer."""
        first = last = position
        for kernel, stride in reversed(layers):
            first, last = first * stride, last * stride + kernel - 1
        return range(first, last + 1)

    vgg = [(3, 1), (3, 1), (2, 2)] * draw(rng, 2, 3)
    drawn = [(draw(rng, 1, 5), draw(rng, 1, 3)) for _ in range(draw(rng, 4, 6))]
    single = [(draw(rng, 2, 9), draw(rng, 2, 4))]
    for layers, what in ((vgg, "blocks of VGG"), (drawn, "layers of any kind"), (single, "a single layer")):
        one, two = pixels(layers, 0), pixels(layers, 1)
        yield same(student.call("sees", layers), [len(one), two.start - one.start], what)


@exercise(points=3, needs=["adain"], forbids=["torch.nn.functional.instance_norm", "torch.nn.InstanceNorm2d"])
def adain(student: Student, rng: torch.Generator):
    """A style in one pass"""

    def right(content: Tensor, style: Tensor) -> Tensor:
        eps, moved = 1e-5, F.instance_norm(content, eps=1e-5)
        deviation = (style.flatten(2).var(2, unbiased=False) + eps).sqrt()
        return moved * deviation[..., None, None] + style.flatten(2).mean(2)[..., None, None]

    scales = torch.tensor([0.2, 1, 4], dtype=torch.float64).view(1, 3, 1, 1)
    content, style = normal(rng, 3, 3, 4, 5) * scales, 2 + normal(rng, 3, 3, draw(rng, 2, 3), 2) * scales.flip(1)
    yield same(student.call("adain", content, style), right(content, style), "maps of different sizes")
    share = 0.2 + 0.2 * torch.rand((), generator=rng).item()
    mixed = content + share * (right(content, style) - content)
    yield same(student.call("adain", content, style, share), mixed, f"a strength of {share:.2f}")
    content[1, 2] = 0.7
    yield same(student.call("adain", content, style), right(content, style), "a flat channel", points=0.5)
    faint = 1e-3 * normal(rng, 1, 2, 6, 6)
    yield same(student.call("adain", faint, style[:1, :2]), right(faint, style[:1, :2]), "faint channels", points=0.5)


@exercise(points=4, needs=["match_colours"], forbids=LIBRARY)
def colours(student: Student, rng: torch.Generator):
    """The colours of another image"""

    def of(image: Tensor) -> tuple[np.ndarray, np.ndarray]:
        rows = image.double()[0].flatten(1).numpy()
        return rows.mean(1), np.cov(rows, bias=True) + 1e-6 * np.eye(3)

    def right(image: Tensor, palette: Tensor) -> Tensor:
        (mean_p, own), (mean_a, wanted) = of(image), of(palette)
        linear = np.real(sqrtm(wanted)) @ np.linalg.inv(np.real(sqrtm(own)))
        moved = linear @ (image.double()[0].flatten(1).numpy() - mean_p[:, None]) + mean_a[:, None]
        return torch.tensor(moved).reshape(image.shape)

    mixing = torch.eye(3, dtype=torch.float64) + 0.5 * torch.rand(3, 3, generator=rng, dtype=torch.float64)

    def coloured(H: int, W: int) -> Tensor:
        """An image whose channels go together."""
        grain = torch.rand(3, H * W, generator=rng, dtype=torch.float64)
        return (mixing @ grain / mixing.sum(1, keepdim=True)).reshape(1, 3, H, W)

    image, palette = coloured(draw(rng, 20, 30), 24), coloured(16, draw(rng, 30, 40)).flip(1) ** 2
    found = student.call("match_colours", image, palette)
    whole = isinstance(found, Tensor) and found.shape == image.shape and bool(found.isfinite().all())
    mean, covariance = of(found) if whole else (np.full(3, np.inf), np.full((3, 3), np.inf))
    mean_a, wanted = of(palette)
    yield holds(bool(np.abs(mean - mean_a).max() < 1e-3), "the mean colour is the palette's")
    close = bool(np.abs(covariance - wanted).max() < 0.02 * np.abs(wanted).max())
    yield holds(close, "the covariance of the colours is the palette's")
    yield same(found, right(image, palette), "every pixel, by the symmetric roots")
    grey = image[:, :1].expand(-1, 3, -1, -1).contiguous().float()
    found = student.call("match_colours", grey, palette.float())
    correct = same(found, right(grey, palette.float()).float(), "a grey image in float32", tolerance=2e-2)
    stays = isinstance(found, Tensor) and found.dtype == torch.float32
    yield correct if stays else holds(False, "float32 stays float32")


@exercise(points=3, needs=["shifted_gram"], forbids=LIBRARY)
def shifted(student: Student, rng: torch.Generator):
    """A Gram matrix that knows its neighbours"""
    features = normal(rng, 2, 4, draw(rng, 6, 8), draw(rng, 9, 11))
    _, C, H, W = features.shape

    def right(dy: int, dx: int) -> Tensor:
        total, count = torch.zeros(2, C, C, dtype=torch.float64), 0
        for y in range(H):
            for x in range(W):
                if 0 <= y + dy < H and 0 <= x + dx < W:
                    total += features[:, :, y, x][:, :, None] * features[:, :, y + dy, x + dx][:, None]
                    count += 1
        return total / count

    down, across = draw(rng, 1, 3), draw(rng, 4, 5)
    for dy, dx, what in ((down, across, "down and right"), (down, -across, "down and left"), (-down, 0, "up")):
        yield same(student.call("shifted_gram", features, dy, dx), right(dy, dx), what)


@exercise(points=3, needs=["masked_gram"], forbids=LIBRARY)
def masked(student: Student, rng: torch.Generator):
    """The style of a part"""

    def right(features: Tensor, mask: Tensor) -> Tensor:
        B, _, h, w = features.shape
        n = mask.shape[2] // h
        weights = mask.reshape(B, h, n, w, n).mean((2, 4))
        rows = [
            torch.stack([torch.stack([(m * a * b).sum() for a in f]) for b in f]) / m.sum().clamp(min=1e-12)
            for f, m in zip(features, weights, strict=True)
        ]
        return torch.stack(rows)

    features = normal(rng, 2, 3, draw(rng, 3, 5), draw(rng, 6, 7))
    h, w = features.shape[2:]
    hard = (torch.rand(2, 1, h, w, generator=rng, dtype=torch.float64) < 0.4).double()
    hard[:, :, 0, 0], hard[:, :, 1, 1] = 1, 0
    yield same(student.call("masked_gram", features, hard), right(features, hard), "a mask of the features' size")
    n = draw(rng, 2, 4)
    soft = torch.rand(2, 1, n * h, n * w, generator=rng, dtype=torch.float64)
    soft[:, :, :, : n * 2] = 0
    found = student.call("masked_gram", features, soft)
    yield same(found, right(features, soft), f"a soft mask of {n} times the size")
    soft[1] = 0
    found = student.call("masked_gram", features, soft)
    yield same(found, right(features, soft), "the second image's mask is empty", points=0.5)
    faint = 1e-3 * hard
    found = student.call("masked_gram", features, faint)
    yield same(found, right(features, hard), "a very faint mask", points=0.5)


NETWORK = "(lambda K: lambda x: [torch.relu(torch.conv2d(x, K)), torch.tanh(torch.conv2d(x[..., ::2, ::2], K))])({})"


@exercise(
    points=5, needs=["paint"], forbids=["course_lib.style_transfer.transfer", "course_lib.style_transfer.optimise"]
)
def paint(student: Student, rng: torch.Generator):
    """Paint with Gram matrices alone"""
    kernels = normal(rng, 5, 3, 3, 3).round(decimals=3)
    K = kernels.clone()
    network = Code(NETWORK.format(f"torch.tensor({kernels.tolist()}, dtype=torch.float64)"))

    def statistics(x: Tensor) -> list[Tensor]:
        maps = torch.relu(F.conv2d(x, K)), torch.tanh(F.conv2d(x[..., ::2, ::2], K))
        return [torch.einsum("bihw,bjhw->bij", f, f) / f[0, 0].numel() for f in maps]

    def cost(x: Tensor, wanted: list[Tensor]) -> Tensor:
        parts = [(G - A).pow(2).sum() / A.pow(2).sum() for G, A in zip(statistics(x), wanted, strict=True)]
        return parts[0] + parts[1]

    def descent(x: Tensor, wanted: list[Tensor], steps: int) -> list[float]:
        """Adam by hand (Kingma & Ba 2015, algorithm 1) on the logits."""
        p = x.clamp(0.01, 0.99)
        u, m, v, losses = (p / (1 - p)).log(), 0.0, 0.0, []
        for k in range(1, steps + 1):
            u = u.detach().requires_grad_()
            loss = cost(1 / (1 + (-u).exp()), wanted)
            (g,) = torch.autograd.grad(loss, u)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            u = u - 0.1 * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)
            losses.append(loss.item())
        return losses

    ramp = torch.linspace(0, 1, 24, dtype=torch.float64).expand(24, 24)
    painting = torch.stack([ramp, 1 - ramp.T, ramp * ramp.T])[None]
    painting = (painting + 0.2 * normal(rng, 1, 3, 24, 24)).clamp(0, 1)
    wanted, start = statistics(painting), torch.rand(1, 3, 22, 26, generator=rng, dtype=torch.float64)
    start[0, :, 0] = 0.0  # its logit is −∞ where nobody clamps
    first = descent(start, wanted, 6)
    lines = "found, losses = paint(start, targets, network, 6)\nresult = [found, losses, start.clone()]"
    found = student.evaluate(lines, start=start, targets=wanted, network=network)
    image, losses, after = found if isinstance(found, list) and len(found) == 3 else (None, None, None)
    yield same(losses, first, "the losses of six steps", points=1.5)
    left = isinstance(after, Tensor) and torch.equal(after, start)
    shaped = isinstance(image, Tensor) and image.shape == start.shape and bool(((image > 0) & (image < 1)).all())
    yield holds(left and shaped, "an image of the start's size, inside (0, 1); the start is left as it was")
    answer = student.call("paint", start, wanted, network, 60)
    image = answer[0] if isinstance(answer, list | tuple) and answer else None
    if not isinstance(image, Tensor) or image.shape != start.shape or not image.isfinite().all():
        yield Part(2.5, 0.0, "60 steps: no image of the start's size")
        return
    reached, begun = cost(image.double(), wanted).item(), first[0]
    inside = bool(((image >= 0) & (image <= 1)).all())
    yield holds(inside and reached < begun / 20, "60 steps: the image's own loss falls to a twentieth", points=1)
    least = descent(start, wanted, 61)[-1]
    yield holds(inside and reached < 1.3 * least + 1e-9, "60 steps: as low as Adam comes", points=1.5)
    assert math.isfinite(least)
