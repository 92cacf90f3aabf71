"""The simulated CUDA card, and on it a training step and the uses of every topic: none forgets a device.

A GPU is seldom at hand, and no CPU sees a forgotten `.to(device)`; `fake_cuda` does.
"""

import contextlib
import copy
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import uniform
from fake_cuda import CARD, fake_cuda
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from course_lib import (
    detection,
    diffusion,
    editing,
    gan,
    keypoints,
    reconstruction,
    scenes,
    segmentation,
    style_transfer,
    stylegan,
    text_to_image,
    upsampling,
    vae,
)
from course_lib.base import metrics, runtime, unet, zoo
from course_lib.base.loop import Loop
from course_lib.base.pyramid import SmallBackbone
from course_lib.text_to_image import decoder as t2i_decoder
from course_lib.text_to_image import upsampler as t2i_upsampler


@pytest.fixture(params=["simulated", *(["real"] if torch.cuda.is_available() else [])])
def card(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The simulated card, and a real one where there is one: they answer the same."""
    with fake_cuda() if request.param == "simulated" else contextlib.nullcontext():
        yield CARD


# --- the card answers as a real one


def test_whatever_is_made_on_the_card_lies_there(card):
    x, c, layer = torch.randn(3, 4, device="cuda"), torch.randn(3, 4), nn.BatchNorm1d(4).to(card)
    y, w = layer(x), x.clone().requires_grad_()
    y.square().sum().backward()
    there = [x, x.T, x[0], *x, x.max(0).values, x.data, x.double(), c.cuda(), c.to(x), c.to("cuda", torch.float64), y]
    there += [x.new_zeros(2), torch.zeros_like(x), nn.Parameter(x), copy.deepcopy(x), torch.arange(3, device=x.device)]
    there += [*copy.deepcopy(layer).state_dict().values(), layer.weight.grad, *torch.autograd.grad(w.sum(), w)]
    assert all(t.device == card and t.is_cuda for t in there)
    here = [c, x.cpu(), x.to("cpu"), x.to(c), torch.zeros_like(x, device="cpu"), torch.tensor([x[0, 0], x[0, 1]])]
    here += [x.type_as(c), c.copy_(x), *nn.Linear(2, 2).to(card).cpu().parameters()]
    assert all(t.device.type == "cpu" and not t.is_cuda for t in here)
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    stream.seek(0)
    assert not any(t.is_cuda for t in torch.load(stream, map_location="cpu", weights_only=True).values())


FORBIDDEN: dict[str, Callable[[Tensor, Tensor], object]] = {
    "a sum": lambda x, c: x + c,
    "a number of the card's on the CPU": lambda x, c: c * x[0, 0],
    "where": lambda x, c: torch.where(x > 0, x, c),
    "a stack of numbers": lambda x, c: torch.stack([x[0, 0], c[0, 0]]),
    "a convolution": lambda x, c: F.conv2d(c[None, None], x[None, None]),
    "a layer": lambda x, c: nn.Linear(4, 2).to(x.device)(c),
    "indices of the card for the CPU": lambda x, c: c[x.argmax(0) % 3],
    "a value for chosen places": lambda x, c: x.__setitem__(torch.tensor([0]), c[:1]),
    "NumPy": lambda x, c: np.asarray(x),
    "x.numpy()": lambda x, c: x.numpy(),
    "the CPU's rng on the card": lambda x, c: torch.randn(2, device="cuda", generator=torch.Generator()),
    "the card's rng on the CPU": lambda x, c: torch.rand(2, generator=torch.Generator("cuda")),
    "the CPU's rng for a tensor": lambda x, c: x.abs().multinomial(1, generator=torch.Generator()),
    "products of integers": lambda x, c: x.long() @ x.long().T,
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_a_card_refuses(name, card):
    with pytest.raises((RuntimeError, TypeError)):
        FORBIDDEN[name](torch.randn(3, 4, device=card), torch.randn(3, 4))


def test_what_a_card_allows(card):
    x, c = torch.randn(3, 4, device=card), torch.randn(3, 4)
    y = (x * c[0, 0] + torch.where(x > 0, x, 0.0))[torch.tensor([0, 2])]
    x[0] = c[0]
    torch.testing.assert_close(x[0].cpu(), c[0])
    torch.rand(2, device=card, generator=torch.Generator("cuda").manual_seed(1))
    one, other = nn.Linear(4, 2).to(card), nn.Linear(4, 2)
    other.load_state_dict(one.state_dict())
    assert y.is_cuda and not other.weight.is_cuda and runtime.device().type == "cuda"


def test_a_lesson_that_forgets_a_device(tmp_path):
    cells = ["import torch\nx = torch.ones(2, device='cuda')", "x + torch.ones(2)", "assert x.sum() > 2", "x.cpu() + 1"]
    lesson = tmp_path / "lesson.ipynb"
    lesson.write_text(json.dumps({"cells": [{"cell_type": "code", "source": [cell]} for cell in cells]}))
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("fake_cuda.py"), lesson], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1 and done.stdout.endswith(f"{lesson}: a device is forgotten in code cells [1]\n")


def test_afterwards_the_card_is_gone():
    before = torch.cuda.is_available(), torch.Generator, torch.autocast, nn.Parameter(torch.ones(2)).device
    with fake_cuda():
        x = torch.ones(2, device="cuda")
    assert not x.is_cuda
    assert before == (torch.cuda.is_available(), torch.Generator, torch.autocast, nn.Parameter(torch.ones(2)).device)


# --- every topic's training step


def adam(*networks: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(network.parameters(), 1e-3, (0.0, 0.99)) for network in networks]


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return uniform(*shape, seed=seed, dtype=torch.float32)


SIDES, BOX = ("day", "night"), ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))
SCENES = scenes.Scenes(4, 64, seed=3)
CAPTIONED = text_to_image.draw_captioned(4, seed=1)
VIEWS = reconstruction.load_turntable(2, 16, samples=1)


def dcgan(to, rng):
    G, D = to(gan.Generator(6, 1, 8, 8, 10)), to(gan.Discriminator(1, 8, 8, 10, normalise=False))
    step = gan.adversarial_step(G, D, *adam(G, D), rng, r1=0.1, augment=gan.augment)
    return step, TensorDataset(pixels(8, 1, 8, 8), torch.arange(8)), {"G": G, "D": D}


def style_gan(to, rng):
    G, D = to(stylegan.StyleGenerator(8, 1, 6, 5, capacity=64, most=8)), to(stylegan.StyleDiscriminator(8, 1, 64, 8))
    return stylegan.stylegan_step(G, D, *adam(G, D), rng, mixing=0.5), pixels(8, 1, 8, 8), {"G": G, "D": D}


def autoencoder(to, rng):
    network = to(vae.VAE(1, 8, 16, 2))
    return vae.vae_step(network, *adam(network), rng), pixels(8, 1, 8, 8), {"vae": network}


def denoiser(to, rng):
    network = unet.UNet(unet.Config(width=8, multipliers=(1, 2), classes=10))
    found = to(diffusion.Denoiser(network, diffusion.cosine(50), "v", (1, 8, 8)))
    step = diffusion.diffusion_step(found, *adam(found), rng, drop=0.2, gamma=5.0)
    return step, TensorDataset(pixels(8, 1, 8, 8), torch.arange(8)), {"denoiser": found}


def detector(to, rng):
    network, drawn = to(detection.Detector(len(scenes.THINGS), SmallBackbone((8, 8, 16)), 8)), SCENES.render_all()
    data = detection.DetectionDataset(
        [each.image for each in drawn], [detection.Objects(each.boxes, each.labels) for each in drawn]
    )
    optimiser, schedule = detection.optimiser_and_schedule(network, 2, 1e-3)
    vary = detection.random_squares(64, (0.8, 1.2))
    return detection.detection_step(network, optimiser, rng, vary, schedule), data, {"detector": network}


def segmenter(to, rng):
    network, data = to(segmentation.SegmentationNet(14, SmallBackbone((8, 8, 16)), 8)), segmentation.SegmentationDataset
    optimiser, schedule = segmentation.optimiser_and_schedule(network, 2, 1e-3)
    step = segmentation.segmentation_step(network, optimiser, rng, schedule=schedule)
    return step, data.of(SCENES.render_all()), {"network": network}


def keypoint_network(to, rng):
    network = to(keypoints.KeypointNetwork([0, 2, 1], SmallBackbone((8, 8, 16)), 8))
    points = torch.cat([32 * pixels(8, 3, 2), torch.full((8, 3, 1), 2.0)], -1)
    data = keypoints.KeypointDataset((255 * pixels(8, 3, 32, 32)).byte(), points)
    step = keypoints.keypoint_step(network, *adam(network), rng, keypoints.varied([0, 2, 1], turn=30))
    return step, data, {"network": network}


def clip(to, rng):
    network = to(text_to_image.CLIP())
    step = text_to_image.clip_step(network, *adam(network), twins=True)
    return step, text_to_image.Pairs(CAPTIONED), {"clip": network}


def scene_decoder(to, rng):
    network = to(zoo.build("decoder_scenes"))
    step = t2i_decoder.decoder_step(network, *adam(network), rng)
    return step, text_to_image.DecoderData(CAPTIONED, to(text_to_image.CLIP())), {"decoder": network}


def text_upsampler(to, rng):
    network = to(t2i_upsampler.Upsampler(8, 1, 1))
    small, large = (255 * pixels(8, 3, 8, 8)).byte(), (255 * pixels(8, 3, 16, 16)).byte()
    return t2i_upsampler.upsampler_step(network, *adam(network), rng), TensorDataset(small, large), {"n": network}


def translator(to, rng):
    G, D = to(editing.paired.Translator(1, 8)), to(editing.paired.PatchDiscriminator(4, 8))
    data = TensorDataset(pixels(4, 1, 32, 32), pixels(4, 3, 32, 32))
    return editing.paired.translation_step(G, D, *adam(G, D)), data, {"G": G, "D": D}


def cycle(to, rng):
    unpaired = editing.unpaired
    G, pools = (
        to(unpaired.generators(8)),
        to(nn.ModuleDict({side: unpaired.ImagePool((3, 32, 32), 4) for side in SIDES})),
    )
    D = to(nn.ModuleDict({side: editing.paired.PatchDiscriminator(3, 8) for side in SIDES}))
    step = unpaired.cycle_step(G, D, *adam(G, D), pools, rng)
    return step, TensorDataset(pixels(4, 3, 32, 32), pixels(4, 3, 32, 32)), {"G": G, "D": D, "pools": pools}


def radiance(field):
    def make(to, rng):
        network = to(field())
        return (
            reconstruction.radiance_step(network, *adam(network), 8, rng),
            reconstruction.Rays.of(VIEWS),
            {"n": network},
        )

    return make


def splats(to, rng):
    network = to(reconstruction.Splats.at(pixels(20, 3) - 0.5, 0.1))
    step = reconstruction.splat_step(network, torch.optim.Adam(network.groups()), VIEWS.cameras)
    return step, reconstruction.Pictures(VIEWS), {"splats": network}


def cat_upsampler(to, _):
    network = to(upsampling.Upsampler(8, 1))
    step = upsampling.upsampler_step(network, *adam(network), torch.Generator())  # by its docstring, on the CPU
    return step, TensorDataset(pixels(4, 3, 16, 16), torch.arange(4)), {"network": network}


def super_resolution(to, _):
    network = to(editing.super_resolution.SuperResolver(2, 8, 1))
    step = editing.super_resolution.super_resolution_step(network, *adam(network), torch.Generator())  # on the CPU, too
    return step, (255 * pixels(4, 1, 16, 16)).byte(), {"network": network}


TRAININGS = {
    "GAN": dcgan,
    "StyleGAN": style_gan,
    "VAE": autoencoder,
    "diffusion": denoiser,
    "detection": detector,
    "segmentation": segmenter,
    "keypoints": keypoint_network,
    "CLIP": clip,
    "text to image": scene_decoder,
    "text to image, upsampler": text_upsampler,
    "pix2pix": translator,
    "CycleGAN": cycle,
    "voxels": radiance(lambda: reconstruction.VoxelGrid(BOX, 6)),
    "NeRF": radiance(lambda: reconstruction.RadianceMLP(BOX, 2, 8, 2)),
    "splats": splats,
    "upsampler": cat_upsampler,
    "super-resolution": super_resolution,
}


@pytest.mark.parametrize("name", TRAININGS)
def test_training_on_the_card(name, card, monkeypatch):
    monkeypatch.setenv("COURSE_PRECISION", "float32")  # bfloat16 is slow on most CPUs
    for rng in (torch.Generator(card), torch.Generator()):  # each draws on its own device
        step, data, networks = TRAININGS[name](lambda network: network.to(card), rng)
        loop = Loop(step, data, steps=1, batch_size=2, stateful={**networks, "rng": rng})
        loop.run()
        assert loop.done == 1 and loop.device == card


# --- the uses of what was trained: networks on the card, images there or on the CPU


def loaded(name: str) -> nn.Module:
    return zoo.load(name, "cuda")


def sample_digits(images: Tensor) -> None:
    model, rng = loaded("diffusion_mnist"), torch.Generator()
    for sampler in (diffusion.ddpm, diffusion.ddim, diffusion.dpm_solver, diffusion.heun):
        diffusion.sample(model, 2, torch.tensor([1, 2]), sampler=sampler, steps=2, guidance_scale=2.0, rng=rng)
    grey = images[:, :1, :28, :28]
    editing.inpaint(model, grey, grey[0, 0] > 0.5, torch.tensor([1, 2]), steps=2, resamplings=2, rng=rng)
    editing.sdedit(model, grey, 0.5, torch.tensor([1, 2]), steps=4, rng=rng)


def words_to_images(images: Tensor) -> None:
    drawn = text_to_image.generate(CAPTIONED.captions[:2], steps=2, rng=torch.Generator(), large=True, device="cuda")
    assert drawn.is_cuda
    for given in (drawn, drawn.cpu(), images):
        text_to_image.judge.judge(given, CAPTIONED.captions[:2], loaded("detector_scenes"))
    text_to_image.variations(images[..., :32, :32].cuda(), steps=2)
    text_to_image.retrieval(loaded("clip_scenes"), CAPTIONED)


def other_generators(images: Tensor) -> None:
    stylegan.sample(loaded("stylegan_mnist"), 2, rng=torch.Generator())
    gan.sample(loaded("dcgan_fashion_mnist"), 2, torch.tensor([1, 2]), rng=torch.Generator())
    found = vae.sample(loaded("vae_mnist"), 2, torch.Generator("cuda"))
    metrics.memorisation(*(pixels(20, 8, seed=seed).to(images) for seed in range(3)))
    assert found.is_cuda


def find_objects(images: Tensor) -> None:
    found = detection.detect(loaded("detector_scenes"), images, minimum=0.0)
    assert all(each.shapes.device == images.device for each in found)
    truth = [detection.Objects(torch.tensor([[2.0, 2.0, 30.0, 30.0]]), torch.tensor([0])).to(images.device)] * 2
    detection.evaluate([each[torch.arange(5, device=images.device)] for each in found], truth)
    keypoints.find_figures(images[0], loaded("detector_scenes"), loaded("keypoints_figures"), minimum=0.0)
    segmentation.evaluate(loaded("panoptic_scenes"), SCENES.render_all()[:2])
    segmentation.predict(loaded("panoptic_scenes"), images)


def translate(images: Tensor) -> None:
    editing.paired.translate(loaded("edges_to_cats"), images[:, :1])
    editing.unpaired.translate(loaded("cycle_day_night"), images, "night")
    text_to_image.upsample(loaded("upsampler_scenes"), images.cuda())
    photographs = [images[0, :, :16, :16].cuda()[None]]
    editing.super_resolution.evaluate(loaded("super_resolution_x2"), photographs, 2)


def paint(images: Tensor) -> None:
    content, style = images[:1].cuda(), images[1:].cuda()
    style_transfer.transfer(
        content, style, loaded("features"), steps=2, coarsest=None, rng=torch.Generator(), progress=False
    )
    upsampling.bicubic(images, 2)


def rebuild(images: Tensor) -> None:
    field = reconstruction.VoxelGrid(BOX, 6).cuda()
    reconstruction.render_field(field, VIEWS.cameras[0], n=4)
    reconstruction.Splats.at(pixels(20, 3).to(images.device) - 0.5, 0.1)(VIEWS.cameras[0])
    hull = reconstruction.visual_hull(VIEWS.masks.to(images.device), VIEWS.cameras, VIEWS.box, 8)
    reconstruction.mesh(hull, VIEWS.box)
    reconstruction.stereo.match(images[0], images[1], 8)


USES = [sample_digits, words_to_images, other_generators, find_objects, translate, paint, rebuild]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_uses_on_the_card(use, device, card, monkeypatch):
    monkeypatch.setenv("COURSE_PRECISION", "float32")
    use(pixels(2, 3, 64, 64).to(device))
