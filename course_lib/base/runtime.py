"""Where and how the course computes: device, seed, mixed precision, and the one switch between sizes.

Everything here can be overridden from the environment, so that a notebook never needs editing:

| variable | values | effect |
|---|---|---|
| `COURSE_DEVICE` | `cpu`, `cuda`, `cuda:1`, `mps` | the device to compute on |
| `COURSE_PRECISION` | `auto`, `float32`, `bfloat16` | mixed precision off, on, or measured |
| `COURSE_SIZE` | `auto`, `laptop`, `gpu` | small live runs, or the larger ones |
| `COURSE_OFFLINE` | `1` | never touch the network |
"""

import contextlib
import functools
import math
import operator
import os
import random
import time
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")
BLOCK, AGAIN = 0.1, 8.0  # seconds: of steps timed together, and from one trial of threads to the next


def _choice(variable: str, allowed: tuple[str, ...]) -> str:
    """The value of an environment variable that may only take some values; the first one is the default."""
    value = os.environ.get(variable, "") or allowed[0]
    if value not in allowed:
        raise ValueError(f"{variable} must be one of {', '.join(allowed)}; got {value!r}")
    return value


def device() -> torch.device:
    """The device to compute on: `COURSE_DEVICE`, else CUDA, else MPS, else the CPU.

    Raises:
        ValueError: `COURSE_DEVICE` names no device, or one that this machine lacks.
    """
    wanted = os.environ.get("COURSE_DEVICE")
    if not wanted:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(wanted)
        torch.zeros(1, device=chosen)
    except Exception as error:  # torch raises RuntimeError, AssertionError or its own, by back end
        raise ValueError(f"COURSE_DEVICE={wanted!r} is not usable here: {error}") from error
    return chosen


