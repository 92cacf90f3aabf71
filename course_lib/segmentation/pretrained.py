"""What the profession uses: torchvision's DeepLab and Mask R-CNN, trained on photographs of COCO.

Downloads of 42 MB (DeepLabv3, Chen et al. 2017, on MobileNetV3) and 170 MB (Mask R-CNN, He et al. 2017, on ResNet-50).
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torchvision.models as zoo
from torch import Tensor, nn

from course_lib.base import pictures, runtime
from course_lib.segmentation.instance import Instances

DEEPLAB = zoo.segmentation.DeepLabV3_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1
MASK_RCNN = zoo.detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pictures, which DeepLab expects to be removed


class PretrainedSemantic:
    """`PretrainedSemantic(network, names)(photographs)` says of every pixel what it shows.

    Attributes:
        names: of the classes; the map holds indices into it. The first is everything else.
    """

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        self.network, self.names = network.eval(), names

    @torch.no_grad()
    def __call__(self, photographs: Tensor) -> Tensor:
        """Classes int64 (B, H, W) of photographs (B, 3, H, W) in [0, 1]."""
        mean, std = (photographs.new_tensor(numbers)[:, None, None] for numbers in (MEAN, STD))
        return self.network((photographs - mean) / std)["out"].argmax(1)


class PretrainedInstances:
    """`PretrainedInstances(network, names)(photographs)` finds everyday things and their masks, which may overlap.

    Attributes:
        names: of the classes; labels are indices into it.
    """

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        self.network, self.names = network.eval(), names

    @torch.no_grad()
    def __call__(self, photographs: Tensor, minimum: float = 0.5) -> list[Instances]:
        """The objects of each of (B, 3, H, W) in [0, 1] with scores from the minimum, best first."""
        found = []
        for each in self.network(list(photographs)):
            sure = each["scores"] >= minimum
            found.append(Instances(each["masks"][sure, 0] >= 0.5, each["labels"][sure], each["scores"][sure]))
        return found


def load_deeplab(device: torch.device | str = "cpu") -> PretrainedSemantic:
    """DeepLabv3 for the 20 classes of Pascal VOC; its weights from torch.hub's cache.

    Raises:
        pictures.OfflineError: they are not cached, and `COURSE_OFFLINE` forbids a download.
        pictures.DownloadError: they could not be downloaded.
    """
    network = _built(zoo.segmentation.deeplabv3_mobilenet_v3_large, DEEPLAB, "DeepLab")
    return PretrainedSemantic(network.to(device).requires_grad_(False), tuple(DEEPLAB.meta["categories"]))


def load_mask_rcnn(device: torch.device | str = "cpu") -> PretrainedInstances:
    """Mask R-CNN for the 80 classes of COCO's things; its weights from torch.hub's cache.

    Raises:
        pictures.OfflineError, pictures.DownloadError: as for `load_deeplab`.
    """
    network = _built(zoo.detection.maskrcnn_resnet50_fpn, MASK_RCNN, "Mask R-CNN")
    return PretrainedInstances(network.to(device).requires_grad_(False), tuple(MASK_RCNN.meta["categories"]))


def _built(build: Callable[..., nn.Module], weights: zoo.WeightsEnum, name: str) -> nn.Module:
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if runtime.is_offline() and not file.exists():
        raise pictures.OfflineError(f"torchvision's {name} is not cached, and COURSE_OFFLINE forbids a download")
    try:
        return build(weights=weights)
    except (OSError, RuntimeError) as error:  # no connection; a wrong hash
        raise pictures.DownloadError(f"torchvision's {name} could not be downloaded: {error}") from error
