"""Boxes, suppression and anchors against torchvision.ops; the detector's targets, losses, decoding and training."""

import http.server
import importlib
import io
import math
import os
import re
import socket
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.ops
from conftest import rng, uniform
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models.detection._utils import BoxCoder, Matcher

from course_lib import detection, scenes
from course_lib.base import checkpoints, datasets, zoo
from course_lib.base.datasets import DownloadError, OfflineError
from course_lib.base.loop import Loop
from course_lib.detection import Objects, model, pedestrians
from course_lib.detection.boxes import area, check_boxes, crowd_iou
from course_lib.detection.training import PADDING

ROOT = Path(__file__).resolve().parents[1]
PEDESTRIANS = Path(os.environ.get("COURSE_DATA") or os.devnull) / "pennfudan"
HAS_PEDESTRIANS = PEDESTRIANS.is_dir()
drawn = settings(max_examples=80, deadline=None, derandomize=True, database=None)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@st.composite
def boxes(draw, most=8, least=0):
    """(N, 4) xyxy float64 on a coarse grid, so that ties, equal, touching and empty boxes are frequent."""
    n = draw(st.integers(least, most))
    numbers = st.lists(st.integers(-4, 12), min_size=4 * n, max_size=4 * n)
    corners = torch.tensor(draw(numbers), dtype=torch.float64).view(n, 2, 2) / draw(st.sampled_from([1, 3]))
    return torch.cat([corners.amin(1), corners.amax(1)], 1)


def some_boxes(n, seed=0, far=60.0):
    chance = rng(seed)
    corner = far * torch.rand(n, 2, generator=chance, dtype=torch.float64)
    return torch.cat([corner, corner + 2 + 20 * torch.rand(n, 2, generator=chance, dtype=torch.float64)], 1)


# Boxes


@drawn
@given(boxes(), boxes())
def test_overlaps_equal_torchvision(a, b):
    expected = torchvision.ops.box_iou(a, b).nan_to_num(0)  # 0/0 for two empty boxes is theirs
    found = detection.pairwise(detection.iou, a, b)
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=0)
    nothing = torch.zeros(len(b), dtype=torch.bool)
    torch.testing.assert_close(crowd_iou(a, b, nothing), expected, atol=1e-14, rtol=0)
    torch.testing.assert_close(area(a), torchvision.ops.box_area(a))
    theirs = torchvision.ops.generalized_box_iou(a, b)
    defined = theirs.isfinite()  # theirs is NaN where both boxes, or what is around them, are empty
    found = detection.pairwise(detection.giou, a, b)
    torch.testing.assert_close(found[defined], theirs[defined], atol=1e-14, rtol=0)
    assert found.isfinite().all()


@drawn
@given(boxes(), st.integers(1, 9), st.integers(1, 9))
def test_clip_equals_torchvision(given_boxes, H, W):
    torch.testing.assert_close(
        detection.clip(given_boxes, (H, W)), torchvision.ops.clip_boxes_to_image(given_boxes, (H, W))
    )


def test_overlaps_are_batched_and_broadcast():
    a, b = some_boxes(24).view(2, 3, 4, 4), some_boxes(30, 1).view(2, 3, 5, 4)
    found = detection.pairwise(detection.giou, a, b)
    assert found.shape == (2, 3, 4, 5)
    torch.testing.assert_close(found[1, 2], torchvision.ops.generalized_box_iou(a[1, 2], b[1, 2]))
    paired = torchvision.ops.box_iou(a[0, 0], b[0, 0][:4]).diagonal()
    torch.testing.assert_close(detection.iou(a[0, 0], b[0, 0][:4]), paired)


@drawn
@given(boxes(least=1), st.floats(0.1, 3), st.floats(-5, 5))
def test_overlaps_do_not_depend_on_scale_place_and_order(given_boxes, scale, shift):
    a, b = given_boxes, given_boxes.flip(0)
    for overlap in (detection.iou, detection.giou):
        value = overlap(a, b)
        torch.testing.assert_close(value, overlap(b, a))
        torch.testing.assert_close(value, overlap(scale * a + shift, scale * b + shift), atol=1e-9, rtol=0)
        assert (value <= 1).all() and (value >= -1).all()
    assert (detection.giou(a, b) <= detection.iou(a, b)).all()


def test_iou_has_no_gradient_where_boxes_miss_and_giou_has_one_that_pulls():
    box = torch.tensor([0.0, 0.0, 2.0, 2.0], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([5.0, 0.0, 7.0, 2.0], dtype=torch.float64)
    (still,) = torch.autograd.grad(detection.iou(box, other), box)
    (pulled,) = torch.autograd.grad(detection.giou(box, other), box)
    assert (still == 0).all()
    assert pulled[2] > 0, "the right side wants to go right, to the other box"


def test_gradients_are_those_of_finite_differences():
    a, b = some_boxes(6, far=10).requires_grad_(), some_boxes(6, 1, far=10).requires_grad_()
    assert torch.autograd.gradcheck(detection.giou, (a, b))
    assert torch.autograd.gradcheck(detection.iou, (a, b))
    empty = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    for overlap in (detection.iou, detection.giou):
        (gradient,) = torch.autograd.grad(overlap(empty, empty.flip(0)).sum(), empty)
        assert gradient.isfinite().all()


def test_crowds_forgive_what_lies_inside():
    crowd, inside, half = torch.tensor([[0.0, 0, 10, 10], [2, 2, 4, 4], [8, 0, 12, 10]], dtype=torch.float64)
    found = crowd_iou(torch.stack([inside, half]), crowd[None], torch.tensor([True]))
    assert found[:, 0].tolist() == [1.0, 0.5]


@pytest.mark.parametrize("function", [check_boxes, area, lambda b: detection.iou(b, b)])
def test_wrong_boxes_are_refused(function):
    with pytest.raises(ValueError, match=r"\(x, y, width, height\)\? Then torchvision"):
        function(torch.tensor([[10.0, 10, 30, 30], [50.0, 60, 20, 10]]))
    with pytest.raises(ValueError, match="NaN or infinity"):
        function(torch.tensor([[0.0, 0, math.nan, 1]]))
    with pytest.raises(ValueError, match=r"must be \(..., 4\), got \(2, 5\)"):
        function(torch.zeros(2, 5))
    with pytest.raises(TypeError, match=r"floating-point tensor .* got torch.int64"):
        function(torch.tensor([[0, 0, 1, 1]]))
    with pytest.raises(TypeError, match="got list"):
        function([[0.0, 0, 1, 1]])


# Suppression


@drawn
@given(boxes(most=12), st.integers(0, 99), st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.9, 1.0]), st.booleans())
def test_nms_equals_torchvision(given_boxes, seed, threshold, tied):
    chance = rng(seed)
    n = len(given_boxes)
    scores = torch.randint(4, (n,), generator=chance) / 4.0 if tied else torch.rand(n, generator=chance)
    scores = scores.double()
    # torchvision's order of equal scores differs between releases: only the stable one is the same everywhere.
    order = scores.argsort(descending=True, stable=True)
    expected = order[torchvision.ops.nms(given_boxes[order], torch.arange(n, 0, -1).double(), threshold)]
    assert detection.nms(given_boxes, scores, threshold).tolist() == expected.tolist()
    labels = torch.randint(3, (n,), generator=chance)
    groups = [order[labels[order] == label] for label in range(3)]
    kept = {i for g in groups for i in g[detection.nms(given_boxes[g], scores[g], threshold)].tolist()}
    found = detection.nms(given_boxes, scores, threshold, labels)
    assert set(found.tolist()) == kept and (scores[found].diff() <= 0).all()


