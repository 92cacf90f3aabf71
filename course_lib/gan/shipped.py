"""The generators that `recipes/gan.py` trained and that ship with the course, by name."""

import torch
from torch import nn

from course_lib.base import checkpoints
from course_lib.gan.networks import FullyConnectedGenerator, Generator

WIDTH = 48
SHIPPED = {
    "gan_mnist": (FullyConnectedGenerator, {}),
    "dcgan_mnist": (Generator, {"width": WIDTH}),
    "dcgan_mnist_conditional": (Generator, {"width": WIDTH, "classes": 10}),
    "dcgan_fashion_mnist": (Generator, {"width": WIDTH, "classes": 10}),
    "dcgan_cats": (Generator, {"width": WIDTH, "z_dim": 128, "channels": 3, "size": 32}),
}


def load(name: str, device: torch.device | str = "cpu") -> nn.Module:
    """A shipped generator, frozen and in evaluation mode; `sample` draws from it.

    Args:
        name: of `SHIPPED`: `gan_mnist` and `dcgan_mnist` for chapter 4's timeline, `dcgan_mnist_conditional` and
            `dcgan_fashion_mnist` with ten classes each, and `dcgan_cats`.

    Raises:
        ValueError: another name.
        FileNotFoundError, CheckpointError: the file is missing or damaged.
    """
    if name not in SHIPPED:
        raise ValueError(f"expected a generator of {', '.join(SHIPPED)}; got {name!r}")
    network, arguments = SHIPPED[name]
    return checkpoints.ready(network(**arguments), name, device)
