"""What the detector learns: its data set, targets and losses (focal loss, GIoU), random variation, and its step.

A batch is images, boxes and labels as of `DetectionDataset`. The data set is checked once, when it is made: a look at
every batch would make a GPU wait in each step.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.base import runtime
from course_lib.base.images import check_range, once
from course_lib.base.loop import Step, descend
from course_lib.base.pyramid import STRIDE
from course_lib.base.runtime import wide
from course_lib.detection.anchors import cell_centres
from course_lib.detection.boxes import check_boxes, giou
from course_lib.detection.coco import Objects
from course_lib.detection.model import Detector, Prediction

SIGMA = 0.1  # standard deviation of a centre's bump, in sides of the object
NARROWEST = 0.5  # the same, in cells, at least
PADDING = -1  # the label of boxes that only fill up a batch


class DetectionDataset:
    """Images of one size with their objects, in memory; `data[indices]` is a batch for `detection_step`.

    A batch is images (B, 3, H, W) float32 in [0, 1], boxes (B, N, 4) float32 and labels (B, N) int64, where N is the
    most objects of an image and `PADDING` (−1) labels the boxes, all zero, that fill up.

    Args:
        images: (3, H, W) in [0, 1] each; kept as 8 bits.
        truth: the objects of each.

    Raises:
        TypeError: images that are no floats.
        ValueError: no images, another number of truths, images of several sizes, values outside [0, 1], boxes that
            `check_boxes` refuses, or negative labels.
    """

    def __init__(self, images: Sequence[Tensor], truth: Sequence[Objects]) -> None:
        sizes = {image.shape for image in images}
        if len(sizes) != 1 or len(images) != len(truth):
            raise ValueError(
                f"expected images of one size and the objects of each; got {len(images)} images of {len(sizes)} sizes, "
                f"{len(truth)} truths"
            )
        for image in images:
            check_range(image[None])
        self.images = torch.stack([(255 * wide(image).clamp(0, 1)).round().byte() for image in images])
        self.truth = list(truth)
        self.boxes, self.labels = padded(truth)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.images[indices].float() / 255, self.boxes[indices], self.labels[indices]


def padded(truth: Sequence[Objects]) -> tuple[Tensor, Tensor]:
    """Boxes (B, N, 4) float32 and labels (B, N) int64 of images with up to N objects, filled with 0 and `PADDING`.

    Raises:
        TypeError: boxes that are not floating-point.
        ValueError: boxes that `check_boxes` refuses, or negative labels, which would count as padding.
    """
    for objects in truth:
        check_boxes(objects.shapes)
        if (objects.labels < 0).any():
            raise ValueError(f"expected labels from 0, got {int(objects.labels.min())}")
    most = max(map(len, truth))
    boxes = torch.stack([F.pad(t.shapes.float(), (0, 0, 0, most - len(t))) for t in truth])
    return boxes, torch.stack([F.pad(t.labels.long(), (0, most - len(t)), value=PADDING) for t in truth])


def targets(boxes: Tensor, labels: Tensor, classes: int, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """What the network should say of images with these objects.

    Each centre is a bump exp(−dx²/2σx² − dy²/2σy²) on the heatmap of its class, exactly 1 in its own cell; where two
    meet, the higher counts (Zhou et al. 2019, section 3). σ grows with the object, along each axis for itself, and
    cells around the centre learn the box as well, weighted by the height of the bump (Liu et al. 2020, TTFNet: more to
    learn from in every step).

    Args:
        boxes: (B, N, 4) xyxy in pixels.
        labels: (B, N) in 0 … K − 1, `PADDING` (−1) where there is no object.
        classes: K.
        size: (H, W) of the images in pixels.

    Returns:
        heatmap (B, K, h, w) in [0, 1]; boxes (B, 4, h, w) xyxy of the object whose bump is highest; and the height
        of that bump (B, h, w).

    Raises:
        ValueError: shapes that do not fit; on the CPU, a label beyond the classes.
    """
    boxes = wide(boxes)
    B, N = labels.shape
    if boxes.shape != (B, N, 4):
        raise ValueError(f"expected boxes (B, N, 4) and labels (B, N), got {tuple(boxes.shape)}, {tuple(labels.shape)}")
    # A look at labels on a GPU would wait for it; there, scatter_ stops at a label beyond the classes.
    if N and labels.device.type == "cpu" and not (labels.min() >= PADDING and labels.max() < classes):
        raise ValueError(f"expected labels from {PADDING} to {classes - 1}, got {labels.min()} to {labels.max()}")
    h, w = (side // STRIDE for side in size)
    if N == 0:
        return boxes.new_zeros(B, classes, h, w), boxes.new_zeros(B, 4, h, w), boxes.new_zeros(B, h, w)
    centre, extent = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    sigma = (SIGMA * extent / STRIDE).clamp(min=NARROWEST)
    # In cells, from the cell that holds the centre, so that the bump is 1 in one cell exactly.
    column, row = (centre / STRIDE).floor().unbind(-1)
    own = torch.stack([column.clamp(0, w - 1), row.clamp(0, h - 1)], -1)
    grid = cell_centres(h, w, STRIDE, boxes.device) / STRIDE - 0.5  # (2, h, w): column and row
    distance = (grid - own[..., None, None]) / sigma[..., None, None]
    bumps = torch.exp(-distance.square().sum(2) / 2) * (labels >= 0)[..., None, None]  # (B, N, h, w)
    heatmap = boxes.new_zeros(B, classes, N, h, w)
    heatmap.scatter_(1, labels.clamp(min=0)[:, None, :, None, None].expand(-1, -1, -1, h, w), bumps[:, None])
    height, which = bumps.max(1)
    nearest = boxes.gather(1, which.flatten(1)[..., None].expand(-1, -1, 4))  # (B, h·w, 4)
    return heatmap.amax(2), nearest.mT.unflatten(2, (h, w)), height


def focal_loss(logits: Tensor, heatmap: Tensor) -> Tensor:
    """The penalty-reduced focal loss of a heatmap (Law and Deng 2018; Zhou et al. 2019, equation 1), as a sum.

    With p = σ(logit): −(1 − p)² log p where the target is 1, and −(1 − y)⁴ p² log(1 − p) where it is y < 1. Easy
    cells, of which there are hundreds for each object, weigh next to nothing, and neighbours of a centre little.

    Args:
        logits, heatmap: of one shape; heatmap in [0, 1], exactly 1 at centres.

    Returns:
        A scalar; divide it by the number of objects.
    """
    logits = wide(logits)  # the sum of a large map is beyond half precision
    p = logits.sigmoid()
    positive = (1 - p) ** 2 * F.softplus(-logits)
    negative = (1 - heatmap) ** 4 * p**2 * F.softplus(logits)
    return torch.where(heatmap == 1, positive, negative).sum()


def detection_losses(predicted: Prediction, boxes: Tensor, labels: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """Classification and regression at once: `heatmap`, the focal loss for each object, and `box`, 1 − GIoU.

    The latter is a mean over the cells near centres, weighted by the square of their bump's height. (Departure: the
    paper takes the L1 distance of offset and size at the centre.)

    Args:
        predicted: of B images.
        boxes: (B, N, 4) xyxy in pixels.
        labels: (B, N), see `targets`.
        size: (H, W) of the images in pixels.
    """
    heatmap, true, height = targets(boxes, labels, predicted.heatmap.shape[1], size)
    weight = height.square() * (height > 0.1)
    apart = 1 - giou(predicted.boxes.movedim(1, -1), true.movedim(1, -1), check=False)
    objects = (labels >= 0).sum().clamp(min=1)
    return {
        "heatmap": focal_loss(predicted.heatmap, heatmap) / objects,
        "box": (apart * weight).sum() / weight.sum().clamp(min=1),
    }


Vary = Callable[[Tensor, Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor, Tensor]]


def mirrored(images: Tensor, boxes: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Half of the images (B, 3, H, W), chosen at random, left to right, with their boxes (B, N, 4) xyxy."""
    turn = (torch.rand(len(images), generator=rng, device=rng.device) < 0.5).to(images.device)
    x1, y1, x2, y2 = wide(boxes).unbind(-1)
    W = images.shape[-1]
    turned = torch.stack([W - x2, y1, W - x1, y2], -1)
    images = torch.where(turn[:, None, None, None], images.flip(-1), images)
    return images, torch.where(turn[:, None, None], turned, boxes), labels


