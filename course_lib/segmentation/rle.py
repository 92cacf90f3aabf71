"""Masks as COCO stores them: run lengths (how many 0s, how many 1s, how many 0s …, down the columns), and polygons.

The text form packs the runs into printable characters, five bits each, as in pycocotools (`rleToString`): from the
fourth run on, the difference to the run two before it, which for a smooth outline is small.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib import scenes
from course_lib.segmentation.semantic import as_mask

FINER = 5  # polygons are drawn on a grid so many times as fine as the pixels


@dataclass(frozen=True)
class RLE:
    """A mask (H, W) as run lengths.

    Args:
        size: (H, W), in pixels; whole numbers of any kind become Python's own.
        counts: int64 (R,): the lengths of runs of 0, 1, 0, … in the order of the columns, from top to bottom and
            from left to right; the first is 0 where the mask begins with a 1. They sum up to H·W.

    Raises:
        ValueError: a negative size, runs that are negative or do not fill the mask.
        TypeError: runs or a size that are not whole numbers.
    """

    size: tuple[int, int]
    counts: Tensor

    def __post_init__(self) -> None:
        try:
            H, W = map(operator.index, self.size)
        except TypeError:
            raise TypeError(f"expected a size (H, W) of whole numbers; got {self.size}") from None
        object.__setattr__(self, "size", (H, W))  # which JSON can hold
        if self.counts.dtype != torch.int64 or self.counts.ndim != 1:
            raise TypeError(f"expected counts int64 (R,); got {self.counts.dtype} {tuple(self.counts.shape)}")
        if min(H, W) < 0 or (self.counts < 0).any() or int(self.counts.sum()) != H * W:
            raise ValueError(f"runs of a mask {H}×{W} must be ≥ 0 and sum up to {H * W}; got {self.counts.tolist()}")


def encode(mask: Tensor) -> RLE:
    """The runs of a mask (H, W) of booleans.

    Raises:
        ValueError: another shape.
        TypeError: no booleans.
    """
    mask = as_mask(mask)
    return RLE(tuple(mask.shape), scenes.run_lengths(mask))


def decode(rle: RLE) -> Tensor:
    """The mask (H, W) of booleans."""
    H, W = rle.size
    values = torch.arange(len(rle.counts), device=rle.counts.device) % 2 == 1
    return values.repeat_interleave(rle.counts).reshape(W, H).T.contiguous()


def to_text(rle: RLE) -> str:
    """The runs as COCO's compressed text."""
    counts, characters = rle.counts.tolist(), []
    for index, count in enumerate(counts):
        rest = count - counts[index - 2] if index > 2 else count
        more = True
        while more:  # five bits, the lowest first; the sixth tells whether there are more
            bits = rest & 31
            rest >>= 5  # of a negative number, ends at -1
            more = rest != (-1 if bits & 16 else 0)  # the fifth bit is the sign
            characters.append(chr(48 + bits + 32 * more))
    return "".join(characters)


def from_text(text: str, size: tuple[int, int]) -> RLE:
    """The runs of COCO's compressed text; size is (H, W).

    Raises:
        ValueError: a character outside the code, text that ends in the middle of a number, or runs that do not fill
            the mask.
    """
    counts: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"{character!r} is no character of a compressed mask")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        counts.append(number + counts[-2] if len(counts) > 2 else number)
        number = shift = 0
    if shift:
        raise ValueError("the text of a compressed mask ends in the middle of a number")
    return RLE(size, torch.tensor(counts, dtype=torch.int64))


def to_coco(rle: RLE) -> dict[str, object]:
    """A JSON-ready `{"size": [H, W], "counts": text}`, which pycocotools reads."""
    return {"size": list(rle.size), "counts": to_text(rle)}


