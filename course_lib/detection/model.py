"""A one-stage detector without anchors: every cell says what has its centre there, and which box that thing has.

CenterNet (Zhou, Wang and Krähenbühl 2019, "Objects as Points") in small: a feature pyramid, read at a quarter of the
image's size, and one head that classifies and regresses at once. Then from heatmaps to objects: peaks, their boxes, and
what suppression leaves of them. Beside it torchvision's Faster R-CNN, which the profession uses.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision.models.detection as models
from torch import Tensor, nn

from course_lib import scenes
from course_lib.base import zoo
from course_lib.base.features import EMBEDDED_WIDTHS, VGG
from course_lib.base.images import check_range
from course_lib.base.pyramid import STRIDE, FeaturePyramid, Residual, SmallBackbone, conv3x3
from course_lib.base.runtime import wide
from course_lib.detection.anchors import cell_centres
from course_lib.detection.boxes import clip, nms
from course_lib.detection.coco import Objects

RARE = 0.1  # what an untrained network answers to "is there a centre here?" (Lin et al. 2017, section 4.1)
LARGEST = 6.0  # logarithm of the largest side in cells: a wild guess must not overflow


class Prediction(NamedTuple):
    """What the network says of images (B, 3, H, W), for each cell of h × w = H/4 × W/4.

    Attributes:
        heatmap: (B, K, h, w) logits: whether the centre of an object of that class lies in the cell.
        boxes: (B, 4, h, w) xyxy in pixels: the box of that object, if there is one.
    """

    heatmap: Tensor
    boxes: Tensor


def to_boxes(regressed: Tensor) -> Tensor:
    """Boxes (B, 4, h, w) xyxy in pixels of the four numbers a cell regresses, (B, 4, h, w).

    They are the offset of the object's centre from the middle of the cell, x and y, in cells, and the logarithms of
    its width and height in cells. (Departure: the paper regresses the size itself, in cells.) At least float32:
    bfloat16 cannot tell neighbouring pixels from 256 on.
    """
    offset, log_size = wide(regressed).split(2, 1)
    centre = cell_centres(*offset.shape[-2:], STRIDE, offset.device) + STRIDE * offset
    half = STRIDE * log_size.clamp(max=LARGEST).exp() / 2
    return torch.cat([centre - half, centre + half], 1)


class PerceptualBackbone(nn.Module):
    """The embedded perceptual network of `base.features` up to relu4_1, and two levels of blocks on top of it.

    Its first two blocks, which see edges and colours as every network does, stay as they are.

    Args:
        widths: channels of the two levels, at strides 16 and 32.
    """

    def __init__(self, widths: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        blocks = EMBEDDED_WIDTHS[:4]
        self.widths = (blocks[2][-1], blocks[3][-1], *widths)
        self.vgg = VGG(blocks, name="embedded VGG")
        for name, convolution in self.vgg.convolutions.items():
            convolution.requires_grad_(name[0] in "34")
        self.levels = nn.ModuleList(Residual(a, b, 2) for a, b in pairwise(self.widths[1:]))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features (B, C, H/stride, W/stride) at strides 4, 8, 16 and 32, of images (B, 3, H, W) in [0, 1]."""
        found = list(self.vgg.extract(images, ("relu3_2", "relu4_1")).values())
        for level in self.levels:
            found.append(level(found[-1]))
        return found

    def take_up(self, weights: Mapping[str, Tensor]) -> "PerceptualBackbone":
        """Itself, with the weights of the embedded network to go on from.

        Args:
            weights: the `state_dict` of `zoo.load("features")`.
        """
        own = self.vgg.state_dict()
        self.vgg.load_state_dict({name: weights[name] for name in own})
        return self


class DenseNetwork(FeaturePyramid):
    """A feature pyramid and a head that says some numbers of every cell of 4 × 4 pixels; what they mean, a topic says.

    Args:
        outputs: how many numbers a cell.
        backbone: a module with `widths` that gives features at strides 4, 8, 16 and so on; None: `SmallBackbone()`.
        width: channels of the pyramid.
    """

    def __init__(self, outputs: int, backbone: nn.Module | None = None, width: int = 64) -> None:
        super().__init__(SmallBackbone() if backbone is None else backbone, width)
        self.head = nn.Sequential(*conv3x3(width, width), nn.ReLU(inplace=True))
        self.last = nn.Conv2d(width, outputs, 1)
        nn.init.normal_(self.last.weight, std=0.01)
        nn.init.zeros_(self.last.bias)

    def cells(self, images: Tensor) -> Tensor:
        """(B, outputs, H/4, W/4) float32 of images (B, 3, H, W) in [0, 1].

        Raises:
            ValueError: another shape, or sides that `divisor` does not divide.
        """
        features = self.up(self.backbone(self.prepared(images)))  # (B, width, H/4, W/4)
        return self.last(self.head(features)).float()


