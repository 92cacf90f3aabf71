import io
import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course_lib.base import checkpoints
from course_lib.base.checkpoints import CheckpointError

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]
HISTORY = {"recipe": "python recipes/x.py", "seed": 3, "score": {"loss": 0.25}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, bytes]:
    """A small checkpoint: where it lies and its bytes."""
    path = tmp_path_factory.mktemp("whole") / "small.safetensors"
    tensors = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2, dtype=torch.float16)}
    checkpoints.save(path, tensors, **HISTORY)
    return path, path.read_bytes()


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def random_tensor(shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    values = torch.randn(shape) * 100
    return values > 0 if dtype == torch.bool else values.abs().to(dtype)


# --- save and load


@given(
    tensors=st.dictionaries(
        st.text("abé_. 0", min_size=1, max_size=8),
        st.builds(random_tensor, st.lists(st.integers(0, 4), max_size=4), st.sampled_from(DTYPES)),
        max_size=5,
    )
)
@settings(max_examples=60, deadline=None)
def test_load_returns_what_was_saved(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("round") / "trip.safetensors"
    checkpoints.save(path, tensors, **HISTORY, data="digits", tries=[1, 2])
    loaded, metadata = checkpoints.load(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert torch.equal(loaded[name], tensor)
    assert metadata.pop("sha256").isalnum()
    assert metadata == {
        "recipe": "python recipes/x.py",
        "seed": "3",
        "score": '{"loss": 0.25}',
        "data": "digits",
        "tries": "[1, 2]",
    }


def test_save_takes_any_memory_layout_and_device(tmp_path, device):
    weight = torch.randn(4, 3, 2, 2, device=device)
    tensors = {
        "tied": weight,
        "to this": weight,
        "transposed": weight.mT,
        "part": weight[1:, ::2],
        "expanded": weight[:1].expand(5, -1, -1, -1),
        "channels last": weight.to(memory_format=torch.channels_last),
        "with gradient": nn.Parameter(weight),
    }
    checkpoints.save(tmp_path / "a.safetensors", tensors, **HISTORY)
    loaded, _ = checkpoints.load(tmp_path / "a.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor.detach().cpu()), name
        assert not loaded[name].requires_grad


def test_loaded_tensors_are_free_of_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoints.save(path, {"w": torch.ones(3)}, **HISTORY)
    loaded, _ = checkpoints.load(path)
    loaded["w"].zero_()
    checkpoints.save(path, {"w": torch.full((3,), 2.0)}, **HISTORY)
    assert loaded["w"].tolist() == [0, 0, 0]
    assert checkpoints.load(path)[0]["w"].tolist() == [2, 2, 2]


def test_the_file_is_plain_safetensors(whole):
    path, _ = whole
    assert safetensors.torch.load_file(path)["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_save_is_repeatable(tmp_path, whole):
    checkpoints.save(tmp_path / "b.safetensors", checkpoints.load(whole[0])[0], **HISTORY)
    again, first = (checkpoints.load(path)[1]["sha256"] for path in (tmp_path / "b.safetensors", whole[0]))
    assert again == first


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_save_refuses_weights_that_are_not_finite(value, dtype, tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoints.save(path, {"good": torch.ones(2)}, **HISTORY)
    with pytest.raises(ValueError, match=r"'layer\.bad'"):
        tensors = {"good": torch.ones(2), "layer.bad": torch.tensor([0, value], dtype=dtype)}
        checkpoints.save(path, tensors, **HISTORY)
    assert list(checkpoints.load(path)[0]) == ["good"]
    assert list(tmp_path.iterdir()) == [path]


def test_save_refuses_other_arguments(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match=r"\.safetensors"):
        checkpoints.save(tmp_path / "a.pth", {}, **HISTORY)
    with pytest.raises(TypeError, match="'w' is list"):
        checkpoints.save(path, {"w": [1.0]}, **HISTORY)
    with pytest.raises(TypeError, match="JSON"):
        checkpoints.save(path, {}, **HISTORY, other=object())
    with pytest.raises(ValueError, match="sha256"):
        checkpoints.save(path, {}, **HISTORY, sha256="0")
    assert not list(tmp_path.iterdir())


def test_write_atomically_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    checkpoints.write_atomically(path, b"old")

    def fail(*arguments):
        raise OSError("no space")

    monkeypatch.setattr(checkpoints.os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        checkpoints.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    """Else a power cut may leave the new name with an empty file behind it."""
    calls, fsync, replace = [], os.fsync, os.replace

    def watched_fsync(descriptor):
        calls.append(("fsync", os.fstat(descriptor).st_size))  # nothing waits in Python's buffer any more
        fsync(descriptor)

    def watched_replace(source, target):
        calls.append(("replace", Path(source).stat().st_size))
        replace(source, target)

    monkeypatch.setattr(checkpoints.os, "fsync", watched_fsync)
    monkeypatch.setattr(checkpoints.os, "replace", watched_replace)
    checkpoints.write_atomically(tmp_path / "file", b"eight of")
    assert calls == [("fsync", 8), ("replace", 8)] and (tmp_path / "file").read_bytes() == b"eight of"


# --- names


def test_a_bare_name_is_a_shipped_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "folder", lambda: tmp_path / "shipped")
    checkpoints.save(tmp_path / "shipped" / "tiny.safetensors", {"w": torch.ones(1)}, **HISTORY)
    checkpoints.save(tmp_path / "tiny.safetensors", {"w": torch.zeros(1)}, **HISTORY)
    monkeypatch.chdir(tmp_path)
    assert checkpoints.load("tiny")[0]["w"] == 1
    for path in ("tiny.safetensors", "./tiny.safetensors", Path("tiny.safetensors")):
        assert checkpoints.load(path)[0]["w"] == 0


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"no-such\.safetensors"):
        checkpoints.load("no-such")


def test_folder_is_the_repositorys_or_the_packages(tmp_path, monkeypatch):
    module = tmp_path / "course_lib" / "base" / "checkpoints.py"
    monkeypatch.setattr(checkpoints, "__file__", str(module))
    assert checkpoints.folder() == tmp_path / "data" / "checkpoints"
    inside = tmp_path / "course_lib" / "data" / "checkpoints"
    inside.mkdir(parents=True)
    assert checkpoints.folder() == inside


# --- damage


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_no_changed_byte_goes_unseen(data, whole, tmp_path_factory):
    path, content = whole
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    copy = tmp_path_factory.getbasetemp() / "changed.safetensors"
    copy.write_bytes(changed)
    try:
        tensors, metadata = checkpoints.load(copy)
    except CheckpointError as error:
        assert "changed.safetensors" in str(error)
        return
    expected, facts = checkpoints.load(path)
    assert metadata.items() >= facts.items()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert tensors.keys() == expected.keys()


def test_every_changed_bit_of_the_weights_and_the_history_is_seen(whole, tmp_path):
    _, content = whole
    header = 8 + int.from_bytes(content[:8], "little")
    facts = content.index(b"recipes/x.py")
    for position in [
        *range(header, len(content)),
        facts,
        content.index(b"0.25"),
        content.index(b"sha256") + 12,
    ]:
        for bit in range(8):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            (tmp_path / "changed.safetensors").write_bytes(changed)
            with pytest.raises(CheckpointError):
                checkpoints.load(tmp_path / "changed.safetensors")


@pytest.mark.parametrize(("old", "new"), [(b'"F32"', b'"I32"'), (b"[2,3]", b"[3,2]"), (b'"weight"', b'"height"')])
def test_numbers_read_as_something_else_are_seen(old, new, whole, tmp_path):
    _, content = whole
    assert content.count(old) == 1
    (tmp_path / "changed.safetensors").write_bytes(content.replace(old, new))
    with pytest.raises(CheckpointError, match="SHA-256"):
        checkpoints.load(tmp_path / "changed.safetensors")


def test_no_cut_goes_unseen(whole, tmp_path):
    _, content = whole
    for length in range(len(content)):
        (tmp_path / "cut.safetensors").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
            checkpoints.load(tmp_path / "cut.safetensors")


def test_load_refuses_a_pickle_without_running_it(tmp_path):
    marker = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return Path.touch, (marker,)

    stream = io.BytesIO()
    torch.save({"w": torch.ones(2)}, stream)
    for content in (stream.getvalue(), pickle.dumps(Trap())):
        (tmp_path / "model.pth").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.pth is not a whole safetensors file"):
            checkpoints.load(tmp_path / "model.pth")
    assert not marker.exists()


@pytest.mark.parametrize("metadata", [None, {"recipe": "r", "seed": "0", "score": "1"}, {"sha256": "0"}])
def test_load_refuses_a_file_without_its_history(metadata, tmp_path):
    path = tmp_path / "bare.safetensors"
    safetensors.torch.save_file({"w": torch.ones(2)}, path, metadata)
    with pytest.raises(CheckpointError, match=r"bare\.safetensors lacks"):
        checkpoints.load(path)


# --- restore


def test_restore_fills_the_module_and_returns_the_metadata(tmp_path, device):
    path = tmp_path / "m.safetensors"
    source, target = small(), small().to(device)
    source[1].running_mean.fill_(0.5)
    checkpoints.save(path, source.state_dict(), **HISTORY)
    metadata = checkpoints.restore(target, path)
    assert json.loads(metadata["score"]) == {"loss": 0.25}
    for name, tensor in target.state_dict().items():
        assert tensor.device.type == device.type
        assert torch.equal(tensor.cpu(), source.state_dict()[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_restore_widens_half_precision(dtype, tmp_path):
    path = tmp_path / "m.safetensors"
    source, target = small().to(dtype), small()
    checkpoints.save(path, source.state_dict(), **HISTORY)
    checkpoints.restore(target, path)
    assert target[0].weight.dtype == torch.float32
    assert torch.equal(target[0].weight, source[0].weight.float())
    assert target[1].num_batches_tracked.dtype == torch.int64


def replaced(state: dict, **changes) -> dict:
    return {name: tensor for name, tensor in {**state, **changes}.items() if tensor is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.bias": None}, r"0\.bias is missing there, floats \(4,\) here"),
        ({"extra": torch.ones(1)}, r"extra is floats \(1,\) there, missing here"),
        ({"0.bias": torch.ones(5)}, r"0\.bias is floats \(5,\) there, floats \(4,\) here"),
        ({"0.bias": torch.ones(4, 1)}, r"0\.bias is floats \(4, 1\) there"),
        ({"0.bias": torch.ones(4, dtype=torch.int64)}, r"0\.bias is torch\.int64 \(4,\) there, floats \(4,\) here"),
    ],
)
def test_restore_refuses_what_does_not_fit_and_changes_nothing(change, message, tmp_path):
    path = tmp_path / "m.safetensors"
    checkpoints.save(path, replaced(small().state_dict(), **change), **HISTORY)
    target = small()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"m\.safetensors does not fit Sequential: {message}"):
        checkpoints.restore(target, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_restore_lists_only_the_first_differences(tmp_path):
    path = tmp_path / "m.safetensors"
    checkpoints.save(path, {}, **HISTORY)
    with pytest.raises(CheckpointError, match=r"missing.*; and 3 more"):
        checkpoints.restore(small(), path)


def test_facts_may_be_numbers_of_numpy_and_torch(tmp_path):
    facts = {"seed": np.int64(3), "score": {"accuracy": np.float32(0.5), "n": torch.tensor(7)}}
    checkpoints.save(tmp_path / "a.safetensors", {"w": torch.zeros(1)}, recipe="make", **facts)
    metadata = checkpoints.load(tmp_path / "a.safetensors")[1]
    assert metadata["seed"] == "3" and json.loads(metadata["score"]) == {"accuracy": 0.5, "n": 7}
    with pytest.raises(TypeError, match="text or what JSON can hold; got ndarray"):
        checkpoints.save(tmp_path / "b.safetensors", {}, recipe="make", seed=0, score={"all": np.zeros(2)})
