"""Run lengths against pycocotools, losses against torch, mIoU against sklearn and torchmetrics."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import uniform
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as oracle
from sklearn.metrics import confusion_matrix, jaccard_score
from torchmetrics.classification import MulticlassJaccardIndex

from course_lib.segmentation import rle, semantic, training

drawn = settings(max_examples=80, deadline=None, derandomize=True, database=None)
# Kinds of masks: nothing, everything, specks, and blobs as networks draw them.
KINDS = ("empty", "full", "specks", "blobs")
sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


def mask(size: tuple[int, int], kind: str = "blobs", seed: int = 0) -> torch.Tensor:
    noise = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    if kind == "blobs":
        noise = F.avg_pool2d(noise[None], 5, stride=1, padding=2, count_include_pad=False)[0]
    return {"empty": noise < 0, "full": noise >= 0}.get(kind, noise > 0.5)


def theirs(m: torch.Tensor) -> dict:
    return oracle.encode(m.numpy().astype("uint8", order="F"))


# Run lengths


@drawn
@given(size=sizes, kind=st.sampled_from(KINDS), seed=st.integers(0, 999))
@example(size=(300, 400), kind="blobs", seed=0)
def test_rle_equals_pycocotools(size, kind, seed):
    m = mask(size, kind, seed)
    mine, other = rle.encode(m), theirs(m)
    assert rle.to_coco(mine) == {"size": list(size), "counts": other["counts"].decode()}
    assert torch.equal(rle.decode(mine), m)
    assert torch.equal(rle.decode(rle.from_coco(other)), m)
    assert rle.area(mine) == oracle.area(other) == m.sum()
    x, y, w, h = oracle.toBbox(other)
    assert rle.box(mine).tolist() == [x, y, x + w, y + h]


@drawn
@given(size=sizes, kinds=st.tuples(*[st.sampled_from(KINDS)] * 2), seed=st.integers(0, 999), crowd=st.booleans())
def test_rle_iou_equals_pycocotools(size, kinds, seed, crowd):
    a, b = (mask(size, kind, seed + i) for i, kind in enumerate(kinds))
    mine = rle.iou(rle.encode(a), rle.encode(b), crowd=crowd)
    if a.any() or b.any():
        assert mine == pytest.approx(float(oracle.iou([theirs(a)], [theirs(b)], [crowd])[0, 0]), abs=1e-12)
    else:
        assert mine == 0
    shared = oracle.merge([theirs(a), theirs(b)], intersect=True)
    assert rle.intersection(rle.encode(a), rle.encode(b)) == oracle.area(shared)


def test_rle_runs_go_down_the_columns_and_begin_with_zeros():
    m = torch.tensor([[1, 0], [1, 1]]).bool()
    assert rle.encode(m).counts.tolist() == [0, 2, 1, 1]
    assert rle.encode(~m).counts.tolist() == [2, 1, 1]
    assert rle.encode(torch.zeros(3, 2).bool()).counts.tolist() == [6]
    assert rle.box(rle.encode(torch.zeros(3, 2).bool())).tolist() == [0, 0, 0, 0]


def test_rle_text_holds_long_runs_and_falls():
    """Of more than five bits, and of differences below zero."""
    counts = [100_000, 1, 70_000, 30, 5, 3_000_000, 2, 1]
    mine = rle.RLE((1, sum(counts)), torch.tensor(counts))
    text = rle.to_text(mine)
    assert text.encode() == oracle.frPyObjects([{"size": [1, sum(counts)], "counts": counts}], 1, 1)[0]["counts"]
    assert rle.from_text(text, mine.size).counts.tolist() == counts


def test_rle_reads_coco_uncompressed_counts():
    assert rle.from_coco({"size": [2, 2], "counts": [0, 2, 1, 1]}).counts.tolist() == [0, 2, 1, 1]


def test_rle_refuses_bad_input():
    whole = rle.encode(mask((4, 5)))
    with pytest.raises(TypeError, match="booleans; got torch.uint8"):
        rle.encode(torch.zeros(3, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(H, W\); got \(1, 3, 3\)"):
        rle.encode(torch.zeros(1, 3, 3).bool())
    with pytest.raises(ValueError, match="sum up to 6"):
        rle.RLE((2, 3), torch.tensor([3, 2]))
    with pytest.raises(ValueError, match="≥ 0"):
        rle.RLE((2, 3), torch.tensor([7, -1]))
    with pytest.raises(TypeError, match="float32"):
        rle.RLE((2, 3), torch.tensor([6.0]))
    with pytest.raises(ValueError, match="'é' is no character"):
        rle.from_text("é", (2, 3))
    with pytest.raises(ValueError, match="middle of a number"):
        rle.from_text("o", (2, 3))
    with pytest.raises(ValueError, match=r"size and counts; got \['counts'\]"):
        rle.from_coco({"counts": [6]})
    with pytest.raises(ValueError, match=r"one size; got \(4, 5\) and \(5, 4\)"):
        rle.iou(whole, rle.encode(mask((5, 4))))


# Losses


def batch(B: int, C: int, H: int, W: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, C, H, W, generator=generator, dtype=torch.float64)
    return 3 * logits, torch.randint(C, (B, H, W), generator=generator)


@drawn
@given(shape=st.tuples(*[st.integers(1, 4)] * 4), seed=st.integers(0, 99), share=st.floats(0, 0.9))
@example(shape=(2, 100, 3, 3), seed=0, share=0.5)
def test_cross_entropy_equals_torch(shape, seed, share):
    logits, labels = batch(*shape, seed)
    unknown = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)) < share
    labels[unknown] = 255
    if (labels != 255).any():
        torch.testing.assert_close(
            training.cross_entropy(logits, labels), F.cross_entropy(logits, labels, ignore_index=255)
        )
    else:
        assert training.cross_entropy(logits, labels) == 0


@drawn
@given(C=st.integers(1, 5), seed=st.integers(0, 99))
def test_weighted_cross_entropy_equals_torch(C, seed):
    logits, labels = batch(2, C, 3, 4, seed)
    weight = torch.rand(C, generator=torch.Generator().manual_seed(seed)).double() + 0.1
    labels[0, 0] = 255
    torch.testing.assert_close(
        training.cross_entropy(logits, labels, weight=weight), F.cross_entropy(logits, labels, weight, ignore_index=255)
    )


def test_cross_entropy_survives_huge_logits():
    logits, labels = batch(1, 3, 4, 4)
    torch.testing.assert_close(training.cross_entropy(1e5 * logits, labels), F.cross_entropy(1e5 * logits, labels))


@pytest.mark.parametrize("loss", [training.cross_entropy, training.dice_loss])
def test_gradients_of_losses(loss):
    logits, labels = batch(2, 3, 3, 4)
    labels[0, 0, :2] = 255
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), logits.requires_grad_())


@pytest.mark.parametrize("loss", [training.cross_entropy, training.dice_loss])
def test_losses_forget_ignored_pixels(loss):
    logits, labels = batch(2, 3, 4, 4)
    labels[:, 2:] = 255
    changed = logits.clone()
    changed[:, :, 2:] = 7
    torch.testing.assert_close(loss(changed, labels), loss(logits, labels))
    logits.requires_grad_()
    loss(logits, labels).backward()
    assert (logits.grad[:, :, 2:] == 0).all() and (logits.grad[:, :, :2] != 0).all()


@drawn
@given(size=sizes, kinds=st.tuples(*[st.sampled_from(KINDS)] * 2), seed=st.integers(0, 99))
def test_dice_of_masks_is_counted(size, kinds, seed):
    a, b = (mask(size, kind, seed + i) for i, kind in enumerate(kinds))
    expected = (2 * (a & b).sum() + 1).double() / (a.sum() + b.sum() + 1)
    torch.testing.assert_close(training.dice(a.double(), b.double()), expected)
    if (a & b).any():
        iou = ((a & b).sum() / (a | b).sum()).double()
        torch.testing.assert_close(training.dice(a.double(), b.double(), epsilon=0), 2 * iou / (1 + iou))


def test_dice_loss_equals_a_slow_loop_and_knows_its_ends():
    logits, labels = batch(2, 4, 5, 6)
    p, total = logits.softmax(1), 0.0
    for c in range(4):
        shared = sum(float(p[b, c, y, x]) for b in range(2) for y in range(5) for x in range(6) if labels[b, y, x] == c)
        total += 1 - (2 * shared + 1) / (float(p[:, c].sum()) + int((labels == c).sum()) + 1)
    assert float(training.dice_loss(logits, labels)) == pytest.approx(total / 4)
    right = 1000 * F.one_hot(labels, 4).movedim(-1, 1).double()
    assert float(training.dice_loss(right, labels)) == pytest.approx(0, abs=1e-9)
    assert float(training.dice_loss(right.roll(1, 1), labels)) > 0.9


def test_dice_gives_a_small_object_its_weight():
    """Missing 4 of 1,024 pixels: nothing to cross-entropy's mean, half of everything to Dice."""
    labels = torch.zeros(1, 32, 32, dtype=torch.int64)
    labels[0, :2, :2] = 1
    logits = torch.zeros(1, 2, 32, 32)
    logits[:, 0] = 6
    assert training.cross_entropy(logits, labels) < 0.03
    assert training.dice_loss(logits, labels) > 0.4


