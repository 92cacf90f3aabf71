"""What lets a training fall apart into sessions: its order of data, its random numbers, its interruptions.

A run that is interrupted and resumed equals an uninterrupted one only if everything that the next step depends on
is either written down or a function of the step's number. Here is what `training.Loop` needs for that.
"""

import contextlib
import functools
import random
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@functools.lru_cache(maxsize=4)
def _permutation(n: int, epoch: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63))


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


def with_index(device: torch.device) -> torch.device:
    """The device as its tensors name it: a GPU without a number, as `torch.device("cuda")`, is the current one."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def device_of(parts: Mapping[str, Any]) -> torch.device:
    """Where the modules and generators among the parts of a training lie; the CPU if there are none.

    Raises:
        TypeError: a part is no generator and has no `state_dict` and `load_state_dict`.
        ValueError: they lie on several devices.
    """
    devices: dict[torch.device, str] = {}
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            devices |= {tensor.device: name for tensor in _tensors(part).values()}
        elif isinstance(part, torch.Generator):
            devices.setdefault(with_index(part.device), name)
        elif not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
            raise TypeError(f"a part needs state_dict and load_state_dict; {name!r} is {type(part).__name__}")
    if len(devices) > 1:
        where = ", ".join(f"{name!r} on {device}" for device, name in devices.items())
        raise ValueError(f"the parts must lie on one device; {where}")
    return next(iter(devices), torch.device("cpu"))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def not_finite(parts: Mapping[str, Any]) -> list[str]:
    """The names of the weights and buffers, of the modules among the parts, that hold NaN or infinity."""
    modules = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    tensors = {f"{name}.{key}": t for name, module in modules.items() for key, t in _tensors(module).items()}
    return [name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]


def describe(parts: Mapping[str, Any]) -> dict[str, str]:
    """What a state must agree in to fit the parts: their kinds, shapes, and the numbers an optimiser was made with.

    The numbers in an optimiser's groups are left out, since schedules change them.
    """
    found = {}
    for name, part in parts.items():
        found[name] = type(part).__name__
        if isinstance(part, nn.Module):
            found |= {f"{name}.{key}": f"{t.dtype} {tuple(t.shape)}" for key, t in _tensors(part).items()}
        elif isinstance(part, torch.optim.Optimizer):
            numbers = {key: value for key, value in part.defaults.items() if isinstance(value, float | tuple)}
            found |= {f"{name}.{key}": str(value) for key, value in numbers.items()}
        elif isinstance(part, torch.Generator):
            found[name] += f" on {part.device.type}"
    return found


def differences(there: Mapping[str, str], here: Mapping[str, str], most: int = 4) -> str:
    """In which facts two descriptions differ, as text; empty if in none. At most `most` are spelt out."""
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    found = [f"{name} is {there.get(name, 'missing')} there, {here.get(name, 'missing')} here" for name in names]
    rest = [f"and {len(found) - most} more"] if len(found) > most else []
    return "; ".join(found[:most] + rest)


def random_state(device: torch.device, generators: Mapping[str, torch.Generator]) -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators, on the CPU and on `device`, and of those given."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),  # a state holds no NumPy arrays
        "torch": torch.get_rng_state(),
        "device": _of_device(device, "get_rng_state") if device.type != "cpu" else None,
        "generators": {name: generator.get_state() for name, generator in generators.items()},
    }


def set_random_state(state: Mapping[str, Any], device: torch.device, generators: Mapping[str, torch.Generator]) -> None:
    """Set all generators to what `random_state` returned."""
    kind, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type != "cpu":
        _of_device(device, "set_rng_state", state["device"])
    for name, generator in generators.items():
        generator.set_state(state["generators"][name])


def _of_device(device: torch.device, function: str, *arguments: Tensor) -> Any:
    """torch.cuda's function for this GPU, or torch.mps', of which there is but one."""
    which = (device,) if device.type == "cuda" else ()
    return getattr(getattr(torch, device.type), function)(*arguments, *which)


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
