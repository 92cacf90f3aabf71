"""Editing: super-resolution by its protocol, inpainting and SDEdit where the right answer is known."""

import importlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics.functional.image as oracle
from conftest import normal, rng, uniform
from skimage import color, metrics
from torch import nn

from course_lib import diffusion, editing
from course_lib.base import checkpoints, datasets, images, zoo
from course_lib.base.loop import Loop
from course_lib.diffusion import toy2d
from course_lib.editing import super_resolution as sr

# --- colour and sizes


def test_brightness_and_colour_are_those_of_bt601():
    x = uniform(2, 3, 5, 7)
    found = 255 * sr.to_ycbcr(x)
    expected = torch.from_numpy(np.stack([color.rgb2ycbcr(each.permute(1, 2, 0).numpy()) for each in x]))
    torch.testing.assert_close(found, expected.permute(0, 3, 1, 2), rtol=0, atol=1e-10)
    torch.testing.assert_close(sr.to_rgb(sr.to_ycbcr(x)), x)
    torch.testing.assert_close(sr.luma(x), sr.to_ycbcr(x)[:, :1])
    assert sr.luma(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(("n", "m"), [(12, 6), (12, 3), (13, 4), (6, 12), (5, 20), (3, 1), (1, 4), (7, 7)])
def test_resampling_keeps_constants_and_the_middle_of_lines(n, m):
    R = sr.resize_matrix(n, m)
    torch.testing.assert_close(R.sum(1), torch.ones(m, dtype=torch.float64))
    if n == m:
        torch.testing.assert_close(R, torch.eye(n, dtype=torch.float64))
    reach = 2 * max(1.0, n / m)
    places = (torch.arange(m, dtype=torch.float64) + 0.5) * n / m - 0.5
    inside = (places - reach >= 0) & (places + reach <= n - 1)
    torch.testing.assert_close((R @ torch.arange(n, dtype=torch.float64))[inside], places[inside])


@pytest.mark.parametrize("factor", [2, 4])
def test_away_from_borders_it_is_the_usual_antialiased_filter(factor):
    """torch's antialiased bicubic has a = −0.5, too; at borders it cuts the kernel, MATLAB's mirrors the image."""
    x = uniform(1, 2, 64, 48)
    size = (64 // factor, 48 // factor)
    expected = F.interpolate(x, size, mode="bicubic", antialias=True)
    torch.testing.assert_close(sr.resize(x, size)[..., 3:-3, 3:-3], expected[..., 3:-3, 3:-3], rtol=0, atol=1e-9)


def test_beyond_the_border_the_image_is_mirrored():
    x = uniform(1, 1, 8, 8)
    mirrored = torch.cat([x.flip(3), x, x.flip(3)], 3)
    torch.testing.assert_close(sr.resize(x, (8, 4)), sr.resize(mirrored, (8, 12))[..., 4:8])


def test_the_small_image_has_8_bits_and_whole_pixels():
    x = uniform(1, 3, 17, 22)
    small = sr.shrink(x, 4)
    assert small.shape == (1, 3, 4, 5)
    torch.testing.assert_close(small * 255, (small * 255).round())
    torch.testing.assert_close(small, sr.shrink(x[:, :, :16, :20], 4))
    assert sr.bicubic(small, 4).shape == (1, 3, 16, 20)
    assert sr.shrink(x.half(), 2).dtype == torch.float16


# --- the network


def test_the_network_begins_as_interpolation_and_shuffles_as_torch():
    y = uniform(2, 1, 9, 6, dtype=torch.float32)
    for factor in (2, 3, 4):
        network = sr.SuperResolver(factor, 8, 1)
        assert (network(y) - sr.bicubic(y, factor)).abs().max() < 0.02
        details = F.pixel_shuffle(network.head(network.body(y - 0.5)), factor)
        torch.testing.assert_close(network(y), sr.bicubic(y, factor) + details)
    assert network.double()(y.double()).dtype == torch.float64
    assert sr.enlarge(network.float(), uniform(1, 3, 8, 5, dtype=torch.float32)).shape == (1, 3, 32, 20)


def test_enlarging_a_grey_image_leaves_it_grey():
    grey = uniform(1, 1, 8, 8, dtype=torch.float32).expand(1, 3, 8, 8)
    found = sr.enlarge(sr.SuperResolver(2, 8, 1), grey)
    assert found.std(1).max() < 1e-4 and found.min() >= 0 and found.max() <= 1


def test_a_step_learns():
    torch.manual_seed(0)
    data = sr.tiles([datasets.load_image("cat")], side=48, stride=48)[::3]
    assert data.dtype == torch.uint8 and data.shape[1:] == (1, 48, 48)
    torch.testing.assert_close(
        data[0, 0, :3, :3], (255 * sr.luma(datasets.load_image("cat")))[0, 0, :3, :3].round().byte()
    )
    network, draws = sr.SuperResolver(2, 16, 1), rng()
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    step = sr.super_resolution_step(network, optimiser, draws)
    loop = Loop(step, data, steps=60, batch_size=4, stateful={"n": network, "o": optimiser, "r": draws})
    loop.run()
    x = data.float() / 255
    small = sr.shrink(x, 2)
    assert F.l1_loss(network(small), x) < 0.99 * F.l1_loss(sr.bicubic(small, 2), x)


# --- the judge


def test_psnr_and_ssim_are_the_usual_ones():
    x, y = uniform(3, 1, 24, 31), (uniform(3, 1, 24, 31) + 0.1 * normal(3, 1, 24, 31, seed=1)).clamp(0, 1)
    for k in range(3):
        a, b = x[k, 0].numpy(), y[k, 0].numpy()
        assert sr.psnr(y, x)[k].item() == pytest.approx(metrics.peak_signal_noise_ratio(a, b, data_range=1))
        expected = metrics.structural_similarity(
            a, b, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert sr.ssim(y, x)[k].item() == pytest.approx(expected, abs=1e-9)
    expected = oracle.structural_similarity_index_measure(y, x, data_range=1.0, reduction=None)  # mirrors the border
    wider = [F.pad(z, [5] * 4, mode="reflect") for z in (y, x)]
    torch.testing.assert_close(sr.ssim(*wider), expected, rtol=0, atol=1e-6)
    assert sr.psnr(y, x)[0] == pytest.approx(oracle.peak_signal_noise_ratio(y[0], x[0], data_range=1.0).item())
    torch.testing.assert_close(sr.ssim(x, x), torch.ones(3, dtype=torch.float64))
    assert sr.psnr(x, x)[0] == torch.inf
    assert sr.psnr(y.bfloat16(), x.bfloat16()).dtype == torch.float32


def set5():
    files = sorted((datasets.data_folder() / "Set5").glob("*.png"))
    if not files:
        pytest.skip("needs the folder Set5 in COURSE_DATA")
    return [images.load(file) for file in files]


@pytest.mark.parametrize(("factor", "psnr", "ssim"), [(2, 33.66, 0.9299), (4, 28.42, 0.8104)])
def test_the_protocol_gives_the_published_numbers_of_bicubic(factor, psnr, ssim):
    """Published with every method since SRCNN (Dong et al. 2014), for instance by Lim et al. (2017), table 2."""
    found = sr.evaluate(lambda y: sr.bicubic(y, factor), set5(), factor)
    assert found["PSNR, dB"] == pytest.approx(psnr, abs=0.04)  # their Y was rounded to 8 bits
    assert found["SSIM"] == pytest.approx(ssim, abs=0.0015)


@pytest.mark.parametrize("factor", [2, 4])
def test_the_shipped_networks_have_the_scores_of_their_headers(factor):
    network = zoo.load(f"super_resolution_x{factor}", "cpu")
    assert sum(p.numel() for p in network.parameters()) < 400_000
    score = json.loads(checkpoints.load(f"super_resolution_x{factor}")[1]["score"])
    found = sr.evaluate(network, set5(), factor)
    assert found["PSNR, dB"] == pytest.approx(score["PSNR, dB"], abs=0.01)
    assert found["SSIM"] == pytest.approx(score["SSIM"], abs=0.001)
    assert score["PSNR, dB"] > score["PSNR of bicubic, dB"] + 1


@pytest.mark.parametrize("factor", [2, 4])
def test_the_shipped_networks_beat_bicubic_on_a_photograph_that_ships(factor):
    photo = [datasets.load_image("cat")[:, :, 20:220, 95:295]]
    rule = sr.evaluate(lambda y: sr.bicubic(y, factor), photo, factor)
    found = sr.evaluate(zoo.load(f"super_resolution_x{factor}", "cpu"), photo, factor)
    assert found["PSNR, dB"] > rule["PSNR, dB"] + 0.3 and found["SSIM"] > rule["SSIM"]


def test_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scores = importlib.import_module("recipes.editing").main(["--quick", "--steps", "3"])
    metadata = checkpoints.restore(
        zoo.build("super_resolution_x4"), tmp_path / "build" / "super_resolution_x4_quick.safetensors"
    )
    assert metadata["recipe"].startswith("python recipes/editing.py --steps 3 --batch-size 8")
    assert abs(scores["PSNR, dB"] - scores["PSNR of bicubic, dB"]) < 3
    assert not list(Path("data").glob("*"))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: sr.luma(uniform(1, 1, 4, 4)), ValueError, r"\(B, 3, H, W\)"),
        (lambda: sr.luma(uniform(1, 3, 4, 4) > 0), TypeError, "floating-point"),
        (lambda: sr.resize(uniform(1, 1, 4, 4), (0, 2)), ValueError, "at least 1 px"),
        (lambda: sr.shrink(uniform(1, 1, 4, 4), 5), ValueError, "at least 5 px, got 4×4"),
        (lambda: sr.shrink(uniform(1, 1, 4, 4), 2.0), ValueError, "one integer"),
        (lambda: sr.SuperResolver(0), ValueError, "at least 1"),
        (lambda: sr.SuperResolver(2, 8, 1)(uniform(1, 3, 4, 4)), ValueError, r"brightness \(B, 1, H, W\)"),
        (lambda: sr.psnr(uniform(1, 1, 4, 4), uniform(1, 1, 4, 5)), ValueError, "one shape"),
        (lambda: sr.ssim(uniform(1, 1, 10, 20), uniform(1, 1, 10, 20)), ValueError, "11 px"),
        (lambda: sr.tiles([uniform(1, 3, 40, 40)]), ValueError, "96 px"),
        (lambda: sr.evaluate(lambda y: y, [], 2), ValueError, "at least one photograph"),
        (lambda: sr.evaluate(lambda y: y, [255 * uniform(1, 3, 40, 40)], 2), ValueError, "x / 255"),
    ],
)
def test_super_resolution_refuses_with_words(call, error, says):
    with pytest.raises(error, match=says):
        call()


