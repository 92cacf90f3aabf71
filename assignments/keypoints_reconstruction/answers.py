"""Solutions of the assignment on key points and reconstruction for the tests: right ones written differently, and wrong
ones as students write them, most of them these with one line changed.
"""

RIGHT = {
    "soft_argmax": """
def locate(logits, stride=1.0):
    B, K, h, w = logits.shape
    e = torch.exp(logits - logits.amax((2, 3), keepdim=True))
    p = e / e.sum((2, 3), keepdim=True)
    i, j = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    centres = stride * (torch.stack([j, i], -1).to(logits) + 0.5)
    mean = torch.einsum("bkij,ijc->bkc", p, centres)
    away = centres[None, None] - mean[:, :, None, None]
    return mean, torch.einsum("bkij,bkijc->bk", p, away**2) ** 0.5
""",
    "pck": """
def pck(found, truth, size, alpha=0.1):
    result = []
    for k in range(truth.shape[1]):
        labelled = truth[:, k, 2] > 0
        d = ((found[labelled, k] - truth[labelled, k, :2]) ** 2).sum(1).sqrt()
        result.append((d <= alpha * size[labelled]).float().mean())  # the mean of nothing is NaN
    return torch.stack(result)


def area_under_pck(found, truth, size, largest=0.2):
    total, count = 0.0, 0
    for n in range(len(truth)):
        for k in range(truth.shape[1]):
            if truth[n, k, 2] > 0:
                r = math.dist(found[n, k].tolist(), truth[n, k, :2].tolist()) / float(size[n])
                total, count = total + max(0.0, largest - r) / largest, count + 1
    return total / count
""",
    "align": """
def align(a, b):
    D = a.shape[1]
    ca, cb = a - a.mean(0, keepdim=True), b - b.mean(0, keepdim=True)
    V, sigma, Uh = torch.linalg.svd(ca.T @ cb)  # the transpose of the task's matrix
    S = torch.eye(D, dtype=a.dtype)
    if torch.linalg.det(V @ Uh) < 0:
        S[-1, -1] = -1
    R = Uh.T @ S @ V.T
    s = torch.trace(torch.diag(sigma) @ S) / (ca**2).sum()
    return s, R, b.mean(0) - s * (R @ a.mean(0))
""",
    "homography": """
def homography(a, b):
    def frame(points):
        x, y = points.mean(0).tolist()
        size = float((points - points.mean(0)).norm(dim=1).mean()) / 2**0.5
        return torch.tensor([[1 / size, 0, -x / size], [0, 1 / size, -y / size], [0, 0, 1]], dtype=points.dtype)

    Ta, Tb = frame(a), frame(b)
    rows = []
    for (x, y), (u, v) in zip(a.tolist(), b.tolist()):
        x, y, _ = (Ta @ torch.tensor([x, y, 1], dtype=a.dtype)).tolist()
        u, v, _ = (Tb @ torch.tensor([u, v, 1], dtype=a.dtype)).tolist()
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y, -u])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y, -v])
    h = torch.linalg.svd(torch.tensor(rows, dtype=a.dtype)).Vh[-1]
    H = torch.linalg.solve(Tb, h.reshape(3, 3)) @ Ta
    return H / H[2, 2]
""",
    "cloud": """
def cloud(disparity, K, baseline, doffs=0.0):
    height, width = disparity.shape
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    d = (disparity + doffs).clone()
    d[~torch.isfinite(d)] = torch.nan
    d[d <= 0] = torch.nan
    points = torch.empty(height, width, 3, dtype=disparity.dtype)
    points[..., 2] = fx * baseline / d
    points[..., 0] = (torch.arange(width) + 0.5 - cx) / fx * points[..., 2]
    points[..., 1] = (torch.arange(height)[:, None] + 0.5 - cy) / fy * points[..., 2]
    return points
""",
    "views": """
def points_from_views(P, x, seen):
    result = torch.full((x.shape[1], 3), torch.nan, dtype=P.dtype)
    for n in range(x.shape[1]):
        rows = []
        for v in range(len(P)):
            if seen[v, n]:
                rows += [x[v, n, 0] * P[v, 2] - P[v, 0], x[v, n, 1] * P[v, 2] - P[v, 1]]
        if len(rows) < 4:
            continue
        A = torch.stack(rows)
        X = torch.linalg.eigh(A.T @ A).eigenvectors[:, 0]
        result[n] = X[:3] / X[3]
    return result


def reprojection_errors(P, X, x, seen):
    result = torch.full(seen.shape, torch.nan, dtype=P.dtype)
    for v in range(len(P)):
        u = X @ P[v, :, :3].T + P[v, :, 3]
        distance = torch.hypot(u[:, 0] / u[:, 2] - x[v, :, 0], u[:, 1] / u[:, 2] - x[v, :, 1])
        result[v, seen[v]] = distance[seen[v]]
    return result
""",
    "ransac": """
def ransac(a, b, fit, errors, sample, threshold, rounds=200, rng=None):
    sets = []
    for _ in range(rounds):
        drawn = torch.randperm(len(a), generator=rng)[:sample]
        model = fit(a[drawn], b[drawn])
        sets.append(errors(model, a, b) <= threshold)
    believed = max(sets, key=lambda agree: int(agree.sum()))
    model = fit(a[believed], b[believed])
    return model, errors(model, a, b) <= threshold
""",
}


