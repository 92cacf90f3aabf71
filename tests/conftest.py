"""What every test shares: no downloads, seeded random numbers, and the devices that are present."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator

os.environ.setdefault("COURSE_OFFLINE", "1")

import pytest
import torch
from fake_cuda import fake_cuda
from torch.utils._python_dispatch import TorchDispatchMode

from course_lib.base import runtime

# A shell has SIGINT ignored in what it starts in the background; the tests of interruptions send it all the same.
signal.signal(signal.SIGINT, signal.default_int_handler)


def rng(seed: int = 0) -> torch.Generator:
    """A seeded generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """N(0, I), the same numbers in every dtype."""
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64).to(dtype)


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """U[0, 1), the same numbers in every dtype."""
    return torch.rand(shape, generator=rng(seed), dtype=torch.float64).to(dtype)


class HostReads(TorchDispatchMode):
    """Counts how often Python reads a number from a tensor. On a GPU each time waits until the device has caught up."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def threads_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """No loop chooses its number of threads by the clock, which would change the last bits of sums."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The CPU, and the CUDA card; where there is none, a simulated one, which knows where tensors lie."""
    runtime.keep_all_digits()  # as every lesson's setup cell does
    simulated = request.param == "cuda" and not torch.cuda.is_available()
    with fake_cuda() if simulated else contextlib.nullcontext():
        yield torch.device(request.param)


LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, downloads allowed, and an error for whoever leaves this machine."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self, address):
        assert address[0] in LOOPBACK, f"a test connects to {address}"
        return connect(self, address)

    def guarded_look_up(host, *arguments, **options):
        assert host in LOOPBACK, f"a test looks {host} up"
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("COURSE_OFFLINE", "0")
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
