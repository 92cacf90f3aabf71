"""The toy world: its labels against slow paths that share no code with it, its captions read back, its COCO export."""

import contextlib
import io
import itertools
import json
import math
import pickle
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import rng
from matplotlib.path import Path as Polygon
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.utils.data import DataLoader
from torchvision.ops import masks_to_boxes

from course_lib import scenes
from course_lib.scenes.masks import seen
from course_lib.scenes.world import BACKDROPS, COLOURS, GROUNDS, LIGHTS, SHAPES, SIZES, TEXTURES, parts_of

SKY, HILLS, WATER = (scenes.CLASSES.index(name) for name in ("sky", "hills", "water"))
FIGURE = scenes.THINGS.index("figure")
EASEL = scenes.Camera(focal=1.1, horizon=0.4, height=1.7)  # the camera of scenes that are set up by hand


@pytest.fixture(scope="module")
def world() -> list[tuple[scenes.Scene, scenes.Rendering]]:
    """Scenes of several sizes and their images, for whoever compares the two."""
    drawn = []
    for size, n in ((32, 15), (64, 40), (99, 10)):
        data = scenes.Scenes(n, size, seed=5, objects=(0, 7))
        drawn += [(data.scene(i), data[i]) for i in range(n)]
    for scene, _ in drawn[-3:]:  # seen from another place, too
        moved = replace(scene, camera=replace(scene.camera, x=0.15, z=-0.7))
        drawn.append((moved, scenes.render(moved)))
    return drawn


def thing(name: str = "disc", x: float = 0.0, z: float = 4.0, height: float = 1.5, **changes) -> scenes.Thing:
    pose = (0.5, 0.5, 0.3, 0.3, 0.1, 0.1, 0.0, 0.0) if name == "figure" else ()
    settings = {"size": "large", "texture": "plain", "colour": "red", "pose": pose} | changes
    return scenes.Thing(name=name, height=height, x=x, z=z, **settings)


def stage(*things: scenes.Thing, **changes) -> scenes.Scene:
    settings = {"ground": "sand", "backdrop": "nothing", "light": "day", "camera": EASEL, "shore": 9.0, "pattern": 3}
    return scenes.Scene(things, **(settings | changes))


# The slow path: every pixel's centre is taken back into the object's own frame, and asked whether a part contains it


def within(part, points: np.ndarray) -> np.ndarray:
    """Whether points (P, 2) are in a rounded part: in its polygon, in a disc on a corner, or in a box along a side."""
    corners = np.array(part.points)
    found = (np.linalg.norm(points[:, None] - corners, axis=2) <= part.radius).any(1)
    if len(corners) > 2:
        found |= Polygon([*corners, corners[0]], closed=True).contains_points(points)
    for a, b in zip(corners, np.roll(corners, -1, 0), strict=True):
        if part.radius > 0 and not np.array_equal(a, b):
            across = part.radius * np.array([a[1] - b[1], b[0] - a[0]]) / np.linalg.norm(b - a)
            found |= Polygon([a + across, b + across, b - across, a - across, a + across]).contains_points(points)
    return found & ~(np.linalg.norm(points - corners[0], axis=1) < part.hole)


def slow_mask(scene: scenes.Scene, thing: scenes.Thing) -> np.ndarray:
    """(H, W) bool: where the object would be seen if it were alone."""
    size, camera = scene.size, scene.camera
    v, u = np.mgrid[:size, :size] + 0.5
    metres = (thing.z - camera.z) / (camera.focal * size)  # of a pixel, where the object stands
    X = (u - size / 2) * metres + camera.x - thing.x
    Y = camera.height - (v - camera.horizon * size) * metres
    parts, _ = parts_of(thing)
    turn = np.exp(1j * thing.tilt)
    lift = max(part.radius - (turn * complex(*p)).imag for part in parts for p in part.points)
    own = ((X + 1j * Y) / thing.height - 1j * lift) / turn
    points = np.stack([own.real.ravel(), own.imag.ravel()], 1)
    return np.any([within(part, points) for part in parts], 0).reshape(size, size)


def slow_masks(scene: scenes.Scene) -> np.ndarray:
    return np.array([slow_mask(scene, one) for one in scene.things]).reshape(-1, scene.size, scene.size)


