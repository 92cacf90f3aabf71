"""The network learns, mirrors rightly, resumes; and the shipped one keeps its scores on held-out scenes."""

import importlib
import json
import re
from pathlib import Path

import pytest
import torch
from conftest import rng, uniform
from torch import nn

from course_lib import detection, scenes, segmentation
from course_lib.base import checkpoints, zoo
from course_lib.base.loop import Loop
from course_lib.base.pyramid import SmallBackbone
from course_lib.segmentation import panoptic
from recipes import common

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = checkpoints.folder() / "panoptic_scenes.safetensors"


@pytest.fixture(scope="module")
def rendered() -> list[scenes.Rendering]:
    return scenes.Scenes(6, 64, seed=3).render_all()


@pytest.fixture(scope="module")
def data(rendered) -> segmentation.SegmentationDataset:
    return segmentation.SegmentationDataset.of(rendered)


def tiny() -> segmentation.SegmentationNet:
    torch.manual_seed(0)
    return segmentation.SegmentationNet(backbone=SmallBackbone((16, 32, 32)), width=16)


def perfect(images: list[scenes.Rendering]) -> segmentation.Maps:
    """What a network without fault would say."""
    _, semantic, heatmap, offsets = segmentation.SegmentationDataset.of(images)[:]
    logits = 20 * torch.nn.functional.one_hot(semantic, len(scenes.CLASSES)).movedim(-1, 1).float()
    return segmentation.Maps(logits, heatmap, offsets)


def test_maps_have_their_shapes_and_types():
    maps = tiny()(torch.rand(2, 3, 32, 40))
    assert maps.logits.shape == (2, 14, 32, 40) and maps.heatmap.shape == (2, 32, 40)
    assert maps.offsets.shape == (2, 2, 32, 40)
    with torch.autocast("cpu", torch.bfloat16):
        assert {x.dtype for x in tiny()(torch.rand(1, 3, 32, 32))} == {torch.float32}
    for shape in ((1, 3, 32, 36), (1, 1, 32, 32), (3, 32, 32)):
        with pytest.raises(ValueError, match="multiples of 8"):
            tiny()(torch.rand(shape))


def test_a_detector_lends_its_backbone_and_pyramid():
    torch.manual_seed(1)
    detector = detection.Detector(8, SmallBackbone((16, 32, 32)), width=16)
    network = tiny().take_up(detector)
    assert torch.equal(network.backbone.stem[0].weight, detector.backbone.stem[0].weight)
    assert torch.equal(network.smooth[1].body[3].weight, detector.smooth[1].body[3].weight)
    assert torch.equal(network.heads.weight, tiny().heads.weight), "the rest stays as it was"
    with pytest.raises(ValueError, match=r"levels have \(32, 32\) channels"):
        tiny().take_up(detection.Detector(8, SmallBackbone((16, 32, 48)), width=16))


def test_targets_are_what_the_scenes_say(rendered, data):
    assert len(data) == 6
    images, semantic, heatmaps, offsets = data[torch.tensor([4, 1])]
    assert (images - torch.stack([rendered[i].image for i in (4, 1)])).abs().max() < 1 / 255
    assert torch.equal(semantic[1], rendered[1].semantic)
    heatmap, to_centre = segmentation.centre_targets(rendered[1].masks)
    torch.testing.assert_close(heatmaps[1], heatmap, atol=1e-3, rtol=0)
    torch.testing.assert_close(offsets[1], to_centre, atol=2e-2, rtol=0)


def test_drawn_targets_are_those_of_the_scenes(data):
    threads = torch.get_num_threads()
    drawn = segmentation.SegmentationDataset.draw(6, 64, seed=3)
    assert torch.get_num_threads() == threads
    for mine, other in zip(drawn[:], data[:], strict=True):
        assert torch.equal(mine, other)


def test_mirrored_targets_are_the_targets_of_the_mirrored_scene(rendered, data):
    batch = segmentation.mirror(data[:2], torch.tensor([True, False]))
    for part, original in zip(batch, data[:2], strict=True):
        assert torch.equal(part[1], original[1])
    heatmap, to_centre = segmentation.centre_targets(rendered[0].masks.flip(-1))
    torch.testing.assert_close(batch[2][0], heatmap, atol=1e-3, rtol=0)
    torch.testing.assert_close(batch[3][0], to_centre, atol=2e-2, rtol=0)
    assert torch.equal(batch[0][0], data[:1][0][0].flip(-1)) and torch.equal(batch[1][0], rendered[0].semantic.flip(-1))


