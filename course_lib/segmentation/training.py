"""Training a segmentation network: its losses, its data, its step.

Cross-entropy asks each pixel, Dice each class as a whole. Logits are (B, C, H, W), labels int64 (B, H, W) in [0, C),
or `ignore` where nobody knows. The data are scenes with what the network has to say of them, mirrored at random.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib import scenes
from course_lib.base.images import check_range, once
from course_lib.base.loop import Step, descend
from course_lib.base.runtime import wide
from course_lib.segmentation.instance import centre_targets
from course_lib.segmentation.model import OFFSET_UNIT, Maps, SegmentationNet


def _check(logits: Tensor, labels: Tensor, ignore: int) -> None:
    B, C, H, W = logits.shape if logits.ndim == 4 else (0, 0, 0, 0)
    if C < 1 or labels.shape != (B, H, W):
        raise ValueError(
            f"expected logits (B, C, H, W) and labels (B, H, W); got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if labels.dtype != torch.int64:
        raise TypeError(f"expected labels of int64; got {labels.dtype}")
    wrong = ((labels < 0) | (labels >= C)) & (labels != ignore)
    if labels.is_cpu and wrong.any():  # a GPU would have to wait in every step
        raise ValueError(f"expected labels in [0, {C}) or {ignore}; got {labels[wrong].unique().tolist()}")


def cross_entropy(logits: Tensor, labels: Tensor, *, weight: Tensor | None = None, ignore: int = 255) -> Tensor:
    """−log p of the right class, the mean over the pixels: log Σ_c exp(logit_c) − logit_right, in nats.

    Args:
        logits: (B, C, H, W); halves are computed with in float32.
        labels: int64 (B, H, W).
        weight: (C,), how much a pixel of each class counts in the mean; by default all the same.
        ignore: the label of pixels that do not count.

    Returns:
        A scalar; 0 where no pixel counts.

    Raises:
        ValueError: shapes that do not fit, or (on the CPU) labels outside [0, C).
        TypeError: labels that are not int64.
    """
    _check(logits, labels, ignore)
    C = logits.shape[1]
    if weight is not None and weight.shape != (C,):
        raise ValueError(f"expected a weight for each of {C} classes; got {tuple(weight.shape)}")
    counted = labels != ignore
    known = torch.where(counted, labels, 0)
    logits = wide(logits).masked_fill(~counted[:, None], 0)  # what is not counted may be infinite
    nats = torch.logsumexp(logits, 1) - logits.gather(1, known[:, None])[:, 0]
    counts = counted.to(nats) if weight is None else counted * weight.to(nats)[known]
    return (counts * nats).sum() / counts.sum().clamp(min=torch.finfo(nats.dtype).tiny)


def dice(probabilities: Tensor, truth: Tensor, *, epsilon: float = 1.0) -> Tensor:
    """The soft Dice coefficient 2 Σ p g / (Σ p + Σ g) of two maps (Dice 1945; Milletari et al. 2016, equation 3).

    For masks of 0 and 1 it is 2 |A ∩ B| / (|A| + |B|), so 2 IoU / (1 + IoU). Milletari et al. square p and g in the
    denominator; without the squares it is Dice's coefficient also between 0 and 1.

    Args:
        probabilities: p (..., H, W) in [0, 1]; halves are computed with in float32, whose sums do not overflow.
        truth: g, of the same shape, in [0, 1]; booleans too.
        epsilon: pixels added above and below the line: two empty maps then agree, a tiny mask is not all or nothing.

    Returns:
        (...), in [0, 1].

    Raises:
        TypeError: integers, which may be 0 and 1, 0 and 255, or classes.
        ValueError: two shapes.
    """
    if not all(x.is_floating_point() or x.dtype == torch.bool for x in (probabilities, truth)):
        raise TypeError(f"expected floats in [0, 1] or booleans; got {probabilities.dtype} and {truth.dtype}")
    if probabilities.shape != truth.shape or truth.ndim < 2:
        raise ValueError(f"expected two maps (..., H, W); got {tuple(probabilities.shape)} and {tuple(truth.shape)}")
    probabilities, truth = wide(probabilities), wide(truth)
    shared = (probabilities * truth).sum((-2, -1))
    return (2 * shared + epsilon) / (probabilities.sum((-2, -1)) + truth.sum((-2, -1)) + epsilon)


def dice_loss(logits: Tensor, labels: Tensor, *, ignore: int = 255, epsilon: float = 1.0) -> Tensor:
    """1 − soft Dice of the softmax, the mean over the classes, each counted over the whole batch.

    A class of ten pixels weighs as much as one of ten thousand: what cross-entropy's mean over pixels forgets.

    Args:
        logits: (B, C, H, W); halves are computed with in float32.
        labels: int64 (B, H, W).
        ignore: the label of pixels that do not count.
        epsilon: pixels added, see `dice`.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: shapes that do not fit, or (on the CPU) labels outside [0, C).
        TypeError: labels that are not int64.
    """
    _check(logits, labels, ignore)
    B, C, H, W = logits.shape
    counted = labels != ignore
    # What is not counted may be infinite.
    p = wide(logits).masked_fill(~counted[:, None], 0).softmax(1) * counted[:, None]
    g = (labels[:, None] == torch.arange(C, device=labels.device)[:, None, None]).to(p)
    # The batch as one tall image for each class.
    p, g = (x.transpose(0, 1).reshape(C, B * H, W) for x in (p, g))
    return 1 - dice(p, g, epsilon=epsilon).mean()


Batch = tuple[Tensor, Tensor, Tensor, Tensor]
Vary = Callable[[tuple[Tensor, ...], torch.Generator], Batch]


@dataclass(frozen=True)
class SegmentationDataset:
    """Images and their targets, whole in memory: `data[indices]` gives a batch for `segmentation_step`.

    Attributes:
        images: uint8 (N, 3, H, W).
        semantic: uint8 (N, H, W), classes.
        heatmaps: float16 (N, H, W), of `centre_targets`.
        offsets: float16 (N, 2, H, W), of `centre_targets`.
    """

    images: Tensor
    semantic: Tensor
    heatmaps: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, renderings: Sequence[scenes.Rendering]) -> "SegmentationDataset":
        """Of some scenes, drawn at one size."""
        return cls._stacked(list(map(_targets, renderings)))

    @classmethod
    def draw(cls, n: int, size: int, seed: int) -> "SegmentationDataset":
        """Of `n` new scenes of `scenes.Scenes(n, size, seed)`, without keeping their other labels.

        In one thread: the tensors are too small to be shared, and threads would mostly wait for each other.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return cls._stacked(scenes.Scenes(n, size, seed).render_all(_targets))
        finally:
            torch.set_num_threads(threads)

    @classmethod
    def _stacked(cls, parts: Sequence[tuple[Tensor, ...]]) -> "SegmentationDataset":
        return cls(*map(torch.stack, zip(*parts, strict=True)))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor | slice) -> Batch:
        """Images (B, 3, H, W) in [0, 1], classes int64 (B, H, W), heatmaps (B, H, W), offsets (B, 2, H, W)."""
        return (
            self.images[index].float() / 255,
            self.semantic[index].long(),
            self.heatmaps[index].float(),
            self.offsets[index].float(),
        )


