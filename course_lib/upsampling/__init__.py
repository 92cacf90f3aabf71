"""Chapter 2: every operation that takes h×w×d to H×W×K, by hand, and equal to torch's.

Indexing, arithmetic and matrix products only; batches (B, C, H, W) of any float dtype on any device;
differentiable as often as wanted. Sizes and steps are one integer, or (vertical, horizontal).
"""

import math
from numbers import Integral

import torch
from torch import Tensor
from torch.nn.functional import pad

from course_lib.upsampling.convolution import (
    Pair,
    add_bias,
    check_maps,
    check_operands,
    convolution,
    convolution_matrix,
    geometry,
    to_pair,
    transposed_convolution,
)
from course_lib.upsampling.interpolation import bicubic, bilinear, nearest


def bed_of_nails(x: Tensor, factor: int | Pair = 2) -> Tensor:
    """(B, C, H, W) → (B, C, H·factor, W·factor): each value at the top left of its cell, zeros elsewhere.

    Raises:
        TypeError, ValueError: `x` is not a non-empty 4-dimensional float tensor, or `factor` is below 1.
    """
    check_maps("x", x)
    (B, C, H, W), (s, t) = x.shape, to_pair("factor", factor, 1)
    out = x.new_zeros(B, C, H * s, W * t)
    out[:, :, ::s, ::t] = x
    return out


