"""Depth from two rectified images: how far a pixel moves from the left image to the right, its disparity.

Census transform, matching costs, semi-global matching along 8 paths, and what is done to the answer: sub-pixel minima,
the left–right check, and filling what only one eye sees. A cost volume is (D, H, W): what it costs to say that the left
pixel (y, x) is the right pixel (y, x − d). Hirschmüller, *Stereo Processing by Semiglobal Matching and Mutual
Information*, PAMI 2008.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage, sparse
from torch import Tensor
from tqdm.auto import tqdm

from course_lib.base.runtime import wide


@dataclass(frozen=True)
class StereoPair:
    """Two rectified images, and the truth where it is known.

    Attributes:
        left, right: (3, H, W) float32 in [0, 1].
        disparity: (H, W) float32, in pixels: the left pixel (y, x) is the right pixel (y, x − disparity); NaN where
            nobody knows.
        focal: in pixels.
        baseline: distance of the cameras, in metres.
        centre: the left principal point (x, y), in pixels from the image's corner.
        offset: by how many pixels the right principal point lies to the right of the left one.
    """

    left: Tensor
    right: Tensor
    disparity: Tensor
    focal: float
    baseline: float
    centre: tuple[float, float]
    offset: float

    def depth(self, disparity: Tensor) -> Tensor:
        """Metres along the axis, f · baseline / (disparity + offset); infinite where that is not above 0."""
        d = disparity + self.offset
        return torch.where(d > 0, self.focal * self.baseline / d, torch.inf)

    def points(self, disparity: Tensor) -> tuple[Tensor, Tensor]:
        """The coloured point cloud: (N, 3) in metres, X right, Y down, Z forward, and (N, 3) in [0, 1]; without NaN."""
        H, W = disparity.shape
        Z = self.depth(disparity)
        y, x = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
        x, y = (x.to(Z) - self.centre[0]) / self.focal, (y.to(Z) - self.centre[1]) / self.focal
        known = Z.isfinite()
        return torch.stack([x * Z, y * Z, Z], -1)[known], self.left.movedim(0, -1)[known]


def load_motorcycle() -> StereoPair:
    """The motorcycle of Middlebury 2014 (Scharstein et al., GCPR 2014), 500×741, from scikit-image's wheel.

    The calibration is that of scikit-image's documentation.
    """
    from skimage import data

    left, right, disparity = data.stereo_motorcycle()
    images = [torch.from_numpy(np.ascontiguousarray(a)).movedim(-1, 0).float() / 255 for a in (left, right)]
    true = torch.from_numpy(np.asarray(disparity, dtype=np.float32))
    true = torch.where(true.isfinite(), true, torch.nan)
    return StereoPair(*images, true, 994.978, 0.193001, (311.193 + 0.5, 254.877 + 0.5), 31.086)


def _check_pair(left: Tensor, right: Tensor) -> None:
    if left.ndim != 3 or left.shape != right.shape or left.shape[0] not in (1, 3):
        raise ValueError(f"expected two images (C, H, W) of one size; got {tuple(left.shape)} and {tuple(right.shape)}")
    if not (left.is_floating_point() and right.is_floating_point()):
        raise TypeError(f"expected floats in [0, 1]; got {left.dtype} and {right.dtype}")


def census(grey: Tensor, window: tuple[int, int] = (5, 5)) -> Tensor:
    """Census transform (Zabih & Woodfill 1994): a bit for each neighbour, 1 where it is darker than the pixel.

    What the two cameras' exposures do to brightness does not change it. Beyond the border the image is repeated.

    Args:
        grey: (H, W).
        window: height and width, odd, of at most 64 pixels, so that the bits of all but the middle fit into int64.

    Returns:
        (H, W) int64.

    Raises:
        ValueError: another shape, or a window that is even, 1×1 or too large.
    """
    h, w = window
    if grey.ndim != 2 or h % 2 == 0 or w % 2 == 0 or not 1 < h * w <= 64:
        raise ValueError(
            f"expected (H, W) and odd sides of at most 64 pixels in all; got {tuple(grey.shape)}, {window}"
        )
    (H, W), grey = grey.shape, wide(grey)
    padded = F.pad(grey[None, None], (w // 2, w // 2, h // 2, h // 2), mode="replicate")[0, 0]
    bits = torch.zeros(H, W, dtype=torch.int64, device=grey.device)
    for i in range(h):
        for j in range(w):
            if (i, j) != (h // 2, w // 2):
                bits = (bits << 1) | (padded[i : i + H, j : j + W] < grey)
    return bits


def count_bits(words: Tensor) -> Tensor:
    """How many bits of each int64 ≥ 0 are 1, by adding neighbouring bits, pairs, fours, in parallel."""
    words = words - ((words >> 1) & 0x5555555555555555)
    words = (words & 0x3333333333333333) + ((words >> 2) & 0x3333333333333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F0F0F0F0F
    words = words + (words >> 8)
    words = words + (words >> 16)
    return (words + (words >> 32)) & 0x7F


def matching_cost(left: Tensor, right: Tensor, disparities: int, window: tuple[int, int] = (5, 5)) -> Tensor:
    """Hamming distances of census codes, for disparities 0 … D − 1.

    Where x − d lies outside of the right image, the cost is that of unrelated pixels, half the bits.

    Args:
        left, right: (C, H, W) floats, C of 1 or 3.
        disparities: D, from 1 to W.
        window: of the census.

    Returns:
        (D, H, W) float32.

    Raises:
        ValueError: images of different sizes, or D outside 1 … W.
        TypeError: images that are not floats.
    """
    _check_pair(left, right)
    _, H, W = left.shape
    if not 1 <= disparities <= W:
        raise ValueError(f"expected 1 to {W} disparities; got {disparities}")
    a, b = census(left.mean(0), window), census(right.mean(0), window)
    cost = torch.full((disparities, H, W), (window[0] * window[1] - 1) / 2, device=left.device)
    for d in range(disparities):
        cost[d, :, d:] = count_bits(a[:, d:] ^ b[:, : W - d])
    return cost


def block_mean(cost: Tensor, side: int) -> Tensor:
    """Block matching: the mean cost in a window of `side`×`side` pixels, odd; (D, H, W)."""
    if side < 1 or side % 2 == 0:
        raise ValueError(f"expected an odd side; got {side}")
    return F.avg_pool2d(cost[None], side, stride=1, padding=side // 2, count_include_pad=False)[0]


def path_step(cost: Tensor, before: Tensor, P1: float, P2: Tensor | float) -> Tensor:
    """One step along a path, Hirschmüller's equation 13.

    L(d) = C(d) + min( L'(d), L'(d − 1) + P1, L'(d + 1) + P1, min L' + P2 ) − min L'

    Args:
        cost: C of these pixels, (D, ...).
        before: L' of the pixels before them on the path, (D, ...).
        P1: for a disparity that changes by 1.
        P2: for a larger change; a number or (...).

    Returns:
        L, (D, ...).
    """
    least = before.amin(0)
    best = torch.minimum(before, (least + P2)[None])
    best[1:] = torch.minimum(best[1:], before[:-1] + P1)
    best[:-1] = torch.minimum(best[:-1], before[1:] + P1)
    return cost + best - least


def semi_global_matching(cost: Tensor, grey: Tensor, P1: float = 1.0, P2: float = 10.0, paths: int = 8) -> Tensor:
    """The sum of the costs along 8 (or 4) paths that arrive at each pixel.

    P2 is divided by 1 + 20 |step of grey|, since depth often jumps where the image does; but it never falls below
    1.5 · P1.

    Args:
        cost: (D, H, W).
        grey: the left image, (H, W) in [0, 1].
        P1, P2: penalties, in units of the cost.
        paths: 4, along rows and columns, or 8, along diagonals, too.

    Returns:
        (D, H, W).

    Raises:
        ValueError: another number of paths, shapes that do not fit, or not 0 ≤ P1 ≤ P2.
    """
    if paths not in (4, 8) or cost.ndim != 3 or grey.shape != cost.shape[1:] or not 0 <= P1 <= P2:
        raise ValueError(
            f"expected 4 or 8 paths, cost (D, H, W), grey (H, W), 0 ≤ P1 ≤ P2; "
            f"got {paths}, {tuple(cost.shape)}, {tuple(grey.shape)}, {P1}, {P2}"
        )
    total = torch.zeros_like(cost)
    sideways = (-1, 0, 1) if paths == 8 else (0,)
    sweeps = [(cost, grey, total, sideways), (cost.mT, grey.T, total.mT, (0,))]  # down the rows; along them
    lines = 2 * sum(cost.shape[1:])
    with tqdm(total=lines, desc="semi-global matching", unit="line", delay=2, leave=False) as bar:
        for volume, image, into, shifts in sweeps:
            for order in (range(volume.shape[1]), range(volume.shape[1] - 1, -1, -1)):
                _sweep(volume, image, into, shifts, order, P1, P2, bar)
    return total


def _sweep(
    cost: Tensor, grey: Tensor, total: Tensor, shifts: tuple[int, ...], order: range, P1: float, P2: float, bar: tqdm
) -> None:
    """Adds the costs of paths that go from line to line in `order`, each `shifts` columns aside at every line."""
    W, before = cost.shape[2], None
    lines = cost.movedim(1, 0).contiguous()  # a line is (D, W)
    for k, y in enumerate(order):
        now = lines[y][:, None]  # (D, 1, W)
        if before is None:
            before = now.repeat(1, len(shifts), 1)
        else:
            came = [slice(max(0, -s), W - max(0, s)) for s in shifts]
            here = [slice(max(0, s), W - max(0, -s)) for s in shifts]
            moved, jump = now.repeat(1, len(shifts), 1), torch.zeros(len(shifts), W).to(grey)
            for n in range(len(shifts)):  # a path that enters from the side begins here: L' = 0
                moved[:, n] = 0
                moved[:, n, here[n]] = before[:, n, came[n]]
                jump[n, here[n]] = (grey[y, here[n]] - grey[order[k - 1], came[n]]).abs()
            before = path_step(now, moved, P1, (P2 / (1 + 20 * jump)).clamp_min(1.5 * P1))
        total[:, y] += before.sum(1)
        bar.update()


def best_disparity(cost: Tensor) -> Tensor:
    """The disparity of least cost, to a fraction of a pixel: the vertex of the parabola through three costs; (H, W)."""
    D = len(cost)
    d = cost.argmin(0)
    middle = d.clamp(1, max(D - 2, 1))
    if D < 3:
        return d.to(cost)
    a, b, c = (cost.gather(0, (middle + k)[None])[0] for k in (-1, 0, 1))
    shift = torch.where(a + c > 2 * b, (a - c) / (2 * (a + c - 2 * b)).clamp_min(1e-9), 0).clamp(-0.5, 0.5)
    return torch.where(d == middle, d + shift, d.to(cost))


def right_cost(cost: Tensor) -> Tensor:
    """The same costs, seen from the right image: C_right(d, y, x) = C(d, y, x + d); infinite outside."""
    D, _, W = cost.shape
    right = torch.full_like(cost, torch.inf)
    for d in range(D):
        right[d, :, : W - d] = cost[d, :, d:]
    return right


def left_right_check(left: Tensor, right: Tensor, tolerance: float = 1.0) -> Tensor:
    """Which left pixels the right image confirms: (H, W) bool.

    Args:
        left: disparities of the left pixels, (H, W).
        right: of the right pixels: the right pixel (y, x) is the left pixel (y, x + disparity).
        tolerance: in pixels.
    """
    columns = torch.arange(left.shape[1], device=left.device)
    there = (columns - left).round().long()
    answer = right.gather(1, there.clamp_min(0))
    return (there >= 0) & ((answer - left).abs() <= tolerance)


def without_speckles(disparity: Tensor, valid: Tensor, least: int = 100, step: float = 2.0) -> Tensor:
    """The valid pixels without small islands, (H, W) bool: a disparity that only a few pixels share is an accident.

    An island is a connected part of the valid pixels in which neighbours differ by at most `step` (Hirschmüller's
    peak filter, section 2.5.1).

    Args:
        disparity: (H, W).
        valid: (H, W) bool.
        least: pixels of an island that stays.
        step: in pixels of disparity.
    """
    H, W = valid.shape
    number = torch.arange(H * W, device=valid.device).view(H, W)
    pairs = []
    for here, there in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        joined = valid[here] & valid[there] & ((disparity[here] - disparity[there]).abs() <= step)
        pairs.append(torch.stack([number[here][joined], number[there][joined]]))
    ends = torch.cat(pairs, 1).cpu().numpy()
    graph = sparse.coo_matrix((np.ones(ends.shape[1], dtype=bool), ends), (H * W, H * W))
    island = sparse.csgraph.connected_components(graph, directed=False)[1]
    large = np.bincount(island)[island] >= least
    return valid & torch.from_numpy(large).view(H, W).to(valid.device)


def fill(disparity: Tensor, valid: Tensor) -> Tensor:
    """Give invalid pixels the smaller, farther disparity of the nearest valid ones on their row, then a 5×5 median.

    What only one eye sees is hidden by something nearer, so it belongs to the background.

    Args:
        disparity: (H, W).
        valid: (H, W) bool. A row without any takes over the row above, else the row below.

    Raises:
        ValueError: nothing is valid.
    """
    if not valid.any():
        raise ValueError("no valid disparity to fill from")
    H, W = disparity.shape
    rows = valid.any(1)
    columns = torch.arange(W, device=disparity.device).expand(H, W)
    left = torch.where(valid, columns, -1).cummax(1)[0]
    right = torch.where(valid, columns, W).flip(1).cummin(1)[0].flip(1)
    near = [disparity.gather(1, i.clamp(0, W - 1)) for i in (left, right)]
    near[0], near[1] = torch.where(left < 0, torch.inf, near[0]), torch.where(right >= W, torch.inf, near[1])
    filled = torch.where(valid, disparity, torch.minimum(*near))
    good = rows.nonzero()[:, 0]
    source = good[(torch.searchsorted(good, torch.arange(H, device=good.device), right=True) - 1).clamp_min(0)]
    smoothed = ndimage.median_filter(filled[source].cpu().numpy(), 5, mode="nearest")
    return torch.from_numpy(smoothed).to(disparity)


@dataclass(frozen=True)
class Match:
    """What `match` found: disparities (H, W), dense, and which pixels both images confirm, (H, W) bool."""

    disparity: Tensor
    confirmed: Tensor


def match(left: Tensor, right: Tensor, disparities: int, *, paths: int = 8, block: int = 5) -> Match:
    """The whole way from two images to disparities.

    Args:
        left, right: rectified images (C, H, W) in [0, 1], C of 1 or 3.
        disparities: how many are tried, from 0.
        paths: 0 for block matching alone, else 4 or 8.
        block: side of the window that costs are averaged in, odd.

    Raises:
        ValueError, TypeError: as `matching_cost` and `semi_global_matching`.
    """
    cost = block_mean(matching_cost(left, right, disparities), block)
    if paths:
        cost = semi_global_matching(cost, left.mean(0), paths=paths)
    disparity = best_disparity(cost)
    confirmed = left_right_check(disparity, best_disparity(right_cost(cost)))
    return Match(fill(disparity, without_speckles(disparity, confirmed)), confirmed)


def bad_pixels(disparity: Tensor, truth: Tensor, tolerance: float) -> float:
    """The proportion of the known pixels whose disparity is off by more than `tolerance` pixels, occlusions included.

    Raises:
        ValueError: different shapes, or a truth that is unknown everywhere.
    """
    if disparity.shape != truth.shape or not truth.isfinite().any():
        raise ValueError(f"expected one shape and some known pixels; got {disparity.shape} and {truth.shape}")
    known = truth.isfinite()
    wrong = ~((disparity - truth).abs()[known] <= tolerance)  # so that NaN is wrong
    return float(wrong.double().mean())
