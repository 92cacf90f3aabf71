"""Semantic maps: a class for every pixel. How good they are, and how they look.

Maps are whole numbers of any one shape, usually (B, H, W), with classes from 0. The scores (Everingham et al. 2010)
count over all pixels of all images together, as is usual; add the confusion matrices of several batches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib import scenes


def as_map(given: Tensor, name: str = "a map") -> Tensor:
    """A map of whole numbers, of any integer type and also from NumPy, as an int64 tensor.

    Args:
        given: of any shape.
        name: what the message calls it.

    Raises:
        TypeError: floats or booleans.
    """
    found = torch.as_tensor(given)
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise TypeError(f"expected {name} of int64; got {found.dtype}")
    return found.long()


def as_masks(given: Tensor, name: str = "masks") -> Tensor:
    """Masks as a tensor of booleans, also from NumPy.

    Args:
        given: of any shape.
        name: what the message calls them.

    Raises:
        TypeError: no booleans. Numbers are not guessed at: 0 and 1, 0 and 255 and ids all come as uint8.
    """
    found = torch.as_tensor(given)
    if found.dtype != torch.bool:
        raise TypeError(f"expected {name} of booleans; got {found.dtype}; write (x > 0), or (x == id)")
    return found


def as_mask(given: Tensor) -> Tensor:
    """One mask (H, W) as a tensor of booleans, also from NumPy.

    Raises:
        ValueError: another shape.
        TypeError: no booleans.
    """
    mask = as_masks(given, "a mask")
    if mask.ndim != 2:
        raise ValueError(f"expected a mask (H, W); got {tuple(mask.shape)}")
    return mask


def max_around(x: Tensor) -> Tensor:
    """The largest of each pixel of (H, W) and its eight neighbours."""
    return F.max_pool2d(x[None], 3, stride=1, padding=1)[0] if x.numel() else x


def confusion_matrix(predicted: Tensor, truth: Tensor, classes: int, *, ignore: int = 255) -> Tensor:
    """How many pixels of each true class (rows) were called what (columns): int64 (classes, classes).

    Args:
        predicted: the answers in [0, classes).
        truth: of the same shape, in [0, classes).
        classes: how many there are.
        ignore: the true label of pixels that do not count.

    Raises:
        ValueError: two shapes, or classes outside [0, classes).
        TypeError: maps of floats or booleans.
    """
    predicted, truth = as_map(predicted, "the predicted map"), as_map(truth, "the true map")
    if predicted.shape != truth.shape:
        raise ValueError(f"expected two maps of one shape; got {tuple(predicted.shape)} and {tuple(truth.shape)}")
    counted = truth != ignore
    predicted, truth = predicted[counted], truth[counted]
    for name, labels in (("predicted", predicted), ("true", truth)):
        if ((labels < 0) | (labels >= classes)).any():
            raise ValueError(f"expected {name} classes in [0, {classes}); got {labels.unique().tolist()}")
    return torch.bincount(classes * truth + predicted, minlength=classes**2).reshape(classes, classes)


def iou_per_class(confusion: Tensor) -> Tensor:
    """TP / (TP + FP + FN) of each class, float64 (C,); NaN where a class is neither there nor claimed.

    Args:
        confusion: (C, C), rows true and columns predicted.

    Raises:
        ValueError: not square.
    """
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"expected a confusion matrix (C, C); got {tuple(confusion.shape)}")
    hits = confusion.diagonal().double()
    return hits / (confusion.sum(0) + confusion.sum(1) - hits)  # 0 / 0 is NaN


def mean_iou(confusion: Tensor) -> float:
    """mIoU: the mean of `iou_per_class` over the classes that are there or claimed; NaN where there are none."""
    return float(iou_per_class(confusion).nanmean())


def pixel_accuracy(confusion: Tensor) -> float:
    """The proportion of right pixels; NaN without pixels."""
    return float(confusion.diagonal().sum().double() / confusion.sum())


COLOURS = scenes.PALETTE  # by class


def palette() -> Tensor:
    """RGB in [0, 1] of each class of `scenes.CLASSES`, (14, 3)."""
    return torch.tensor([[int(COLOURS[name][i : i + 2], 16) / 255 for i in (1, 3, 5)] for name in scenes.CLASSES])


def paint(classes: Tensor) -> Tensor:
    """Semantic maps (..., H, W) as images (..., 3, H, W) in [0, 1]; what is no class is black."""
    classes = as_map(classes)
    colours = torch.cat([palette(), torch.zeros(1, 3)]).to(classes.device)
    n = len(colours) - 1
    return colours[torch.where((classes >= 0) & (classes < n), classes, n)].movedim(-1, -3)


def enlarge(image: Tensor, scale: int) -> Tensor:
    """(..., H, W) → (..., scale · H, scale · W): every pixel becomes a square of `scale` pixels a side."""
    return image.repeat_interleave(scale, -2).repeat_interleave(scale, -1)


def rim(mask: Tensor) -> Tensor:
    """The pixels of a mask (H, W) that touch, by a side or a corner, what lies outside of it."""
    mask = as_mask(mask)
    return mask & (max_around((~mask).float()) > 0)
