"""Hidden checks of the assignment on key points and reconstruction."""

import math

import torch
from torch import Tensor

from grading.checks import Student, exercise, holds, same

NAN = math.nan


def draw(rng: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=rng))


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def uniform(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=rng, dtype=torch.float64)


def several(found: object, n: int) -> list | tuple:
    return found if isinstance(found, list | tuple) and len(found) == n else (None,) * n


def nan_where(found: object, unknown: Tensor, what: str, points: float):
    """A part for NaN there and nowhere else."""
    good = isinstance(found, Tensor) and found.shape == unknown.shape and torch.equal(found.isnan(), unknown)
    return holds(good, what, points)


def known(found: object, unknown: Tensor) -> object:
    """An answer with zeros where it is not asked for."""
    if not isinstance(found, Tensor) or found.shape != unknown.shape or not found.is_floating_point():
        return found
    return torch.where(unknown, 0.0, found)


@exercise(points=3, needs=["locate"])
def soft_argmax(student: Student, rng: torch.Generator):
    """Where is it, and how sure are we"""
    for scale, points, what in ((2.0, 1, "ordinary logits"), (2000.0, 0.5, "large logits")):
        h, w, stride = draw(rng, 4, 7), draw(rng, 8, 12), draw(rng, 2, 6) + 0.5
        logits = scale * normal(rng, 2, 3, h, w)
        weights = torch.exp(logits - logits.amax((2, 3), keepdim=True)).reshape(6, -1)
        weights = weights / weights.sum(1, keepdim=True)
        centres = torch.tensor([[stride * (k % w + 0.5), stride * (k // w + 0.5)] for k in range(h * w)]).double()
        means = weights @ centres
        spreads = [(p * (centres - m).square().sum(1)).sum().sqrt() for p, m in zip(weights, means, strict=True)]
        found = several(student.call("locate", logits, stride), 2)
        yield same(found[0], means.reshape(2, 3, 2), f"where, {what}", points)
        yield same(found[1], torch.stack(spreads).reshape(2, 3), f"how sure, {what}", points)


@exercise(points=3, needs=["pck", "area_under_pck"])
def pck(student: Student, rng: torch.Generator):
    """A ruler without a threshold"""
    N, K = draw(rng, 8, 14), draw(rng, 4, 6)
    truth = torch.cat([100 * uniform(rng, N, K, 2), torch.randint(0, 3, (N, K, 1), generator=rng)], 2)
    truth[..., 1, 2] = 0  # a kind that nobody labelled
    truth[..., 0, 2] = 1 + torch.arange(N) % 2
    size = 20 + 100 * uniform(rng, N)
    away = normal(rng, N, K, 2)
    ratios = torch.linspace(0.01, 0.4, N * K).double()[torch.randperm(N * K, generator=rng)].reshape(N, K)
    found = truth[..., :2] + away / away.norm(dim=-1, keepdim=True) * (ratios * size[:, None])[..., None]
    alpha, kinds = 0.1 + 0.1 * uniform(rng).item(), []
    for k in range(K):
        counted = [n for n in range(N) if truth[n, k, 2] > 0]
        kinds.append(sum(ratios[n, k].item() <= alpha for n in counted) / len(counted) if counted else NAN)
    right = torch.tensor(kinds).double()
    mine = student.call("pck", found, truth, size, alpha)
    mine = mine.double() if isinstance(mine, Tensor) and mine.is_floating_point() else mine
    yield same(known(mine, right.isnan()), right.nan_to_num(0), f"PCK@{alpha:.2f} of each kind", 1)
    yield nan_where(mine, right.isnan(), "NaN for a kind that is never labelled, and only there", 0.5)
    flat = torch.zeros(4, 1, 3).double()
    flat[:, 0, 2] = 2
    at_limit = torch.tensor([[[8.0, 0]], [[0, 8]], [[9, 0]], [[0, 7]]]).double()
    limit = student.call("pck", at_limit, flat, torch.full((4,), 16.0).double(), 0.5)
    limit = limit.double() if isinstance(limit, Tensor) and limit.is_floating_point() else limit
    yield same(limit, torch.tensor([0.75]).double(), "points at the limit itself", 0.5)
    largest, total, labelled = 0.25 + 0.1 * uniform(rng).item(), 0.0, truth[..., 2] > 0
    for r in ratios[labelled].tolist():  # right for all α from r to the largest
        total += max(0.0, largest - r) / largest
    mine = student.call("area_under_pck", found, truth, size, largest)
    yield same(mine, total / int(labelled.sum()), f"the mean over α up to {largest:.2f}")


def turned(rng: torch.Generator, D: int) -> Tensor:
    """A random rotation."""
    Q, _ = torch.linalg.qr(normal(rng, D, D))
    Q[:, 0] *= torch.linalg.det(Q).sign()
    return Q


@exercise(points=4, needs=["align"])
def align(student: Student, rng: torch.Generator):
    """Lay one shape on another"""

    def left(found: list | tuple, a: Tensor, b: Tensor) -> float:
        """The sum of squares that an answer leaves; infinite where it is no similarity."""
        s, R, t = (torch.as_tensor(part).double() if isinstance(part, Tensor | float) else None for part in found)
        D = a.shape[1]
        if s is None or R is None or t is None or s.numel() != 1 or R.shape != (D, D) or t.shape != (D,):
            return math.inf
        rigid = torch.allclose(R @ R.T, torch.eye(D).double(), atol=1e-6) and torch.linalg.det(R) > 0 and s > 0
        return (s * a @ R.T + t - b).square().sum().item() if rigid else math.inf

    def least(a: Tensor, b: Tensor) -> float:
        a, b = a - a.mean(0), b - b.mean(0)
        sigma = torch.linalg.svdvals(b.T @ a)
        sigma[-1] *= torch.linalg.det(b.T @ a).sign()
        return (b.square().sum() - sigma.sum() ** 2 / a.square().sum()).item()

    n, s, t = draw(rng, 8, 15), 0.5 + 2 * uniform(rng).item(), 10 * normal(rng, 3)
    a, R = normal(rng, n, 3) * torch.tensor([1.0, 2, 3]) + 5 * normal(rng, 3), turned(rng, 3)
    found = several(student.call("align", a, s * a @ R.T + t), 3)
    found = [torch.tensor(part).double() if isinstance(part, float) else part for part in found]
    yield same(found, [torch.tensor(s).double(), R, t], "a shape that fits exactly: scale, rotation and shift")
    for D, noise, mirrored, what in (
        (3, 0.4, False, "noise"), (3, 0.1, True, "a mirror image"), (2, 0.3, False, "points in the plane, with noise")
    ):  # fmt: skip
        a, R = normal(rng, n, D) * torch.arange(1, D + 1), turned(rng, D)
        b = 3 * (a * torch.tensor([-1.0] + [1.0] * (D - 1)) if mirrored else a) @ R.T + noise * 3 * normal(rng, n, D)
        mine, best = left(several(student.call("align", a, b), 3), a, b), least(a, b)
        yield holds(mine <= best * (1 + 1e-6) + 1e-9, f"{what}: a rotation, and the least sum of squares")


@exercise(points=4, needs=["homography"], forbids=["cv2.findHomography"])
def homography(student: Student, rng: torch.Generator):
    """Straighten a poster"""

    def sent(H: Tensor, points: Tensor) -> Tensor:
        p = torch.cat([points, torch.ones(len(points), 1).double()], 1) @ H.double().T
        return p[:, :2] / p[:, 2:]

    def drawn() -> Tensor:
        H = torch.eye(3).double() + 0.2 * normal(rng, 3, 3)
        H[:2, 2], H[2] = 300 * normal(rng, 2), torch.tensor([1e-4, -5e-5, 1]).double() * (1 + 0.3 * uniform(rng, 3))
        return H / H[2, 2]

    square = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]]).double()
    H, a = drawn(), 800 * square + 100 * uniform(rng, 4, 2)
    yield same(student.call("homography", a, sent(H, a)), H, "four pairs", tolerance=1e-6)
    H, a = drawn(), 1000 * uniform(rng, draw(rng, 9, 20), 2)
    yield same(student.call("homography", a, sent(H, a)), H, "many pairs without noise", tolerance=1e-6)
    # Noise, and pixels far from (0, 0): how far points in between are sent wrong, over several draws.
    mine, plain = [], []
    for _ in range(8):
        H, a = drawn(), 2000 + 400 * uniform(rng, 12, 2)
        b, fresh = sent(H, a) + 0.5 * normal(rng, 12, 2), 2000 + 400 * uniform(rng, 200, 2)
        found = student.call("homography", a, b)
        good = isinstance(found, Tensor) and found.shape == (3, 3)
        mine.append((sent(found, fresh) - sent(H, fresh)).norm(dim=1).mean().item() if good else math.inf)
        plain.append((sent(fitted(a, b), fresh) - sent(H, fresh)).norm(dim=1).mean().item())
    # Numbers that are not normalised are off by more than twice as much here.
    yield holds(
        sum(mine) <= 1.1 * sum(plain) + 1e-9, "noisy pairs far from (0, 0): as close as normalised equations come", 2
    )


def fitted(a: Tensor, b: Tensor) -> Tensor:
    """Hartley's normalised equations, both sets whitened by one number and a shift."""
    frames = []
    for points in (a, b):
        size = (points - points.mean(0)).norm(dim=1).mean() / 2**0.5
        frames.append(
            torch.tensor([[size, 0, points[:, 0].mean()], [0, size, points[:, 1].mean()], [0, 0, 1]]).double()
        )
    one = torch.ones(len(a), 1).double()
    p, q = (torch.linalg.solve(T, torch.cat([x, one], 1).T).T for T, x in zip(frames, (a, b), strict=True))
    # Of the cross product of b and H a, which is 0, the first two coordinates.
    crosses = [torch.tensor([[w, 0, -u], [0, w, -v]]) for u, v, w in q.tolist()]
    rows = [torch.kron(cross.double(), p[n : n + 1]) for n, cross in enumerate(crosses)]
    _, V = torch.linalg.eigh(sum(row.T @ row for row in rows))
    H = frames[1] @ V[:, 0].reshape(3, 3) @ torch.linalg.inv(frames[0])
    return H / H[2, 2]


@exercise(points=3, needs=["cloud"])
def cloud(student: Student, rng: torch.Generator):
    """From disparity to points in space"""
    H, W, baseline = draw(rng, 5, 8), draw(rng, 9, 12), 0.1 + uniform(rng).item()
    fx, fy, cx, cy = (400 + 300 * uniform(rng, 2)).tolist() + (5 * uniform(rng, 2)).tolist()
    K = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]).double()
    for doffs, what in ((0.0, "equal principal points"), (8 * uniform(rng).item() + 4, "with doffs")):
        disparity = 5 + 60 * uniform(rng, H, W)
        right = torch.empty(H, W, 3).double()
        for i in range(H):
            for j in range(W):
                Z = fx * baseline / (disparity[i, j] + doffs)
                right[i, j] = torch.stack([(j + 0.5 - cx) / fx * Z, (i + 0.5 - cy) / fy * Z, Z])
        found = student.call("cloud", disparity, K, baseline, doffs)
        yield same(found, right, what, tolerance=1e-6)
    disparity[0], disparity[1, :3] = -doffs, torch.tensor([math.inf, NAN, -2 * doffs]).double()
    disparity[2, 0] = -doffs / 2  # negative, and yet a measurement
    unknown = (~disparity.isfinite() | (disparity + doffs <= 0))[..., None].expand(H, W, 3)
    found = student.call("cloud", disparity, K, baseline, doffs)
    yield nan_where(found, unknown, "NaN where nothing was measured, and only there", 1)


