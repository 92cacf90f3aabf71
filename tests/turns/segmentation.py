"""Answers to the turns of lesson 11: of each piece two wrong ones of the kind students give, and another right one."""

import torch


def dice_loss_other(logits, labels, epsilon=1.0):
    """Class by class."""
    p = torch.exp(logits - logits.logsumexp(1, keepdim=True))
    C = logits.shape[1]
    found = []
    for c in range(C):
        g = (labels == c).to(p)
        found.append((2 * (p[:, c] * g).sum() + epsilon) / (p[:, c].sum() + g.sum() + epsilon))
    return 1 - sum(found) / C


def dice_loss_wrong_1(logits, labels, epsilon=1.0):
    """The softmax runs over the rows."""
    return _dice(logits.softmax(2), labels, epsilon, (0, 2, 3))


def dice_loss_wrong_2(logits, labels, epsilon=1.0):
    """All classes are one."""
    return _dice(logits.softmax(1), labels, epsilon, (0, 1, 2, 3))


def _dice(p, labels, epsilon, over):
    g = torch.nn.functional.one_hot(labels, p.shape[1]).movedim(-1, 1).to(p)
    return 1 - ((2 * (p * g).sum(over) + epsilon) / (p.sum(over) + g.sum(over) + epsilon)).mean()


def iou_per_class_other(confusion):
    """By sums over rows and columns without the diagonal."""
    confusion = confusion.double()
    found = []
    for c in range(len(confusion)):
        right = confusion[c, c]
        missed, invented = confusion[c].sum() - right, confusion[:, c].sum() - right
        found.append(right / (right + missed + invented))
    return torch.stack(found)


def iou_per_class_wrong_1(confusion):
    """What is right is counted twice in the union."""
    return confusion.diagonal().double() / (confusion.sum(0) + confusion.sum(1))


def iou_per_class_wrong_2(confusion):
    """Recall: what is invented does not count."""
    return confusion.diagonal().double() / confusion.sum(1)


def group_pixels_other(centres, offsets, foreground):
    """Pixel by pixel."""
    ids = torch.zeros(foreground.shape, dtype=torch.int64)
    for row, column in foreground.nonzero().tolist():
        if len(centres):
            at = torch.tensor([row, column]) + offsets[:, row, column]
            ids[row, column] = int(((centres - at) ** 2).sum(1).argmin()) + 1
    return ids


def group_pixels_wrong_1(centres, offsets, foreground):
    """Offsets are taken for (right, down)."""
    return group_pixels_other(centres, offsets.flip(0), foreground)


def group_pixels_wrong_2(centres, offsets, foreground):
    """The first object has the number of the background."""
    return (group_pixels_other(centres, offsets, foreground) - 1).clamp(min=0)


def panoptic_quality_other(predicted, true):
    """Pair by pair, PQ by its own formula."""
    total, tp = 0.0, 0
    for a in predicted:
        for b in true:
            iou = float((a & b).sum() / (a | b).sum())
            if iou > 0.5:
                total, tp = total + iou, tp + 1
    both = (len(predicted) + len(true)) / 2  # = TP + FP/2 + FN/2
    return (total / tp if tp else 0.0), (tp / both if both else 0.0), (total / both if both else 0.0)


def panoptic_quality_wrong_1(predicted, true):
    """SQ is a mean over all true segments."""
    _, rq, pq = panoptic_quality_other(predicted, true)
    return pq * (len(predicted) + len(true)) / 2 / max(len(true), 1), rq, pq


def panoptic_quality_wrong_2(predicted, true):
    """False alarms and misses count whole."""
    sq, rq, _ = panoptic_quality_other(predicted, true)
    tp = rq * (len(predicted) + len(true)) / 2
    rq = tp / max(len(predicted) + len(true) - tp, 1)
    return sq, rq, sq * rq


def run_lengths_other(mask):
    """From the places at which the value changes."""
    pixels = mask.T.flatten().int()
    changes = torch.cat([pixels[:1] != 0, pixels[1:] != pixels[:-1]]).nonzero()[:, 0]
    ends = torch.cat([torch.tensor([0]), changes, torch.tensor([len(pixels)])])
    return ends.diff().tolist()


def run_lengths_wrong_1(mask):
    """Along the rows."""
    return run_lengths_other(mask.T)


def run_lengths_wrong_2(mask):
    """A mask that begins with 1 begins with a count of 1s."""
    counts = run_lengths_other(mask)
    return counts[1:] if counts[0] == 0 else counts
