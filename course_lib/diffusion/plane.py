"""Diffusion in the plane, where everything can be drawn: a spiral of points, and a network that denoises points."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.base.layers import time_features


def spiral(n: int, rng: torch.Generator | None = None, noise: float = 0.04) -> Tensor:
    """n points (n, 2) float32 along a spiral of one and a half turns, within about [-1.7, 1.7], in no order.

    Args:
        rng: None: torch's own. noise: standard deviation of the points around the line.

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"expected n ≥ 1, got {n}")
    u = torch.rand(n, generator=rng).sqrt()  # the square root spreads the points evenly along the line
    radius, angle = 1.6 * (0.1 + 0.9 * u), 3 * math.pi * u
    line = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return line + noise * torch.randn(n, 2, generator=rng)


class PointNetwork(nn.Module):
    """(x, t) → a prediction for each point: three residual layers, whose inputs the embedding of t scales and shifts.

    Waves of both coordinates go in beside them: of the plain numbers an MLP learns fine structure slowly (Tancik et
    al. 2020).

    Args:
        width: of the hidden layers.
    """

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, 2 * width))
        self.first = nn.Linear(2 + 8, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.last = nn.Linear(width, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, 2) of points x (B, 2) at times t (B,).

        Raises:
            ValueError: other shapes.
        """
        if x.ndim != 2 or x.shape[1] != 2 or t.shape != x.shape[:1]:
            raise ValueError(f"expected x (B, 2) and t (B,), got {tuple(x.shape)} and {tuple(t.shape)}")
        scale, shift = self.time(time_features(t.to(x.dtype), 32)).chunk(2, 1)
        angles = torch.cat([math.pi / 2 * x, math.pi * x], 1)
        h = self.first(torch.cat([x, angles.sin(), angles.cos()], 1))
        for layer in self.layers:
            h = h + layer(F.silu((1 + scale) * h + shift))
        return self.last(F.silu(h))
