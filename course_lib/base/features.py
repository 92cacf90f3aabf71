"""Perceptual features: a VGG network behind one interface, `extract(image, layers) -> {layer: features}`.

Two sets of weights fit it. `zoo.load("vgg19")` is torchvision's VGG-19 trained on ImageNet (Simonyan & Zisserman
2015), the network of the style-transfer paper, a download of about 550 MB. `zoo.load("features")` is a narrow VGG
that ships with the course and ends at relu4_1: `recipes/features.py` trained it to reproduce the features of ImageNet
networks. How much of them it explains, layer by layer, its checkpoint's header says.

Layers carry the paper's names: `relu3_1` is the first rectified convolution of the third block.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from course_lib.base import datasets, zoo
from course_lib.base.images import check_batch

# Convolutions of each block, by their number of output channels; the blocks are joined by 2×2 pooling.
VGG19_WIDTHS = ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512, 512, 512, 512))
EMBEDDED_WIDTHS = ((32, 32), (64, 64), (128, 128), (192,))

VGG19_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"  # torchvision's IMAGENET1K_V1 weights
RAREST = 0.05  # of its layer's mean activation: a filter that fires less is not scaled up further
CALIBRATION = ("astronaut", "cat", "coffee", "rocket", "brick", "grass", "gravel", "china", "flower")


class VGG(nn.Module):
    """A VGG network without its classifier: 3×3 convolutions, ReLU, and 2×2 pooling between the blocks.

    Args:
        widths: output channels of the convolutions, block by block.
        pooling: "max" as in VGG, or "average", which Gatys et al. 2016 found to give smoother images.
        name: what error messages call the network.
    """

    def __init__(self, widths: Sequence[Sequence[int]], pooling: str = "average", name: str = "VGG") -> None:
        super().__init__()
        if pooling not in ("average", "max"):
            raise ValueError(f"pooling must be 'average' or 'max', got {pooling!r}")
        self.name, self.pooling = name, pooling
        self.pool = nn.AvgPool2d(2) if pooling == "average" else nn.MaxPool2d(2)
        self.convolutions = nn.ModuleDict()
        channels = 3
        for block, block_widths in enumerate(widths, start=1):
            for number, width in enumerate(block_widths, start=1):
                self.convolutions[f"{block}_{number}"] = nn.Conv2d(channels, width, 3, padding=1)
                channels = width
        # ImageNet's statistics, in which the published weights expect their images.
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names that `extract` accepts, from the shallowest to the deepest."""
        return tuple(f"relu{key}" for key in self.convolutions)

    def extract(self, image: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """The features of an image at some layers; nothing beyond the deepest of them is computed.

        Args:
            image: (B, 3, H, W), RGB in [0, 1], of any floating dtype; the network works in its own.
            layers: names such as `relu3_1`; see `self.layers`.

        Returns:
            For each layer its features after the ReLU, (B, C, H / 2^(block − 1), W / 2^(block − 1)), in the order
            asked for.

        Raises:
            ValueError: an unknown layer, a tensor that is not (B, 3, H, W), or an image too small for the pooling.
            TypeError: an image that is no tensor of floats.
        """
        wanted = list(layers)
        self._check(image, wanted)
        found: dict[str, Tensor] = {}
        # In this memory format convolutions run fastest, on CPU and GPU.
        x = ((image.to(self.mean.dtype) - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        for key, convolution in self.convolutions.items():
            if len(found) == len(set(wanted)):
                break
            if key.endswith("_1") and key != "1_1":  # a new block
                x = self.pool(x)
            x = torch.relu(convolution(x))
            if f"relu{key}" in wanted:
                found[f"relu{key}"] = x
        return {layer: found[layer] for layer in wanted}

    def _check(self, image: Tensor, wanted: list[str]) -> None:
        unknown = [layer for layer in wanted if layer not in self.layers]
        if unknown or not wanted:
            raise ValueError(f"{self.name} has the layers {', '.join(self.layers)}; asked for {unknown or 'none'}")
        check_batch(image)
        if image.shape[1] != 3:
            raise ValueError(f"image must be (B, 3, H, W), got {tuple(image.shape)}")
        smallest = 2 ** (max(int(layer[4]) for layer in wanted) - 1)
        if min(image.shape[-2:]) < smallest:
            raise ValueError(f"{max(wanted)} needs an image of {smallest} px or more, got {tuple(image.shape)}")


@torch.no_grad()
def normalise(network: VGG, calibration: Sequence[Tensor]) -> VGG:
    """Rescale every filter, in place, to a mean activation of one over the given images.

    Gatys et al. 2016, section 2: a ReLU network without normalisation layers keeps its function when a filter is
    multiplied by s > 0 and the next layer's weights for it are divided by s. The losses of different layers, and
    of different networks, then have comparable sizes. Departure: a filter that fires less than 1/20 of its layer's
    mean is scaled as if it reached that, so that the rarest filters do not outweigh all others.

    Args:
        network: is changed in place, and returned.
        calibration: images (1, 3, H, W) in [0, 1].
    """
    sums: dict[str, Tensor] = {}
    for image in calibration:
        for layer, features in network.extract(image, network.layers).items():
            sums[layer] = sums.get(layer, 0) + features.mean(dim=(0, 2, 3)) / len(calibration)
    scales = [1 / mean.clamp_min(RAREST * float(mean.mean())) for mean in sums.values()]
    convolutions = list(network.convolutions.values())
    for convolution, scale in zip(convolutions, scales, strict=True):
        convolution.weight.mul_(scale.view(-1, 1, 1, 1))
        convolution.bias.mul_(scale)
    for (_, scale), (convolution, _) in pairwise(zip(convolutions, scales, strict=True)):
        convolution.weight.div_(scale.view(1, -1, 1, 1))
    return network


def from_torchvision(weights: dict[str, Tensor], pooling: str = "average", name: str = "VGG-19") -> VGG:
    """VGG-19 from a state_dict with torchvision's names, with as many convolutions as it holds; not normalised."""
    # torchvision numbers the convolutions of `features` by their place among ReLUs and poolings.
    numbers = sorted({int(key.split(".")[1]) for key in weights if key.startswith("features.")})
    widths: list[Sequence[int]] = []
    for block in VGG19_WIDTHS:
        widths.append(block[: len(numbers) - sum(map(len, widths))])
    network = VGG([block for block in widths if block], pooling, name)
    for number, convolution in zip(numbers, network.convolutions.values(), strict=True):
        convolution.load_state_dict({kind: weights[f"features.{number}.{kind}"] for kind in ("weight", "bias")})
    return network


def _vgg19(pooling: str = "average") -> VGG:
    """VGG-19 with torchvision's ImageNet weights, normalised."""
    weights = torch.hub.load_state_dict_from_url(VGG19_URL, map_location="cpu", check_hash=True, weights_only=True)
    network = from_torchvision(weights, pooling, name="VGG-19 (ImageNet)")
    return normalise(network, [datasets.load_image(name, size=224) for name in CALIBRATION])


# The small network learned its normalised teachers' features on their scale, and is not normalised again.
zoo.register("features", partial(VGG, EMBEDDED_WIDTHS, name="embedded VGG"))
zoo.register("vgg19", _vgg19, url=VGG19_URL, licence="BSD-3-Clause")


def load_best(pooling: str = "average", device: torch.device | str | None = None) -> VGG:
    """VGG-19 where it is cached or can be downloaded, else the embedded network; the choice is printed.

    Args:
        pooling: "average" or "max".
        device: by default `runtime.device()`.
    """
    try:
        network = zoo.load("vgg19", device, pooling=pooling)
    except datasets.DownloadError as error:
        print(f"{error}; taking the embedded network instead.")
        network = zoo.load("features", device, pooling=pooling)
    print(f"Features: {network.name}")
    return network
