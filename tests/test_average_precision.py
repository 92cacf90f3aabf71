"""COCO's evaluation against pycocotools, on real annotations and on small ones that hold every special case."""

import contextlib
import copy
import io
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.ops
from conftest import rng
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from course_lib import detection
from course_lib.detection import Objects, coco

DATA = Path(os.environ.get("COURSE_DATA") or os.devnull) / "coco_mini" / "annotations"
drawn = settings(max_examples=40, deadline=None, derandomize=True, database=None)

# Two objects that overlap, one of each size, a crowd, a box without area, a class that occurs once, an empty image.
EMBEDDED = {
    "images": [{"id": i, "height": 480, "width": 640} for i in (1, 2, 3)],
    "categories": [{"id": i, "name": f"class {i}"} for i in (3, 7, 90)],
    "annotations": [
        {"image_id": 1, "category_id": 3, "bbox": [10.5, 20, 15, 30], "area": 300.0, "iscrowd": 0},
        {"image_id": 1, "category_id": 3, "bbox": [14, 24, 15, 30], "area": 400.0, "iscrowd": 0},
        {"image_id": 1, "category_id": 3, "bbox": [100, 100, 60.25, 80], "area": 4000.0, "iscrowd": 0},
        {"image_id": 1, "category_id": 3, "bbox": [300, 50, 200, 300], "area": 50000.0, "iscrowd": 0},
        {"image_id": 1, "category_id": 7, "bbox": [0, 0, 640, 200], "area": 90000.0, "iscrowd": 1},
        {"image_id": 1, "category_id": 7, "bbox": [30, 40, 100, 100], "area": 8000.0, "iscrowd": 0},
        {"image_id": 1, "category_id": 90, "bbox": [50, 50, 0, 40], "area": 0.0, "iscrowd": 0},
        {"image_id": 2, "category_id": 7, "bbox": [600, 400, 39, 79], "area": 2500.0, "iscrowd": 0},
        {"image_id": 2, "category_id": 90, "bbox": [10, 10, 32, 32], "area": 1024.0, "iscrowd": 0},
        {"image_id": 2, "category_id": 3, "bbox": [200, 200, 96, 96], "area": 9216.0, "iscrowd": 0},
    ],
}


def annotated(annotations):
    """With what COCO's format wants besides."""
    full = copy.deepcopy(annotations)
    for number, annotation in enumerate(full["annotations"], start=1):  # COCOeval takes id 0 for "no match"
        annotation.setdefault("id", number)
    return full


def made_up(annotations, seed, *, tied=False, most=3):
    """COCO-format detections: the true boxes jittered, dropped, repeated, given other classes and random scores."""
    rng = np.random.default_rng(seed)
    categories = [c["id"] for c in annotations["categories"]]
    found = []
    for annotation in annotations["annotations"]:
        for _ in range(rng.integers(0, most + 1)):
            x, y, w, h = np.array(annotation["bbox"], dtype=float)
            if rng.random() < 0.8:  # else it is exact, and ties at every threshold
                dx, dy, dw, dh = rng.normal(0, 0.12, 4)
                x, y, w, h = x + dx * w, y + dy * h, w * np.exp(dw), h * np.exp(dh)
            other = rng.random() < 0.1
            score = rng.integers(1, 4) / 4 if tied else rng.random()
            found.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": int(rng.choice(categories)) if other else annotation["category_id"],
                    "bbox": [x, y, w, h],
                    "score": float(score),
                }
            )
    return found


def coco_summary(annotations, found):
    """The twelve numbers of pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = annotated(annotations)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found) if found else empty(truth), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def empty(truth):
    nothing = COCO()
    nothing.dataset = {**truth.dataset, "annotations": []}
    nothing.createIndex()
    return nothing


def objects(annotations, of, scored=False, dtype=torch.float64):
    """An image's COCO-format entries as `Objects`."""
    mine = [a for a in annotations if a["image_id"] == of]
    corners = torch.tensor([a["bbox"] for a in mine], dtype=dtype).view(-1, 4)
    labels = torch.tensor([a["category_id"] for a in mine], dtype=torch.int64)
    boxes = torchvision.ops.box_convert(corners, "xywh", "xyxy")
    if scored:
        areas = corners[:, 2] * corners[:, 3]
        return Objects(boxes, labels, torch.tensor([a["score"] for a in mine], dtype=torch.float64), areas)
    areas = torch.tensor([a["area"] for a in mine], dtype=torch.float64)
    return Objects(boxes, labels, None, areas, torch.tensor([a["iscrowd"] for a in mine], dtype=torch.bool))


