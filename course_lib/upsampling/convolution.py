"""Convolution and its transpose by hand, with slices and matrix products (chapter 2 explains them).

A convolution and its transpose are two faces of one sum over every pixel of the small side, every kernel
position and every pair of channels,

    T(small, weight, large) = Σ small[b, s, h, w] · weight[s, l, i, j]
                                · large[b, l, h·stride + i·dilation, w·stride + j·dilation],

with `large` padded by zeros and channels of different groups left out. It is linear in each of its three
tensors. Its derivative with respect to `small` is the convolution of
`large`, with respect to `large` the transposed convolution of `small`, with respect to `weight` the gradient
that trains a kernel. So each of the three is computed from the two others, and the gradients of one are
the other two: derivatives of every order need no further formula.
"""

from collections.abc import Iterator
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

Pair = tuple[int, int]


def to_pair(name: str, value: int | Pair, least: int) -> Pair:
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


class Geometry(NamedTuple):
    """All of a convolution but its numbers; `small` and `large` are (height, width) of its two sides."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    small: Pair
    large: Pair


def _plane(g: Geometry) -> tuple[int, int, int]:
    """Rows and columns of one of `_phases`, and how long a flat window of it covers the small side."""
    rows, columns = (-(-(n + 2 * p) // s) for n, p, s in zip(g.large, g.padding, g.stride, strict=True))
    return rows, columns, (g.small[0] - 1) * columns + g.small[1]


def _windows(phases: Tensor, g: Geometry) -> Iterator[tuple[int, int, Tensor]]:
    """For each kernel position (i, j), the large pixels that it touches: a flat window of one phase, a view.

    A shift by whole rows and columns is one shift of the flattened plane. The window is as wide as the plane,
    wider than the small side, so what falls into its last columns is to be ignored.
    """
    _, columns, length = _plane(g)
    for i in range(g.kernel[0]):
        down, row = divmod(i * g.dilation[0], g.stride[0])
        for j in range(g.kernel[1]):
            right, column = divmod(j * g.dilation[1], g.stride[1])
            start = down * columns + right
            yield i, j, phases[row, column, ..., start : start + length]


def _phases(large: Tensor, g: Geometry) -> Tensor:
    """(B, L, H, W) padded and dealt out by stride to (rows mod stride, columns mod stride, B·G, L/G, plane).

    A pixel's neighbours at distance `stride` become its neighbours in memory, which is worth a copy.
    """
    (B, L, H, W), (s, t), (p, q), (rows, columns, _) = large.shape, g.stride, g.padding, _plane(g)
    large = pad(large, (q, columns * t - W - q, p, rows * s - H - p))
    phases = large.view(B, L, rows, s, columns, t).permute(3, 5, 0, 1, 2, 4)
    return phases.reshape(s, t, B * g.groups, L // g.groups, rows * columns)


def _pixels(small: Tensor, g: Geometry) -> Tensor:
    """(B, S, h, w) as (B·G, S/G, window), with zeros in the columns to be ignored."""
    (B, S, h, w), (_, columns, length) = small.shape, _plane(g)
    return pad(small, (0, columns - w)).reshape(B * g.groups, S // g.groups, h * columns)[..., :length]


def _mixer(weight: Tensor, g: Geometry, i: int, j: int, batch: int) -> Tensor:
    """Of (S, L/G, kh, kw) what mixes channels at one position, per image and group: (B·G, L/G, S/G)."""
    S, L, _, _ = weight.shape
    mixer = weight[:, :, i, j].reshape(g.groups, S // g.groups, L).mT
    return mixer.expand(batch, -1, -1, -1).flatten(0, 1)


def _to_small(g: Geometry, weight: Tensor, large: Tensor) -> Tensor:
    """The convolution: every small pixel collects the large pixels under its kernel."""
    B, S, (_, columns, length) = large.shape[0], weight.shape[0], _plane(g)
    small = large.new_zeros(B * g.groups, S // g.groups, g.small[0] * columns)
    for i, j, window in _windows(_phases(large, g), g):
        small[..., :length].baddbmm_(_mixer(weight, g, i, j, B).mT, window)
    return small.view(B, S, g.small[0], columns)[..., : g.small[1]].contiguous()


def _to_weight(g: Geometry, small: Tensor, large: Tensor) -> Tensor:
    """The kernel's gradient: for each position, the correlation of the channels of the two sides."""
    B, S, L = small.shape[0], small.shape[1], large.shape[1] // g.groups
    pixels, weight = _pixels(small, g), small.new_zeros(S, L, *g.kernel)
    for i, j, window in _windows(_phases(large, g), g):
        weight[..., i, j] = (pixels @ window.mT).view(B, S, L).sum(0)
    return weight