@exercise(points=5, needs=["points_from_views", "reprojection_errors"],
          forbids=["course_lib.reconstruction.triangulate", "cv2.triangulatePoints"])  # fmt: skip
def views(student: Student, rng: torch.Generator):
    """Many points, each seen by some"""
    V, N = draw(rng, 4, 6), draw(rng, 9, 14)
    K = torch.tensor([[500.0, 0, 320], [0, 520, 240], [0, 0, 1]]).double()
    P = torch.empty(V, 3, 4).double()
    for k in range(V):
        t = torch.tensor([[k - 2.0], [0.3 * k], [9]]).double()
        P[k] = K @ torch.cat([torch.eye(3) + 0.1 * turned(rng, 3), t], 1)
    X = normal(rng, N, 3)
    x = torch.stack([torch.stack([(p @ torch.cat([point, torch.ones(1)]))[:2] for point in X]) for p in P])
    depth = torch.stack([torch.stack([p[2] @ torch.cat([point, torch.ones(1)]) for point in X]) for p in P])
    x = x / depth[..., None]
    everything = torch.ones(V, N, dtype=torch.bool)
    yield same(student.call("points_from_views", P, x, everything), X, "all seen by all", tolerance=1e-6)
    seen = torch.rand(V, N, generator=rng) < 0.6
    seen[:, :2], seen[:2, 2:] = False, True
    seen[1, 0] = True  # one view, none, and two at least
    hidden = torch.where(seen[..., None], x, NAN)
    hidden[2:] = torch.where(seen[2:, :, None], x[2:], 1e3)  # what is not seen holds anything
    unknown = torch.zeros(N, 3, dtype=torch.bool)
    unknown[:2] = True
    found = student.call("points_from_views", P, hidden, seen)
    yield same(known(found, unknown), torch.where(unknown, 0.0, X), "each seen by some", 1.5, 1e-6)
    yield nan_where(found, unknown, "NaN for points that fewer than two views saw, and only there", 0.5)
    moved = X + 0.2 * normal(rng, N, 3)
    right = torch.zeros(V, N).double()
    for v in range(V):
        for n in range(N):
            u = P[v] @ torch.cat([moved[n], torch.ones(1)])
            right[v, n] = math.dist((u[:2] / u[2]).tolist(), x[v, n].tolist())
    found = student.call("reprojection_errors", P, moved, hidden, seen)
    yield same(known(found, ~seen), torch.where(seen, right, 0.0), "reprojection errors", 1.5, 1e-6)
    yield nan_where(found, ~seen, "their NaN where a point was not seen, and only there", 0.5)