def test_losses_run_on_every_device(device):
    logits, labels = (x.to(device) for x in batch(2, 3, 4, 4))
    for loss in (training.cross_entropy, training.dice_loss):
        torch.testing.assert_close(loss(logits, labels).cpu(), loss(logits.cpu(), labels.cpu()))


@pytest.mark.parametrize("loss", [training.cross_entropy, training.dice_loss])
def test_losses_refuse_bad_input(loss):
    logits, labels = batch(2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"got \(2, 3, 4, 5\) and \(2, 5, 4\)"):
        loss(logits, labels.mT)
    with pytest.raises(ValueError, match=r"got \(3, 4, 5\)"):
        loss(logits[0], labels)
    with pytest.raises(TypeError, match="int64; got torch.int32"):
        loss(logits, labels.int())
    with pytest.raises(ValueError, match=r"labels in \[0, 3\) or 255; got \[3\]"):
        loss(logits, labels.clamp(max=1) + 2 * (labels == 1))
    with pytest.raises(ValueError, match=r"each of 3 classes; got \(2,\)"):
        training.cross_entropy(logits, labels, weight=torch.ones(2))
    with pytest.raises(ValueError, match="two maps"):
        training.dice(logits, logits[:1])


# mIoU


def maps(classes: int, shape: tuple[int, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(classes, shape, generator=generator) for _ in range(2))


@pytest.mark.filterwarnings("ignore:A single label was found")
@drawn
@given(classes=st.sampled_from([1, 2, 5, 100]), side=st.integers(2, 20), seed=st.integers(0, 99), ignored=st.booleans())
def test_semantic_scores_equal_sklearn(classes, side, seed, ignored):
    predicted, truth = maps(classes, (2, side, side), seed)
    if ignored:
        truth[0, : side // 2] = 255
    kept = truth != 255
    confusion = semantic.confusion_matrix(predicted, truth, classes)
    p, t = predicted[kept].numpy(), truth[kept].numpy()
    assert (confusion.numpy() == confusion_matrix(t, p, labels=range(classes))).all()
    there = sorted(set(p) | set(t))
    found = semantic.iou_per_class(confusion)
    assert found[there].tolist() == pytest.approx(jaccard_score(t, p, labels=there, average=None))
    assert found.isnan().sum() == classes - len(there)
    assert semantic.mean_iou(confusion) == pytest.approx(jaccard_score(t, p, labels=there, average="macro"))
    assert semantic.pixel_accuracy(confusion) == pytest.approx((p == t).mean())


def test_mean_iou_equals_torchmetrics_and_adds_up():
    predicted, truth = maps(6, (4, 16, 16), 3)
    judge = MulticlassJaccardIndex(6, average="macro")
    whole = semantic.confusion_matrix(predicted, truth, 6)
    assert semantic.mean_iou(whole) == pytest.approx(float(judge(predicted, truth)), abs=1e-6)
    halves = [semantic.confusion_matrix(predicted[part], truth[part], 6) for part in (slice(2), slice(2, 4))]
    assert torch.equal(whole, sum(halves))


def test_semantic_scores_of_an_image_by_eye():
    truth = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 255]])
    predicted = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 0]])
    confusion = semantic.confusion_matrix(predicted, truth, 3)
    assert confusion.tolist() == [[4, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert semantic.iou_per_class(confusion)[:2].tolist() == [4 / 5, 2 / 3]
    assert semantic.mean_iou(confusion) == pytest.approx((4 / 5 + 2 / 3) / 2), "the third class is nowhere"
    assert semantic.pixel_accuracy(confusion) == pytest.approx(6 / 7)


def test_semantic_refuses_bad_input():
    truth = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"one shape; got \(3, 2\) and \(2, 3\)"):
        semantic.confusion_matrix(truth.T, truth, 2)
    with pytest.raises(TypeError, match="int64; got torch.float32"):
        semantic.confusion_matrix(truth.float(), truth, 2)
    with pytest.raises(ValueError, match=r"predicted classes in \[0, 2\); got \[2\]"):
        semantic.confusion_matrix(truth + 2, truth, 2)
    with pytest.raises(ValueError, match=r"true classes in \[0, 2\); got \[-1\]"):
        semantic.confusion_matrix(truth, truth - 1, 2)
    with pytest.raises(ValueError, match=r"confusion matrix \(C, C\); got \(2, 3\)"):
        semantic.mean_iou(truth)


def test_ignored_pixels_may_say_anything():
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 0, 0, 1] = -math.inf
    labels = torch.tensor([[[0, 255]]])
    assert float(training.cross_entropy(logits, labels)) == pytest.approx(math.log(2))


