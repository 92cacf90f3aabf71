"""What a network's answer means: `Denoiser` turns any kind of prediction into ε_θ, `guided` strengthens a condition.

Samplers and bounds take a model: any callable ε_θ(x, t, condition) with x (B, …), t int64 (B,) and a condition or
None, that returns the estimated noise (B, …).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from course_lib.diffusion.process import KINDS, Kind, to_epsilon
from course_lib.diffusion.schedule import Schedule

Model = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Denoiser(nn.Module):
    """A network, the schedule it was trained with, and the kind of its predictions: together ε_θ.

    Args:
        network: (x, t, condition, keep) → prediction of x's shape, such as `unet.UNet`.
        schedule: of the forward process.
        kind: what the network predicts: `epsilon`, `x0`, `v` or `mu`, see `process.target`.
        shape: (C, H, W) of the pictures, for whoever draws the noise; None: unknown.

    Raises:
        ValueError: another kind.
    """

    def __init__(
        self, network: nn.Module, schedule: Schedule, kind: Kind = "epsilon", shape: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"expected a kind of {', '.join(KINDS)}; got {kind!r}")
        self.network, self.schedule, self.kind, self.shape = network, schedule, kind, shape

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """ε_θ (B, …) at X_t = x (B, …), in x's dtype.

        Args:
            t: int64 (B,), 1 … T. condition: what the network takes; None: unconditional.

        Raises:
            ValueError: times out of range, and what the network refuses.
        """
        return to_epsilon(self.kind, self.predict(x, t, condition), x, t, self.schedule)

    def predict(self, x: Tensor, t: Tensor, condition: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """The network's own prediction (B, …), in x's dtype; arguments as for `forward`, `keep` as for `UNet.forward`.

        Raises:
            ValueError: times out of range, and what the network refuses.
        """
        if t.device.type == "cpu":
            self.schedule.check(t, 1)
        # A network without conditions need not know the word.
        given = () if condition is None else (condition, keep)
        return self.network(x, t, *given).to(x.dtype)


def guided(model: Model, scale: float) -> Model:
    """ε = ε_θ(x, t, ∅) + scale · (ε_θ(x, t, c) − ε_θ(x, t, ∅)): classifier-free guidance (Ho & Salimans 2022, eq. 6).

    Their w is scale − 1. 0 is the unconditional model and 1 the conditional one, a call each; more than 1 exaggerates
    what is typical of the condition, for a second call of the network and less variety.

    Args:
        model: trained with some of the conditions left out; None is "no condition".
        scale: any number.
    """

    def epsilon(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        if condition is None or scale == 0:
            return model(x, t, None)
        with_condition = model(x, t, condition)
        return with_condition if scale == 1 else torch.lerp(model(x, t, None), with_condition, scale)

    return epsilon
