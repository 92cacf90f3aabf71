"""The network that points: crops of one object in, a heatmap for each point out (Xiao et al. 2018, in small)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torchvision.models.detection as models
from torch import Tensor, nn

from course_lib import scenes
from course_lib.base import zoo
from course_lib.base.pyramid import SmallBackbone
from course_lib.base.sampling import in_batches
from course_lib.detection.model import DenseNetwork
from course_lib.keypoints.faces import MIRRORED
from course_lib.keypoints.heatmaps import decode

FIGURE_SIDE, FACE_SIDE = 64, 96  # pixels, of a crop that the shipped networks look at
# Where each point of a figure lies after left and right were exchanged.
FIGURE_MIRRORED = tuple(
    scenes.KEYPOINTS.index(name.replace("left", "*").replace("right", "left").replace("*", "right"))
    for name in scenes.KEYPOINTS
)


class KeypointNetwork(DenseNetwork):
    """The detector's pyramid with another head: K heatmaps, about 1 where a point is, and 0 elsewhere.

    Args:
        mirrored: for each of the K points the index of the one that it becomes when left and right are exchanged.
        backbone: see `DenseNetwork`.
        width: channels of the pyramid.

    Raises:
        ValueError: `mirrored` that is not its own inverse.
    """

    def __init__(self, mirrored: Sequence[int], backbone: nn.Module | None = None, width: int = 64) -> None:
        mirrored = list(mirrored)
        if not mirrored or any(not 0 <= i < len(mirrored) or mirrored[mirrored[i]] != i for i in mirrored):
            raise ValueError(f"expected indices that exchange points in pairs; got {mirrored}")
        super().__init__(len(mirrored), backbone, width)
        self.mirrored = mirrored

    def forward(self, crops: Tensor) -> Tensor:
        """Heatmaps (B, K, H/4, W/4) of crops (B, 3, H, W) in [0, 1].

        Raises:
            ValueError: another shape, or sides that `divisor` does not divide.
        """
        return self.cells(crops)


def predict_heatmaps(network: KeypointNetwork, crops: Tensor, flip: bool = True, batch_size: int = 64) -> Tensor:
    """What the network says of crops (B, 3, H, W), in evaluation mode and without gradients.

    Args:
        network: any mode; it keeps it.
        crops: floats in [0, 1].
        flip: whether to show it the mirrored crops too, exchange left and right of what it says, and take the mean.
        batch_size: how many the network sees at once.

    Returns:
        (B, K, H/4, W/4) on the crops' device.

    Raises:
        TypeError: crops that are no floats.
        ValueError: another shape, or sides that the network does not take.
    """
    if not crops.is_floating_point():
        raise TypeError(f"expected crops as floats in [0, 1], got {crops.dtype}")
    if len(crops) == 0:
        return crops.new_zeros(0, len(network.mirrored), *(side // 4 for side in crops.shape[2:]))

    def say(part: Tensor) -> Tensor:
        said = network(part)
        return (said + network(part.flip(-1)).flip(-1)[:, network.mirrored]) / 2 if flip else said

    return in_batches(network, say, crops.to(next(network.parameters())), batch_size=batch_size).to(crops.device)


def predict(network: KeypointNetwork, crops: Tensor, flip: bool = True, method: str = "DARK") -> tuple[Tensor, Tensor]:
    """The points of crops (B, 3, H, W) in [0, 1].

    Args:
        network, crops, flip: see `predict_heatmaps`.
        method: of `DECODERS`.

    Returns:
        points (B, K, 2) xy in pixels of the crop, and scores (B, K): about 1 where the network is sure.
    """
    return decode(predict_heatmaps(network, crops, flip), method)


KEYPOINT_RCNN = models.KeypointRCNN_ResNet50_FPN_Weights.COCO_V1


class People(NamedTuple):
    """The N people found in a photograph, best first.

    Attributes:
        boxes: (N, 4) xyxy in pixels.
        points: (N, 17, 2) xy in pixels, in COCO's order.
        scores: (N,) in [0, 1].
        heights: (N, 17): how sure the network is of each point; logits.
    """

    boxes: Tensor
    points: Tensor
    scores: Tensor
    heights: Tensor


class Pretrained(nn.Module):
    """torchvision's Keypoint R-CNN (He et al. 2017) on ResNet-50: people in photographs, with 17 points each.

    Trained on photographs of COCO; a download of 226 MB. Load it with `zoo.load("keypoint_rcnn")`.

    Args:
        network: torchvision's.
        names: of the points.
    """

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    @torch.no_grad()
    def forward(self, photographs: Tensor, minimum: float = 0.5) -> list[People]:
        """The people of each of (B, 3, H, W) in [0, 1] with scores from the minimum, best first."""
        found = []
        for each in self.network(list(photographs)):
            sure = each["scores"] >= minimum
            points = each["keypoints"][sure, :, :2]
            found.append(People(each["boxes"][sure], points, each["scores"][sure], each["keypoints_scores"][sure]))
        return found


def _keypoint_rcnn() -> Pretrained:
    network = models.keypointrcnn_resnet50_fpn(weights=KEYPOINT_RCNN)
    return Pretrained(network, tuple(KEYPOINT_RCNN.meta["keypoint_names"]))


zoo.register(
    "keypoints_faces",
    lambda: KeypointNetwork(MIRRORED, SmallBackbone((24, 32, 48, 64, 64)), width=48),
    licence="MIT; its data are for research and teaching",
)
zoo.register("keypoints_figures", lambda: KeypointNetwork(FIGURE_MIRRORED))
zoo.register("keypoint_rcnn", _keypoint_rcnn, url=KEYPOINT_RCNN.url, licence="BSD-3-Clause")
