"""What the profession uses: torchvision's Faster R-CNN, trained on 118,000 photographs of COCO; a download of 78 MB."""

from pathlib import Path

import torch
import torchvision.models.detection as zoo
from torch import Tensor, nn

from course_lib.base import pictures, runtime
from course_lib.detection.coco import Objects

WEIGHTS = zoo.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1


class Pretrained:
    """`Pretrained(network, names)(pictures)` finds everyday things in photographs.

    Attributes:
        names: of the classes; labels are indices into it.
    """

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        self.network, self.names = network.eval(), names

    @torch.no_grad()
    def __call__(self, photographs: Tensor, minimum: float = 0.05) -> list[Objects]:
        """The objects of each of (B, 3, H, W) in [0, 1] with scores from the minimum, best first, boxes in pixels."""
        found = []
        for each in self.network(list(photographs)):
            sure = each["scores"] >= minimum
            found.append(Objects(each["boxes"][sure], each["labels"][sure], each["scores"][sure]))
        return found


def load_pretrained(device: torch.device | str = "cpu") -> Pretrained:
    """Faster R-CNN (Ren et al. 2015) on MobileNetV3, for photographs of any size; its weights from torch.hub's cache.

    Raises:
        pictures.OfflineError: they are not cached, and `COURSE_OFFLINE` forbids a download.
        pictures.DownloadError: they could not be downloaded.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(WEIGHTS.url).name
    if runtime.is_offline() and not file.exists():
        raise pictures.OfflineError("torchvision's Faster R-CNN is not cached, and COURSE_OFFLINE forbids a download")
    try:
        network = zoo.fasterrcnn_mobilenet_v3_large_320_fpn(weights=WEIGHTS)
    except (OSError, RuntimeError) as error:  # no connection; a wrong hash
        raise pictures.DownloadError(f"torchvision's Faster R-CNN could not be downloaded: {error}") from error
    return Pretrained(network.to(device).requires_grad_(False), tuple(WEIGHTS.meta["categories"]))
