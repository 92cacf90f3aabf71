"""base/loop.py and what it stands on, resume.py and distributed.py. Exactness is the point."""

import contextlib
import copy
import io
import math
import os
import random
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course_lib.base import checkpoints, distributed, resume
from course_lib.base import loop as loop_module
from course_lib.base.checkpoints import CheckpointError
from course_lib.base.loop import History, Loop, descend, every


@pytest.fixture(autouse=True)
def plain_precision(monkeypatch):
    """A clock decides on mixed precision where nobody else does."""
    monkeypatch.setenv("COURSE_PRECISION", "float32")


class Line:
    """The smallest training: fit y = 2x + 1 by plain gradient descent; everything a test may want to change."""

    def __init__(self, device="cpu", n: int = 12, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.x = torch.linspace(-1, 1, n)[:, None]
        self.network = nn.Linear(1, 1).to(device)
        self.optimiser = torch.optim.SGD(self.network.parameters(), lr=0.1)
        self.batches: list[torch.Tensor] = []
        self.returned: list[float] = []

    def step(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.batches.append(x)
        loss = (self.network(x) - 2 * x - 1).square().mean()
        descend(loss, self.optimiser)
        self.returned.append(loss.item())
        return {"loss": loss}

    def loop(self, **changes) -> Loop:
        given = {"step": self.step, "data": self.x, "steps": 10, "batch_size": 4}
        given["stateful"] = {"network": self.network, "optimiser": self.optimiser}
        return Loop(**given | changes)


def assert_same(a: object, b: object, where: str = "") -> None:
    """Bit for bit, through dicts and lists; `seconds` may differ."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - {"seconds"}:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    else:
        assert a == b, where


# --- exact resume, with real processes

# Every kind of randomness and state at once: BatchNorm, dropout, EMA, two optimisers, a schedule, the generators of
# Python, NumPy and torch, and one of its own.
SCRIPT = """
import random, sys, time
import numpy as np
import torch
from torch import nn
from course_lib.base import runtime
from course_lib.base.loop import Loop, descend

STEPS = 24

def train(state, hook=lambda loop: None):
    noise = runtime.seed_everything(5)
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten())
    head = nn.Linear(4 * 36, 3)
    adam = torch.optim.Adam(body.parameters(), lr=1e-2)
    sgd = torch.optim.SGD(head.parameters(), lr=1e-2, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 1e-2, total_steps=STEPS)
    images = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    data = torch.utils.data.TensorDataset(images, torch.arange(50) % 3)

    def step(batch):
        x, y = batch
        x = x + 0.1 * torch.randn(x.shape, generator=noise) + 0.1 * random.random() + 0.1 * np.random.rand()
        head_loss = nn.functional.cross_entropy(head(body(x).detach()), y)
        descend(head_loss, sgd)
        body_loss = nn.functional.cross_entropy(head(body(x)), y)
        descend(body_loss, adam, clip=0.5)
        schedule.step()
        return {"head": head_loss, "body": body_loss}

    parts = {"body": body, "head": head, "adam": adam, "sgd": sgd, "schedule": schedule, "noise": noise}
    loop = Loop(step, data, steps=STEPS, batch_size=16, stateful=parts, averages={"body": 0.9}, seed=5,
                hooks=[hook], resume_from=state, save_every=5)
    loop.run()
    return loop

def tell(loop):
    print(loop.done, flush=True)
    time.sleep(0.02)

if __name__ == "__main__":
    train(sys.argv[1], tell)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("script") / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture(scope="module")
def uninterrupted(script) -> dict:
    """The last state of a run that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_PRECISION", "float32")
        patch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
        runpy.run_path(str(script))["train"](script.parent / "whole.pt")
    return resume.load_state(script.parent / "whole.pt")


def run_until(script: Path, state: Path, step: int, number: signal.Signals) -> tuple[int, int, str]:
    """Start the script, send it a signal once it has done `step`; the last step it told, its exit code, its words."""
    child = subprocess.Popen(
        [sys.executable, str(script), str(state)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    told = 0
    for line in child.stdout:
        told = int(line)
        if told == step:
            break
    child.send_signal(number)
    rest = child.communicate(timeout=60)[0]
    return max([told, *(int(line) for line in rest.splitlines() if line.isdigit())]), child.returncode, rest


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(number, script, uninterrupted, tmp_path):
    state = tmp_path / "state.pt"
    told, code, words = run_until(script, state, 13, number)
    done = resume.load_state(state)["done"]
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL and done in (10, 15) and done <= told < 24
    else:  # the step was ended, and the state is of that moment
        assert code in (-number, 128 + number) and done == told < 24
        assert f"stopped after step {done} of 24, kept in {state}; run it again to go on" in words
    resumed = runpy.run_path(str(script))["train"](state)
    assert resumed.done == 24 and len(resumed.history["body"]) == 24
    assert_same(resume.load_state(state), uninterrupted)


def test_the_script_is_random_enough_for_the_test_above(script, uninterrupted, tmp_path, monkeypatch):
    """Without any one of the generators, or the average, or the schedule, the resumed run would differ."""
    state = tmp_path / "state.pt"
    run = runpy.run_path(str(script))["train"]

    def stop(loop):
        if loop.done == 13:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(state, stop)
    at_ten = state.read_bytes()
    for spoil in (
        lambda s: s["random"][0]["torch"].update({"torch's on the CPU": torch.Generator().manual_seed(3).get_state()}),
        lambda s: s["random"][0].update(python=random.Random(3).getstate()),
        lambda s: s["random"][0]["torch"].update(noise=torch.Generator().manual_seed(3).get_state()),
        lambda s: s["random"][0]["numpy"][1].reverse(),
        lambda s: s["stateful"]["schedule"].update(last_epoch=3),
        lambda s: s["stateful"]["average of body"]["0.bias"].add_(1),
        lambda s: s["stateful"]["sgd"]["state"][0]["momentum_buffer"].add_(1),
    ):
        state.write_bytes(at_ten)
        changed = resume.load_state(state)
        spoil(changed)
        resume.save_state(state, changed)
        run(state)
        with pytest.raises(AssertionError):
            assert_same(resume.load_state(state), uninterrupted)


@pytest.mark.parametrize(("later", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_mixed_precision_is_resumed_too(later, dtype, tmp_path, monkeypatch):
    """Which precision pays, a clock decides at the start; a resumed run asks only whether its card can."""
    seen = []

    def run(precision: str) -> None:
        line = Line()
        line.network.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        monkeypatch.setenv("COURSE_PRECISION", precision)
        with contextlib.suppress(KeyboardInterrupt):
            line.loop(resume_from=tmp_path / "s.pt", hooks=[interrupt_at(5)]).run()

    run("bfloat16")
    before = len(seen)
    monkeypatch.setattr(loop_module.runtime, "has_bfloat16", lambda device: later)
    run("float32")
    assert 0 < before < 10 and seen == [torch.bfloat16] * before + [dtype] * (10 - before)


# --- interruptions inside one process


def interrupt_at(step: int, number: int = signal.SIGINT):
    def hook(loop: Loop) -> None:
        if loop.done == step:
            signal.raise_signal(number)

    return hook


def test_an_interrupted_loop_goes_on_in_memory(device, monkeypatch):
    monkeypatch.setattr(loop_module, "LOOK_EVERY", 1)  # a GPU, too, notices at once
    whole, cut = Line(device), Line(device)
    expected = whole.loop(averages={"network": 0.9})
    expected.run()
    loop = cut.loop(averages={"network": 0.9}, hooks=[interrupt_at(4)], title="line")
    with pytest.raises(KeyboardInterrupt, match="line stopped after step 5 of 10, kept in this loop, in memory only"):
        loop.run()
    assert loop.done == 5
    assert loop.run() == expected.history
    assert_same(dict(cut.network.state_dict()), dict(whole.network.state_dict()))
    assert_same(dict(loop.averaged["network"].state_dict()), dict(expected.averaged["network"].state_dict()))


def test_a_signal_inside_a_step_stops_the_run_at_its_end():
    line = Line()

    def step(x):
        if len(line.batches) == 3:
            signal.raise_signal(signal.SIGINT)
        return line.step(x)

    with pytest.raises(KeyboardInterrupt, match="stopped after step 4 of 10"):
        line.loop(step=step).run()


@pytest.mark.parametrize("moment", ["hook", "save"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_last_step_is_not_lost(number, moment, tmp_path, monkeypatch):
    heard, save = [], resume.save_state

    def disturbed_save(path, state):
        save(path, state)
        if state["done"] == 10 and moment == "save":
            signal.raise_signal(number)

    monkeypatch.setattr(resume, "save_state", disturbed_save)
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        hooks = [interrupt_at(10, number)] if moment == "hook" else []
        loop = Line().loop(resume_from=tmp_path / "s.pt", hooks=hooks)
        with pytest.raises(KeyboardInterrupt, match="training stopped after step 10 of 10, kept in"):
            loop.run()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM] * (number == signal.SIGTERM)
    assert resume.load_state(tmp_path / "s.pt")["done"] == 10
    assert len(loop.run()["loss"]) == 10


def test_the_handlers_of_others_are_given_back(tmp_path):
    heard = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        loop = Line().loop(hooks=[interrupt_at(3, signal.SIGTERM)], resume_from=tmp_path / "s.pt")
        with pytest.raises(KeyboardInterrupt, match=r"kept in .*s\.pt"):
            loop.run()
        assert heard == [signal.SIGTERM]  # it reached its listener, after the state was saved
        assert loop.done == resume.load_state(tmp_path / "s.pt")["done"] == 4
        assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
    finally:
        signal.signal(signal.SIGTERM, before[signal.SIGTERM])


def test_the_second_ctrl_c_does_not_wait():
    with resume.interruptions() as caught:
        signal.raise_signal(signal.SIGINT)
        assert caught == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt, match="middle of a step"):
            signal.raise_signal(signal.SIGINT)


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with resume.interruptions() as caught:
            signal.raise_signal(signal.SIGINT)
        assert not caught
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_loop_runs_in_a_thread_that_hears_no_signals():
    loop = Line().loop()
    thread = threading.Thread(target=loop.run)
    thread.start()
    thread.join()
    assert loop.done == 10


# --- the state's file


def test_the_state_is_written_every_so_often_and_at_the_end(tmp_path, monkeypatch):
    written, save = [], resume.save_state
    monkeypatch.setattr(resume, "save_state", lambda path, s: (written.append(s["done"]), save(path, s)))
    loop = Line().loop(resume_from=tmp_path / "new folder" / "s.pt", save_every=4)
    history = loop.run()
    assert written == [4, 8, 10]
    assert loop.run() is history and written == [4, 8, 10]
    again = Line(seed=1)
    fresh = again.loop(resume_from=tmp_path / "new folder" / "s.pt", save_every=4)
    assert fresh.run() == history and not again.batches  # a finished run is only loaded
    assert fresh.seconds == loop.seconds > 0 and fresh.losses == loop.losses


def test_seconds_add_up_over_the_sessions(tmp_path):
    def run(at: int) -> Loop:
        loop = Line().loop(resume_from=tmp_path / "s.pt", hooks=[interrupt_at(at), lambda loop: time.sleep(0.02)])
        with contextlib.suppress(KeyboardInterrupt):
            loop.run()
        return loop

    first, second = run(4).seconds, run(99).seconds
    assert 0.1 <= first <= second - 0.1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: whole[:-7], r"s\.pt is damaged"),
        (lambda whole: whole[:30], r"s\.pt is damaged"),
        (lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]), r"s\.pt is damaged"),
        (lambda whole: b"", r"s\.pt is not a training state"),
        (lambda whole: b"PK\x03\x04" + whole, r"s\.pt is not a training state"),
        (lambda whole: b"my notes on GANs", r"s\.pt is not a training state"),
    ],
)
def test_a_torn_or_foreign_file_is_refused_and_left_alone(content, message, tmp_path):
    path = tmp_path / "s.pt"
    Line().loop(resume_from=path).run()
    path.write_bytes(content(path.read_bytes()))
    before, line = path.read_bytes(), Line()
    with pytest.raises(CheckpointError, match=message):
        line.loop(resume_from=path).run()
    assert path.read_bytes() == before and not line.batches


def test_a_state_of_something_else_is_refused(tmp_path):
    resume.save_state(tmp_path / "s.pt", {"weights": torch.ones(2)})
    with pytest.raises(CheckpointError, match="belongs to other settings: batch_size is missing there, 4 here"):
        Line().loop(resume_from=tmp_path / "s.pt").run()


def test_a_failed_write_keeps_the_previous_state(tmp_path, monkeypatch):
    whole = Line()
    whole.loop(steps=9).run()
    path, replace = tmp_path / "s.pt", os.replace

    def disk_full(source, target):
        if path.exists():
            raise OSError("no space left")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, "replace", disk_full)
        with pytest.raises(OSError, match="no space left"):
            Line().loop(steps=9, resume_from=path, save_every=3).run()
    assert list(tmp_path.iterdir()) == [path] and resume.load_state(path)["done"] == 3
    line = Line()
    line.loop(steps=9, resume_from=path, save_every=3).run()
    assert len(line.batches) == 6
    assert_same(dict(line.network.state_dict()), dict(whole.network.state_dict()))


def other_parts(line: Line, **parts) -> dict:
    return {"stateful": {"network": line.network, "optimiser": line.optimiser, **parts}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: {"seed": 1}, "seed is 0 there, 1 here"),
        (lambda line: {"batch_size": 5}, "batch_size is 4 there, 5 here"),
        (lambda line: {"data": line.x[:9]}, "samples is 12 there, 9 here"),
        (lambda line: {"steps": 6}, "10 steps are done there, 6 asked for here"),
        (lambda line: {"averages": {"network": 0.9}}, "average of network is missing there, 0.9 here"),
        (lambda line: {"settings": {"lambda": 10}}, "lambda is missing there, 10 here"),
        (lambda line: other_parts(line, noise=torch.Generator()), "noise is missing there, Generator here"),
        (
            lambda line: {"stateful": {"network": nn.Linear(1, 2), "optimiser": line.optimiser}},
            r"network.weight is torch.float32 \(1, 1\) there, torch.float32 \(2, 1\) here; network.bias",
        ),
        (
            lambda line: other_parts(line, optimiser=torch.optim.SGD(line.network.parameters(), lr=0.2)),
            r"optimiser.lr is 0.1 there, 0.2 here\. Delete it to start anew",
        ),
        (
            lambda line: {"stateful": {"network": nn.Sequential(*[nn.Linear(1, 1) for _ in range(4)])}},
            "; and [0-9]+ more. Delete",
        ),
    ],
)
def test_a_state_of_other_settings_is_refused(change, message, tmp_path):
    path = tmp_path / "s.pt"
    Line().loop(resume_from=path).run()
    before, line = path.read_bytes(), Line()
    loop = line.loop(**{"steps": 12} | change(line), resume_from=path)
    with pytest.raises(CheckpointError, match=message):
        loop.run()
    assert path.read_bytes() == before and loop.done == 0


def test_a_state_of_another_kind_of_device_is_refused(tmp_path):
    """A GPU's random numbers cannot be set on a CPU, nor the other way round."""
    path = tmp_path / "s.pt"
    Line().loop(resume_from=path, steps=5).run()
    state = resume.load_state(path)
    state["settings"]["device"] = "cuda"
    resume.save_state(path, state)
    with pytest.raises(CheckpointError, match=r"device is cuda there, cpu here\. Delete it"):
        Line().loop(resume_from=path).run()


def test_a_longer_run_continues_a_shorter_one_unless_a_schedule_was_told_its_length(tmp_path):
    whole, parted = Line(), Line()
    whole.loop(steps=10).run()
    Line().loop(steps=6, resume_from=tmp_path / "s.pt").run()
    parted.loop(
        steps=10, resume_from=tmp_path / "s.pt", save_every=1
    ).run()  # how often it is saved does not matter either
    assert_same(dict(parted.network.state_dict()), dict(whole.network.state_dict()))

    def scheduled(steps: int) -> Loop:
        line = Line()
        schedule = torch.optim.lr_scheduler.LinearLR(line.optimiser, total_iters=steps)
        return line.loop(steps=steps, resume_from=tmp_path / "t.pt", **other_parts(line, schedule=schedule))

    scheduled(6).run()
    with pytest.raises(CheckpointError, match="steps is 6 there, 10 here"):
        scheduled(10).run()


def test_an_optimiser_that_a_schedule_moved_still_fits_its_state(tmp_path):
    """As in a notebook, where only the cell with the loop is run again."""
    line = Line()
    schedule = torch.optim.lr_scheduler.StepLR(line.optimiser, 2)
    given = other_parts(line, schedule=schedule) | {"resume_from": tmp_path / "s.pt"}
    with pytest.raises(KeyboardInterrupt):
        line.loop(**given, hooks=[interrupt_at(5), lambda loop: schedule.step()]).run()
    assert line.optimiser.param_groups[0]["lr"] < 0.1
    loop = line.loop(**given)
    loop.run()
    assert loop.done == 10 and len(line.batches) == 10


# --- the order of the data


@given(n=st.integers(1, 30), batch_size=st.integers(1, 40), seed=st.integers(-3, 2**40), steps=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_every_epoch_is_a_permutation(n, batch_size, seed, steps):
    batches = [resume.batch_indices(step, n, batch_size, seed) for step in range(steps)]
    assert all(batch.dtype == torch.int64 and batch.shape == (batch_size,) for batch in batches)
    stream = torch.cat(batches)
    for start in range(0, len(stream) - n + 1, n):
        assert stream[start : start + n].sort().values.tolist() == list(range(n))
    assert len(set(stream[len(stream) // n * n :].tolist())) == len(stream) % n


def test_the_order_depends_on_seed_and_epoch_only():
    first, again, other = (resume.batch_indices(0, 50, 100, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[:50], first[50:])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    resume.batch_indices(7, 51, 100, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_of_all_kinds_reach_the_step_on_its_device(device):
    class Data:
        def __len__(self):
            return 5

        def __getitem__(self, indices):
            x = indices.double()
            return {"pair": (x, [indices]), "names": "abc"}

    seen = []

    def step(batch):
        seen.append(batch)
        return {"loss": 1.0}

    Loop(step, Data(), steps=2, batch_size=3, stateful={"network": nn.Linear(1, 1).to(device)}, seed=4).run()
    for number, batch in enumerate(seen):
        x, (indices,) = batch["pair"]
        assert indices.device.type == x.device.type == device.type and batch["names"] == "abc"
        assert indices.tolist() == resume.batch_indices(number, 5, 3, seed=4).tolist()
        assert x.dtype == torch.float64


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_data_that_are_not_finite_stop_the_run_at_their_loss(value, tmp_path):
    line = Line()
    line.x[7] = value
    loop = line.loop(batch_size=2, steps=6, title="line", resume_from=tmp_path / "s.pt")
    with pytest.raises(FloatingPointError, match=r"line: at step [1-6] loss is (nan|inf)\. .*NaN in the data"):
        loop.run()
    assert not (tmp_path / "s.pt").exists()  # nothing of it is kept


# --- losses


def test_the_history_holds_what_the_steps_returned():
    line = Line()
    loop = line.loop()
    seen = []
    loop.hooks = [lambda loop: seen.append((loop.done, dict(loop.losses), len(loop.history["loss"])))]
    assert loop.run() == {"loss": line.returned} == loop.history
    assert seen == [(k, {"loss": loss}, k) for k, loss in enumerate(line.returned, 1)]


def test_a_loss_need_not_be_there_at_every_step(tmp_path):
    line = Line()

    def step(x):
        found = line.step(x)
        return found | ({"penalty": 2, "double": torch.tensor([1 / 3])} if len(line.batches) % 3 == 2 else {})

    history = line.loop(step=step, steps=7, resume_from=tmp_path / "s.pt").run()
    assert [math.isnan(value) for value in history["penalty"]] == [k % 3 != 2 for k in range(1, 8)]
    assert history["penalty"][4] == 2 and history["double"][4] == pytest.approx(1 / 3)
    loaded = Line().loop(steps=7, resume_from=tmp_path / "s.pt").run()
    assert np.array_equal(loaded["penalty"], history["penalty"], equal_nan=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_stops_the_run(value, tmp_path):
    line = Line()

    def step(x):
        return line.step(x) | {"penalty": torch.tensor(value if len(line.batches) == 6 else 0.5)}

    loop = line.loop(step=step, resume_from=tmp_path / "s.pt", save_every=2, title="line")
    message = rf"line: at step 6 penalty is {value}\. A lower learning rate.* .*s\.pt holds the last whole state"
    with pytest.raises(FloatingPointError, match=message):
        loop.run()
    assert resume.load_state(tmp_path / "s.pt")["done"] == 4
    assert len(line.batches) == 6


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_weights_that_an_update_broke_are_not_kept(keep, average, tmp_path):
    """The loss is of before the update: finite, when the gradient of the saving step is not."""
    line, path = Line(), tmp_path / "s.pt"

    def step(x):
        found = line.step(x)
        if len(line.batches) == 6:
            broken = loop.averaged["network"] if average else line.network
            nn.init.constant_(broken.bias, math.nan)
        return found

    loop = line.loop(
        step=step, averages={"network": 0.9}, resume_from=path if keep else None, save_every=3, title="line"
    )
    names = "average of network.bias" if average else "network.bias, average of network.bias"
    kept = r".* .*s\.pt holds the last whole state\." if keep else ""
    message = rf"^line: after step 6 {names} hold NaN or infinity\. A lower learning rate.*1/0\.{kept}$"
    with pytest.raises(FloatingPointError, match=message):
        loop.run()
    assert path.exists() == keep
    if keep:
        assert resume.load_state(path)["done"] == 3


def test_a_gradient_that_is_no_number_at_the_last_step_is_noticed(tmp_path):
    """√0 has no slope: the loss is 0, the gradient NaN."""
    line = Line()

    def step(x):
        loss = (line.network(x) * 0).square().sum().sqrt()
        descend(loss, line.optimiser)
        return {"loss": loss}

    loop = line.loop(step=step, steps=1, resume_from=tmp_path / "s.pt")
    with pytest.raises(FloatingPointError, match=r"after step 1 network\.weight, network\.bias hold NaN"):
        loop.run()
    assert not (tmp_path / "s.pt").exists()


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "a step must return losses by name, as {'loss': loss}; got None"),
        ({}, "got {}"),
        (torch.ones(()), "got tensor"),
        ({"each": torch.ones(4)}, r"a loss is a scalar; 'each' has shape \(4,\)"),
    ],
)
def test_steps_must_return_named_scalars(returned, message):
    with pytest.raises(ValueError, match=message):
        Line().loop(step=lambda x: returned).run()


def test_losses_that_wait_on_a_device_lose_nothing():
    """As on a GPU, where the numbers are fetched only every few steps."""
    history = History()
    for k in range(5):
        history.add({"a": torch.tensor(float(k)), **({"b": k} if k > 2 else {})}, torch.device("cpu"))
    assert not history.values
    history.fetch()
    assert history.values["a"] == [0, 1, 2, 3, 4] and history.values["b"][3:] == [3, 4]
    assert [values[-1] for values in history.values.values()] == [4, 4]
    history.add({"a": 1.0}, torch.device("cpu"), interrupted=True)
    history.add({"a": math.nan}, torch.device("cpu"))
    with pytest.raises(FloatingPointError, match="at step 7 a is nan"):
        history.fetch()
    assert history.interrupted


def test_the_bar_shows_losses_with_three_digits(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", shown)
    Line().loop(step=lambda x: {"d": 0.123456, "g": 123456.0}, title="two players").run()
    assert "two players: 100%" in shown.getvalue() and "10/10" in shown.getvalue()
    assert "d=0.123, g=1.23e+5" in shown.getvalue() or "d=0.123, g=1.23e+05" in shown.getvalue()


def test_a_log_file_gets_no_bar(capfd):
    Line().loop().run()
    assert capfd.readouterr() == ("", "")


# --- moving averages


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_average_equals_a_slow_loop_in_doubles(decay):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.3)
    seen = []

    def step(x):
        loss = network(x).square().mean()
        descend(loss, optimiser)
        seen.append([p.detach().clone() for p in network.parameters()])
        return {"loss": loss}

    parts = {"network": network, "optimiser": optimiser}
    data = torch.randn(20, 3).double()
    loop = Loop(step, data, steps=40, batch_size=5, stateful=parts, averages={"network": decay})
    loop.run()
    expected = [[float(value) for value in p.flatten()] for p in seen[0]]
    for k, weights in enumerate(seen[1:], 1):
        d = min(decay, (1 + k) / (10 + k))
        for average, weight in zip(expected, weights, strict=True):
            for i, value in enumerate(weight.flatten().tolist()):
                average[i] = d * average[i] + (1 - d) * value
    averaged = loop.averaged["network"]
    for p, average in zip(averaged.parameters(), expected, strict=True):
        assert torch.allclose(p.flatten(), torch.tensor(average, dtype=torch.float64), rtol=1e-12, atol=1e-12)
        assert not p.requires_grad
    for name, buffer in network.named_buffers():
        assert torch.equal(averaged.get_buffer(name), buffer)
    assert averaged[1].num_batches_tracked == 40 and not averaged.training and network.training


# --- descend


@pytest.mark.parametrize("clip", [None, 0.01, 1e6])
def test_descend_equals_torchs_words(clip, device):
    torch.manual_seed(0)
    ours = nn.Linear(5, 3, device=device)
    theirs = copy.deepcopy(ours)
    x = torch.randn(7, 5, device=device)
    mine, other = (torch.optim.Adam(net.parameters(), lr=0.1) for net in (ours, theirs))
    for _ in range(3):
        descend(ours(x).square().sum(), mine, clip)
        other.zero_grad()
        theirs(x).square().sum().backward()
        before = torch.cat([p.grad.flatten() for p in theirs.parameters()])
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        other.step()
    assert_same(dict(ours.state_dict()), dict(theirs.state_dict()))
    norm = torch.cat([p.grad.flatten() for p in ours.parameters()]).norm()
    assert norm.item() == pytest.approx(min(clip or math.inf, before.norm().item()), rel=1e-4)


def test_descend_leaves_other_networks_alone_and_clears_what_they_left():
    torch.manual_seed(0)
    G, D = nn.Linear(2, 2), nn.Linear(2, 1)
    optimiser_G, optimiser_D = (torch.optim.SGD(net.parameters(), lr=0.1) for net in (G, D))
    frozen = copy.deepcopy(D.state_dict())
    z = torch.randn(4, 2)
    descend(D(G(z)).mean(), optimiser_G)
    assert_same(dict(D.state_dict()), dict(frozen))
    assert D.weight.grad is not None  # from the way through D
    expected = torch.autograd.grad(D(z).square().mean(), D.weight)[0]
    descend(D(z).square().mean(), optimiser_D)
    assert torch.equal(D.weight.grad, expected)


def test_descend_refuses_a_loss_of_another_network():
    G, D = nn.Linear(2, 2), nn.Linear(2, 1)
    with pytest.raises(ValueError, match="depends on none of this optimiser's parameters"):
        descend(D(torch.ones(1, 2)).mean(), torch.optim.SGD(G.parameters(), lr=0.1))


def test_a_second_loss_sees_the_new_weights_under_autocast():
    """Autocast rounds a weight once and keeps the copy; descend has to make it forget."""
    torch.manual_seed(0)
    network, x = nn.Linear(8, 8), torch.randn(4, 8)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        before = network(x)
        descend(before.square().mean(), optimiser)
        after = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(after, network(x)) and not torch.equal(after, before)


# --- hooks


@pytest.mark.parametrize(("n", "expected"), [(1, list(range(1, 11))), (3, [3, 6, 9, 10]), (5, [5, 10]), (99, [10])])
def test_every_so_many_steps_and_at_the_end(n, expected):
    seen = []
    Line().loop(hooks=[every(n, lambda loop: seen.append(loop.done))]).run()
    assert seen == expected


def test_watching_does_not_change_the_training(device):
    def weights(hooks) -> dict:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).to(device)
        optimiser = torch.optim.SGD(network.parameters(), lr=0.1)

        def step(x):
            loss = network(x).square().mean()
            descend(loss, optimiser)
            return {"loss": loss}

        Loop(step, torch.randn(9, 4), steps=6, batch_size=3, stateful={"network": network}, hooks=hooks).run()
        return {name: tensor.cpu() for name, tensor in network.state_dict().items()}

    draw = every(2, lambda loop: torch.randn(7, device=device))
    assert_same(weights([draw]), weights([]))


# --- arguments


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be a whole number from 1; got 0"),
        ({"steps": 1e4}, TypeError, "steps must be a whole number; got 10000.0"),
        ({"batch_size": -1}, ValueError, "batch_size must be a whole number from 1; got -1"),
        ({"save_every": 0}, ValueError, "save_every must be a whole number from 1; got 0"),
        ({"seed": None}, TypeError, "seed must be a whole number; got None"),
        ({"data": torch.ones(0, 3)}, ValueError, "samples must be a whole number from 1; got 0"),
        ({"data": iter([])}, TypeError, "len"),
        ({"stateful": {"network": 3}}, TypeError, "'network' needs state_dict and load_state_dict; got int"),
        ({"averages": {"other": 0.9}}, ValueError, "'other' must be a module in stateful"),
        ({"averages": {"optimiser": 0.9}}, ValueError, "'optimiser' must be a module in stateful"),
        ({"averages": {"network": 1.0}}, ValueError, r"decay in \[0, 1\); got 1.0"),
    ],
)
def test_arguments_are_checked(changes, error, message):
    with pytest.raises(error, match=message):
        Line().loop(**changes)


@pytest.mark.parametrize("five", [np.int64(5), np.uint8(5), torch.tensor(5)])
def test_whole_numbers_of_numpy_and_torch_are_pythons(five, tmp_path):
    line = Line()
    loop = line.loop(steps=five, batch_size=five, seed=five, save_every=five, resume_from=tmp_path / "s.pt")
    loop.run()
    assert all(type(number) is int for number in (loop.steps, loop.batch_size, loop.seed, loop.save_every))
    assert Line().loop(steps=5, batch_size=5, seed=5, resume_from=tmp_path / "s.pt").run() == loop.history


def numbers_of_numpy(line: Line) -> dict:
    rate = np.logspace(-3, -1, 3)[1]
    return {
        "lr": (torch.optim.SGD(line.network.parameters(), lr=rate), r"optimiser\['param_groups'\]\[0\]\['lr'\]"),
        "betas": (
            torch.optim.Adam(line.network.parameters(), lr=0.1, betas=(np.float64(0.5), 0.9)),
            r"optimiser\['param_groups'\]\[0\]\['betas'\]\[0\]",
        ),
        "gamma": (torch.optim.lr_scheduler.StepLR(line.optimiser, 2, gamma=rate), r"optimiser\['gamma'\]"),
    }


@pytest.mark.parametrize("name", ["lr", "betas", "gamma"])
def test_a_number_of_numpys_in_a_state_is_refused_before_training(name, tmp_path):
    """Else the first save would fail, after 500 steps."""
    line = Line()
    thing, where = numbers_of_numpy(line)[name]
    given = {"stateful": {"network": line.network, "optimiser": thing}}
    with pytest.raises(TypeError, match=rf"only tensors, Python's numbers and text; {where} is numpy\.float(32|64)"):
        line.loop(**given, resume_from=tmp_path / "s.pt")
    line.loop(**given).run()  # where nothing is saved, it does no harm


def test_a_function_in_a_state_is_refused_before_training(tmp_path):
    class WithFunction:
        def state_dict(self):
            return {"shape": [lambda x: x]}

        def load_state_dict(self, state):
            pass

    line = Line()
    with pytest.raises(TypeError, match=r"rule\['shape'\]\[0\] is builtins\.function"):
        line.loop(**other_parts(line, rule=WithFunction()), resume_from=tmp_path / "s.pt")
    schedule = torch.optim.lr_scheduler.LambdaLR(line.optimiser, lambda done: 0.9**done)  # keeps no function
    line.loop(**other_parts(line, schedule=schedule), resume_from=tmp_path / "s.pt").run()


def test_parts_on_two_devices_are_refused():
    with pytest.raises(ValueError, match="must lie on one device; 'network' on cpu, 'other' on meta"):
        Line().loop(stateful={"network": nn.Linear(1, 1), "other": nn.Linear(1, 1, device="meta")})


def test_a_number_in_a_state_lies_nowhere():
    class Counting(nn.Linear):
        def get_extra_state(self):
            return torch.tensor(3)  # on the CPU, wherever the weights are

        def set_extra_state(self, state):
            pass

    assert resume.device_of({"network": Counting(1, 1, device="meta")}) == torch.device("meta")


def test_a_generator_lies_where_the_network_does(device):
    line = Line(device)
    rng = torch.Generator(device)
    loop = line.loop(**other_parts(line, rng=rng))
    loop.run()
    assert loop.done == 10 and loop.device == next(line.network.parameters()).device


def test_every_refuses_less_than_one_step():
    with pytest.raises(ValueError, match="n must be 1 step or more; got 0"):
        every(0, print)


# --- several processes

JOINT = """
import json, os, sys
import torch
from torch import nn
from course_lib.base import distributed, runtime
from course_lib.base.loop import Loop, descend

def train(folder, steps=6):
    first = int(os.environ.get("RANK", 0)) == 0
    torch.manual_seed(0 if first else 99)  # other processes start elsewhere, and must be brought together
    G, D = (nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, n)).double() for n in (3, 1))
    G_optimiser, D_optimiser = torch.optim.Adam(G.parameters(), 1e-2), torch.optim.SGD(D.parameters(), 0.1)
    norm, noise = nn.BatchNorm1d(3).double(), torch.Generator().manual_seed(7)
    gradients, drawn = [], []

    def step(x):
        drawn.append(torch.randn(2, generator=noise).tolist() + torch.rand(1).tolist())
        norm(x)
        d = nn.functional.softplus(D(G(x).detach())).mean() + nn.functional.softplus(-D(x)).mean()
        descend(d, D_optimiser, clip=0.4)
        of_D = [p.grad.clone() for p in D.parameters()]
        g = nn.functional.softplus(-D(G(x))).mean()
        descend(g, G_optimiser)
        gradients.append(of_D + [p.grad.clone() for p in G.parameters()])
        return {"d": d, "g": g}

    data = torch.randn(30, 3, generator=torch.Generator().manual_seed(1)).double()
    parts = {"G": G, "D": D, "G_optimiser": G_optimiser, "D_optimiser": D_optimiser, "norm": norm, "noise": noise}
    loop = Loop(step, data, steps=steps, batch_size=8, stateful=parts, averages={"G": 0.9},
                resume_from=f"{folder}/state.pt")
    history = loop.run()
    together = distributed.processes()
    result = {"gradients": gradients, "weights": [dict(net.state_dict()) for net in (G, D, loop.averaged["G"], norm)],
              "history": history, "drawn": drawn, "count": together.num_processes, "main": together.is_main_process}
    torch.save(result, f"{folder}/{together.process_index}_{steps}.pt")

if __name__ == "__main__":
    for steps in map(int, sys.argv[2:]):
        train(sys.argv[1], steps)
"""


@pytest.fixture(scope="module")
def joint(tmp_path_factory) -> tuple[dict[str, list[dict]], Path]:
    """The script's results: alone, and of each of two processes, which then go on from their state as a new loop."""
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("joint")
    script = folder / "script.py"
    script.write_text(JOINT)
    alone = folder / "alone"
    alone.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_PRECISION", "float32")
        patch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
        runpy.run_path(str(script))["train"](str(alone))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COURSE_PRECISION": "float32", "COURSE_DEVICE": "cpu"}
    done = subprocess.run(
        [*launch, "--main_process_port", "0", str(script), str(folder), "4", "6"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    loaded = {
        "alone": [torch.load(alone / "0_6.pt")],
        "first": [torch.load(folder / f"{rank}_4.pt") for rank in range(2)],
        "then": [torch.load(folder / f"{rank}_6.pt") for rank in range(2)],
    }
    return loaded, folder


def close(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=1e-10, atol=1e-12) for x, y in zip(a, b, strict=True))


def test_two_processes_give_the_gradients_of_one_with_the_joint_batch(joint):
    (alone,), pair = joint[0]["alone"], joint[0]["first"]
    assert [result["count"] for result in pair] == [2, 2] and [result["main"] for result in pair] == [True, False]
    for result in pair:
        assert all(close(*both) for both in zip(result["gradients"], alone["gradients"][:4], strict=True))
        for name in ("d", "g"):
            assert result["history"][name] == pytest.approx(alone["history"][name][:4], rel=1e-10)
    assert_same(pair[0]["weights"], pair[1]["weights"])  # bit for bit, BatchNorm's statistics too


def test_two_processes_resume_together(joint):
    (alone,), pair = joint[0]["alone"], joint[0]["then"]
    for result in pair:
        assert len(result["gradients"]) == 2  # steps 5 and 6
        assert all(close(*both) for both in zip(result["gradients"], alone["gradients"][4:], strict=True))
        for ours, theirs in zip(result["weights"][:3], alone["weights"][:3], strict=True):
            assert close(list(ours.values()), list(theirs.values()))
    assert_same(pair[0]["weights"], pair[1]["weights"])


def test_two_processes_draw_their_own_noise(joint):
    (alone,), first, then = joint[0]["alone"], joint[0]["first"], joint[0]["then"]
    assert [row[:2] for row in first[0]["drawn"] + then[0]["drawn"]] == [row[:2] for row in alone["drawn"]]
    other = first[1]["drawn"] + then[1]["drawn"]
    numbers = {number for row in alone["drawn"] + other for number in row}
    assert len(numbers) == 3 * (len(alone["drawn"]) + len(other))  # all different, also after the resumption


def test_the_state_of_two_processes_is_not_taken_up_by_one(joint):
    _, folder = joint
    with pytest.raises(CheckpointError, match="processes is 2 there, 1 here"):
        runpy.run_path(str(folder / "script.py"))["train"](str(folder))


def test_processes_must_be_able_to_share_a_batch(monkeypatch):
    monkeypatch.setattr(distributed, "processes", lambda: SimpleNamespace(num_processes=3))
    with pytest.raises(ValueError, match="3 processes cannot share a batch of 4 equally"):
        Line().loop()


def test_a_process_alone_needs_no_accelerate(monkeypatch):
    """A machine's queue may set WORLD_SIZE for a process that nobody launched together with others."""
    monkeypatch.setitem(sys.modules, "accelerate", None)
    distributed.processes.cache_clear()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    tensor = torch.ones(2)
    alone = distributed.processes()
    assert (alone.num_processes, alone.process_index, alone.is_main_process) == (1, 0, True)
    distributed.average([tensor])
    distributed.copy_from_main([tensor])
    assert tensor.tolist() == [1, 1] and distributed.gather("thing") == ["thing"]
    distributed.processes.cache_clear()
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ImportError, match="accelerate"):
        distributed.processes()
    distributed.processes.cache_clear()


# --- the number of threads


@pytest.mark.parametrize("resumable", [False, True])
def test_the_number_of_threads_stays_where_a_run_can_be_resumed(resumable, tmp_path, monkeypatch):
    """So that a resumed run goes on with the same sums, whatever the clock says then."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(loop_module.runtime, "BLOCK", 0.0)  # one step each is timed
    line, seen = Line(), []

    def step(x):
        seen.append(torch.get_num_threads())
        time.sleep(0.01 * (seen[-1] == 2))
        return line.step(x)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        line.loop(step=step, steps=14, resume_from=tmp_path / "s.pt" if resumable else None).run()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [2] * 14 if resumable else seen == [2, 2, 1, 1] * 2 + [1] * 6


def test_an_average_in_half_precision_is_refused():
    """It would stand still: a thousandth of a step is less than half of its last digit."""
    network = nn.Linear(1, 1).bfloat16()
    with pytest.raises(ValueError, match="half precision"):
        Loop(lambda batch: {"loss": batch.mean()}, torch.rand(4, 1), steps=1, batch_size=2,
             stateful={"network": network}, averages={"network": 0.999})  # fmt: skip


@pytest.mark.parametrize("kind", ["list", "samples", "DataLoader", "Subset"])
def test_data_that_give_no_batches_are_named(kind):
    class Samples(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return torch.ones(2), int(index)

    tensors = torch.utils.data.TensorDataset(torch.ones(8, 2))
    data = {
        "list": [torch.ones(2)] * 8,
        "samples": Samples(),
        "DataLoader": torch.utils.data.DataLoader(tensors, 4),
        "Subset": torch.utils.data.Subset(tensors, range(8)),
    }[kind]
    loop = Loop(lambda batch: {"loss": batch[0].mean()}, data, steps=1, batch_size=2, stateful={})
    name = type(data).__name__
    with pytest.raises(TypeError, match=rf"data\[indices\].* must give a batch, as of a TensorDataset; {name}: "):
        loop.run()
