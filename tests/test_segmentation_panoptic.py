"""The merging rule by eye, and panoptic quality against a slow loop and torchmetrics, on real COCO annotations too."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchmetrics.detection import PanopticQuality

from course_lib import scenes
from course_lib.segmentation import panoptic, semantic
from course_lib.segmentation.panoptic import (
    Panoptic,
    Quality,
    match,
    mean_quality,
    merge,
    panoptic_quality,
)

drawn = settings(max_examples=60, deadline=None, derandomize=True, database=None)
COCO = Path(os.environ.get("COURSE_DATA", "")) / "coco_panoptic"
needs_coco = pytest.mark.skipif(
    not os.environ.get("COURSE_DATA") or not COCO.is_dir(), reason="needs coco_panoptic in COURSE_DATA"
)


def slowly(predicted: Panoptic, truth: Panoptic) -> dict[int, list]:
    """The definition, segment by segment on whole masks: class → [Σ IoU, TP, FP, FN]."""
    counts: dict[int, list] = {}
    masks_p = {p: predicted.ids == p for p in predicted.labels if (predicted.ids == p).any()}
    masks_g = {g: truth.ids == g for g in truth.labels if (truth.ids == g).any()}
    void = ~sum(masks_g.values(), torch.zeros_like(truth.ids)).bool()
    taken = set()
    for p, mask_p in masks_p.items():
        label, hit = predicted.labels[p], False
        entry = counts.setdefault(label, [0.0, 0, 0, 0])
        for g, mask_g in masks_g.items():
            if truth.labels[g] != label or g in truth.crowds:
                continue
            known = mask_p & ~void
            iou = float((known & mask_g).sum() / (known | mask_g).sum())
            if iou > 0.5:
                entry[0] += iou
                entry[1] += 1
                hit = True
                taken.add(g)
        excused = void.clone()
        for g in truth.crowds:
            if truth.labels[g] == label:
                excused |= truth.ids == g
        if not hit and (mask_p & excused).sum() <= mask_p.sum() / 2:
            entry[2] += 1
    for g in masks_g:
        if g not in taken and g not in truth.crowds:
            counts.setdefault(truth.labels[g], [0.0, 0, 0, 0])[3] += 1
    return {label: entry for label, entry in counts.items() if any(entry)}


def as_lists(found: dict[int, Quality]) -> dict[int, list]:
    return {label: [q.iou, q.tp, q.fp, q.fn] for label, q in found.items()}


def assert_same(found: dict[int, Quality], expected: dict[int, list]) -> None:
    assert as_lists(found).keys() == expected.keys()
    for label, entry in as_lists(found).items():
        assert entry == pytest.approx(expected[label], abs=1e-6), label


def torchmetrics_says(predicted: list[Panoptic], truth: list[Panoptic], things: set[int], stuff: set[int]):
    """PQ, SQ, RQ by class. It knows no crowds, and another rule for void in predictions: give it neither."""
    judge = PanopticQuality(
        things, stuff, allow_unknown_preds_category=True, return_sq_and_rq=True, return_per_class=True
    )
    void = 10_000
    for p, g in zip(predicted, truth, strict=True):
        judge.update(*(torch.stack([x.semantic(void), x.ids], -1)[None] for x in (p, g)))
    order = sorted(things) + sorted(stuff)
    return {label: row.tolist() for label, row in zip(order, judge.compute().nan_to_num(), strict=True)}


# Drawn maps: blocks of segments, shifted against each other


def blocks(side: int, segments: int, classes: int, seed: int, *, void: bool = True, crowds: bool = True) -> Panoptic:
    """Things are the odd classes; of a stuff class there is one segment. Segment 0 is void."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0 if void else 1, segments + 1, (side, side), generator=generator)
    labels = torch.randint(classes, (segments + 1,), generator=generator)
    named = {i: int(labels[i]) for i in range(1, segments + 1)}
    first = {}
    named = {i: c for i, c in named.items() if c % 2 or first.setdefault(c, i) == i}
    ids = coarse.repeat_interleave(4, 0).repeat_interleave(4, 1)
    if not void:  # what lost its class goes to a segment that has one
        named = named or {1: 1}
        lost = ~torch.isin(ids, torch.tensor(list(named)))
        ids[lost] = min(named)
    group = {i for i in named if named[i] % 2 and crowds and i % 3 == 0}
    return Panoptic(ids, named, group)


