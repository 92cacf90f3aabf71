"""How good is a semantic map: the confusion matrix, and IoU for each class (Everingham et al. 2010).

Maps are int64 of any one shape, usually (B, H, W), with classes from 0. Everything is counted over all pixels of all
pictures together, as is usual; add the matrices of several batches.
"""

import torch
from torch import Tensor


def confusion_matrix(predicted: Tensor, truth: Tensor, classes: int, *, ignore: int = 255) -> Tensor:
    """How many pixels of each true class (rows) were called what (columns): int64 (classes, classes).

    Args:
        predicted, truth: int64, of one shape, in [0, classes).
        ignore: the true label of pixels that do not count.

    Raises:
        ValueError: two shapes, or classes outside [0, classes). TypeError: no int64.
    """
    if predicted.dtype != torch.int64 or truth.dtype != torch.int64:
        raise TypeError(f"expected maps of int64; got {predicted.dtype} and {truth.dtype}")
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
    hits, union = _hits_and_union(confusion)
    return hits / union  # 0 / 0 is NaN


def mean_iou(confusion: Tensor) -> float:
    """mIoU: the mean of `iou_per_class` over the classes that are there or claimed; NaN where there are none."""
    return float(iou_per_class(confusion).nanmean())


def pixel_accuracy(confusion: Tensor) -> float:
    """The share of right pixels; NaN without pixels."""
    hits, _ = _hits_and_union(confusion)
    return float(hits.sum() / confusion.sum())


def _hits_and_union(confusion: Tensor) -> tuple[Tensor, Tensor]:
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"expected a confusion matrix (C, C); got {tuple(confusion.shape)}")
    confusion = confusion.double()
    hits = confusion.diagonal()
    return hits, confusion.sum(0) + confusion.sum(1) - hits
