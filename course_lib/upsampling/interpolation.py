"""Upsampling by fixed rules, with indices and matrix products: interpolation, unpooling, pixel shuffle.

Bilinear and bicubic interpolation are separable and linear: the result is R_h X R_wᵀ, with one interpolation
matrix per axis. A row of such a matrix holds the weights of one output pixel's few taps, so the matrix is a
narrow band; it is never stored whole, only block by block along the band, which keeps time and memory linear in
the size. One price: an infinity or NaN meets the zeros of its block too, and reaches up to a block of pixels
around it.
"""

import functools
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import Tensor

Pair = tuple[int, int]  # (vertical, horizontal)
Size = int | Pair  # one integer is for both axes
Factor = float | tuple[float, float]
BLOCK = 32  # output pixels per block of the band: longer wastes products with zeros, shorter wastes calls


def nearest(x: Tensor, size: Size | None = None, scale_factor: Factor | None = None) -> Tensor:
    """Each output pixel i copies input pixel ⌊i·H/H'⌋, as `F.interpolate(mode="nearest")`.

    Where i·H/H' is a whole number, torch's rounding decides, which may be one less.

    Args:
        x: (B, C, H, W) floats of any range.
        size: (H', W'), or one integer for both; or give `scale_factor` instead.
        scale_factor: one number, or (vertical, horizontal), above or below 1; H' = ⌊H·factor⌋. The step
            between outputs is then 1/factor, not H/H'.

    Returns:
        (B, C, H', W').

    Raises:
        TypeError: `x` holds no floats.
        ValueError: `x` has not 4 dimensions or is empty; both or neither of `size` and `scale_factor`; a size
            below 1.
    """
    out, steps = _output_size(x, size, scale_factor)
    rows, columns = (_nearest_index(x, axis, out, steps[axis]) for axis in (0, 1))
    if out[0] < x.shape[2]:
        x, rows = x.index_select(2, rows), None
    # gather, since index_select along the last axis copies one number at a time
    x = x.gather(3, columns.expand(*x.shape[:3], -1))
    return x if rows is None else x.index_select(2, rows)


def _nearest_index(x: Tensor, axis: int, out: Pair, step: float) -> Tensor:
    """The input pixel of each output along one axis, rounded as torch's CPU kernels round.

    Where i·step falls next to a whole number, the rounding decides between two pixels. For outputs up to
    H' + W' = 128 torch computes in float32, and with a step of exactly ½ or 1 where the size happens to double
    or to stay; for larger ones it computes in the precision of `x`, if that is more.
    """
    n, m, small = x.shape[2 + axis], out[axis], sum(out) <= 128
    if small and m in (n, 2 * n):
        step = n / m
    i = torch.arange(m, dtype=torch.float64 if x.dtype == torch.float64 and not small else torch.float32)
    return (i * step).float().long().clamp(max=n - 1).to(x.device)


def bilinear(
    x: Tensor, size: Size | None = None, scale_factor: Factor | None = None, align_corners: bool = False
) -> Tensor:
    """Weigh the 2×2 nearest pixels, as `F.interpolate(mode="bilinear")`; no smoothing before shrinking.

    Args:
        x: (B, C, H, W) floats of any range.
        size: as in `nearest`.
        scale_factor: as in `nearest`.
        align_corners: False: pixels are squares, and output i lies at (i + ½)·H/H' − ½ in pixels of the
            input. True: pixels are points, corners lie on corners, and output i lies at i·(H − 1)/(H' − 1);
            so the lecture's table.

    Returns:
        (B, C, H', W').

    Raises:
        TypeError: `x` holds no floats.
        ValueError: a shape, size or factor that `nearest` refuses.
    """
    return _interpolate(x, size, scale_factor, align_corners, _linear)


def bicubic(
    x: Tensor, size: Size | None = None, scale_factor: Factor | None = None, align_corners: bool = False
) -> Tensor:
    """Weigh the 4×4 nearest pixels with Keys' cubic, a = −0.75, as `F.interpolate(mode="bicubic")`.

    Arguments, result and errors are those of `bilinear`. Values may leave the range of `x`.
    """
    return _interpolate(x, size, scale_factor, align_corners, _cubic)


def _output_size(x: Tensor, size: Size | None, scale_factor: Factor | None) -> tuple[Pair, tuple[float, float]]:
    """The output's size, and how many input pixels one output pixel steps over, per axis."""
    check_maps("x", x)
    if (size is None) == (scale_factor is None):
        raise ValueError(f"give size or scale_factor, one of them; got {size!r} and {scale_factor!r}")
    H, W = x.shape[2:]
    if size is not None:
        H_out, W_out = to_pair("size", size, 1)
        return (H_out, W_out), (H / H_out, W / W_out)
    factors = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor, scale_factor)
    if len(factors) != 2 or not all(isinstance(f, Real) and 0 < f < math.inf for f in factors):
        raise ValueError(f"scale_factor must be a positive number or two; got {scale_factor!r}")
    factors = float(factors[0]), float(factors[1])
    out = math.floor(H * factors[0]), math.floor(W * factors[1])
    if min(out) < 1:
        raise ValueError(f"scale_factor={scale_factor!r} shrinks x of size {(H, W)} to {out}, without pixels")
    # As torch: the step is the one asked for, although the rounded size may correspond to another.
    return out, (1 / factors[0], 1 / factors[1])


