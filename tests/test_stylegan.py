"""StyleGAN's operations against slow forms of them, what styles must and must not change, and the shipped generator."""

import copy
import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import HostReads, normal, rng
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib import gan, stylegan, vae
from course_lib.base import checkpoints, datasets, metrics, zoo
from course_lib.stylegan import StyleDiscriminator, StyleGenerator, mix, modulated_conv2d

ROOT = Path(__file__).resolve().parents[1]
drawn = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def tiny(size: int = 8, channels: int = 1, seed: int = 0) -> StyleGenerator:
    """A generator in float64 whose noise has an effect, as after training."""
    torch.manual_seed(seed)
    generator = StyleGenerator(size, channels, z_dim=6, w_dim=5, capacity=64, most=8).double()
    for conv in generator.convs:
        torch.nn.init.constant_(conv.noise_strength, 0.3)
    generator.mapping.w_mean.copy_(normal(5, seed=9))
    return generator


def tiny_discriminator(size: int = 8, channels: int = 1) -> StyleDiscriminator:
    torch.manual_seed(1)
    return StyleDiscriminator(size, channels, capacity=64, most=8).double()


# Modulated convolution


def modulate_weights(x: torch.Tensor, weight: torch.Tensor, styles: torch.Tensor, demodulate: bool) -> torch.Tensor:
    """The paper's own way: every image has weights of its own, one group of a grouped convolution each."""
    B, n, H, W = x.shape
    own = weight[None] * styles[:, None, :, None, None]
    if demodulate:
        own = own / (own.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).sqrt()
    y = F.conv2d(x.reshape(1, B * n, H, W), own.flatten(0, 1), padding=weight.shape[-1] // 2, groups=B)
    return y.view(B, -1, H, W)


@drawn
@given(
    sizes=st.tuples(*[st.integers(1, 6)] * 5),
    kernel=st.sampled_from([1, 3, 5]),
    demodulate=st.booleans(),
    seed=st.integers(0, 999),
)
def test_modulated_convolution_equals_grouped_convolution(sizes, kernel, demodulate, seed):
    B, n, m, H, W = sizes
    inputs = normal(B, n, H, W, seed=seed), normal(m, n, kernel, kernel, seed=seed + 1), normal(B, n, seed=seed + 2)
    for tensor in inputs:
        tensor.requires_grad_()
    ours, theirs = modulated_conv2d(*inputs, demodulate), modulate_weights(*inputs, demodulate)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    cotangent = normal(*ours.shape, seed=seed + 3)
    pairs = zip(*(torch.autograd.grad(y, inputs, cotangent) for y in (ours, theirs)), strict=True)
    for mine, reference in pairs:
        torch.testing.assert_close(mine, reference, rtol=1e-7, atol=1e-8)


def test_gradient_of_modulated_convolution():
    inputs = normal(2, 3, 4, 3), normal(2, 3, 3, 3, seed=1), normal(2, 3, seed=2)
    assert torch.autograd.gradcheck(modulated_conv2d, [tensor.requires_grad_() for tensor in inputs])


def test_demodulation_gives_unit_variance():
    """Whatever the style: over many inputs of variance 1, each inner output has variance 1."""
    torch.manual_seed(0)
    styles = torch.tensor([[1.0] * 4, [100.0, 0.01, 1.0, -3.0]])
    x = torch.randn(2, 4, 150, 150)
    y = modulated_conv2d(x, 7 * torch.randn(5, 4, 3, 3), styles)[:, :, 1:-1, 1:-1]
    variance = y.var(dim=(2, 3))
    # 148² outputs, of which about 1 in 9 is independent of the others: 2 % is one standard deviation, at most
    assert (variance - 1).abs().max() < 0.1
    plain = modulated_conv2d(x, 7 * torch.randn(5, 4, 3, 3), styles, demodulate=False)[:, :, 1:-1, 1:-1]
    assert plain.var(dim=(2, 3)).min() > 100


def test_demodulation_forgets_the_scale_of_style_and_weights():
    x, weight, styles = normal(2, 3, 5, 5), normal(4, 3, 3, 3, seed=1), normal(2, 3, seed=2)
    torch.testing.assert_close(modulated_conv2d(x, 10 * weight, 5 * styles), modulated_conv2d(x, weight, styles))


# Layers


def test_resolutions_and_widths():
    assert stylegan.resolutions(28) == [7, 14, 28]
    assert stylegan.resolutions(32) == [4, 8, 16, 32]
    assert stylegan.resolutions(8) == [4, 8] and stylegan.resolutions(18) == [9, 18]
    assert stylegan.widths(28, 448, 48) == [48, 32, 16]


@pytest.mark.parametrize("lr", [1.0, 0.1])
def test_equalised_linear_keeps_variance_and_scales_the_learning_rate(lr):
    torch.manual_seed(0)
    layer = stylegan.EqualisedLinear(400, 300, lr, gain=2.0, bias=1.0)
    y = layer(torch.randn(500, 400)).detach()
    assert abs(float((y - 1).std()) - 2) < 0.05 and abs(float(y.mean()) - 1) < 0.05
    before = layer(torch.zeros(1, 400))
    torch.optim.Adam(layer.parameters(), 0.01).zero_grad()
    layer(torch.zeros(1, 400)).sum().backward()
    torch.optim.Adam(layer.parameters(), 0.01).step()
    torch.testing.assert_close(layer(torch.zeros(1, 400)), before - 0.01 * lr)


def test_equalised_convolution_equals_torch():
    torch.manual_seed(0)
    layer = stylegan.EqualisedConv(3, 4, 3, gain=1.5).double()
    torch.nn.init.normal_(layer.bias)
    x = normal(2, 3, 5, 6)
    expected = F.conv2d(x, 1.5 / math.sqrt(27) * layer.weight, layer.bias, padding="same")
    torch.testing.assert_close(layer(x), expected)


def test_halving_is_average_pooling():
    x = normal(2, 3, 8, 6).requires_grad_()
    torch.testing.assert_close(stylegan.halve(x), F.avg_pool2d(x, 2))
    assert torch.autograd.gradgradcheck(stylegan.halve, [x])  # R1 differentiates twice


@pytest.mark.parametrize("B", [8, 6, 1])
def test_minibatch_stddev_against_a_loop(B):
    x = normal(B, 3, 2, 2)
    found = stylegan.minibatch_stddev(x)
    assert found.shape == (B, 1, 2, 2)
    stride = B // 4 if B % 4 == 0 else 1  # images of a group lie that far from each other
    for i in range(B):
        group = [x[j] for j in range(B) if B % 4 or j % stride == i % stride]
        expected = torch.stack(group).std(0, correction=0).mean() if len(group) > 1 else torch.tensor(1e-4)
        torch.testing.assert_close(found[i], expected.expand(1, 2, 2).to(found.dtype), rtol=1e-6, atol=1e-6)


# Generator


def test_mapping_sees_only_the_direction_of_z():
    generator = tiny()
    z = normal(4, 6)
    torch.testing.assert_close(generator.mapping(z), generator.mapping(3 * z), rtol=1e-6, atol=1e-8)
    assert (generator.mapping(z) - generator.mapping(-z)).abs().max() > 0.1


def test_the_mean_style_is_tracked():
    mapping = tiny().mapping
    w = normal(1000, 5) + 3
    for _ in range(200):
        mapping.track(w, decay=0.9)
    torch.testing.assert_close(mapping.w_mean, w.mean(0))
    before = mapping.w_mean.clone()
    mapping.track(w + 1, decay=0.75)
    torch.testing.assert_close(mapping.w_mean, before + 0.25)


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (8, 1)])
def test_shapes(size, channels):
    generator = tiny(size, channels)
    z = normal(3, 6)
    assert generator(z).shape == (3, channels, size, size)
    assert [tuple(layer.shape) for layer in generator.noise(3)] == [
        (3, 1, side, side) for i, side in enumerate(stylegan.resolutions(size)) for _ in range(1 if i == 0 else 2)
    ]
    assert tiny_discriminator(size, channels)(generator(z)).shape == (3,)


