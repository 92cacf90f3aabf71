"""Keypoints: encoding and decoding, crops, scores against pycocotools, the networks, and faces."""

import contextlib
import copy
import importlib
import io
import json
import math
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import skimage.transform
import torch
from conftest import normal, rng, uniform
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from course_lib import keypoints, scenes
from course_lib.base import checkpoints, datasets, plots, zoo
from course_lib.base.loop import Loop
from course_lib.detection import optimiser_and_schedule
from course_lib.keypoints.model import KEYPOINT_RCNN, Pretrained

DATA = Path(os.environ.get("COURSE_DATA") or os.devnull)
needs_faces = pytest.mark.skipif(not (DATA / "faces").is_dir(), reason="needs faces in COURSE_DATA")
each_decoder = pytest.mark.parametrize("method", keypoints.DECODERS)


def points_inside(n, margin, size=128, seed=0):
    """(n, 1, 2) float64, at least `margin` pixels from the border of a square."""
    return margin + (size - 2 * margin) * uniform(n, 1, 2, seed=seed)


# --- heatmaps: encoding


@pytest.mark.parametrize(
    ("size", "stride", "sigma"), [((32, 48), 4, 1.5), ((8, 8), 2, np.float32(0.7)), ((5, 7), 1, 3)]
)
def test_encoding_is_a_bump_around_the_point_itself(size, stride, sigma):
    points = 60 * uniform(2, 3, 2) - 6  # some outside of the image
    found = keypoints.encode(points, size, sigma, stride)
    H, W = size
    assert found.shape == (2, 3, H // stride, W // stride) and found.dtype == torch.float64
    for b in range(2):
        for k in range(3):
            x, y = points[b, k].tolist()
            for i in range(H // stride):
                for j in range(W // stride):
                    d2 = ((j + 0.5) - x / stride) ** 2 + ((i + 0.5) - y / stride) ** 2
                    assert abs(float(found[b, k, i, j]) - math.exp(-d2 / (2 * float(sigma) ** 2))) < 1e-6


def test_encoding_of_halves_and_odd_layouts_is_that_of_the_same_numbers():
    points = 30 * uniform(4, 2, 2)
    strided = points.mT.contiguous().mT
    torch.testing.assert_close(keypoints.encode(strided, (32, 32)), keypoints.encode(points, (32, 32)), rtol=0, atol=0)
    for dtype in (torch.bfloat16, torch.float16):
        half = points.to(dtype)
        found = keypoints.encode(half, (32, 32))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, keypoints.encode(half.float(), (32, 32)), rtol=0, atol=0)
    assert torch.autograd.gradcheck(lambda p: keypoints.encode(p, (8, 8)), (8 * uniform(2, 2)).requires_grad_())


@pytest.mark.parametrize(
    ("points", "size", "sigma", "error", "message"),
    [
        (
            torch.zeros(1, 2, dtype=torch.int64),
            (8, 8),
            1.0,
            TypeError,
            r"points \(..., K, 2\) as floats, got torch.int64",
        ),
        ([[1.0, 2.0]], (8, 8), 1.0, TypeError, "as floats, got list"),
        (torch.zeros(2), (8, 8), 1.0, ValueError, r"got \(2,\)"),
        (torch.zeros(4, 3), (8, 8), 1.0, ValueError, r"got \(4, 3\)"),
        (torch.zeros(1, 2), (8, 10), 1.0, ValueError, "multiples of 4, got 8×10"),
        (torch.zeros(1, 2), (0, 8), 1.0, ValueError, "multiples of 4, got 0×8"),
        (torch.zeros(1, 2), (8, 8), 0.0, ValueError, "sigma above 0, got 0"),
        (torch.zeros(1, 2), (8, 8), math.nan, ValueError, "sigma above 0, got nan"),
    ],
)
def test_encoding_refuses(points, size, sigma, error, message):
    with pytest.raises(error, match=message):
        keypoints.encode(points, size, sigma)


# --- heatmaps: decoding


def mean_error(method, points, noise, seed=1):
    maps = keypoints.encode(points, (128, 128))
    found, _ = keypoints.decode(maps + noise * normal(*maps.shape, seed=seed), method)
    return float((found - points).norm(dim=-1).mean())


def test_what_each_decoder_can_do_without_noise():
    points = points_inside(500, 16)
    errors = {method: mean_error(method, points, 0.0) for method in keypoints.DECODERS}
    assert errors["log-parabola"] < 1e-9, "exact for a Gaussian"
    assert errors["DARK"] < 0.01
    # The mean distance of a point from the middle of its cell of 4 px: 4 · 0.3826.
    assert abs(errors["argmax"] - 1.53) < 0.07
    assert errors["soft-argmax"] < errors["quarter"] < 0.55 * errors["argmax"]


def test_under_noise_only_dark_stays_within_a_quarter_of_a_pixel():
    """Noise of 0.05 at stride 4: what makes the exact formula useless."""
    points = points_inside(2000, 16)
    errors = {method: mean_error(method, points, 0.05) for method in keypoints.DECODERS}
    assert errors["DARK"] <= 0.25
    assert errors["DARK"] < 0.5 * errors["log-parabola"] < 0.5 * errors["soft-argmax"] < 0.5 * errors["quarter"]
    assert errors["quarter"] < errors["argmax"]


def dark_by_numpy(heatmap, sigma):
    """One map, with SciPy's blur and NumPy's inverse."""
    log = np.log(
        np.maximum(scipy.ndimage.gaussian_filter(heatmap, sigma, mode="constant", radius=round(3 * sigma)), 1e-10)
    )
    i, j = np.unravel_index(heatmap.argmax(), heatmap.shape)
    g = np.array([log[i, j + 1] - log[i, j - 1], log[i + 1, j] - log[i - 1, j]]) / 2
    xx = (log[i, j + 2] - 2 * log[i, j] + log[i, j - 2]) / 4
    yy = (log[i + 2, j] - 2 * log[i, j] + log[i - 2, j]) / 4
    xy = (log[i + 1, j + 1] - log[i - 1, j + 1] - log[i + 1, j - 1] + log[i - 1, j - 1]) / 4
    return np.array([j, i]) - np.linalg.inv([[xx, xy], [xy, yy]]) @ g


@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0])
def test_dark_is_the_paper_s_formula(sigma):
    maps = keypoints.encode(points_inside(30, 20), (128, 128), sigma)[:, 0]
    # A turned, narrow bump, so that the mixed derivative counts.
    maps = maps * keypoints.encode(points_inside(30, 20) + 3, (128, 128), 2 * sigma)[:, 0] + 0.1 * maps.roll(
        (1, 1), (1, 2)
    )
    found = keypoints.dark(maps, sigma)
    for each, heatmap in zip(found, maps, strict=True):
        blurred = scipy.ndimage.gaussian_filter(heatmap.numpy(), sigma, mode="constant", radius=round(3 * sigma))
        torch.testing.assert_close(keypoints.blurred(heatmap, sigma), torch.from_numpy(blurred), rtol=1e-9, atol=1e-12)
        at = np.unravel_index(blurred.argmax(), blurred.shape)
        if at == np.unravel_index(heatmap.numpy().argmax(), heatmap.shape):
            np.testing.assert_allclose(each.numpy(), dark_by_numpy(heatmap.numpy(), sigma), atol=1e-9)


