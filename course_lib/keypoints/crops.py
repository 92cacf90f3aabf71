"""Where a crop comes from: affine maps from the image to a square around one object, and back.

A matrix A (..., 2, 3) takes a point p of the image to A p = M p + t in the crop, both in pixels from the corner.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.base.runtime import wide
from course_lib.detection.boxes import check_boxes

MARGIN = 1.25  # side of a crop, in the box's longer side: hands and feet need room


def around(
    boxes: Tensor, size: int, margin: float = MARGIN, angle: Tensor | float = 0.0, mirror: Tensor | bool = False
) -> Tensor:
    """The maps from the image to upright squares around boxes: enlarged, turned about their middles, perhaps mirrored.

    Args:
        boxes: (..., 4) xyxy in pixels, not empty.
        size: side of the crop, in pixels.
        margin: side of the square, in the box's longer side.
        angle: by which the content turns, clockwise as seen, in radians; broadcasts with (...).
        mirror: whether left and right are exchanged; broadcasts with (...).

    Returns:
        (..., 2, 3), float32 or more.

    Raises:
        TypeError: boxes that are no floats.
        ValueError: boxes that are empty or not finite, a size below 1 or a margin that is not above 0.
    """
    check_boxes(boxes)
    boxes = wide(boxes)
    extent = boxes[..., 2:] - boxes[..., :2]
    if not bool((extent > 0).all() and boxes.isfinite().all()):
        raise ValueError("expected finite boxes with a width and a height above 0")
    if size < 1 or not 0 < margin < math.inf:
        raise ValueError(f"expected a size from 1 px and a margin above 0, got {size} and {margin}")
    scale = size / (margin * extent.amax(-1))
    return similarity((boxes[..., :2] + boxes[..., 2:]) / 2, scale, angle, mirror, (size / 2, size / 2))


def similarity(
    middle: Tensor, scale: Tensor, angle: Tensor | float, mirror: Tensor | bool, to: tuple[float, float]
) -> Tensor:
    """Maps (..., 2, 3) that enlarge, turn and perhaps mirror around `middle` (..., 2), and move that to `to`.

    Args:
        middle: (..., 2) xy in pixels.
        scale: (...), crop pixels for each of the image's.
        angle: see `around`.
        mirror: see `around`.
        to: xy in pixels of the crop.
    """
    angle, mirror = (torch.as_tensor(given, device=scale.device) for given in (angle, mirror))
    angle, sign = angle.to(scale), torch.where(mirror, -1.0, 1.0).to(scale)
    cos, sin = torch.broadcast_tensors(scale * angle.cos(), scale * angle.sin())
    linear = torch.stack([torch.stack([sign * cos, -sign * sin], -1), torch.stack([sin, cos], -1)], -2)
    shift = torch.as_tensor(to).to(scale) - (linear @ middle[..., None])[..., 0]
    return torch.cat([linear, shift[..., None]], -1)


def inverse(matrices: Tensor) -> Tensor:
    """The maps (..., 2, 3) from the crop back to the image: p = M⁻¹ (q − t).

    Raises:
        ValueError: a map that has no way back.
    """
    linear, shift = wide(matrices).split([2, 1], -1)
    if (torch.linalg.det(linear).abs() < 1e-12).any():
        raise ValueError("expected maps that can be inverted; a crop of width 0 has no way back")
    back = torch.linalg.inv(linear)
    return torch.cat([back, -back @ shift], -1)


def move(points: Tensor, matrices: Tensor) -> Tensor:
    """Where the maps (..., 2, 3) take points (..., K, 2) xy; float32 or more: bfloat16 knows a place to within 2 px."""
    dtype = torch.promote_types(wide(points).dtype, matrices.dtype)
    linear, shift = matrices.to(dtype).split([2, 1], -1)
    return points.to(dtype) @ linear.mT + shift.mT


def crop(images: Tensor, matrices: Tensor, size: int, samples: int = 1) -> Tensor:
    """Squares (B, 3, size, size) of images, read between pixels (bilinear); grey where there is no image.

    Args:
        images: (B, 3, H, W) floats, or (1, 3, H, W) for all the maps.
        matrices: (B, 2, 3) from the image to the crop.
        size: side of the crop in pixels.
        samples: places along each side of a crop's pixel whose mean it becomes: more where an image is made smaller,
            or fine detail turns into noise (aliasing).

    Raises:
        TypeError: images that are no floats.
        ValueError: shapes that do not fit.
    """
    if not images.is_floating_point():
        raise TypeError(f"expected images as floats in [0, 1], got {images.dtype}")
    if images.ndim != 4 or matrices.shape[1:] != (2, 3) or len(images) not in (1, len(matrices)):
        raise ValueError(
            f"expected images (B, C, H, W) and maps (B, 2, 3), got {tuple(images.shape)}, {tuple(matrices.shape)}"
        )
    (B, _, _), (C, H, W) = matrices.shape, images.shape[1:]
    back = inverse(matrices)
    # affine_grid counts from −1 to 1 across the crop, grid_sample across the image.
    half = size / 2
    linear, shift = back[..., :2] * half, back[..., 2] + half * back[..., :2].sum(-1)
    to_unit = torch.tensor([2 / W, 2 / H], device=back.device, dtype=back.dtype)
    theta = torch.cat([linear * to_unit[:, None], (shift * to_unit - 1)[..., None]], -1)
    grid = F.affine_grid(theta, [B, C, size * samples, size * samples], align_corners=False)
    found = F.grid_sample(wide(images).expand(B, -1, -1, -1) - 0.5, grid.to(wide(images)), align_corners=False) + 0.5
    return F.avg_pool2d(found, samples).to(images.dtype) if samples > 1 else found.to(images.dtype)
