"""The one training loop of the course. It knows batches and named losses, and never learns what a GAN is.

    def step(batch):
        loss = F.cross_entropy(network(batch[0]), batch[1])
        descend(loss, optimiser, clip=1.0)
        return {"loss": loss}

    Loop(step, data, steps=2000, batch_size=64, stateful={"network": network, "optimiser": optimiser}).run()

With `resume_from=`, a run that is interrupted, even killed, goes on where it was: on a CPU bit for bit as if nothing
had happened. Started by `accelerate launch`, the same script trains in several processes (`base/distributed.py`).
"""

import contextlib
import copy
import math
import operator
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm.auto import tqdm

from course_lib.base import distributed, resume, runtime
from course_lib.base.checkpoints import CheckpointError, differences

Step = Callable[[Any], dict[str, Tensor]]
LOOK_EVERY = 10  # steps between two looks at a GPU's losses: each look waits until the GPU has caught up
MEMORY = 0.95  # of the smoothed losses for the progress bar: they look back about 20 steps
HINT = "A lower learning rate or descend(..., clip=1.0) often helps; or look for NaN in the data, and log(0) or 1/0."


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

    Random numbers that the action draws from torch's own rngs leave the training's as they were, so that a
    run is the same whether someone watches or not.

    Raises:
        ValueError: n below 1.
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

    On a CPU, the steps run with one thread or with all that torch may use, whichever is faster at present; see
    `runtime.fastest_threads`. The number of threads changes the last bits of sums. So with `resume_from` nothing is
    chosen; and where every other run must give the same bits, too, set OMP_NUM_THREADS.

    Args:
        step: takes a batch, updates the networks (see `descend`), returns scalar losses by name, for display. It
            runs under `runtime.autocast`. A loss need not be there every time; the history then holds NaN.
        data: has `len(data)`, and `data[indices]` for int64 (B,) on the CPU gives a batch: a tensor, or a tuple,
            list or dict of them, of finite numbers. Batches are moved to the device of the modules.
        steps: how many.
        batch_size: over all processes together; each of them gets an equal slice.
        stateful: by name, all that changes in training: modules, optimisers, schedules and whatever else has
            `state_dict` and `load_state_dict`, and the `torch.Generator`s that the step draws from.
        seed: of the order of the data.
        averages: for modules in `stateful`, by name, the decay of a moving average of their weights over the
            steps, which often is the better network. It is min(decay, (1 + k)/(10 + k)) at step k, so that a short
            run forgets the random beginning; buffers such as BatchNorm's are copied.
        hooks: called with the loop after every step, in every process; see `every`.
        resume_from: a file. The state is written there every `save_every` steps, at the end and on interruption, and
            `run` goes on from it. A state of other settings, or of another kind of device, is refused; one of other
            `steps`, only where something else than modules, optimisers and rngs may know them, such as a schedule.
        save_every: steps between two states.
        title: stands before the progress bar.
        settings: further facts that a state must agree in, such as the weights of a loss; numbers and text.

    Attributes:
        done: steps done.
        losses: of the last step, by name, the mean over the processes.
        history: of every step, by name; NaN where a step had no such loss.
        seconds: of training, all sessions.
        averaged: the moving averages by name, in evaluation mode.

    Raises:
        ValueError: no data; numbers below 1; modules on several devices; a batch that the processes cannot share
            equally; an average of something else than a module in `stateful`, or of one in half precision.
        TypeError: a number that is not whole; something without a state; with `resume_from`, a state that cannot be
            saved, as that of an optimiser whose learning rate is a number of NumPy's; from `run`, data without batches.
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
        self.step, self.data, self.hooks, self.title = step, data, tuple(hooks), title
        self.steps, self.batch_size = _whole("steps", steps), _whole("batch_size", batch_size)
        self.save_every, self.seed = _whole("save_every", save_every), _whole("seed", seed, at_least=-math.inf)
        _whole("samples", len(data))
        self._processes = distributed.processes()
        if self.batch_size % self._processes.num_processes:
            raise ValueError(f"{self._processes.num_processes} processes cannot share a batch of {batch_size} equally")
        self.resume_from = None if resume_from is None else Path(resume_from)
        self.stateful = dict(stateful)
        self._rngs = {name: s for name, s in stateful.items() if isinstance(s, torch.Generator)}
        self._modules = {name: s for name, s in stateful.items() if isinstance(s, nn.Module)}
        self.device = resume.device_of(self._modules)
        self._averages, self.averaged = dict(averages or {}), {}
        for name, decay in self._averages.items():
            if name not in self._modules or not 0 <= decay < 1:
                raise ValueError(f"averages: {name!r} must be a module in stateful, its decay in [0, 1); got {decay}")
            if any(p.dtype in (torch.float16, torch.bfloat16) for p in self._modules[name].parameters()):
                raise ValueError(f"averages: {name!r} is in half precision, where a small step of an average is none")
            self.averaged[name] = copy.deepcopy(self._modules[name]).eval().requires_grad_(False)
        for name, thing in self._with_state().items():
            if not (hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")):
                raise TypeError(f"stateful: {name!r} needs state_dict and load_state_dict; got {type(thing).__name__}")
            if self.resume_from:  # better now than at the first save
                resume.to_bytes(thing.state_dict(), name)
        facts = {"batch_size": self.batch_size, "samples": len(data), "seed": self.seed, **(settings or {})}
        if not all(isinstance(s, nn.Module | torch.optim.Optimizer | torch.Generator) for s in stateful.values()):
            facts["steps"] = self.steps  # something may have been told it, such as a schedule
        facts |= {"processes": self._processes.num_processes, "device": self.device.type, **resume.describe(stateful)}
        facts |= {f"average of {name}": decay for name, decay in self._averages.items()}
        self._settings = {name: str(fact) for name, fact in facts.items()}  # what a state must agree in
        self._history, self._mixed = History(), False
        self.done, self.seconds = 0, 0.0

    @property
    def losses(self) -> dict[str, float]:
        """The losses of the last step by name, the mean over the processes."""
        return {name: values[-1] for name, values in self.history.items() if not math.isnan(values[-1])}

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
            ValueError: a step that returns something else than named scalars.
            CheckpointError: the state's file is damaged, or belongs to other settings.
            KeyboardInterrupt: the run was interrupted; the message says how to go on.
        """
        if self.done == self.steps:
            return self.history
        self._resume()
        shown = {"total": self.steps, "initial": self.done, "desc": self.title, "unit": " steps"}
        # None: in a notebook and in a terminal, not in a log file.
        shown["disable"] = None if self._processes.is_main_process else True
        threads = runtime.fastest_threads(self.device.type == "cpu" and self.resume_from is None)
        began, stop = time.perf_counter() - self.seconds, False
        try:
            with resume.interruptions() as caught, threads as step_took, tqdm(**shown) as bar:
                while self.done < self.steps and not stop:
                    started = time.perf_counter()
                    self._advance(caught)
                    step_took(time.perf_counter() - started)
                    due = self.done == self.steps or self.done % self.save_every == 0  # to be saved
                    if self.device.type == "cpu" or self.done % LOOK_EVERY == 0 or due:
                        self._history.fetch()
                        bar.set_postfix(self._history.smooth, refresh=False)
                        # Every process decides so at the same step, by what they told each other with the losses.
                        stop = self._history.interrupted
                    for hook in self.hooks:
                        hook(self)
                    bar.update()
                    self.seconds = time.perf_counter() - began
                    if stop or due:
                        self._save()
        except FloatingPointError as error:
            there = self.resume_from and self.resume_from.exists()
            kept = f" {self.resume_from} holds the last whole state." if there else ""
            raise FloatingPointError(f"{self.title}: {error}. {HINT}{kept}") from None
        if stop or caught:  # also in the last step, when there is nothing left to stop
            self._go_down(caught)
        return self.history

    def _advance(self, caught: list[int]) -> None:
        """One step: batch, update, moving averages. It waits for a GPU only where the step or the data do."""
        with torch.autocast(self.device.type, torch.bfloat16) if self._mixed else contextlib.nullcontext():
            losses = self.step(self._batch())
        self._history.add(losses, self.device, interrupted=bool(caught))
        # Running statistics are the first process's, as in DistributedDataParallel.
        distributed.copy_from_main(buffer for module in self._modules.values() for buffer in module.buffers())
        for name, decay in self._averages.items():
            now, average = self._modules[name], self.averaged[name]
            decay = min(decay, (1 + self.done) / (10 + self.done)) if self.done else 0.0
            get_ema_multi_avg_fn(decay)(list(average.parameters()), list(now.parameters()), None)
            for copied, buffer in zip(average.buffers(), now.buffers(), strict=True):
                copied.copy_(buffer)
        self.done += 1

    def _batch(self) -> Any:
        """This process's slice of the batch, on the device."""
        size = self.batch_size // self._processes.num_processes
        indices = resume.batch_indices(self.done, len(self.data), self.batch_size, self.seed)

        def moved(thing: Any) -> Any:
            if isinstance(thing, Tensor):
                return thing.to(self.device, non_blocking=True)
            if isinstance(thing, Mapping):
                return {name: moved(part) for name, part in thing.items()}
            return tuple(map(moved, thing)) if isinstance(thing, list | tuple) else thing

        try:
            batch = self.data[indices[self._processes.process_index * size :][:size]]
        except (TypeError, ValueError, RuntimeError) as error:  # of a list, a DataLoader, samples one by one
            given = f"{type(self.data).__name__}: {error}"
            raise TypeError(f"data[indices], int64 (B,), must give a batch, as of a TensorDataset; {given}") from error
        return moved(batch)

    def _with_state(self) -> dict[str, Any]:
        """All whose `state_dict` is kept; rngs have none, and other numbers in each process."""
        averaged = {f"average of {name}": module for name, module in self.averaged.items()}
        return {name: s for name, s in self.stateful.items() if name not in self._rngs} | averaged

    def _save(self) -> None:
        """Write everything that the next step depends on, unless the last update broke it."""
        if bad := resume.not_finite(self._with_state()):  # no loss has seen these weights yet
            raise FloatingPointError(f"after step {self.done} {', '.join(bad[:4])} hold NaN or infinity")
        if self.resume_from is None:
            return
        randomness = distributed.gather(resume.random_state(self._rngs, self.device))
        if self._processes.is_main_process:
            state = {"settings": self._settings, "done": self.done, "seconds": self.seconds, "random": randomness}
            history = {name: torch.tensor(values, dtype=torch.float64) for name, values in self.history.items()}
            state |= {"mixed": self._mixed, "history": history}
            state["stateful"] = {name: thing.state_dict() for name, thing in self._with_state().items()}
            resume.save_state(self.resume_from, state)

    def _resume(self) -> None:
        """Take up the state's file; without one, begin."""
        self._history.interrupted = False
        there = self.resume_from is not None and self._processes.is_main_process and self.resume_from.exists()
        state = distributed.gather(resume.load_state(self.resume_from) if there else None)[0]
        if state is None:
            if self.done == 0:
                mixed = not isinstance(runtime.autocast(self.device), contextlib.nullcontext)
                self._mixed = distributed.gather(mixed)[0]  # a clock may have decided, and otherwise in each
                distributed.copy_from_main(t for module in self._modules.values() for t in resume.held_by(module))
                distributed.use_other_randomness(self._rngs.values())
            return
        found = differences(state.get("settings", {}), self._settings)
        if not found and state["done"] > self.steps:
            found = f"{state['done']} steps are done there, {self.steps} asked for here"
        if found:
            raise CheckpointError(
                f"{self.resume_from} belongs to other settings: {found}. Delete it to start anew, or name another file."
            )
        for name, thing in self._with_state().items():
            thing.load_state_dict(state["stateful"][name])
        # A clock may choose otherwise today; but Colab's next machine may have an older card.
        self._mixed = state["mixed"] and runtime.has_bfloat16(self.device)
        self.done, self.seconds = state["done"], state["seconds"]
        self._history = History({name: values.tolist() for name, values in state["history"].items()}, self.done)
        resume.set_random_state(state["random"][self._processes.process_index], self._rngs, self.device)

    def _go_down(self, caught: list[int]) -> None:
        """The interruption goes on, now that the state is safe."""
        kept = f"kept in {self.resume_from}" if self.resume_from else "kept in this loop, in memory only"
        message = f"{self.title} stopped after step {self.done} of {self.steps}, {kept}; run it again to go on"
        if signal.SIGTERM in caught:
            if self._processes.is_main_process:
                tqdm.write(message)
            signal.raise_signal(signal.SIGTERM)  # to whoever waits for it; by default it ends the process
        raise KeyboardInterrupt(message)


def _whole(name: str, number: Any, at_least: float = 1) -> int:
    """A whole number as Python's own, whoever's it was."""
    try:
        whole = operator.index(number)
    except TypeError:
        raise TypeError(f"{name} must be a whole number; got {number!r}") from None
    if whole < at_least:
        raise ValueError(f"{name} must be a whole number from {at_least}; got {number!r}")
    return whole


class History:
    """Losses by name: `values` of every step (NaN where a step had no such loss), and `smooth` for the progress bar.

    What was added lies on the device until `fetch`, since reading a number there waits until the device has caught
    up. `interrupted` travels with the losses: after `fetch`, all processes know alike whether one wants to stop.
    """

    def __init__(self, values: Mapping[str, list[float]] | None = None, steps: int = 0) -> None:
        self.values: dict[str, list[float]] = dict(values or {})
        self.smooth: dict[str, float] = {}
        self.steps = steps
        self.interrupted = False
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
        """Bring `values`, `smooth`, `steps` and `interrupted` up to date.

        Raises:
            FloatingPointError: a loss is NaN or infinite. The message names the step, counted from 1, and the losses.
        """
        if not self._pending:
            return
        numbers = iter(torch.cat([row for _, row in self._pending]).tolist())
        pending, self._pending = self._pending, []
        for names, _ in pending:
            self.interrupted |= next(numbers) > 0
            losses = {name: next(numbers) for name in names}
            if bad := [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]:
                raise FloatingPointError(f"at step {self.steps + 1} {', '.join(bad)}")
            for name, value in losses.items():
                self.values.setdefault(name, [math.nan] * self.steps)
                self.smooth[name] = MEMORY * self.smooth.get(name, value) + (1 - MEMORY) * value
            for name, values in self.values.items():
                values.append(losses.get(name, math.nan))
            self.steps += 1