def damaged(truth: Panoptic, seed: int) -> Panoptic:
    """Shifted by some pixels, with other ids and one class changed."""
    generator = torch.Generator().manual_seed(seed)
    dy, dx = torch.randint(-1, 2, (2,), generator=generator).tolist()
    labels = {i + 500: c for i, c in truth.labels.items()}
    if len(labels) > 2:
        first, second = list(labels)[:2]
        labels[first] = labels[second] if labels[second] % 2 else labels[first]
    return Panoptic(truth.ids.roll((dy, dx), (0, 1)) + 500, labels)


@drawn
@given(
    side=st.integers(1, 6),
    segments=st.integers(1, 9),
    classes=st.sampled_from([1, 2, 5, 100]),
    seed=st.integers(0, 999),
)
def test_match_equals_the_slow_loop(side, segments, classes, seed):
    truth = blocks(side, segments, classes, seed)
    for predicted in (damaged(truth, seed), blocks(side, segments, classes, seed + 1, crowds=False), truth):
        assert_same(match(predicted, truth), slowly(predicted, truth))


@drawn
@given(side=st.integers(2, 6), segments=st.integers(1, 9), seed=st.integers(0, 999))
def test_quality_equals_torchmetrics(side, segments, seed):
    truth = [blocks(side, segments, 6, seed + i, crowds=False) for i in range(3)]
    whole = [blocks(side, segments, 6, seed + i, void=False, crowds=False) for i in range(3)]
    predicted = [damaged(p, seed) for p in whole]
    found = panoptic_quality(predicted, truth)
    expected = torchmetrics_says(predicted, truth, {1, 3, 5}, {0, 2, 4})
    for label, (pq, sq, rq) in expected.items():
        mine = found.get(label, Quality())
        assert (mine.pq, mine.sq, mine.rq) == pytest.approx((pq, sq, rq), abs=1e-6)


def test_quality_of_an_image_by_eye():
    """Two things of class 1, and stuff of class 0."""
    truth = Panoptic(torch.tensor([[1, 1, 1, 0, 2, 2], [3, 3, 3, 3, 3, 3]]), {1: 1, 2: 1, 3: 0})
    predicted = Panoptic(torch.tensor([[7, 7, 9, 9, 9, 9], [9, 9, 9, 9, 9, 9]]), {7: 1, 9: 0})
    found = panoptic_quality([predicted], [truth])
    assert found[1] == Quality(iou=2 / 3, tp=1, fn=1)
    assert found[0] == Quality(iou=6 / 9, tp=1), "one pixel of the prediction is void in the truth"
    assert (found[1].sq, found[1].rq, found[1].pq) == pytest.approx((2 / 3, 2 / 3, 4 / 9))
    both, things = mean_quality(found), mean_quality(found, {1})
    assert (both.n, things.n) == (2, 1)
    assert both.pq == pytest.approx((4 / 9 + 2 / 3) / 2) and things.pq == pytest.approx(4 / 9)


def test_half_is_no_match_and_void_forgives():
    row = torch.tensor([[1, 1, 2, 2]])
    assert match(Panoptic(row * 0 + 1, {1: 5}), Panoptic(row, {1: 5, 2: 6})) == {
        5: Quality(fp=1, fn=1),
        6: Quality(fn=1),
    }, "IoU of exactly one half"
    assert match(Panoptic(row * 0 + 1, {1: 5}), Panoptic(row, {1: 5})) == {5: Quality(iou=1, tp=1)}
    assert match(Panoptic(row, {1: 5}), Panoptic(row, {2: 6})) == {6: Quality(fn=1)}, "a claim about void"


def test_crowds_match_nothing_and_forgive():
    row = torch.tensor([[1, 1, 1, 2]])
    truth = Panoptic(row, {1: 5, 2: 6}, {1})
    assert match(Panoptic(row, {1: 5, 2: 6}), truth) == {6: Quality(iou=1, tp=1)}
    assert match(Panoptic(row, {1: 7}), truth) == {6: Quality(fn=1), 7: Quality(fp=1)}, "of another class"


def test_nothing_there_and_nothing_claimed():
    empty = Panoptic(torch.zeros(3, 4, dtype=torch.int64), {})
    one = Panoptic(torch.ones(3, 4, dtype=torch.int64), {1: 2})
    assert panoptic_quality([empty], [empty]) == {} == panoptic_quality([], [])
    assert mean_quality({}).n == 0 and mean_quality({}).pq == 0
    assert match(empty, one) == {2: Quality(fn=1)}
    assert match(one, empty) == {}, "all is void, so nobody can tell"
    assert (Quality(fn=1).pq, Quality(fp=1).sq, Quality().rq) == (0, 0, 0)


