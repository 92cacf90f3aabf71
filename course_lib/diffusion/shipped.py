"""The denoisers that `recipes/diffusion.py` trained and that ship with the course, by name."""

import torch

from course_lib.base import checkpoints, unet
from course_lib.diffusion.denoiser import Denoiser
from course_lib.diffusion.schedule import cosine

# Shape of the pictures, and what the U-Net has beyond `NETWORK`.
SHIPPED = {
    "diffusion_mnist": ((1, 28, 28), {"classes": 10, "width": 32}),
    "diffusion_fashion_mnist": ((1, 28, 28), {"classes": 10, "width": 32}),
    "diffusion_cats": ((3, 32, 32), {"width": 40, "attention": (1,), "dropout": 0.1}),
}
# Two levels, of a quarter and a sixteenth of the pixels: small enough for one core of a laptop to learn within an hour.
NETWORK = {"multipliers": (1, 2), "patch": 2}


def build(name: str) -> Denoiser:
    """The denoiser of that name before training: v-prediction on the cosine schedule with T = 1000.

    Raises:
        ValueError: a name not in `SHIPPED`.
    """
    if name not in SHIPPED:
        raise ValueError(f"expected a denoiser of {', '.join(SHIPPED)}; got {name!r}")
    shape, own = SHIPPED[name]
    network = unet.UNet(unet.Config(channels=shape[0], **NETWORK, **own))
    return Denoiser(network, cosine(), "v", shape)


def load(name: str, device: torch.device | str = "cpu") -> Denoiser:
    """A shipped denoiser, frozen and in evaluation mode; `sample` draws from it.

    Args:
        name: of `SHIPPED`: `diffusion_mnist` and `diffusion_fashion_mnist` with ten classes each, `diffusion_cats`.

    Raises:
        ValueError: another name.
        FileNotFoundError, CheckpointError: the file is missing or damaged.
    """
    denoiser = build(name)
    checkpoints.ready(denoiser.network, name, device)
    return denoiser.eval()
