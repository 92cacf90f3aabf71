"""Two views of unknown pose: the fundamental and the essential matrix, RANSAC, the pose, and bundle adjustment.

For a world point seen at x₁ and x₂, in pixels with a third coordinate of 1, x₂ᵀ F x₁ = 0: x₂ lies on the epipolar line
F x₁. With the intrinsics, E = K₂ᵀ F K₁ = [t]ₓ R says how the second camera stands to the first; the length of t cannot
be known. After Hartley & Zisserman, *Multiple View Geometry*, 2004 (HZ).
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from course_lib.reconstruction.cameras import Camera, triangulate

DEGENERATE = 1e-7  # of the largest singular value: an eighth below it leaves more than one solution


def homogeneous(x: Tensor) -> Tensor:
    """(..., n) → (..., n + 1), with a last coordinate of 1."""
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


def cross_matrix(t: Tensor) -> Tensor:
    """[t]ₓ (..., 3, 3), with [t]ₓ v = t × v, of t (..., 3)."""
    zero = torch.zeros_like(t[..., 0])
    a, b, c = t.unbind(-1)
    return torch.stack([zero, -c, b, c, zero, -a, -b, a, zero], -1).unflatten(-1, (3, 3))


def rotation(omega: Tensor) -> Tensor:
    """The rotation (3, 3) about the axis omega (3,) by |omega| radians: Rodrigues' formula, as a matrix exponential."""
    return torch.linalg.matrix_exp(cross_matrix(omega))


def _check_pairs(x1: Tensor, x2: Tensor, least: int) -> None:
    if x1.ndim < 2 or x1.shape != x2.shape or x1.shape[-1] != 2 or x1.shape[-2] < least:
        shapes = f"{tuple(x1.shape)} and {tuple(x2.shape)}"
        raise ValueError(f"expected at least {least} pairs of pixels, (N, 2) and (N, 2); got {shapes}")
    if not (x1.isfinite().all() and x2.isfinite().all()):
        raise ValueError("expected finite pixels; is a point behind a camera?")


def _normalisation(x: Tensor) -> Tensor:
    """T (..., 3, 3) that moves pixels (..., N, 2) to a mean of 0 and a mean distance of √2 from it."""
    mean = x.mean(-2, keepdim=True)
    scale = math.sqrt(2) / (x - mean).norm(dim=-1).mean(-1).clamp_min(1e-12)
    T = torch.eye(3).to(x).repeat(*x.shape[:-2], 1, 1)
    T[..., 0, 0] = T[..., 1, 1] = scale
    T[..., :2, 2] = -scale[..., None] * mean[..., 0, :]
    return T