@pytest.mark.parametrize("far", [30, 100, 1000])
def test_nms_of_many_boxes_and_classes_equals_torchvision(far):
    given_boxes, chance = some_boxes(2000, far=far), rng(1)
    scores, labels = torch.rand(2000, generator=chance).double(), torch.randint(80, (2000,), generator=chance)
    assert torch.equal(detection.nms(given_boxes, scores, 0.4), torchvision.ops.nms(given_boxes, scores, 0.4))
    expected = torchvision.ops.batched_nms(given_boxes, scores, labels, 0.4)
    assert torch.equal(detection.nms(given_boxes, scores, 0.4, labels), expected)


def test_nms_of_a_long_chain_and_of_equal_boxes():
    """Each box removes the next, unless it was removed itself: every other one stays, over the blocks' borders too."""
    n = 1200
    x = torch.arange(n, dtype=torch.float64)
    chain = torch.stack([x, 0 * x, x + 3, 0 * x + 1], 1)  # IoU 1/2 with the next, 1/5 with the one after it
    assert detection.nms(chain, -x, 0.4).tolist() == list(range(0, n, 2))
    same = torch.ones(5, 4, dtype=torch.float64) * torch.tensor([0, 0, 1, 1])
    assert detection.nms(same, torch.zeros(5), 0.5).tolist() == [0]
    assert detection.nms(torch.zeros(3, 4), torch.zeros(3), 0.5).tolist() == [0, 1, 2], "empty boxes overlap nothing"


def test_nms_of_nothing():
    none = torch.zeros(0, 4)
    assert detection.nms(none, torch.zeros(0)).shape == (0,)
    indices, scores = detection.soft_nms(none, torch.zeros(0))
    assert indices.shape == scores.shape == (0,) and indices.dtype == torch.int64


def slow_soft_nms(given_boxes, scores, kind, sigma, threshold, minimum, labels):
    """The paper's figure 2, with lists and torchvision's IoU of two boxes at a time."""
    left, result = {i: float(s) for i, s in enumerate(scores)}, []
    while left and max(left.values()) >= minimum:
        best = max(left, key=lambda i: (left[i], -i))
        result.append((best, left.pop(best)))
        for i in left:
            overlap = float(torchvision.ops.box_iou(given_boxes[[best]], given_boxes[[i]]).nan_to_num(0))
            if labels[i] != labels[best]:
                continue
            if kind == "linear":
                left[i] *= 1 - overlap if overlap >= threshold else 1
            else:
                left[i] *= math.exp(-(overlap**2) / sigma)
    return result


@drawn
@given(boxes(most=9), st.integers(0, 99), st.sampled_from(["linear", "gaussian"]), st.booleans())
def test_soft_nms_equals_the_slow_loop(given_boxes, seed, kind, classes):
    chance = rng(seed)
    scores = torch.rand(len(given_boxes), generator=chance).double()
    labels = torch.randint(2 if classes else 1, (len(given_boxes),), generator=chance)
    arguments = {"kind": kind, "sigma": 0.4, "threshold": 0.3, "minimum": 0.05}
    expected = slow_soft_nms(given_boxes, scores, labels=labels, **arguments)
    indices, lowered = detection.soft_nms(given_boxes, scores, labels=labels if classes else None, **arguments)
    assert indices.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(lowered, torch.tensor([s for _, s in expected], dtype=torch.float64))


def test_soft_nms_keeps_what_greedy_nms_removes():
    two = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 9]])
    scores = torch.tensor([0.9, 0.8])
    assert detection.nms(two, scores, 0.5).tolist() == [0]
    indices, lowered = detection.soft_nms(two, scores, sigma=0.5)
    assert indices.tolist() == [0, 1]
    torch.testing.assert_close(lowered, torch.tensor([0.9, 0.8 * math.exp(-(0.9**2) / 0.5)]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 4), torch.zeros(3)), r"boxes \(N, 4\) and scores \(N,\), got \(2, 4\), \(3,\)"),
        ((torch.zeros(1, 2, 4), torch.zeros(1)), "expected boxes"),
        ((torch.zeros(1, 4), torch.tensor([math.nan])), "NaN"),
        ((torch.tensor([[9.0, 9, 1, 1]]), torch.zeros(1)), "Then torchvision"),
    ],
)
def test_suppression_refuses_bad_input(arguments, message):
    for function in (detection.nms, detection.soft_nms):
        with pytest.raises(ValueError, match=message):
            function(*arguments)


def test_suppression_refuses_bad_settings():
    one = (torch.zeros(1, 4), torch.ones(1))
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 50"):
        detection.nms(*one, 50)
    with pytest.raises(ValueError, match=r"labels \(N,\)"):
        detection.nms(*one, 0.5, torch.zeros(2))
    for bad in ({"kind": "cubic"}, {"sigma": 0.0}, {"threshold": 2.0}):
        with pytest.raises(ValueError, match="expected gaussian"):
            detection.soft_nms(*one, **bad)
    with pytest.raises(ValueError, match="negative; got -1"):
        detection.soft_nms(one[0], -one[1])


def test_suppression_refuses_arrays_by_name():
    box = torch.tensor([[0.0, 0, 1, 1]])
    for function in (detection.nms, detection.soft_nms):
        with pytest.raises(TypeError, match="boxes must be a floating-point tensor .*, got ndarray"):
            function(box.numpy(), torch.ones(1))
        with pytest.raises(TypeError, match="scores as a tensor, got ndarray"):
            function(box, np.ones(1))
        with pytest.raises(TypeError, match="labels as a tensor, got list"):
            function(box, torch.ones(1), labels=[1])


@pytest.mark.parametrize("number", [float, np.float64, np.float32, torch.tensor])
def test_thresholds_may_be_numpy_s(number):
    found, scores = some_boxes(30), torch.linspace(1, 0, 30).double()
    half, third = number(0.5), number(0.25)
    assert detection.nms(found, scores, half).tolist() == detection.nms(found, scores, 0.5).tolist()
    for kind in ("gaussian", "linear"):
        ours = detection.soft_nms(found, scores, kind=kind, sigma=half, threshold=third, minimum=third)
        theirs = detection.soft_nms(found, scores, kind=kind, sigma=0.5, threshold=0.25, minimum=0.25)
        assert all(map(torch.equal, ours, theirs))
    assert torch.equal(
        detection.match_anchors(found, found[:9] + 2, high=half, low=third),
        detection.match_anchors(found, found[:9] + 2, high=0.5, low=0.25),
    )


