"""The judge of the course's pictures: a small classifier, and the features by which `metrics.py` compares sets.

Trained by `recipes/classifier.py`, once for each labelled data set; the weights ship with the course. What makes a
classifier a fair judge of generated pictures, beyond its accuracy:

- A picture's features depend on that picture alone, and on all of it: no batch normalisation, whose statistics come
  from real pictures, and no group normalisation, which would be blind to contrast.
- SiLU instead of ReLU: features vary smoothly, and are not exactly zero for whole classes, which the Gaussians of
  the Fréchet distance would describe badly.
- The last maps are flattened, not averaged: where a stroke lies matters.
"""

import torch
from torch import Tensor, nn

from course_lib.base import checkpoints

WIDTHS = (32, 64, 96)  # channels of the three convolutions
FEATURES = 64  # D: few, because the bias of the Fréchet distance of n pictures grows as D/n
SIDE = 4  # of the last maps, px
# The data sets whose classifiers ship, as the arguments of `Classifier`.
SHIPPED = {
    "digits": {"channels": 1, "size": 8, "classes": 10},
    "mnist": {"channels": 1, "size": 28, "classes": 10},
    "fashion_mnist": {"channels": 1, "size": 28, "classes": 10},
}


class Classifier(nn.Module):
    """Three 3×3 convolutions, pooled until the maps are 4×4, a hidden layer of D = 64 features, and logits.

    Args:
        channels: of the pictures.
        size: side of the square pictures, 4 to 32 px; 8, 28 and 32 all end as maps of 4×4.
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

    def features(self, pictures: Tensor) -> Tensor:
        """What the hidden layer sees in pictures (B, channels, size, size) in [0, 1].

        Returns:
            (B, 64), in units in which the training pictures' features have the variance 1 on average.

        Raises:
            ValueError: pictures of another shape.
            TypeError: pictures that are no floats.
        """
        C, H, W = self.channels, self.size, self.size
        if pictures.ndim != 4 or tuple(pictures.shape[1:]) != (C, H, W):
            raise ValueError(f"this classifier sees pictures (B, {C}, {H}, {W}); got {tuple(pictures.shape)}")
        if not pictures.is_floating_point():
            raise TypeError(f"expected pictures as floats in [0, 1]; got {pictures.dtype}")
        return self.hidden(self.convolutions(2 * pictures - 1)) / self.scale

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits (B, classes) of pictures (B, channels, size, size) in [0, 1]; errors as in `features`."""
        return self.logits(self.dropout(self.features(pictures)))


@torch.no_grad()
def calibrate(network: Classifier, features: Tensor) -> Classifier:
    """Choose the unit of the features, in place: variance 1 on average over them. The logits stay what they were.

    Without it the same distances would be tens for one data set and thousands for another, as training left them.

    Args:
        network: is changed, and returned.
        features: (N, 64), `network.features` of the training pictures.
    """
    s = features.var(dim=0).mean().sqrt()
    network.scale.mul_(s)
    network.logits.weight.mul_(s)
    return network


def load(name: str, device: torch.device | str = "cpu") -> Classifier:
    """A shipped classifier, in eval mode and frozen.

    Args:
        name: of its data set: "digits", "mnist" or "fashion_mnist".

    Raises:
        ValueError: another name.
        checkpoints.CheckpointError: its file is damaged.
    """
    if name not in SHIPPED:
        raise ValueError(f"classifiers ship for {', '.join(SHIPPED)}; got {name!r}")
    network = checkpoints.ready(Classifier(**SHIPPED[name]), f"classifier_{name}", device)
    # Channels last in memory is the layout in which the kernels for convolutions run fastest.
    return network.to(memory_format=torch.channels_last)
