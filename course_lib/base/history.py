"""The losses of a training by name, one value a step, fetched from the device no more often than somebody looks."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from course_lib.base import processes

MEMORY = 0.95  # of the smoothed losses for the progress bar: they look back about 20 steps
HINT = (
    "A lower learning rate or descend(..., clip=1.0) often helps; otherwise look for a logarithm or a root of 0, or a "
    "division by it."
)


class History:
    """Losses by name: `values` of every step (NaN where a step had no such loss), `last` and `smooth`.

    What was added lies on the device until `fetch`, since reading a number there waits until the device has caught
    up. `interrupted` travels with the losses: after `fetch`, all processes know alike whether one wants to stop.
    """

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}
        self.last: dict[str, float] = {}
        self.smooth: dict[str, float] = {}
        self.interrupted = False
        self._steps = 0
        self._pending: list[tuple[tuple[str, ...], Tensor]] = []

    def add(self, losses: Mapping[str, Any], device: torch.device, *, interrupted: bool = False) -> None:
        """Note the losses of one step, averaged over the processes.

        Args:
            losses: scalars by name, as tensors or numbers.
            device: where to keep them.
            interrupted: whether this process was asked to stop.

        Raises:
            ValueError: no losses by name, or one that is no scalar.
        """
        if not isinstance(losses, Mapping) or not losses:
            raise ValueError(f"a step must return losses by name, as {{'loss': loss}}; got {losses!r}")
        dtype = torch.float32 if device.type == "mps" else torch.float64  # which has no doubles
        row = [torch.full((), float(interrupted), dtype=dtype, device=device)]
        for name, loss in losses.items():
            loss = torch.as_tensor(loss).detach()
            if loss.numel() != 1:
                raise ValueError(f"a loss is a scalar; {name!r} has shape {tuple(loss.shape)}")
            row.append(loss.reshape(()).to(device, dtype))
        stacked = torch.stack(row)
        processes.average([stacked])
        self._pending.append((tuple(losses), stacked))

    def fetch(self) -> None:
        """Bring `values`, `last`, `smooth` and `interrupted` up to date.

        Raises:
            FloatingPointError: a loss is NaN or infinite. The message names the step, counted from 1, and the losses.
        """
        if not self._pending:
            return
        numbers = iter(torch.cat([row for _, row in self._pending]).tolist())
        pending, self._pending = self._pending, []
        for names, _ in pending:
            self.interrupted |= next(numbers) > 0
            self._note({name: next(numbers) for name in names})

    def _note(self, losses: dict[str, float]) -> None:
        if bad := [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]:
            raise FloatingPointError(f"at step {self._steps + 1} {', '.join(bad)}. {HINT}")
        self.last = losses
        for name, value in losses.items():
            self.values.setdefault(name, [math.nan] * self._steps)
            self.smooth[name] = MEMORY * self.smooth.get(name, value) + (1 - MEMORY) * value
        for name, values in self.values.items():
            values.append(losses.get(name, math.nan))
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on."""
        self.fetch()
        values = {name: torch.tensor(values, dtype=torch.float64) for name, values in self.values.items()}
        return {"values": values, "last": self.last, "smooth": self.smooth, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._pending = []
        self.values = {name: values.tolist() for name, values in state["values"].items()}
        self.last, self.smooth, self._steps = dict(state["last"]), dict(state["smooth"]), state["steps"]