def test_works_on_every_device_and_in_single_precision(device):
    exact, generator = tiny(), tiny().float().to(device)
    z, noise = normal(3, 6), exact.noise(3, rng())
    images = stylegan.sample(generator, z, noise=[layer.float().to(device) for layer in noise])
    assert images.device.type == device.type and images.dtype == torch.float32
    torch.testing.assert_close(images.cpu().double(), stylegan.sample(exact, z, noise=noise), atol=1e-4, rtol=0)
    assert tiny_discriminator().float().to(device)(images).shape == (3,)


def test_truncation():
    generator, z = tiny(), normal(4, 6)
    noise = [layer[:1] for layer in generator.noise(1)]
    ws = generator.styles(z)
    assert torch.equal(generator.styles(z, 1.0), ws)
    assert torch.equal(ws, generator.mapping(z)[:, None].expand(-1, generator.layers, -1))
    w_mean = generator.mapping.w_mean
    torch.testing.assert_close(generator.styles(z, 0.0), w_mean.expand_as(ws))
    torch.testing.assert_close(generator.styles(z, 0.3), w_mean + 0.3 * (ws - w_mean))
    images = generator(z, truncation=0.0, noise=noise)
    torch.testing.assert_close(images, images[:1].expand_as(images))
    assert generator(z, noise=noise).std(0).mean() > 0.01


