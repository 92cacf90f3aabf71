"""The judge of the course's images: a small classifier, and the features by which `metrics.py` compares sets.

Trained by `recipes/classifier.py`, once for each labelled data set; the weights ship with the course. What makes a
classifier a fair judge of generated images, beyond its accuracy:

- An image's features depend on that image alone, and on all of it: no batch normalisation, whose statistics come
  from real images, and no group normalisation, which would be blind to contrast.
- SiLU instead of ReLU: features vary smoothly, and are not exactly zero for whole classes, which the Gaussians of
  the Fréchet distance would describe badly.
- The last maps are flattened, not averaged: where a stroke lies matters.
"""

from functools import partial

import torch
from torch import Tensor, nn

from course_lib.base import zoo
from course_lib.base.images import check_batch

WIDTHS = (32, 64, 96)  # channels of the three convolutions
FEATURES = 64  # D: few, because the bias of the Fréchet distance of n images grows as D/n
SIDE = 4  # of the last maps, px
JUDGED = {"digits": 8, "mnist": 28, "fashion_mnist": 28}  # data sets whose `classifier_<name>` ships; side, px


class Classifier(nn.Module):
    """Three 3×3 convolutions, pooled until the maps are 4×4, a hidden layer of D = 64 features, and logits.

    Args:
        channels: of the images.
        size: side of the square images, 4 to 32 px; 8, 28 and 32 all end as maps of 4×4.
        classes: how many to tell apart.

    Raises:
        ValueError: no channels or classes, or another size.
    """

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        if channels < 1 or classes < 1 or not SIDE <= size <= SIDE * 2 ** len(WIDTHS):
            raise ValueError(f"expected channels, classes ≥ 1 and size 4 … 32; got {channels}, {classes} and {size}")
        self.channels, self.size, self.classes = channels, size, classes
        stages: list[nn.Module] = []
        for width in WIDTHS:
            stages += [nn.Conv2d(channels, width, 3, padding=1), nn.SiLU()]
            channels = width
            if size > SIDE:
                stages.append(nn.AvgPool2d(2, ceil_mode=True))  # at an odd border: the mean of what is there
                size = -(-size // 2)
        self.convolutions = nn.Sequential(*stages, nn.Flatten())
        self.hidden = nn.Sequential(nn.Linear(WIDTHS[-1] * size**2, FEATURES), nn.SiLU())
        self.register_buffer("scale", torch.ones(()))  # set by `calibrate`
        self.dropout = nn.Dropout(0.25)  # in training only: no feature may lean on another
        self.logits = nn.Linear(FEATURES, classes)
        self.to(memory_format=torch.channels_last)  # in this memory format convolutions run fastest

    def features(self, images: Tensor) -> Tensor:
        """What the hidden layer sees in images (B, channels, size, size) in [0, 1].

        Args:
            images: of any floating dtype; the network works in its own.

        Returns:
            (B, 64), in units in which the training images' features have the variance 1 on average.

        Raises:
            ValueError: images of another shape.
            TypeError: images that are no tensor of floats.
        """
        check_batch(images)
        C, H, W = self.channels, self.size, self.size
        if images.shape[1:] != (C, H, W):
            raise ValueError(f"this classifier sees images (B, {C}, {H}, {W}); got {tuple(images.shape)}")
        return self.hidden(self.convolutions(2 * images.to(self.scale.dtype) - 1)) / self.scale

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, channels, size, size) in [0, 1]; errors as in `features`."""
        return self.logits(self.dropout(self.features(images)))


@torch.no_grad()
def calibrate(network: Classifier, features: Tensor) -> Classifier:
    """Choose the unit of the features, in place: variance 1 on average over them. The logits stay what they were.

    Without it the same distances would be tens for one data set and thousands for another, as training left them.

    Args:
        network: is changed, and returned.
        features: (N, 64), `network.features` of the training images.
    """
    s = features.var(dim=0).mean().sqrt()
    network.scale.mul_(s)
    network.logits.weight.mul_(s)
    return network


for _data, _size in JUDGED.items():
    zoo.register(f"classifier_{_data}", partial(Classifier, channels=1, size=_size, classes=10))