@pytest.mark.parametrize("corner", [(0.5, 0.5), (127.0, 1.0), (3.0, 64.0), (126.0, 126.5), (64.0, 127.9)])
def test_points_at_the_border_are_found(corner):
    """A parabola is looked at from the nearest cell that has neighbours, and still leads to its top."""
    points = torch.tensor([[corner]], dtype=torch.float64)
    maps = keypoints.encode(points, (128, 128))
    torch.testing.assert_close(keypoints.decode(maps, "log-parabola")[0], points, rtol=0, atol=1e-6)
    assert ((keypoints.decode(maps, "DARK")[0] - points).abs() <= 2 + 1e-9).all(), "at worst the cell's middle"


@each_decoder
def test_a_decoder_turns_with_the_map(method):
    maps = keypoints.encode(points_inside(20, 12), (128, 64)) + 0.02 * normal(20, 1, 32, 16)
    (found, scores), (turned, same) = (keypoints.decode(m, method) for m in (maps, maps.flip(-1)))
    torch.testing.assert_close(turned, found * torch.tensor([-1.0, 1.0]) + torch.tensor([64.0, 0.0]))
    torch.testing.assert_close(scores, same, rtol=0, atol=0)
    torch.testing.assert_close(keypoints.decode(maps.mT, method)[0], found.flip(-1))
    alone = torch.cat([keypoints.decode(m[None], method)[0] for m in maps])
    torch.testing.assert_close(alone, found, rtol=1e-9, atol=1e-9)
    strided = maps.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(keypoints.decode(strided, method)[0], found.expand(-1, 3, -1), rtol=1e-9, atol=1e-9)


@each_decoder
@pytest.mark.parametrize(
    "maps",
    [
        torch.zeros(1, 1, 6, 7),
        torch.ones(1, 1, 6, 7),
        -torch.ones(1, 1, 6, 7),
        torch.eye(8)[None, None],  # a ridge
        torch.ones(1, 1, 1, 1),
        torch.rand(2, 3, 2, 3, generator=rng()),
        torch.rand(1, 1, 1, 9, generator=rng()),
    ],
    ids=["zeros", "ones", "negative", "ridge", "one cell", "two rows", "one row"],
)
def test_a_map_without_a_clear_peak_gives_a_point_in_reach(method, maps):
    found, scores = keypoints.decode(maps, method)
    h, w = maps.shape[-2:]
    assert found.isfinite().all() and found.shape == (*maps.shape[:2], 2)
    assert (found >= -4 * 2).all() and (found <= 4 * (torch.tensor([w, h]) + 2)).all()
    torch.testing.assert_close(scores, maps.amax((-1, -2)))


@each_decoder
def test_halves_are_decoded_in_float32_and_nothing_is_decoded_to_nothing(method):
    maps = keypoints.encode(points_inside(5, 16), (128, 128)).bfloat16()
    found, scores = keypoints.decode(maps, method)
    assert found.dtype == scores.dtype == torch.float32
    torch.testing.assert_close(found, keypoints.decode(maps.float(), method)[0], rtol=0, atol=0)
    found, scores = keypoints.decode(torch.zeros(0, 13, 8, 8), method)
    assert found.shape == (0, 13, 2) and scores.shape == (0, 13)


@pytest.mark.parametrize(
    ("maps", "method", "error", "message"),
    [
        (torch.zeros(1, 4, 4, dtype=torch.uint8), "DARK", TypeError, "as floats, got torch.uint8"),
        (torch.zeros(4, 4), "DARK", ValueError, r"got \(4, 4\)"),
        (torch.zeros(1, 1, 4, 4), "dark", ValueError, "argmax, quarter, soft-argmax, log-parabola, DARK; got 'dark'"),
        (torch.full((1, 1, 4, 4), math.nan), "DARK", ValueError, "finite heatmaps"),
        (torch.full((1, 1, 4, 4), math.inf), "argmax", ValueError, "finite heatmaps"),
        (torch.zeros(1, 1, 0, 4), "argmax", ValueError, "one cell or more"),
    ],
)
def test_decoding_refuses(maps, method, error, message):
    with pytest.raises(error, match=message):
        keypoints.decode(maps, method)


def test_soft_argmax_has_a_gradient():
    maps = keypoints.encode(points_inside(2, 10, 32), (32, 32))[:, 0].requires_grad_()
    assert torch.autograd.gradcheck(keypoints.soft_argmax, maps)


# --- crops


