"""Answers to the turns of 10_detection: `_other` is right, written differently; `_wrong_1` and `_wrong_2` are not."""

import torch
import torch.nn.functional as F


def iou_other(a, b):
    """One coordinate after the other."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.unbind(-1), b.unbind(-1)
    common = F.relu(torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1))
    common = common * F.relu(torch.minimum(ay2, by2) - torch.maximum(ay1, by1))
    return common / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - common)


def iou_wrong_1(a, b):
    """Two negative sides make a positive area."""
    common = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).prod(-1)
    area_a, area_b = ((boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (a, b))
    return common / (area_a + area_b - common)


def iou_wrong_2(a, b):
    """The common area counted twice in the union."""
    common = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    area_a, area_b = ((boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (a, b))
    return common / (area_a + area_b)


def focal_loss_other(logits, y):
    """From the cross-entropy, which is stable."""
    p = torch.sigmoid(logits)
    centre = (y == 1).float()
    entropy = F.binary_cross_entropy_with_logits(logits, centre, reduction="none")
    return ((centre * (1 - p) ** 2 + (1 - centre) * (1 - y) ** 4 * p**2) * entropy).sum()


def focal_loss_wrong_1(logits, y):
    """The formula as it stands: infinite at logits of 200."""
    p = logits.sigmoid()
    return -torch.where(y == 1, (1 - p) ** 2 * p.log(), (1 - y) ** 4 * p**2 * (1 - p).log()).sum()


def focal_loss_wrong_2(logits, y):
    """Without the mercy for cells near a centre."""
    p = logits.sigmoid()
    return -torch.where(y == 1, (1 - p) ** 2 * F.logsigmoid(logits), p**2 * F.logsigmoid(-logits)).sum()


def decode_other(t, stride):
    """Cell by cell."""
    boxes = torch.empty_like(t)
    for i in range(t.shape[2]):
        for j in range(t.shape[3]):
            x, y = stride * (j + 0.5 + t[:, 0, i, j]), stride * (i + 0.5 + t[:, 1, i, j])
            w, h = stride * t[:, 2, i, j].exp(), stride * t[:, 3, i, j].exp()
            boxes[:, :, i, j] = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
    return boxes


def decode_wrong_1(t, stride):
    """Counts from the cells' corners instead of their middles."""
    i, j = torch.meshgrid(*(torch.arange(n) for n in t.shape[-2:]), indexing="ij")
    centre, half = stride * (torch.stack([j, i]) + t[:, :2]), stride * t[:, 2:].exp() / 2
    return torch.cat([centre - half, centre + half], 1)


def decode_wrong_2(t, stride):
    """Rows taken for x."""
    i, j = torch.meshgrid(*(torch.arange(n) + 0.5 for n in t.shape[-2:]), indexing="ij")
    centre, half = stride * (torch.stack([i, j]) + t[:, :2]), stride * t[:, 2:].exp() / 2
    return torch.cat([centre - half, centre + half], 1)


def nms_other(boxes, scores, threshold):
    """Each box asks those already kept."""
    kept = []
    for n in scores.argsort(descending=True).tolist():
        if all(float(iou_other(boxes[n], boxes[k])) <= threshold for k in kept):
            kept.append(n)
    return kept


def nms_wrong_1(boxes, scores, threshold):
    """Boxes that are removed still remove others."""
    order = scores.argsort(descending=True)
    overlaps = iou_other(boxes[order][:, None], boxes[order])
    return order[~(overlaps.triu(1) > threshold).any(0)]


def nms_wrong_2(boxes, scores, threshold):
    """In the order given, not by score."""
    kept = []
    for n in range(len(boxes)):
        if all(float(iou_other(boxes[n], boxes[k])) <= threshold for k in kept):
            kept.append(n)
    return kept


def average_precision_other(scores, correct, positives):
    """From the end of the list, with the best precision so far."""
    order = sorted(range(len(scores)), key=lambda n: -float(scores[n]))
    hits, points = 0, []
    for k, n in enumerate(order, start=1):
        hits += bool(correct[n])
        points.append((hits / positives, hits / k))
    area = 0.0
    for r in range(101):
        area += max((precision for recall, precision in points if recall >= r / 100), default=0.0)
    return area / 101


def average_precision_wrong_1(scores, correct, positives):
    """The mean over the recalls that were reached."""
    hits = correct[scores.argsort(descending=True)].double().cumsum(0)
    precision, recall = hits / torch.arange(1, len(hits) + 1), hits / positives
    best = [float(precision[recall >= r / 100].max()) for r in range(101) if (recall >= r / 100).any()]
    return sum(best) / len(best)


def average_precision_wrong_2(scores, correct, positives):
    """In the order given, not by score."""
    hits = correct.double().cumsum(0)
    precision, recall = hits / torch.arange(1, len(hits) + 1), hits / positives
    best = [float(precision[recall >= r / 100].max()) if (recall >= r / 100).any() else 0.0 for r in range(101)]
    return sum(best) / len(best)
