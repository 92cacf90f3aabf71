"""Paired translation: pix2pix (Isola et al. 2017) learns from pairs (what is given, the image that was there).

A U-Net answers what is given with an image. Close to the true one in the mean absolute error, it would be the median of
all that were possible, and blurred; so a discriminator looks at the pair of given and answer, patch by patch, and asks
whether the answer looks real. Departures, for images of 64 pixels: the course's U-Net with residual blocks; in the
discriminator spectral normalisation (Miyato et al. 2018) instead of batch normalisation, so that a logit sees its patch
and nothing else; and no dropout as noise, which the authors found the generator to ignore.

Pairs are free here: `edges` computes a drawing from any photograph, and `scene_pairs` draws maps with their scenes.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torchvision.transforms.functional import gaussian_blur

from course_lib import scenes
from course_lib.base import images as image_tools
from course_lib.base import runtime, sampling, zoo
from course_lib.base.loop import Step, descend
from course_lib.base.unet import Config, UNet
from course_lib.gan.losses import discriminator_loss, generator_loss
from course_lib.gan.training import frozen

FAINTEST = 1e-3  # of gradients that count: less than a step of one of 255 greys makes
WEIGHT = 100.0  # of the mean absolute error beside the GAN's loss (section 3.3 of the paper, λ)
LINES = (0.04, 0.14)  # the proportions of pixels on an edge between which training draws


# --- what is given


def edges(images: Tensor, keep: float | Tensor = 0.1, sigma: float = 1.0) -> Tensor:
    """Line drawings of images: where brightness changes most, one pixel wide (Canny 1986, without hysteresis).

    Sobel's gradient of the smoothed brightness; a pixel is on an edge if none of its two neighbours along the gradient
    has a longer one, and its own is among the longest of the image.

    Args:
        images: (B, C, H, W) in [0, 1], C of 1 or 3.
        keep: the proportion of an image's pixels that are on an edge, at most; a number, or (B,).
        sigma: of the smoothing, px.

    Returns:
        (B, 1, H, W), 1 on an edge and 0 elsewhere, in the images' dtype.

    Raises:
        TypeError: images that are no floats.
        ValueError: another shape, or a proportion outside [0, 1].
    """
    image_tools.check_batch(images)
    if images.shape[1] not in (1, 3) or min(images.shape[2:]) < 4:
        raise ValueError(f"expected images (B, 1 or 3, H, W) of at least 4 px a side, got {tuple(images.shape)}")
    keep = torch.as_tensor(keep, dtype=torch.float64, device=images.device).expand(len(images))
    if not ((keep >= 0) & (keep <= 1)).all():
        raise ValueError(f"expected a proportion in [0, 1], got {keep.tolist()}")
    grey = runtime.wide(images).mean(1, keepdim=True)
    with runtime.no_autocast(images.device):
        grey = F.pad(gaussian_blur(grey, 7, sigma), (1,) * 4, mode="replicate")
        sobel = grey.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
        dx, dy = F.conv2d(grey, torch.stack([sobel, sobel.T])[:, None]).split(1, 1)
    length = dx.hypot(dy)
    ridge = torch.where(_is_ridge(length, dx, dy) & (length > FAINTEST), length, 0.0).flatten(1)
    H, W = images.shape[2:]
    count = (keep * H * W).long()[:, None]
    lowest = torch.cat([ridge.sort(1, descending=True).values, ridge.new_zeros(len(ridge), 1)], 1).gather(1, count)
    return (ridge > lowest).view(-1, 1, H, W).to(images.dtype)


def _is_ridge(length: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Whether a gradient is at least as long as its two neighbours', in the direction nearest to its own of four."""
    around = F.pad(length, (1,) * 4)
    H, W = length.shape[2:]

    def at(down: int, right: int) -> Tensor:
        return around[..., 1 + down : 1 + down + H, 1 + right : 1 + right + W]

    # 0: along x, 1: down to the right, 2: along y, 3: down to the left; of two equals the first counts.
    direction = torch.round(torch.atan2(dy, dx) / (torch.pi / 4)).long() % 4
    found = torch.zeros_like(length, dtype=torch.bool)
    for k, (down, right) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        found |= (direction == k) & (length > at(-down, -right)) & (length >= at(down, right))
    return found