def test_sizes_may_be_numpy_s():
    H, W = np.array([6, 8])
    some, two = some_boxes(9), np.float64(2)
    assert torch.equal(detection.clip(some, (H, W)), detection.clip(some, (6, 8)))
    grid = detection.anchor_grid((H, W), np.int64(8), np.array([16.0, 32.0]), [np.float32(0.5), two])
    assert grid.dtype == torch.float32 and torch.equal(grid, detection.anchor_grid((6, 8), 8, (16, 32), (0.5, 2)))
    images, labels = torch.rand(3, 3, 32, 32), torch.zeros(3, 3, dtype=torch.int64)
    results = [
        detection.random_squares(size, zoom)(images, some.view(3, 3, 4), labels, rng())
        for size, zoom in ((np.int64(16), (np.float32(0.5), two)), (16, (0.5, 2.0)))
    ]
    assert all(map(torch.equal, *results))
    heatmap = torch.randn(1, 2, 8, 8, generator=rng())
    predicted = model.Prediction(heatmap, some[:1].float().view(1, 4, 1, 1).expand(1, 4, 8, 8))
    (ours,) = detection.objects(predicted, minimum=np.float64(0.5), suppress=np.float32(0.5), most=np.int64(3))
    (theirs,) = detection.objects(predicted, minimum=0.5, suppress=0.5, most=3)
    assert len(ours) == len(theirs) > 0 and torch.equal(ours.scores, theirs.scores)
    with pytest.raises(ValueError, match=r"score in \[0, 1\], got 50"):
        detection.objects(predicted, minimum=50)


# Anchors


def test_anchor_grid_covers_the_image():
    grid = detection.anchor_grid((2, 3), 8, (16, 32), (0.5, 1.0, 2.0))
    assert grid.shape == (2 * 3 * 6, 4)
    torch.testing.assert_close(area(grid), torch.tensor([256.0] * 3 + [1024.0] * 3).repeat(6))
    centres = torchvision.ops.box_convert(grid, "xyxy", "cxcywh")
    torch.testing.assert_close(
        centres[::6, :2], torch.tensor([[4.0, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]])
    )
    torch.testing.assert_close(centres[:3, 3] / centres[:3, 2], torch.tensor([0.5, 1.0, 2.0]))
    with pytest.raises(ValueError, match="above 0"):
        detection.anchor_grid((2, 3), 8, ())


@drawn
@given(boxes(most=5), boxes(most=10), st.sampled_from([(0.5, 0.5), (0.5, 0.4), (0.7, 0.3), (1.0, 0.0)]))
def test_matching_equals_torchvision(true, grid, thresholds):
    high, low = thresholds
    found = detection.match_anchors(grid, true, high=high, low=low)
    if len(true) == 0 or len(grid) == 0:
        assert (found == detection.BACKGROUND).all() and len(found) == len(grid)
        return
    overlaps = torchvision.ops.box_iou(true, grid).nan_to_num(0)
    # Theirs gives a box that meets no anchor to all anchors; ours to none, so theirs must not see it.
    (seen,) = (overlaps.amax(1) > 0).nonzero(as_tuple=True)
    if len(seen):
        expected = Matcher(high, low, allow_low_quality_matches=True)(overlaps[seen])
        assert found.tolist() == torch.where(expected >= 0, seen[expected.clamp(min=0)], expected).tolist()
    else:
        assert (found < 0).all()


def test_every_object_gets_an_anchor():
    grid = detection.anchor_grid((8, 8), 8, (8, 16))
    true = some_boxes(20, far=40).float()
    found = detection.match_anchors(grid, true, high=0.99, low=0.5)
    overlaps = detection.pairwise(detection.iou, true, grid)
    assert (found[overlaps.argmax(1)] >= 0).all()
    with pytest.raises(ValueError, match="0 ≤ low ≤ high"):
        detection.match_anchors(grid, true, high=0.3, low=0.5)


@drawn
@given(st.integers(0, 999))
def test_encoding_equals_torchvision_and_returns(seed):
    true, grid = some_boxes(7, seed), some_boxes(7, seed + 1)
    t = detection.encode_boxes(true, grid)
    (expected,) = BoxCoder((1.0, 1.0, 1.0, 1.0)).encode([true], [grid])
    torch.testing.assert_close(t, expected)
    torch.testing.assert_close(detection.decode_boxes(t, grid), true)


def test_encoding_refuses_empty_boxes():
    with pytest.raises(ValueError, match="widths and heights above 0"):
        detection.encode_boxes(torch.zeros(1, 4), torch.tensor([[0.0, 0, 1, 1]]))
    with pytest.raises(ValueError, match=r"expected t \(..., 4\), got \(1, 3\)"):
        detection.decode_boxes(torch.zeros(1, 3), torch.tensor([[0.0, 0, 1, 1]]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operations_keep_device_and_dtype(device, dtype):
    a, b = some_boxes(5).to(device, dtype), some_boxes(6, 1).to(device, dtype)
    scores = torch.linspace(0, 1, 5, device=device, dtype=dtype)
    crowd = torch.zeros(6, dtype=torch.bool, device=device)
    results = [
        detection.pairwise(detection.giou, a, b),
        crowd_iou(a, b, crowd),
        detection.clip(a, (9, 9)),
        detection.soft_nms(a, scores)[1],
        detection.decode_boxes(detection.encode_boxes(a, b[:5]), b[:5]),
    ]
    assert all(result.dtype == dtype and result.device.type == device for result in results)
    assert detection.nms(a, scores).device.type == device
    assert detection.match_anchors(a, b).device.type == device


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_give_what_the_same_numbers_give_in_full(dtype):
    """A box of 300 × 300 pixels has more of them than a half can count; a border at 299 px is beyond bfloat16."""
    a, b = torch.tensor([[[0.0, 0, 304, 304]], [[0, 0, 304, 288]]], dtype=dtype)
    for overlap in (detection.iou, detection.giou):
        assert overlap(a, a).item() == 1 and overlap(a, b).dtype == torch.float32
        torch.testing.assert_close(overlap(a, b), overlap(a.double(), b.double()).float())
    assert detection.nms(torch.cat([a, b]), torch.tensor([0.9, 0.8])).tolist() == [0]
    assert area(a).item() == 304**2
    some, other, t = ((4 * some_boxes(20, seed)).to(dtype) for seed in range(3))
    t, scores = t / 256, torch.linspace(0.1, 0.9, 20).to(dtype)
    for function in (
        lambda to: detection.clip(to(some), (235, 299)),
        lambda to: detection.encode_boxes(to(some), to(other)),
        lambda to: detection.decode_boxes(to(t), to(other)),
        lambda to: detection.soft_nms(to(some), to(scores))[1],
    ):
        found, expected = function(lambda x: x), function(lambda x: x.double())
        torch.testing.assert_close(found, expected.float(), atol=1e-4, rtol=1e-5)


def test_soft_nms_takes_no_box_twice():
    """However little is left of the others: −∞ times a factor of 0 is NaN."""
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9], [20, 20, 29, 29], [20, 20, 29, 29]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    for harsh in ({"kind": "linear"}, {"sigma": 0.005}):
        indices, lowered = detection.soft_nms(boxes, scores, minimum=0.0, **harsh)
        assert sorted(indices.tolist()) == [0, 1, 2, 3] and not lowered.isnan().any()
    for bad in ({"minimum": math.nan}, {"scores": torch.tensor([4, 3, 2, 1])}):
        with pytest.raises(ValueError, match="a minimum that is a number, and scores as floats"):
            detection.soft_nms(boxes, **{"scores": scores} | bad)


def test_random_squares_find_objects_behind_padding_and_do_without():
    images, chance = torch.rand(40, 3, 64, 64), rng(0)
    vary = detection.random_squares(16, zoom=(1.0, 1.0))
    boxes = torch.tensor([[0.0, 0, 0, 0], [40, 40, 48, 48]]).expand(40, -1, -1)
    _, _, labels = vary(images, boxes, torch.tensor([[-1, 2]]).expand(40, -1), chance)
    assert (labels[:, 0] == -1).all() and (labels[:, 1] == 2).float().mean() > 0.8
    squares, none, labels = vary(images, boxes[:, :0], torch.zeros(40, 0, dtype=torch.int64), chance)
    assert squares.shape == (40, 3, 16, 16) and none.shape == (40, 0, 4) and labels.shape == (40, 0)


def stripes(B, H, W):
    """Images whose pixels change by a quarter for each pixel of a shift, along either axis; float64."""
    x, y = torch.arange(W, dtype=torch.float64), torch.arange(H, dtype=torch.float64)[:, None]
    return (0.5 + 0.25 * (torch.sin(x / 2) + torch.sin(y / 2))).expand(B, 3, H, W)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mixed", [False, True])
def test_random_squares_are_where_float64_has_them(dtype, mixed, device):
    images = stripes(8, 200, 301).to(device, dtype)
    boxes = (10 + 3 * some_boxes(24)).view(8, 3, 4).to(device)
    labels = torch.zeros(8, 3, dtype=torch.int64, device=device)
    vary = detection.random_squares(160, zoom=(0.5, 1.5))
    expected, where, kept = vary(images.double(), boxes, labels, rng(1))
    with torch.autocast(device, torch.bfloat16, enabled=mixed):
        squares, moved, still = vary(images, boxes.float(), labels, rng(1))
    assert squares.dtype == dtype and moved.dtype == torch.float32 and torch.equal(kept, still)
    rounding = {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 5e-3}[dtype]  # of pixels; 1 px would be 0.25
    assert (squares.double() - expected).abs().max() < rounding
    torch.testing.assert_close(moved.double(), where, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.uint8])
