"""base/classifier.py: what the judge sees, what it must not be blind to, and the shipped ones on held-out images."""

import importlib
import json
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from course_lib.base import checkpoints, classifier, datasets, zoo
from course_lib.base.classifier import Classifier

ROOT = Path(__file__).resolve().parents[1]
# Accuracy on the test split, as in data/README.md: digits 297 images, the others 10,000.
ACCURACY = {"digits": 0.985, "mnist": 0.993, "fashion_mnist": 0.92}
needs_data = pytest.mark.skipif(not os.environ.get("COURSE_DATA"), reason="needs COURSE_DATA with the data set")
shipped = pytest.mark.parametrize("name", classifier.JUDGED)


def network(size: int = 8, channels: int = 1, classes: int = 10) -> Classifier:
    torch.manual_seed(0)
    return Classifier(channels, size, classes).double().eval()


def images(size: int = 8, channels: int = 1, count: int = 6) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="module")
def recipe():
    """recipes/classifier.py as a module."""
    return importlib.import_module("recipes.classifier")


@pytest.mark.parametrize("size", [4, 5, 8, 13, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_and_gradients_of_every_size(size, channels):
    judge, x = network(size, channels, classes=7), images(size, channels).requires_grad_()
    logits = judge(x)
    assert logits.shape == (6, 7) and judge.features(x).shape == (6, 64)
    logits.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in judge.parameters())
    # Every pixel counts, at odd borders too.
    assert (x.grad.abs().sum(dim=(0, 1)) > 0).all()


@pytest.mark.parametrize("size", [8, 28])
def test_equals_the_formula(size):
    """Against plain functions: 2x − 1, convolution, x·σ(x), means of 2×2, down to 4×4."""
    judge, x = network(size), images(size)
    weights = list(judge.parameters())
    maps = 2 * x - 1
    for k in range(3):
        maps = F.conv2d(maps, weights[2 * k], weights[2 * k + 1], padding=1)
        maps = maps * torch.sigmoid(maps)
        if maps.shape[-1] > 4:
            odd = maps.shape[-1] % 2
            ones = F.pad(torch.ones_like(maps), (0, odd, 0, odd))
            padded = F.pad(maps, (0, odd, 0, odd))
            maps = F.avg_pool2d(padded, 2) / F.avg_pool2d(ones, 2)
    assert maps.shape[-2:] == (4, 4)
    hidden = maps.flatten(1) @ weights[6].T + weights[7]
    features = hidden * torch.sigmoid(hidden)
    torch.testing.assert_close(judge.features(x), features)
    torch.testing.assert_close(judge(x), features @ weights[8].T + weights[9])


def test_an_image_is_judged_alone():
    """The company in the batch changes nothing, and in eval mode nothing is random."""
    judge, x = network(28), images(28)
    torch.testing.assert_close(torch.cat([judge(part) for part in x.split(1)]), judge(x))
    torch.testing.assert_close(judge(x.flip(0)).flip(0), judge(x))
    assert not torch.equal(judge.train()(x), judge(x))


def test_calibrate_changes_the_unit_and_nothing_else():
    judge, x = network(), images(count=50)
    before, logits = judge.features(x), judge(x)
    assert classifier.calibrate(judge, before) is judge
    after = judge.features(x)
    assert after.var(dim=0).mean().item() == pytest.approx(1)
    torch.testing.assert_close(after * judge.scale, before)
    torch.testing.assert_close(judge(x), logits)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_of_every_floating_dtype_are_judged(dtype):
    """In the network's dtype, with a gradient in that of the images."""
    judge, x = network().float(), images().to(dtype).requires_grad_()
    logits = judge(x)
    torch.testing.assert_close(logits, judge(x.detach().float()), rtol=0, atol=0)
    logits.sum().backward()
    assert x.grad.dtype == dtype and x.grad.abs().sum() > 0


@shipped
def test_shipped_is_small_frozen_and_on_the_device(name, device):
    judge = zoo.load(f"classifier_{name}", device)
    assert (checkpoints.folder() / f"classifier_{name}.safetensors").stat().st_size < 500_000
    assert not judge.training and not any(p.requires_grad for p in judge.parameters())
    x = images(judge.size).float().to(device).requires_grad_()
    judge(x).sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0 and judge.features(x).device == x.device
    torch.testing.assert_close(zoo.load(f"classifier_{name}", device)(x), judge(x), rtol=0, atol=0)


def judged(name: str) -> tuple[torch.Tensor, torch.Tensor, datasets.ImageSet]:
    judge, data = zoo.load(f"classifier_{name}"), datasets.load(name, "test")
    with torch.no_grad():
        features = torch.cat([judge.features(data[part][0]) for part in torch.arange(len(data)).split(500)])
        return features, judge.logits(features), data


@pytest.mark.parametrize("name", ["digits", *(pytest.param(n, marks=needs_data) for n in ("mnist", "fashion_mnist"))])
def test_shipped_on_held_out_images(name):
    features, logits, data = judged(name)
    assert (logits.argmax(1) == data.labels).float().mean() >= ACCURACY[name]
    # The unit, on images that calibrate() never saw; and more than the ten classes is to be seen in them.
    eigenvalues = torch.linalg.eigvalsh(torch.cov(features.double().T)).flip(0)
    assert 0.85 < eigenvalues.mean() < 1.15
    assert eigenvalues[9:].sum() > 0.05 * eigenvalues.sum()


def test_shipped_sees_what_a_class_does_not_tell():
    """Features move when a digit is shifted, blurred, darkened or noisy, each by more than rounding could."""
    judge, x = zoo.load("classifier_digits"), datasets.load("digits", "test")[:][0]
    generator = torch.Generator().manual_seed(0)
    changes = {
        "shifted": x.roll(1, -1),
        "blurred": F.avg_pool2d(x, 3, stride=1, padding=1),
        "darkened": 0.6 * x,
        "noisy": (x + 0.2 * torch.randn(x.shape, generator=generator)).clamp(0, 1),
    }
    with torch.no_grad():
        seen = judge.features(x)
        spread = (seen - seen.mean(0)).norm(dim=1).median()
        for name, changed in changes.items():
            assert (judge.features(changed) - seen).norm(dim=1).median() > 0.1 * spread, name


def test_refuses_what_it_cannot_judge():
    judge = network()
    with pytest.raises(ValueError, match=r"\(B, 1, 8, 8\); got \(6, 1, 28, 28\)"):
        judge(images(28))
    with pytest.raises(ValueError, match=r"\(B, 1, 8, 8\); got \(6, 3, 8, 8\)"):
        judge(images(8, 3))
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8\)"):
        judge(images()[0])
    for bad, name in (((255 * images()).byte(), "torch.uint8"), (images().numpy(), "ndarray")):
        with pytest.raises(TypeError, match=f"floating-point.*got {name}"):
            judge(bad)
    for channels, size, classes in ((0, 8, 10), (1, 3, 10), (1, 33, 10), (1, 8, 0)):
        with pytest.raises(ValueError, match=f"size 4 … 32; got {channels}, {classes} and {size}"):
            Classifier(channels, size, classes)
    with pytest.raises(ValueError, match="got 'classifier_cats'"):
        zoo.load("classifier_cats")