def slow_backdrop(scene: scenes.Scene) -> tuple[np.ndarray, np.ndarray]:
    """Classes and depths (H, W) of what is behind the objects, pixel by pixel."""
    size, camera = scene.size, scene.camera
    f = camera.focal * size
    classes, depths = np.empty((size, size), int), np.empty((size, size))
    for i, j in itertools.product(range(size), range(size)):
        down = (i + 0.5 - camera.horizon * size) / f  # of the ray through the pixel, for a metre away
        depth = camera.height / down if down > 0 else math.inf
        name = "sky" if down <= 0 else scene.ground
        if scene.backdrop == "water" and scene.shore < depth + camera.z < math.inf:
            name = "water"
        away = 80 - camera.z
        X = (j + 0.5 - size / 2) / f * away + camera.x
        top = 9 + 3.5 * math.sin(X / 9 + scene.pattern) + 2 * math.sin(X / 4.1 + 2 * scene.pattern)
        if scene.backdrop == "hills" and depth >= away and camera.height - down * away < top:
            name, depth = "hills", away
        classes[i, j], depths[i, j] = scenes.CLASSES.index(name), depth
    return classes, depths


def test_masks_equal_the_slow_path(world):
    for scene, image in world:
        alone = slow_masks(scene)
        for n, mask in enumerate(image.masks.numpy()):
            np.testing.assert_array_equal(mask, alone[n] & ~alone[n + 1 :].any(0), err_msg=str(scene.things[n]))


@pytest.mark.parametrize("name", scenes.THINGS)
def test_a_mask_has_the_shape_of_its_name(name):
    """Widths of the rows of untilted objects, and areas, by school geometry."""
    scene = stage(thing(name, height=1.0, z=2.0), size=256, camera=scenes.Camera(1.4, 0.4, 0.6))
    mask = scenes.render(scene).masks[0].double()
    unit = 1.4 * 256 / 2.0  # pixels to a metre there
    area, (left, _, right, bottom) = float(mask.sum()) / unit**2, scenes.tight_boxes(mask.bool()[None])[0].tolist()
    star = 5 * 0.52 * 0.23 * math.sin(math.pi / 5)
    expected = {
        "disc": math.pi / 4,
        "ring": math.pi * (0.5**2 - 0.25**2),
        "square": 0.8**2 + 4 * 0.8 * 0.06 + math.pi * 0.06**2,
        "triangle": 1.04 * 0.92 / 2 + 0.04 * (1.04 + 2 * math.hypot(0.52, 0.92)) + math.pi * 0.04**2,
    }
    if name in expected:
        assert area == pytest.approx(expected[name], rel=0.01)
    if name == "star":  # rounded outwards: a little more than the bare polygon
        assert star < area < star + 0.04 * 10 * 0.42
    if name in ("heart", "tree", "triangle", "star"):  # symmetric about its foot
        np.testing.assert_allclose((left + right) / 2, 128, atol=1)
        assert torch.equal(mask, mask.flip(1))
    assert bottom == pytest.approx(0.4 * 256 + unit * 0.6, abs=1)  # it stands on the ground


def test_things_are_about_as_high_as_they_say():
    for name in SHAPES:
        image = scenes.render(stage(thing(name, height=1.0, z=2.0), size=256, camera=scenes.Camera(1.4, 0.4, 0.6)))
        x0, y0, x1, y1 = image.boxes[0].tolist()
        assert (y1 - y0) / (1.4 * 128) == pytest.approx(1, abs=0.08) and 0.6 < (x1 - x0) / (1.4 * 128) < 1.15


def test_masks_are_disjoint_and_boxes_tight(world):
    for _, image in world:
        assert image.masks.sum(0).max() <= 1 if len(image.masks) else True
        assert (image.masks.sum((1, 2)) >= scenes.FEWEST_PIXELS).all()
        if len(image.masks):
            inclusive = masks_to_boxes(image.masks)  # torchvision's count ends at the last pixel, ours after it
            torch.testing.assert_close(image.boxes, inclusive + torch.tensor([0, 0, 1, 1]))


def test_semantic_panoptic_and_depth_equal_the_slow_path(world):
    backdrops = set()
    for scene, image in world[::2] + world[-3:]:
        classes, depths = slow_backdrop(scene)
        segments = scenes.STUFF_SEGMENTS + classes
        for n, (one, mask) in enumerate(zip(scene.things, image.masks.numpy(), strict=True)):
            classes[mask], segments[mask], depths[mask] = scenes.THINGS.index(one.name), n + 1, one.z - scene.camera.z
        np.testing.assert_array_equal(image.semantic.numpy(), classes)
        np.testing.assert_array_equal(image.panoptic.numpy(), segments)
        np.testing.assert_allclose(image.depth.numpy(), depths, rtol=1e-5)
        backdrops.add(scene.backdrop)
    assert backdrops == set(BACKDROPS)


