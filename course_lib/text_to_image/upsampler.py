"""The upsampler: images of 32×32, as the decoder draws them, at 64×64 (unCLIP has two: to 256, and to 1024 pixels).

    large = upsample(zoo.load("upsampler_scenes"), images)      # (B, 3, 64, 64)

Those of unCLIP are diffusion models. Here nearly nothing is left to chance when the small image is known, so a network
that answers at once does; it learns from scenes rendered at both sizes.
"""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from course_lib import scenes
from course_lib.base import sampling, zoo
from course_lib.base.images import check_batch, check_range
from course_lib.base.loop import Step, descend
from course_lib.text_to_image.data import SIDE, is_held_out
from course_lib.upsampling.network import Upsampler

NOISE = 0.02  # standard deviation, added to the small images in training: decoders do not draw perfectly


def draw_pairs(n: int, seed: int, size: int = SIDE) -> tuple[Tensor, Tensor]:
    """n scenes rendered at `size` and at twice that, uint8 (n, 3, S, S) and (n, 3, 2S, 2S); plain, near, no held-out
    pairs. A progress bar beyond 2 s.

    Raises:
        ValueError: n below 1, or what `scenes.Scenes` refuses.
    """
    source = scenes.Scenes(2**31, size, seed, objects=(1, 2), textures=("plain",), near=True)
    if n < 1:
        raise ValueError(f"expected at least one scene; got {n}")
    small, large, i = [], [], 0
    with tqdm(total=n, desc="scenes", unit=" scenes", delay=2, leave=False) as bar:
        while len(small) < n:
            scene, i = source.scene(i), i + 1
            if not is_held_out(scenes.describe(scene)):
                small.append(scenes.render(scene).image)
                large.append(scenes.render(replace(scene, size=2 * size)).image)
                bar.update()
    return tuple(torch.stack(images).mul(255).round().byte() for images in (small, large))


def upsampler_step(
    network: nn.Module, optimiser: torch.optim.Optimizer, rng: torch.Generator, noise: float = NOISE
) -> Step:
    """A training step: the large image from the small one, up to the mean absolute error.

    Args:
        network: as `Upsampler`.
        optimiser: of its parameters.
        rng: draws noise and mirrorings; give it to the loop as stateful.
        noise: standard deviation of what is added to the small images.

    Returns:
        (small, large), uint8 as of `draw_pairs` → the `error`.
    """

    def step(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        small, large = (images.float() / 255 for images in batch)
        if torch.rand((), generator=rng, device=rng.device) < 0.5:
            small, large = small.flip(3), large.flip(3)
        small = small + noise * torch.randn(small.shape, generator=rng, device=rng.device).to(small)
        loss = F.l1_loss(network(small).float(), large)
        descend(loss, optimiser)
        return {"error": loss.detach()}

    return step


def upsample(network: nn.Module, images: Tensor) -> Tensor:
    """Images (B, 3, 2H, 2W) in [0, 1], float32, of images (B, 3, H, W) in [0, 1].

    Raises:
        ValueError: images of another shape, or outside [0, 1].
        TypeError: images that are no floats.
    """
    check_batch(images)
    check_range(images)
    return sampling.in_batches(network, network, images.to(next(network.parameters()))).float().clamp(0, 1)


def psnr(answer: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image, (B,), of images (B, C, H, W) in [0, 1]."""
    return -10 * (answer - truth).square().flatten(1).mean(1).clamp_min(1e-12).log10()


zoo.register("upsampler_scenes", partial(Upsampler, width=32, doublings=1))
