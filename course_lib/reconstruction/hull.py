"""The visual hull: the largest body with the given silhouettes; meshes and the distance between point clouds.

Laurentini 1994: from every view, what is seen past the object is air. Carving it away leaves a body that holds the
object; hollows that no silhouette shows stay filled.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.reconstruction.cameras import Camera
from course_lib.reconstruction.views import Box


def voxel_centres(box: Box, n: int) -> Tensor:
    """Centres of n×n×n equal cells of a box, (n, n, n, 3): x first, then y, then z."""
    low, high = (torch.tensor(corner) for corner in box)
    if n < 1 or not (low < high).all():
        raise ValueError(f"expected n ≥ 1 and a box with low < high; got {n}, {box}")
    axes = [a + (b - a) * (torch.arange(n) + 0.5) / n for a, b in zip(low, high, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def visual_hull(masks: Tensor, cameras: list[Camera], box: Box, n: int = 96) -> Tensor:
    """How much the silhouettes leave of each cell: the least, over the views, of the mask at its centre's pixel.

    Masks are interpolated, so the surface, at ½, lies finer than the cells. What a camera does not see, outside of
    its image or behind it, it does not carve.

    Args:
        masks: (V, H, W) in [0, 1], or bool.
        cameras: V of them, for images of this size.
        box: two opposite corners of what is carved.
        n: cells along each side.

    Returns:
        (n, n, n) float32 in [0, 1].

    Raises:
        ValueError: other shapes or sizes, no views, an empty silhouette, which would carve everything, or a box without
            extent.
    """
    if masks.ndim != 3 or len(masks) != len(cameras) or len(masks) == 0:
        raise ValueError(f"expected masks (V, H, W) for V ≥ 1 cameras; got {tuple(masks.shape)}, {len(cameras)}")
    H, W = masks.shape[1:]
    X = voxel_centres(box, n)
    left = torch.ones(n, n, n, device=masks.device)
    for view, camera in enumerate(cameras):
        if (camera.height, camera.width) != (H, W):
            raise ValueError(f"camera {view} is for {camera.height}×{camera.width} pixels; the masks are {H}×{W}")
        mask = masks[view].float()
        if not (mask > 0.5).any():
            raise ValueError(f"the silhouette of view {view} is empty: it would carve everything")
        x, depth = (found.to(masks.device) for found in camera.project(X.to(camera.K)))
        there = (2 * x / torch.tensor([W, H]).to(x) - 1).float()
        seen = (depth > 0) & (there.abs() <= 1).all(-1)
        # Pixels are squares from corner to corner, hence align_corners=False.
        value = F.grid_sample(mask[None, None], there.nan_to_num(2.0).view(1, -1, 1, 2), padding_mode="border",
                              align_corners=False).view(n, n, n)  # fmt: skip
        left = torch.where(seen, torch.minimum(left, value), left)
    return left


def volume(occupancy: Tensor, box: Box) -> float:
    """The volume of the cells (n, n, n) above ½, in the box's units cubed."""
    low, high = (torch.tensor(corner, dtype=torch.float64) for corner in box)
    return float((occupancy > 0.5).double().mean() * (high - low).prod())


def mesh(values: Tensor, box: Box, level: float = 0.5) -> tuple[Tensor, Tensor]:
    """The surface at `level` of a quantity known at the cells' centres, by scikit-image's marching cubes.

    Args:
        values: (n, n, n), larger inside. What is outside of the box counts as outside.
        box: two opposite corners.
        level: of the surface.

    Returns:
        Vertices (V, 3) float32 in the box's coordinates, and triangles (T, 3) int64, counter-clockwise from outside.

    Raises:
        ValueError: another shape, or no value on either side of the level.
    """
    from skimage.measure import marching_cubes

    if values.ndim != 3 or not (values > level).any():
        raise ValueError(f"expected (n, n, n) with values above {level}; got {tuple(values.shape)}")
    values = values.detach().float().cpu()
    outside = min(float(values.min()), 2 * level - float(values.max()))
    padded = F.pad(values, (1,) * 6, value=outside).numpy()
    vertices, faces, *_ = marching_cubes(padded, level, gradient_direction="ascent")
    low, high = (torch.tensor(corner) for corner in box)
    cells = torch.tensor(values.shape)
    at = low + (torch.from_numpy(vertices.copy()) - 0.5) * (high - low) / cells  # index 1 is the first cell's centre
    return at, torch.from_numpy(faces.astype("int64"))


def sample_surface(vertices: Tensor, faces: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """n points (n, 3), uniform on a mesh's surface."""
    corners = vertices[faces]
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = torch.linalg.cross(a, b).norm(dim=1)
    chosen = torch.multinomial(area.cpu(), n, replacement=True, generator=rng).to(vertices.device)
    u, v = torch.rand(2, n, 1, generator=rng).to(vertices)
    u, v = torch.where(u + v > 1, 1 - u, u), torch.where(u + v > 1, 1 - v, v)  # fold the parallelogram's other half
    return corners[chosen, 0] + u * a[chosen] + v * b[chosen]


def chamfer_distance(a: Tensor, b: Tensor, chunk: int = 2048) -> float:
    """The mean distance from a point of one cloud to the nearest of the other, averaged over both directions.

    Args:
        a, b: (N, 3) and (M, 3), not empty.
        chunk: rows of the distance matrix at a time.

    Raises:
        ValueError: other shapes, or an empty cloud.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or len(a) == 0 or len(b) == 0:
        raise ValueError(f"expected two clouds (N, 3) that are not empty; got {tuple(a.shape)} and {tuple(b.shape)}")

    def one_way(x: Tensor, y: Tensor) -> Tensor:
        # Not by |x|² − 2xy + |y|², whose rounding is larger than small distances.
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cat([torch.cdist(part, y, compute_mode=exact).amin(1) for part in x.split(chunk)]).mean()

    return float((one_way(a, b) + one_way(b, a)) / 2)
