"""Segmentation without learning, for images as simple as coins on a table: threshold, islands, distance, watershed.

Otsu (1979) finds the threshold; islands of pixels that touch are the first guess at objects; how deep a pixel lies in
its island shows the centres of objects that touch, and water that rises from there finds the borders between them.
"""

import heapq

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.base.runtime import wide
from course_lib.segmentation.semantic import as_map, as_mask, max_around


def otsu_threshold(values: Tensor, bins: int = 256) -> float:
    """The threshold that leaves the two sides' values as alike as can be (Otsu 1979, equation 14).

    It maximises w₀ w₁ (μ₀ − μ₁)², the variance between the two sides, over the borders of a histogram's bins.

    Args:
        values: any shape, at least two different ones.
        bins: of the histogram between the least and the greatest.

    Returns:
        The centre of the last bin of the lower side; the upper side is `values > threshold`.

    Raises:
        ValueError: all values are equal, or none; NaN or infinity; fewer than two bins.
    """
    values = torch.as_tensor(values)
    if bins < 2 or not values.isfinite().all():
        raise ValueError(f"expected finite values and at least two bins; got {bins} bins")
    if values.numel() == 0 or values.min() == values.max():
        raise ValueError("expected at least two different values")
    low, high = float(values.min()), float(values.max())
    counts = torch.histc(values.double(), bins, low, high)
    centres = low + (torch.arange(bins, dtype=torch.float64, device=values.device) + 0.5) * (high - low) / bins
    below, total = counts.cumsum(0)[:-1], counts.sum()
    sum_below, sum_all = (counts * centres).cumsum(0)[:-1], (counts * centres).sum()
    above = total - below
    between = below * above * (sum_below / below - (sum_all - sum_below) / above).square()
    return float(centres[between.argmax()])


def subtract_background(grey: Tensor, side: int, smooth: int = 1) -> Tensor:
    """A grey image without its slow changes of light: each pixel minus the mean of the window around it.

    Args:
        grey: (H, W), of any type; the result has its units, in float32 or more.
        side: of the window in pixels, odd, larger than the objects.
        smooth: side of a second, small window, odd: its mean replaces the pixel, and so removes noise.

    Returns:
        (H, W), about 0 where nothing stands out. Beyond the edges the image is mirrored.

    Raises:
        ValueError: another shape, an even side, or one so large that half of it does not fit into the image.
    """
    grey = wide(torch.as_tensor(grey))
    if grey.ndim != 2:
        raise ValueError(f"expected a grey image (H, W); got {tuple(grey.shape)}")
    if min(side, smooth) < 1 or not side % 2 == smooth % 2 == 1:
        raise ValueError(f"expected odd sides; got {side} and {smooth}")
    if max(side, smooth) // 2 >= min(grey.shape):
        raise ValueError(f"half of a window of {max(side, smooth)} does not fit into {tuple(grey.shape)}")

    def mean(n: int) -> Tensor:
        return F.avg_pool2d(F.pad(grey[None, None], (n // 2,) * 4, mode="reflect"), n, stride=1)[0, 0]

    return mean(smooth) - mean(side)


def connected_components(mask: Tensor) -> Tensor:
    """The islands of a mask: pixels that touch by a side or a corner belong together.

    Every pixel begins with a number of its own; then all take the largest number around them until nothing changes.

    Args:
        mask: bool (H, W).

    Returns:
        int64 (H, W): 0 outside, islands from 1 in the order in which one meets their last pixels, row by row.

    Raises:
        ValueError: another shape.
        TypeError: no booleans.
    """
    mask = as_mask(mask)
    H, W = mask.shape
    # Numbers up to 2⁵³ are exact in float64, which max-pooling knows.
    numbers = torch.arange(1, H * W + 1, device=mask.device, dtype=torch.float64).view(H, W) * mask
    while True:
        larger = max_around(numbers) * mask
        if torch.equal(larger, numbers):
            break
        numbers = larger
    places = numbers.unique(return_inverse=True)[1]  # 0 is the outside, if there is one
    return places + 1 if mask.all() else places


def distance_transform(mask: Tensor) -> Tensor:
    """How deep each pixel lies in its island: steps, also diagonal ones, to the nearest pixel outside.

    Beyond the image's edge there is nothing, neither outside nor inside. It is how many times a 3×3 erosion leaves
    the pixel.

    Args:
        mask: bool (H, W), not all true.

    Returns:
        float32 (H, W): 0 outside, 1 at the rim.

    Raises:
        ValueError: another shape, or a mask without an outside.
        TypeError: no booleans.
    """
    mask = as_mask(mask)
    if mask.all():
        raise ValueError("expected a mask with an outside")
    found, left = torch.zeros(mask.shape, device=mask.device), mask.float()
    while left.any():
        found += left
        left = 1 - max_around(1 - left)
    return found


def watershed(relief: Tensor, markers: Tensor, mask: Tensor) -> Tensor:
    """The watershed by flooding (Meyer 1994): water rises from the markers, and where two lakes meet is the border.

    Pixels are flooded from the lowest up, among equal ones those first that were reached first. Neighbours touch by a
    side or a corner.

    Args:
        relief: (H, W), finite; of a distance transform, the negative.
        markers: int64 (H, W), the number of the lake that begins at a pixel, from 1; elsewhere 0.
        mask: bool (H, W), the pixels that may be flooded.

    Returns:
        int64 (H, W): the number of each pixel's lake; 0 outside the mask and where no water comes.

    Raises:
        ValueError: shapes that do not fit, a relief that is not finite, or negative markers.
        TypeError: markers that are not whole numbers, a mask that is no booleans.
    """
    mask, markers, relief = as_mask(mask), as_map(markers, "markers"), torch.as_tensor(relief)
    if not relief.shape == markers.shape == mask.shape or not relief.isfinite().all() or (markers < 0).any():
        raise ValueError(
            "expected a finite relief, markers from 0 and a mask of one shape (H, W); got "
            + ", ".join(str(tuple(x.shape)) for x in (relief, markers, mask))
        )
    H, W = mask.shape
    # Lists, not tensors: every pixel is touched by itself. A border of pixels that never flood spares all other checks.
    heights, lakes, dry = (F.pad(x, (1, 1, 1, 1)).flatten().tolist() for x in (relief, markers * mask, mask.long()))
    steps = [row * (W + 2) + column for row in (-1, 0, 1) for column in (-1, 0, 1) if row or column]
    queue = [(heights[p], p, p) for p, lake in enumerate(lakes) if lake]
    heapq.heapify(queue)
    reached = len(lakes)
    while queue:
        _, _, p = heapq.heappop(queue)
        for q in (p + step for step in steps):
            if dry[q] and not lakes[q]:
                lakes[q], reached = lakes[p], reached + 1
                heapq.heappush(queue, (heights[q], reached, q))
    flooded = torch.tensor(lakes, dtype=torch.int64, device=mask.device)
    return flooded.view(H + 2, W + 2)[1:-1, 1:-1].contiguous()