def transposed_convolution_by_zeros(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    output_padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """`transposed_convolution` the second way: zeros between the pixels, then convolve with the flipped kernel.

    Arguments, result and errors are the same. Most of its products are with zeros, stride² − 1 of stride²
    (Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning", section 4).
    """
    check_operands(x, weight, bias, groups, transposed=True)
    g = geometry(tuple(x.shape[2:]), weight, stride, padding, dilation, groups, output_padding)
    (C_in, C_out, kh, kw), (H, W) = weight.shape, g.small
    nails = bed_of_nails(x, g.stride)[:, :, : (H - 1) * g.stride[0] + 1, : (W - 1) * g.stride[1] + 1]
    # So much zero margin, or less than none, that the convolution returns exactly the output's size.
    top, left = (d * (k - 1) - p for d, k, p in zip(g.dilation, g.kernel, g.padding, strict=True))
    bottom = g.large[0] + g.dilation[0] * (kh - 1) - top - nails.shape[2]
    right = g.large[1] + g.dilation[1] * (kw - 1) - left - nails.shape[3]
    flipped = weight.reshape(groups, C_in // groups, C_out, kh, kw).transpose(1, 2).flip(3, 4)
    flipped = flipped.reshape(groups * C_out, C_in // groups, kh, kw)
    return convolution(pad(nails, (left, right, top, bottom)), flipped, bias, 1, 0, dilation, groups)


def transposed_convolution_by_matrix(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    output_padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """`transposed_convolution` by its name: multiply by the transpose of the convolution's explicit matrix.

    Arguments, result and errors are the same; for small sizes.
    """
    check_operands(x, weight, bias, groups, transposed=True)
    g = geometry(tuple(x.shape[2:]), weight, stride, padding, dilation, groups, output_padding)
    (B, C, H, W), (h, w) = x.shape, g.large
    matrix = convolution_matrix(weight, (h, w), stride, padding, dilation, groups)
    # An output padding of a whole stride gives the convolution more rows and columns than x has.
    tall, wide = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(g.large, g.kernel, g.stride, g.padding, g.dilation, strict=True)
    )
    matrix = matrix.view(C, tall, wide, -1)[:, :H, :W].reshape(C * H * W, -1)
    y = (x.reshape(B, C * H * W) @ matrix).view(B, weight.shape[1] * groups, h, w)
    return add_bias(y, bias)


def max_unpool(x: Tensor, indices: Tensor, size: int | Pair) -> Tensor:
    """Put each pooled maximum back to where it was found, zeros elsewhere, as `F.max_unpool2d`.

    Args:
        x: (B, C, h, w) floats.
        indices: int64 of the same shape: row·W + column of each value in its own map, as
            `F.max_pool2d(return_indices=True)` gives them.
        size: (H, W) of the output. Where two values share a place, one of them stays.

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
    if indices.numel() and not 0 <= indices.min() <= indices.max() < H * W:
        low, high = int(indices.min()), int(indices.max())
        raise ValueError(f"indices must lie in [0, {H * W}) for size {(H, W)}; got {low} to {high}")
    flat = x.new_zeros(B, C, H * W).scatter_(2, indices.reshape(B, C, h * w), x.reshape(B, C, h * w))
    return flat.view(B, C, H, W)


def _cell_side(factor: int) -> int:
    if not isinstance(factor, Integral) or factor < 1:
        raise ValueError(f"factor must be one integer, at least 1; got {factor!r}")
    return int(factor)


def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """(B, C·r², H, W) → (B, C, H·r, W·r): r² channels become the pixels of an r×r cell, as `F.pixel_shuffle`.

    With a convolution before it, the sub-pixel convolution of Shi et al. 2016, equation 4.

    Raises:
        TypeError, ValueError: `x` is not a non-empty 4-dimensional float tensor, its channels are not a
            multiple of r², or r, the `factor`, is below 1.
    """
    check_maps("x", x)
    (B, C, H, W), r = x.shape, _cell_side(factor)
    if C % r**2:
        raise ValueError(f"x must have a multiple of factor² = {r**2} channels; got {tuple(x.shape)}")
    C //= r**2
    return x.reshape(B, C, r, r, H, W).permute(0, 1, 4, 2, 5, 3).reshape(B, C, H * r, W * r)


def pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    """(B, C, H·r, W·r) → (B, C·r², H, W): the inverse of `pixel_shuffle`.

    Raises:
        TypeError, ValueError: as there, but it is H·r and W·r that must be multiples of r.
    """
    check_maps("x", x)
    (B, C, H, W), r = x.shape, _cell_side(factor)
    if H % r or W % r:
        raise ValueError(f"x must have height and width that are multiples of factor={r}; got {tuple(x.shape)}")
    H, W = H // r, W // r
    return x.reshape(B, C, H, r, W, r).permute(0, 1, 3, 5, 2, 4).reshape(B, C * r**2, H, W)


def overlap_count(size: int | Pair, kernel: int | Pair, stride: int | Pair, padding: int | Pair = 0) -> Tensor:
    """How many input pixels write to each output pixel of a transposed convolution: the checkerboard.

    Even (away from the border) exactly where the stride divides the kernel (Odena et al. 2016).

    Args:
        size: the input's, n or (h, w). The others are those of `transposed_convolution`.

    Returns:
        int64 counts, (H,) for one integer as size, else (H, W).

    Raises:
        ValueError: a size or step below 1, a padding below 0 or one that leaves no output.
    """
    pairs = to_pair("size", size, 1), to_pair("kernel", kernel, 1), to_pair("stride", stride, 1)
    counts = []
    for n, k, s, p in zip(*pairs, to_pair("padding", padding, 0), strict=True):
        length = (n - 1) * s + k
        if length <= 2 * p:
            raise ValueError(f"padding={padding!r} leaves nothing of an output of {length} for size={size!r}")
        written = s * torch.arange(n)[:, None] + torch.arange(k)
        counts.append(written.flatten().bincount(minlength=length)[p : length - p])
    return torch.outer(*counts) if isinstance(size, (tuple, list)) else counts[0]


@torch.no_grad()
def icnr_(weight: Tensor, factor: int, generator: torch.Generator | None = None) -> Tensor:
    """Fill a convolution's weight so that convolution and `pixel_shuffle` start as convolution and `nearest`.

    The r² kernels of each output pixel's cell begin equal, so no checkerboard is there to be unlearnt (Aitken
    et al. 2017, section 4); each is drawn from He's normal distribution, of variance 2/(C_in·kh·kw).

    Args:
        weight: (C·r², C_in, kh, kw), changed in place and returned.
        factor: r.

    Raises:
        TypeError, ValueError: `weight` is not a non-empty 4-dimensional float tensor, or its first size is
            not a positive multiple of r².
    """
    check_maps("weight", weight, "(C·r², C_in, kh, kw)")
    (S, C_in, kh, kw), r = weight.shape, _cell_side(factor)
    if S % r**2 or not S:
        raise ValueError(f"weight must have a multiple of factor² = {r**2} outputs; got {tuple(weight.shape)}")
    cells = weight.new_empty(S // r**2, C_in, kh, kw)
    cells.normal_(0, math.sqrt(2 / (C_in * kh * kw)), generator=generator)
    return weight.copy_(cells.repeat_interleave(r**2, 0))


def resize_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, factor: int = 2) -> Tensor:
    """Nearest-neighbour upsampling, then a convolution that keeps the size (Odena et al. 2016).

    Every output pixel sums the same number of products, so there is no checkerboard to begin with.

    Args:
        x: (B, C_in, H, W). `weight`: (C_out, C_in, k, k) with k odd. `bias`: (C_out,).

    Returns:
        (B, C_out, H·factor, W·factor).

    Raises:
        TypeError, ValueError: as `convolution`, or an even kernel, or a `factor` below 1.
    """
    check_operands(x, weight, bias, 1, transposed=False)
    kh, kw = weight.shape[2:]
    if kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f"weight must have an odd kernel; got shape {tuple(weight.shape)}")
    (H, W), (s, t) = x.shape[2:], to_pair("factor", factor, 1)
    return convolution(nearest(x, (H * s, W * t)), weight, bias, padding=(kh // 2, kw // 2))
