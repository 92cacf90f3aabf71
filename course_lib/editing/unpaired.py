"""Unpaired translation: CycleGAN (Zhu et al. 2017) learns from two sets of images, none of which has a partner.

Two generators translate, each to one side; two discriminators ask, patch by patch, whether an answer looks like an
image of that side. That alone would allow any answer that looks right. So whoever is translated there and back must be
the image again: the cycle's loss. Departures, for images of 64 pixels: the generator adds to its image what the
course's U-Net says, so that training begins where nothing is changed; the discriminator is that of `paired`.

The two sides here are the toy world's day and night. Training sees different scenes by day and by night; but a scene
can be rendered at both times, so the true answer is known, and `evaluate` measures the error to it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from course_lib import scenes
from course_lib.base import images as image_tools
from course_lib.base import runtime, sampling, zoo
from course_lib.base.loop import Step, descend
from course_lib.base.unet import Config, UNet
from course_lib.gan.training import frozen

# λ, of the cycle's loss beside the GAN's. Section 4 of the paper has 10, with which these generators, that begin where
# nothing is changed, stay there.
CYCLE = 2.0
IDENTITY = 0.5  # of the identity loss, in units of λ (section 5.2)
POOL = 50  # generated images that a discriminator learns from (section 4)


# --- images


def scenes_by(light: str, n: int, size: int = 64, seed: int = 0) -> Tensor:
    """n scenes at one time of day, uint8 (n, 3, size, size); with the same seed the same scenes at another time.

    Args:
        light: "day", "dusk" or "night".
        n, size, seed: as of `scenes.Scenes`, also its errors.

    Raises:
        ValueError: another light.
    """
    data, drawn = scenes.Scenes(n, size, seed), []
    for i in tqdm(range(n), f"scenes by {light}", unit="scene", delay=2, leave=False):
        drawn.append(scenes.render(replace(data.scene(i), light=light)).image)
    return (255 * torch.stack(drawn)).round().byte()


def mirrored(batch: tuple[Tensor, ...], rng: torch.Generator) -> tuple[Tensor, ...]:
    """Images in [0, 1] of several sides' uint8 ones (B, C, H, W), half of them mirrored left to right."""
    turn = torch.rand(len(batch), len(batch[0]), generator=rng, device=rng.device).to(batch[0].device) < 0.5
    return tuple(
        torch.where(where[:, None, None, None], x.flip(3), x) / 255 for x, where in zip(batch, turn, strict=True)
    )


class ImagePool(nn.Module):
    """The last generated images, from which a discriminator learns beside the newest (Shrivastava et al. 2017).

    So it does not forget what the generator did a moment ago. A module without weights: its images are buffers, which
    a resumed training finds again.

    Args:
        shape: (C, H, W) of an image.
        size: how many it keeps.
    """

    def __init__(self, shape: tuple[int, int, int], size: int = POOL) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(size, *shape))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, new: Tensor, rng: torch.Generator) -> Tensor:
        """As many images (B, C, H, W) as are new, one after the other: until the pool is full, the new one, which is
        also kept; then in half of the cases a random old one, whose place the new one takes.

        Raises:
            ValueError: images of another shape.
        """
        if new.shape[1:] != self.images.shape[1:]:
            raise ValueError(f"expected images (B, {str(tuple(self.images.shape[1:]))[1:]}, got {tuple(new.shape)}")
        chance = torch.rand(2, len(new), generator=rng, device=rng.device).tolist()
        answer, size, filled = new.clone(), len(self.images), int(self.filled)
        for i, (swap, where) in enumerate(zip(*chance, strict=True)):
            place = filled if filled < size else int(where * size)
            if filled == size and swap < 0.5:
                answer[i] = self.images[place]
            elif filled == size:
                continue
            self.images[place] = new[i]
            filled = min(filled + 1, size)
        self.filled.fill_(filled)
        return answer


# --- the networks


class Recolourer(nn.Module):
    """A generator: images (B, 3, H, W) in [-1, 1] → images around [-1, 1]; at first the same. Sides: multiples of 8.

    Args:
        width: channels of the maps, the finest of which have half the image's side.
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.unet = UNet(Config(3, 3, width, multipliers=(1, 1, 1), patch=2, time=False))

    def forward(self, x: Tensor) -> Tensor:
        """See the class; errors as of `UNet.forward`."""
        return x + self.unet(x)


def generators(width: int = 24, sides: tuple[str, str] = ("day", "night")) -> nn.ModuleDict:
    """The two generators, by the side to which they translate."""
    return nn.ModuleDict({side: Recolourer(width) for side in sides})


@torch.no_grad()
def translate(networks: nn.ModuleDict, images: Tensor, to: str) -> Tensor:
    """Images of one side as they look on the other, (B, 3, H, W) in [0, 1], float32, on the networks' device.

    Args:
        networks: of `generators`; they work in evaluation mode.
        images: (B, 3, H, W) in [0, 1].
        to: the side, such as "night".

    Raises:
        TypeError: images that are no floats.
        ValueError: another shape, values outside [0, 1], or an unknown side.
    """
    image_tools.check_range(images)
    if to not in networks:
        raise ValueError(f"expected one of the sides {', '.join(networks)}; got {to!r}")
    x = 2 * images.to(next(networks[to].parameters())) - 1
    drawn = sampling.in_batches(networks[to], networks[to], x)
    return ((drawn.float() + 1) / 2).clamp(0, 1)


# --- losses and step


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """½ E (D(x) − 1)² + ½ E D(G)²: least squares, 1 for real and 0 for generated (Mao et al. 2017, equation 9)."""
    real, fake = runtime.wide(real), runtime.wide(fake)
    return ((real - 1).square().mean() + fake.square().mean()) / 2


def generator_loss(fake: Tensor) -> Tensor:
    """E (D(G) − 1)²: the generator's answer, twice that of Mao et al., as in section 4 of the paper."""
    return (runtime.wide(fake) - 1).square().mean()


