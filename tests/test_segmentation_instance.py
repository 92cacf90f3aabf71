"""Centres and offsets there and back again, and mask AP equal to pycocotools on real masks."""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as oracle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from course_lib import scenes
from course_lib.base import runtime
from course_lib.detection import coco
from course_lib.segmentation import rle
from course_lib.segmentation.instance import (
    Instances,
    centre_targets,
    find_centres,
    group,
    instances,
    mask_iou,
)

drawn = settings(max_examples=60, deadline=None, derandomize=True, database=None)
MINI = Path(os.environ.get("COURSE_DATA", "")) / "coco_mini" / "annotations"
needs_coco = pytest.mark.skipif(
    not os.environ.get("COURSE_DATA") or not MINI.is_dir(), reason="needs coco_mini in COURSE_DATA"
)


def random_masks(n: int, H: int, W: int, seed: int) -> torch.Tensor:
    """Blobs; now and then an empty or a full one."""
    noise = torch.rand(n, 1, H, W, generator=torch.Generator().manual_seed(seed))
    level = 0.3 + 0.4 * torch.rand(n, 1, 1, generator=torch.Generator().manual_seed(seed + 1))
    return F.avg_pool2d(noise, 3, stride=1, padding=1, count_include_pad=False)[:, 0] > level


def encoded(masks: torch.Tensor) -> list[dict]:
    return [oracle.encode(m.numpy().astype("uint8", order="F")) for m in masks]


# Mask IoU


@drawn
@given(
    D=st.integers(0, 5),
    G=st.integers(0, 5),
    side=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    seed=st.integers(0, 99),
)
def test_mask_iou_equals_pycocotools(D, G, side, seed):
    found, truth = random_masks(D, *side, seed), random_masks(G, *side, seed + 50)
    crowd = torch.rand(G, generator=torch.Generator().manual_seed(seed)) < 0.5
    mine = mask_iou(found, truth, crowd)
    assert mine.shape == (D, G)
    if D and G:
        expected = oracle.iou(encoded(found), encoded(truth), crowd.int().tolist())
        np.testing.assert_allclose(mine.numpy(), np.nan_to_num(expected), atol=1e-6)
        by_runs = [
            [rle.iou(rle.encode(a), rle.encode(b), crowd=bool(c)) for b, c in zip(truth, crowd, strict=True)]
            for a in found
        ]
        np.testing.assert_allclose(mine.numpy(), by_runs, atol=1e-6)


def test_mask_iou_counts_exactly_under_autocast(device):
    masks = torch.ones(1, 40, 40, dtype=torch.bool, device=device)
    less = masks.clone()
    less[0, 0, 0] = False
    with torch.autocast(device.type, torch.bfloat16):
        assert float(mask_iou(less, masks)) == pytest.approx(1599 / 1600, abs=1e-7)


def test_mask_iou_refuses_bad_input():
    masks = random_masks(2, 4, 5, 0)
    with pytest.raises(TypeError, match="booleans; got torch.float32"):
        mask_iou(masks.float(), masks)
    with pytest.raises(ValueError, match=r"got \(2, 4, 5\) and \(2, 5, 4\)"):
        mask_iou(masks, masks.mT)
    with pytest.raises(ValueError, match=r"crowd \(2,\); got \(3,\)"):
        mask_iou(masks, masks, torch.zeros(3).bool())


# Centres and offsets


@pytest.fixture(scope="module")
def images() -> list[scenes.Rendering]:
    return scenes.Scenes(12, 64, seed=5).render_all()


def test_targets_are_centres_of_mass(images):
    for image in images:
        heatmap, offsets = centre_targets(image.masks, sigma=2.0)
        best = torch.zeros(64, 64)
        for mask in image.masks:
            rows, columns = (x.float() for x in mask.nonzero(as_tuple=True))
            y, x = float(rows.mean()), float(columns.mean())
            torch.testing.assert_close(offsets[0][mask], y - rows, atol=1e-4, rtol=0)
            torch.testing.assert_close(offsets[1][mask], x - columns, atol=1e-4, rtol=0)
            squared = (torch.arange(64)[:, None] - y) ** 2 + (torch.arange(64) - x) ** 2
            best = torch.maximum(best, torch.exp(-squared / 8))
        torch.testing.assert_close(heatmap, best, atol=1e-5, rtol=0)
        assert (offsets[:, ~image.masks.any(0)] == 0).all()


