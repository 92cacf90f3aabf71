"""base/features.py against torchvision's VGG-19, its own invariants, and its teachers."""

import dataclasses
import hashlib
import http.server
import importlib
import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from torchvision.models.vgg import cfgs, make_layers

from course_lib.base import checkpoints, datasets, features, images, zoo
from course_lib.base.checkpoints import folder
from course_lib.base.features import EMBEDDED_WIDTHS, VGG, VGG19_WIDTHS

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    (4, 4),
    (6, 6),
    (8, 8, 8, 8),
    (8, 8, 8, 8),
    (8, 8, 8, 8),
)  # VGG-19's layout, a thousandth of its weights


def random_image(size: tuple[int, int] = (48, 40), dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.fixture(scope="module")
def recipe():
    """recipes/features.py as a module."""
    return importlib.import_module("recipes.features")


def test_equals_torchvision_at_every_layer():
    torch.manual_seed(0)
    reference = make_layers(cfgs["E"]).double()
    network = VGG(VGG19_WIDTHS, pooling="max").double()
    ours = list(network.convolutions.values())
    theirs = [module for module in reference if isinstance(module, torch.nn.Conv2d)]
    for convolution, other in zip(ours, theirs, strict=True):
        convolution.load_state_dict(other.state_dict())
    image = random_image((32, 48), torch.float64)
    found = network.extract(image, network.layers)
    x = (image - network.mean) / network.std
    layers = iter(network.layers)
    for module in reference:
        x = module(x)
        if isinstance(module, torch.nn.ReLU):
            torch.testing.assert_close(found[next(layers)], x.clone(), rtol=1e-10, atol=1e-12)
    assert next(layers, None) is None


def test_names_and_sizes():
    network = VGG(VGG19_WIDTHS)
    assert network.layers[0] == "relu1_1" and network.layers[-1] == "relu5_4" and len(network.layers) == 16
    assert VGG(EMBEDDED_WIDTHS).layers[-1] == "relu4_1"
    shapes = {k: tuple(v.shape) for k, v in network.extract(random_image(), ("relu5_1", "relu1_2")).items()}
    assert shapes == {"relu5_1": (2, 512, 3, 2), "relu1_2": (2, 64, 48, 40)}
    assert list(shapes) == ["relu5_1", "relu1_2"]


def test_computes_nothing_beyond_the_deepest_layer():
    network, called = VGG(TINY), []
    for key, convolution in network.convolutions.items():
        convolution.register_forward_hook(lambda *_, key=key: called.append(key))
    network.extract(random_image(), ("relu2_1", "relu1_1"))
    assert called == ["1_1", "1_2", "2_1"]


def test_average_pooling_of_a_constant_is_that_constant():
    network = VGG(((3,), (3,)), pooling="average")
    for convolution in network.convolutions.values():
        torch.nn.init.dirac_(convolution.weight)
        torch.nn.init.zeros_(convolution.bias)
    checker = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(8, 8).expand(1, 3, 16, 16)
    deep = network.extract(checker, ("relu1_1", "relu2_1"))
    expected = torch.relu((checker - network.mean) / network.std).mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(deep["relu2_1"], expected.expand(1, 3, 8, 8))


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_normalise_gives_mean_one_and_keeps_the_function(pooling: str):
    torch.manual_seed(3)
    network = VGG(TINY, pooling).double()
    calibration = [random_image(dtype=torch.float64)[:1], random_image((64, 32), torch.float64)[1:]]
    before = network.extract(calibration[0], network.layers)
    seen = [network.extract(x, network.layers) for x in calibration]
    unscaled = {layer: [found[layer].mean(dim=(0, 2, 3)) for found in seen] for layer in network.layers}
    features.normalise(network, calibration)
    after = network.extract(calibration[0], network.layers)
    for layer in network.layers:
        means = sum(network.extract(x, [layer])[layer].mean(dim=(0, 2, 3)) for x in calibration) / 2
        original = sum(unscaled[layer]) / 2
        alive = original > features.RAREST * original.mean()
        torch.testing.assert_close(means[alive], torch.ones_like(means[alive]), rtol=1e-4, atol=0)
        assert (means[~alive] < 1).all() and alive.any()
        scale = after[layer].sum(dim=(0, 2, 3)) / before[layer].sum(dim=(0, 2, 3))
        expected = before[layer] * scale.view(1, -1, 1, 1)
        torch.testing.assert_close(after[layer][:, alive], expected[:, alive], rtol=1e-6, atol=1e-9)


def test_refuses_what_it_cannot_do():
    network = VGG(TINY, name="tiny")
    with pytest.raises(ValueError, match="tiny has the layers relu1_1.*relu9_9"):
        network.extract(random_image(), ("relu9_9",))
    with pytest.raises(ValueError, match="none"):
        network.extract(random_image(), ())
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), got \(2, 1, 48, 40\)"):
        network.extract(random_image()[:, :1], ("relu1_1",))
    for bad, name in (((255 * random_image()).byte(), "torch.uint8"), (random_image().numpy(), "ndarray")):
        with pytest.raises(TypeError, match=f"floating-point.*got {name}"):
            network.extract(bad, ("relu1_1",))
    with pytest.raises(ValueError, match="16 px or more"):
        network.extract(random_image((8, 64)), ("relu5_1", "relu1_1"))
    with pytest.raises(ValueError, match="'sum'"):
        VGG(TINY, pooling="sum")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_of_every_floating_dtype_are_seen(dtype):
    """In the network's dtype, with a gradient in that of the image."""
    network, image = VGG(TINY), random_image(dtype=torch.float64).to(dtype).requires_grad_()
    found = network.extract(image, ("relu2_1",))["relu2_1"]
    torch.testing.assert_close(found, network.extract(image.detach().float(), ("relu2_1",))["relu2_1"], rtol=0, atol=0)
    found.sum().backward()
    assert image.grad.dtype == dtype and image.grad.abs().sum() > 0