def test_boxes_of_any_type_move_as_those_of_float64(dtype):
    boxes = torch.tensor([[[1, 3, 8, 250], [100, 0, 128, 7]]]).to(dtype)
    images, labels = torch.rand(1, 3, 288, 299), torch.tensor([[1, 0]])
    for vary in (detection.mirrored, detection.random_squares(288, zoom=(0.9, 1.1), seen=0.1)):
        for seed in range(4):
            _, moved, kept = vary(images, boxes, labels, rng(seed))
            _, expected, still = vary(images, boxes.double(), labels, rng(seed))
            torch.testing.assert_close(moved, expected.float(), atol=1e-4, rtol=0)
            assert torch.equal(kept, still)
    heatmap, near, height = detection.targets(boxes, labels, 2, (288, 299))
    expected, there, peak = detection.targets(boxes.double(), labels, 2, (288, 299))
    torch.testing.assert_close(heatmap, expected.float())
    torch.testing.assert_close(height, peak.float())
    seen = (height > 0.1)[:, None].expand_as(near)  # where the losses look
    torch.testing.assert_close(near[seen], there[seen].float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cells_far_from_the_corner_keep_their_place_in_half(dtype):
    regressed = torch.randn(1, 4, 2, 300, generator=rng()).to(dtype)
    torch.testing.assert_close(model.to_boxes(regressed), model.to_boxes(regressed.double()).float())


def test_random_squares_refuse_what_they_cannot_do():
    for zoom in ((0.0, 1.0), (2.0, 1.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="zoom"):
            detection.random_squares(16, zoom)
    with pytest.raises(TypeError, match="images as floats, got torch.uint8"):
        nothing = torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.int64)
        detection.random_squares(16, (1.0, 1.0))(torch.zeros(1, 3, 9, 9, dtype=torch.uint8), *nothing, rng())


def test_a_training_step_looks_at_no_value():
    """Who looks at a value makes a GPU wait; on the device "meta", which has none, it is an error."""
    meta = torch.device("meta")
    detector = tiny().to(meta)
    images, boxes = torch.rand(2, 3, 40, 50, device=meta), torch.zeros(2, 3, 4, device=meta)
    labels, chance = torch.zeros(2, 3, dtype=torch.int64, device=meta), rng()
    for vary in (detection.mirrored, detection.random_squares(32, zoom=(0.5, 1.0))):
        vary(images, boxes, labels, chance)
    losses = detection.detection_losses(detector(images[..., :32, :48]), boxes, labels, (32, 48))
    sum(losses.values()).backward()
    with pytest.raises(RuntimeError):
        detection.giou(boxes, boxes)  # which does look


def test_bytes_are_no_images():
    """0 … 255 would count as a very bright image, or wrap around."""
    nothing = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(TypeError, match="floating-point tensor .* got torch.uint8"):
        detection.DetectionDataset([torch.full((3, 8, 8), 200, dtype=torch.uint8)], [nothing])
    with pytest.raises(ValueError, match=r"images in \[0, 1\], .*got values from 200 to 200; is it x / 255"):
        detection.DetectionDataset([torch.full((3, 8, 8), 200.0)], [nothing])
    with pytest.raises(TypeError, match=r"in \[0, 1\], got torch.uint8"):
        detection.detect(detection.Detector(2).eval(), torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    overshot = detection.DetectionDataset([torch.tensor([-0.0005, 1.0005]).expand(3, 2, 2)], [nothing])
    assert overshot.images.unique().tolist() == [0, 255]


@pytest.mark.parametrize("low, high, missing", [(0, 255, "x / 255"), (-1, 1, "(x + 1) / 2")])
def test_values_out_of_range_are_refused(low, high, missing):
    """As other tutorials and files have them. In training, only the first batch is looked at."""
    images = low + (high - low) * uniform(2, 3, 32, 48, dtype=torch.float32)
    detector, (boxes, labels) = tiny().eval(), some_objects()
    told = rf"images in \[0, 1\], .*{re.escape(missing)}"
    with pytest.raises(ValueError, match=told):
        detection.detect(detector, images)
    with pytest.raises(ValueError, match=told):
        model.Pretrained(torch.nn.Identity(), ("person",))(images)
    step = detection.detection_step(detector, torch.optim.SGD(detector.parameters(), 0.0), rng())
    with pytest.raises(ValueError, match=told):
        step((images, boxes, labels))
    step((images.clamp(0, 1), boxes, labels))
    step((images, boxes, labels))  # not looked at: a GPU would wait


# The detector


def some_objects():
    """Two images of 32 × 48: two objects of different classes in one, none in the other."""
    boxes = torch.tensor([[4.0, 6, 20, 26], [24, 8, 40, 16]])
    nothing = Objects(boxes[:0], torch.zeros(0, dtype=torch.int64))
    return detection.padded([Objects(boxes, torch.tensor([2, 0])), nothing])


def tiny(classes=3, seed=0):
    torch.manual_seed(seed)
    return detection.Detector(classes, model.SmallBackbone((8, 8, 16)), width=8)


def test_targets_are_the_bumps_of_a_slow_loop():
    boxes, labels = some_objects()
    heatmap, near, height = detection.targets(boxes, labels, 3, (32, 48))
    assert heatmap.shape == (2, 3, 8, 12) and near.shape == (2, 4, 8, 12) and height.shape == (2, 8, 12)
    expected = torch.zeros(3, 8, 12)
    for (x1, y1, x2, y2), label in zip(boxes[0].tolist(), labels[0].tolist(), strict=True):
        column, row = int((x1 + x2) / 8), int((y1 + y2) / 8)
        for i in range(8):
            for j in range(12):
                dx, dy = (j - column) / max(0.5, 0.025 * (x2 - x1)), (i - row) / max(0.5, 0.025 * (y2 - y1))
                expected[label, i, j] = max(expected[label, i, j], math.exp(-(dx**2 + dy**2) / 2))
    torch.testing.assert_close(heatmap[0], expected)
    assert (heatmap[0] == 1).nonzero().tolist() == [[0, 3, 8], [2, 4, 3]], "exactly one in the cell of each centre"
    torch.testing.assert_close(height[0], expected.amax(0))
    assert near[0, :, 4, 3].tolist() == boxes[0, 0].tolist() and near[0, :, 3, 9].tolist() == boxes[0, 1].tolist()
    assert (heatmap[1] == 0).all() and (height[1] == 0).all()


def test_targets_without_any_object_and_at_the_border():
    none = torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64)
    heatmap, near, height = detection.targets(*none, 5, (16, 16))
    assert heatmap.shape == (2, 5, 4, 4) and near.shape == (2, 4, 4, 4) and not heatmap.any() and not height.any()
    corner = torch.tensor([[[14.0, 14, 18, 18]]])  # its centre is on the corner of the image
    heatmap, *_ = detection.targets(corner, torch.zeros(1, 1, dtype=torch.int64), 1, (16, 16))
    assert (heatmap == 1).nonzero().tolist() == [[0, 0, 3, 3]]


def test_focal_loss_equals_its_definition_and_does_not_overflow():
    chance = rng(0)
    logits = 3 * torch.randn(2, 3, 5, 5, generator=chance, dtype=torch.float64)
    heatmap = torch.rand(2, 3, 5, 5, generator=chance, dtype=torch.float64)
    heatmap[0, 0, 0, 0] = heatmap[1, 2, 3, 4] = 1.0
    p, expected = logits.sigmoid(), 0.0
    for q, y in zip(p.flatten().tolist(), heatmap.flatten().tolist(), strict=True):
        expected -= (1 - q) ** 2 * math.log(q) if y == 1 else (1 - y) ** 4 * q**2 * math.log(1 - q)
    assert float(detection.focal_loss(logits, heatmap)) == pytest.approx(expected)
    # Where there are only ones and zeros it is torchvision's, without balance of the classes.
    hard = (heatmap > 0.5).double()
    theirs = torchvision.ops.sigmoid_focal_loss(logits, hard, alpha=-1, gamma=2, reduction="sum")
    torch.testing.assert_close(detection.focal_loss(logits, hard), theirs)
    far = torch.tensor([1e4, -1e4], dtype=torch.float64, requires_grad=True)
    loss = detection.focal_loss(far, torch.tensor([0.0, 1.0], dtype=torch.float64))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(2e4) and far.grad.isfinite().all()
    many = torch.zeros(1, 2, 512, 512)  # whose sum is beyond float16
    halved = detection.focal_loss(many.half(), many.half())
    torch.testing.assert_close(halved, detection.focal_loss(many, many))
    small = logits[:1, :1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: detection.focal_loss(x, heatmap[:1, :1]), small)


def perfect(boxes, labels, classes, size):
    """What a network would say that knows everything."""
    heatmap, near, _ = detection.targets(boxes, labels, classes, size)
    return model.Prediction(torch.logit(heatmap, eps=1e-6), near)


def test_decoding_returns_what_the_targets_say():
    boxes, labels = some_objects()
    first, second = detection.objects(perfect(boxes, labels, 3, (32, 48)))
    assert len(second) == 0
    order = first.labels.argsort(descending=True)
    torch.testing.assert_close(first.shapes[order], boxes[0])
    assert first.labels[order].tolist() == labels[0].tolist()
    losses = detection.detection_losses(perfect(boxes, labels, 3, (32, 48)), boxes, labels, (32, 48))
    assert 0 <= losses["heatmap"] < 0.02 and abs(losses["box"]) < 1e-6


def test_decoding_of_scenes_is_perfect_for_all_they_hold():
    """So a grid of 16 × 16 loses nothing: no two centres fall into one cell and class."""
    images = scenes.Scenes(60, 64, seed=3).render_all()
    truth = [Objects(p.boxes, p.labels) for p in images]
    found = detection.objects(perfect(*detection.padded(truth), len(scenes.THINGS), (64, 64)), suppress=None)
    assert detection.evaluate(found, truth).summary()["AP"] > 0.99


def test_peaks_and_limits_of_decoding():
    heatmap = torch.full((1, 1, 4, 4), -9.0)
    heatmap[0, 0, 0, 0], heatmap[0, 0, 0, 1], heatmap[0, 0, 3, 3] = 2.0, 1.0, 0.0
    boxes = torch.tensor([0.0, 0, 8, 8]).view(1, 4, 1, 1).expand(1, 4, 4, 4)
    assert detection.peaks(heatmap)[0, 0].nonzero().tolist()[0] == [0, 0] and not detection.peaks(heatmap)[0, 0, 0, 1]
    both = model.Prediction(heatmap, boxes)
    assert len(detection.objects(both, suppress=None)[0]) == 2
    (one,) = detection.objects(both)
    torch.testing.assert_close(one.scores, torch.sigmoid(torch.tensor([2.0])))
    assert len(detection.objects(both, suppress=None, most=1)[0]) == 1
    assert len(detection.objects(both, minimum=0.95)[0]) == 0
    outside = model.Prediction(heatmap, boxes + 12)
    assert detection.objects(outside)[0].shapes[0].tolist() == [12, 12, 16, 16], "cut at the border"


def test_cells_regress_offset_and_size():
    regressed = torch.zeros(1, 4, 2, 3)
    regressed[0, :, 1, 2] = torch.tensor([0.25, -0.5, math.log(3), math.log(2)])
    found = model.to_boxes(regressed)
    assert found[0, :, 0, 0].tolist() == [0, 0, 4, 4], "a cell that knows nothing answers with itself"
    torch.testing.assert_close(found[0, :, 1, 2], torch.tensor([11 - 6, 4 - 4, 11 + 6, 4 + 4]).float())
    assert model.to_boxes(torch.full((1, 4, 1, 1), 99.0)).isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
def test_network_gives_maps_of_a_quarter_of_the_size(device):
    for detector in (tiny(), detection.Detector(2), detection.Detector(1, detection.PerceptualBackbone())):
        detector = detector.to(device).eval()
        side = detector.divisor
        images = torch.rand(2, 3, side, 2 * side, device=device)
        predicted = detector(images)
        assert predicted.heatmap.shape == (2, detector.classes, side // 4, side // 2)
        assert predicted.boxes.shape == (2, 4, side // 4, side // 2)
        assert (predicted.heatmap.sigmoid() - 0.1).abs().max() < 0.09, "it begins with the rarity of centres"
        with pytest.raises(ValueError, match=rf"multiples of {side}, got \(2, 3, {side}, {side + 1}\)"):
            detector(torch.rand(2, 3, side, side + 1, device=device))


def test_detection_does_not_depend_on_the_batch_and_fills_up():
    detector = tiny().eval()
    with torch.no_grad():
        detector.last.bias[:3] = 0.0
    images = torch.rand(3, 3, 21, 30)
    together = detection.detect(detector, images)
    alone = [detection.detect(detector, image[None])[0] for image in images]
    assert len(together) == 3 and all(len(found) > 0 for found in together)
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a.shapes, b.shapes, atol=1e-4, rtol=0)
        assert (a.shapes >= 0).all() and (a.shapes[:, 2] <= 30).all() and (a.shapes[:, 3] <= 21).all()
    with pytest.raises(ValueError, match="eval"):
        detection.detect(detector.train(), images)
    with pytest.raises(ValueError, match="one class or more"):
        detection.Detector(0)


def test_targets_refuse_what_does_not_fit():
    boxes, labels = some_objects()
    with pytest.raises(ValueError, match="labels from -1 to 1, got -1 to 2"):
        detection.targets(boxes, labels, 2, (32, 48))
    with pytest.raises(ValueError, match=r"boxes \(B, N, 4\)"):
        detection.targets(boxes[0], labels, 3, (32, 48))


# Training


def marked(boxes, size):
    """Images (B, 3, H, W) that are white inside of boxes (B, N, 4) and black outside."""
    H, W = size
    x, y = torch.arange(W) + 0.5, (torch.arange(H) + 0.5)[:, None]
    x1, y1, x2, y2 = boxes[..., None, None].unbind(2)
    return ((x > x1) & (x < x2) & (y > y1) & (y < y2)).any(1)[:, None].float().expand(-1, 3, -1, -1)


def test_mirrored_boxes_stay_on_their_objects():
    boxes, labels = some_objects()
    boxes, labels = boxes[:1].expand(8, -1, -1), labels[:1].expand(8, -1)
    images = marked(boxes, (32, 48))
    turned, moved, same = detection.mirrored(images, boxes, labels, rng(0))
    changed = (turned != images).flatten(1).any(1)
    assert 0 < changed.sum() < 8 and torch.equal(same, labels)
    assert torch.equal(marked(moved, (32, 48)), turned)
    assert torch.equal((moved != boxes).flatten(1).any(1), changed)


def test_random_squares_keep_boxes_on_their_objects():
    corner = torch.rand(40, 1, 2, generator=rng(1)) * 40
    boxes = torch.cat([corner, corner + 30], 2)
    labels = torch.zeros(40, 1, dtype=torch.int64)
    images = marked(boxes, (80, 96))
    vary = detection.random_squares(64, zoom=(0.6, 1.6), seen=0.5)
    squares, moved, kept = vary(images, boxes, labels, rng(2))
    assert squares.shape == (40, 3, 64, 64) and (moved >= 0).all() and (moved <= 64).all()
    assert (kept == 0).sum() > 20 and ((kept == 0) | (kept == PADDING)).all()
    white = (squares[:, 0] > 0.75).float().flatten(1).sum(1)  # grey is what is outside of the image
    torch.testing.assert_close(white, area(moved)[:, 0], atol=130.0, rtol=0)
    inside = torch.stack(
        [s[0][marked(m[None], (64, 64))[0, 0] > 0].mean() for s, m in zip(squares, moved, strict=True)]
    )
    assert inside.min() > 0.9
    sides = (moved[..., 2] - moved[..., 0])[kept == 0]
    assert sides.min() < 24 and sides.max() > 40, "smaller and larger"


def test_an_object_that_is_hardly_left_no_longer_counts():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [90, 90, 100, 100]]])
    vary = detection.random_squares(16, zoom=(1.0, 1.0))
    for seed in range(10):
        _, moved, kept = vary(torch.rand(1, 3, 100, 100), boxes, torch.tensor([[1, 2]]), rng(seed))
        assert kept[0].tolist() in ([1, -1], [-1, 2]), "the squares are too small for both"
        assert (area(moved)[kept < 0] == 0).all()


