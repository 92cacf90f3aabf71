"""Blocks that several topics share: the embedding of time, residual blocks, attention, halving and doubling.

They follow the networks of DDPM (Ho et al. 2020, appendix B, arXiv 2006.11239) with the scale-shift conditioning of
Nichol & Dhariwal (2021, arXiv 2102.09672, appendix A). Maps are (B, C, H, W) and keep their memory format, of which
channels-last is the fastest.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000) -> Tensor:
    """cos(ωᵢ t) and sin(ωᵢ t), dim/2 frequencies from 1 to nearly 1/max_period (Vaswani et al. 2017, section 3.5).

    The high frequencies tell neighbouring times apart, the low ones early from late: a clock with many hands.

    Args:
        t: (B,), any real numbers.
        dim: even, at least 2.
        max_period: of the slowest, nearly.

    Returns:
        (B, dim) float32, of a float64 t float64: cosines first, then sines.

    Raises:
        ValueError: t that is no vector, or an odd dim.
    """
    if t.ndim != 1 or dim < 2 or dim % 2:
        raise ValueError(f"expected t (B,) and an even dim ≥ 2; got {tuple(t.shape)} and {dim}")
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    half = dim // 2
    omega = torch.exp(-math.log(max_period) / half * torch.arange(half, dtype=t.dtype, device=t.device))
    angles = t[:, None] * omega
    return torch.cat([angles.cos(), angles.sin()], 1)


class GroupNorm(nn.GroupNorm):
    """torch's, computed in float32 also under autocast: sums over thousands of pixels need more than bfloat16's 8 bits.

    (On a CPU it is also faster so: the kernel for bfloat16 channels-last is three times slower backwards.)
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W): groups of channels brought to mean 0 and variance 1, then scaled and shifted."""
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        weight, bias = self.weight.to(wide.dtype), self.bias.to(wide.dtype)
        return F.group_norm(wide, self.num_groups, weight, bias, self.eps).to(x.dtype)


class ResidualBlock(nn.Module):
    """x + f(x, e), with f two 3×3 convolutions, each after GroupNorm and SiLU; the vector e scales and shifts between.

    Args:
        in_channels: a multiple of `groups`.
        out_channels: a multiple of `groups`. Where it differs, a 1×1 convolution carries x across.
        embedding: length of e, the embedding of time and condition; None for a network without.
        groups: of the normalisation.
        dropout: probability, before the second convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, embedding: int | None, groups: int = 8, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.scale_shift = None if embedding is None else nn.Linear(embedding, 2 * out_channels)
        self.norm2 = GroupNorm(groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        nn.init.zeros_(self.conv2.weight)  # at first the block is the identity, so that gradients reach every layer
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, e: Tensor | None = None) -> Tensor:
        """Maps (B, out_channels, H, W) of maps (B, in_channels, H, W) and e (B, embedding)."""
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.scale_shift is not None:
            scale, shift = self.scale_shift(F.silu(e))[:, :, None, None].chunk(2, 1)
            h = torch.addcmul(shift.to(h.dtype), h, 1 + scale.to(h.dtype))
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(h)))


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """torch's; on a CPU in float32 also under autocast, for its kernel for bfloat16 is two to six times slower."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask)


class SelfAttention(nn.Module):
    """x + attention among all pixels of an image (Vaswani et al. 2017, equation 1, with one head), after GroupNorm.

    Its cost grows with the square of the number of pixels, so it belongs to the low resolutions.

    Args:
        channels: a multiple of `groups`.
        groups: of the normalisation.
    """

    def __init__(self, channels: int, groups: int = 8) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) of maps of the same shape."""
        H, W = x.shape[2:]
        pixels = self.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        q, k, v = self.qkv(pixels).chunk(3, 2)
        mixed = self.out(_attention(q, k, v))
        return x + mixed.transpose(1, 2).unflatten(2, (H, W))


class CrossAttention(nn.Module):
    """x + attention of an image's pixels to rows of context, such as a caption's words (Rombach et al. 2022, section
    3.3), after GroupNorm. It has several heads, so that a pixel can ask at once what is there, and which colour it has.

    A learned row stands before the context. It is what pixels look at that no word concerns, and all there is for an
    image without context.

    Args:
        channels: of the maps, a multiple of `groups`.
        context: length of a row of the context.
        heads: of which channels is a multiple.
        groups: of the normalisation.
    """

    def __init__(self, channels: int, context: int, heads: int = 4, groups: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.norm = GroupNorm(groups, channels)
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(context, 2 * channels)
        self.nothing = nn.Parameter(torch.zeros(context))
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, context: Tensor | None = None, context_mask: Tensor | None = None) -> Tensor:
        """Maps (B, C, H, W) of maps of the same shape.

        Args:
            x: (B, C, H, W).
            context: (B, L, context); None: no image has one.
            context_mask: bool (B, L), which rows count; None: all. The learned row always does.
        """
        (B, _, H, W), mask = x.shape, None
        rows = self.nothing.expand(B, 1, -1)
        if context is not None:
            rows = torch.cat([rows, context.to(rows.dtype)], 1)  # (B, 1 + L, context)
        if context_mask is not None:
            mask = F.pad(context_mask, (1, 0), value=True)[:, None, None]  # the same for all heads and pixels
        asked = self.q(self.norm(x).flatten(2).transpose(1, 2))  # (B, HW, C)
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (asked, *self.kv(rows).chunk(2, 2)))
        mixed = self.out(_attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return x + mixed.transpose(1, 2).unflatten(2, (H, W))


class Downsample(nn.Conv2d):
    """Halves H and W, which must be even, by a 3×3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2, padding=1)


class Upsample(nn.Conv2d):
    """Doubles H and W: nearest neighbours, then a 3×3 convolution; so no checkerboards (see `upsampling`)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, 2H, 2W) of maps (B, C, H, W)."""
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))
