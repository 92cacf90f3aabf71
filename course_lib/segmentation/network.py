"""One network for all three tasks: a U-Net with three heads (after Panoptic-DeepLab, Cheng et al. 2020)."""

from typing import NamedTuple

from torch import Tensor, nn

from course_lib.base import scenes, unet

OFFSET_UNIT = 8.0  # pixels: the network's own numbers are then about 1


class Maps(NamedTuple):
    """What the network says of B pictures.

    logits: (B, C, H, W), of the classes. heatmap: (B, H, W), about 1 at centres of objects. offsets: (B, 2, H, W), in
    pixels, (down, right) to the centre.
    """

    logits: Tensor
    heatmap: Tensor
    offsets: Tensor


class SegmentationNet(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] → `Maps`; H and W are multiples of `unet.config.divisor`.

    Departs from the paper: a U-Net for its encoder with two decoders, whose last convolution is all three heads.

    Args:
        classes: things and stuff. width, multipliers, patch: as for `unet.Config`.
    """

    def __init__(
        self,
        classes: int = len(scenes.CLASSES),
        width: int = 32,
        multipliers: tuple[int, ...] = (1, 2, 2),
        patch: int = 1,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.unet = unet.UNet(
            unet.Config(
                channels=3, out_channels=classes + 3, width=width, multipliers=multipliers, patch=patch, time=False
            )
        )

    def forward(self, pictures: Tensor) -> Maps:
        """Raises ValueError and TypeError as `UNet.forward`."""
        maps = self.unet(2 * pictures - 1).float()  # mixed precision ends here
        return Maps(maps[:, : self.classes], maps[:, self.classes], OFFSET_UNIT * maps[:, self.classes + 1 :])