def test_colours_change_within_range_and_by_image():
    images = torch.rand(6, 3, 8, 8)
    varied = detection.recoloured(images, rng(0))
    assert varied.min() >= 0 and varied.max() <= 1 and (varied != images).flatten(1).any(1).all()
    torch.testing.assert_close(detection.recoloured(images, torch.Generator(), strength=0.0), images)


def scene_data(n, seed):
    drawn_scenes = scenes.Scenes(n, 64, seed).render_all()
    return detection.DetectionDataset(
        [p.image for p in drawn_scenes], [Objects(p.boxes, p.labels) for p in drawn_scenes]
    )


def test_the_data_set_gives_batches_and_refuses_a_mixture():
    data = scene_data(6, 0)
    images, boxes, labels = data[torch.tensor([4, 1])]
    assert images.shape == (2, 3, 64, 64) and images.max() <= 1
    n = int((labels[0] >= 0).sum())
    assert torch.equal(boxes[0, :n], data.truth[4].shapes) and (boxes[0, n:] == 0).all()
    assert torch.equal(labels[0, :n], data.truth[4].labels) and len(data) == 6
    with pytest.raises(ValueError, match="images of one size"):
        detection.DetectionDataset([torch.rand(3, 8, 8), torch.rand(3, 8, 9)], data.truth[:2])
    with pytest.raises(ValueError, match="1 images"):
        detection.DetectionDataset([torch.rand(3, 8, 8)], data.truth[:2])
    with pytest.raises(ValueError, match="0 images"):
        detection.DetectionDataset([], [])


