"""Pictures varied by chance, and their boxes with them: batches (pictures, boxes, labels) as of `Annotated`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.detection.losses import PADDING

Vary = Callable[[Tensor, Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor, Tensor]]


def mirrored(pictures: Tensor, boxes: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Half of the pictures (B, 3, H, W), chosen by lot, left to right, with their boxes (B, N, 4) xyxy."""
    turn = (torch.rand(len(pictures), generator=rng, device=rng.device) < 0.5).to(pictures.device)
    x1, y1, x2, y2 = boxes.unbind(-1)
    W = pictures.shape[-1]
    turned = torch.stack([W - x2, y1, W - x1, y2], -1)
    pictures = torch.where(turn[:, None, None, None], pictures.flip(-1), pictures)
    return pictures, torch.where(turn[:, None, None], turned, boxes), labels


def random_squares(size: int, zoom: tuple[float, float], seen: float = 0.4) -> Vary:
    """A variation for photographs: random squares of them, larger or smaller, near an object, mirrored or not.

    Args:
        size: side of the squares, in pixels. zoom: least and most enlargement.
        seen: an object of which less than this part of the box is left in the square no longer counts.

    Returns:
        (pictures (B, 3, H, W), boxes (B, N, 4), labels (B, N), rng) → squares (B, 3, size, size), with grey where
        there was no picture, boxes cut at their border, labels.
    """

    def vary(pictures: Tensor, boxes: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        chance = torch.rand(5, len(pictures), 1, generator=rng, device=rng.device).to(pictures.device)
        scale = zoom[0] * (zoom[1] / zoom[0]) ** chance[0]  # (B, 1), evenly over the octaves
        middle = _middles(boxes, labels, chance[1], pictures.shape[-2:])
        middle = middle + 0.6 * (chance[2:4, :, 0].T - 0.5) * size / scale
        flip = torch.where(chance[4] < 0.5, -1, 1)
        squares = _cut(pictures, middle, scale, flip, size)
        boxes, part = _moved(boxes, middle, scale, flip, size)
        return squares, boxes, torch.where(part >= seen, labels, PADDING)

    return vary


def _middles(boxes: Tensor, labels: Tensor, chance: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 2): the middle of one object of each picture by lot, chance (B, 1) in [0, 1); without any, the picture's."""
    there = labels >= 0
    rank = there.cumsum(1)  # 1, 2, … at the objects, wherever padding lies between
    chosen = there & (rank == (chance * there.sum(1, keepdim=True)).long() + 1)
    middle = ((boxes[..., :2] + boxes[..., 2:]) / 2 * chosen[..., None]).sum(1)
    H, W = size
    return torch.where(there.any(1, keepdim=True), middle, boxes.new_tensor([W / 2, H / 2]))


def _cut(pictures: Tensor, middle: Tensor, scale: Tensor, flip: Tensor, size: int) -> Tensor:
    """Squares around middles (B, 2), enlarged by the scale (B, 1), left to right where flip (B, 1) is −1."""
    B, C, H, W = pictures.shape
    extent = pictures.new_tensor([W, H])
    # affine_grid counts from −1 to 1 across a picture.
    axes = torch.diag_embed(torch.cat([flip, torch.ones_like(flip)], 1) * size / scale / extent)
    theta = torch.cat([axes, (2 * middle / extent - 1)[..., None]], 2)  # (B, 2, 3)
    grid = F.affine_grid(theta, [B, C, size, size], align_corners=False)
    return F.grid_sample(pictures - 0.5, grid, align_corners=False) + 0.5  # what is outside becomes grey


def _moved(boxes: Tensor, middle: Tensor, scale: Tensor, flip: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The boxes (B, N, 4) in those squares, cut at the border, and what part (B, N) of each is left."""
    corners = (boxes.unflatten(2, (2, 2)) - middle[:, None, None]) * scale[..., None, None]
    corners = corners * torch.cat([flip, torch.ones_like(flip)], 1)[:, None, None] + size / 2
    whole = torch.cat([corners.amin(2), corners.amax(2)], 2)
    left = whole.clamp(0, size)
    area, of = ((b[..., 2:] - b[..., :2]).prod(-1) for b in (left, whole))
    return left, area / of.clamp(min=1e-6)


def recoloured(pictures: Tensor, rng: torch.Generator, strength: float = 0.4) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] with saturation, contrast and brightness changed by up to ± strength each."""
    factors = 1 + strength * (2 * torch.rand(3, len(pictures), 1, 1, 1, generator=rng, device=rng.device) - 1)
    saturation, contrast, brightness = factors.to(pictures)
    grey = pictures.mean(1, keepdim=True)
    coloured = grey + saturation * (pictures - grey)
    return (0.5 + contrast * (coloured - 0.5) + (brightness - 1) / 2).clamp(0, 1)
