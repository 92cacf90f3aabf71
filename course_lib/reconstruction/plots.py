"""Pictures of point clouds, meshes and cameras, drawn by the lesson's own pinhole cameras."""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from course_lib.base import plots
from course_lib.reconstruction.cameras import Camera


def draw_points(points: Tensor, colours: Tensor, camera: Camera, side: int = 1, background: float = 1.0) -> Tensor:
    """A coloured point cloud as a camera sees it: each point a square, nearer ones over farther ones.

    Args:
        points: (N, 3).
        colours: (N, 3) in [0, 1].
        camera: see Camera.
        side: of a point's square, in pixels.
        background: brightness where nothing is.

    Returns:
        (3, H, W) float32.
    """
    x, depth = camera.project(points.float())
    column, row = (x.nan_to_num(-1e6).floor().long() - (side - 1) // 2).unbind(1)
    H, W = camera.height, camera.width
    nearest = torch.full((H * W,), torch.inf)
    image = torch.full((H * W, 3), background)
    spread = [(i, j) for i in range(side) for j in range(side)]
    places = torch.cat(
        [torch.where(_inside(row + i, column + j, H, W), (row + i) * W + column + j, -1) for i, j in spread]
    )
    depths, paints = depth.repeat(len(spread)), colours.float().repeat(len(spread), 1)
    kept = (places >= 0) & (depths > 0)
    places, depths, paints = places[kept], depths[kept], paints[kept]
    nearest.scatter_reduce_(0, places, depths, "amin")
    front = depths <= nearest[places]
    image[places[front]] = paints[front]
    return image.T.reshape(3, H, W)


def _inside(row: Tensor, column: Tensor, H: int, W: int) -> Tensor:
    return (row >= 0) & (row < H) & (column >= 0) & (column < W)


def draw_mesh(vertices: Tensor, faces: Tensor, camera: Camera, per_face: int = 12) -> Tensor:
    """A mesh in grey, lit from the camera, as a camera sees it, (3, H, W); drawn as points spread over its triangles.

    Args:
        vertices: (V, 3).
        faces: (T, 3), small triangles, counter-clockwise from outside.
        camera: see Camera.
        per_face: points on each triangle.
    """
    corners = vertices[faces]
    normal = F.normalize(torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), dim=1)
    view = F.normalize(camera.centre - corners.mean(1), dim=1)
    shade = 0.25 + 0.7 * (normal * view).sum(1).clamp_min(0)
    weights = torch.rand(per_face, 3, generator=torch.Generator().manual_seed(0)).log().neg()
    weights = weights / weights.sum(1, keepdim=True)  # uniform on the triangle
    points = torch.einsum("pk,tkd->tpd", weights, corners)
    colours = shade[:, None, None] * torch.tensor([0.75, 0.82, 0.95])
    return draw_points(points.flatten(0, 1), colours.expand_as(points).flatten(0, 1), camera, side=2)


def draw_cameras(cameras: list[Camera], points: Tensor | None = None, size: float = 4.0) -> Figure:
    """Where cameras stand and look, with some points, in three dimensions."""
    figure = Figure(figsize=(size, size), layout="constrained")
    ax = figure.add_subplot(projection="3d")
    for camera in cameras:
        centre, forward = camera.centre, camera.R[2]
        tip = centre + 0.6 * forward
        ax.plot(*zip(centre.tolist(), tip.tolist(), strict=True), color=plots.COLOURS[0], linewidth=1)
        ax.scatter(*centre.tolist(), color=plots.COLOURS[0], s=12)
    if points is not None:
        ax.scatter(*points.T.tolist(), color=plots.COLOURS[1], s=1)
    ax.set_aspect("equal")
    ax.set(xlabel="x", ylabel="y", zlabel="z")
    return figure


def draw_epipolar(first: Tensor, second: Tensor, x1: Tensor, x2: Tensor, lines: Tensor) -> Figure:
    """Matched pixels in two images, and in the second the epipolar lines of those in the first.

    Args:
        first, second: images (3, H, W).
        x1, x2: pixels (N, 2), N ≤ 7: each pair has a colour.
        lines: (N, 3), a x + b y + c = 0 in the second image.
    """
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for ax, image, x, title in ((left, first, x1, "first image"), (right, second, x2, "second image")):
        H, W = image.shape[1:]
        ax.imshow(image.movedim(0, -1).numpy(), extent=(0, W, H, 0))
        ax.scatter(x[:, 0], x[:, 1], c=plots.COLOURS[: len(x)], s=45, edgecolors="white", zorder=3)
        ax.set_title(title)
        ax.set_axis_off()
    for (a, b, c), colour in zip(lines.tolist(), plots.COLOURS, strict=False):
        right.axline((0, -c / b), (W, -(c + a * W) / b), color=colour, linewidth=1.5)
    right.set(xlim=(0, W), ylim=(H, 0))
    return figure


def draw_disparities(maps: dict[str, Tensor], most: float) -> Figure:
    """Disparities (H, W) side by side in one colour scale from 0 to `most` pixels; white where unknown."""
    figure = Figure(figsize=(10, 2.2 * -(-len(maps) // 3)), layout="constrained")
    axes = figure.subplots(-(-len(maps) // 3), min(3, len(maps)), squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    for ax, (title, disparity) in zip(axes, maps.items(), strict=False):
        shown = ax.imshow(disparity.numpy(), cmap="turbo", vmin=0, vmax=most, interpolation="nearest")
        ax.set_title(title, fontsize=10)
    figure.colorbar(shown, ax=axes.tolist(), label="disparity, px", shrink=0.8)
    return figure