def test_labels_agree_with_each_other(world):
    for scene, image in world:
        assert image.labels.tolist() == [scenes.THINGS.index(one.name) for one in scene.things]
        for n, mask in enumerate(image.masks):
            assert (image.semantic[mask] == image.labels[n]).all() and (image.panoptic[mask] == n + 1).all()
        stuff = ~image.masks.any(0)
        assert (image.semantic[stuff] >= len(scenes.THINGS)).all()
        assert torch.equal(image.panoptic[stuff], image.semantic[stuff] + scenes.STUFF_SEGMENTS)
        assert torch.equal(image.depth.isinf(), image.semantic == SKY)


# The camera


def test_intrinsics_are_the_projection():
    camera, point = scenes.Camera(1.2, 0.35, 1.6, x=0.4, z=-0.5), (0.9, 1.1, 5.0)
    seen_from_camera = torch.tensor([0.9 - 0.4, 1.6 - 1.1, 5.0 + 0.5])  # y down
    u, v, w = camera.intrinsics(64) @ seen_from_camera
    np.testing.assert_allclose(camera.project(*point, 64), [u / w, v / w], rtol=1e-6)
    np.testing.assert_allclose(camera.project(*point, 256), [4 * u / w, 4 * v / w], rtol=1e-6)
    with pytest.raises(ValueError, match="in front of the camera; its depth is -0.5 m"):
        camera.project(0, 0, -1.0, 64)


def test_depth_and_camera_give_back_the_ground(world):
    """With K alone, each pixel's point in space: those of the ground lie on one plane, the camera's height below it."""
    for scene, image in world:
        rows, columns = torch.meshgrid(*[torch.arange(scene.size) + 0.5] * 2, indexing="ij")
        rays = torch.linalg.inv(image.camera) @ torch.stack([columns, rows, torch.ones_like(rows)]).flatten(1)
        below = (rays.view(3, *rows.shape) * image.depth)[1]
        ground = (image.semantic == scenes.CLASSES.index(scene.ground)) | (image.semantic == WATER)
        ground &= image.depth < 1000  # next to the horizon, the digits of float32 run out
        assert below[ground].numpy() == pytest.approx(scene.camera.height, rel=1e-4)


def test_what_is_farther_is_smaller_and_stands_higher():
    boxes = [scenes.render(stage(thing("star", z=z), size=128)).boxes[0].tolist() for z in (3.5, 5.0, 8.0)]
    heights, feet = [y1 - y0 for _, y0, _, y1 in boxes], [y1 for *_, y1 in boxes]
    assert heights == sorted(heights, reverse=True) and feet == sorted(feet, reverse=True)
    assert heights[0] / heights[2] == pytest.approx(8 / 3.5, rel=0.06)


def test_a_second_view_is_shifted_by_the_disparity():
    """A camera moved sideways by b sees what is at depth Z moved by f b / Z, and in the same shape."""
    scene = stage(thing("ring", x=-1.6, z=7.0), thing("heart", x=0.5, z=4.0), size=256)
    other = replace(scene, camera=replace(scene.camera, x=0.3))
    one, two = scenes.render(scene), scenes.render(other)
    shift = (one.boxes - two.boxes)[:, [0, 2]].mean(1)
    expected = one.camera[0, 0] * 0.3 / torch.tensor([7.0, 4.0])
    assert (shift - expected).abs().max() <= 1
    assert torch.equal(two.depth[two.masks.any(0)].unique(), torch.tensor([4.0, 7.0]))


# Keypoints


def slow_joints(scene: scenes.Scene, figure: scenes.Thing) -> np.ndarray:
    """(K, 2) in pixels: limb after limb along the angles, as complex numbers; the lowest point of all on the ground."""
    at = {"head": 0.42j}
    for side, sign, pose in (("left", 1, figure.pose[::2]), ("right", -1, figure.pose[1::2])):
        shoulder, elbow, hip, knee = (-1j * np.exp(1j * sign * a) for a in pose + np.array([0, pose[0], 0, pose[2]]))
        at[f"{side}_shoulder"], at[f"{side}_hip"] = sign * 0.1 + 0.25j, sign * 0.065
        at[f"{side}_elbow"] = at[f"{side}_shoulder"] + 0.17 * shoulder
        at[f"{side}_hand"] = at[f"{side}_elbow"] + 0.16 * elbow
        at[f"{side}_knee"] = at[f"{side}_hip"] + 0.2 * hip
        at[f"{side}_foot"] = at[f"{side}_knee"] + 0.2 * knee
    lowest = min(z.imag - (0.042 if "hand" in name else 0.05) for name, z in at.items())
    metres = [(at[name] - 1j * lowest) * figure.height for name in scenes.KEYPOINTS]
    return np.array([scene.camera.project(figure.x + z.real, z.imag, figure.z, scene.size) for z in metres])


