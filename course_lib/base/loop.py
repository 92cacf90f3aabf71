"""The losses of a training by name, one value a step, fetched from the device no more often than somebody looks.

The one training loop of the course. It knows batches and named losses, and never learns what a GAN is.

    def step(batch):
        loss = F.cross_entropy(network(batch[0]), batch[1])
        descend(loss, optimiser, clip=1.0)
        return {"loss": loss}

    Loop(step, data, steps=2000, batch_size=64, stateful={"network": network, "optimiser": optimiser}).run()

With `resume_from=`, a run that is interrupted, even killed, goes on where it was: on a CPU bit for bit as if nothing
had happened (with the same number of threads, on which sums depend). Started by `accelerate launch`, the same script
trains in several processes (`base/distributed.py`).
"""

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from course_lib.base import checkpoints, distributed, resume, runtime

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
        distributed.average([stacked])
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


Step = Callable[[Any], dict[str, Tensor]]
LOOK_EVERY = 10  # steps between two looks at a GPU's losses: each look waits until the GPU has caught up


def descend(loss: Tensor, optimiser: torch.optim.Optimizer, clip: float | None = None) -> None:
    """One update: gradients of `loss`, averaged over the processes, clipped, and a step of the optimiser.

    Args:
        loss: a scalar, the mean over this process's slice of the batch. Gradients that it leaves in parameters of
            other optimisers are theirs to clear, which their `descend` does.
        optimiser: its parameters are updated.
        clip: longest allowed gradient, the 2-norm over all of the optimiser's parameters.

    Raises:
        ValueError: `loss` depends on none of the optimiser's parameters.
    """
    optimiser.zero_grad()
    # Autocast is for the forward pass; the backward pass takes its precisions from there.
    with runtime.no_autocast(loss.device):
        loss.backward()
    parameters = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    if not parameters:
        raise ValueError("the loss depends on none of this optimiser's parameters; is it the other network's?")
    distributed.average(p.grad for p in parameters)
    if clip is not None:
        nn.utils.clip_grad_norm_(parameters, clip)
    optimiser.step()
    # Autocast keeps the rounded copies of weights for the whole step; a second loss must see the new weights.
    torch.clear_autocast_cache()


def every(n: int, action: Callable[["Loop"], None]) -> Callable[["Loop"], None]:
    """A hook that calls `action(loop)` after every n steps, and at the end.

    Random numbers that the action draws from torch's own generators leave the training's as they were, so that a
    run is the same whether someone watches or not.
    """
    if n < 1:
        raise ValueError(f"n must be 1 step or more; got {n}")

    def hook(loop: "Loop") -> None:
        if loop.done % n == 0 or loop.done == loop.steps:
            devices = [loop.device] if loop.device.type == "cuda" else []
            with torch.random.fork_rng(devices):
                action(loop)

    return hook