def test_embedded_is_small_frozen_and_on_the_device(device: torch.device):
    network = zoo.load("features", device=device)
    assert (folder() / "features.safetensors").stat().st_size <= 3_000_000
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    image = datasets.load_image("cat", size=64).to(device).requires_grad_()
    found = network.extract(image, network.layers)
    assert all(f.device == image.device and f.isfinite().all() and f.std() > 0 for f in found.values())
    sum(f.mean() for f in found.values()).backward()
    assert image.grad.isfinite().all() and image.grad.abs().sum() > 0
    again = zoo.load("features", device=device).extract(image, network.layers)
    assert all(torch.equal(again[layer], found[layer]) for layer in found)


def test_no_layer_of_the_embedded_network_outshouts_another():
    """Losses are of squares: the mean square is what makes layers comparable. It is a few at each layer."""
    network = zoo.load("features", device="cpu")
    photographs = [datasets.load_image(name, size=224) for name in features.CALIBRATION]
    found = [network.extract(image, network.layers) for image in photographs]
    squares = {layer: sum(float(f[layer].square().mean()) for f in found) / len(found) for layer in network.layers}
    assert all(1.5 < square < 6 for square in squares.values()), squares


def test_auto_falls_back_offline_and_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert features.load_best().name == "embedded VGG"
    assert "COURSE_OFFLINE" in (said := capsys.readouterr().out) and "Features: embedded VGG" in said
    with pytest.raises(datasets.OfflineError, match="COURSE_OFFLINE"):
        zoo.load("vgg19")


@pytest.fixture
def vgg19_server(monkeypatch, tmp_path):
    """A loopback stand-in for torchvision's server, with a small network under VGG-19's layout and a true hash."""
    torch.manual_seed(5)
    source = VGG(TINY, name="source")
    names = [i for i, m in enumerate(make_layers(cfgs["E"])) if isinstance(m, torch.nn.Conv2d)]
    state = {f"classifier.{i}.weight": torch.zeros(1) for i in (0, 3, 6)}
    for number, convolution in zip(names, source.convolutions.values(), strict=True):
        state |= {f"features.{number}.{kind}": value for kind, value in convolution.state_dict().items()}
    torch.save(state, tmp_path / "weights")
    served = {"body": (tmp_path / "weights").read_bytes()}
    digest = hashlib.sha256(served["body"]).hexdigest()[:8]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(served["body"])))
            self.end_headers()
            self.wfile.write(served["body"])

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(features, "VGG19_URL", f"http://127.0.0.1:{server.server_port}/vgg19-{digest}.pth")
    monkeypatch.setitem(zoo._ENTRIES, "vgg19", dataclasses.replace(zoo.entry("vgg19"), url=features.VGG19_URL))
    monkeypatch.setattr(features, "VGG19_WIDTHS", TINY)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COURSE_OFFLINE", "0")
    yield source, served, tmp_path / "home" / "hub" / "checkpoints"
    server.shutdown()
    server.server_close()