# --- inpainting


def test_the_walk_of_repaint():
    assert editing.repaint_times([4, 3, 2, 1, 0], 2, 2) == [4, 3, 2, 3, 4, 3, 2, 1, 0, 1, 2, 1, 0]
    assert editing.repaint_times([9, 5, 0]) == [9, 5, 0]
    assert editing.repaint_times([9, 5, 0], 5, 2) == [9, 5, 0, 5, 9, 5, 0]
    walk = editing.repaint_times(diffusion.cosine(100).times(12), np.int64(3), 4)
    assert sum(s < t for t, s in itertools.pairwise(walk)) == 12 * 4 and walk[0] == 100 and walk[-1] == 0


SCHEDULE = diffusion.cosine(120)
MEAN = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.8, 0.5], [0.8, 1.0, 0.3], [0.5, 0.3, 0.7]], dtype=torch.float64) / 2
GIVEN = 1.0


def conditional():
    """Mean and covariance of the last two numbers, given the first."""
    gain = COVARIANCE[1:, 0] / COVARIANCE[0, 0]
    return MEAN[1:] + gain * (GIVEN - MEAN[0]), COVARIANCE[1:, 1:] - gain[:, None] * COVARIANCE[0, 1:]


def paint_gaussian(steps, resamplings, n=1200):
    """Draws of the last two numbers by the optimal model of a Gaussian, when the first is known."""
    model, draws = toy2d.gaussian(MEAN, COVARIANCE, SCHEDULE), rng()
    known = torch.full((n, 3), GIVEN, dtype=torch.float64)
    x = torch.randn(n, 3, generator=draws, dtype=torch.float64)
    times = editing.repaint_times(SCHEDULE.times(steps), 1, resamplings)
    mask = torch.tensor([True, False, False])
    for state in editing.repaint(model, x, SCHEDULE, times, known=known, mask=mask, noise=draws):
        x = state.x
    assert torch.equal(x[:, 0], known[:, 0])
    return x[:, 1:]