def test_the_data_set_is_checked_once_and_kept_exactly():
    box, one = np.array([[1.0, 2, 300, 258]], np.float16), np.array([3], np.int32)
    data = detection.DetectionDataset([torch.full((3, 8, 8), 0.5, dtype=torch.bfloat16)], [Objects(box, one)])
    images, boxes, labels = data[torch.tensor([0])]
    assert images.dtype == boxes.dtype == torch.float32 and labels.dtype == torch.int64
    assert boxes.tolist() == [[[1, 2, 300, 258]]] and labels.tolist() == [[3]]
    image, areas = torch.rand(3, 8, 8), torch.ones(1)
    for bad in ([[1.0, 2, math.nan, 4]], [[5.0, 5, 2, 2]]):
        with pytest.raises(ValueError, match="boxes must be"):
            detection.DetectionDataset([image], [Objects(torch.tensor(bad), one, areas=areas)])
    with pytest.raises(ValueError, match="labels from 0, got -1"):  # it would count as padding
        detection.DetectionDataset([image], [Objects(torch.tensor(box), torch.tensor([-1]))])
    with pytest.raises(ValueError, match=r"in \[0, 1\], without NaN; got values from nan"):
        detection.DetectionDataset([torch.full((3, 8, 8), math.nan)], [Objects(box, one)])


