"""Answers to the turns of lesson 13: two wrong ones of the kind students give, and a right one written differently."""

import torch


def triangulate_wrong_1(P, x):
    """The largest singular value."""
    A = (x[:, :, None] * P[:, 2:] - P[:, :2]).flatten(0, 1)
    X = torch.linalg.svd(A)[2][0]
    return X[:3] / X[3]


def triangulate_wrong_2(P, x):
    """Not divided by the last coordinate."""
    A = (x[:, :, None] * P[:, 2:] - P[:, :2]).flatten(0, 1)
    return torch.linalg.svd(A)[2][-1][:3]


def triangulate_other(P, x):
    """The smallest eigenvector of AᵀA, with a loop over views."""
    rows = []
    for p, (u, v) in zip(P, x, strict=True):
        rows += [u * p[2] - p[0], v * p[2] - p[1]]
    A = torch.stack(rows)
    A = A / A.norm(dim=1, keepdim=True)
    X = torch.linalg.eigh(A.T @ A)[1][:, 0]
    return X[:3] / X[3]


# --- path_step


def path_step_wrong_1(C, before, P1, P2):
    """Rolled, so that the ends touch."""
    least = before.amin(0)
    ways = [before, before.roll(1, 0) + P1, before.roll(-1, 0) + P1, (least + P2).expand_as(before)]
    return C + torch.stack(ways).amin(0) - least


def path_step_wrong_2(C, before, P1, P2):
    """Without the last term."""
    best = torch.minimum(before, before.amin(0) + P2)
    best[1:] = torch.minimum(best[1:], before[:-1] + P1)
    best[:-1] = torch.minimum(best[:-1], before[1:] + P1)
    return C + best


def path_step_other(C, before, P1, P2):
    """Padded by infinity."""
    padded = torch.nn.functional.pad(before, (0, 0, 1, 1), value=torch.inf)
    ways = [before, padded[:-2] + P1, padded[2:] + P1, (before.amin(0) + P2).expand_as(before)]
    return C + torch.stack(ways).amin(0) - before.amin(0)


# --- carve


def _lookups(X, masks, cameras):
    for mask, camera in zip(masks, cameras, strict=True):
        H, W = mask.shape
        x, depth = camera.project(X)
        column, row = x.nan_to_num(-1).floor().long().unbind(1)
        inside = (depth > 0) & (column >= 0) & (column < W) & (row >= 0) & (row < H)
        yield mask, column.clamp(0, W - 1), row.clamp(0, H - 1), inside


def carve_wrong_1(X, masks, cameras):
    """Row and column exchanged."""
    left = torch.ones(len(X), dtype=torch.bool)
    for mask, column, row, inside in _lookups(X, masks, cameras):
        left &= ~inside | (mask[column, row] > 0.5)
    return left


def carve_wrong_2(X, masks, cameras):
    """What is outside of an image is carved by it."""
    left = torch.ones(len(X), dtype=torch.bool)
    for mask, column, row, inside in _lookups(X, masks, cameras):
        left &= inside & (mask[row, column] > 0.5)
    return left


def carve_other(X, masks, cameras):
    """Votes against."""
    against = torch.zeros(len(X))
    for mask, column, row, inside in _lookups(X, masks, cameras):
        against += inside * (1 - mask[row, column])
    return against == 0


# --- ray_weights


def ray_weights_wrong_1(sigma, delta):
    """The light has already passed the piece itself."""
    absorbed = sigma * delta
    return torch.exp(-absorbed.cumsum(-1)) * (1 - torch.exp(-absorbed))


def ray_weights_wrong_2(sigma, delta):
    """Lengths forgotten in the transmittance."""
    T = torch.exp(-(sigma.cumsum(-1) - sigma))
    return T * (1 - torch.exp(-sigma * delta))


def ray_weights_other(sigma, delta):
    """A product of what each piece lets through."""
    alpha = -torch.expm1(-sigma * delta)
    T = torch.cumprod(torch.cat([torch.ones_like(alpha[..., :1]), 1 - alpha[..., :-1]], -1), -1)
    return alpha * T


# --- flatten


def _flattened(mean, Sigma, camera, J):
    return J @ camera.R @ Sigma @ camera.R.T @ J.T


def flatten_wrong_1(mean, Sigma, camera):
    """Without the third column: as if depth did not matter."""
    X, Y, Z = camera.R @ mean + camera.t
    J = torch.zeros(2, 3)
    J[0, 0], J[1, 1] = camera.K[0, 0] / Z, camera.K[1, 1] / Z
    J[0, 2], J[1, 2] = camera.K[0, 0] * X / Z, camera.K[1, 1] * Y / Z
    return _flattened(mean, Sigma, camera, J)


def flatten_wrong_2(mean, Sigma, camera):
    """The rotation forgotten."""
    X, Y, Z = camera.R @ mean + camera.t
    fx, fy = camera.K[0, 0], camera.K[1, 1]
    J = torch.tensor([[fx / Z, 0, -fx * X / Z**2], [0, fy / Z, -fy * Y / Z**2]])
    return J @ Sigma @ J.T


def flatten_other(mean, Sigma, camera):
    """The derivative by torch, of the whole way from the world to the pixel."""
    J = torch.func.jacrev(lambda X: camera.project(X[None])[0][0])(mean)
    return J @ Sigma @ J.T
