"""Maps as pictures, each class in the same colour everywhere: things strong, stuff pale."""

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.base import scenes
from course_lib.segmentation.panoptic import Panoptic

COLOURS = {
    "disc": "#d62728",
    "square": "#ff7f0e",
    "triangle": "#e0b400",
    "star": "#7b3fb5",
    "ring": "#e863b5",
    "heart": "#8c1c3a",
    "tree": "#0b6623",
    "figure": "#8b5a2b",
    "sky": "#cfe8f7",
    "hills": "#9db5a0",
    "water": "#6aa5d9",
    "grass": "#b5d99a",
    "sand": "#eddcb1",
    "snow": "#f3f3f3",
}  # by class, as matplotlib reads them
VOID = (0.0, 0.0, 0.0)


def palette() -> Tensor:
    """RGB in [0, 1] of each class of `scenes.CLASSES`, (14, 3)."""
    return torch.tensor(
        [[int(COLOURS[name][i : i + 2], 16) / 255 for i in (1, 3, 5)] for name in scenes.CLASSES],
    )


def paint(classes: Tensor) -> Tensor:
    """Semantic maps (..., H, W) as pictures (..., 3, H, W) in [0, 1]; what is no class is black."""
    colours = torch.cat([palette(), torch.tensor([VOID])]).to(classes.device)
    n = len(colours) - 1
    return colours[torch.where((classes >= 0) & (classes < n), classes, n)].movedim(-1, -3)


def paint_panoptic(panoptic: Panoptic, scale: int = 1) -> Tensor:
    """A panoptic map as a picture (3, scale · H, scale · W): the classes' colours, and a white line around each thing.

    The second and third object of a class are a little brighter. A larger scale makes the line thinner.
    """
    picture, ids = enlarge(paint(panoptic.semantic()), scale), enlarge(panoptic.ids, scale)
    seen = []
    for segment, label in panoptic.labels.items():
        if label < len(scenes.THINGS):
            mask = ids == segment
            brighter = (0.0, 0.35, 0.18)[seen.count(label) % 3]
            seen.append(label)
            picture[:, mask] = picture[:, mask] + brighter * (1 - picture[:, mask])
            picture[:, rim(mask)] = 1.0
    return picture


def enlarge(picture: Tensor, scale: int) -> Tensor:
    """(..., H, W) → (..., scale · H, scale · W): every pixel becomes a square."""
    return picture.repeat_interleave(scale, -2).repeat_interleave(scale, -1)


def rim(mask: Tensor) -> Tensor:
    """The pixels of a mask (H, W) that touch, by a side or a corner, what lies outside of it."""
    outside = F.max_pool2d((~mask)[None].float(), 3, stride=1, padding=1)[0]
    return mask & (outside > 0)
