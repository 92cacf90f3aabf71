"""The network that `recipes/segmentation.py` trained and that ships with the course."""

import torch

from course_lib.base import checkpoints
from course_lib.segmentation.network import SegmentationNet


def load(name: str = "panoptic_scenes", device: torch.device | str = "cpu") -> SegmentationNet:
    """The shipped network for scenes of 64 px, frozen and in evaluation mode; for `predict` and `evaluate`.

    Args:
        name: `panoptic_scenes`, or the path of a file that the recipe wrote.

    Raises:
        FileNotFoundError, CheckpointError: the file is missing, damaged, or of another network.
    """
    return checkpoints.ready(SegmentationNet(), name, device)