def our_evaluation(annotations, found):
    ids = sorted(image["id"] for image in annotations["images"])
    truth = [objects(annotations["annotations"], i) for i in ids]
    return detection.evaluate([objects(found, i, scored=True) for i in ids], truth)


def assert_equal(annotations, found):
    ours = our_evaluation(annotations, found).summary()
    assert len(ours) == 12
    np.testing.assert_allclose(list(ours.values()), coco_summary(annotations, found), atol=1e-6, rtol=0)
    return ours


@pytest.mark.skipif(not DATA.is_dir(), reason="needs coco_mini in COURSE_DATA")
@pytest.mark.parametrize("split", ["train2017", "val2017"])
@pytest.mark.parametrize(("seed", "tied", "most"), [(0, False, 1), (1, False, 3), (2, True, 3), (3, False, 60)])
def test_equals_pycocotools_on_real_annotations(split, seed, tied, most):
    annotations = json.loads((DATA / f"instances_{split}.json").read_text())
    assert any(annotation["iscrowd"] for annotation in annotations["annotations"])
    found = made_up(annotations, seed, tied=tied, most=most)
    summary = assert_equal(annotations, found)
    assert 0.05 < summary["AP"] < 0.95 and -1 not in summary.values()


@drawn
@given(seed=st.integers(0, 10_000), tied=st.booleans(), most=st.sampled_from([1, 2, 8]))
def test_equals_pycocotools_on_every_special_case(seed, tied, most):
    assert_equal(EMBEDDED, made_up(EMBEDDED, seed, tied=tied, most=most))


def test_whole_pixels_reach_their_thresholds_in_float32_too():
    """7/10 is below 0.7 in float32; boxes of a few whole pixels meet the thresholds exactly, and often."""
    chance = rng(0)

    def entry(image, **more):
        x, y, w, h = torch.randint(1, 11, (4,), generator=chance).tolist()
        label = int(torch.randint(1, 3, (), generator=chance))
        return {"image_id": image, "category_id": label, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0} | more

    truth = [entry(1 + n % 20, id=n + 1) for n in range(200)]
    found = [entry(1 + n % 20, score=float(torch.rand((), generator=chance))) for n in range(400)]
    annotations = {
        "images": [{"id": i} for i in range(1, 21)],
        "categories": [{"id": 1}, {"id": 2}],
        "annotations": truth,
    }
    images = range(1, 21)
    ours = detection.evaluate(
        [objects(found, i, scored=True, dtype=torch.float32) for i in images],
        [objects(truth, i, dtype=torch.float32) for i in images],
    ).summary()
    np.testing.assert_allclose(list(ours.values()), coco_summary(annotations, found), atol=1e-6, rtol=0)


def test_more_than_a_hundred_detections_of_an_image():
    found = made_up(EMBEDDED, 5, most=100)
    per_image_and_class = [(f["image_id"], f["category_id"]) for f in found]
    assert max(map(per_image_and_class.count, per_image_and_class)) > 100
    assert_equal(EMBEDDED, found)


def test_no_detections_at_all():
    summary = assert_equal(EMBEDDED, [])
    assert set(summary.values()) == {0.0}


def test_perfect_detections():
    found = [{**a, "score": 0.9} for a in EMBEDDED["annotations"] if not a["iscrowd"] and a["bbox"][2]]
    summary = assert_equal(EMBEDDED, found)
    assert summary["AP medium"] == pytest.approx(1) and summary["AP large"] == pytest.approx(1)


@pytest.mark.parametrize("classes", [1, 100])
def test_one_class_and_a_hundred(classes):
    rng = np.random.default_rng(classes)
    many = {
        "images": [{"id": i} for i in range(1, 11)],
        "categories": [{"id": i} for i in range(1, classes + 1)],
        "annotations": [],
    }
    for i in range(200):
        w, h = rng.uniform(4, 200, 2)
        box = [*rng.uniform(0, 400, 2), w, h]
        label = int(rng.integers(1, classes + 1))
        more = {"bbox": box, "area": w * h, "iscrowd": int(rng.random() < 0.05)}
        many["annotations"].append({"image_id": 1 + i % 10, "category_id": label, **more})
    summary = assert_equal(many, made_up(many, 7))
    assert 0.1 < summary["AP50"] < 0.9


def test_images_without_anything_change_nothing():
    found = made_up(EMBEDDED, 11)
    more = {**EMBEDDED, "images": [*EMBEDDED["images"], {"id": 4}, {"id": 5}]}
    assert our_evaluation(more, found).summary() == our_evaluation(EMBEDDED, found).summary()


