"""base/canvas.py, without a browser: the drawing on its way, the answer, and what is refused."""

import importlib
import io
import sys

import numpy as np
import pytest
import torch
import traitlets
from conftest import uniform
from PIL import Image

from course_lib.base import canvas


def drawing(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (uniform(*shape, seed=seed) < 0.3).to(dtype)


def answered(made: canvas.Canvas) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(made.answer)))


def test_a_drawing_there_and_back():
    first, second = drawing(1, 1, 5, 7), drawing(1, 1, 5, 7, seed=1, dtype=torch.bfloat16).transpose(2, 3).mT
    made = canvas.Canvas(lambda lines: lines, {"a": first, "b": second})
    assert torch.equal(made.lines(), first) and made.lines().dtype == torch.float32, "the first one is there"
    assert made.value == bytes(first.byte().flatten().tolist()), "row by row"
    assert made.starts == made.value + bytes(second.byte().flatten().tolist()) and made.names == ["a", "b"]
    assert made.shape == (5, 7)
    made.value = memoryview(made.starts[35:])  # as it comes from the front end
    assert torch.equal(made.lines(), second.float())
    made.lines().zero_()
    assert torch.equal(made.lines(), second.float()), "a copy"


def test_the_answer_is_renewed_and_rounded_to_8_bits():
    seen, colours = [], uniform(1, 3, 6, 4, dtype=torch.float32)

    def respond(lines):
        seen.append(lines)
        return colours * lines.mean()

    made = canvas.Canvas(respond, {"all": torch.ones(1, 1, 4, 4)})
    assert [lines.shape for lines in seen] == [(1, 1, 4, 4)]
    right = (255 * colours[0]).round().byte().permute(1, 2, 0)
    assert torch.equal(torch.as_tensor(answered(made)), right)
    made.value = bytes([1, 1, 0, 0] * 4)
    assert len(seen) == 2 and torch.equal(seen[1], made.lines())
    assert torch.equal(torch.as_tensor(answered(made)), (255 * colours[0] / 2).round().byte().permute(1, 2, 0))
    made.value = made.value
    assert len(seen) == 2, "nothing new"


def test_an_error_is_told_and_the_next_drawing_answered():
    def respond(lines):
        if not lines.any():
            raise ValueError("nothing drawn")
        return lines

    made = canvas.Canvas(respond, {"a": torch.ones(1, 1, 2, 2)})
    before = made.answer
    made.value = bytes(4)
    assert made.problem == "ValueError: nothing drawn" and made.answer == before
    made.value = bytes([1, 0, 0, 0])
    assert made.problem == "" and answered(made)[..., 0].tolist() == [[255, 0], [0, 0]]


@pytest.mark.parametrize("value", [b"", bytes(3), bytes(5), bytes([0, 1, 2, 1]), bytes([255] * 4), 3])
def test_bytes_that_are_no_drawing(value):
    made = canvas.Canvas(lambda lines: lines, {"a": torch.ones(1, 1, 2, 2)})
    with pytest.raises(traitlets.TraitError, match="expected 4 bytes of 0 and 1, got"):
        made.value = value
    assert made.value == bytes([1] * 4)


@pytest.mark.parametrize(
    ("starts", "error", "match"),
    [
        ({}, ValueError, "expected drawings of one size, got none"),
        ({"a": torch.ones(1, 1, 2, 2), "b": torch.ones(1, 1, 2, 3)}, ValueError, r"one size, got \[\(2, 2\), \(2, 3\)"),
        ({"a": torch.ones(64, 64)}, ValueError, r"\(B, C, H, W\)"),
        ({"a": torch.ones(1, 3, 4, 4)}, ValueError, r"expected a drawing \(1, 1, H, W\), got \(1, 3, 4, 4\)"),
        ({"a": torch.ones(2, 1, 4, 4)}, ValueError, r"expected a drawing \(1, 1, H, W\), got \(2, 1, 4, 4\)"),
        ({"a": torch.full((1, 1, 4, 4), 0.5)}, ValueError, "0 and 1 alone"),
        ({"a": torch.full((1, 1, 4, 4), torch.nan)}, ValueError, "0 and 1 alone"),
        ({"a": torch.ones(1, 1, 4, 4, dtype=torch.uint8)}, TypeError, "floating-point"),
        ({"a": "cat"}, TypeError, "floating-point"),
    ],
)
def test_what_is_no_drawing(starts, error, match):
    with pytest.raises(error, match=match):
        canvas.Canvas(lambda lines: lines, starts)


def test_without_anywidget_its_name_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "course_lib.base.canvas")
    with pytest.raises(ModuleNotFoundError, match="pip install anywidget, then start Jupyter again"):
        importlib.import_module("course_lib.base.canvas")