def test_a_square_stands_around_its_box():
    boxes = torch.tensor([[10.0, 20, 30, 60], [0, 0, 8, 4]])
    maps = keypoints.around(boxes, 64)
    middles = torch.tensor([[[20.0, 40]], [[4, 2]]])
    torch.testing.assert_close(keypoints.move(middles, maps), torch.full((2, 1, 2), 32.0))
    top = torch.tensor([[[20.0, 40 - 25]], [[4, 2 - 5]]])  # 1.25 times the longer side, halved
    torch.testing.assert_close(keypoints.move(top, maps), torch.tensor([[[32.0, 0]]] * 2), rtol=0, atol=1e-5)
    turned = keypoints.around(boxes[:1], 64, angle=math.pi / 2)  # clockwise as seen: what is above goes right
    torch.testing.assert_close(keypoints.move(top[:1], turned), torch.tensor([[[64.0, 32]]]), rtol=0, atol=1e-5)
    right = torch.tensor([[[45.0, 40]]])
    mirrored = keypoints.around(boxes[:1], 64, mirror=True)
    torch.testing.assert_close(keypoints.move(right, mirrored), torch.tensor([[[0.0, 32]]]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_way_back_is_the_inverse(dtype):
    boxes = torch.cat([50 * uniform(9, 2), 60 + 50 * uniform(9, 2)], 1).to(dtype)
    maps = keypoints.around(boxes, 96, angle=6 * uniform(9).to(dtype), mirror=uniform(9) < 0.5)
    points = 200 * normal(9, 7, 2).to(dtype)
    back = keypoints.move(keypoints.move(points, maps), keypoints.inverse(maps))
    torch.testing.assert_close(back, points, rtol=0, atol=1e-9 if dtype == torch.float64 else 1e-2)
    both = torch.linalg.det(maps[..., :2])
    assert ((both < 0) == (uniform(9) < 0.5)).all(), "a mirror turns the plane over"


@pytest.mark.parametrize("mirror", [False, True])
def test_a_crop_equals_scikit_image_s_warp(mirror):
    images = uniform(1, 3, 40, 52)
    box = torch.tensor([[12.0, 8, 35, 31]], dtype=torch.float64)
    maps = keypoints.around(box, 24, angle=0.4, mirror=mirror)
    found = keypoints.crop(images, maps, 24)
    # scikit-image counts from the first pixel's centre, and asks where a pixel of the result comes from.
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    matrix = np.vstack([maps[0].numpy(), [0, 0, 1]])
    into = skimage.transform.AffineTransform(matrix=np.linalg.inv(half) @ np.linalg.inv(matrix) @ half)
    warped = skimage.transform.warp(
        images[0].permute(1, 2, 0).numpy(), into, output_shape=(24, 24), order=1, mode="constant", cval=0.5
    )
    np.testing.assert_allclose(found[0].permute(1, 2, 0).numpy(), warped, atol=1e-9)


def test_a_crop_of_the_whole_is_the_image_and_beyond_it_is_grey():
    images = uniform(2, 3, 16, 16)
    whole = keypoints.around(torch.tensor([[0.0, 0, 16, 16]] * 2, dtype=torch.float64), 16, margin=1.0)
    torch.testing.assert_close(keypoints.crop(images, whole, 16), images)
    torch.testing.assert_close(keypoints.crop(images, whole, 8 * 2), images)
    far = keypoints.around(torch.tensor([[90.0, 90, 99, 99]], dtype=torch.float64), 8)
    assert (keypoints.crop(images[:1], far, 8) == 0.5).all()
    small = keypoints.around(torch.tensor([[0.0, 0, 16, 16]] * 2, dtype=torch.float64), 4, margin=1.0)
    torch.testing.assert_close(keypoints.crop(images, small, 4, samples=4), nn.functional.avg_pool2d(images, 4))
    assert keypoints.crop(images.bfloat16(), whole, 16).dtype == torch.bfloat16


def test_halves_and_numpy_s_numbers_are_taken():
    boxes, points = torch.tensor([[16.0, 32, 48, 96]]), torch.tensor([[[20.0, 40], [24, 64]]])
    maps = keypoints.around(boxes.bfloat16(), np.int64(64), margin=np.float32(1.25), angle=np.float64(0.3))
    torch.testing.assert_close(maps, keypoints.around(boxes, 64, 1.25, 0.3))
    moved = keypoints.move(points.bfloat16(), maps)
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved, keypoints.move(points, maps), rtol=0, atol=0)
    assert keypoints.inverse(maps.half()).dtype == torch.float32
    assert keypoints.crop(uniform(1, 3, 99, 99), maps, np.int64(64)).shape == (1, 3, 64, 64)


def test_a_face_at_the_border_is_cut_out_with_grey_where_there_is_no_image():
    photograph = datasets.load_image("astronaut")[..., 60:, 225:]  # half of the face
    box = torch.tensor([keypoints.ASTRONAUT]) - torch.tensor([225.0, 60, 225, 60])
    maps = keypoints.around(box, keypoints.FACE_SIDE, margin=1.0)
    crops = keypoints.crop(photograph, maps, keypoints.FACE_SIDE)
    assert (crops[..., :45] == 0.5).all() and (crops[..., 50:] != 0.5).any()
    found, scores = keypoints.predict(zoo.load("keypoints_faces", "cpu"), crops)
    assert found.isfinite().all() and (found > -8).all() and (found < keypoints.FACE_SIDE + 8).all()
    whole = keypoints.crop(
        datasets.load_image("astronaut"), keypoints.around(torch.tensor([keypoints.ASTRONAUT]), 96, 1.0), 96
    )
    assert scores.mean() < keypoints.predict(zoo.load("keypoints_faces", "cpu"), whole)[1].mean(), "it is less sure"


def test_points_move_with_the_pixels():
    """A bump in the image is found in the crop where the map takes its point."""
    points = torch.tensor([[[21.0, 30.5]], [[40.2, 11.9]]], dtype=torch.float64)
    bumps = keypoints.encode(points, (48, 64), 4.0, stride=1).expand(-1, 3, -1, -1)
    boxes = torch.tensor([[10.0, 18, 34, 40], [25.0, 2, 52, 25]], dtype=torch.float64)
    maps = keypoints.around(boxes, 24, angle=torch.tensor([0.5, -1.0]), mirror=torch.tensor([True, False]))
    found, _ = keypoints.decode(keypoints.crop(bumps, maps, 24)[:, :1], "log-parabola", stride=1)
    torch.testing.assert_close(found, keypoints.move(points, maps), rtol=0, atol=0.3)


@pytest.mark.parametrize(
    ("box", "arguments", "error", "message"),
    [
        ([5, 5, 9, 9], {}, TypeError, "boxes must be a floating-point tensor"),
        ([5.0, 5, 5, 9], {}, ValueError, "a width and a height above 0"),
        ([5.0, 5, math.nan, 9], {}, ValueError, "finite"),
        ([9.0, 5, 5, 9], {}, ValueError, "x2 ≥ x1"),
        ([5.0, 5, 9, 9], {"size": 0}, ValueError, "size from 1 px and a margin above 0, got 0"),
        ([5.0, 5, 9, 9], {"margin": 0}, ValueError, "margin above 0, got 64 and 0"),
    ],
)
def test_a_box_without_room_is_refused(box, arguments, error, message):
    with pytest.raises(error, match=message):
        keypoints.around(torch.tensor([box]), **{"size": 64, **arguments})


def test_crops_refuse_bytes_shapes_and_maps_without_a_way_back():
    maps = keypoints.around(torch.tensor([[0.0, 0, 8, 8]]), 8)
    with pytest.raises(TypeError, match="floats in .0, 1., got torch.uint8"):
        keypoints.crop(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), maps, 8)
    with pytest.raises(ValueError, match=r"got \(2, 3, 8, 8\), \(1, 2, 3\)"):
        keypoints.crop(torch.zeros(2, 3, 8, 8), maps, 8)
    with pytest.raises(ValueError, match="can be inverted"):
        keypoints.inverse(torch.zeros(1, 2, 3))


# --- scores: COCO's


PERSON = [{"id": 1, "name": "person", "keypoints": list(keypoints.COCO_KEYPOINTS), "skeleton": []}]