def test_names_and_order_of_segments_do_not_matter():
    truth = blocks(5, 8, 5, 0)
    predicted = damaged(truth, 3)
    swapped = Panoptic(10_000 - predicted.ids, {10_000 - i: c for i, c in reversed(predicted.labels.items())})
    found, again = as_lists(match(predicted, truth)), as_lists(match(swapped, truth))
    assert found.keys() == again.keys() and all(again[c] == pytest.approx(found[c]) for c in found)


@pytest.mark.parametrize("whole", [torch.tensor, np.int64], ids=["tensors", "NumPy's"])
def test_ids_and_classes_are_numbers_whatever_holds_them(whole):
    """As keys of a dictionary two tensors of 0 are two things."""
    ids = torch.tensor([[1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]])
    truth = Panoptic(ids, {1: 0, 2: 0, 3: 0}, crowds=[3])
    drawn = Panoptic(ids.clamp(max=2), {whole(1): whole(0), whole(2): whole(0)}, crowds=[whole(2)])
    assert drawn.labels == {1: 0, 2: 0} and drawn.crowds == {2} and type(drawn.labels[1]) is int
    found = panoptic_quality([drawn], [truth])
    assert as_lists(found) == as_lists(panoptic_quality([Panoptic(ids.clamp(max=2), {1: 0, 2: 0})], [truth]))
    assert mean_quality(found, classes=[whole(0)]).n == 1


def test_panoptic_quality_of_tensors_as_classes():
    labels, truth = torch.tensor([0, 0]), torch.tensor([[1, 1, 2, 2, 2, 2]])
    predicted = torch.tensor([[1, 1, 1, 2, 2, 2]])
    of_tensors = [Panoptic(x, {1: labels[0], 2: labels[1]}) for x in (predicted, truth)]
    plain = [Panoptic(x, {1: 0, 2: 0}) for x in (predicted, truth)]
    summary = mean_quality(panoptic_quality(of_tensors[:1], of_tensors[1:]))
    assert summary == mean_quality(panoptic_quality(plain[:1], plain[1:])) and summary.n == 1
    assert summary.pq == pytest.approx((2 / 3 + 3 / 4) / 2)


def test_merge_with_classes_as_a_tensor():
    """Of scenes' own labels, whose classes come as tensors."""
    classes = torch.tensor([[0, 0, 1, 1]])
    masks, labels = torch.tensor([[[False, True, True, False]]]), torch.tensor([5])
    scores = torch.tensor([0.9])
    merged = merge(classes, masks, labels, scores, stuff=torch.arange(2))
    assert merged.labels == {1: 5, 2: 0, 3: 1} and merged.ids.tolist() == [[2, 1, 1, 3]]
    again = merge(*(x.numpy() for x in (classes, masks, labels, scores)), stuff=np.arange(2))
    assert again.labels == merged.labels and torch.equal(again.ids, merged.ids)


def test_panoptic_refuses_bad_input():
    ids = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(TypeError, match="int64; got torch.float32"):
        Panoptic(ids.float(), {})
    with pytest.raises(TypeError):
        Panoptic(ids, {0: 1.5})
    with pytest.raises(ValueError, match=r"\(H, W\); got \(1, 2, 3\)"):
        Panoptic(ids[None], {})
    with pytest.raises(ValueError, match=r"crowds \[4\] have no class"):
        Panoptic(ids, {0: 1}, {4})
    with pytest.raises(ValueError, match=r"one size; got \(2, 3\) and \(3, 2\)"):
        match(Panoptic(ids, {}), Panoptic(ids.T, {}))
    with pytest.raises(ValueError, match="got 1 and 0"):
        panoptic_quality([Panoptic(ids, {})], [])


# Merging


