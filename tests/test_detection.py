"""Boxes, suppression and anchors against torchvision.ops; the detector's targets, losses, decoding and training."""

import math

import pytest
import torch
import torchvision.ops
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder, Matcher

from course_lib import detection

drawn = settings(max_examples=80, deadline=None, derandomize=True, database=None)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@st.composite
def boxes(draw, most=8, least=0):
    """(N, 4) xyxy float64 on a coarse grid, so that ties, equal, touching and empty boxes are frequent."""
    n = draw(st.integers(least, most))
    numbers = st.lists(st.integers(-4, 12), min_size=4 * n, max_size=4 * n)
    corners = torch.tensor(draw(numbers), dtype=torch.float64).view(n, 2, 2) / draw(st.sampled_from([1, 3]))
    return torch.cat([corners.amin(1), corners.amax(1)], 1)


def uniform(n, seed=0, far=60.0):
    rng = torch.Generator().manual_seed(seed)
    corner = far * torch.rand(n, 2, generator=rng, dtype=torch.float64)
    return torch.cat([corner, corner + 2 + 20 * torch.rand(n, 2, generator=rng, dtype=torch.float64)], 1)


# Boxes


@drawn
@given(boxes(), st.sampled_from(detection.FORMATS), st.sampled_from(detection.FORMATS))
def test_convert_equals_torchvision_and_returns(given_boxes, source, target):
    start = torchvision.ops.box_convert(given_boxes, "xyxy", source)
    found = detection.convert(start, source, target)
    torch.testing.assert_close(found, torchvision.ops.box_convert(start, source, target))
    torch.testing.assert_close(detection.convert(found, target, source), start)


@drawn
@given(boxes(), boxes())
def test_overlaps_equal_torchvision(a, b):
    expected = torchvision.ops.box_iou(a, b).nan_to_num(0)  # 0/0 for two empty boxes is theirs
    found = detection.pairwise(detection.iou, a, b)
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=0)
    nothing = torch.zeros(len(b), dtype=torch.bool)
    torch.testing.assert_close(detection.crowd_iou(a, b, nothing), expected, atol=1e-14, rtol=0)
    torch.testing.assert_close(detection.area(a), torchvision.ops.box_area(a))
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
    a, b = uniform(24).view(2, 3, 4, 4), uniform(30, 1).view(2, 3, 5, 4)
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
    a, b = uniform(6, far=10).requires_grad_(), uniform(6, 1, far=10).requires_grad_()
    assert torch.autograd.gradcheck(detection.giou, (a, b))
    assert torch.autograd.gradcheck(detection.iou, (a, b))
    empty = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    for overlap in (detection.iou, detection.giou):
        (gradient,) = torch.autograd.grad(overlap(empty, empty.flip(0)).sum(), empty)
        assert gradient.isfinite().all()


def test_crowds_forgive_what_lies_inside():
    crowd, inside, half = torch.tensor([[0.0, 0, 10, 10], [2, 2, 4, 4], [8, 0, 12, 10]], dtype=torch.float64)
    found = detection.crowd_iou(torch.stack([inside, half]), crowd[None], torch.tensor([True]))
    assert found[:, 0].tolist() == [1.0, 0.5]


@pytest.mark.parametrize("function", [detection.check_boxes, detection.area, lambda b: detection.iou(b, b)])
def test_wrong_boxes_are_refused(function):
    with pytest.raises(ValueError, match=r"\(x, y, width, height\)\? Then convert"):
        function(torch.tensor([[10.0, 10, 30, 30], [50.0, 60, 20, 10]]))
    with pytest.raises(ValueError, match="NaN or infinity"):
        function(torch.tensor([[0.0, 0, math.nan, 1]]))
    with pytest.raises(ValueError, match=r"must be \(..., 4\), got \(2, 5\)"):
        function(torch.zeros(2, 5))
    with pytest.raises(TypeError, match=r"floating-point tensor .* got torch.int64"):
        function(torch.tensor([[0, 0, 1, 1]]))
    with pytest.raises(TypeError, match="got list"):
        function([[0.0, 0, 1, 1]])


