"""The StyleGAN that `recipes/stylegan.py` trained and that ships with the course."""

import torch

from course_lib.base import checkpoints
from course_lib.stylegan.networks import StyleGenerator


def load(name: str = "stylegan_mnist", device: torch.device | str = "cpu") -> StyleGenerator:
    """A shipped generator, frozen and in evaluation mode.

    Args:
        name: `stylegan_mnist`, or the path of a file that the recipe wrote.

    Raises:
        FileNotFoundError, CheckpointError: the file is missing, damaged, or of another network.
    """
    return checkpoints.ready(StyleGenerator(), name, device)
