"""What a network's answer means: `Denoiser` turns any type of prediction into ε_θ, `guided` strengthens a condition.

Samplers and bounds take a model: any callable ε_θ(x, t, condition) with x (B, …), t int64 (B,) and a condition or
None, that returns the estimated noise (B, …).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.base import unet, zoo
from course_lib.diffusion.process import PREDICTION_TYPES, PredictionType, Schedule, cosine, to_epsilon

Model = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Denoiser(nn.Module):
    """A network, the schedule it was trained with, and what it predicts: together ε_θ.

    Args:
        network: (x, t, condition, condition_mask) → prediction of x's shape, such as `unet.UNet`.
        schedule: of the forward process.
        prediction_type: what the network predicts: `epsilon`, `x0`, `v` or `mu`, see `process.target`.
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
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"expected a prediction_type of {', '.join(PREDICTION_TYPES)}; got {prediction_type!r}")
        self.network, self.schedule, self.prediction_type, self.shape = network, schedule, prediction_type, shape

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """ε_θ (B, …) at X_t = x (B, …), in x's dtype.

        Args:
            t: int64 (B,), 1 … T. condition: what the network takes; None: unconditional.

        Raises:
            ValueError: times out of range, and what the network refuses.
        """
        return to_epsilon(self.prediction_type, self.predict(x, t, condition), x, t, self.schedule)

    def predict(
        self, x: Tensor, t: Tensor, condition: Tensor | None = None, condition_mask: Tensor | None = None
    ) -> Tensor:
        """The network's own prediction (B, …), in x's dtype; arguments as for `forward` and `UNet.forward`.

        Raises:
            ValueError: times out of range, and what the network refuses.
        """
        if t.device.type == "cpu":
            self.schedule.check(t, 1)
        # A network without conditions need not know the word.
        given = () if condition is None else (condition, condition_mask)
        return self.network(x, t, *given).to(x.dtype)


def guided(model: Model, guidance_scale: float) -> Model:
    """Classifier-free guidance: ε = ε_θ(x, t, ∅) + s · (ε_θ(x, t, c) − ε_θ(x, t, ∅)) (Ho & Salimans 2022, equation 6).

    Their w is s − 1. A scale s of 0 is the unconditional model and 1 the conditional one, a call each; more than 1
    exaggerates what is typical of the condition, for a second call of the network and less variety.

    Args:
        model: trained with some of the conditions left out; None is "no condition".
        guidance_scale: s, any number.
    """

    def epsilon(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        if condition is None or guidance_scale == 0:
            return model(x, t, None)
        with_condition = model(x, t, condition)
        return with_condition if guidance_scale == 1 else torch.lerp(model(x, t, None), with_condition, guidance_scale)

    return epsilon


def _denoiser(channels: int, side: int, **config: Any) -> Denoiser:
    """v-prediction on the cosine schedule with T = 1000, by a U-Net small enough for one core to train in an hour."""
    network = unet.UNet(unet.Config(channels=channels, multipliers=(1, 2), patch=2, **config))
    return Denoiser(network, cosine(), "v", (channels, side, side))


for _data in ("mnist", "fashion_mnist"):
    zoo.register(f"diffusion_{_data}", partial(_denoiser, 1, 28, classes=10, width=32))
zoo.register("diffusion_cats", partial(_denoiser, 3, 32, width=40, attention=(1,), dropout=0.1))
