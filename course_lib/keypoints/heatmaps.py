"""A point as a heatmap, and back: the encoding that a network learns, and five ways to read a point between the cells.

A point (x, y) is in pixels, from the image's corner: the centre of pixel (row i, column j) is (j + ½, i + ½). A cell of
a heatmap covers `stride` pixels, so the centre of cell (i, j) is ((j + ½) stride, (i + ½) stride).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.base.pyramid import STRIDE
from course_lib.base.runtime import wide

SIGMA = 1.5  # standard deviation of a point's bump, in cells
SHARPNESS = 20.0  # of the soft-argmax: a bump of height 1 outweighs the cells around it e²⁰ times
FARTHEST = 2.0  # cells: a step that goes farther than this has left the parabola
LEAST = 1e-10  # a heatmap's least value under a logarithm
FLAT = 1e-10  # the determinant of a Hessian that says nothing


def encode(points: Tensor, size: tuple[int, int], sigma: float = SIGMA, stride: int = STRIDE) -> Tensor:
    """A bump exp(−d²/2σ²) around each point, with d the distance of a cell's centre in cells.

    The bump stands where the point is, not at the middle of its cell (Zhang et al. 2020, section 3.3): rounding
    would move points by up to half a stride.

    Args:
        points: (..., K, 2) xy in pixels, also outside of the image.
        size: (H, W) of the image in pixels, multiples of `stride`.
        sigma: σ, in cells.
        stride: pixels a cell.

    Returns:
        (..., K, H/stride, W/stride) in [0, 1], float32 or more.

    Raises:
        TypeError: points that are no floats.
        ValueError: points of another shape, a size that `stride` does not divide, or σ that is not above 0.
    """
    _check(points, 2, "points (..., K, 2)")
    H, W = size
    if points.shape[-1] != 2:
        raise ValueError(f"expected points (..., K, 2), got {tuple(points.shape)}")
    if min(H, W) < stride or H % stride or W % stride:
        raise ValueError(f"expected a size of multiples of {stride}, got {H}×{W}")
    if not sigma > 0:
        raise ValueError(f"expected sigma above 0, got {sigma}")
    u, v = (wide(points) / stride - 0.5)[..., None].unbind(-2)  # (..., K, 1), in cells
    columns, rows = (torch.arange(n // stride, device=u.device, dtype=u.dtype) for n in (W, H))
    across, down = (torch.exp(-((grid - at) ** 2) / (2 * sigma**2)) for grid, at in ((columns, u), (rows, v)))
    return down[..., :, None] * across[..., None, :]  # a Gaussian is a product of two


def _check(given: Tensor, axes: int, expected: str) -> None:
    if not isinstance(given, Tensor) or not given.is_floating_point():
        kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(f"expected {expected} as floats, got {kind}")
    if given.ndim < axes:
        raise ValueError(f"expected {expected}, got {tuple(given.shape)}")


def argmax(heatmaps: Tensor) -> Tensor:
    """The highest cell of (..., h, w), as (..., 2) xy in cells."""
    index, w = heatmaps.flatten(-2).argmax(-1), heatmaps.shape[-1]
    return torch.stack([index % w, index.div(w, rounding_mode="floor")], -1).to(heatmaps.dtype)


def quarter(heatmaps: Tensor) -> Tensor:
    """A quarter of a cell from the highest cell towards the higher neighbour, in x and in y (Newell et al. 2016)."""
    highest = argmax(heatmaps)
    around = _patch(heatmaps, highest)
    uphill = torch.stack([around[..., 2, 3] - around[..., 2, 1], around[..., 3, 2] - around[..., 1, 2]], -1)
    return highest + 0.25 * uphill.sign()


def soft_argmax(heatmaps: Tensor, sharpness: float = SHARPNESS) -> Tensor:
    """The mean of all cells, weighted by softmax(sharpness · height): differentiable (Sun et al. 2018)."""
    h, w = heatmaps.shape[-2:]
    weight = (sharpness * heatmaps).flatten(-2).softmax(-1).unflatten(-1, (h, w))
    columns, rows = (torch.arange(n, device=weight.device, dtype=weight.dtype) for n in (w, h))
    return torch.stack([(weight.sum(-2) * columns).sum(-1), (weight.sum(-1) * rows).sum(-1)], -1)


def log_parabola(heatmaps: Tensor) -> Tensor:
    """The top of a parabola through the logarithms of the highest cell and its neighbours, in x and in y apart.

    Exact for a Gaussian, and no better than three values are: noise moves it.
    """
    log, centre = _log(heatmaps), _inside(heatmaps, 1)
    around = _patch(log, centre)
    before = torch.stack([around[..., 2, 1], around[..., 1, 2]], -1)
    after = torch.stack([around[..., 2, 3], around[..., 3, 2]], -1)
    curvature = before - 2 * around[..., 2, 2, None] + after
    step = (before - after) / (2 * torch.where(curvature < 0, curvature, -torch.inf))
    return centre + step.clamp(-FARTHEST, FARTHEST)


def dark(heatmaps: Tensor, sigma: float = SIGMA) -> Tensor:
    """Distribution-aware decoding (Zhang et al. 2020, equations 3 to 10): blur, then one step of Newton's on the log.

    The blur takes away the noise, which derivatives enlarge. The logarithm of a Gaussian is a parabola, so one step
    m − H⁻¹ g, with gradient g and Hessian H at the highest cell m, leads to its top. (Departures: the step is at most
    `FARTHEST` cells long. It is left out where H is not negative definite, at a flat place or a ridge, and where the
    highest cell is at the map's border, for half of the bump that is blurred lies outside.)

    Args:
        heatmaps: (..., h, w).
        sigma: of the blur, in cells; the bump's own, as the paper has it.
    """
    log = _log(blurred(heatmaps, sigma))
    centre = _inside(log, 2)
    around = _patch(log, centre)
    g = torch.stack([around[..., 2, 3] - around[..., 2, 1], around[..., 3, 2] - around[..., 1, 2]], -1) / 2
    # Second differences over two cells either way, as the authors' code has them: they hold less noise.
    xx, yy = around[..., 2, 4] + around[..., 2, 0], around[..., 4, 2] + around[..., 0, 2]
    xx, yy = ((both - 2 * around[..., 2, 2]) / 4 for both in (xx, yy))
    xy = (around[..., 3, 3] - around[..., 1, 3] - around[..., 3, 1] + around[..., 1, 1]) / 4
    determinant = xx * yy - xy**2
    is_top = (xx < 0) & (determinant > FLAT)
    step = torch.stack([xy * g[..., 1] - yy * g[..., 0], xy * g[..., 0] - xx * g[..., 1]], -1)
    step = step / torch.where(is_top, determinant, torch.inf)[..., None]
    highest = argmax(heatmaps)
    at_border = (highest != _inside(heatmaps, 1)).any(-1, keepdim=True)
    return torch.where(at_border, highest, centre + step.clamp(-FARTHEST, FARTHEST))


def blurred(heatmaps: Tensor, sigma: float) -> Tensor:
    """Each of (..., h, w) through a Gaussian of `sigma` cells; beyond the border are zeros, as a bump far away has."""
    reach = max(1, round(3 * sigma))
    offsets = torch.arange(-reach, reach + 1, device=heatmaps.device, dtype=heatmaps.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    maps = heatmaps.reshape(-1, 1, *heatmaps.shape[-2:])
    across = F.conv2d(maps, kernel[None, None, None], padding=(0, reach))
    return F.conv2d(across, kernel[None, None, :, None], padding=(reach, 0)).view_as(heatmaps)


def _log(heatmaps: Tensor) -> Tensor:
    return heatmaps.clamp(min=LEAST).log()


def _inside(heatmaps: Tensor, margin: int) -> Tensor:
    """The highest cell (..., 2), or the nearest one that has `margin` neighbours on each side.

    A parabola is the same from wherever it is looked at, so a peak at the border needs no other rule.
    """
    h, w = heatmaps.shape[-2:]
    sides = torch.tensor([w, h], device=heatmaps.device)
    low = (sides - 1).div(2, rounding_mode="floor").clamp(max=margin)
    return argmax(heatmaps).maximum(low).minimum(torch.maximum(low, sides - 1 - margin))


def _patch(heatmaps: Tensor, centre: Tensor) -> Tensor:
    """(..., 5, 5) around cells (..., 2) xy of (..., h, w); beyond the border its outermost cells go on."""
    maps = F.pad(heatmaps.reshape(-1, 1, *heatmaps.shape[-2:]), [2] * 4, mode="replicate")[:, 0]
    column, row = (centre.reshape(-1, 2).long()[..., None] + torch.arange(5, device=centre.device)).unbind(1)
    which = torch.arange(len(maps), device=maps.device)[:, None, None]
    return maps[which, row[:, :, None], column[:, None, :]].unflatten(0, centre.shape[:-1])


DECODERS: dict[str, Callable[[Tensor], Tensor]] = {
    "argmax": argmax,
    "quarter": quarter,
    "soft-argmax": soft_argmax,
    "log-parabola": log_parabola,
    "DARK": dark,
}


def decode(heatmaps: Tensor, method: str = "DARK", stride: int = STRIDE) -> tuple[Tensor, Tensor]:
    """Points from heatmaps.

    A map without any peak, such as one of zeros, still gives a point; its score says that it is worth nothing.

    Args:
        heatmaps: (..., K, h, w), about 1 where a point is and about 0 elsewhere.
        method: of `DECODERS`.
        stride: pixels a cell.

    Returns:
        points (..., K, 2) xy in pixels, and scores (..., K), the heights of the highest cells; float32 or more.

    Raises:
        TypeError: heatmaps that are no floats.
        ValueError: another shape, an unknown method, or maps with NaN or infinity.
    """
    _check(heatmaps, 3, "heatmaps (..., K, h, w)")
    if method not in DECODERS:
        raise ValueError(f"expected a method of {', '.join(DECODERS)}; got {method!r}")
    if 0 in heatmaps.shape[-2:] or not heatmaps.isfinite().all():
        raise ValueError(f"expected finite heatmaps of one cell or more, got {tuple(heatmaps.shape)} with NaN or none")
    maps = wide(heatmaps)
    if maps.numel() == 0:  # no image
        return maps.new_zeros(*maps.shape[:-2], 2), maps.new_zeros(maps.shape[:-2])
    return (DECODERS[method](maps) + 0.5) * stride, maps.flatten(-2).amax(-1)
