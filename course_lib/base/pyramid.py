"""A feature pyramid (Lin et al. 2017, arXiv 1612.03144): what detection and segmentation look at an image with.

A backbone goes down: small residual blocks at strides 4, 8, 16 and so on. Then the pyramid goes up: each level adds
the next coarser one, enlarged, to its own features, so that fine cells know what a wide view shows.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 4  # pixels a cell, at the finest level


class Residual(nn.Module):
    """Two 3×3 convolutions with BatchNorm beside a shortcut (He et al. 2016, figure 2); a stride halves the size."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv3x3(channels, out, stride), nn.ReLU(inplace=True), *conv3x3(out, out))
        same = channels == out and stride == 1
        self.shortcut = nn.Identity() if same else pointwise(channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → (B, out, H/stride, W/stride)."""
        return F.relu(self.body(x) + self.shortcut(x))


def conv3x3(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    """A 3×3 convolution with BatchNorm."""
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out))


def pointwise(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    """A 1×1 convolution with BatchNorm."""
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


def doubled(x: Tensor) -> Tensor:
    """Features (B, C, H, W) at twice the size, each cell four times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class SmallBackbone(nn.Module):
    """Residual blocks at strides 4, 8, 16 and so on, for training from scratch in a minute.

    Args:
        widths: channels of the stem (stride 2) and of every level after it.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 64, 96)) -> None:
        super().__init__()
        self.fine_width, self.widths = widths[0], tuple(widths[1:])
        self.stem = nn.Sequential(*conv3x3(3, widths[0], 2), nn.ReLU(inplace=True))
        self.levels = nn.ModuleList(nn.Sequential(Residual(a, b, 2), Residual(b, b)) for a, b in pairwise(widths))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features (B, C, H/stride, W/stride) at every level, of images (B, 3, H, W) in [0, 1]."""
        return self.fine(images)[1:]

    def fine(self, images: Tensor) -> list[Tensor]:
        """The same, from the stem's features at stride 2 on."""
        found = [self.stem(2 * images - 1)]
        for level in self.levels:
            found.append(level(found[-1]))
        return found


class FeaturePyramid(nn.Module):
    """A backbone and the pyramid above it; networks inherit from it and add their heads.

    Args:
        backbone: a module with `widths` that gives features at strides 4, 8, 16 and so on.
        width: channels of the pyramid.

    Attributes:
        divisor: what H and W must be multiples of: the coarsest level's stride.
    """

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.backbone, self.width = backbone, width
        self.divisor = STRIDE * 2 ** (len(backbone.widths) - 1)
        self.lateral = nn.ModuleList(pointwise(channels, width) for channels in backbone.widths)
        self.smooth = nn.ModuleList(Residual(width, width) for _ in backbone.widths)

    def prepared(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in the memory format in which convolutions run fastest.

        Raises:
            ValueError: another shape, or sides that `divisor` does not divide.
        """
        if images.ndim != 4 or images.shape[1] != 3 or any(side % self.divisor for side in images.shape[2:]):
            raise ValueError(
                f"expected images (B, 3, H, W) with H and W multiples of {self.divisor}, got {tuple(images.shape)}"
            )
        return images.contiguous(memory_format=torch.channels_last)

    def up(self, levels: Sequence[Tensor]) -> Tensor:
        """The features of the finest level (B, width, H/4, W/4), informed by all the coarser ones.

        Args:
            levels: the backbone's features, from the finest.
        """
        x = None
        for features, lateral, smooth in reversed(list(zip(levels, self.lateral, self.smooth, strict=True))):
            own = lateral(features)
            x = smooth(F.relu(own if x is None else own + doubled(x)))
        return x
