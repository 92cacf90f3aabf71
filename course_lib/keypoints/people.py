"""Real bodies as COCO has them: 17 points, how they are joined, and two photographs with their annotations.

The photographs ship with the course under their licence (Attribution), made smaller; their annotations are COCO's (Lin
et al. 2014, CC BY 4.0), in pixels of the smaller image.
"""

import json
from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib.base import checkpoints, images

COCO_KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
COCO_SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
    (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
# How far careful people disagree on a point, as a part of the person's size (COCO's own numbers).
COCO_SPREAD = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089,
    0.089,
)  # fmt: skip


@dataclass(frozen=True)
class Photograph:
    """A photograph of COCO with N annotated people.

    Attributes:
        image: (1, 3, H, W) float32 in [0, 1].
        keypoints: (N, 17, 3) float32: x, y in pixels; visibility 2 seen, 1 hidden, 0 not labelled.
        boxes: (N, 4) float32 xyxy in pixels.
        areas: (N,) float32 in square pixels, of the masks.
        source: where it comes from.
    """

    image: Tensor
    keypoints: Tensor
    boxes: Tensor
    areas: Tensor
    source: str


def load_people() -> list[Photograph]:
    """The two photographs that ship with the course."""
    folder = checkpoints.folder().with_name("images")
    found = []
    for entry in json.loads((folder / "coco_people.json").read_text(encoding="utf-8")):
        people = entry["people"]
        keypoints, boxes, areas = (torch.tensor([person[name] for person in people], dtype=torch.float32)
                                   for name in ("keypoints", "box", "area"))  # fmt: skip
        image = images.load(folder / entry["file"])
        found.append(Photograph(image, keypoints.unflatten(1, (-1, 3)), boxes, areas, entry["source"]))
    return found
