"""A network with its schedule: whatever type of prediction it makes, a `Denoiser` names the noise. Guidance, too.

Samplers take a model: any callable ε_θ(x, t, condition) with x (B, …), t int64 (B,) and a condition or None, that
returns the estimated noise (B, …). A `Denoiser` is one, and so is what `guided` returns.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.base import unet, zoo
from course_lib.diffusion.process import PredictionType, Schedule, check_prediction_type, cosine, to_epsilon

Model = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Denoiser(nn.Module):
    """A network, the schedule it was trained with, and what it predicts: together ε_θ.

    Args:
        network: (x, t[, condition, condition_mask]) → a prediction of x's shape, such as `unet.UNet`.
        schedule: of the forward process.
        prediction_type: what the network predicts: `epsilon`, `x0`, `v`, `velocity` or `mu`, see `process.target`.
        shape: (C, H, W) of the images, for whoever draws the noise; None: unknown.

    Raises:
        ValueError: another prediction_type.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction_type: PredictionType = "epsilon",
        shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        check_prediction_type(prediction_type)
        self.network, self.schedule, self.prediction_type, self.shape = network, schedule, prediction_type, shape

    def predict(
        self, x: Tensor, t: Tensor, condition: Tensor | None = None, condition_mask: Tensor | None = None
    ) -> Tensor:
        """The network's own prediction (B, …), in x's dtype. The network computes in the dtype of its weights.

        Args:
            x: X_t, floats (B, …).
            t: int64 (B,), 1 … T.
            condition: what the network takes; None: unconditional.
            condition_mask: bool (B,), whose conditions count; None: all. See `UNet.forward`.

        Raises:
            ValueError: what the network refuses.
        """
        # Some networks know no conditions.
        given = () if condition is condition_mask is None else (condition, condition_mask)
        own = next(self.network.parameters(), x).dtype
        return self.network(x.to(own), t, *given).to(x.dtype)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """ε_θ (B, …) at X_t = x, in x's dtype; the arguments are those of `predict`.

        Only the network computes in the precision of its weights. From bfloat16's 8 bits of X_t and ε, X_0 could not be
        told at late times, where it is multiplied with √ᾱ_t ≈ 0.

        Raises:
            ValueError: times out of range, and what the network refuses.
            TypeError: x that is no float, times that are not whole.
        """
        return to_epsilon(self.prediction_type, self.predict(x, t, condition), x, t, self.schedule)


def guided(model: Model, guidance_scale: float) -> Model:
    """Classifier-free guidance: ε = ε_θ(x, t, ∅) + s · (ε_θ(x, t, c) − ε_θ(x, t, ∅)) (Ho & Salimans 2022, equation 6).

    Their w is s − 1. A scale s of 0 is the unconditional model and 1 the conditional one, a call each; more than 1
    exaggerates what is typical of the condition, for a second call of the network and less variety.

    Args:
        model: trained with some of the conditions left out; None is "no condition".
        guidance_scale: s, any number.
    """
    guidance_scale = float(guidance_scale)  # a NumPy number may be no float, and `lerp` wants one

    def epsilon(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        if condition is None or guidance_scale == 0:
            return model(x, t, None)
        with_condition = model(x, t, condition)
        return with_condition if guidance_scale == 1 else torch.lerp(model(x, t, None), with_condition, guidance_scale)

    return epsilon


def _build(
    channels: int,
    side: int,
    prediction_type: PredictionType = "v",
    multipliers: tuple[int, ...] = (1, 2),
    patch: int = 2,
    **config: Any,
) -> Denoiser:
    """On the cosine schedule with T = 1000, by a U-Net small enough for one core to train in an hour."""
    network = unet.UNet(unet.Config(channels=channels, multipliers=multipliers, patch=patch, **config))
    return Denoiser(network, cosine(), prediction_type, shape=(channels, side, side))


zoo.register("diffusion_mnist", partial(_build, channels=1, side=28, width=32, classes=10))
zoo.register("diffusion_fashion_mnist", partial(_build, channels=1, side=28, width=32, classes=10))
# A patch of 4×4 pixels has 48 numbers. Of these the noise needs every one, and an image only a few: so x0.
_cats = {"channels": 3, "side": 64, "prediction_type": "x0", "multipliers": (1, 2, 2), "patch": 4, "attention": (2,)}
zoo.register("diffusion_cats", partial(_build, **_cats, width=40))
