"""base/runtime.py: overrides, repeatability, and a mixed precision that is only on where it pays."""

import contextlib
import itertools
import random

import numpy as np
import pytest
import torch
from conftest import normal

from course_lib.base import runtime
from course_lib.base.loop import descend
from course_lib.gan import r1_penalty


def test_device_override(monkeypatch, device):
    monkeypatch.setenv("COURSE_DEVICE", str(device))
    assert runtime.device().type == device.type
    for wrong in ("abacus", "cuda:99"):
        monkeypatch.setenv("COURSE_DEVICE", wrong)
        with pytest.raises(ValueError, match=f"COURSE_DEVICE='{wrong}'"):
            runtime.device()


def test_a_seed_repeats_everything(device):
    def draw(seed: int) -> list:
        generator = runtime.seed_everything(seed, device)
        drawn = torch.randn(3, generator=generator, device=device).tolist()
        return [random.random(), np.random.rand(), torch.rand(2).tolist(), drawn]

    assert draw(7) == draw(7) != draw(8)


def test_float32_keeps_its_digits():
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    runtime.seed_everything(0)
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_convolutions_keep_their_digits(device):
    x, weight = normal(2, 64, 16, 16), normal(64, 64, 3, 3, seed=1)
    exact = torch.nn.functional.conv2d(x, weight)
    found = torch.nn.functional.conv2d(x.float().to(device), weight.float().to(device)).cpu().double()
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()  # TF32: 1e-3


def test_gradients_of_a_network_repeat(device):
    def gradient() -> torch.Tensor:
        runtime.seed_everything(0)
        layer = torch.nn.Conv2d(3, 16, 3).to(device)
        x = torch.rand(4, 3, 33, 33).to(device).requires_grad_()
        with runtime.autocast(device):
            layer(x).square().sum().backward()
        return torch.cat([x.grad.flatten(), layer.weight.grad.flatten()])

    assert torch.equal(gradient(), gradient())


def test_precision_override(monkeypatch, device):
    x = torch.rand(1, 8, 8, 8, device=device)
    weight = torch.rand(8, 8, 3, 3, device=device)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        monkeypatch.setenv("COURSE_PRECISION", precision)
        with runtime.autocast(device):
            assert torch.nn.functional.conv2d(x, weight).dtype == dtype
    monkeypatch.setenv("COURSE_PRECISION", "float8")
    with pytest.raises(ValueError, match="COURSE_PRECISION must be one of auto, float32, bfloat16; got 'float8'"):
        runtime.autocast(device)


def test_precision_follows_the_clock(monkeypatch):
    monkeypatch.setenv("COURSE_PRECISION", "auto")
    for speedup, mixed in ((0.7, False), (3.0, True)):
        monkeypatch.setattr(runtime, "bf16_speedup", lambda speedup=speedup: speedup)
        assert isinstance(runtime.autocast("cpu"), contextlib.nullcontext) != mixed
    assert isinstance(runtime.autocast("mps"), contextlib.nullcontext)


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_precision_follows_the_generation_of_the_card(monkeypatch):
    """Also in torch 2.2 and 2.3, whose `is_bf16_supported` takes no argument and counts emulation."""
    monkeypatch.setenv("COURSE_PRECISION", "auto")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    asked = []
    for capability, mixed in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d, c=capability: asked.append(d) or c)
        assert isinstance(runtime.autocast("cuda:1"), contextlib.nullcontext) != mixed
    assert asked == ["cuda:1"] * 3