def _eight_point(x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    """F (..., 3, 3) of batches of pairs, and whether it is determined (...)."""
    T1, T2 = _normalisation(x1), _normalisation(x2)
    p1, p2 = (homogeneous(x) @ T.mT for x, T in ((x1, T1), (x2, T2)))
    A = (p2[..., :, None] * p1[..., None, :]).flatten(-2)  # x₂ᵀ F x₁ = 0, linear in F: (..., N, 9)
    _, S, Vh = torch.linalg.svd(A)
    F = Vh[..., -1, :].unflatten(-1, (3, 3))
    U, D, V = torch.linalg.svd(F)  # all epipolar lines meet in one point: rank 2
    F = (U * (D * D.new_tensor([1, 1, 0]))[..., None, :]) @ V
    F = T2.mT @ F @ T1
    F = F / torch.linalg.matrix_norm(F)[..., None, None].clamp_min(1e-30)
    return F, S[..., 7] > DEGENERATE * S[..., 0]


def eight_point(x1: Tensor, x2: Tensor) -> Tensor:
    """The fundamental matrix by the normalised eight-point algorithm (Hartley 1997; HZ algorithm 11.1).

    Args:
        x1, x2: pixels of the same points in the two images, (N, 2), N ≥ 8, without outliers; float64 is advisable.

    Returns:
        F (3, 3), of rank 2 and Frobenius norm 1, with x₂ᵀ F x₁ = 0; its sign means nothing.

    Raises:
        ValueError: fewer pairs, NaN, or pairs that leave F open: points on a line or a plane, equal cameras, or
            cameras at one point.
    """
    _check_pairs(x1, x2, 8)
    F, determined = _eight_point(x1, x2)
    if not determined:
        raise ValueError("these pairs do not determine F: points on a line or a plane, or cameras at one point")
    return F


def epipolar_lines(F: Tensor, x1: Tensor) -> Tensor:
    """The lines (N, 3) in the second image for pixels x1 (N, 2): a x + b y + c = 0 with a² + b² = 1."""
    lines = homogeneous(x1) @ F.mT
    return lines / lines[..., :2].norm(dim=-1, keepdim=True).clamp_min(1e-30)


def sampson_distance(F: Tensor, x1: Tensor, x2: Tensor) -> Tensor:
    """How far pairs are from fulfilling x₂ᵀ F x₁ = 0, in pixels: the first order of the reprojection error (HZ 11.4.3).

    Args:
        F: (..., 3, 3).
        x1, x2: (N, 2).

    Returns:
        (..., N), ≥ 0.
    """
    p1, p2 = homogeneous(x1), homogeneous(x2)
    Fp1, Fp2 = p1 @ F.mT, p2 @ F
    error = (p2 * Fp1).sum(-1).abs()
    return error / (Fp1[..., :2].square().sum(-1) + Fp2[..., :2].square().sum(-1)).sqrt().clamp_min(1e-30)


def ransac(
    x1: Tensor,
    x2: Tensor,
    rng: torch.Generator,
    *,
    threshold: float = 1.0,
    confidence: float = 0.999,
    most: int = 20_000,
) -> tuple[Tensor, Tensor]:
    """The fundamental matrix from pairs of which some are wrong (Fischler & Bolles 1981).

    Eight random pairs give a candidate; the one that most pairs agree with wins, and is fitted again to all of these.
    Drawing ends when eight right pairs were among the draws with the wanted confidence, by the best candidate's
    proportion of inliers. Draws are made 256 at a time.

    Args:
        x1, x2: pixels (N, 2), N ≥ 8.
        rng: on the CPU.
        threshold: Sampson distance of an inlier, in pixels.
        confidence: in (0, 1).
        most: draws, at most.

    Returns:
        F (3, 3), and which pairs are inliers, (N,) bool.

    Raises:
        ValueError: as `eight_point`, or no candidate with eight inliers.
    """
    _check_pairs(x1, x2, 8)
    best, inliers, drawn, needed = -1, None, 0, float(most)
    while drawn < min(needed, most):
        chosen = torch.rand(256, len(x1), generator=rng).argsort(1)[:, :8].to(x1.device)
        F, determined = _eight_point(x1[chosen], x2[chosen])
        agree = (sampson_distance(F, x1, x2) < threshold) & determined[:, None]
        count, index = agree.sum(1).max(0)
        drawn += 256
        if count > best:
            best, inliers = int(count), agree[index]
            right = max((best / len(x1)) ** 8, 1e-12)  # the probability that all eight are
            needed = math.log(1 - confidence) / math.log1p(-right) if right < 1 else 0
    if best < 8:
        raise ValueError("no eight pairs agree on one F within the threshold; or all candidates are degenerate")
    for _ in range(3):  # the fit to all inliers has others, a few times
        F = eight_point(x1[inliers], x2[inliers])
        agree = sampson_distance(F, x1, x2) < threshold
        if agree.sum() < 8 or torch.equal(agree, inliers):
            break
        inliers = agree
    return F, inliers


def essential_from_fundamental(F: Tensor, K1: Tensor, K2: Tensor) -> Tensor:
    """E = K₂ᵀ F K₁ with singular values (1, 1, 0), the nearest that a pose can have; (3, 3)."""
    U, _, Vh = torch.linalg.svd(K2.T @ F @ K1)
    return U @ torch.diag(F.new_tensor([1, 1, 0])) @ Vh


def poses_of(E: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The four poses (R, t) of the second camera that an essential matrix allows, |t| = 1 (HZ 9.6.2)."""
    U, _, Vh = torch.linalg.svd(E)
    U, Vh = U * torch.linalg.det(U), Vh * torch.linalg.det(Vh)
    W = E.new_tensor([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    return [(U @ turn @ Vh, sign * U[:, 2]) for turn in (W, W.T) for sign in (1, -1)]


def relative_pose(E: Tensor, x1: Tensor, x2: Tensor, K1: Tensor, K2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The pose of the second camera, the first being (I, 0), by the cheirality test: points lie in front of both.

    Args:
        E: essential matrix (3, 3).
        x1, x2: inliers, pixels (N, 2).
        K1, K2: intrinsics (3, 3).

    Returns:
        R (3, 3), t (3,) of length 1, and the points X (N, 3), in the first camera's frame.

    Raises:
        ValueError: no pose has most of the points in front of both cameras.
    """
    _check_pairs(x1, x2, 1)
    x, first = torch.stack([x1, x2]), K1 @ torch.eye(3, 4).to(K1)
    found = []
    for R, t in poses_of(E):
        X = triangulate(torch.stack([first, K2 @ torch.cat([R, t[:, None]], 1)]), x)
        in_front = (X[:, 2] > 0) & ((X @ R.T + t)[:, 2] > 0)
        found.append((int(in_front.sum()), R, t, X))
    count, R, t, X = max(found, key=lambda each: each[0])
    if count <= len(x1) / 2:
        raise ValueError(f"no pose has most of the points in front of both cameras: {count} of {len(x1)} at best")
    return R, t, X


@dataclass(frozen=True)
class Bundle:
    """What bundle adjustment found: cameras, points (N, 3), and the root mean square error in pixels of each step."""

    cameras: list[Camera]
    points: Tensor
    errors: list[float]


def bundle_adjust(cameras: list[Camera], X: Tensor, x: Tensor, seen: Tensor | None = None, steps: int = 10) -> Bundle:
    """Move cameras and points together until the squared reprojection error is least (Levenberg–Marquardt; HZ A6).

    The first camera stays, which leaves the scale open: the damping decides it. All equations are solved at once, so
    this is for some cameras and hundreds of points. Larger problems use that H is nearly block diagonal.

    Args:
        cameras: V of them, roughly right; their K stay.
        X: points (N, 3), roughly right, before all the cameras that see them; float64 is advisable.
        x: pixels (V, N, 2).
        seen: which points a view sees, (V, N) bool; None: all.
        steps: of Levenberg–Marquardt.

    Raises:
        ValueError: other shapes; fewer than two cameras; pixels or points that are not finite; a point that no two
            cameras see, or that starts behind one that sees it.
    """
    V, N = len(cameras), len(X)
    seen = torch.ones(V, N, dtype=torch.bool, device=X.device) if seen is None else seen
    _check_bundle(cameras, X, x, seen)
    K = torch.stack([camera.K for camera in cameras]).to(X)
    R = torch.stack([camera.R for camera in cameras]).to(X)
    t = torch.stack([camera.t for camera in cameras]).to(X)
    target = x[seen]

    def moved(p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        turns, shifts = (torch.cat([p.new_zeros(1, 3), part.view(-1, 3)]) for part in p[: 6 * (V - 1)].chunk(2))
        return torch.linalg.matrix_exp(cross_matrix(turns)) @ R, t + shifts, X + p[6 * (V - 1) :].view(N, 3)

    def residuals(p: Tensor) -> Tensor:
        Rs, ts, Xs = moved(p)
        h = (torch.einsum("vij,nj->vni", Rs, Xs) + ts[:, None]) @ K.mT
        return ((h[..., :2] / h[..., 2:])[seen] - target).flatten()

    p, damping = X.new_zeros(6 * (V - 1) + 3 * N), 1e-3
    r = residuals(p)
    errors = [float((2 * r.square().mean()).sqrt())]
    for _ in range(steps):
        J = torch.func.jacrev(residuals, chunk_size=256)(p)
        H, g = J.T @ J, J.T @ r
        for _ in range(8):  # a step that raises the error is taken back, and damped ten times more
            tried = p - torch.linalg.solve(H + damping * torch.diag(H.diagonal() + 1e-12 * H.diagonal().max()), g)
            error = residuals(tried)
            if error.square().sum() < r.square().sum():
                p, r, damping = tried, error, damping / 10
                break
            damping *= 10
        errors.append(float((2 * r.square().mean()).sqrt()))
    Rs, ts, Xs = moved(p)
    placed = [replace(camera, K=K_, R=R_, t=t_) for camera, K_, R_, t_ in zip(cameras, K, Rs, ts, strict=True)]
    return Bundle(placed, Xs, errors)


def _check_bundle(cameras: list[Camera], X: Tensor, x: Tensor, seen: Tensor) -> None:
    V, N = len(cameras), len(X)
    if V < 2 or X.shape != (N, 3) or x.shape != (V, N, 2) or seen.shape != (V, N) or seen.dtype != torch.bool:
        shapes = f"{tuple(X.shape)}, {tuple(x.shape)}, {tuple(seen.shape)}"
        raise ValueError(f"expected {V} ≥ 2 cameras, X (N, 3), x (V, N, 2), seen (V, N) bool; got {shapes}")
    if not (X.isfinite().all() and x[seen].isfinite().all()):
        raise ValueError("expected finite points and pixels")
    if (seen.sum(0) < 2).any():
        raise ValueError(f"point {int((seen.sum(0) < 2).nonzero()[0])} is seen by fewer than two cameras")
    for view, camera in enumerate(cameras):
        depth = (X @ camera.R.to(X).T + camera.t.to(X))[:, 2]
        if (depth[seen[view]] <= 0).any():
            raise ValueError(f"a point lies behind camera {view}, which sees it")
