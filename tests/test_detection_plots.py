"""Labels that lie on nothing, boxes in figures, and the photographs that ship with their people."""

import json

import pytest
import torch
import torchvision.ops
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from pycocotools.coco import COCO

from course_lib import detection, scenes
from course_lib.base import checkpoints, datasets, zoo
from course_lib.detection import Objects

drawn = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def between(rectangles):
    """The largest overlap of two of them, in square pixels."""
    corner = torch.maximum(rectangles[:, None, :2], rectangles[:, :2])
    sides = (torch.minimum(rectangles[:, None, 2:], rectangles[:, 2:]) - corner).clamp(min=0)
    return float(sides.prod(-1).fill_diagonal_(0).max()) if len(rectangles) else 0.0


@drawn
@given(st.integers(0, 12), st.integers(0, 10_000))
def test_labels_lie_inside_and_on_no_other(n, seed):
    chance = torch.Generator().manual_seed(seed)
    corner = 60 * torch.rand(n, 2, generator=chance)
    boxes = torch.cat([corner, corner + 40 * torch.rand(n, 2, generator=chance)], 1)  # some stick out
    sizes = torch.tensor([[22.0, 6.0]]).expand(n, 2)
    labels = detection.place_labels(boxes, sizes, (64, 80))
    assert labels.shape == (n, 4)
    torch.testing.assert_close(labels[:, 2:] - labels[:, :2], sizes)
    assert (labels >= 0).all() and (labels[:, 2:] <= torch.tensor([80.0, 64.0]) + 1e-4).all()
    assert between(labels) < 0.01, "there is room for three in each of ten lines"


def test_the_first_box_has_its_label_above_and_a_twin_elsewhere():
    box = torch.tensor([10.0, 20, 50, 60])
    labels = detection.place_labels(torch.stack([box, box]), torch.tensor([[15.0, 5.0]] * 2), (64, 64))
    assert labels[0].tolist() == [10, 15, 25, 20]
    assert between(labels) == 0


def test_a_full_image_gets_overlapping_labels_rather_than_none():
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 3)
    assert detection.place_labels(boxes, torch.tensor([[10.0, 10.0]] * 3), (10, 10)).tolist() == boxes.tolist()


def test_a_label_wider_than_the_image_begins_at_its_border():
    assert detection.place_labels(torch.tensor([[5.0, 5, 9, 9]]), torch.tensor([[30.0, 4.0]]), (10, 10))[0, 0] == 0


def test_labels_refuse_what_is_no_box():
    with pytest.raises(ValueError, match=r"xywh"):
        detection.place_labels(torch.tensor([[5.0, 5, 1, 1]]), torch.ones(1, 2), (9, 9))
    with pytest.raises(ValueError, match=r"2 boxes need sizes \(2, 2\), got \(1, 2\)"):
        detection.place_labels(torch.zeros(2, 4), torch.ones(1, 2), (9, 9))


def crowded(seed):
    rendered = scenes.render(scenes.draw_scene(torch.Generator().manual_seed(seed), 64))
    boxes, labels = rendered.boxes.repeat(2, 1), rendered.labels.repeat(2)
    return rendered.image, Objects(boxes, labels, torch.linspace(0.99, 0.05, len(labels)))


def test_drawn_texts_do_not_overlap_and_stay_within_their_labels():
    images, objects = zip(*(crowded(seed) for seed in (3, 4, 5)), strict=True)
    first = [each[torch.tensor([0])] for each in objects]
    figure = detection.boxed(list(images), list(objects), scenes.THINGS, ["a", "b", "c"], dashed=first)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    for ax, found in zip(figure.axes, objects, strict=True):
        assert len(ax.texts) == len(found) + 1
        extents = torch.tensor([text.get_window_extent(renderer).extents.tolist() for text in ax.texts])
        assert between(extents) < 1
        labels = [patch.get_window_extent(renderer).extents for patch in ax.patches[len(found) + 1 :]]
        for text, label in zip(extents.tolist(), labels, strict=True):
            assert label[0] <= text[0] and text[2] <= label[2], "wide enough for its text"


def test_only_sure_finds_are_drawn_and_a_single_name_is_not_repeated():
    image, found = crowded(3)
    many = detection.boxed([image], [found], scenes.THINGS, minimum=0.5).axes[0]
    assert len(many.texts) == int((found.scores >= 0.5).sum()) > 0
    people = Objects(found.shapes, 0 * found.labels, found.scores)
    assert all(text.get_text()[0].isdigit() for text in detection.boxed([image], [people], ("person",)).axes[0].texts)
    true = Objects(found.shapes, 0 * found.labels)
    assert not detection.boxed([image], [true], ("person",)).axes[0].texts
    assert not detection.boxed([image], [found], scenes.THINGS, text=False).axes[0].texts


def test_figures_refuse_other_numbers_of_images_and_objects():
    image, found = crowded(3)
    with pytest.raises(ValueError, match=r"2 images need as many objects; got 1 and 0"):
        detection.boxed([image, image], [found], scenes.THINGS)


# Photographs


def test_streets_are_those_of_the_annotations():
    streets = detection.load_streets()
    path = checkpoints.folder().with_name("images") / "coco_instances.json"
    coco = COCO(str(path))
    images = json.loads(path.read_text(encoding="utf-8"))["images"]
    assert list(streets) == [image["name"] for image in images] == ["street", "rider", "crossing", "skatepark"]
    for (name, (image, people)), facts in zip(streets.items(), images, strict=True):
        assert torch.equal(image, datasets.load_image(name))
        theirs = coco.loadAnns(coco.getAnnIds(imgIds=facts["id"], catIds=coco.getCatIds(["person"])))
        expected = torchvision.ops.box_convert(torch.tensor([each["bbox"] for each in theirs]), "xywh", "xyxy")
        torch.testing.assert_close(people.shapes, expected)
        assert people.crowd.tolist() == [bool(each["iscrowd"]) for each in theirs]
        for box, each in zip(expected.tolist(), theirs, strict=True):
            rows, columns = coco.annToMask(each).nonzero()
            if len(rows) > 100:  # masks and boxes belong together
                tight = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                assert max(abs(a - b) for a, b in zip(box, tight, strict=True)) < 3


def test_people_are_found_in_pixels_of_the_photograph_whatever_its_size():
    detector = zoo.load("detector_pedestrians")
    image, people = detection.load_streets()["street"]
    small = detection.find_people(detector, image)
    large = detection.find_people(detector, image.repeat_interleave(2, -1).repeat_interleave(2, -2))
    assert detection.iou(small.shapes[0], large.shapes[0] / 2) > 0.85
    assert small.scores[0] > 0.5 and (small.scores[1:] < 0.4).all(), "one man, and no other"
    assert detection.evaluate([small], [people]).mean_precision(0.5) == 1


def test_finding_people_takes_one_image():
    with pytest.raises(ValueError, match=r"one image \(1, 3, H, W\), got \(2, 3, 64, 64\)"):
        detection.find_people(zoo.load("detector_pedestrians"), torch.rand(2, 3, 64, 64))
