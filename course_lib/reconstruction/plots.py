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
    return draw_points(points.flatten(0, 1), colours.expand_as(points).flatten(0, 1), camera)


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
