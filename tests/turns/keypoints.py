"""Answers to the turns of lesson 12: of each piece two wrong ones of the kind students give, and another right one."""

import torch


def encode_other(points, size, sigma, stride):
    H, W = size
    maps = torch.zeros(len(points), H // stride, W // stride, dtype=points.dtype)
    for k, (x, y) in enumerate(points.tolist()):
        for i in range(H // stride):
            for j in range(W // stride):
                d2 = (j - (x / stride - 0.5)) ** 2 + (i - (y / stride - 0.5)) ** 2
                maps[k, i, j] = torch.tensor(-d2 / (2 * sigma**2), dtype=points.dtype).exp()
    return maps


def encode_wrong_1(points, size, sigma, stride):
    """The point is rounded to the middle of its cell."""
    return encode_other((points / stride).floor() * stride + stride / 2, size, sigma, stride)


def encode_wrong_2(points, size, sigma, stride):
    """x counts rows."""
    return encode_other(points.flip(-1), size, sigma, stride)


def parabola_other(before, middle, after):
    """The root of the derivative of the polynomial through −1, 0 and 1."""
    a, b, c = before.log(), middle.log(), after.log()
    second, first = a + c - 2 * b, (c - a) / 2
    return -first / second


def parabola_wrong_1(before, middle, after):
    """Without the logarithm."""
    return (before - after) / (2 * (before - 2 * middle + after))


def parabola_wrong_2(before, middle, after):
    """The sign."""
    return -parabola_other(before, middle, after)


def inverse_other(A):
    last = torch.tensor([0.0, 0, 1], dtype=A.dtype).expand(len(A), 1, 3)
    return torch.linalg.inv(torch.cat([A, last], 1))[:, :2]


def inverse_wrong_1(A):
    """The shift is only turned round, not taken through M⁻¹."""
    return torch.cat([torch.linalg.inv(A[..., :2]), -A[..., 2:]], -1)


def inverse_wrong_2(A):
    """The transpose: right for turns, not for enlargements."""
    back = A[..., :2].mT
    return torch.cat([back, -back @ A[..., 2:]], -1)


def heatmap_loss_other(predicted, truth, size):
    from course_lib import keypoints

    losses = []
    for maps, points in zip(predicted, truth, strict=True):
        for own, (x, y, visible) in zip(maps, points, strict=True):
            if visible > 0:
                wanted = keypoints.encode(torch.stack([x, y])[None], size)[0]
                losses.append((own - wanted).square().sum())
    return torch.stack(losses).mean() if losses else 0 * predicted.sum()


def heatmap_loss_wrong_1(predicted, truth, size):
    """Points that nobody labelled are learnt at (0, 0)."""
    return heatmap_loss_other(predicted, torch.cat([truth[..., :2], torch.ones_like(truth[..., 2:])], -1), size)


def heatmap_loss_wrong_2(predicted, truth, size):
    """Hidden points are left out, too."""
    seen = truth[..., 2:] == 2
    return heatmap_loss_other(predicted, truth * seen, size)


def oks_other(found, truth, area, spread):
    total, labelled = 0.0, 0
    for (x, y), (u, v, visible), k in zip(found, truth, spread, strict=True):
        if visible > 0:
            total = total + torch.exp(-((x - u) ** 2 + (y - v) ** 2) / (8 * area * k**2))
            labelled += 1
    return total / labelled


def oks_wrong_1(found, truth, area, spread):
    """A mean over all points, labelled or not."""
    d2 = (found - truth[:, :2]).square().sum(-1)
    similar = torch.exp(-d2 / (8 * area * spread**2)) * (truth[:, 2] > 0)
    return similar.mean()


def oks_wrong_2(found, truth, area, spread):
    """The area is taken for a length."""
    d2 = (found - truth[:, :2]).square().sum(-1)
    return torch.exp(-d2 / (8 * area**2 * spread**2))[truth[:, 2] > 0].mean()