def _interpolate(x: Tensor, size, scale_factor, align_corners: bool, kernel: Callable) -> Tensor:
    size, steps = _output_size(x, size, scale_factor)
    # Sums of half-precision numbers are taken in float32.
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    # In the order that gives the first product, the one along the columns, fewer rows.
    for dim in (3, 2) if size[0] >= x.shape[2] else (2, 3):
        n, m, step = x.shape[dim], size[dim - 2], steps[dim - 2]
        bands = _bands(n, m, step, bool(align_corners), kernel, precise.dtype, x.device)
        precise = _AlongAxis.apply(precise, dim, m, bands, False)
    return precise.to(x.dtype)


class Band(NamedTuple):
    """A block of an interpolation matrix: weights (r, n) of inputs from `first` in outputs from `start`."""

    start: int
    first: int
    weights: Tensor


class _AlongAxis(torch.autograd.Function):
    """x ↦ R x along axis 2 or 3, or Rᵀ x; the gradient of each is the other."""

    @staticmethod
    def forward(ctx, x: Tensor, dim: int, size: int, bands: list[Band], transposed: bool) -> Tensor:
        ctx.arguments = dim, x.shape[dim], bands, not transposed
        B, C, H, W = x.shape
        x = x.reshape(B * C, H, W)
        out = x.new_zeros((B * C, size, W) if dim == 2 else (B * C, H, size))
        for start, first, weights in bands:
            if transposed:
                start, first, weights = first, start, weights.mT
            rows, taps = weights.shape
            part, target = x.narrow(dim - 1, first, taps), out.narrow(dim - 1, start, rows)
            # Added in place by the product itself, on the image's proper side: nothing is copied.
            if dim == 2:
                target.baddbmm_(weights.expand(B * C, -1, -1), part)
            else:
                target.view(B * C * H, rows).addmm_(part.reshape(B * C * H, taps), weights.mT)
        return out.view(B, C, *out.shape[1:])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        return _AlongAxis.apply(gradient, *ctx.arguments), None, None, None, None


def _linear(t: Tensor) -> tuple[Tensor, ...]:
    """The weights of the pixels at distance t and 1 − t."""
    return 1 - t, t


def _cubic(t: Tensor, a: float = -0.75) -> tuple[Tensor, ...]:
    """The weights of the pixels at distance 1 + t, t, 1 − t, 2 − t (Keys 1981, equation 4; a as in torch)."""

    def near(d: Tensor) -> Tensor:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Tensor) -> Tensor:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return far(1 + t), near(t), near(1 - t), far(2 - t)