def test_merge_by_eye():
    """Sky 0, grass 1, things 2 and 3. The better mask wins the overlap; one that lost too much goes."""
    semantic = torch.tensor([[0, 0, 2, 2], [1, 1, 2, 3]])
    masks = torch.zeros(3, 2, 4).bool()
    masks[0, :, 2:] = True
    masks[1, :, 3] = True  # two pixels, both of which mask 2 takes away
    masks[2, :, 3] = True
    merged = merge(semantic, masks, torch.tensor([2, 3, 3]), torch.tensor([0.5, 0.6, 0.9]), {0, 1})
    assert merged.ids.tolist() == [[3, 3, 2, 1], [4, 4, 2, 1]]
    assert merged.labels == {1: 3, 2: 2, 3: 0, 4: 1}
    strict = merge(
        semantic, masks, torch.tensor([2, 3, 3]), torch.tensor([0.5, 0.6, 0.9]), {0, 1}, least_proportion=0.6
    )
    assert strict.ids.tolist() == [[2, 2, 0, 1], [3, 3, 0, 1]], "half of the first mask is not enough; a thing's void"
    sure = merge(semantic, masks, torch.tensor([2, 3, 3]), torch.tensor([0.5, 0.6, 0.9]), {0, 1}, least_score=0.8)
    assert sure.labels == {1: 3, 2: 0, 3: 1}
    large = merge(semantic, masks[:0], torch.ones(0).long(), torch.ones(0), {0, 1}, least_area=3)
    assert large.labels == {} and (large.ids == 0).all()


@drawn
@given(n=st.integers(0, 6), seed=st.integers(0, 99))
def test_merge_is_one_class_a_pixel_and_forgets_the_order_of_masks(n, seed):
    generator = torch.Generator().manual_seed(seed)
    semantic = torch.randint(4, (8, 8), generator=generator)
    masks = torch.rand(n, 8, 8, generator=generator) < 0.3
    labels, scores = torch.randint(2, 4, (n,), generator=generator), torch.rand(n, generator=generator)
    merged = merge(semantic, masks, labels, scores, {0, 1})
    order = torch.randperm(n, generator=generator)
    again = merge(semantic, masks[order], labels[order], scores[order], {0, 1})
    assert torch.equal(merged.ids, again.ids) and merged.labels == again.labels
    covered = masks.any(0) if n else torch.zeros(8, 8).bool()
    stuff = ~torch.isin(merged.ids, torch.tensor([i for i, c in merged.labels.items() if c > 1] or [-1])) & (
        semantic < 2
    )
    assert torch.equal(merged.semantic()[stuff], semantic[stuff])
    assert not (torch.isin(merged.semantic(), torch.tensor([2, 3])) & ~covered).any()


def test_merge_takes_masks_of_booleans_only():
    halves = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]])[:, :, None].expand(-1, -1, 4)
    arguments = torch.zeros(4, 4, dtype=torch.int64), torch.tensor([0, 1]), torch.tensor([0.9, 0.8]), [5]
    for kind in (torch.int64, torch.uint8, torch.float32):
        with pytest.raises(TypeError, match="masks of booleans"):
            merge(arguments[0], halves.to(kind), *arguments[1:])
    found = merge(arguments[0], halves.bool(), *arguments[1:])
    assert found.ids[:, 0].tolist() == [1, 1, 2, 2] and found.labels == {1: 0, 2: 1}


def test_merge_refuses_bad_input():
    semantic, masks = torch.zeros(3, 4, dtype=torch.int64), torch.zeros(2, 3, 4).bool()
    with pytest.raises(ValueError, match=r"\(3, 4\), \(2, 4, 3\), \(2,\), \(2,\)"):
        merge(semantic, masks.mT, torch.zeros(2).long(), torch.zeros(2), {0})
    with pytest.raises(ValueError, match=r"\(1,\), \(2,\)"):
        merge(semantic, masks, torch.zeros(1).long(), torch.zeros(2), {0})


# Painting


def test_classes_have_colours_that_differ():
    colours = semantic.paint(torch.arange(14)[None])
    assert list(semantic.COLOURS) == list(scenes.CLASSES) and colours.shape == (3, 1, 14)
    distances = torch.cdist(colours[:, 0].T, colours[:, 0].T) + 9 * torch.eye(14)
    assert distances.min() > 0.1
    assert (semantic.paint(torch.tensor([[255, -1, 14]])) == 0).all(), "void is black"
    assert semantic.paint(torch.zeros(5, 2, 3, dtype=torch.int64)).shape == (5, 3, 2, 3)


