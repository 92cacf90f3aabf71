"""People in photographs: reading, ids, squares and their targets; the shipped network on held-out photographs."""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import rng, uniform
from PIL import Image

from course_lib import detection, segmentation
from course_lib.base import checkpoints, datasets, zoo
from course_lib.segmentation import rle
from course_lib.segmentation.people import IGNORED, PEOPLE_SIDE, People

DATA = Path(os.environ.get("COURSE_DATA") or os.devnull)


def two_people() -> People:
    """One behind the other, and a crowd to the right."""
    masks = torch.zeros(3, 20, 30, dtype=torch.bool)
    masks[0, 2:18, 2:12], masks[1, 8:16, 8:14], masks[2, :, 20:] = True, True, True
    return People.of(uniform(3, 20, 30, dtype=torch.float32), masks, torch.tensor([False, False, True]))


def test_the_smaller_person_is_in_front_and_crowds_are_ignored():
    people = two_people()
    assert len(people.masks) == 2 and not (people.masks[0] & people.masks[1]).any()
    assert people.masks.sum((1, 2)).tolist() == [160 - 32, 48]
    assert torch.equal(people.ignored, torch.arange(30).expand(20, 30) >= 20)
    again = People.of_ids(people.image, people.ids.long())
    assert torch.equal(again.masks, people.masks) and torch.equal(again.ignored, people.ignored)


def test_people_as_objects_and_as_a_panoptic_map():
    people = two_people()
    objects, panoptic = people.objects(), people.panoptic()
    assert objects.crowd.tolist() == [False, False, True] and torch.equal(objects.shapes[:2], people.masks)
    assert torch.equal(panoptic.semantic(), torch.where(people.ignored, 255, (people.ids == 0).long()))
    alone = People(people.image, people.masks, torch.zeros(20, 30, dtype=torch.bool))
    assert len(alone.objects()) == 2


def test_resized_people_keep_their_places():
    small = two_people().resized(10)
    assert small.image.shape == (3, 10, 15) and small.ids.shape == (10, 15)
    assert small.masks.sum((1, 2)).tolist() == [32, 12]