def test_keypoints_are_the_joints_and_their_visibility_is_occlusion():
    counted = np.zeros(3, int)
    for scene in map(scenes.Scenes(60, 64, seed=8, objects=(3, 7)).scene, range(60)):
        image, alone = scenes.render(scene), slow_masks(scene)
        assert image.keypoints.shape == (len(scene.things), len(scenes.KEYPOINTS), 3)
        for n, one in enumerate(scene.things):
            if one.name != "figure":
                assert not image.keypoints[n].any()
                continue
            for (x, y, v), (expected_x, expected_y) in zip(
                image.keypoints[n].tolist(), slow_joints(scene, one), strict=True
            ):
                counted[int(v)] += 1
                if not (0 <= expected_x < 64 and 0 <= expected_y < 64):
                    assert (x, y, v) == (0, 0, 0)
                    continue
                assert (x, y) == pytest.approx((expected_x, expected_y), abs=1e-4)
                hidden = alone[n + 1 :, int(y), int(x)].any()
                assert v == (1 if hidden else 2)
    assert (counted > 10).all(), counted


def test_joints_that_are_seen_lie_on_their_figure():
    for image in scenes.Scenes(10, 256, seed=1, objects=(2, 4), things=("figure",)).render_all():
        for mask, keypoints in zip(image.masks, image.keypoints, strict=True):
            for x, y, v in keypoints.tolist():
                assert v == 0 or bool(mask[int(y), int(x)]) == (v == 2)


def test_left_and_right_are_the_figures_own():
    x = dict(zip(scenes.KEYPOINTS, scenes.render(stage(thing("figure"))).keypoints[0, :, 0].tolist(), strict=True))
    assert all(x[f"left_{part}"] > x[f"right_{part}"] for part in ("shoulder", "elbow", "hand", "hip", "knee", "foot"))
    assert {joint for bone in scenes.SKELETON for joint in bone} == set(range(len(scenes.KEYPOINTS)))


# Captions


def test_captions_parse_back_to_the_scene():
    for i in range(250):
        scene = scenes.Scenes(250, 64, seed=2, objects=(0, 6)).scene(i)
        across = [scene.camera.project(one.x, 0, one.z, 3)[0] for one in scene.things]  # in thirds of the image
        expected = [
            scenes.Mention(one.size, one.texture, one.colour, one.name, scenes.PLACES[min(max(int(u), 0), 2)])
            for u, one in sorted(zip(across, scene.things, strict=True), key=lambda pair: pair[0])
        ]
        found = scenes.parse(scenes.describe(scene))
        assert found == scenes.Facts(tuple(expected), scene.ground, scene.backdrop, scene.light) == scenes.facts(scene)


def test_an_image_has_the_caption_of_its_scene(world):
    for scene, image in world:
        assert image.caption == scenes.describe(scene)
        named = sorted(scenes.THINGS.index(mention.name) for mention in scenes.parse(image.caption).objects)
        assert named == sorted(image.labels.tolist())


def test_every_word_is_read_back():
    for size, texture, colour, name in itertools.product(SIZES, TEXTURES, COLOURS, scenes.THINGS):
        scene = stage(thing(name, size=size, texture=texture, colour=colour))
        mention = scenes.parse(scenes.describe(scene)).objects[0]
        assert (mention.size, mention.texture, mention.colour, mention.name) == (size, texture, colour, name)
    for ground, backdrop, light in itertools.product(GROUNDS, BACKDROPS, LIGHTS):
        found = scenes.parse(scenes.describe(stage(ground=ground, backdrop=backdrop, light=light)))
        assert found == scenes.Facts((), ground, backdrop, light)


def test_a_caption_reads_like_this():
    scene = stage(
        thing("star", x=-1.2, z=6.0, texture="striped"),
        thing("disc", z=4.0, size="small", colour="blue"),
        backdrop="water",
        light="dusk",
    )
    text = "A large striped red star on the left and a small blue disc in the middle, on sand by the water at dusk."
    assert scenes.describe(scene) == text
    assert scenes.describe(stage()) == "Nothing, on sand by day."


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "A cat.",
        "A large red star on the left, on sand by day",
        "A large plain red star on the left, on sand by day.",
        "A large red star on the left, a small blue disc in the middle, on sand by day.",
        "A large red star on the left and, on sand by day.",
        "a large red star on the left, on sand by day.",
    ],
)
def test_other_words_are_refused(caption):
    with pytest.raises(ValueError, match="expected a caption as of describe"):
        scenes.parse(caption)


# What is hidden is not in the scene