def test_repaint_comes_to_the_conditional_law_of_a_gaussian():
    """Replacement alone misses it by far; each resampling brings it nearer, until it is there."""
    mean, covariance = conditional()
    errors = {}
    for resamplings in (1, 3, 8):
        x = paint_gaussian(120, resamplings)
        errors[resamplings] = ((x.mean(0) - mean).norm().item(), (x.T.cov() - covariance).norm().item())
    assert errors[1][0] > 0.2 and errors[3][0] < 0.5 * errors[1][0]
    assert errors[8][0] < 0.07 and errors[8][1] < 0.15, errors


def test_knowledge_of_a_sum_is_kept_by_every_sampler():
    """X₁ + X₂ + X₃ is known: the model of a Gaussian obeys, and what it draws has the right mean."""
    model, total = toy2d.gaussian(MEAN, COVARIANCE, SCHEDULE), 0.9
    agree = editing.consistent(model, SCHEDULE, lambda x0: x0 + (total - x0.sum(1, keepdim=True)) / 3)
    x = torch.randn(400, 3, generator=rng(), dtype=torch.float64)
    for sampler, more in ((diffusion.ddpm, {"noise": rng()}), (diffusion.ddim, {}), (diffusion.dpm_solver, {})):
        for state in sampler(agree, x, SCHEDULE, SCHEDULE.times(50), **more):
            drawn = state.x
        torch.testing.assert_close(drawn.sum(1), torch.full((400,), total, dtype=torch.float64), rtol=0, atol=1e-9)