def test_squares_show_what_their_targets_say():
    """A photograph in which colour says whose a pixel is: the square's pixels and its classes must agree."""
    ids = torch.zeros(40, 60, dtype=torch.int64)
    ids[5:25, 8:20], ids[10:30, 30:50], ids[:, 55:] = 1, 2, IGNORED
    image = torch.stack([(ids == 1).float(), (ids == 2).float(), (ids == IGNORED).float()])
    data = segmentation.PeopleDataset([People.of_ids(image, ids)], 40)
    plain = partial(segmentation.random_squares, size=32, zoom=(0.5, 2.0))
    for seed in range(6):
        images, classes, heatmap, offsets = plain(data[torch.tensor([0])], rng(seed))
        assert images.shape == (1, 3, 32, 32) and classes.shape == heatmap.shape == (1, 32, 32)
        apart = images.amax(1) - images.amin(1)
        sure = apart > 0.9 * apart.max()  # away from rims, where colours mix
        person = images[:, :2].amax(1) > images[:, 2]
        expected = torch.where(person, 0, IGNORED)
        assert (classes == expected)[sure].float().mean() > 0.97 and (sure & person).any()
        assert not offsets[(classes != 0)[:, None].expand_as(offsets)].any() and heatmap.amax() > 0.5
        rows, columns = (classes[0] == 0).nonzero().unbind(1)
        ends = torch.stack([rows, columns]) + offsets[0][:, rows, columns]
        assert len(ends.round(decimals=2).unique(dim=1).T) <= 2, "all pixels of a person point at one place"
    one, other = (plain(data[torch.tensor([0])], rng(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), "the rng decides all"


def test_a_wider_hill_for_a_larger_person():
    masks = torch.zeros(2, 30, 60, dtype=torch.bool)
    masks[0, 10:20, 10:20], masks[1, 10:20, 40:50] = True, True
    heatmap, _ = segmentation.centre_targets(masks, torch.tensor([2.0, 4.0]))
    assert float(heatmap[14, 20]) < float(heatmap[14, 50])
    one, other = segmentation.centre_targets(masks, 3.0), segmentation.centre_targets(masks, torch.tensor([3.0, 3.0]))
    assert torch.equal(one[0], other[0])
    with pytest.raises(ValueError, match="sigma > 0"):
        segmentation.centre_targets(masks, torch.tensor([2.0, 0.0]))


def coco_folder(folder: Path) -> Path:
    """A folder in COCO's layout: two images, one of them with an Attribution licence."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2017").mkdir()
    mask = torch.zeros(36, 48, dtype=torch.bool)
    mask[2:9, 3:11] = True
    entries = [{"id": n, "file_name": f"{n}.png", "height": 36, "width": 48, "license": n} for n in (4, 5)]
    for entry in entries:
        Image.fromarray(np.full((36, 48, 3), 90, np.uint8)).save(folder / "val2017" / entry["file_name"])
    runs, box = rle.to_coco(rle.encode(mask)), [[12.0, 1.0, 15.0, 1.0, 15.0, 6.0, 12.0, 6.0]]
    annotations = [
        {"image_id": 4, "category_id": 1, "iscrowd": 0, "segmentation": runs},
        {"image_id": 4, "category_id": 1, "iscrowd": 1, "segmentation": box},
        {"image_id": 4, "category_id": 3, "iscrowd": 0, "segmentation": runs},
    ]
    content = {"images": entries, "annotations": annotations}
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return folder


def test_coco_is_read_as_it_comes(tmp_path):
    found = segmentation.load_coco_people(coco_folder(tmp_path))
    (shown,), (other,) = found["attribution"], found["others"]
    assert shown.masks.shape == (1, 36, 48) and int(shown.masks.sum()) == 56 and int(shown.ignored.sum()) == 15
    assert other.masks.shape == (0, 36, 48) and not other.ignored.any()
    with pytest.raises(FileNotFoundError, match="instances_"):
        segmentation.load_coco_people(tmp_path / "elsewhere")


def test_panoptic_annotations_are_read_as_they_come(tmp_path):
    (tmp_path / "panoptic" / "val2017").mkdir(parents=True)
    (tmp_path / "images" / "val2017").mkdir(parents=True)
    coded = np.zeros((6, 8), np.int64)
    coded[:3, :4], coded[3:, :4], coded[:, 6:] = 70_001, 5, 300
    coded = coded.repeat(6, 0).repeat(6, 1)
    colours = np.stack([coded % 256, coded // 256 % 256, coded // 65536], -1).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "panoptic" / "val2017" / "1.png")
    Image.fromarray(colours).save(tmp_path / "images" / "val2017" / "1.png")
    segments = [{"id": 70_001, "category_id": 1, "iscrowd": 0}, {"id": 5, "category_id": 2, "iscrowd": 0},
                {"id": 300, "category_id": 1, "iscrowd": 1}]  # fmt: skip
    content = {
        "images": [{"id": 1, "file_name": "1.png", "license": 2}],
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": segments}],
    }
    (tmp_path / "panoptic" / "panoptic_val2017.json").write_text(json.dumps(content))
    (people,) = segmentation.load_coco_people(tmp_path)["others"]
    assert torch.equal(people.masks[0], torch.from_numpy(coded == 70_001)) and len(people.masks) == 1
    assert torch.equal(people.ignored, torch.from_numpy(coded == 300))


@pytest.mark.skipif(not (DATA / "coco_mini").is_dir(), reason="needs coco_mini in COURSE_DATA")
def test_the_shown_photographs_are_held_out():
    """What ships is of the Attribution licence, and so never among those to learn from."""
    shown = json.loads((checkpoints.folder().with_name("images") / "coco_instances.json").read_text())["images"]
    for path in (DATA / "coco_mini" / "annotations").glob("instances_*.json"):
        licences = {image["id"]: image["license"] for image in json.loads(path.read_text())["images"]}
        assert all(licences.get(image["id"], 4) == 4 for image in shown)


def test_shipped_people_are_where_their_annotations_say():
    people = segmentation.shipped_people()
    assert list(people) == ["street", "rider", "crossing", "skatepark"]
    for name, each in people.items():
        assert torch.equal(each.image[None], datasets.load_image(name)) and len(each.masks)
    assert people["skatepark"].ignored.any()


def test_perfect_maps_give_perfect_scores(monkeypatch):
    """Through mirroring, grouping and merging: the truth as maps comes out as the truth."""
    people = two_people().resized(20)
    module = segmentation.people

    def told(network, images):
        flipped = not torch.equal(images[0, :, :20, :30], people.image)
        masks = people.masks.flip(-1) if flipped else people.masks
        heatmap, offsets = segmentation.centre_targets(masks, 1.0)
        logits = torch.where(masks.any(0), 9.0, -9.0)
        maps = torch.stack([logits, -logits])[None], heatmap[None], offsets[None]
        wide = [torch.nn.functional.pad(x, ((2, 0) if flipped else (0, 2)) + ((0, 12))) for x in maps]
        return segmentation.Maps(*wide)

    monkeypatch.setattr(module, "predict", told)
    monkeypatch.setattr(module, "WINDOW", 5)
    monkeypatch.setattr(module, "LEAST_AREA", 8)

    class Network:
        divisor = 32

    scores = segmentation.evaluate_people(Network(), [people])
    assert scores["IoU"] == 1 and scores["mask AP50"] > 0.99 and scores["PQ"] > 0.99, scores


@pytest.mark.parametrize("photograph", [torch.zeros(3, 20, 20), torch.zeros(1, 3, 20, 20, dtype=torch.uint8)])
def test_photographs_of_another_kind_are_refused(photograph):
    with pytest.raises((ValueError, TypeError), match=r"\(B, C, H, W\)"):
        segmentation.find_people(segmentation.SegmentationNet(2), photograph)


def test_all_but_the_way_up_is_the_frozen_detectors():
    network = zoo.build("panoptic_people")
    assert not any(p.requires_grad for p in network.backbone.vgg.parameters())
    detector = detection.Detector(1, detection.PerceptualBackbone(), width=64)
    network.take_up(detector)
    key = "convolutions.4_1.weight"
    assert torch.equal(network.backbone.vgg.state_dict()[key], detector.backbone.vgg.state_dict()[key])
    optimiser, _ = segmentation.optimiser_and_schedule(network, 5)
    assert not {id(p) for p in network.backbone.vgg.parameters()} & {id(p) for p in optimiser.param_groups[0]["params"]}


def test_shipped_network_finds_people_in_photographs_it_has_not_seen():
    network = zoo.load("panoptic_people")
    small = [people.resized(PEOPLE_SIDE) for people in segmentation.shipped_people().values()]
    scores = segmentation.evaluate_people(network, small)
    assert scores["IoU"] > 0.51 and scores["mask AP50"] > 0.11 and scores["PQ"] > 0.47, scores


@pytest.mark.skipif(not (DATA / "pennfudan").is_dir(), reason="needs pennfudan in COURSE_DATA")
def test_shipped_network_keeps_its_score_on_held_out_pedestrians():
    told = json.loads(checkpoints.load("panoptic_people")[1]["score"])
    test = [People(p.image, p.masks, torch.zeros_like(p.masks[0])) for p in detection.load_pedestrians("test")]
    scores = segmentation.evaluate_people(zoo.load("panoptic_people"), [p.resized(PEOPLE_SIDE) for p in test])
    for name, score in scores.items():
        assert score == pytest.approx(told[f"Penn-Fudan: {name}"], abs=0.02), name


@pytest.mark.skipif(not (DATA / "coco_mini").is_dir(), reason="needs coco_mini and pennfudan in COURSE_DATA")
def test_recipe_runs_and_saves(tmp_path, monkeypatch):
    from recipes import segmentation as recipe

    monkeypatch.chdir(tmp_path)
    scores = recipe.main(["--quick", "--steps", "2", "--model", "people"])["people"]
    assert {"Penn-Fudan: mask AP", "COCO: IoU"} <= set(scores)
    checkpoints.restore(zoo.build("panoptic_people"), tmp_path / "build" / "panoptic_people_quick.safetensors")
    assert list(Path("build").glob("panoptic_people_quick_*.png"))
