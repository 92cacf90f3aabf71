"""The training step against its formula and a known optimum, sampling of images, the recipe, and what ships."""

import functools
import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import rng
from torch import nn

from course_lib import diffusion
from course_lib.base import checkpoints, datasets, metrics, unet, zoo
from course_lib.base.loop import Loop

ROOT = Path(__file__).resolve().parents[1]
# Bars for what ships, with some room, of a hundred images (cats: 50) drawn here: the kernel distance at most, and how
# many the classifier takes for what was asked, without guidance and with it, at least.
KERNEL_DISTANCE = {"diffusion_mnist": 0.1, "diffusion_fashion_mnist": 0.15, "diffusion_cats": 2.0}
RIGHT = {"diffusion_mnist": (95, 99), "diffusion_fashion_mnist": (86, 97)}
SHIPPED = ("diffusion_mnist", "diffusion_fashion_mnist", "diffusion_cats")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=rng(seed))


def tiny(seed: int = 0, prediction_type: str = "epsilon", **changes) -> diffusion.Denoiser:
    """A small denoiser of 8×8 images, whose last layer has left 0."""
    torch.manual_seed(seed)
    network = unet.UNet(unet.Config(**{"width": 8, "multipliers": (1, 2)} | changes))
    nn.init.normal_(network.last.weight, std=0.1)
    return diffusion.Denoiser(network, diffusion.cosine(50), prediction_type, (1, 8, 8))


