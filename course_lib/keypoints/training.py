"""What a keypoint network learns: its data set, random variation, the loss, and its step."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from course_lib.base import runtime
from course_lib.base.images import check_range, once
from course_lib.base.loop import Step, descend
from course_lib.base.runtime import wide
from course_lib.keypoints.crops import crop, move, similarity
from course_lib.keypoints.heatmaps import SIGMA, encode
from course_lib.keypoints.model import KeypointNetwork

Vary = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


class KeypointDataset:
    """Crops of one size with their points, in memory; `data[indices]` is a batch for `keypoint_step`.

    A batch is crops (B, 3, H, W) float32 in [0, 1] and keypoints (B, K, 3) float32: x, y in pixels of the crop, and
    visibility as in COCO: 2 seen, 1 hidden, 0 not labelled.

    Args:
        images: (N, 3, H, W) uint8.
        keypoints: (N, K, 3).

    Raises:
        TypeError: images that are no bytes, or keypoints that are no floats.
        ValueError: other shapes, labelled points that are not finite, or another visibility.
    """

    def __init__(self, images: Tensor, keypoints: Tensor) -> None:
        if images.dtype != torch.uint8 or not keypoints.is_floating_point():
            raise TypeError(f"expected images as uint8, keypoints as floats; got {images.dtype}, {keypoints.dtype}")
        if images.ndim != 4 or images.shape[1] != 3 or keypoints.ndim != 3 or keypoints.shape[::2] != (len(images), 3):
            raise ValueError(
                f"expected images (N, 3, H, W) and keypoints (N, K, 3), got {tuple(images.shape)}, "
                f"{tuple(keypoints.shape)}"
            )
        if not torch.isin(keypoints[..., 2], keypoints.new_tensor([0, 1, 2])).all():
            raise ValueError("expected a visibility of 0, not labelled, 1, hidden, or 2, seen")
        if not keypoints[keypoints[..., 2] > 0].isfinite().all():
            raise ValueError("expected labelled points to be finite")
        self.images, self.keypoints = images, torch.where(keypoints[..., 2:] > 0, keypoints, 0.0).float()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[indices].float() / 255, self.keypoints[indices]


def varied(mirrored: list[int], *, turn: float = 30.0, zoom: float = 0.25, shift: float = 0.08) -> Vary:
    """A random variation of crops: turned, enlarged, moved, and half of them mirrored.

    Args:
        mirrored: of the network: which point becomes which in the mirror.
        turn: at most so many degrees either way.
        zoom: enlarged or made smaller by up to this part.
        shift: at most so far in x and in y, in sides of the crop.

    Returns:
        (crops (B, 3, H, W), keypoints (B, K, 3), rng) → the same, changed by chance; points that leave the crop are no
        longer labelled.
    """

    def vary(crops: Tensor, keypoints: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        B, _, H, W = crops.shape
        chance = (2 * torch.rand(5, B, generator=rng, device=rng.device) - 1).to(crops.device)  # in [−1, 1)
        mirror = chance[4] < 0
        middle = torch.tensor([W, H], device=crops.device) * (0.5 + shift * chance[2:4].T)
        with runtime.no_autocast(crops.device):  # bfloat16 knows a place only to within a pixel
            maps = similarity(middle, 1 + zoom * chance[0], math.radians(turn) * chance[1], mirror, (W / 2, H / 2))
            crops = crop(crops, maps, H)
            points = move(wide(keypoints[..., :2]), maps)
        keypoints = torch.cat([points, keypoints[..., 2:]], -1)
        keypoints = torch.where(mirror[:, None, None], keypoints[:, mirrored], keypoints)
        inside = ((keypoints[..., :2] >= 0) & (keypoints[..., :2] < middle.new_tensor([W, H]))).all(-1, keepdim=True)
        return crops, torch.where(inside & (keypoints[..., 2:] > 0), keypoints, 0.0)

    return vary


def heatmap_loss(predicted: Tensor, keypoints: Tensor, size: tuple[int, int], sigma: float = SIGMA) -> Tensor:
    """The squared difference of heatmaps, summed over cells, as a mean over the labelled points, seen or hidden.

    Args:
        predicted: (B, K, h, w).
        keypoints: (B, K, 3); the maps of points with visibility 0 count nothing.
        size: (H, W) of the crops in pixels.
        sigma: of the bumps, in cells.

    Returns:
        A scalar; 0 where no point is labelled.
    """
    labelled = wide(keypoints[..., 2] > 0)
    apart = (wide(predicted) - encode(keypoints[..., :2], size, sigma)).square().sum((-1, -2))
    return (apart * labelled).sum() / labelled.sum().clamp(min=1)


def keypoint_step(
    network: KeypointNetwork,
    optimiser: torch.optim.Optimizer,
    rng: torch.Generator,
    vary: Vary | None = None,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> Step:
    """A step that lowers `heatmap_loss`.

    Args:
        network: what learns.
        optimiser: of its weights.
        rng: draws the variations, on its own device; give it to the loop as `stateful`, so that a run resumes.
        vary: see `varied`; None: crops as they are.
        schedule: of the learning rate, advanced by each step.

    Returns:
        batch as of `KeypointDataset` → the loss `heatmap`. Of the first batch the step looks at the values of the
        crops, of later ones it does not. It raises ValueError or TypeError for crops that are not floats
        (B, 3, H, W) in [0, 1].
    """
    check_crops = once(check_range)

    def step(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        check_crops(batch[0])
        crops, keypoints = batch if vary is None else vary(*batch, rng)
        loss = heatmap_loss(network(crops), keypoints, crops.shape[-2:])
        descend(loss, optimiser, clip=5.0)
        if schedule is not None:
            schedule.step()
        return {"heatmap": loss.detach()}

    return step
