"""Instance segmentation by centres and offsets, as in Panoptic-DeepLab (Cheng et al. 2020, arXiv 1911.10194).

For each pixel a network says how near the centre of an object is (a heatmap), and where that centre lies (an offset).
Peaks of the heatmap are the objects; each pixel of a thing joins the peak that its offset points at. Positions are
(row, column) in pixels, counted from the centre of the first pixel.
"""

import operator
from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.base import runtime
from course_lib.base.runtime import wide
from course_lib.detection.coco import Objects
from course_lib.segmentation.semantic import as_map, as_masks


@dataclass(frozen=True)
class Instances:
    """The objects of one image, N of them, possibly 0. NumPy arrays become tensors.

    Attributes:
        masks: bool (N, H, W).
        labels: int64 (N,), classes.
        scores: (N,) in [0, 1], of predictions; None for the truth.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: masks that are no booleans, labels that are not whole.
    """

    masks: Tensor
    labels: Tensor
    scores: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "masks", as_masks(self.masks))
        object.__setattr__(self, "labels", as_map(self.labels, "labels"))
        if self.scores is not None:
            object.__setattr__(self, "scores", torch.as_tensor(self.scores))
        given = [tuple(x.shape) for x in (self.masks, self.labels, self.scores) if x is not None]
        if self.masks.ndim != 3 or any(shape != given[0][:1] for shape in given[1:]):
            raise ValueError(f"expected masks (N, H, W), labels and scores (N,); got {', '.join(map(str, given))}")

    def objects(self) -> Objects:
        """For `detection.coco.evaluate` with `mask_iou`: mask AP."""
        return Objects(self.masks, self.labels, self.scores, areas=self.masks.sum((1, 2)))


def mask_iou(found: Tensor, truth: Tensor, crowd: Tensor | None = None) -> Tensor:
    """Intersection over union of every pair of masks; 0 where both are empty.

    Args:
        found: bool (D, H, W).
        truth: bool (G, H, W).
        crowd: bool (G,): a detection may be any part of a crowd, so the intersection is divided by its area alone.

    Returns:
        (D, G) float64; areas up to 2²⁴ pixels are counted exactly.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: masks that are not booleans.
    """
    found, truth = as_masks(found), as_masks(truth)
    if found.ndim != 3 or truth.ndim != 3 or found.shape[1:] != truth.shape[1:]:
        raise ValueError(f"expected masks (D, H, W) and (G, H, W); got {tuple(found.shape)} and {tuple(truth.shape)}")
    crowd = truth.new_zeros(len(truth)) if crowd is None else as_masks(crowd, "crowd")
    if crowd.shape != truth.shape[:1]:
        raise ValueError(f"expected crowd ({len(truth)},); got {tuple(crowd.shape)}")
    a, b = (masks.flatten(1).float() for masks in (found, truth))
    with runtime.no_autocast(a.device):  # bfloat16 counts exactly up to 256 only
        shared = (a @ b.T).double()
    area_a, area_b = a.sum(1)[:, None].double(), b.sum(1).double()
    union = torch.where(crowd, area_a, area_a + area_b - shared)
    return shared / union.clamp(min=1)


def centre_targets(masks: Tensor, sigma: float | Tensor = 2.0) -> tuple[Tensor, Tensor]:
    """What the network has to say of an image: the heatmap and the offsets of its objects.

    Args:
        masks: bool (N, H, W), disjoint and not empty.
        sigma: width of the Gaussian around each centre of mass, in pixels, for all or (N,) for each; the paper's 8 are
            for images of 1,025.

    Returns:
        heatmap (H, W) in [0, 1], the highest of the Gaussians, and offsets (2, H, W) in pixels, (down, right) from a
        pixel to its object's centre; 0 where there is no object.

    Raises:
        ValueError: another shape, masks that overlap, or an empty one, which has no centre; a width of 0.
        TypeError: masks that are no booleans.
    """
    masks = as_masks(masks)
    if masks.ndim != 3 or not masks.flatten(1).any(1).all():
        raise ValueError(f"expected masks (N, H, W), none of them empty; got {tuple(masks.shape)}")
    sigma = torch.as_tensor(sigma, dtype=torch.float32, device=masks.device)
    if not (sigma > 0).all() or (masks.sum(0) > 1).any():
        raise ValueError(f"expected masks that do not overlap, and sigma > 0; got sigma = {sigma}")
    N, H, W = masks.shape
    grid = _positions(H, W, masks.device)
    weights = masks.flatten(1).float()
    centres = (weights[:, None] * grid.flatten(1)).sum(2) / weights.sum(1, keepdim=True)  # (N, 2)
    to_centre = centres[:, :, None, None] - grid  # (N, 2, H, W)
    offsets = (to_centre * masks[:, None]).sum(0)
    heatmap = torch.exp(-to_centre.square().sum(1) / (2 * sigma**2).view(-1, 1, 1))
    return (heatmap.amax(0) if N else grid.new_zeros(H, W)), offsets


