"""Solutions of the assignment on detection and segmentation for the tests: right ones written differently, and wrong
ones as students write them, most of them these with one line changed.
"""

RIGHT = {
    "ciou": """
def ciou_loss(a, b):
    (ax, ay, aw, ah), (bx, by, bw, bh) = a.unbind(1), b.unbind(1)
    wide = torch.minimum(ax + aw / 2, bx + bw / 2) - torch.maximum(ax - aw / 2, bx - bw / 2)
    high = torch.minimum(ay + ah / 2, by + bh / 2) - torch.maximum(ay - ah / 2, by - bh / 2)
    common = F.relu(wide) * F.relu(high)
    overlap = common / (aw * ah + bw * bh - common)
    wide = torch.maximum(ax + aw / 2, bx + bw / 2) - torch.minimum(ax - aw / 2, bx - bw / 2)
    high = torch.maximum(ay + ah / 2, by + bh / 2) - torch.minimum(ay - ah / 2, by - bh / 2)
    far = ((ax - bx) ** 2 + (ay - by) ** 2) / (wide**2 + high**2)
    v = (2 / math.pi * (torch.atan2(bh, bw) - torch.atan2(ah, aw))) ** 2  # arctan h/w is π/2 − arctan w/h
    with torch.no_grad():
        alpha = torch.where(v > 0, v / (1 - overlap + v), 0.0)
    return (1 - overlap) + far + alpha * v
""",
    "soft_nms": """
def soft_nms(boxes, scores, labels, sigma=0.5, least=0.01):
    table = iou(boxes, boxes)
    factor = torch.where(labels[:, None] == labels, torch.exp(-(table**2) / sigma), 1.0)
    now, kept, found = scores.tolist(), [], []
    while len(kept) < len(now):
        best = max((n for n in range(len(now)) if n not in kept), key=lambda n: now[n])
        if now[best] < least:
            break
        kept.append(best)
        found.append(now[best])
        now = [score * float(factor[best, n]) for n, score in enumerate(now)]
    return torch.tensor(kept, dtype=torch.long), torch.tensor(found).to(scores)
""",
    "match": """
def match(boxes, scores, true, crowd, threshold=0.5):
    result = [0] * len(boxes)
    taken = []
    for n in torch.argsort(-scores).tolist():
        x1, y1, x2, y2 = boxes[n].tolist()
        best, which = threshold, None
        for t in range(len(true)):
            overlap = float(iou(boxes[n : n + 1], true[t : t + 1]))
            if t not in taken and overlap >= best:
                best, which = overlap, t
        if which is not None:
            taken.append(which)
            result[n] = 1
            continue
        for cx1, cy1, cx2, cy2 in crowd.tolist():
            width, height = min(x2, cx2) - max(x1, cx1), min(y2, cy2) - max(y1, cy1)
            inside = max(width, 0) * max(height, 0)
            if inside / ((x2 - x1) * (y2 - y1)) >= threshold:
                result[n] = -1
    return torch.tensor(result, dtype=torch.int64)
""",
    "precision": """
def average_precision(scores, correct, positives):
    counted = correct != -1
    scores, correct = scores[counted], correct[counted]
    if len(scores) == 0:
        return 0.0
    order = scores.argsort(descending=True)
    scores, hits = scores[order], correct[order].double().cumsum(0)
    last = torch.cat([scores[1:] != scores[:-1], torch.tensor([True])])  # the last of each group of equal scores
    P = (hits / torch.arange(1, len(hits) + 1))[last]
    R = (hits / positives)[last]
    P = P.flip(0).cummax(0).values.flip(0)
    return float((P * R.diff(prepend=torch.zeros(1).double())).sum())
""",
    "tversky": """
def tversky_loss(logits, labels, alpha=0.5, beta=0.5):
    known = (labels != 255).to(logits)
    p = torch.exp(logits - logits.logsumexp(1, keepdim=True))
    found = []
    for c in range(logits.shape[1]):
        g = (labels == c).to(logits)
        if g.sum() == 0:
            continue
        tp, fp, fn = (p[:, c] * g).sum(), (p[:, c] * (1 - g) * known).sum(), ((1 - p[:, c]) * g).sum()
        found.append(tp / (tp + alpha * fp + beta * fn))
    return 1 - torch.stack(found).mean() if found else logits.sum() * 0
""",
    "panoptic": """
def pair_iou(predicted, true, P, T):
    predicted, true = predicted[true != -1], true[true != -1]
    pairs = torch.bincount((predicted + 1) * T + true, minlength=(P + 1) * T).view(P + 1, T).double()
    common = pairs[1:]
    union = common.sum(1, keepdim=True) + pairs.sum(0) - common
    return torch.where(union > 0, common / union, 0.0)


def panoptic_quality(overlaps, predicted, true):
    classes = sorted(set(predicted.tolist()) | set(true.tolist()))
    pq, sq, rq = [], [], []
    for c in classes:
        total, hits = 0.0, 0
        mine, theirs = (predicted == c).nonzero()[:, 0].tolist(), (true == c).nonzero()[:, 0].tolist()
        for i in mine:
            for j in theirs:
                if overlaps[i, j] > 0.5:
                    total, hits = total + float(overlaps[i, j]), hits + 1
        fp, fn = len(mine) - hits, len(theirs) - hits
        sq.append(total / hits if hits else 0.0)
        rq.append(hits / (hits + fp / 2 + fn / 2))
        pq.append(total / (hits + fp / 2 + fn / 2))
    n = len(classes)
    return sum(pq) / n, sum(sq) / n, sum(rq) / n
""",
    "train": """
def train(network, images, labels, steps=100):
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.01)
    network.train()
    for step in range(steps):
        batch = torch.randperm(len(images))[:20]
        logits, y = network(images[batch]), labels[batch]
        log_p = F.log_softmax(logits, 1).gather(1, torch.where(y == 255, 0, y)[:, None])[:, 0]
        loss = -log_p[y != 255].mean()
        for parameter in network.parameters():
            parameter.grad = None
        loss.backward()
        optimiser.step()
    network.eval()
    return network
""",
}