def person(image, seed, box, *, area=None, labelled=17, crowd=0):
    """A COCO-format annotation with points all over its box."""
    x, y, w, h = box
    points = uniform(17, 2, seed=seed) * torch.tensor([w, h]) + torch.tensor([x, y])
    visible = torch.tensor([2 if k % 3 else 1 for k in range(labelled)] + [0] * (17 - labelled))
    triples = torch.cat([points * (visible > 0)[:, None], visible[:, None]], 1)
    return {
        "image_id": image, "category_id": 1, "bbox": list(box), "area": float(0.6 * w * h if area is None else area),
        "iscrowd": crowd, "num_keypoints": labelled, "keypoints": triples.flatten().tolist(),
    }  # fmt: skip


# People of each size, hardly or not at all labelled, crowds with and without points, an empty image.
EMBEDDED = {
    "images": [{"id": i, "height": 480, "width": 640} for i in (1, 2, 3, 4)],
    "categories": PERSON,
    "annotations": [
        person(1, 0, (10, 20, 50, 90)),
        person(1, 1, (30, 30, 50, 90), labelled=3),
        person(1, 2, (200, 100, 200, 300)),
        person(1, 3, (400, 100, 30, 40), labelled=0),
        person(1, 4, (100, 300, 300, 100), labelled=0, crowd=1),
        person(2, 5, (300, 50, 20, 25)),
        person(2, 6, (20, 50, 90, 180), labelled=1),
        person(2, 7, (200, 200, 120, 60), crowd=1),
        person(4, 8, (200, 200, 96, 96), area=9216),
    ],
}


def made_up(annotations, seed, most=3):
    """COCO-format detections: true points jittered, dropped and repeated, and some where nobody is."""
    chance = np.random.default_rng(seed)
    found = []
    for annotation in annotations["annotations"]:
        for _ in range(chance.integers(0, most + 1)):
            triples = np.array(annotation["keypoints"], dtype=float).reshape(17, 3)
            x, y, w, h = annotation["bbox"]
            somewhere = chance.random((17, 2)) * [w, h] + [x, y]
            triples[:, :2] = np.where(triples[:, 2:] > 0, triples[:, :2], somewhere)
            if chance.random() < 0.85:
                triples[:, :2] += chance.normal(0, chance.choice([0.02, 0.1, 0.4]), (17, 2)) * [w, h]
            triples[:, 2] = chance.random(17)
            score = float(chance.integers(1, 4) / 4 if seed % 2 else chance.random())
            entry = {"image_id": annotation["image_id"], "category_id": 1, "keypoints": triples.flatten().tolist()}
            found.append(entry | {"score": score})
    return found


def coco_says(annotations, found):
    full = copy.deepcopy(annotations)
    for number, annotation in enumerate(full["annotations"], start=1):  # COCOeval takes id 0 for "no match"
        annotation["id"] = number
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = full
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "keypoints")
        evaluation.params.catIds = [1]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def triples(entries):
    return torch.tensor([a["keypoints"] for a in entries], dtype=torch.float64).view(len(entries), 17, 3)


def boxes_and_areas(entries):
    corners = torch.tensor([a["bbox"] for a in entries], dtype=torch.float64).view(-1, 4)
    areas = torch.tensor([a["area"] for a in entries], dtype=torch.float64)
    return torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1), areas


def ours(annotations, found):
    truth, finds = [], []
    for i in sorted(image["id"] for image in annotations["images"]):
        mine = [a for a in annotations["annotations"] if a["image_id"] == i]
        crowd = torch.tensor([bool(a["iscrowd"]) for a in mine], dtype=torch.bool)
        truth.append(keypoints.true_people(triples(mine), *boxes_and_areas(mine), crowd))
        mine = [a for a in found if a["image_id"] == i]
        scores = torch.tensor([a["score"] for a in mine], dtype=torch.float64)
        finds.append(keypoints.found_people(triples(mine), scores))
    return keypoints.evaluate(finds, truth)


def assert_equal_to_coco(annotations, found):
    evaluation, theirs = ours(annotations, found), coco_says(annotations, found)
    np.testing.assert_allclose(evaluation.precision.numpy(), theirs.eval["precision"], atol=1e-9, rtol=0)
    np.testing.assert_allclose(evaluation.recall.numpy(), theirs.eval["recall"], atol=1e-9, rtol=0)
    numbers = keypoints.summary(evaluation)
    assert list(numbers) == [f"{a}{s}" for a in ("AP", "AR") for s in ("", "50", "75", " medium", " large")]
    np.testing.assert_allclose(list(numbers.values()), theirs.stats, atol=1e-9, rtol=0)
    return numbers


@pytest.mark.parametrize("seed", range(6))
def test_equals_pycocotools_in_every_special_case(seed):
    found = made_up(EMBEDDED, seed, most=12 if seed == 5 else 3)
    if seed == 5:  # more than twenty in an image: only the best count
        assert sum(entry["image_id"] == 1 for entry in found) > 20
    numbers = assert_equal_to_coco(EMBEDDED, found)
    assert 0 < numbers["AP"] < 1


@pytest.mark.skipif(not (DATA / "coco_mini").is_dir(), reason="needs coco_mini in COURSE_DATA")
@pytest.mark.parametrize("split", ["train2017", "val2017"])
@pytest.mark.parametrize("seed", range(2))
def test_equals_pycocotools_on_real_people(split, seed):
    annotations = json.loads((DATA / "coco_mini" / "annotations" / f"person_keypoints_{split}.json").read_text())
    assert any(a["iscrowd"] for a in annotations["annotations"]) or split == "val2017"
    numbers = assert_equal_to_coco(annotations, made_up(annotations, seed))
    assert 0.1 < numbers["AP"] < 0.95


def test_similarity_equals_pycocotools_and_its_own_formula():
    found = made_up(EMBEDDED, 0)
    theirs = coco_says(EMBEDDED, found)
    mine = [a for a in EMBEDDED["annotations"] if a["image_id"] == 1]
    order = np.argsort([-f["score"] for f in found if f["image_id"] == 1], kind="mergesort")
    finds = triples([f for f in found if f["image_id"] == 1])[torch.from_numpy(order)]
    boxes, areas = boxes_and_areas(mine)
    similarity = keypoints.oks(finds, triples(mine), areas, boxes)
    np.testing.assert_allclose(similarity.numpy(), theirs.ious[1, 1], atol=1e-12)
    # A point that is off by 2k·√area: e^(−1/2).
    one = torch.tensor([[[5.0, 5.0, 2.0]]])
    off = keypoints.oks(
        one[..., :2] + torch.tensor([2 * 0.1 * 30, 0.0]),
        one,
        torch.tensor([900.0]),
        torch.tensor([[0.0, 0, 9, 9]]),
        [0.1],
    )
    assert abs(float(off) - math.exp(-0.5)) < 1e-7


