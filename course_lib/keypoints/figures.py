"""Jointed figures of the toy world: their crops to learn from, and first the detector, then the points of each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib import scenes
from course_lib.base import images
from course_lib.detection import Detector, detect
from course_lib.keypoints.crops import around, crop, inverse, move
from course_lib.keypoints.model import FIGURE_SIDE, KeypointNetwork, predict
from course_lib.keypoints.training import KeypointDataset

FIGURE = scenes.THINGS.index("figure")
SCENE_SIDE = 128  # pixels, of scenes with figures; the detector looks at them at half that size
DETECTOR_SIDE = 64


@dataclass(frozen=True)
class Found:
    """The figures that were found in an image.

    Attributes:
        boxes: (N, 4) xyxy in pixels, of the detector.
        points: (N, K, 2) xy in pixels of the image.
        scores: (N,) in [0, 1]: the detector's, times the mean over the points of theirs.
        heights: (N, K): how sure the network is of each point, about 0 to 1.
    """

    boxes: Tensor
    points: Tensor
    scores: Tensor
    heights: Tensor


def figure_scenes(n: int, seed: int, objects: tuple[int, int] = (1, 4)) -> list[scenes.Rendering]:
    """Random scenes of 128 × 128 pixels, in which figures stand among trees and hearts.

    Args:
        n: how many.
        seed: other seeds, other scenes.
        objects: the least and the most of an image.
    """
    things = ("figure", "figure", "tree", "heart")
    return scenes.Scenes(n, SCENE_SIDE, seed, objects=objects, things=things).render_all()


def figure_crops(rendered: Sequence[scenes.Rendering]) -> tuple[KeypointDataset, Tensor]:
    """The crop of every figure, and the longer side of its box in pixels of the crop, for PCK.

    Raises:
        ValueError: no figure anywhere.
    """
    crops, keypoints, scale = [], [], []
    for each in rendered:
        chosen = each.labels == FIGURE
        if chosen.any():
            maps = around(each.boxes[chosen], FIGURE_SIDE)
            crops.append(crop(each.image[None], maps, FIGURE_SIDE))
            found = each.keypoints[chosen]
            keypoints.append(torch.cat([move(found[..., :2], maps), found[..., 2:]], -1))
            extent = each.boxes[chosen, 2:] - each.boxes[chosen, :2]
            scale.append(extent.amax(-1) * maps[:, :, 0].norm(dim=-1))
    if not crops:
        raise ValueError("expected scenes with a figure or more")
    inside = torch.cat(keypoints)
    seen = ((inside[..., :2] >= 0) & (inside[..., :2] < FIGURE_SIDE)).all(-1, keepdim=True) & (inside[..., 2:] > 0)
    pixels = (255 * torch.cat(crops)).round().byte()
    return KeypointDataset(pixels, torch.where(seen, inside, 0.0)), torch.cat(scale)


def find_figures(
    image: Tensor, detector: Detector, network: KeypointNetwork, minimum: float = 0.3, flip: bool = True
) -> Found:
    """First the detector, then the points of each figure that it found: top-down, as the lecture has it.

    Args:
        image: (3, H, W) in [0, 1], square, as of `figure_scenes`.
        detector: of scenes of 64 pixels, in evaluation mode.
        network: of figures.
        minimum: the least score of a box.
        flip: see `predict_heatmaps`.

    Raises:
        ValueError: an image that is not square, or what `detect` refuses.
    """
    images.check_batch(image[None])
    _, H, W = image.shape
    if H != W:
        raise ValueError(f"expected a square image (3, H, H), got {tuple(image.shape)}")
    small = images.resize(image[None], DETECTOR_SIDE)
    (found,) = detect(detector, small, minimum=minimum)
    found = found[(found.labels == FIGURE) & ((found.shapes[:, 2:] - found.shapes[:, :2]) > 0).all(-1)]
    boxes = found.shapes * (H / DETECTOR_SIDE)
    if len(boxes) == 0:
        nobody = image.new_zeros(0, len(network.mirrored))
        return Found(boxes, nobody[..., None].expand(-1, -1, 2), found.scores, nobody)
    maps = around(boxes, FIGURE_SIDE)
    points, heights = predict(network, crop(image[None], maps, FIGURE_SIDE), flip)
    return Found(boxes, move(points, inverse(maps)), found.scores * heights.clamp(0, 1).mean(-1), heights)