def _to_large(g: Geometry, small: Tensor, weight: Tensor) -> Tensor:
    """The transposed convolution: every small pixel adds the kernel, times itself, to the large side."""
    B, L, (s, t), (p, q), (rows, columns, _) = small.shape[0], weight.shape[1], g.stride, g.padding, _plane(g)
    phases, pixels = small.new_zeros(s, t, B * g.groups, L, rows * columns), _pixels(small, g)
    for i, j, window in _windows(phases, g):
        window.baddbmm_(_mixer(weight, g, i, j, B), pixels)
    large = phases.view(s, t, B, L * g.groups, rows, columns).permute(2, 3, 4, 0, 5, 1)
    large = large.reshape(B, L * g.groups, rows * s, columns * t)
    return large[:, :, p : p + g.large[0], q : q + g.large[1]]


class _Face(torch.autograd.Function):
    """The face of T that is missing from (small, weight, large), given the other two in that order."""

    @staticmethod
    def forward(ctx, geometry: Geometry, missing: int, *given: Tensor) -> Tensor:
        ctx.geometry, ctx.missing = geometry, missing
        ctx.save_for_backward(*given)
        return (_to_small, _to_weight, _to_large)[missing](geometry, *given)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        parts = list(ctx.saved_tensors)
        parts.insert(ctx.missing, gradient)
        gradients = [
            _Face.apply(ctx.geometry, part, *parts[:part], *parts[part + 1 :]) if needed else None
            for part, needed in zip(sorted({0, 1, 2} - {ctx.missing}), ctx.needs_input_grad[2:], strict=True)
        ]
        return None, None, *gradients


def check_operands(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, transposed: bool) -> None:
    """TypeError or ValueError unless `x`, `weight` and `bias` fit each other in a (transposed) convolution."""
    shape = "(C_in, C_out/groups, kh, kw)" if transposed else "(C_out, C_in/groups, kh, kw)"
    check_maps("x", x)
    check_maps("weight", weight, shape)
    if weight.dtype != x.dtype:
        raise TypeError(f"weight must have the dtype of x, {x.dtype}; got {weight.dtype}")
    if not isinstance(groups, Integral) or groups < 1 or weight.shape[0] % groups or not weight.shape[0]:
        raise ValueError(f"groups must divide weight.shape[0] of {tuple(weight.shape)}; got {groups!r}")
    channels, outputs = weight.shape[1] * groups, weight.shape[0]
    if transposed:
        channels, outputs = outputs, channels
    if x.shape[1] != channels:
        raise ValueError(
            f"x must have {channels} channels for a weight {shape} of shape {tuple(weight.shape)} and "
            f"groups={groups}; got x of shape {tuple(x.shape)}"
        )
    if bias is not None and (bias.shape != (outputs,) or bias.dtype != x.dtype):
        raise ValueError(
            f"bias must have shape ({outputs},) and dtype {x.dtype} for a weight of shape "
            f"{tuple(weight.shape)}; got {tuple(bias.shape)} and {bias.dtype}"
        )


