"""What the detector is taught, and what mistakes cost: targets, the focal loss of the heat map, boxes by GIoU."""

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.detection.boxes import check_boxes, giou
from course_lib.detection.network import STRIDE, Prediction, cell_centres

SPREAD = 0.1  # standard deviation of a centre's bump, in sides of the object
NARROWEST = 0.5  # the same, in cells, at least
PADDING = -1  # the label of boxes that only fill up a batch


def targets(
    boxes: Tensor, labels: Tensor, classes: int, size: tuple[int, int], stride: int = STRIDE
) -> tuple[Tensor, Tensor, Tensor]:
    """What the network should say of pictures with these objects.

    Each centre is a bump exp(−dx²/2σx² − dy²/2σy²) on the heat map of its class, exactly 1 in its own cell; where two
    meet, the higher counts (Zhou et al. 2019, section 3). σ grows with the object, along each axis for itself, and
    cells around the centre learn the box as well, weighted by the height of the bump (Liu et al. 2020, TTFNet: more to
    learn from in every step).

    Args:
        boxes: (B, N, 4) xyxy in pixels. labels: (B, N) in 0 … K − 1, `PADDING` (−1) where there is no object.
        classes: K. size: (H, W) of the pictures in pixels.

    Returns:
        heat (B, K, h, w) in [0, 1]; boxes (B, 4, h, w) xyxy of the object whose bump is highest there; and the height
        of that bump (B, h, w).

    Raises:
        TypeError, ValueError: as for `check_boxes`; shapes that do not fit, or a label beyond the classes.
    """
    check_boxes(boxes)
    B, N = labels.shape
    if boxes.shape != (B, N, 4):
        raise ValueError(f"expected boxes (B, N, 4) and labels (B, N), got {tuple(boxes.shape)}, {tuple(labels.shape)}")
    if N and not (labels.min() >= PADDING and labels.max() < classes):
        raise ValueError(f"expected labels from {PADDING} to {classes - 1}, got {labels.min()} to {labels.max()}")
    h, w = (side // stride for side in size)
    if N == 0:
        return boxes.new_zeros(B, classes, h, w), boxes.new_zeros(B, 4, h, w), boxes.new_zeros(B, h, w)
    centre, extent = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    sigma = (SPREAD * extent / stride).clamp(min=NARROWEST)
    # In cells, from the cell that holds the centre, so that the bump is 1 in one cell exactly.
    own = (centre / stride).floor().clamp(min=0).minimum(centre.new_tensor([w - 1, h - 1]))
    grid = (cell_centres(h, w, stride) / stride - 0.5).to(boxes)  # (2, h, w): column and row
    distance = (grid - own[..., None, None]) / sigma[..., None, None]
    bumps = torch.exp(-distance.square().sum(2) / 2) * (labels >= 0)[..., None, None]  # (B, N, h, w)
    heat = boxes.new_zeros(B, classes, N, h, w)
    heat.scatter_(1, labels.clamp(min=0)[:, None, :, None, None].expand(-1, -1, -1, h, w), bumps[:, None])
    height, which = bumps.max(1)
    nearest = boxes.gather(1, which.flatten(1)[..., None].expand(-1, -1, 4))  # (B, h·w, 4)
    return heat.amax(2), nearest.mT.unflatten(2, (h, w)), height


def focal_loss(logits: Tensor, heat: Tensor, alpha: float = 2.0, beta: float = 4.0) -> Tensor:
    """The penalty-reduced focal loss of a heat map (Law and Deng 2018; Zhou et al. 2019, equation 1), as a sum.

    With p = σ(logit): −(1 − p)^α log p where the target is 1, and −(1 − y)^β p^α log(1 − p) where it is y < 1. Easy
    cells, of which there are hundreds for each object, weigh next to nothing, and neighbours of a centre little.

    Args:
        logits, heat: of one shape; heat in [0, 1], exactly 1 at centres.

    Returns:
        A scalar; divide it by the number of objects.
    """
    p = logits.sigmoid()
    positive = (1 - p) ** alpha * F.softplus(-logits)
    negative = (1 - heat) ** beta * p**alpha * F.softplus(logits)
    return torch.where(heat == 1, positive, negative).sum()


def detection_losses(predicted: Prediction, boxes: Tensor, labels: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """Classification and regression at once: `heat`, the focal loss for each object, and `box`, 1 − GIoU.

    The latter is a mean over the cells near centres, weighted by the square of their bump's height. (Departure: the
    paper takes the L1 distance of offset and size at the centre.)

    Args:
        predicted: of B pictures. boxes: (B, N, 4). labels: (B, N), see `targets`. size: (H, W) in pixels.
    """
    heat, true, height = targets(boxes, labels, predicted.heat.shape[1], size)
    weight = height.square() * (height > 0.1)
    apart = 1 - giou(predicted.boxes.movedim(1, -1), true.movedim(1, -1))
    objects = (labels >= 0).sum().clamp(min=1)
    return {
        "heat": focal_loss(predicted.heat, heat) / objects,
        "box": (apart * weight).sum() / weight.sum().clamp(min=1),
    }
