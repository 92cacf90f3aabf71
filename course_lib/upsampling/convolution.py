"""Learnable upsampling by hand: convolution, its transpose in three forms, and the checkerboard.

A convolution cuts the image into windows and takes the product of each with the kernel. Its transpose goes the
other way: every input pixel times the whole kernel is a patch, and the patches are added into the output. Both go
kernel row by kernel row, each a convolution along one axis; so no tensor is kh·kw times as large as the image.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from course_lib.upsampling.interpolation import Pair, Size, bed_of_nails, cell_side, check_maps, nearest, to_pair


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Size = 1, padding: Size = 0) -> Tensor:
    """The convolution of neural networks (a correlation: the kernel is not flipped), as `F.conv2d`.

    Args:
        x: (B, C_in, H, W) floats of any range.
        weight: (C_out, C_in, kh, kw), dtype of `x`.
        bias: (C_out,), dtype of `x`.
        stride: one integer, or (vertical, horizontal).
        padding: rows and columns of zeros on each side, one integer, or (vertical, horizontal).

    Returns:
        (B, C_out, ⌊(H + 2·padding − kh)/stride⌋ + 1, likewise).

    Raises:
        TypeError: `x` holds no floats, or `weight` other ones.
        ValueError: shapes that do not fit, a size or step out of range, or an output without pixels.
    """
    (s, t), (p, q) = to_pair("stride", stride, 1), to_pair("padding", padding, 0)
    _check_operands(x, weight, bias, transposed=False)
    kh, kw = weight.shape[2:]
    _check_output([x.shape[2] + 2 * p - kh + 1, x.shape[3] + 2 * q - kw + 1], x, weight)
    image, kernels = _at_least_float32(x, weight)
    rows = _Windows.apply(pad(image, (q, q, p, p)), 2, kh, s)  # (B, C_in, kh, h, W)
    y = sum(
        torch.einsum("ocj,bcjhw->bohw", kernel_row, _Windows.apply(row, 3, kw, t))
        for kernel_row, row in zip(kernels.unbind(2), rows.unbind(2), strict=True)
    )
    return _finish(y, bias, x.dtype)


def transposed_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Size = 1, padding: Size = 0, output_padding: Size = 0
) -> Tensor:
    """Multiply the whole kernel by one input pixel and add it to the output; so for every pixel.

    Equal to `F.conv_transpose2d`.

    Args:
        x: (B, C_in, H, W) floats of any range.
        weight: (C_in, C_out, kh, kw), dtype of `x`: the weight of the convolution whose transpose this is.
        bias: (C_out,), dtype of `x`.
        stride: how far apart the kernels lie in the output, one integer, or (vertical, horizontal).
        padding: what the convolution would pad, hence what is cut here from each side of the output.
        output_padding: rows and columns added at the bottom and right, fewer than `stride`. The convolution
            maps images of several sizes to one size; this tells them apart.

    Returns:
        (B, C_out, (H − 1)·stride − 2·padding + kh + output_padding, likewise).

    Raises:
        TypeError: `x` holds no floats, or `weight` other ones.
        ValueError: shapes that do not fit, a size or step out of range, or an output without pixels.
    """
    (s, t), (p, q), (e, f) = _transposed_steps(x, weight, bias, stride, padding, output_padding)
    (h, w), (kh, kw) = x.shape[2:], weight.shape[2:]
    pixels, kernels = _at_least_float32(x, weight)
    H, W = (h - 1) * s + kh + e, (w - 1) * t + kw + f
    rows = [
        _AddPatches.apply(torch.einsum("coj,bchw->bojhw", kernel_row, pixels), 3, W, t)
        for kernel_row in kernels.unbind(2)
    ]
    y = _AddPatches.apply(torch.stack(rows, 2), 2, H, s)
    return _finish(y[:, :, p : H - p, q : W - q], bias, x.dtype)


def _windows(x: Tensor, axis: int, length: int, step: int) -> Tensor:
    """(B, C, H, W) → (B, C, length, h, W) along axis 2, (B, C, length, H, w) along axis 3; a view.

    Window n begins at pixel n·step of the axis; [:, :, i] is pixel i of every window.
    """
    return x.unfold(axis, length, step).movedim(-1, 2)


class _Windows(torch.autograd.Function):
    """`_windows`, differentiable. Both axes one after the other: all windows at once would fill the memory."""

    @staticmethod
    def forward(ctx, x: Tensor, axis: int, length: int, step: int) -> Tensor:
        ctx.arguments = axis, x.shape[axis], step
        return _windows(x, axis, length, step)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        return _AddPatches.apply(gradient, *ctx.arguments), None, None, None


class _AddPatches(torch.autograd.Function):
    """The transpose of `_Windows`: the sum of the patches where they lie, with `size` pixels along the axis.

    All patches go at once: the loop is over the positions in a patch. Windows and patches are each other's gradient;
    torch would find the same, but takes several times as long for the gradient of such a loop.
    """

    @staticmethod
    def forward(ctx, patches: Tensor, axis: int, size: int, step: int) -> Tensor:
        B, C, length, *sides = patches.shape
        ctx.arguments = axis, length, step
        sides[axis - 2] = size
        out = patches.new_zeros(B, C, *sides)
        for place, patch in zip(_windows(out, axis, length, step).unbind(2), patches.unbind(2), strict=True):
            place += patch
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        return _Windows.apply(gradient, *ctx.arguments), None, None, None


def transposed_convolution_by_zeros(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Size = 1, padding: Size = 0, output_padding: Size = 0
) -> Tensor:
    """`transposed_convolution` the second way: zeros between the pixels, then convolve with the flipped kernel.

    Arguments, result and errors are the same. Most of its products are with zeros, stride² − 1 of stride²
    (Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning", section 4).
    """
    (s, t), (p, q), (e, f) = _transposed_steps(x, weight, bias, stride, padding, output_padding)
    (h, w), (kh, kw) = x.shape[2:], weight.shape[2:]
    nails = bed_of_nails(x, (s, t))[:, :, : (h - 1) * s + 1, : (w - 1) * t + 1]
    top, left = kh - 1 - p, kw - 1 - q  # a margin of zeros; below 0 it is cut off
    nails = pad(nails, (left, left + f, top, top + e))
    return convolution(nails, weight.transpose(0, 1).flip(2, 3), bias)


def transposed_convolution_by_matrix(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Size = 1, padding: Size = 0, output_padding: Size = 0
) -> Tensor:
    """`transposed_convolution` by its name: multiply by the transpose of the convolution's matrix.

    Arguments, result and errors are the same; for small sizes.
    """
    steps = _transposed_steps(x, weight, bias, stride, padding, output_padding)
    H, W = ((n - 1) * s + k - 2 * p + e for n, k, s, p, e in zip(x.shape[2:], weight.shape[2:], *steps, strict=True))
    pixels, kernels = _at_least_float32(x, weight)
    matrix = convolution_matrix(kernels, (H, W), stride, padding)
    y = pixels.flatten(1) @ matrix  # (Mᵀ x)ᵀ = xᵀ M, a row for each image
    return _finish(y.view(len(x), weight.shape[1], H, W), bias, x.dtype)


def convolution_matrix(weight: Tensor, size: Size, stride: Size = 1, padding: Size = 0) -> Tensor:
    """The matrix M with M @ x.flatten() = convolution(x, weight).flatten() for one image of a given size.

    Its n-th column is what the convolution makes of an image whose n-th pixel is 1 and all others 0. Nearly
    all of it is zeros: for small sizes.

    Args:
        weight: (C_out, C_in, kh, kw) floats.
        size: of the image, one integer or (H, W).
        stride: as in `convolution`.
        padding: as in `convolution`.

    Returns:
        (C_out·H'·W', C_in·H·W).

    Raises:
        TypeError: `weight` holds no floats.
        ValueError: not a 4-dimensional weight, a size or step out of range, or an output without pixels.
    """
    _check_weight(weight, "(C_out, C_in, kh, kw)")
    C, (H, W) = weight.shape[1], to_pair("size", size, 1)
    one_hot = torch.eye(C * H * W, dtype=weight.dtype, device=weight.device).view(-1, C, H, W)
    return convolution(one_hot, weight, None, stride, padding).flatten(1).mT


def resize_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, factor: Size = 2) -> Tensor:
    """Nearest-neighbour upsampling, then a convolution that keeps the size (Odena et al. 2016).

    Every output pixel sums the same number of products, so there is no checkerboard to begin with.

    Args:
        x: (B, C_in, H, W) floats of any range.
        weight: (C_out, C_in, kh, kw) with kh and kw odd, dtype of `x`.
        bias: (C_out,), dtype of `x`.
        factor: one integer, or (vertical, horizontal).

    Returns:
        (B, C_out, H·factor, W·factor).

    Raises:
        TypeError: `x` holds no floats, or `weight` other ones.
        ValueError: shapes that do not fit, an even kernel, or a `factor` below 1.
    """
    _check_operands(x, weight, bias, transposed=False)
    kh, kw = weight.shape[2:]
    if kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f"weight must have an odd kernel; got shape {tuple(weight.shape)}")
    (H, W), (s, t) = x.shape[2:], to_pair("factor", factor, 1)
    return convolution(nearest(x, (H * s, W * t)), weight, bias, padding=(kh // 2, kw // 2))


@torch.no_grad()
def icnr_(weight: Tensor, factor: int, rng: torch.Generator | None = None) -> Tensor:
    """Fill a convolution's weight so that convolution and `pixel_shuffle` start as convolution and `nearest`.

    The r² kernels of each output pixel's cell begin equal, so there is no checkerboard to unlearn (Aitken
    et al. 2017, section 4); each is drawn from He's normal distribution, of variance 2/(C_in·kh·kw).

    Args:
        weight: (C·r², C_in, kh, kw) floats, changed in place and returned.
        factor: r.
        rng: where the random numbers come from; None is torch's own generator.

    Raises:
        TypeError: `weight` holds no floats.
        ValueError: `weight` is empty or not 4-dimensional, or its first size is not a multiple of r².
    """
    _check_weight(weight, "(C·r², C_in, kh, kw)")
    (S, C_in, kh, kw), r = weight.shape, cell_side(factor)
    if S % r**2:
        raise ValueError(f"weight must have a multiple of factor² = {r**2} outputs; got {tuple(weight.shape)}")
    cells = weight.new_empty(S // r**2, C_in, kh, kw)
    cells.normal_(0, math.sqrt(2 / (C_in * kh * kw)), generator=rng)
    return weight.copy_(cells.repeat_interleave(r**2, 0))


def overlap_count(size: Size, kernel: Size, stride: Size, padding: Size = 0) -> Tensor:
    """How many input pixels write to each output pixel of a transposed convolution: the checkerboard.

    It is the transposed convolution of ones with a kernel of ones. Away from the border it is even exactly where
    the stride divides the kernel (Odena et al. 2016).

    Args:
        size: of the input, n or (h, w).
        kernel: its size, one integer, or (vertical, horizontal).
        stride: as in `transposed_convolution`.
        padding: as in `transposed_convolution`.

    Returns:
        int64 counts, (H,) for one integer as size, else (H, W).

    Raises:
        ValueError: a size or step below 1, a padding below 0 or one that leaves no output.
    """
    (h, w), (kh, kw) = to_pair("size", size, 1), to_pair("kernel", kernel, 1)
    (s, t), (p, q) = to_pair("stride", stride, 1), to_pair("padding", padding, 0)
    if one_axis := not isinstance(size, (tuple, list)):
        w, kw, t, q = 1, 1, 1, 0
    counts = transposed_convolution(torch.ones(1, 1, h, w), torch.ones(1, 1, kh, kw), None, (s, t), (p, q))
    return counts[0, 0, :, 0].long() if one_axis else counts[0, 0].long()


def _check_weight(weight: Tensor, shape: str) -> None:
    check_maps("weight", weight, shape)
    if not len(weight):
        raise ValueError(f"weight must have shape {shape}, none 0; got {tuple(weight.shape)}")


def _check_operands(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> None:
    """TypeError or ValueError unless `x`, `weight` and `bias` fit each other in a (transposed) convolution."""
    check_maps("x", x)
    _check_weight(weight, "(C_in, C_out, kh, kw)" if transposed else "(C_out, C_in, kh, kw)")
    if weight.dtype != x.dtype:
        raise TypeError(f"weight must have the dtype of x, {x.dtype}; got {weight.dtype}")
    channels, outputs = weight.shape[:2] if transposed else weight.shape[1::-1]
    if x.shape[1] != channels:
        raise ValueError(
            f"x must have {channels} channels for a weight of {tuple(weight.shape)}; got x of shape {tuple(x.shape)}"
        )
    if bias is not None and (bias.shape != (outputs,) or bias.dtype != x.dtype):
        raise ValueError(
            f"bias must have shape ({outputs},) and dtype {x.dtype} for a weight of {tuple(weight.shape)}; "
            f"got {tuple(bias.shape)} and {bias.dtype}"
        )


def _check_output(sides: list[int], x: Tensor, weight: Tensor) -> None:
    if min(sides) < 1:
        raise ValueError(
            f"the output must be at least 1×1: x of size {tuple(x.shape[2:])} is too small for a kernel of "
            f"size {tuple(weight.shape[2:])} and these steps"
        )


def _transposed_steps(x, weight, bias, stride, padding, output_padding) -> tuple[Pair, Pair, Pair]:
    """The checked stride, padding and output padding of a transposed convolution, each as a pair."""
    stride, padding = to_pair("stride", stride, 1), to_pair("padding", padding, 0)
    extra = to_pair("output_padding", output_padding, 0)
    _check_operands(x, weight, bias, transposed=True)
    if extra[0] >= stride[0] or extra[1] >= stride[1]:
        raise ValueError(f"output_padding must be smaller than stride; got {extra} and stride={stride}")
    axes = zip(x.shape[2:], weight.shape[2:], stride, padding, extra, strict=True)
    _check_output([(n - 1) * s + k - 2 * p + e for n, k, s, p, e in axes], x, weight)
    return stride, padding, extra


def _at_least_float32(*tensors: Tensor) -> list[Tensor]:
    """Sums of half-precision numbers are taken in float32."""
    return [t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


def _finish(y: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Add the bias, if there is one, and round to the dtype that was asked for."""
    y = y if bias is None else y + bias.view(-1, 1, 1)
    return y.to(dtype).contiguous()