def test_hidden_objects_are_nowhere():
    front, beside = thing("square", z=3.5, height=1.9), thing("disc", x=1.6, z=5.0, colour="green")
    behind, outside = thing("disc", z=6.0, height=1.0, colour="blue"), thing("star", x=30.0, z=4.0, colour="pink")
    image = scenes.render(stage(behind, beside, outside, front))
    without = scenes.render(stage(beside, front))
    assert len(image.labels) == 2
    for name, value in vars(without).items():
        found = getattr(image, name)
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value, name
    assert scenes.describe(stage(behind, beside, outside, front)) == without.caption
    assert len(scenes.to_coco([image])["annotations"]) == 2


def test_the_threshold_is_in_pixels():
    """A disc that peeps out from behind a square, pixel by pixel."""
    counts = set()
    for step in range(60):
        disc, square = thing("disc", x=0.55 + 0.002 * step, z=4.01, height=0.6), thing("square", z=4.0, height=1.9)
        scene = stage(disc, square)
        alone = slow_masks(scene)
        visible = int((alone[0] & ~alone[1]).sum())
        assert len(scenes.render(scene).labels) == (2 if visible >= scenes.FEWEST_PIXELS else 1)
        counts.add(visible)
    assert {scenes.FEWEST_PIXELS - 1, scenes.FEWEST_PIXELS} <= counts


def test_a_quarter_of_each_drawn_object_is_seen():
    for i in range(100):
        scene = scenes.Scenes(100, 48, seed=0, objects=(5, 5)).scene(i)  # crowded: some had to go
        assert all(part >= 0.25 for part in seen(scene))


def test_an_image_of_nothing():
    image = scenes.render(stage())
    assert image.boxes.shape == (0, 4) and image.labels.shape == (0,) and image.masks.shape == (0, 64, 64)
    assert image.keypoints.shape == (0, len(scenes.KEYPOINTS), 3)
    assert (image.semantic >= len(scenes.THINGS)).all()
    assert not scenes.to_coco([image])["annotations"]


# Chance


def same(one: scenes.Rendering, two: scenes.Rendering) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(vars(one).values(), vars(two).values(), strict=True)
    )


def test_same_seed_same_scene_in_any_order():
    data = scenes.Scenes(12, seed=4)
    forwards = [data[i] for i in range(12)]
    other = scenes.Scenes(50, seed=4)  # the i-th does not depend on how many there are
    for i in reversed(range(12)):
        assert same(other[i], forwards[i])
    assert same(data[-1], forwards[11]) and same(pickle.loads(pickle.dumps(data))[3], forwards[3])
    assert all(map(same, data.render_all(), forwards))
    assert data.render_all(lambda image: image.caption) == [image.caption for image in forwards]


def test_other_seed_or_index_other_scene():
    drawn = {scenes.Scenes(40, seed=seed).scene(i) for seed in range(3) for i in range(40)}
    assert len(drawn) == 120
    assert scenes.draw_scene(rng(1)) == scenes.draw_scene(rng(1)) != scenes.draw_scene(rng(2))


def test_global_random_state_is_untouched():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    _ = scenes.Scenes(3)[1]
    assert torch.equal(torch.rand(1), expected)


def test_worker_processes_give_the_same():
    data = scenes.Scenes(6, 32)
    loader = DataLoader(data, batch_size=3, num_workers=1, collate_fn=list)
    assert all(map(same, itertools.chain(*loader), data.render_all()))


def test_everything_turns_up():
    drawn = [scenes.Scenes(200, seed=6).scene(i) for i in range(200)]
    things = [one for scene in drawn for one in scene.things]
    for attribute, names in (
        ("name", scenes.THINGS),
        ("size", SIZES),
        ("texture", TEXTURES),
        ("colour", COLOURS),
    ):
        proportions = [sum(getattr(one, attribute) == name for one in things) / len(things) for name in names]
        assert min(proportions) > 0.6 / len(names), attribute
    for attribute, names in (
        ("ground", GROUNDS),
        ("backdrop", BACKDROPS),
        ("light", LIGHTS),
    ):
        assert {getattr(scene, attribute) for scene in drawn} == set(names)
    counts = [sum(len(scene.things) == n for scene in drawn) for n in range(1, 6)]
    assert sum(counts) == 200 and min(counts) > 20
    overlapping = sum(len(scene.things) > 1 and min(seen(scene)) < 0.9 for scene in drawn)
    assert overlapping > 60


def test_objects_and_things_are_as_asked():
    for i in range(20):
        scene = scenes.Scenes(20, objects=(2, 2), things=("heart", "tree")).scene(i)
        assert len(scene.things) == 2 and {one.name for one in scene.things} <= {"heart", "tree"}


# Pixels


def test_textures_are_as_asked():
    for i in range(20):
        drawn = scenes.draw_scene(rng(i), textures=("plain", "dotted"))
        assert {thing.texture for thing in drawn.things} <= {"plain", "dotted"}


