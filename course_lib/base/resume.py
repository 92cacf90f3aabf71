"""What lets a training be interrupted and go on: its state in a file, its random numbers, its order of the data.

A run that is interrupted and resumed equals an uninterrupted one only if everything that the next step depends on
is either written down or a function of the step's number.
"""

import contextlib
import functools
import hashlib
import io
import os
import random
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from course_lib.base.checkpoints import CheckpointError, write_atomically

MAGIC = b"course training state 2\n"  # first in the file; then 32 bytes of SHA-256 of the rest


def save_state(path: str | os.PathLike, state: Mapping[str, object]) -> None:
    """Write the state of a training, to go on from with `load_state`; an older file gives way only to a whole one.

    Args:
        path: of any suffix; its folder is created where missing.
        state: names and what belongs to them: tensors, numbers, text, None, and lists, tuples and dicts of those.

    Raises:
        TypeError: see `to_bytes`.
        OSError: the file cannot be written; the previous one is untouched.
    """
    content = to_bytes(dict(state), "state")
    write_atomically(path, MAGIC + hashlib.sha256(content).digest() + content)


def load_state(path: str | os.PathLike) -> dict[str, object]:
    """What `save_state` wrote, its tensors on the CPU. No code in the file is run.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: `save_state` did not write the file, or it is cut or changed.
    """
    data = Path(path).read_bytes()
    start = len(MAGIC) + hashlib.sha256().digest_size
    if not data.startswith(MAGIC[: len(data)]) or not data:
        raise CheckpointError(f"{path} is not a training state; it was not written by save_state()")
    digest, content = data[len(MAGIC) : start], data[start:]
    if hashlib.sha256(content).digest() != digest:
        raise CheckpointError(f"{path} is damaged: it is cut or changed, and its SHA-256 does not agree")
    return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")


def to_bytes(state: object, name: str) -> bytes:
    """A state, or a part of one, as bytes that `torch.load` reads without running code.

    Args:
        state: tensors, numbers, text, None, and lists, tuples and dicts of those.
        name: of it, for the message.

    Raises:
        TypeError: anything else in it, such as a function or a number of NumPy's. The message says where.
    """
    stream = io.BytesIO()
    try:  # and read it again: better now than after hours of training
        torch.save(state, stream)
        torch.load(io.BytesIO(stream.getvalue()), weights_only=True, map_location="cpu")
    except Exception as error:  # pickle's errors, some of them torch's own
        where = _foreign(state, name) or str(error)
        raise TypeError(f"a state holds only tensors, Python's numbers and text; {where}") from error
    return stream.getvalue()


def _foreign(thing: object, name: str) -> str:
    """Where something is that a state cannot hold, and what."""
    if isinstance(thing, Mapping | list | tuple):
        parts = thing.items() if isinstance(thing, Mapping) else enumerate(thing)
        return next(filter(None, (_foreign(part, f"{name}[{key!r}]") for key, part in parts)), "")
    plain = isinstance(thing, Tensor | int | float | str | None) and not isinstance(thing, np.generic)
    return "" if plain else f"{name} is {type(thing).__module__}.{type(thing).__name__}"


def random_state(rngs: Mapping[str, torch.Generator], device: torch.device) -> dict[str, Any]:
    """The states of the rngs given, and of Python's, NumPy's and torch's own, on the CPU and on `device`."""
    kind, keys, *rest = np.random.get_state()
    numpy = (kind, keys.tolist(), *rest)  # a state holds no NumPy arrays
    torchs = {name: rng.get_state() for name, rng in _with_torchs(rngs, device).items()}
    return {"python": random.getstate(), "numpy": numpy, "torch": torchs}


def set_random_state(state: Mapping[str, Any], rngs: Mapping[str, torch.Generator], device: torch.device) -> None:
    """Set all rngs to what `random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    for name, rng in _with_torchs(rngs, device).items():
        rng.set_state(state["torch"][name])


def _with_torchs(rngs: Mapping[str, torch.Generator], device: torch.device) -> dict[str, torch.Generator]:
    own = {"torch's on the CPU": torch.default_generator}
    if device.type == "cuda":
        own["torch's on the GPU"] = torch.cuda.default_generators[device.index]
    elif device.type == "mps":
        own["torch's on the GPU"] = torch.mps._get_default_mps_generator()
    return {**rngs, **own}


def batch_indices(step: int, n: int, batch_size: int, seed: int) -> Tensor:
    """Which samples make the batch of `step` (from 0), as int64 (batch_size,).

    Epochs, each a permutation of all n samples, follow each other without a gap, and batches are cut from that
    stream: each sample is seen equally often, whatever the batch size, and a batch may exceed the data.
    """
    first, parts, missing = step * batch_size, [], batch_size
    while missing:
        epoch, offset = divmod(first, n)
        parts.append(_permutation(n, epoch, seed)[offset : offset + missing])
        first, missing = first + len(parts[-1]), missing - len(parts[-1])
    return torch.cat(parts)


@functools.lru_cache(maxsize=4)
def _permutation(n: int, epoch: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63))


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers that a state keeps, by name."""
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def held_by(module: nn.Module) -> tuple[Tensor, ...]:
    """Its weights and buffers, but not what else its state holds: there a plain number becomes a tensor on the CPU."""
    return *module.parameters(), *module.buffers()


def device_of(modules: Mapping[str, nn.Module]) -> torch.device:
    """Where all modules lie; the CPU if they hold nothing.

    Raises:
        ValueError: they lie on several devices.
    """
    devices = {tensor.device: name for name, module in modules.items() for tensor in held_by(module)}
    if len(devices) > 1:
        where = ", ".join(f"{name!r} on {device}" for device, name in devices.items())
        raise ValueError(f"the modules must lie on one device; {where}")
    return next(iter(devices), torch.device("cpu"))


def not_finite(stateful: Mapping[str, Any]) -> list[str]:
    """The names of the weights and buffers of modules that hold NaN or infinity."""
    modules = {name: thing for name, thing in stateful.items() if isinstance(thing, nn.Module)}
    tensors = {f"{name}.{key}": t for name, module in modules.items() for key, t in tensors_of(module).items()}
    return [name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]


def describe(stateful: Mapping[str, Any]) -> dict[str, str]:
    """What a state must agree in to fit: types, shapes, and the numbers an optimiser was made with.

    The numbers in an optimiser's groups are left out, since schedules change them.
    """
    found = {}
    for name, thing in stateful.items():
        found[name] = type(thing).__name__
        if isinstance(thing, nn.Module):
            found |= {f"{name}.{key}": f"{t.dtype} {tuple(t.shape)}" for key, t in tensors_of(thing).items()}
        elif isinstance(thing, torch.optim.Optimizer):
            numbers = {key: value for key, value in thing.defaults.items() if isinstance(value, float | tuple)}
            found |= {f"{name}.{key}": str(value) for key, value in numbers.items()}
    return found


@contextlib.contextmanager
def interruptions() -> Iterator[list[int]]:
    """Inside, SIGINT (Ctrl-C, a notebook's stop button) and SIGTERM are noted in the list instead of obeyed.

    So nothing breaks into the middle of a step. A second SIGINT is obeyed.
    """
    caught: list[int] = []

    def note(number: int, frame: object) -> None:
        if number == signal.SIGINT and number in caught:
            raise KeyboardInterrupt("stopped in the middle of a step; what is in memory now cannot go on exactly")
        caught.append(number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # Python lets no other listen
        for number in (signal.SIGINT, signal.SIGTERM):
            # What is ignored stays so, as SIGINT is in a job that a shell script left in the background.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