def test_on_a_t4_nothing_is_half(monkeypatch):
    """Colab's card emulates bfloat16, and float16 would need a scaled loss: the setup cell says float32."""
    monkeypatch.setenv("COURSE_PRECISION", "auto")
    monkeypatch.setenv("COURSE_SIZE", "auto")
    monkeypatch.setattr(runtime, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "device cuda (float32) · size gpu" in runtime.describe()
    with runtime.autocast("cuda"):
        assert not torch.is_autocast_enabled()
    assert not runtime.has_bfloat16("cuda") and runtime.has_bfloat16("cpu")


def test_no_autocast_gives_back_the_tensors_precision(device):
    x = torch.rand(4, 4, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with runtime.no_autocast(x.device):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


def test_no_autocast_where_torch_knows_none(monkeypatch):
    def autocast(kind, **options):
        raise RuntimeError(f"User specified an unsupported autocast device_type '{kind}'")

    monkeypatch.setattr(torch, "autocast", autocast)
    with runtime.no_autocast("mps"):
        pass
    # All that must switch it off does so through this one helper.
    weight = torch.nn.Linear(2, 1)
    descend(weight(torch.ones(1, 2)).sum(), torch.optim.SGD(weight.parameters(), lr=0.1))
    assert r1_penalty(weight, torch.ones(3, 2)) >= 0


def test_speedup_is_measured_whatever_the_caller_does():
    for context in (torch.no_grad, torch.inference_mode, contextlib.nullcontext):
        with context():
            assert 0.02 < runtime.bf16_speedup.__wrapped__() < 50
    assert runtime.bf16_speedup() == runtime.bf16_speedup()  # measured once a process


def test_sizes(monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    for size, expected in (("auto", 1), ("laptop", 1), ("gpu", 2)):
        monkeypatch.setenv("COURSE_SIZE", size)
        assert runtime.pick(laptop=1, gpu=2) == expected
    monkeypatch.setenv("COURSE_SIZE", "huge")
    with pytest.raises(ValueError, match="COURSE_SIZE must be one of"):
        runtime.is_large()


def test_describe_says_where_and_what(monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    monkeypatch.setenv("COURSE_PRECISION", "float32")
    line = runtime.describe(seed=3)
    assert "device cpu (float32)" in line and torch.__version__ in line and line.endswith("seed 3")
    assert "seed" not in runtime.describe()


def test_offline_switch(monkeypatch):
    for value, offline in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("COURSE_OFFLINE", value)
        assert runtime.is_offline() is offline


# --- how many threads


def run(seconds, steps: int, allowed: bool = True) -> list[int]:
    """Steps that would take `seconds(number of threads)` each; the number of threads of every step, and at the end."""
    seen = []
    with runtime.fastest_threads(allowed) as step_took:
        for _ in range(steps):
            seen.append(torch.get_num_threads())
            step_took(seconds(seen[-1]))
    return [*seen, torch.get_num_threads()]


@pytest.fixture
def four_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize(("one", "four", "best"), [(0.02, 0.05, 1), (0.04, 0.02, 4), (0.5, 3.0, 1), (2.0, 1.0, 4)])
def test_the_faster_number_of_threads_is_kept(one, four, best):
    seen = run(lambda n: one if n == 1 else four, 80)
    assert set(seen[:30]) == {1, 4}
    assert set(seen[40:-1]) == {best} and seen[-1] == 4  # what torch had, it has again


@pytest.mark.usefixtures("four_threads")
def test_a_delay_during_the_trial_does_not_decide():
    delays = iter([0, 0, 0.5])  # in the first steps with four threads
    assert run(lambda n: 0.04 if n == 1 else 0.02 + next(delays, 0), 80)[-2] == 4


@pytest.mark.usefixtures("four_threads")
def test_the_number_of_threads_is_tried_again(monkeypatch):
    """After 100 steps another process makes four threads slow."""
    monkeypatch.setattr(runtime.time, "perf_counter", itertools.count().__next__)  # a second for every look at it
    done = itertools.count()
    seen = run(lambda n: 0.03 if n == 1 else 0.1 if next(done) > 100 else 0.02, 300)
    assert set(seen[26:38]) == {4}
    assert seen[-100:].count(1) > 70  # trials go on, too


@pytest.mark.usefixtures("four_threads")
def test_where_the_user_chose_nothing_is_tried(monkeypatch):
    assert set(run(lambda n: 0.01 * n, 40, allowed=False)) == {4}
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert set(run(lambda n: 0.01 * n, 40)) == {4}
    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    assert set(run(lambda n: 0.01 * n, 40)) == {1}


@pytest.mark.usefixtures("four_threads")
def test_an_error_gives_the_threads_back():
    with pytest.raises(KeyError), runtime.fastest_threads() as step_took:
        for _ in range(3):
            step_took(0.2)
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 4
