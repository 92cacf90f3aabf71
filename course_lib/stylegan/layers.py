"""What StyleGAN's networks are made of: equalised layers and convolutions that a style modulates."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.base import runtime

SLOPE = 0.2  # of every leaky ReLU


class EqualisedLinear(nn.Module):
    """A linear layer (B, n) → (B, m) whose weights are stored with variance 1/lr² and scaled down where used.

    Adam moves every stored number by about its learning rate, whatever its size; stored alike, all layers learn at
    the same speed, and those with a learning-rate factor `lr` below 1 slower (Karras et al. 2018, section 4.1).

    Args:
        n: inputs.
        m: outputs.
        lr: the learning-rate factor.
        gain: the factor by which the layer changes the standard deviation of its input.
        bias: the bias at the start.
    """

    def __init__(self, n: int, m: int, lr: float = 1.0, gain: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(m, n) / lr)
        self.bias = nn.Parameter(torch.full((m,), bias / lr))
        self.scale, self.lr = gain * lr / math.sqrt(n), lr

    def forward(self, x: Tensor) -> Tensor:
        """(B, n) → (B, m)."""
        return F.linear(x, self.weight * self.scale, self.bias * self.lr)


class EqualisedConv(nn.Module):
    """A convolution that keeps the size, with weights stored as in `EqualisedLinear`.

    Args:
        n: channels of the input.
        m: channels of the output.
        kernel: its side, odd.
        gain: the factor by which the layer changes the standard deviation of its input.
    """

    def __init__(self, n: int, m: int, kernel: int, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(m, n, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(m))
        self.scale = gain / math.sqrt(n * kernel * kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, H, W) → (B, m, H, W)."""
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.weight.shape[-1] // 2)


def modulated_conv2d(x: Tensor, weight: Tensor, styles: Tensor, demodulate: bool = True) -> Tensor:
    """A convolution whose weights each image's style scales (StyleGAN2, section 2.2).

    w'_oikl = s_i · w_oikl (equation 1), w''_oikl = w'_oikl / √(Σ_ikl w'²_oikl + ε) (equation 3): independent inputs of
    unit variance give outputs of unit variance. Here the input is multiplied by s instead of the weights, and the
    output divided by the root: the same numbers, from one ordinary convolution instead of one for each image.

    Args:
        x: (B, n, H, W).
        weight: (m, n, k, k), k odd.
        styles: (B, n), one factor s for each input channel.
        demodulate: divide by the norm of the scaled weights.

    Returns:
        (B, m, H, W), padded with zeros.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    B, n, _, _ = x.shape
    if weight.shape[1] != n or styles.shape != (B, n):
        given = f"{tuple(weight.shape)} and {tuple(styles.shape)}"
        raise ValueError(f"expected weight (m, {n}, k, k) and styles {(B, n)}; got {given}")
    y = F.conv2d(x * styles[:, :, None, None].to(x.dtype), weight, padding=weight.shape[-1] // 2)
    if demodulate:
        with runtime.no_autocast(x.device):  # squares overflow in float16, and ε is 0 there
            s, w = map(runtime.wide, (styles, weight))
            norms = s.square() @ w.square().sum(dim=(2, 3)).T + 1e-8
        y = y * norms.rsqrt()[:, :, None, None].to(y.dtype)
    return y


class StyledConv(nn.Module):
    """Modulated 3×3 convolution, doubling of the size where asked, noise, bias, leaky ReLU.

    Where the size doubles, the convolution comes first: at a quarter of the pixels, as in StyleGAN2's transposed one.

    Args:
        n: channels of the input.
        m: channels of the output.
        w_dim: numbers in a style w.
        up: double the size.
    """

    def __init__(self, n: int, m: int, w_dim: int, up: bool) -> None:
        super().__init__()
        self.affine = EqualisedLinear(w_dim, n, bias=1.0)  # "A" in the paper's figure
        self.weight = nn.Parameter(torch.randn(m, n, 3, 3))
        self.bias = nn.Parameter(torch.zeros(m, 1, 1))
        self.noise_strength = nn.Parameter(torch.zeros(()))  # "B"; one number a layer, as in StyleGAN2
        self.scale, self.up = 1 / math.sqrt(9 * n), up

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        """Features (B, m, H', W'), with H' = 2H where the size doubles, else H.

        Args:
            x: features (B, n, H, W).
            w: one style for each image (B, w_dim).
            noise: (B, 1, H', W'), or (1, 1, H', W') for all images.
        """
        x = modulated_conv2d(x, self.weight * self.scale, self.affine(w))
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
        x = x + (self.noise_strength * noise).to(x.dtype) + self.bias.to(x.dtype)
        return F.leaky_relu(x, SLOPE) * math.sqrt(2)  # keeps the mean square, roughly


class ToImage(nn.Module):
    """The 1×1 convolution from features to an image, modulated but not demodulated (StyleGAN2's tRGB).

    Args:
        n: channels of the features.
        channels: of the image.
        w_dim: numbers in a style w.
    """

    def __init__(self, n: int, channels: int, w_dim: int) -> None:
        super().__init__()
        self.affine = EqualisedLinear(w_dim, n, bias=1.0)
        self.weight = nn.Parameter(torch.randn(channels, n, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        self.scale = 1 / math.sqrt(n)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Images (B, channels, H, W), in the dtype of w, of features x (B, n, H, W) and styles w (B, w_dim)."""
        return modulated_conv2d(x, self.weight * self.scale, self.affine(w), demodulate=False).to(w.dtype) + self.bias
