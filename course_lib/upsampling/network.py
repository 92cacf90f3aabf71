"""A network that enlarges faces of cats four times: what can be learnt beyond any fixed rule.

Convolutions look at the small image, two sub-pixel convolutions enlarge their maps (Shi et al. 2016), and what they
draw is added to bicubic interpolation. So the network has to learn only what interpolation cannot know.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.base import images, zoo
from course_lib.base.loop import Step, descend
from course_lib.upsampling.convolution import icnr_
from course_lib.upsampling.interpolation import bicubic

FACTOR = 4


class Residual(nn.Module):
    """x + two convolutions of x (Lim et al. 2017, "Enhanced Deep Residual Networks", figure 2: no normalisation)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) → the same shape."""
        return x + self.convolutions(x)


def subpixel(width: int) -> nn.Sequential:
    """(B, width, H, W) → (B, width, 2H, 2W): a convolution whose channels become pixels; starts without grain."""
    convolution = nn.Conv2d(width, 4 * width, 3, padding=1)
    icnr_(convolution.weight, 2)
    nn.init.zeros_(convolution.bias)
    return nn.Sequential(convolution, nn.PixelShuffle(2), nn.ReLU())


class Upsampler(nn.Module):
    """(B, 3, H, W) in [0, 1] → (B, 3, rH, rW), near [0, 1] but not clamped. Untrained, it is bicubic interpolation.

    Args:
        width: channels of the maps.
        blocks: residual blocks at the small size.
        doublings: how often the sides are doubled: r is 2 to that power.
    """

    def __init__(self, width: int = 48, blocks: int = 4, doublings: int = 2) -> None:
        super().__init__()
        self.factor = 2**doublings
        self.small = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), *(Residual(width) for _ in range(blocks))
        )
        self.enlarge = nn.Sequential(*(subpixel(width) for _ in range(doublings)), nn.Conv2d(width, 3, 3, padding=1))
        nn.init.zeros_(self.enlarge[-1].weight)
        nn.init.zeros_(self.enlarge[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        """See the class.

        Raises:
            TypeError: `x` holds no floats.
            ValueError: `x` is not (B, 3, H, W), or is empty.
        """
        if x.ndim == 4 and x.shape[1] != 3:
            raise ValueError(f"expected images (B, 3, H, W), got {tuple(x.shape)}")
        return bicubic(x, scale_factor=self.factor) + self.enlarge(self.small(x))


def shrink(x: Tensor) -> Tensor:
    """(B, C, 4H, 4W) → (B, C, H, W): each pixel is the mean of its cell, as a camera's is."""
    return F.avg_pool2d(x, FACTOR)


def random_zoom(x: Tensor, rng: torch.Generator) -> Tensor:
    """A random square of at least three quarters of the side, at the size of x, in half of all cases mirrored.

    Args:
        x: square images (B, C, H, H) in [0, 1]; all get the same square.
        rng: on the CPU.
    """
    H = x.shape[2]
    side = int(torch.randint(3 * H // 4, H + 1, (), generator=rng))
    top, left = torch.randint(0, H - side + 1, (2,), generator=rng).tolist()
    cut = images.resize(x[:, :, top : top + side, left : left + side], H)
    return cut.flip(3) if torch.rand((), generator=rng) < 0.5 else cut


def upsampler_step(network: nn.Module, optimiser: torch.optim.Optimizer, rng: torch.Generator) -> Step:
    """A training step: the network restores what `shrink` took, up to the mean absolute error.

    Args:
        network: as `Upsampler`.
        optimiser: of its parameters.
        rng: of `random_zoom`; give it to the loop as stateful.

    Returns:
        (images (B, 3, H, H) in [0, 1], labels) → losses by name. Of the first batch it looks at the values.
    """
    check = images.once(images.check_range)

    def step(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, _ = batch
        check(x)
        x = random_zoom(x, rng)
        loss = F.l1_loss(network(shrink(x)).float(), x)
        descend(loss, optimiser)
        return {"error": loss}

    return step


zoo.register("upsampler_cats", Upsampler)
