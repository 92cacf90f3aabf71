"""Training on scenes: pictures with what the network has to say of them, mirrored at random, and the step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.base import scenes
from course_lib.base.training import Step, descend
from course_lib.segmentation import losses
from course_lib.segmentation.instance import centre_targets
from course_lib.segmentation.network import OFFSET_UNIT, SegmentationNet

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Targets:
    """Pictures and their targets, whole in memory: `data[indices]` gives a batch for `segmentation_step`.

    Attributes:
        pictures: uint8 (N, 3, H, W). semantic: uint8 (N, H, W). heatmaps: float16 (N, H, W), offsets: float16
            (N, 2, H, W), of `centre_targets`.
    """

    pictures: Tensor
    semantic: Tensor
    heatmaps: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, pictures: Sequence[scenes.Picture]) -> "Targets":
        """Of some pictures of one size."""
        return cls._stacked([_targets(picture) for picture in pictures])

    @classmethod
    def draw(cls, n: int, size: int, seed: int) -> "Targets":
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
    def _stacked(cls, parts: Sequence[tuple[Tensor, ...]]) -> "Targets":
        return cls(*map(torch.stack, zip(*parts, strict=True)))

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: Tensor | slice) -> Batch:
        """Pictures (B, 3, H, W) in [0, 1], classes int64 (B, H, W), heatmaps (B, H, W), offsets (B, 2, H, W)."""
        return (
            self.pictures[index].float() / 255,
            self.semantic[index].long(),
            self.heatmaps[index].float(),
            self.offsets[index].float(),
        )


def _targets(picture: scenes.Picture) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `Targets` keeps of a picture."""
    heatmap, offsets = centre_targets(picture.masks)
    return (255 * picture.image).round().byte(), picture.semantic.byte(), heatmap.half(), offsets.half()


def mirror(batch: Batch, chosen: Tensor) -> Batch:
    """The batch with some pictures mirrored left to right; their offsets then point the other way, too.

    Args:
        batch: of `Targets`. chosen: bool (B,).
    """
    pictures, semantic, heatmaps, offsets = batch
    turned = offsets.flip(-1) * offsets.new_tensor([1, -1])[:, None, None]
    pairs = ((pictures, pictures.flip(-1)), (semantic, semantic.flip(-1)), (heatmaps, heatmaps.flip(-1)))
    return tuple(
        torch.where(chosen.view(-1, *[1] * (one.ndim - 1)), other, one) for one, other in (*pairs, (offsets, turned))
    )


def optimiser_and_schedule(
    network: SegmentationNet, steps: int, lr: float = 3e-3
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW, and a rate that rises to `lr` in the first 15 % of the steps and falls to zero (Smith & Topin 2018).

    β₂ is 0.95, not 0.999: a training of a few hundred steps has no time to remember a thousand.
    """
    optimiser = torch.optim.AdamW(network.parameters(), lr, betas=(0.9, 0.95), weight_decay=0.01)
    return optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps + 1, pct_start=0.15)


def segmentation_step(
    network: SegmentationNet,
    optimiser: torch.optim.Optimizer,
    rng: torch.Generator,
    *,
    things: int = len(scenes.THINGS),
    thing_weight: float = 4.0,
    centre_weight: float = 20.0,
    offset_weight: float = 0.5,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> Step:
    """A step that lowers cross-entropy + Dice + squared error of the heatmap + absolute error of the offsets.

    Offsets count at pixels of things only. The weights put all terms at about the same size; the paper's are for other
    units, and it has no Dice.

    Args:
        network, optimiser: to train. rng: decides which pictures are mirrored; give it to the loop as a part.
        things: classes 0 … things − 1 can be counted.
        thing_weight: of their pixels in the cross-entropy, against 1 for stuff, which is easy and covers most.
        centre_weight, offset_weight: of the last two terms.
        schedule: of the learning rate, advanced by each step.

    Returns:
        batch of `Targets` → the losses by name.
    """

    weight = torch.ones(network.classes)
    weight[:things] = thing_weight

    def step(batch: Batch) -> dict[str, Tensor]:
        chosen = torch.rand(len(batch[0]), generator=rng, device=rng.device).to(batch[0].device) < 0.5
        pictures, semantic, heatmap, offsets = mirror(batch, chosen)
        maps = network(pictures)
        foreground = (semantic < things).to(offsets)
        error = (maps.offsets - offsets).abs().sum(1) * foreground / OFFSET_UNIT
        named = {
            "cross-entropy": losses.cross_entropy(maps.logits, semantic, weight=weight.to(offsets)),
            "Dice": losses.dice_loss(maps.logits, semantic),
            "centres": centre_weight * F.mse_loss(maps.heatmap, heatmap),
            "offsets": offset_weight * error.sum() / foreground.sum().clamp(min=1),
        }
        descend(sum(named.values()), optimiser, clip=1.0)
        if schedule is not None:
            schedule.step()
        return {name: loss.detach() for name, loss in named.items()}

    return step