def _targets(rendering: scenes.Rendering) -> Batch:
    """What `SegmentationDataset` keeps of a scene."""
    heatmap, offsets = centre_targets(rendering.masks)
    return (255 * rendering.image).round().byte(), rendering.semantic.byte(), heatmap.half(), offsets.half()


def mirror(batch: Batch, chosen: Tensor) -> Batch:
    """The batch with some images mirrored left to right; their offsets then point the other way, too.

    Args:
        batch: of `SegmentationDataset`.
        chosen: bool (B,).
    """
    images, semantic, heatmaps, offsets = batch
    turned = offsets * offsets.new_tensor([1, -1])[:, None, None]
    mirrored = (x.flip(-1) for x in (images, semantic, heatmaps, turned))
    return tuple(
        torch.where(chosen.view(-1, *[1] * (x.ndim - 1)), other, x) for x, other in zip(batch, mirrored, strict=True)
    )


def mirrored(batch: Batch, rng: torch.Generator) -> Batch:
    """Half of the batch, chosen at random, through `mirror`."""
    return mirror(batch, torch.rand(len(batch[0]), generator=rng, device=rng.device).to(batch[0].device) < 0.5)


def optimiser_and_schedule(
    network: SegmentationNet, steps: int, lr: float = 3e-3
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW, and a rate that rises to `lr` in the first 15 % of the steps and falls to zero (Smith & Topin 2018).

    β₂ is 0.95, not 0.999: a training of a few hundred steps has no time to remember a thousand.
    """
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr, betas=(0.9, 0.95), weight_decay=0.01)
    return optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps + 1, pct_start=0.15)


THING_WEIGHT = 4.0  # of things' pixels in the cross-entropy, against 1 for stuff, which is easy and covers most


def segmentation_losses(
    maps: Maps,
    semantic: Tensor,
    heatmap: Tensor,
    offsets: Tensor,
    *,
    things: int = len(scenes.THINGS),
    centre_weight: float = 20.0,
    offset_weight: float = 0.5,
) -> dict[str, Tensor]:
    """Cross-entropy + Dice + 20 · squared error of the heatmap + ½ · absolute error of the offsets, each by name.

    In the cross-entropy a pixel of a thing counts four times. Offsets count at pixels of things only, in units of 8
    pixels. The weights put all terms at about the same size; the paper's are for other units, and it has no Dice.
    Pixels whose class is 255 count nowhere.

    Args:
        maps: of B images.
        semantic: int64 (B, H, W), classes.
        heatmap: (B, H, W), of `centre_targets`.
        offsets: (B, 2, H, W), of `centre_targets`.
        things: the first so many classes can be counted.
        centre_weight: of the heatmap's error.
        offset_weight: of the offsets' error.
    """
    weight = torch.ones(maps.logits.shape[1], device=maps.logits.device)
    weight[:things] = THING_WEIGHT
    foreground, known = (semantic < things).to(offsets), (semantic != 255).to(offsets)
    error = (maps.offsets - offsets).abs().sum(1) * foreground / OFFSET_UNIT
    return {
        "cross-entropy": cross_entropy(maps.logits, semantic, weight=weight),
        "Dice": dice_loss(maps.logits, semantic),
        "centres": centre_weight * ((maps.heatmap - heatmap).square() * known).mean(),
        "offsets": offset_weight * error.sum() / foreground.sum().clamp(min=1),
    }


def segmentation_step(
    network: SegmentationNet,
    optimiser: torch.optim.Optimizer,
    rng: torch.Generator,
    *,
    losses: Callable[..., dict[str, Tensor]] = segmentation_losses,
    vary: Vary = mirrored,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> Step:
    """A step that lowers the sum of the losses of a varied batch.

    Args:
        network: to train, on its device.
        optimiser: of its weights.
        rng: for `vary`; the loop keeps its state.
        losses: (maps, classes, heatmaps, offsets) → the losses by name; by default those for scenes.
        vary: (a batch of the data, rng) → images, classes, heatmaps and offsets, changed by chance.
        schedule: of the learning rate, advanced by each step.

    Returns:
        batch, images first, as of `SegmentationDataset` → the losses by name. Of the first batch the step looks at the
        values of the images, of later ones it does not. It raises ValueError or TypeError for images that are not
        floats (B, 3, H, W) in [0, 1].
    """
    check_images = once(check_range)

    def step(batch: Batch) -> dict[str, Tensor]:
        check_images(batch[0])
        images, *truth = vary(batch, rng)
        named = losses(network(images), *truth)
        descend(sum(named.values()), optimiser, clip=1.0)
        if schedule is not None:
            schedule.step()
        return {name: loss.detach() for name, loss in named.items()}

    return step