def test_noise_matters_and_is_the_callers():
    generator, z = tiny(), normal(2, 6)
    noise = generator.noise(2, rng())
    again = generator.noise(2, rng())
    assert all(map(torch.equal, noise, again))
    assert torch.equal(generator(z, noise=noise), generator(z, noise=again))
    for layer in range(generator.layers):  # each layer's noise reaches the image
        other = [part if i != layer else part + 1 for i, part in enumerate(noise)]
        assert (generator(z, noise=other) - generator(z, noise=noise)).abs().max() > 1e-3
    assert not torch.equal(generator(z), generator(z))


def test_an_image_does_not_depend_on_its_neighbours():
    generator, z = tiny(), normal(5, 6)
    noise = generator.noise(5)
    together = generator(z, noise=noise)
    for i in range(5):
        alone = generator(z[i : i + 1], noise=[part[i : i + 1] for part in noise])
        torch.testing.assert_close(alone[0], together[i])


def activations(generator: StyleGenerator, ws: torch.Tensor, noise: list[torch.Tensor]) -> list[torch.Tensor]:
    """The features after each layer."""
    found = []
    handles = [conv.register_forward_hook(lambda *hooked: found.append(hooked[2])) for conv in generator.convs]
    generator.synthesis(ws, noise)
    for handle in handles:
        handle.remove()
    return found


def test_mixing_changes_the_layers_from_the_crossover_on():
    generator = tiny(28)
    a, b = generator.styles(normal(2, 6)), generator.styles(normal(2, 6, seed=1))
    noise = generator.noise(2)
    assert torch.equal(mix(a, b, generator.layers), a) and torch.equal(mix(a, b, 0), b)
    pure = activations(generator, a, noise)
    for crossover in range(generator.layers):
        mixed = activations(generator, mix(a, b, crossover), noise)
        for layer, (x, y) in enumerate(zip(mixed, pure, strict=True)):
            difference = (x - y).abs().max()
            assert difference < 1e-12 if layer < crossover else difference > 1e-3


def test_mixing_with_a_crossover_for_each_image():
    a, b = normal(3, 4, 5), normal(3, 4, 5, seed=1)
    together = mix(a, b, torch.tensor([0, 2, 4]))
    alone = torch.cat([mix(a[i : i + 1], b[i : i + 1], crossover) for i, crossover in enumerate((0, 2, 4))])
    assert torch.equal(together, alone)
    assert torch.equal(together[1], torch.cat([a[1, :2], b[1, 2:]]))


