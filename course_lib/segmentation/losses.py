"""What segmentation networks minimise: cross-entropy for each pixel, and Dice for each class as a whole.

Logits are (B, C, H, W), labels int64 (B, H, W) in [0, C), or `ignore` where nobody knows.
"""

import torch
from torch import Tensor


def _check(logits: Tensor, labels: Tensor, ignore: int) -> None:
    B, C, H, W = logits.shape if logits.ndim == 4 else (0, 0, 0, 0)
    if C < 1 or labels.shape != (B, H, W):
        raise ValueError(
            f"expected logits (B, C, H, W) and labels (B, H, W); got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if labels.dtype != torch.int64:
        raise TypeError(f"expected labels of int64; got {labels.dtype}")
    wrong = ((labels < 0) | (labels >= C)) & (labels != ignore)
    if wrong.any():
        raise ValueError(f"expected labels in [0, {C}) or {ignore}; got {labels[wrong].unique().tolist()}")


def cross_entropy(logits: Tensor, labels: Tensor, *, weight: Tensor | None = None, ignore: int = 255) -> Tensor:
    """−log p of the right class, the mean over the pixels: log Σ_c exp(logit_c) − logit_right, in nats.

    Args:
        logits: (B, C, H, W). labels: int64 (B, H, W). ignore: the label of pixels that do not count.
        weight: (C,), how much a pixel of each class counts in the mean; by default all the same.

    Returns:
        a scalar; 0 where no pixel counts.

    Raises:
        ValueError: shapes that do not fit, or labels outside [0, C). TypeError: labels that are not int64.
    """
    _check(logits, labels, ignore)
    C = logits.shape[1]
    if weight is not None and weight.shape != (C,):
        raise ValueError(f"expected a weight for each of {C} classes; got {tuple(weight.shape)}")
    counted = labels != ignore
    known = torch.where(counted, labels, 0)
    nats = torch.logsumexp(logits, 1) - logits.gather(1, known[:, None])[:, 0]
    share = counted.to(nats) if weight is None else counted * weight.to(nats)[known]
    nats = torch.where(counted, nats, 0)  # which may be infinite where nothing counts
    return (share * nats).sum() / share.sum().clamp(min=torch.finfo(nats.dtype).tiny)


def dice(probabilities: Tensor, truth: Tensor, *, epsilon: float = 1.0) -> Tensor:
    """The soft Dice coefficient 2 Σ p g / (Σ p + Σ g) of two maps (Dice 1945; Milletari et al. 2016, equation 3).

    For masks of 0 and 1 it is 2 |A ∩ B| / (|A| + |B|), so 2 IoU / (1 + IoU). Milletari et al. square p and g in the
    denominator; without the squares it is Dice's coefficient also between 0 and 1.

    Args:
        probabilities: p (..., H, W) in [0, 1]. truth: g, of the same shape.
        epsilon: pixels added above and below the line: two empty maps then agree, a tiny mask is not all or nothing.

    Returns:
        (...), in [0, 1] for masks of 0 and 1.

    Raises:
        ValueError: two shapes.
    """
    if probabilities.shape != truth.shape or truth.ndim < 2:
        raise ValueError(f"expected two maps (..., H, W); got {tuple(probabilities.shape)} and {tuple(truth.shape)}")
    shared = (probabilities * truth).sum((-2, -1))
    return (2 * shared + epsilon) / (probabilities.sum((-2, -1)) + truth.sum((-2, -1)) + epsilon)


def dice_loss(logits: Tensor, labels: Tensor, *, ignore: int = 255, epsilon: float = 1.0) -> Tensor:
    """1 − soft Dice of the softmax, the mean over the classes, each counted over the whole batch.

    A class of ten pixels weighs as much as one of ten thousand: what cross-entropy's mean over pixels forgets.

    Args:
        logits, labels, ignore: as for `cross_entropy`. epsilon: as for `dice`.

    Returns:
        a scalar in [0, 1].

    Raises:
        ValueError, TypeError: as for `cross_entropy`.
    """
    _check(logits, labels, ignore)
    B, C, H, W = logits.shape
    counted = labels != ignore
    p = logits.softmax(1) * counted[:, None]
    g = (labels[:, None] == torch.arange(C, device=labels.device)[:, None, None]).to(p)
    # The batch as one tall picture for each class.
    p, g = (x.transpose(0, 1).reshape(C, B * H, W) for x in (p, g))
    return 1 - dice(p, g, epsilon=epsilon).mean()