def edge_pairs(images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Edges (B, 1, H, W) and their images (B, C, H, W), half of them mirrored left to right.

    How many lines a drawing has is drawn from LINES, so that sparse ones, such as people draw, are known, too.

    Args:
        images: as for `edges`.
        rng: draws, on its own device.
    """
    mirror, few = torch.rand(2, len(images), generator=rng, device=rng.device).to(images.device)
    images = torch.where(mirror[:, None, None, None] < 0.5, images.flip(3), images)
    return edges(images, LINES[0] + (LINES[1] - LINES[0]) * few), images


def one_hot(maps: Tensor, classes: int = len(scenes.CLASSES)) -> Tensor:
    """Semantic maps (B, H, W) of whole numbers → (B, classes, H, W) float32, 1 at a pixel's class and 0 elsewhere.

    Raises:
        TypeError: floats or booleans.
        ValueError: another shape, or classes outside [0, classes).
    """
    maps = torch.as_tensor(maps)
    if maps.is_floating_point() or maps.dtype == torch.bool:
        raise TypeError(f"expected maps of whole numbers, got {maps.dtype}")
    if maps.ndim != 3 or not maps.numel():
        raise ValueError(f"expected maps (B, H, W), got {tuple(maps.shape)}")
    if not ((maps >= 0) & (maps < classes)).all():
        raise ValueError(f"expected classes 0 … {classes - 1}, got {int(maps.min())} … {int(maps.max())}")
    return F.one_hot(maps.long(), classes).movedim(3, 1).float()


def scene_pairs(n: int, size: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Maps uint8 (n, size, size) and their scenes uint8 (n, 3, size, size), as of `scenes.Scenes`, also its errors."""
    drawn = scenes.Scenes(n, size, seed).render_all(lambda scene: (scene.semantic.byte(), _bytes(scene.image)))
    return tuple(map(torch.stack, zip(*drawn, strict=True)))


def map_pairs(batch: tuple[Tensor, Tensor], rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Maps as of `one_hot` and their scenes in [0, 1] of a batch of `scene_pairs`, half of them mirrored."""
    maps, images = batch
    mirror = torch.rand(len(maps), generator=rng, device=rng.device).to(images.device) < 0.5
    given, images = one_hot(maps), images.float() / 255
    return tuple(torch.where(mirror[:, None, None, None], x.flip(3), x) for x in (given, images))


def _bytes(image: Tensor) -> Tensor:
    return (255 * image).round().byte()


# --- the networks


class Translator(nn.Module):
    """The generator: what is given (B, channels, H, W) → images (B, 3, H, W) in [-1, 1], sides multiples of 16.

    Args:
        channels: of what is given: 1 for edges, one a class for maps.
        width: channels of the maps, the finest of which have half the image's side.
    """

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.unet = UNet(Config(channels, 3, width, multipliers=(1, 1, 1, 1), patch=2, time=False))

    def forward(self, given: Tensor) -> Tensor:
        """See the class; errors as of `UNet.forward`."""
        return torch.tanh(self.unet(given))


class PatchDiscriminator(nn.Sequential):
    """Given and image together (B, channels, H, W) → logits (B, 1, H/4 − 2, W/4 − 2), each of a patch of 34×34 pixels.

    Convolutions 4×4, two of stride 2 and two of stride 1 (section 3.2.2 and appendix 6.1.2 of the paper, where 70×70
    suit images of 256).

    Args:
        channels: of what is given, and 3.
        width: of the first layer; it doubles twice.
    """

    def __init__(self, channels: int, width: int = 32) -> None:
        def layer(inputs: int, outputs: int, stride: int) -> nn.Module:
            return spectral_norm(nn.Conv2d(inputs, outputs, 4, stride, padding=1))

        super().__init__(
            layer(channels, width, 2),
            nn.LeakyReLU(0.2),
            layer(width, 2 * width, 2),
            nn.LeakyReLU(0.2),
            layer(2 * width, 4 * width, 1),
            nn.LeakyReLU(0.2),
            layer(4 * width, 1, 1),
        )


@torch.no_grad()
def translate(network: nn.Module, given: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1], float32, of what is given; the network works in evaluation mode.

    Args:
        network: a `Translator`.
        given: (B, channels, H, W), of `edges` or `one_hot`.

    Raises:
        TypeError: what is given is no floats.
        ValueError: another shape.
    """
    image_tools.check_batch(given)
    drawn = sampling.in_batches(network, network, given.to(next(network.parameters())))
    return ((drawn.float() + 1) / 2).clamp(0, 1)


def edge_agreement(images: Tensor, given: Tensor, reach: int = 1) -> float:
    """How well the edges of images are the given ones, from 0 to 1: F₁ of precision and recall over all images.

    A pixel on an edge counts as found where the other drawing has one within `reach` pixels, sideways or askew (as in
    BSDS's benchmark, Martin et al. 2004, but without matching one to one). The images' edges are as many as given.

    Args:
        images: as for `edges`.
        given: (B, 1, H, W) of 0 and 1.
        reach: px.

    Raises:
        ValueError: shapes that do not fit, and what `edges` refuses.
    """
    expected = (len(images), 1, *images.shape[2:])
    if given.shape != expected:
        raise ValueError(f"expected edges {expected}, got {tuple(given.shape)}")
    given = given.to(images)
    found = edges(images, given.double().mean((1, 2, 3)))

    def near(drawing: Tensor) -> Tensor:
        return F.max_pool2d(drawing, 2 * reach + 1, 1, reach)

    hits = (
        (found * near(given)).sum() / found.sum().clamp_min(1),
        (given * near(found)).sum() / given.sum().clamp_min(1),
    )
    return (2 * hits[0] * hits[1] / sum(hits).clamp_min(1e-12)).item()


# --- loss and step


def translation_loss(logits: Tensor, answer: Tensor, x: Tensor, weight: float = WEIGHT) -> Tensor:
    """−E log D(given, G(given)) + λ E |x − G(given)|: what the generator minimises (equation 4 of the paper).

    Args:
        logits: of the discriminator on given and answer, of any shape.
        answer: G(given) in [-1, 1].
        x: the true image in [-1, 1], of the same shape.
        weight: λ.

    Raises:
        ValueError: shapes that differ.
    """
    if answer.shape != x.shape:
        raise ValueError(f"expected an answer {tuple(x.shape)}, got {tuple(answer.shape)}")
    return generator_loss(logits.float()) + weight * F.l1_loss(answer.float(), x.float())


def translation_step(
    generator: nn.Module,
    discriminator: nn.Module,
    generator_optimiser: torch.optim.Optimizer,
    discriminator_optimiser: torch.optim.Optimizer,
    *,
    weight: float = WEIGHT,
) -> Step:
    """A step of D, whose loss is halved as in section 3.3 of the paper (Adam hardly notices), and one of G.

    Args:
        generator: as `Translator`.
        discriminator: as `PatchDiscriminator`.
        generator_optimiser: of the generator's weights.
        discriminator_optimiser: of the discriminator's weights.
        weight: λ of `translation_loss`.

    Returns:
        (given, images in [0, 1]) → losses by name; `error` is the mean absolute one of images in [0, 1]. Of the first
        batch the step looks at the values, and raises TypeError or ValueError as `images.check_range` does.
    """
    check = image_tools.once(image_tools.check_range)

    def step(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        given, x = batch
        check(x)
        x = 2 * x - 1
        answer = generator(given)
        real, fake = (discriminator(torch.cat([given, y], 1)).float() for y in (x, answer.detach()))
        named = {"D": discriminator_loss(real, fake) / 2}
        descend(named["D"], discriminator_optimiser)
        with frozen(discriminator):
            logits = discriminator(torch.cat([given, answer], 1))
            named["G"] = translation_loss(logits, answer, x, weight)
            descend(named["G"], generator_optimiser)
        named["error"] = F.l1_loss(answer, x) / 2
        return {name: value.detach() for name, value in named.items()}

    return step


zoo.register("edges_to_cats", partial(Translator, 1))
zoo.register("maps_to_scenes", partial(Translator, len(scenes.CLASSES)))