def train(data, steps: int, resume_from=None) -> Loop:
    network = tiny()
    optimiser, schedule = segmentation.optimiser_and_schedule(network, 40, lr=5e-3)
    rng = torch.Generator().manual_seed(0)
    parts = {"network": network, "optimiser": optimiser, "schedule": schedule, "rng": rng}
    step = segmentation.segmentation_step(network, optimiser, rng, schedule=schedule)
    loop = Loop(step, data, steps=steps, batch_size=6, stateful=parts, resume_from=resume_from)
    loop.run()
    return loop


def test_all_losses_fall(data):
    history = train(data, 40).history
    assert list(history) == ["cross-entropy", "Dice", "centres", "offsets"]
    for name, values in history.items():
        assert sum(values[-5:]) < 0.97 * sum(values[:5]), name


def test_the_losses_are_the_stated_ones(rendered):
    """The framework's own, in float64; a pixel of 255 counts nowhere."""
    _, semantic, heatmap, offsets = segmentation.SegmentationDataset.of(rendered)[:]
    g = torch.Generator().manual_seed(1)
    maps = segmentation.Maps(*(torch.randn(6, *size, 64, 64, generator=g, dtype=torch.float64)
                               for size in ((14,), (), (2,))))  # fmt: skip
    for unknown in (False, True):
        if unknown:
            semantic[:, 20:40] = 255
        named = segmentation.segmentation_losses(maps, semantic, heatmap, offsets)
        weight = torch.tensor([4.0] * 8 + [1.0] * 6, dtype=torch.float64)
        own = torch.nn.functional.cross_entropy(maps.logits, semantic, weight, ignore_index=255)
        things, known = semantic < 8, semantic != 255
        mine = 20 * ((maps.heatmap - heatmap).square() * known).mean()
        far = (maps.offsets - offsets).abs().sum(1)[things].mean() / 8 / 2
        for name, expected in (("cross-entropy", own), ("centres", mine), ("offsets", far)):
            torch.testing.assert_close(named[name].double(), expected, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(named["Dice"], segmentation.dice_loss(maps.logits, semantic))
    other = segmentation.segmentation_losses(maps, semantic, heatmap, offsets, centre_weight=40.0, offset_weight=1.0)
    for name in ("centres", "offsets"):
        torch.testing.assert_close(other[name], 2 * named[name])


def test_offsets_count_on_things_alone(data):
    """An image without things teaches no offsets."""
    empty = segmentation.SegmentationDataset.of(scenes.Scenes(2, 64, seed=1, objects=(0, 0)).render_all())
    network = tiny()
    optimiser, _ = segmentation.optimiser_and_schedule(network, 5)
    step = segmentation.segmentation_step(network, optimiser, torch.Generator().manual_seed(0))
    assert float(step(empty[:])["offsets"]) == 0 < float(step(data[:])["offsets"])


def test_predict_does_not_depend_on_batches_and_leaves_a_training_alone(rendered):
    network, images = tiny(), torch.stack([image.image for image in rendered])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    whole, parts = segmentation.predict(network, images), segmentation.predict(network, images, 4)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert network.training and all(torch.equal(before[name], x) for name, x in network.state_dict().items())
    segmentation.predict(network.eval(), images)
    assert not network.training


def test_a_perfect_network_gets_perfect_scores(rendered, monkeypatch):
    monkeypatch.setattr(panoptic, "predict", lambda network, images: perfect(rendered))
    scores = segmentation.evaluate(tiny(), rendered, threshold=0.5)
    assert all(score > 0.97 for score in scores.values()), scores
    assert scores["mIoU"] == 1


def test_an_untrained_network_is_judged_without_fuss(rendered):
    scores = segmentation.evaluate(tiny(), rendered)
    assert 0 <= scores["PQ"] < 0.2 and 0 <= scores["mIoU"] < 0.3 and scores["mask AP"] < 0.1


def test_truth_of_a_scene_is_its_labels(rendered):
    for image in rendered:
        semantic, found, panoptic = segmentation.truth(image)
        assert torch.equal(panoptic.semantic(), semantic) and torch.equal(found.masks, image.masks)
        assert {panoptic.labels[n + 1] for n in range(len(image.labels))} == set(image.labels.tolist())


def test_shipped_network_keeps_its_scores():
    """On scenes of a third seed, which neither training nor the recipe's judge has seen."""
    network = zoo.load("panoptic_scenes")
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    scores = segmentation.evaluate(network, scenes.Scenes(100, 64, seed=424_242).render_all())
    assert scores["mIoU"] > 0.85 and scores["PQ"] > 0.70 and scores["mask AP50"] > 0.80, scores


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    module = importlib.import_module("recipes.segmentation")
    monkeypatch.chdir(tmp_path)
    return module


def test_recipe_runs_saves_and_draws(recipe, tmp_path):
    scores = recipe.main(["--quick", "--json", "scores.json"])["scenes"]
    assert {"mIoU", "PQ", "mask AP"} <= set(scores)
    assert json.loads(Path("scores.json").read_text())["name"] == "panoptic_scenes"
    checkpoints.restore(zoo.build("panoptic_scenes"), tmp_path / "build" / "panoptic_scenes_quick.safetensors")
    assert list(Path("build").glob("panoptic_scenes_quick_*.png"))
    assert (tmp_path / "build" / "panoptic_scenes_quick.safetensors").stat().st_size <= common.MAX_BYTES


def test_predict_leaves_every_layer_in_its_mode():
    network = segmentation.SegmentationNet().train()
    frozen = next(m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)).eval()
    segmentation.predict(network, torch.rand(1, 3, 64, 64, dtype=torch.float64))
    with pytest.raises(TypeError, match="floating-point tensor .* got torch.uint8"):
        segmentation.predict(network, torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises((ValueError, RuntimeError)):
        segmentation.predict(network, torch.rand(1, 5, 64, 64))
    assert network.training and not frozen.training and sum(not m.training for m in network.modules()) == 1


# torchvision's networks behind the course's interface; tests/test_zoo.py has the way to their weights


class Bright(nn.Module):
    """Answers like torchvision's: class 1 where a normalised image is above its mean."""

    def forward(self, x):
        return {"out": torch.stack([-x.mean(1), x.mean(1)], 1)}


class Halves(nn.Module):
    """Answers like torchvision's: left and right half, the second of them unsure."""

    def forward(self, photographs):
        found = []
        for image in photographs:
            _, H, W = image.shape
            masks = torch.zeros(2, 1, H, W)
            masks[0, :, :, : W // 2], masks[1, :, :, W // 2 :] = 0.9, 0.6
            found.append({"masks": masks, "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.9, 0.3])})
        return found


def test_semantic_map_of_a_normalised_photograph():
    network = segmentation.PretrainedSemantic(Bright(), ("dark", "bright"))
    photographs = torch.zeros(2, 3, 4, 6)
    photographs[:, :, :, 3:] = 0.5  # above ImageNet's mean
    found = network(photographs)
    assert found.dtype == torch.int64 and found.tolist() == [[[0, 0, 0, 1, 1, 1]] * 4] * 2


def test_instances_of_a_photograph():
    network = segmentation.PretrainedInstances(Halves(), ("nothing", "left", "right"))
    (sure,) = network(torch.rand(1, 3, 4, 6))
    assert sure.labels.tolist() == [1] and sure.masks.dtype == torch.bool and sure.masks[0, :, :3].all()
    first, second = network(torch.rand(2, 3, 4, 6), minimum=0.2)
    assert len(first.masks) == len(second.masks) == 2 and not (first.masks[0] & first.masks[1]).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_predict_by_a_network_of_another_precision(dtype, monkeypatch):
    monkeypatch.setenv("COURSE_PRECISION", "bfloat16")  # as where the processor is fast at it
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = segmentation.predict(zoo.load("panoptic_scenes", "cpu").to(dtype), images).logits
    expected = zoo.load("panoptic_scenes", "cpu")(images).logits
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.97


@pytest.mark.parametrize("low, high, missing", [(0, 255, "x / 255"), (-1, 1, "(x + 1) / 2")])
def test_values_out_of_range_are_refused(low, high, missing):
    """As other tutorials and files have them. In training, only the first batch is looked at."""
    images = low + (high - low) * uniform(2, 3, 32, 32, dtype=torch.float32)
    network = segmentation.SegmentationNet().eval()
    told = rf"images in \[0, 1\], .*{re.escape(missing)}"
    with pytest.raises(ValueError, match=told):
        segmentation.predict(network, images)
    for kind, inner in ((segmentation.PretrainedSemantic, Bright()), (segmentation.PretrainedInstances, Halves())):
        with pytest.raises(ValueError, match=told):
            kind(inner, ("a", "b", "c"))(images)
    optimiser = torch.optim.SGD(network.parameters(), 0.0)
    step = segmentation.segmentation_step(network, optimiser, rng())
    others = torch.zeros(2, 32, 32, dtype=torch.int64), torch.zeros(2, 32, 32), torch.zeros(2, 2, 32, 32)
    with pytest.raises(ValueError, match=told):
        step((images, *others))
    step((images.clamp(0, 1), *others))
    step((images, *others))  # not looked at: a GPU would wait