def from_polygons(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> RLE:
    """The union of some polygons, pixel by pixel as pycocotools draws it.

    Each polygon is drawn on a grid five times as fine. Where its outline crosses the middle of a column of pixels,
    the column changes between outside and inside, from the first pixel on whose middle is not above the crossing.

    Args:
        polygons: each [x1, y1, x2, y2, …], in pixels, with 0 at the left and upper edge of the image.
        size: (H, W) of the image.

    Raises:
        ValueError: an odd number of coordinates, fewer than three corners, NaN or infinity.
    """
    H, W = map(int, size)  # bytes of NumPy would wrap in H · W
    union = torch.zeros(W * H, dtype=torch.bool)  # down the columns
    for polygon in polygons:
        corners = torch.as_tensor(polygon, dtype=torch.float64)
        if corners.ndim != 1 or len(corners) % 2 or len(corners) < 6 or not corners.isfinite().all():
            raise ValueError(f"expected a polygon [x1, y1, x2, y2, x3, y3, …]; got {tuple(corners.shape)} numbers")
        changes = _crossings(corners.view(-1, 2), H, W)
        union |= changes.bincount(minlength=H * W + 1)[: H * W].cumsum(0) % 2 == 1
    return encode(union.view(W, H).T)


def _crossings(corners: Tensor, H: int, W: int) -> Tensor:
    """Where the outline of a polygon (K, 2) crosses middles of columns: int64 places, counted down the columns."""
    x, y = _outline((FINER * corners + 0.5).trunc())
    step = (x[1:] != x[:-1]).nonzero()[:, 0]  # between these two points the outline moves on to another fine column
    column = (torch.minimum(x[step], x[step + 1]) + 0.5) / FINER - 0.5
    row = ((torch.minimum(y[step], y[step + 1]) + 0.5) / FINER - 0.5).clamp(0, H).ceil()
    middle = (column == column.floor()) & (column >= 0) & (column <= W - 1)
    return (column * H + row)[middle].long()


def _outline(corners: Tensor) -> Tensor:
    """(2, P): x and y of the points of the fine grid that the closed outline through corners (K, 2) passes."""
    sides = []
    for start, end in zip(corners, corners.roll(-1, 0), strict=True):
        dx, dy = (end - start).abs().tolist()
        long, short = (0, 1) if dx >= dy else (1, 0)  # one point for each step along the longer side
        low, high = (end, start) if start[long] > end[long] else (start, end)  # rounding goes from low to high
        along = torch.arange(max(dx, dy) + 1, dtype=torch.float64)
        slope = (high[short] - low[short]) / max(dx, dy, 1)
        across = (low[short] + slope * along + 0.5).trunc()
        points = torch.stack([low[long] + along, across])[[long, short]]  # [0, 1] and [1, 0] are their own inverses
        sides.append(points.flip(1) if start[long] > end[long] else points)
    return torch.cat(sides, 1)


def from_coco(stored: Mapping[str, object] | Sequence, size: tuple[int, int] | None = None) -> RLE:
    """What COCO's files and pycocotools hold as `segmentation`: runs as text, bytes or whole numbers, or polygons.

    Args:
        stored: {"size": [H, W], "counts": …}, or a list of polygons.
        size: (H, W) of the image, which polygons need.

    Raises:
        ValueError: no `size` or `counts`, or what `RLE`, `from_text` and `from_polygons` refuse.
        TypeError: runs with fractions.
    """
    if not isinstance(stored, Mapping):
        if size is None:
            raise ValueError("polygons need the size (H, W) of their image: from_coco(stored, size)")
        return from_polygons(stored, size)
    if not {"size", "counts"} <= set(stored):
        raise ValueError(f"expected a mask with size and counts; got {sorted(stored)}")
    size, counts = stored["size"], stored["counts"]
    if isinstance(counts, str | bytes):
        return from_text(counts.decode() if isinstance(counts, bytes) else counts, size)
    try:
        counts = list(map(operator.index, counts))
    except TypeError:
        raise TypeError(f"expected runs as whole numbers or text; got {counts}") from None
    return RLE(size, torch.tensor(counts, dtype=torch.int64))


def area(rle: RLE) -> int:
    """How many pixels the mask has."""
    return int(rle.counts[1::2].sum())


def box(rle: RLE) -> Tensor:
    """The tight box of the mask, int64 (4,): x1, y1, x2, y2 in pixels, right and lower edge not included.

    Of an empty mask: zeros.
    """
    H, _ = rle.size
    ends = rle.counts.cumsum(0)
    starts, ends = ends[:-1:2], ends[1::2]  # of the runs of 1
    kept = starts < ends
    starts, last = starts[kept], ends[kept] - 1
    if not len(starts):
        return ends.new_zeros(4)
    across = starts // H != last // H  # a run that goes on in the next column touches the bottom and the top
    top = torch.where(across, 0, starts % H).min()
    bottom = torch.where(across, H - 1, last % H).max()
    return torch.stack([starts.min() // H, top, last.max() // H + 1, bottom + 1])


def intersection(a: RLE, b: RLE) -> int:
    """How many pixels two masks share, without decoding them: between any two ends of runs, both are constant.

    Raises:
        ValueError: masks of two sizes.
    """
    if a.size != b.size:
        raise ValueError(f"expected masks of one size; got {a.size} and {b.size}")
    ends_a, ends_b = a.counts.cumsum(0), b.counts.cumsum(0)
    ends = torch.cat([ends_a.new_zeros(1), ends_a, ends_b]).sort().values
    # How many runs ended at or before the start of a piece: odd inside of a run of 1.
    inside = (torch.searchsorted(ends_a, ends[:-1], right=True) % 2 == 1) & (
        torch.searchsorted(ends_b, ends[:-1], right=True) % 2 == 1
    )
    return int(ends.diff()[inside].sum())


def iou(a: RLE, b: RLE, *, crowd: bool = False) -> float:
    """Intersection over union; 0 where both are empty.

    Args:
        a: of the same size as b.
        b: a mask.
        crowd: b marks a crowd: a may be any part of it, so the intersection is divided by a's area alone.
    """
    shared = intersection(a, b)
    union = area(a) if crowd else area(a) + area(b) - shared
    return shared / union if union else 0.0