@functools.lru_cache(maxsize=64)
def _bands(
    n: int, m: int, step: float, align_corners: bool, kernel: Callable, dtype: torch.dtype, device: torch.device
) -> list[Band]:
    """The interpolation matrix from `n` pixels to `m`, in blocks; kept, as a network asks for the same again.

    Taps beyond the border read the border pixel, so that their weights add up there. Places and weights are
    computed in float64, whatever the image holds.
    """
    # As torch: bilinear takes a factor that leaves the size unchanged for 1.
    if align_corners:
        step = (n - 1) / (m - 1) if m > 1 else 0.0
    elif m == n and kernel is _linear:
        step = 1.0
    i = torch.arange(m, dtype=torch.float64)
    positions = i * step if align_corners else (i + 0.5) * step - 0.5  # in pixels of the input
    whole = positions.floor()
    weights = torch.stack(kernel(positions - whole), 1).to(dtype)
    offsets = torch.arange(weights.shape[1]) - (weights.shape[1] // 2 - 1)
    taps = (whole.long()[:, None] + offsets).clamp(0, n - 1)
    bands = []
    for start in range(0, m, BLOCK):
        block, first = taps[start : start + BLOCK], int(taps[start, 0])
        matrix = weights.new_zeros(len(block), int(block[-1, -1]) + 1 - first)
        matrix.scatter_add_(1, block - first, weights[start : start + BLOCK])
        bands.append(Band(start, first, matrix.to(device)))
    return bands


def bed_of_nails(x: Tensor, factor: Size = 2) -> Tensor:
    """(B, C, H, W) → (B, C, H·factor, W·factor): each value at the top left of its cell, zeros elsewhere.

    Args:
        x: (B, C, H, W) floats of any range.
        factor: one integer, or (vertical, horizontal).

    Raises:
        TypeError: `x` holds no floats.
        ValueError: `x` is empty or not 4-dimensional, or `factor` is below 1.
    """
    check_maps("x", x)
    (B, C, H, W), (s, t) = x.shape, to_pair("factor", factor, 1)
    out = x.new_zeros(B, C, H * s, W * t)
    out[:, :, ::s, ::t] = x
    return out


def max_unpool(x: Tensor, indices: Tensor, size: Size) -> Tensor:
    """Put each pooled maximum back to where it was found, zeros elsewhere, as `F.max_unpool2d`.

    Overlapping windows may have found the same maximum. Where several values share a place, the last one (row by
    row) stays and alone gets a gradient: what the others do changes nothing. torch's own gives one to all of them.

    Args:
        x: (B, C, h, w) floats.
        indices: int64 of the same shape: row·W + column of each value in its own map, as
            `F.max_pool2d(return_indices=True)` gives them.
        size: (H, W) of the output, or one integer for both.

    Returns:
        (B, C, H, W).

    Raises:
        TypeError: `x` holds no floats, or `indices` no int64.
        ValueError: `x` is empty or not 4-dimensional, the two shapes differ, or an index lies outside.
    """
    check_maps("x", x)
    (B, C, h, w), (H, W) = x.shape, to_pair("size", size, 1)
    if indices.dtype != torch.int64:
        raise TypeError(f"indices must be int64; got {indices.dtype}")
    if indices.shape != x.shape:
        raise ValueError(f"indices must have the shape of x, {tuple(x.shape)}; got {tuple(indices.shape)}")
    # On the CPU alone: a GPU would have to wait, and stops the program by itself.
    if indices.is_cpu and indices.numel() and not 0 <= indices.min() <= indices.max() < H * W:
        low, high = int(indices.min()), int(indices.max())
        raise ValueError(f"indices must lie in [0, {H * W}) for size {(H, W)}; got {low} to {high}")
    indices, x = indices.flatten(2), x.flatten(2)
    order = torch.arange(h * w, device=x.device).expand_as(indices)
    last = order.new_zeros(B, C, H * W).scatter_reduce_(2, indices, order, "amax")
    stays = last.gather(2, indices) == order
    out = x.new_zeros(B, C, H * W).scatter_add(2, indices, x.where(stays, x.new_zeros(())))
    return out.view(B, C, H, W)


def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """(B, C·r², H, W) → (B, C, H·r, W·r): r² channels become the pixels of an r×r cell, as `F.pixel_shuffle`.

    With a convolution before it, the sub-pixel convolution of Shi et al. 2016, equation 4.

    Args:
        x: (B, C·r², H, W) floats.
        factor: r.

    Raises:
        TypeError: `x` holds no floats.
        ValueError: `x` is empty or not 4-dimensional, its channels are not a multiple of r², or r is below 1.
    """
    check_maps("x", x)
    (B, C, H, W), r = x.shape, cell_side(factor)
    if C % r**2:
        raise ValueError(f"x must have a multiple of factor² = {r**2} channels; got {tuple(x.shape)}")
    C //= r**2
    return x.reshape(B, C, r, r, H, W).permute(0, 1, 4, 2, 5, 3).reshape(B, C, H * r, W * r)


def pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    """(B, C, H·r, W·r) → (B, C·r², H, W): the inverse of `pixel_shuffle`.

    Args:
        x: (B, C, H·r, W·r) floats.
        factor: r.

    Raises:
        TypeError: `x` holds no floats.
        ValueError: `x` is empty or not 4-dimensional, a side is not a multiple of r, or r is below 1.
    """
    check_maps("x", x)
    (B, C, H, W), r = x.shape, cell_side(factor)
    if H % r or W % r:
        raise ValueError(f"x must have height and width that are multiples of factor={r}; got {tuple(x.shape)}")
    H, W = H // r, W // r
    return x.reshape(B, C, H, r, W, r).permute(0, 1, 3, 5, 2, 4).reshape(B, C * r**2, H, W)


def cell_side(factor: int) -> int:
    """The factor of a pixel shuffle as an int. ValueError unless it is one integer, at least 1."""
    if not isinstance(factor, Integral) or factor < 1:
        raise ValueError(f"factor must be one integer, at least 1; got {factor!r}")
    return int(factor)


def to_pair(name: str, value: Size, least: int) -> Pair:
    """An int or two as (vertical, horizontal). ValueError if it is anything else or below `least`."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2 or not all(isinstance(v, Integral) and v >= least for v in values):
        raise ValueError(f"{name} must be an integer or two, each at least {least}; got {value!r}")
    return int(values[0]), int(values[1])


def check_maps(name: str, x: Tensor, shape: str = "(B, C, H, W)") -> None:
    """TypeError unless `x` holds floats; ValueError unless it has 4 dimensions, none but the batch empty."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating-point tensor; got {got}")
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ValueError(f"{name} must have shape {shape}, none but the batch 0; got {tuple(x.shape)}")