def cycle_loss(networks: Mapping[str, nn.Module], x: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Σ E |there and back again − x| over both sides (equation 2 of the paper), and the answers on the way.

    Args:
        networks: the two generators, by the side to which they translate.
        x: by the same two names, images of that side, (B, C, H, W) in [-1, 1].

    Returns:
        A scalar; and by the side to which they belong now, the translated images.

    Raises:
        ValueError: other than two sides, or other names.
    """
    if len(networks) != 2 or set(networks) != set(x):
        raise ValueError(f"expected images of the two sides {', '.join(networks)}; got {', '.join(x)}")
    answers, loss = {}, 0.0
    for side, other in _ways(networks):
        answers[other] = networks[other](x[side])
        loss = loss + _error(networks[side](answers[other]), x[side])
    return loss, answers


def _ways(sides: Iterable[str]) -> tuple[tuple[str, str], tuple[str, str]]:
    """(from, to) for both ways between two sides."""
    a, b = sides
    return (a, b), (b, a)


def _error(a: Tensor, b: Tensor) -> Tensor:
    return F.l1_loss(runtime.wide(a), runtime.wide(b))


def cycle_step(
    networks: nn.ModuleDict,
    discriminators: nn.ModuleDict,
    generator_optimiser: torch.optim.Optimizer,
    discriminator_optimiser: torch.optim.Optimizer,
    pools: nn.ModuleDict,
    rng: torch.Generator,
    *,
    cycle: float = CYCLE,
    identity: float = IDENTITY,
) -> Step:
    """A step of both generators, then one of both discriminators, which see images of their pools.

    Args:
        networks: of `generators`.
        discriminators: by the same names, each as `paired.PatchDiscriminator(3)`.
        generator_optimiser: of both generators' weights.
        discriminator_optimiser: of both discriminators' weights.
        pools: by the same names, an `ImagePool` each.
        rng: of the pools.
        cycle: λ.
        identity: how much |G(y) − y| counts, of an image y that is on G's side already, in units of λ; 0: not at all.

    Returns:
        (images of the first side, of the second), both in [0, 1] → losses by name. The images of a batch need not
        belong together. Of the first batch the step looks at the values, and raises TypeError or ValueError as
        `images.check_range` does.
    """
    check = image_tools.once(lambda batch: [image_tools.check_range(images) for images in batch])

    def step(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        check(batch)
        x = {side: 2 * images - 1 for side, images in zip(networks, batch, strict=True)}
        with frozen(discriminators):
            back, answers = cycle_loss(networks, x)
            named = {"G": sum(generator_loss(discriminators[side](answers[side])) for side in networks), "cycle": back}
            loss = named["G"] + cycle * back
            if identity:
                named["identity"] = sum(_error(networks[side](x[side]), x[side]) for side in networks)
                loss = loss + cycle * identity * named["identity"]
            descend(loss, generator_optimiser)
        old = {side: pools[side](answers[side].detach(), rng) for side in networks}
        named["D"] = sum(discriminator_loss(D(x[side]), D(old[side])) for side, D in discriminators.items())
        descend(named["D"], discriminator_optimiser)
        return {name: value.detach() for name, value in named.items()}

    return step


# --- how near it is to the truth


def colour_transfer(images: Tensor, like: Tensor) -> Tensor:
    """Images whose channels have, over the whole batch, the mean and the standard deviation of others' (after Reinhard
    et al. 2001, here of RGB); clamped to [0, 1], in float32 or more.

    Args:
        images: (B, C, H, W) in [0, 1].
        like: (N, C, h, w) in [0, 1].

    Raises:
        TypeError: no floats.
        ValueError: another shape, values outside [0, 1], or another number of channels.
    """
    for each in (images, like):
        image_tools.check_range(each)
    if images.shape[1] != like.shape[1]:
        raise ValueError(f"expected as many channels; got {images.shape[1]} and {like.shape[1]}")
    x, y = runtime.wide(images), runtime.wide(like)
    (mean, std), (m, s) = (
        (z.mean((0, 2, 3), keepdim=True), z.std((0, 2, 3), keepdim=True, correction=0)) for z in (x, y)
    )
    return ((x - mean) / std.clamp_min(1 / 255) * s + m).clamp(0, 1)  # a flat channel stays flat


def evaluate(networks: nn.ModuleDict, truth: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean absolute errors, of values in [0, 1], to each side, of three answers, and of a walk there and back.

    Args:
        networks: of `generators`.
        truth: by their two names, the same scenes on both sides, (B, 3, H, W) in [0, 1]. Colour transfer takes its
            statistics from them, too, which it could not have from images without a partner: that favours it.

    Returns:
        By side S: "error to S", "error to S, colour transfer", "error to S, nothing", "error of S there and back".
    """
    device, found = next(networks.parameters()).device, {}
    truth = {side: images.to(device) for side, images in truth.items()}
    for side, other in _ways(networks):
        there = translate(networks, truth[side], other)
        answers = {"": there, ", colour transfer": colour_transfer(truth[side], truth[other]), ", nothing": truth[side]}
        found |= {f"error to {other}{name}": F.l1_loss(y, truth[other]).item() for name, y in answers.items()}
        found[f"error of {side} there and back"] = F.l1_loss(translate(networks, there, side), truth[side]).item()
    return found


zoo.register("cycle_day_night", partial(generators))