def test_vgg19_downloads_once_and_is_normalised(vgg19_server, monkeypatch):
    source, served, cache = vgg19_server
    network = zoo.load("vgg19", device="cpu")
    expected = features.normalise(source, [datasets.load_image(name, size=224) for name in features.CALIBRATION])
    image = random_image()
    for layer, found in network.extract(image, network.layers).items():
        torch.testing.assert_close(found, expected.extract(image, [layer])[layer])
    assert [path.name for path in cache.iterdir()] == [features.VGG19_URL.rsplit("/", 1)[1]]
    served["body"] = b"gone"
    monkeypatch.setenv("COURSE_OFFLINE", "1")  # now from the cache
    assert features.load_best(device="cpu").name == "VGG-19 (ImageNet)"


def test_vgg19_wrong_bytes_are_never_used(vgg19_server, monkeypatch):
    _, served, cache = vgg19_server
    whole = served["body"]
    served["body"] = whole[: len(whole) // 2]
    with pytest.raises(datasets.DownloadError, match="cannot download.*expected sha256:.* but got"):
        zoo.load("vgg19", device="cpu")
    assert list(cache.iterdir()) == []
    assert features.load_best(device="cpu").name == "embedded VGG"
    served["body"] = whole
    zoo.load("vgg19", device="cpu")
    path = next(cache.iterdir())
    path.write_bytes(whole[: len(whole) // 2])
    with monkeypatch.context() as patch, pytest.raises(datasets.OfflineError, match=f"{path.name} is damaged"):
        patch.setenv("COURSE_OFFLINE", "1")
        zoo.load("vgg19", device="cpu")
    zoo.load("vgg19", device="cpu")
    assert path.read_bytes() == whole, "fetched again"


@pytest.mark.skipif(not os.environ.get("COURSE_DATA"), reason="needs COURSE_DATA with the teachers")
def test_embedded_sees_what_its_teachers_see(recipe):
    """The shipped network explains its teachers' features on images that its recipe never saw."""
    calibration = [datasets.load_image(name, size=224) for name in features.CALIBRATION]
    teachers = recipe.load_teachers(Path(os.environ["COURSE_DATA"]), calibration)
    unseen = [(image[0] * 255).byte() for image in calibration]
    torch.manual_seed(0)
    scores = recipe.evaluate(zoo.load("features", device="cpu"), teachers, unseen)
    untrained = recipe.evaluate(VGG(EMBEDDED_WIDTHS).requires_grad_(False), teachers, unseen)
    for layer, bar in (
        ("relu1_1", 0.9),
        ("relu1_2", 0.9),
        ("relu2_1", 0.8),
        ("relu2_2", 0.7),
        ("relu3_1", 0.6),
        ("relu4_1", 0.35),  # of SqueezeNet's fire5; nothing deeper is kept, as it said next to nothing
    ):
        assert scores[layer] >= bar > untrained[layer], (layer, scores, untrained)


def test_recipe_resumes_exactly(recipe, tmp_path, monkeypatch, vgg19_server):
    """An interrupted run that goes on gives the weights of an uninterrupted one, bit for bit."""
    monkeypatch.delenv("COURSE_DATA", raising=False)  # the teacher is the (stand-in) download
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="--images"):
        recipe.main(["--quick"])
    for name in [name for name in datasets.image_names() if name not in datasets._SHA256][:12]:
        images.save(datasets.load_image(name, size=200), tmp_path / "photographs" / f"{name}.png")
    common = ["--quick", "--images", str(tmp_path / "photographs")]
    recipe.main([*common, "--state", "a.pt"])
    whole, facts = checkpoints.load(tmp_path / "build" / "features_quick.safetensors")  # the shipped one is left alone
    assert "--batch-size 8 " in facts["recipe"] and json.loads(facts["score"])["explained variance, held-out"]

    def interrupted(self, index, calls=[0], real=recipe.Crops._crop):  # noqa: B006 — the count must outlive a call
        calls[0] += 1
        if calls[0] == 90:
            signal.raise_signal(signal.SIGINT)
        return real(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(recipe.Crops, "_crop", interrupted)
        with pytest.raises(KeyboardInterrupt, match="of 20, kept in b.pt"):
            recipe.main([*common, "--out", "b.safetensors", "--state", "b.pt"])
    recipe.main([*common, "--out", "b.safetensors", "--state", "b.pt"])
    resumed = checkpoints.load(tmp_path / "b.safetensors")[0]
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    with pytest.raises(SystemExit, match="other settings: seed"):
        recipe.main([*common, "--seed", "7", "--state", "b.pt"])