WATCHED = """
calls = []
def fit(a, b):
    calls.append(a[:, 0].tolist())
    return torch.linalg.lstsq(torch.cat([a, torch.ones_like(a[:, :1])], 1), b).solution
def errors(model, a, b):
    return (torch.cat([a, torch.ones_like(a[:, :1])], 1) @ model - b).norm(dim=1)
generator = torch.Generator().manual_seed(seed)
answer = ransac(a, b, fit, errors, 3, 1.0, rounds, generator)
calls = calls[:rounds + 1]
result = [list(answer), len(calls), [len(drawn) for drawn in calls], [len(set(drawn)) for drawn in calls]]
"""


@exercise(points=4, needs=["ransac"])
def ransac(student: Student, rng: torch.Generator):
    """Whom to believe"""
    n, rounds = draw(rng, 60, 90), draw(rng, 120, 160)
    a = 100 * uniform(rng, n, 2)
    b = a @ (torch.eye(2).double() + 0.3 * normal(rng, 2, 2)) + 20 * normal(rng, 2) + 0.02 * normal(rng, n, 2)
    true = torch.arange(n) % 2 == 0
    away = normal(rng, n, 2)
    b[~true] += ((20 + 60 * uniform(rng, n, 1)) * away / away.norm(dim=1, keepdim=True))[~true]
    right = torch.linalg.lstsq(torch.cat([a, torch.ones(n, 1)], 1)[true], b[true]).solution
    values = {"a": a, "b": b, "rounds": rounds, "seed": draw(rng, 0, 10**6)}
    found = several(student.evaluate(WATCHED, **values), 4)
    model, agree = several(found[0], 2)
    yield same(agree, true, f"half of {n} matches are wrong: which are right", 1.5)
    yield same(model, right, "the model of all that agree", 1.5, 1e-7)
    kept = [isinstance(part, list) and len(part) == rounds + 1 for part in found[2:]]
    samples = all(kept) and found[2][:-1] == [3] * rounds and found[3][:-1] == [3] * rounds
    yield holds(samples, f"{rounds} samples of three different matches, then all that agree")