def test_training_finds_what_it_was_shown():
    data = scene_data(8, 1)
    torch.manual_seed(0)
    detector = detection.Detector(len(scenes.THINGS), model.SmallBackbone((16, 16, 32, 32)), width=32)
    optimiser, schedule = detection.optimiser_and_schedule(detector, 120, 5e-3)
    chance = rng(0)
    step = detection.detection_step(detector, optimiser, chance, vary=None, schedule=schedule)
    parts = {"detector": detector, "optimiser": optimiser, "schedule": schedule, "rng": chance}
    loop = Loop(step, data, steps=120, batch_size=8, stateful=parts)
    history = loop.run()
    assert history["heatmap"][-1] < 0.2 * history["heatmap"][0] and history["box"][-1] < 0.2
    found = detection.detect(detector.eval(), data[torch.arange(8)][0])
    assert detection.evaluate(found, data.truth).summary()["AP50"] > 0.9


def test_an_image_without_objects_can_be_learned_from():
    boxes, labels = some_objects()
    detector = tiny()
    predicted = detector(torch.rand(1, 3, 32, 48))
    losses = detection.detection_losses(predicted, boxes[1:], labels[1:], (32, 48))
    sum(losses.values()).backward()
    assert losses["box"] == 0 and losses["heatmap"] > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())


def test_perceptual_backbone_goes_on_from_the_embedded_network():
    embedded = zoo.load("features", device="cpu")
    backbone = detection.PerceptualBackbone().take_up(embedded.state_dict())
    images = torch.rand(1, 3, 64, 64)
    theirs = embedded.extract(images, ("relu3_2", "relu4_1"))
    found = backbone.eval()(images)
    torch.testing.assert_close(found[0], theirs["relu3_2"])
    torch.testing.assert_close(found[1], theirs["relu4_1"])
    assert [f.shape[-1] for f in found] == [16, 8, 4, 2] and [f.shape[1] for f in found] == list(backbone.widths)
    learning = {name for name, p in backbone.vgg.named_parameters() if p.requires_grad}
    assert all("convolutions.3" in name or "convolutions.4" in name for name in learning) and len(learning) == 6


# What ships, what torchvision has, and the pedestrians


def test_pretrained_gives_objects_with_names(monkeypatch):
    """With random weights in place of the download: torchvision's own network, read as ours are."""
    build = model.models.fasterrcnn_mobilenet_v3_large_320_fpn
    torch.manual_seed(0)
    monkeypatch.setattr(datasets, "fetch", lambda *_: None)
    monkeypatch.setattr(
        model.models,
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        lambda weights: build(weights=None, weights_backbone=None, box_score_thresh=0.0),
    )
    detector = zoo.load("faster_rcnn")
    assert detector.names[1] == "person" and len(detector.names) == 91
    found = detector(torch.rand(2, 3, 60, 80), minimum=0.0)
    assert len(found) == 2
    for each in found:
        assert len(each) > 0 and (each.scores.diff() <= 0).all() and each.labels.max() < 91
        assert (each.shapes[:, 2] <= 80).all() and (each.shapes[:, 3] <= 60).all()
    assert all(len(each) == 0 for each in detector(torch.rand(1, 3, 60, 80), minimum=1.1))


@pytest.mark.skipif(not HAS_PEDESTRIANS, reason="needs pennfudan in COURSE_DATA")
def test_pedestrians_are_those_of_the_annotations():
    test = detection.load_pedestrians("test")
    assert len(test) == 35 and [p.name for p in test] == list(pedestrians.HELD_OUT)
    for photograph in test[::9]:
        text = (PEDESTRIANS / "Annotation" / f"{photograph.name}.txt").read_text(errors="replace")
        numbers = re.findall(r"\((\d+), (\d+)\) - \((\d+), (\d+)\)", text)
        true = torch.tensor([[float(n) for n in box] for box in numbers])
        true[:, :2] -= 1  # theirs count pixels from 1, and name the last one
        assert (true - photograph.boxes).abs().max() <= 3
        small = photograph.resized(96)
        assert min(small.image.shape[1:]) == 96
        tight = scenes.tight_boxes(small.masks)
        assert (tight - small.boxes).abs().max() < 1.6
        assert len(small.objects) == len(numbers) and (small.objects.areas <= area(small.boxes) + 1).all()
    with pytest.raises(ValueError, match="split of train, test; got 'val'"):
        detection.load_pedestrians("val")


def test_pedestrians_offline_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.delenv("COURSE_DATA", raising=False)
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    with pytest.raises(OfflineError, match="COURSE_OFFLINE forbids it; unset it, or put the unpacked archive at"):
        detection.load_pedestrians()


def test_a_folder_may_begin_with_a_tilde(monkeypatch, tmp_path):
    (tmp_path / "sets" / "pennfudan").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COURSE_DATA", "~/sets")
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "sets" / "pennfudan"))):
        detection.load_pedestrians()


def packed(path, count):
    """An archive as the authors': so many tiny images, with three people in the first and fewer masks than needed."""
    image, mask = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (40, 30)).save(image, "PNG")
    pixels = np.zeros((30, 40), np.uint8)
    pixels[5:20, 4:12], pixels[3:25, 20:29] = 1, 2
    Image.fromarray(pixels).save(mask, "PNG")
    with zipfile.ZipFile(path, "w") as archive:
        for name in pedestrians.NAMES[:count]:
            archive.writestr(f"PennFudanPed/PNGImages/{name}.png", image.getvalue())
            archive.writestr(f"PennFudanPed/PedMasks/{name}_mask.png", mask.getvalue())
            people = 423 - 2 * 169 if name == pedestrians.NAMES[0] else 2
            archive.writestr(f"PennFudanPed/Annotation/{name}.txt", "Bounding box for object\n" * people)
    return path


@pytest.fixture
def server(tmp_path, monkeypatch, cache):
    """A server on this machine that answers with the files of a list, one after the other; the last again and again."""
    answers, asked = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = answers[min(len(asked), len(answers) - 1)]
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    monkeypatch.delenv("COURSE_DATA", raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,)).start()
        monkeypatch.setattr(pedestrians, "URL", f"http://127.0.0.1:{running.server_port}/PennFudanPed.zip")
        yield answers, asked
        running.shutdown()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("archive") / "PennFudanPed.zip", 170).read_bytes()