def seed_everything(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Seed Python, NumPy and torch, ask torch for repeatable kernels of all digits, and return a seeded generator.

    The same seed gives the same result twice on one machine with one number of threads; other machines
    round differently.
    """
    seed = operator.index(seed)  # NumPy's and torch's numbers, too
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with this set
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False  # picks kernels by timing, so a run may differ from the last
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # else each new tensor is written twice
    keep_all_digits()
    return torch.Generator(device).manual_seed(seed)


def keep_all_digits() -> None:
    """Let float32 mean float32 on a CUDA card, too.

    By default, cuDNN's convolutions of float32 keep 10 bits of 23 (TF32): then what is written by hand and the
    library's agree to 3 digits only. Training loses nothing, since these cards train in bfloat16; see `autocast`.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@functools.cache
def bf16_speedup() -> float:
    """How many times faster this CPU runs 3×3 convolutions, forward and back, under bf16 autocast.

    Measured once per process, in about 0.3 s: instruction sets promise what they like, only a clock knows.
    The two are timed by turns, so that whatever else the machine does slows both.
    """

    def seconds(enabled: bool) -> float:
        weight = torch.zeros(128, 128, 3, 3)
        x = torch.zeros(1, 128, 64, 64).contiguous(memory_format=torch.channels_last).requires_grad_()
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            features = torch.nn.functional.conv2d(x, weight, padding=1).relu()
        torch.autograd.grad(features.sum(), x)
        return time.perf_counter() - start

    # The caller may have switched gradients off; the clock must not see less work for it.
    with torch.inference_mode(False), torch.enable_grad():
        pairs = [(seconds(False), seconds(True)) for _ in range(6)][1:]  # the first pair warms up
    return min(plain for plain, _ in pairs) / min(mixed for _, mixed in pairs)


def has_bfloat16(device: torch.device | str) -> bool:
    """Whether a CUDA card computes in bfloat16 (Ampere and later); older ones, as Colab's T4, only emulate it.

    True on every other device: there a clock decides, or nobody asks.
    """
    return torch.device(device).type != "cuda" or torch.cuda.get_device_capability(device)[0] >= 8


def autocast(device: torch.device | str) -> contextlib.AbstractContextManager:
    """Mixed precision to bfloat16 where it pays: `with autocast(x.device): ...`.

    On CUDA when the card computes in bf16, on a CPU when `bf16_speedup()` is at least 1.3, elsewhere not.
    `COURSE_PRECISION=float32` switches it off, `bfloat16` on.

    An older card, such as Colab's T4, keeps float32. Its fast type is float16, whose gradients vanish below 6·10⁻⁸ and
    overflow from 65,504 on: it would need a scaled loss in every training step, and a step that is left out whenever
    the scale was wrong.
    """
    kind = torch.device(device).type
    precision = _choice("COURSE_PRECISION", ("auto", "float32", "bfloat16"))
    if precision != "auto":
        enabled = precision == "bfloat16"
    elif kind == "cuda":
        enabled = has_bfloat16(device)
    else:
        enabled = kind == "cpu" and bf16_speedup() >= 1.3
    return torch.autocast(kind, torch.bfloat16) if enabled else contextlib.nullcontext()


def no_autocast(device: torch.device | str) -> contextlib.AbstractContextManager:
    """The precision of the tensors themselves, also inside of `autocast`: `with no_autocast(x.device): ...`."""
    try:
        return torch.autocast(torch.device(device).type, enabled=False)
    except RuntimeError:  # an older torch has no mixed precision on MPS, and so none to switch off
        return contextlib.nullcontext()


def wide(x: torch.Tensor) -> torch.Tensor:
    """The same numbers in float32 or more, integers too: for squares, exponentials and sums, which halves cannot hold.

    float16 ends at 65504, and below 6e-8 all is 0; bfloat16 has 8 bits and cannot tell 256 from 257.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


@contextlib.contextmanager
def fastest_threads(allowed: bool = True) -> Iterator[Callable[[float], None]]:
    """Short steps on a CPU with one thread or with all, whichever is faster at present.

        with fastest_threads() as step_took:
            ...  # after each step:
            step_took(seconds)  # sets torch's number of threads for the next

    Alone, a small network is faster with all threads. Beside another busy process it is faster with one, since threads
    wait for each other in every small operation, and then for a processor, too. So both are tried at the start and
    again after `AGAIN` seconds or more, for some steps in turn, and the faster is kept. Nothing is tried where torch
    has only one thread, or where OMP_NUM_THREADS is set: then the user has chosen. At the end torch has the number of
    threads that it had.

    Args:
        allowed: False tries nothing.
    """
    most = torch.get_num_threads()
    trials = _thread_trials(most)
    try:
        if allowed and most > 1 and "OMP_NUM_THREADS" not in os.environ:
            next(trials)
            yield trials.send
        else:
            yield lambda seconds: None
    finally:
        torch.set_num_threads(most)


def _thread_trials(most: int) -> Generator[None, float, None]:
    """Sets the number of threads for the next step at each `yield`, and is sent the seconds that it took."""
    while True:
        began, mean = time.perf_counter(), {}
        for n in (most, 1) * 2:  # twice, so that one delay does not decide
            torch.set_num_threads(n)
            yield  # the first step after a change is slower
            seconds = [(yield)]
            while sum(seconds) < BLOCK:
                seconds.append((yield))
            mean[n] = min(mean.get(n, math.inf), sum(seconds) / len(seconds))
        torch.set_num_threads(min(mean, key=mean.get))
        now = time.perf_counter()
        until = now + max(AGAIN, 20 * (now - began))  # trials of long steps are rare
        while time.perf_counter() < until:
            yield


def is_large() -> bool:
    """Whether to use the larger networks and longer runs: on a GPU, unless `COURSE_SIZE` says otherwise."""
    size = _choice("COURSE_SIZE", ("auto", "laptop", "gpu"))
    return device().type == "cuda" if size == "auto" else size == "gpu"


def pick(laptop: T, gpu: T) -> T:
    """The one switch between the sizes of a laptop and of a GPU: `steps = pick(laptop=100, gpu=1000)`."""
    return gpu if is_large() else laptop


def is_offline() -> bool:
    """Whether `COURSE_OFFLINE` forbids downloads."""
    return os.environ.get("COURSE_OFFLINE", "") not in ("", "0")


def describe(seed: int | None = None) -> str:
    """One line for a notebook's setup cell: device, precision, size, versions and seed."""
    import torchvision

    where = device()
    precision = "float32" if isinstance(autocast(where), contextlib.nullcontext) else "bfloat16 autocast"
    versions = f"torch {torch.__version__} · torchvision {torchvision.__version__}"
    size = "gpu" if is_large() else "laptop"
    return f"device {where} ({precision}) · size {size} · {versions}" + ("" if seed is None else f" · seed {seed}")