def test_counts_are_whole_numbers():
    with pytest.raises(TypeError, match="runs as whole numbers"):
        rle.from_coco({"size": [2, 3], "counts": [1.9, 2.2, 3.5]})
    assert rle.area(rle.from_coco({"size": [2, 3], "counts": list(np.array([1, 2, 3]))})) == 2  # NumPy's count, too
    with pytest.raises(ValueError, match="runs of a mask -2×-3"):
        rle.from_coco({"size": [-2, -3], "counts": [6]})


# Polygons, which most of COCO's objects have


def test_polygons_are_drawn_as_pycocotools_draws_them():
    """Drawn ones: corners outside of the image, on pixels' edges, twice the same, outlines that cross themselves."""
    random = np.random.default_rng(0)
    for _ in range(300):
        H, W = (int(n) for n in random.integers(3, 40, 2))
        corners = random.uniform(-5, 45, (random.integers(3, 9), 2)).round(random.integers(0, 4))
        corners = np.repeat(corners, random.integers(1, 3, len(corners)), axis=0)
        theirs = oracle.decode(oracle.frPyObjects([corners.ravel().tolist()], H, W))[..., 0]
        ours = rle.decode(rle.from_polygons([corners.ravel()], (H, W)))
        assert np.array_equal(ours.numpy(), theirs.astype(bool)), (H, W, corners.tolist())