def test_pedestrians_are_downloaded_checked_and_kept(server, archive, cache):
    answers, asked = server
    answers.append(archive)
    test = detection.load_pedestrians("test")
    assert len(test) == 35 and test[0].boxes.tolist() == [[4, 5, 12, 20], [20, 3, 29, 25]]
    assert len(detection.load_pedestrians("train")) == 135
    assert len(asked) == 1, "the second time there is nothing to fetch"
    assert [path.name for path in cache.iterdir()] == ["PennFudanPed"], "and nothing else is kept"
    data = detection.on_canvas(test[:3], 24)
    assert data.images.shape == (3, 3, 24, 32) and data.labels.tolist() == [[0, 0]] * 3


def changed(archive):
    """With one other byte in the pixels of the last image."""
    at = archive.rindex(b"IDAT")
    return archive[: at + 8] + bytes([archive[at + 8] ^ 255]) + archive[at + 9 :]


@pytest.mark.parametrize(
    "damage",
    [lambda a: a[: len(a) // 2], lambda a: b"", lambda a: b"<html>Log in first</html>", changed, lambda a: a[:-1]],
    ids=["half", "nothing", "another page", "a byte", "its end"],
)
def test_a_damaged_archive_is_fetched_again(server, archive, cache, damage):
    answers, asked = server
    answers += [damage(archive), archive]
    assert len(detection.load_pedestrians("test")) == 35 and len(asked) == 2
    assert [path.name for path in cache.iterdir()] == ["PennFudanPed"]


def test_an_archive_that_stays_damaged_says_so_and_leaves_nothing(server, cache, tmp_path):
    answers, asked = server
    answers.append(packed(tmp_path / "few.zip", 5).read_bytes())
    for _ in range(2):
        with pytest.raises(DownloadError, match=r"as many masks and 423 people, got \(5, 5, 93\).*put the unpacked"):
            detection.load_pedestrians()
        assert not list(cache.iterdir())
    assert len(asked) == 4


def test_no_connection_says_so(server, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(pedestrians, "URL", f"http://127.0.0.1:{free.getsockname()[1]}/PennFudanPed.zip")
        with pytest.raises(OfflineError, match="cannot download http.*no connection.*check it, or put the unpacked"):
            detection.load_pedestrians()


def test_several_processes_may_fetch_at_once(server, archive, cache, monkeypatch):
    """Each unpacks in a folder of its own; whoever comes second finds the whole one, and keeps it."""
    answers, asked = server
    answers.append(archive)
    fetch, together = datasets.fetch, threading.Barrier(3)

    def wait(*arguments, **options):
        path = fetch(*arguments, **options)
        together.wait()
        return path

    monkeypatch.setattr(datasets, "fetch", wait)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(detection.load_pedestrians, ["test"] * 3))
    assert [len(test) for test in found] == [35] * 3 and len(asked) == 3
    assert [path.name for path in cache.iterdir()] == ["PennFudanPed"]


def test_people_without_a_pixel_are_dropped():
    """A wire 1 px wide is no pixel wide in an image a quarter as large."""
    masks = torch.zeros(3, 80, 100, dtype=torch.bool)
    masks[0, 10:60, 20:40], masks[1, 0:80, 70], masks[2, 70:74, 4:8] = True, True, True
    street = pedestrians.Photograph("street", torch.rand(3, 80, 100), scenes.tight_boxes(masks), masks)
    small = street.resized(20)
    assert small.masks.shape == (2, 20, 25) and small.masks.flatten(1).any(1).all()
    torch.testing.assert_close(small.boxes, street.boxes[[0, 2]] / 4)
    assert len(small.objects) == 2 and (small.objects.areas > 0).all()
    none = street.resized(16).resized(2)
    assert len(none.objects) == 0 and none.boxes.shape == (0, 4)
    assert detection.on_canvas([small, none], 20).labels.tolist() == [[0, 0], [-1, -1]]


def test_a_street_without_people_can_be_read(tmp_path):
    for folder, name in (("PNGImages", "empty.png"), ("PedMasks", "empty_mask.png")):
        (tmp_path / folder).mkdir()
        Image.new("L", (40, 30)).save(tmp_path / folder / name)
    street = pedestrians._read(tmp_path, "empty")
    assert len(street.objects) == 0 and street.masks.shape == (0, 30, 40)
    with pytest.raises(FileNotFoundError, match="no image other"):
        pedestrians._read(tmp_path, "other")


@pytest.mark.skipif(not HAS_PEDESTRIANS, reason="needs pennfudan in COURSE_DATA")
def test_every_person_of_a_small_photograph_has_pixels():
    photographs = detection.load_pedestrians("test")
    small = [photograph.resized(64) for photograph in photographs]
    assert all(p.masks.flatten(1).any(1).all() and len(p.masks) == len(p.boxes) for p in small)
    assert sum(len(p.boxes) for p in photographs) - sum(len(p.boxes) for p in small) == 1, "in FudanPed00063"


# The recipe


@pytest.fixture
def recipe():
    return importlib.import_module("recipes.detection")


def test_the_recipe_runs(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    scores = recipe.main(["--quick", "--steps", "4", "--json", "scores.json"])["scenes"]
    assert {"AP", "AP50", "AR 100"} <= scores.keys() and (tmp_path / "scores.json").is_file()
    assert list((tmp_path / "build").glob("detector_scenes_quick_*.png"))
    (saved,) = (tmp_path / "build").glob("*.safetensors")
    assert saved.stat().st_size < 3_000_000
    checkpoints.restore(zoo.build("detector_scenes"), saved)


@pytest.mark.skipif(not HAS_PEDESTRIANS, reason="needs pennfudan in COURSE_DATA")
def test_the_recipe_of_the_pedestrians_runs(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    recipe.main(["--quick", "--steps", "2", "--model", "pedestrians"])
    (saved,) = (tmp_path / "build").glob("*.safetensors")
    assert saved.stat().st_size < 3_000_000
    checkpoints.restore(zoo.build("detector_pedestrians"), saved)


# The shipped weights


@pytest.mark.parametrize("name", ["detector_scenes", "detector_pedestrians"])
def test_shipped_detectors_are_small_and_tell_their_history(name):
    path = checkpoints.folder() / f"{name}.safetensors"
    assert path.stat().st_size <= 3_000_000
    _, facts = checkpoints.load(name)
    assert facts["recipe"].startswith("python recipes/detection.py") and float(facts["seconds"]) > 0
    detector = zoo.load(name)
    assert not detector.training and not any(p.requires_grad for p in detector.parameters())


def test_the_shipped_detector_of_scenes_keeps_its_score():
    held_out = scene_data(100, seed=77)
    found = detection.detect(zoo.load("detector_scenes"), held_out.images.float() / 255)
    summary = detection.evaluate(found, held_out.truth).summary()
    assert summary["AP50"] > 0.94 and summary["AP"] > 0.68  # 0.974 and 0.745 on 500 scenes


@pytest.mark.skipif(not HAS_PEDESTRIANS, reason="needs pennfudan in COURSE_DATA")
def test_the_shipped_detector_of_pedestrians_keeps_its_score():
    small = [p.resized(detection.PEDESTRIAN_SIDE) for p in detection.load_pedestrians("test")]
    detector = zoo.load("detector_pedestrians")
    found = [detection.detect(detector, p.image[None])[0] for p in small]
    assert detection.evaluate(found, [p.objects for p in small]).summary()["AP50"] > 0.8
