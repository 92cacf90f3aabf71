"""A canvas in the notebook: lines drawn by hand on a grid of pixels, and beside them what a network answers.

Its front end is `canvas.js`. Where none is alive (GitHub, PDF), nothing of it shows; show a figure as well.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import traitlets
from PIL import Image
from torch import Tensor

from course_lib.base.images import check_batch, to_array

try:
    import anywidget
except ModuleNotFoundError as error:
    if error.name != "anywidget":
        raise
    raise ModuleNotFoundError(
        "the canvas needs the package anywidget: pip install anywidget, then start Jupyter again", name="anywidget"
    ) from error


class Canvas(anywidget.AnyWidget):
    """Pixels to draw on, enlarged, and the answer to them, renewed while one draws; as the last value of a cell.

    The pen is one pixel wide. There are an eraser, undo (of a stroke, or of a button), clear, and a button for each of
    the given drawings; the first of them is there at the start. An error of `respond` is shown below.

    Args:
        respond: takes the drawing, (1, 1, H, W) of 0 and 1, and returns an image (1, C, h, w) in [0, 1], C of 1 or 3.
        starts: drawings (1, 1, H, W) by name, all of one size.

    Attributes:
        value: the drawing as H·W bytes of 0 and 1, row by row; may be set and observed.

    Raises:
        TypeError: drawings that are no floats.
        ValueError: no drawings, of another shape, of different sizes, or of other values than 0 and 1.
        traitlets.TraitError: a `value` of another length, or with other bytes.
    """

    _esm = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
    shape = traitlets.Tuple(traitlets.Int(), traitlets.Int()).tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    starts = traitlets.Bytes().tag(sync=True)
    value = traitlets.CBytes().tag(sync=True)  # the front end sends a memoryview
    answer = traitlets.Bytes().tag(sync=True)  # a PNG file
    problem = traitlets.Unicode().tag(sync=True)

    def __init__(self, respond: Callable[[Tensor], Tensor], starts: Mapping[str, Tensor]) -> None:
        drawings = [_to_bytes(drawing) for drawing in starts.values()]
        sizes = {tuple(drawing.shape[2:]) for drawing in starts.values()}
        if len(sizes) != 1:
            raise ValueError(f"expected drawings of one size, got {sorted(sizes) or 'none'}")
        (shape,) = sizes
        super().__init__(shape=shape, names=list(starts), starts=b"".join(drawings), value=drawings[0])
        self._respond = respond
        self.observe(self._renew, names="value")
        self._renew()

    def lines(self) -> Tensor:
        """The drawing, (1, 1, H, W) float32 of 0 and 1."""
        return torch.frombuffer(bytearray(self.value), dtype=torch.uint8).view(1, 1, *self.shape).float()

    @traitlets.validate("value")
    def _check(self, proposal: dict) -> bytes:
        value, (H, W) = bytes(proposal["value"]), self.shape
        if len(value) != H * W or set(value) - {0, 1}:
            raise traitlets.TraitError(f"expected {H * W} bytes of 0 and 1, got {len(value)} of {sorted(set(value))}")
        return value

    def _renew(self, _: object = None) -> None:
        try:
            image, file = to_array(self._respond(self.lines())), io.BytesIO()
            Image.fromarray((255 * image).round().astype("uint8")).save(file, "PNG")
        except Exception as error:  # in a widget's callback nobody would see it
            self.problem = f"{type(error).__name__}: {error}"
        else:
            self.answer, self.problem = file.getvalue(), ""


def _to_bytes(drawing: Tensor) -> bytes:
    check_batch(drawing)
    if drawing.shape[:2] != (1, 1):
        raise ValueError(f"expected a drawing (1, 1, H, W), got {tuple(drawing.shape)}")
    if not ((drawing == 0) | (drawing == 1)).all():
        raise ValueError("expected a drawing of 0 and 1 alone")
    return drawing.detach().byte().cpu().numpy().tobytes()