def test_similarity_and_people_refuse():
    truth, box, area = torch.zeros(1, 17, 3), torch.tensor([[0.0, 0, 9, 9]]), torch.ones(1)
    with pytest.raises(TypeError, match="found points as floats, got torch.int64"):
        keypoints.oks(truth.long(), truth, area, box)
    with pytest.raises(ValueError, match=r"got \(1, 5, 3\), \(1, 17, 3\), \(1,\) and 17"):
        keypoints.oks(truth[:, :5], truth, area, box)
    with pytest.raises(ValueError, match="finite points"):
        keypoints.oks(truth + math.nan, truth, area, box)
    with pytest.raises(ValueError, match=r"keypoints \(D, K, 2\) and scores"):
        keypoints.found_people(truth, torch.zeros(2))
    with pytest.raises(ValueError, match=r"keypoints \(G, K, 3\), got \(1, 17, 2\)"):
        keypoints.true_people(truth[..., :2], box, area)


def test_nobody_to_find_and_nothing_found():
    nobody = keypoints.true_people(torch.zeros(0, 17, 3), torch.zeros(0, 4), torch.zeros(0))
    nothing = keypoints.found_people(torch.zeros(0, 17, 2), torch.zeros(0))
    first = EMBEDDED["annotations"][:1]
    somebody = keypoints.true_people(triples(first), *boxes_and_areas(first))
    assert set(keypoints.summary(keypoints.evaluate([nothing], [nobody])).values()) == {-1.0}
    numbers = keypoints.summary(keypoints.evaluate([nothing], [somebody]))
    assert numbers["AP"] == numbers["AR"] == 0 and numbers["AP large"] == -1


# --- scores: PCK and NME


def test_pck_and_nme_are_their_definitions():
    truth = torch.cat([50 * uniform(6, 5, 2), (3 * uniform(6, 5, 1, seed=1)).floor()], -1)
    found, scale = truth[..., :2] + 4 * normal(6, 5, 2), 10 + 30 * uniform(6, seed=2)
    right, far = [], []
    for n in range(6):
        for k in range(5):
            if truth[n, k, 2] > 0:
                far.append(math.dist(found[n, k].tolist(), truth[n, k, :2].tolist()) / float(scale[n]))
                right.append(far[-1] <= 0.2)
    assert 0.2 < np.mean(right) < 0.9
    assert keypoints.pck(found, truth, scale, 0.2) == pytest.approx(np.mean(right))
    assert keypoints.nme(found, truth, scale) == pytest.approx(np.mean(far))
    half = keypoints.nme(found.half(), truth.half(), scale)
    assert half == pytest.approx(np.mean(far), abs=0.01)


def test_without_a_labelled_point_there_is_no_score_and_a_scale_is_needed():
    truth = torch.zeros(2, 5, 3)
    assert math.isnan(keypoints.pck(truth, truth, torch.ones(2))) and math.isnan(
        keypoints.nme(truth, truth, torch.ones(2))
    )
    with pytest.raises(ValueError, match="scale above 0"):
        keypoints.nme(truth, truth, torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"got \(2, 4, 3\), \(2, 5, 3\), \(2,\)"):
        keypoints.pck(truth[:, 1:], truth, torch.ones(2))
    with pytest.raises(TypeError, match="true points as floats, got torch.int64"):
        keypoints.pck(truth, truth.long(), torch.ones(2))


# --- network, loss and training


def small_network():
    torch.manual_seed(0)
    network = keypoints.KeypointNetwork([1, 0, 2], keypoints.model.SmallBackbone((8, 8, 8)), width=8)
    nn.init.normal_(network.last.weight)
    return network.eval()


def test_the_network_says_a_heatmap_for_each_point():
    network = small_network()
    crops = uniform(2, 3, 32, 48, dtype=torch.float32)
    assert network(crops).shape == (2, 3, 8, 12)
    with pytest.raises(ValueError, match="multiples of 8"):
        network(crops[..., :44])
    for wrong in ([], [1, 2, 0], [0, 5], [-1, 0]):
        with pytest.raises(ValueError, match="exchange points in pairs"):
            keypoints.KeypointNetwork(wrong)


def test_the_flip_test_sees_no_difference_between_left_and_right():
    network = small_network()
    crops = uniform(3, 3, 32, 32, dtype=torch.float32)
    said, mirrored = (keypoints.predict_heatmaps(network, c) for c in (crops, crops.flip(-1)))
    torch.testing.assert_close(mirrored.flip(-1)[:, [1, 0, 2]], said, rtol=1e-4, atol=1e-5)
    once = keypoints.predict_heatmaps(network, crops, flip=False)
    torch.testing.assert_close(once, network(crops).detach(), rtol=1e-4, atol=1e-5)
    assert (once - said).abs().max() > 1e-2
    network.train()
    alone = torch.cat([keypoints.predict_heatmaps(network, c[None]) for c in crops])
    torch.testing.assert_close(alone, said, rtol=1e-4, atol=1e-5)
    assert network.training
    points, scores = keypoints.predict(network, crops[:0])
    assert points.shape == (0, 3, 2) and scores.shape == (0, 3)
    with pytest.raises(TypeError, match="crops as floats"):
        keypoints.predict(network, (255 * crops).byte())


def test_the_loss_is_the_squared_difference_of_labelled_maps():
    truth = torch.cat([32 * uniform(2, 3, 2), torch.tensor([[[2.0], [1], [0]], [[0], [0], [2]]])], -1)
    predicted = normal(2, 3, 8, 8).requires_grad_()
    wanted = keypoints.encode(truth[..., :2], (32, 32))
    squares = [
        (predicted[b, k] - wanted[b, k]).square().sum() for b in range(2) for k in range(3) if truth[b, k, 2] > 0
    ]
    loss = keypoints.heatmap_loss(predicted, truth, (32, 32))
    torch.testing.assert_close(loss, sum(squares) / 3)
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert (gradient[0, 2] == 0).all() and (gradient[0, 0] != 0).any()
    assert float(keypoints.heatmap_loss(wanted, truth, (32, 32))) == 0
    assert float(keypoints.heatmap_loss(predicted.detach(), truth * 0, (32, 32))) == 0, "nothing is labelled"
    assert torch.autograd.gradcheck(lambda p: keypoints.heatmap_loss(p, truth, (32, 32)), predicted)
    half = keypoints.heatmap_loss(predicted.bfloat16(), truth, (32, 32))
    torch.testing.assert_close(half.double(), loss, rtol=0.02, atol=0)


