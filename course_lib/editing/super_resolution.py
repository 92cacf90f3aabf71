"""Super-resolution: a photograph with more pixels than the camera took, and the protocol that judges it.

The network looks at the brightness Y alone, at the small size (Shi et al. 2016, ESPCN), through residual blocks without
normalisation (Lim et al. 2017, EDSR); its last convolution makes r² channels, and the pixel shuffle makes them
pixels. What it draws is added to bicubic interpolation. Colours are enlarged by interpolation: eyes see them coarsely.

The protocol of the literature, which `evaluate` keeps: the large image is cut to a multiple of r and shrunk by a
bicubic filter with antialiasing (a = −0.5, borders mirrored: MATLAB's imresize), rounded to 8 bits, enlarged again, and
compared on the Y of BT.601 without the outermost r pixels.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.base import datasets, images, runtime, zoo
from course_lib.base.loop import Step, descend
from course_lib.upsampling.convolution import icnr_
from course_lib.upsampling.interpolation import cell_side, pixel_shuffle
from course_lib.upsampling.network import Residual

HELD_OUT = ("astronaut", "cat", "coffee")  # the built-in photographs that no network of this topic learns from
BUILT_IN = ("camera", "china", "coins", "flower", "motorcycle_left", "rocket", "brick", "grass", "gravel")
TILE = 96  # px: the side of a training example

# Y, Cb and Cr of R, G and B, all in [0, 1], and what is added (BT.601 with footroom, MATLAB's rgb2ycbcr).
_BT601 = ((65.481, 128.553, 24.966), (-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))
_OFFSET = (16.0, 128.0, 128.0)


# --- colour


def to_ycbcr(rgb: Tensor) -> Tensor:
    """Brightness Y and the two differences of colour of RGB (B, 3, H, W), by BT.601; Y from 16/255 to 235/255.

    Raises:
        TypeError: no floats.
        ValueError: another shape.
    """
    matrix, offset = _bt601(rgb)
    return torch.einsum("ij,bjhw->bihw", matrix, rgb) + offset


def to_rgb(ycbcr: Tensor) -> Tensor:
    """The inverse of `to_ycbcr`, not clamped; also its errors."""
    matrix, offset = _bt601(ycbcr)
    return torch.einsum("ij,bjhw->bihw", torch.linalg.inv(matrix.double()).to(matrix), ycbcr - offset)


def _bt601(image: Tensor) -> tuple[Tensor, Tensor]:
    images.check_batch(image)
    if image.shape[1] != 3:
        raise ValueError(f"expected images (B, 3, H, W), got {tuple(image.shape)}")
    return image.new_tensor(_BT601) / 255, image.new_tensor(_OFFSET)[:, None, None] / 255


def luma(rgb: Tensor) -> Tensor:
    """Y (B, 1, H, W) of RGB (B, 3, H, W) in [0, 1]: what the protocol compares. See `to_ycbcr`, also for errors."""
    return to_ycbcr(rgb)[:, :1]


# --- sizes


@functools.lru_cache(maxsize=64)
def resize_matrix(n: int, m: int) -> Tensor:
    """The matrix (m, n) float64 that resamples n pixels to m as MATLAB's imresize does.

    Keys' cubic with a = −0.5 (Keys 1981), stretched by n/m where the image shrinks, so that nothing aliases; beyond the
    border the image is mirrored.

    Raises:
        ValueError: a size below 1.
    """
    if n < 1 or m < 1:
        raise ValueError(f"expected sizes of at least 1 px, got {n} and {m}")
    stretch = max(1.0, n / m)
    centre = (torch.arange(m, dtype=torch.float64)[:, None] + 0.5) * (n / m) - 0.5
    reach = int(2 * stretch) + 2
    place = centre.floor() + torch.arange(-reach, reach + 1)  # (m, taps)
    d = ((place - centre) / stretch).abs()
    near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    weight = torch.where(d <= 1, near, torch.where(d < 2, far, 0.0))
    mirrored = (place % (2 * n)).long()  # 0 … n − 1, n − 1 … 0, and again
    mirrored = torch.where(mirrored < n, mirrored, 2 * n - 1 - mirrored)
    return torch.zeros(m, n, dtype=torch.float64).scatter_add_(1, mirrored, weight / weight.sum(1, keepdim=True))


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) → (B, C, *size) by `resize_matrix` along both axes; not clamped.

    Raises:
        TypeError: no floats.
        ValueError: another shape, or a size below 1 px.
    """
    images.check_batch(x)
    rows, columns = (resize_matrix(n, m) for n, m in zip(x.shape[2:], size, strict=True))
    exact = runtime.wide(x)
    with runtime.no_autocast(x.device):
        return (rows.to(exact) @ exact @ columns.to(exact).mT).to(x.dtype)


