"""Generators, noise z → image in [-1, 1], and discriminators, image → logit of "real": GAN 2014 and DCGAN 2015.

A discriminator ends in a logit, not in a probability: D(x) = σ(logit), and the losses stay finite on logits. Input of
another floating dtype is converted to that of the weights.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.base import zoo

THIN = 4  # channels; with so few, oneDNN's strided kernels are slower than their sub-pixel forms


class Upsampling(nn.ConvTranspose2d):
    """(B, C_in, H, W) → (B, C_out, 2H, 2W): transposed convolution 4×4, stride 2, padding 1.

    Few channels go through its sub-pixel form. Every output pixel meets only 2×2 of the 4×4 weights, and which ones
    depends on its parity alone. So a 2×2 convolution to four times the channels computes all four parities at once, and
    a pixel shuffle weaves them together (Shi et al. 2016, arXiv 1609.07009, "Is the deconvolution layer the same as
    a convolutional layer?").
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 4, stride=2, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """The same numbers whichever way is faster."""
        if self.out_channels > THIN:
            return super().forward(x)
        weight = self.weight.unflatten(3, (2, 2)).unflatten(2, (2, 2)).flip(2, 4)  # row 2(1 − t) + a to (t, a)
        weight = weight.permute(1, 3, 5, 0, 2, 4).reshape(4 * self.out_channels, self.in_channels, 2, 2)
        bias = None if self.bias is None else self.bias.repeat_interleave(4)
        return F.pixel_shuffle(F.conv2d(x, weight, bias, padding=1), 2)[:, :, 1:-1, 1:-1]


class Downsampling(nn.Conv2d):
    """(B, C_in, 2H, 2W) → (B, C_out, H, W): convolution 4×4, stride 2, padding 1.

    Few channels go through its sub-pixel form: a 2×2 convolution of the four parities of x's pixels.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 4, stride=2, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """The same numbers whichever way is faster."""
        if self.in_channels > THIN:
            return super().forward(x)
        weight = self.weight.unflatten(3, (2, 2)).unflatten(2, (2, 2))  # row 2t + a of the kernel to (t, a)
        weight = weight.permute(0, 1, 3, 5, 2, 4).reshape(self.out_channels, 4 * self.in_channels, 2, 2)
        return F.conv2d(F.pixel_unshuffle(F.pad(x, (1, 1, 1, 1)), 2), weight, self.bias)


def _start(size: int) -> tuple[int, int]:
    """The side of the first grid and the number of doublings up to `size`: 8 → 2, 2; 28 → 7, 2; 32 → 4, 3.

    Two doublings at least: a discriminator of one convolution is too weak a teacher.
    """
    side, doublings = size, 0
    while side % 2 == 0 and (side > 7 or doublings < 2):
        side, doublings = side // 2, doublings + 1
    if not 2 <= side <= 7 or doublings < 2:
        raise ValueError(f"size must be a number from 2 to 7 doubled twice or more, such as 8, 28 or 32; got {size}")
    return side, doublings


class FullyConnectedGenerator(nn.Module):
    """The generator of GAN 2014 (Goodfellow et al., section 5): two hidden layers of ReLU, no convolution.

    The paper ends in a sigmoid for greys in [0, 1]; tanh is the same curve stretched to the range that the course's
    generators share.

    Args:
        z_dim: numbers in z ~ N(0, I).
        hidden: units of each hidden layer.
        channels: of the images.
        size: of the images, in pixels.
    """

    classes = None

    def __init__(self, z_dim: int = 64, hidden: int = 512, channels: int = 1, size: int = 28) -> None:
        super().__init__()
        self.z_dim, self.channels, self.size = z_dim, channels, size
        self.layers = nn.Sequential(
            nn.Linear(z_dim, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, channels * size * size),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Images (B, channels, size, size) in [-1, 1] of noise (B, z_dim).

        Raises:
            ValueError: z of another shape or no z.
        """
        check_floats(z, "z", self.z_dim)
        return self.layers(z.to(self.layers[0].weight.dtype)).view(-1, self.channels, self.size, self.size)


class Maxout(nn.Linear):
    """(B, inputs) → (B, outputs): each output the largest of `pieces` linear maps (Goodfellow et al. 2013)."""

    def __init__(self, inputs: int, outputs: int, pieces: int = 5) -> None:
        super().__init__(inputs, outputs * pieces)
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        """The largest piece of each output."""
        return super().forward(x).unflatten(1, (-1, self.pieces)).amax(2)


class MaxoutDiscriminator(nn.Module):
    """The discriminator of GAN 2014: two maxout layers with dropout.

    Args:
        channels: of the images.
        size: of the images, in pixels.
        hidden: units of each hidden layer.
        pieces: linear maps from which a unit takes the largest.
    """

    def __init__(self, channels: int = 1, size: int = 28, hidden: int = 128, pieces: int = 5) -> None:
        super().__init__()
        self.channels, self.size = channels, size
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(0.2),
            Maxout(channels * size * size, hidden, pieces),
            nn.Dropout(0.5),
            Maxout(hidden, hidden, pieces),
            nn.Dropout(0.5),
            nn.Linear(hidden, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B,) of images (B, channels, size, size) in [-1, 1].

        Raises:
            ValueError: images of another shape, or none.
        """
        check_floats(x, "images", self.channels, self.size, self.size)
        return self.layers(x.to(self.layers[-1].weight.dtype)).squeeze(1)


def _initialise(module: nn.Module) -> None:
    """Normal weights of standard deviation 0.02 (Radford et al. 2016, section 4); a normalisation's gain around one."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


class Generator(nn.Module):
    """DCGAN's generator (Radford et al. 2016).

    What comes from z is normalised before the label's map is added. Joined to z in front of that layer, as in many
    tutorials, the label, whose gradient always points the same way, soon outgrows the noise, and every class becomes
    a single image.

    Args:
        z_dim: numbers in z ~ N(0, I). (The paper draws it uniformly.)
        channels: of the images, 1 or 3.
        size: 8, 28, 32, or another number from 2 to 7 doubled twice or more.
        width: channels before the last layer; each grid of half the side has twice as many.
        classes: None, or how many; then every label has a learnt map that is added to the first one.

    Raises:
        ValueError: an impossible size.
    """

    def __init__(
        self, z_dim: int = 64, channels: int = 1, size: int = 28, width: int = 64, classes: int | None = None
    ) -> None:
        super().__init__()
        self.z_dim, self.channels, self.size, self.classes = z_dim, channels, size, classes
        self.side, doublings = _start(size)
        C = width * 2 ** (doublings - 1)
        # "Project and reshape": the only fully connected layer (guideline 3: no fully connected hidden layers).
        self.project = nn.Linear(z_dim, C * self.side**2, bias=False)
        self.embedding = None if classes is None else nn.Embedding(classes, C * self.side**2)
        # Guidelines 2 and 4: batch normalisation and ReLU everywhere but at the output.
        layers: list[nn.Module] = [nn.BatchNorm2d(C), nn.ReLU(inplace=True)]
        for _ in range(doublings - 1):
            # Guideline 1: no fixed upsampling, the network learns its own, with fractional strides.
            layers += [Upsampling(C, C // 2, bias=False), nn.BatchNorm2d(C // 2), nn.ReLU(inplace=True)]
            C //= 2
        self.layers = nn.Sequential(*layers, Upsampling(C, channels), nn.Tanh())
        self.apply(_initialise)
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight)  # as loud as the normalised noise

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, channels, size, size) in [-1, 1].

        Args:
            z: noise (B, z_dim).
            labels: int64 (B,) in [0, classes), for a network with classes.

        Raises:
            ValueError: z of another shape or no z; labels missing, not wanted or of another dtype or shape.
        """
        check_floats(z, "z", self.z_dim)
        _check_labels(labels, self.classes, len(z))
        x = self.project(z.to(self.project.weight.dtype)).view(len(z), -1, self.side, self.side)
        # The memory format in which convolutions run fastest; all layers keep it.
        x = self.layers[0](x.contiguous(memory_format=torch.channels_last))
        if self.embedding is not None:
            x = x + self.embedding(labels).view_as(x)
        return self.layers[1:](x)


class Discriminator(nn.Module):
    """DCGAN's discriminator, the mirror image of `Generator`.

    With classes the logit is ψ(φ) + v_yᵀ φ, a learnt vector v_y for each label (Miyato and Koyama 2018, equation 3);
    φ are the last features, here not summed over positions, and ψ is linear.

    Args:
        channels: of the images, 1 or 3.
        size: 8, 28, 32, or another number from 2 to 7 doubled twice or more.
        width: channels after the first layer; each halving of the side doubles them.
        classes: None, or how many.
        normalise: with batch normalisation, as in the paper; without it for the R1 penalty, which needs the
            gradient of each image's own logit, while batch normalisation makes a logit depend on the whole batch.

    Raises:
        ValueError: an impossible size.
    """

    def __init__(
        self, channels: int = 1, size: int = 28, width: int = 64, classes: int | None = None, normalise: bool = True
    ) -> None:
        super().__init__()
        self.channels, self.size, self.classes = channels, size, classes
        side, doublings = _start(size)
        # Guidelines 1 and 5: strided convolutions instead of pooling, leaky ReLU everywhere.
        layers: list[nn.Module] = [Downsampling(channels, width), nn.LeakyReLU(0.2, inplace=True)]
        C = width
        for _ in range(doublings - 1):
            layers.append(Downsampling(C, 2 * C, bias=not normalise))
            C *= 2
            # Guideline 2: batch normalisation, not at the input.
            layers += [nn.BatchNorm2d(C)] if normalise else []
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(C * side**2, 1)
        self.embedding = None if classes is None else nn.Embedding(classes, C * side**2)
        if normalise:  # without it, such small weights would leave next to nothing of an image after few layers
            self.apply(_initialise)
        elif self.embedding is not None:
            nn.init.normal_(self.embedding.weight, 0.0, 0.02)

    def features(self, x: Tensor) -> Tensor:
        """φ (B, C·side²), the last features in one row, of images (B, channels, size, size).

        Raises:
            ValueError: images of another shape, or none.
        """
        check_floats(x, "images", self.channels, self.size, self.size)
        x = x.to(self.head.weight.dtype).contiguous(memory_format=torch.channels_last)
        return self.layers(x).flatten(1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (B,): positive ones say "real".

        Args:
            x: images (B, channels, size, size) in [-1, 1].
            labels: int64 (B,) in [0, classes), for a network with classes.

        Raises:
            ValueError: images of another shape or none; labels missing, not wanted or of another dtype or shape.
        """
        _check_labels(labels, self.classes, len(x))
        phi = self.features(x)
        logits = self.head(phi).squeeze(1)
        if self.embedding is not None:
            logits = logits + (self.embedding(labels) * phi).sum(1)
        return logits


def check_classes(labels: Tensor, classes: int, B: int) -> None:
    """Refuse what is not B labels in [0, classes). `forward` leaves the values out: in training a GPU would wait.

    Raises:
        ValueError: another dtype, shape or range.
    """
    _check_labels(labels, classes, B)
    low, high = (int(label) for label in labels.aminmax())
    if not 0 <= low <= high < classes:
        raise ValueError(f"labels must lie in [0, {classes}); got {low} to {high}")


def _check_labels(labels: Tensor | None, classes: int | None, B: int) -> None:
    if labels is not None and classes is None:
        raise ValueError("got labels, but this network was made without classes")
    if labels is None and classes is not None:
        raise ValueError(f"labels are missing: this network was made with classes={classes}")
    is_right = isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.shape == (B,)
    if labels is not None and not is_right:
        raise ValueError(f"labels must be a tensor of int64 and shape ({B},); got {_describe(labels)}")


def check_floats(x: Tensor, name: str, *shape: int) -> None:
    """Refuse what is not floats (B, *shape), B ≥ 1: batch normalisation has no mean of nothing."""
    if not isinstance(x, Tensor) or x.shape[1:] != shape or len(x) == 0 or not x.is_floating_point():
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name} must be floats of shape (B, {wanted}), B ≥ 1; got {_describe(x)}")


def _describe(x: object) -> str:
    return f"{x.dtype} of {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__


# What `recipes/gan.py` trained and ships: two for the timeline, two with ten classes each, and cats.
zoo.register("gan_mnist", FullyConnectedGenerator)
zoo.register("dcgan_mnist", partial(Generator, width=48))
for _data in ("mnist_conditional", "fashion_mnist"):
    zoo.register(f"dcgan_{_data}", partial(Generator, width=48, classes=10))
zoo.register("dcgan_cats", partial(Generator, width=40, z_dim=128, channels=3, size=64))