def test_variations_move_points_with_the_pixels_and_exchange_left_and_right():
    """Each point is a dot of its own colour; after the variation it is found where the keypoints say."""
    points = 32 + 26 * (uniform(16, 3, 2, dtype=torch.float32) - 0.5)
    truth = torch.cat([points, torch.full((16, 3, 1), 2.0)], -1)
    crops = keypoints.encode(points, (64, 64), 2.5, stride=1)
    turned, moved = keypoints.varied([1, 0, 2])(crops, truth, rng(3))
    assert turned.shape == crops.shape and (moved[..., 2] == 2).all()
    found = keypoints.argmax(turned) + 0.5  # by colour; in a mirror the first point is the second's dot
    same = (found - moved[..., :2]).norm(dim=-1).amax(1) < 1.5
    exchanged = (found - moved[:, [1, 0, 2], :2]).norm(dim=-1).amax(1) < 1.5
    assert (same ^ exchanged).all() and 3 < int(exchanged.sum()) < 13
    again = keypoints.varied([1, 0, 2])(crops, truth, rng(3))
    torch.testing.assert_close(again[0], turned, rtol=0, atol=0)


def test_variations_forget_what_leaves_the_crop():
    truth = torch.tensor([[[1.0, 1, 2], [32, 32, 1], [5, 5, 0]]]).expand(64, -1, -1)
    _, moved = keypoints.varied([1, 0, 2], turn=90)(torch.zeros(64, 3, 64, 64), truth, rng())
    labelled = moved[..., 2] > 0
    assert (moved[~labelled] == 0).all() and ((moved[labelled][:, :2] >= 0) & (moved[labelled][:, :2] < 64)).all()
    assert (labelled.sum(1) >= 1).all() and (labelled.sum(1) == 1).any()


@pytest.mark.parametrize(
    ("images", "points", "error", "message"),
    [
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 3), TypeError, "images as uint8"),
        (torch.zeros(1, 3, 8, 8).byte(), torch.zeros(1, 2, 3).long(), TypeError, "keypoints as floats"),
        (torch.zeros(2, 3, 8, 8).byte(), torch.zeros(1, 2, 3), ValueError, r"got \(2, 3, 8, 8\), \(1, 2, 3\)"),
        (torch.zeros(1, 3, 8, 8).byte(), torch.full((1, 2, 3), 3.0), ValueError, "visibility of 0"),
        (torch.zeros(1, 3, 8, 8).byte(), torch.tensor([[[math.nan, 1, 2]]]), ValueError, "finite"),
    ],
)
def test_data_sets_refuse(images, points, error, message):
    with pytest.raises(error, match=message):
        keypoints.KeypointDataset(images, points)


def test_data_sets_give_batches_and_hide_what_is_not_labelled():
    data = keypoints.KeypointDataset(
        torch.full((2, 3, 8, 8), 255).byte(), torch.tensor([[[math.nan, 7, 0]], [[1, 2, 1]]])
    )
    crops, points = data[torch.tensor([1, 0])]
    assert (crops == 1).all() and points.tolist() == [[[1, 2, 1]], [[0, 0, 0]]]


def test_crops_out_of_range_are_refused():
    """As of the other steps: the first batch is looked at, so that a mistake in the data does not train for hours."""
    network = zoo.build("keypoints_figures")
    optimiser = torch.optim.SGD(network.parameters(), lr=0.0)
    points = torch.ones(2, 13, 3)
    for wrong in (255 * uniform(2, 3, 64, 64), 2 * uniform(2, 3, 64, 64) - 1):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            keypoints.keypoint_step(network, optimiser, rng())((wrong, points))
    with pytest.raises(TypeError):
        keypoints.keypoint_step(network, optimiser, rng())((torch.zeros(2, 3, 64, 64, dtype=torch.uint8), points))


def test_training_finds_a_dot():
    """40 steps: one coloured dot somewhere on noise."""
    points = 6 + 20 * uniform(200, 1, 2)
    dots = keypoints.encode(points, (32, 32), 2.0, stride=1) * torch.tensor([1.0, 0, 0]).view(3, 1, 1)
    crops = (255 * (0.3 * uniform(200, 3, 32, 32) + 0.7 * dots)).byte()
    data = keypoints.KeypointDataset(crops, torch.cat([points, torch.full((200, 1, 1), 2.0)], -1))
    torch.manual_seed(0)
    network = keypoints.KeypointNetwork([0], keypoints.model.SmallBackbone((8, 16, 16)), width=16)
    optimiser, schedule = optimiser_and_schedule(network, 60, 1e-2)
    generator = rng()
    step = keypoints.keypoint_step(network, optimiser, generator, keypoints.varied([0], turn=180), schedule)
    Loop(
        step, data, steps=60, batch_size=16, stateful={"n": network, "o": optimiser, "s": schedule, "r": generator}
    ).run()
    images, truth = data[torch.arange(100)]
    found, scores = keypoints.predict(network, images)
    assert keypoints.nme(found, truth, torch.ones(100)) < 1.0, "pixels; a cell has four"
    empty = keypoints.predict(network, uniform(8, 3, 32, 32, dtype=torch.float32) * 0.3)[1]
    assert scores.min() > empty.max(), "where there is no dot the network says so"


# --- figures


def test_figures_mirror_in_pairs_and_crops_hold_their_points():
    names, sides = scenes.KEYPOINTS, {"left": "right", "right": "left"}
    for name, other in zip(names, keypoints.FIGURE_MIRRORED, strict=True):
        side, _, joint = name.partition("_")
        assert names[other] == (f"{sides[side]}_{joint}" if joint else name)
    drawn = keypoints.figure_scenes(6, 0)
    data, scale = keypoints.figure_crops(drawn)
    assert len(data) == len(scale) == sum(int((p.labels == keypoints.FIGURE).sum()) for p in drawn)
    torch.testing.assert_close(scale, torch.full_like(scale, 64 / 1.25))
    _, points = data[torch.arange(len(data))]
    seen = points[points[..., 2] > 0][:, :2]
    assert (seen >= 0).all() and (seen < 64).all()
    with pytest.raises(ValueError, match="a figure or more"):
        keypoints.figure_crops([p for p in scenes.Scenes(3, 64, things=("tree",)).render_all()])


@pytest.fixture(scope="module")
def held_out_figures():
    return keypoints.figure_scenes(60, seed=1_000_003)


def test_the_shipped_network_finds_the_joints_of_other_figures(held_out_figures):
    data, scale = keypoints.figure_crops(held_out_figures)
    crops, truth = data[torch.arange(len(data))]
    found, heights = keypoints.predict(zoo.load("keypoints_figures", "cpu"), crops)
    assert keypoints.pck(found, truth, scale) >= 0.95
    seen, hidden = (heights[truth[..., 2] == visibility].mean() for visibility in (2, 1))
    assert seen > hidden, "it is less sure of what it cannot see"
    score = json.loads(checkpoints.load("keypoints_figures")[1]["score"])
    assert abs(keypoints.pck(found, truth, scale) - score["PCK@0.1"]) < 0.02


