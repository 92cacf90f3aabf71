"""The generator, in its two halves z → w and w → image, and the discriminator."""

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.base import zoo
from course_lib.base.runtime import wide
from course_lib.gan.networks import check_floats
from course_lib.stylegan.layers import SLOPE, EqualisedConv, EqualisedLinear, StyledConv, ToImage

GROUP = 4  # images that the discriminator compares with each other


def resolutions(size: int) -> list[int]:
    """The sides of a network's feature maps, in pixels, for images of side `size`: halved as long as 4 or more is left.

    28 gives [7, 14, 28], 32 gives [4, 8, 16, 32].

    Raises:
        ValueError: a size that cannot be halved: without coarse and fine layers there is nothing to mix.
    """
    if size < 8 or size % 2:
        raise ValueError(f"expected an even size of 8 px or more, got {size}")
    sides = [size]
    while sides[0] % 2 == 0 and sides[0] // 2 >= 4:
        sides.insert(0, sides[0] // 2)
    return sides


def widths(size: int, capacity: int, most: int) -> list[int]:
    """The channels at each of `resolutions(size)`: `capacity` divided by the side, at most `most`.

    Args:
        size: of the images, in pixels.
        capacity: channels times side.
        most: channels at a coarse resolution.

    Raises:
        ValueError: no channels would be left, or a size that cannot be halved.
    """
    if capacity < size or most < 1:
        raise ValueError(f"expected a capacity of {size} or more and most ≥ 1, got {capacity} and {most}")
    return [min(most, capacity // side) for side in resolutions(size)]


class Mapping(nn.Module):
    """The mapping network f: z → w, z first scaled to length √z_dim (StyleGAN, figure 1); keeps the mean of w.

    z is normally distributed, but the properties of images are not. f can do the bending between the two, so that
    synthesis meets straighter directions (section 4).

    Args:
        z_dim: numbers in z.
        w_dim: numbers in w.
        depth: layers; the paper has 8, for 1024-pixel faces.
        lr: the learning-rate factor; the paper has 0.01 (appendix C).

    Attributes:
        w_mean: (w_dim,), a running mean of w, which `track` updates, in float32 or more.
    """

    def __init__(self, z_dim: int, w_dim: int, depth: int = 4, lr: float = 0.1) -> None:
        super().__init__()
        inputs = [z_dim] + [w_dim] * (depth - 1)
        self.layers = nn.ModuleList(EqualisedLinear(n, w_dim, lr, gain=math.sqrt(2)) for n in inputs)
        self.register_buffer("w_mean", torch.zeros(w_dim))
        self.z_dim = z_dim

    def forward(self, z: Tensor) -> Tensor:
        """Styles w (B, w_dim) of z (B, z_dim), standard normal; in the dtype of the weights, also under autocast.

        Raises:
            ValueError: z of another shape, no z, or no floats.
        """
        check_floats(z, "z", self.z_dim)
        own = self.layers[0].weight.dtype
        z = wide(z.to(own))
        x = (z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()).to(own)  # in float16 ε is 0, and 256² infinite
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
        return x.to(own)

    @torch.no_grad()
    def track(self, w: Tensor, decay: float = 0.995) -> None:
        """Move `w_mean` towards the mean of a batch of w (B, w_dim), by 1 − `decay` of the way."""
        self.w_mean = wide(self.w_mean)  # in half precision a step so small is none
        self.w_mean.lerp_(wide(w).mean(0).to(self.w_mean.dtype), 1 - decay)


class StyleGenerator(nn.Module):
    """z → w → image: `generator(z)`, or its two halves `mapping(z)` and `synthesis(ws)`.

    Args:
        size: of the images, in pixels.
        channels: of the images.
        z_dim: numbers in the latent code z.
        w_dim: numbers in a style w.
        capacity: see `widths`.
        most: see `widths`.

    Attributes:
        layers: how many styles an image has: one at the coarsest resolution, two at each further one.
        classes: None: it takes no labels.
    """

    def __init__(
        self, size: int = 28, channels: int = 1, z_dim: int = 64, w_dim: int = 64, capacity: int = 672, most: int = 96
    ) -> None:
        super().__init__()
        self.z_dim, self.w_dim, self.classes = z_dim, w_dim, None
        sides = resolutions(size)
        self.mapping = Mapping(z_dim, w_dim)
        n, *finer = widths(size, capacity, most)
        self.constant = nn.Parameter(torch.randn(1, n, sides[0], sides[0]))
        self.convs = nn.ModuleList([StyledConv(n, n, w_dim, up=False)])
        self.to_image = nn.ModuleList([ToImage(n, channels, w_dim)])
        for m in finer:
            self.convs += [StyledConv(n, m, w_dim, up=True), StyledConv(m, m, w_dim, up=False)]
            self.to_image.append(ToImage(m, channels, w_dim))
            n = m
        self.layers = len(self.convs)
        self._side_of_layers = [sides[(layer + 1) // 2] for layer in range(self.layers)]

    def noise(self, n: int, rng: torch.Generator | None = None) -> list[Tensor]:
        """Standard normal noise for `synthesis`, for each layer (n, 1, H, H); `rng` draws it on its own device."""
        like = self.constant
        device = like.device if rng is None else rng.device
        shapes = [(n, 1, side, side) for side in self._side_of_layers]
        return [torch.randn(s, generator=rng, device=device, dtype=like.dtype).to(like.device) for s in shapes]

    def styles(self, z: Tensor, truncation: float = 1.0) -> Tensor:
        """The styles ws (B, layers, w_dim) of z (B, z_dim), the same for each layer.

        Args:
            z: (B, z_dim), standard normal.
            truncation: ψ in w' = w̄ + ψ (w − w̄) (StyleGAN, appendix B): 1 leaves w as it is, 0 gives the mean style.

        Raises:
            ValueError: z of another shape, no z, or no floats.
        """
        w = self.mapping(z)
        if truncation != 1:
            mean = self.mapping.w_mean
            w = torch.lerp(wide(mean), w.to(wide(mean).dtype), float(truncation)).to(w.dtype)
        return w[:, None].expand(-1, self.layers, -1)

    def synthesis(self, ws: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """The images (B, channels, size, size) in [-1, 1] of styles.

        Tanh at the end is a departure from the paper, whose images are unbounded: a digit's background is exactly
        -1, which its discriminator would have to teach for long.

        Args:
            ws: (B, layers, w_dim).
            noise: for each layer (B, 1, H, H) or (1, 1, H, H), as `noise()` gives; None draws it.

        Raises:
            ValueError: styles or noise of other shapes.
        """
        if ws.ndim != 3 or ws.shape[1:] != (self.layers, self.w_dim):
            raise ValueError(f"expected styles of shape (B, {self.layers}, {self.w_dim}), got {tuple(ws.shape)}")
        B, ws = len(ws), ws.to(self.constant.dtype)
        noise = self.noise(B) if noise is None else noise
        if len(noise) != self.layers:
            raise ValueError(f"expected noise for {self.layers} layers, got {len(noise)}")
        for given, side in zip(noise, self._side_of_layers, strict=True):
            if given.shape not in ((B, 1, side, side), (1, 1, side, side)):
                raise ValueError(f"expected noise ({B} or 1, 1, {side}, {side}), got {tuple(given.shape)}")
        x = self.constant.expand(B, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        image = None
        for layer, conv in enumerate(self.convs):
            x = conv(x, ws[:, layer], noise[layer])
            if layer % 2 == 0:  # the last layer of its resolution; the paper gives tRGB the style of the next one
                added = self.to_image[layer // 2](x, ws[:, layer])
                image = added if image is None else F.interpolate(image, scale_factor=2, mode="bilinear") + added
        return image.tanh()

    def forward(self, z: Tensor, truncation: float = 1.0, noise: Sequence[Tensor] | None = None) -> Tensor:
        """Images (B, channels, size, size) in [-1, 1].

        Args:
            z: (B, z_dim), standard normal.
            truncation: ψ, see `styles`.
            noise: see `synthesis`.

        Raises:
            ValueError: z or noise of other shapes, or no z.
        """
        return self.synthesis(self.styles(z, truncation), noise)


def halve(x: Tensor) -> Tensor:
    """The means of 2×2 pixels, (B, C, 2H, 2W) → (B, C, H, W); on CPUs three times as fast as average pooling."""
    return F.interpolate(x, scale_factor=0.5, mode="bilinear")


def minibatch_stddev(x: Tensor) -> Tensor:
    """How much images differ from each other: a map (B, 1, H, W) for features (B, C, H, W).

    It is the standard deviation over `GROUP` images of the batch, or over all of it where B is no multiple of that,
    averaged over channels and positions (Karras et al. 2018, section 3).
    """
    B, _, H, W = x.shape
    exact = wide(x)  # not in the 8 bits of mixed precision
    groups = exact.unflatten(0, (GROUP if B % GROUP == 0 else B, -1))  # (images, groups, C, H, W)
    variance = (groups - groups.mean(0)).square().mean(0)
    stddev = (variance + 1e-8).sqrt().mean((1, 2, 3)).to(x.dtype)
    return stddev.repeat(len(groups)).view(B, 1, 1, 1).expand(B, 1, H, W)


class _Residual(nn.Module):
    """Two convolutions, the size halved between them, plus a 1×1 shortcut (StyleGAN2, section 4.1)."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = EqualisedConv(n, n, 3, math.sqrt(2)), EqualisedConv(n, m, 3, math.sqrt(2))
        self.shortcut = EqualisedConv(n, m, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = halve(F.leaky_relu(self.conv1(x), SLOPE))
        y = F.leaky_relu(self.conv2(y), SLOPE)
        return (y + self.shortcut(halve(x))) / math.sqrt(2)


class StyleDiscriminator(nn.Module):
    """Images (B, channels, size, size) in [-1, 1] to logits (B,): residual, without batch normalisation.

    The last block also sees how much the images of a batch differ (`minibatch_stddev`), so that a generator whose
    images are all alike gives itself away.

    Args:
        size: of the images, in pixels.
        channels: of the images.
        capacity: see `widths`.
        most: see `widths`.

    Attributes:
        steps: how often it has been trained; lazy R1 counts by it. It belongs to the state, so that a resumed run goes
            on where it was, but it is a plain number: to read a buffer, a GPU would wait at every step.
    """

    def __init__(self, size: int = 28, channels: int = 1, capacity: int = 672, most: int = 96) -> None:
        super().__init__()
        self.shape = channels, size, size
        w = widths(size, capacity, most)
        side = resolutions(size)[0]
        self.from_image = EqualisedConv(channels, w[-1], 1, math.sqrt(2))
        self.blocks = nn.Sequential(*(_Residual(w[i], w[i - 1]) for i in range(len(w) - 1, 0, -1)))
        self.conv = EqualisedConv(w[0] + 1, w[0], 3, math.sqrt(2))
        self.hidden = EqualisedLinear(w[0] * side * side, w[0], gain=math.sqrt(2))
        self.output = EqualisedLinear(w[0], 1)
        self.steps = 0

    def get_extra_state(self) -> Tensor:
        """`steps`, for `state_dict`."""
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        """`steps`, from a `state_dict`."""
        self.steps = int(state)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B,): positive ones say "real".

        Raises:
            ValueError: images of another shape, none, or no floats.
        """
        check_floats(images, "images", *self.shape)
        images = images.to(self.output.weight.dtype).contiguous(memory_format=torch.channels_last)
        x = F.leaky_relu(self.from_image(images), SLOPE)
        x = self.blocks(x)
        x = torch.cat([x, minibatch_stddev(x)], 1)
        x = F.leaky_relu(self.conv(x), SLOPE).flatten(1)
        return self.output(F.leaky_relu(self.hidden(x), SLOPE))[:, 0]


zoo.register("stylegan_mnist", StyleGenerator)
zoo.register("stylegan_cats", partial(StyleGenerator, size=32, channels=3, capacity=512))