def shrink(x: Tensor, factor: int) -> Tensor:
    """The small image (B, C, ⌊H/r⌋, ⌊W/r⌋) of the protocol, in [0, 1] with 8 bits, of (B, C, H, W) in [0, 1].

    Raises:
        TypeError: no floats.
        ValueError: another shape, a factor below 1, or a side shorter than the factor.
    """
    x = crop_to_multiple(x, factor)
    small = resize(x, (x.shape[2] // factor, x.shape[3] // factor))
    return (small.clamp(0, 1) * 255).round() / 255


def crop_to_multiple(x: Tensor, factor: int) -> Tensor:
    """Without the last rows and columns, so that `factor` divides both sides; errors as of `shrink`."""
    images.check_batch(x)
    r, (H, W) = cell_side(factor), x.shape[2:]
    if min(H, W) < r:
        raise ValueError(f"expected sides of at least {r} px, got {H}×{W}")
    return x[:, :, : H // r * r, : W // r * r]


def bicubic(x: Tensor, factor: int) -> Tensor:
    """(B, C, H, W) → (B, C, rH, rW): the rule that every network must beat; errors as of `resize`."""
    return resize(x, (x.shape[2] * factor, x.shape[3] * factor))


# --- the network


class SuperResolver(nn.Module):
    """Y (B, 1, H, W) in [0, 1] → Y (B, 1, rH, rW), near [0, 1] but not clamped. Untrained, it is bicubic interpolation.

    Args:
        factor: r.
        width: channels of the maps, all at the small size.
        blocks: residual blocks.
    """

    def __init__(self, factor: int = 2, width: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.factor = cell_side(factor)
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), *(Residual(width) for _ in range(blocks)))
        self.head = nn.Conv2d(width, self.factor**2, 3, padding=1)
        icnr_(self.head.weight, self.factor)
        with torch.no_grad():  # the last layer begins near nothing, and each cell of r² pixels alike
            self.head.weight.mul_(0.01)
            self.head.bias.zero_()
        self.to(memory_format=torch.channels_last)

    def forward(self, y: Tensor) -> Tensor:
        """See the class.

        Raises:
            TypeError: no floats.
            ValueError: not (B, 1, H, W), or empty.
        """
        images.check_batch(y)
        if y.shape[1] != 1:
            raise ValueError(f"expected the brightness (B, 1, H, W), got {tuple(y.shape)}; enlarge() takes colours")
        details = pixel_shuffle(self.head(self.body(y - 0.5)), self.factor)
        return bicubic(y, self.factor) + details.to(y.dtype)


@torch.no_grad()
def enlarge(network: nn.Module, rgb: Tensor) -> Tensor:
    """Colours (B, 3, H, W) in [0, 1] → (B, 3, rH, rW), clamped: Y by the network, Cb and Cr by `bicubic`.

    Raises:
        TypeError: no floats.
        ValueError: another shape.
    """
    ycbcr = to_ycbcr(rgb)
    y = network(ycbcr[:, :1])
    return to_rgb(torch.cat([y, bicubic(ycbcr[:, 1:], y.shape[2] // rgb.shape[2])], 1)).clamp(0, 1)


def tiles(photographs: Sequence[Tensor], side: int = TILE, stride: int = 64) -> Tensor:
    """Training examples: the Y of squares cut from photographs (1, 3, H, W), (N, 1, side, side) uint8.

    Args:
        photographs: in [0, 1].
        side: of a square, px.
        stride: from one square to the next, px.

    Raises:
        ValueError: no photograph is large enough.
    """
    found = []
    for photograph in photographs:
        y = luma(photograph)
        if min(y.shape[2:]) >= side:
            windows = y.unfold(2, side, stride).unfold(3, side, stride).reshape(-1, 1, side, side)
            found.append((windows * 255).round().byte())
    if not found:
        raise ValueError(f"expected photographs of at least {side} px a side, got {len(photographs)} smaller ones")
    return torch.cat(found)


def photographs() -> list[Tensor]:
    """To learn from: the 300 of BSDS500 (Arbeláez et al. 2011) where `COURSE_DATA` has them, else the built-in ones.

    Returns:
        (1, 3, H, W) each, in [0, 1].
    """
    files = sorted((datasets.data_folder() / "bsds500").glob("*/*.jpg"))
    return [images.load(file) for file in files] or [datasets.load_image(name) for name in BUILT_IN]


def super_resolution_step(network: SuperResolver, optimiser: torch.optim.Optimizer, rng: torch.Generator) -> Step:
    """A training step: the network restores what `shrink` took, up to the mean absolute error (Lim et al. 2017).

    Args:
        network: see the class.
        optimiser: of its parameters.
        rng: on the CPU: mirrors and turns the batch; give it to the loop as stateful.

    Returns:
        tiles (B, 1, H, W) uint8, sides multiples of the factor → losses by name.
    """

    def step(batch: Tensor) -> dict[str, Tensor]:
        x = batch.float() / 255
        mirror, flip, turn = (torch.rand(3, generator=rng) < 0.5).tolist()
        x = x.flip(3) if mirror else x
        x = x.flip(2) if flip else x
        x = x.mT if turn else x
        loss = F.l1_loss(network(shrink(x, network.factor)).float(), x)
        descend(loss, optimiser, clip=0.5)
        return {"error": loss}

    return step


# --- the judge


def psnr(y: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio 10 log₁₀(1 / mean squared error) (B,), in dB, of images (B, C, H, W) in [0, 1].

    Raises:
        ValueError: shapes that differ.
    """
    _check_pair(y, x)
    return -10 * (runtime.wide(y) - runtime.wide(x)).square().flatten(1).mean(1).log10()


def ssim(y: Tensor, x: Tensor) -> Tensor:
    """Structural similarity (B,) of images (B, C, H, W) in [0, 1], at most 1 (Wang et al. 2004, equation 13).

    Means, variances and covariance in Gaussian windows of 11×11 with σ = 1.5, wherever a window fits.

    Raises:
        ValueError: shapes that differ, or sides below 11 px.
    """
    _check_pair(y, x)
    if min(x.shape[2:]) < 11:
        raise ValueError(f"expected sides of at least 11 px, got {tuple(x.shape)}")
    y, x = runtime.wide(y), runtime.wide(x)
    bell = torch.exp(-0.5 * (torch.arange(-5, 6).to(x) / 1.5) ** 2)
    bell = bell / bell.sum()

    def smooth(z: Tensor) -> Tensor:
        flat = z.flatten(0, 1)[:, None]
        return F.conv2d(F.conv2d(flat, bell.view(1, 1, 11, 1)), bell.view(1, 1, 1, 11)).unflatten(0, z.shape[:2])

    with runtime.no_autocast(x.device):
        my, mx = smooth(y), smooth(x)
        vy, vx, cov = smooth(y * y) - my**2, smooth(x * x) - mx**2, smooth(y * x) - my * mx
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * my * mx + c1) * (2 * cov + c2) / ((my**2 + mx**2 + c1) * (vy + vx + c2))
    return similar.flatten(1).mean(1)


def _check_pair(y: Tensor, x: Tensor) -> None:
    images.check_batch(y)
    images.check_batch(x)
    if y.shape != x.shape:
        raise ValueError(f"expected two batches of one shape, got {tuple(y.shape)} and {tuple(x.shape)}")


@torch.no_grad()
def evaluate(upscale: Callable[[Tensor], Tensor], photographs: Sequence[Tensor], factor: int) -> dict[str, float]:
    """Mean PSNR (dB) and SSIM on Y of photographs that are shrunk and enlarged again, by the protocol of this module.

    Args:
        upscale: Y (1, 1, h, w) → Y (1, 1, rh, rw), such as a `SuperResolver`.
        photographs: (1, 3, H, W) each, in [0, 1].
        factor: r.

    Raises:
        ValueError: no photographs.
    """
    if not photographs:
        raise ValueError("expected at least one photograph")
    scores = []
    for photograph in photographs:
        images.check_range(photograph)
        large = crop_to_multiple(photograph, factor)
        y, x = upscale(luma(shrink(large, factor))), luma(large)
        y, x = (z[..., factor:-factor, factor:-factor].double() for z in (y.clamp(0, 1), x))
        scores.append((psnr(y, x).item(), ssim(y, x).item()))
    means = torch.tensor(scores, dtype=torch.float64).mean(0).tolist()
    return dict(zip(("PSNR, dB", "SSIM"), means, strict=True))


for _factor in (2, 4):
    zoo.register(f"super_resolution_x{_factor}", partial(SuperResolver, _factor, width=32, blocks=4))