def test_first_the_detector_then_the_points(held_out_figures):
    detector, network = (zoo.load(name, "cpu") for name in ("detector_scenes", "keypoints_figures"))
    finds, truth = [], []
    for each in held_out_figures[:30]:
        found = keypoints.find_figures(each.image, detector, network)
        finds.append(keypoints.found_people(4 * found.points, found.scores))
        mine = each.labels == keypoints.FIGURE  # four times as large: COCO leaves people below 32² px out
        areas = 16.0 * each.masks[mine].flatten(1).sum(1)
        points = each.keypoints[mine] * torch.tensor([4.0, 4, 1])
        truth.append(keypoints.true_people(points, 4 * each.boxes[mine], areas))
    numbers = keypoints.summary(keypoints.evaluate(finds, truth, spread=[0.05] * len(scenes.KEYPOINTS)))
    assert numbers["AP"] > 0.5 and numbers["AP50"] > 0.85


def test_without_figures_none_is_found():
    detector, network = (zoo.load(name, "cpu") for name in ("detector_scenes", "keypoints_figures"))
    found = keypoints.find_figures(torch.full((3, 128, 128), 0.5), detector, network)
    assert found.points.shape == (0, 13, 2) and found.scores.shape == (0,) and found.heights.shape == (0, 13)
    with pytest.raises(ValueError, match="square image"):
        keypoints.find_figures(torch.zeros(3, 64, 128), detector, network)
    with pytest.raises(TypeError, match="floating-point"):
        keypoints.find_figures(torch.zeros(3, 64, 64, dtype=torch.uint8), detector, network)


# --- faces


def test_the_mirror_exchanges_the_parts_of_a_face():
    mirrored = torch.tensor(keypoints.MIRRORED)
    assert torch.equal(mirrored[mirrored], torch.arange(68))
    for part, points in keypoints.PARTS.items():
        other = part.replace("left", "*").replace("right", "left").replace("*", "right")
        assert {int(mirrored[k]) for k in points} == set(keypoints.PARTS[other])
    assert sorted(k for part in keypoints.PARTS.values() for k in part) == list(range(68))


def face(opening=0.3, turn=0.0):
    """68 points in which only the eyes, the jaw's ends and the nose's tip mean something."""
    points = torch.zeros(68, 2, dtype=torch.float64)
    for first, left in ((36, 20.0), (42, 60.0)):
        half = 20 * opening / 2
        xy = [(0, 0), (7, -half), (13, -half), (20, 0), (13, half), (7, half)]
        points[first : first + 6] = torch.tensor(xy, dtype=torch.float64) + torch.tensor([left, 40.0])
    points[0], points[16] = torch.tensor([0.0, 50]), torch.tensor([100.0, 50])
    points[30] = torch.tensor([50 + 50 * turn, 70.0])
    return points


def test_an_eye_opens_and_a_head_turns():
    for opening, turn in ((0.3, 0.0), (0.05, -0.4), (0.0, 0.7)):
        points = face(opening, turn)
        torch.testing.assert_close(keypoints.eye_opening(points), torch.full((2,), opening, dtype=torch.float64))
        assert float(keypoints.head_turn(points)) == pytest.approx(turn)
        # Neither size nor place nor the camera's roll changes them; a mirror turns the head the other way.
        c, s = math.cos(0.3), math.sin(0.3)
        moved = 3 * points @ torch.tensor([[c, s], [-s, c]], dtype=torch.float64) + 7
        torch.testing.assert_close(keypoints.eye_opening(moved), keypoints.eye_opening(points))
        assert float(keypoints.head_turn(moved)) == pytest.approx(turn)
        mirrored = (points * torch.tensor([-1.0, 1]))[list(keypoints.MIRRORED)]
        assert float(keypoints.head_turn(mirrored)) == pytest.approx(-turn)
    nothing = torch.zeros(2, 68, 2)
    assert keypoints.eye_opening(nothing).isfinite().all() and keypoints.head_turn(nothing).isfinite().all()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """COURSE_DATA with three faces."""
    faces = tmp_path / "faces"
    faces.mkdir()
    entries = [{"file": f"{n}.png", "person": n, "keypoints": [[n, 2 * k] for k in range(68)]} for n in range(3)]
    (faces / "train.json").write_text(json.dumps(entries))
    with zipfile.ZipFile(faces / "train.zip", "w") as archive:
        for entry in entries:
            stream = io.BytesIO()
            Image.new("L", (128, 128), 40 * entry["person"]).save(stream, "PNG")
            archive.writestr(entry["file"], stream.getvalue())
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    return faces


def test_faces_are_read_and_resized(folder):
    faces = keypoints.load_faces()
    assert faces.images.shape == (3, 3, 128, 128) and faces.images[2].unique().tolist() == [80]
    assert len(faces) == 3 and faces.person.tolist() == [0, 1, 2] and faces.keypoints[1, 5].tolist() == [1, 10, 2]
    small = faces.resized(64)
    assert small.images.shape == (3, 3, 64, 64) and small.keypoints[1, 5].tolist() == [0.5, 5, 2]