def test_near_objects_are_large_and_stand_apart():
    """The smallest is about a third of the image high; nearly all scenes of two show both."""
    heights, both = [], 0
    for i in range(60):
        drawn = scenes.draw_scene(rng(i), objects=(2, 2), near=True)
        both += len(drawn.things) == 2
        camera = drawn.camera
        heights += [camera.focal * thing.height / thing.z for thing in drawn.things]
    usual = [s.camera.focal * t.height / t.z for s in (scenes.draw_scene(rng(i)) for i in range(60)) for t in s.things]
    assert both >= 50
    assert min(heights) > 0.27 > min(usual)


@pytest.mark.parametrize("size", [32, 33, 48, 64, 128, 256])
def test_sizes(size):
    for image in (scenes.Scenes(2, size, seed=1)[0], scenes.render(stage(thing("figure"), size=size))):
        N, K = len(image.labels), len(scenes.KEYPOINTS)
        expected = {
            "image": (torch.float32, (3, size, size)),
            "boxes": (torch.float32, (N, 4)),
            "labels": (torch.int64, (N,)),
            "masks": (torch.bool, (N, size, size)),
            "semantic": (torch.int64, (size, size)),
            "panoptic": (torch.int64, (size, size)),
            "keypoints": (torch.float32, (N, K, 3)),
            "depth": (torch.float32, (size, size)),
            "camera": (torch.float32, (3, 3)),
        }
        found = {name: (x.dtype, tuple(x.shape)) for name, x in vars(image).items() if isinstance(x, torch.Tensor)}
        assert found == expected and N >= 1
        assert image.image.min() >= 0 and image.image.max() <= 1 and image.image.isfinite().all()