# --- the recipe ---


def test_augment_shifts_by_whole_pixels(recipe):
    """Without turning, every image is itself, moved: no grey between pixels, nothing mirrored."""
    x = torch.zeros(200, 1, 28, 28)
    x[:, :, 10:15, 10:12] = 1
    moved = recipe.augment(x, 0.08, 0, torch.Generator().manual_seed(0))
    expected = {(i, j): x[0].roll((i, j), (-2, -1)) for i in range(-2, 3) for j in range(-2, 3)}
    found = set()
    for image in moved:
        (shift,) = (s for s, e in expected.items() if (image - e).abs().max() < 1e-4)
        found.add(shift)
    assert len(found) == 25
    turned = recipe.augment(x, 0, 8, torch.Generator().manual_seed(0))
    assert turned.min() >= 0 and turned.max() <= 1 + 1e-6 and 0.7 < turned.sum() / x.sum() < 1.3


@pytest.mark.parametrize("low, high", [(0, 255), (-1, 1)])
def test_the_recipe_refuses_values_out_of_range(recipe, low, high):
    """In the first batch; later ones are not looked at, for a GPU would wait."""
    judge, readout = network().float().train(), torch.nn.Linear(64, 64)
    optimiser = torch.optim.SGD([*judge.parameters(), *readout.parameters()], 0.0)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimiser)
    preset = recipe.PRESETS["digits"]
    step = recipe.judge_step(judge, readout, optimiser, schedule, torch.Generator(), preset, variance=1.0)
    right, labels = images().float(), torch.zeros(6, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"images in \[0, 1\]"):
        step((low + (high - low) * right, labels))
    step((right, labels))
    step((low + (high - low) * right, labels))