def test_the_targets_give_the_instances_back(images):
    """What a perfect network says leads to the true masks, all of them, with their classes."""
    for image in images:
        heatmap, offsets = centre_targets(image.masks)
        probabilities = F.one_hot(image.semantic, len(scenes.CLASSES)).movedim(-1, 0).float()
        found = instances(probabilities, heatmap, offsets, range(len(scenes.THINGS)), threshold=0.5, window=3)
        overlaps = mask_iou(found.masks, image.masks)
        assert len(found.masks) == len(image.masks)
        best, which = overlaps.max(1)
        assert (best > 0.99).all() and sorted(which.tolist()) == list(range(len(image.masks)))
        assert torch.equal(found.labels, image.labels[which]) and (found.scores > 0.8).all()


def test_no_objects():
    heatmap, offsets = centre_targets(torch.zeros(0, 5, 6).bool())
    assert (heatmap == 0).all() and heatmap.shape == (5, 6) and (offsets == 0).all() and offsets.shape == (2, 5, 6)
    centres, heights = find_centres(heatmap)
    assert centres.shape == (0, 2) and heights.shape == (0,)
    assert (group(centres, offsets, torch.ones(5, 6).bool()) == 0).all()
    sky = F.one_hot(torch.full((5, 6), 9), 14).movedim(-1, 0).float()
    assert len(instances(sky, torch.ones(5, 6), offsets, range(8)).masks) == 0, "a centre in the sky is no thing"
    disc = F.one_hot(torch.zeros(5, 6, dtype=torch.int64), 14).movedim(-1, 0).float()
    found = instances(disc, heatmap, offsets, range(8))
    assert found.masks.shape == (0, 5, 6) and len(found.objects()) == 0, "a thing without a centre is no object"


@drawn
@given(side=st.integers(1, 12), levels=st.integers(1, 30), window=st.sampled_from([1, 3, 5]), seed=st.integers(0, 99))
def test_peaks_are_what_a_slow_loop_finds(side, levels, window, seed):
    """Few levels: many ties. Of equals, the last in reading order is the peak."""
    heatmap = torch.randint(levels, (side, side + 1), generator=torch.Generator().manual_seed(seed)) / levels
    half, expected = window // 2, set()
    for y in range(side):
        for x in range(side + 1):
            here = (float(heatmap[y, x]), y, x)
            around = [
                (float(heatmap[v, u]), v, u)
                for v in range(max(0, y - half), min(side, y + half + 1))
                for u in range(max(0, x - half), min(side + 1, x + half + 1))
            ]
            if here == max(around) and here[0] >= 0.25:
                expected.add((y, x))
    centres, heights = find_centres(heatmap, threshold=0.25, window=window)
    assert set(map(tuple, centres.tolist())) == expected
    assert torch.equal(heights, heights.sort(descending=True).values)
    few, _ = find_centres(heatmap, threshold=0.25, window=window, most=2)
    assert torch.equal(few, centres[:2])


def test_pixels_join_the_centre_that_they_point_at():
    foreground = torch.tensor([[1, 1, 1, 1, 0]]).bool()
    centres = torch.tensor([[0, 0], [0, 4]])
    offsets = torch.zeros(2, 1, 5)
    assert group(centres, offsets, foreground).tolist() == [[1, 1, 1, 2, 0]], "the nearest; the first of two as near"
    offsets[1, 0, 1] = 3
    assert group(centres, offsets, foreground).tolist() == [[1, 2, 1, 2, 0]]