def test_sampling():
    generator, z = tiny(), normal(5, 6)
    noise = generator.noise(1)
    expected = ((generator(z, noise=noise) + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(stylegan.sample(generator, z, noise=noise), expected)
    torch.testing.assert_close(
        stylegan.sample(generator, z, noise=noise, truncation=0.0),
        ((generator(z, truncation=0.0, noise=noise) + 1) / 2).clamp(0, 1),
    )
    one, two = (stylegan.sample(generator, 300, rng=rng()) for _ in range(2))
    assert torch.equal(one, two) and one.shape == (300, 1, 8, 8) and one.min() >= 0 and one.max() <= 1
    assert gan.sample(generator, 3).shape == (3, 1, 8, 8)  # the interface of all generators


# Training


def training_parts(size: int = 8, lr: float = 2e-3) -> dict:
    torch.manual_seed(0)
    generator = StyleGenerator(size, 1, z_dim=6, w_dim=5, capacity=64, most=8)
    discriminator = StyleDiscriminator(size, 1, capacity=64, most=8)
    adam = [torch.optim.Adam(network.parameters(), lr, (0.0, 0.99)) for network in (generator, discriminator)]
    return {
        "generator": generator,
        "discriminator": discriminator,
        "generator_optimiser": adam[0],
        "discriminator_optimiser": adam[1],
        "rng": rng(),
    }


def test_gradients_reach_every_parameter():
    parts = training_parts(28)
    step = stylegan.stylegan_step(*parts.values())
    step(torch.rand(8, 1, 28, 28))
    for network in (parts["generator"], parts["discriminator"]):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_lazy_r1_counts_on_after_a_resume():
    parts = training_parts()
    step = stylegan.stylegan_step(*parts.values(), r1=1.0, lazy=3)
    batch = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    assert ["R1" in step(batch) for _ in range(5)] == [True, False, False, True, False]
    resumed = training_parts()
    for name, part in parts.items():
        if name == "rng":
            resumed[name].set_state(part.get_state())
        else:
            resumed[name].load_state_dict(copy.deepcopy(part.state_dict()))  # it would share Adam's tensors
    again = stylegan.stylegan_step(*resumed.values(), r1=1.0, lazy=3)
    for _ in range(2):
        assert step(batch) == again(batch)
    assert parts["discriminator"].steps == 7


def test_a_step_does_not_wait_for_the_device():
    parts = training_parts()
    for name in ("generator", "discriminator"):  # Adam counts on the CPU, SGD not at all
        parts[f"{name}_optimiser"] = torch.optim.SGD(parts[name].parameters(), 1e-3)
    step = stylegan.stylegan_step(*parts.values(), lazy=2)
    with HostReads() as reads:
        step(torch.rand(4, 1, 8, 8))
        first = reads.count
        for _ in range(2):
            step(torch.rand(4, 1, 8, 8))
    assert first > 0 and reads.count == first, "values are read at the first batch only"


def test_works_on_doubles_and_numpys_numbers():
    parts, others = training_parts(), training_parts()
    real = torch.rand(4, 1, 8, 8)
    one = stylegan.stylegan_step(*parts.values(), r1=2.0, lazy=2, mixing=0.5)(real)
    two = stylegan.stylegan_step(*others.values(), r1=np.float32(2), lazy=np.int64(2), mixing=np.float32(0.5))(
        real.double()
    )
    for name, loss in one.items():
        torch.testing.assert_close(two[name], loss, check_dtype=False, rtol=1e-4, atol=1e-6)
    generator, z = parts["generator"], normal(3, 6)
    noise = generator.noise(3)
    found = generator(z, np.float32(0.5), noise=[layer.double() for layer in noise])
    assert found.dtype == torch.float32 and torch.equal(found, generator(z.float(), 0.5, noise=noise))
    ws = generator.styles(z)
    torch.testing.assert_close(generator.synthesis(ws.double(), noise), generator.synthesis(ws, noise))
    assert torch.equal(parts["discriminator"](real.double()), parts["discriminator"](real))


def test_the_discriminators_loss_is_logistic_plus_r1():
    parts = training_parts()
    real = torch.rand(4, 1, 8, 8)
    plain = {name: part for name, part in training_parts().items()}
    one = stylegan.stylegan_step(*parts.values(), r1=0.0)(real)
    two = stylegan.stylegan_step(*plain.values(), r1=2.0)(real)
    assert "R1" not in one and torch.equal(one["D"], two["D"])  # before the update both are the same network
    fresh = training_parts()["discriminator"]
    x = (2 * real - 1).requires_grad_()
    (gradient,) = torch.autograd.grad(fresh(x).sum(), x)
    torch.testing.assert_close(two["R1"], gradient.square().sum((1, 2, 3)).mean())


def test_real_and_generated_images_go_through_the_augmentation():
    parts, seen = training_parts(), []

    def vary(images, rng):
        seen.append(images)
        return -images

    stylegan.stylegan_step(*parts.values(), r1=0.0, augment=vary)(torch.ones(4, 1, 8, 8))
    assert len(seen) == 3 and torch.equal(seen[0], torch.ones(4, 1, 8, 8))  # real for D, generated for D and for G
    assert torch.equal(seen[1], seen[2]) and seen[2].requires_grad and not seen[1].requires_grad


def test_a_generator_learns_a_constant_image():
    """Data that are all alike: after some dozen steps the generated images are like them, too."""
    parts = training_parts(lr=1e-2)
    image = torch.zeros(1, 1, 8, 8)
    image[..., 2:6, 3:5] = 1
    step = stylegan.stylegan_step(*parts.values(), r1=1.0, lazy=4)
    before = (stylegan.sample(parts["generator"], 64) - image).abs().mean()
    for _ in range(50):
        step(image.expand(16, -1, -1, -1))
    after = (stylegan.sample(parts["generator"], 64) - image).abs().mean()
    assert after < 0.05 < 0.3 < before


# Bad input


def test_refuses_bad_input():
    generator, discriminator = tiny(), tiny_discriminator()
    layers, ws = generator.layers, generator.styles(normal(2, 6))
    with pytest.raises(ValueError, match=r"z must be floats of shape \(B, 6\).*got .*\(2, 7\)"):
        generator(normal(2, 7))
    with pytest.raises(ValueError, match=rf"\(B, {layers}, 5\), got \(2, 5\)"):
        generator.synthesis(ws[:, 0])
    with pytest.raises(ValueError, match=f"noise for {layers} layers, got 2"):
        generator.synthesis(ws, generator.noise(2)[:2])
    with pytest.raises(ValueError, match=r"noise .*\(2 or 1, 1, 4, 4\).*got \(3, 1, 4, 4\)"):
        generator.synthesis(ws, generator.noise(3))
    with pytest.raises(ValueError, match=r"images .*\(B, 1, 8, 8\).*got .*\(2, 3, 8, 8\)"):
        discriminator(normal(2, 3, 8, 8))
    for network, shape in ((discriminator, (1, 8, 8)), (generator, (6,))):
        with pytest.raises(ValueError, match="B ≥ 1; got"):
            network(normal(0, *shape))
    with pytest.raises(ValueError, match=r"for 2 images; got \(3, 1, 4, 4\)"):
        stylegan.sample(generator, normal(2, 6), noise=generator.noise(3))
    with pytest.raises(ValueError, match="crossover of 0 … 3, got 4"):
        mix(ws, ws, layers + 1)
    with pytest.raises(ValueError, match=r"two styles .* got \(2, 3, 5\) and \(1, 3, 5\)"):
        mix(ws, ws[:1], 1)
    with pytest.raises(ValueError, match=r"weight \(m, 3, k, k\) and styles \(2, 3\); got"):
        modulated_conv2d(normal(2, 3, 4, 4), normal(2, 3, 3, 3), normal(1, 3))
    for size in (6, 9):
        with pytest.raises(ValueError, match=f"even size of 8 px or more, got {size}"):
            StyleGenerator(size)
    with pytest.raises(ValueError, match="capacity of 28 or more and most ≥ 1, got 20 and 8"):
        StyleDiscriminator(28, capacity=20, most=8)
    with pytest.raises(ValueError, match="at least one image; got 0"):
        stylegan.sample(generator, 0)
    with pytest.raises(ValueError, match="lazy ≥ 1 .* got 1.0, 0 and 0.9"):
        stylegan.stylegan_step(*training_parts().values(), r1=1.0, lazy=0)
    for images, message in (
        (torch.rand(0, 1, 8, 8), r"non-empty.*got shape \(0, 1, 8, 8\)"),
        (2 * torch.rand(4, 1, 8, 8).round() - 1, r"in \[0, 1\].*; got values from -1 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            stylegan.stylegan_step(*training_parts().values())(images)


# What ships


def test_the_recipe(tmp_path, monkeypatch):
    if not datasets.is_available("mnist"):
        pytest.skip("needs MNIST, in COURSE_DATA or the cache")
    monkeypatch.chdir(tmp_path)
    recipe = importlib.import_module("recipes.stylegan")
    scores = recipe.main(["--quick", "--steps", "3"])["stylegan_mnist"]
    assert float(scores["Fréchet distance"]) > 0
    generator = StyleGenerator()
    metadata = checkpoints.restore(generator, tmp_path / "build" / "stylegan_mnist_quick.safetensors")
    assert metadata["recipe"].startswith("python recipes/stylegan.py --steps 3")
    assert list(Path("build").glob("*.png"))


def test_the_cats_are_halved_to_the_means_of_four_pixels(monkeypatch):
    recipe = importlib.import_module("recipes.stylegan")
    faces = torch.randint(256, (3, 3, 64, 64), generator=rng()).byte()
    data = datasets.ImageSet("x", faces, torch.zeros(3, dtype=torch.int64), ("cat",))
    monkeypatch.setattr(datasets, "load", lambda name, split="train": data)
    small = recipe.PRESETS["stylegan_cats"].images()
    exact = faces.double().unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    assert small.images.shape == (3, 3, 32, 32) and (small.images - exact).abs().max() <= 0.5
    large = recipe.enlarged(small[:][0], "cat_faces")
    assert large.shape == (3, 3, 64, 64) and large.min() >= 0 and large.max() <= 1
    assert torch.equal(recipe.enlarged(data[:][0], "cat_faces"), data[:][0])


def test_the_recipe_of_the_cats(tmp_path, monkeypatch):
    """From data of noise: faces need not be at hand."""
    monkeypatch.chdir(tmp_path)
    noise = torch.randint(256, (60, 3, 64, 64), generator=rng()).byte()
    faces = datasets.ImageSet("cat_faces", noise, torch.zeros(60, dtype=torch.int64), ("cat",))
    monkeypatch.setattr(datasets, "load", lambda name, split="train": faces)
    metrics._real.cache_clear()
    recipe = importlib.import_module("recipes.stylegan")
    monkeypatch.setattr(recipe, "TRUNCATED", 8)
    words = ["--model", "stylegan_cats", "--quick", "--steps", "2", "--batch-size", "4", "--state", "build/state.pt"]
    found = recipe.main(words)["stylegan_cats"]
    metrics._real.cache_clear()
    assert float(found["Fréchet distance"]) > 0
    assert set(found["truncation"]) == {"0.25", "0.5", "0.75", "1"}
    metadata = checkpoints.restore(zoo.build("stylegan_cats"), tmp_path / "build" / "stylegan_cats_quick.safetensors")
    assert metadata["data"] == "cat_faces"
    assert json.loads(metadata["score"])["truncation"].keys() == found["truncation"].keys()
    assert Path("build/stylegan_cats_quick_000002.png").exists() and Path("build/state.pt").exists()


def test_the_shipped_cats():
    generator = zoo.load("stylegan_cats")
    cats = stylegan.sample(generator, 200, rng=rng(1))
    assert cats.shape == (200, 3, 32, 32)
    assert 0.1 < cats.std(0).mean() < 0.35, "cats of many kinds"
    assert (cats.mean((2, 3)).amax(1) - cats.mean((2, 3)).amin(1)).mean() < 0.2, "fur has no loud colours"
    if datasets.is_available("cat_faces"):
        features, recipe = metrics.extractor("cat_faces"), importlib.import_module("recipes.stylegan")
        real = features(datasets.load("cat_faces", "test")[:][0])
        drawn = features(recipe.enlarged(stylegan.sample(generator, 838, rng=rng(1)), "cat_faces"))
        noise = features(torch.rand(100, 3, 64, 64, generator=rng()))
        assert metrics.frechet_distance(real, drawn) < 0.2 * metrics.frechet_distance(real, noise)


def test_the_shipped_generator():
    generator = zoo.load("stylegan_mnist")
    assert not generator.training and not any(parameter.requires_grad for parameter in generator.parameters())
    images = stylegan.sample(generator, 2000, rng=rng(1))
    kinds = zoo.load("classifier_mnist")(images).argmax(1).bincount(minlength=10)
    assert kinds.min() > 60 and kinds.max() < 400
    # Truncation trades variety for typicality: images nearer to each other.
    noise = generator.noise(1, rng())
    variety = [
        stylegan.sample(generator, normal(200, generator.z_dim), truncation=psi, noise=noise).std(0).mean()
        for psi in (0.5, 1)
    ]
    assert variety[0] < 0.85 * variety[1]


def test_the_timeline_made_progress():
    """Each year's generator comes nearer to real digits than those before it; 2,000 images of each."""
    if not datasets.is_available("mnist"):
        pytest.skip("needs MNIST, in COURSE_DATA or the cache")
    features, held_out = metrics.extractor("mnist"), datasets.load("mnist", "test")[:][0]
    real = features(held_out)
    found = {}
    for name, topic in (("stylegan", stylegan), ("dcgan", gan), ("gan", gan), ("vae", vae)):
        images = topic.sample(zoo.load(f"{name}_mnist"), 2000, rng=rng(1))
        found[name] = metrics.frechet_distance(real, features(images))
    assert found["stylegan"] < 2.5
    assert found["stylegan"] < found["dcgan"] < min(found["gan"], found["vae"]), found


def test_modulated_convolution_in_half_precision():
    ones, weight = torch.ones(1, 8, 1, 1).half(), torch.ones(4, 8, 1, 1).half()
    for style, right in ((200.0, math.sqrt(8)), (0.0, 0.0)):
        found = stylegan.modulated_conv2d(ones, weight, torch.full((1, 8), style).half())
        assert found.flatten().tolist() == pytest.approx([right] * 4, rel=2e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_mapping_in_half_precision(dtype):
    """A running mean moves by less than its own last digit; squares of z end beyond 65504, and ε below 6e-8 is none."""
    exact = tiny().mapping
    half = copy.deepcopy(exact).to(dtype)
    for _ in range(2000):
        half.track(torch.ones(8, 5, dtype=dtype))
    assert half.w_mean.tolist() == pytest.approx([1.0] * 5, abs=1e-3)
    for z in (torch.zeros(2, 6), 300 * normal(2, 6), 1e-3 * normal(2, 6)):
        torch.testing.assert_close(half(z.to(dtype)).double(), exact(z.to(dtype).double()), atol=0.03, rtol=0.03)
    generator = tiny().to(dtype)
    generator.mapping.track(torch.ones(8, 5, dtype=dtype))
    assert generator.styles(torch.zeros(1, 6), truncation=0.5).dtype == dtype
    assert stylegan.sample(generator, 2, rng(), truncation=0.5).isfinite().all()


def test_a_tracked_mean_in_half_precision_is_saved_and_restored():
    half, other = (tiny().to(torch.bfloat16) for _ in range(2))
    half.mapping.track(torch.ones(8, 5, dtype=torch.bfloat16), decay=0.999)
    other.mapping.track(torch.zeros(8, 5, dtype=torch.bfloat16))
    other.load_state_dict(half.state_dict())
    assert torch.equal(other.mapping.w_mean, half.mapping.w_mean) and other.mapping.w_mean.dtype == torch.float32
