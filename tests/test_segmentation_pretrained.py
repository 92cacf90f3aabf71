"""The way through torchvision's networks, with stubs or random weights in place of the download."""

import pytest
import torch
import torchvision.models as zoo
from torch import nn

from course_lib import segmentation
from course_lib.base import datasets
from course_lib.segmentation import model


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
    model = segmentation.PretrainedSemantic(Bright(), ("dark", "bright"))
    photographs = torch.zeros(2, 3, 4, 6)
    photographs[:, :, :, 3:] = 0.5  # above ImageNet's mean
    found = model(photographs)
    assert found.dtype == torch.int64 and found.tolist() == [[[0, 0, 0, 1, 1, 1]] * 4] * 2


def test_instances_of_a_photograph():
    model = segmentation.PretrainedInstances(Halves(), ("nothing", "left", "right"))
    (sure,) = model(torch.rand(1, 3, 4, 6))
    assert sure.labels.tolist() == [1] and sure.masks.dtype == torch.bool and sure.masks[0, :, :3].all()
    first, second = model(torch.rand(2, 3, 4, 6), minimum=0.2)
    assert len(first.masks) == len(second.masks) == 2 and not (first.masks[0] & first.masks[1]).any()


def test_both_fit_torchvision_without_weights(monkeypatch):
    """The real networks, with random weights."""

    def unread(build):
        return lambda weights: build(weights=None, weights_backbone=None, num_classes=len(weights.meta["categories"]))

    monkeypatch.setenv("COURSE_OFFLINE", "0")
    for room, name in ((zoo.segmentation, "deeplabv3_mobilenet_v3_large"), (zoo.detection, "maskrcnn_resnet50_fpn")):
        monkeypatch.setattr(room, name, unread(getattr(room, name)))
    deeplab, mask_rcnn = zoo.load("deeplab"), zoo.load("mask_rcnn")
    assert "cat" in deeplab.names and len(deeplab.names) == 21
    assert "cat" in mask_rcnn.names and len(mask_rcnn.names) == 91
    photograph = torch.rand(1, 3, 64, 96)
    assert deeplab(photograph).shape == (1, 64, 96)
    (found,) = mask_rcnn(photograph, minimum=0.0)
    assert found.masks.shape[1:] == (64, 96) and found.masks.dtype == torch.bool


@pytest.mark.parametrize("name", ["deeplab", "mask_rcnn"])
def test_without_network_it_says_so(name, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(datasets.OfflineError, match="not cached, and COURSE_OFFLINE forbids a download"):
        zoo.load(name)


def test_a_failed_download_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_OFFLINE", "0")

    def refused(weights):
        raise OSError("no route to host")

    monkeypatch.setattr(model.models.segmentation, "deeplabv3_mobilenet_v3_large", refused)
    with pytest.raises(datasets.DownloadError, match="DeepLab could not be downloaded: no route to host"):
        zoo.load("deeplab")