def test_nothing_to_find():
    nothing = {**EMBEDDED, "annotations": []}
    summary = our_evaluation(nothing, made_up(EMBEDDED, 0)).summary()
    assert set(summary.values()) == {-1.0}, "no true object: there is no precision to speak of"
    assert detection.evaluate([], []).summary()["AP"] == -1


@drawn
@given(seed=st.integers(0, 999))
def test_order_of_detections_and_of_images_does_not_matter(seed):
    found = made_up(EMBEDDED, seed)
    mixed = [found[i] for i in np.random.default_rng(seed).permutation(len(found))]
    ours = our_evaluation(EMBEDDED, found).summary()
    assert our_evaluation(EMBEDDED, mixed).summary() == pytest.approx(ours, abs=1e-12)
    ids = [3, 1, 2]
    truth = [objects(EMBEDDED["annotations"], i) for i in ids]
    turned = detection.evaluate([objects(found, i, scored=True) for i in ids], truth)
    assert turned.summary() == pytest.approx(ours, abs=1e-12)


def test_evaluation_by_class_and_threshold_averages_to_the_whole():
    evaluation = our_evaluation(EMBEDDED, made_up(EMBEDDED, 3))
    assert evaluation.classes == (3, 7, 90)
    by_class = [evaluation.mean_precision(label=label) for label in evaluation.classes]
    assert np.mean(by_class) == pytest.approx(evaluation.mean_precision())
    by_threshold = [evaluation.mean_precision(float(t)) for t in detection.THRESHOLDS]
    assert np.mean(by_threshold) == pytest.approx(evaluation.mean_precision())
    with pytest.raises(ValueError, match=r"thresholds are .* got 0.52"):
        evaluation.mean_precision(0.52)
    with pytest.raises(ValueError):
        evaluation.mean_precision(label=4)


# One curve


@drawn
@given(n=st.integers(1, 30), seed=st.integers(0, 999), missed=st.integers(0, 5))
def test_average_precision_equals_a_slow_loop(n, seed, missed):
    chance = rng(seed)
    scores, correct = torch.randint(6, (n,), generator=chance) / 5, torch.rand(n, generator=chance) < 0.6
    positives = max(1, int(correct.sum()) + missed)
    points = []
    for k in range(1, n + 1):
        best = sorted(range(n), key=lambda i: -float(scores[i]))[:k]
        hits = sum(bool(correct[i]) for i in best)
        points.append((hits / k, hits / positives))
    precision, recall = detection.precision_recall_curve(scores, correct, positives)
    torch.testing.assert_close(torch.stack([precision, recall], 1), torch.tensor(points, dtype=torch.float64))
    read = [max([p for p, r in points if r >= at], default=0.0) for at in np.linspace(0, 1, 101)]
    assert detection.average_precision(scores, correct, positives) == pytest.approx(np.mean(read))


def test_curve_without_detections():
    precision, recall = detection.precision_recall_curve(torch.zeros(0), torch.zeros(0, dtype=torch.bool), 3)
    assert precision.shape == recall.shape == (0,)
    assert detection.average_precision(torch.zeros(0), torch.zeros(0, dtype=torch.bool), 3) == 0


def test_recalls_and_thresholds_are_those_of_pycocotools():
    params = COCOeval(iouType="bbox").params
    assert (detection.RECALLS.numpy() == params.recThrs).all()
    assert (detection.THRESHOLDS.numpy() == params.iouThrs).all()
    assert list(coco.MAX_DETECTIONS) == params.maxDets
    assert [list(size) for size in coco.SIZES.values()] == params.areaRng


def test_assign_takes_the_best_free_object_and_the_last_of_equals():
    overlaps = torch.tensor([[0.9, 0.9, 0.6], [0.8, 0.7, 0.55], [0.7, 0.95, 0.0]])
    none = torch.zeros(1, 3, dtype=torch.bool)
    index = detection.assign(overlaps, torch.tensor([0.5, 0.75]), none, none[0])
    assert index.tolist() == [[[1, 0, -1], [1, 0, -1]]]
    crowd = torch.tensor([False, True, False])
    index = detection.assign(overlaps, torch.tensor([0.5]), crowd[None], crowd)
    assert index.tolist() == [[[0, 2, 1]]], "an ignored object only where no other is left"


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_objects_select_and_move(device):
    some = objects(made_up(EMBEDDED, 1, most=4), 1, scored=True).to(device)
    kept = some[some.scores > 0.5]
    assert 0 < len(kept) < len(some) and kept.shapes.device.type == device
    assert (kept.scores > 0.5).all() and torch.equal(kept.areas, some.areas[some.scores > 0.5])
    truth = objects(EMBEDDED["annotations"], 1).to(device)
    assert detection.evaluate([some], [truth]).summary()["AP50"] > 0