def test_things_have_a_white_rim_and_stuff_keeps_its_colour():
    ids = torch.full((7, 8), 1)
    ids[1:6, 1:6] = 2
    image = panoptic.paint_panoptic(Panoptic(ids, {1: 9, 2: 0}))
    assert (image[:, 1, 1:6] == 1).all()
    torch.testing.assert_close(image[:, 3, 3], semantic.palette()[0])
    twins = panoptic.paint_panoptic(Panoptic(torch.cat([ids, ids + 5]), {1: 9, 2: 0, 6: 9, 7: 0}))
    assert (twins[:, 10, 3] > twins[:, 3, 3]).all(), "the second disc is brighter"
    torch.testing.assert_close(image[:, 0, 0], semantic.palette()[9])
    large = panoptic.paint_panoptic(Panoptic(ids, {1: 9, 2: 0}), scale=3)
    assert large.shape == (3, 21, 24) and int((large == 1).all(0).sum()) == 4 * 14, "a line of one large pixel"
    assert semantic.rim(ids == 2).sum() == 16 and not semantic.rim(torch.ones(3, 3).bool()).any()


# Real annotations


def read_coco(every: int = 1) -> tuple[list[Panoptic], set[int], set[int]]:
    """Every n-th pixel of each image, and the classes of things and stuff."""
    maps = []
    for split in ("train2017", "val2017"):
        found = json.loads((COCO / "panoptic" / f"panoptic_{split}.json").read_text(encoding="utf-8"))
        for annotation in found["annotations"]:
            path = COCO / "panoptic" / split / annotation["file_name"]
            rgb = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).long()[::every, ::every]
            segments = annotation["segments_info"]
            maps.append(
                Panoptic(
                    (rgb * torch.tensor([1, 256, 256**2])).sum(-1),
                    {s["id"]: s["category_id"] for s in segments},
                    {s["id"] for s in segments if s["iscrowd"]},
                )
            )
    things = {c["id"] for c in found["categories"] if c["isthing"]}
    return maps, things, {c["id"] for c in found["categories"]} - things


def corrupted(truth: Panoptic, index: int, *, void: bool) -> Panoptic:
    """Shifted by up to 12 pixels, one segment lost, one split in two, one of another class."""
    ids = truth.ids.roll((index % 13, -(index % 7)), (0, 1)).clone()
    labels = dict(truth.labels)
    names = sorted(labels, key=lambda i: int((ids == i).sum()))
    if len(names) > 3:
        lost, split, other = names[index % 2], names[-1], names[-2]
        ids[ids == lost] = names[-1]
        right = (ids == split) & (torch.arange(ids.shape[1]) > ids.shape[1] * (0.5 + index / 80))
        ids[right] = 20_000_000
        labels[20_000_000] = labels[split]
        if index % 3 == 0:
            labels[other] = labels[lost]
    if void:
        ids[: index + 3] = 0
    else:
        ids[~torch.isin(ids, torch.tensor(list(labels)))] = names[-1]
    return Panoptic(ids, labels)


@needs_coco
def test_quality_equals_the_slow_loop_on_real_annotations():
    truth, things, _ = read_coco()
    assert len(truth) == 36 and any(t.crowds for t in truth)
    for index, t in enumerate(truth):
        predicted = corrupted(t, index, void=True)
        assert_same(match(predicted, t), slowly(predicted, t))
    perfect = panoptic_quality(truth, truth)
    assert all(q.pq == 1 or q.tp == 0 for q in perfect.values()) and mean_quality(perfect, things).sq > 0.9


@needs_coco
def test_quality_equals_torchmetrics_on_real_annotations():
    truth, things, stuff = read_coco(every=3)
    # Crowds become void, and the same class of stuff one segment, which is what torchmetrics makes of it.
    truth = [Panoptic(t.ids, {i: c for i, c in t.labels.items() if i not in t.crowds}) for t in truth]
    predicted = [corrupted(t, index, void=False) for index, t in enumerate(truth)]
    predicted, truth = ([united(x, stuff) for x in maps] for maps in (predicted, truth))
    found = panoptic_quality(predicted, truth)
    expected = torchmetrics_says(predicted, truth, things, stuff)
    for label, (pq, sq, rq) in expected.items():
        mine = found.get(label, Quality())
        assert (mine.pq, mine.sq, mine.rq) == pytest.approx((pq, sq, rq), abs=1e-6), label
    seen = [expected[label][0] for label in found]
    assert mean_quality(found).pq == pytest.approx(np.mean(seen)) and 0.2 < np.mean(seen) < 0.9


def united(panoptic: Panoptic, stuff: set[int]) -> Panoptic:
    ids, labels, first = panoptic.ids.clone(), {}, {}
    for i, c in panoptic.labels.items():
        kept = first.setdefault(c, i) if c in stuff else i
        ids[panoptic.ids == i] = kept
        labels[kept] = c
    return Panoptic(ids, labels)
