"""base/zoo.py: every network by its name; what ships loads and is small, what does not fails in plain words."""

import importlib
import os
import subprocess
import sys

import pytest
import requests
import torch
from conftest import normal

from course_lib.base import checkpoints, datasets, zoo
from course_lib.base.checkpoints import CheckpointError
from course_lib.base.datasets import DownloadError, OfflineError

SHIPPED = sorted(name for name in zoo.names() if zoo.entry(name).url is None)
OTHERS = sorted(name for name in zoo.names() if zoo.entry(name).url is not None)


def test_every_shipped_file_has_a_network_and_the_other_way_round():
    assert sorted(path.stem for path in checkpoints.folder().glob("*.safetensors")) == SHIPPED
    assert OTHERS == ["deeplab", "faster_rcnn", "keypoint_rcnn", "mask_rcnn", "vgg19"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_is_small_frozen_on_the_device_and_what_its_file_holds(name, device):
    network = zoo.load(name, device)
    limit = 5_000_000 if name in ("dcgan_cats", "diffusion_cats") else 3_000_000  # they draw 64×64
    assert (checkpoints.folder() / f"{name}.safetensors").stat().st_size <= limit
    assert not any(module.training for module in network.modules())
    assert not any(p.requires_grad or p.device.type != device.type for p in network.parameters())
    tensors, metadata = checkpoints.load(name)
    for key, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor.cpu(), tensors[key].to(tensor.dtype), rtol=0, atol=0)
    assert "recipes/" in metadata["recipe"] and metadata["score"]
    assert zoo.build(name).training


def test_the_default_device_is_the_course_s(monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "meta")
    assert next(zoo.load("classifier_digits").parameters()).device.type == "meta"


def test_options_reach_the_builder():
    assert zoo.load("features", "cpu", pooling="max").pooling == "max"


def test_an_unknown_name_is_answered_with_the_known_ones():
    for ask in (zoo.load, zoo.build, zoo.entry):
        with pytest.raises(ValueError, match=r"dcgan_cats.*vgg19; got 'yolo'"):
            ask("yolo")
    with pytest.raises(ValueError, match="vgg19 is trained by others"):
        zoo.build("vgg19")


def test_a_missing_or_damaged_file_says_so(tmp_path, monkeypatch):
    whole = (checkpoints.folder() / "classifier_digits.safetensors").read_bytes()
    monkeypatch.setattr(checkpoints, "folder", lambda: tmp_path)
    with pytest.raises(FileNotFoundError):
        zoo.load("classifier_digits")
    (tmp_path / "classifier_digits.safetensors").write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        zoo.load("classifier_digits")


def test_a_name_is_known_whatever_was_imported_before():
    """In a new process, which has imported no topic."""
    words = "from course_lib.base import zoo; print(type(zoo.load('vae_mnist', 'cpu')).__module__)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "course_lib.vae", done.stderr


# --- what torchvision trained


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of torch.hub."""
    monkeypatch.setenv("COURSE_OFFLINE", "0")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", OTHERS)
def test_without_network_it_says_so(name, hub, monkeypatch):
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    with pytest.raises(OfflineError, match=f"{zoo.entry(name).url}: COURSE_OFFLINE forbids it"):
        zoo.load(name)


@pytest.mark.parametrize("name", OTHERS)
def test_a_failed_download_says_so(name, hub, monkeypatch):
    def refused(*_, **__):
        raise requests.ConnectionError("no route to host")

    monkeypatch.setattr(requests, "get", refused)
    with pytest.raises(DownloadError, match=f"{zoo.entry(name).url}: no route to host"):
        zoo.load(name)


@pytest.mark.parametrize("name", OTHERS)
def test_a_damaged_file_in_the_cache_is_not_used(name, hub, monkeypatch):
    path = hub / "checkpoints" / zoo.entry(name).url.rpartition("/")[2]
    path.parent.mkdir()
    path.write_bytes(b"PK\x03\x04 half of it")
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    with pytest.raises(OfflineError, match=f"{path} is damaged; cannot download"):
        zoo.load(name)


@pytest.mark.parametrize(
    ("name", "room", "function", "classes"),
    [
        ("faster_rcnn", "detection", "fasterrcnn_mobilenet_v3_large_320_fpn", 91),
        ("mask_rcnn", "detection", "maskrcnn_resnet50_fpn", 91),
        ("deeplab", "segmentation", "deeplabv3_mobilenet_v3_large", 21),
    ],
)
def test_the_others_are_torchvision_s_networks(name, room, function, classes, hub, monkeypatch):
    """With random weights in place of the download."""
    models = importlib.import_module(f"torchvision.models.{room}")
    build = getattr(models, function)
    options = {"box_score_thresh": 0.0} if room == "detection" else {}

    def unread(weights):
        return build(weights=None, weights_backbone=None, num_classes=len(weights.meta["categories"]), **options)

    monkeypatch.setattr(models, function, unread)
    monkeypatch.setattr(datasets, "fetch", lambda *_: None)
    torch.manual_seed(0)
    network = zoo.load(name, "cpu")
    assert "cat" in network.names and len(network.names) == classes
    found = network(
        normal(2, 3, 64, 96, dtype=torch.float32).sigmoid(), **({"minimum": 0.0} if room == "detection" else {})
    )
    if name == "deeplab":
        assert found.shape == (2, 64, 96) and found.dtype == torch.int64
    else:
        assert len(found) == 2 and all((each.scores.diff() <= 0).all() for each in found)
    if name == "mask_rcnn":
        assert found[0].masks.shape[1:] == (64, 96) and found[0].masks.dtype == torch.bool