class Loop:
    """Calls `step` on shuffled batches of `data`, and looks after all around it.

    Args:
        step: takes a batch, updates the networks (see `descend`), returns scalar losses by name, for display. It
            runs under `runtime.autocast`. A loss need not be there every time; the history then holds NaN.
        data: has `len(data)`, and `data[indices]` for int64 (B,) on the CPU gives a batch: a tensor, or a tuple,
            list or dict of them. Batches are moved to the device of the parts.
        steps: how many.
        batch_size: over all processes together; each of them gets an equal slice.
        stateful: by name, all that changes in training: modules, optimisers, schedules and whatever else has
            `state_dict`, and the `torch.Generator`s that the step draws from.
        seed: of the order of the data.
        averages: for modules among the parts, by name, the decay of a moving average of their weights over the
            steps, which often is the better network. It is min(decay, (1 + k)/(10 + k)) at step k, so that a short
            run forgets the random beginning; buffers such as BatchNorm's are copied.
        hooks: called with the loop after every step, in every process; see `every`.
        resume_from: a file. The state is written there every `save_every` steps, at the end and on interruption, and
            `run` goes on from it. A state of other settings, or of another kind of device, is refused; one of other
            `steps`, only where something else than modules, optimisers and generators may know them, as a schedule.
        title: stands before the progress bar.
        settings: further facts that a state must agree in, such as the weights of a loss; numbers and text.

    Attributes:
        done: steps done. losses: of the last step. history: of every step. seconds: of training, all sessions.
        averaged: the moving averages, in eval mode.

    Raises:
        ValueError: no data; numbers below 1; parts on several devices; a batch that the processes cannot share
            equally; an average of something else than a module among the parts.
        TypeError: a part without a state.
    """

    def __init__(
        self,
        step: Step,
        data: Any,
        *,
        steps: int,
        batch_size: int,
        stateful: Mapping[str, Any],
        seed: int = 0,
        averages: Mapping[str, float] | None = None,
        hooks: Sequence[Callable[["Loop"], None]] = (),
        resume_from: str | os.PathLike | None = None,
        save_every: int = 500,
        title: str = "training",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        own = {"steps": steps, "batch_size": batch_size, "samples": len(data), "seed": seed, "save_every": save_every}
        for name, value in own.items():
            if not isinstance(value, int) or (value < 1 and name != "seed"):
                raise ValueError(f"{name} must be a whole number{'' if name == 'seed' else ' from 1'}; got {value!r}")
        if batch_size % distributed.count():
            raise ValueError(f"{distributed.count()} processes cannot share a batch of {batch_size} equally")
        self.step, self.data, self.hooks, self.title = step, data, tuple(hooks), title
        self.steps, self.batch_size, self.seed, self.save_every = steps, batch_size, seed, save_every
        self.stateful, self.device = dict(stateful), resume.device_of(stateful)
        self.resume_from = None if resume_from is None else Path(resume_from)
        self.done, self.seconds = 0, 0.0
        self._history, self._mixed = History(), False
        self._averages = {name: self._average(name, decay) for name, decay in (averages or {}).items()}
        self.averaged = {name: average.module for name, average in self._averages.items()}
        # What a state must agree in. The number of steps matters only to parts that may have been told it.
        kinds = nn.Module | torch.optim.Optimizer | torch.Generator
        free = {"save_every"} | ({"steps"} if all(isinstance(part, kinds) for part in stateful.values()) else set())
        facts = {name: value for name, value in own.items() if name not in free}
        facts |= {"processes": distributed.count(), "device": self.device.type, **(settings or {})}
        facts |= resume.describe(stateful) | {f"average of {name}": decay for name, decay in (averages or {}).items()}
        self._settings = {name: str(fact) for name, fact in facts.items()}

    @property
    def losses(self) -> dict[str, float]:
        """The losses of the last step by name, the mean over the processes."""
        self._history.fetch()
        return self._history.last

    @property
    def history(self) -> dict[str, list[float]]:
        """All losses by name, one value a step; NaN where a step had no such loss."""
        self._history.fetch()
        return self._history.values

    def run(self) -> dict[str, list[float]]:
        """Train to the last step, from the state's file where there is one; again, it only returns the history.

        An interruption (Ctrl-C, a notebook's stop button, SIGTERM) lets the current step end and saves the state; a
        second Ctrl-C does not wait.

        Raises:
            FloatingPointError: a loss is NaN or infinite, or where a state is due, a weight; the message names them.
            ValueError: NaN or infinity in the data, or a step that returns something else than named scalars.
            checkpoints.CheckpointError: the state's file is damaged, or belongs to other settings.
            KeyboardInterrupt: the run was interrupted; the message says how to go on.
        """
        if self.done == self.steps:
            return self.history
        self._resume()
        began, stop = time.perf_counter() - self.seconds, False
        with resume.interruptions() as caught, self._bar() as bar:
            while self.done < self.steps and not stop:
                self._advance(caught)
                due = self.done == self.steps or self.done % self.save_every == 0  # to be saved
                if self.device.type == "cpu" or self.done % LOOK_EVERY == 0 or due:
                    self._look(bar)
                    # Every process decides so at the same step, by what they told each other with the losses.
                    stop = self._history.interrupted
                for hook in self.hooks:
                    hook(self)
                bar.update()
                self.seconds = time.perf_counter() - began
                if stop or due:
                    self._save()
        if stop or caught:  # also in the last step, when there is nothing left to stop
            self._go_down(caught)
        return self.history

    def _advance(self, caught: list[int]) -> None:
        """One step: batch, update, moving averages. It waits for a GPU only where the step or the data do."""
        batch = self._batch()
        with torch.autocast(self.device.type, torch.bfloat16) if self._mixed else contextlib.nullcontext():
            losses = self.step(batch)
        self._history.add(losses, self.device, interrupted=bool(caught))
        # Running statistics are the first process's, as in DistributedDataParallel.
        distributed.copy_from_main(buffer for module in self._modules() for buffer in module.buffers())
        for name, average in self._averages.items():
            average.update_parameters(self.stateful[name])
        self.done += 1

    def _batch(self) -> Any:
        """This process's slice of the batch, on the device."""
        share = self.batch_size // distributed.count()
        indices = resume.batch_indices(self.done, len(self.data), self.batch_size, self.seed)
        indices = indices[distributed.index() * share :][:share]

        def moved(thing: Any) -> Any:
            if isinstance(thing, Tensor):
                if thing.is_floating_point() and not thing.isfinite().all():
                    raise ValueError(f"{self.title}: NaN or infinity among data[{sorted(indices.tolist())}]")
                return thing.to(self.device, non_blocking=True)
            if isinstance(thing, Mapping):
                return {name: moved(part) for name, part in thing.items()}
            return tuple(map(moved, thing)) if isinstance(thing, list | tuple) else thing

        return moved(self.data[indices])

    def _look(self, bar: tqdm) -> None:
        """Fetch the losses, show them, and stop where they are no longer numbers."""
        try:
            self._history.fetch()
        except FloatingPointError as error:
            raise self._broken(error) from None
        if not bar.disable:
            bar.set_postfix({name: f"{v:.3g}" for name, v in self._history.smooth.items()}, refresh=False)

    def _broken(self, reason: object) -> FloatingPointError:
        kept = (
            f" {self.resume_from} holds the last whole state." if self.resume_from and self.resume_from.exists() else ""
        )
        return FloatingPointError(f"{self.title}: {reason}{kept}")

    def _modules(self) -> list[nn.Module]:
        return [part for part in self.stateful.values() if isinstance(part, nn.Module)]

    def _generators(self) -> dict[str, torch.Generator]:
        return {name: part for name, part in self.stateful.items() if isinstance(part, torch.Generator)}

    def _average(self, name: str, decay: float) -> AveragedModel:
        module = self.stateful.get(name)
        if not isinstance(module, nn.Module) or not 0 <= decay < 1:
            raise ValueError(f"averages: {name!r} must be a module among the parts, its decay in [0, 1); got {decay}")

        def update(averaged: list[Tensor], current: list[Tensor], _: Tensor) -> None:
            k = self.done  # torch's own counter may lie on the GPU, and reading it would wait
            get_ema_multi_avg_fn(min(decay, (1 + k) / (10 + k)))(averaged, current, _)

        return AveragedModel(module, multi_avg_fn=update).eval().requires_grad_(False)

    def _save(self) -> None:
        """Write everything that the next step depends on, unless the last update broke it."""
        averaged = {f"average of {name}": module for name, module in self.averaged.items()}
        if bad := resume.not_finite(self.stateful | averaged):  # no loss has seen these weights yet
            raise self._broken(f"after step {self.done} {', '.join(bad[:4])} hold NaN or infinity. {HINT}")
        if self.resume_from is None:
            return
        # In every process its own random numbers; all else is the same.
        randomness = distributed.gather(resume.random_state(self.device, self._generators()))
        if distributed.is_main():
            stateful = {name: part for name, part in self.stateful.items() if not isinstance(part, torch.Generator)}
            state = {
                "settings": self._settings,
                "done": self.done,
                "seconds": self.seconds,
                "mixed": self._mixed,
                "history": self._history.state_dict(),
                "stateful": {name: part.state_dict() for name, part in stateful.items()},
                "averages": {name: average.state_dict() for name, average in self._averages.items()},
                "random": randomness,
            }
            checkpoints.save_state(self.resume_from, state)

    def _resume(self) -> None:
        """Take up the state's file; without one, begin."""
        self._history.interrupted = False
        there = self.resume_from is not None and distributed.is_main() and self.resume_from.exists()
        state = distributed.broadcast(checkpoints.load_state(self.resume_from) if there else None)
        if state is None:
            if self.done == 0:
                mixed = not isinstance(runtime.autocast(self.device), contextlib.nullcontext)
                self._mixed = distributed.broadcast(mixed)  # a clock may have decided, and otherwise in each
                distributed.copy_from_main(t for part in self._modules() for t in part.state_dict().values())
                distributed.part_ways(self._generators().values())
            return
        self._compare(state)
        for name, part_state in state["stateful"].items():
            self.stateful[name].load_state_dict(part_state)
        for name, average_state in state["averages"].items():
            self._averages[name].load_state_dict(average_state)
        # A precision chosen by a clock may be chosen otherwise today.
        self.done, self.seconds, self._mixed = state["done"], state["seconds"], state["mixed"]
        self._history.load_state_dict(state["history"])
        resume.set_random_state(state["random"][distributed.index()], self.device, self._generators())

    def _compare(self, state: Mapping[str, Any]) -> None:
        found = resume.differences(state.get("settings", {}), self._settings)
        if not found and state["done"] > self.steps:
            found = f"{state['done']} steps are done there, {self.steps} asked for here"
        if found:
            raise checkpoints.CheckpointError(
                f"{self.resume_from} belongs to other settings: {found}. Delete it to start anew, or name another file."
            )

    def _bar(self) -> tqdm:
        # None: shown in a notebook and in a terminal, not in a log file.
        disable = None if distributed.is_main() else True
        return tqdm(total=self.steps, initial=self.done, desc=self.title, unit=" steps", disable=disable)

    def _go_down(self, caught: list[int]) -> None:
        """The interruption goes on, now that the state is safe."""
        kept = f"kept in {self.resume_from}" if self.resume_from else "kept in this loop, in memory only"
        message = f"{self.title} stopped after step {self.done} of {self.steps}, {kept}; run it again to go on"
        if signal.SIGTERM in caught:
            if distributed.is_main():
                tqdm.write(message)
            signal.raise_signal(signal.SIGTERM)  # to whoever waits for it; by default it ends the process
        raise KeyboardInterrupt(message)
