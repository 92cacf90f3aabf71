"""One network for all three tasks: U-shaped, with three heads (after Panoptic-DeepLab, Cheng et al. 2020).

Beside it what the profession uses: torchvision's DeepLab and Mask R-CNN, trained on photographs of COCO.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision.models as models
from torch import Tensor, nn
from torchvision.transforms.functional import normalize

from course_lib import scenes
from course_lib.base import zoo
from course_lib.base.features import EMBEDDED_WIDTHS
from course_lib.base.images import check_range
from course_lib.base.pyramid import FeaturePyramid, SmallBackbone, doubled, pointwise
from course_lib.base.runtime import wide
from course_lib.detection.model import Detector, PerceptualBackbone
from course_lib.segmentation.instance import Instances

OFFSET_UNIT = 8.0  # pixels: the network's own numbers are then about 1
FINE = 32  # channels at the finest level


class Maps(NamedTuple):
    """What the network says of B images.

    Attributes:
        logits: (B, C, H, W), of the classes.
        heatmap: (B, H, W), about 1 at centres of objects.
        offsets: (B, 2, H, W), in pixels, (down, right) to the centre.
    """

    logits: Tensor
    heatmap: Tensor
    offsets: Tensor


class FineBackbone(PerceptualBackbone):
    """The embedded perceptual network, read from stride 2 on; see `detection.model.PerceptualBackbone`.

    All of it stays as it is, only the levels above relu4_1 learn: with few photographs that is no loss, and a step
    takes two thirds of the time.

    Args:
        widths: channels of the levels above relu4_1, from stride 16.
    """

    fine_width = EMBEDDED_WIDTHS[1][-1]

    def __init__(self, widths: Sequence[int] = (64,)) -> None:
        super().__init__(widths)
        self.vgg.requires_grad_(False)

    def fine(self, images: Tensor) -> list[Tensor]:
        """Features (B, C, H/stride, W/stride) at strides 2, 4, 8 and so on, of images (B, 3, H, W) in [0, 1]."""
        found = list(self.vgg.extract(images, ("relu2_2", "relu3_2", "relu4_1")).values())
        for level in self.levels:
            found.append(level(found[-1]))
        return found


class SegmentationNet(FeaturePyramid):
    """Images (B, 3, H, W) in [0, 1] → `Maps`; H and W are multiples of `divisor`.

    A U-Net in small (Ronneberger et al. 2015): the detector's backbone goes down, and on the way up each level also
    sees its twin. Departures: skips are added, not concatenated, which is cheaper; the finest level is half the image's
    size, and its channels become pixels at the end; BatchNorm instead of the base U-Net's group normalisation, with
    which half a minute of training gets farther. All but the finest level is the detector's pyramid, see `take_up`.

    Args:
        classes: things and stuff.
        backbone: a module with `widths` and `fine_width` whose `fine` gives features at strides 2, 4, 8 and so on;
            None: `SmallBackbone()`.
        width: channels of the way up.
    """

    def __init__(self, classes: int = len(scenes.CLASSES), backbone: nn.Module | None = None, width: int = 64) -> None:
        super().__init__(SmallBackbone() if backbone is None else backbone, width)
        self.classes, fine = classes, FINE
        self.fine_lateral, self.narrow = pointwise(self.backbone.fine_width, fine), pointwise(width, fine)
        # At the finest level one convolution must do: it costs as much as a whole block of the next.
        self.fine_smooth = nn.Sequential(nn.Conv2d(fine, fine, 3, padding=1, bias=False), nn.BatchNorm2d(fine))
        self.heads = nn.Conv2d(fine, 4 * (classes + 3), 1)
        nn.init.zeros_(self.heads.bias)
        # At first: no centres, no offsets. (Not so the classes: with small weights there they are learnt later.)
        nn.init.normal_(self.heads.weight[4 * classes :], std=0.01)
        self.to(memory_format=torch.channels_last)  # in this memory format convolutions run fastest

    def forward(self, images: Tensor) -> Maps:
        """The maps of images, in float32 or more.

        Raises:
            ValueError: another shape, or sides that `divisor` does not divide.
        """
        fine, *levels = self.backbone.fine(self.prepared(images))
        x = self.up(levels)
        x = F.relu(self.fine_smooth(F.relu(self.fine_lateral(fine) + doubled(self.narrow(x)))))
        maps = F.pixel_shuffle(wide(self.heads(x)), 2)  # mixed precision ends here
        return Maps(maps[:, : self.classes], maps[:, self.classes], OFFSET_UNIT * maps[:, self.classes + 1 :])

    def take_up(self, detector: Detector) -> "SegmentationNet":
        """Itself, with backbone and pyramid of a trained detector, to go on from; the detector may have more levels.

        Raises:
            ValueError: a detector of other widths.
        """
        own, given = self.state_dict(), detector.state_dict()
        wanted = {key for key in own if key.split(".")[0] in ("backbone", "lateral", "smooth")}
        shared = {key: given[key] for key in wanted & set(given)}
        if shared.keys() != wanted or any(own[key].shape != value.shape for key, value in shared.items()):
            raise ValueError(f"expected a detector whose levels have {self.backbone.widths} channels")
        self.load_state_dict(own | shared)
        return self


DEEPLAB = models.segmentation.DeepLabV3_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1
MASK_RCNN = models.detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1


class _Pretrained(nn.Module):
    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names


class PretrainedSemantic(_Pretrained):
    """torchvision's DeepLabv3 (Chen et al. 2017) on MobileNetV3: what each pixel of a photograph shows.

    For the 20 classes of Pascal VOC; a download of 42 MB.

    Args:
        network: torchvision's.
        names: of the classes; the map holds indices into it. The first is everything else.
    """

    @torch.no_grad()
    def forward(self, photographs: Tensor) -> Tensor:
        """Classes int64 (B, H, W) of photographs (B, 3, H, W) in [0, 1].

        Raises:
            TypeError: photographs that are no floats.
            ValueError: another shape, or values outside [0, 1].
        """
        check_range(photographs)
        # ImageNet's mean and standard deviation, which the network expects to be removed.
        standardised = normalize(photographs, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        return self.network(standardised)["out"].argmax(1)


class PretrainedInstances(_Pretrained):
    """torchvision's Mask R-CNN (He et al. 2017) on ResNet-50: everyday things and their masks, which may overlap.

    For the 80 classes of COCO's things; a download of 170 MB.

    Args:
        network: torchvision's.
        names: of the classes; labels are indices into it.
    """

    @torch.no_grad()
    def forward(self, photographs: Tensor, minimum: float = 0.5) -> list[Instances]:
        """The objects of each of (B, 3, H, W) in [0, 1] with scores from the minimum, best first.

        Raises:
            TypeError: photographs that are no floats.
            ValueError: another shape, or values outside [0, 1].
        """
        check_range(photographs)
        found = []
        for each in self.network(list(photographs)):
            sure = each["scores"] >= minimum
            found.append(Instances(each["masks"][sure, 0] >= 0.5, each["labels"][sure], each["scores"][sure]))
        return found


def _deeplab() -> PretrainedSemantic:
    network = models.segmentation.deeplabv3_mobilenet_v3_large(weights=DEEPLAB)
    return PretrainedSemantic(network, tuple(DEEPLAB.meta["categories"]))


def _mask_rcnn() -> PretrainedInstances:
    network = models.detection.maskrcnn_resnet50_fpn(weights=MASK_RCNN)
    return PretrainedInstances(network, tuple(MASK_RCNN.meta["categories"]))


# Classes: `scenes.CLASSES`, in images of 64 px; and a person or not, in photographs.
zoo.register("panoptic_scenes", SegmentationNet)
zoo.register("panoptic_people", lambda: SegmentationNet(2, FineBackbone()))
zoo.register("deeplab", _deeplab, url=DEEPLAB.url, licence="BSD-3-Clause")
zoo.register("mask_rcnn", _mask_rcnn, url=MASK_RCNN.url, licence="BSD-3-Clause")