def but(name: str, old: str, new: str) -> str:
    """The right solution of an exercise with some text changed."""
    assert old in RIGHT[name], f"{name} has no {old!r}"
    return RIGHT[name].replace(old, new)


WRONG = {
    "soft_argmax": {
        "NaN for large logits": but("soft_argmax", "logits - logits.amax((2, 3), keepdim=True)", "logits"),
        "corners of cells": but("soft_argmax", " + 0.5)", ")"),
        "rows for x": but("soft_argmax", "[j, i]", "[i, j]"),
        "a softmax for each row": but("soft_argmax", "e.sum((2, 3), keepdim=True)", "e.sum(3, keepdim=True) / h"),
        "the variance": but("soft_argmax", " ** 0.5", ""),
        "the highest cell": but(
            "soft_argmax", "p = e / e.sum((2, 3), keepdim=True)", "p = (e == e.amax((2, 3), keepdim=True)).to(e)"
        ),
    },
    "pck": {
        "unlabelled points count": but("pck", "truth[:, k, 2] > 0", "truth[:, k, 2] > -1"),
        "hidden points are left out": but("pck", "truth[:, k, 2] > 0", "truth[:, k, 2] > 1"),
        "0 for NaN": but("pck", "torch.stack(result)", "torch.stack(result).nan_to_num(0)"),
        "size forgotten": but("pck", "alpha * size[labelled]", "alpha * 100"),
        "nearer than the limit": but("pck", "d <= alpha", "d < alpha"),
        "negative beyond the largest": but("pck", "max(0.0, largest - r)", "(largest - r)"),
        "a mean over all points": but("pck", "return total / count", "return total / truth[..., 0].numel()"),
    },
    "align": {
        "mirrors": but("align", "if torch.linalg.det(V @ Uh) < 0", "if False"),
        "the scale as if it did not mirror": but("align", "torch.trace(torch.diag(sigma) @ S)", "sigma.sum()"),
        "the scale from lengths": but(
            "align", "torch.trace(torch.diag(sigma) @ S) / (ca**2).sum()", "cb.norm() / ca.norm()"
        ),
        "transposed": but("align", "R = Uh.T @ S @ V.T", "R = (Uh.T @ S @ V.T).T"),
        "not centred": but("align", "a - a.mean(0, keepdim=True), b - b.mean(0, keepdim=True)", "a, b"),
        "the shift not turned": but("align", "s * (R @ a.mean(0))", "a.mean(0)"),
    },
    "homography": {
        "not normalised": but("homography", "Ta, Tb = frame(a), frame(b)", "Ta = Tb = torch.eye(3, dtype=a.dtype)"),
        "the way back": but("homography", "return H / H[2, 2]", "H = torch.linalg.inv(H)\n    return H / H[2, 2]"),
        "not divided": but("homography", "return H / H[2, 2]", "return H"),
        "affine": but("homography", "-u * x, -u * y, -u]", "0, 0, -u]").replace("-v * x, -v * y, -v]", "0, 0, -v]"),
        "the frames exchanged": but(
            "homography", "torch.linalg.solve(Tb, h.reshape(3, 3)) @ Ta", "torch.linalg.inv(Ta) @ h.reshape(3, 3) @ Tb"
        ),
        "the largest singular value": but("homography", "Vh[-1]", "Vh[0]"),
    },
    "cloud": {
        "doffs forgotten": but("cloud", "disparity + doffs", "disparity"),
        "doffs subtracted": but("cloud", "disparity + doffs", "disparity - doffs"),
        "corners of pixels": but("cloud", " + 0.5", ""),
        "infinitely far": but("cloud", "    d[d <= 0] = torch.nan\n", ""),
        "at the camera": but("cloud", "= torch.nan", "= torch.inf"),
        "x and y exchanged": but("cloud", "return points", "return points[..., [1, 0, 2]]"),
        "only Z is unknown": but(
            "cloud", "return points", "points[..., :2] = points[..., :2].nan_to_num(0)\n    return points"
        ),
    },
    "views": {
        "hidden views times zero": """
def points_from_views(P, x, seen):
    rows = (x[..., None] * P[:, None, 2:] - P[:, None, :2]) * seen[..., None, None]
    X = torch.linalg.svd(rows.nan_to_num(0).movedim(1, 0).flatten(1, 2))[2][:, -1]
    return X[:, :3] / X[:, 3:]


def reprojection_errors(P, X, x, seen):
    p = torch.cat([X, torch.ones_like(X[:, :1])], 1) @ P.mT
    return (p[..., :2] / p[..., 2:] - x).norm(dim=-1) * seen
""",
        "everybody saw everything": but("views", "if seen[v, n]:", "if not x[v, n].isnan().any():"),
        "not divided": but("views", "result[n] = X[:3] / X[3]", "result[n] = X[:3]"),
        "the largest singular value": but("views", "eigenvectors[:, 0]", "eigenvectors[:, -1]"),
        "one view is enough": but("views", "len(rows) < 4", "len(rows) < 2"),
        "squared errors": but(
            "views", "result[v, seen[v]] = distance[seen[v]]", "result[v, seen[v]] = distance[seen[v]] ** 2"
        ),
        "not seen is no error": but(
            "views", "torch.full(seen.shape, torch.nan, dtype=P.dtype)", "torch.zeros(seen.shape, dtype=P.dtype)"
        ),
    },
    "ransac": {
        "no last fit": but(
            "ransac",
            "        sets.append(errors(model, a, b) <= threshold)",
            "        sets.append((errors(model, a, b) <= threshold, model))",
        )
        .replace("lambda agree: int(agree.sum())", "lambda found: int(found[0].sum())")
        .replace(
            "    model = fit(a[believed], b[believed])\n    return model, errors(model, a, b) <= threshold",
            "    return believed[1], believed[0]",
        ),
        "everybody": """
def ransac(a, b, fit, errors, sample, threshold, rounds=200, rng=None):
    model = fit(a, b)
    return model, errors(model, a, b) <= threshold
""",
        "drawn with replacement": but(
            "ransac",
            "torch.randperm(len(a), generator=rng)[:sample]",
            "torch.randint(len(a), (sample,), generator=rng)",
        ),
        "whoever ever agreed": but(
            "ransac", "max(sets, key=lambda agree: int(agree.sum()))", "torch.stack(sets).any(0)"
        ),
        "always ten rounds": but("ransac", "range(rounds)", "range(10)"),
    },
}