class Notes(nn.Module):
    """A network that answers with its one weight, and notes what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.asked = nn.Parameter(torch.tensor(0.1)), []

    def forward(self, *given_):
        self.asked.append(given_)
        return self.weight * torch.ones_like(given_[0])


# The training step


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_a_step_is_algorithm_1(gamma):
    """Times, noise and the mask of conditions are drawn in this order; then the loss, and its gradient downhill."""
    denoiser, images, labels = (
        tiny(prediction_type="v", classes=3),
        torch.rand(6, 1, 8, 8),
        torch.tensor([0, 1, 2, 0, 1, 2]),
    )
    twin = tiny(prediction_type="v", classes=3)
    step = diffusion.diffusion_step(
        denoiser, torch.optim.SGD(denoiser.network.parameters(), 0.1), rng(3), drop=0.4, gamma=gamma, clip=None
    )
    losses = step((images, labels))
    assert set(losses) == {"loss"} and not losses["loss"].requires_grad

    generator = rng(3)
    t = diffusion.draw_times(6, 50, generator)
    noise, condition_mask = torch.randn(6, 1, 8, 8, generator=generator), torch.rand(6, generator=generator) >= 0.4
    assert condition_mask.any() and not condition_mask.all()
    loss = diffusion.simple_loss(twin, 2 * images - 1, t, noise, labels, condition_mask, gamma)
    torch.testing.assert_close(losses["loss"], loss.detach())
    gradients = torch.autograd.grad(loss, list(twin.network.parameters()))
    for moved, old, gradient in zip(denoiser.network.parameters(), twin.network.parameters(), gradients, strict=True):
        torch.testing.assert_close(moved, old - 0.1 * gradient)


def test_images_are_centred_and_points_are_not():
    schedule, notes = diffusion.cosine(50), Notes()
    optimiser = torch.optim.SGD(notes.parameters(), 0.0)
    step = diffusion.diffusion_step(diffusion.Denoiser(notes, schedule), optimiser, rng())
    for data, x0 in ((torch.full((200, 1, 2, 2), 0.75), 0.5), (torch.full((200, 2), 0.75), 0.75)):
        step(data)
        x, t = notes.asked[-1]
        a, s = schedule.at(t, x)
        noise = (x - a * x0) / s  # N(0, 1) whatever the time; of another X_0 it would be 6 off at t = 1
        assert noise.abs().max() < 4


def test_conditions_are_left_out_as_often_as_asked():
    schedule, notes, labels = diffusion.cosine(50), Notes(), torch.arange(1000) % 10
    denoiser, optimiser = diffusion.Denoiser(notes, schedule), torch.optim.SGD(notes.parameters(), 0.0)
    for drop in (0.0, 0.2, 1.0):
        diffusion.diffusion_step(denoiser, optimiser, rng(), drop=drop)((torch.rand(1000, 2), labels))
        _, _, condition, condition_mask = notes.asked[-1]
        assert torch.equal(condition, labels)
        assert abs(float((~condition_mask).float().mean()) - drop) <= 4.5 * math.sqrt(drop * (1 - drop) / 1000)
    diffusion.diffusion_step(denoiser, optimiser, rng())((torch.rand(4, 2), labels[:4]))
    assert len(notes.asked[-1]) == 2  # no condition, though the data has labels


def test_steps_refuse():
    denoiser = tiny(classes=3)
    optimiser = torch.optim.SGD(denoiser.network.parameters(), 0.1)
    for drop in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"expected drop in \[0, 1\], got {drop}"):
            diffusion.diffusion_step(denoiser, optimiser, rng(), drop=drop)
    with pytest.raises(ValueError, match=r"the batches must be tuples \(x, condition\)"):
        diffusion.diffusion_step(denoiser, optimiser, rng(), drop=0.1)(torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (2 * torch.rand(4, 1, 8, 8, generator=rng()) - 1, ValueError, r"images in \[0, 1\].* got values from -"),
        (255 * torch.rand(4, 1, 8, 8, generator=rng()), ValueError, r"images in \[0, 1\].* to 25"),
        (torch.full((4, 1, 8, 8), math.nan), ValueError, "nan"),
        (torch.full((4, 1, 8, 8), 255, dtype=torch.uint8), TypeError, "got torch.uint8"),
    ],
)
def test_the_first_batch_must_be_images_from_0_to_1(images, error, message):
    """Of images as other tutorials prepare them the network would learn another distribution, without a word."""
    denoiser = tiny(classes=3)
    step = diffusion.diffusion_step(denoiser, torch.optim.SGD(denoiser.network.parameters(), 0.1), rng(), drop=0.1)
    with pytest.raises(error, match=message):
        step((images, torch.tensor([0, 1, 2, 0])))


def test_only_the_first_batch_is_looked_at():
    """A GPU would have to wait for every look; and points may lie anywhere."""
    denoiser, notes = tiny(), Notes()
    step = diffusion.diffusion_step(denoiser, torch.optim.SGD(denoiser.network.parameters(), 0.1), rng())
    step(torch.rand(4, 1, 8, 8))
    step(2 * torch.rand(4, 1, 8, 8))
    step = diffusion.diffusion_step(
        diffusion.Denoiser(notes, diffusion.cosine(9)), torch.optim.SGD(notes.parameters(), 0.1), rng()
    )
    step(5 * torch.randn(4, 2, generator=rng()))


@pytest.mark.parametrize("prediction_type", ["epsilon", "x0", "v"])
def test_no_value_is_read_on_a_device(prediction_type):
    """Or a GPU would have to wait in each step. Tensors on the device `meta` have no values: reading one raises."""
    denoiser = tiny(classes=3, prediction_type=prediction_type).to("meta")
    x0, noise = torch.rand(2, 4, 1, 8, 8, device="meta")
    t, labels, condition_mask = (torch.zeros(4, dtype=dtype, device="meta") for dtype in (int, int, bool))
    loss = diffusion.simple_loss(denoiser, x0, t, noise, labels, condition_mask, gamma=5.0)
    loss.backward()
    assert loss.device.type == "meta" and denoiser.network.first.weight.grad is not None


def test_numpy_numbers_are_numbers():
    images, labels = torch.rand(4, 1, 8, 8, generator=rng()), torch.tensor([0, 1, 2, 0])
    losses = []
    for kind in (float, np.float32, np.float64):
        denoiser = tiny(classes=3)
        optimiser = torch.optim.SGD(denoiser.network.parameters(), 0.1)
        options = {"drop": kind(0.5), "gamma": kind(4.0), "clip": kind(1.0)}
        losses.append(diffusion.diffusion_step(denoiser, optimiser, rng(), **options)((images, labels))["loss"])
    assert losses[0] == losses[1] == losses[2]
    denoiser = tiny(classes=3)
    expected = diffusion.sample(denoiser, 3, labels[:3], steps=2, guidance_scale=2.0, rng=rng(), clip=1.0)
    for n, steps, scale in ((np.int64(3), np.int64(2), np.float32(2)), (torch.tensor(3), np.uint8(2), np.float64(2))):
        for classes in (labels[:3].numpy(), labels[:3].numpy().astype(np.uint8), labels[:3].int(), [0, 1, 2]):
            found = diffusion.sample(denoiser, n, classes, steps=steps, guidance_scale=scale, rng=rng(), clip=scale / 2)
            assert torch.equal(found, expected)
    with pytest.raises(TypeError, match="integer"):
        diffusion.sample(denoiser, 2.0)
    with pytest.raises(TypeError, match="integer"):
        diffusion.sample(denoiser, 2, steps=2.0)
    with pytest.raises(TypeError, match="expected classes as integers, got torch.float64"):
        diffusion.sample(denoiser, 3, np.zeros(3), steps=2)


def test_long_gradients_are_clipped():
    denoiser = tiny()
    before = [p.detach().clone() for p in denoiser.network.parameters()]
    step = diffusion.diffusion_step(denoiser, torch.optim.SGD(denoiser.network.parameters(), 1.0), rng(), clip=1e-3)
    step(torch.rand(4, 1, 8, 8))
    moved = 0.0
    for parameter, old in zip(denoiser.network.parameters(), before, strict=True):
        moved += float((parameter.detach() - old).square().sum())
    assert math.sqrt(moved) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("prediction_type", ["epsilon", "x0", "v"])
def test_training_approaches_the_known_optimum(prediction_type):
    """Gaussian points: the loss of the exact denoiser is what X_t does not tell, and a small network gets near it."""
    schedule, covariance = diffusion.cosine(100), torch.tensor([[0.5, 0.3], [0.3, 0.4]])
    data = diffusion.gaussian(torch.tensor([0.5, -0.3]), covariance, schedule)
    torch.manual_seed(0)
    denoiser, generator = diffusion.Denoiser(diffusion.PointNetwork(32), schedule, prediction_type), rng()
    optimiser = torch.optim.Adam(denoiser.network.parameters(), 5e-3)
    step = diffusion.diffusion_step(denoiser, optimiser, generator)
    parts = {"network": denoiser.network, "optimiser": optimiser, "rng": generator}
    history = Loop(step, data.sample(4096, rng(1)), steps=400, batch_size=256, stateful=parts).run()["loss"]

    eigenvalues, ratio = torch.linalg.eigvalsh(covariance.double()), schedule.alpha_bar[1:, None]
    unknown = (1 - ratio) * eigenvalues / (ratio * eigenvalues + 1 - ratio)  # the variance of X_0 given X_t
    best = float((unknown * {"x0": 1, "epsilon": ratio / (1 - ratio), "v": 1 / (1 - ratio)}[prediction_type]).mean())
    n = 20_000
    noise = torch.randn(n, 2, generator=rng(4))
    with torch.no_grad():
        found = diffusion.simple_loss(denoiser, data.sample(n, rng(2)), diffusion.draw_times(n, 100, rng(3)), noise)
    assert 0.97 * best < float(found) < 1.05 * best < 0.9 * history[0]


def test_a_small_network_learns_digits():
    """Seconds of training on 8×8 digits, with classes: a third of the loss of one who always answers 0 is left."""
    data, denoiser, generator = datasets.load("digits"), tiny(classes=10, width=16), rng()
    optimiser = torch.optim.Adam(denoiser.network.parameters(), 5e-3)
    step = diffusion.diffusion_step(denoiser, optimiser, generator, drop=0.1)
    parts = {"network": denoiser.network, "optimiser": optimiser, "rng": generator}
    history = Loop(step, data, steps=80, batch_size=64, stateful=parts).run()["loss"]
    assert sum(history[-20:]) / 20 < 0.33


def train(steps: int, state: Path | None = None, seed: int = 0) -> list[torch.Tensor]:
    """Weights after some steps; dropout and conditions left out, so that all kinds of randomness take part."""
    denoiser, generator = tiny(classes=10, dropout=0.2), rng(seed)
    optimiser = torch.optim.Adam(denoiser.network.parameters(), 1e-3)
    step = diffusion.diffusion_step(denoiser, optimiser, generator, drop=0.2, gamma=5.0)
    parts = {"network": denoiser.network, "optimiser": optimiser, "rng": generator}
    Loop(step, datasets.load("digits"), steps=steps, batch_size=16, stateful=parts, resume_from=state).run()
    return [parameter.detach() for parameter in denoiser.network.parameters()]


def test_the_same_seed_gives_the_same_and_a_run_resumes_exactly(tmp_path):
    whole, again, other = train(8), train(8), train(8, seed=1)
    assert all(map(torch.equal, whole, again)) and not all(map(torch.equal, whole, other))
    train(3, tmp_path / "state.pt")
    assert all(map(torch.equal, whole, train(8, tmp_path / "state.pt")))


# Sampling


class Flat(nn.Module):
    """ε* of images whose pixels are N(m, 0.2²) each, around [-1, 1]; the condition is m, none is 0."""

    def __init__(self, schedule: diffusion.Schedule) -> None:
        super().__init__()
        self.schedule, self.weight, self.asked = schedule, nn.Parameter(torch.zeros(())), []

    def forward(self, x, t, condition=None, condition_mask=None):
        self.asked.append((len(x), condition is not None, self.training))
        a, s = self.schedule.at(t, x)
        m = 0 if condition is None else condition.view(-1, 1, 1, 1)
        return s * (x - a * m) / (a**2 * 0.2**2 + s**2)


def flat(T: int = 100) -> diffusion.Denoiser:
    schedule = diffusion.cosine(T)
    return diffusion.Denoiser(Flat(schedule), schedule, "epsilon", (1, 2, 3))


@pytest.mark.parametrize(
    ("sampler", "options"),
    [(diffusion.ddpm, {}), (diffusion.ddim, {"eta": 0.5}), (diffusion.dpm_solver, {}), (diffusion.heun, {})],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_samples_are_images(sampler, options):
    denoiser = flat()
    means = torch.tensor([0.3, -0.4]).repeat(150)
    images = diffusion.sample(denoiser, 300, means, sampler=sampler, steps=100, rng=rng(), **options)
    assert images.shape == (300, 1, 2, 3) and images.dtype == torch.float32 and images.is_contiguous()
    assert not images.requires_grad and images.min() >= 0 and images.max() <= 1
    for k, mean in enumerate((0.65, 0.3)):  # the same in [0, 1]
        assert abs(float(images[k::2].mean()) - mean) < 4.5 * 0.1 / math.sqrt(900)
        assert float(images[k::2].std()) == pytest.approx(0.1, rel=0.15)
    calls = 100 if sampler is not diffusion.heun else 199
    assert [size for size, _, _ in denoiser.network.asked] == [250] * calls + [50] * calls


def test_samples_are_clamped():
    images = diffusion.sample(flat(), 200, torch.ones(200), rng=rng(), clip=None)
    assert images.max() == 1 and (images == 1).float().mean() == pytest.approx(0.5, abs=0.1)


def test_batches_do_not_matter():
    """Across the boundary of 250, and for one image alone."""
    denoiser, x = tiny(classes=3).eval(), normal(252, 1, 8, 8)
    labels = torch.arange(252) % 3
    together = diffusion.sample(denoiser, x, labels, steps=3, guidance_scale=2.0)
    for part in (slice(0, 2), slice(248, 252), slice(251, 252)):
        alone = diffusion.sample(denoiser, x[part], labels[part], steps=3, guidance_scale=2.0)
        torch.testing.assert_close(alone, together[part], rtol=1e-4, atol=1e-5)


def test_noise_comes_from_the_generator():
    denoiser = flat()
    for sampler in (diffusion.ddpm, diffusion.dpm_solver):
        one, two = (diffusion.sample(denoiser, 3, sampler=sampler, steps=5, rng=rng(4)) for _ in range(2))
        other = diffusion.sample(denoiser, 3, sampler=sampler, steps=5, rng=rng(5))
        assert torch.equal(one, two) and not torch.equal(one, other)
    generator = rng(4)
    x = torch.randn(3, 1, 2, 3, generator=generator)
    by_hand = diffusion.last(
        diffusion.ddpm(denoiser, x, denoiser.schedule, denoiser.schedule.times(5), noise=generator, clip=1.0)
    )
    found = diffusion.sample(denoiser, 3, sampler=diffusion.ddpm, steps=5, rng=rng(4))
    torch.testing.assert_close(found, (by_hand.clamp(-1, 1) + 1) / 2)
    torch.manual_seed(4)
    torch.testing.assert_close(diffusion.sample(denoiser, 3, sampler=diffusion.ddpm, steps=5), found)


def test_guidance_pushes_samples():
    """Between unconditional 0 and conditional 0.3, and beyond; a scale of 0 or 1 costs one call, others two."""
    denoiser, means = flat(), torch.full((200,), 0.3)
    for scale, expected, calls in ((0.0, 0.0, 20), (0.5, 0.15, 40), (1.0, 0.3, 20), (2.0, 0.6, 40)):
        denoiser.network.asked.clear()
        images = diffusion.sample(denoiser, 200, means, guidance_scale=scale, rng=rng(), clip=None)
        assert abs(2 * float(images.mean()) - 1 - expected) < 4.5 * 0.2 / math.sqrt(1200) + 0.002
        assert len(denoiser.network.asked) == calls
    denoiser.network.asked.clear()
    diffusion.sample(denoiser, 2, rng=rng())
    assert [given_ for _, given_, _ in denoiser.network.asked] == [False] * 20


def test_sampling_at_given_times():
    denoiser, x = tiny(), torch.randn(3, 1, 8, 8, generator=rng(1))
    times = denoiser.schedule.times(4, 7.0)
    with torch.no_grad():
        expected = diffusion.last(diffusion.dpm_solver(denoiser, x, denoiser.schedule, times, clip=1.0))
    found = diffusion.sample(denoiser, x, steps=times)
    torch.testing.assert_close(found, ((expected + 1) / 2).clamp(0, 1))
    even = diffusion.sample(denoiser, x, steps=4)
    assert torch.equal(even, diffusion.sample(denoiser, x, steps=denoiser.schedule.times(4)))
    assert (even - found).abs().max() > 1e-3
    for bad in ([], [5], [3, 5, 0], [10_000, 0]):
        with pytest.raises(ValueError, match="expected at least two falling times"):
            diffusion.sample(denoiser, x, steps=bad)


def test_sampling_works_in_evaluation_mode_and_returns():
    denoiser = flat()
    for training in (True, False):
        denoiser.train(training)
        diffusion.sample(denoiser, 2, steps=3, rng=rng())
        with pytest.raises(ValueError, match="expected eta"):
            diffusion.sample(denoiser, 2, steps=3, sampler=diffusion.ddim, eta=2.0)
        assert denoiser.training == denoiser.network.training == training
    assert denoiser.network.asked and not any(training for _, _, training in denoiser.network.asked)


def test_each_part_of_the_network_gets_its_own_mode_back():
    """A normalisation that was frozen on purpose stays so."""
    denoiser = tiny(dropout=0.3)
    denoiser.train()
    frozen = denoiser.network.down[0][0].dropout
    frozen.eval()
    before = [module.training for module in denoiser.modules()]
    diffusion.sample(denoiser, 2, steps=2, rng=rng())
    assert not frozen.training and before == [module.training for module in denoiser.modules()]


@pytest.mark.parametrize("steps", [20, 300])
def test_a_network_in_half_draws_the_same(steps):
    """With states and coefficients in 8 bits, 300 steps of dpm_solver were NaN, and most pixels of 20 were wrong."""
    torch.manual_seed(0)
    network = unet.UNet(unet.Config(width=8, multipliers=(1, 2), classes=3))
    nn.init.normal_(network.last.weight, std=0.1)
    denoiser = diffusion.Denoiser(network, diffusion.cosine(), "v", (1, 8, 8))
    x, labels = normal(2, 1, 8, 8), torch.tensor([0, 2])
    expected = diffusion.sample(denoiser, x, labels, steps=steps)
    denoiser.bfloat16()
    for noise in (x, x.double(), x.numpy()) if steps == 20 else (x,):
        found = diffusion.sample(denoiser, noise, labels, steps=steps)
        assert found.dtype == torch.float32
        assert (found - expected).abs().mean() < 0.01 < 0.1 * expected.std()


def test_noise_of_another_precision_than_the_network():
    denoiser = tiny(classes=3)
    x, labels = normal(2, 1, 8, 8), torch.tensor([0, 2])
    expected = diffusion.sample(denoiser, x, labels, steps=3)
    assert torch.equal(diffusion.sample(denoiser, x.double(), labels, steps=3), expected)
    state = next(diffusion.ddim(denoiser, x.double(), denoiser.schedule, [50, 0], labels))
    assert state.x.dtype == torch.float64 and state.x.isfinite().all()


def test_sampling_on_devices(device):
    denoiser = tiny(classes=3).eval()
    x, labels = normal(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    expected = diffusion.sample(denoiser, x, labels, steps=4, guidance_scale=1.5)
    found = diffusion.sample(denoiser.to(device), x, labels, steps=4, guidance_scale=1.5)
    assert found.device.type == device.type
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)
    assert diffusion.sample(denoiser, 2, steps=2, sampler=diffusion.ddpm, rng=rng()).device.type == device.type
    denoiser = denoiser.double()
    assert diffusion.sample(denoiser, x, labels, steps=2).dtype == torch.float64


def test_sampling_refuses():
    denoiser = flat()
    unknown = diffusion.Denoiser(denoiser.network, denoiser.schedule)
    for x in (0, -3, torch.zeros(0, 1, 2, 3)):
        with pytest.raises(ValueError, match="at least one image"):
            diffusion.sample(denoiser, x)
    with pytest.raises(ValueError, match="does not know the shape of its images"):
        diffusion.sample(unknown, 4)
    assert diffusion.sample(unknown, torch.zeros(2, 1, 2, 3), steps=2).shape == (2, 1, 2, 3)
    with pytest.raises(ValueError, match=r"conditions or noise for 4 images; got \(3,\)"):
        diffusion.sample(denoiser, 4, torch.zeros(3))
    with pytest.raises(ValueError, match="expected 1 … 100 calls, got 101"):
        diffusion.sample(denoiser, 4, steps=101)
    with pytest.raises(ValueError, match="expected x of finite numbers"):
        diffusion.sample(denoiser, torch.full((1, 1, 2, 3), math.nan))
    with pytest.raises(ValueError, match="multiples of 2, got 7×8"):
        diffusion.sample(tiny(), torch.zeros(1, 1, 7, 8))
    with pytest.raises(ValueError, match="expected classes 0 … 2, got 3 … 3"):
        diffusion.sample(tiny(classes=3), 1, torch.tensor([3]))


# What ships


def recipe():
    return importlib.import_module("recipes.diffusion")


def test_the_recipe_runs(tmp_path, monkeypatch):
    if not datasets.is_available("mnist"):
        pytest.skip("needs MNIST, in COURSE_DATA or the cache")
    monkeypatch.chdir(tmp_path)
    module = recipe()
    monkeypatch.setattr(module, "SAMPLER_STEPS", 3)
    scores = module.main(["--quick", "--json", "scores.json"])["diffusion_mnist"]
    assert float(scores["Fréchet distance"]) > 0 and 0 <= float(scores["agreement"]) <= 1
    assert json.loads(Path("scores.json").read_text())["name"]
    metadata = checkpoints.restore(
        zoo.build("diffusion_mnist"), tmp_path / "build" / "diffusion_mnist_quick.safetensors"
    )
    assert "--model diffusion_mnist" in metadata["recipe"]
    assert list(Path("build").glob("*.png"))


def test_the_recipe_knows_what_ships():
    module = recipe()
    assert set(module.PRESETS) == set(SHIPPED)
    for name, preset in module.PRESETS.items():
        assert (preset.drop is not None) == zoo.build(name).network.config.conditional
        settings = f"--steps {preset.steps} --batch-size {preset.batch_size} --seed 0 --model {name}"
        assert checkpoints.load(name)[1]["recipe"] == f"python recipes/diffusion.py {settings}"
    rates = [module.rate(done, 1000) for done in range(1001)]
    assert max(rates) == max(rates[150:250]) > 0.85 and rates[0] < 0.01 and rates[-1] < 1e-9
    with pytest.raises(SystemExit, match="diffusion_mnist, .*diffusion_cats cannot share --out, --state or --json"):
        module.main(["--json", "scores.json"])


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_denoisers_predict_as_their_networks(name):
    loaded = zoo.load(name, "cpu")
    x, t = normal(2, *loaded.shape), torch.tensor([1, 1000])
    assert loaded.prediction_type == ("x0" if name == "diffusion_cats" else "v") and loaded.schedule.T == 1000
    torch.testing.assert_close(loaded.predict(x, t), loaded.network(x, t))


@functools.cache
def hundred(name: str) -> torch.Tensor:
    """Images of ten calls each, of all classes alike where there are any, without guidance."""
    denoiser = zoo.load(name)
    labels = torch.arange(100) % 10 if denoiser.network.config.conditional else None
    return diffusion.sample(denoiser, 100 if labels is not None else 50, labels, steps=10, rng=rng(1))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_denoisers_draw_like_the_data(name):
    """Against held-out images, by the distance that a hundred images do not bias."""
    images, data = hundred(name), checkpoints.load(name)[1]["data"]
    assert torch.pdist(images.flatten(1)).min() > 1 and images.flatten(1).std(1).min() > 0.03
    if not datasets.is_available(data):
        pytest.skip(f"needs {data}, in COURSE_DATA or the cache")
    held_out = datasets.load(data, "test")
    held_out = held_out[torch.randperm(len(held_out), generator=rng())[:500]][0]
    extract = metrics.extractor(data)
    real, fake = extract(held_out), extract(images)
    flawed = extract((images + 0.2 * torch.randn(images.shape, generator=rng(2))).clamp(0, 1))
    assert metrics.kernel_distance(real, fake) < KERNEL_DISTANCE[name]
    assert metrics.kernel_distance(real, fake) < metrics.kernel_distance(real, flawed)


def test_the_cats_have_the_score_of_their_header():
    """Fréchet distance 12.5 to real faces, DCGAN 12.8 and StyleGAN 22.5; and they are no copies."""
    names = ("diffusion_cats", "dcgan_cats", "stylegan_cats")
    ours, *others = (json.loads(checkpoints.load(name)[1]["score"]) for name in names)
    assert zoo.load("diffusion_cats").shape == (3, 64, 64)
    assert ours["Fréchet distance"]["value"] <= 12.5 and ours["Fréchet distance"]["n"] == 10_000
    assert all(ours["Fréchet distance"]["value"] < theirs["Fréchet distance"]["value"] for theirs in others)
    assert ours["recall"]["value"] > 0.45 > max(theirs["recall"]["value"] for theirs in others)
    assert ours["copied"]["value"] < 0.01


@pytest.mark.parametrize("name", RIGHT)
def test_shipped_denoisers_draw_what_they_are_asked_for(name):
    """Judged by the shipped classifier, so that the test needs no data; more surely with guidance."""
    denoiser, labels = zoo.load(name), torch.arange(100) % 10
    judge = zoo.load(f"classifier_{name.removeprefix('diffusion_')}")
    guided = diffusion.sample(denoiser, 100, labels, steps=10, guidance_scale=2.0, rng=rng(1))
    with torch.no_grad():
        right, right_guided = (int((judge(x).argmax(1) == labels).sum()) for x in (hundred(name), guided))
    assert right >= RIGHT[name][0] and right_guided >= RIGHT[name][1] and right_guided >= right


def test_a_shipped_denoiser_in_half_draws_the_same():
    """97.8 % of digits are read as asked with float32 and with bfloat16 weights; 95.0 % were, in 20 steps."""
    denoiser, labels = zoo.load("diffusion_mnist").bfloat16(), torch.arange(100) % 10
    images = diffusion.sample(denoiser, 100, labels, steps=10, rng=rng(1))
    assert images.dtype == torch.float32
    assert (images - hundred("diffusion_mnist")).abs().mean() < 0.02