def but(name: str, old: str, new: str) -> str:
    """The right solution of an exercise with some text changed."""
    assert old in RIGHT[name], f"{name} has no {old!r}"
    return RIGHT[name].replace(old, new)


WRONG = {
    "ciou": {
        "negative sides": but("ciou", "F.relu(wide) * F.relu(high)", "wide * high"),
        "NaN for equal boxes": but("ciou", "torch.where(v > 0, v / (1 - overlap + v), 0.0)", "v / (1 - overlap + v)"),
        "alpha with a gradient": but("ciou", "with torch.no_grad():", "if True:"),
        "d/c, not its square": but("ciou", "+ far +", "+ far.sqrt() +"),
        "without the shape": but("ciou", " + alpha * v", ""),
        "corners for centre and size": but(
            "ciou",
            "= a.unbind(1), b.unbind(1)",
            "= (torch.cat([x[:, :2], x[:, 2:] - x[:, :2]], 1).unbind(1) for x in (a, b))",
        ),
    },
    "soft_nms": {
        "across classes": but("soft_nms", "labels[:, None] == labels", "table >= 0"),
        "the order of the first scores": but("soft_nms", "key=lambda n: now[n]", "key=lambda n: scores[n]"),
        "IoU not squared": but("soft_nms", "table**2", "table"),
        "the scores they came with": but("soft_nms", "found.append(now[best])", "found.append(float(scores[best]))"),
        "nothing is too low": but("soft_nms", "now[best] < least", "now[best] < 0"),
        "NMS": """
def soft_nms(boxes, scores, labels, sigma=0.5, least=0.01):
    left, kept = scores.argsort(descending=True), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        left = left[(iou(boxes[best][None], boxes[left])[0] <= sigma) | (labels[left] != labels[best])]
    return torch.tensor(kept, dtype=torch.int64), scores[kept]
""",
    },
    "match": {
        "a true box for any number of finds": but("match", "t not in taken and overlap", "overlap"),
        "the best box, even if taken": but("match", "t not in taken and overlap", "overlap").replace(
            "if which is not None", "if which is not None and which not in taken"
        ),
        "in the order given": but("match", "torch.argsort(-scores).tolist()", "range(len(boxes))"),
        "IoU with the crowd": but("match", "(y2 - y1))", "(y2 - y1) + (cx2 - cx1) * (cy2 - cy1) - inside)"),
        "in a crowd it is wrong": but("match", "result[n] = -1", "result[n] = 0"),
        "the first box that fits": but("match", "best, which = overlap, t\n", "best, which = 2.0, t\n"),
    },
    "precision": {
        "101 points": but(
            "precision",
            "return float((P * R.diff(prepend=torch.zeros(1).double())).sum())",
            "return sum(float(P[R >= r / 100].max()) for r in range(101) if R[-1] >= r / 100) / 101",
        ),
        "not the best precision beyond": but("precision", "P = P.flip(0).cummax(0).values.flip(0)", "P = P + 0"),
        "equal scores one by one": but("precision", "scores[1:] != scores[:-1]", "scores[1:] == scores[1:]"),
        "recall of what was found": but("precision", "hits / positives", "hits / hits[-1]"),
        "what does not count is wrong": but(
            "precision", "counted = correct != -1", "correct, counted = correct.clamp(min=0), correct > -9"
        ),
    },
    "tversky": {
        "the prices exchanged": but("tversky", "alpha * fp + beta * fn", "beta * fp + alpha * fn"),
        "unlabelled is invented": but("tversky", " * known", ""),
        "unlabelled is class 0": but(
            "tversky", "known = (labels != 255).to(logits)", "known, labels = 1.0, labels % 255"
        ),
        "classes that are not there": but("tversky", "if g.sum() == 0", "if False"),
        "the mean over images": but("tversky", "def tversky_loss", "def of_all").replace(".sum()", ".sum((1, 2))")
        + """

def tversky_loss(logits, labels, alpha=0.5, beta=0.5):
    losses = [of_all(*one, alpha, beta) for one in zip(logits.split(1), labels.split(1))]
    return torch.stack([loss.squeeze() for loss in losses]).mean()
""",
        "sigmoid for softmax": but(
            "tversky", "torch.exp(logits - logits.logsumexp(1, keepdim=True))", "logits.sigmoid()"
        ),
    },
    "panoptic": {
        "unlabelled pixels of a prediction": but(
            "panoptic",
            "    predicted, true = predicted[true != -1]",
            "    area = torch.bincount(predicted.flatten() + 1, minlength=P + 1)[1:, None].double()\n"
            "    predicted, true = predicted[true != -1]",
        ).replace("common.sum(1, keepdim=True) +", "area +"),
        "nobody's pixels forgotten": but("panoptic", "pairs.sum(0)", "common.sum(0)"),
        "the common area twice": but("panoptic", "pairs.sum(0) - common", "pairs.sum(0)"),
        "across classes": but("panoptic", "for j in theirs", "for j in range(len(true))"),
        "classes of the truth alone": but(
            "panoptic", "set(predicted.tolist()) | set(true.tolist())", "set(true.tolist())"
        ),
        "false alarms count whole": but("panoptic", "fp / 2", "fp"),
        "the product of the means": but("panoptic", "return sum(pq) / n,", "return sum(sq) / n * sum(rq) / n,"),
    },
    "train": {
        "unlabelled is class 0": but("train", "log_p[y != 255].mean()", "log_p.mean()"),
        "unlabelled is the last class": but(
            "train", "network(images[batch]), labels[batch]", "network(images[batch]), labels[batch].clamp(max=2)"
        ),
        "still in training": but("train", "    network.eval()\n", ""),
        "one step": but("train", "range(steps)", "range(1)"),
        "never stepped": but("train", "        optimiser.step()\n", ""),
    },
}