def test_votes_and_small_objects():
    probabilities = torch.zeros(3, 2, 6)
    probabilities[0] = 0.1  # stuff
    probabilities[1, :, :4], probabilities[2, :, :4] = 0.5, 0.4
    probabilities[1, :, 2], probabilities[2, :, 2] = 0, 0.9
    heatmap = torch.zeros(2, 6)
    heatmap[0, 1] = 0.8
    found = instances(probabilities, heatmap, torch.zeros(2, 2, 6), {1, 2}, least_area=8)
    assert found.labels.tolist() == [2] and found.masks.sum() == 8
    assert float(found.scores) == pytest.approx(0.8 * (6 * 0.4 + 2 * 0.9) / 8)
    assert len(instances(probabilities, heatmap, torch.zeros(2, 2, 6), {1, 2}, least_area=9).masks) == 0


def test_maps_that_do_not_fit_are_refused():
    probabilities, heatmap, offsets = torch.rand(3, 6, 8), torch.rand(6, 8), torch.zeros(2, 6, 8)
    for maps in ((probabilities, heatmap[:3], offsets), (probabilities, heatmap, offsets[:, :3])):
        with pytest.raises(ValueError, match=r"expected probabilities \(C, H, W\), a heatmap"):
            instances(*maps, [0])
    for things in ([], [0, 3], [-1]):
        with pytest.raises(ValueError, match="expected things among the 3 classes"):
            instances(probabilities, heatmap, offsets, things)
    with pytest.raises(TypeError, match="foreground of booleans"):
        group(torch.zeros(1, 2), offsets, heatmap)
    masks = torch.ones(2, 3, 3).bool()
    with pytest.raises(TypeError, match="masks of booleans"):
        Instances(masks.long(), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"expected masks \(N, H, W\), labels and scores \(N,\)"):
        Instances(masks, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="do not overlap"):
        centre_targets(masks)
    with pytest.raises(ValueError, match="sigma > 0"):
        centre_targets(masks[:1], sigma=0.0)


def test_instances_refuse_bad_input():
    with pytest.raises(ValueError, match="none of them empty"):
        centre_targets(torch.zeros(1, 3, 3).bool())
    with pytest.raises(ValueError, match="odd window"):
        find_centres(torch.zeros(3, 3), window=4)
    with pytest.raises(ValueError, match=r"heatmap \(H, W\)"):
        find_centres(torch.zeros(1, 3, 3))
    with pytest.raises(ValueError, match=r"\(1, 3\), \(2, 4, 4\), \(4, 4\)"):
        group(torch.zeros(1, 3), torch.zeros(2, 4, 4), torch.zeros(4, 4).bool())


# Mask AP


def found_by_nobody(truth: torch.Tensor, labels: torch.Tensor, rng: torch.Generator, shift: int = 6) -> Instances:
    """Detections made of the truth: some shifted, some eroded, some doubled, some lost, some of another class."""
    masks, kinds, scores = [], [], []
    for mask, label in zip(truth, labels.tolist(), strict=True):
        draw = float(torch.rand((), generator=rng))
        if draw < 0.15:
            continue
        by = torch.randint(-shift, shift + 1, (2,), generator=rng).tolist()
        changed = mask.roll(by, (0, 1)) if draw < 0.6 else ~(F.max_pool2d((~mask)[None].float(), 5, 1, 2)[0] > 0)
        for m in (changed, mask.roll(9, 1))[: 2 if draw > 0.9 else 1]:
            masks.append(m)
            kinds.append(label if draw < 0.85 else 1 + label % 3)
            scores.append(round(float(torch.rand((), generator=rng)), 1))  # with ties
    empty = truth.new_zeros(0, *truth.shape[1:])
    return Instances(
        torch.stack(masks) if masks else empty, torch.tensor(kinds, dtype=torch.int64), torch.tensor(scores)
    )