def geometry(
    size: Pair,
    weight: Tensor,
    stride: int | Pair,
    padding: int | Pair,
    dilation: int | Pair,
    groups: int,
    output_padding: int | Pair | None = None,
) -> Geometry:
    """The checked geometry for an input of `size`: of a convolution, or transposed with `output_padding`."""
    stride, padding = to_pair("stride", stride, 1), to_pair("padding", padding, 0)
    dilation, kernel = to_pair("dilation", dilation, 1), tuple(weight.shape[2:])
    axes = list(zip(size, kernel, stride, padding, dilation, strict=True))
    if output_padding is None:
        out = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)
    else:
        extra = to_pair("output_padding", output_padding, 0)
        if extra[0] >= max(stride[0], dilation[0]) or extra[1] >= max(stride[1], dilation[1]):
            raise ValueError(
                f"output_padding must be smaller than stride or dilation; got output_padding={extra}, "
                f"stride={stride}, dilation={dilation}"
            )
        sizes = ((n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in axes)
        out = tuple(n + e for n, e in zip(sizes, extra, strict=True))
    if min(out) < 1:
        raise ValueError(
            f"x must be large enough for its output to be at least 1×1; got x of size {size}, a kernel of "
            f"size {kernel}, stride={stride}, padding={padding}, dilation={dilation}: an output of size {out}"
        )
    small, large = (out, size) if output_padding is None else (size, out)
    return Geometry(kernel, stride, padding, dilation, int(groups), small, large)


def add_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    """(B, C, H, W) plus (C,), if there is one."""
    return y if bias is None else y + bias.view(-1, 1, 1)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """The convolution of neural networks (a correlation: the kernel is not flipped), as `F.conv2d`.

    Args:
        x: (B, C_in, H, W) floats of any range.
        weight: (C_out, C_in/groups, kh, kw), dtype of `x`. `bias`: (C_out,).
        stride, padding, dilation: one integer, or (vertical, horizontal). The padding is with zeros.

    Returns:
        (B, C_out, ⌊(H + 2·padding − dilation·(kh − 1) − 1)/stride⌋ + 1, likewise).

    Raises:
        TypeError: `x` holds no floats, or `weight` other ones.
        ValueError: shapes that do not fit, a size or step out of range, or an output without pixels.
    """
    check_operands(x, weight, bias, groups, transposed=False)
    g = geometry(tuple(x.shape[2:]), weight, stride, padding, dilation, groups)
    return add_bias(_Face.apply(g, 0, weight, x), bias)


def transposed_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    output_padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Multiply the whole kernel by one input pixel and add it to the output; so for every pixel.

    Equal to `F.conv_transpose2d`. All pixels go at once: the loop is over the kernel's positions.

    Args:
        x: (B, C_in, H, W) floats of any range.
        weight: (C_in, C_out/groups, kh, kw), dtype of `x`: the weight of the convolution whose transpose
            this is. `bias`: (C_out,).
        stride, dilation: one integer, or (vertical, horizontal).
        padding: what the convolution would pad, hence what is cut here from each side of the output.
        output_padding: rows and columns added at the bottom and right, fewer than stride or dilation;
            they tell apart the sizes that the convolution would map to the same one.

    Returns:
        (B, C_out, (H − 1)·stride − 2·padding + dilation·(kh − 1) + output_padding + 1, likewise).

    Raises:
        TypeError: `x` holds no floats, or `weight` other ones.
        ValueError: shapes that do not fit, a size or step out of range, or an output without pixels.
    """
    check_operands(x, weight, bias, groups, transposed=True)
    g = geometry(tuple(x.shape[2:]), weight, stride, padding, dilation, groups, output_padding)
    return add_bias(_Face.apply(g, 2, x, weight), bias)


def convolution_matrix(
    weight: Tensor,
    size: int | Pair,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """The matrix M with M @ x.flatten() = convolution(x, weight).flatten() for one image of a given size.

    It has C_out·H'·W' rows and C_in·H·W columns, nearly all zeros: for small sizes.

    Args:
        weight: (C_out, C_in/groups, kh, kw). `size`: (H, W) of the image. The rest as in `convolution`.
    """
    check_maps("weight", weight, "(C_out, C_in/groups, kh, kw)")
    H, W = to_pair("size", size, 1)
    check_operands(weight.new_empty(1, weight.shape[1] * groups, H, W), weight, None, groups, transposed=False)
    g, (S, L, kh, kw) = geometry((H, W), weight, stride, padding, dilation, groups), weight.shape
    group = torch.arange(groups, device=weight.device)
    kernel = weight.new_zeros(groups, S // groups, groups, L, kh, kw)
    kernel[group, :, group] = weight.reshape(groups, S // groups, L, kh, kw)
    kernel = kernel.view(S, groups * L, kh, kw)
    matrix = weight.new_zeros(S, *g.small, groups * L, H, W)
    rows, columns = (torch.arange(n, device=weight.device) for n in g.small)
    for i in range(kh):
        above = rows * g.stride[0] - g.padding[0] + i * g.dilation[0]  # the input row that each output row reads
        r = ((above >= 0) & (above < H)).nonzero()
        for j in range(kw):
            before = columns * g.stride[1] - g.padding[1] + j * g.dilation[1]
            c = ((before >= 0) & (before < W)).nonzero()[:, 0]
            matrix[:, r, c, :, above[r], before[c]] = kernel[:, :, i, j]
    return matrix.view(S * g.small[0] * g.small[1], groups * L * H * W)