def random_squares(size: int, zoom: tuple[float, float], seen: float = 0.4) -> Vary:
    """A variation for photographs: random squares of them, larger or smaller, near an object, mirrored or not.

    Positions are computed in float32 or more, whatever the images' type and under autocast too: bfloat16 knows a
    place only to within a pixel or two.

    Args:
        size: side of the squares, in pixels.
        zoom: least and most enlargement.
        seen: an object of which less than this part of the box is left in the square no longer counts.

    Returns:
        (images (B, 3, H, W) as floats, boxes (B, N, 4), labels (B, N), rng) → squares (B, 3, size, size), with grey
        where there was no image, boxes cut at their border, labels.

    Raises:
        ValueError: enlargements that are not 0 < least ≤ most.
        TypeError: images that are no floats, when it is called.
    """
    least, most = map(float, zoom)
    if not 0 < least <= most < math.inf:
        raise ValueError(f"expected a zoom with 0 < least ≤ most; got {zoom}")

    def vary(images: Tensor, boxes: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        if not images.is_floating_point():
            raise TypeError(f"expected images as floats, got {images.dtype}")
        with runtime.no_autocast(images.device):
            exact, boxes = wide(images), wide(boxes)
            chance = torch.rand(5, len(images), 1, generator=rng, device=rng.device).to(exact)
            scale = least * (most / least) ** chance[0]  # (B, 1), evenly over the octaves
            middle = _middles(boxes, labels, chance[1], images.shape[-2:])
            middle = middle + 0.6 * (chance[2:4, :, 0].T - 0.5) * size / scale
            flip = torch.where(chance[4] < 0.5, -1, 1)
            squares = _cut(exact, middle, scale, flip, size).to(images.dtype)
            boxes, part = _moved(boxes, middle, scale, flip, size)
            return squares, boxes, torch.where(part >= seen, labels, PADDING)

    return vary


def _middles(boxes: Tensor, labels: Tensor, chance: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 2): the middle of one random object of each image, for chance (B, 1) in [0, 1); without any, the image's."""
    there = labels >= 0
    rank = there.cumsum(1)  # 1, 2, … at the objects, wherever padding lies between
    chosen = there & (rank == (chance * there.sum(1, keepdim=True)).long() + 1)
    x, y = ((boxes[..., :2] + boxes[..., 2:]) / 2 * chosen[..., None]).sum(1).unbind(1)
    H, W = size
    return torch.stack([torch.where(there.any(1), x, W / 2), torch.where(there.any(1), y, H / 2)], 1)


def _cut(images: Tensor, middle: Tensor, scale: Tensor, flip: Tensor, size: int) -> Tensor:
    """Squares around middles (B, 2), enlarged by the scale (B, 1), left to right where flip (B, 1) is −1."""
    B, C, H, W = images.shape
    (x, y), extent = middle.split(1, 1), size / scale
    none = torch.zeros_like(extent)
    # affine_grid counts from −1 to 1 across an image.
    theta = torch.stack(
        [torch.cat([flip * extent / W, none, 2 * x / W - 1], 1), torch.cat([none, extent / H, 2 * y / H - 1], 1)], 1
    )  # (B, 2, 3)
    grid = F.affine_grid(theta.to(images), [B, C, size, size], align_corners=False)
    return F.grid_sample(images - 0.5, grid, align_corners=False) + 0.5  # what is outside becomes grey


def _moved(boxes: Tensor, middle: Tensor, scale: Tensor, flip: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The boxes (B, N, 4) in those squares, cut at the border, and what part (B, N) of each is left."""
    corners = (boxes.unflatten(2, (2, 2)) - middle[:, None, None]) * scale[..., None, None]
    corners = corners * torch.cat([flip, torch.ones_like(flip)], 1)[:, None, None] + size / 2
    whole = torch.cat([corners.amin(2), corners.amax(2)], 2)
    left = whole.clamp(0, size)
    area, of = ((b[..., 2:] - b[..., :2]).prod(-1) for b in (left, whole))
    return left, area / of.clamp(min=1e-6)


def recoloured(images: Tensor, rng: torch.Generator, strength: float = 0.4) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] with saturation, contrast and brightness changed by up to ± strength each."""
    factors = 1 + strength * (2 * torch.rand(3, len(images), 1, 1, 1, generator=rng, device=rng.device) - 1)
    saturation, contrast, brightness = factors.to(images)
    grey = images.mean(1, keepdim=True)
    coloured = grey + saturation * (images - grey)
    return (0.5 + contrast * (coloured - 0.5) + (brightness - 1) / 2).clamp(0, 1)


def optimiser_and_schedule(
    detector: Detector, steps: int, lr: float = 5e-3
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW for all weights that learn, and a rate that rises to `lr` in the first 15 % of the steps and falls.

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
    """A step that lowers the focal loss of the heatmap plus 1 − GIoU of the boxes.

    Args:
        detector: what learns.
        optimiser: of its weights.
        rng: draws the variations, on its own device; give it to the loop as `stateful`, so that a run resumes.
        vary: (images, boxes, labels, rng) → the same, changed by chance; None: as they are.
        schedule: of the learning rate, advanced by each step.

    Returns:
        batch as of `DetectionDataset` → the losses `heatmap` and `box`. Of the first batch the step looks at the values
        of the images, of later ones it does not. It raises ValueError or TypeError for images that are not floats
        (B, 3, H, W) in [0, 1].
    """
    check_images = once(check_range)

    def step(batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        check_images(batch[0])
        images, boxes, labels = batch if vary is None else vary(*batch, rng)
        losses = detection_losses(detector(images), boxes, labels, images.shape[-2:])
        descend(losses["heatmap"] + losses["box"], optimiser, clip=5.0)
        if schedule is not None:
            schedule.step()
        return {name: loss.detach() for name, loss in losses.items()}

    return step