class Grey(nn.Module):
    """Predicts X_0 = 0, mid-grey, whatever it is shown."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.calls = 0

    def forward(self, x, t, condition=None, mask=None):
        self.calls += 1
        return 0 * x * self.weight


def grey():
    return diffusion.Denoiser(Grey(), diffusion.cosine(100), "x0", shape=(3, 8, 8)).train()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_known_pixels_stay_bit_for_bit(dtype):
    x = uniform(4, 3, 8, 8, dtype=dtype).to(memory_format=torch.channels_last)
    for mask in (uniform(8, 8) < 0.5, uniform(4, 1, 8, 8) < 0.5, torch.ones(8, 8) > 0):
        denoiser = grey()
        found = editing.inpaint(denoiser, x, mask, steps=4, resamplings=3, jump=2, rng=rng())
        known = mask.expand_as(x)
        assert torch.equal(found[known], x[known]) and found.dtype == dtype and denoiser.training
        assert denoiser.network.calls == 12
        if not known.all():
            torch.testing.assert_close(found[~known], torch.full_like(found[~known], 0.5))


def test_the_same_rng_paints_the_same():
    x, mask = uniform(2, 1, 28, 28, dtype=torch.float32), torch.arange(28)[:, None].expand(28, 28) < 20
    denoiser = zoo.load("diffusion_mnist", "cpu")
    options = {"condition": torch.tensor(3), "steps": 2, "resamplings": 2, "guidance_scale": 1.5}
    first, again = (editing.inpaint(denoiser, x, mask, rng=rng(1), **options) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first[0], first[1])


def test_the_lower_half_of_a_digit_is_read_right_and_has_no_seam():
    if not datasets.is_available("mnist"):
        pytest.skip("needs mnist, in COURSE_DATA or the cache")
    x, labels = datasets.load("mnist", "test")[:24]
    mask = torch.arange(28)[:, None].expand(28, 28) < 14
    painted = editing.inpaint(zoo.load("diffusion_mnist", "cpu"), x, mask, labels, steps=10, resamplings=2, rng=rng())
    assert torch.equal(painted[:, :, :14], x[:, :, :14])
    read = zoo.load("classifier_mnist", "cpu")(painted).argmax(1)
    assert (read == labels).float().mean() >= 0.9
    assert editing.seam(painted, mask) < 1.4 * editing.seam(x, mask)


def test_the_seam_is_the_difference_across_the_border():
    mask = torch.arange(6)[:, None].expand(6, 6) < 3
    x = torch.where(mask, 0.2, 0.9)[None, None]
    assert editing.seam(x, mask) == pytest.approx(0.7)
    assert editing.seam(x.mT, mask.T) == pytest.approx(0.7)
    assert editing.seam(x, mask.T) == pytest.approx(0)  # along this border nothing changes


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"images": 2 * uniform(1, 3, 8, 8) - 1}, ValueError, r"\(x \+ 1\) / 2"),
        ({"images": uniform(1, 3, 8, 9)}, ValueError, r"knows images \(3, 8, 8\)"),
        ({"images": torch.ones(1, 3, 8, 8, dtype=torch.uint8)}, TypeError, "floating-point"),
        ({"mask": torch.ones(8, 8)}, TypeError, "True where pixels are known"),
        ({"mask": torch.ones(8, 7) > 0}, ValueError, r"broadcasts to \(1, 3, 8, 8\)"),
        ({"steps": 0}, ValueError, "got 0"),
        ({"steps": 2.5}, TypeError, "integer"),
        ({"jump": 0}, ValueError, "jump and resamplings ≥ 1"),
        ({"resamplings": 0}, ValueError, "jump and resamplings ≥ 1"),
    ],
)
def test_inpainting_refuses_with_words(change, error, says):
    given = {"images": uniform(1, 3, 8, 8), "mask": torch.ones(8, 8) > 0, "steps": 3} | change
    with pytest.raises(error, match=says):
        editing.inpaint(grey(), **given)


def test_the_parts_refuse_with_words():
    mask = torch.ones(8, 8) > 0
    with pytest.raises(ValueError, match="known and missing"):
        editing.seam(uniform(1, 1, 8, 8), mask)
    with pytest.raises(ValueError, match="falling"):
        editing.repaint_times([3, 3, 0])
    with pytest.raises(ValueError, match=r"known images \(2, 3\)"):
        next(editing.repaint(grey(), normal(2, 3), SCHEDULE, [9, 0], known=normal(2, 2), mask=mask[0, :1]))


# --- SDEdit


def test_strength_0_returns_the_image_and_1_draws_a_new_one():
    denoiser = zoo.load("diffusion_mnist", "cpu")
    x, noise, label = uniform(2, 1, 28, 28, dtype=torch.float32), normal(2, 1, 28, 28, dtype=torch.float32), [4, 7]
    label = torch.tensor(label)
    assert torch.equal(editing.sdedit(denoiser, x, 0, label), x)
    new = diffusion.sample(denoiser, noise, label, sampler=diffusion.ddim, steps=5)
    found = editing.sdedit(denoiser, x, np.float32(1), label, steps=5, noise=noise)
    torch.testing.assert_close(found, new, rtol=0, atol=5e-3)  # of the image 5·10⁻⁵ is left


def test_between_them_the_strength_is_where_the_way_begins():
    schedule = diffusion.cosine(1000)
    assert editing.sdedit_times(schedule, 1, 4) == schedule.times(4)
    assert editing.sdedit_times(schedule, 0.6, 4) == [600, 500, 250, 0]
    assert editing.sdedit_times(schedule, 0.5, 4) == [500, 250, 0]
    assert editing.sdedit_times(schedule, 0, 4) == [0]


def test_of_a_gaussian_it_keeps_what_the_noise_leaves():
    """The optimal model of N(0, 1) moves nothing along the ODE: so the result is √ᾱ x + √(1 − ᾱ) ε, clipped."""
    schedule = diffusion.cosine(200)

    class Unit(nn.Module):
        def forward(self, x, t, condition=None, mask=None):
            return schedule.at(t, x)[0] * x

    denoiser = diffusion.Denoiser(Unit(), schedule, "x0", shape=(1, 6, 6))
    denoiser.register_parameter("weight", nn.Parameter(torch.zeros(1)))
    x, noise = 0.25 + 0.5 * uniform(1, 1, 6, 6), 0.2 * normal(1, 1, 6, 6)
    found = editing.sdedit(denoiser, x, 0.3, steps=200, noise=noise)
    a, b = schedule.at(60, x)
    torch.testing.assert_close(2 * found - 1, a * (2 * x - 1) + b * noise, rtol=0, atol=5e-3)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_another_strength_is_refused(strength):
    with pytest.raises(ValueError, match=r"strength in \[0, 1\]"):
        editing.sdedit(grey(), uniform(1, 3, 8, 8), strength)


def test_sdedit_refuses_with_words():
    with pytest.raises(ValueError, match="values from"):
        editing.sdedit(grey(), 3 * uniform(1, 3, 8, 8), 0.5)
    with pytest.raises(ValueError, match=r"knows images \(3, 8, 8\)"):
        editing.sdedit(grey(), uniform(1, 3, 4, 4), 0.5)
    with pytest.raises(ValueError, match=r"expected noise \(1, 3, 8, 8\)"):
        editing.sdedit(grey(), uniform(1, 3, 8, 8), 0.5, noise=normal(3, 8, 8))