def test_convert_refuses_what_it_cannot_know():
    with pytest.raises(ValueError, match="formats are xyxy, xywh, cxcywh; got 'yxyx'"):
        detection.convert(torch.zeros(1, 4), "yxyx", "xyxy")
    with pytest.raises(ValueError, match="widths and heights ≥ 0; got -20"):
        detection.convert(torch.tensor([[30.0, 30, 10, -20]]), "xywh", "xyxy")


# Suppression


@drawn
@given(boxes(most=12), st.integers(0, 99), st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.9, 1.0]), st.booleans())
def test_nms_equals_torchvision(given_boxes, seed, threshold, tied):
    rng = torch.Generator().manual_seed(seed)
    n = len(given_boxes)
    scores = torch.randint(4, (n,), generator=rng) / 4.0 if tied else torch.rand(n, generator=rng)
    scores = scores.double()
    expected = torchvision.ops.nms(given_boxes, scores, threshold)
    # torchvision's order of equal scores differs between releases: only the stable one is the same everywhere.
    order = scores.argsort(descending=True, stable=True)
    expected = order[torchvision.ops.nms(given_boxes[order], torch.arange(n, 0, -1).double(), threshold)]
    assert detection.nms(given_boxes, scores, threshold).tolist() == expected.tolist()
    labels = torch.randint(3, (n,), generator=rng)
    groups = [order[labels[order] == label] for label in range(3)]
    kept = {i for g in groups for i in g[detection.nms(given_boxes[g], scores[g], threshold)].tolist()}
    found = detection.nms(given_boxes, scores, threshold, labels)
    assert set(found.tolist()) == kept and (scores[found].diff() <= 0).all()


@pytest.mark.parametrize("far", [30, 100, 1000])
def test_nms_of_many_boxes_and_classes_equals_torchvision(far):
    given_boxes, rng = uniform(2000, far=far), torch.Generator().manual_seed(1)
    scores, labels = torch.rand(2000, generator=rng).double(), torch.randint(80, (2000,), generator=rng)
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
    rng = torch.Generator().manual_seed(seed)
    scores = torch.rand(len(given_boxes), generator=rng).double()
    labels = torch.randint(2 if classes else 1, (len(given_boxes),), generator=rng)
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
        ((torch.tensor([[9.0, 9, 1, 1]]), torch.zeros(1)), "Then convert"),
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


# Anchors


def test_anchor_grid_covers_the_picture():
    grid = detection.anchor_grid((2, 3), 8, (16, 32), (0.5, 1.0, 2.0))
    assert grid.shape == (2 * 3 * 6, 4)
    torch.testing.assert_close(detection.area(grid), torch.tensor([256.0] * 3 + [1024.0] * 3).repeat(6))
    centres = detection.convert(grid, "xyxy", "cxcywh")
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
    true = uniform(20, far=40).float()
    found = detection.match_anchors(grid, true, high=0.99, low=0.5)
    overlaps = detection.pairwise(detection.iou, true, grid)
    assert (found[overlaps.argmax(1)] >= 0).all()
    with pytest.raises(ValueError, match="0 ≤ low ≤ high"):
        detection.match_anchors(grid, true, high=0.3, low=0.5)


@drawn
@given(st.integers(0, 999))
def test_encoding_equals_torchvision_and_returns(seed):
    true, grid = uniform(7, seed), uniform(7, seed + 1)
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
    a, b = uniform(5).to(device, dtype), uniform(6, 1).to(device, dtype)
    scores = torch.linspace(0, 1, 5, device=device, dtype=dtype)
    crowd = torch.zeros(6, dtype=torch.bool, device=device)
    results = [
        detection.pairwise(detection.giou, a, b),
        detection.crowd_iou(a, b, crowd),
        detection.clip(a, (9, 9)),
        detection.convert(a, "xyxy", "cxcywh"),
        detection.soft_nms(a, scores)[1],
        detection.decode_boxes(detection.encode_boxes(a, b[:5]), b[:5]),
    ]
    assert all(result.dtype == dtype and result.device.type == device for result in results)
    assert detection.nms(a, scores).device.type == device
    assert detection.match_anchors(a, b).device.type == device
