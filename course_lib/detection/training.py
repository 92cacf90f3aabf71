"""Pictures with boxes as a data set, varied by chance, and the detector's training step."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.base.training import Step, descend
from course_lib.detection.augmentation import Vary, mirrored
from course_lib.detection.boxes import check_boxes
from course_lib.detection.coco import Objects
from course_lib.detection.losses import PADDING, detection_losses
from course_lib.detection.network import Detector


class Annotated:
    """Pictures of one size with their objects, in memory; `data[indices]` is a batch for `detection_step`.

    A batch is pictures (B, 3, H, W) float32 in [0, 1], boxes (B, N, 4) and labels (B, N), where N is the most objects
    of a picture and `PADDING` (−1) labels the boxes, all zero, that fill up.

    Args:
        images: (3, H, W) in [0, 1] each; kept as 8 bits. truth: the objects of each.

    Raises:
        ValueError: no pictures, another number of truths, pictures of several sizes, or values outside [0, 1].
        TypeError: pictures that are no floats.
    """

    def __init__(self, images: Sequence[Tensor], truth: Sequence[Objects]) -> None:
        if not len(images) or len(images) != len(truth) or len({image.shape for image in images}) > 1:
            raise ValueError(
                f"expected pictures of one size and the objects of each; got {len(images)} pictures of "
                f"{len({image.shape for image in images})} sizes, {len(truth)} truths"
            )
        for image in images:
            if not image.is_floating_point():
                raise TypeError(f"expected pictures as floats, got {image.dtype}")
            low, high = (float(end) for end in image.aminmax())
            if not (low >= -1e-3 and high <= 1 + 1e-3):  # a resized picture may overshoot a little
                raise ValueError(f"expected pictures in [0, 1], got values from {low:.3g} to {high:.3g}")
        self.images = torch.stack([(255 * image.clamp(0, 1)).round().byte() for image in images])
        self.truth = list(truth)
        self.boxes, self.labels = padded(truth)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.images[indices].float() / 255, self.boxes[indices], self.labels[indices]


def padded(truth: Sequence[Objects]) -> tuple[Tensor, Tensor]:
    """Boxes (B, N, 4) and labels (B, N) of pictures with up to N objects, filled up with zeros and `PADDING`."""
    most = max(map(len, truth))
    boxes = torch.stack([F.pad(check_boxes(t.shapes), (0, 0, 0, most - len(t))) for t in truth])
    return boxes, torch.stack([F.pad(t.labels, (0, most - len(t)), value=PADDING) for t in truth])


def optimiser_and_schedule(
    detector: Detector, steps: int, lr: float = 5e-3
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW for all weights that are to learn, and a rate that rises to `lr` in the first 15 % of the steps and falls.

    The rise lets BatchNorm and Adam find their scales, the fall lets a short training settle (Smith & Topin 2018).
    """
    learning = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr, weight_decay=0.01)
    return optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps + 1, pct_start=0.15)


def detection_step(
    detector: Detector,
    optimiser: torch.optim.Optimizer,
    rng: torch.Generator,
    vary: Vary | None = mirrored,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> Step:
    """A step that lowers the focal loss of the heat map plus 1 − GIoU of the boxes.

    Args:
        rng: draws the variations, on its own device; give it to the loop as a part, so that a run resumes.
        vary: (pictures, boxes, labels, rng) → the same, changed by chance; None: as they are.
        schedule: of the learning rate, advanced by each step.

    Returns:
        batch as of `Annotated` → the losses `heat` and `box`.
    """

    def step(batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        pictures, boxes, labels = batch if vary is None else vary(*batch, rng)
        losses = detection_losses(detector(pictures), boxes, labels, pictures.shape[-2:])
        descend(losses["heat"] + losses["box"], optimiser, clip=5.0)
        if schedule is not None:
            schedule.step()
        return {name: loss.detach() for name, loss in losses.items()}

    return step