class Detector(DenseNetwork):
    """A feature pyramid and a head that says at once what has its centre in a cell, and which box it has.

    Args:
        classes: K, how many kinds of objects.
        backbone: see `DenseNetwork`.
        width: channels of the pyramid.
    """

    def __init__(self, classes: int, backbone: nn.Module | None = None, width: int = 64) -> None:
        if classes < 1:
            raise ValueError(f"expected one class or more, got {classes}")
        super().__init__(classes + 4, backbone, width)
        self.classes = classes
        nn.init.constant_(self.last.bias[:classes], math.log(RARE / (1 - RARE)))

    def forward(self, images: Tensor) -> Prediction:
        """What lies where in images (B, 3, H, W) in [0, 1].

        Raises:
            ValueError: another shape, or sides that `divisor` does not divide.
        """
        heatmap, regressed = self.cells(images).split([self.classes, 4], 1)
        return Prediction(heatmap, to_boxes(regressed))


def peaks(heatmap: Tensor) -> Tensor:
    """(B, K, h, w) bool: cells that no neighbour, of eight, outshines (Zhou et al. 2019, section 4)."""
    return heatmap == F.max_pool2d(heatmap, 3, stride=1, padding=1)


def objects(
    predicted: Prediction, *, minimum: float = 0.05, suppress: float | None = 0.6, most: int = 100
) -> list[Objects]:
    """The objects of each image, by falling score.

    Args:
        predicted: of B images.
        minimum: the least score, in [0, 1].
        suppress: IoU above which the worse of two boxes of one class is dropped; None: never. A peak is already the
            best of its neighbours, so there is little to do.
        most: the best so many of an image.

    Returns:
        For each image boxes inside of it, labels and scores in [0, 1].

    Raises:
        ValueError: a minimum or an IoU outside [0, 1].
    """
    if not 0 <= minimum <= 1:
        raise ValueError(f"expected a minimum score in [0, 1], got {minimum}")
    h, w = predicted.heatmap.shape[-2:]
    found = []
    for heatmap, boxes, peak in zip(
        predicted.heatmap.sigmoid(), predicted.boxes, peaks(predicted.heatmap), strict=True
    ):
        label, row, column = (peak & (heatmap >= minimum)).nonzero(as_tuple=True)
        scores = heatmap[label, row, column]
        corners = clip(boxes[:, row, column].T, (h * STRIDE, w * STRIDE))
        kept = scores.argsort(descending=True, stable=True)
        if suppress is not None:
            kept = nms(corners, scores, suppress, label)
        found.append(Objects(corners, label, scores)[kept[:most]])
    return found


@torch.no_grad()
def detect(detector: Detector, images: Tensor, batch_size: int = 64, **settings: float) -> list[Objects]:
    """What the detector finds in images (B, 3, H, W) in [0, 1], one `Objects` each, on their device.

    The sides are filled up with grey to what the network wants, and the boxes cut at the image's own border.

    Args:
        detector: in eval mode.
        images: any number of them.
        batch_size: how many the network sees at once.
        settings: `minimum`, `suppress` and `most` of `objects`.

    Raises:
        ValueError: the detector is training: its BatchNorm would let images of a batch see each other. Images of
            another shape, NaN, or values outside [0, 1].
        TypeError: images that are no floats, most often bytes from 0 to 255.
    """
    if len(images):
        check_range(images)
    if detector.training:
        raise ValueError("call detector.eval() first: BatchNorm must not look at the batch")
    weight = next(detector.parameters())
    H, W = images.shape[-2:]
    found = []
    for part in images.split(batch_size):
        filled = F.pad(part.to(weight), (0, -W % detector.divisor, 0, -H % detector.divisor), value=0.5)
        for each in objects(detector(filled), **settings):
            found.append(Objects(clip(each.shapes, (H, W)), each.labels, each.scores).to(images.device))
    return found


PEDESTRIAN_SIDE = 160  # pixels: the shorter side of photographs that the pedestrian detector is made for
FASTER_RCNN = models.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1


class Pretrained(nn.Module):
    """torchvision's Faster R-CNN (Ren et al. 2015) on MobileNetV3, which finds everyday things in photographs.

    Trained on 118,000 photographs of COCO; a download of 78 MB. For use rather than training: load it with
    `zoo.load("faster_rcnn")`.

    Args:
        network: torchvision's.
        names: of the classes; labels are indices into it.
    """

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    @torch.no_grad()
    def forward(self, photographs: Tensor, minimum: float = 0.05) -> list[Objects]:
        """The objects of each of (B, 3, H, W) in [0, 1] with scores from the minimum, best first, boxes in pixels.

        Raises:
            TypeError: photographs that are no floats.
            ValueError: another shape, or values outside [0, 1].
        """
        check_range(photographs)
        found = []
        for each in self.network(list(photographs)):
            sure = each["scores"] >= minimum
            found.append(Objects(each["boxes"][sure], each["labels"][sure], each["scores"][sure]))
        return found


def _faster_rcnn() -> Pretrained:
    network = models.fasterrcnn_mobilenet_v3_large_320_fpn(weights=FASTER_RCNN)
    return Pretrained(network, tuple(FASTER_RCNN.meta["categories"]))


# Classes: `scenes.THINGS`, in images of 64 px; and one, a person on foot seen whole.
zoo.register("detector_scenes", lambda: Detector(len(scenes.THINGS)))
zoo.register("detector_pedestrians", lambda: Detector(1, PerceptualBackbone()))
zoo.register("faster_rcnn", _faster_rcnn, url=FASTER_RCNN.url, licence="BSD-3-Clause")