def test_bad_input_is_refused():
    box, label = torch.tensor([[0.0, 0, 5, 5]]), torch.tensor([1])
    truth, found = Objects(box, label), Objects(box, label, torch.tensor([0.5]))
    with pytest.raises(ValueError, match=r"2 images .* truth of 1"):
        detection.evaluate([found, found], [truth])
    with pytest.raises(ValueError, match="need scores"):
        detection.evaluate([truth], [truth])
    with pytest.raises(ValueError, match=r"1 shapes need labels \(1,\); got \(2,\)"):
        Objects(box, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="NaN"):
        Objects(box, label, torch.tensor([float("nan")]))
    with pytest.raises(ValueError, match=r"expected boxes \(N, 4\), or areas"):
        Objects(torch.ones(1, 8, 8, dtype=torch.bool), label)
    with pytest.raises(ValueError, match="Are they"):
        Objects(torch.tensor([[10.0, 10, 5, 5]]), label)
    with pytest.raises(ValueError, match="0 true objects"):
        detection.precision_recall_curve(torch.rand(3), torch.zeros(3, dtype=torch.bool), 0)


def test_wrong_kinds_are_refused():
    boxes, labels = torch.tensor([[0.0, 0, 4, 4]]).repeat(2, 1), torch.tensor([0, 1])
    with pytest.raises(TypeError, match="labels as integers, crowd as bool"):
        Objects(boxes, labels, crowd=torch.tensor([0, 1]))
    with pytest.raises(TypeError, match="labels as integers, crowd as bool"):
        Objects(boxes, labels.float())
    for scores in (torch.tensor([0.5]), torch.tensor([0.5, math.nan])):
        with pytest.raises(ValueError, match=r"expected scores and correct \(N,\), no NaN"):
            detection.precision_recall_curve(scores, torch.tensor([True, True]), 2)
    evaluation = detection.evaluate([Objects(boxes, labels, torch.tensor([0.5, 0.4]))], [Objects(boxes, labels)])
    for call in (
        lambda: evaluation.mean_recall(5),
        lambda: evaluation.mean_recall(size="huge"),
        lambda: evaluation.mean_precision(size="huge"),
        lambda: evaluation.mean_precision(label=7),
    ):
        with pytest.raises(ValueError, match="expected a (size|class|number of detections) of .*; got"):
            call()


def test_arrays_of_numpy_become_tensors():
    box, label, score = np.array([[0.0, 0, 5, 5]]), np.array([1], np.int32), np.array([0.5], np.float16)
    truth, found = Objects(box, label), Objects(box, label, score, crowd=np.array([False]))
    assert all(isinstance(part, torch.Tensor) for part in vars(found).values())
    assert detection.evaluate([found], [truth]).summary()["AP"] == pytest.approx(1)
    nothing = Objects(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    assert detection.evaluate([nothing], [truth]).summary()["AP"] == 0
    scores, correct = np.array([0.9, 0.1, 0.5]), np.array([True, True, False])
    for of_arrays, of_tensors in zip(
        detection.precision_recall_curve(scores, correct, np.int64(3)),
        detection.precision_recall_curve(torch.tensor(scores), torch.tensor(correct), 3),
        strict=True,
    ):
        assert torch.equal(of_arrays, of_tensors)


def test_numbers_are_not_taken_for_truth_values():
    """1 and 0 as uint8: ~1 is 254, and an index of 1 is not a mask."""
    box, label = torch.tensor([[0.0, 0, 5, 5], [1, 1, 6, 6]]), torch.tensor([1, 1])
    marks = torch.tensor([1, 0], dtype=torch.uint8)
    some = Objects(box, label)
    assert some[torch.tensor([True, False])].shapes.tolist() == some[torch.tensor([0])].shapes.tolist()
    for refused in (
        lambda: some[marks],
        lambda: some[marks.numpy()],
        lambda: Objects(box, label, crowd=marks),
        lambda: Objects(box, label > 0),
        lambda: coco.boxes.crowd_iou(box, box, marks),
        lambda: detection.assign(torch.eye(2), detection.THRESHOLDS, marks[None], marks.bool()),
        lambda: detection.assign(torch.eye(2), detection.THRESHOLDS, marks.bool()[None], marks),
        lambda: detection.precision_recall_curve(torch.rand(2), marks, 2),
    ):
        with pytest.raises(TypeError, match="bool"):
            refused()
