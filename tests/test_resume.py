"""base/resume.py: the file of a training's state. What the loop does with it is in test_loop.py."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course_lib.base import checkpoints, resume
from course_lib.base.checkpoints import CheckpointError

STATE = {
    "weights": {"w": torch.arange(6.0).view(2, 3), "count": torch.tensor(3)},
    "numbers": [1, 2.5, None, True, "text", (1, (2, 3))],
}


def test_a_state_comes_back_as_it_was(tmp_path, device):
    path = tmp_path / "new" / "run.pt"
    resume.save_state(path, {**STATE, "there": torch.ones(2, device=device)})
    loaded = resume.load_state(path)
    assert loaded["numbers"] == STATE["numbers"] and loaded["weights"]["count"].dtype == torch.int64
    assert torch.equal(loaded["weights"]["w"], STATE["weights"]["w"])
    assert loaded["there"].device.type == "cpu"
    assert list(path.parent.iterdir()) == [path]


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_no_changed_byte_of_a_state_goes_unseen(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "changed.pt"
    resume.save_state(path, STATE)
    content = path.read_bytes()
    changed = bytearray(content)
    changed[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    cut = content[: data.draw(st.integers(0, len(content) - 1))]
    for damaged in (bytes(changed), cut, content + b"!"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"changed\.pt is (damaged|not a training state)"):
            resume.load_state(path)


def test_load_state_runs_no_code_and_takes_no_other_file(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    stream = io.BytesIO()
    torch.save({"w": torch.ones(2), "trap": Trap()}, stream)
    for content in (stream.getvalue(), pickle.dumps(Trap()), b"PK", b""):
        (tmp_path / "other.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"other\.pt is not a training state"):
            resume.load_state(tmp_path / "other.pt")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        resume.load_state(tmp_path / "none.pt")


def test_a_state_that_could_not_be_loaded_is_not_saved(tmp_path):
    path = tmp_path / "run.pt"
    resume.save_state(path, STATE)
    before = path.read_bytes()
    for thing in (Path("x"), nn.Linear(1, 1), torch.Generator(), io.BytesIO, lambda x: x, np.float64(1), np.zeros(2)):
        kind = f"{type(thing).__module__}.{type(thing).__name__}"
        with pytest.raises(TypeError, match=rf"only tensors, .*; state\['thing'\]\[1\] is {kind}$"):
            resume.save_state(path, {"w": STATE, "thing": [1, thing]})
    assert path.read_bytes() == before


def test_a_failed_write_of_a_state_keeps_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    resume.save_state(path, STATE)

    def fail(*arguments):
        raise OSError("no space")

    monkeypatch.setattr(checkpoints.os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        resume.save_state(path, {"w": torch.zeros(5)})
    assert resume.load_state(path)["numbers"] == STATE["numbers"]
    assert list(tmp_path.iterdir()) == [path]
