"""A one-stage detector without anchors: every cell says what has its centre there, and which box that thing has.

CenterNet (Zhou, Wang and Krähenbühl 2019, "Objects as Points") in small: a pyramid of features (Lin et al. 2017), read
at a quarter of the picture's size, and one head that classifies and regresses at once.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.base.features import EMBEDDED_WIDTHS, VGG

STRIDE = 4  # pixels a cell
RARE = 0.1  # what an untrained network answers to "is there a centre here?" (Lin et al. 2017, section 4.1)
LARGEST = 6.0  # logarithm of the largest side in cells, lest a wild guess overflow


class Prediction(NamedTuple):
    """What the network says of pictures (B, 3, H, W), for each cell of h × w = H/4 × W/4.

    Attributes:
        heat: (B, K, h, w) logits: whether the centre of an object of that class lies in the cell.
        boxes: (B, 4, h, w) xyxy in pixels: the box of that object, if there is one.
    """

    heat: Tensor
    boxes: Tensor


def cell_centres(h: int, w: int, stride: int = STRIDE) -> Tensor:
    """(2, h, w) float32: x and y of the middles of cells, in pixels."""
    y, x = ((torch.arange(n, dtype=torch.float32) + 0.5) * stride for n in (h, w))
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1])


def to_boxes(regressed: Tensor, stride: int = STRIDE) -> Tensor:
    """Boxes (B, 4, h, w) xyxy in pixels of the four numbers a cell regresses, (B, 4, h, w).

    They are the offset of the object's centre from the middle of the cell, x and y, in cells, and the logarithms of
    its width and height in cells. (Departure: the paper regresses the size itself, in cells.)
    """
    offset, log_size = regressed.split(2, 1)
    centre = cell_centres(*regressed.shape[-2:], stride).to(regressed) + stride * offset
    half = stride * log_size.clamp(max=LARGEST).exp() / 2
    return torch.cat([centre - half, centre + half], 1)


class Residual(nn.Module):
    """Two 3×3 convolutions with BatchNorm beside a shortcut (He et al. 2016, figure 2); a stride halves the size."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
        )
        same = channels == out and stride == 1
        shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.shortcut = nn.Identity() if same else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → (B, out, H/stride, W/stride)."""
        return F.relu(self.body(x) + self.shortcut(x))


class SmallBackbone(nn.Module):
    """Residual blocks at strides 4, 8, 16 and so on, for training from scratch in a minute.

    Args:
        widths: channels of the stem (stride 2) and of every level after it.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 64, 96)) -> None:
        super().__init__()
        self.widths = tuple(widths[1:])
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)
        )
        self.levels = nn.ModuleList(nn.Sequential(Residual(a, b, 2), Residual(b, b)) for a, b in pairwise(widths))

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Features (B, C, H/stride, W/stride) at every level, of pictures (B, 3, H, W) in [0, 1]."""
        x, found = self.stem(2 * pictures - 1), []
        for level in self.levels:
            found.append(x := level(x))
        return found


class PerceptualBackbone(nn.Module):
    """The embedded perceptual network of `base.features` up to relu4_1, and two levels of blocks on top of it.

    Its first two blocks, which see edges and colours as every network does, stay as they are.

    Args:
        widths: channels of the two levels, at strides 16 and 32.
    """

    def __init__(self, widths: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        blocks = EMBEDDED_WIDTHS[:4]
        self.widths = (blocks[2][-1], blocks[3][-1], *widths)
        self.vgg = VGG(blocks, name="embedded VGG")
        for name, convolution in self.vgg.convolutions.items():
            convolution.requires_grad_(name[0] in "34")
        self.levels = nn.ModuleList(Residual(a, b, 2) for a, b in pairwise(self.widths[1:]))

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Features (B, C, H/stride, W/stride) at strides 4, 8, 16 and 32, of pictures (B, 3, H, W) in [0, 1]."""
        found = list(self.vgg.extract(pictures, ("relu3_2", "relu4_1")).values())
        for level in self.levels:
            found.append(level(found[-1]))
        return found

    def take_up(self, weights: Mapping[str, Tensor]) -> "PerceptualBackbone":
        """Itself, with the embedded network's weights, a `state_dict` of `features.load("embedded")`, to go on from."""
        own = self.vgg.state_dict()
        self.vgg.load_state_dict({name: weights[name] for name in own})
        return self


class Detector(nn.Module):
    """Backbone, a top-down pyramid that brings wide views to fine cells, and a head.

    Args:
        classes: K, how many kinds of objects.
        backbone: a module with `widths` that gives features at strides 4, 8, 16 and so on.
        width: channels of the pyramid.
    """

    def __init__(self, classes: int, backbone: nn.Module | None = None, width: int = 64) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"expected one class or more, got {classes}")
        self.classes, self.width = classes, width
        self.backbone = SmallBackbone() if backbone is None else backbone
        self.coarsest = STRIDE * 2 ** (len(self.backbone.widths) - 1)
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))
            for channels in self.backbone.widths
        )
        self.smooth = nn.ModuleList(Residual(width, width) for _ in self.backbone.widths)
        self.head = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.last = nn.Conv2d(width, classes + 4, 1)
        nn.init.normal_(self.last.weight, std=0.01)
        with torch.no_grad():
            self.last.bias[:classes] = torch.logit(torch.tensor(RARE))
            self.last.bias[classes:] = 0

    def features(self, pictures: Tensor) -> Tensor:
        """(B, width, H/4, W/4) for heads to read, of pictures (B, 3, H, W) in [0, 1].

        Raises:
            ValueError: another shape, or sides that the coarsest level's stride does not divide.
        """
        if pictures.ndim != 4 or pictures.shape[1] != 3 or any(side % self.coarsest for side in pictures.shape[2:]):
            raise ValueError(
                f"expected pictures (B, 3, H, W) with H and W multiples of {self.coarsest}, got {tuple(pictures.shape)}"
            )
        # Channels last in memory is the layout in which convolutions run fastest.
        levels = self.backbone(pictures.contiguous(memory_format=torch.channels_last))
        x = None
        for features, lateral, smooth in reversed(list(zip(levels, self.lateral, self.smooth, strict=True))):
            own = lateral(features)
            x = smooth(F.relu(own if x is None else own + F.interpolate(x, scale_factor=2, mode="nearest")))
        return x

    def forward(self, pictures: Tensor) -> Prediction:
        """What lies where in pictures (B, 3, H, W) in [0, 1]. Errors: as for `features`."""
        heat, regressed = self.last(self.head(self.features(pictures))).float().split([self.classes, 4], 1)
        return Prediction(heat, to_boxes(regressed))