def find_centres(heatmap: Tensor, threshold: float = 0.1, window: int = 7, most: int = 200) -> tuple[Tensor, Tensor]:
    """The peaks of a heatmap: pixels that nothing in the window around them exceeds (section 3.2 of the paper).

    Of equal pixels in one window only one is a peak: an object has one centre.

    Args:
        heatmap: (H, W).
        threshold: peaks below it are dropped.
        window: side of the window in pixels, odd.
        most: the best so many are kept.

    Returns:
        (K, 2) int64 rows and columns, by falling height, and the heights (K,).

    Raises:
        ValueError: another shape, or an even window.
    """
    if heatmap.ndim != 2 or window < 1 or window % 2 == 0:
        raise ValueError(f"expected a heatmap (H, W) and an odd window; got {tuple(heatmap.shape)} and {window}")
    H, W = heatmap.shape
    # Places in the order of height instead of heights: no two are equal. (float32 counts 4096 × 4096 of them.)
    place = heatmap.flatten().argsort(stable=True).argsort().float().view(1, H, W)
    highest = F.max_pool2d(place, window, stride=1, padding=window // 2) == place
    peaks = (highest[0] & (heatmap >= threshold)).nonzero()
    heights = heatmap[peaks[:, 0], peaks[:, 1]]
    best = heights.argsort(descending=True, stable=True)[:most]
    return peaks[best], heights[best]


def group(centres: Tensor, offsets: Tensor, foreground: Tensor) -> Tensor:
    """Each pixel of a thing joins the centre nearest to where its offset points (equation 1 of the paper).

    Args:
        centres: (K, 2), rows and columns.
        offsets: (2, H, W), in pixels.
        foreground: bool (H, W), the things' pixels.

    Returns:
        int64 (H, W): k + 1 for the k-th centre, 0 elsewhere, and everywhere without centres.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: foreground that is no bool.
    """
    foreground = as_masks(foreground, "foreground")
    if centres.shape[1:] != (2,) or offsets.shape != (2, *foreground.shape):
        raise ValueError(
            "expected centres (K, 2), offsets (2, H, W) and foreground (H, W); got "
            + ", ".join(str(tuple(x.shape)) for x in (centres, offsets, foreground))
        )
    ids = torch.zeros(foreground.shape, dtype=torch.int64, device=foreground.device)
    if len(centres) and foreground.any():
        pointed_at = (_positions(*foreground.shape, offsets.device) + wide(offsets))[:, foreground]  # (2, P)
        squared = (pointed_at[:, :, None] - centres.T[:, None]).square().sum(0)  # (P, K)
        ids[foreground] = squared.argmin(1) + 1
    return ids


def instances(
    probabilities: Tensor,
    heatmap: Tensor,
    offsets: Tensor,
    things: Collection[int],
    *,
    threshold: float = 0.1,
    window: int = 7,
    least_area: int = 8,
) -> Instances:
    """The objects of one image, from a network's three maps.

    Departs from the paper where it lets the pixels vote for an object's class: each votes with its probabilities.

    Args:
        probabilities: (C, H, W), of the classes at each pixel.
        heatmap: (H, W).
        offsets: (2, H, W), in pixels.
        things: which of the classes can be counted.
        threshold: of the centres' heights, see `find_centres`.
        window: see `find_centres`.
        least_area: smaller objects are dropped, in pixels.

    Returns:
        Disjoint masks; the score is the centre's height, cut at 1, times the proportion of the votes.

    Raises:
        ValueError: shapes that do not fit, or a thing that is no class.
    """
    C, *size = probabilities.shape
    if probabilities.ndim != 3 or list(heatmap.shape) != size or list(offsets.shape) != [2, *size]:
        raise ValueError(
            "expected probabilities (C, H, W), a heatmap (H, W) and offsets (2, H, W); got "
            + ", ".join(str(tuple(x.shape)) for x in (probabilities, heatmap, offsets))
        )
    things = sorted(set(map(operator.index, things)))
    if not things or things[0] < 0 or things[-1] >= C:
        raise ValueError(f"expected things among the {C} classes, at least one; got {things}")
    kinds = torch.tensor(things, device=probabilities.device)
    foreground = torch.isin(probabilities.argmax(0), kinds)
    centres, heights = find_centres(heatmap, threshold, window)
    ids = group(centres, offsets, foreground)
    masks = ids == torch.arange(1, len(centres) + 1, device=ids.device)[:, None, None]
    kept = masks.sum((1, 2)) >= max(least_area, 1)
    masks, heights = masks[kept], heights[kept]
    with runtime.no_autocast(masks.device):  # sums over all pixels of an object
        chances = wide(probabilities[kinds]).flatten(1)
        votes = masks.flatten(1).to(chances) @ chances.T  # (N, kinds)
    proportion, winner = (votes / masks.sum((1, 2))[:, None].clamp(min=1)).max(1)
    return Instances(masks, kinds[winner], heights.clamp(0, 1) * proportion)


def _positions(H: int, W: int, device: torch.device) -> Tensor:
    """(2, H, W): row and column of each pixel."""
    rows, columns = torch.arange(H, device=device).float(), torch.arange(W, device=device).float()
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