def test_faces_that_are_missing_or_damaged_are_named(folder, monkeypatch):
    with pytest.raises(ValueError, match="train, test; got 'val'"):
        keypoints.load_faces("val")
    with pytest.raises(FileNotFoundError, match=r"expected faces/test\.zip and faces/test\.json in COURSE_DATA"):
        keypoints.load_faces("test")
    whole = (folder / "train.zip").read_bytes()
    for damage in (whole[:-30], whole[: len(whole) // 2], b""):
        (folder / "train.zip").write_bytes(damage)
        with pytest.raises(FileNotFoundError, match="faces/train in COURSE_DATA is damaged"):
            keypoints.load_faces()
    (folder / "train.zip").write_bytes(whole)
    (folder / "train.json").write_text('[{"file": "0.png"}]')
    with pytest.raises(FileNotFoundError, match="damaged or incomplete"):
        keypoints.load_faces()
    five = [{"file": "0.png", "person": 0, "keypoints": [[1, 2]] * 5}]
    (folder / "train.json").write_text(json.dumps(five))
    with pytest.raises(FileNotFoundError, match=r"expected 68 points \(x, y\) of each face, got \(1, 5, 2\)"):
        keypoints.load_faces()


@needs_faces
def test_no_person_is_in_both_splits_and_the_network_knows_strangers():
    train, test = (keypoints.load_faces(split) for split in ("train", "test"))
    assert (len(train), len(test)) == (3186, 567)
    assert not set(train.person.tolist()) & set(test.person.tolist())
    small = test.resized(keypoints.FACE_SIDE)
    crops = small.images.float() / 255
    found, _ = keypoints.predict(zoo.load("keypoints_faces", "cpu"), crops)
    eyes = keypoints.eye_distance(small.keypoints[..., :2])
    error = keypoints.nme(found, small.keypoints, eyes)
    assert error <= 0.06
    assert abs(error - json.loads(checkpoints.load("keypoints_faces")[1]["score"])["NME"]) < 0.002


def test_the_astronaut_looks_at_us_with_open_eyes():
    """Her face in the built-in photograph, cut out by hand."""
    photograph = datasets.load_image("astronaut")
    box = torch.tensor([keypoints.ASTRONAUT])
    maps = keypoints.around(box, keypoints.FACE_SIDE, margin=1.0)
    found, _ = keypoints.predict(
        zoo.load("keypoints_faces", "cpu"), keypoints.crop(photograph, maps, keypoints.FACE_SIDE)
    )
    points = keypoints.move(found, keypoints.inverse(maps))[0]
    middles = {part: points[list(which)].mean(0) for part, which in keypoints.PARTS.items()}
    expected = {"left eye": (202.0, 101), "right eye": (247.0, 103), "mouth": (223.0, 145)}
    for part, place in expected.items():
        assert math.dist(middles[part].tolist(), place) < 8, part
    assert (keypoints.eye_opening(points) > 0.15).all() and abs(float(keypoints.head_turn(points))) < 0.4


# --- others' network, recipe, benchmark


def test_keypoint_rcnn_is_torchvision_s_with_names(monkeypatch):
    """With random weights in place of the download."""
    models = importlib.import_module("torchvision.models.detection")
    build = models.keypointrcnn_resnet50_fpn

    def unread(weights):
        assert weights is KEYPOINT_RCNN
        few = {"box_detections_per_img": 3, "rpn_post_nms_top_n_test": 10, "rpn_pre_nms_top_n_test": 10}
        return build(weights=None, weights_backbone=None, box_score_thresh=0.0, min_size=64, max_size=96, **few)

    monkeypatch.setattr(models, "keypointrcnn_resnet50_fpn", unread)
    monkeypatch.setattr(datasets, "fetch", lambda *_: None)
    torch.manual_seed(0)
    network = zoo.load("keypoint_rcnn", "cpu")
    assert isinstance(network, Pretrained) and network.names == keypoints.COCO_KEYPOINTS
    (found,) = network(uniform(1, 3, 64, 96, dtype=torch.float32), minimum=0.0)
    N = len(found.scores)
    assert found.points.shape == (N, 17, 2) and found.heights.shape == (N, 17) and found.boxes.shape == (N, 4)
    assert (found.scores.diff() <= 0).all()
    (none,) = network(uniform(1, 3, 64, 96, dtype=torch.float32), minimum=1.1)
    assert len(none.scores) == 0


def test_the_recipe_runs_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_PRECISION", "float32")
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    recipe = importlib.import_module("recipes.keypoints")
    scores = recipe.main(["--quick", "--steps", "4"])["figures"]
    assert 0 <= scores["PCK@0.1"] <= 1 and scores["held-out crops"] > 5
    assert (tmp_path / "build" / "keypoints_figures_quick.safetensors").is_file()
    _, metadata = checkpoints.load(tmp_path / "build" / "keypoints_figures_quick.safetensors")
    assert metadata["data"] == "figures" and "recipes/keypoints.py" in metadata["recipe"]


def test_two_photographs_of_people_ship_with_their_credit():
    photographs = keypoints.load_people()
    assert len(photographs) == 2
    for each in photographs:
        H, W = each.image.shape[2:]
        labelled = each.keypoints[each.keypoints[..., 2] > 0]
        assert (
            len(labelled) >= 12
            and (labelled[:, :2] >= 0).all()
            and (labelled[:, :2] < labelled.new_tensor([W, H])).all()
        )
        assert each.source.startswith("http://farm") and each.source in (
            checkpoints.folder().parent / "README.md"
        ).read_text(encoding="utf-8")
        own = keypoints.oks(each.keypoints, each.keypoints, each.areas, each.boxes)
        torch.testing.assert_close(own.diagonal(), torch.ones(len(own), dtype=torch.float64))


def test_points_are_drawn_where_they_are():
    image, points = torch.zeros(3, 20, 30), torch.tensor([[[10.0, 5.0], [20.0, 15.0], [1.0, 1.0]]])
    shown = torch.tensor([[True, True, False]])
    figure = plots.pointed([image], [points], [(0, 1), (1, 2)], ["one"], shown=[shown], colours=["red", "blue"])
    (ax,) = figure.axes
    (line,) = ax.lines
    assert line.get_xydata().tolist() == [[9.5, 4.5], [19.5, 14.5]] and line.get_color() == "red"
    (dots,) = ax.collections
    assert dots.get_offsets().tolist() == [[9.5, 4.5], [19.5, 14.5]] and ax.get_xlim() == (-0.5, 29.5)
    assert len(plots.pointed([image], [points], [(0, 1)]).axes[0].lines) == 1


def test_the_recipe_without_faces_trains_the_figures(folder, monkeypatch, capsys):
    recipe = importlib.import_module("recipes.keypoints")
    monkeypatch.setattr(recipe, "train", lambda argv, model: {"trained": model})
    assert list(recipe.main([])) == ["figures", "faces"]
    monkeypatch.setenv("COURSE_DATA", str(folder / "nothing"))
    assert list(recipe.main([])) == ["figures"]
    assert "not at hand" in capsys.readouterr().out
    assert list(recipe.main(["--model", "faces"])) == ["faces"]  # whoever asks for it is told what is missing


@pytest.fixture(scope="module")
def benchmark():
    return importlib.import_module("benchmarks.keypoints")


@pytest.mark.parametrize(("far", "near", "error", "met"), [(0.2, 0.96, 0.05, True), (0.3, 0.94, 0.07, False)])
def test_bars_hold_for_the_worst_of_all(benchmark, far, near, error, met):
    found = {
        "decoding": {"DARK": {"noise 0.05, px": far}},
        "live": {"live, seed 0": {"PCK@0.1": 0.99}, "live, seed 1": {"PCK@0.1": near}, "own": {"error, px": 9.0}},
        "faces": {"keypoints_faces": {"NME, 68 points": error}},
    }
    assert list(benchmark.bars(found).values()) == [met] * 3
    assert benchmark.bars({"faces": {}}) == {}


def test_the_benchmark_runs(benchmark, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    met = benchmark.main(["--quick", "--json", str(tmp_path / "keypoints.json")])
    report = json.loads((tmp_path / "keypoints.json").read_text(encoding="utf-8"))
    assert report["bars"] == met and 2 <= len(met) <= 3
    assert report["decoding"]["DARK"]["noise 0.05, px"] < 0.3
    assert 0 <= report["live"]["live, seed 0"]["PCK@0.1"] <= 1 and "own heatmaps, quarter" in report["live"]
    assert report["figures"]["keypoints_figures, true boxes"]["PCK@0.1"] > 0.9
    printed = capsys.readouterr().out
    assert all(claim in printed for claim in met)