def pycocotools_says(dataset: dict, image_ids: list[int], found: list[Instances]) -> list[float]:
    results = [
        {"image_id": i, "category_id": label, "score": score, "segmentation": run | {"counts": run["counts"].decode()}}
        for i, f in zip(image_ids, found, strict=True)
        for run, label, score in zip(encoded(f.masks), f.labels.tolist(), f.scores.tolist(), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(results), "segm")
        judge.params.imgIds = image_ids
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats.tolist()


def test_mask_ap_equals_pycocotools_on_scenes(images):
    """A small case that is always there."""
    rng = torch.Generator().manual_seed(0)
    truth = [Instances(p.masks, p.labels + scenes.CATEGORY) for p in images]
    found = [found_by_nobody(t.masks, t.labels, rng, shift=1) for t in truth]
    result = coco.evaluate([f.objects() for f in found], [t.objects() for t in truth], mask_iou).summary()
    dataset = scenes.to_coco(images)
    expected = pycocotools_says(dataset, [image["id"] for image in dataset["images"]], found)
    assert list(result.values()) == pytest.approx(expected, abs=1e-6)
    assert 0.05 < result["AP"] < result["AP50"] < 1


@needs_coco
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_mask_ap_equals_pycocotools_on_coco(split):
    dataset = json.loads((MINI / f"instances_{split}.json").read_text(encoding="utf-8"))
    with contextlib.redirect_stdout(io.StringIO()):
        real = COCO(str(MINI / f"instances_{split}.json"))
    rng, found, truth, image_ids = torch.Generator().manual_seed(1), [], [], []
    for image in sorted(dataset["images"], key=lambda image: image["id"]):  # in whose order equal scores count
        annotations = real.loadAnns(real.getAnnIds([image["id"]]))
        masks = torch.zeros(len(annotations), image["height"], image["width"], dtype=torch.bool)
        for mask, annotation in zip(masks, annotations, strict=True):
            mask[:] = torch.from_numpy(real.annToMask(annotation)).bool()
        labels = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)
        found.append(found_by_nobody(masks, labels, rng))
        truth.append(
            coco.Objects(
                masks,
                labels,
                areas=torch.tensor([a["area"] for a in annotations], dtype=torch.float64),
                crowd=torch.tensor([bool(a["iscrowd"]) for a in annotations], dtype=torch.bool),
            )
        )
        image_ids.append(image["id"])
    assert sum(int(t.crowd.sum()) for t in truth) > 0
    result = coco.evaluate([f.objects() for f in found], truth, mask_iou).summary()
    expected = pycocotools_says(dataset, image_ids, found)
    assert list(result.values()) == pytest.approx(expected, abs=1e-6)
    assert 0.05 < result["AP"] < 0.9


def test_autocast_is_off_for_counting():
    """The helper that mask IoU leans on."""
    with torch.autocast("cpu", torch.bfloat16), runtime.no_autocast("cpu"):
        assert (torch.ones(1, 1000) @ torch.ones(1000, 1)).item() == 1000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_instances_of_maps_in_half_precision(dtype):
    """One object of 90,000 pixels: votes are sums that no half holds, and offsets point farther than its digits."""
    H = W = 320
    masks = torch.zeros(1, H, W, dtype=torch.bool)
    masks[0, 10:310, 10:310] = True
    heatmap, offsets = centre_targets(masks)
    probabilities = torch.stack([masks[0].float() * 0.75, 1 - masks[0].float() * 0.75, torch.zeros(H, W)])
    found = instances(probabilities.to(dtype), heatmap.to(dtype), offsets.to(dtype), np.array([0, 2]))
    assert torch.equal(found.masks, masks) and found.labels.tolist() == [0]
    assert float(found.scores) == pytest.approx(0.75 * float(heatmap.max()), abs=0.01)


def test_masks_from_numpy_and_no_others():
    masks = random_masks(3, 12, 15, 1)
    torch.testing.assert_close(mask_iou(masks.numpy(), masks.numpy()), mask_iou(masks, masks), equal_nan=True)
    assert Instances(masks.numpy(), np.arange(3)).labels.dtype == torch.int64
    for bad in (masks.byte(), masks.long(), masks.float(), 255 * masks.byte()):
        for function in (
            lambda x: mask_iou(x, x),
            lambda x: centre_targets(x[:1]),
            lambda x: Instances(x, torch.arange(3)),
        ):
            with pytest.raises(TypeError, match="booleans"):
                function(bad)