@pytest.mark.parametrize("file", ["instances_train2017", "instances_val2017"])
def test_every_annotation_of_coco(file):
    root = os.environ.get("COURSE_DATA")
    paths = list(Path(root).expanduser().glob(f"coco_mini/**/{file}.json")) if root else []
    if not paths:
        pytest.skip("needs coco_mini in COURSE_DATA")
    content = json.loads(paths[0].read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    polygons = 0
    for annotation in content["annotations"]:
        stored, (H, W) = annotation["segmentation"], sizes[annotation["image_id"]]
        theirs = oracle.frPyObjects(stored, H, W)
        theirs = oracle.merge(theirs) if isinstance(theirs, list) else theirs
        ours = rle.from_coco(stored, (H, W))
        assert rle.to_coco(ours)["counts"] == theirs["counts"].decode(), annotation["id"]
        polygons += isinstance(stored, list)
    assert polygons > 100


def test_polygons_that_are_none_are_refused():
    for bad in ([1, 2, 3, 4, 5], [1, 2, 3, 4], [1, 2, 3, 4, 5, float("nan")]):
        with pytest.raises(ValueError, match="x1, y1"):
            rle.from_polygons([bad], (8, 8))
    with pytest.raises(ValueError, match="size"):
        rle.from_coco([[0, 0, 4, 0, 4, 4]])
    assert rle.area(rle.from_polygons([], (5, 6))) == 0


# Half precision, NumPy, and other types that people bring


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_over_pixels_do_not_overflow(dtype):
    half = torch.zeros(400, 400, dtype=dtype)
    half[:200] = 1
    assert float(training.dice(half, half)) == pytest.approx(1)
    assert float(training.dice(half, half > 0)) == pytest.approx(1)
    logits = torch.zeros(4, 3, 256, 256, dtype=dtype, requires_grad=True)
    labels = torch.arange(4 * 256 * 256).view(4, 256, 256) % 3
    loss = training.dice_loss(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(loss.detach()) == pytest.approx(2 / 3, abs=1e-3) and gradient.abs().max() > 0
    assert float(training.cross_entropy(logits.detach(), labels)) == pytest.approx(math.log(3), rel=1e-3)


def test_maps_and_masks_of_numpy_and_of_small_integers():
    truth = torch.tensor([[0, 1, 1], [1, 0, 255]])
    predicted = torch.tensor([[0, 1, 0], [1, 0, 0]])
    whole = semantic.confusion_matrix(predicted, truth, 2)
    assert torch.equal(semantic.confusion_matrix(predicted.numpy(), truth.numpy().astype(np.uint8), 2), whole)
    assert torch.equal(semantic.paint(truth.byte()), semantic.paint(truth))
    mask = truth == 1
    assert rle.to_coco(rle.encode(mask.numpy())) == rle.to_coco(rle.encode(mask))
    assert torch.equal(semantic.rim(mask.numpy()), semantic.rim(mask))
    for function in (semantic.rim, rle.encode):  # ~1 of bytes is 254
        with pytest.raises(TypeError, match="booleans; got torch.uint8"):
            function(mask.byte())


def test_what_is_ignored_may_be_anything():
    labels = torch.tensor([[[0, 255]]])
    for anything in (math.nan, math.inf, -math.inf):
        logits = torch.zeros(1, 2, 1, 2)
        logits[..., 1] = anything
        assert float(training.dice_loss(logits, labels)) == float(training.dice_loss(torch.zeros(1, 2, 1, 2), labels))
        logits.requires_grad_()
        loss = training.cross_entropy(logits, labels)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(math.log(2))
        assert logits.grad.flatten().tolist() == [-0.5, 0, 0.5, 0]


def test_dice_takes_no_integers():
    """0 and 255, as files hold masks, gave 254."""
    mask = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8)
    for p, g in ((mask, mask), (mask > 0, mask), (mask.float(), mask.long())):
        with pytest.raises(TypeError, match=r"floats in \[0, 1\] or booleans; got torch\."):
            training.dice(p, g)
    assert float(training.dice(mask > 0, mask > 0)) == 1


@pytest.mark.parametrize("kind", [tuple, np.array, lambda runs: np.array(runs, np.uint32), torch.tensor, list])
def test_runs_of_any_whole_numbers(kind):
    mask = uniform(7, 5) > 0.5
    runs = rle.encode(mask)
    read = rle.from_coco({"size": kind([7, 5]), "counts": kind(runs.counts.tolist())})
    assert torch.equal(rle.decode(read), mask)
    assert json.loads(json.dumps(rle.to_coco(read))) == rle.to_coco(runs)
    with pytest.raises(TypeError, match="runs as whole numbers or text"):
        rle.from_coco({"size": [7, 5], "counts": np.array([35.0])})


def test_sizes_of_runs_are_whole_numbers():
    wide = np.array([200, 200], np.uint8)  # whose product wraps
    runs = rle.from_polygons([[0, 0, 200, 0, 200, 200, 0, 200]], wide)
    assert rle.area(runs) == 40_000 and json.dumps(rle.to_coco(runs)).startswith('{"size": [200, 200]')
    assert rle.RLE(wide, torch.tensor([40_000])).size == (200, 200)
    with pytest.raises(TypeError, match=r"a size \(H, W\) of whole numbers; got \(2.5, 2\)"):
        rle.RLE((2.5, 2), torch.tensor([5]))