def test_more_pixels_show_the_same_scene():
    """Four times finer and averaged, every image is nearly the small one: edges are smooth, nothing has moved."""
    for i in range(8):
        scene = scenes.Scenes(8, 64, seed=9, objects=(1, 2)).scene(i)
        small, large = scenes.render(scene), scenes.render(replace(scene, size=256))
        assert small.caption == large.caption and torch.equal(small.labels, large.labels)
        assert (large.boxes / 4 - small.boxes).abs().max() < 1.01
        averaged = torch.nn.functional.avg_pool2d(large.image[None], 4)[0]
        assert (averaged - small.image).abs().mean() < 0.02


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("light", LIGHTS)
def test_an_objects_colour_is_the_one_of_its_name(colour, light):
    """Of a plain disc's middle, the nearest in hue among all discs under that light; none looks like the ground."""

    def hue(colour: str) -> torch.Tensor:
        image = scenes.render(stage(thing("disc", colour=colour), light=light))
        middle = image.image[:, image.masks[0]].median(1).values
        return (middle - middle.mean()) / middle.norm()

    known = {name: hue(name) for name in COLOURS}
    for texture in TEXTURES[1:]:
        image = scenes.render(stage(thing("disc", colour=colour, texture=texture, z=3.2), light=light, size=128))
        pixels = image.image[:, image.masks[0]]
        vivid = pixels[:, (pixels.amax(0) - pixels.amin(0)).topk(pixels.shape[1] // 4).indices].mean(1)
        vivid = (vivid - vivid.mean()) / vivid.norm()
        assert min(known, key=lambda name: float((known[name] - vivid).norm())) == colour


def test_textures_differ():
    """Stripes lie across, so rows are even; dots and checks are not; plain paint is even everywhere."""
    region = {}
    for texture in TEXTURES:
        image = scenes.render(stage(thing("square", texture=texture, z=3.2, height=1.6), size=128))
        x0, y0, x1, y1 = (int(c) for c in image.boxes[0])
        region[texture] = image.image[:, y0 + 12 : y1 - 12, x0 + 12 : x1 - 12]
    along = {texture: float(pixels.std(2).mean()) for texture, pixels in region.items()}
    down = {texture: float(pixels.std(1).mean()) for texture, pixels in region.items()}
    assert along["plain"] < 1e-3 and along["striped"] < 1e-3 < 0.05 < along["dotted"] and along["checked"] > 0.1
    assert down["plain"] < 0.05 and min(down["striped"], down["dotted"], down["checked"]) > 0.08
    assert abs(along["dotted"] - along["checked"]) > 0.02


def test_a_texture_turns_with_its_object():
    """Under the stripes' own slant, a tilted square is as even as an upright one."""
    tilt = 0.25
    image = scenes.render(stage(thing("square", texture="striped", z=3.2, height=1.6, tilt=tilt), size=256))
    rows, columns = image.masks[0].nonzero().double().add(0.5).T
    x, y = columns - columns.mean(), rows - rows.mean()
    down = math.cos(tilt) * y + math.sin(tilt) * x  # y points down, so that counter-clockwise is a negative turn
    middle = torch.hypot(x, y) < 50
    brightness = image.image[1, image.masks[0]].double()[middle]
    level = (down[middle] / 4).round()
    between = [float(brightness[level == k].mean()) for k in level.unique()]
    within_rows = [float(brightness[level == k].std()) for k in level.unique()]
    assert np.median(within_rows) < 0.05 < 0.15 < np.std(between)


def test_a_shadow_lies_at_the_foot_of_its_object():
    scene = stage(thing("ring", x=-0.6, height=1.2))
    shade = (scenes.render(stage()).image - scenes.render(scene).image).sum(0)
    shade[scenes.render(scene).masks[0]] = 0
    rows, columns = (shade > 0.3 * shade.max()).nonzero().double().add(0.5).T
    u, v = EASEL.project(-0.6, 0.0, 4.0, 64)
    assert float(columns.mean()) == pytest.approx(u, abs=2) and float(rows.mean()) == pytest.approx(v, abs=2.5)


# COCO


@pytest.fixture(scope="module")
def exported():
    images = scenes.Scenes(20, 64, seed=7, objects=(0, 6)).render_all()
    exported = json.loads(json.dumps(scenes.to_coco(images)))
    coco = COCO()
    coco.dataset = exported
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return images, exported, coco


def test_pycocotools_reads_the_instances(exported):
    images, _, coco = exported
    assert coco.getImgIds() == list(range(1, 21)) and len(coco.getAnnIds()) == sum(len(p.labels) for p in images)
    for image_id, image in enumerate(images, 1):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image_id))
        for n, annotation in enumerate(annotations):
            np.testing.assert_array_equal(coco.annToMask(annotation), image.masks[n].numpy())
            packed = coco.annToRLE(annotation)
            assert coco_masks.area(packed) == annotation["area"] == int(image.masks[n].sum())
            np.testing.assert_array_equal(coco_masks.toBbox(packed), annotation["bbox"])
            x, y, w, h = annotation["bbox"]
            assert [x, y, x + w, y + h] == image.boxes[n].tolist()
            category = coco.loadCats(annotation["category_id"])[0]
            assert category["name"] == scenes.THINGS[image.labels[n]]
            if category["name"] == "figure":
                assert len(category["keypoints"]) == len(scenes.KEYPOINTS)
                np.testing.assert_allclose(annotation["keypoints"], image.keypoints[n].flatten(), rtol=1e-6)
                assert annotation["num_keypoints"] == int((image.keypoints[n, :, 2] > 0).sum())


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_truth_scores_full_marks_with_pycocotools(exported, kind):
    _, dataset, coco = exported
    with contextlib.redirect_stdout(io.StringIO()):
        answers = [{**a, "segmentation": coco.annToRLE(a), "score": 1.0} for a in dataset["annotations"]]
        evaluation = COCOeval(coco, coco.loadRes(answers), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_captions_and_segments_are_exported(exported):
    images, dataset, _ = exported
    assert [entry["caption"] for entry in dataset["captions"]] == [image.caption for image in images]
    categories = {entry["id"]: entry for entry in dataset["categories"]}
    assert [entry["name"] for entry in categories.values()] == list(scenes.CLASSES)
    for image, entry in zip(images, dataset["panoptic"], strict=True):
        infos = entry["segments_info"]
        assert sum(info["area"] for info in infos) == image.panoptic.numel()  # every pixel once
        for info in infos:
            mask = image.panoptic == info["id"]
            name = categories[info["category_id"]]["name"]
            assert (image.semantic[mask] == scenes.CLASSES.index(name)).all() and info["area"] == int(mask.sum())
            assert info["isthing"] == (name in scenes.THINGS) == (info["id"] < scenes.STUFF_SEGMENTS)
            packed = coco_masks.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
            np.testing.assert_array_equal(coco_masks.toBbox(packed), info["bbox"])


@pytest.mark.parametrize("proportion", [0.0, 0.3, 1.0])
def test_run_lengths_equal_pycocotools(proportion):
    mask = torch.rand(5, 7, generator=rng()) < proportion
    encoded = {"size": [5, 7], "counts": scenes.run_lengths(mask).tolist()}
    packed = coco_masks.frPyObjects(encoded, 5, 7)
    np.testing.assert_array_equal(coco_masks.decode(packed), mask.numpy())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_numbers_may_mark_a_mask(dtype):
    """Whatever is not 0 is inside, as for pycocotools: 255 and 1 are one run."""
    marked = torch.tensor([[0, 1, 255], [0, 255, 2], [3, 0, 0]])
    assert torch.equal(scenes.run_lengths(marked.to(dtype)), scenes.run_lengths(marked > 0))
    assert torch.equal(scenes.tight_boxes(marked[None].to(dtype)), scenes.tight_boxes(marked[None] > 0))


def test_the_box_of_an_empty_mask_is_empty():
    masks = torch.zeros(3, 5, 7, dtype=torch.bool)
    masks[1, 2, 3:5] = True
    assert scenes.tight_boxes(masks).tolist() == [[0, 0, 0, 0], [3, 2, 5, 3], [0, 0, 0, 0]]
    packed = coco_masks.encode(np.asfortranarray(masks[0].numpy().astype(np.uint8)))
    assert coco_masks.toBbox(packed).tolist() == [0, 0, 0, 0]
    assert scenes.tight_boxes(masks[:0]).shape == (0, 4)


def test_sizes_and_counts_may_be_numpy_s():
    ours = scenes.Scenes(np.int64(3), np.int64(48), np.int64(2), objects=(np.int64(1), np.int64(3)))
    theirs = scenes.Scenes(3, 48, 2, objects=(1, 3))
    assert all(map(same, ours.render_all(), theirs.render_all())) and ours.scene(np.int64(1)) == theirs.scene(1)
    assert same(ours[torch.tensor(2)], theirs[2]) and type(ours.scene(0).size) is int


# Speed, and bad input


def test_a_thousand_scenes_a_minute():
    """On one busy core; a free one draws many times as many."""
    data = scenes.Scenes(60)
    start = time.perf_counter()
    data.render_all()
    assert 60 * 60 / (time.perf_counter() - start) > 1000


def test_refuses_bad_input():
    for size in (31, 257, 64.0):
        with pytest.raises(ValueError, match=f"size of 32 to 256 pixels; got {size}"):
            scenes.draw_scene(rng(), size)
    for objects in ((-1, 2), (3, 2), (0, 11)):
        with pytest.raises(ValueError, match=r"0 ≤ least ≤ most ≤ 10 objects; got \("):
            scenes.draw_scene(rng(), objects=objects)
    with pytest.raises(ValueError, match="things of disc, square, .*; got cat"):
        scenes.Scenes(3, things=("disc", "cat"))
    with pytest.raises(ValueError, match="things of .*; got none"):
        scenes.Scenes(3, things=())
    with pytest.raises(ValueError, match="textures of plain, striped, .*; got woolly"):
        scenes.Scenes(3, textures=("plain", "woolly"))
    with pytest.raises(TypeError, match="a torch.Generator; got int"):
        scenes.draw_scene(0)
    with pytest.raises(ValueError, match="at least one scene; got 0"):
        scenes.Scenes(0)
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"an index below 3; got {index}"):
            scenes.Scenes(3).scene(index)
    with pytest.raises(ValueError, match="expected one of red, .*; got 'mauve'"):
        thing(colour="mauve")
    with pytest.raises(ValueError, match="a pose of 8 angles for a figure; got 2"):
        thing("figure", pose=(0.0, 0.0))
    with pytest.raises(ValueError, match="a pose of 0 angles for a disc; got 8"):
        thing("disc", pose=(0.0,) * 8)
    for height in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="a height above 0 m; got"):
            thing(height=height)
    with pytest.raises(ValueError, match="expected one of day, dusk, night; got 'noon'"):
        stage(light="noon")
    with pytest.raises(ValueError, match=r"from back to front; their z are \[4.0, 5.0\]"):
        stage(thing(z=4.0), thing(z=5.0))
    with pytest.raises(ValueError, match="in front of the camera; its depth is -1 m"):
        scenes.render(stage(thing(z=4.0), camera=replace(EASEL, z=5.0)))


@pytest.mark.parametrize(("what", "value"), [("focal", -1.1), ("height", -1.7), ("x", math.inf), ("horizon", math.nan)])
def test_impossible_cameras_are_refused(what, value):
    with pytest.raises(ValueError, match="expected finite numbers, focal length and height above 0"):
        scenes.Camera(**{"focal": 1.1, "horizon": 0.4, "height": 1.7} | {what: value})


def test_scenes_and_things_are_finite():
    scene = scenes.Scenes(1, seed=3).scene(0)
    with pytest.raises(ValueError, match="shore at a finite distance"):
        replace(scene, shore=math.nan)
    for what in ("x", "z", "tilt"):
        with pytest.raises(ValueError, match="finite places and angles"):
            replace(scene.things[0], **{what: math.nan})


def test_small_images_show_all_that_is_described():
    data = scenes.Scenes(60, 32, seed=2)
    for i in range(60):
        assert [scenes.THINGS.index(t.name) for t in data.scene(i).things] == data[i].labels.tolist()
