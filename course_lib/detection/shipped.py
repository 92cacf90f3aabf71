"""The detectors that `recipes/detection.py` trained and that ship with the course, by name."""

from collections.abc import Callable

import torch

from course_lib.base import checkpoints, scenes
from course_lib.detection.network import Detector, PerceptualBackbone

PEDESTRIAN_SIDE = 160  # pixels: the shorter side of photographs that the pedestrian detector is made for
SHIPPED: dict[str, Callable[[], Detector]] = {
    "detector_scenes": lambda: Detector(len(scenes.THINGS)),
    "detector_pedestrians": lambda: Detector(1, PerceptualBackbone()),
}


def load(name: str = "detector_scenes", device: torch.device | str = "cpu") -> Detector:
    """A shipped detector, frozen and in evaluation mode, for `detect`.

    Args:
        name: `detector_scenes`, whose classes are `scenes.THINGS`, on pictures of 64 px; or `detector_pedestrians`,
            whose one class is a person on foot seen whole, on photographs with a shorter side of `PEDESTRIAN_SIDE`.

    Raises:
        ValueError: another name.
        FileNotFoundError, CheckpointError: the file is missing or damaged.
    """
    if name not in SHIPPED:
        raise ValueError(f"expected a detector of {', '.join(SHIPPED)}; got {name!r}")
    return checkpoints.ready(SHIPPED[name](), name, device)