def test_recipe_runs_and_resumes_exactly(recipe, tmp_path, monkeypatch):
    def files(name: str) -> list[str]:
        return [f"--{kind}={tmp_path / f'{name}.{suffix}'}" for kind, suffix in
                (("out", "safetensors"), ("state", "pt"), ("json", "json"))]  # fmt: skip

    scores = recipe.main(["--quick", *files("a")])["digits"]
    assert scores["test accuracy"].n == 297
    assert json.loads((tmp_path / "a.json").read_text())["test accuracy"]["n"] == 297
    with monkeypatch.context() as patch:
        calls = []
        augment = recipe.augment

        def interrupted(*arguments):
            calls.append(1)
            if len(calls) == 12:
                signal.raise_signal(signal.SIGINT)  # Ctrl-C: this step ends, and the state is saved
            return augment(*arguments)

        patch.setattr(recipe, "augment", interrupted)
        with pytest.raises(KeyboardInterrupt):
            recipe.main(["--quick", *files("b")])
        assert len(calls) == 12
    recipe.main(["--quick", *files("b")])
    (first, _), (second, facts) = (checkpoints.load(tmp_path / f"{name}.safetensors") for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert "recipes/classifier.py" in facts["recipe"] and "--data digits" in facts["recipe"]
    with pytest.raises(SystemExit, match="cannot share --out"):
        recipe.main(files("c"))


def test_the_best_that_real_images_reach(recipe):
    """Of the shipped judge of digits: as its header says, and as a loop over all pairs counts."""
    stated = json.loads(checkpoints.load("classifier_digits")[1]["score"])["real images"]
    judge = zoo.load("classifier_digits")
    training, held_out = (recipe.judged(judge, datasets.load("digits", split))[0].double() for split in datasets.SPLITS)
    found = recipe.both_real(training, held_out)
    one, other = (
        x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:297]] for x in (held_out, training)
    )
    for name, inner, outer in (("precision", other, one), ("recall", one, other)):
        radii = torch.cdist(outer, outer).sort(1).values[:, 3]  # to the third nearest; the first is the image itself
        inside = [bool(((x - outer).norm(dim=1) <= radii).any()) for x in inner]
        assert found[name].n == len(inside) == 297
        assert found[name].value == pytest.approx(sum(inside) / 297, abs=1 / 297)
        assert found[name].value == pytest.approx(stated[name]["value"], abs=1e-3)
    assert recipe.both_real(training, held_out, most=50)["recall"].n == 50


def test_the_accuracy_in_each_class(recipe):
    """Of the shipped judge of digits, as its header says; together they are the accuracy of all."""
    stated = json.loads(checkpoints.load("classifier_digits")[1]["score"])
    test = datasets.load("digits", "test")
    right = recipe.judged(zoo.load("classifier_digits"), test)[1] == test.labels
    found = recipe.by_class(right, test)
    assert {name: score.value for name, score in found.items()} == pytest.approx(
        {name: score["value"] for name, score in stated["accuracy by class"].items()}, abs=1e-3
    )
    assert [found[str(k)].n for k in range(10)] == test.labels.bincount().tolist()
    assert sum(score.value * score.n for score in found.values()) == pytest.approx(right.sum().item())
    only_threes = recipe.by_class(test.labels == 3, test)
    assert [score.value for score in only_threes.values()] == [float(k == 3) for k in range(10)]
